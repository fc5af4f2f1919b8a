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
LC_ALL=C OMP_WAIT_POLICY=passive; export LC_ALL OMP_WAIT_POLICY
mkdir -p "$out"
now="$records $held $length $sft $source"
[ ! -e "$out/sizes" ] || [ "$(cat "$out/sizes")" = "$now" ] || { echo "$out: has a run of other sizes"; exit 1; }
echo "$now" >"$out/sizes"

stage() {   # a file that is there when it is done, its CPU seconds in it, then the command
    done=$1; shift
    [ ! -e "$done" ] || return 0
    ("$wrpo" "$@" --threads "$threads" >"$done.log" 2>&1 || { cat "$done.log" >&2; exit 1; }; times >"$done.part")
    mv "$done.part" "$done"
}
# Of logprob's lines the log-probs, their tokens and the prompt's tokens.
numbers() { sed 's/"prompt_id": "[^"]*"//; s/[^-0-9.]/ /g' "$1"; }
train() {   # name, options: the adapter $out/name
    name=$1; shift
    [ -e "$out/$name.done" ] || rm -rf "${out:?}/$name"
    stage "$out/$name.done" train --model "$model" --out "$out/$name" --batch-size 4 --learning-rate 2e-4 \
        --max-length "$length" --log-steps 1 "$@"
}
held() {    # name, adapter or none: log-probs of the held-out records, and greedy answers
    name=$1; shift
    stage "$out/$name.held" logprob --model "$model" "$@" --data "$out/held.jsonl" --max-length "$length" \
        --out "$out/$name.logps"
    stage "$out/$name.asked" generate --model "$model" "$@" --in "$out/asked.jsonl" --temperature 0 --max-tokens 60 \
        --out "$out/$name.answers"
}
row() {     # seed, name, the model before: a line of rows.txt
    numbers "$out/$2.logps" >"$out/after"
    numbers "$out/$3.logps" | paste -d' ' "$out/after" - | awk -v seed="$1" -v name="$2" '{
        # Source, target, rejected; their tokens; the prompt'\''s tokens; the same of the model before.
        source = $1 - $8 - $3 + $10; target = $2 - $9 - $3 + $10
        n++; a += $1 / $4; b += $3 / $6; s += source; t += target; sw += source > 0; tw += target > 0
        ss += source * source; tt += target * target
    } END {
        sub(/-[0-9]+$/, "", name); a /= n; b /= n; s /= n; t /= n
        se = sqrt((ss / n - s * s) / (n - 1)); te = sqrt((tt / n - t * t) / (n - 1))
        printf "%s %s %.6f %.6f %.6f %.6f %.6f %.6f %.6f %.6f\n", name, seed, a, b, s, 1.96 * se, sw / n, \
            t, 1.96 * te, tw / n
    }'
}
cpu() { awk 'NR == 2 { gsub(/[ms]/, " "); print $1 * 60 + $2 + $3 * 60 + $4 }' "$out/$1.done"; }
table() {   # of rows.txt
    echo "| model | seed | log-prob per token, source | rejected | source margin | rose | target margin | rose |"
    echo "|---|---|---|---|---|---|---|---|"
    awk '{
        printf "| %s | %s | %.4f | %.4f | %+.2f ± %.2f | %.3f | %+.2f ± %.2f | %.3f |\n", $1, $2, \
            $3, $4, $5, $6, $7, $8, $9, $10
        if (!($1 in n)) order[++m] = $1
        n[$1]++; for (i = 3; i <= 10; i++) { sum[$1, i] += $i; squares[$1, i] += $i * $i }
    } END {
        split("12.706 4.303 3.182 2.776", t95, " ")
        for (k = 1; k <= m; k++) if (n[order[k]] > 1) {
            name = order[k]; count = n[name]; printf "| %s | mean of %d |", name, count
            for (i = 3; i <= 10; i++) {
                mean = sum[name, i] / count; spread = (squares[name, i] - count * mean * mean) / (count - 1)
                half = t95[count - 1] * sqrt((spread > 0 ? spread : 0) / count)
                if (i == 5 || i == 8) printf " %+.2f ± %.2f |", mean, half
                else if (i != 6 && i != 9) printf i < 5 ? " %.4f |" : " %.3f |", mean
            }
            print ""
        }
    }' "$out/rows.txt"
}

# Tokens are counted by a model of one layer of eight, with MODEL's tokenizer.
vocabulary=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$model/config.json")
cat >"$out/counter.json" <<X
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": $vocabulary, "hidden_size": 8,
 "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
 "max_position_embeddings": 65536, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "torch_dtype": "float32"}
X
stage "$out/counter.done" init --config "$out/counter.json" --tokenizer "$model" --out "$out/counter"
stage "$out/tokens.done" logprob --model "$out/counter" --data "$quads" --max-length 65536 --out "$out/tokens.jsonl"
numbers "$out/tokens.jsonl" | awk -v limit="$length" '{
    longest = $4 > $5 ? $4 : $5; if ($6 > longest) longest = $6
    if ($7 + longest <= limit) print NR
}' >"$out/short"
awk 'NR == FNR { short[$1]; next } FNR in short' "$out/short" "$quads" >"$out/all.jsonl"
want=$((held + 5 + source + sft + records)) found=$(wc -l <"$out/all.jsonl")
[ "$found" -ge $want ] || { echo "$quads: want $want records of at most $length tokens, found $found"; exit 1; }
# InfiFPO's beta: the mean number of tokens of their answers, times 0.1.
beta=$(numbers "$out/tokens.jsonl" | awk 'NR == FNR { short[$1]; next } FNR in short { n += 3; sum += $4 + $5 + $6 }
    END { printf "%.1f", 0.1 * sum / n }' "$out/short" -)
head -n "$held" "$out/all.jsonl" >"$out/held.jsonl"
sed -n "$((held + 1)),$((held + 5))p" "$out/all.jsonl" >"$out/asked.jsonl"
sed -n "$((held + 6)),$((held + 5 + source))p" "$out/all.jsonl" >"$out/source.jsonl"

train other --method sft --data "$out/source.jsonl" --epochs 2 --lora-r 16 --seed 77
held model
finished=
for seed in $seeds; do
    # The others in an order of this seed's. (Lehmer's generator: every awk draws the same.)
    tail -n +$((held + 6 + source)) "$out/all.jsonl" | awk -v x=$((seed * 7919 + 1)) '
        { x = x * 48271 % 2147483647; printf "%010d\t%s\n", x, $0 }' | sort | cut -f2- >"$out/others.jsonl"
    head -n "$sft" "$out/others.jsonl" >"$out/sft-$seed.jsonl"
    sed -n "$((sft + 1)),$((sft + records))p" "$out/others.jsonl" >"$out/train-$seed.jsonl"
    train "sft-$seed" --method sft --data "$out/sft-$seed.jsonl" --lora-r 16 --seed "$seed"
    held "sft-$seed" --adapter "$out/sft-$seed"
    stage "$out/sources-$seed.done" logprob --model "$model" --adapter "$out/other" --data "$out/train-$seed.jsonl" \
        --as-source other --max-length "$length" --out "$out/sources-$seed.jsonl"
    from="--adapter $out/sft-$seed --seed $seed"
    # shellcheck disable=SC2086
    train "wrpo-$seed" $from --data "$out/train-$seed.jsonl" --beta 0.1 --alpha 0.5 --alpha-schedule constant
    # shellcheck disable=SC2086
    train "dpo-$seed" $from --data "$out/train-$seed.jsonl" --beta 0.1 --method dpo
    # shellcheck disable=SC2086
    train "infifpo-wrpo-$seed" $from --data "$out/sources-$seed.jsonl" --beta "$beta" --alpha 0.5 \
        --alpha-schedule constant --method infifpo-wrpo
    for name in wrpo dpo infifpo-wrpo; do held "$name-$seed" --adapter "$out/$name-$seed"; done
    finished="$finished $seed"
    {
        row - model model
        for s in $finished; do row "$s" sft-"$s" model; done
        for name in wrpo dpo infifpo-wrpo; do for s in $finished; do row "$s" $name-"$s" sft-"$s"; done; done
    } >"$out/rows.txt"
done
table
echo
for name in other $(for s in $finished; do echo "sft-$s sources-$s wrpo-$s dpo-$s infifpo-wrpo-$s"; done); do
    echo "$name: $(cpu "$name") CPU seconds, memory $(sed -n 's/.*memory peak //p' "$out/$name.done.log" | tail -n 1)"
done
first=${seeds%% *}
for name in model sft-$first wrpo-$first dpo-$first infifpo-wrpo-$first; do
    echo; echo "$name answers:"
    sed 's/.*"content": "//; s/", "tokens".*//' "$out/$name.answers" | cut -c1-300
done
