#!/bin/sh
# The readers of files on the inputs that fuzzing begins with, fuzz/corpus/ among them. Those are what libFuzzer found
# to reach the most of each reader, a line each; an input that once broke something is a line, too.
# usage, in this folder: sh 88_corpus.sh
B=${WRPO_PROGRAM%/*}
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
passed=0 failed=0
"$B/replay" --seeds "$T" || exit 1
for target in json tensors config adapter tokenizer template data state questions; do
    for input in "$T/$target"/*; do
        if FUZZ_TARGET=$target "$B/replay" "$input" >"$T/said" 2>&1; then passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAIL $target, $(basename "$input"): exit $?"
            grep -m 3 -E '^fuzz: |runtime error|^==[0-9]*==ERROR' "$T/said"
        fi
    done
done
echo "corpus: $passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ] && [ $passed -gt 300 ]
