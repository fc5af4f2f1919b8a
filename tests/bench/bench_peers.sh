#!/bin/sh
# usage: sh bench/bench_peers.sh DATA WORK [CONFIG [DTYPE [RECORDS [BATCH [REPS]]]]]
# Whole WRPO training runs beside PyTorch and TRL.
#   DATA     folder with tokenizers/ and alpacaeval/quads.jsonl        WORK   where models and results go (several GB)
#   CONFIG   smollm2 (SmolLM2-135M's shape), llama1b (Llama-3.2-1B's) or tiny (to try the scripts)   DTYPE  f32 or bf16
#   RECORDS, BATCH  quadruples of a run, and of a step      REPS  runs of each engine, in turn; the table has medians
# The tables of bench/README.md:
#   sh bench/bench_peers.sh DATA WORK smollm2 f32 32 8 2
#   sh bench/bench_peers.sh DATA WORK smollm2 bf16 16 8 3            with MORE="--small ...", below, for the row of 8bit
#   LORA=16 sh bench/bench_peers.sh DATA WORK smollm2 f32 8 8 3      adapters of rank 16, beside PEFT, and TRL with PEFT
# A larger model:
#   sh bench/bench_peers.sh DATA WORK llama1b bf16 4 4 1
# Autocast with fp32 masters does not fit into 24 GiB for llama1b: SKIP=1 leaves it out.
# PYTHON is an interpreter with the peers (python3); to make one:
#   python3 -m venv venv && venv/bin/pip install torch transformers trl peft tokenizers jinja2
#   PYTHON=venv/bin/python sh bench/bench_peers.sh ...
# ROWS=3 gives the peers their three responses as one padded batch, as they do by themselves; 1 (default) spares them
# the padding, which is faster. MORE is passed on to bench_peers.py compare (MORE=--compile, MORE="--once trl",
# MORE="--small '--moments 8bit --memory-limit 2250000000'"). What is measured, and how the peers are set up: the
# comment on top of bench_peers.py.
set -e
[ $# -ge 2 ] || { sed -n '2,20p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
data=$1 work=$2 config=${3:-smollm2} dtype=${4:-f32} records=${5:-32} batch=${6:-8} reps=${7:-3} \
    python=${PYTHON:-python3}
${MAKE:-make} --no-print-directory build/wrpo
work=$work/$config-$records${LORA:+-lora}
mkdir -p "$work"
"$python" bench/bench_peers.py make --config "$config" --data "$data" --work "$work" --records "$records"
if [ ! -f "$work/model/config.json" ]; then
    file=f32
    if [ "$config" = llama1b ] || [ -n "$LORA" ]; then file=bf16; fi
    ./build/wrpo init --config "$work/config.json" --tokenizer "$work/tokenizer" --out "$work/model" --save-dtype $file
fi
if [ -n "$SKIP" ]; then set -- --only wrpo plain trl; else set --; fi
eval exec '"$python"' bench/bench_peers.py compare --work '"$work"' --wrpo ./build/wrpo --dtype '"$dtype"' \
    --batch-size '"$batch"' --reps '"$reps"' --rows '"${ROWS:-1}"' ${LORA:+--lora $LORA} '"$@"' $MORE
