#!/bin/sh
# golden/states/trainer_state.wrpo: the state of a run after 2 steps, written by the program before state files had a
# format number (commit b381028). A test reads it for the sentence that says so.
# usage, in this folder: git worktree add old b381028; cc -O1 -fopenmp old/example.c -o wrpo -lm; sh states.sh ./wrpo
set -e
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
sed 's/"hidden_size": [0-9]*/"hidden_size": 4/; s/"head_dim": [0-9]*/"head_dim": 2/; s/"intermediate_size": [0-9]*/"intermediate_size": 4/
s/"num_attention_heads": [0-9]*/"num_attention_heads": 2/; s/"num_key_value_heads": [0-9]*/"num_key_value_heads": 1/
s/"num_hidden_layers": [0-9]*/"num_hidden_layers": 1/' checkpoints/llama_f32/config.json >"$T/config.json"
for i in 1 2 3; do
    echo "{\"prompt\": \"question $i\", \"chosen\": [{\"role\": \"assistant\", \"content\": \"a source\"}, {\"role\": \"assistant\", \"content\": \"a target $i\"}], \"rejected\": \"bad\"}"
done >"$T/data.jsonl"
"$1" init --config "$T/config.json" --tokenizer checkpoints/llama_f32 --out "$T/model"
"$1" train --model "$T/model" --data "$T/data.jsonl" --batch-size 1 --save-steps 2 --threads 1 --out "$T/run"
cp "$T/run/checkpoint-2/trainer_state.wrpo" states/
