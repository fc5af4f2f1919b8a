#!/bin/sh
# What WRPO's reviewers asked and its successors propose, in the demo's miniature, by a protocol written down before the
# table was known.
# usage, in tests/: sh bench/bench_fusion.sh tune OUT [WRPO]            the grids on seeds 1 to 3: OUT/grid.txt
#                   sh bench/bench_fusion.sh table OUT [WRPO [SEEDS]]   the table on SEEDS, 301 to 305: OUT/table.txt
#                   sh bench/bench_fusion.sh cost OUT [WRPO [SEED]]     CPU seconds of each stage, on SEED, 301
#
# 1. The task is the demo's: problems, sources, target, SFT, quadruples, batch, schedule and, unless said, four epochs.
#    `wrpo demo --keep` makes the models and files of a seed, and its SimPO, DPO and two WRPO are rows of the table.
# 2. SimPO, DPO and WRPO keep the settings that bench_demo.sh found: the best of 16 on seeds 1 to 3, which is also the
#    best of the nine around it, three rates times three betas. Two more methods get nine such settings on the same
#    seeds: InfiFPO and InfiFPO-WRPO. Their betas are ten times the others', because their rewards are means over about
#    ten tokens and the others' are sums. So does SFT that goes on: three rates times 1, 2 or 4 epochs.
#    The best is the first with the highest mean of right answers to held-out problems. A loss that is not finite
#    counts 0. The grid is not extended.
# 3. InfiFPO compares the source's answer with the rejected one (--pair source), as its paper takes the best answer of
#    all models; a row has the target's answer instead. InfiFPO-WRPO has alpha 0.5, constant. Their sources' log-probs
#    are the three sources'.
# 4. All other rows change one thing and keep WRPO's settings, or DPO's, untuned:
#    alpha          0.1, 0.25, 0.5, 0.75, 1, constant and rising. Alpha 0 is DPO, to the bit
#    K              one source (number SEED mod 3), or the two others; all three, but the best answers of two or of
#                   three of them in each record, weighted (select --top)
#    quality        sources that stopped after 250 of their 500 steps
#    rejected       WRPO, but y_l is the worst answer of the sources; DPO on best and worst of one source (select --form
#                   pair, FuseChat-3.0's)
#    delta          DPO on a source's answer over that of the same source after 250 steps; which of the three sources
#                   answers a prompt does not depend on the problem, and no reward is read
#    anchor         WRPO with --sft-weight 0.1 and 1
#    SFT goes on    from SFT, on the same y_ws that WRPO has, with no preference at all
#    SFT itself has seen all three sources in all rows.
# 5. The table is made once, on seeds that were not run before, in the order of SEEDS. It has the seeds that were
#    complete when the time for it was over; the clock decides their number, not a result. Every run counts, and nothing
#    is tuned after it.
# Tuning takes about 8 minutes of one core, a seed of the table 2.5. An interrupted run goes on.
[ $# -ge 2 ] || { sed -n 4,6p "$0"; exit 2; }
mkdir -p "$2" || exit 1
OUT=$(cd "$2" && pwd)
case ${3:-build/wrpo} in /*) W=$3 ;; *) W=$PWD/${3:-build/wrpo} ;; esac
[ -x "$W" ] || { echo "$W: no such program: make build/wrpo"; exit 1; }
LC_ALL=C OMP_WAIT_POLICY=passive; export LC_ALL OMP_WAIT_POLICY
SOURCES="plus minus times"
DPO="--method dpo --beta 1 --learning-rate 5e-4"
WRPO="--beta 1 --learning-rate 5e-4 --alpha"

demo() {    # seed: its models and files, in $D
    if ! grep -qs '^kept: ' "$OUT/$1/demo.txt"; then
        rm -rf "${OUT:?}/$1"; mkdir "$OUT/$1"
        TMPDIR=$OUT/$1 "$W" demo --seed "$1" --keep-folder --out "$OUT/$1/report.html" \
            >"$OUT/$1/demo.txt" || exit 1
    fi
    D=$(sed -n 's/^kept: //p' "$OUT/$1/demo.txt") X=$OUT/$1/more
    mkdir -p "$X"
}
do_() {     # a command; its CPU seconds in $cpu. Where the loss is not finite: status 1
    ("$W" "$@" --threads 1 >"$OUT/log.txt" 2>&1; code=$?; times >"$OUT/times.txt"; exit $code) || {
        [ "$1" = train ] && grep -q finite "$OUT/log.txt" && return 1
        cat "$OUT/log.txt"; exit 1
    }
    cpu=$(awk 'NR == 2 { gsub(/[ms]/, " "); print $1 * 60 + $2 + $3 * 60 + $4 }' "$OUT/times.txt")
}
checked() { # a file of candidates, with the demo's rewards: 1 for a right answer, up to 0.3 for digits in their places
    awk '{
        match($0, /"prompt_id": "[0-9]+: [^"]*"/); split(substr($0, RSTART, RLENGTH - 1), p, " ")
        want = (p[4] == "+" ? p[3] + p[5] : p[4] == "-" ? p[3] - p[5] : p[3] * p[5]) ""
        n = split($0, part, /"content": "/)
        printf "%s", part[1]
        for (i = 2; i <= n; i++) {
            match(part[i], /^([^"\\]|\\.)*/)
            text = substr(part[i], 1, RLENGTH); rest = substr(part[i], RLENGTH + 2)
            last = text; sub(/ +$/, "", last); sub(/.* /, "", last)
            same = 0
            if (length(last) == length(want))
                for (k = 1; k <= length(want); k++) same += substr(last, k, 1) == substr(want, k, 1)
            reward = same == length(want) ? 1 : 0.3 * same / length(want)
            printf "\"content\": \"%s\", \"reward\": %.6g%s", text, reward, rest
        }
        print ""
    }' "$1"
}
right() {   # the share of rewards that are 1, in percent
    awk '{ n = split($0, part, /"reward": /); for (i = 2; i <= n; i++) { all++; good += part[i] ~ /^1[,}]/ } }
         END { printf "%.4f\n", 100 * good / all }'
}
measure() { # a method's options: its right answers in percent, in $score
    rm -rf "$OUT/model" "$OUT"/answers.jsonl*
    score=0
    do_ train --model "$D/sft" --out "$OUT/model" --batch-size 32 --epochs 4 --seed "$seed" --log-steps 1000 "$@" ||
        return 0
    spent=$cpu
    do_ sample --model "$OUT/model" --prompts "$D/heldout.jsonl" --as target --n 3 --max-tokens 48 --batch 128 \
        --seed "$seed" --out "$OUT/answers.jsonl"
    score=$(checked "$OUT/answers.jsonl" | right)
}
source_logps() {    # $X/infi.jsonl: the quadruples, with what the three sources think of their answers
    [ ! -e "$X/infi.jsonl" ] || return 0
    do_ logprob --model "$D/plus" --as-source plus --data "$D/quads.jsonl" --out "$X/plus.jsonl"
    do_ logprob --model "$D/minus" --as-source minus --data "$X/plus.jsonl" --out "$X/minus.jsonl"
    do_ logprob --model "$D/times" --as-source times --data "$X/minus.jsonl" --out "$X/infi.jsonl"
}
half_sources() {    # sources of half the training, and their answers
    for name in $SOURCES; do
        [ ! -e "$X/half-$name.jsonl" ] || continue
        do_ train --method sft --model "$D/$name-new" --data "$D/$name-new/data.jsonl" --limit 8000 --no-shuffle \
            --out "$X/half-$name" --learning-rate 4e-3 --batch-size 32 --micro-tokens 4096 --log-steps 1000
        do_ sample --model "$X/half-$name" --prompts "$D/parts/wrpo.jsonl" --as source --n 3 --max-tokens 48 \
            --batch 128 --seed "$seed" --out "$X/half-$name-answers.jsonl"
        checked "$X/half-$name-answers.jsonl" >"$X/half-$name.jsonl"
    done
}
choose() {  # $X/NAME.jsonl, by select and its options
    name=$1; shift
    [ -e "$X/$name.jsonl" ] || do_ select --out "$X/$name.jsonl" "$@"
}
worst_of_sources() {    # the quadruples, but rejected is the sources' worst answer, the first of the worst
    awk 'FILENAME != quads {
        match($0, /"prompt_id": "[^"]*"/); id = substr($0, RSTART, RLENGTH)
        n = split($0, part, /"content": "/)
        for (i = 2; i <= n; i++) {
            match(part[i], /^([^"\\]|\\.)*/); text = substr(part[i], 1, RLENGTH)
            match(part[i], /"reward": [^,}]*/); reward = substr(part[i], RSTART + 10, RLENGTH - 10) + 0
            if (text !~ /^ *$/ && (!(id in least) || reward < least[id])) { least[id] = reward; worst[id] = text }
        }
        next
    } {
        match($0, /"prompt_id": "[^"]*"/); id = substr($0, RSTART, RLENGTH)
        at = index($0, "\"rejected\": [{\"content\": \"") + 26; rest = substr($0, at)
        match(rest, /^([^"\\]|\\.)*/)
        print substr($0, 1, at - 1) worst[id] substr(rest, RLENGTH + 1)
    }' quads="$D/quads.jsonl" "$D/plus-wrpo-scored.jsonl" "$D/minus-wrpo-scored.jsonl" "$D/times-wrpo-scored.jsonl" \
        "$D/quads.jsonl"
}
delta_pairs() {     # a third of the prompts from each source, whatever the problem
    k=0
    for name in $SOURCES; do
        do_ select --form delta --strong "$name" --weak "half-$name" --in "$D/$name-wrpo-scored.jsonl" \
            "$X/half-$name.jsonl" --out "$X/one.jsonl"
        awk -v k=$k '{ match($0, /"prompt_id": "[0-9]+/); id = substr($0, RSTART + 14, RLENGTH - 14)
            if (int(id / 3) % 3 == k) print }' "$X/one.jsonl"
        k=$((k + 1))
    done
}
grid() {    # a method's three rates and three betas, or epochs, and its options
    method=$1 betas=$2; shift 2
    for rate in 1.5e-4 5e-4 1.5e-3; do
        for beta in $betas; do
            grep -q "^$method $rate $beta $seed " "$OUT/grid.txt" && continue
            option=--beta; [ "$method" != sft ] || option=--epochs
            measure "$@" --learning-rate $rate $option "$beta"
            echo "$method $rate $beta $seed $score" | tee -a "$OUT/grid.txt"
        done
    done
}
best() {    # a method's best rate and beta
    awk -v method="$1" '$1 == method { key = $2 " " $3; if (!(key in sum)) order[++n] = key; sum[key] += $5 }
        END {
            for (i = 1; i <= n; i++) if (i == 1 || sum[order[i]] > sum[top]) top = order[i]
            print top
        }' "$OUT/grid.txt"
}
row() {     # name, options: a line "name seed right CPU-seconds" of the table
    name=$1; shift
    grep -q "^$name $seed " "$OUT/table.txt" && return 0
    spent=0
    measure "$@"
    echo "$name $seed $score $spent" | tee -a "$OUT/table.txt"
}
made() {    # a row that the demo made
    grep -q "^$1 $seed " "$OUT/table.txt" && return 0
    echo "$1 $seed $(right <"$D/answers-$2-scored.jsonl") -" >>"$OUT/table.txt"
}

case $1 in
tune)
    touch "$OUT/grid.txt"
    for seed in 1 2 3; do
        demo $seed
        source_logps
        grid infifpo "3 10 30" --method infifpo --pair source --data "$X/infi.jsonl"
        grid infifpo-wrpo "3 10 30" --method infifpo-wrpo --alpha 0.5 --alpha-schedule constant --data "$X/infi.jsonl"
        grid sft "1 2 4" --method sft --data "$D/quads.jsonl"
    done
    awk '{ key = $1 " " $2 " " $3; if (!(key in n)) order[++keys] = key; n[key]++; sum[key] += $5 }
        END { for (i = 1; i <= keys; i++) printf "%s %.2f\n", order[i], sum[order[i]] / n[order[i]] }' "$OUT/grid.txt"
    for method in infifpo infifpo-wrpo sft; do echo "best: $method $(best $method)"; done ;;
table)
    [ "$(grep -c . "$OUT/grid.txt")" -eq 81 ] || { echo "$OUT/grid.txt: want its 81 runs: tune first"; exit 1; }
    touch "$OUT/table.txt"
    for method in infifpo infifpo-wrpo sft; do
        settings=$(best $method)
        rate=${settings% *} beta=${settings#* }
        options="--learning-rate $rate --beta $beta"
        case $method in
        infifpo) INFIFPO="--method infifpo $options" ;;
        infifpo-wrpo) BOTH="--method infifpo-wrpo $options --alpha 0.5 --alpha-schedule constant" ;;
        sft) SFT="--method sft --learning-rate $rate --epochs $beta" ;;
        esac
    done
    for seed in ${4:-301 302 303 304 305}; do
        demo "$seed"
        for name in target sft simpo dpo; do made $name $name; done
        made wrpo-constant-0.5 wrpo-constant; made wrpo-rising-0.5 wrpo
    done
    # shellcheck disable=SC2086
    for seed in ${4:-301 302 303 304 305}; do
        demo "$seed"
        source_logps
        row infifpo $INFIFPO --pair source --data "$X/infi.jsonl"
        row infifpo-target $INFIFPO --pair target --data "$X/infi.jsonl"
        row infifpo-wrpo $BOTH --data "$X/infi.jsonl"
        row sft-goes-on $SFT --data "$D/quads.jsonl"
        for alpha in 0.1 0.25 0.75 1; do
            row wrpo-constant-$alpha $WRPO $alpha --alpha-schedule constant --data "$D/quads.jsonl"
            row wrpo-rising-$alpha $WRPO $alpha --data "$D/quads.jsonl"
        done
        constant="$WRPO 0.5 --alpha-schedule constant"
        row anchor-0.1 $constant --sft-weight 0.1 --data "$D/quads.jsonl"
        row anchor-1 $constant --sft-weight 1 --data "$D/quads.jsonl"
        one='' others='' all='' k=0
        for name in $SOURCES; do
            file=$D/$name-wrpo-scored.jsonl all="$all $D/$name-wrpo-scored.jsonl"
            if [ $k -eq $((seed % 3)) ]; then one=$file; else others="$others $file"; fi
            k=$((k + 1))
        done
        target=$D/target-wrpo-scored.jsonl
        choose k1 --in $one "$target"
        choose k2 --in $others "$target"
        choose top2 --top 2 --in $all "$target"
        choose top3 --top 3 --in $all "$target"
        for name in k1 k2 top2 top3; do row $name $constant --data "$X/$name.jsonl"; done
        half_sources
        choose half --in "$X/half-plus.jsonl" "$X/half-minus.jsonl" "$X/half-times.jsonl" "$target"
        row half-trained $constant --data "$X/half.jsonl"
        worst_of_sources >"$X/worst.jsonl"
        row rejected-of-sources $constant --data "$X/worst.jsonl"
        choose pair --form pair --in $all
        row fusechat-pairs $DPO --data "$X/pair.jsonl"
        delta_pairs >"$X/delta.jsonl"
        row delta $DPO --data "$X/delta.jsonl"
        (cd "$X" && wc -l "$D/quads.jsonl" k1.jsonl k2.jsonl half.jsonl pair.jsonl delta.jsonl) >"$X/records.txt"
    done
    # Over the seeds that a row has: the mean, and the mean difference from WRPO with constant alpha 0.5, each with its
    # 95 % interval over seeds.
    awk '{
            if (!($1 in n)) order[++rows] = $1
            n[$1]++; seeds[$1] = seeds[$1] " " $2; value[$1, $2] = $3; spent[$1] += $4
        }
        function interval(name, other,   count, list, i, x, mean, squares) {
            count = split(seeds[name], list, " ")
            for (i = 1; i <= count; i++) mean += (value[name, list[i]] - (other ? value[other, list[i]] : 0)) / count
            for (i = 1; i <= count; i++) {
                x = value[name, list[i]] - (other ? value[other, list[i]] : 0) - mean; squares += x * x
            }
            if (count < 2) return sprintf(other ? "%+.1f" : "%.1f", mean)
            return sprintf(other ? "%+.1f ± %.1f" : "%.1f ± %.1f", mean,
                t95[count - 1] * sqrt(squares / (count - 1) / count))
        }
        END {
            split("12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262", t95, " ")
            print "| row | right answers, % | against WRPO, constant 0.5 | CPU seconds | seeds |"
            print "|---|---|---|---|---|"
            for (k = 1; k <= rows; k++)
                printf "| %s | %s | %s | %.1f |%s |\n", order[k], interval(order[k], ""),
                    interval(order[k], "wrpo-constant-0.5"), spent[order[k]] / n[order[k]], seeds[order[k]]
        }' "$OUT/table.txt" ;;
cost)
    seed=${4:-301}
    demo "$seed"
    sum=0
    for name in $SOURCES; do
        rm -f "$OUT"/answers.jsonl*
        do_ sample --model "$D/$name" --prompts "$D/parts/wrpo.jsonl" --as source --n 3 --max-tokens 48 --batch 128 \
            --seed "$seed" --out "$OUT/answers.jsonl"
        sum=$(awk -v a="$sum" -v b="$cpu" 'BEGIN { print a + b }')
    done
    echo "three sources answer 1000 prompts, three times each: $sum"
    rm -f "$OUT"/answers.jsonl*
    do_ sample --model "$D/sft" --prompts "$D/parts/wrpo.jsonl" --as target --n 5 --max-tokens 48 --batch 128 \
        --seed "$seed" --out "$OUT/answers.jsonl"
    echo "the target answers them, five times each: $cpu"
    do_ train --method sft --model "$D/target" --data "$D/sft.jsonl" --out "$OUT/model" --learning-rate 2e-4 \
        --batch-size 32 --log-steps 100
    echo "SFT, 500 records: $cpu"
    sum=0
    for name in $SOURCES; do
        do_ logprob --model "$D/$name" --as-source "$name" --data "$D/quads.jsonl" --out "$OUT/one.jsonl"
        sum=$(awk -v a="$sum" -v b="$cpu" 'BEGIN { print a + b }')
    done
    echo "log-probs of $(wc -l <"$D/quads.jsonl") records under three sources: $sum"
    source_logps
    for method in simpo dpo "wrpo --alpha 0.5" "infifpo-wrpo --alpha 0.5"; do
        # shellcheck disable=SC2086
        do_ train --method $method --model "$D/sft" --data "$X/infi.jsonl" --out "$OUT/model" --batch-size 32 \
            --epochs 4 --log-steps 1000
        echo "${method%% *}, four epochs: $cpu"
    done ;;
*) sed -n 4,6p "$0"; exit 2 ;;
esac
