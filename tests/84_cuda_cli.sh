#!/bin/sh
# --device cuda from outside: the program without it refuses, the same source with it (here on the host) trains; what
# does not fit says what would.
# usage, in this folder: sh 84_cuda_cli.sh PATH_TO_WRPO, beside which wrpo_cuda lies if there was a C++ compiler
case $1 in /*) W=$1 ;; *) W=$PWD/$1 ;; esac
G=$PWD/golden/checkpoints T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
cd "$T" || exit 1
passed=0 failed=0 skipped=0
check() {
    what=$1; shift
    if "$@"; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL cuda_cli: $what"; sed 's/^/  /' out.txt err.txt | tail -6; fi
}
record() {
    printf '{"prompt_id": "%s", "prompt": "%s", ' "$1" "$2"
    printf '"chosen": [{"role": "assistant", "content": "%s"}, {"role": "assistant", "content": "%s"}], ' "$3" "$4"
    printf '"rejected": [{"role": "assistant", "content": "%s"}]}\n' "$5"
}
for i in 1 2 3 4; do
    record "r$i" "question $i, which is a long one" "a good answer $i" "good $i" "bad $i"
done >quads.jsonl
TRAIN="train --model $G/llama_f32 --data quads.jsonl --batch-size 2 --epochs 2 --learning-rate 1e-3 --beta 0.1"
TRAIN="$TRAIN --warmup-ratio 0 --threads 1"
"$W" $TRAIN --out none --device cuda >out.txt 2>err.txt
check "without it: exit code" test $? -eq 1
check "without it: a sentence" grep -q '^wrpo: --device cuda: this program was compiled without it' err.txt
check "without it: no output" test ! -e none
"$W" $TRAIN --out cpu >out.txt 2>err.txt
check "on the CPU" test -s cpu/model.safetensors
if [ -x "${W}_cuda" ]; then
    C=${W}_cuda
    "$C" $TRAIN --out cuda --device cuda >out.txt 2>err.txt
    check "training" test -s cuda/model.safetensors
    check "the plan" grep -q '^room  *[0-9].* free, 0 of 2 layers recomputed' out.txt
    check "the plan names masters and moments" grep -q '^memory .*weights.*moments' out.txt
    check "four steps" test "$(grep -c '"loss"' cuda/metrics.jsonl)" -eq 4
    check "ln 2 at step 0" sh -c 'head -1 cuda/metrics.jsonl | grep -q "\"loss\": 0.69314718"'
    field() { sed -E 's/.*"loss": ([-0-9.e]+).*/\1/' "$1/metrics.jsonl"; }
    field cpu >a; field cuda >b
    paste a b | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > 0.01 * $1) bad = 1 } END { exit bad || NR != 4 }'
    check "losses as on the CPU, within 1 %" test $? -eq 0
    for c in logprob eval; do
        "$C" $c --model cuda --data quads.jsonl --out $c.json --device cuda >out.txt 2>err.txt
        check "$c" test -s $c.json
    done
    "$C" inspect cuda --device cuda >out.txt 2>err.txt
    check "inspect" grep -q '^room ' out.txt
    for states in f32 bf16 8bit; do
        "$C" $TRAIN --out whole --device cuda --moments $states --save-steps 3 >out.txt 2>err.txt
        "$C" $TRAIN --out rest --device cuda --moments $states --resume whole/checkpoint-3 >out.txt 2>err.txt
        check "resume, moments in $states" cmp -s whole/model.safetensors rest/model.safetensors
        rm -rf whole/model.safetensors rest
    done
    "$C" $TRAIN --out new --moments 8bit --dtype bf16 --resume whole/checkpoint-3 >out.txt 2>err.txt
    check "resume: not what the device began" \
        grep -q '^wrpo: whole/checkpoint-3/trainer_state.wrpo: backend: want cpu.*, as this run has it, found cuda' \
        err.txt
    "$C" $TRAIN --out new --device cuda --dtype f32 >out.txt 2>err.txt
    check "float products: refused" grep -q '^wrpo: cuda: .*want dtype bf16, found f32' err.txt
    EMU_MEMORY=1000000 "$C" $TRAIN --out new --device cuda >out.txt 2>err.txt
    check "no room at all" grep -q '^wrpo: cuda: out of memory' err.txt
    # 17 MB of the device are taken when it is opened; then less and less is left for the run of many rows
    long=$(printf 'word %.0s' $(seq 250))
    for i in 1 2 3 4; do record "r$i" "$long" "a good answer $i" "good $i" "bad $i"; done >quads.jsonl
    recomputed() {
        EMU_MEMORY=$1 "$C" $TRAIN --max-steps 1 --max-length 2000 --micro-tokens 2000 --out "run$1" --device cuda \
            >out.txt 2>err.txt
    }
    wanted=$(recomputed 100000000; sed -nE 's/^room +([0-9.]+) MiB.*/\1/p' out.txt)
    needs='^wrpo: out of memory: besides its weights the run takes .* GiB, the device has .* GiB left'
    for part in 90 75 40; do
        bytes=$(awk "BEGIN { printf \"%d\", (16.2 + $wanted * $part / 100) * 1048576 * 1.01 }")
        recomputed "$bytes"
        if [ -s "run$bytes/model.safetensors" ]; then
            check "$part %: layers are recomputed" grep -qE '^room .* [12] of 2 layers recomputed' out.txt
            check "$part %: and change nothing" cmp -s "run$bytes/model.safetensors" run100000000/model.safetensors
            fitted=1
        else
            check "$part %: what would fit" \
                grep -qE "$needs; it would fit with moments in .*, [0-9]+ micro tokens and [0-9] of 2 layers" err.txt
            advised=1
        fi
    done
    check "some of them fit" test "$fitted" = 1
    check "some of them do not" test "$advised" = 1
else
    skipped=$((skipped + 1)); echo "skip: cuda_cli: there was no C++ compiler"
fi
echo "cuda_cli: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
