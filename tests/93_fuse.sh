#!/bin/sh
# `wrpo fuse` is its single commands, byte for byte, and goes on from any kill to the bytes of a run without one.
# usage, in this folder: sh 93_fuse.sh PATH_TO_WRPO [KILLS [SEED]]
case $1 in /*) W=$1 ;; *) W=$PWD/$1 ;; esac
[ -x "$W" ] || { echo "usage: sh 93_fuse.sh PATH_TO_WRPO [KILLS [SEED]]"; exit 1; }
kills=${2:-8} seed=${3:-$$}
G=$PWD/golden
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
cd "$T" || exit 1
passed=0 failed=0 skipped=0
LC_ALL=C; export LC_ALL
check() { what=$1; shift; if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL $what"; fi; }
says() { grep -q -e "$1" err.txt || { sed 's/^/  err: /' err.txt; false; }; }
i=0
while [ $i -lt 40 ]; do
    i=$((i + 1)); printf '{"prompt_id": "p%d", "prompt": "What is %d and %d?"}\n' $i $i $((i * 7 % 31))
done >prompts.jsonl
cat >fuse.sh <<END
out=\$1; shift
exec "$W" fuse --model $G/checkpoints/llama_f32 --source $G/checkpoints/qwen2_bf16_sharded \
    "a phi=$G/checkpoints/phi3_bf16_sharded" --reward-model $G/rewards/llama_f32 --prompts prompts.jsonl --out "\$out" \
    --n 3 --max-tokens 16 --batch-size 2 --learning-rate 1e-3 --save-steps 2 \
    --sft-options "--learning-rate 1e-3 --batch-size 2 --epochs 2" "\$@"
END
fuse() { sh fuse.sh "$@" >out.txt 2>err.txt; }
INFI="--method infifpo-wrpo --rounds 2 --threads 1"
# The files of a run that are promised to the bit: not the log, the report, the times of metrics, and what says when.
sums() {
    (cd "$1" && find . -type f ! -name fuse.log ! -name report.html ! -name metrics.jsonl ! -name run.json |
        sort | xargs -d '\n' cksum
     find . -name metrics.jsonl | sort | while read -r f; do
        sed -E 's/, "(seconds|tokens_per_second)": [^,}]*//g' "$f" | cksum
     done)
}

# ---- the plan writes nothing
fuse whole $INFI --dry-run; check "dry run" test $? -eq 0
check "dry run: the plan" grep -q '^dry run .*nothing is written' out.txt
check "dry run: every stage" test "$(grep -cE '^ *[0-9]+ .* (split|sample|score|select|train|logprob|winrate|report) ' \
    out.txt)" -eq 35
check "dry run: nothing" test ! -e whole

# ---- a whole run, and the commands that its log names, one by one
begin=$(date +%s%N)
fuse whole $INFI; check "a whole run" test $? -eq 0
took=$(( ($(date +%s%N) - begin) / 1000000 ))
check "it names what it made" grep -q '^whole/round-2/model: the fused target$' out.txt
check "nothing unfinished" test -z "$(find whole -name '*.part' -o -name '*.settings' -o -name 'checkpoint-*')"
sums whole >whole.sums
check "it has files" test "$(wc -l <whole.sums)" -gt 40
mkdir -p single/sources single/heldout single/round-1 single/round-2
sed -n 's/^done //p' whole/fuse.log | sed 's:whole/:single/:g' >commands
check "31 commands make files" test "$(wc -l <commands)" -eq 31
while read -r line; do
    eval "'$W' $line" >out.txt 2>err.txt || { check "single: $line" false; sed 's/^/  /' err.txt; }
done <commands
find single -name 'checkpoint-*' -prune -exec rm -r {} + # `fuse` removes them when a training has ended
sums single >single.sums
check "the single commands make the same bytes" cmp whole.sums single.sums
fuse whole $INFI; check "again: it is done" test $? -eq 0
sums whole >again.sums
check "again: the same files" cmp whole.sums again.sums
check "again: no stage" test "$(grep -c '^\[' out.txt)" -eq 4

# ---- killed at random moments
k=0 runs=0 early=0
while [ $k -lt "$kills" ]; do
    runs=$((runs + 1))
    sh fuse.sh killed $INFI >out.txt 2>err.txt & pid=$!
    sleep "$(awk -v s=$((seed * 100 + runs)) -v ms=$took -v k="$kills" \
        'BEGIN { srand(s); printf "%.3f", rand() * ms / 500 / (k < 10 ? k : 10) }')"
    kill -KILL $pid 2>/dev/null; wait $pid 2>/dev/null; code=$?
    if [ $code -ne 137 ]; then     # it was done before, and begins anew
        check "it ended well" test $code -eq 0
        sums killed >killed.sums
        check "kills $k of $kills, seed $seed: the same bytes" cmp whole.sums killed.sums
        diff whole.sums killed.sums
        rm -rf killed; early=$((early + 1)); continue
    fi
    k=$((k + 1))
done
fuse killed $INFI; check "after $kills kills it ends" test $? -eq 0
sums killed >killed.sums
check "after $kills kills (seed $seed): the same bytes" cmp whole.sums killed.sums
check "after $kills kills: nothing left over" \
    test -z "$(find killed -name '*.part' -o -name '*.settings' -o -name 'checkpoint-*')"
echo "$kills kills in $runs starts, $early whole runs between them, seed $seed, a whole run $took ms"

# ---- what does not belong together is refused
fuse whole $INFI --beta 3; check "another beta" test $? -eq 1
check "another beta: the sentence" says 'whole/fuse.log:[0-9]*: this run did `wrpo train .*these options do not ask for'
fuse whole --method infifpo-wrpo --rounds 2 --threads 2 --batch 5; check "other threads go on" test $? -eq 0
cp prompts.jsonl kept; echo '{"prompt_id": "new", "prompt": "x"}' >>prompts.jsonl
fuse whole $INFI; check "other prompts" says 'this run began with other prompts than prompts.jsonl has now'
mv kept prompts.jsonl
mv whole/sft.jsonl kept; fuse whole $INFI
check "a file is gone" says 'whole/sft.jsonl: it was made by this run and is gone'
mv kept whole/sft.jsonl
mkdir -p foreign; echo mine >foreign/sft.jsonl
fuse foreign $INFI; check "a foreign file" says 'foreign/sft.jsonl: is there, and this run did not make it'
check "a foreign file is kept" test "$(cat foreign/sft.jsonl)" = mine
fuse x --method sft; check "sft alone" says 'want a preference method, found sft'
fuse x --rounds 0; check "no round" says 'want a whole number in'
fuse x --sft-options "--betta 1"; check "a wrong option of SFT" says 'unknown option "--betta"'
fuse x --sft-options " --epochs 1 --out=y"
check "an option of SFT that fuse sets" says 'sft-options: want no --out, which fuse sets itself'
fuse x --heldout 0.99 --dry-run
check "no prompts for a part" says 'prompts.jsonl: want prompts for all parts, found 40'
cp prompts.jsonl kept; echo '{"prompt_id": "p1", "prompt": "x"}' >>prompts.jsonl
fuse x --dry-run; check "an id twice, in the dry run" says 'want a prompt_id once, found "p1"'
cp kept prompts.jsonl; echo '{"prompt_id": "q", "instruction": "x"}' >>prompts.jsonl
fuse x --dry-run; check "no prompt, in the dry run" says 'prompts.jsonl:41:1: record "q": want either "p'
mv kept prompts.jsonl
check "no directory for any of these" test ! -e x
"$W" fuse --model $G/checkpoints/llama_f32 --source $G/checkpoints/llama_f32 $G/checkpoints/llama_f32/ --reward-model \
    $G/rewards/llama_f32 --prompts prompts.jsonl --out x >out.txt 2>err.txt
check "two sources of a name" says 'two sources are called llama_f32: want NAME='
"$W" fuse --model $G/checkpoints/llama_f32 --source $G/checkpoints/llama_f32 --reward-model \
    $G/checkpoints/llama_f32 --prompts prompts.jsonl --out x >out.txt 2>err.txt
check "no reward model" says 'checkpoints/llama_f32: want a reward model, found a language model'

# ---- a prompt that is there twice is in one part; what learns nothing and what says little is said
cp prompts.jsonl kept; for k in 1 2 3; do sed "s/: \"p/: \"again$k-/" kept; done >>prompts.jsonl
fuse same --dry-run; check "a prompt twice: the plan" test $? -eq 0
check "a prompt twice: the plan says so" grep -q '^prompts .* held out; 120 have the text of an earlier one' out.txt
"$W" split --in prompts.jsonl --heldout 0.1 --out same >out.txt
check "a prompt twice: split says so" grep -q '^120 of them have the text of an earlier one' out.txt
check "a prompt twice: in one part" test "$(for f in same/*.jsonl; do sed 's/.*"prompt": //' $f | sort -u; done |
    sort | uniq -d | wc -l)" -eq 0 -a "$(cat same/*.jsonl | sort | cksum)" = "$(sort prompts.jsonl | cksum)"
mv kept prompts.jsonl
fuse x --dry-run; check "few held out" says 'warning: --heldout: 4 prompts are few'
check "no run of one step" test "$(grep -c 'is one step' err.txt)" -eq 0
fuse x --dry-run --sft-options "--batch-size 64"
check "a run of one step" says 'SFT (--sft-options), 12 records .* nothing'
fuse x --dry-run --sft-options "--batch-size 64 --warmup-ratio 0"
check "one step without warm-up" test "$(grep -c 'is one step' err.txt)" -eq 0
check "no directory for these either" test ! -e x

# ---- another round later; an adapter; no part held out
fuse later --threads 1 --rounds 1; check "one round" test $? -eq 0
cp -r later/round-1 first
fuse later --threads 1 --rounds 2; check "another round" test $? -eq 0
check "another round: the first is kept" cmp -s first/model/model.safetensors later/round-1/model/model.safetensors
check "another round: the second" test -e later/round-2/model/model.safetensors
fuse lora --threads 1 --lora-r 2 --heldout 0 --method dpo; check "an adapter" test $? -eq 0
check "an adapter: of SFT" test -e lora/sft/adapter_model.safetensors
check "an adapter: of the round" test -e lora/round-1/model/adapter_model.safetensors
check "nothing held out" test ! -e lora/heldout -a ! -e lora/parts/heldout.jsonl
echo "93_fuse: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
