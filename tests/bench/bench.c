/* Benchmarks of the CPU backend; no test. Every figure beside a ceiling that the same run measures.

     make -C tests build/bench                     CFLAGS="-O3 -march=native" or others, as for the tests
     build/bench kernels [OPTIONS]                 products and the other ops, beside OpenBLAS, oneDNN and PyTorch
     build/bench profile [OPTIONS]                 where a training step spends its time, op by op
     build/bench decode [OPTIONS]                  tokens a second of decoding, beside the speed at which memory reads
     build/bench step [OPTIONS]                    one line: time, arithmetic, memory of a step (bench_growth.sh)
     build/bench ceilings

   Options (defaults):  --threads N (2)   --dtype f32|bf16 (f32)   --reps N (5)   --backend NAME (the fastest)
     With one thread, times are its CPU time: other processes then disturb a figure less.
     decode: --model DIR or --shape, as below; --weights f32|bf16|f16 (f32), a file of which is mapped; --batch N (1)
     samples at once; --tokens N (100) of each
     kernels: --torch PYTHON an interpreter with torch, which then runs beside; --only TEXT ops with TEXT in their line
     profile and step: --model DIR --data FILE --max-length N real records, or else a random model and records of this
     shape: --shape smollm2|llama1b (smollm2) --layers N --vocab N --records N (8) --prompt N (48) --response N (400)
     --responses K (3) --equal (all lengths as given; otherwise they vary by half) --recompute N (0)
     --micro-tokens N (2048) --steps N (2) --lora N an adapter of that rank on all linear layers (0: all weights)

   kernels: medians of interleaved runs, each of at least 40 ms. Threads that wait must sleep: each engine gets 20 ms of
   silence before its turn, so that the spinning threads of the one before are gone. OPENBLAS_CORETYPE and
   OPENBLAS_L2_SIZE are cleared before OpenBLAS is loaded, so that it chooses by the machine; BENCH_OPENBLAS names
   another kernel. oneDNN is linked where its header is installed (Debian: libdnnl-dev); its operands are bfloat16
   already, its results float. */
#define _GNU_SOURCE
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#ifdef BENCH_DNNL
#include <dnnl.h>
#endif
#ifndef _OPENMP
static int omp_get_thread_num(void) { return 0; }
static void omp_set_num_threads(int n) { (void)n; }
#endif

static struct options {
    const char *model, *data, *shape, *torch, *only, *backend, *weights;
    int64_t batch, tokens, threads, reps, max_length, layers, vocab, records, prompt, response, responses, recompute,
        micro_tokens, steps, lora;
    bool bf16, equal;
} opt = {.shape = "smollm2",
         .weights = "f32",
         .batch = 1,
         .tokens = 100,
         .threads = 2,
         .reps = 5,
         .max_length = 1024,
         .records = 8,
         .prompt = 48,
         .response = 400,
         .responses = 3,
         .micro_tokens = 2048,
         .steps = 2};

static wrpo_dtype dtype_of(void) { return opt.bf16 ? WRPO_DTYPE_BF16 : WRPO_DTYPE_F32; }
static void die(const char *what) { fprintf(stderr, "bench: %s\n", what); exit(1); }
static const wrpo_backend *backend(void) {
    const wrpo_backend *be = opt.backend ? wrpo_backend_find(opt.backend) : wrpo_backend_cpu();
    if (!be) die("--backend: this machine does not have it");
    return be;
}
/* Of one thread: its CPU time, which leaves out the time that other processes take from it. */
static double now(void) {
    struct timespec t;
    clock_gettime(opt.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void *get(size_t n) {         /* touched, so that no page fault is timed */
    void *p = aligned_alloc(64, (n + 4095) / 64 * 64);
    if (!p) die("out of memory");
    return memset(p, 0, n);
}
static int by_size(const void *a, const void *b) {
    return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b;
}
static double median(double *x, int64_t n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* ---- ceilings: what the machine does when nothing is in the way ---- */
enum { COPIED, READ, CHANGED, FILLED, USES };  /* what an op does with memory: written elsewhere, only read, ... */
/* Working sets of 2^18 .. 2^27 bytes. Independent sums: at least latency x ports of any core here (10), and with their
   two factors no more than there are registers, or else the loop measures the stack: 16 in AVX2, 32 in AVX-512. */
enum { SIZES = 10, CHAINS_16 = 12, CHAINS_32 = 24 };
static struct {
    double fma, bf16, half;  /* half: multiply-adds in vectors of half the width, 0: there are none */
    double bytes[USES][SIZES];  /* GB/s, read and written */
    const char *bf16_by;
} top;

/* seconds of `rounds` rounds of `chains` multiply-adds; in: the registers' letter */
#define CHAIN_LOOP(name, at, in, chains, vector, set, step) \
    static at double name(int64_t rounds) { \
        vector s[chains]; \
        const double begin = now(); \
        _Pragma("GCC unroll 32") for (int i = 0; i < chains; i++) s[i] = set; \
        for (int64_t r = 0; r < rounds; r++) { \
            _Pragma("GCC unroll 32") for (int i = 0; i < chains; i++) { step; __asm__ volatile("" : in(s[i])); } \
        } \
        const double end = now(); \
        return end - begin; \
    }
#if defined(__x86_64__)
#define AT(features) __attribute__((target(features), noinline))
CHAIN_LOOP(fma_512, AT("avx512f"), "+v", CHAINS_32, __m512, _mm512_set1_ps((float)i),
           s[i] = _mm512_fmadd_ps(s[i], _mm512_set1_ps(0.999f), _mm512_set1_ps(0.001f)))
CHAIN_LOOP(fma_256, AT("avx2,fma"), "+x", CHAINS_16, __m256, _mm256_set1_ps((float)i),
           s[i] = _mm256_fmadd_ps(s[i], _mm256_set1_ps(0.999f), _mm256_set1_ps(0.001f)))
CHAIN_LOOP(dot_bf16, AT("avx512f,avx512bf16"), "+v", CHAINS_32, __m512, _mm512_set1_ps((float)i),
           s[i] = _mm512_dpbf16_ps(s[i], (__m512bh)_mm512_set1_epi32(0x3C003C00),
                                   (__m512bh)_mm512_set1_epi32(0x3C003C00)))
static AT("avx2") double amx_bf16(int64_t rounds) {    /* two tiles of sums, as many multiply-adds as 4 of them allow */
    struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } c = {.palette = 1};
    static _Alignas(64) char zero[1024];
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(c));
    __asm__ volatile(
        "tileloadd (%0,%1,1), %%tmm4\n\ttileloadd (%0,%1,1), %%tmm5\n\ttilezero %%tmm0\n\ttilezero %%tmm1\n\t"
        "tilezero %%tmm2\n\ttilezero %%tmm3" ::"r"(zero),
        "r"((int64_t)64)
        : "memory");
    const double begin = now();
    for (int64_t r = 0; r < rounds; r++)
        __asm__ volatile("tdpbf16ps %tmm5, %tmm4, %tmm0\n\ttdpbf16ps %tmm5, %tmm4, %tmm1\n\ttdpbf16ps %tmm5, %tmm4, "
                         "%tmm2\n\ttdpbf16ps %tmm5, %tmm4, %tmm3");
    const double end = now();
    __asm__ volatile("tilerelease");
    return end - begin;
}
static bool has_bf16(void) {
    uint32_t r[4];
    __asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(7), "c"(1));
    return __builtin_cpu_supports("avx512f") && r[0] >> 5 & 1;
}
static bool has_amx(void) {          /* and the system's leave to use it */
    uint32_t r[4];
    __asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(7), "c"(0));
    return (r[3] >> 22 & 1) && (r[3] >> 24 & 1) && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif
typedef float lane4 __attribute__((vector_size(16)));
#ifdef __aarch64__
#define ANY "+w"
#else
#define ANY "+x"
#endif
CHAIN_LOOP(fma_128, __attribute__((noinline)), ANY, CHAINS_16, lane4, ((lane4){(float)i, 1, 2, 3}),
           s[i] = s[i] * 0.999f + 0.001f)

/* flops of one round -> GFLOP/s of all threads; the best of several short runs */
static double rate_of(double (*loop)(int64_t), double flops) {
    double best = 0;
    const int64_t rounds = 1 << 19;
    for (int rep = 0; rep < 6; rep++) {
        double slowest = 0;
#pragma omp parallel num_threads((int)opt.threads) reduction(max : slowest)
        slowest = loop(rounds);
        best = fmax(best, (double)opt.threads * flops * (double)rounds / slowest * 1e-9);
    }
    return best;
}
static void copy_part(char *to, const char *from, size_t n) { memcpy(to, from, n); __asm__ volatile("" ::: "memory"); }
#define READ_PART(name, at, bytes)  /* reads n bytes in vectors */ \
    typedef int64_t name##_v __attribute__((vector_size(bytes), may_alias)); \
    static at void name(const char *p, size_t n) { \
        name##_v s[4] = {{0}}; \
        for (size_t i = 0; i + 4 * bytes <= n; i += 4 * bytes) \
            _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) \
                s[k] ^= *(const name##_v *)(const void *)(p + i + (size_t)k * bytes); \
        volatile int64_t sink = s[0][0] ^ s[1][0] ^ s[2][0] ^ s[3][0]; \
        (void)sink; \
    }
READ_PART(read_16, , 16)
#if defined(__x86_64__)
READ_PART(read_32, AT("avx2"), 32)
READ_PART(read_64, AT("avx512f"), 64)
#endif
static void (*best_read(void))(const char *, size_t) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_64;
    if (__builtin_cpu_supports("avx2")) return read_32;
#endif
    return read_16;
}
static void fill_part(char *p, size_t n) { memset(p, 1, n); __asm__ volatile("" ::: "memory"); }
static void change_part(char *p, size_t n) {
    wrpo__v_generic *x = (void *)p;
    for (size_t i = 0; i < n / sizeof *x; i++) x[i] = x[i] * 0.5f;
    __asm__ volatile("" ::: "memory");
}
static void use_part(int use, char *a, char *b, size_t n) {  /* moves n bytes */
    if (use == COPIED) copy_part(a, b, n / 2);
    else if (use == READ) best_read()(a, n);
    else if (use == CHANGED) change_part(a, n / 2);
    else fill_part(a, n);
}
static void measure_fma(void) {  /* the best so far stays, as a ceiling that was disturbed is too low */
#if defined(__x86_64__)
    const bool wide = strstr(backend()->name, "avx512") != NULL;  /* the vectors of the backend */
    const bool fma = wide || strstr(backend()->name, "avx2") != NULL;
    if (wide) top.fma = fmax(top.fma, rate_of(fma_512, CHAINS_32 * 32));
    if (fma) top.half = fmax(top.half, rate_of(fma_256, CHAINS_16 * 16));
    if (!wide) top.fma = top.half, top.half = 0;
    const bool amx = wide && has_amx(), pairs = wide && !amx && has_bf16();
    if (amx) top.bf16 = fmax(top.bf16, rate_of(amx_bf16, 4 * 16 * 16 * 32 * 2)), top.bf16_by = "tdpbf16ps (AMX)";
    if (pairs) top.bf16 = fmax(top.bf16, rate_of(dot_bf16, CHAINS_32 * 64)), top.bf16_by = "vdpbf16ps";
#endif
    if (top.fma == 0) top.fma = fmax(top.fma, rate_of(fma_128, CHAINS_16 * 8));
    if (top.bf16 < top.fma) top.bf16 = top.fma, top.bf16_by = "the same";
}
static void measure_ceilings(void) {
    measure_fma();
    const size_t most = (size_t)1 << (18 + SIZES - 1);
    char *a = get(most), *b = get(most);
    for (int use = 0; use < USES; use++)
        for (int i = 0; i < SIZES; i++) {
            const size_t part = ((size_t)1 << (18 + i)) / (size_t)opt.threads / 128 * 128;
            const int64_t times = WRPO__MAX(2, (int64_t)(((size_t)1 << 28) / ((size_t)1 << (18 + i))));
            for (int rep = 0; rep < 6; rep++) {
                const double begin = now();
#pragma omp parallel num_threads((int)opt.threads)
                for (int64_t t = 0; t < times; t++) {
                    const size_t at = (size_t)omp_get_thread_num() * part;
                    use_part(use, a + at, b + at, part);
                }
                const double rate = (double)(part * (size_t)opt.threads) * (double)times / (now() - begin) * 1e-9;
                top.bytes[use][i] = fmax(top.bytes[use][i], rate);
            }
        }
    for (int use = 0; use < USES; use++)  /* a smaller set is not slower: it was only disturbed */
        for (int i = SIZES - 1; i-- > 0;) top.bytes[use][i] = fmax(top.bytes[use][i], top.bytes[use][i + 1]);
    free(a), free(b);
}
static double memory_rate(int use, double bytes) {  /* GB/s at a working set of this size */
    int i = 0;
    while (i + 1 < SIZES && (double)((size_t)1 << (18 + i)) < bytes) i++;
    return top.bytes[use][i];
}
/* The CPU, its vectors, and whether the widest are native: in halves they are no faster than half as wide ones. */
static void print_machine(void) {
    char line[256] = "", name[200] = "?";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %199[^\n]", name) == 1) break;
    if (f) fclose(f);
#if defined(__x86_64__)
    unsigned eax = 0, b, c, d;
    __get_cpuid(1, &eax, &b, &c, &d);
    const unsigned family = (eax >> 8 & 15) + (eax >> 20 & 255), model = (eax >> 4 & 15) | (eax >> 12 & 0xF0);
    printf("CPU: %s, family %u model %u; ", name, family, model);
#else
    printf("CPU: %s; ", name);
#endif
    if (top.half > 0) printf("AVX-512 %s (%.2fx of AVX2); ", top.fma > 1.4 * top.half ? "native" : "in halves",
                             top.fma / top.half);
    printf("dispatch: %s of %s\n", backend()->name, wrpo_backend_cpu()->name);
}
static void print_ceilings(void) {
    print_machine();
    printf("ceilings, %d threads: fp32 multiply-adds %.0f GFLOP/s; bf16 %.0f GFLOP/s (%s)\n", (int)opt.threads, top.fma,
           top.bf16, top.bf16_by);
    printf("GB/s by working set, copy | read | changed in place | filled: ");
    for (int i = 0; i < SIZES; i += 3)
        printf("%s%zu KiB %.0f | %.0f | %.0f | %.0f", i ? ", " : "", (size_t)256 << i, top.bytes[COPIED][i],
               top.bytes[READ][i], top.bytes[CHANGED][i], top.bytes[FILLED][i]);
    printf("\n");
}
/* ---- was this figure disturbed? The same chain of additions on every thread, before and after it: what a neighbour on
   the core, or another process, takes makes it slower than its best ---- */
static double spin_best = 1e9;
static double spin(void) {
    double slowest = 0;
#pragma omp parallel num_threads((int)opt.threads) reduction(max : slowest)
    {
        const double begin = now();
        uint64_t x = 1;
        for (int i = 0; i < 200000; i++) {
            x += x << 1 ^ (uint64_t)i;
            __asm__ volatile("" : "+r"(x));
        }
        slowest = now() - begin;
    }
    spin_best = fmin(spin_best, slowest);
    return slowest;
}
static const char *disturbed(double before) {
    return fmax(before, spin()) > 1.1 * spin_best ? " (disturbed)" : "";
}
/* A share above this says that the ceiling is not one: of bytes, caches held them. */
static int above;
static const char *checked(double share) {
    if (share <= 102) return "";
    above++;
    return " ABOVE ITS CEILING";
}

/* ---- was the machine ours? The share of all processors that others used since the start, from Linux's /proc/stat ----
 */
static double busy_seconds(double *own) {
    double user = 0, nice = 0, system = 0;
    struct rusage u;
    FILE *f = fopen("/proc/stat", "r");
    if (f && fscanf(f, "cpu %lf %lf %lf", &user, &nice, &system) != 3) user = nice = system = 0;
    if (f) fclose(f);
    getrusage(RUSAGE_SELF, &u);
    *own = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
    getrusage(RUSAGE_CHILDREN, &u);
    *own += (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
    return (user + nice + system) / (double)sysconf(_SC_CLK_TCK);
}
static double start_busy, start_own, start_time;
static void others_begin(void) { start_busy = busy_seconds(&start_own), start_time = now(); }
static void others_end(void) {
    double own,
        busy = busy_seconds(&own),
        share = (busy - start_busy - (own - start_own)) / (now() - start_time) / (double)sysconf(_SC_NPROCESSORS_ONLN);
    fprintf(stderr, "bench: other processes used %.1f %% of the processors%s\n", 100 * fmax(share, 0),
            share > 0.03 ? ": DO NOT TRUST THESE FIGURES" : "");
}

/* ---- what is ideal, for the stopwatch of watch.h: the rates that `top` has measured ---- */
static double peak_of(bool bf16) { return (bf16 ? top.bf16 : top.fma) * 1e9; }
static double ideal_of_flops(double flops, bool attention) { return flops / peak_of(!attention && opt.bf16); }
static double ideal_of_bytes(double bytes, int use) {
    return bytes > 0 ? bytes * 1e-9 / memory_rate(use, bytes) : 0;
}
#include "watch.h"

/* ---- a training run to watch: real files, or a random model and records ---- */
static const struct shape {
    const char *name;
    int64_t V, D, I, L, H, G, d;
    double theta;
    const char *rope;
} shapes[] = {{"smollm2", 49152, 576, 1536, 30, 9, 3, 64, 1e5, ""},
              {"llama1b", 128256, 2048, 8192, 16, 32, 8, 64, 5e5,
               ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32.0,\"low_freq_factor\":1.0,"
               "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}"}};
typedef struct run_of { wrpo_ctx *ctx; wrpo_model *model; wrpo_tokenizer *tok; wrpo_data *data; } run_of;
static void need(wrpo_ctx *ctx, wrpo_result r) { if (r != WRPO_OK) die(wrpo_last_error(ctx)->text); }
static char config_of_random[64];    /* a save of the model reads it: it stays until the end */
static void remove_config(void) { remove(config_of_random); }
static const struct shape *random_model(run_of *r) {
    const struct shape *s = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) if (!strcmp(opt.shape, shapes[i].name)) s = &shapes[i];
    if (!s) die("--shape: want smollm2 or llama1b");
    const int64_t V = opt.vocab ? opt.vocab : s->V, L = opt.layers ? opt.layers : s->L;
    char *path = strcpy(config_of_random, "/tmp/wrpo_bench_XXXXXX");
    const int fd = mkstemp(path);
    if (fd < 0) die("no temporary file");
    atexit(remove_config);
    FILE *f = fdopen(fd, "w");
    fprintf(f,
            "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":%lld,\"hidden_size\":%"
            "lld,\"intermediate_size\":%lld,"
            "\"num_hidden_layers\":%lld,\"num_attention_heads\":%lld,\"num_key_value_heads\":%lld,\"head_dim\":%lld,"
            "\"max_position_embeddings\":131072,"
            "\"rms_norm_eps\":1e-5,\"rope_theta\":%g%s,\"initializer_range\":0.02,\"tie_word_embeddings\":true,"
            "\"hidden_act\":\"silu\",\"torch_dtype\":\"float32\"}",
            (long long)V, (long long)s->D, (long long)s->I, (long long)L, (long long)s->H, (long long)s->G,
            (long long)s->d, s->theta, s->rope);
    fclose(f);
    need(r->ctx, wrpo_model_init(r->ctx, &(wrpo_init_desc){.config = path, .seed = 1}, &r->model));
    return s;
}
static run_of open_run(const wrpo_backend *be) {
    run_of r = {0};
    const wrpo_desc desc = {.backend = be, .threads = (int)opt.threads, .dtype = dtype_of()};
    if (wrpo_open(&desc, &r.ctx) != WRPO_OK) die("out of memory");
    if (!opt.model != !opt.data) die("want --model and --data together");
    if (opt.model) {
        need(r.ctx, wrpo_model_load(r.ctx, &(wrpo_model_desc){.dir = opt.model, .frozen = opt.lora > 0}, &r.model));
        need(r.ctx, wrpo_tokenizer_load(r.ctx, opt.model, &r.tok));
        const wrpo_data_desc d = {.path = opt.data, .max_length = opt.max_length, .limit = opt.records};
        need(r.ctx, wrpo_data_load(r.tok, &d, &r.data));
        return r;
    }
    const struct shape *s = random_model(&r);
    const int64_t V = opt.vocab ? opt.vocab : s->V, K = opt.responses;
    if (K < 1 || opt.records < 1 || opt.prompt < 1 || opt.response < 2)
        die("want at least one record, response and token");
    wrpo_record *records = get((size_t)opt.records * sizeof *records);
    /* K = 1: sft; 2: a pair; more: K - 2 sources, a target, a rejected one */
    for (int64_t i = 0; i < opt.records; i++) {
        wrpo_tokens *y = get((size_t)K * sizeof *y);
        const int64_t P = opt.equal
            ? opt.prompt
            : opt.prompt / 2 + (int64_t)(wrpo__random64(1, (uint64_t)i, 0) % (uint64_t)(opt.prompt + 1));
        for (int64_t k = -1; k < K; k++) {
            const int64_t R = k < 0 ? P
                : opt.equal         ? opt.response
                                    : opt.response / 2 +
                    (int64_t)(wrpo__random64(2, (uint64_t)i, (uint64_t)k) % (uint64_t)(opt.response + 1));
            int32_t *ids = get((size_t)R * sizeof *ids);
            for (int64_t j = 0; j < R; j++)
                ids[j] = (int32_t)(wrpo__random64(3, (uint64_t)(i * 64 + k + 1), (uint64_t)j) % (uint64_t)V);
            if (k < 0) records[i].prompt = ids;
            else
                y[k] = (wrpo_tokens){.role = K == 1 || k < K - 2 ? WRPO_ROLE_SOURCE
                                         : k == K - 2            ? WRPO_ROLE_TARGET
                                                                 : WRPO_ROLE_REJECTED,
                                     .ids = ids,
                                     .count = R,
                                     .share = K > 2 && k < K - 2 ? 1 / (double)(K - 2) : 1};
        }
        records[i].prompt_id = "bench", records[i].line = i + 1, records[i].prompt_count = P, records[i].responses = y,
        records[i].count = (int)K;
    }
    need(r.ctx, wrpo_data_from_ids(r.ctx, records, opt.records, &r.data));
    for (int64_t i = 0; i < opt.records; i++) {
        for (int64_t k = 0; k < K; k++) free((void *)(uintptr_t)records[i].responses[k].ids);
        free((void *)(uintptr_t)records[i].prompt), free((void *)(uintptr_t)records[i].responses);
    }
    free(records);
    return r;
}
static void close_run(run_of *r) {
    wrpo_data_free(r->data), wrpo_tokenizer_free(r->tok), wrpo_model_free(r->model), wrpo_close(r->ctx);
}
typedef struct outcome { double reference, step, least, seconds; wrpo_metrics m; wrpo_bytes bytes; } outcome;
/* The reference pass, one step to warm up, then opt.steps steps; timing is on for those, and for the reference if all
   is set. */
static outcome train(run_of *r, bool all) {
    wrpo_trainer *t;
    outcome o = {0};
    double steps[64];
    if (opt.steps < 1 || opt.steps > 64) die("want 1 to 64 steps");
    wrpo_train_desc d = {.batch_size = opt.records,
                         .max_steps = opt.steps + 1,
                         .no_shuffle = true,
                         .micro_tokens = opt.micro_tokens,
                         .recompute = opt.recompute,
                         .learning_rate = 1e-5,
                         .loss = {.beta = 0.1},
                         .epochs = (double)opt.steps + 1};
    if (opt.responses == 1 && !opt.model) d.loss = (wrpo_loss_desc){.method = WRPO_METHOD_SFT};
    if (opt.responses == 2 && !opt.model) d.loss.method = WRPO_METHOD_DPO;
    const wrpo_adapter_desc adapter = {.r = opt.lora};
    if (opt.lora) need(r->ctx, wrpo_adapter_new(r->model, &adapter));
    need(r->ctx, wrpo_train_bytes(r->ctx, wrpo_model_config(r->model), r->data, &d, opt.lora ? &adapter : NULL,
                                  &o.bytes));
    timing = all;
    double begin = now();
    need(r->ctx, wrpo_trainer_open(r->model, r->data, &d, &t));
    o.reference = now() - begin;
    timing = false;
    need(r->ctx, wrpo_trainer_step(t, &o.m));
    timing = true;
    for (int64_t i = 0; i < opt.steps; i++) {
        begin = now();
        need(r->ctx, wrpo_trainer_step(t, &o.m));
        steps[i] = now() - begin, o.seconds += steps[i];
    }
    timing = false;
    o.step = median(steps, opt.steps), o.least = steps[0];
    wrpo_trainer_free(t);
    return o;
}
static int by_seconds(const void *a, const void *b) {
    const double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return x > y ? -1 : x < y;
}
static void profile(void) {
    wrpo_backend be = watched(backend());
    measure_ceilings();
    print_ceilings();
    run_of r = open_run(&be);
    const double before = spin();
    const outcome o = train(&r, false);
    const char *noise = disturbed(before);
    const int64_t n = opt.steps;
    measure_fma();
    double inside = 0, ideal = 0, flops = 0;
    printf("%s, %s: %lld parameters; a step of %lld records, %lld rows (prompts once): %.2f s, %.0f rows/s; reference "
           "pass and set-up before: %.2f s\n",
           inner->name, opt.bf16 ? "bf16" : "fp32", (long long)wrpo_model_parameters(r.model), (long long)o.m.records,
           (long long)o.m.tokens, o.seconds / (double)n, (double)(o.m.tokens * n) / o.seconds, o.reference);
    qsort(rows, (size_t)n_rows, sizeof *rows, by_seconds);
    printf("| op | calls a step | ms a step | share of the step | rate | share of its ceiling "
           "|\n|---|---|---|---|---|---|\n");
    for (int i = 0; i < n_rows; i++) {
        const row *w = &rows[i];
        inside += w->seconds, ideal += w->ideal, flops += w->flops;
        const double share = 100 * w->ideal / w->seconds;
        printf("| %-30s | %5lld | %8.2f | %5.2f %% | %6.1f %s | %5.1f %%%s |\n", w->name, (long long)(w->calls / n),
               w->seconds / (double)n * 1e3, 100 * w->seconds / o.seconds,
               (w->flops > 0 ? w->flops : w->bytes) / w->seconds * 1e-9, w->flops > 0 ? "GFLOP/s" : "GB/s", share,
               w->seconds > 1e-2 * o.seconds ? checked(share) : "");
    }
    printf("| %-30s |       | %8.2f | %5.2f %% | | |\n", "outside of all ops (host)",
           (o.seconds - inside) / (double)n * 1e3, 100 * (o.seconds - inside) / o.seconds);
    printf("| %-30s |       | %8.2f | 100 %% | %6.1f GFLOP/s | %5.1f %%%s |\n", "a step", o.seconds / (double)n * 1e3,
           flops / o.seconds * 1e-9, 100 * ideal / o.seconds, noise);
    close_run(&r);
}
/* The records' sequences as a trainer without shared prompts computes them: every response with its prompt. */
static int64_t sequence_tokens(const wrpo_data *data) {
    int64_t n = 0;
    for (int64_t i = 0; i < wrpo_data_count(data); i++) {
        const wrpo_record record = wrpo_data_record(data, i);
        for (int k = 0; k < record.count; k++) n += record.prompt_count + record.responses[k].count;
    }
    return n;
}
static int64_t peak_kib(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (int64_t)u.ru_maxrss;
}
static void step(void) {
    wrpo_backend be = watched(backend());
    const int64_t before = peak_kib();
    run_of r = open_run(&be);
    const outcome o = train(&r, false);
    const int64_t peak = peak_kib();
    double flops = 0, bytes = 0, attention = 0;
    for (int i = 0; i < n_rows; i++) {
        flops += rows[i].flops, bytes += rows[i].bytes;
        if (!strncmp(rows[i].name, "attention", 9)) attention += rows[i].seconds;
    }
    printf("step %.4f least %.4f reference %.4f rows %lld tokens %lld gflop %.3f gbyte %.3f peak_mib %.1f "
           "predicted_mib %.1f start_mib %.1f attention %.4f\n",
           o.step, o.least, o.reference, (long long)o.m.tokens, (long long)sequence_tokens(r.data),
           flops / (double)opt.steps * 1e-9, bytes / (double)opt.steps * 1e-9, (double)peak / 1024,
           (double)o.bytes.total / 1048576, (double)before / 1024, attention / (double)opt.steps);
    close_run(&r);
}

/* ---- decoding: steps of one row for each of --batch samples, beside the speed at which memory is read ---- */
static struct { int64_t steps; double last, *seconds, *read; char *buffer; } walk;
enum { WALK_BYTES = 1 << 28, WALK_FIRST = 8, WALK_EVERY = 16 };
static double read_rate(const char *p, size_t bytes) {   /* GB/s of all threads, once over the bytes */
    const size_t part = bytes / (size_t)opt.threads / 4096 * 4096;
    const double begin = now();
#pragma omp parallel num_threads((int)opt.threads)
    best_read()(p + (size_t)omp_get_thread_num() * part, part);
    return (double)part * (double)opt.threads / (now() - begin) * 1e-9;
}
static bool walk_step(int64_t prompts, int64_t tokens, void *user) {
    (void)prompts, (void)tokens, (void)user;
    const double t = now();
    if (timing) walk.seconds[walk.steps - WALK_FIRST] = t - walk.last;
    if (walk.steps % WALK_EVERY == 0)
        walk.read[walk.steps / WALK_EVERY] = read_rate(walk.buffer, WALK_BYTES);
    timing = ++walk.steps >= WALK_FIRST;
    walk.last = now();
    return true;
}
static void decode(void) {
    wrpo_backend be = watched(backend());
    wrpo_model *model;
    char dir[64] = "/tmp/wrpo_bench_XXXXXX", path[128];
    const wrpo_dtype type = !strcmp(opt.weights, "f32") ? WRPO_DTYPE_F32
        : !strcmp(opt.weights, "bf16")                  ? WRPO_DTYPE_BF16
                                                        : WRPO_DTYPE_F16;
    if (type == WRPO_DTYPE_F16 && strcmp(opt.weights, "f16") != 0) die("--weights: want f32, bf16 or f16");
    if (opt.tokens < 2 * WALK_FIRST || opt.batch < 1) die("want at least 16 tokens and one sample");
    measure_ceilings();
    run_of r = {0};
    const wrpo_desc desc = {.backend = &be, .threads = (int)opt.threads, .dtype = dtype_of()};
    if (wrpo_open(&desc, &r.ctx) != WRPO_OK) die("out of memory");
    if (!mkdtemp(dir)) die("no temporary directory");
    if (opt.model) need(r.ctx, wrpo_model_load(r.ctx, &(wrpo_model_desc){.dir = opt.model, .frozen = true}, &r.model));
    else random_model(&r);
    need(r.ctx, wrpo_model_save(r.model, &(wrpo_save_desc){.dir = dir, .dtype = type, .max_shard_size = INT64_MAX}));
    wrpo_model_free(r.model);
    need(r.ctx, wrpo_model_load(r.ctx, &(wrpo_model_desc){.dir = dir, .frozen = true}, &model));
    const wrpo_weight *w;
    const int64_t count = wrpo_model_weights(model, &w), most = wrpo_model_config(model)->max_position_embeddings;
    const bool tied = wrpo_model_config(model)->tie_word_embeddings;
    double bytes = 0, elements = 0;
    for (int64_t i = 0; i < count; i++)
        if (!w[i].vector && (tied || !strstr(w[i].name, "embed_tokens"))) {
            const double n = (double)(w[i].rows * w[i].cols);
            elements += n, bytes += n * (w[i].dtype == WRPO_DTYPE_F32 ? 4 : 2);
        }
    wrpo_prompt *prompts = get((size_t)opt.batch * sizeof *prompts);
    int32_t *ids = get((size_t)opt.batch * 16 * sizeof *ids);
    for (int64_t i = 0; i < opt.batch * 16; i++) ids[i] = (int32_t)(wrpo__random64(4, 0, (uint64_t)i) % 1000);
    for (int64_t i = 0; i < opt.batch; i++) prompts[i] = (wrpo_prompt){.ids = ids + i * 16, .count = 16};
    const int64_t tokens = WRPO__MIN(opt.tokens, most - 16);
    const int32_t never = -1;
    walk.seconds = get((size_t)(tokens + 1) * sizeof(double)), walk.read = get((size_t)(tokens + 16) * sizeof(double));
    walk.buffer = get(WALK_BYTES);
    walk.last = now();
    need(r.ctx, wrpo_generate(model, prompts, opt.batch,
                              &(wrpo_generate_desc){.max_tokens = tokens, .batch = opt.batch, .stop = &never,
                                                    .on_step = walk_step}));
    const int64_t n = walk.steps - WALK_FIRST, reads = (walk.steps - 1) / WALK_EVERY + 1;
    double *sorted = get((size_t)n * sizeof *sorted), inside = 0, all = 0, most_read = 0;
    memcpy(sorted, walk.seconds, (size_t)n * sizeof *sorted);
    for (int64_t i = 0; i < n; i++) all += walk.seconds[i];
    for (int64_t i = 0; i < reads; i++) most_read = fmax(most_read, walk.read[i]);
    const double middle = median(sorted, n), least = sorted[n / 10], read = median(walk.read, reads);
    const double flops = 2 * elements * (double)opt.batch;
    printf("%s, weights %s, context %s, %d threads, %lld samples at once: %.1f tokens/s (median step), %.1f (best "
           "tenth); weights read at %.1f, %.1f GB/s; memory reads %.1f (median), %.1f (best) GB/s: %.0f %%, %.0f %%; "
           "%.1f, %.1f GFLOP/s\n", inner->name, opt.weights, opt.bf16 ? "bf16" : "f32", (int)opt.threads,
           (long long)opt.batch, (double)opt.batch / middle, (double)opt.batch / least, bytes / middle * 1e-9,
           bytes / least * 1e-9, read, most_read, 100 * bytes / middle * 1e-9 / read,
           100 * bytes / least * 1e-9 / most_read, flops / middle * 1e-9, flops / least * 1e-9);
    qsort(rows, (size_t)n_rows, sizeof *rows, by_seconds);
    printf("| op | calls a step | us a step | share | rate |\n|---|---|---|---|---|\n");
    for (int i = 0; i < n_rows; i++) {
        const row *o = &rows[i];
        inside += o->seconds;
        printf("| %-30s | %5lld | %8.1f | %5.2f %% | %6.1f %s |\n", o->name, (long long)(o->calls / n),
               o->seconds / (double)n * 1e6, 100 * o->seconds / all,
               (o->flops > 0 ? o->flops : o->bytes) / o->seconds * 1e-9, o->flops > 0 ? "GFLOP/s" : "GB/s");
    }
    printf("| %-30s |       | %8.1f | %5.2f %% | |\n", "outside of all ops (host)", (all - inside) / (double)n * 1e6,
           100 * (all - inside) / all);
    wrpo_model_free(model), wrpo_close(r.ctx);
    snprintf(path, sizeof path, "%s/model.safetensors", dir), remove(path);
    snprintf(path, sizeof path, "%s/config.json", dir), remove(path);
    snprintf(path, sizeof path, "%s/generation_config.json", dir), remove(path);
    remove(dir);
}

/* ---- kernels, beside the libraries ---- */
typedef struct product { int64_t m, n, k; wrpo_mm mm; float beta; } product;   /* c[m, n] (+)= a b, as wrpo_mm says */
typedef struct operands { float *a, *b, *c; uint16_t *a16, *b16; float *c_ours; } operands;
static struct {
    void (*sgemm)(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
    char what[160];
} blas;
static void load_blas(void) {
    const char *name = getenv("BENCH_OPENBLAS");
    unsetenv("OPENBLAS_CORETYPE"), unsetenv("OPENBLAS_L2_SIZE");
    if (name && *name) setenv("OPENBLAS_CORETYPE", name, 1);
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!lib) { snprintf(blas.what, sizeof blas.what, "not installed"); return; }
    void *symbol = dlsym(lib, "cblas_sgemm");
    memcpy(&blas.sgemm, &symbol, sizeof symbol);
    void (*threads)(int);
    char *(*config)(void);
    if ((symbol = dlsym(lib, "openblas_set_num_threads")))
        memcpy(&threads, &symbol, sizeof symbol), threads((int)opt.threads);
    if ((symbol = dlsym(lib, "openblas_get_config")))
        memcpy(&config, &symbol, sizeof symbol), snprintf(blas.what, sizeof blas.what, "%s", config());
}
static void run_blas(const product *p, const operands *x) {
    const bool ta = p->mm == WRPO_MM_TN, tb = p->mm == WRPO_MM_NT;
    blas.sgemm(101, ta ? 112 : 111, tb ? 112 : 111, (int)p->m, (int)p->n, (int)p->k, 1, x->a, (int)(ta ? p->m : p->k),
               x->b, (int)(tb ? p->k : p->n), p->beta, x->c, (int)p->n);
}
#ifdef BENCH_DNNL
typedef struct dnnl { dnnl_engine_t engine; dnnl_stream_t stream; dnnl_primitive_t p; dnnl_memory_t a, b, c; } dnnl;
static bool refused;                 /* oneDNN does not have a product on this CPU: its column stays empty */
static void ok(dnnl_status_t s) { if (s != dnnl_success) refused = true; }
static dnnl dnnl_make(const product *p, const operands *x, bool bf16) {
    dnnl d = {0};
    const bool ta = p->mm == WRPO_MM_TN, tb = p->mm == WRPO_MM_NT;
    const dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_dims_t da = {p->m, p->k}, db = {p->k, p->n}, dc = {p->m, p->n};
    ok(dnnl_engine_create(&d.engine, dnnl_cpu, 0));
    ok(dnnl_stream_create(&d.stream, d.engine, dnnl_stream_default_flags));
    dnnl_primitive_attr_t attr;
    ok(dnnl_primitive_attr_create(&attr));
    if (p->beta != 0) {
        dnnl_post_ops_t ops;
        ok(dnnl_post_ops_create(&ops));
#if DNNL_VERSION_MAJOR < 3
        ok(dnnl_post_ops_append_sum(ops, 1));
#else
        ok(dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef));
#endif
        ok(dnnl_primitive_attr_set_post_ops(attr, ops));
        ok(dnnl_post_ops_destroy(ops));
    }
    dnnl_primitive_desc_t pd;
#if DNNL_VERSION_MAJOR < 3
    dnnl_memory_desc_t ma, mb, mc;
    dnnl_matmul_desc_t md;
    ok(dnnl_memory_desc_init_by_tag(&ma, 2, da, type, ta ? dnnl_ba : dnnl_ab));
    ok(dnnl_memory_desc_init_by_tag(&mb, 2, db, type, tb ? dnnl_ba : dnnl_ab));
    ok(dnnl_memory_desc_init_by_tag(&mc, 2, dc, dnnl_f32, dnnl_ab));
    ok(dnnl_matmul_desc_init(&md, &ma, &mb, NULL, &mc));
    ok(dnnl_primitive_desc_create(&pd, &md, attr, d.engine, NULL));
    ok(dnnl_memory_create(&d.a, &ma, d.engine, bf16 ? (void *)x->a16 : x->a));
    ok(dnnl_memory_create(&d.b, &mb, d.engine, bf16 ? (void *)x->b16 : x->b));
    ok(dnnl_memory_create(&d.c, &mc, d.engine, x->c));
#else
    dnnl_memory_desc_t ma, mb, mc;
    ok(dnnl_memory_desc_create_with_tag(&ma, 2, da, type, ta ? dnnl_ba : dnnl_ab));
    ok(dnnl_memory_desc_create_with_tag(&mb, 2, db, type, tb ? dnnl_ba : dnnl_ab));
    ok(dnnl_memory_desc_create_with_tag(&mc, 2, dc, dnnl_f32, dnnl_ab));
    ok(dnnl_matmul_primitive_desc_create(&pd, d.engine, ma, mb, NULL, mc, attr));
    ok(dnnl_memory_create(&d.a, ma, d.engine, bf16 ? (void *)x->a16 : x->a));
    ok(dnnl_memory_create(&d.b, mb, d.engine, bf16 ? (void *)x->b16 : x->b));
    ok(dnnl_memory_create(&d.c, mc, d.engine, x->c));
    dnnl_memory_desc_destroy(ma), dnnl_memory_desc_destroy(mb), dnnl_memory_desc_destroy(mc);
#endif
    ok(dnnl_primitive_create(&d.p, pd));
    dnnl_primitive_desc_destroy(pd), dnnl_primitive_attr_destroy(attr);
    return d;
}
static void dnnl_run(const dnnl *d) {
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, d->a}, {DNNL_ARG_WEIGHTS, d->b}, {DNNL_ARG_DST, d->c}};
    ok(dnnl_primitive_execute(d->p, d->stream, 3, args));
    ok(dnnl_stream_wait(d->stream));
}
static void dnnl_drop(dnnl *d) {
    dnnl_primitive_destroy(d->p), dnnl_memory_destroy(d->a), dnnl_memory_destroy(d->b), dnnl_memory_destroy(d->c);
    dnnl_stream_destroy(d->stream), dnnl_engine_destroy(d->engine);
}
#endif
/* PyTorch in a process of its own: a line "dtype layout m n k" asks for the seconds of one product (NN as mm(a, b), NT
   as mm(a, w.t()), TN as c.addmm_(a.t(), b)); bf16 results are bf16 there. */
static FILE *torch_in, *torch_out;
static char torch_what[200];
static void load_torch(void) {
    static const char *const program =
        "import sys, time, torch\n"
        "torch.set_num_threads(int(sys.argv[1])); torch.set_grad_enabled(False)\n"
        "print(torch.__version__, [l.strip(' -') for l in torch.__config__.show().split('\\n') if 'DNN' in l][0][:40], "
        "flush=True)\n"
        "key = None\n"
        "for line in sys.stdin:\n"
        "    dtype, layout, m, n, k = line.split(); m, n, k = int(m), int(n), int(k)\n"
        "    if key != line:\n"
        "        key, t = line, torch.bfloat16 if dtype == 'bf16' else torch.float32\n"
        "        a = torch.randn((k, m) if layout == 'TN' else (m, k)).to(t); b = torch.randn((n, k) if layout == 'NT' "
        "else (k, n)).to(t); c = torch.zeros(m, n, dtype=t)\n"
        "    f = {'NT': lambda: torch.mm(a, b.t(), out=c), 'NN': lambda: torch.mm(a, b, out=c), 'TN': lambda: "
        "c.addmm_(a.t(), b)}[layout]\n"
        "    f(); s = time.perf_counter(); f(); one = time.perf_counter() - s; times = max(1, int(0.04 / one)); s = "
        "time.perf_counter()\n"
        "    for _ in range(times): f()\n"
        "    print((time.perf_counter() - s) / times, flush=True)\n";
    int to[2], from[2];
    char threads[16];
    snprintf(threads, sizeof threads, "%d", (int)opt.threads);
    if (pipe(to) || pipe(from)) die("no pipe");
    const pid_t child = fork();
    if (child < 0) die("no process");
    if (child == 0) {
        dup2(to[0], 0), dup2(from[1], 1), close(to[1]), close(from[0]);
        setenv("OMP_NUM_THREADS", threads, 1);
        execlp(opt.torch, opt.torch, "-c", program, threads, (char *)NULL);
        _exit(127);
    }
    close(to[0]), close(from[1]);
    torch_in = fdopen(to[1], "w"), torch_out = fdopen(from[0], "r");
    if (!torch_in || !torch_out || !fgets(torch_what, sizeof torch_what, torch_out))
        die("--torch: the interpreter does not answer");
    torch_what[strcspn(torch_what, "\n")] = 0;
}
static double torch_seconds(const product *p, bool bf16) {
    double seconds = 0;
    fprintf(torch_in, "%s %s %lld %lld %lld\n", bf16 ? "bf16" : "f32", mm_name(p->mm), (long long)p->m, (long long)p->n,
            (long long)p->k);
    fflush(torch_in);
    if (fscanf(torch_out, "%lf", &seconds) != 1) die("--torch: the interpreter is gone");
    return seconds;
}
static void silence(void) { const struct timespec t = {.tv_nsec = 20000000}; nanosleep(&t, NULL); }
#define SECONDS(result, call) do { \
        silence(); \
        call; \
        double t_ = now(); \
        call; \
        const int64_t times_ = WRPO__MAX(1, (int64_t)(0.04 / (now() - t_))); \
        t_ = now(); \
        for (int64_t i_ = 0; i_ < times_; i_++) call; \
        result = (now() - t_) / (double)times_; \
    } while (0)
enum { OURS, OPENBLAS, ONEDNN, TORCH, ENGINES };
static void kernel_row(const char *what, const product *p, const wrpo_backend *be, void *dev, const operands *x,
                       bool bf16, double *logs, int *counts, double *least) {
    double t[ENGINES][99] = {{0}};
    static const char *const names[] = {"NT", "NT", "NN", "TN"};
    const int64_t lda = p->mm == WRPO_MM_TN ? p->m : p->k, ldb = p->mm == WRPO_MM_NT ? p->k : p->n;
    const void *b = bf16 && p->mm != WRPO_MM_TN ? (const void *)x->b16 : x->b;
#ifdef BENCH_DNNL
    refused = false;
    dnnl d = dnnl_make(p, x, bf16);
    const bool has_dnnl = !refused;
#endif
    char line[200];
    snprintf(line, sizeof line, "| %s | %s | %s | %lld x %lld x %lld |", what, bf16 ? "bf16" : "fp32", names[p->mm],
             (long long)p->m, (long long)p->n, (long long)p->k);
    if (!opt.only || strstr(line, opt.only)) {
        const double before = spin();
        measure_fma();
        for (int64_t r = 0; r < opt.reps; r++) {
            SECONDS(t[OURS][r],
                    be->gemm(dev, p->mm, x->c_ours, p->n, x->a, lda, b, ldb, bf16 ? WRPO_DTYPE_BF16 : WRPO_DTYPE_F32,
                             p->m, p->n, p->k, p->beta));
            if (blas.sgemm && !bf16) SECONDS(t[OPENBLAS][r], run_blas(p, x));
#ifdef BENCH_DNNL
            if (has_dnnl) SECONDS(t[ONEDNN][r], dnnl_run(&d));
#endif
            if (torch_in) { silence(); t[TORCH][r] = torch_seconds(p, bf16); }
        }
        const double flops = 2.0 * (double)p->m * (double)p->n * (double)p->k, ours = median(t[OURS], opt.reps);
        measure_fma();
        const double share = 100 * flops / ours / peak_of(bf16);
        printf("%s %.0f%s | %.0f %%%s |", line, flops / ours * 1e-9, disturbed(before), share, checked(share));
        for (int e = 1; e < ENGINES; e++) {
            const double other = median(t[e], opt.reps), ratio = other / ours;
            if (other == 0) { printf(" | |"); continue; }
            printf(" %.0f | %.2f |", flops / other * 1e-9, ratio);
            logs[e] += log(ratio), counts[e]++, least[e] = fmin(least[e], ratio);
        }
        printf("\n");
        fflush(stdout);
    }
#ifdef BENCH_DNNL
    if (has_dnnl) dnnl_drop(&d);
#endif
}
/* rows x outputs x inputs of a layer, in its three products */
static void kernels(void) {
    static const int64_t shape[][3] = {{512, 576, 576},    {512, 1536, 576},   {512, 49152, 576}, {1024, 2048, 2048},
                                       {1024, 8192, 2048}, {512, 14336, 4096}, {768, 960, 576},   {768, 576, 576},
                                       {768, 3072, 576},   {768, 576, 1536},   {768, 49152, 576}};
    const size_t n = sizeof shape / sizeof *shape;
    if (opt.torch) load_torch();
    load_blas();
    omp_set_num_threads((int)opt.threads);
    measure_ceilings();
    print_ceilings();
    printf("OpenBLAS: %s\n", blas.what);
#ifdef BENCH_DNNL
    printf("oneDNN: %d.%d.%d\n", dnnl_version()->major, dnnl_version()->minor, dnnl_version()->patch);
#else
    printf("oneDNN: not installed when this was compiled\n");
#endif
    printf("PyTorch: %s\n", torch_in ? torch_what : "not asked for (--torch)");
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const wrpo_backend *be = inner = backend();
        wrpo_ctx *ctx;
        const wrpo_desc desc = {.backend = be, .threads = (int)opt.threads,
                                .dtype = bf16 ? WRPO_DTYPE_BF16 : WRPO_DTYPE_F32};
        if (wrpo_open(&desc, &ctx) != WRPO_OK)
            die("out of memory");
        double logs[ENGINES] = {0}, least[ENGINES] = {0, 1e9, 1e9, 1e9};
        int counts[ENGINES] = {0};
        printf("\n%s, %d threads, GFLOP/s; ratios: ours over theirs\n| of | type | layout | m x n x k | %s | of peak | "
               "OpenBLAS | ratio | oneDNN | ratio | PyTorch | ratio |\n"
               "|---|---|---|---|---|---|---|---|---|---|---|---|\n",
               bf16 ? "bf16" : "fp32", (int)opt.threads, be->name);
        for (size_t i = 0; i < n; i++) {
            const int64_t M = shape[i][0], N = shape[i][1], K = shape[i][2];
            const size_t size = (size_t)(WRPO__MAX(M * N, WRPO__MAX(M * K, N * K)));
            operands x = {.a = get(size * 4),
                          .b = get(size * 4),
                          .c = get(size * 4),
                          .c_ours = get(size * 4),
                          .a16 = get(size * 2),
                          .b16 = get(size * 2)};
            for (size_t j = 0; j < size; j++) {
                x.a[j] = (float)(j * 2654435761u >> 8 & 0xFFFF) / 65536 - 0.5f,
                x.b[j] = (float)(j * 2246822519u >> 8 & 0xFFFF) / 65536 - 0.5f;
                x.a16[j] = (uint16_t)(wrpo__float_bits(x.a[j]) >> 16),
                x.b16[j] = (uint16_t)(wrpo__float_bits(x.b[j]) >> 16);
            }
            const product layouts[] = {{M, N, K, WRPO_MM_NT, 0}, {M, K, N, WRPO_MM_NN, 0}, {N, K, M, WRPO_MM_TN, 1}};
            static const char *const whats[] = {"y = x W'", "dx = dy W", "dW += dy' x"};
            for (int l = 0; l < 3; l++) kernel_row(whats[l], &layouts[l], be, ctx->dev, &x, bf16, logs, counts, least);
            free(x.a), free(x.b), free(x.c), free(x.c_ours), free(x.a16), free(x.b16);
        }
        static const char *const engines[] = {"", "OpenBLAS", "oneDNN", "PyTorch"};
        for (int e = 1; e < ENGINES; e++)
            if (counts[e])
                printf("%s: geometric mean over %s %.2f, least %.2f, of %d products\n", bf16 ? "bf16" : "fp32",
                       engines[e], exp(logs[e] / counts[e]), least[e], counts[e]);
        wrpo_close(ctx);
    }
    if (torch_in) fclose(torch_in), fclose(torch_out), wait(NULL);
}

/* ---- the command line ---- */
static void usage(void) {
    die("usage: bench kernels|profile|step|ceilings [OPTIONS]; the comment on top of bench.c lists them");
}
int main(int argc, char **argv) {
    if (argc < 2) usage();
    const struct { const char *name; int64_t *number; const char **text; bool *flag;
    } table[] = {{"--threads", &opt.threads, 0, 0},
                 {"--reps", &opt.reps, 0, 0},
                 {"--max-length", &opt.max_length, 0, 0},
                 {"--layers", &opt.layers, 0, 0},
                 {"--vocab", &opt.vocab, 0, 0},
                 {"--records", &opt.records, 0, 0},
                 {"--prompt", &opt.prompt, 0, 0},
                 {"--response", &opt.response, 0, 0},
                 {"--responses", &opt.responses, 0, 0},
                 {"--recompute", &opt.recompute, 0, 0},
                 {"--micro-tokens", &opt.micro_tokens, 0, 0},
                 {"--steps", &opt.steps, 0, 0},
                 {"--lora", &opt.lora, 0, 0},
                 {"--model", 0, &opt.model, 0},
                 {"--data", 0, &opt.data, 0},
                 {"--shape", 0, &opt.shape, 0},
                 {"--torch", 0, &opt.torch, 0},
                 {"--only", 0, &opt.only, 0},
                 {"--backend", 0, &opt.backend, 0},
                 {"--weights", 0, &opt.weights, 0},
                 {"--batch", &opt.batch, 0, 0},
                 {"--tokens", &opt.tokens, 0, 0},
                 {"--equal", 0, 0, &opt.equal}};
    for (int i = 2; i < argc; i++) {
        size_t k = 0;
        const size_t n = sizeof table / sizeof *table;
        if (!strcmp(argv[i], "--dtype") && i + 1 < argc &&
            (!strcmp(argv[i + 1], "f32") || !strcmp(argv[i + 1], "bf16"))) {
            opt.bf16 = *argv[++i] == 'b';
            continue;
        }
        while (k < n && strcmp(argv[i], table[k].name) != 0) k++;
        if (k == n || (!table[k].flag && i + 1 == argc)) usage();
        if (table[k].flag) *table[k].flag = true;
        else if (table[k].text) *table[k].text = argv[++i];
        else {
            char *end;
            *table[k].number = strtoll(argv[++i], &end, 10);
            if (*end || end == argv[i]) usage();
        }
    }
    if (opt.threads < 1 || opt.threads > 4096 || opt.reps < 1 || opt.reps > 99) usage();
    others_begin();
    if (!strcmp(argv[1], "profile")) profile();
    else if (!strcmp(argv[1], "kernels")) kernels();
    else if (!strcmp(argv[1], "step")) step();
    else if (!strcmp(argv[1], "decode")) decode();
    else if (!strcmp(argv[1], "ceilings")) measure_ceilings(), print_ceilings();
    else usage();
    others_end();
    if (above)
        fprintf(stderr, "bench: %d figures are above 102 %% of their ceiling: of products, the ceiling was disturbed "
                "more than they were; of bytes, a cache held some, and the bound of a smaller set applies\n", above);
    return above > 0;
}
