#!/bin/sh
# What several ranks cost: measured on this machine, then modelled. A step moves 4 P bytes (gradients, to their shards)
# and W P (weights of W bytes, from them) through every rank, in pieces of 2^22 / R elements:
#     seconds = compute + (4 + W) P (R - 1) / R / beta + 2 (R - 1) alpha P / 2^22,   compute = 8 P tokens / rate
# usage, in tests/: sh bench/bench_ranks.sh [MODEL QUADS [ROUNDS]]    without a model only the modelled table
# ROUNDS (3): 1 rank of 2 threads and 2 ranks of 1 thread run in turn, so that other work on the machine meets both;
# what is said are medians.
cd "$(dirname "$0")/.." || exit 1
B=build ROUNDS=${3:-3}
mkdir -p $B
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM OMPI_MCA_rmaps_base_oversubscribe
export OMPI_MCA_btl_vader_single_copy_mechanism OMPI_MCA_hwloc_base_binding_policy
median() { sort -g | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }
fit="1e-6 5e9"
if command -v mpicc >/dev/null &&
    mpicc -O2 -DWRPO_MPI -DWRPO_NO_SIMD -fopenmp -I.. bench/mpi_bench.c -o $B/mpi_bench -lm
then
    for i in 1 2 3 4 5; do mpirun -np 2 $B/mpi_bench; done >$B/fit.txt
    fit="$(cut -d' ' -f1 $B/fit.txt | median) $(cut -d' ' -f2 $B/fit.txt | median)"
    echo "between two ranks of this machine: alpha ${fit% *} s, beta ${fit#* } bytes/s (medians of 5)"
fi
if [ $# -ge 2 ]; then
    mpicc -O2 -fopenmp -DWRPO_MPI ../example.c bench/mpi_time.c -o $B/wrpo_bench -lm || exit 1
    head -n 8 "$2" >$B/ranks.jsonl
    args="train --model $1 --data $B/ranks.jsonl --max-length 96 --micro-tokens 128 --batch-size 8 --epochs 9"
    run() { # ranks, threads of each, steps, lanes: tokens/s of the steps after the first, in $B/speed.RANKS
        rm -rf $B/ranks.out
        mpirun -np "$1" $B/wrpo_bench $args --threads "$2" --max-steps "$3" --lanes "$4" --out $B/ranks.out \
            >$B/out.txt 2>$B/err.txt </dev/null || { cat $B/err.txt; exit 1; }
        awk -F'"tokens_per_second": ' 'NR > 1 && NF > 1 { print $2 + 0 }' $B/ranks.out/metrics.jsonl >>$B/speed.$1
        grep '^rank' $B/err.txt | sort >$B/ranks.txt
    }
    echo "ranks, memory of a rank: predicted, the most allocated, the most resident (all of them)"
    for n in 1 2 4; do
        run $n 1 1 $n
        echo "$n  $(sed -n 's/^memory *\([^:]*\):.*/\1/p' $B/out.txt), $(sed -n 's/.*peak \(memory \)*//p' $B/out.txt |
            tail -n 1), $(sed 's/.*resident //' $B/ranks.txt | paste -sd, -)"
    done
    rm -f $B/speed.*
    for i in $(seq "$ROUNDS"); do
        run 1 2 4 2
        run 2 1 4 2
        awk -F'[ ,]+' '{ print "2 ranks, " $0 }' $B/ranks.txt
    done
    one=$(median <$B/speed.1) two=$(median <$B/speed.2)
    echo "1 rank of 2 threads: $one tokens/s; 2 ranks of 1 thread: $two tokens/s; ratio $(echo "$two $one" |
        awk '{ printf "%.3f", $1 / $2 }') (medians of $ROUNDS runs in turn, 3 steps each)"
    rm -rf $B/ranks.out
fi
# 16384 tokens a rank and step, at 40 % of 1e15 operations a second (a GPU), and at the 1e11 of a desktop's CPU.
awk -v here="$fit" 'function row(name, alpha, beta,  i, j, k, P, R, rate, compute, talk) {
    for (i = 0; i < 2; i++) {
        P = i ? 8e9 : 135e6
        for (j = 0; j < 2; j++) {
            rate = j ? 1e11 : 4e14
            printf "%-22s %5s  %s", name, i ? "8B" : "135M", j ? "CPU" : "GPU"
            for (k = 1; k <= 512; k *= 8) {
                R = k == 1 ? 2 : k
                compute = 8 * P * 16384 / rate
                talk = 6 * P * (R - 1) / R / beta + 2 * (R - 1) * alpha * P / 4194304
                printf "%12.3g (%3.0f %%)", compute + talk, 100 * compute / (compute + talk)
            }
            print ""
        }
    }
}
BEGIN {
    print "seconds a step (share that computes)         2 ranks            8           64          512"
    split(here, fit, " ")
    row("this machine", fit[1], fit[2])
    row("10 Gbit/s", 3e-5, 1.25e9)
    row("100 Gbit/s", 5e-6, 1.25e10)
    row("NVLink (450 GB/s)", 3e-6, 4.5e11)
}'
