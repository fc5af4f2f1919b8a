#!/bin/sh
# What a machine with an NVIDIA GPU can say about wrpo_cuda.cu, in one command that ends within 8 minutes: the tests
# natively, steps of 8B with their ops, the numbers at those sizes, kernels beside their floors and beside PyTorch,
# compute-sanitizer. What matters most comes first. Each part is a process with a time limit; what fails or hangs takes
# no other part with it. All output is also in the file gpu.txt of the folder OUT, or of build/gpu.
#   sh gpu.sh build     compiles into build/gpu: needs nvcc and a C compiler, no GPU
#   sh gpu.sh           runs; compiles first where nvcc is and build/gpu is not
#   sh gpu.sh wgmma     the same, and products by wgmma in the end
#   sh gpu.sh small     every part with tiny shapes, on the host: that the command itself works
#   sh gpu.sh dry       build/gpu in a container without compilers, libraries and a GPU: that the folder is complete
# The machine needs this folder's gpu.sh and bench/gpu_torch.py, build/gpu and a driver; no compiler, header or package.
# cuBLASLt is taken from the system, the CUDA Toolkit or Python's packages; without it its products are left out.
cd "$(dirname "$0")" || exit 1
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
PYTHON=${PYTHON:-python3}
B=build/gpu
OUT=${OUT:-$B}
mode=$1
END=$(($(date +%s) + ${SECONDS_MOST:-470}))
mkdir -p "$B" "$OUT"
compile() {
    arch='-gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90a,code=sm_90a'
    "$NVCC" -std=c++17 -O2 -t 0 $arch -I.. -c ../wrpo_cuda.cu -o $B/cuda.o &
    "$NVCC" -O2 -c bench/lt_late.cu -o $B/lt_late.o || return 1
    for source in 80_cuda.c bench/cuda_bench.c; do
        ${CC:-cc} -std=c11 -O2 -fopenmp -I.. -Ibuild -c $source -o $B/$(basename $source .c).o || return 1
    done
    wait $! || return 1
    cp "$(${CC:-cc} -print-file-name=libgomp.so.1)" $B/ || return 1
    for name in 80_cuda cuda_bench; do
        "$NVCC" $B/$name.o $B/cuda.o $B/lt_late.o -o $B/$name -Xcompiler -static-libgcc,-static-libstdc++ \
            -L$B -l:libgomp.so.1 -ldl -lm || return 1
        strip $B/$name || return 1
    done
    rm -f $B/*.o
    echo "gpu: build/gpu: $(($(du -k $B | cut -f 1) / 1024)) MiB"
}
if [ "$mode" = build ] || { [ "$mode" != small ] && [ ! -x $B/cuda_bench ] && [ -x "$NVCC" ]; }; then
    compile || { echo "gpu: it does not compile"; exit 1; }
fi
[ "$mode" = build ] && exit 0

# ---- the container: this folder's files, a shell and its tools, the C library; nothing else
dry() {
    [ -x $B/cuda_bench ] || { echo "skip: build/gpu is not built, and nvcc is not installed"; return 0; }
    root=$(mktemp -d) || return 1
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root/tests/bench" "$root/tests/build" "$root/tmp" "$root/dev" "$root/bin"
    cp gpu.sh "$root/tests/" && cp bench/gpu_torch.py "$root/tests/bench/" && cp -r $B "$root/tests/build/" || return 1
    rm -f "$root/tests/$B/gpu.txt"; : >"$root/dev/null"
    for tool in sh env timeout date mkdir dirname cat grep tail tee rm sed head; do
        path=$(readlink -f "$(command -v $tool)")
        cp "$path" "$root/bin/$tool" || return 1
        for library in $(ldd "$path" | grep '(0x' | grep -o '/[^ ]*') $(ldd $B/80_cuda | grep -o '/[^ ]*/libm.so.6'); do
            mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library" || return 1
        done
    done
    chroot "$root" /bin/sh -c 'PATH=/bin sh /tests/gpu.sh container' >$B/dry.txt 2>&1
    code=$?
    if [ $code -ne 0 ] && ! grep -q '^gpu: ' $B/dry.txt; then
        echo "skip: a container cannot be made here: $(tail -1 $B/dry.txt)"; return 0
    fi
    grep -vE '^$|^\([0-9]+ seconds' $B/dry.txt
    if ! grep -qE '^gpu: [1-9][0-9]* passed, 0 failed' $B/dry.txt || ! cmp -s $B/dry.txt "$root/tests/$B/gpu.txt"; then
        echo "FAIL gpu: dry: the folder is not complete, or its file lacks what was printed"; return 1
    fi
    echo "gpu: dry: every part ran to where it opens the device; build/gpu has $(($(du -k $B | cut -f 1) / 1024)) MiB"
}
if [ "$mode" = dry ]; then dry; exit; fi

size='' test=$B/80_cuda bench=$B/cuda_bench
if [ "$mode" = small ]; then
    make --no-print-directory build/80_cuda build/cuda_bench >/dev/null || exit 1
    size=small test=build/80_cuda bench=build/cuda_bench OUT=build
elif [ "$mode" != container ] && [ ! -e /dev/nvidia0 ] && [ ! -e /proc/driver/nvidia/version ] &&
    ! command -v nvidia-smi >/dev/null; then
    echo "gpu: there is no GPU: 0 passed, 0 failed, 1 skipped"; exit 0
fi
export LD_LIBRARY_PATH="$PWD/$B${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"    # for libgomp
log=$OUT/gpu.txt passed=0 failed=0 skipped=0
: >"$log"
say() { echo "$*" | tee -a "$log"; }
# name, most seconds, command...: its output goes to the screen and the file; a failure and a limit are said. In the
# container it has to fail, by what the driver says.
part() {
    name=$1 limit=$2; shift 2
    left=$((END - $(date +%s)))
    say ""; say "== $name"
    if [ $left -lt 10 ]; then say "skip: $name: the time is over"; skipped=$((skipped + 1)); return; fi
    [ "$limit" -lt $left ] || limit=$left
    begin=$(date +%s)
    { timeout -k 5 "$limit" "$@" 2>&1; echo $? >"$log.code"; } | tee -a "$log"
    code=$(cat "$log.code")
    if [ "$mode" = container ]; then
        if tail -n 1 "$log" | grep -q 'cuda: no device can be used'; then code=0; else code=1$code; fi
    fi
    if [ "$code" -ne 0 ] && tail -n 30 "$log" | grep -qE 'Device not supported|LibraryNotLoaded|ERR_NVGPUCTRPERM'; then
        say "skip: $name: the tool does not work on this machine"; skipped=$((skipped + 1)); return
    fi
    case $code in
    0) passed=$((passed + 1)) ;;
    124 | 137) say "FAIL gpu: $name: still running after $limit seconds"; failed=$((failed + 1)) ;;
    *) say "FAIL gpu: $name: exit code $code"; failed=$((failed + 1)) ;;
    esac
    say "($(($(date +%s) - begin)) seconds)"
}
if [ -z "$size" ]; then
    for folder in /usr/local/cuda/lib64 /usr/local/cuda/lib $("$PYTHON" -c 'import sys
for p in sys.path: print(p + "/nvidia/cu13/lib", p + "/nvidia/cublas/lib")' 2>/dev/null); do
        for library in "$folder"/libcublasLt.so.1[23]; do [ -e "$library" ] && WRPO_CUBLASLT=$library; done
    done
    export WRPO_CUBLASLT
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu \
        --format=csv,noheader 2>/dev/null | tee -a "$log"
    say "cuBLASLt: ${WRPO_CUBLASLT:-where the system has it}"
fi
part "tests" 90 $test $([ -z "$size" ] || echo ring)
part "8B: steps" 60 $bench $size step8
part "8B: a step, op by op" 40 $bench $size ops8
part "8B: the numbers" 60 $bench $size exact
part "135M: gradients beside the CPU's" 45 $test $([ -z "$size" ] && echo 135M || echo ring)
part "attention" 20 $bench $size attention
part "products" 30 $bench $size products
"$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null &&
    part "PyTorch on the same shapes" 45 "$PYTHON" bench/gpu_torch.py
part "elementwise kernels" 20 $bench $size streams
part "135M and 1B: steps" 40 $bench $size step135 step1
part "decoding" 25 $bench $size decode
part "tests, own products" 60 env WRPO_GEMM=mma $test $([ -z "$size" ] || echo memory)
ncu=$(command -v ncu)
[ -n "$ncu" ] && for kernel in attention_dkv_kernel attention_kernel; do
    part "ncu: $kernel" 30 "$ncu" --clock-control none -k "regex:$kernel" -c 1 --section SpeedOfLight \
        --section Occupancy --section WarpStateStats $bench attention
done
check=$(command -v compute-sanitizer || echo "$(dirname "$NVCC")/compute-sanitizer")
if [ -x "$check" ]; then
    for tool in memcheck racecheck initcheck synccheck; do
        for t in "attention 16" "gemm 1" "splits 1" "rows 3" "adamw 5" "rmsnorm 2"; do
            part "compute-sanitizer: $tool: $t" 20 env WRPO_GEMM=mma "$check" --tool $tool --error-exitcode 9 $test $t
        done
    done
fi
if [ "$mode" = wgmma ] || [ "$mode" = small ]; then
    part "wgmma: tests" 60 env WRPO_WGMMA=1 $test wgmma
    part "wgmma: numbers and times" 60 $bench $size wgmma exact products
fi
say ""; say "gpu: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
