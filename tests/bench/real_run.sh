#!/bin/sh
# A real run: a random Llama of 15 million parameters with the Llama-3 tokenizer, SFT on y_ws and then WRPO over the 600
# real quadruples of SHARED/alpacaeval.
# usage: sh bench/real_run.sh WRPO SHARED OUT [THREADS [DTYPE [BESIDE]]]
# Prints time, memory and the curves as a table. BESIDE is the OUT of an earlier run, with another DTYPE say: how far
# the losses and margins of all steps lie from that run's. Needs awk, sed and GNU time (/usr/bin/time) for the resident
# memory.
set -e
wrpo=$1 shared=$2 out=$3 threads=${4:-2} dtype=${5:-f32} beside=$6
mkdir -p "$out/tok"
cp "$shared/tokenizers/llama3/tokenizer.json" "$out/tok/"
cp "$shared/chat/llama3.jinja" "$out/tok/chat_template.jinja"
echo '{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}' >"$out/tok/tokenizer_config.json"
cat >"$out/config.json" <<'X'
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 112,
 "intermediate_size": 320, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
 "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "torch_dtype": "float32"}
X
time=; [ -x /usr/bin/time ] && time="/usr/bin/time -v"
run() {   # name, arguments
    name=$1; shift
    begin=$(date +%s)
    $time "$wrpo" "$@" --threads "$threads" --dtype "$dtype" >"$out/$name.out" 2>"$out/$name.err" ||
        { cat "$out/$name.err"; exit 1; }
    predicted=$(sed -n 's/^memory *\([^:]*\):.*/\1/p' "$out/$name.out" "$out/$name.err" | head -n 1)
    peak=$(sed -n 's/.*Maximum resident.*: *//p' "$out/$name.err" | awk '{ printf "%.0f MiB", $1 / 1024 }')
    echo "$name: $(($(date +%s) - begin)) s; predicted $predicted, resident peak $peak"
}
"$wrpo" init --config "$out/config.json" --tokenizer "$out/tok" --out "$out/random"
data="$shared/alpacaeval/quads.jsonl"
run sft train --model "$out/random" --data "$data" --out "$out/sft" --method sft --learning-rate 3e-3 --batch-size 16 \
    --max-length 1024 --micro-tokens 2048
run wrpo train --model "$out/sft" --data "$data" --out "$out/wrpo" --learning-rate 1e-4 --batch-size 16 \
    --max-length 1024 --micro-tokens 2048 --beta 0.1
field() { sed -n "s/.*\"$1\": \([^,}]*\).*/\1/p" "$2"; }
echo "| step | SFT loss | WRPO loss | margin | accuracy | source | pivot | alpha |"
echo "|---|---|---|---|---|---|---|---|"
for name in step loss rewards.margins rewards.accuracies rewards.source_accuracies rewards.pivot_accuracies \
    cur_alpha; do
    field $name "$out/wrpo/metrics.jsonl" >"$out/col.$name"
done
field loss "$out/sft/metrics.jsonl" >"$out/col.sft"
paste "$out/col.step" "$out/col.sft" "$out/col.loss" "$out/col.rewards.margins" "$out/col.rewards.accuracies" \
    "$out/col.rewards.source_accuracies" \
    "$out/col.rewards.pivot_accuracies" "$out/col.cur_alpha" | awk '{ for (i = 2; i <= 8; i++) { s[i] += $i } n++
    if (NR == 1 || n == 6 || NR == 38) {
        printf "| %s%s |", NR == 1 || n == 1 ? "" : NR - n + 1 "-", $1
        for (i = 2; i <= 8; i++) { printf " %.4f |", s[i] / n; s[i] = 0 }
        print ""
        n = 0
    } }'
[ -z "$beside" ] || for name in sft loss rewards.margins; do
    paste "$out/col.$name" "$beside/col.$name" |
        awk -v name=$name '{ d = $1 > $2 ? $1 - $2 : $2 - $1; s += d; v += $2; if (d > m) m = d }
            END { printf "%s: %d steps, from the other run by %.5f in the mean and %.5f at most, of %.4f in the mean\n",
                name, NR, s / NR, m, v / NR }'
done
