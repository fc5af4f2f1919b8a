#!/bin/sh
# A whole training step built with -O2 alone against -O3 -march=native: interleaved, the median of
# the fastest of 3 steps.
# usage: sh bench/bench_flags.sh [REPS]
# CC chooses the compiler; DTYPE=bf16, THREADS=n, MORE (options of
# build/bench step). Exits 1 if -O2 is more than 5 % slower.
cd "$(dirname "$0")/.." || exit 1
reps=${1:-5}
for flags in "-O2" "-O3 -march=native"; do
    ${MAKE:-make} --no-print-directory BUILD="build/flags$(echo "$flags" | tr -d ' =-')" CFLAGS="$flags" \
        "build/flags$(echo "$flags" | tr -d ' =-')/bench" >&2 || exit 1
done
: >build/flags.txt
for i in $(seq "$reps"); do
    for name in O2 O3marchnative; do
        line=$(OMP_WAIT_POLICY=passive ./build/flags$name/bench step --dtype "${DTYPE:-f32}" \
            --threads "${THREADS:-2}" --records 1 --steps 3 --layers 10 --equal $MORE 2>build/flags.err) || exit 1
        grep 'DO NOT TRUST' build/flags.err >&2
        echo "$name $line" >>build/flags.txt
    done
done
for name in O2 O3marchnative; do
    grep "^$name " build/flags.txt | awk '{ print $5 }' | sort -n |
        awk -v name=$name '{ x[NR] = $1 } END { print name, x[int((NR + 1) / 2)] }'
done | awk '{ t[$1] = $2 } END { r = t["O2"] / t["O3marchnative"]
    printf "a step: -O2 %.3f s, -O3 -march=native %.3f s; -O2 takes %.3f of it\n", t["O2"], t["O3marchnative"], r
    exit r > 1.05 }'
