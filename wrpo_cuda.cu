/* wrpo_cuda.cu - the CUDA backend of wrpo.h: every op of its table on one NVIDIA GPU (sm_80 and up). MIT licence.

   Build:  nvcc -O2 -arch=native -DWRPO_CUDA -Xcompiler -fopenmp example.c wrpo_cuda.cu -o wrpo -lcublasLt
           In a program of yours: compile this file too, and open a context with .backend = wrpo_backend_cuda().

   Activations and matrices are bf16, sums fp32; vectors (norm weights, biases), gradients and log-probs are fp32.
   This file's own kernels use no atomics. Each of their sums has one order, which the shapes fix, so results do not
   change from run to run. A row of their products, of attention and of norms depends on that row's inputs only, and in
   attention on whether it is alone in its segment, as in decoding: its sums over many keys are then split.
   Products by cuBLASLt are in NVIDIA's hands. What this file does for the same promises: it allows no algorithm that
   splits k, and takes one algorithm for all row counts above LT_FEW (and one for those up to it) of the same n, k and
   strides. Two passes over the same record, packed with other records, then multiply in the same order, so the first
   loss of WRPO is ln 2; NVIDIA does not promise that an algorithm keeps its order, and up to LT_FEW rows (decoding) the
   bits may be others than those of the same rows in a forward pass. Without WRPO_FEATURE_CUBLAS all of it is promised,
   except that a decoded row of 512 keys and more is summed in another order than in a forward pass (card of attention).
   The device is the one that is current when the context is opened. Each op makes it current and then restores what
   was, so a context may be used from any thread, one at a time.

   Options, defined for this file:
       WRPO_NO_CUBLAS            leaves cuBLASLt out: all products by the kernels below, nothing to link
       WRPO_NCCL                 ranks on several devices (wrpo_nccl_open); link -lnccl. With the program's over MPI:
                                 nvcc -ccbin mpicxx ... -DWRPO_CUDA -DWRPO_MPI -DWRPO_NCCL ... -lnccl
   At run time, by the features of a copy of the table: wrpo_backend be = *wrpo_backend_cuda(); be.features = ...;
       WRPO_FEATURE_CUBLAS       products by cuBLASLt, the default where it is linked; otherwise by mma.sync
       WRPO_FEATURE_WGMMA        products by wgmma and TMA, for compute capability 9.0 and code for sm_90a
                                 (nvcc ... -gencode=arch=compute_90a,code=sm_90a); off until it has run on a GPU
       WRPO_FEATURE_GRAPHS       repeated decoding steps are recorded and replayed (see graphs); on by default
   What cannot be done as asked is refused when the device is opened.

   The same text runs without a GPU: a C++ compiler takes the device from a header on its command line, as the tests
   do. Everything that needs inline PTX is in the first block, a line or two each, with a twin of the same name there.

   Each kernel has a card above it: what it computes (the op of wrpo.h's table that defines it), its threads, the bytes
   that it moves and what bounds it, the order of its sums, legal sizes. Not measured: no kernel has run on a GPU yet.
   All times in this file are predictions: bytes at 4.3 TB/s (what a device copy reaches on an H200), or FLOP at the
   rate that stands beside them.                                                                                  */
#ifdef __CUDACC__
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define WRPO_SHARED(T, name, n) __shared__ T name[n]
#define WRPO_DYN_SHARED(T, name) \
    extern __shared__ __align__(1024) unsigned char wrpo_dynamic_shared[]; \
    T *name = (T *)wrpo_dynamic_shared
#define WRPO_LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
namespace ptx {
__device__ __forceinline__ uint32_t shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) { /* d += a b */
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared(row))
                 : "memory");
}
__device__ __forceinline__ void cp_async16(void *to, const void *from,
                                           int bytes) { /* 16 bytes; those past `bytes` are zeros and not read */
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WRPO_SM90A 1
#else
#define WRPO_SM90A 0
#endif
typedef CUtensorMap tensor_map;
#if WRPO_SM90A
__device__ __forceinline__ void mbarrier_init(uint64_t *b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared(b)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared(b)) : "memory");
}
__device__ __forceinline__ void mbarrier_expect(uint64_t *b,
                                                int bytes) { /* an arrival, and the bytes that a phase waits for */
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(uint64_t *b, int parity) { /* until the phase of this parity is over */
    for (uint32_t over = 0; !over;)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over)
                     : "r"(shared(b)), "r"(parity)
                     : "memory");
}
__device__ __forceinline__ void tma_load(void *to, const tensor_map *m, uint64_t *b, int col,
                                         int row) { /* a box; its bytes count for b */
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
                 "%4}], [%2];" ::"r"(shared(to)),
                 "l"(m), "r"(shared(b)), "r"(col), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
#define WRPO_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define WRPO_128 WRPO_8(0), WRPO_8(8), WRPO_8(16), WRPO_8(24), WRPO_8(32), WRPO_8(40), WRPO_8(48), WRPO_8(56), \
                 WRPO_8(64), WRPO_8(72), WRPO_8(80), WRPO_8(88), WRPO_8(96), WRPO_8(104), WRPO_8(112), WRPO_8(120)
/* d += a b: 64 x 256 of a warpgroup, 16 along k; a and b by their descriptors. TA, TB: the operand is along m, n
 * instead of along k. */
template <int TA, int TB> __device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,"
                 "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%"
                 "46,%47,%48,%49,%50,%51,%52,%53,"
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%"
                 "79,%80,%81,%82,%83,%84,%85,%86,"
                 "%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%"
                 "109,%110,%111,%112,%113,%114,%115,"
                 "%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, %128, %129, 1, 1, 1, %130, %131;"
                 : WRPO_128
                 : "l"(a), "l"(b), "n"(TA), "n"(TB));
}
__device__ __forceinline__ void wgmma_results(float (&d)[128]) {
    asm volatile("" : WRPO_128 ::"memory");
} /* no use of d moves up from here */
template <int N> __device__ __forceinline__ void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
#endif
/* The driver's function that writes tensor maps, found at run time so that libcuda need not be linked; NULL where it
 * has none. */
inline void *tensor_map_encoder() {
    void *f = NULL;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? f : ((void)cudaGetLastError(), (void *)NULL);
}
/* A matrix of bf16 for TMA: boxes of box_rows x 64, swizzled by 128 bytes, zeros outside. False: TMA cannot take it. */
inline bool tensor_map_make(void *encoder, tensor_map *map, const void *p, int64_t ld, int64_t rows, int64_t cols,
                            unsigned box_rows) {
    const cuuint64_t size[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)ld * 2};
    const cuuint32_t box[2] = {64, box_rows}, step[2] = {1, 1};
    return ((decltype(&cuTensorMapEncodeTiled))encoder)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)p, size,
                                                        pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                                        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
}  // namespace ptx
#ifndef WRPO_NO_CUBLAS
#include <cublasLt.h>
#endif
#ifdef WRPO_NCCL
#include <nccl.h>
#include <time.h>
#endif
#else
#ifndef WRPO_CUDA_RUNTIME            /* set by a header that gives another compiler what is used of CUDA (-include) */
#error "wrpo_cuda.cu: compile this file with nvcc"
#endif
#endif
#include "wrpo.h"

namespace {
typedef __nv_bfloat16 bf16;
const unsigned ALL = 0xffffffffu;                      /* the lanes of a warp */
#define INLINE __device__ __forceinline__

/* ---- numbers ---- */
INLINE float value(bf16 x) { return __bfloat162float(x); }
INLINE void put(bf16 *p, float x) { *p = __float2bfloat16_rn(x); }
INLINE uint32_t pair(float low, float high) { /* two bf16, low in the low half */
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}
INLINE float2 unpair(uint32_t u) {
    return make_float2(__uint_as_float(u << 16), __uint_as_float(u & 0xffff0000u));
}
/* Element i of a weight, which is bf16 or float. */
INLINE float weight(const void *w, int64_t i, bool wide) {
    return wide ? ((const float *)w)[i] : value(((const bf16 *)w)[i]);
}

/* Rows are read and written in pieces of eight numbers: at once where `fast` says that they lie on 16 bytes, else one
   by one; `left` numbers exist, the others read as 0 and are not written. */
struct eight { float x[8]; };
INLINE eight load(const bf16 *p, int64_t left, bool fast) {
    eight v;
    if (fast && left >= 8) {
        const uint4 u = *(const uint4 *)p;
        const uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 4; i++) { const float2 f = unpair(w[i]); v.x[2 * i] = f.x, v.x[2 * i + 1] = f.y; }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) v.x[i] = i < left ? value(p[i]) : 0;
    }
    return v;
}
INLINE eight load(const float *p, int64_t left, bool fast) {
    eight v;
    if (fast && left >= 8) {
        const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
        v.x[0] = a.x, v.x[1] = a.y, v.x[2] = a.z, v.x[3] = a.w, v.x[4] = b.x, v.x[5] = b.y, v.x[6] = b.z, v.x[7] = b.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) v.x[i] = i < left ? p[i] : 0;
    }
    return v;
}
INLINE void store(bf16 *p, const eight &v, int64_t left, bool fast) {
    if (fast && left >= 8)
        *(uint4 *)p =
            make_uint4(pair(v.x[0], v.x[1]), pair(v.x[2], v.x[3]), pair(v.x[4], v.x[5]), pair(v.x[6], v.x[7]));
    else {
#pragma unroll
        for (int i = 0; i < 8; i++) if (i < left) put(p + i, v.x[i]);
    }
}
INLINE void store(float *p, const eight &v, int64_t left, bool fast) {
    if (fast && left >= 8) {
        ((float4 *)p)[0] = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
        ((float4 *)p)[1] = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) if (i < left) p[i] = v.x[i];
    }
}

/* ---- sums and maxima of a group: the blockDim.x threads of one threadIdx.y; if those are more than a warp, of the
 * block ---- */
INLINE float warp_sum(float x) {
#pragma unroll
    for (int i = 16; i; i >>= 1) x += __shfl_xor_sync(ALL, x, i);
    return x;
}
INLINE float warp_max(float x) {
#pragma unroll
    for (int i = 16; i; i >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL, x, i));
    return x;
}
__device__ float group_sum(float x) {                  /* lanes by a butterfly, then warps in order */
    WRPO_SHARED(float, part, 32);
    x = warp_sum(x);
    if (blockDim.x == 32) return x;
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) x += part[i];
    __syncthreads();
    return x;
}
__device__ float group_max(float x) {
    WRPO_SHARED(float, part, 32);
    x = warp_max(x);
    if (blockDim.x == 32) return x;
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) x = fmaxf(x, part[i]);
    __syncthreads();
    return x;
}
/* Threads of a block that works on one row of n numbers, eight a thread. */
int row_threads(int64_t n) {
    return (int)(n >= 2048 ? 256 : (n / 8 + 31) / 32 * 32 > 32 ? (n / 8 + 31) / 32 * 32 : 32);
}
bool on16(const void *p, int64_t ld, size_t size) { return (((uintptr_t)p | (uintptr_t)ld * size) & 15) == 0; }
int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- the device ---- */
enum { WORK_FLOATS = 1 << 22, GRAPHS_KEPT = 32, GRAPH_AFTER = 3 };
enum { LT_BYTES = 32 << 20, LT_KEPT = 256, LT_FEW = 16, LT_MANY = 4096 };
enum { SLOTS = 8, SLOT_BYTES = 1 << 20 };              /* of the ring of pinned memory that put and get go through */
struct stretch {
    int64_t key[4], used, plain;
    cudaGraphExec_t graph;
}; /* used: when, 0 = empty; plain: how often its ops were just called */
struct device {
    wrpo_allocator memory;
    wrpo_logger log;
    int index;                                         /* of the device, in CUDA's order */
    char name[64];
    size_t shared_most;                                /* bytes of shared memory that a block can have */
    cudaStream_t stream;
    bool wrong;                                        /* something failed since the last sync; why: */
    char why[256];
    char launched[48];                                 /* launched last */
    float *work;                                       /* WORK_FLOATS: parts of sums, valid within one op */
    char *ring;                                        /* [SLOTS][SLOT_BYTES] pinned */
    cudaEvent_t landed[SLOTS];                         /* what was last copied from or to a slot is there */
    int slot;
    void *encoder; /* of tensor maps; not NULL: products by wgmma where TMA takes the operands */
    int64_t products, fallbacks;                       /* meant for cuBLASLt or wgmma; of these by mma.sync */
    bool graphs, recording;
    int64_t clock;
    stretch stretches[GRAPHS_KEPT];
#ifndef WRPO_NO_CUBLAS
    cublasLtHandle_t lt;
    void *lt_work;
    struct lt_choice *choices;                         /* [LT_KEPT] */
    int n_choices;
#endif
};
void say(const device *dev, wrpo_level level, const char *text) {
    if (dev->log.fn) dev->log.fn(level, text, dev->log.user);
}
/* The first error since the last sync is kept, as a sentence. */
void note(device *dev, cudaError_t e, const char *what) {
    if (e == cudaSuccess || dev->wrong) return;
    dev->wrong = true;
    snprintf(dev->why, sizeof dev->why, "%s: %s", what, cudaGetErrorString(e));
}
/* The device of an op. It is current as long as this lives. */
struct entered {
    device *dev;
    int before = -1;                                   /* the one to restore */
    explicit entered(void *d) : dev((device *)d) {
        int now = dev->index;
        note(dev, cudaGetDevice(&now), "cudaGetDevice");
        if (now == dev->index) return;
        before = now;
        note(dev, cudaSetDevice(dev->index), "cudaSetDevice");
    }
    ~entered() { if (before >= 0) cudaSetDevice(before); }
    entered(const entered &) = delete;
    device *operator->() const { return dev; }
    operator device *() const { return dev; }
};
/* Writes down which kernel comes next. False: the device has not the shared memory for it. */
bool may_launch(device *dev, const char *kernel, int number, size_t shared) {
    if (number) snprintf(dev->launched, sizeof dev->launched, "%s<%d>", kernel, number);
    else snprintf(dev->launched, sizeof dev->launched, "%s", kernel);
    if (shared <= dev->shared_most) return true;
    if (!dev->wrong)
        snprintf(dev->why, sizeof dev->why, "%s: want %zu bytes of shared memory for a block, found %zu on %s",
                 dev->launched, shared, dev->shared_most, dev->name);
    dev->wrong = true;
    return false;
}
/* LAUNCH_AS: of a template; name and number (0: none) are what errors call it. */
#define LAUNCH_AS(name, number, kernel, grid, block, shared, ...) \
    do { \
        if (!may_launch(dev, name, number, shared)) break; \
        WRPO_LAUNCH(kernel, grid, block, shared, dev->stream, __VA_ARGS__); \
        note(dev, cudaGetLastError(), dev->launched); \
    } while (0)
#define LAUNCH(kernel, grid, block, shared, ...) LAUNCH_AS(#kernel, 0, kernel, grid, block, shared, __VA_ARGS__)

/* ---- embed, gather ----
   card    op: embed, gather. A block a row, eight numbers a thread. Bytes: the rows, read and written once;
   memory-bound (6144 x 4096 bf16: 23 us at 4.3 TB/s). No sums. Any n, D. */
__global__ void gather_kernel(bf16 *y, const void *w, bool wide, const int32_t *index, int64_t D, float scale,
                              bool fast) {
    const int64_t r = blockIdx.x, from = (int64_t)index[r] * D;
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8) {
        eight v = wide ? load((const float *)w + from + j, D - j, fast) : load((const bf16 *)w + from + j, D - j, fast);
#pragma unroll
        for (int i = 0; i < 8; i++) v.x[i] *= scale;
        store(y + r * D + j, v, D - j, fast);
    }
}
/* card    op: scatter. A block a row, eight numbers a thread; memory-bound (64 x 2048 bf16: no more than a launch). No
 * sums. Any sizes. */
__global__ void place_kernel(bf16 *y, int64_t ldy, const bf16 *x, int64_t ldx, const int32_t *index, int64_t D,
                             bool fast) {
    const int64_t r = blockIdx.x, to = index[r] * ldy;
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8)
        store(y + to + j, load(x + r * ldx + j, D - j, fast), D - j, fast);
}
/* card    ops: embed_bwd (T float), gather_bwd (T bf16):  to[index[r]] += scale scales[r] dy[r]; scales NULL: 1; rows
   of scale 0 are left out. A block of 128 threads for a row r and 1024 columns; it works if no row before r has the
   same index, and then adds all rows that have it: dy and `to` are moved once (23 us as above), the indices are read n
   times from the cache: 4 n^2 bytes for 1024 columns. Sum: in order of r, fp32, one rounding at the end. Any n, D. */
template <class T>
__global__ void scatter_kernel(T *to, const bf16 *dy, const int32_t *index, int64_t n, int64_t D, float scale,
                               const float *scales, bool fast) {
    WRPO_SHARED(unsigned, hits, 4);
    const int64_t r = blockIdx.x, j = blockIdx.y * 1024 + threadIdx.x * 8;
    const int32_t id = index[r];
    int earlier = 0;
    for (int64_t i = threadIdx.x; i < r; i += 128) earlier |= index[i] == id;
    if (__syncthreads_or(earlier)) return;
    eight sum = {};
    for (int64_t base = r; base < n; base += 128) {
        const unsigned mask = __ballot_sync(ALL, base + threadIdx.x < n && index[base + threadIdx.x] == id);
        if (threadIdx.x % 32 == 0) hits[threadIdx.x / 32] = mask;
        __syncthreads();
        for (int w = 0; w < 4; w++)
            for (unsigned left = hits[w]; left; left &= left - 1) {
                const int64_t row = base + w * 32 + __ffs((int)left) - 1;
                const float s = scales ? scales[row] : 1;
                if (j >= D || s == 0) continue;
                const eight v = load(dy + row * D + j, D - j, fast);
#pragma unroll
                for (int i = 0; i < 8; i++) sum.x[i] += s * v.x[i];
            }
        __syncthreads();
    }
    if (j >= D) return;
    eight v = load(to + id * D + j, D - j, fast);
#pragma unroll
    for (int i = 0; i < 8; i++) v.x[i] += scale * sum.x[i];
    store(to + id * D + j, v, D - j, fast);
}
void embed(void *d, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids, int64_t n, int64_t D, float scale) {
    entered dev(d);
    if (n <= 0) return;
    const bool wide = w_type == WRPO_DTYPE_F32, fast = on16(y, D, 2) && on16(w, D, wide ? 4 : 2);
    LAUNCH(gather_kernel, (unsigned)n, row_threads(D), 0, (bf16 *)y, w, wide, ids, D, scale, fast);
}
void gather(void *d, void *y, const void *x, const int32_t *index, int64_t n, int64_t D) {
    embed(d, y, x, WRPO_DTYPE_BF16, index, n, D, 1);
}
void embed_bwd(void *d, float *dw, const void *dy, const int32_t *ids, int64_t n, int64_t D, float scale) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH_AS("embed_bwd's scatter_kernel", 0, scatter_kernel<float>, dim3((unsigned)n, (unsigned)div_up(D, 1024)),
              128, 0, dw, (const bf16 *)dy, ids, n, D, scale, nullptr, on16(dw, D, 4) && on16(dy, D, 2));
}
void gather_bwd(void *d, void *dx, const void *dy, const float *scale, const int32_t *index, int64_t n, int64_t D) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH_AS("gather_bwd's scatter_kernel", 0, scatter_kernel<bf16>, dim3((unsigned)n, (unsigned)div_up(D, 1024)),
              128, 0, (bf16 *)dx, (const bf16 *)dy, index, n, D, 1.0f, scale, on16(dx, D, 2) && on16(dy, D, 2));
}
void scatter(void *d, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *index, int64_t n, int64_t D) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH(place_kernel, (unsigned)n, row_threads(D), 0, (bf16 *)y, ldy, (const bf16 *)x, ldx, index, D,
           on16(y, ldy, 2) && on16(x, ldx, 2));
}

/* ---- bias, add ----
   card    ops: bias, add. A block a row (add: a block per 2048 numbers), eight numbers a thread; memory-bound. No sums.
   Any sizes. */
template <typename Y, typename X>
INLINE void add_eight(Y *y, const X *x, int64_t left, bool fast) {        /* y += x */
    eight v = load(y, left, fast);
    const eight add = load(x, left, fast);
#pragma unroll
    for (int i = 0; i < 8; i++) v.x[i] += add.x[i];
    store(y, v, left, fast);
}
__global__ void bias_kernel(bf16 *y, int64_t ldy, const float *b, int64_t D, bool fast) {
    bf16 *row = y + blockIdx.x * ldy;
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8) add_eight(row + j, b + j, D - j, fast);
}
__global__ void add_kernel(bf16 *y, const bf16 *x, int64_t count, bool fast) {
    const int64_t j = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (j < count) add_eight(y + j, x + j, count - j, fast);
}
void bias(void *d, void *y, int64_t ldy, const float *b, int64_t n, int64_t D) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH(bias_kernel, (unsigned)n, row_threads(D), 0, (bf16 *)y, ldy, b, D, on16(y, ldy, 2) && on16(b, 0, 4));
}
void add(void *d, void *y, const void *x, int64_t count) {
    entered dev(d);
    if (count <= 0) return;
    LAUNCH(add_kernel, (unsigned)div_up(count, 2048), 256, 0, (bf16 *)y, (const bf16 *)x, count,
           on16(y, 0, 2) && on16(x, 0, 2));
}

/* ---- sum: gradients of lanes and ranks ----
   card    op: sum. A block per 2048 numbers, eight a thread; y and x in, y out: memory-bound (135M: 0.38 ms). One sum
   an element: no order. Any count. */
__global__ void sum_kernel(float *y, const float *x, int64_t count, bool fast) {
    const int64_t j = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (j < count) add_eight(y + j, x + j, count - j, fast);
}
void sum(void *d, float *y, const float *x, int64_t count) {
    entered dev(d);
    if (count <= 0) return;
    LAUNCH(sum_kernel, (unsigned)div_up(count, 2048), 256, 0, y, x, count, on16(y, 0, 4) && on16(x, 0, 4));
}

/* ---- dropout ----
   card    op: dropout. Grid (n, parts of a row). A thread takes the eight elements that share a block of random
   numbers, one by one, as a row may begin within a block. x in, y out; memory-bound without p, with p by Philox's ten
   rounds a block. No sums; the mask is the CPU's. Any sizes. */
INLINE uint4 philox(uint64_t seed, uint64_t stream, uint64_t counter) {    /* wrpo__random */
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint4 v = make_uint4((uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32));
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * v.x, b = (uint64_t)0xCD9E8D57u * v.z;
        v = make_uint4((uint32_t)(b >> 32) ^ v.y ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ v.w ^ k1, (uint32_t)a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return v;
}
__global__ void dropout_kernel(bf16 *y, int64_t ldy, const bf16 *x, int64_t ldx, int64_t D, wrpo_dropout d,
                               uint32_t bound, float kept) {
    const int64_t r = blockIdx.x, begin = (d.row + r) * D;
    const int64_t block = begin / 8 + (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (block * 8 >= begin + D) return;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (bound) v = philox(d.seed, d.stream, (uint64_t)block);
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const int64_t j = block * 8 + e - begin;
        const uint32_t draw = word[e / 2] >> e % 2 * 16 & 0xFFFF;
        if (j >= 0 && j < D) put(y + r * ldy + j, draw < bound ? 0.0f : kept * value(x[r * ldx + j]));
    }
}
void dropout(void *d, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t n, int64_t D, const wrpo_dropout *o) {
    entered dev(d);
    const uint32_t bound = (uint32_t)((double)o->p * 65536 + 0.5);
    if (n <= 0 || D <= 0) return;
    LAUNCH(dropout_kernel, dim3((unsigned)n, (unsigned)div_up(D / 8 + 2, 128)), 128, 0, (bf16 *)y, ldy, (const bf16 *)x,
           ldx, D, *o, bound, o->scale * 65536 / (float)(65536 - bound));
}

/* ---- sums down the columns: bias_bwd, colsum, the weight's part of rmsnorm_bwd ----
   card    out[j] (= or +=) sum_i a[i][j], or sum_i a[i][j] x[i][j] rstd[i]. `vectors` rows of D numbers, `heads` of
   them in each row of memory. A block of 256 columns by 8 rows takes `each` rows: thread (c, r) adds rows r, r + 8, ...
   of eight columns, then the 8 sums in order; a second kernel adds the blocks' sums in order. Both orders are fixed by
   the shapes. Bytes: a (and x) once; memory-bound (6144 x 4096: 12 us, 23 with x). Any sizes. */
struct columns {
    const void *a; bool wide; int64_t lda;
    const bf16 *x; int64_t ldx; const float *rstd;     /* x NULL: a alone */
    int64_t vectors; unsigned heads; int64_t D, each; bool fast;
};
__global__ void columns_kernel(float *part, columns c) {
    WRPO_SHARED(float, sums, 8 * 256);
    const int64_t j = (int64_t)blockIdx.x * 256 + threadIdx.x * 8, left = c.D - j;
    const int64_t first = blockIdx.y * c.each, end = min(c.vectors, first + c.each);
    eight sum = {};
    for (int64_t i = first + threadIdx.y; i < end && left > 0; i += 8) {
        const int64_t row = c.heads == 1 ? i : (int64_t)((uint32_t)i / c.heads), col = (i - row * c.heads) * c.D + j;
        const int64_t at_a = row * c.lda + col;
        const eight a = c.wide ? load((const float *)c.a + at_a, left, c.fast)
                               : load((const bf16 *)c.a + at_a, left, c.fast);
        if (!c.x) {
#pragma unroll
            for (int e = 0; e < 8; e++) sum.x[e] += a.x[e];
            continue;
        }
        const eight x = load(c.x + row * c.ldx + col, left, c.fast);
        const float scale = c.rstd[i];
#pragma unroll
        for (int e = 0; e < 8; e++) sum.x[e] += a.x[e] * scale * x.x[e];
    }
#pragma unroll
    for (int e = 0; e < 8; e++) sums[threadIdx.y * 256 + threadIdx.x * 8 + e] = sum.x[e];
    __syncthreads();
    const int mine = threadIdx.y * 32 + threadIdx.x;
    float all = sums[mine];
    for (int r = 1; r < 8; r++) all += sums[r * 256 + mine];
    if ((int64_t)blockIdx.x * 256 + mine < c.D) part[blockIdx.y * c.D + (int64_t)blockIdx.x * 256 + mine] = all;
}
__global__ void columns_end_kernel(float *out, const float *part, int64_t parts, int64_t D, float keep) {
    const int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= D) return;
    float sum = 0;
    for (int64_t p = 0; p < parts; p++) sum += part[p * D + j];
    out[j] = keep != 0 ? out[j] + sum : sum;
}
void sum_columns(device *dev, float *out, columns c, float keep) {
    const int64_t wide = div_up(c.D, 256);
    int64_t parts = div_up(1024, wide);                /* about a thousand blocks, of 64 rows at least */
    if (parts > WORK_FLOATS / c.D) parts = WORK_FLOATS / c.D;
    if (parts > div_up(c.vectors, 64)) parts = div_up(c.vectors, 64);
    if (parts < 1) parts = 1;
    c.each = div_up(c.vectors, parts);
    c.fast = on16(c.a, c.lda, c.wide ? 4 : 2) && on16(NULL, c.D, c.wide ? 4 : 2) &&
             (!c.x || (on16(c.x, c.ldx, 2) && on16(NULL, c.D, 2)));
    LAUNCH(columns_kernel, dim3((unsigned)wide, (unsigned)parts), dim3(32, 8), 0, dev->work, c);
    LAUNCH(columns_end_kernel, (unsigned)div_up(c.D, 128), 128, 0, out, dev->work, parts, c.D, keep);
}
void bias_bwd(void *d, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D) {
    sum_columns(entered(d), db, columns{dy, false, lddy, nullptr, 0, nullptr, n, 1, D, 0, false}, 1);
}
void colsum(void *d, float *out, const void *w, wrpo_dtype w_type, int64_t rows, int64_t cols) {
    const columns of_w = {w, w_type == WRPO_DTYPE_F32, cols, nullptr, 0, nullptr, rows, 1, cols, 0, false};
    sum_columns(entered(d), out, of_w, 0);
}

/* ---- rmsnorm ----
   card    op: rmsnorm. A warp a vector (D up to 1024, 8 warps a block) or a block of 256 threads a vector; eight
   numbers a thread and turn. Bytes: x twice (the second time from the cache), y once; memory-bound (6144 x 4096: 23
   us). Sum of squares: eight by eight within a thread, then the group's order. Any n, heads, D. */
__global__ void rmsnorm_kernel(bf16 *y, int64_t ldy, float *rstd, const bf16 *x, int64_t ldx, const float *w,
                               int64_t vectors, int64_t heads, int64_t D, float eps, float plus, bool fast) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (i >= vectors) return; /* whole groups leave: a block of more than one group has no barrier */
    x += i / heads * ldx + i % heads * D, y += i / heads * ldy + i % heads * D;
    float s = 0;
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8) {
        const eight v = load(x + j, D - j, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) s += v.x[e] * v.x[e];
    }
    s = 1 / sqrtf(group_sum(s) / (float)D + eps);
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8) {
        eight v = load(x + j, D - j, fast);
        const eight g = load(w + j, D - j, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) v.x[e] *= s * (g.x[e] + plus);
        store(y + j, v, D - j, fast);
    }
    if (threadIdx.x == 0) rstd[i] = s;
}
/* card    op: rmsnorm_bwd, dx. Threads and order as above; dy, x and dres in, dx out (47 us). With g = dy (w + plus), c
   = mean(g x) rstd^2: dx = dres + rstd (g - c x). A thread reads what it will overwrite, so dx may be dy or dres. dw:
   sum_columns, first. */
__global__ void rmsnorm_bwd_kernel(bf16 *dx, int64_t lddx, const bf16 *dy, int64_t lddy, const bf16 *dres,
                                   int64_t lddres, const bf16 *x, int64_t ldx, const float *w, const float *rstd,
                                   int64_t vectors, int64_t heads, int64_t D, float plus, bool fast) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, row = i / heads, col = i % heads * D;
    if (i >= vectors) return;
    dx += row * lddx + col, dy += row * lddy + col, x += row * ldx + col;
    float dot = 0;
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8) {
        const eight v = load(x + j, D - j, fast), g = load(w + j, D - j, fast), t = load(dy + j, D - j, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) dot += t.x[e] * (g.x[e] + plus) * v.x[e];
    }
    const float s = rstd[i], c = group_sum(dot) / (float)D * s * s;
    for (int64_t j = threadIdx.x * 8; j < D; j += blockDim.x * 8) {
        const eight v = load(x + j, D - j, fast), g = load(w + j, D - j, fast), t = load(dy + j, D - j, fast);
        eight out = {};
        if (dres) out = load(dres + row * lddres + col + j, D - j, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) out.x[e] += s * (t.x[e] * (g.x[e] + plus) - c * v.x[e]);
        store(dx + j, out, D - j, fast);
    }
}
dim3 norm_block(int64_t D) { return D <= 1024 ? dim3(32, 8) : dim3(256, 1); }
unsigned norm_grid(int64_t D, int64_t vectors) { return (unsigned)div_up(vectors, D <= 1024 ? 8 : 1); }
void rmsnorm(void *d, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx, const float *w, int64_t n,
             int64_t heads, int64_t D, float eps, float plus) {
    entered dev(d);
    if (n * heads <= 0) return;
    const bool fast = on16(x, ldx, 2) && on16(y, ldy, 2) && on16(w, D, 4) && on16(NULL, D, 2);
    LAUNCH(rmsnorm_kernel, norm_grid(D, n * heads), norm_block(D), 0, (bf16 *)y, ldy, rstd, (const bf16 *)x, ldx, w,
           n * heads, heads, D, eps, plus, fast);
}
void rmsnorm_bwd(void *d, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy, const void *dres,
                 int64_t lddres, const void *x, int64_t ldx, const float *w, const float *rstd, int64_t n,
                 int64_t heads, int64_t D, float plus) {
    entered dev(d);
    if (n * heads <= 0) return;
    const columns of_dw = {dy, false, lddy, (const bf16 *)x, ldx, rstd, n * heads, (unsigned)heads, D, 0, false};
    if (dw) sum_columns(dev, dw, of_dw, 1);
    const bool fast = on16(x, ldx, 2) && on16(dx, lddx, 2) && on16(dy, lddy, 2) && (!dres || on16(dres, lddres, 2)) &&
                      on16(w, D, 4) && on16(NULL, D, 2);
    LAUNCH(rmsnorm_bwd_kernel, norm_grid(D, n * heads), norm_block(D), 0, (bf16 *)dx, lddx, (const bf16 *)dy, lddy,
           (const bf16 *)dres, lddres, (const bf16 *)x, ldx, w, rstd, n * heads, heads, D, plus, fast);
}

/* ---- rope ----
   card    op: rope, in place. A block a row, eight pairs of numbers a thread and turn; x in and out, the row of
   the table once: memory-bound (6144 rows of 40 heads of 128: 29 us). No sums. Any even d. */
__global__ void rope_kernel(bf16 *x, int64_t ldx, const float *table, const int32_t *index, int heads, int d,
                            float sign, bool fast) {
    const int half = d / 2, pieces = (half + 7) / 8;
    const float *turn = table + (int64_t)index[blockIdx.x] * d;
    for (int i = threadIdx.x; i < heads * pieces; i += blockDim.x) {
        const int head = i / pieces, j = (i - head * pieces) * 8, left = half - j;
        bf16 *p = x + blockIdx.x * ldx + (int64_t)head * d + j;
        eight a = load(p, left, fast), b = load(p + half, left, fast);
        const eight low = load(turn + 2 * j, 2 * left, fast), high = load(turn + 2 * j + 8, 2 * left - 8, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float *cs = e < 4 ? low.x + 2 * e : high.x + 2 * e - 8;
            const float c = cs[0], s = sign * cs[1], x1 = a.x[e], x2 = b.x[e];
            a.x[e] = x1 * c - x2 * s, b.x[e] = x2 * c + x1 * s;
        }
        store(p, a, left, fast), store(p + half, b, left, fast);
    }
}
void rope(void *d, void *x, int64_t ldx, const float *table, const int32_t *index, int64_t n, int64_t heads,
          int64_t dim, float sign) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH(rope_kernel, (unsigned)n, row_threads(heads * dim / 2), 0, (bf16 *)x, ldx, table, index, (int)heads,
           (int)dim, sign, dim % 16 == 0 && on16(x, ldx, 2) && on16(table, dim, 4));
}

/* ---- glu ----
   card    ops: glu, glu_bwd. A block a row, eight numbers a thread and turn; gate and up in (and dh), h out (dgu, and h
   if wanted): memory-bound (6144 x 14336: 123 us, backward 205). No sums. Any I. */
INLINE float activation(float g, bool gelu, float *slope) {
    if (!gelu) {
        const float s = 1 / (1 + expf(-g));
        *slope = s * (1 + g * (1 - s));
        return g * s;
    }
    const float a = 0.7978845608f, b = 0.044715f, t = tanhf(a * (g + b * g * g * g)),
                u = 0.5f + 0.5f * t; /* a = sqrt(2 / pi) */
    *slope = u + 0.5f * g * (1 - t * t) * a * (1 + 3 * b * g * g);
    return g * u;
}
__global__ void glu_kernel(bf16 *h, const bf16 *gu, int64_t I, bool gelu, bool fast) {
    const bf16 *gate = gu + blockIdx.x * 2 * I, *up = gate + I;
    for (int64_t j = threadIdx.x * 8; j < I; j += blockDim.x * 8) {
        eight g = load(gate + j, I - j, fast);
        const eight u = load(up + j, I - j, fast);
        float slope;
#pragma unroll
        for (int e = 0; e < 8; e++) g.x[e] = activation(g.x[e], gelu, &slope) * u.x[e];
        store(h + blockIdx.x * I + j, g, I - j, fast);
    }
}
__global__ void glu_bwd_kernel(bf16 *dgu, bf16 *h, const bf16 *dh, const bf16 *gu, int64_t I, bool gelu, bool fast) {
    const int64_t at = blockIdx.x * 2 * I;
    for (int64_t j = threadIdx.x * 8; j < I; j += blockDim.x * 8) {
        eight g = load(gu + at + j, I - j, fast), u = load(gu + at + I + j, I - j, fast), v;
        const eight dy = load(dh + blockIdx.x * I + j, I - j, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float slope;
            const float act = activation(g.x[e], gelu, &slope);
            v.x[e] = act * u.x[e];
            g.x[e] = dy.x[e] * u.x[e] * slope;
            u.x[e] = dy.x[e] * act;
        }
        if (h) store(h + blockIdx.x * I + j, v, I - j, fast);
        store(dgu + at + j, g, I - j, fast), store(dgu + at + I + j, u, I - j, fast);
    }
}
void glu(void *d, void *h, const void *gu, int64_t n, int64_t I, bool gelu) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH(glu_kernel, (unsigned)n, row_threads(I), 0, (bf16 *)h, (const bf16 *)gu, I, gelu,
           on16(h, I, 2) && on16(gu, 0, 2));
}
void glu_bwd(void *d, void *dgu, void *h, const void *dh, const void *gu, int64_t n, int64_t I, bool gelu) {
    entered dev(d);
    if (n <= 0) return;
    const bool fast = on16(dgu, I, 2) && on16(h, 0, 2) && on16(dh, 0, 2) && on16(gu, 0, 2);
    LAUNCH(glu_bwd_kernel, (unsigned)n, row_threads(I), 0, (bf16 *)dgu, (bf16 *)h, (const bf16 *)dh, (const bf16 *)gu,
           I, gelu, fast);
}

/* ---- logprob ----
   card    op: logprob. A block of 256 threads a row, eight logits a thread and turn; every thread keeps a running
   maximum and a sum that is rescaled when the maximum grows, then the block's maximum and sum in the group's order.
   Logits once: memory-bound (1024 x 128256 floats: floor 122 us). Any V and ldl. */
INLINE float capped(float x, float softcap) {
    return softcap > 0 && x >= -3.4e38f ? softcap * tanhf(x / softcap) : x;
} /* -inf stays */
__global__ void logprob_kernel(float *logp, float *lse, const float *logits, int64_t ldl, const int32_t *label,
                               int64_t V, float softcap, bool fast) {
    const float *x = logits + blockIdx.x * ldl;
    float most = -INFINITY, sum = 0;
    for (int64_t j = threadIdx.x * 8; j < V; j += blockDim.x * 8) {
        eight v = load(x + j, V - j, fast);
        float top = most;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            v.x[e] = e < V - j ? capped(v.x[e], softcap) : -INFINITY;
            top = fmaxf(top, v.x[e]);
        }
        if (top == -INFINITY) continue;
        if (top > most) sum *= expf(most - top), most = top;
#pragma unroll
        for (int e = 0; e < 8; e++) sum += expf(v.x[e] - most);
    }
    const float top = group_max(most);
    sum = group_sum(most > -INFINITY ? sum * expf(most - top) : 0);
    if (threadIdx.x) return;
    lse[blockIdx.x] = top + logf(sum);
    logp[blockIdx.x] = capped(x[label[blockIdx.x]], softcap) - top - logf(sum);
}
/* card    op: logprob_bwd. A block of 256 threads a row, eight logits a thread and turn; logits once, dlogits once:
 * memory-bound (1024 x 128256: floor 183 us). No sums. Any V and ldl. */
__global__ void logprob_bwd_kernel(bf16 *dlogits, const float *logits, int64_t ldl, const int32_t *label,
                                   const float *lse, const float *dlogp, int64_t V, float softcap, bool fast) {
    const int64_t at = blockIdx.x * ldl, hit = label[blockIdx.x];
    const float top = lse[blockIdx.x], g = dlogp[blockIdx.x];
    for (int64_t j = threadIdx.x * 8; j < V; j += blockDim.x * 8) {
        eight v = load(logits + at + j, V - j, fast);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float x = capped(v.x[e], softcap), t = softcap > 0 ? fmaxf(x / softcap, -1.0f) : 0;
            v.x[e] = g * ((j + e == hit) - expf(x - top)) * (1 - t * t);
        }
        store(dlogits + at + j, v, V - j, fast);
    }
}
void logprob(void *d, float *logp, float *lse, const float *logits, int64_t ldl, const int32_t *label, int64_t n,
             int64_t V, float softcap) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH(logprob_kernel, (unsigned)n, 256, 0, logp, lse, logits, ldl, label, V, softcap, on16(logits, ldl, 4));
}
void logprob_bwd(void *d, void *dlogits, const float *logits, int64_t ldl, const int32_t *label, const float *lse,
                 const float *dlogp, int64_t n, int64_t V, float softcap) {
    entered dev(d);
    if (n <= 0) return;
    LAUNCH(logprob_bwd_kernel, (unsigned)n, 256, 0, (bf16 *)dlogits, logits, ldl, label, lse, dlogp, V, softcap,
           on16(logits, ldl, 4) && on16(dlogits, ldl, 2));
}

/* ---- tiles in shared memory ----
   A tile of ROWS rows is strips of 64 columns; a row of a strip is 128 bytes, eight chunks of eight numbers, and chunk
   c of row r is at offset c ^ r % 8, so that neither the copies nor ldmatrix meet in a bank. */
template <int ROWS> INLINE bf16 *at(bf16 *tile, int r, int c) {
    return tile + (c >> 3) * (ROWS * 64) + r * 64 + (((c & 7) ^ (r & 7)) << 3);
}
INLINE int clamp8(int64_t left) { return left >= 8 ? 8 : left > 0 ? (int)left : 0; }
/* Chunk from p[i], of which `left` numbers exist; the rest become 0. The slow one serves rows that are not on 16 bytes,
 * and floats. */
INLINE void chunk_fast(bf16 *to, const void *p, int64_t i, int left) {
    ptx::cp_async16(to, (const bf16 *)p + (left ? i : 0), 2 * left);
}
INLINE void chunk_slow(bf16 *to, const void *p, int64_t i, int left, bool wide) {
    uint32_t w[4];
#pragma unroll
    for (int e = 0; e < 4; e++)
        w[e] =
            pair(2 * e < left ? weight(p, i + 2 * e, wide) : 0, 2 * e + 1 < left ? weight(p, i + 2 * e + 1, wide) : 0);
    *(uint4 *)to = make_uint4(w[0], w[1], w[2], w[3]);
}

/* ---- gemm ----
   card    op: gemm. A block of 4 warps makes BM x BN of c, in steps of 64 along k through a ring of 3 stages of shared
   memory (cp.async); a warp makes 64 x 64 (BM 128) or 16 x 16 (BM 16, for few rows: decoding) with ldmatrix and
   mma.sync m16n8k16. Bytes: each block reads (BM + BN) k numbers; tiles are numbered in columns of 8 so that neighbours
   share them in L2. Compute-bound; mma.sync reaches about 60 % of the tensor peak on sm_90 and nearly all of it on
   sm_80. Sum: along k in order, 16 at a time, in fp32; the same for both BM, so for every m. Tails of m, n and k are
   predicated. Any sizes and strides. */
struct matrix {
    const void *p;
    int64_t ld, rows, cols;
    bool fast, wide;
}; /* fast: bf16 and every row on 16 bytes; wide: float */
template <int ROWS, int COLS>
INLINE void load_tile(bf16 *to, const matrix &x, int64_t row0, int64_t col0) {
    if (x.fast) {
#pragma unroll
        for (int u = 0; u < ROWS * COLS / 8 / 128; u++) {
            const int i = threadIdx.x + u * 128, r = i / (COLS / 8), c = i % (COLS / 8);
            const int64_t row = row0 + r, col = col0 + c * 8;
            chunk_fast(at<ROWS>(to, r, c), x.p, row * x.ld + col, row < x.rows ? clamp8(x.cols - col) : 0);
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * COLS / 8; i += 128) {
            const int r = i / (COLS / 8), c = i % (COLS / 8);
            const int64_t row = row0 + r, col = col0 + c * 8;
            chunk_slow(at<ROWS>(to, r, c), x.p, row * x.ld + col, row < x.rows ? clamp8(x.cols - col) : 0, x.wide);
        }
    }
}
/* Two numbers of a row, of which `left` exist. */
INLINE void store2(bf16 *p, float x, float y, int64_t left, bool add, bool fast) {
    if (left <= 0) return;
    if (fast && left >= 2) {
        if (add) { const float2 c = unpair(*(const uint32_t *)p); x += c.x, y += c.y; }
        *(uint32_t *)p = pair(x, y);
        return;
    }
    put(p, add ? value(p[0]) + x : x);
    if (left >= 2) put(p + 1, add ? value(p[1]) + y : y);
}
INLINE void store2(float *p, float x, float y, int64_t left, bool add, bool fast) {
    if (left <= 0) return;
    if (fast && left >= 2) {
        if (add) { const float2 c = *(const float2 *)p; x += c.x, y += c.y; }
        *(float2 *)p = make_float2(x, y);
        return;
    }
    p[0] = add ? p[0] + x : x;
    if (left >= 2) p[1] = add ? p[1] + y : y;
}
/* Where the block's tile of BM x BN begins: tiles are numbered in columns of 8. */
template <int BM, int BN> INLINE void gemm_tile(int64_t m, int64_t n, int64_t *m0, int64_t *n0) {
    const int64_t tiles_m = (m + BM - 1) / BM, tiles_n = (n + BN - 1) / BN, group = blockIdx.x / (8 * tiles_n) * 8,
                  in = blockIdx.x % (8 * tiles_n);
    const int64_t high = min((int64_t)8, tiles_m - group);
    *m0 = (group + in % high) * BM, *n0 = in / high * BN;
}
enum { GEMM_STAGES = 3 };
template <int BM> struct gemm_shape {
    enum { BN = BM == 128 ? 128 : 64, STAGE = (BM + BN) * 64, SHARED = GEMM_STAGES * STAGE * 2 };
};
template <int MM, int BM, class C>
__global__ void __launch_bounds__(128)
    gemm_kernel(C *c, int64_t ldc, matrix a, matrix b, int64_t m, int64_t n, int64_t k, bool add, bool fast) {
    enum {
        BN = gemm_shape<BM>::BN,
        STAGE = gemm_shape<BM>::STAGE,
        WM = BM == 128 ? 64 : 16,
        WN = BM == 128 ? 64 : 16,
        MI = WM / 16,
        NI = WN / 8,
        A_ALONG_M = MM == WRPO_MM_TN,
        B_ALONG_N = MM == WRPO_MM_NN || MM == WRPO_MM_TN
    }; /* else along k */
    WRPO_DYN_SHARED(bf16, stages);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = BM == 128 ? warp / 2 * 64 : 0,
              wn = BM == 128 ? warp % 2 * 64 : warp * 16;
    const int64_t steps = (k + 63) / 64;
    int64_t m0, n0;
    gemm_tile<BM, BN>(m, n, &m0, &n0);
    const bool live = m0 + wm < m && n0 + wn < n;      /* of a warp: whether any of its numbers exist */
    auto fetch = [&](int64_t s) {
        if (s < steps) {
            bf16 *to = stages + s % GEMM_STAGES * STAGE;
            if (A_ALONG_M) load_tile<64, BM>(to, a, s * 64, m0);
            else load_tile<BM, 64>(to, a, m0, s * 64);
            if (B_ALONG_N) load_tile<64, BN>(to + BM * 64, b, s * 64, n0);
            else load_tile<BN, 64>(to + BM * 64, b, n0, s * 64);
        }
        ptx::cp_async_commit();
    };
    float acc[MI][NI][4] = {};
#pragma unroll
    for (int s = 0; s < GEMM_STAGES - 1; s++) fetch(s);
    for (int64_t s = 0; s < steps; s++) {
        ptx::cp_async_wait<GEMM_STAGES - 2>();
        __syncthreads(); /* stage s is here, and everyone is done with the stage that is fetched next */
        fetch(s + GEMM_STAGES - 1);
        bf16 *ta = stages + s % GEMM_STAGES * STAGE, *tb = ta + BM * 64;
        if (!live) continue;
#pragma unroll
        for (int kk = 0; kk < 4; kk++) {
            if (s * 64 + kk * 16 >= k) break;
            uint32_t fa[MI][4], fb[NI / 2][4];
#pragma unroll
            for (int i = 0; i < MI; i++)
                if (A_ALONG_M)
                    ptx::ldmatrix_x4_trans(
                        fa[i], at<64>(ta, kk * 16 + lane / 16 * 8 + lane % 8, (wm + i * 16) / 8 + lane / 8 % 2));
                else ptx::ldmatrix_x4(fa[i], at<BM>(ta, wm + i * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < NI / 2; j++)
                if (B_ALONG_N)
                    ptx::ldmatrix_x4_trans(fb[j], at<64>(tb, kk * 16 + lane % 16, (wn + j * 16) / 8 + lane / 16));
                else ptx::ldmatrix_x4(fb[j], at<BN>(tb, wn + j * 16 + lane / 16 * 8 + lane % 8, kk * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++) {
                    const uint32_t f[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                    ptx::mma_m16n8k16(acc[i][j], fa[i], f);
                }
        }
    }
    ptx::cp_async_wait<0>();
    if (!live) return;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int64_t row = m0 + wm + i * 16 + h * 8 + lane / 4;
            if (row >= m) continue;
#pragma unroll
            for (int j = 0; j < NI; j++) {
                const int64_t col = n0 + wn + j * 8 + lane % 4 * 2;
                store2(c + row * ldc + col, acc[i][j][2 * h], acc[i][j][2 * h + 1], n - col, add, fast);
            }
        }
}
template <int MM, int BM, class C>
void gemm_own(device *dev, void *c, int64_t ldc, const matrix &a, const matrix &b, int64_t m, int64_t n, int64_t k,
              bool add) {
    auto kernel = gemm_kernel<MM, BM, C>;
    LAUNCH_AS("gemm_kernel", BM, kernel, (unsigned)(div_up(m, BM) * div_up(n, gemm_shape<BM>::BN)), 128,
              gemm_shape<BM>::SHARED, (C *)c, ldc, a, b, m, n, k, add,
              ((uintptr_t)c | (uintptr_t)ldc * sizeof(C)) % (2 * sizeof(C)) == 0);
}

/* ---- gemm by wgmma and TMA (sm_90a) ----
   card    op: gemm, for m > 16 and bf16 operands whose rows lie on 16 bytes. A block of 3 warpgroups makes 128 x 256 of
   c, in steps of 64 along k through a ring of 4 stages of 48 KiB: one thread of the third asks TMA for the boxes of a
   stage, as soon as its barrier `empty` says that the eight other warps are done with what was there; each of the first
   two, once `full` has counted the stage's bytes, makes 64 x 256 with wgmma m64n256k16, two steps in flight, and says
   `empty` for the step before. Operands along m or n (A of TN, B of NN and TN) come as strips of 64 numbers by 64 k,
   multiplied where they are, by descriptors of that major; nothing is transposed. What is outside of a matrix arrives
   as zeros; stores are predicated. Bytes: each block reads (128 + 256) k numbers. Compute-bound: floor at the dense
   peak (989 TFLOP/s on H100). Sum: along k in order, 16 at a time, in fp32, the same for every row whatever m is; but
   up to 16 rows go to the kernel above, whose bits within a step the hardware does not promise to be these. Any m, n, k
   otherwise, up to 2^31 - 257. The descriptors, tensor maps and barriers are
   those of the PTX manual and the driver's, modelled by the emulator; whether setmaxnreg is granted, the memory order
   of mbarriers and the width of the pipeline are what only the hardware shows. */
enum {
    WGMMA_M = 128,
    WGMMA_N = 256,
    WGMMA_STAGES = 4,
    WGMMA_STAGE = (WGMMA_M + WGMMA_N) * 64,
    WGMMA_SHARED = WGMMA_STAGES * (WGMMA_STAGE * 2 + 16),
    STRIP = 64 * 64,
    REGISTERS_LOAD = 40,
    REGISTERS_MULTIPLY = 232
};
static_assert((REGISTERS_LOAD + 2 * REGISTERS_MULTIPLY) * 128 <= 65536, "the registers of a multiprocessor");
template <int MM, class C>
__global__ void __launch_bounds__(384, 1)
    wgmma_kernel(C *c, int64_t ldc, const __grid_constant__ ptx::tensor_map a,
                 const __grid_constant__ ptx::tensor_map b, int64_t m, int64_t n, int64_t k, bool add, bool fast) {
#if WRPO_SM90A
    enum { A_ALONG_M = MM == WRPO_MM_TN, B_ALONG_N = MM == WRPO_MM_NN || MM == WRPO_MM_TN };
    WRPO_DYN_SHARED(bf16, stages);
    uint64_t *full = (uint64_t *)(stages + WGMMA_STAGES * WGMMA_STAGE), *empty = full + WGMMA_STAGES;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = (int)((k + 63) / 64);
    int64_t m0, n0;
    gemm_tile<WGMMA_M, WGMMA_N>(m, n, &m0, &n0);
    if (threadIdx.x == 0) {
        for (int q = 0; q < WGMMA_STAGES; q++) ptx::mbarrier_init(full + q, 1), ptx::mbarrier_init(empty + q, 8);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    if (group == 2) {
        ptx::registers_down<REGISTERS_LOAD>();
        if (threadIdx.x != 256) return;
        for (int s = 0; s < steps; s++) {
            const int q = s % WGMMA_STAGES;
            bf16 *ta = stages + q * WGMMA_STAGE, *tb = ta + WGMMA_M * 64;
            ptx::mbarrier_wait(empty + q, s / WGMMA_STAGES % 2 ^ 1);                    /* at first it counts as over */
            ptx::mbarrier_expect(full + q, WGMMA_STAGE * 2);
            if (!A_ALONG_M) ptx::tma_load(ta, &a, full + q, s * 64, (int)m0);
            else
                for (int i = 0; i < WGMMA_M / 64; i++)
                    ptx::tma_load(ta + i * STRIP, &a, full + q, (int)m0 + i * 64, s * 64);
            if (!B_ALONG_N) ptx::tma_load(tb, &b, full + q, s * 64, (int)n0);
            else
                for (int i = 0; i < WGMMA_N / 64; i++)
                    ptx::tma_load(tb + i * STRIP, &b, full + q, (int)n0 + i * 64, s * 64);
        }
        return;
    }
    ptx::registers_up<REGISTERS_MULTIPLY>();
    /* Where wgmma finds an operand, in units of 16 bytes: its start; 8 KiB to the next 64 numbers if it is along m or
       n; 1 KiB to the next 8 rows of 128 bytes, which are rows of m or n if it is along k and else of k; bit 62:
       swizzled by 128 bytes. 16 further along k are 32 bytes, or 16 rows. */
    auto operand = [](const bf16 *p) {
        return (uint64_t)(ptx::shared(p) >> 4 & 0x3fff) | (uint64_t)(STRIP * 2 >> 4) << 16 |
               (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
    };
    float acc[128] = {};
    for (int s = 0; s < steps; s++) {
        const int q = s % WGMMA_STAGES;
        ptx::mbarrier_wait(full + q, s / WGMMA_STAGES % 2);
        const uint64_t da = operand(stages + q * WGMMA_STAGE + group * STRIP),
                       db = operand(stages + q * WGMMA_STAGE + WGMMA_M * 64);
        ptx::wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < 4; kk++)
            ptx::wgmma<A_ALONG_M, B_ALONG_N>(acc, da + kk * (A_ALONG_M ? 128 : 2), db + kk * (B_ALONG_N ? 128 : 2));
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();                          /* the step before is done */
        if (s > 0 && lane == 0) ptx::mbarrier_arrive(empty + (s - 1) % WGMMA_STAGES);
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_results(acc);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int64_t row = m0 + warp * 16 + h * 8 + lane / 4;
        if (row >= m) continue;
#pragma unroll
        for (int j = 0; j < WGMMA_N / 8; j++) {
            const int64_t col = n0 + j * 8 + lane % 4 * 2;
            store2(c + row * ldc + col, acc[j * 4 + h * 2], acc[j * 4 + h * 2 + 1], n - col, add, fast);
        }
    }
#endif
}
__global__ void sm90a_kernel(int *there) {
    *there = WRPO_SM90A;
} /* card: one thread says whether the kernel above is in what runs. */
template <int MM, class C>
bool gemm_wgmma(device *dev, void *c, int64_t ldc, const matrix &a, const matrix &b, int64_t m, int64_t n, int64_t k,
                bool add) {
    auto kernel = wgmma_kernel<MM, C>;
    ptx::tensor_map ma, mb;
    if (!ptx::tensor_map_make(dev->encoder, &ma, a.p, a.ld, a.rows, a.cols, MM == WRPO_MM_TN ? 64 : WGMMA_M) ||
        !ptx::tensor_map_make(dev->encoder, &mb, b.p, b.ld, b.rows, b.cols,
                              MM == WRPO_MM_NT || MM == WRPO_MM_NT_FLOAT ? WGMMA_N : 64))
        return false;
    LAUNCH_AS("wgmma_kernel", WGMMA_M, kernel, (unsigned)(div_up(m, WGMMA_M) * div_up(n, WGMMA_N)), 384, WGMMA_SHARED,
              (C *)c, ldc, ma, mb, m, n, k, add, ((uintptr_t)c | (uintptr_t)ldc * sizeof(C)) % (2 * sizeof(C)) == 0);
    return true;
}

#ifndef WRPO_NO_CUBLAS
/* cuBLASLt thinks in columns: c' = b' a' with the same memory. Its heuristic is asked once for each kind of product.
   The number of rows (m; k of TN) is not part of the kind: all above LT_FEW have the algorithm for LT_MANY. */
struct lt_kind { int64_t mm, n, k, lda, ldb, ldc, few; };
struct lt_choice { lt_kind kind; cublasLtMatmulAlgo_t algo; };
struct lt_call {                                       /* the descriptors of a product */
    cublasLtMatmulDesc_t op = NULL;
    cublasLtMatrixLayout_t a = NULL, b = NULL, c = NULL;
    bool ok;
    lt_call(const lt_kind &x, int64_t rows) {
        const bool at = x.mm == WRPO_MM_TN, bt = x.mm == WRPO_MM_NT || x.mm == WRPO_MM_NT_FLOAT;
        const int64_t m = at ? x.k : rows, n = x.n, k = at ? rows : x.k;
        const cudaDataType_t to = x.mm == WRPO_MM_NT || x.mm == WRPO_MM_NN ? CUDA_R_16BF : CUDA_R_32F;
        const cublasOperation_t flip = CUBLAS_OP_T;
        auto layout = [](cublasLtMatrixLayout_t *l, cudaDataType_t type, int64_t down, int64_t across, int64_t ld) {
            return !cublasLtMatrixLayoutCreate(l, type, (uint64_t)down, (uint64_t)across, ld);
        };
        ok = !cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F) &&
             layout(&b, CUDA_R_16BF, bt ? k : n, bt ? n : k, x.ldb) &&
             layout(&a, CUDA_R_16BF, at ? m : k, at ? k : m, x.lda) && layout(&c, to, n, m, x.ldc);
        if (ok && bt) ok = !cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &flip, sizeof flip);
        if (ok && at) ok = !cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &flip, sizeof flip);
    }
    ~lt_call() {
        if (c) cublasLtMatrixLayoutDestroy(c);
        if (b) cublasLtMatrixLayoutDestroy(b);
        if (a) cublasLtMatrixLayoutDestroy(a);
        if (op) cublasLtMatmulDescDestroy(op);
    }
    lt_call(const lt_call &) = delete;
};
bool lt_ask(device *dev, const lt_kind &kind, cublasLtMatmulAlgo_t *algo) {
    const lt_call call(kind, kind.few ? LT_FEW : LT_MANY);
    const size_t bytes = LT_BYTES;
    const uint32_t aligned = 16, no_split = CUBLASLT_REDUCTION_SCHEME_NONE;    /* parts of k may be added in bf16 */
    const cublasLtMatmulPreferenceAttributes_t ends[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t want = NULL;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    bool ok = call.ok && !cublasLtMatmulPreferenceCreate(&want) &&
              !cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                    sizeof bytes) &&
              !cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_split,
                                                    sizeof no_split);
    for (int i = 0; i < 4 && ok; i++)
        ok = !cublasLtMatmulPreferenceSetAttribute(want, ends[i], &aligned, sizeof aligned);
    ok = ok && !cublasLtMatmulAlgoGetHeuristic(dev->lt, call.op, call.b, call.a, call.c, call.c, want, 1, &best,
                                               &found) && found > 0;
    if (ok) *algo = best.algo;
    if (want) cublasLtMatmulPreferenceDestroy(want);
    return ok;
}
bool gemm_lt(device *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b, int64_t ldb,
             int64_t m, int64_t n, int64_t k, bool add) {
    const int64_t rows = mm == WRPO_MM_TN ? k : m;
    const lt_kind kind = {mm, n, mm == WRPO_MM_TN ? m : k, lda, ldb, ldc, rows <= LT_FEW};
    const float one = 1, beta = add ? 1 : 0;
    int i = 0;
    while (i < dev->n_choices && memcmp(&dev->choices[i].kind, &kind, sizeof kind) != 0) i++;
    if (i == dev->n_choices) {
        if (i == LT_KEPT) i = dev->n_choices = 0;      /* full: begins again, with the same answers */
        if (!lt_ask(dev, kind, &dev->choices[i].algo)) return false;
        dev->choices[i].kind = kind, dev->n_choices++;
    }
    const lt_call call(kind, rows);
    return call.ok && !cublasLtMatmul(dev->lt, call.op, &one, b, call.b, a, call.a, &beta, c, call.c, c, call.c,
                                      &dev->choices[i].algo, dev->lt_work, LT_BYTES, dev->stream);
}
#endif
/* A product that was meant for cuBLASLt or wgmma and is made by mma.sync: counted; the first is said in the log. */
void fall_back(device *dev, wrpo_mm mm, int64_t m, int64_t n, int64_t k, const char *why) {
    static const char *const names[] = {"NT", "NT_FLOAT", "NN", "TN"};
    char text[256];
    if (dev->fallbacks++) return;
    snprintf(text, sizeof text, "cuda: product %s %lld x %lld x %lld: by mma.sync, not %s: %s (said once)", names[mm],
             (long long)m, (long long)n, (long long)k, dev->encoder ? "wgmma" : "cuBLASLt", why);
    say(dev, WRPO_LOG_WARN, text);
}
/* One contract, three ways: cuBLASLt or wgmma, as the device was opened, where the operands are bf16 on 16 bytes, the
 * kernel of mma.sync for everything. */
void gemm(void *d, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b, int64_t ldb,
          wrpo_dtype b_type, int64_t m, int64_t n, int64_t k, float beta) {
    entered dev(d);
    if (m <= 0 || n <= 0) return;
    const bool at = mm == WRPO_MM_TN, bt = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT, add = beta != 0,
               wide = !at && b_type == WRPO_DTYPE_F32;
    const matrix ma = {a, lda, at ? k : m, at ? m : k, on16(a, lda, 2), false},
                 mb = {b, ldb, bt ? n : k, bt ? k : n, !wide && on16(b, ldb, 2), wide};
    const bool fast = ma.fast && mb.fast && k > 0;     /* float weights are for mma.sync, whatever is linked */
#ifndef WRPO_NO_CUBLAS
    if (dev->lt && k > 0 && !wide) {
        const bool all = fast && on16(c, ldc, mm == WRPO_MM_NT || mm == WRPO_MM_NN ? 2 : 4);
        dev->products++;
        if (all && gemm_lt(dev, mm, c, ldc, a, lda, b, ldb, m, n, k, add)) return;
        fall_back(dev, mm, m, n, k, all ? "it refuses this shape" : "an operand is not on 16 bytes");
    }
#endif
    if (dev->encoder && m > 16 && k > 0 && !wide) {
        const bool small = max(max(m, n), k) <= INT32_MAX - WGMMA_N;
        dev->products++;
        if (fast && small &&
            (mm == WRPO_MM_NT   ? gemm_wgmma<WRPO_MM_NT, bf16>(dev, c, ldc, ma, mb, m, n, k, add)
             : mm == WRPO_MM_NN ? gemm_wgmma<WRPO_MM_NN, bf16>(dev, c, ldc, ma, mb, m, n, k, add)
             : mm == WRPO_MM_TN ? gemm_wgmma<WRPO_MM_TN, float>(dev, c, ldc, ma, mb, m, n, k, add)
                                : gemm_wgmma<WRPO_MM_NT, float>(dev, c, ldc, ma, mb, m, n, k, add)))
            return;
        fall_back(dev, mm, m, n, k, "TMA cannot take an operand");
    }
    switch (mm) {
    case WRPO_MM_NT:
        m <= 16 ? gemm_own<WRPO_MM_NT, 16, bf16>(dev, c, ldc, ma, mb, m, n, k, add)
                : gemm_own<WRPO_MM_NT, 128, bf16>(dev, c, ldc, ma, mb, m, n, k, add);
        break;
    case WRPO_MM_NT_FLOAT:
        m <= 16 ? gemm_own<WRPO_MM_NT, 16, float>(dev, c, ldc, ma, mb, m, n, k, add)
                : gemm_own<WRPO_MM_NT, 128, float>(dev, c, ldc, ma, mb, m, n, k, add);
        break;
    case WRPO_MM_NN:
        m <= 16 ? gemm_own<WRPO_MM_NN, 16, bf16>(dev, c, ldc, ma, mb, m, n, k, add)
                : gemm_own<WRPO_MM_NN, 128, bf16>(dev, c, ldc, ma, mb, m, n, k, add);
        break;
    case WRPO_MM_TN: gemm_own<WRPO_MM_TN, 128, float>(dev, c, ldc, ma, mb, m, n, k, add); break;
    }
}

/* ---- attention ----
   As on the CPU (see >>cpu in wrpo.h), the query heads that share a key/value head are lanes of one tile: lane i of a
   segment is row i / share, head i % share of its group. A tile has 64 lanes (or keys) by HD numbers, head_dim padded
   to HD with zeros; a warp owns 16 of its rows. A query sees all keys of the prefix, and its own up to its position;
   key tiles are cut from the start of each, and tiles that no lane of a block sees (causality, window) are not visited.
   Scores live in registers only; softmax as in Dao et al. 2023, with maximum and sum per row in fp32: p = 2^(s c - m),
   c = scale log2(e), or softcap log2(e) on tanh(s scale / softcap). p and ds are rounded to bf16 for the products.
   All kernels take any even d up to 256 (HD 32, 64, 96, 128, 256), any H / G, window, softcap. */
const float LOG2E = 1.44269504f;
struct attn : wrpo_attn {                              /* a call */
    const bf16 *q, *k, *v, *d_o;
    const float *lse, *delta;
    float *parts;                                      /* sums of blocks that share a tile's work */
    bool fast, pairs;                                  /* operands: rows on 16 bytes; results: on 4 bytes */
};
struct job { wrpo_seg seg; int64_t index; int first, count; };    /* units [first, first + count) of segment `index` */
/* Number i of the tiles of 64 units through all segments, `share` units a row, counted from the end. By each warp for
   itself. */
__device__ bool find_job(const attn &a, int64_t share, int64_t i, job *j) {
    const int lane = threadIdx.x % 32;
    for (int64_t base = a.n_segs - 1; base >= 0; base -= 32) {
        const int64_t rows = base >= lane ? a.segs[base - lane].end - a.segs[base - lane].begin : 0;
        int through = (int)((rows * share + 63) / 64);
#pragma unroll
        for (int w = 1; w < 32; w *= 2) {
            const int before = __shfl_up_sync(ALL, through, w);
            if (lane >= w) through += before;
        }
        const unsigned found = __ballot_sync(ALL, i < through);
        if (found) {
            const int who = __ffs((int)found) - 1;
            j->index = base - who, j->seg = a.segs[base - who];
            j->first = (int)(__shfl_sync(ALL, through, who) - 1 - i) * 64;
            j->count = (int)min((int64_t)64, (j->seg.end - j->seg.begin) * share - j->first);
            return true;
        }
        i -= __shfl_sync(ALL, through, 31);
    }
    return false;
}
struct lanes {                                         /* [first, first + count) of a segment and key/value head */
    int64_t begin;
    int head0, share, first, count, position0;
    __device__ lanes(const attn &a, const wrpo_seg &s, int g, int first_, int count_)
        : begin(s.begin), head0(g * (int)(a.H / a.G)), share((int)(a.H / a.G)), first(first_), count(count_),
          position0((int)(s.prefix_end - s.prefix + (s.own_end - s.own) - (s.end - s.begin))) {}
    INLINE int position(int i) const { return position0 + (first + i) / share; }
    /* of its row and head in [rows, ld], a head every d numbers */
    INLINE int64_t place(int i, int64_t ld, int64_t d) const {
        const int row = (first + i) / share;
        return (begin + row) * ld + (head0 + first + i - row * share) * d;
    }
};
/* The keys [from, to) of a tile that a query sees, given those that exist; position: of the tile's first. */
struct span { int from, to; };
INLINE span keys_seen(int query, int position, int from, int to, int64_t window) {
    const int before = query - position + 1, most = window > 0 ? (int)min(window, (int64_t)1 << 30) : 1 << 30;
    return span{max(from, before - most), min(to, before)};
}
/* The key tiles that positions [low, high] see: n of them, first those of the prefix. */
struct key_tile { int64_t row; int position, count; };
struct key_tiles {
    int64_t prefix, own;
    int shared, owned, p0, np, o0, n;
    __device__ key_tiles(const attn &a, const wrpo_seg &s, int low, int high)
        : prefix(s.prefix), own(s.own), shared((int)(s.prefix_end - s.prefix)), owned((int)(s.own_end - s.own)) {
        const int first = a.window > 0 && low >= a.window ? (int)(low - a.window + 1) : 0;      /* that anyone sees */
        p0 = first / 64, np = first < shared ? (shared + 63) / 64 - p0 : 0;
        o0 = first > shared ? (first - shared) / 64 : 0, n = np + (high - shared) / 64 + 1 - o0;
    }
    INLINE key_tile operator[](int t) const {
        const bool of_own = t >= np;
        const int from = (of_own ? o0 + t - np : p0 + t) * 64;
        return key_tile{(of_own ? own : prefix) + from, (of_own ? shared : 0) + from,
                        min(64, (of_own ? owned : shared) - from)};
    }
};
/* A tile in shared memory, for a block of THREADS threads. */
template <int HD, int THREADS> struct tile {
    enum { STRIPS = (HD + 63) / 64, NUMBERS = STRIPS * 4096, CHUNKS = HD / 8, AT_ONCE = THREADS / 8 };
    bf16 *p;
    __device__ tile(bf16 *memory, int number) : p(memory + number * NUMBERS) {}
    /* Row r begins at x + place(r); rows from `count` on and columns from d on become 0. Eight threads copy a row. What
       they copy is the same distance apart in every row, so they find it once. */
    template <class F> INLINE void load(const attn &a, const bf16 *x, int count, F place) const {
        const int first = threadIdx.x / 8, sub = threadIdx.x % 8, d = (int)a.d;
        if (!a.fast) {
#pragma unroll 1
            for (int i = threadIdx.x; i < 64 * CHUNKS; i += THREADS) {
                const int r = i / CHUNKS, c = i % CHUNKS, left = r < count ? clamp8(d - c * 8) : 0;
                chunk_slow(at<64>(p, r, c), x, place(min(r, count - 1)) + c * 8, left, false);
            }
            return;
        }
        bf16 *to = at<64>(p, first, sub);
#pragma unroll
        for (int u = 0; u < 64 / AT_ONCE; u++) {
            const int r = first + u * AT_ONCE;
            const bf16 *from = x + place(min(r, count - 1)) + sub * 8;
#pragma unroll
            for (int s = 0; s < STRIPS; s++)
                if (s * 8 + sub < CHUNKS || HD % 64 == 0)
                    ptx::cp_async16(to + u * AT_ONCE * 64 + s * 4096, from + s * 64,
                                    r < count && s * 64 + sub * 8 < d ? 16 : 0);
        }
    }
    INLINE void load_lanes(const attn &a, const bf16 *x, int64_t ld, const lanes &l) const {
        load(a, x, l.count, [&](int r) { return l.place(r, ld, a.d); });
    }
    INLINE void load_keys(const attn &a, const bf16 *x, int64_t row, int g, int count) const {
        load(a, x + row * a.ldkv + g * a.d, count, [&](int r) { return r * a.ldkv; });
    }
};
/* s[16, 8 NB] = rows row.. of a times rows row_b.. of b, along HD */
template <int HD, int NB> INLINE void mma_abt(float (&s)[NB][4], bf16 *a, int row, bf16 *b, int row_b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < NB; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        uint32_t fa[4];
        ptx::ldmatrix_x4(fa, at<64>(a, row + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int j = 0; j < NB / 2; j++) {
            uint32_t f[4];
            ptx::ldmatrix_x4(f, at<64>(b, row_b + j * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            const uint32_t f0[2] = {f[0], f[1]}, f1[2] = {f[2], f[3]};
            ptx::mma_m16n8k16(s[2 * j], fa, f0), ptx::mma_m16n8k16(s[2 * j + 1], fa, f1);
        }
    }
}
/* o[16, 8 NO] += p[16, 8 NB] times rows row_b.. of b, its columns from chunk0 * 8 on */
template <int NB, int NO>
INLINE void mma_pb(float (&o)[NO][4], const float (&p)[NB][4], bf16 *b, int row_b, int chunk0) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < NB / 2; k++) {                 /* a product's registers are turned into an operand */
        const uint32_t f[4] = {pair(p[2 * k][0], p[2 * k][1]), pair(p[2 * k][2], p[2 * k][3]),
                               pair(p[2 * k + 1][0], p[2 * k + 1][1]), pair(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < NO / 2; j++) {
            uint32_t t[4];
            ptx::ldmatrix_x4_trans(t, at<64>(b, row_b + k * 16 + lane % 16, chunk0 + j * 2 + lane / 16));
            const uint32_t t0[2] = {t[0], t[1]}, t1[2] = {t[2], t[3]};
            ptx::mma_m16n8k16(o[2 * j], f, t0), ptx::mma_m16n8k16(o[2 * j + 1], f, t1);
        }
    }
}
/* f(h, column, elements) for what a thread has of a warp's products [16, 8 N]: of the two rows lane / 4 + 8 h */
template <int N, class F, class... S> INLINE void each(F f, S &...s) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) f(e / 2, n * 8 + (int)threadIdx.x % 4 * 2 + e % 2, s[n][e]...);
}
/* A warp's rows of a product, times f0 and f1 (its two rows per thread), to memory: row i to x + place(i). */
template <int NO, class T, class F>
INLINE void store_rows(T *x, const float (&o)[NO][4], int row, int count, int64_t d, float f0, float f1, bool fast,
                       F place) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = row + h * 8 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
        const float f = h ? f1 : f0;
        if (i >= count) continue;
        T *p = x + place(i) + col;
#pragma unroll
        for (int j = 0; j < NO; j++)
            store2(p + j * 8, o[j][2 * h] * f, o[j][2 * h + 1] * f, d - col - j * 8, false, fast);
    }
}
/* Of scores, before exp2, and of the slope: see above. */
struct factors {
    float c, inner, softcap;
    __device__ explicit factors(const attn &a)
        : c((a.softcap > 0 ? a.softcap : a.scale) * LOG2E), inner(a.scale / a.softcap), softcap(a.softcap) {}
    /* s capped, and dp so that dp - delta has the cap's slope as a factor; then p = 2^(s c - lse log2(e)) and ds */
    INLINE void cap(float &s, float &dp, float delta) const {
        s = tanhf(s * inner), dp = (dp - delta) * (1 - s * s) + delta;
    }
    INLINE void weigh(float &s, float &dp, bool visible, float lse2, float delta) const {
        s = visible ? exp2f(s * c - lse2) : 0, dp = s * (dp - delta);
    }
};
/* BLOCKS of the forward pass on a multiprocessor. Of the backward pass: two tiles stay, two come STAGES deep, so that
   the next are on their way; COLS columns of dk and dv a warp; at most PARTS blocks share a tile of keys, if there are
   PART tiles of lanes for each. */
template <int HD> struct attn_shape {
    enum { BLOCKS = HD == 256 ? 2 : HD == 32 ? 4 : 3 };
    enum { STAGES = HD == 256 ? 1 : 2, COLS = HD == 256 ? 128 : HD, THREADS = 128 * HD / COLS };
    enum { SHARED = 3 * tile<HD, 128>::NUMBERS * 2, SHARED_BWD = (2 + 2 * STAGES) * tile<HD, 128>::NUMBERS * 2 };
};
enum { PARTS = 4, PART = 64, SPLITS = 16, SPLIT = 4, SPLIT_BLOCKS = 1024 };
INLINE int splits_of(const attn &a, const wrpo_seg &s, int tiles) {
    const bool decoded = s.end - s.begin == 1 && s.prefix_end > s.prefix && a.H <= 64 * a.G;
    return decoded ? max(1, min((int)SPLITS, tiles / SPLIT)) : 1;
}
INLINE float *split_at(const attn &a, int64_t segment, int split, int64_t head) {
    return a.parts + ((segment * SPLITS + split) * a.H + head) * (a.d + 2);            /* o, then maximum and sum */
}
/* card    op: attention. A block of 4 warps for 64 lanes of a segment and a key/value head; K and V tiles alternate
   through cp.async, one on its way while the other is used. Compute-bound: 4 d FLOP per lane and visible key (8B, 3
   times 2048 rows: 0.34 ms at 300 TFLOP/s); q, o once, k and v once per tile. Sum: keys in tiles of 64 in order, prefix
   first. Registers leave room for 12 warps (HD 32: 16, HD 256: 8) of a multiprocessor's 64 on sm_90.
   Decoding: the T tiles of keys of a row that is alone in its segment, after a prefix, are cut into min(16, T / 4)
   splits (one if T < 8: 512 keys), each with sums of its own. So its bits follow from its own keys, whatever else is
   computed; a piece of a prompt has no prefix, and the bits of a row of it do not depend on how it is cut. A number of
   `blocks` share the splits, the more the fewer rows there are; the second kernel joins what they leave, o, maximum and
   sum in fp32. 8B, one row, 2048 keys: 64 blocks of 4 tiles; 11 us, where 8 blocks of 32 take 64 (2 us a tile). */
template <int HD>
__global__ void __launch_bounds__(128, attn_shape<HD>::BLOCKS)
    attention_kernel(attn a, bf16 *o, float *lse, int blocks) {
    enum { NO = HD / 8 };
    WRPO_DYN_SHARED(bf16, memory);
    const tile<HD, 128> tq(memory, 0), tk(memory, 1), tv(memory, 2);
    const int64_t extra = (int64_t)blockIdx.x - gridDim.x + a.n_segs * (blocks - 1);   /* blocks that only share */
    job j;
    if (extra >= 0)
        j = job{a.segs[extra % a.n_segs], extra % a.n_segs, 0, (int)(a.H / a.G)};
    else if (!find_job(a, a.H / a.G, blockIdx.x, &j)) return;
    const int in_warp = threadIdx.x % 32, w = threadIdx.x / 32 * 16, g = blockIdx.y;
    const lanes l(a, j.seg, g, j.first, j.count);
    const int low = l.position(0), high = l.position(l.count - 1);
    const key_tiles keys(a, j.seg, low, high);
    const int splits = splits_of(a, j.seg, keys.n), turn = extra < 0 ? 0 : 1 + (int)(extra / a.n_segs);
    const int last = (splits * (turn + 1) + blocks - 1) / blocks;
    int position[2];
#pragma unroll
    for (int h = 0; h < 2; h++) position[h] = l.position(min(w + in_warp / 4 + h * 8, l.count - 1));
    const factors f(a);
    for (int split = (splits * turn + blocks - 1) / blocks; split < last; split++) {
        const int end = keys.n * (split + 1) / splits;
        int i = keys.n * split / splits;
        key_tile t = keys[i];
        tq.load_lanes(a, a.q, a.ldq, l);
        tk.load_keys(a, a.k, t.row, g, t.count);
        ptx::cp_async_commit();
        float acc[NO][4] = {}, m[2] = {-INFINITY, -INFINITY}, sum[2] = {};
        for (; i < end; i++) {
            const key_tile now = t;
            tv.load_keys(a, a.v, now.row, g, now.count);
            ptx::cp_async_commit();
            ptx::cp_async_wait<1>();
            __syncthreads();                           /* K is here */
            float s[8][4];
            mma_abt<HD>(s, tq.p, w, tk.p, 0);
            __syncthreads();                           /* and may go */
            if (i + 1 < end) t = keys[i + 1], tk.load_keys(a, a.k, t.row, g, t.count);
            ptx::cp_async_commit();
            if (f.softcap > 0) each<8>([&](int, int, float &x) { x = tanhf(x * f.inner); }, s);
            if (now.count < 64 || now.position + 63 > low || (a.window > 0 && high - now.position >= a.window)) {
                const span seen[2] = {keys_seen(position[0], now.position, 0, now.count, a.window),
                                      keys_seen(position[1], now.position, 0, now.count, a.window)};
                each<8>([&](int h, int key, float &x) {
                    if (key < seen[h].from || key >= seen[h].to) x = -INFINITY;
                }, s);
            }
            float most[2] = {m[0], m[1]}, part[2] = {}, rescale[2];
            each<8>([&](int h, int, float x) { most[h] = fmaxf(most[h], x); }, s);
#pragma unroll
            for (int h = 0; h < 2; h++) {              /* a row is in four threads */
                most[h] = fmaxf(most[h], __shfl_xor_sync(ALL, most[h], 1));
                most[h] = fmaxf(most[h], __shfl_xor_sync(ALL, most[h], 2));
                const float before = m[h];
                m[h] = most[h];
                if (most[h] == -INFINITY) most[h] = 0;
                rescale[h] = exp2f((before - most[h]) * f.c);
            }
            each<8>([&](int h, int, float &x) { part[h] += x = exp2f((x - most[h]) * f.c); }, s);
            each<NO>([&](int h, int, float &x) { x *= rescale[h]; }, acc);
            sum[0] = sum[0] * rescale[0] + part[0], sum[1] = sum[1] * rescale[1] + part[1];
            ptx::cp_async_wait<1>();
            __syncthreads();                           /* V is here */
            mma_pb(acc, s, tv.p, 0, 0);
            __syncthreads();
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(ALL, sum[h], 1);
            sum[h] += __shfl_xor_sync(ALL, sum[h], 2);
            const int lane = w + in_warp / 4 + h * 8;
            if (lane >= l.count || in_warp % 4) continue;
            if (splits == 1) lse[l.place(lane, a.H, 1)] = m[h] * f.c / LOG2E + logf(sum[h]);
            else *(float2 *)(split_at(a, j.index, split, l.head0 + lane) + a.d) = make_float2(m[h], sum[h]);
        }
        if (splits == 1)
            store_rows(o, acc, w, l.count, a.d, 1 / sum[0], 1 / sum[1], a.pairs,
                       [&](int lane) { return l.place(lane, a.ldo, a.d); });
        else
            store_rows(split_at(a, j.index, split, l.head0), acc, w, l.count, a.d, 1, 1, true,
                       [&](int lane) { return lane * (a.d + 2); });
    }
    ptx::cp_async_wait<0>();
}
/* card    the end of attention, for rows whose keys were split. A block a segment and key/value head, two numbers a
   thread and turn; memory-bound (8B, one row, 2048 keys: 8 splits, 133 KB, no more than a launch). Sum: the splits in
   order, each times 2^(its maximum - the largest). */
__global__ void attention_end_kernel(attn a, bf16 *o, float *lse) {
    const wrpo_seg seg = a.segs[blockIdx.x];
    const lanes l(a, seg, blockIdx.y, 0, (int)(a.H / a.G));
    const int splits = splits_of(a, seg, key_tiles(a, seg, l.position0, l.position0).n), half = (int)a.d / 2;
    const float c = factors(a).c;
    for (int i = threadIdx.x; i < l.count * half && splits > 1; i += blockDim.x) {
        const int lane = i / half, col = i % half * 2;
        auto from = [&](int split) { return split_at(a, blockIdx.x, split, l.head0 + lane); };
        float most = -INFINITY, sum = 0;
        float2 all = make_float2(0, 0);
        for (int split = 0; split < splits; split++) most = fmaxf(most, from(split)[a.d]);
        for (int split = 0; split < splits; split++) {
            const float weight = exp2f((from(split)[a.d] - most) * c);
            const float2 x = *(const float2 *)(from(split) + col);
            sum += weight * from(split)[a.d + 1], all.x += weight * x.x, all.y += weight * x.y;
        }
        store2(o + l.place(lane, a.ldo, a.d) + col, all.x / sum, all.y / sum, 2, false, a.pairs);
        if (col == 0) lse[l.place(lane, a.H, 1)] = most * c / LOG2E + logf(sum);
    }
}
/* card    delta[r][h] = sum_i do o. A block a row, `width` threads a head, eight numbers a thread; memory-bound (6144 x
   4096: 24 us). Sum: eight in a thread, then a butterfly of `width`, a power of two. */
__global__ void delta_kernel(wrpo_attn a, float *delta, const bf16 *d_o, const bf16 *o, int width, bool fast) {
    const int c = threadIdx.x % width * 8, d = (int)a.d;
    for (int h = threadIdx.x / width; h - (int)(threadIdx.x / width) < a.H; h += blockDim.x / width) {
        const int64_t from = blockIdx.x * a.ldo + (int64_t)h * d + c;
        float s = 0;
        if (h < a.H && c < d) {
            const eight x = load(d_o + from, d - c, fast), y = load(o + from, d - c, fast);
#pragma unroll
            for (int e = 0; e < 8; e++) s += x.x[e] * y.x[e];
        }
        for (int i = width / 2; i; i >>= 1) s += __shfl_xor_sync(ALL, s, i);
        if (c == 0 && h < a.H) delta[blockIdx.x * a.H + h] = s;
    }
}
/* Tiles [first, end) come in pairs, STAGES deep, behind the two that stay: fetch(t, its pair) asks for the copies. */
template <class T, int STAGES, class F, class U> INLINE void walk(bf16 *memory, int first, int end, F fetch, U use) {
    auto next = [&](int t) {
        if (t < end) fetch(t, T(memory, 2 + t % STAGES * 2), T(memory, 3 + t % STAGES * 2));
        ptx::cp_async_commit();
    };
    if (STAGES == 2) next(first);
    for (int t = first; t < end; t++) {
        if (STAGES == 1) { __syncthreads(); next(t); }
        ptx::cp_async_wait<0>();
        __syncthreads();                               /* tiles t are here, the last ones done with */
        if (STAGES == 2) next(t + 1);
        use(t, T(memory, 2 + t % STAGES * 2), T(memory, 3 + t % STAGES * 2));
    }
}
/* card    op: attention_bwd, dq = scale sum_keys ds k. A block as in the forward pass, and its order; scores and dp are
   made again, 32 keys at a time to fit the registers: 8 warps a multiprocessor for HD 128 on sm_90, and of dk and dv.
   6 d FLOP per lane and visible key. */
template <int HD> __global__ void __launch_bounds__(128) attention_dq_kernel(attn a, bf16 *dq) {
    typedef tile<HD, 128> tile_;
    WRPO_DYN_SHARED(bf16, memory);
    const tile_ tq(memory, 0), td(memory, 1);
    job j;
    if (!find_job(a, a.H / a.G, blockIdx.x, &j)) return;
    const int in_warp = threadIdx.x % 32, w = threadIdx.x / 32 * 16, g = blockIdx.y;
    const lanes l(a, j.seg, g, j.first, j.count);
    const key_tiles keys(a, j.seg, l.position(0), l.position(l.count - 1));
    tq.load_lanes(a, a.q, a.ldq, l), td.load_lanes(a, a.d_o, a.ldo, l);
    const factors f(a);
    float acc[HD / 8][4] = {}, lse2[2], delta[2];
    int position[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int lane = min(w + in_warp / 4 + h * 8, l.count - 1);
        const int64_t at = l.place(lane, a.H, 1);
        position[h] = l.position(lane), lse2[h] = a.lse[at] * LOG2E, delta[h] = a.delta[at];
    }
    auto fetch = [&](int i, tile_ tk, tile_ tv) {
        const key_tile t = keys[i];
        tk.load_keys(a, a.k, t.row, g, t.count), tv.load_keys(a, a.v, t.row, g, t.count);
    };
    walk<tile_, attn_shape<HD>::STAGES>(memory, 0, keys.n, fetch, [&](int i, tile_ tk, tile_ tv) {
        const key_tile t = keys[i];
        const span seen[2] = {keys_seen(position[0], t.position, 0, t.count, a.window),
                              keys_seen(position[1], t.position, 0, t.count, a.window)};
#pragma unroll 1
        for (int c0 = 0; c0 < t.count; c0 += 32) {
            float s[4][4], ds[4][4];
            mma_abt<HD>(s, tq.p, w, tk.p, c0), mma_abt<HD>(ds, td.p, w, tv.p, c0);
            if (f.softcap > 0) each<4>([&](int h, int, float &x, float &dp) { f.cap(x, dp, delta[h]); }, s, ds);
            each<4>([&](int h, int key, float &p, float &dp) {
                f.weigh(p, dp, c0 + key >= seen[h].from && c0 + key < seen[h].to, lse2[h], delta[h]);
            }, s, ds);
            mma_pb(acc, ds, tk.p, c0, 0);
        }
    });
    store_rows(dq, acc, w, l.count, a.d, a.scale, a.scale, a.pairs, [&](int i) { return l.place(i, a.ldq, a.d); });
}
/* The lanes of segment s that see keys of the tile j: of key/value head g, cut into tiles; n of these, which see keys
   [from, to). position: of the tile's first key, as they count. */
struct crowd {
    lanes l;
    int from, to, position, end, n;
    __device__ crowd(const attn &a, const job &j, int g, int64_t s) : l(a, a.segs[s], g, 0, 0) {
        const wrpo_seg seg = a.segs[s];
        const int64_t row0 = j.seg.begin + j.first;
        const bool home = s == j.index;
        from = home ? 0 : (int)(max(seg.prefix, row0) - row0);
        to = home ? j.count : (int)(min(seg.prefix_end, row0 + j.count) - row0);
        position = home ? (int)(seg.prefix_end - seg.prefix) + j.first : (int)(row0 - seg.prefix);
        const int rows = (int)(seg.end - seg.begin), first = max(0, position + from - l.position0);
        const int64_t last = a.window > 0 ? position + to - 1 + a.window - l.position0 : rows;
        end = (int)min((int64_t)rows, last) * l.share;
        l.first = first * l.share;
        n = from < to && l.first < end ? (end - l.first + 63) / 64 : 0;
    }
};
/* How many tiles of lanes see the keys of j; how many blocks share these. Both follow from its own record. */
__device__ int crowds(const attn &a, const job &j) {
    float tiles = 0;                                   /* exact: far below 2^24 */
    for (int64_t s = threadIdx.x % 32; s < a.n_segs; s += 32) tiles += (float)crowd(a, j, 0, s).n;
    return (int)warp_sum(tiles);
}
INLINE int parts_of(int tiles) { return max(1, min((int)PARTS, (tiles + PART - 1) / PART)); }
INLINE float *part_at(const attn &a, int part, int64_t row, int g, int second) {
    return a.parts + (((part * a.n + row) * a.G + g) * 2 + second) * a.d;
}
/* card    op: attention_bwd, dk = scale sum_lanes ds q and dv = sum_lanes p do. A block of 4 warps (8 for HD 256: half
   of the columns each) owns 64 keys of a segment and a key/value head, and walks the lanes that see them: its own
   segment's and those of every segment that has the keys as its prefix, in order of segments and lanes. A prompt's keys
   are seen by all responses; its walk is cut into parts of equal length, whose sums, in fp32, the second kernel adds in
   order. Blocks with much to do come first. 8 d FLOP per lane and visible key. */
template <int HD>
__global__ void __launch_bounds__(attn_shape<HD>::THREADS) attention_dkv_kernel(attn a, bf16 *dk, bf16 *dv) {
    enum { STAGES = attn_shape<HD>::STAGES, THREADS = attn_shape<HD>::THREADS, NO = attn_shape<HD>::COLS / 8 };
    typedef tile<HD, THREADS> tile_;
    WRPO_DYN_SHARED(bf16, memory);
    WRPO_SHARED(span, at_seen, 64 * STAGES);
    WRPO_SHARED(float, at_lse2, 64 * STAGES);
    WRPO_SHARED(float, at_delta, 64 * STAGES);
    job j;
    if (!find_job(a, 1, gridDim.y - 1 - blockIdx.y, &j)) return;
    const int g = (int)(blockIdx.x % a.G), part = (int)(blockIdx.x / a.G);
    const int tiles = crowds(a, j), parts = parts_of(tiles);
    if (part >= parts) return;
    const int first = tiles * part / parts, end = tiles * (part + 1) / parts;
    const int in_warp = threadIdx.x % 32, w = threadIdx.x / 32 % 4 * 16, chunk0 = threadIdx.x / 128 * NO;
    const int64_t row0 = j.seg.begin + j.first;
    const tile_ tk(memory, 0), tv(memory, 1);
    tk.load_keys(a, a.k, row0, g, j.count), tv.load_keys(a, a.v, row0, g, j.count);
    const factors f(a);
    float ak[NO][4] = {}, av[NO][4] = {};
    int64_t s = 0;
    crowd now(a, j, g, 0);
    int before = 0;                                    /* tiles of the segments before s */
    auto fetch = [&](int t, tile_ tq, tile_ td) {
        while (t >= before + now.n) before += now.n, now = crowd(a, j, g, ++s);
        lanes l = now.l;
        l.first += (t - before) * 64, l.count = min(64, now.end - l.first);
        tq.load_lanes(a, a.q, a.ldq, l), td.load_lanes(a, a.d_o, a.ldo, l);
        if (threadIdx.x >= 64) return;
        const int lane = min((int)threadIdx.x, l.count - 1), to = t % STAGES * 64 + threadIdx.x;
        const int64_t at = l.place(lane, a.H, 1);
        at_seen[to] = keys_seen(l.position(lane), now.position, now.from, now.to, a.window);
        if ((int)threadIdx.x >= l.count) at_seen[to].to = 0;
        at_lse2[to] = a.lse[at] * LOG2E, at_delta[to] = a.delta[at];
    };
    walk<tile_, STAGES>(memory, first, end, fetch, [&](int t, tile_ tq, tile_ td) {
#pragma unroll 1
        for (int c0 = 0; c0 < 64; c0 += 32) {
            float p[4][4], ds[4][4];                   /* rows are keys, columns lanes */
            mma_abt<HD>(p, tk.p, w, tq.p, c0), mma_abt<HD>(ds, tv.p, w, td.p, c0);
            const int lane0 = t % STAGES * 64 + c0;
            if (f.softcap > 0)
                each<4>([&](int, int col, float &x, float &dx) { f.cap(x, dx, at_delta[lane0 + col]); }, p, ds);
            each<4>([&](int h, int col, float &x, float &dx) {
                const int lane = lane0 + col, key = w + in_warp / 4 + h * 8;
                const span seen = at_seen[lane];
                f.weigh(x, dx, key >= seen.from && key < seen.to, at_lse2[lane], at_delta[lane]);
            }, p, ds);
            mma_pb(av, p, td.p, c0, chunk0), mma_pb(ak, ds, tq.p, c0, chunk0);
        }
    });
    auto put_rows = [&](auto *to_k, auto *to_v, int64_t ld, bool fast) {
        auto place = [&](int i) { return i * ld + chunk0 * 8; };
        store_rows(to_k, ak, w, j.count, a.d - chunk0 * 8, a.scale, a.scale, fast, place);
        store_rows(to_v, av, w, j.count, a.d - chunk0 * 8, 1, 1, fast, place);
    };
    const int64_t to = row0 * a.ldkv + g * a.d;
    if (parts == 1) put_rows(dk + to, dv + to, a.ldkv, a.pairs);
    else put_rows(part_at(a, part, row0, g, 0), part_at(a, part, row0, g, 1), a.G * 2 * a.d, true);
}
/* card    the end of attention_bwd: dk and dv of keys whose lanes are in parts. A block a tile of keys and key/value
   head, two numbers a thread and turn; memory-bound (8B, 1024 + 3 x 1024: 16 of 64 tiles, 38 MB, 9 us). Sum: the parts
   in order. */
__global__ void attention_dkv_end_kernel(attn a, bf16 *dk, bf16 *dv) {
    job j;
    if (!find_job(a, 1, gridDim.y - 1 - blockIdx.y, &j)) return;
    const int g = blockIdx.x, parts = parts_of(crowds(a, j)), half = (int)a.d / 2;
    for (int i = threadIdx.x; i < 2 * j.count * half && parts > 1; i += blockDim.x) {
        const int second = i / half % 2, col = i % half * 2;
        const int64_t row = j.seg.begin + j.first + i / half / 2;
        float2 sum = make_float2(0, 0);
        for (int part = 0; part < parts; part++) {
            const float2 x = *(const float2 *)(part_at(a, part, row, g, second) + col);
            sum.x += x.x, sum.y += x.y;
        }
        store2((second ? dv : dk) + row * a.ldkv + g * a.d + col, sum.x, sum.y, 2, false, a.pairs);
    }
}
template <int HD> void attention_of(device *dev, attn a, bf16 *o, float *lse) {
    const int64_t segs = a.n_segs, most = min(segs, WORK_FLOATS / (SPLITS * a.H * (a.d + 2)));
    const bool decodes = a.n < 2 * a.n_segs;           /* most segments are one row; else splits get no blocks */
    const int blocks = decodes ? (int)max((int64_t)1, min((int64_t)SPLITS, SPLIT_BLOCKS / (most * a.G))) : 1;
    for (int64_t first = 0; first < segs; first += most, a.segs += most) {     /* as many as `parts` has room for */
        a.n_segs = min(most, segs - first);
        const unsigned tiles = (unsigned)(div_up(a.n * (a.H / a.G), 64) + a.n_segs * blocks);
        LAUNCH_AS("attention_kernel", HD, attention_kernel<HD>, dim3(tiles, (unsigned)a.G), 128,
                  attn_shape<HD>::SHARED, a, o, lse, blocks);
        LAUNCH(attention_end_kernel, dim3((unsigned)a.n_segs, (unsigned)a.G), 128, 0, a, o, lse);
    }
}
template <int HD> void attention_bwd_of(device *dev, const attn &a, bf16 *dq, bf16 *dk, bf16 *dv) {
    const unsigned of_lanes = (unsigned)(div_up(a.n * (a.H / a.G), 64) + a.n_segs), G = (unsigned)a.G,
                   of_keys = (unsigned)(div_up(a.n, 64) + a.n_segs);
    typedef attn_shape<HD> shape;
    LAUNCH_AS("attention_dq_kernel", HD, attention_dq_kernel<HD>, dim3(of_lanes, G), 128, shape::SHARED_BWD, a, dq);
    LAUNCH_AS("attention_dkv_kernel", HD, attention_dkv_kernel<HD>, dim3(G * PARTS, of_keys), shape::THREADS,
              shape::SHARED_BWD, a, dk, dv);
    LAUNCH(attention_dkv_end_kernel, dim3(G, of_keys), 256, 0, a, dk, dv);
}
#define BY_HEAD_DIM(d, F, ...) \
    ((d) <= 32    ? F<32>(__VA_ARGS__) \
     : (d) <= 64  ? F<64>(__VA_ARGS__) \
     : (d) <= 96  ? F<96>(__VA_ARGS__) \
     : (d) <= 128 ? F<128>(__VA_ARGS__) \
                  : F<256>(__VA_ARGS__))
/* false: nothing to do, or an error */
bool attention_call(device *dev, attn *x, const wrpo_attn *a, const void *q, const void *k, const void *v) {
    const bool legal = a->d <= 256 && a->d % 2 == 0 && a->H <= 1000;
    if (!legal) note(dev, cudaErrorInvalidValue, "attention: want an even head_dim up to 256, and up to 1000 heads");
    *(wrpo_attn *)x = *a;
    x->q = (const bf16 *)q, x->k = (const bf16 *)k, x->v = (const bf16 *)v;
    x->fast = a->d % 8 == 0 && on16(q, a->ldq, 2) && on16(k, a->ldkv, 2) && on16(v, 0, 2);
    return legal && a->n > 0 && a->n_segs > 0;
}
void attention(void *d, const wrpo_attn *a, void *o, float *lse, const void *q, const void *k, const void *v) {
    entered dev(d);
    attn x = {};
    if (!attention_call(dev, &x, a, q, k, v)) return;
    x.parts = dev->work, x.pairs = ((uintptr_t)o | (uintptr_t)a->ldo * 2) % 4 == 0;
    BY_HEAD_DIM(a->d, attention_of, dev, x, (bf16 *)o, lse);
}
size_t deltas(int64_t n, int64_t H) { return (size_t)(n * H + 3) / 4 * 4; }
size_t attention_scratch(void *, int64_t n, int64_t H, int64_t G, int64_t d) { /* delta, and sums of dk and dv */
    return (deltas(n, H) + (size_t)(PARTS * n * G * 2 * d)) * sizeof(float);
}
void attention_bwd(void *d, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                   const float *lse, const void *q, const void *k, const void *v, void *scratch) {
    entered dev(d);
    attn x = {};
    if (!attention_call(dev, &x, a, q, k, v)) return;
    const bool of_o = a->d % 8 == 0 && on16(d_o, a->ldo, 2);
    float *delta = (float *)scratch;
    x.d_o = (const bf16 *)d_o, x.lse = lse, x.delta = delta, x.parts = delta + deltas(a->n, a->H);
    x.fast = x.fast && of_o, x.pairs = ((uintptr_t)dq | (uintptr_t)dk | (uintptr_t)dv | (uintptr_t)a->ldq * 2 |
                                        (uintptr_t)a->ldkv * 2) % 4 == 0;
    int width = 1;
    while (width * 8 < a->d) width *= 2;
    LAUNCH(delta_kernel, (unsigned)a->n, 256, 0, *a, delta, x.d_o, (const bf16 *)o, width, of_o && on16(o, 0, 2));
    BY_HEAD_DIM(a->d, attention_bwd_of, dev, x, (bf16 *)dq, (bf16 *)dk, (bf16 *)dv);
}

/* ---- sumsq ----
   card    op: sumsq. SUM_BLOCKS blocks take equal parts; a thread adds every 256th number of its block's part in
   double, lanes meet in a butterfly, warps in order; a second kernel, of one warp, adds the parts the same way. x once:
   memory-bound (8B: 7.5 ms). Any count. */
enum { SUM_BLOCKS = 1024 };
INLINE double warp_sum(double x) {
#pragma unroll
    for (int i = 16; i; i >>= 1) x += __shfl_xor_sync(ALL, x, i);
    return x;
}
__global__ void sumsq_kernel(double *part, const float *x, int64_t count, int64_t each) {
    WRPO_SHARED(double, sums, 8);
    const int64_t first = blockIdx.x * each, end = min(count, first + each);
    double s = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += 256) s += (double)x[i] * (double)x[i];
    s = warp_sum(s);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < 8; i++) s += sums[i];
    part[blockIdx.x] = s;
}
__global__ void sumsq_end_kernel(double *out, const double *part, int parts) {
    double s = 0;
    for (int i = threadIdx.x; i < parts; i += 32) s += part[i];
    s = warp_sum(s);
    if (threadIdx.x == 0) *out += s;
}
void sumsq(void *d, double *out, const float *x, int64_t count) {
    entered dev(d);
    if (count <= 0) return;
    int64_t each = div_up(count, SUM_BLOCKS);
    if (each < 4096) each = 4096;
    const int64_t parts = div_up(count, each);
    LAUNCH(sumsq_kernel, (unsigned)parts, 256, 0, (double *)dev->work, x, count, each);
    LAUNCH(sumsq_end_kernel, 1, 32, 0, out, (const double *)dev->work, (int)parts);
}

/* ---- adamw ----
   card    op: adamw. A warp for a block of 256 numbers, eight a thread: moments and masters are unpacked into
   registers, stepped, packed. Every product, sum and root is rounded as on the CPU (its vector paths), so the bits are
   the CPU's. Weight, low half, gradient and moments in, all but the gradient out: memory-bound (8B: 52 ms with float
   moments, 37 with bf16, 30 with 8 bits). The largest of a block by a butterfly. Any count. */
struct update { float keep, rate, b1, b2, beta2, correction2, eps, grad_scale; uint32_t seed_m, seed_v; };
INLINE uint32_t dice(uint32_t seed, int64_t i) { /* 32 bits: a hash of (seed, i) */
    uint32_t x = seed + (uint32_t)i * 0x9E3779B9u;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}
INLINE float decode(float q, float s, float top) { /* codes 0 ... top of magnitudes: s (q / top)^4 */
    q = __fmul_rn(q, 1 / top);
    q = __fmul_rn(q, q);
    return __fmul_rn(__fmul_rn(q, q), s);
}
/* Eight numbers from p + i, the moment `second` or the first. `all` of them exist in memory; of floats, `left`. */
INLINE eight moment(const void *p, int64_t i, int64_t left, wrpo_moments moments, bool second) {
    if (moments == WRPO_MOMENTS_F32) return load((const float *)p + i, left, left >= 8);
    if (moments == WRPO_MOMENTS_BF16) return load((const bf16 *)p + i, 8, true);
    const uint8_t *block = (const uint8_t *)p + i / WRPO_BLOCK * WRPO_BLOCK_BYTES;
    const float s = *(const float *)(block + WRPO_BLOCK), top = second ? 255 : 127;
    const uint32_t *words = (const uint32_t *)(block + i % WRPO_BLOCK);
    eight v;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const uint32_t code = words[e / 4] >> e % 4 * 8 & 255;
        const float q = second ? (float)code : (float)(int8_t)code, size = decode(q, s, top);
        v.x[e] = q < 0 ? -size : size;
    }
    return v;
}
INLINE void moment(void *p, const eight &v, int64_t i, int64_t left, wrpo_moments moments, bool second,
                   uint32_t seed) {
    if (moments == WRPO_MOMENTS_F32) { store((float *)p + i, v, left, left >= 8); return; }
    if (moments == WRPO_MOMENTS_BF16) {                  /* rounded up or down by chance */
        uint32_t w[8];
#pragma unroll
        for (int e = 0; e < 8; e++) w[e] = (__float_as_uint(v.x[e]) + (dice(seed, i + e) >> 16)) >> 16;
        *(uint4 *)((bf16 *)p + i) =
            make_uint4(w[0] | w[1] << 16, w[2] | w[3] << 16, w[4] | w[5] << 16, w[6] | w[7] << 16);
        return;
    }
    const float top = second ? 255 : 127;
    float most = 0;
#pragma unroll
    for (int e = 0; e < 8; e++) most = fmaxf(most, fabsf(v.x[e]));
    const float s = warp_max(most), inverse = s > 0 ? 1 / s : 0;
    uint8_t *block = (uint8_t *)p + i / WRPO_BLOCK * WRPO_BLOCK_BYTES;
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const float size = fabsf(v.x[e]);
        float q = truncf(fminf(__fmul_rn(sqrtf(sqrtf(__fmul_rn(size, inverse))), top),
                               top - 1)); /* q and q + 1 are the codes around it */
        const float low = decode(q, s, top), high = decode(q + 1, s, top);
        if (__fmul_rn(__fmul_rn((float)(dice(seed, i + e) >> 8), 1.0f / 16777216), high - low) < size - low) q += 1;
        if (second && size > 0) q = fmaxf(q, 1);
        const int code = (int)(!second && v.x[e] < 0 ? -q : q);
        words[e / 4] |= (uint32_t)(code & 255) << e % 4 * 8;
    }
    ((uint32_t *)(block + i % WRPO_BLOCK))[0] = words[0], ((uint32_t *)(block + i % WRPO_BLOCK))[1] = words[1];
    __syncwarp();                                      /* all lanes have read the old scale */
    if (threadIdx.x % 32 == 0) *(float *)(block + WRPO_BLOCK) = s;
}
__global__ void adamw_kernel(void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count,
                             wrpo_moments moments, update u) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8, left = count - i;
    if (i / WRPO_BLOCK * WRPO_BLOCK >= count) return;  /* whole warps */
    eight x, mi = moment(m, i, left, moments, false), vi = moment(v, i, left, moments, true);
    const eight gi = load(g + i, left, left >= 8);
    if (!low) x = load((const float *)w + i, left, left >= 8);
    else {
        const uint4 a = *(const uint4 *)((const bf16 *)w + i), b = *(const uint4 *)(low + i);
        const uint32_t high[4] = {a.x, a.y, a.z, a.w}, rest[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int e = 0; e < 8; e++)
            x.x[e] =
                __uint_as_float((high[e / 2] >> e % 2 * 16 << 16) + (uint32_t)(int16_t)(rest[e / 2] >> e % 2 * 16));
    }
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (e >= left) continue;                       /* behind count: unpacked and packed as it is */
        const float gs = __fmul_rn(gi.x[e], u.grad_scale), me = fmaf(u.b1, gs - mi.x[e], mi.x[e]),
                    ve = fmaf(__fmul_rn(u.b2, gs), gs, __fmul_rn(vi.x[e], u.beta2));
        const float root = sqrtf(ve) / u.correction2 + u.eps;
        mi.x[e] = me, vi.x[e] = ve;
        x.x[e] = __fsub_rn(__fmul_rn(x.x[e], u.keep), __fmul_rn(u.rate, me) / root);
    }
    moment(m, mi, i, left, moments, false, u.seed_m), moment(v, vi, i, left, moments, true, u.seed_v);
    if (!low) { store((float *)w + i, x, left, left >= 8); return; }
    uint32_t high[4] = {0, 0, 0, 0}, rest[4] = {0, 0, 0, 0};
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const uint32_t bits = __float_as_uint(x.x[e]);
        high[e / 2] |= ((bits + 0x8000u) >> 16) << e % 2 * 16, rest[e / 2] |= (bits & 0xffff) << e % 2 * 16;
    }
    *(uint4 *)((bf16 *)w + i) = make_uint4(high[0], high[1], high[2], high[3]);
    *(uint4 *)(low + i) = make_uint4(rest[0], rest[1], rest[2], rest[3]);
}
void adamw(void *d, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count, const wrpo_adamw *step) {
    entered dev(d);
    if (count <= 0) return;
    const update u = {(float)(1 - (double)step->lr * (double)step->weight_decay),
                      (float)((double)step->lr / step->correction1),
                      (float)(1 - (double)step->beta1),
                      (float)(1 - (double)step->beta2),
                      step->beta2,
                      (float)step->correction2,
                      step->eps,
                      step->grad_scale,
                      (uint32_t)step->seed,
                      (uint32_t)(step->seed >> 32)};
    LAUNCH(adamw_kernel, (unsigned)div_up(count, 2048), 256, 0, w, low, m, v, g, count, step->moments, u);
}

/* ---- graphs ----
   replay, of the table: a stretch that came GRAPH_AFTER times under its key is recorded (stream capture: kernels with
   copies of their arguments, device copies and fills; nothing runs), then launched as one graph, as often as it comes.
   GRAPHS_KEPT keys are kept, the one not used for longest gives way. Decoding. A step of SmolLM2-135M is 303 launches
   on a few rows: at 2 to 3 us of the host's time for each (an estimate) 0.6 to 0.9 ms, where its weights are read in
   0.08; a graph is one launch. The shapes follow from the workspace, its rows, segments and labels: they are the key.
   All that changes from token to token is read by the kernels from device memory, written there before: ids (embed),
   angles (rope), places in the cache (scatter), rows (gather), segments with the lengths of keys (attention, whose
   grid follows from rows and segments alone). So the same kernels run with the same arguments, and have the same bits.
   Recording costs the host about what a few steps of launches do: hence GRAPH_AFTER, with which it never costs more
   than twice what was best. The plain runs before have loaded the kernels and made cuBLASLt's choices, whose memory is
   the device's: nothing is allocated while recording. Training is left alone. Micro-batches are packed from records of
   different lengths, so exact shapes hardly come twice; recording each anew in order to update one graph
   (cudaGraphExecUpdate) calls the runtime once per kernel, as launching does, and then compares all nodes. And launches
   do not dominate there: 6144 rows of the 135M model, forward and backward, are about 1000 launches, 3 ms of a host
   that runs ahead, beside 5 TFLOP, 12 ms at 400 TFLOP/s. Whatever fails while recording (a
   call that cannot be recorded, an error of an op, no memory for the graph) drops the record, and the ops are called
   plainly, now and from then on; what was wrong with an op is then noted as ever. Replacing an op of the table: its
   work has to be on this device's stream, else replay has to be NULL. */
void forget(device *dev, stretch *s) {
    if (s->graph)
        note(dev, cudaStreamSynchronize(dev->stream), "graph"),
            note(dev, cudaGraphExecDestroy(s->graph), "graph"); /* it may be under way */
    memset(s, 0, sizeof *s);
}
void forget_all(device *dev) { for (int i = 0; i < GRAPHS_KEPT; i++) forget(dev, &dev->stretches[i]); }
bool barred(device *dev, const char *where) { /* no part of a stretch: waits, or host memory that will have changed */
    if (dev->recording) note(dev, cudaErrorStreamCaptureUnsupported, where);
    return dev->recording;
}
bool record(device *dev, stretch *s, void (*ops)(void *user), void *user) {
    const bool wrong = dev->wrong;
    char why[sizeof dev->why];
    cudaGraph_t graph = NULL;
    memcpy(why, dev->why, sizeof why);
    cudaError_t e = cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal);
    if (e == cudaSuccess) {
        dev->wrong = false, dev->recording = true;
        ops(user);
        dev->recording = false;
        e = cudaStreamEndCapture(dev->stream, &graph);
        if (dev->wrong && e == cudaSuccess) e = cudaErrorUnknown;
        /* what went wrong in the recording goes wrong again, and counts, when the ops are run */
        dev->wrong = wrong;
        memcpy(dev->why, why, sizeof why);
    }
    if (e == cudaSuccess) e = cudaGraphInstantiate(&s->graph, graph, 0);
    if (e != cudaSuccess) s->graph = NULL;
    if (graph) cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    return e == cudaSuccess;
}
void replay(void *d, const int64_t key[4], void (*ops)(void *user), void *user) {
    entered dev(d);
    if (!dev->graphs || dev->recording) { ops(user); return; }
    stretch *s = dev->stretches;                       /* the one of this key, or the one not used for longest */
    bool known = false;
    for (int i = 0; i < GRAPHS_KEPT && !known; i++) {
        stretch *other = &dev->stretches[i];
        known = other->used && memcmp(other->key, key, sizeof s->key) == 0;
        if (known || other->used < s->used) s = other;
    }
    if (!known) forget(dev, s), memcpy(s->key, key, sizeof s->key);
    s->used = ++dev->clock;
    if (s->graph || (s->plain == GRAPH_AFTER && record(dev, s, ops, user))) {
        if (cudaGraphLaunch(s->graph, dev->stream) == cudaSuccess) return;
        (void)cudaGetLastError();                      /* what does not go away is met again below */
        forget(dev, s), memcpy(s->key, key, sizeof s->key), s->used = dev->clock, s->plain = GRAPH_AFTER;
    }
    s->plain++;                                        /* beyond GRAPH_AFTER: not recorded any more */
    ops(user);
}

/* ---- memory, opening, the table ---- */
void *alloc(void *d, size_t n) { /* NULL leaves no error behind: running out of memory is survived */
    entered dev(d);
    void *p = NULL;
    if (barred(dev, "alloc")) return NULL;
    if (cudaMalloc(&p, n ? n : 1) == cudaSuccess) return p;
    (void)cudaGetLastError();
    return NULL;
}
size_t room(void *d) {                                 /* what is free, except a little that the driver may want */
    entered dev(d);
    size_t left = 0, total = 0;
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) return (void)cudaGetLastError(), 0;
    return left > total / 128 ? left - total / 128 : 0;
}
void release(void *d, void *p) {
    entered dev(d);
    if (!p || barred(dev, "release")) return;
    forget_all(dev);                                   /* they may use p, and what is allocated next may lie there */
    note(dev, cudaStreamSynchronize(dev->stream), "release");
    note(dev, cudaFree(p), "release");
}
/* Host memory is pageable and may change as soon as put returns, so it goes through a ring of pinned slots. A slot is
   used again once what was copied from it has landed. */
void put(void *d, void *dst, const void *host, size_t n) {
    entered dev(d);
    if (n && barred(dev, "put")) return;
    for (size_t at = 0; at < n; at += SLOT_BYTES) {
        const size_t piece = min(n - at, (size_t)SLOT_BYTES);
        char *slot = dev->ring + (size_t)dev->slot * SLOT_BYTES;
        note(dev, cudaEventSynchronize(dev->landed[dev->slot]), "put");
        memcpy(slot, (const char *)host + at, piece);
        note(dev, cudaMemcpyAsync((char *)dst + at, slot, piece, cudaMemcpyHostToDevice, dev->stream), "put");
        note(dev, cudaEventRecord(dev->landed[dev->slot], dev->stream), "put");
        dev->slot = (dev->slot + 1) % SLOTS;
    }
}
void get(void *d, void *host, const void *src, size_t n) {     /* up to SLOTS pieces are on their way at a time */
    entered dev(d);
    if (barred(dev, "get")) return;
    const size_t pieces = (n + SLOT_BYTES - 1) / SLOT_BYTES;
    const int first = dev->slot;
    size_t asked = 0;
    for (size_t taken = 0; taken < pieces; taken++) {
        for (; asked < pieces && asked - taken < SLOTS; asked++) {
            const size_t at = asked * SLOT_BYTES, piece = min(n - at, (size_t)SLOT_BYTES);
            const size_t s = (first + asked) % SLOTS;
            note(dev, cudaMemcpyAsync(dev->ring + s * SLOT_BYTES, (const char *)src + at, piece,
                                      cudaMemcpyDeviceToHost, dev->stream), "get");
            note(dev, cudaEventRecord(dev->landed[s], dev->stream), "get");
        }
        const size_t at = taken * SLOT_BYTES, piece = min(n - at, (size_t)SLOT_BYTES);
        const size_t s = (first + taken) % SLOTS;
        note(dev, cudaEventSynchronize(dev->landed[s]), "get");
        memcpy((char *)host + at, dev->ring + s * SLOT_BYTES, piece);
    }
    dev->slot = (int)((first + pieces) % SLOTS);
}
void copy(void *d, void *dst, const void *src, size_t n) {
    entered dev(d);
    if (n) note(dev, cudaMemcpyAsync(dst, src, n, cudaMemcpyDeviceToDevice, dev->stream), "copy");
}
void zero(void *d, void *dst, size_t n) {
    entered dev(d);
    if (n) note(dev, cudaMemsetAsync(dst, 0, n, dev->stream), "zero");
}
wrpo_result sync(void *d, wrpo_error *why) {
    entered dev(d);
    char where[80];
    if (barred(dev, "sync")) return WRPO_OK;           /* the ops will be run */
    snprintf(where, sizeof where, "%s, or a kernel before it", dev->launched);         /* faults are met no earlier */
    note(dev, cudaStreamSynchronize(dev->stream), where);
    if (!dev->wrong) return WRPO_OK;
    why->code = WRPO_E_DEVICE;
    snprintf(why->text, sizeof why->text, "%s", dev->why);
    dev->wrong = false;
    return WRPO_E_DEVICE;
}
void close(void *d) {
    if (!d) return;
    const wrpo_allocator memory = ((device *)d)->memory;
    {
        entered dev(d);
        if (dev->fallbacks) {
            char text[160];
            snprintf(text, sizeof text, "cuda: %lld of %lld products were made by mma.sync instead",
                     (long long)dev->fallbacks, (long long)dev->products);
            say(dev, WRPO_LOG_WARN, text);
        }
        if (dev->stream) cudaStreamSynchronize(dev->stream);
#ifndef WRPO_NO_CUBLAS
        if (dev->lt) cublasLtDestroy(dev->lt);
        if (dev->lt_work) cudaFree(dev->lt_work);
        if (dev->choices) memory.free(dev->choices, memory.user);
#endif
        forget_all(dev);
        if (dev->work) cudaFree(dev->work);
        if (dev->ring) cudaFreeHost(dev->ring);
        for (int i = 0; i < SLOTS; i++) if (dev->landed[i]) cudaEventDestroy(dev->landed[i]);
        if (dev->stream) cudaStreamDestroy(dev->stream);
    }
    memory.free(d, memory.user);
}
wrpo_result refuse(wrpo_error *why, wrpo_result code, const char *text, const char *what) {
    why->code = code, why->line = why->column = 0;
    snprintf(why->text, sizeof why->text, text, what);
    return code;
}
/* Kernels that use more shared memory than a launch has by itself. */
template <class K> cudaError_t roomy(K *kernel, int bytes, int most) {
    if (bytes > most) return cudaSuccess;              /* not on this device: a launch of it is an error */
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
template <int MM, class C> cudaError_t roomy_gemm(int most) {
    const cudaError_t e = roomy(gemm_kernel<MM, 16, C>, gemm_shape<16>::SHARED, most);
    return e != cudaSuccess ? e : roomy(gemm_kernel<MM, 128, C>, gemm_shape<128>::SHARED, most);
}
template <int HD> cudaError_t roomy_attention(int most) {
    cudaError_t e = roomy(attention_kernel<HD>, attn_shape<HD>::SHARED, most);
    if (e == cudaSuccess) e = roomy(attention_dq_kernel<HD>, attn_shape<HD>::SHARED_BWD, most);
    if (e == cudaSuccess) e = roomy(attention_dkv_kernel<HD>, attn_shape<HD>::SHARED_BWD, most);
    return e;
}
cudaError_t roomy_all(int most) {
    const cudaError_t all[] = {
        roomy_gemm<WRPO_MM_NT, bf16>(most), roomy_gemm<WRPO_MM_NT, float>(most),
        roomy_gemm<WRPO_MM_NN, bf16>(most), roomy(gemm_kernel<WRPO_MM_TN, 128, float>, gemm_shape<128>::SHARED, most),
        roomy_attention<32>(most),          roomy_attention<64>(most),
        roomy_attention<96>(most),          roomy_attention<128>(most),
        roomy_attention<256>(most)};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) if (all[i] != cudaSuccess) return all[i];
    return cudaSuccess;
}
cudaError_t roomy_wgmma(int most) {
    const cudaError_t all[] = {roomy(wgmma_kernel<WRPO_MM_NT, bf16>, WGMMA_SHARED, most),
                               roomy(wgmma_kernel<WRPO_MM_NT, float>, WGMMA_SHARED, most),
                               roomy(wgmma_kernel<WRPO_MM_NN, bf16>, WGMMA_SHARED, most),
                               roomy(wgmma_kernel<WRPO_MM_TN, float>, WGMMA_SHARED, most)};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) if (all[i] != cudaSuccess) return all[i];
    return cudaSuccess;
}
wrpo_result open(void **out, const wrpo_desc *desc, wrpo_error *why) {
    int count = 0, which = 0;
    cudaDeviceProp info;
    const unsigned features = desc->backend->features;
    const unsigned unknown = features & ~(unsigned)(WRPO_FEATURE_CUBLAS | WRPO_FEATURE_WGMMA | WRPO_FEATURE_GRAPHS);
    const bool wgmma = features & WRPO_FEATURE_WGMMA, lt = features & WRPO_FEATURE_CUBLAS && !wgmma;
    char number[16];
    snprintf(number, sizeof number, "%u", unknown);
    *out = NULL;
    if (unknown) return refuse(why, WRPO_E_ARG, "cuda: features: want those of CUDA in wrpo_feature, found %s", number);
    if (desc->dtype == WRPO_DTYPE_F32)
        return refuse(why, WRPO_E_UNSUPPORTED, "%s: products are bf16 with float sums: want dtype bf16, found f32",
                      "cuda");
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaSuccess && count > 0) e = cudaGetDevice(&which);
    if (e == cudaSuccess && count > 0) e = cudaGetDeviceProperties(&info, which);
    if (e != cudaSuccess || count < 1)
        return refuse(why, WRPO_E_DEVICE, "cuda: no device can be used: %s",
                      e != cudaSuccess ? cudaGetErrorString(e) : "none is there");
    if (info.major < 8)
        return refuse(why, WRPO_E_UNSUPPORTED, "cuda: %s: want compute capability 8.0 or later", info.name);
    if (wgmma && (info.major != 9 || info.minor != 0))
        return refuse(why, WRPO_E_UNSUPPORTED, "cuda: %s: WRPO_FEATURE_WGMMA: want compute capability 9.0", info.name);
#ifdef WRPO_NO_CUBLAS
    if (lt)
        return refuse(why, WRPO_E_UNSUPPORTED, "cuda: %s: cuBLASLt was left out of this program",
                      "WRPO_FEATURE_CUBLAS");
#endif
    device *dev = (device *)desc->memory.alloc(sizeof *dev, desc->memory.user);
    if (!dev) return refuse(why, WRPO_E_MEMORY, "out of memory: %s", "the device's state");
    memset(dev, 0, sizeof *dev);
    dev->memory = desc->memory, dev->log = desc->log, dev->graphs = features & WRPO_FEATURE_GRAPHS;
    dev->index = which, dev->shared_most = info.sharedMemPerBlockOptin;
    snprintf(dev->name, sizeof dev->name, "%.60s", info.name);
    e = cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaMallocHost((void **)&dev->ring, (size_t)SLOTS * SLOT_BYTES);
    for (int i = 0; i < SLOTS && e == cudaSuccess; i++)
        e = cudaEventCreateWithFlags(&dev->landed[i], cudaEventDisableTiming);
    if (e == cudaSuccess) e = cudaMalloc(&dev->work, WORK_FLOATS * sizeof(float));
    if (e == cudaSuccess) e = roomy_all((int)info.sharedMemPerBlockOptin);
    if (e == cudaSuccess && wgmma) {
        int there = 0;
        e = roomy_wgmma((int)info.sharedMemPerBlockOptin);
        LAUNCH(sm90a_kernel, 1, 1, 0, (int *)dev->work);
        get(dev, &there, dev->work, sizeof there);
        if (dev->wrong && e == cudaSuccess) e = cudaErrorUnknown;
        dev->encoder = ptx::tensor_map_encoder();
        if (e == cudaSuccess && (!there || !dev->encoder)) {
            close(dev);
            return refuse(why, WRPO_E_UNSUPPORTED,
                          there ? "cuda: %s: WRPO_FEATURE_WGMMA: want a driver that writes tensor maps"
                                : "cuda: %s: WRPO_FEATURE_WGMMA: want a program compiled for sm_90a",
                          info.name);
        }
    }
#ifndef WRPO_NO_CUBLAS
    if (e == cudaSuccess && lt) {
        const size_t bytes = LT_KEPT * sizeof *dev->choices;
        e = cudaMalloc(&dev->lt_work, LT_BYTES);
        dev->choices = (lt_choice *)desc->memory.alloc(bytes, desc->memory.user);
        if (!dev->choices) { close(dev); return refuse(why, WRPO_E_MEMORY, "out of memory: %s", "cuBLASLt's choices"); }
        memset(dev->choices, 0, bytes);
        if (e == cudaSuccess && cublasLtCreate(&dev->lt) != CUBLAS_STATUS_SUCCESS) {
            close(dev);
            return refuse(why, WRPO_E_DEVICE, "cuda: %s: cuBLASLt cannot be opened", info.name);
        }
    }
#endif
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        close(dev);
        return refuse(why, e == cudaErrorMemoryAllocation ? WRPO_E_MEMORY : WRPO_E_DEVICE, "cuda: %s",
                      cudaGetErrorString(e));
    }
    *out = dev;
    return WRPO_OK;
}
wrpo_backend table() {
    wrpo_backend b = {};
    b.name = "cuda", b.act_bytes = 2, b.dtype = WRPO_DTYPE_BF16, b.host = false, b.micro_tokens = 8192;
    b.open = open, b.close = close, b.alloc = alloc, b.room = room, b.release = release, b.put = put, b.get = get,
    b.copy = copy, b.zero = zero, b.sync = sync, b.replay = replay;
    b.gemm = gemm, b.embed = embed, b.embed_bwd = embed_bwd, b.gather = gather, b.gather_bwd = gather_bwd,
    b.scatter = scatter, b.bias = bias, b.bias_bwd = bias_bwd;
    b.colsum = colsum, b.add = add, b.dropout = dropout, b.rmsnorm = rmsnorm, b.rmsnorm_bwd = rmsnorm_bwd;
    b.rope = rope,
    b.attention = attention, b.attention_bwd = attention_bwd;
    b.features = WRPO_FEATURE_GRAPHS;
#if defined(__CUDACC__) && !defined(WRPO_NO_CUBLAS)    /* a substitute has it on request */
    b.features |= WRPO_FEATURE_CUBLAS;
#endif
    b.attention_scratch = attention_scratch, b.glu = glu, b.glu_bwd = glu_bwd, b.logprob = logprob,
    b.logprob_bwd = logprob_bwd, b.sum = sum, b.sumsq = sumsq, b.adamw = adamw;
    return b;
}
}  // namespace

WRPO_API const wrpo_backend *wrpo_backend_cuda(void) {
    static const wrpo_backend backend = table();
    return &backend;
}

#ifdef WRPO_NCCL
/* ---- ranks ----
   A group whose exchange and gather move the device's memory by NCCL, on the context's stream. The rest goes by the
   group that it is made from, MPI's for example. NCCL only moves bytes here: sums are the op `sum`, in the caller's
   order. Communicators do not block. After each call the ranks tell each other, by the first group, how it went; if one
   has failed, all abort NCCL and have its sentence, so nobody waits for a rank that has given up. */
namespace {
struct nccl_ranks { const wrpo_group *hosts; ncclComm_t comm; };
enum { UNDER_WAY = 1, FAILED = 2 };                    /* 0: done */
int nccl_fails(nccl_ranks *c, wrpo_error *why, const char *call, ncclResult_t r) {
    const char *more = c->comm ? ncclGetLastError(c->comm) : NULL;
    why->code = WRPO_E_DEVICE, why->line = why->column = 0;
    snprintf(why->text, sizeof why->text, "%s: %s%s%.200s", call, ncclGetErrorString(r), more && *more ? ": " : "",
             more ? more : "");
    return FAILED;
}
/* What has become of a call, after at most a second. stream NULL: it has no work on the device. */
int nccl_look(nccl_ranks *c, const char *call, ncclResult_t r, cudaStream_t stream, wrpo_error *why) {
    const struct timespec nap = {0, 20000};
    for (int naps = 0; naps < 20000; naps++) {         /* the first thousand looks do not sleep */
        ncclResult_t now = ncclSuccess;
        if ((r == ncclSuccess || r == ncclInProgress) && c->comm) {
            r = ncclCommGetAsyncError(c->comm, &now);
            if (r == ncclSuccess) r = now;
        }
        if (r != ncclSuccess && r != ncclInProgress) return nccl_fails(c, why, call, r);
        const cudaError_t e = r == ncclSuccess && stream ? cudaStreamQuery(stream) : cudaSuccess;
        if (e == cudaErrorNotReady) (void)cudaGetLastError();    /* it may be kept as the last error */
        if (e != cudaSuccess && e != cudaErrorNotReady) {
            snprintf(why->text, sizeof why->text, "%s: %s", call, cudaGetErrorString(e));
            return FAILED;
        }
        if (r == ncclSuccess && e == cudaSuccess) return 0;
        if (naps >= 1000) nanosleep(&nap, NULL);
    }
    return UNDER_WAY;
}
/* All ranks: has the call been done, on all of them? `state`: here, if that is known. */
wrpo_result nccl_settle(nccl_ranks *c, const char *call, int state, ncclResult_t r, cudaStream_t stream,
                        wrpo_error *why) {
    const wrpo_group *g = c->hosts;
    for (int64_t worst = UNDER_WAY; worst; state = UNDER_WAY) {
        if (state != FAILED) state = nccl_look(c, call, r, stream, why);
        worst = state == FAILED ? FAILED + g->ranks - g->rank : state;
        wrpo_result failed = g->most(g->self, &worst, why);
        if (failed == WRPO_OK && worst < FAILED) continue;
        const int who = g->ranks - (int)(worst - FAILED);
        if (failed == WRPO_OK) {
            wrpo_error said = *why;
            snprintf(why->text, sizeof why->text, "rank %d: %.490s", who, said.text);
            failed = g->broadcast(g->self, why->text, sizeof why->text, who, why);
        }
        if (c->comm) ncclCommAbort(c->comm);
        c->comm = NULL;
        return why->code = WRPO_E_DEVICE;
    }
    return WRPO_OK;
}
wrpo_result nccl_most(void *self, int64_t *x, wrpo_error *why) {
    const wrpo_group *g = ((nccl_ranks *)self)->hosts;
    return g->most(g->self, x, why);
}
wrpo_result nccl_broadcast(void *self, void *p, size_t n, int from, wrpo_error *why) {
    const wrpo_group *g = ((nccl_ranks *)self)->hosts;
    return g->broadcast(g->self, p, n, from, why);
}
wrpo_result nccl_gather(void *self, void *d, void *x, size_t n, wrpo_error *why) {
    nccl_ranks *c = (nccl_ranks *)self;
    const wrpo_group *g = c->hosts;
    if (!d) return g->gather(g->self, NULL, x, n, why);
    entered dev(d);
    const ncclResult_t r = ncclAllGather((char *)x + (size_t)g->rank * n, x, n, ncclUint8, c->comm, dev->stream);
    return nccl_settle(c, "ncclAllGather", UNDER_WAY, r, dev->stream, why);
}
bool nccl_goes_on(ncclResult_t r) { return r == ncclSuccess || r == ncclInProgress; }
wrpo_result nccl_exchange(void *self, void *d, float *parts, const float *x, int64_t stride, int64_t n,
                          wrpo_error *why) {
    nccl_ranks *c = (nccl_ranks *)self;
    entered dev(d);
    ncclResult_t r = ncclGroupStart();                 /* a call that only began, ncclInProgress, is no error */
    for (int i = 0; i < c->hosts->ranks && nccl_goes_on(r); i++) {
        r = ncclSend(x + i * stride, (size_t)n, ncclFloat32, i, c->comm, dev->stream);
        if (nccl_goes_on(r)) r = ncclRecv(parts + i * n, (size_t)n, ncclFloat32, i, c->comm, dev->stream);
    }
    const ncclResult_t end = ncclGroupEnd();
    return nccl_settle(c, "ncclSend and ncclRecv", UNDER_WAY, nccl_goes_on(r) ? end : r, dev->stream, why);
}
}  // namespace

WRPO_API wrpo_result wrpo_nccl_open(const wrpo_group *hosts, wrpo_group *out, wrpo_error *why) {
    nccl_ranks *c = (nccl_ranks *)calloc(1, sizeof *c), none = {};
    nccl_ranks *at = c ? c : &none;                    /* without memory it still takes part */
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t r = ncclSuccess;
    int count = 0, state = UNDER_WAY;
    *out = wrpo_group();
    *why = wrpo_error();
    at->hosts = hosts;
    memset(&id, 0, sizeof id);
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaSuccess && count > 0) e = cudaSetDevice(hosts->local % count);   /* a launcher may show each its own */
    if (e != cudaSuccess || count < 1 || !c) {
        state = FAILED;
        snprintf(why->text, sizeof why->text, "cuda: no device can be used: %s",
                 !c ? "out of memory" : e != cudaSuccess ? cudaGetErrorString(e) : "none is there");
    } else if (hosts->rank == 0) r = ncclGetUniqueId(&id);
    (void)cudaGetLastError();
    wrpo_result failed = nccl_settle(at, "ncclGetUniqueId", state, r, NULL, why);
    if (failed == WRPO_OK) failed = hosts->broadcast(hosts->self, &id, sizeof id, 0, why);
    if (failed == WRPO_OK) {
        config.blocking = 0;
        r = ncclCommInitRankConfig(&c->comm, hosts->ranks, id, hosts->rank, &config);
        failed = nccl_settle(c, "ncclCommInitRankConfig", UNDER_WAY, r, NULL, why);
    }
    if (failed != WRPO_OK) return free(c), failed;
    *out = *hosts;
    out->self = c, out->device = true, out->most = nccl_most, out->broadcast = nccl_broadcast;
    out->gather = nccl_gather, out->exchange = nccl_exchange;
    return WRPO_OK;
}
WRPO_API void wrpo_nccl_close(wrpo_group *group) {
    nccl_ranks *c = (nccl_ranks *)group->self;
    wrpo_error why = {};
    if (!c) return;
    if (c->comm) {
        if (nccl_look(c, "ncclCommFinalize", ncclCommFinalize(c->comm), NULL, &why) == 0) ncclCommDestroy(c->comm);
        else ncclCommAbort(c->comm);
    }
    free(c);
    group->self = NULL;
}
#endif
