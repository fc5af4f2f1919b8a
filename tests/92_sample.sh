#!/bin/sh
# `wrpo sample` interrupted, at ten random moments and with every kind of torn file: it ends with the bytes of a run
# that was not.
# usage, in this folder: sh 92_sample.sh PATH_TO_WRPO [SEED]
case $1 in /*) W=$1 ;; *) W=$PWD/$1 ;; esac
[ -x "$W" ] || { echo "usage: sh 92_sample.sh PATH_TO_WRPO [SEED]"; exit 1; }
FIXTURES=$PWD/90_cli.sh
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
cd "$T" || exit 1
passed=0 failed=0 skipped=0
LC_ALL=C; export LC_ALL
check() { what=$1; shift; if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL $what"; fi; }
says() { grep -q -e "$1" err.txt || { sed 's/^/  err: /' err.txt; false; }; }
sed -n '/^mkdir tok/,/^record()/p' "$FIXTURES" | sed '$d' >fixtures.sh && . ./fixtures.sh
"$W" init --config config.json --tokenizer tok --out tiny --seed 3 >/dev/null || exit 1
i=0
while [ $i -lt 100 ]; do
    i=$((i + 1)); printf '{"prompt_id": "p%d", "prompt": {"role": "user", "content": "question \303\251 %d"}}\n' $i $i
done >prompts.jsonl
ARGS="sample --model tiny --prompts prompts.jsonl --as source --max-tokens 100 --threads 1"
sample() { "$W" $ARGS "$@"; }
begin=$(date +%s%N)
sample --out whole.jsonl >/dev/null || exit 1
took=$(( ($(date +%s%N) - begin) / 1000000 ))
check "100 lines" test "$(wc -l <whole.jsonl)" -eq 100
check "nothing beside the file" test -z "$(ls whole.jsonl.* 2>/dev/null)"
sample --out other.jsonl --batch 7 --threads 2 >/dev/null
check "another batch and two threads: the same bytes" cmp -s whole.jsonl other.jsonl

# ---- ten random moments, SIGKILL and SIGINT by turns
seed=${2:-$$}
k=0 runs=0
while [ $k -lt 10 ] && [ $runs -lt 60 ]; do
    runs=$((runs + 1))
    [ -e out.jsonl ] && { check "finished early: the same bytes" cmp -s whole.jsonl out.jsonl; rm -f out.jsonl; }
    "$W" $ARGS --out out.jsonl >/dev/null 2>err.txt & pid=$!
    sleep "$(awk -v s=$((seed * 100 + runs)) -v ms=$took 'BEGIN { srand(s); printf "%.3f", rand() * ms / 6000 }')"
    if [ $((k % 2)) -eq 0 ]; then kill -KILL $pid 2>/dev/null; else kill -INT $pid 2>/dev/null; fi
    wait $pid 2>/dev/null; code=$?
    [ $code -ne 0 ] || continue                        # it was done before
    k=$((k + 1))
    check "interrupted: no file under its name" test ! -e out.jsonl
    [ -e out.jsonl.part ] &&
        check "what is there is how the whole file begins" cmp -s \
        -n "$(wc -c <out.jsonl.part)" out.jsonl.part whole.jsonl
done
check "ten interruptions (seed $seed)" test $k -eq 10
[ -e out.jsonl ] || sample --out out.jsonl >out.txt 2>err.txt
check "after ten interruptions: the same bytes (seed $seed)" cmp -s whole.jsonl out.jsonl
check "nothing left beside it" test -z "$(ls out.jsonl.* 2>/dev/null)"
echo "ten interruptions in $runs starts, seed $seed, whole run $took ms"

# ---- torn files: cut anywhere, with a tail of rubbish
"$W" $ARGS --out torn.jsonl >/dev/null 2>&1 & pid=$!
while [ ! -s torn.jsonl.part ]; do sleep 0.01; done
kill -KILL $pid; wait $pid 2>/dev/null
cp torn.jsonl.settings settings
size=$(wc -c <whole.jsonl)
for cut in 1 77 $((size / 3)) $((size / 2 + 1)) $((size - 1)) "$size"; do
    for tail in '' '\000\000\000\000' '{"prompt_id": "p7"}\n' '{"prompt_id": "p1", "pro'; do
        { head -c "$cut" whole.jsonl; printf "$tail"; } >torn.jsonl.part
        cp settings torn.jsonl.settings
        sample --out torn.jsonl >out.txt 2>err.txt
        check "cut at $cut of $size, then \"$tail\": the same bytes" cmp -s whole.jsonl torn.jsonl
        rm -f torn.jsonl
    done
done

# ---- what does not belong together is refused
head -n 3 whole.jsonl >torn.jsonl.part; cp settings torn.jsonl.settings
sample --out torn.jsonl --seed 7 >out.txt 2>err.txt; check "another seed" test $? -eq 1
check "another seed: the sentence" \
    says 'torn.jsonl.part: want a run begun with .*--seed 7.*, found .*--seed 42.*; remove it to begin anew'
rm torn.jsonl.settings
sample --out torn.jsonl >out.txt 2>err.txt; check "no settings" says 'found one without its settings'
check "the lines are still there" test "$(wc -l <torn.jsonl.part)" -eq 3
sample --out whole.jsonl >out.txt 2>err.txt
check "a finished file" says 'whole.jsonl: is there already; remove it to sample anew'
cp settings torn.jsonl.settings; sed 's/question/Question/' prompts.jsonl >p2; mv p2 prompts.jsonl
sample --out torn.jsonl >out.txt 2>err.txt; check "other prompts" says 'want a run begun with'
"$W" $ARGS --out twice.jsonl --n 50 >/dev/null 2>&1 & pid=$!
while [ ! -s twice.jsonl.part ]; do sleep 0.01; done
sample --out twice.jsonl --n 50 >out.txt 2>err.txt
check "two at once" says 'twice.jsonl.part: another process is writing it'
kill -KILL $pid; wait $pid 2>/dev/null
"$W" $ARGS --out early.jsonl --n 5000 >/dev/null 2>&1 & pid=$!
while [ ! -e early.jsonl.settings ]; do sleep 0.01; done
sample --out early.jsonl --n 5000 >out.txt 2>err.txt
check "two at once, before anything is there: refused" says 'early.jsonl.part: another process is writing it'
check "two at once: the first one's files stay" test -e early.jsonl.part -a -e early.jsonl.settings
kill -KILL $pid; wait $pid 2>/dev/null

# ---- the model is all that answers depend on
"$W" $ARGS --out model.jsonl --n 50 >/dev/null 2>&1 & pid=$!
while [ ! -s model.jsonl.part ]; do sleep 0.01; done
kill -KILL $pid; wait $pid 2>/dev/null
cp tiny/config.json kept; sed 's/"rms_norm_eps": *[^,}]*/"rms_norm_eps": 0.01/' kept >tiny/config.json
check "the config differs" test "$(cmp -s kept tiny/config.json; echo $?)" -eq 1
sample --out model.jsonl --n 50 >out.txt 2>err.txt; check "another config.json" says 'want a run begun with'
cp kept tiny/config.json

# ---- what the template wants besides messages stays with the prompt
printf '{"prompt_id": "t", "prompt": "x", "tools": [{"name": "f"}], "chat_template_kwargs": {"date": "1 May"}}\n' \
    >tools.jsonl
"$W" sample --model tiny --prompts tools.jsonl --as source --max-tokens 3 --n 2 --threads 1 --out tools.out >/dev/null \
    2>err.txt
check "tools and kwargs are written" \
    grep -q '"prompt": "x", "tools": \[{"name": *"f"}\], "chat_template_kwargs": {"date": *"1 May"}, "sources"' \
    tools.out
echo "92_sample: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
