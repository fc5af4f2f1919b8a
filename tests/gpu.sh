#!/bin/sh
# Everything that a machine with an NVIDIA GPU can say about wrpo_cuda.cu, in one command and under 9 minutes: all CUDA
# tests natively, with cuBLASLt and with the own products; small ones under compute-sanitizer; each kernel beside its
# floor, beside cuBLASLt and PyTorch; whole WRPO steps of 135M, 1B and 8B.
#   sh gpu.sh build     compiles into build/gpu (needs nvcc and a C compiler, no GPU)
#   sh gpu.sh           compiles if build/gpu is not there and nvcc is, then runs. Nothing is downloaded.
#   sh gpu.sh small     the same with tiny shapes, on the host if there is no GPU: that the command itself works
# The only header from outside is stb_ds.h. Where it is not installed, carry it along in an ignored folder:
#   cp -rL /usr/include/stb tests/build/stb
# (a machine without nvcc takes build/gpu along as well; its binaries need no library
# but libcublasLt, and without that build/gpu/own is run).
cd "$(dirname "$0")" || exit 1
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
B=build/gpu
mkdir -p $B
say() { printf '\n== %s\n' "$*"; }
compile() {
    for way in lt own; do
        mkdir -p $B/$way
        if [ $way = lt ]; then flags='' libs=-lcublasLt; else flags=-DWRPO_NO_CUBLAS libs=''; fi
        # for the GPU that is there, or for all that are meant; native is not sm_90a, which wgmma wants
        arch='-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a'
        arch="$arch -gencode=arch=compute_80,code=compute_80"
        if [ -e /dev/nvidia0 ] && ! nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -q '^9\.0'; then
            arch=-arch=native
        fi
        "$NVCC" -std=c++17 -O2 $arch $flags -I.. -c ../wrpo_cuda.cu -o $B/$way/cuda.o || return 1
        for source in 80_cuda.c bench/cuda_bench.c; do
            name=$(basename $source .c)
            ${CC:-cc} -std=c11 -O2 -g -fopenmp -I.. -Ibuild -c $source -o $B/$way/$name.o || return 1
            "$NVCC" $B/$way/$name.o $B/$way/cuda.o -Xcompiler -fopenmp -o $B/$way/$name $libs -lm || return 1
        done
    done
}
if [ "$1" = build ] || { [ ! -x $B/own/cuda_bench ] && [ -x "$NVCC" ] && [ "$1" != small ]; }; then
    compile || exit 1
fi
[ "$1" = build ] && exit 0
if [ ! -e /dev/nvidia0 ] && [ ! -e /proc/driver/nvidia/version ]; then
    [ "$1" = small ] || { echo "gpu: there is no GPU: 0 passed, 0 failed, 1 skipped"; exit 0; }
    make --no-print-directory build/80_cuda build/cuda_bench >/dev/null && ./build/cuda_bench small
    exit
fi
failed=0
step() { "$@" || { failed=$((failed + 1)); echo "FAIL gpu: $*"; }; }
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null
run=lt
$B/lt/80_cuda memory >$B/log 2>&1 || { grep -q 'libcublasLt' $B/log && run=own; }
echo "products by default: $([ $run = lt ] && echo cuBLASLt || echo 'the own kernel (libcublasLt is not installed)')"
size=$1
say "tests, products as linked"
step timeout 120 $B/$run/80_cuda
say "tests, own products"
step env WRPO_GEMM=mma timeout 120 $B/$run/80_cuda >$B/log 2>&1
grep -E 'FAIL|passed' $B/log
say "tests, products by wgmma where the device has it"
step timeout 120 $B/$run/80_cuda wgmma >$B/log 2>&1
grep -E 'FAIL|passed|skip' $B/log
check=$(command -v compute-sanitizer || echo "$(dirname "$NVCC")/compute-sanitizer")
if [ -x "$check" ]; then
    for tool in memcheck racecheck synccheck; do
        say "compute-sanitizer, $tool"
        for t in "rows 1" "rmsnorm 2" "gemm 1" "attention 3" "attention 16" "decoding 1" "graphs" "glu 4" "logprob 2" \
            "adamw 5"; do
            step timeout 60 env WRPO_GEMM=mma "$check" --tool $tool --error-exitcode 9 $B/own/80_cuda $t >$B/log 2>&1
            tail -1 $B/log
        done
    done
else echo "skip: compute-sanitizer is not installed"; fi
say "kernels and steps"
step timeout 300 $B/$run/cuda_bench $size
PYTHON=${PYTHON:-python3}
if "$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    say "PyTorch on the same shapes"
    "$PYTHON" bench/gpu_torch.py
else echo "skip: PyTorch is not installed"; fi
echo "gpu: $failed failed"
[ "$failed" -eq 0 ]
