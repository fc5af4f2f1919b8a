# shellcheck shell=sh disable=SC2154
# What real_fusion.sh and real_adapter.sh share; they read it with `.`. Sizes and names of theirs: wrpo, model, quads,
# out, length, threads, held, seeds.
LC_ALL=C OMP_WAIT_POLICY=passive; export LC_ALL OMP_WAIT_POLICY

begin() {   # the sizes of the run: the folder
    [ "$(echo "$seeds" | wc -w)" -le 5 ] || { echo "SEEDS: want at most five"; exit 1; }
    mkdir -p "$out"
    now="$1 $model $quads"
    was=$(cat "$out/sizes" 2>/dev/null || echo "$now")
    [ "$was" = "$now" ] || { echo "$out: has a run of $was"; exit 1; }
    echo "$now" >"$out/sizes"
}
stage() {   # a file that is there when it is done, its CPU seconds in it, then the command
    done=$1; shift
    [ ! -e "$done" ] || return 0
    ("$wrpo" "$@" --threads "$threads" >"$done.log" 2>&1 || { cat "$done.log" >&2; exit 1; }; times >"$done.part")
    mv "$done.part" "$done"
}
train() {   # name, options: the adapter or model $out/name
    name=$1; shift
    [ -e "$out/$name.done" ] || rm -rf "${out:?}/$name"
    stage "$out/$name.done" train --model "$model" --out "$out/$name" --max-length "$length" --log-steps 1 "$@"
}
held() {    # name, model and adapter: log-probs of the held-out records, and greedy answers
    name=$1; shift
    stage "$out/$name.held" logprob "$@" --data "$out/held.jsonl" --max-length "$length" --out "$out/$name.logps"
    stage "$out/$name.asked" generate "$@" --in "$out/asked.jsonl" --temperature 0 --max-tokens 60 \
        --out "$out/$name.answers"
}

# Of logprob's lines the log-probs, their tokens and the prompt's tokens.
numbers() { sed 's/"prompt_id": "[^"]*"//; s/[^-0-9.]/ /g' "$1"; }
# A number of records that must be there, beside those that are held out and asked: the records whose sequences have at
# most $length tokens, in $out/all.jsonl. The first $held of them are held out, the next five are asked. Tokens are
# counted by a model of one layer of eight, with the model's tokenizer.
choose() {
    vocabulary=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$model/config.json")
    cat >"$out/counter.json" <<Y
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": $vocabulary, "hidden_size": 8,
 "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
 "max_position_embeddings": 65536, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true,
 "hidden_act": "silu", "torch_dtype": "float32"}
Y
    stage "$out/counter.done" init --config "$out/counter.json" --tokenizer "$model" --out "$out/counter"
    stage "$out/tokens.done" logprob --model "$out/counter" --data "$quads" --max-length 65536 --out "$out/tokens.jsonl"
    numbers "$out/tokens.jsonl" | awk -v limit="$length" '{
        longest = $4 > $5 ? $4 : $5; if ($6 > longest) longest = $6
        if ($7 + longest <= limit) print NR
    }' >"$out/short"
    awk 'NR == FNR { short[$1]; next } FNR in short' "$out/short" "$quads" >"$out/all.jsonl"
    want=$((held + 5 + $1)) found=$(wc -l <"$out/all.jsonl")
    [ "$found" -ge $want ] || { echo "$quads: want $want records of at most $length tokens, found $found"; exit 1; }
    head -n "$held" "$out/all.jsonl" >"$out/held.jsonl"
    sed -n "$((held + 1)),$((held + 5))p" "$out/all.jsonl" >"$out/asked.jsonl"
}
# A seed and a number of records: the records behind that many, in an order of this seed's. (Lehmer's generator: every
# awk draws the same.)
shuffled() {
    tail -n +$(($2 + 1)) "$out/all.jsonl" | awk -v x=$(($1 * 7919 + 1)) '
        { x = x * 48271 % 2147483647; printf "%010d\t%s\n", x, $0 }' | sort | cut -f2-
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
cost() {    # names of stages: CPU seconds, and memory where it was said
    for name; do
        awk -v name="$name" 'NR == 2 {
            gsub(/[ms]/, " "); printf "%s: %d CPU seconds", name, $1 * 60 + $2 + $3 * 60 + $4
        }' "$out/$name.done"
        sed -n 's/.*memory peak /, memory /p' "$out/$name.done.log" | tail -n 1 | tr -d '\n'; echo
    done
}
answers() { # names of models
    for name; do
        echo; echo "$name answers:"
        sed 's/.*"content": "//; s/", "tokens".*//' "$out/$name.answers" | cut -c1-300
    done
}
