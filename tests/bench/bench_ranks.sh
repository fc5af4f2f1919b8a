#!/bin/sh
# What several ranks cost: measured on this machine, then modelled. A step moves 4 P bytes (gradients, to their shards)
# and 2 P (weights in bf16, from them) through every rank, in pieces of 2^22 elements:
#     seconds = compute + 6 P (R - 1) / R / beta + 2 (R - 1) alpha P / 2^22,     compute = 8 P tokens / rate
# usage, in tests/: make && sh bench/bench_ranks.sh [MODEL QUADS]        without a model only the table of the model
cd "$(dirname "$0")/.." || exit 1
B=build
fit="1e-6 5e9"
if command -v mpicc >/dev/null &&
    mpicc -O2 -DWRPO_MPI -DWRPO_NO_SIMD -fopenmp -I.. bench/mpi_bench.c -o $B/mpi_bench -lm
then
    fit=$(mpirun -np 2 $B/mpi_bench) &&
        echo "between two ranks of this machine: alpha ${fit% *} s, beta ${fit#* } bytes/s"
fi
if [ $# -eq 2 ]; then
    mpicc -O2 -fopenmp -DWRPO_MPI ../example.c -o $B/wrpo_bench -lm || exit 1
    args="train --model $1 --data $2 --batch-size 8 --max-steps 6 --lanes 2"
    speed() { awk -F'"tokens_per_second": ' 'NR > 1 && NF > 1 { n++; s += $2 + 0 } END { print s / n }' "$1"; }
    $B/wrpo_bench $args --threads 2 --out $B/ranks.1 >/dev/null && mpirun -np 2 $B/wrpo_bench $args --threads 1 \
        --out $B/ranks.2 >/dev/null || exit 1
    one=$(speed $B/ranks.1/metrics.jsonl) two=$(speed $B/ranks.2/metrics.jsonl)
    echo "1 rank of 2 threads: $one tokens/s; 2 ranks of 1 thread: $two tokens/s; ratio $(echo "$two $one" |
        awk '{ printf "%.3f", $1 / $2 }')"
    rm -rf $B/ranks.1 $B/ranks.2
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
