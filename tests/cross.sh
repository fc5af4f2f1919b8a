#!/bin/sh
# usage: cross.sh [NAME...]      The tests NAME (20_loss 30_ops 40_model 70_train) built for AArch64 and run under
# qemu-user: the NEON path, and what an ARM compiler makes of the rest. Needs aarch64-linux-gnu-gcc (Debian:
# gcc-aarch64-linux-gnu libc6-dev-arm64-cross) and qemu-aarch64-static (qemu-user-static); without them every test is
# skipped, and counted. Not part of `make`: .ci/run starts it. It ends with a count as tests do.
cd "$(dirname "$0")" || exit 1
passed=0 failed=0 skipped=0
cc=${CROSS_CC:-aarch64-linux-gnu-gcc}
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64)
[ $# -gt 0 ] || set -- 20_loss 30_ops 40_model 70_train
mkdir -p build/aarch64
for name in "$@"; do
    if ! command -v "$cc" >/dev/null || [ -z "$qemu" ]; then
        skipped=$((skipped + 1)); echo "skip: cross: $name: $cc and qemu-aarch64-static are not both installed"
        continue
    fi
    if ! "$cc" -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I.. -fopenmp -static ${CFLAGS:--O2} \
        "$name.c" -o "build/aarch64/$name" -lm; then
        failed=$((failed + 1)); echo "FAIL cross: $name does not compile"; continue
    fi
    OMP_WAIT_POLICY=passive "$qemu" "build/aarch64/$name" >build/aarch64/log 2>&1; code=$?
    cat build/aarch64/log
    counts=$(tail -n 1 build/aarch64/log |
        sed -nE 's/^[a-z0-9_]+: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    if [ -z "$counts" ] || [ $code -ne 0 ]; then failed=$((failed + 1)); echo "FAIL cross: $name: exit $code"; fi
    if [ -n "$counts" ]; then
        set -- $counts
        passed=$((passed + $1)) skipped=$((skipped + $3))
    fi
done
echo "cross: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
