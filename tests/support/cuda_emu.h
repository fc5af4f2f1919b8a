// cuda_emu.h - runs the kernels of wrpo_cuda.cu on the host, so that they can be tested without a GPU.
// A CUDA thread is a fiber; the fibers of one block run round-robin and give way only at barriers, so __syncthreads,
// warp
// shuffles, ballots, ldmatrix and mma.sync have their real meaning. Blocks run one after another.
// EMU_ORDER=0 blocks and threads in ascending order | 1 descending | n>=2 pseudo-random order, seed n (results must not
// depend on it)
//   EMU_ASYNC=0 asynchronous copies (cp.async, TMA) land as late as their wait allows, wgmma reads its operands at once
//            | 1 copies land at once, wgmma reads as late as its wait allows
//   EMU_SM      compute capability of the device, 90 without it; it decides how much shared memory a block may have
//   EMU_SHARED  bytes of shared memory that a block may have, if it is not what its kind has
//   EMU_LT_FAIL cuBLASLt refuses every product
//   EMU_MEMORY  bytes of device memory; without it, what the host has
//   EMU_GRAPH_FAIL=begin, end, instantiate or launch: that call of the graphs' has no memory
//   EMU_DEVICES how many devices there are, up to 8; 2 without it
// emu_device is the thread's current device, emu_calls[i] counts the calls that reached device i. Threads of the host
// may use one each: kernels run one after another, under one lock. A copy
// between host and device lands as late as it may (EMU_ASYNC=0): before the next work of its stream, or when it is
// waited for.
// -fsanitize=address: out-of-bounds shared and global accesses; -fsanitize=thread: data races inside and between blocks
// Compile with -fno-strict-aliasing, as device code is. Not seen here: the inline PTX itself (only its twin below),
// weak
// memory order between blocks, bank conflicts, occupancy, speed.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <algorithm>
#include <functional>
#include <numeric>
#include <tuple>
#include <vector>
#include <atomic>
#include <malloc.h>
#include <mutex>
#include <type_traits>
#include <utility>
#include <sys/mman.h>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define EMU_RAW inline __attribute__((no_sanitize_thread, noinline))
#define EMU_RAW_CALL __attribute__((no_sanitize_thread, noinline))
#else
#define EMU_RAW inline
#define EMU_RAW_CALL
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/asan_interface.h>
#endif
// ---- keywords ----------------------------------------------------------------------------------------------------
#define WRPO_CUDA_RUNTIME
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define WRPO_SM90A 1
#define __align__(n) alignas(n)
#define WRPO_SHARED(T, name, n)                                                                                        \
    static int emu_slot_##name;                                                                                        \
    T* name = (T*)emu::shared_alloc(&emu_slot_##name, sizeof(T) * (n))
#define WRPO_DYN_SHARED(T, name) T* name = (T*)emu::smem
#define WRPO_LAUNCH(kernel, grid, block, smem, stream, ...) \
    emu::enqueue(#kernel, kernel, dim3(grid), dim3(block), (smem), (stream), __VA_ARGS__)
struct dim3 { unsigned x, y, z; dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {} };
struct uint3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };      struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };    struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };          struct alignas(16) int4 { int x, y, z, w; };
// always_inline: g++ does not show a store of a call's result to ThreadSanitizer, *p = make_float2(...) at -O0
#define EMU_MAKE static inline __attribute__((always_inline))
EMU_MAKE float2 make_float2(float x, float y) { return {x, y}; }
EMU_MAKE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
EMU_MAKE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
// ---- bf16 --------------------------------------------------------------------------------------------------------
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        bits = f != f ? 0x7fff : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    operator float() const { uint32_t u = uint32_t(bits) << 16; float f; memcpy(&f, &u, 4); return f; }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 nv_bfloat16; typedef __nv_bfloat162 nv_bfloat162;
static inline float __bfloat162float(__nv_bfloat16 a) { return a; }
static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
#define __expf(x) expf(x)    /* glibc declares functions of these names */
#define __logf(x) logf(x)
static inline float __fmul_rn(float a, float b) { return a * b; }      /* compile without contraction */
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
using std::min; using std::max;

// ---- fibers, scheduler, barriers ---------------------------------------------------------------------------------
namespace emu {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { STACK = 256 * 1024 };                                     // a sanitizer's report needs room
#else
enum { STACK = 64 * 1024 };
#endif
enum { WARP = 32, MAX_THREADS = 1024, DYN_SMEM = 228 * 1024 };
struct Copy { void* to; const void* from; int bytes, group; };
struct Fiber {
    void* sp; char* stack; size_t stack_size; uint3 tid; int id, lane; bool done;
    unsigned phase;                                              // parity of this lane's next warp exchange
    bool fenced;                                                 // a wgmma.fence since the last wait (or the beginning)
    Copy copies[128]; int ncopies, group;                         // cp.async: nothing is copied before the wait
    void* tsan; void* tsan_set[2]; char* stack_set[2]; void* asan;
};
// one 128-byte letter box a lane
struct Warp { unsigned gen, arrived, live; alignas(64) unsigned char box[2][WARP][128]; };
inline Fiber fibers[MAX_THREADS]; inline Warp warps[MAX_THREADS / WARP];
inline Fiber* cur; inline Fiber host;
inline int nthreads, nwarps, alive, order[MAX_THREADS], pos[MAX_THREADS], order_mode, early_copies;
inline unsigned bar_gen, bar_arrived, bar_or, bar_or_last; inline uint64_t progress, launches;
inline dim3 grid_dim, block_dim; inline uint3 block_idx; inline const char* kernel_name = "";
inline char* smem; inline size_t smem_dyn, smem_used; inline int smem_epoch; inline char launch_token, done_token;
// What ThreadSanitizer takes for the barriers of a block and of its warps. Neighbouring blocks have others, as they
// have other fibers: the barriers of one order nothing in the next.
struct Tokens { char block, warp[MAX_THREADS / WARP]; };
inline Tokens tokens_of[2];
EMU_RAW Tokens* tokens() { return &tokens_of[smem_epoch & 1]; }
// at_block: forgets what was in flight
inline void (*entry)(void*); inline void* entry_arg; inline void (*at_block)();
[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "emu: %s in %s, block (%u,%u,%u) thread %d\n", what, kernel_name, block_idx.x, block_idx.y,
            block_idx.z, cur ? cur->id : -1);
    abort();
}
// Static shared arrays: every thread of the block that reaches the declaration gets the same place.
EMU_RAW void* shared_alloc(int* slot, size_t bytes) {
    static struct { int* slot; size_t at; } known[64]; static int n, epoch;
    if (epoch != smem_epoch) { epoch = smem_epoch; n = 0; }
    for (int i = 0; i < n; ++i) if (known[i].slot == slot) return smem + known[i].at;
    size_t at = (smem_used + 127) / 128 * 128; if (at + bytes > DYN_SMEM) fail("out of shared memory");
    if (n == 64) fail("too many shared arrays");
    smem_used = at + bytes; known[n].slot = slot; known[n++].at = at;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(smem + at, bytes); smem_used += 128;   // a red zone between arrays
#endif
    return smem + at;
}
extern "C" void emu_switch(void** save_sp, void* new_sp);        // saves the callee-saved registers, swaps stacks
#if defined(__x86_64__)
asm(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#elif defined(__aarch64__)
asm(".text\n.globl emu_switch\n.type emu_switch,%function\nemu_switch:\nsub sp,sp,#160\n"
    "stp x19,x20,[sp,#0]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\nstp x27,x28,[sp,#64]\nstp "
    "x29,x30,[sp,#80]\n"
    "stp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\nmov x9,sp\nstr "
    "x9,[x0]\nmov sp,x1\n"
    "ldp x19,x20,[sp,#0]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\nldp x27,x28,[sp,#64]\nldp "
    "x29,x30,[sp,#80]\n"
    "ldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\nadd sp,sp,#160\nret\n");
#endif
EMU_RAW void go(Fiber* to) {
    Fiber* from = cur; cur = to;
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(from->done ? nullptr : &from->asan, to->stack, to->stack_size);
#endif
    emu_switch(&from->sp, to->sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from->asan, nullptr, nullptr);
#endif
}
EMU_RAW void yield(bool in_warp) {                               // to the next live fiber of the warp, or of the block
    int p = pos[cur->id], lo = in_warp ? p / WARP * WARP : 0, hi = in_warp ? std::min(lo + WARP, nthreads) : nthreads;
    do p = p + 1 == hi ? lo : p + 1; while (fibers[order[p]].done && order[p] != cur->id);
    if (order[p] != cur->id) go(&fibers[order[p]]);
}
// One warp runs ahead until it waits for others: a missing __syncthreads shows as a wrong result.
EMU_RAW void wait_while(const unsigned* word, unsigned old, bool in_warp) {
    uint64_t seen = progress; int idle = 0;
    while (*(volatile const unsigned*)word == old) {
        yield(in_warp && idle < 2);
        if (progress != seen) {
            seen = progress;
            idle = 0;
        } else if (++idle > 4) fail("deadlock (a barrier not reached by every thread?)");
    }
}
EMU_RAW void leave() {                                           // end of a fiber's body
    cur->done = true; ++progress; --alive; warps[cur->id / WARP].live &= ~(1u << cur->lane);
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&done_token);
#endif
    // exited threads count as arrived
    if (alive && bar_arrived == (unsigned)alive) { bar_arrived = 0; bar_or_last = bar_or; bar_or = 0; ++bar_gen; }
    if (!alive) go(&host); else yield(false);
    abort();
}
EMU_RAW void start() {
#if defined(__SANITIZE_ADDRESS__)
    const void* lo; size_t size; __sanitizer_finish_switch_fiber(nullptr, &lo, &size);
    if (!host.stack) { host.stack = (char*)lo; host.stack_size = size; }   // the first fiber is entered from the host
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&launch_token);
#endif
    entry(entry_arg); leave();
}
EMU_RAW unsigned block_barrier(unsigned pred) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&tokens()->block);
#endif
    bar_or |= pred; ++progress; unsigned g = bar_gen;
    if (++bar_arrived == (unsigned)alive) {
        bar_arrived = 0;
        bar_or_last = bar_or;
        bar_or = 0;
        ++bar_gen;
    } else wait_while(&bar_gen, g, false);
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&tokens()->block);
#endif
    return bar_or_last;
}
struct Nothing { void operator()() const {} };
// every lane of mask must come; the last one runs `last`
template <class F = Nothing> EMU_RAW void warp_barrier(unsigned mask, const F& last = F()) {
    Warp& w = warps[cur->id / WARP]; ++progress; unsigned g = w.gen; mask &= w.live; w.arrived |= 1u << cur->lane;
    if (!(mask >> cur->lane & 1)) fail("lane outside its own mask");
    if ((w.arrived & mask) == mask) { last(); w.arrived &= ~mask; ++w.gen; } else wait_while(&w.gen, g, true);
}
// Exchange one letter (<= 128 bytes a lane) inside the warp: returns the warp's boxes, valid until this lane's
// next-but-one exchange.
template <class T> EMU_RAW const unsigned char (*exchange(const T& v, unsigned mask))[128] {
    static_assert(sizeof(T) <= 128, "letter too long");
    Warp& w = warps[cur->id / WARP]; unsigned ph = cur->phase++ & 1;
    const unsigned char* s = (const unsigned char*)&v;
    for (unsigned i = 0; i < sizeof(T); ++i) w.box[ph][cur->lane][i] = s[i];
    warp_barrier(mask); return w.box[ph];
}
template <class T> EMU_RAW T letter(const unsigned char (*box)[128], int lane) {
    T r; unsigned char* d = (unsigned char*)&r; for (unsigned i = 0; i < sizeof(T); ++i) d[i] = box[lane][i]; return r;
}
inline struct { const void* kernel; size_t bytes; } allowed[256]; inline int n_allowed;   // cudaFuncSetAttribute
EMU_RAW void allow(const void* kernel, size_t bytes) {
    for (int i = 0; i < n_allowed; ++i) if (allowed[i].kernel == kernel) { allowed[i].bytes = bytes; return; }
    if (n_allowed < 256) allowed[n_allowed++] = {kernel, bytes};
}
template <class F>
EMU_RAW void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t dyn, F body) {
    size_t most = 48 * 1024;
    for (int i = 0; i < n_allowed; ++i)
        if (allowed[i].kernel == kernel) most = allowed[i].bytes;
    host.stack = nullptr; kernel_name = name; ++launches;
    grid_dim = grid; block_dim = block; nthreads = int(block.x * block.y * block.z);
    cur = nullptr;
    if (!nthreads || !grid.x || !grid.y || !grid.z) fail("empty launch");
    if (nthreads > MAX_THREADS || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) fail("launch too large");
    if (dyn > most || dyn > DYN_SMEM) fail("more dynamic shared memory than allowed");
    const char* e = getenv("EMU_ORDER");
    order_mode = e ? atoi(e) : 0;
    e = getenv("EMU_ASYNC");
    early_copies = e ? atoi(e) : 0;
    uint32_t rng = 2654435761u * (order_mode + 1);
    entry = [](void* p) { (*(F*)p)(); }; entry_arg = (void*)&body;
#if defined(__SANITIZE_THREAD__)
    host.tsan = __tsan_get_current_fiber();
#endif
    // the order of blocks: one step, co-prime to their number
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z; uint64_t step = 1, at = 0;
    if (order_mode == 1) step = at = blocks - 1;
    if (order_mode > 1) {
        step = blocks * 2 / 3 + order_mode;
        while (std::gcd(step, blocks) != 1) ++step;
        at = rng % blocks;
    }
    for (uint64_t b = 0; b < blocks; ++b, at = (at + step) % blocks) {
        block_idx = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        alive = nthreads;
        bar_arrived = bar_or = 0;
        ++smem_epoch; smem_used = dyn; if (at_block) at_block();
#if defined(__SANITIZE_THREAD__)
        if (smem) munmap(smem, DYN_SMEM);
        smem = nullptr;                                           // a fresh mapping has no access history
#endif
        if (!smem) smem = (char*)mmap(nullptr, DYN_SMEM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(smem, DYN_SMEM);
#endif
        memset(smem, 0xff, b ? std::max(dyn, (size_t)4096) : (size_t)DYN_SMEM);   // poison: NaN
#if defined(__SANITIZE_ADDRESS__)
        __asan_poison_memory_region(smem + dyn, DYN_SMEM - dyn);
#endif
        for (int i = 0; i < (nthreads + WARP - 1) / WARP; ++i) {
            warps[i].arrived = 0;
            int n = nthreads - i * WARP;
            warps[i].live = n >= WARP ? ~0u : (1u << n) - 1;
        }
        for (int t = 0; t < nthreads; ++t) order[t] = t;         // permute the warps, then the lanes of each
        auto shuffle = [&](int* a, int n) {
            for (int t = n - 1; t > 0; --t) {
                rng = rng * 1664525u + 1013904223u;
                std::swap(a[t], a[(rng >> 8) % (t + 1)]);
            }
        };
        if (order_mode && nthreads % WARP == 0) {
            int w[MAX_THREADS / WARP], nw = nthreads / WARP;
            for (int i = 0; i < nw; ++i) w[i] = order_mode == 1 ? nw - 1 - i : i;
            if (order_mode > 1) shuffle(w, nw);
            for (int t = 0; t < nthreads; ++t)
                order[t] = w[t / WARP] * WARP + (order_mode == 1 ? WARP - 1 - t % WARP : t % WARP);
            if (order_mode > 1) for (int i = 0; i < nw; ++i) shuffle(order + i * WARP, WARP);
        }
        for (int t = 0; t < nthreads; ++t) {
            Fiber& f = fibers[t]; pos[order[t]] = t;
            int set = 0;
#if defined(__SANITIZE_THREAD__)
            set = smem_epoch & 1;                                // neighbouring blocks are different threads, unordered
            if (!f.tsan_set[set]) f.tsan_set[set] = __tsan_create_fiber(0);
            f.tsan = f.tsan_set[set];
#endif
            if (!f.stack_set[set]) {
                f.stack_set[set] = (char*)mmap(nullptr, f.stack_size = STACK, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                mprotect(f.stack_set[set], 4096, PROT_NONE);     // overflow guard
            }
            f.stack = f.stack_set[set];
            f.id = t; f.lane = t % WARP; f.done = false; f.phase = 0; f.fenced = false; f.ncopies = f.group = 0;
            f.tid = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
#if defined(__SANITIZE_ADDRESS__)
            __asan_unpoison_memory_region(f.stack + 4096, STACK - 4096);
#endif
            void** sp = (void**)(f.stack + STACK) - 1;           // start() finds the stack as after a call
#if defined(__x86_64__)
            *--sp = (void*)start; sp -= 6;                       // `ret` in emu_switch enters start()
#elif defined(__aarch64__)
            sp -= 20; sp[11] = (void*)start;
#endif
            f.sp = sp;
        }
#if defined(__SANITIZE_THREAD__)
        __tsan_release(&launch_token);
#endif
        cur = &host; go(&fibers[order[0]]); cur = nullptr;
    }
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&done_token);
#endif
}
}  // namespace emu
// recorded and launched so far; alive now. The current device, what reached each; how often cuBLASLt's heuristic was
// asked, and its products
extern "C" {
__attribute__((weak)) int64_t emu_captures, emu_replays, emu_graphs, emu_calls[8], emu_asked, emu_lt_products;
__attribute__((weak)) __thread int emu_device;
}
namespace emu {
// ---- streams, capture ----------------------------------------------------------------------------------------------
// A stream runs kernels at once; copies between host and device wait for its next work. While it is captured, nothing
// runs: launches are kept with copies of their arguments, device copies and fills likewise, and what waits, allocates
// or touches host memory is an error that spoils the capture, as in the runtime's thread-local mode.
inline std::recursive_mutex one;                                 // of all that threads of the host share
typedef std::lock_guard<std::recursive_mutex> Lock;
enum { NOT_READY = 600, UNSUPPORTED = 900, INVALIDATED = 901, OTHER_DEVICE = 400 };
struct Graph { std::vector<std::function<void()>> nodes; };
struct Pending { void* to; const void* from; size_t n; int64_t number; };
struct Stream {
    Graph* graph = nullptr; bool spoilt = false; int device = emu_device;
    std::vector<Pending> pending; int64_t copies = 0;
    std::atomic<int> busy{0};                                    // with what NCCL moves
    void land(int64_t upto) {                                    // the oldest first
        size_t i = 0;
        for (; i < pending.size() && pending[i].number <= upto; ++i)
            memcpy(pending[i].to, pending[i].from, pending[i].n);
        pending.erase(pending.begin(), pending.begin() + (long)i);
    }
};
struct Event { Stream* stream = nullptr; int64_t copies = 0; };
inline thread_local Stream* captured; inline thread_local int last_error;
inline int failed(int e) { if (e) last_error = e; return e; }
inline bool asked_to_fail(const char* what) { const char* e = getenv("EMU_GRAPH_FAIL"); return e && !strcmp(e, what); }
// 0: nothing is captured
inline int illegal() {
    ++emu_calls[emu_device];
    if (captured) captured->spoilt = true;
    return failed(captured ? UNSUPPORTED : 0);
}
template <class F> int keep_or_run(Stream* s, F work) {
    Lock lock(one); ++emu_calls[emu_device];
    if (s->device != emu_device) return failed(OTHER_DEVICE);
    if (s->busy) fail("work behind NCCL's, which is not modelled");
    if (!s->graph) { s->land(s->copies); work(); return 0; }
    if (s->spoilt) return failed(INVALIDATED);
    s->graph->nodes.push_back(work); return 0;
}
template <class... P, class... A>
void enqueue(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t dyn, Stream* s, A&&... args) {
    std::tuple<std::remove_cv_t<P>...> copies(std::forward<A>(args)...);
    keep_or_run(s,
                [=]() { launch(name, (const void*)kernel, grid, block, dyn, [&]() { std::apply(kernel, copies); }); });
}
}  // namespace emu
#define threadIdx (emu::cur->tid)
#define blockIdx (emu::block_idx)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
#define warpSize 32
static inline void __syncthreads() { emu::block_barrier(0); }
static inline int __syncthreads_or(int p) { return emu::block_barrier(p != 0) != 0; }
static inline void __threadfence() {}
EMU_RAW void __syncwarp(unsigned mask = 0xffffffffu) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&emu::tokens()->warp[emu::cur->id / 32]);
#endif
    emu::warp_barrier(mask);
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&emu::tokens()->warp[emu::cur->id / 32]);
#endif
}
template <class T> inline T __shfl_sync(unsigned m, T v, int src, int w = 32) {
    auto b = emu::exchange(v, m);
    int l = emu::cur->lane;
    return emu::letter<T>(b, l / w * w + (src & (w - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
    auto b = emu::exchange(v, m);
    int l = emu::cur->lane, s = l ^ x;
    return emu::letter<T>(b, s / w == l / w ? s : l);
}
template <class T> inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) {
    auto b = emu::exchange(v, m);
    int l = emu::cur->lane, s = l + int(d);
    return emu::letter<T>(b, s / w == l / w ? s : l);
}
template <class T> inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) {
    auto b = emu::exchange(v, m);
    int l = emu::cur->lane, s = l - int(d);
    return emu::letter<T>(b, s >= l / w * w ? s : l);
}
inline unsigned __ballot_sync(unsigned m, int p) {
    auto b = emu::exchange(p, m);
    unsigned r = 0;
    for (int l = 0; l < 32; ++l)
        if (m >> l & 1) r |= unsigned(emu::letter<int>(b, l) != 0) << l;
    return r;
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
// ---- the PTX primitives of wrpo_cuda.cu, lane layouts as in the PTX manual
// ---------------------------------------------
namespace ptx {
// d += a b.  Each lane posts its bits; the last one to arrive multiplies for the whole warp and posts the results.
struct MmaLetter { uint32_t a[4], b[2]; };
struct MmaResult { float d[32][4]; };
inline MmaResult mma_results[emu::MAX_THREADS / emu::WARP][2];
static inline float lo(uint32_t u) { return __uint_as_float(u << 16); }
static inline float hi(uint32_t u) { return __uint_as_float(u & 0xffff0000u); }
EMU_RAW void mma_warp(const unsigned char (*box)[128], MmaResult& r) {
    float a[16][16], b[16][8], d[16][8] = {};
    for (int l = 0; l < 32; ++l) {
        const MmaLetter* m = (const MmaLetter*)box[l]; const int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            a[g + i % 2 * 8][t + i / 2 * 8] = lo(m->a[i]);
            a[g + i % 2 * 8][t + 1 + i / 2 * 8] = hi(m->a[i]);
        }
        for (int i = 0; i < 2; ++i) { b[t + i * 8][g] = lo(m->b[i]); b[t + 1 + i * 8][g] = hi(m->b[i]); }
    }
    for (int i = 0; i < 16; ++i) for (int k = 0; k < 16; ++k) for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; ++l) for (int e = 0; e < 4; ++e) r.d[l][e] = d[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2];
}
EMU_RAW void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const int warp = emu::cur->id / 32; const unsigned ph = emu::cur->phase++ & 1;
    MmaLetter* m = (MmaLetter*)emu::warps[warp].box[ph][emu::cur->lane]; MmaResult& r = mma_results[warp][ph];
    for (int i = 0; i < 4; ++i) m->a[i] = a[i];
    for (int i = 0; i < 2; ++i) m->b[i] = b[i];
    emu::warp_barrier(0xffffffffu, [&] { mma_warp(emu::warps[warp].box[ph], r); });
    for (int i = 0; i < 4; ++i) d[i] += r.d[emu::cur->lane][i];
}
// row: this lane's row address
template <bool T> inline void ldmatrix_x4_(uint32_t (&r)[4], const void* row) {
    auto box = emu::exchange(row, 0xffffffffu); int l = emu::cur->lane;
    for (int i = 0; i < 4; ++i) {
        uint16_t e[2];
        for (int j = 0; j < 2; ++j) {
            int rr = T ? l % 4 * 2 + j : l / 4, cc = T ? l / 4 : l % 4 * 2 + j;
            e[j] = ((const uint16_t*)emu::letter<const void*>(box, i * 8 + rr))[cc];
        }
        r[i] = e[0] | uint32_t(e[1]) << 16;
    }
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix_x4_<false>(r, row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix_x4_<true>(r, row); }
// 16 bytes to shared memory, of which `bytes` are read and the rest are zeros; ordinary accesses of the thread that
// starts (or waits for) the copy
inline void cp_async_land(const emu::Copy& c) {
    unsigned char* to = (unsigned char*)c.to; const unsigned char* from = (const unsigned char*)c.from;
    if (c.bytes == 16) { *(uint4*)to = *(const uint4*)from; return; }
    for (int i = 0; i < 16; ++i) to[i] = i < c.bytes ? from[i] : 0;
}
EMU_RAW void cp_async_start(const emu::Copy& c) {
    if (((uintptr_t)c.to | (uintptr_t)c.from) & 15) emu::fail("cp.async: address not a multiple of 16");
    if (c.bytes < 0 || c.bytes > 16) emu::fail("cp.async: size");
    emu::Fiber& f = *emu::cur; if (f.ncopies == 128) emu::fail("cp.async: too many in flight");
    if (!emu::early_copies) { f.copies[f.ncopies] = c; f.copies[f.ncopies++].group = f.group; }
}
EMU_RAW bool cp_async_next(int n, emu::Copy* c) {                 // the oldest copy of a group that must have landed
    emu::Fiber& f = *emu::cur; if (!f.ncopies || f.copies[0].group >= f.group - n) return false;
    *c = f.copies[0]; --f.ncopies; for (int i = 0; i < f.ncopies; ++i) f.copies[i] = f.copies[i + 1];
    return true;
}
inline void cp_async16(void* to, const void* from, int bytes) {
    emu::Copy c = {to, from, bytes, 0};
    cp_async_start(c);
    if (emu::early_copies) cp_async_land(c);
}
EMU_RAW void cp_async_commit() { ++emu::cur->group; }
template <int N> inline void cp_async_wait() { emu::Copy c; while (cp_async_next(N, &c)) cp_async_land(c); }
// -- sm_90a: mbarrier, TMA, wgmma. Addresses of shared memory are offsets in it, as in a descriptor.
inline uint32_t shared(const void* p) { return uint32_t((const char*)p - emu::smem); }
EMU_RAW void release_(void* p) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(p);
#else
    (void)p;
#endif
}
EMU_RAW void acquire_(void* p) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(p);
#else
    (void)p;
#endif
}
// A phase is over when `count` arrivals have come and all bytes that were announced have landed; `live` tells a barrier
// from other memory.
struct Mbarrier { int32_t bytes; uint32_t pending : 12, count : 12, phase : 1, fenced : 1, live : 6; };
static_assert(sizeof(Mbarrier) == 8, "an mbarrier is 8 bytes");
EMU_RAW Mbarrier* mbarrier(uint64_t* b, bool fenced = true) {
    Mbarrier* m = (Mbarrier*)b;
    if (m->live != 0x2a) emu::fail("mbarrier: not initialised");
    if (fenced && !m->fenced) emu::fail("mbarrier: used before the fence behind its initialisation");
    return m;
}
EMU_RAW void mbarrier_turn(Mbarrier* m) {
    if (!m->pending && !m->bytes) m->phase ^= 1, m->pending = m->count;
    ++emu::progress;
}
inline uint64_t* mbarrier_new[64]; inline int n_mbarrier_new;
EMU_RAW void mbarrier_init(uint64_t* b, int count) {
    if ((uintptr_t)b & 7 || count < 1 || count > 4095 || n_mbarrier_new == 64) emu::fail("mbarrier: initialisation");
    *(Mbarrier*)b = {0, unsigned(count), unsigned(count), 0, 0, 0x2a}; mbarrier_new[n_mbarrier_new++] = b;
}
EMU_RAW void mbarrier_init_fence() { while (n_mbarrier_new) ((Mbarrier*)mbarrier_new[--n_mbarrier_new])->fenced = 1; }
EMU_RAW void mbarrier_arrive(uint64_t* b) {
    release_(b); Mbarrier* m = mbarrier(b);
    if (!m->pending) emu::fail("mbarrier: more arrivals than it counts");
    --m->pending; mbarrier_turn(m);
}
EMU_RAW void mbarrier_expect(uint64_t* b, int bytes) { mbarrier(b)->bytes += bytes; mbarrier_arrive(b); }
// Boxes of a row-major matrix of bf16, 64 columns wide; the 16-byte chunks of each 128 bytes are permuted by bits 7-9
// of their address.
struct tensor_map { const uint16_t* base; int64_t ld, rows, cols; unsigned box_rows; };
struct Box { void* to; tensor_map map; uint64_t* bar; int col, row; };
inline Box boxes[256]; inline int n_boxes;
// ordinary accesses of the thread that starts (or waits for) the copy
inline void tma_land(const Box& x) {
    acquire_(x.bar);
    for (unsigned r = 0; r < x.map.box_rows; ++r) for (unsigned c = 0; c < 64; ++c) {
            const int64_t row = (int64_t)x.row + r, col = (int64_t)x.col + c;
            const uint32_t a = shared(x.to) + r * 128 + c * 2;
            *(uint16_t*)(emu::smem + (a ^ (a >> 7 & 7) << 4)) =
                row >= 0 && row < x.map.rows && col >= 0 && col < x.map.cols ? x.map.base[row * x.map.ld + col] : 0;
    }
    release_(x.bar); Mbarrier* m = mbarrier(x.bar); m->bytes -= int(x.map.box_rows * 128); mbarrier_turn(m);
}
inline void tma_load(void* to, const tensor_map* map, uint64_t* bar, int col, int row) {
    const Box x = {to, *map, bar, col, row}; mbarrier(bar);
    if (shared(to) % 128 || shared(to) + map->box_rows * 128 > (uint64_t)emu::smem_used) emu::fail("TMA: destination");
    release_(bar);
    if (emu::early_copies) tma_land(x);
    else if (n_boxes == 256) emu::fail("TMA: too many in flight");
    else boxes[n_boxes++] = x;
}
EMU_RAW bool tma_next(uint64_t* bar, Box* x) {                   // the oldest box for this barrier
    for (int i = 0; i < n_boxes; ++i)
        if (boxes[i].bar == bar) {
            *x = boxes[i];
            for (--n_boxes; i < n_boxes; ++i) boxes[i] = boxes[i + 1];
            return true;
        }
    return false;
}
inline void mbarrier_wait(uint64_t* b, int parity) {             // what a wait is for lands only while someone waits
    int idle = 0; uint64_t seen = emu::progress; Box x;
    while (mbarrier(b)->phase == (unsigned)parity) {
        if (tma_next(b, &x)) { tma_land(x); continue; }
        emu::yield(false);
        if (seen != emu::progress) {
            seen = emu::progress;
            idle = 0;
        } else if (++idle > 4) emu::fail("deadlock at an mbarrier");
    }
    acquire_(b);
}
// wgmma m64n256k16: each warp of the group has 16 rows. While a product is in flight its registers hold NaN; they are
// filled by the wait that leaves
// nothing in flight. Sums as mma's: 16 products in order, then added.
struct Wgmma {
    float d[16][256];
    float* lanes[32];
    struct {
        uint64_t a, b;
        int group;
        bool ta, tb, done;
    } ops[64];
    int n, group;
    unsigned in;
};
inline Wgmma wgmmas[emu::MAX_THREADS / emu::WARP];
// Number (i, k) of an operand: i along m or n. The canonical layouts of the PTX manual, chunks of 16 bytes, patterns of
// w chunks (swizzle of 16 w bytes).
inline float wgmma_number(uint64_t desc, bool transposed, unsigned i, unsigned k) {
    const unsigned w = desc >> 62 == 0 ? 1
        : desc >> 62 == 1              ? 8
        : desc >> 62 == 2              ? 4
                                       : 2,
                   lead = unsigned(desc >> 16 & 0x3fff) * 16, stride = unsigned(desc >> 32 & 0x3fff) * 16;
    if (desc >> 49 & 7) emu::fail("wgmma: a base offset is not modelled");
    unsigned at = unsigned(desc & 0x3fff) * 16;
    if (!transposed) at += i % 8 * 16 * w + i / 8 * stride + (w == 1 ? k / 8 * lead + k % 8 * 2 : k * 2);
    else
        at += i % (8 * w) * 2 + i / (8 * w) * (w == 1 ? stride : lead) + k % 8 * 16 * w +
            k / 8 * (w == 1 ? lead : stride);
    at ^= (at >> 7 & (w - 1)) << 4;
    if (at + 2 > emu::DYN_SMEM) emu::fail("wgmma: an operand outside of shared memory");
    return lo(*(const uint16_t*)(emu::smem + at));
}
EMU_RAW void wgmma_add(Wgmma& g, const float (*a)[16], const float (*b)[256]) {
    float d[256];
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 256; ++j) d[j] = 0;
        for (int k = 0; k < 16; ++k) for (int j = 0; j < 256; ++j) d[j] += a[i][k] * b[k][j];
        for (int j = 0; j < 256; ++j) g.d[i][j] += d[j];
    }
}
// reads of shared memory are ordinary ones
inline void wgmma_product(Wgmma& g, uint64_t da, uint64_t db, bool ta, bool tb, unsigned warp) {
    float a[16][16], b[16][256];
    for (unsigned k = 0; k < 16; ++k) {
        for (unsigned i = 0; i < 16; ++i) a[i][k] = wgmma_number(da, ta, warp * 16 + i, k);
        for (unsigned j = 0; j < 256; ++j) b[k][j] = wgmma_number(db, tb, j, k);
    }
    wgmma_add(g, a, b);
}
EMU_RAW float* wgmma_place(Wgmma& g, int lane, int i) {
    return &g.d[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
}
EMU_RAW void wgmma_fence() { emu::warp_barrier(0xffffffffu); emu::cur->fenced = true; }
EMU_RAW void wgmma_commit() {
    emu::warp_barrier(0xffffffffu, []() EMU_RAW_CALL { ++wgmmas[emu::cur->id / 32].group; });
}
EMU_RAW void wgmma_take(Wgmma& g, int lane, float* d) {          // a lane's registers go into the product
    if (!emu::cur->fenced) emu::fail("wgmma: no fence before it");
    if (g.in >> lane & 1) {
        if (g.lanes[lane] != d) emu::fail("wgmma: other registers while a product is in flight");
        return;
    }
    g.in |= 1u << lane; g.lanes[lane] = d;
    for (int i = 0; i < 128; ++i) { *wgmma_place(g, lane, i) = d[i]; d[i] = NAN; }
}
EMU_RAW void wgmma_give(Wgmma& g, int lane) {                    // and come back; the next product wants a fence
    emu::cur->fenced = false;
    if (g.n || !(g.in >> lane & 1)) return;
    g.in &= ~(1u << lane);
    for (int i = 0; i < 128; ++i) g.lanes[lane][i] = *wgmma_place(g, lane, i);
}
template <int TA, int TB> inline void wgmma(float (&d)[128], uint64_t a, uint64_t b) {
    emu::Fiber* f = emu::cur; Wgmma& g = wgmmas[f->id / 32];
    wgmma_take(g, f->lane, d);
    auto box = emu::exchange(a ^ b * 3, 0xffffffffu); const bool same = emu::letter<uint64_t>(box, 0) == (a ^ b * 3);
    if (!same) emu::fail("wgmma: lanes have different descriptors");
    emu::warp_barrier(0xffffffffu, [&]() EMU_RAW_CALL {
        if (g.n == 64) emu::fail("wgmma: too many in flight");
        g.ops[g.n++] = {a, b, g.group, TA != 0, TB != 0, !emu::early_copies};
        if (!emu::early_copies) wgmma_product(g, a, b, TA != 0, TB != 0, unsigned(emu::cur->id / 32 % 4));
    });
}
template <int N> inline void wgmma_wait() {
    emu::Fiber* f = emu::cur; Wgmma& g = wgmmas[f->id / 32];
    emu::warp_barrier(0xffffffffu, [&]() EMU_RAW_CALL {
        int done = 0;
        for (; done < g.n && g.ops[done].group < g.group - N; ++done)
            if (!g.ops[done].done)
                wgmma_product(g, g.ops[done].a, g.ops[done].b, g.ops[done].ta, g.ops[done].tb,
                              unsigned(emu::cur->id / 32 % 4));
        for (int i = done; i < g.n; ++i) g.ops[i - done] = g.ops[i];
        g.n -= done;
    });
    release_(&g); emu::warp_barrier(0xffffffffu); acquire_(&g);
    wgmma_give(g, f->lane);
}
inline void wgmma_results(float (&)[128]) {}
template <int N> inline void registers_up() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers"); }
template <int N> inline void registers_down() { registers_up<N>(); }
inline const bool forgets = (
    emu::at_block =
        []() EMU_RAW_CALL {
            n_boxes = n_mbarrier_new = 0;
            for (Wgmma& g : wgmmas) g.n = g.group = 0, g.in = 0;
        },
    true);
// host: what cuTensorMapEncodeTiled asks of a matrix
inline void* tensor_map_encoder() { return (void*)&boxes; }
inline bool tensor_map_make(void*, tensor_map* map, const void* p, int64_t ld, int64_t rows, int64_t cols,
                            unsigned box_rows) {
    if ((uintptr_t)p % 16 || ld * 2 % 16 || ld * 2 >= (int64_t)1 << 40 || rows < 1 || cols < 1 ||
        rows > (int64_t)1 << 32 || cols > (int64_t)1 << 32 || box_rows < 1 || box_rows > 256)
        return false;
    *map = {(const uint16_t*)p, ld, rows, cols, box_rows}; return true;
}
}  // namespace ptx
// ---- host API
// --------------------------------------------------------------------------------------------------------
typedef int cudaError_t;
typedef emu::Stream* cudaStream_t;
typedef emu::Event* cudaEvent_t;
typedef emu::Graph *cudaGraph_t, *cudaGraphExec_t;
enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidResourceHandle = emu::OTHER_DEVICE,
    cudaErrorNotReady = emu::NOT_READY,
    cudaErrorUnknown = 999,
    cudaErrorStreamCaptureUnsupported = emu::UNSUPPORTED,
    cudaErrorStreamCaptureInvalidated = emu::INVALIDATED
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
struct cudaDeviceProp { char name[256]; int major, minor; size_t sharedMemPerBlockOptin; };
namespace emu {
inline size_t memory_used;
inline size_t memory_total() {
    const char* e = getenv("EMU_MEMORY");
    return e ? (size_t)strtoull(e, nullptr, 10) : (size_t)64 << 30;
}
}
template <class T> inline cudaError_t cudaMalloc(T** p, size_t n) {
    *p = nullptr; void* q;
    emu::Lock lock(emu::one);
    if (int e = emu::illegal()) return e;
    if (emu::memory_used > emu::memory_total() || n > emu::memory_total() - emu::memory_used ||
        posix_memalign(&q, 256, n ? n : 1))
        return emu::failed(cudaErrorMemoryAllocation);
    memset(q, 0xff, n); emu::memory_used += malloc_usable_size(q); *p = (T*)q; return cudaSuccess;      // poison: NaN
}
inline cudaError_t cudaFree(void* p) {
    emu::Lock lock(emu::one);
    if (int e = emu::illegal()) return e;
    if (p) emu::memory_used -= malloc_usable_size(p);
    free(p);
    return 0;
}
inline cudaError_t cudaMemGetInfo(size_t* free_, size_t* total) {
    emu::Lock lock(emu::one);
    *total = emu::memory_total();
    *free_ = *total - std::min(*total, emu::memory_used);
    return 0;
}
// Pinned memory is counted in no limit. Only it may take part in a copy that does not wait.
namespace emu { inline std::vector<std::pair<char*, size_t>> pinned; }
inline cudaError_t cudaMallocHost(void** p, size_t n) {
    emu::Lock lock(emu::one);
    if (int e = emu::illegal()) return e;
    if (n > emu::memory_total() || posix_memalign(p, 256, n)) return emu::failed(cudaErrorMemoryAllocation);
    emu::pinned.push_back({(char*)*p, n}); return 0;
}
inline cudaError_t cudaFreeHost(void* p) {
    emu::Lock lock(emu::one);
    if (int e = emu::illegal()) return e;
    for (size_t i = 0; i < emu::pinned.size(); ++i)
        if (emu::pinned[i].first == p) { emu::pinned.erase(emu::pinned.begin() + (long)i); break; }
    free(p); return 0;
}
inline cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind kind, cudaStream_t st) {
    if (kind == cudaMemcpyDeviceToDevice) return emu::keep_or_run(st, [=]() { memcpy(d, s, n); });
    if (st->graph) return emu::illegal();
    emu::Lock lock(emu::one);
    ++emu_calls[emu_device];
    if (st->device != emu_device) return emu::failed(emu::OTHER_DEVICE);
    const char* e = getenv("EMU_ASYNC"); const char* h = (const char*)(kind == cudaMemcpyHostToDevice ? s : d);
    bool known = false;
    for (auto& p : emu::pinned) known = known || (h >= p.first && h + n <= p.first + p.second);
    if (!known) emu::fail("cudaMemcpyAsync of pageable memory");
    st->pending.push_back({d, s, n, ++st->copies});
    if (e && atoi(e)) st->land(st->copies);
    return 0;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    if (int f = emu::illegal()) return f;
    *e = new emu::Event; return 0;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { ++emu_calls[emu_device]; delete e; return 0; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    ++emu_calls[emu_device];
    if (s->device != emu_device) return emu::failed(emu::OTHER_DEVICE);
    e->stream = s; e->copies = s->copies; return 0;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    ++emu_calls[emu_device]; if (e->stream) e->stream->land(e->copies);
    return 0;
}
inline cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t st) {
    return emu::keep_or_run(st, [=]() { memset(d, v, n); });
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { *s = new emu::Stream; return 0; }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    delete s->graph;
    if (emu::captured == s) emu::captured = nullptr;
    delete s;
    return 0;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (s->graph) return emu::illegal();
    ++emu_calls[emu_device]; s->land(s->copies); return 0;
}
inline cudaError_t cudaStreamQuery(cudaStream_t s) {
    if (s->busy) return emu::failed(emu::NOT_READY);
    s->land(s->copies); return 0;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (s->graph) return emu::failed(cudaErrorInvalidValue);
    if (emu::asked_to_fail("begin")) return emu::failed(cudaErrorMemoryAllocation);
    s->graph = new emu::Graph; s->spoilt = false; emu::captured = s; return 0;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
    *g = nullptr;
    if (!s->graph) return emu::failed(cudaErrorInvalidValue);
    emu::Graph* graph = s->graph; s->graph = nullptr; emu::captured = nullptr;
    int e = s->spoilt               ? (int)cudaErrorStreamCaptureInvalidated
        : emu::asked_to_fail("end") ? (int)cudaErrorMemoryAllocation
                                    : 0;
    if (e) delete graph; else *g = graph, ++emu_captures;
    return emu::failed(e);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
    if (emu::asked_to_fail("instantiate")) return emu::failed(cudaErrorMemoryAllocation);
    *e = new emu::Graph(*g); ++emu_graphs; return 0;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return 0; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; --emu_graphs; return 0; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    if (emu::asked_to_fail("launch")) return emu::failed(cudaErrorMemoryAllocation);
    if (s->graph) return emu::illegal();                         // a graph within a graph: not modelled
    ++emu_calls[emu_device]; s->land(s->copies);
    for (auto& node : e->nodes) node();
    ++emu_replays; return 0;
}
inline cudaError_t cudaGetLastError() { int e = emu::last_error; emu::last_error = 0; return e; }
inline const char* cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory"
        : e >= 900                        ? "operation not permitted when stream is capturing"
        : e == emu::OTHER_DEVICE          ? "invalid resource handle"
        : e                               ? "invalid argument"
                                          : "no error";
}
inline cudaError_t cudaGetDeviceCount(int* n) {
    const char* e = getenv("EMU_DEVICES");
    *n = e ? atoi(e) : 2; return 0;
}
inline cudaError_t cudaGetDevice(int* d) { *d = emu_device; return 0; }
inline cudaError_t cudaSetDevice(int d) { emu_device = d; return 0; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    const char* e = getenv("EMU_SM");
    const int sm = e ? atoi(e) : 90;
    const char* shared = getenv("EMU_SHARED");
    *p = {"emulated", sm / 10, sm % 10,
          shared ? size_t(atoll(shared)) : size_t(sm == 80 ? 163 : sm < 90 ? 99 : 227) * 1024};
    return 0;
}
template <class F> inline cudaError_t cudaFuncSetAttribute(F f, int, int bytes) {
    emu::Lock lock(emu::one);
    ++emu_calls[emu_device]; emu::allow((const void*)f, (size_t)bytes);
    return 0;
}
// ---- cuBLASLt: what gemm_lt calls of it, as bad as the library may be ----------------------------------------------
// Its heuristic takes another algorithm, which sums in another order, for other numbers of rows; and one that splits k
// and adds the parts in the type of the result wherever that is not forbidden.
typedef int cublasStatus_t;
struct cublasLtContext { int device; }; typedef cublasLtContext* cublasLtHandle_t;
enum cudaDataType_t { CUDA_R_16BF = 14, CUDA_R_32F = 0 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_COMPUTE_32F = 68, CUBLASLT_REDUCTION_SCHEME_NONE = 0 };
enum { CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4 };
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};
struct EmuLtDesc { bool ta = false, tb = false; }; typedef EmuLtDesc* cublasLtMatmulDesc_t;
struct EmuLtLayout { cudaDataType_t type; int64_t rows, cols, ld; }; typedef EmuLtLayout* cublasLtMatrixLayout_t;
struct EmuLtWish { uint32_t schemes = 7; uint32_t aligned[4] = {1, 1, 1, 1}; };
typedef EmuLtWish* cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t { int64_t step, splits; };           // products added at a time; parts of k
struct cublasLtMatmulHeuristicResult_t { cublasLtMatmulAlgo_t algo; };
inline int cublasLtCreate(cublasLtHandle_t* h) {
    ++emu_calls[emu_device]; *h = new cublasLtContext{emu_device}; return 0;
}
inline int cublasLtDestroy(cublasLtHandle_t h) { delete h; return 0; }
template <class T> inline int cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, T, cudaDataType_t) {
    *d = new EmuLtDesc; return 0;
}
inline int cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { delete d; return 0; }
inline int cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int what, const void* x, size_t) {
    (what == CUBLASLT_MATMUL_DESC_TRANSA ? d->ta : d->tb) = *(const int*)x == CUBLAS_OP_T; return 0;
}
inline int cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType_t type, uint64_t rows, uint64_t cols,
                                      int64_t ld) {
    if (ld < (int64_t)rows) return 7;
    *l = new EmuLtLayout{type, (int64_t)rows, (int64_t)cols, ld}; return 0;
}
inline int cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { delete l; return 0; }
inline int cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) { *p = new EmuLtWish; return 0; }
inline int cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { delete p; return 0; }
inline int cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, int what, const void* x, size_t) {
    if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) p->schemes = *(const uint32_t*)x;
    if (what >= 5 && what <= 8) p->aligned[what - 5] = *(const uint32_t*)x;
    return 0;
}
inline int cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                          cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t c,
                                          cublasLtMatmulPreference_t p, int, cublasLtMatmulHeuristicResult_t* best,
                                          int* found) {
    const int64_t rows = d->tb ? (d->ta ? a->rows : a->cols) : c->cols; (void)b;
    ++emu_asked; *found = 1;
    best->algo = {rows <= 16 ? 4 : rows <= 128 ? 8 : rows <= 1024 ? 16 : 32, p->schemes & 5 ? 2 : 1};
    for (uint32_t x : p->aligned) if (x < 16) *found = 0;
    return 0;
}
inline int cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void* alpha, const void* a_,
                          cublasLtMatrixLayout_t a, const void* b_, cublasLtMatrixLayout_t b, const void* beta,
                          const void*, cublasLtMatrixLayout_t, void* c_, cublasLtMatrixLayout_t c,
                          const cublasLtMatmulAlgo_t* algo, void*, size_t, cudaStream_t st) {
    const EmuLtDesc op = *d; const EmuLtLayout la = *a, lb = *b, lc = *c; const cublasLtMatmulAlgo_t way = *algo;
    const float factor = *(const float*)alpha, keep = *(const float*)beta;
    const int64_t k = op.ta ? la.rows : la.cols;
    if ((((uintptr_t)a_ | (uintptr_t)b_ | (uintptr_t)c_) & 15) || h->device != emu_device ||
        k != (op.tb ? lb.cols : lb.rows) || way.step < 1 || getenv("EMU_LT_FAIL"))
        return 7;
    ++emu_lt_products;
    return emu::keep_or_run(st, [=]() {
        const uint16_t *pa = (const uint16_t*)a_, *pb = (const uint16_t*)b_;
        auto number = [](uint16_t u) { return __uint_as_float((uint32_t)u << 16); };
        for (int64_t j = 0; j < lc.cols; ++j) for (int64_t i = 0; i < lc.rows; ++i) {
            float sum = 0, half = 0;
            for (int64_t at = 0; at < k; at += way.step) {
                float part = 0;
                for (int64_t q = at; q < std::min(k, at + way.step); ++q)
                    part += number(pa[op.ta ? q + i * la.ld : i + q * la.ld]) *
                        number(pb[op.tb ? j + q * lb.ld : q + j * lb.ld]);
                (way.splits > 1 && at >= k / 2 ? half : sum) += part;
            }
            if (way.splits > 1) sum = (float)__nv_bfloat16(sum) + (float)__nv_bfloat16(half);
            sum *= factor;
            if (lc.type == CUDA_R_32F) {
                float* p = (float*)c_ + i + j * lc.ld; *p = keep != 0 ? *p * keep + sum : sum;
            } else {
                __nv_bfloat16* p = (__nv_bfloat16*)c_ + i + j * lc.ld;
                *p = __nv_bfloat16(keep != 0 ? (float)*p * keep + sum : sum);
            }
        }
    });
}
