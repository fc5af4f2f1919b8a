#!/bin/sh
# The demo's settings and its table, by a protocol written down before either was known.
# usage, in tests/: sh bench/bench_demo.sh tune OUT [WRPO]      each method's grid on seeds 1 to 3: OUT/grid.txt
#                   sh bench/bench_demo.sh table OUT [WRPO]     the table on seeds 201 to 210: OUT/table.txt
#
# 1. The task stays as it is: problems, sources, target, SFT, quadruples, epochs, batch, schedule, alpha 0.5.
# 2. Each of SimPO, DPO, WRPO with constant and WRPO with rising alpha gets 16 settings: four rates times four betas.
#    SimPO's betas are ten times the others': its rewards are means over about ten tokens, theirs are sums. Its margin
#    is 0.3 beta.
# 3. Seeds 1 to 3 are for tuning: right answers to those seeds' held-out problems, in percent, mean of the three. A
#    method's best setting is its first with the highest mean; one whose loss is not finite counts 0. The grid is not
#    extended.
# 4. The best settings go into example.c. Then the table is made, once, on seeds 201 to 210, of which none was run
#    before: other models, prompts and held-out problems. It goes into README.md as it comes, and nothing is tuned
#    after it.
# Tuning takes about ten minutes on one core, the table eight. A run of `tune` that was interrupted goes on.
[ $# -ge 2 ] || { sed -n 3,4p "$0"; exit 2; }
mkdir -p "$2" || exit 1
OUT=$(cd "$2" && pwd)
case ${3:-build/wrpo} in /*) W=$3 ;; *) W=$PWD/${3:-build/wrpo} ;; esac
[ -x "$W" ] || { echo "$W: no such program: make build/wrpo"; exit 1; }
LC_ALL=C OMP_WAIT_POLICY=passive; export LC_ALL OMP_WAIT_POLICY

right() { # share of right answers in a file of candidates, in percent; the problem stands in the id: "12: 47 + 85"
    awk '{
        match($0, /"prompt_id": "[0-9]+: [^"]*"/); split(substr($0, RSTART, RLENGTH - 1), p, " ")
        want = p[4] == "+" ? p[3] + p[5] : p[4] == "-" ? p[3] - p[5] : p[3] * p[5]
        n = split($0, answers, /"content": "/)
        for (i = 2; i <= n; i++) {
            match(answers[i], /^([^"\\]|\\.)*/); text = substr(answers[i], 1, RLENGTH)
            sub(/ +$/, "", text); sub(/.* /, "", text)
            all++; good += text == want ""
        }
    } END { printf "%.4f\n", 100 * good / all }' "$1"
}
options() {
    case $1 in
    simpo | dpo) echo "--method $1" ;;
    constant) echo "--alpha 0.5 --alpha-schedule constant" ;;
    rising) echo "--alpha 0.5" ;;
    esac
}

case $1 in
tune)
    touch "$OUT/grid.txt"
    for seed in 1 2 3; do
        if ! grep -qs '^kept: ' "$OUT/$seed/demo.txt"; then
            rm -rf "$OUT/$seed"; mkdir "$OUT/$seed"
            TMPDIR=$OUT/$seed "$W" demo --seed $seed --keep-folder --out "$OUT/$seed/report.html" \
                >"$OUT/$seed/demo.txt" ||
                exit 1
        fi
        D=$(sed -n 's/^kept: //p' "$OUT/$seed/demo.txt")
        for method in simpo dpo constant rising; do
            for rate in 5e-5 1.5e-4 5e-4 1.5e-3; do
                for beta in $([ $method = simpo ] && echo 1 3 10 30 || echo 0.1 0.3 1 3); do
                    grep -q "^$method $rate $beta $seed " "$OUT/grid.txt" && continue
                    rm -rf "$OUT/model" "$OUT"/answers.jsonl*
                    if "$W" train $(options $method) --beta $beta --learning-rate $rate --model "$D/sft" \
                        --data "$D/quads.jsonl" --out "$OUT/model" --batch-size 32 --epochs 4 \
                            --seed $seed --threads 1 --log-steps 1000 >"$OUT/log.txt" 2>&1; then
                        "$W" sample --model "$OUT/model" --prompts "$D/heldout.jsonl" --as target --n 3 \
                            --max-tokens 48 --batch 128 --seed $seed --threads 1 \
                            --out "$OUT/answers.jsonl" >"$OUT/log.txt" 2>&1 || { cat "$OUT/log.txt"; exit 1; }
                        score=$(right "$OUT/answers.jsonl")
                    elif grep -q 'finite' "$OUT/log.txt"; then score=0
                    else cat "$OUT/log.txt"; exit 1; fi
                    echo "$method $rate $beta $seed $score" | tee -a "$OUT/grid.txt"
                done
            done
        done
    done
    awk '{ key = $1 " " $2 " " $3; if (!(key in n)) order[++keys] = key; n[key]++; sum[key] += $5 }
         END { for (i = 1; i <= keys; i++) {
                   key = order[i]; split(key, k, " "); mean = sum[key] / n[key]
                   printf "%-9s rate %-7s beta %-4s %6.2f\n", k[1], k[2], k[3], mean
                   if (!(k[1] in best)) methods[++m] = k[1]
                   if (!(k[1] in best) || mean > most[k[1]]) { best[k[1]] = key; most[k[1]] = mean }
               }
               for (i = 1; i <= m; i++) printf "best: %s %.2f\n", best[methods[i]], most[methods[i]]
         }' "$OUT/grid.txt" ;;
table)
    "$W" demo --seed 201 --seeds 10 --out "$OUT/report.html" >"$OUT/table.txt" || exit 1
    sed -n '/^mean over seeds/,$p' "$OUT/table.txt" ;;
*) sed -n 3,4p "$0"; exit 2 ;;
esac
