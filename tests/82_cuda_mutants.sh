#!/bin/sh
# Do the CUDA tests see what they are for? Each line below plants one bug in a copy of wrpo_cuda.cu. The test that it
# names must fail, in the way that it names. Bugs of different kernels share a copy (compiling is what takes the time),
# because the test of one does not run the kernels of the others. The graphs' test runs all kernels, so its bugs have
# copies of their own.
# usage, in this folder: sh 82_cuda_mutants.sh [PROGRAM [PATTERN [COPIES]]]
#   PATTERN   of the names of the bugs to plant (all)
#   COPIES    of each way to run at most (1: the first bug of each kernel, in minutes; 99: every bug, as CI does)
# (needs a C++ compiler; CXX, CC and EMU as the Makefile sets them)
passed=0 failed=0 skipped=0
only=${2:-.} most=${3:-1}
CC=${CC:-cc} CXX=${CXX:-g++}
: "${EMU:=-std=c++17 -fno-strict-aliasing -ffp-contract=off -Wno-unknown-pragmas -I.. -include support/cuda_emu.h}"
case $1 in */asan/*)
    echo "mutants: they bring their own sanitizers; not run again"
    echo "cuda_mutants: 0 passed, 0 failed, 1 skipped"; exit 0 ;;
esac
if ! command -v "$CXX" >/dev/null; then
    echo "skip: mutants: there is no C++ compiler"; echo "cuda_mutants: 0 passed, 0 failed, 1 skipped"; exit 0
fi
B=$(mktemp -d) || exit 1
trap 'rm -rf "$B"' EXIT
mkdir "$B/run" "$B/bugs"
flags() {
    case $1 in
    plain | apart) echo "-O0" ;;
    long) echo "-O1" ;;
    memory) echo "-O0 -fsanitize=address -fno-omit-frame-pointer" ;;
    race) echo "-O0 -fsanitize=thread" ;;
    esac
}
ok() { passed=$((passed + 1)); }
bad() { echo "FAIL mutant: $*"; failed=$((failed + 1)); }
# name, way to run (plain; long = plain, compiled for a test that takes longer than the compiler; apart = plain, in a
# copy of its own, as every test would meet the bug; memory = AddressSanitizer; race = ThreadSanitizer), test and case,
# what its output must say, sed script.
# A sixth word: how many lines the bug takes, if not one.
# "none" as the script: no bug, and the test must pass. So a test that always fails is not taken for a good one.
# A bug goes into the first copy of its way that has none of its kernels yet; copy 0 of a way has no bug.
mutant() {
    echo "$1" | grep -qE "$only" || return
    way=$2 script=$5 kernel=${3%% *} copy=0
    case $kernel in decoding | splits) kernel=attention ;; esac
    if [ "$script" != none ]; then
        copy=1
        while grep -qsx -e "$kernel" -e graphs -e ring "$B/bugs/$way-$copy.kernels"; do copy=$((copy + 1)); done
        [ $copy -le "$most" ] || return
        echo "$kernel" >>"$B/bugs/$way-$copy.kernels"
    fi
    source=$B/bugs/$way-$copy.cu
    [ -f "$source" ] || cp ../wrpo_cuda.cu "$source"
    if [ "$script" != none ]; then
        sed -E "$script" "$source" >"$B/new.cu"
        changed=$(diff "$source" "$B/new.cu" | grep -c '^<')
        if [ "$changed" -ne "${6:-1}" ]; then bad "$1: the bug is planted in $changed lines, want ${6:-1}"; return; fi
        mv "$B/new.cu" "$source"
    fi
    printf '%s\t%s\t%s\n' "$3" "$4" "$1" >>"$B/bugs/$way-$copy.list"
}
# Compiles a copy and runs the test of each of its bugs.
run_copy() {   # way, its number
    way=$1 copy=$2
    driver=$B/$(echo "$way" | sed -E 's/long|apart/plain/').o   # 80_cuda.c
    [ -f "$driver" ] ||
        $CC -std=c11 -w $(flags "$way") -I.. -DWRPO_API=static -DWRPO_EMULATED -c 80_cuda.c -o "$driver" || exit 1
    cp "$B/bugs/$way-$copy.cu" "$B/wrpo_cuda.cu"
    if ! { $CXX $EMU -g0 -w $(flags "$way") -x c++ -c "$B/wrpo_cuda.cu" -o "$B/cu.o" &&
           $CC $(flags "$way") "$driver" "$B/cu.o" -o "$B/test" -lstdc++ -lm; } >"$B/log" 2>&1; then
        bad "$(cut -f 3 "$B/bugs/$way-$copy.list"): does not compile"; tail -3 "$B/log"; return
    fi
    while IFS="$tab" read -r test sign name; do
        (cd "$B/run" && TSAN_OPTIONS=halt_on_error=1 timeout 600 "$B/test" $test) >"$B/log" 2>&1; code=$?
        echo "exit code $code" >>"$B/log"
        if [ "$copy" -eq 0 ]; then
            if [ $code -eq 0 ]; then ok; else bad "$test fails without a bug ($way)"; tail -3 "$B/log"; fi
        elif [ $code -ne 0 ] && grep -qE "$sign" "$B/log"; then
            ok
            said=$(grep -m 1 -E "$sign" "$B/log" | sed -E 's/^FAIL [^:]*:[0-9]+: //' | cut -c 1-100)
            echo "  $name: caught by $test, $way: $said"
        else
            bad "$name: not caught by $test ($way), exit code $code"; tail -3 "$B/log"
        fi
    done <"$B/bugs/$way-$copy.list"
}
tab=$(printf '\t')
# number of a line: the first with `want` after one with `from`
line() {
    awk -v from="$1" -v want="$2" -v skip="${3:-0}" 'index($0, from) { on = 1 }
        on && index($0, want) && !skip-- { print NR; exit }' ../wrpo_cuda.cu
}
drop() { echo "$(line "$@")s/(__syncthreads|__syncwarp|ptx::cp_async_wait<[^>]*>)\(\);/;/"; }

mutant "no bug" plain "gemm 6" - none
mutant "no bug" plain "wgmma 2" - none
mutant "no bug" plain "attention 16" - none
mutant "no bug" long "graphs" - none
mutant "no bug" apart "ring" - none
mutant "no bug" plain "device" - none
mutant "no bug" plain "lt" - none
mutant "no bug" memory "gemm 4" - none
mutant "no bug" memory "rows 3" - none
mutant "no bug" race "attention 16" - none
mutant "no bug" plain "splits 0" - none
mutant "no bug" race "splits 0" - none
mutant "no bug" race "logprob 2" - none
mutant "no bug" race "rows 3" - none
mutant "no bug" race "adamw 6" - none
mutant "gemm: no barrier between the copy and its use" plain "gemm 6" 'relative error|other bits' \
    "$(drop 'gemm_kernel(C *c' '__syncthreads')"
mutant "gemm: a lost wait for a copy" plain "gemm 6" 'relative error|other bits' \
    "$(drop 'gemm_kernel(C *c' 'cp_async_wait<GEMM_STAGES')"
mutant "gemm: fragments of a transposed tile in the wrong order" plain "gemm 6" 'relative error' \
    "$(line 'gemm_kernel(C *c' \
            'fa[i], at<64>(ta')s/lane \/ 16 \* 8 \+ lane % 8/lane \/ 8 % 2 * 8 + lane % 8/"
mutant "gemm: rows behind the last are written" memory "gemm 4" 'heap-buffer-overflow' \
    "$(line 'gemm_kernel(C *c' 'if (row >= m) continue;')s/if \(row >= m\) continue;//"
mutant "gemm: a row's tail is read past its end" memory "gemm 4" 'heap-buffer-overflow' \
    "$(line 'load_tile(bf16 *to, const matrix' 'chunk_slow(at<ROWS>')s/clamp8\(x.cols - col\)/8/"
mutant "wgmma: a lost wait for TMA" plain "wgmma 0" 'relative error' \
    "$(line 'wgmma_kernel(C' 'mbarrier_wait(full')s/ptx::mbarrier_wait[^;]*;/;/"
mutant "wgmma: the wrong phase" plain "wgmma 2" 'relative error|other bits|emu: deadlock' \
    "$(line 'wgmma_kernel(C' 'mbarrier_wait(full')s/% 2\)/% 2 ^ 1)/"
mutant "wgmma: the producer does not announce all bytes" plain "wgmma 2" 'relative error|other bits|emu: deadlock' \
    "$(line 'wgmma_kernel(C' 'mbarrier_expect')s/WGMMA_STAGE \* 2/WGMMA_STAGE/"
mutant "wgmma: the wrong swizzle in a descriptor" plain "wgmma 2" 'relative error' "s/1ull << 62/2ull << 62/"
mutant "wgmma: the wrong offset between strips" plain "wgmma 2" 'relative error' "s/\(STRIP \* 2 >> 4\)/(STRIP >> 4)/"
mutant "wgmma: results before the last product is done" plain "wgmma 2" 'relative error' \
    "$(line 'wgmma_kernel(C' 'wgmma_wait<0>')s/ptx::wgmma_wait<0>\(\);/;/"
mutant "wgmma: a stage is given away while it is read" plain "wgmma 2" 'relative error|other bits' \
    "$(line 'wgmma_kernel(C' 'mbarrier_arrive(empty')s/s > 0 \&\& (lane.* ptx::mbarrier_arrive.empty .).*% /\1 s % /"
mutant "wgmma: no fence in front of a product" plain "wgmma 2" 'emu: wgmma: no fence' \
    "$(line 'wgmma_kernel(C' 'wgmma_fence')s/ptx::wgmma_fence\(\);/;/"
mutant "attention: K is replaced while it is read" plain "attention 16" 'relative error|other bits' \
    "$(drop 'attention_kernel(attn a' '/* and may go */')"
mutant "attention: the same, as a race" race "attention 16" 'ThreadSanitizer: data race' \
    "$(drop 'attention_kernel(attn a' '/* and may go */')"
mutant "attention: V is used before it is there" plain "attention 16" 'relative error' \
    "$(line 'attention_kernel(attn a' 'cp_async_wait<1>' 1)s/ptx::cp_async_wait<1>\(\);/;/"
mutant "attention: dk and dv, lanes replaced while they are read" race "attention 16" 'ThreadSanitizer: data race' \
    "$(drop 'INLINE void walk' 'the last ones done with')"
mutant "attention: keys in front of a prefix count" plain "attention 12" 'relative error' \
    "s/now.position, now.from, now.to/now.position, 0, now.to/"
mutant "attention: dq, K and V are used before they are there" plain "attention 16" 'relative error' \
    "$(line 'INLINE void walk' 'cp_async_wait<0>')s/ptx::cp_async_wait<0>\(\);/;/"
mutant "attention: dk and dv, the lanes of the step before" plain "attention 16" 'relative error|other bits' \
    "$(line 'INLINE void walk' 'use(t, T(memory')s/use\(t, T\(memory, 2 \+ t %/use(t, T(memory, 2 + (t + 1) %/"
mutant "attention: a part of dk and dv is lost" plain "attention 18" 'relative error' \
    "s/part < parts; part\+\+/part < parts - 1; part++/"
mutant "attention: parts of dk and dv overlap" plain "attention 18" 'relative error' \
    "s/end = tiles \* \(part \+ 1\) \/ parts/end = min(tiles, tiles * (part + 1) \/ parts + 1)/"
# The sums read a place that no block has written: NaN, in the keys of the prompt alone.
mutant "attention: parts of dk, two into one place" plain "attention 18" ' dk: relative error nan' \
    "s/part_at\(a, part, row0, g, 0\)/part_at(a, part \/ 2, row0, g, 0)/"
mutant "attention: parts of dv, two into one place" plain "attention 18" ' dv: relative error nan' \
    "s/part_at\(a, part, row0, g, 1\)/part_at(a, part \/ 2, row0, g, 1)/"
mutant "attention: parts of dv, the same, as a race" race "attention 18" 'ThreadSanitizer: data race' \
    "s/part_at\(a, part, row0, g, 1\)/part_at(a, part \/ 2, row0, g, 1)/"
mutant "attention: a cache's own keys are taken for the rows" plain "decoding 1" 'other bits' \
    "s/s.prefix_end - s.prefix \+ \(s.own_end - s.own\) - \(s.end - s.begin\)/s.prefix_end - s.prefix/"
mutant "rope: the angles of another row" plain "rope 2" 'rope.*relative error' \
    "s/index\[blockIdx.x\] \* d;/blockIdx.x * d;/"
mutant "splits: one is lost" plain "splits 0" 'relative error' \
    "s/split < splits; split\+\+\) \{/split < splits - 1; split++) {/"
mutant "splits: their maxima do not count" plain "splits 1" 'relative error' \
    "s/const float weight = exp2f\(.*/const float weight = 1;/"
mutant "splits: as many as the batch leaves room for" plain "splits 0" 'has other bits alone' \
    "s/tiles \/ SPLIT\)\)/tiles \/ SPLIT \/ (int)a.n_segs))/"
mutant "splits: those of the first segments again" plain "splits 3" 'relative error' \
    "s/first \+= most, a.segs \+= most/first += most/"
mutant "splits: two into one place, as a race" race "splits 0" 'ThreadSanitizer: data race' \
    "s/split_at\(a, j.index, split, l.head0\)/split_at(a, j.index, split \/ 2, l.head0)/"
mutant "logprob: two blocks write one number before a barrier" race "logprob 2" 'ThreadSanitizer: data race' \
    "s/    (const float top = group_max\(most\);)/    if (threadIdx.x == 0) lse[0] = 0; \1/"
mutant "rmsnorm: the end of a row is overrun" plain "rmsnorm 1" 'written between rows' \
    "$(line 'void rmsnorm_kernel' 'store(y + j')s/D - j/8/"
mutant "rmsnorm: a shuffle that half a warp does not reach" plain "rmsnorm 6" 'emu: deadlock' \
    "$(line 'float group_sum' 'x = warp_sum(x);')s/x = warp_sum/if (threadIdx.x % 32 < 16) x = warp_sum/"
mutant "scatter: a shared array is too short" memory "rows 3" 'AddressSanitizer: use-after-poison' \
    "s/WRPO_SHARED\(unsigned, hits, 4\)/WRPO_SHARED(unsigned, hits, 3)/"
mutant "scatter: hits are read before they are written" plain "rows 3" 'relative error|other bits' \
    "$(drop 'void scatter_kernel' '__syncthreads();')"
mutant "sum: what was there is lost" plain "rows 3" 'relative error' \
    "$(line 'sum_kernel(float *y' 'add_eight(')s/add_eight\(y \+ j, x \+ j/store(y + j, load(x + j, count - j, fast)/"
mutant "scatter: the factor of another row" plain "rows 3" 'scaled.*relative error' \
    "s/scales \? scales\[row\]/scales ? scales[r]/"
mutant "scatter: blocks of the same row all add" plain "rows 3" 'relative error' \
    "s/if \(__syncthreads_or\(earlier\)\) return;/__syncthreads_or(earlier);/"
mutant "dropout: draws of a row that begins within a block are shifted" plain "rows 2" 'dropout.*relative error' \
    's/const int64_t j = block \* 8 \+ e - begin;/const int64_t j = (block - begin \/ 8) * 8 + e;/'
mutant "logprob: two blocks write one number" race "logprob 2" 'ThreadSanitizer: data race' \
    "s/    lse\[blockIdx.x\] = top/    lse[blockIdx.x \& ~1u] = top/"
mutant "adamw: a scale is written while others read it" race "adamw 6" 'ThreadSanitizer: data race' \
    "$(drop 'INLINE void moment' '__syncwarp')"
mutant "adamw: the wrong seed" plain "adamw 5" 'bytes differ' \
    "s/(moment\(v, vi, i, left, [a-z]+, true, u.seed_)v/\1m/"
mutant "graphs: of a key only the first number counts" long "graphs" 'taken for another|other bits' \
    "s/memcmp\(other->key, key, sizeof s->key\) == 0/memcmp(other->key, key, 8) == 0/"
mutant "ring: a slot is filled while it is still copied from" apart "ring" 'small pieces are not what was put' \
    "$(line 'void put(void *d' 'cudaEventSynchronize')s/note\(.*/;/"
mutant "ring: put copies from the caller's memory" apart "ring" 'emu: cudaMemcpyAsync of pageable memory' \
    "$(line 'void put(void *d' 'cudaMemcpyAsync')s/dst \+ at, slot/dst + at, (const char *)host + at/"
mutant "ring: get does not wait" apart "ring" 'pieces are not what was put|bytes of a large piece differ' \
    "$(line 'void get(void *d' 'cudaEventSynchronize')s/note\(.*/;/"
mutant "ring: get takes the pieces from the wrong slots" apart "ring" 'bytes of a large piece differ' \
    "$(line 'void get(void *d' '(first + taken) % SLOTS;')s/first \+ taken/first + asked/"
mutant "device: not made current" plain "device" 'invalid resource handle|exit code 139' \
    "$(line 'struct entered' 'cudaSetDevice(dev->index)')s/note\(.*/;/"
mutant "device: not restored" apart "device" 'the current device is 1 afterwards' \
    "s/~entered\(\) \{ if \(before >= 0\) cudaSetDevice\(before\); \}/~entered() {}/"
mutant "device: the host's micro_tokens" apart "device" 'micro_tokens: not what' \
    "s/b.micro_tokens = 8192/b.micro_tokens = 1024/"
mutant "device: an op that does not enter it" apart "device" 'invalid resource handle' \
    "$(line 'void rope(void *d' 'entered dev(d);')s/entered dev\(d\);/device *dev = (device *)d;/"
mutant "device: shared memory is not checked" apart "device" 'attention_kernel<128>: want 49152 bytes' \
    "s/if \(shared <= dev->shared_most\) return true;/return true;/"
mutant "lt: an algorithm for each number of rows" plain "lt" 'rows alone have other bits' \
    "s/kind.few \? LT_FEW : LT_MANY\)/dev->n_choices + 1 > 0 ? dev->lt_rows : 0)/
     s/    if \(i == dev->n_choices\) \{/    i = dev->n_choices, dev->lt_rows = rows; {/
     s/^    int n_choices;/    int n_choices; int64_t lt_rows;/" 3
mutant "lt: k may be split" apart "lt" 'sums are not in fp32' \
    "s/no_split = CUBLASLT_REDUCTION_SCHEME_NONE;/no_split = 7;/"
mutant "lt: of a kind only the layout counts" plain "lt" 'heuristic was asked|differ by|off by|exit code 134' \
    "s/memcmp\(&dev->choices\[i\].kind, &kind, sizeof kind\)/memcmp(\&dev->choices[i].kind, \&kind, 8)/"
mutant "lt: a fallback is not said" plain "lt" 'said 0 times' \
    "$(line 'void fall_back' 'say(dev, WRPO_LOG_WARN, text);')s/say\(.*/;/"
# This one writes to a stale place, which may be outside of the cache.
mutant "graphs: a place in the cache is an argument of the launch" long "graphs" 'other bits|exit code 139' \
    "s/to = index\[r\] \* ldy/to = (index[r] - index[0]) * ldy/
     s/(LAUNCH\(place_kernel, .unsigned.n, row_threads.D., 0, .bf16 ..y),/\1 + index[0] * ldy,/" 2
mutant "graphs: release keeps what points into freed memory" long "graphs" 'release forgets' \
    "s/^    forget_all\(dev\);( +\/\* they may use p)/    \1/"
for way in plain apart long memory race; do
    for list in "$B/bugs/$way"-*.list; do
        copy=$(basename "$list" .list)
        [ ! -f "$list" ] || run_copy $way "${copy#*-}"
    done
done
echo "cuda_mutants: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
