#!/bin/sh
# The program on several ranks, over Open MPI and MPICH: with --lanes the bits do not depend on the number of ranks, a
# run goes on with another number, one rank's bad input or death ends them all, and nothing half-written is left.
# usage, in this folder: sh 78_mpi.sh PATH_TO_WRPO [KILLS] [SEED] [PARTS]
#   10 kills or more: every type of weights and moments on both
#   PARTS, of these: bits files bad devices kills fuse pieces
#   beside PATH_TO_WRPO: wrpo_openmpi (with devices and NCCL, emulated, where there is a C++ compiler) and wrpo_mpich
#   (with devices), where they could be built, 76_ranks and mpi_pieces_*
case $1 in /*) B=${1%/*} ;; *) B=$PWD/${1%/*} ;; esac
KILLS=${2:-2} SEED=${3:-$$} PARTS=${4:-bits files bad devices kills fuse pieces}
W=$B/wrpo FIXTURES=$PWD/90_cli.sh G=$PWD/golden real=$PWD/../../shared/data/alpacaeval/quads.jsonl
[ -x "$W" ] || { echo "usage: sh 78_mpi.sh PATH_TO_WRPO [KILLS] [SEED]"; exit 1; }
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
cd "$T" || exit 1
passed=0 failed=0 skipped=0
LC_ALL=C OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0   # what MPI itself leaves behind
export LC_ALL OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM OMPI_MCA_btl_vader_single_copy_mechanism
export OMP_NUM_THREADS ASAN_OPTIONS
check() {
    what=$1; shift
    if "$@"; then passed=$((passed + 1)); return; fi
    failed=$((failed + 1))
    echo "FAIL $what"
    tail -n 3 err.txt | cut -c 1-300 | sed 's/^/  err: /'
}
# Each rank leaves its process in pid.N; on rank $BAD the arguments of $WITH come last, in place of those before.
cat >rank.sh <<'R'
rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
echo $$ >pid.$rank
[ "$rank" = "$BAD" ] && set -- "$@" $WITH
exec "$@"
R
BAD=none WITH=
export BAD WITH
ranks() { # how many, command line
    n=$1; shift
    rm -f pid.*
    case $MPI in
    openmpi) timeout 900 mpirun.openmpi --oversubscribe -np "$n" sh rank.sh "$B/wrpo_$MPI" "$@" >out.txt 2>err.txt ;;
    mpich) timeout 900 mpiexec.mpich -np "$n" sh rank.sh "$B/wrpo_$MPI" "$@" >out.txt 2>err.txt ;;
    esac </dev/null
}
state() { "$B/76_ranks" "$1" "$2"; }                   # a hash of a checkpoint and of the metrics, without the times
sed -n '/^mkdir tok/,/^record()/p' "$FIXTURES" | sed '$d' >fixtures.sh && . ./fixtures.sh
"$W" init --config config.json --tokenizer tok --out tiny --seed 3 >/dev/null || exit 1
"$W" init --config config.json --tokenizer tok --out other --seed 4 >/dev/null || exit 1
if [ -r $real ]; then head -n 60 $real >quads.jsonl
else
    echo "skip: no real quadruples here, made ones take their place"
    skipped=$((skipped + 1))
    awk 'function words(n,  s) { while (n-- > 0) s = s " word" int(rand() * 90); return s }
        function say(n) { return "{\"role\": \"assistant\", \"content\": \"" words(n) "\"}" }
        BEGIN { srand(5); for (i = 1; i <= 60; i++)
            printf "{\"prompt_id\": \"r%d\", \"prompt\": \"%s\", \"chosen\": [%s, %s], \"rejected\": [%s]}\n",
                i, words(9), say(9 + i % 20), say(5 + i % 13), say(3 + i % 17) }' >quads.jsonl
fi
head -n 7 quads.jsonl >held.jsonl
TRAIN="train --model tiny --data quads.jsonl --max-length 160 --batch-size 12 --micro-tokens 400 --lanes 4
    --max-steps 10 --learning-rate 1e-3 --beta 0.5 --save-steps 4 --eval-data held.jsonl --eval-steps 5"
i=0
while [ $i -lt 40 ]; do
    i=$((i + 1)); printf '{"prompt_id": "p%d", "prompt": {"role": "user", "content": "question %d"}}\n' $i $i
done >prompts.jsonl

# ---- the same bits on 1, 2 and 4 ranks of either MPI; the first are those of the program without MPI
same() { # what, directory: as the first of this kind
    check "$1: exit code" test $code -eq 0
    s=$(state $2/checkpoint-8 $2)
    [ -n "$want" ] || { want=$s; cp $2/model.safetensors first.safetensors; }
    check "$1: moments and metrics" test -n "$s" -a "$s" = "$want"
    check "$1: weights" cmp -s first.safetensors $2/model.safetensors
    check "$1: nothing half-written" test -z "$(find . -name '*.part')"
}
of() { case " $PARTS " in *" $1 "*) echo "$mpis" ;; esac; }      # the MPIs that take part of the tests
mpis=
for MPI in openmpi mpich; do
    if [ -x "$B/wrpo_$MPI" ]; then mpis="$mpis $MPI"; else echo "skip: $MPI is not here"; skipped=$((skipped + 1)); fi
done
kinds="f32-f32 bf16-8bit" every=
[ "$KILLS" -gt 9 ] && kinds="f32-f32 f32-bf16 f32-8bit bf16-f32 bf16-bf16 bf16-8bit" every=1
for kind in $kinds; do
    set -- ${kind%-*} ${kind#*-}
    want=
    for MPI in $(of bits); do
        [ "$MPI $kind$every" = "mpich f32-f32" ] && continue
        for n in 1 2 4; do
            rm -rf new
            ranks $n $TRAIN --dtype $1 --moments $2 --out new; code=$?
            same "$MPI, $n ranks, $1, moments $2" new
        done
    done
done
for MPI in $(of bits); do # default lanes: the bits of the same number of ranks
    for n in 3; do
        args=$(echo "$TRAIN" | sed 's/--lanes 4//')
        rm -rf new again
        ranks $n $args --out new && ranks $n $args --out again; code=$?
        want= && same "$MPI, $n ranks, default lanes" new && same "$MPI, $n ranks, default lanes, again" again
    done
done

# ---- log-probs, samples, rewards, answers and metrics: the file of one rank
i=0
while [ $i -lt 9 ]; do
    i=$((i + 1))
    printf '{"prompt_id": "c%d", "prompt": "question %d", ' $i $i
    printf '"target": [{"content": "yes %d"}, {"content": "no"}]}\n' $i
done >candidates.jsonl
i=0
while [ $i -lt 7 ]; do i=$((i + 1)); printf '{"instruction": "What is %d?", "dataset": "d"}\n' $i; done >questions.jsonl
of_one() { # name, command line without --out: its file is that of one rank, but for times
    name=$1; shift
    plain() { sed -E 's/"(eval_)?(seconds|tokens_per_second)": [^,}]*//g' "$1"; }
    [ -e "$name.1" ] || "$W" "$@" --out "$name.1" >out.txt 2>err.txt || check "$name: one rank" false
    for n in 2 3; do
        rm -f "$name.n"
        ranks $n "$@" --out "$name.n"
        code=$?
        check "$MPI, $n ranks: $name: exit code" test $code -eq 0
        plain "$name.1" >a.txt; plain "$name.n" >b.txt
        check "$MPI, $n ranks: $name" test -s a.txt
        check "$MPI, $n ranks: $name: the file of one rank" cmp -s a.txt b.txt
    done
}
R=$G/rewards/llama_f32
for MPI in $(of files); do
    of_one logprob logprob --model tiny --data quads.jsonl --max-length 160
    of_one sample sample --model tiny --prompts prompts.jsonl --as source --max-tokens 30
    of_one score score --reward-model "$R" --in candidates.jsonl
    of_one answer answer --model "$G/checkpoints/llama_f32" --bench alpacaeval --questions questions.jsonl \
        --max-tokens 12 --date 2026-11-29
    of_one eval eval --model tiny --ref other --data held.jsonl --max-length 160
done

# ---- one rank is given something bad: one sentence that names it, exit code 1, nothing left
bad() { # what, pattern, arguments of rank 1 that replace others, command line (TRAIN)
    rm -rf new
    BAD=1 WITH=$3
    ranks 2 ${4:-$TRAIN} --out new; code=$?
    BAD=none
    check "$MPI, $1: exit code $code" test $code -eq 1
    check "$MPI, $1: the sentence" grep -q "^wrpo: rank 1: .*$2" err.txt
    check "$MPI, $1: one sentence" test "$(grep '^wrpo: ' err.txt | grep -vc warning)" -eq 1
    check "$MPI, $1: nothing left" test ! -f new -a ! -e new/model.safetensors -a -z "$(find . -name '*.part')"
}
sed '3s/"content": "/&x/' quads.jsonl >changed.jsonl
sed '4s/^{/{"weight": NaN, /' quads.jsonl >nan.jsonl
mkdir -p changed && cp -r tiny/. changed && sed 's/"rms_norm_eps": [^,]*/"rms_norm_eps": 0.5/' tiny/config.json \
    >changed/config.json
head -n 5 prompts.jsonl >fewer.jsonl
head -n 3 held.jsonl >held3.jsonl
printf '{"prompt_id"' >cut.jsonl
for MPI in $(of bad); do
    bad "no data file" "none.jsonl" "--data none.jsonl"
    bad "another rate" "learning_rate: want that of rank 0" "--learning-rate 2e-3"
    bad "another record" "the data: want that of rank 0" "--data changed.jsonl"
    bad "NaN in a record" "nan.jsonl" "--data nan.jsonl"
    bad "other weights" "the model's weights: want that of rank 0" "--model other"
    bad "no memory" "memory" "--memory-limit 1000"
    bad "other lanes" "lanes: want" "--lanes 6"
    bad "another config" "the config of the model: want that of rank 0" "--model changed"
    bad "other eval data" "the eval data: want that of rank 0" "--eval-data held3.jsonl"
    bad "no model" "nowhere" "--model nowhere"
    bad "no checkpoint" "nowhere" "--resume nowhere"
    bad "fewer prompts" "the prompts and the settings of sampling: want that of rank 0" "--prompts fewer.jsonl" \
        "sample --model tiny --prompts prompts.jsonl --as source --max-tokens 9"
    bad "prompts that are cut" "cut.jsonl:1:" "--prompts cut.jsonl" \
        "sample --model tiny --prompts prompts.jsonl --as source --max-tokens 9"
    bad "rewards to replace" "want that of rank 0" "--rescore" "score --reward-model $R --in candidates.jsonl"
    bad "no reward model" "nowhere" "--reward-model nowhere" "score --reward-model $R --in candidates.jsonl"
    bad "no questions" "none.jsonl" "--questions none.jsonl" \
        "answer --model $G/checkpoints/llama_f32 --bench alpacaeval --questions questions.jsonl --max-tokens 5"
    bad "log-probs of no file" "none.jsonl" "--data none.jsonl" "logprob --model tiny --data quads.jsonl"
done

# ---- ranks on devices, over NCCL, both emulated: the bits of one; refused where NCCL was left out
EMU_DEVICES=4
export EMU_DEVICES
DEVICE="train --model tiny --data quads.jsonl --max-length 60 --batch-size 4 --micro-tokens 100 --lanes 4 --max-steps 2
    --learning-rate 1e-3 --device cuda --moments 8bit --save-steps 1"
for MPI in $(of devices); do
    ranks 2 $DEVICE --out new; code=$?
    if grep -q 'without it: want nvcc' err.txt; then
        echo "skip: $MPI: there was no C++ compiler"; skipped=$((skipped + 1)); continue
    fi
    if [ $MPI = mpich ]; then
        check "$MPI, devices: refused" grep -q '^wrpo: .*several ranks: .*want -DWRPO_NCCL' err.txt
        check "$MPI, devices: exit code" test $code -eq 1 -a ! -e new/model.safetensors
        continue
    fi
    want=
    for n in 1 2 4; do
        rm -rf new
        ranks $n $DEVICE --out new; code=$?
        check "$MPI, $n devices: exit code" test $code -eq 0
        s=$(state new/checkpoint-1 new)
        [ -n "$want" ] || { want=$s; cp new/model.safetensors first.safetensors; }
        check "$MPI, $n devices: moments and metrics" test -n "$s" -a "$s" = "$want"
        check "$MPI, $n devices: weights" cmp -s first.safetensors new/model.safetensors
    done
    bad "the other device" "--device: want that of rank 0" "--device cpu" "$DEVICE"
    NCCL_EMU_FAIL=1:1
    export NCCL_EMU_FAIL
    ranks 2 $DEVICE --out new; code=$?
    check "$MPI, an error of NCCL: exit code" test $code -eq 1
    check "$MPI, an error of NCCL: the sentence" \
        grep -q '^wrpo: rank 0: the group failed: rank 1: ncclSend and ncclRecv: unhandled system error' err.txt
    unset NCCL_EMU_FAIL
done

# ---- a random rank is killed at a random moment: all end, what is saved is whole, and the run goes on from it with
# another number of ranks, to the bytes of one that was not killed
draw=0
random() { # an integer below $1; draw is counted by the caller, as this is a process of its own
    awk -v s=$((SEED * 1000 + draw)) -v n="$1" 'BEGIN { srand(s); srand(s + int(rand() * 1e6)); print int(rand() * n) }'
}
LONG="$(echo "$TRAIN" | sed 's/--max-steps 10/--max-steps 22/') --dtype bf16 --moments 8bit"
for MPI in $(of kills); do
    rm -rf whole
    begin=$(date +%s%N)
    ranks 2 $LONG --out whole; code=$?
    took=$(( ($(date +%s%N) - begin) / 1000000 ))
    want=$(state whole/checkpoint-20 whole)
    check "$MPI: the run that is not killed" test $code -eq 0 -a -n "$want"
    rm -rf new
    kills=0 starts=0
    while [ $kills -lt $KILLS ] && [ $starts -lt $((KILLS * 4)) ]; do
        starts=$((starts + 1))
        draw=$((draw + 3))
        n=$((1 << $(random 3))) resume=
        last=$(ls -d new/checkpoint-*/trainer_state.wrpo 2>/dev/null | sort -t- -k2n | tail -n 1)
        [ -n "$last" ] && resume="--resume ${last%/*}"
        ranks $n $LONG --out new $resume & job=$!
        while [ "$(cat pid.* 2>/dev/null | wc -l)" -lt $n ] && kill -0 $job 2>/dev/null; do sleep 0.01; done
        draw=$((draw + 1))
        sleep "$(random $took | awk '{ printf "%.3f", $1 / 1500 }')"
        draw=$((draw + 1))
        kill -KILL "$(cat pid.$(random $n))" 2>/dev/null
        begin=$(date +%s)
        wait $job; code=$?
        check "$MPI: $n ranks end within 60 s of a death" test $(($(date +%s) - begin)) -lt 60
        if [ $code -eq 0 ]; then                       # it was done before
            check "$MPI: done, after $kills kills: the same bytes (seed $SEED)" \
                test "$(state new/checkpoint-20 new)" = "$want"
            rm -rf new
        else
            kills=$((kills + 1))
        fi
    done
    last=$(ls -d new/checkpoint-*/trainer_state.wrpo 2>/dev/null | sort -t- -k2n | tail -n 1)
    resume=; [ -n "$last" ] && resume="--resume ${last%/*}"
    ranks 4 $LONG --out new $resume; code=$?
    check "$MPI: after $kills kills in $starts starts: the same bytes (seed $SEED)" \
        test "$(state new/checkpoint-20 new)" = "$want"
    check "$MPI: the same weights" cmp -s whole/model.safetensors new/model.safetensors
    echo "$MPI: $kills kills in $starts starts, seed $SEED, whole run $took ms"
done

# ---- fuse: every stage on all ranks that can be
i=0
while [ $i -lt 30 ]; do i=$((i + 1)); printf '{"prompt_id": "%d", "prompt": "What is %d?"}\n' $i $i; done >prompts.jsonl
FUSE="fuse --model $G/checkpoints/llama_f32 --source $G/checkpoints/qwen2_bf16_sharded --reward-model
    $G/rewards/llama_f32 --prompts prompts.jsonl --n 3 --max-tokens 16 --batch-size 4 --learning-rate 1e-3 --lanes 2
    --threads 1 --method dpo --sft-options=--batch-size=4"
[ -z "$(of fuse)" ] || "$W" $FUSE --out fused-1 >out.txt 2>err.txt || check "fuse on one rank" false
for MPI in $(of fuse); do
    ranks 2 $FUSE --out "fused-$MPI"; code=$?
    check "$MPI: fuse on two ranks" test $code -eq 0
    for file in sft/model.safetensors round-1/target-scored.jsonl round-1/quads.jsonl \
        round-1/model/model.safetensors; do
        check "$MPI: fuse, $file" cmp -s fused-1/$file "fused-$MPI/$file"
    done
done

# ---- what is larger than a message is moved in pieces
for MPI in $(of pieces); do
    case $MPI in openmpi) start="mpirun.openmpi --oversubscribe" ;; mpich) start=mpiexec.mpich ;; esac
    timeout 900 $start -np 3 "$B/mpi_pieces_$MPI" >out.txt 2>err.txt </dev/null; code=$?
    check "$MPI: pieces" test $code -eq 0 -a "$(grep -c whole out.txt)" -eq 3
done
echo "mpi: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
