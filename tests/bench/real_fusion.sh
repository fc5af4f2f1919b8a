#!/bin/sh
# The fusion family on a real pretrained model and real records: SFT, then WRPO, DPO and InfiFPO-WRPO from it, each as
# an adapter. Prints, for each seed and in the mean, what each did to held-out records; answers to five prompts before
# and after; and CPU seconds.
# usage: sh bench/real_fusion.sh WRPO MODEL QUADS OUT
#   MODEL   SmolLM2-135M-Instruct, say     QUADS  alpacaeval/quads.jsonl, or other records of this form
# Sizes, from the environment (bench/README.md has RECORDS=128 HELD=64 LENGTH=640 SFT=47 SOURCE=48: 35 minutes of a core
# for each seed):
#   LENGTH=384 tokens: records with a longer sequence are left out, so that all answers are whole
#   HELD=32 held out    RECORDS=32 of preference training    SFT=32 of the target's SFT
#   SOURCE=32 of the second source's SFT, which sees them twice
#   SEEDS="1 2 3"  THREADS=1
# An interrupted run goes on, a stage at a time; with more SEEDS it adds those.
#
# Of the records that are short enough, the first HELD are held out, the next five are asked, the next SOURCE train the
# second source: MODEL again, with an adapter of its own. A seed draws the records of SFT and of preference training
# from the others, and is the seed of the adapters and of the order. All have rank 16, rate 2e-4 (cosine, 10 % warm-up),
# batch 4, one epoch. Beta is 0.1 for WRPO and DPO, whose rewards are sums over tokens. For InfiFPO-WRPO, whose rewards
# are means over tokens, it is 0.1 times the mean number of tokens of an answer. Alpha is 0.5, constant. Nothing was
# tuned.
# Columns: log-prob per token of the source's answer and of the rejected one. Then against the model before (SFT against
# MODEL, the others against SFT): how many nats more the answer's log-prob rose than the rejected one's, in the mean,
# and the share of the records in which it did; for the source's answer and for the target's. The intervals have 95 %:
# a seed's over the held-out records, that of the mean over the seeds.
set -e
wrpo=$1 model=$2 quads=$3 out=$4
[ -n "$out" ] || { sed -n '2,12p' "$0"; exit 2; }
records=${RECORDS:-32} held=${HELD:-32} length=${LENGTH:-384} sft=${SFT:-32} source=${SOURCE:-32}
seeds=${SEEDS:-1 2 3} threads=${THREADS:-1}
. "$(dirname "$0")/real.sh"
begin "$records $held $length $sft $source"
choose $((source + sft + records))
sed -n "$((held + 6)),$((held + 5 + source))p" "$out/all.jsonl" >"$out/source.jsonl"
# InfiFPO's beta: the mean number of tokens of an answer, times 0.1.
beta=$(numbers "$out/tokens.jsonl" | awk 'NR == FNR { short[$1]; next } FNR in short { n += 3; sum += $4 + $5 + $6 }
    END { printf "%.1f", 0.1 * sum / n }' "$out/short" -)

same="--batch-size 4 --learning-rate 2e-4"
# shellcheck disable=SC2086
train other $same --method sft --data "$out/source.jsonl" --epochs 2 --lora-r 16 --seed 77
held model --model "$model"
finished=
for seed in $seeds; do
    shuffled "$seed" $((held + 5 + source)) >"$out/others.jsonl"
    head -n "$sft" "$out/others.jsonl" >"$out/sft-$seed.jsonl"
    sed -n "$((sft + 1)),$((sft + records))p" "$out/others.jsonl" >"$out/train-$seed.jsonl"
    # shellcheck disable=SC2086
    train "sft-$seed" $same --method sft --data "$out/sft-$seed.jsonl" --lora-r 16 --seed "$seed"
    held "sft-$seed" --model "$model" --adapter "$out/sft-$seed"
    stage "$out/sources-$seed.done" logprob --model "$model" --adapter "$out/other" --data "$out/train-$seed.jsonl" \
        --as-source other --max-length "$length" --out "$out/sources-$seed.jsonl"
    from="$same --adapter $out/sft-$seed --seed $seed"
    # shellcheck disable=SC2086
    train "wrpo-$seed" $from --data "$out/train-$seed.jsonl" --beta 0.1 --alpha 0.5 --alpha-schedule constant
    # shellcheck disable=SC2086
    train "dpo-$seed" $from --data "$out/train-$seed.jsonl" --beta 0.1 --method dpo
    # shellcheck disable=SC2086
    train "infifpo-wrpo-$seed" $from --data "$out/sources-$seed.jsonl" --beta "$beta" --alpha 0.5 \
        --alpha-schedule constant --method infifpo-wrpo
    for name in wrpo dpo infifpo-wrpo; do held "$name-$seed" --model "$model" --adapter "$out/$name-$seed"; done
    finished="$finished $seed"
    {
        row - model model
        for s in $finished; do row "$s" sft-"$s" model; done
        for name in wrpo dpo infifpo-wrpo; do for s in $finished; do row "$s" $name-"$s" sft-"$s"; done; done
    } >"$out/rows.txt"
done
table
echo
# shellcheck disable=SC2046
cost other $(for s in $finished; do echo "sft-$s sources-$s wrpo-$s dpo-$s infifpo-wrpo-$s"; done)
first=${seeds%% *}
answers model "sft-$first" "wrpo-$first" "dpo-$first" "infifpo-wrpo-$first"
