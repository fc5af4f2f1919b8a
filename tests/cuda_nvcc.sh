#!/bin/sh
# What nvcc says of wrpo_cuda.cu without a GPU: it compiles for sm_80 and sm_90a without a warning, spills no more than
# the few bytes listed here, uses tensor cores (and wgmma and TMA in code for sm_90a) where meant and atomics nowhere;
# the program links, with and without cuBLASLt, and says so where there is no device; ranks over NCCL compile.
# It prints the occupancy of the kernels that count: how many blocks and warps a multiprocessor holds, from registers
# and shared memory as compiled and NVIDIA's published limits, and which of these limits.
# usage, in this folder: sh cuda_nvcc.sh        NVCC=path if it is not found; without nvcc: one skip
passed=0 failed=0
NVCC=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [ ! -x "$NVCC" ]; then
    echo "skip: nvcc is not installed"; echo "cuda_nvcc: 0 passed, 0 failed, 1 skipped"; exit 0
fi
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAIL cuda_nvcc: $*"; }
B=$PWD/build/nvcc
mkdir -p "$B"
# kernel, architecture, bytes of spill stores that are known
allowed='attention_kernel<256> sm_80 24
attention_kernel<96> sm_90a 12
attention_dkv_kernel<32> sm_90a 12'
cat >"$B/sass.c" <<'X'
/* Opcodes in the .text sections of a cubin: 16-byte instructions, the opcode in their low 12 bits. That is not
   documented, hence the comparison with PTX. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv) {
    FILE *f = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!f) return 1;
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    char *d = malloc(n);
    rewind(f);
    if (fread(d, 1, n, f) != n) return 1;
    Elf64_Ehdr *e = (Elf64_Ehdr *)d;
    Elf64_Shdr *s = (Elf64_Shdr *)(d + e->e_shoff);
    const char *names = d + s[e->e_shstrndx].sh_offset;
    for (int i = 0; i < e->e_shnum; i++) {
        int mma = 0, ldmatrix = 0, local = 0, wgmma = 0, tma = 0;
        if (strncmp(names + s[i].sh_name, ".text.", 6)) continue;
        for (size_t o = 0; o < s[i].sh_size; o += 16) {
            unsigned op = *(unsigned short *)(d + s[i].sh_offset + o) & 0xfff;
            mma += op == 0x23c, ldmatrix += op == 0x83b, local += op == 0x983 || op == 0x387;
            wgmma += op == 0x9f0, tma += op == 0x5b4;
        }
        printf("%s %d %d %d %d %d\n", names + s[i].sh_name + 6, mma, ldmatrix, local, wgmma, tma);
    }
    return 0;
}
X
${CC:-cc} -O1 "$B/sass.c" -o "$B/sass" || bad "sass.c"
# What the compiler does not know: threads of a block, and the shared memory that a launch asks for.
cat >"$B/launches.cc" <<'X'
#include "../../../wrpo_cuda.cu"
template <int HD> void attention_launches() {
    printf("attention_kernel<%d> 128 %d\n", HD, (int)attn_shape<HD>::SHARED);
    printf("attention_dq_kernel<%d> 128 %d\n", HD, (int)attn_shape<HD>::SHARED_BWD);
    printf("attention_dkv_kernel<%d> %d %d\n", HD, (int)attn_shape<HD>::THREADS, (int)attn_shape<HD>::SHARED_BWD);
}
int main() {
    attention_launches<32>(), attention_launches<64>(), attention_launches<96>(), attention_launches<128>();
    attention_launches<256>();
    for (const char *of : {"0,bf16", "0,float", "2,bf16", "3,float"}) {
        printf("gemm_kernel<%c,128,%s> 128 %d\n", of[0], of + 2, (int)gemm_shape<128>::SHARED);
        printf("gemm_kernel<%c,16,%s> 128 %d\n", of[0], of + 2, (int)gemm_shape<16>::SHARED);
        printf("wgmma_kernel<%s> 384 %d\n", of, (int)WGMMA_SHARED);
    }
    printf("attention_end_kernel 128 0\n");
    for (const char *name : {"attention_dkv_end", "delta", "columns", "rmsnorm", "rmsnorm_bwd", "rope", "glu",
                             "glu_bwd", "logprob", "logprob_bwd", "adamw", "sumsq", "sum", "add", "gather"})
        printf("%s_kernel 256 0\n", name);
}
X
: "${EMU:=-std=c++17 -fno-strict-aliasing -ffp-contract=off -Wno-unknown-pragmas -I.. -include support/cuda_emu.h}"
${CXX:-g++} $EMU -w -O0 -x c++ "$B/launches.cc" -o "$B/launches" && "$B/launches" | sort >"$B/launches.txt" ||
    bad "launches.cc"
# stdin: name, threads, dynamic shared memory, registers, static shared memory. $1: bytes of shared memory of a
# multiprocessor. Its other limits are those of compute capability 8.0 and 9.0 alike: 65536 registers, given to a warp
# in units of 256; 64 warps; 32 blocks; and each block costs 1 KiB of shared memory more.
occupancy() {
    awk -v most="$1" '
    function least(n, by) { if (n < blocks) { blocks = n; limit = by } }
    {
        warps = int(($2 + 31) / 32); a_warp = int(($4 * 32 + 255) / 256) * 256; blocks = 32; limit = "blocks"
        least(int(64 / warps), "warps")
        least(int(int(65536 / a_warp) / warps), "registers")
        least(int(most / ($3 + $5 + 1024)), "shared memory")
        printf "%-32s %7d %9d %7d %6d %5d %4d%%  %s\n", $1, $2, $4, $3 + $5, blocks, blocks * warps, \
            blocks * warps * 100 / 64, limit
    }'
}
# a mangled name: kernel<its numbers and type>
short() {
    sed -E 's/^_ZN[^ ]*_GLOBAL__N__[0-9a-zA-Z_]*_cu_[0-9a-f_]*[0-9]+([a-z]+_[a-z_]*kernel)/\1/
            s/^_ZN[^ ]*N_1[0-9]+([a-z]+_[a-z_]*kernel)/\1/
            s/kernelI(Li([0-9]+)E)(Li([0-9]+)E)?([^E]*)E[^ ]*/kernel<\2,\4,\5>/
            s/kernelIfE[^ ]*/kernel<float>/
            s/kernelI13__nv_bfloat16E[^ ]*/kernel<bf16>/
            s/kernelE[^ ]*/kernel/
            s/,13__nv_bfloat16>/,bf16>/
            s/,f>/,float>/
            s/,+>/>/
            s/<([0-9]+),,/<\1,/'
}
for arch in 80 90a; do
    log=$B/sm_$arch.log
    if "$NVCC" -std=c++17 -O2 -Werror all-warnings -gencode=arch=compute_$arch,code=sm_$arch -Xptxas -v \
        --cubin ../wrpo_cuda.cu -o "$B/sm_$arch.cubin" -I.. >"$log" 2>&1; then ok
    else bad "sm_$arch: does not compile without warnings"; grep -m 5 -iE 'error|warning' "$log"; continue; fi
    "$NVCC" -std=c++17 -O2 -gencode=arch=compute_$arch,code=compute_$arch -ptx ../wrpo_cuda.cu -o "$B/sm_$arch.ptx" \
        -I.. || bad "sm_$arch: no PTX"
    if grep -iE 'C75[0-9]+|serializ' "$log"; then bad "sm_$arch: instructions are serialised"; else ok; fi
    awk '/Compiling entry function/ { split($0, q, "\047"); name = q[2] }
         /bytes stack frame/ { spill = $5 }
         /Used [0-9]+ registers/ {
             shared = 0
             for (i = 1; i <= NF; i++) { if ($i == "Used") used = $(i + 1); if ($i ~ /^smem/) shared = $(i - 2) }
             print name, used, spill; print name, shared >statics }' statics="$B/statics" "$log" |
        sort >"$B/registers"
    awk '/\.entry/ { match($0, /_Z[A-Za-z0-9_]*/); name = substr($0, RSTART, RLENGTH); seen[name] = 1 }
         /mma\.sync/ { m[name]++ } /ldmatrix/ { l[name]++ } /cp\.async\.cg/ { c[name]++ }
         /[ \t](atom|red)\./ { a[name]++ }
         /wgmma\.mma_async/ { w[name]++ } /cp\.async\.bulk\.tensor/ { t[name]++ }
         END { for (n in seen) print n, m[n] + 0, l[n] + 0, c[n] + 0, a[n] + 0, w[n] + 0, t[n] + 0 }' \
        "$B/sm_$arch.ptx" | sort >"$B/ptx"
    "$B/sass" "$B/sm_$arch.cubin" | sort >"$B/sass.txt"
    join "$B/registers" "$B/ptx" | join - "$B/sass.txt" | short >"$B/table"
    if [ -s "$B/table" ]; then ok; else bad "sm_$arch: no table"; fi
    printf '%-32s %9s %7s %8s %8s %8s %6s %8s %6s %4s\n' "sm_$arch" registers spilled mma.sync ldmatrix cp.async HMMA \
        LDL+STL wgmma TMA
    awk '{ printf "%-32s %9d %7d %8d %8d %8d %6d %8d %6d %4d\n", $1, $2, $3, $4, $5, $6, $10, $12, $8, $9 }' "$B/table"
    printf '\n%-32s %7s %9s %7s %6s %5s %5s  %s\n' "sm_$arch, a multiprocessor" threads registers shared blocks warps \
        full 'limited by'
    if [ $arch = 80 ]; then shared=$((164 * 1024)); else shared=$((228 * 1024)); fi
    short <"$B/statics" | sort >"$B/statics.txt"
    awk '{ print $1, $2 }' "$B/table" | sort | join "$B/launches.txt" - | join - "$B/statics.txt" | occupancy $shared \
        >"$B/occupancy"
    grep -v "^wgmma.* 0%" "$B/occupancy"      # which is empty where the architecture has none
    # every kernel of tensor cores is in the table, and at least one block of it fits
    for kernel in $(awk '$4 > 0 || $8 > 0 { print $1 }' "$B/table"); do
        if awk -v k="$kernel" '$1 == k && $5 > 0 { found = 1 } END { exit !found }' "$B/occupancy"; then ok
        else bad "sm_$arch: $kernel: not in the table of occupancy"; fi
    done
    while read -r name registers spill mma ldmatrix copies atomics wgmma tma hmma ldsm local hgmma utmaldg; do
        may=$(echo "$allowed" | awk -v k="$name" -v a="sm_$arch" '$1 == k && $2 == a { print $3 }')
        if [ "$spill" -le "${may:-0}" ]; then ok
        else bad "sm_$arch: $name spills $spill bytes, want at most ${may:-0}"; fi
        if [ "$atomics" -eq 0 ]; then ok; else bad "sm_$arch: $name has $atomics atomic instructions"; fi
        if [ "${may:-0}" -gt 0 ] || [ "$local" -eq 0 ]; then ok; else bad "sm_$arch: $name uses local memory"; fi
        case $name in
        attention_dkv_end_kernel | attention_end_kernel) ok ;;
        gemm_kernel*|attention*)
            if [ "$mma" -gt 0 ] && [ "$ldmatrix" -gt 0 ] && [ "$copies" -gt 0 ] && [ "$hmma" -ge "$mma" ]; then ok
            else bad "sm_$arch: $name: no tensor cores"; fi ;;
        wgmma_kernel*)      # where the architecture has none, an empty kernel
            if [ $arch = 90a ]; then want=4; else want=0; fi
            if [ "$wgmma" -eq $want ] && [ "$hgmma" -eq $want ] && [ "$utmaldg" -eq "$tma" ] &&
                [ $((want == 0)) -eq $((tma == 0)) ]; then ok
            else bad "sm_$arch: $name: $wgmma wgmma ($hgmma in the code), want $want; $tma TMA ($utmaldg)"; fi ;;
        *) if [ "$mma" -eq 0 ]; then ok; else bad "sm_$arch: $name: tensor cores in an elementwise kernel"; fi ;;
        esac
    done <"$B/table"
done
program() {   # what, flags...
    what=$1; shift
    if "$NVCC" -O2 -gencode=arch=compute_80,code=sm_80 -DWRPO_CUDA -Xcompiler -fopenmp ../example.c ../wrpo_cuda.cu \
        -I.. -o "$B/wrpo" "$@" >"$B/log" 2>&1; then ok
    else bad "$what: the program does not link"; tail -3 "$B/log"; return; fi
    "$B/wrpo" --version >/dev/null && ok || bad "$what: does not run"
    if [ -e /dev/nvidia0 ]; then return; fi
    "$B/wrpo" inspect golden/checkpoints/llama_f32 --device cuda >"$B/out" 2>&1
    if [ $? -eq 1 ] && grep -q '^wrpo: cuda: no device can be used' "$B/out"; then ok
    else bad "$what: $(tail -1 "$B/out")"; fi
}
program "with cuBLASLt" -lcublasLt
program "without" -DWRPO_NO_CUBLAS
# NCCL's header is looked for where it is installed, and in PATH_OF_NCCL/include, as NVIDIA's wheel has it
nccl="-DWRPO_NCCL ${PATH_OF_NCCL:+-I$PATH_OF_NCCL/include}" skipped=0
if echo '#include <nccl.h>' >"$B/has.cu" && "$NVCC" $nccl -c "$B/has.cu" -o "$B/has.o" 2>/dev/null; then
    if "$NVCC" -std=c++17 -O1 -Werror all-warnings -gencode=arch=compute_80,code=sm_80 $nccl -c ../wrpo_cuda.cu \
        -o "$B/nccl.o" -I.. >"$B/log" 2>&1; then ok
    else bad "NCCL: does not compile without warnings"; tail -3 "$B/log"; fi
else echo "skip: nccl.h is not installed (nor in PATH_OF_NCCL/include)"; skipped=1; fi
echo "cuda_nvcc: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
