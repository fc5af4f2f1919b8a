#!/bin/sh
# Everything that a machine with an NVIDIA GPU can say about wrpo_cuda.cu, in one command and under 9 minutes: all CUDA tests natively, with cuBLASLt and
# with the own products; small ones under compute-sanitizer; each kernel beside its floor, beside cuBLASLt and PyTorch; whole WRPO steps of 135M, 1B and 8B.
#   sh gpu.sh build     compiles into build/gpu (needs nvcc and a C compiler, no GPU)
#   sh gpu.sh           compiles if build/gpu is not there and nvcc is, then runs. Nothing is downloaded.
#   sh gpu.sh small     the same with tiny shapes, on the host if there is no GPU: that the command itself works
# The only header from outside is stb_ds.h. Where it is not installed, carry it along in an ignored folder: cp -rL /usr/include/stb tests/build/stb
# (a machine without nvcc takes build/gpu along as well; its binaries need no library but libcublasLt, and without that build/gpu/own is run).
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
        if [ -e /dev/nvidia0 ] && ! nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -q '^9\.0'; then arch=-arch=native; else arch='-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_80,code=compute_80'; fi
        "$NVCC" -std=c++17 -O2 $arch $flags -I.. -c ../wrpo_cuda.cu -o $B/$way/cuda.o || return 1
        for name in 80_cuda cuda_bench; do
            ${CC:-cc} -std=c11 -O2 -g -fopenmp -I.. -Ibuild -c $name.c -o $B/$way/$name.o && "$NVCC" $B/$way/$name.o $B/$way/cuda.o -Xcompiler -fopenmp -o $B/$way/$name $libs -lm || return 1
        done
    done
}
if [ "$1" = build ] || { [ ! -x $B/own/cuda_bench ] && [ -x "$NVCC" ] && [ "$1" != small ]; }; then compile || exit 1; fi
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
        for t in "rows 1" "rmsnorm 2" "gemm 1" "attention 3" "attention 16" "decoding 1" "graphs" "glu 4" "logprob 2" "adamw 5"; do
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
    "$PYTHON" - <<'X'
import time, torch, torch.nn.functional as F
def bench(f):
    f(); torch.cuda.synchronize(); n = 0; b = time.time()
    while time.time() - b < 0.1:
        for _ in range(10): f()
        n += 10; torch.cuda.synchronize()
    return (time.time() - b) / n
print("torch", torch.__version__, "CUDA", torch.version.cuda)
g = dict(device="cuda", dtype=torch.bfloat16)
for name, D, qkv, Hd, I in (("8B", 4096, 6144, 4096, 14336), ("135M", 576, 960, 576, 1536)):
    for what, out, k in (("qkv", qkv, D), ("o", D, Hd), ("gate|up", 2 * I, D), ("down", D, I)):
        x, w, y = torch.randn(6144, k, **g), torch.randn(out, k, **g), torch.randn(6144, out, **g)
        for layout, f in (("y", lambda: x @ w.T), ("dx", lambda: y @ w), ("dW", lambda: y.T @ x)):
            t = bench(f); print(f"gemm {name} {what} {layout} 6144x{out}x{k}".ljust(44), f"{t * 1e3:10.3f} ms  {2 * 6144 * out * k / t * 1e-12:26.1f} TFLOP/s")
for name, H, G, d in (("8B", 32, 8, 128), ("135M", 9, 3, 64)):      # three sequences of 2048: the prompt three times
    q, k, v = (torch.randn(3, h, 2048, d, requires_grad=True, **g) for h in (H, G, G))
    kk, vv = k.repeat_interleave(H // G, 1).detach().requires_grad_(), v.repeat_interleave(H // G, 1).detach().requires_grad_()
    t = bench(lambda: F.scaled_dot_product_attention(q, kk, vv, is_causal=True)); print(f"attention {name}, 3 x 2048 causal".ljust(44), f"{t * 1e3:10.3f} ms")
    o = F.scaled_dot_product_attention(q, kk, vv, is_causal=True); u = torch.randn_like(o)
    t = bench(lambda: torch.autograd.grad(o, (q, kk, vv), u, retain_graph=True)); print(f"attention_bwd {name}, 3 x 2048 causal".ljust(44), f"{t * 1e3:10.3f} ms")
X
else echo "skip: PyTorch is not installed"; fi
echo "gpu: $failed failed"
[ "$failed" -eq 0 ]
