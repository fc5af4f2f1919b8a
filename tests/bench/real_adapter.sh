#!/bin/sh
# WRPO of a real pretrained model on real records, with an adapter and with all weights. Prints, for each seed and in
# the mean, what it did to held-out records; CPU seconds and memory; and answers to five prompts before and after.
# usage: sh bench/real_adapter.sh WRPO MODEL QUADS OUT
#   MODEL   SmolLM2-135M-Instruct, say     QUADS  alpacaeval/quads.jsonl, or other records of this form
# Sizes, from the environment:
#   LENGTH=640 tokens: records with a longer sequence are left out, so that all answers are whole
#   RECORDS=64 of training    HELD=64 held out    SEEDS="1 2 3"    THREADS=1
# An interrupted run goes on, a stage at a time; with more SEEDS it adds those.
#
# Of the records that are short enough, the first HELD are held out and the next five are asked. A seed draws the
# records of training from the others, and is the seed of the adapter and of the order. Batch 8, two epochs, beta 0.1;
# the rate is 1e-4 for an adapter of rank 16 and 1e-5 for all weights; the rest is the program's default (alpha rises
# from 0 to 0.1). Nothing was tuned.
# Columns: log-prob per token of the source's answer and of the rejected one. Then against MODEL: how many nats more the
# answer's log-prob rose than the rejected one's, in the mean, and the share of the records in which it did; for the
# source's answer and for the target's. The intervals have 95 %: a seed's over the held-out records, that of the mean
# over the seeds.
set -e
wrpo=$1 model=$2 quads=$3 out=$4
[ -n "$out" ] || { sed -n '2,9p' "$0"; exit 2; }
records=${RECORDS:-64} held=${HELD:-64} length=${LENGTH:-640} seeds=${SEEDS:-1 2 3} threads=${THREADS:-1}
. "$(dirname "$0")/real.sh"
begin "$records $held $length"
choose "$records"

held model --model "$model"
finished=
for seed in $seeds; do
    shuffled "$seed" $((held + 5)) | head -n "$records" >"$out/train-$seed.jsonl"
    same="--batch-size 8 --epochs 2 --beta 0.1 --seed $seed"
    # shellcheck disable=SC2086
    train "adapter-$seed" --data "$out/train-$seed.jsonl" $same --lora-r 16 --learning-rate 1e-4
    # shellcheck disable=SC2086
    train "all-$seed" --data "$out/train-$seed.jsonl" $same --learning-rate 1e-5
    held "adapter-$seed" --model "$model" --adapter "$out/adapter-$seed"
    held "all-$seed" --model "$out/all-$seed"
    finished="$finished $seed"
    {
        row - model model
        for name in adapter all; do for s in $finished; do row "$s" $name-"$s" model; done; done
    } >"$out/rows.txt"
done
table
echo
# shellcheck disable=SC2046
cost $(for s in $finished; do echo "adapter-$s all-$s"; done)
first=${seeds%% *}
answers model "adapter-$first" "all-$first"
