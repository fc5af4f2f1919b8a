#!/bin/sh
# usage: sh bench/bench_table.sh DATA WORK MODEL GGUF        in tests/
# Prints this CPU's rows of the table of speed in the project's README: whole trainings beside PyTorch and TRL
# (bench_peers.sh, with the folders DATA and WORK), and decoding beside llama.cpp (bench_decode.py, with MODEL and
# GGUF). It takes most of an hour on two cores, which should have nothing else to do.
#   PYTHON   an interpreter with the peers of training (python3)       LLAMA   one with llama-cpp-python (PYTHON)
#   REPS     runs of each engine (2); of TRL one                       RECORDS quadruples, in steps of 8 (16)
#   LIMIT    bytes: one more row of training, with --memory-limit      DTYPES  of training ("f32 bf16")
#   LEVEL=avx2   holds ours, PyTorch and its libraries to AVX2 on a CPU that has more; no decoding, as llama.cpp is
#                built for the CPU
#   MORE     options of bench_peers.py compare, for training
# What the two print is kept in WORK/table-*.txt.
set -e
[ $# = 4 ] || { sed -n 2,12p "$0"; exit 2; }
cd "$(dirname "$0")/.."
data=$1 work=$2 model=$3 gguf=$4 python=${PYTHON:-python3}
${MAKE:-make} --no-print-directory build/wrpo build/bench
case $LEVEL in
    avx2) export WRPO_CPU=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ;;
    ?*) echo "LEVEL: want avx2, found $LEVEL" >&2; exit 2 ;;
esac
cpu=$(build/bench ceilings --threads 1 | sed -n 's/ ([^)]*)//; s/; dispatch.*//; s/^CPU: //p')${LEVEL:+, held to $LEVEL}
mkdir -p "$work"
for dtype in ${DTYPES:-f32 bf16}; do
    SKIP=1 MORE="--once trl ${LIMIT:+--small '--memory-limit $LIMIT'} $MORE" sh bench/bench_peers.sh \
        "$data" "$work" smollm2 "$dtype" "${RECORDS:-16}" 8 "${REPS:-2}" >"$work/table-$dtype${LEVEL:+-$LEVEL}.txt"
done
if [ -z "$LEVEL" ]; then
    "${LLAMA:-$python}" bench/bench_decode.py "$model" "$gguf" --batch 1 --threads 1 --weights bf16 --tokens 48 \
        >"$work/table-decode.txt"
fi
echo "| | CPU | tokens/s | best peer | peak memory | that peer |"
echo "|---|---|---|---|---|---|"
for dtype in ${DTYPES:-f32 bf16}; do
    awk -F' *[|] *' -v cpu="$cpu" '
        /^[|] wrpo.h / { ours[++n] = $3; speed[n] = $4; memory[n] = $7 }
        /^[|] (PyTorch|TRL)/ && $4 + 0 > best { best = $4 + 0; peer = $2 " in " $3; room = $7 }
        END {
            for (i = 1; i <= n; i++)
                printf "| training, %s | %s | %s | %s: %d (%.2fx) | %s | %s (%.2fx) |\n", ours[i], cpu, speed[i],
                       peer, best, speed[i] / best, memory[i], room, memory[i] / room
        }' "$work/table-$dtype${LEVEL:+-$LEVEL}.txt"
done
if [ -z "$LEVEL" ]; then
    awk -F' *[|] *' -v cpu="$cpu" '$2 == "bf16" {
        printf "| decoding, bf16 weights, one thread | %s | %s | llama.cpp: %s (%s) | | |\n", cpu, $5, $6, $7 }' \
        "$work/table-decode.txt"
fi
