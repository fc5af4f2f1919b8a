#!/bin/sh
# WRPO of a real pretrained model on 64 real quadruples, with an adapter and with all weights: held-out loss, margin and
# accuracy on 64 others, five answers before and after, time and memory; for each seed.
# usage: sh bench/real_adapter.sh WRPO MODEL SHARED OUT [SEEDS [LENGTH]]
#   MODEL   SmolLM2-135M-Instruct, say       SHARED  has alpacaeval/quads.jsonl
#   SEEDS   "1 2 3"                          LENGTH  tokens of a sequence, 512
set -e
wrpo=$1 model=$2 shared=$3 out=$4 seeds=${5:-1 2 3} length=${6:-512}
[ -n "$out" ] || { sed -n '2,7p' "$0"; exit 2; }
mkdir -p "$out"
head -n 64 "$shared/alpacaeval/quads.jsonl" >"$out/train.jsonl"
sed -n '65,128p' "$shared/alpacaeval/quads.jsonl" >"$out/held.jsonl"
sed -n '129,133p' "$shared/alpacaeval/quads.jsonl" >"$out/asked.jsonl"
field() { sed -n "s|.*\"$1\": \([^,}]*\).*|\1|p" "$2"; }
row() {   # name, eval's file, seconds, memory
    printf '| %s | %.4f | %+.4f | %.3f | %.3f | %.3f | %s | %s |\n' "$1" "$(field eval_loss "$2")" \
        "$(field eval_rewards/margins "$2")" "$(field eval_rewards/accuracies "$2")" \
        "$(field eval_rewards/source_accuracies "$2")" "$(field eval_rewards/pivot_accuracies "$2")" "$3" "$4"
}
same="--data $out/held.jsonl --beta 0.1 --max-length $length --alpha 0.1"
echo "| run | held-out loss | margin | accuracy | source | pivot | seconds | memory peak |"
echo "|---|---|---|---|---|---|---|---|"
for seed in $seeds; do
    for how in adapter all; do
        to=$out/$how-$seed options="--learning-rate 1e-5" given="--model $to --ref $model"
        if [ $how = adapter ]; then
            options="--lora-r 16 --learning-rate 1e-4" given="--model $model --adapter $to"
        fi
        rm -rf "$to"
        # shellcheck disable=SC2086
        "$wrpo" train --model "$model" --data "$out/train.jsonl" --out "$to" --batch-size 8 --epochs 2 --beta 0.1 \
            --max-length "$length" --seed "$seed" $options >"$to.txt"
        # shellcheck disable=SC2086
        "$wrpo" eval $given $same --out "$to.json"
        row "$how, seed $seed" "$to.json" "$(sed -n 's/.*(\([0-9.]*\) seconds in all.*/\1/p' "$to.txt")" \
            "$(sed -n 's/.*memory peak //p' "$to.txt")"
    done
done
first=${seeds%% *}
ask() { "$wrpo" generate "$@" --in "$out/asked.jsonl" --temperature 0 --max-tokens 60 |
    sed 's/.*"prompt": //; s/"tokens".*//' | cut -c1-400; }
echo "before:"
ask --model "$model"
echo "with the adapter:"
ask --model "$model" --adapter "$out/adapter-$first"
