#!/bin/sh
# Start-up: `wrpo inspect` of a checkpoint of 16 GB, and what `wrpo logprob` of one of 2.5 GB holds in memory of its
# own.
# usage: sh bench/bench_start.sh [DIR]
# Both checkpoints are sparse files under DIR (a temporary folder): right
# headers, zeros for weights, no disk space. Exits 1 if inspect takes 0.1 s or more, or if logprob's own memory (RssAnon
# of Linux, the mapped file not counted) reaches half of the weights. Needs GNU date, truncate and awk.
cd "$(dirname "$0")/.." || exit 1
${MAKE:-make} --no-print-directory build/wrpo >&2 || exit 1
dir=${1:-$(mktemp -d)} bad=0
checkpoint() {   # folder V D I L H G d tied: config.json and a sparse model.safetensors in bf16
    mkdir -p "$1"
    {
        printf '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", '
        printf '"max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, '
        printf '"torch_dtype": "bfloat16", "vocab_size": %d, "hidden_size": %d, ' "$2" "$3"
        printf '"intermediate_size": %d, "num_hidden_layers": %d, ' "$4" "$5"
        printf '"num_attention_heads": %d, "num_key_value_heads": %d, "head_dim": %d, ' "$6" "$7" "$8"
        printf '"tie_word_embeddings": %s}\n' "$9"
    } >"$1/config.json"
    awk -v V="$2" -v D="$3" -v I="$4" -v L="$5" -v H="$6" -v G="$7" -v d="$8" -v tied="$9" -v sizes="$1/sizes" '
        function put(name, r, c) {
            printf "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":%s,\"data_offsets\":[%.0f,%.0f]}", at ? "," : "{", name,
                c ? "[" r "," c "]" : "[" r "]", at, at + 2 * r * (c ? c : 1)
            at += 2 * r * (c ? c : 1)
        }
        BEGIN {
            put("model.embed_tokens.weight", V, D)
            for (l = 0; l < L; l++) {
                p = "model.layers." l "."
                put(p "input_layernorm.weight", D)
                put(p "self_attn.q_proj.weight", H * d, D)
                put(p "self_attn.k_proj.weight", G * d, D)
                put(p "self_attn.v_proj.weight", G * d, D)
                put(p "self_attn.o_proj.weight", D, H * d)
                put(p "post_attention_layernorm.weight", D)
                put(p "mlp.gate_proj.weight", I, D)
                put(p "mlp.up_proj.weight", I, D)
                put(p "mlp.down_proj.weight", D, I)
            }
            put("model.norm.weight", D)
            if (tied == "false") put("lm_head.weight", V, D)
            printf "}"
            printf "%.0f", at >sizes
        }' >"$1/header"
    n=$(wc -c <"$1/header")
    printf "%$(((8 - n % 8) % 8))s" "" >>"$1/header"     # as every writer does: the elements are then aligned
    n=$(wc -c <"$1/header") bytes=$(cat "$1/sizes")
    for i in 0 8 16 24 32 40 48 56; do printf "\\$(printf %03o $((n >> i & 255)))"; done >"$1/model.safetensors"
    cat "$1/header" >>"$1/model.safetensors"
    truncate -s $((8 + n + bytes)) "$1/model.safetensors"
    rm "$1/header" "$1/sizes"
}
checkpoint "$dir/8b" 128256 4096 14336 32 32 8 128 false
for i in 1 2 3 4 5; do
    begin=$(date +%s%N)
    ./build/wrpo inspect "$dir/8b" >"$dir/out" || bad=1
    echo $(($(date +%s%N) - begin))
done | sort -n | awk -v size="$(wc -c <"$dir/8b/model.safetensors")" '{ x[NR] = $1 } END {
    printf "inspect of %.2f GB: %.4f s (median of %d)\n", size / 1e9, x[int((NR + 1) / 2)] / 1e9, NR
    exit NR != 5 || x[3] >= 1e8 }' || bad=1
grep -E '^(parameters|tensors)' "$dir/out"

checkpoint "$dir/1b" 128256 2048 8192 16 32 8 64 true
cp golden/checkpoints/llama_f32/tokenizer.json golden/checkpoints/llama_f32/tokenizer_config.json "$dir/1b/"
cp golden/checkpoints/llama_f32/chat_template.jinja "$dir/1b/" 2>/dev/null
echo '{"prompt": "x", "chosen": "y", "rejected": "z"}' >"$dir/one.jsonl"
begin=$(date +%s%N)
OMP_WAIT_POLICY=passive ./build/wrpo logprob --model "$dir/1b" --data "$dir/one.jsonl" --out "$dir/out" --threads 2 &
pid=$! anon=0
while status=$(cat /proc/$pid/status 2>/dev/null) && echo "$status" | grep -q RssAnon; do
    now=$(echo "$status" | awk '/RssAnon/ { print $2 }')
    if [ "$now" -gt "$anon" ]; then anon=$now; fi
    sleep 0.02
done
wait $pid || bad=1
awk -v size="$(wc -c <"$dir/1b/model.safetensors")" -v anon="$anon" -v t=$(($(date +%s%N) - begin)) 'BEGIN {
    printf "logprob with %.2f GB of weights: %.2f s in all, at most %.3f GB of memory of its own\n", size / 1e9,
        t / 1e9, anon * 1024 / 1e9
    exit anon * 1024 > size / 2 }' || bad=1
[ -n "$1" ] || rm -r "$dir"
exit $bad
