#!/bin/sh
# Builds the fuzz targets of fuzz.c with clang, libFuzzer, AddressSanitizer and UBSan, and runs each for some seconds.
# usage, in tests/: sh fuzz/run.sh [SECONDS_EACH [TARGET...]]      CLANG=clang-14 if clang is not its name
# SEED=1 draws the same inputs on every run; without it each run tries others. RUNS=10000000 asks for so many inputs of
# each, in place of seconds.
# Each begins with the seeds that `replay --seeds` writes and keeps what it learns in build/fuzz/TARGET. An input that
# breaks something is left as build/fuzz/found-TARGET-...; replay shows it:
#   FUZZ_TARGET=json build/fuzz/replay build/fuzz/found-json-crash-...
seconds=${1:-20}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- json tensors config adapter tokenizer template data state questions
limit=${RUNS:+-runs=$RUNS}
limit=${limit:--max_total_time=$seconds}
CLANG=${CLANG:-clang}
export ASAN_OPTIONS="${ASAN_OPTIONS:-quarantine_size_mb=16:malloc_context_size=4}"   # most of the time else
B=build/fuzz
mkdir -p $B
nothing='int LLVMFuzzerTestOneInput(const char *p, long n) { return !p + n - n; }'
if ! echo "$nothing" | $CLANG -x c -fsanitize=fuzzer,address,undefined - -o $B/works 2>/dev/null; then
    echo "skip: $CLANG with its libFuzzer is not installed (Debian: clang libclang-rt-14-dev)"
    echo "fuzz: 0 passed, 0 failed, $# skipped"
    exit 0
fi
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
# Without the fast ops, which read no file and take clang minutes. No trace
# of every comparison: it takes much of the time, and words.dict has the words.
# A template gets fewer steps: those of a long loop say nothing new.
coverage="-DWRPO__J_MAX_STEPS=50000 -fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp"
${MAKE:-make} --no-print-directory BUILD=$B CC="$CLANG" WARN="-std=c11 -g -Wall -Wextra" \
    CFLAGS="-O1 -DWRPO_NO_SIMD $sanitize $coverage" $B/fuzz $B/replay || exit 1
$B/replay --seeds $B || exit 1
passed=0 failed=0
begin() {   # a target, in the background
    longest=2048
    case $1 in tokenizer|state) longest=8400 ;; esac     # as the seeds are
    FUZZ_TARGET=$1 $B/fuzz "$limit" -timeout=60 -rss_limit_mb=2048 -max_len=$longest \
        -print_final_stats=1 -seed="${SEED:-0}" \
        -dict=fuzz/words.dict -artifact_prefix="$B/found-$1-" "$B/$1" >"$B/$1.log" 2>&1 &
}
end() {   # a target, its process
    if wait "$2"; then
        passed=$((passed + 1))
        echo "  $1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$B/$1.log") inputs," \
            "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$B/$1.log" | tail -n 1) edges"
    else
        failed=$((failed + 1))
        echo "FAIL fuzz: $1: $(grep -m 1 -E '^fuzz: |runtime error|^==[0-9]*==ERROR' "$B/$1.log")"
        sed -n 's/^artifact_prefix=.*Test unit written to /  /p; s/.*Test unit written to /  /p' "$B/$1.log"
    fi
}
# Two at a time, where there are two processors.
two=$([ "$(nproc 2>/dev/null || echo 1)" -gt 1 ] && echo yes)
while [ $# -gt 0 ]; do
    begin "$1"; first=$!
    if [ -n "$two" ] && [ $# -gt 1 ]; then begin "$2"; end "$1" $first; shift; first=$!; end "$1" $first
    else end "$1" $first; fi
    shift
done
echo "fuzz: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
