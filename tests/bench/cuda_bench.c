/* The CUDA backend on the shapes of real models, through its op table: whole WRPO steps, the 8B step op by op, the
   numbers at those sizes, each kernel beside its floor (bytes over the measured bandwidth, FLOP over the measured rate
   of products). gpu.sh builds and runs it, each part in a process of its own.
   usage: cuda_bench [small] [wgmma] PART...     small: tiny shapes, one repetition: that it works where there is no GPU
   parts: step8 ops8 exact products attention streams decode step135 step1                 wgmma: products by it as well
   Where cuBLASLt cannot be opened, its products are left out, and with them what is relative to their rate. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "../support/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const wrpo_backend *be;
/* own: products by the backend's own kernel, wg: by its kernel of wgmma, where the device has it */
static wrpo_ctx *ctx, *own, *wg;
static bool small;
static double bandwidth, rate;       /* measured: bytes/s, FLOP/s; rate 0: not known, as cuBLASLt is not there */
static int failed;

static void check(bool ok, const char *what) {
    wrpo_error why = {WRPO_OK, 0, 0, ""};
    if (ok && be->sync(ctx->dev, &why) == WRPO_OK) return;
    printf("FAIL %s: %s\n", what, why.text[0] ? why.text : ctx->error.text);
    failed = 1;
}
#define TIME(seconds, dev, ...) do { \
        double begin_; \
        int times_ = 0; \
        wrpo_error why_; \
        __VA_ARGS__; \
        be->sync(dev, &why_); \
        begin_ = wrpo__now(); \
        do { \
            for (int i_ = 0; i_ < (small ? 1 : 10); i_++, times_++) { __VA_ARGS__; } \
            be->sync(dev, &why_); \
        } while (!small && wrpo__now() - begin_ < 0.1); \
        seconds = (wrpo__now() - begin_) / times_; \
    } while (0)
static double ideal_of_flops(double flops, bool attention) { return (void)attention, rate > 0 ? flops / rate : 0; }
enum { COPIED, READ, CHANGED, FILLED };                /* what an op does with memory: here all cost the same */
static double ideal_of_bytes(double bytes, int use) { return (void)use, bytes / bandwidth; }
#include "watch.h"
static void line(const char *name, double seconds, double bytes, double flop, const char *note) {
    const double floor_ = WRPO__MAX(ideal_of_bytes(bytes, COPIED), ideal_of_flops(flop, false));
    printf("%-44s %10.3f ms", name, seconds * 1e3);
    if (floor_ > 0) printf("  floor %9.3f  %5.1f %%", floor_ * 1e3, 100 * floor_ / seconds);
    if (flop > 0) printf("  %7.1f TFLOP/s", flop / seconds * 1e-12);
    else printf("  %7.0f GB/s   ", bytes / seconds * 1e-9);
    printf("  %s\n", note);
    fflush(stdout);
}
/* n numbers of a device's memory: bf16 or float, about N(0, scale). They repeat after PIECE, which is a prime: no two
   rows of a matrix are alike. */
enum { PIECE = 1000003 };
static uint32_t bits_of(int64_t i, double scale) {
    static double normal[PIECE];
    if (normal[0] == 0) for (int k = 0; k < PIECE; k++) normal[k] = wrpo__normal(1, 2, (uint64_t)k);
    const float x = (float)(scale * normal[i % PIECE]);
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
static double number(int64_t i, double scale) {        /* number i, as bf16 */
    const uint32_t u = bits_of(i, scale) & 0xffff0000u;
    float x;
    memcpy(&x, &u, 4);
    return (double)x;
}
static void *numbers(int64_t n, int bytes, double scale) {
    static uint32_t piece[PIECE];
    char *p = be->alloc(ctx->dev, (size_t)(n * bytes));
    check(p != NULL, "memory of the benchmark");
    if (!p) exit(1);
    for (int i = 0; i < WRPO__MIN(n, PIECE); i++) {
        const uint32_t u = bits_of(i, scale);
        if (bytes == 4) piece[i] = u;
        else ((uint16_t *)piece)[i] = (uint16_t)(u >> 16);
    }
    for (int64_t at = 0; at < n; at += PIECE) {
        const size_t size = (size_t)(WRPO__MIN(PIECE, n - at) * bytes);
        if (at == 0) be->put(ctx->dev, p, piece, size);
        else be->copy(ctx->dev, p + at * bytes, p, size);
    }
    settle(ctx->dev);                /* the other contexts have streams of their own */
    return p;
}
static void drop(void *p) { be->release(ctx->dev, p); }

static void products(const char *model, int64_t n, int64_t D, int64_t qkv, int64_t Hd, int64_t I) {
    const struct {
        const char *name;
        int64_t out, in;
    } shape[] = {{"qkv", qkv, D}, {"o", D, Hd}, {"gate|up", 2 * I, D}, {"down", D, I}};
    for (int i = 0; i < 4; i++) {
        const int64_t out = shape[i].out, in = shape[i].in;
        const double flop = 2.0 * (double)n * (double)out * (double)in;
        void *x = numbers(n * in, 2, 1), *w = numbers(out * in, 2, 0.02), *y = numbers(n * out, 2, 1);
        float *dw = numbers(out * in, 4, 0);
        for (int way = rate > 0 ? 0 : 1; way < (wg ? 3 : 2); way++) {
            void *dev = way == 2 ? wg->dev : way ? own->dev : ctx->dev;
            char name[80];
            double t;
            const char *note = way == 2 ? "own kernel (wgmma)"
                : way                   ? "own kernel (mma.sync)"
                                        : "cuBLASLt";
#define SAY(layout) \
    (snprintf(name, sizeof name, "gemm %s %s %s %lldx%lldx%lld", model, shape[i].name, layout, (long long)n, \
              (long long)out, (long long)in), \
     name)
            TIME(t, dev, be->gemm(dev, WRPO_MM_NT, y, out, x, in, w, in, WRPO_DTYPE_BF16, n, out, in, 0));
            line(SAY("y"), t, 0, flop, note);
            TIME(t, dev, be->gemm(dev, WRPO_MM_NN, x, in, y, out, w, in, WRPO_DTYPE_BF16, n, in, out, 0));
            line(SAY("dx"), t, 0, flop, note);
            TIME(t, dev, be->gemm(dev, WRPO_MM_TN, dw, in, y, out, x, in, WRPO_DTYPE_BF16, out, in, n, 1));
            line(SAY("dW"), t, 0, flop, note);
        }
        drop(x), drop(w), drop(y), drop(dw);
        check(true, model);
    }
}
/* [prompt | 3 responses]: the pairs of query and key */
static double segments(wrpo_seg *s, int64_t P, int64_t R) {
    double pairs = 0.5 * (double)P * (double)(P + 1);
    s[0] = (wrpo_seg){0, P, 0, 0, 0, P};
    for (int i = 0; i < 3; i++)
        s[i + 1] = (wrpo_seg){P + i * R, P + (i + 1) * R, 0, P, P + i * R, P + (i + 1) * R},
              pairs += (double)R * ((double)P + 0.5 * (double)(R + 1));
    return pairs;
}
static void attentions(const char *model, int64_t H, int64_t G, int64_t d, int64_t P, int64_t R) {
    wrpo_seg segs[4], *ds = be->alloc(ctx->dev, sizeof segs);
    const double pairs = segments(segs, P, R) * (double)H * (double)d;
    const int64_t n = P + 3 * R, W = (H + 2 * G) * d;
    be->put(ctx->dev, ds, segs, sizeof segs);
    const wrpo_attn a = {n, ds, 4, H, G, d, W, W, H * d, 0, 1 / sqrtf((float)d), 0};
    char *qkv = numbers(n * W, 2, 1), *dqkv = numbers(n * W, 2, 1), *o = numbers(n * H * d, 2, 1),
         *d_o = numbers(n * H * d, 2, 1);
    float *lse = numbers(n * H, 4, 1);
    void *scratch = be->alloc(ctx->dev, be->attention_scratch(ctx->dev, n, H, G, d));
    double t;
    char name[80];
    snprintf(name, sizeof name, "attention %s d=%lld, %lld + 3 x %lld", model, (long long)d, (long long)P,
             (long long)R);
    TIME(t, ctx->dev, be->attention(ctx->dev, &a, o, lse, qkv, qkv + H * d * 2, qkv + (H + G) * d * 2));
    line(name, t, 0, 4 * pairs, "4 d FLOP a pair");
    snprintf(name, sizeof name, "attention_bwd %s d=%lld, %lld + 3 x %lld", model, (long long)d, (long long)P,
             (long long)R);
    TIME(t, ctx->dev,
         be->attention_bwd(ctx->dev, &a, dqkv, dqkv + H * d * 2, dqkv + (H + G) * d * 2, d_o, o, lse, qkv,
                           qkv + H * d * 2, qkv + (H + G) * d * 2, scratch));
    line(name, t, 0, 10 * pairs, "10 d FLOP a pair counted, 14 done");
    drop(qkv), drop(dqkv), drop(o), drop(d_o), drop(lse), drop(scratch), drop(ds);
    check(true, model);
}
/* One token of each of `samples` sequences against `keys` keys of its own. */
static void decoding_attention(const char *model, int64_t H, int64_t G, int64_t d, int64_t samples, int64_t keys) {
    wrpo_seg *segs = malloc((size_t)samples * sizeof *segs), *ds = be->alloc(ctx->dev, (size_t)samples * sizeof *segs);
    for (int64_t i = 0; i < samples; i++)
        segs[i] = (wrpo_seg){i, i + 1, i * keys, i * keys + 1, i * keys + 1, (i + 1) * keys};
    be->put(ctx->dev, ds, segs, (size_t)samples * sizeof *segs);
    const wrpo_attn a = {samples, ds, samples, H, G, d, H * d, 2 * G * d, H * d, 0, 1 / sqrtf((float)d), 0};
    char *q = numbers(samples * H * d, 2, 1), *o = numbers(samples * H * d, 2, 1),
         *kv = numbers(samples * keys * 2 * G * d, 2, 1);
    float *lse = numbers(samples * H, 4, 1);
    double t;
    char name[80];
    snprintf(name, sizeof name, "attention %s, %lld x 1 row, %lld keys", model, (long long)samples, (long long)keys);
    TIME(t, ctx->dev, be->attention(ctx->dev, &a, o, lse, q, kv, kv + G * d * 2));
    line(name, t, 4 * (double)(samples * keys * G * d), 0, "");
    drop(q), drop(kv), drop(o), drop(lse), drop(ds);
    free(segs);
    check(true, model);
}
static void streams(int64_t n, int64_t D, int64_t I, int64_t heads, int64_t d, int64_t V, int64_t chunk,
                    int64_t weights) {
    const double nD = (double)n * (double)D, nI = (double)n * (double)I;
    void *x = numbers(n * D, 2, 1), *y = numbers(n * D, 2, 1), *gu = numbers(2 * n * I, 2, 1),
         *h = numbers(n * I, 2, 1), *q = numbers(n * heads * d, 2, 1);
    float *w = numbers(D, 4, 1), *dw = numbers(D, 4, 1), *rstd = numbers(n, 4, 1), *table = numbers(n * d, 4, 1);
    int32_t *ids = malloc((size_t)n * 4), *dids = be->alloc(ctx->dev, (size_t)n * 4),
            *places = be->alloc(ctx->dev, (size_t)n * 4);
    void *dev = ctx->dev;
    double t;
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)i;
    be->put(dev, places, ids, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(wrpo__random64(5, 6, (uint64_t)i) % (uint64_t)V);
    be->put(dev, dids, ids, (size_t)n * 4);
    TIME(t, dev, be->rmsnorm(dev, y, D, rstd, x, D, w, n, 1, D, 1e-5f, 0)); line("rmsnorm", t, 4 * nD, 0, "");
    TIME(t, dev, be->rmsnorm_bwd(dev, y, D, dw, y, D, y, D, x, D, w, rstd, n, 1, D, 0));
    line("rmsnorm_bwd, with dw", t, 12 * nD, 0, "");
    TIME(t, dev, be->rope(dev, q, heads * d, table, places, n, heads, d, 1));
    line("rope", t, 4 * (double)(n * heads * d) + 4 * (double)(n * d), 0, "");
    TIME(t, dev, be->glu(dev, h, gu, n, I, false)); line("glu", t, 6 * nI, 0, "");
    TIME(t, dev, be->glu_bwd(dev, gu, h, h, gu, n, I, false)); line("glu_bwd, with h", t, 12 * nI, 0, "");
    TIME(t, dev, be->add(dev, y, x, n * D)); line("add", t, 6 * nD, 0, "");
    TIME(t, dev, be->bias(dev, y, D, w, n, D)); line("bias", t, 4 * nD, 0, "");
    TIME(t, dev, be->bias_bwd(dev, dw, y, D, n, D)); line("bias_bwd", t, 2 * nD, 0, "");
    drop(gu), drop(h), drop(q), drop(table), drop(places);
    void *e = numbers(V * D, 2, 0.02);
    float *de = numbers(V * D, 4, 0);
    TIME(t, dev, be->embed(dev, y, e, WRPO_DTYPE_BF16, dids, n, D, 1)); line("embed", t, 4 * nD, 0, "");
    TIME(t, dev, be->embed_bwd(dev, de, y, dids, n, D, 1)); line("embed_bwd", t, 10 * nD, 0, "");
    TIME(t, dev, be->colsum(dev, w, e, WRPO_DTYPE_BF16, V, D));
    line("colsum of the head", t, 2 * (double)V * (double)D, 0, "");
    drop(de);
    float *logits = numbers(chunk * V, 4, 2), *lse = numbers(chunk, 4, 1), *logp = numbers(chunk, 4, 1);
    void *dlogits = numbers(chunk * V, 2, 1);
    const double nV = (double)chunk * (double)V;
    TIME(t, dev, be->gemm(dev, WRPO_MM_NT_FLOAT, logits, V, x, D, e, D, WRPO_DTYPE_BF16, chunk, V, D, 0));
    line("gemm logits", t, 0, 2 * nV * (double)D, "");
    TIME(t, dev, be->logprob(dev, logp, lse, logits, V, dids, chunk, V, 0)); line("logprob", t, 4 * nV, 0, "");
    TIME(t, dev, be->logprob_bwd(dev, dlogits, logits, V, dids, lse, logp, chunk, V, 0));
    line("logprob_bwd", t, 6 * nV, 0, "");
    drop(e), drop(logits), drop(lse), drop(logp), drop(dlogits), drop(x), drop(y), drop(w), drop(dw), drop(rstd),
        drop(dids);
    free(ids);
    float *g = numbers(weights, 4, 1e-3), *master = numbers(weights, 2, 0.02), *low = numbers(weights, 2, 1);
    double *sum = be->alloc(dev, 8);
    be->zero(dev, sum, 8);
    TIME(t, dev, be->sumsq(dev, sum, g, weights)); line("sumsq", t, 4 * (double)weights, 0, "");
    for (int i = 0; i < 3; i++) {
        const size_t bytes = wrpo_moments_bytes((wrpo_moments)i, weights);
        void *m = be->alloc(dev, bytes), *v = be->alloc(dev, bytes);
        const wrpo_adamw s = {.lr = 1e-6f,
                              .beta1 = 0.9f,
                              .beta2 = 0.999f,
                              .eps = 1e-8f,
                              .grad_scale = 1,
                              .correction1 = 0.5,
                              .correction2 = 0.5,
                              .moments = (wrpo_moments)i};
        char name[60];
        be->zero(dev, m, bytes), be->zero(dev, v, bytes);
        snprintf(name, sizeof name, "adamw, masters, moments %s", wrpo_moments_name(i));
        TIME(t, dev, be->adamw(dev, master, (uint16_t *)low, m, v, g, weights, &s));
        line(name, t, 12 * (double)weights + 4 * (double)bytes, 0, "");
        drop(m), drop(v);
    }
    drop(g), drop(master), drop(low), drop(sum);
    check(true, "streams");
}

/* Matrices are copies of one piece of random numbers, vectors ones. */
static void random_weights(wrpo__arena *arena, wrpo_model *m) {
    float *piece = wrpo__alloc(arena, (size_t)1 << 20, 4), *ones = wrpo__alloc(arena, (size_t)1 << 20, 4);
    for (int i = 0; i < 1 << 20; i++) piece[i] = (float)(0.02 * wrpo__normal(3, 4, (uint64_t)i)), ones[i] = 1;
    const wrpo_weight *first = NULL;
    for (int64_t i = 0; i < m->n_weights; i++) {
        const wrpo_weight *w = &m->weights[i];
        for (int64_t at = 0; at < wrpo__size(w); at += 1 << 20) {
            const int64_t n = WRPO__MIN((int64_t)1 << 20, wrpo__size(w) - at);
            if (w->vector) wrpo__weight_put(m, w, at, n, ones);
            else if (!first || wrpo__size(first) < 1 << 20) wrpo__weight_put(m, w, at, n, piece), first = w;
            else if (w != first || at) be->copy(m->ctx->dev, (char *)w->data + at * 2, first->data, (size_t)n * 2);
        }
    }
}

/* ---- decoding: one step of `rows` samples over `keys` keys each, then whole greedy texts; plain launches and graphs
   ---- */
static void decode(const char *name, wrpo_config c, int64_t samples, int64_t keys, int64_t tokens) {
    static int32_t ids[4096];
    for (int j = 0; j < 4096; j++) ids[j] = (int32_t)(wrpo__random64(1, 2, (uint64_t)j) % (uint64_t)c.vocab_size);
    for (volatile int on = 0; on < 2; on++) {
        wrpo_ctx *with = NULL;
        wrpo_error why = {0};
        char label[96];
        snprintf(label, sizeof label, "decode %s, %lld x %lld keys, %s", name, (long long)samples, (long long)keys,
                 on ? "graphs" : "plain");
        wrpo_backend table = *be;
        table.features = (table.features & ~(unsigned)WRPO_FEATURE_GRAPHS) | (on ? WRPO_FEATURE_GRAPHS : 0u);
        const bool opened = wrpo_open(&(wrpo_desc){.backend = &table, .why = &why}, &with) == WRPO_OK;
        if (!opened) { printf("FAIL %s: %s\n", label, why.text), failed = 1; return; }
        TEST_TRY(with, wrpo__arena_new(with), true) {
            wrpo__arena *arena = wrpo__entry.arena;
            wrpo_model *m = wrpo__model_new(arena, &c);
            const wrpo__shape s = {.rows = samples, .chunk = samples, .cache = samples * keys,
                                   .positions = keys};
            random_weights(arena, m);
            wrpo__workspace *r = wrpo__workspace_new(arena, m, &s);
            be->zero(with->dev, r->cache,
                     (size_t)(samples * keys * c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim) * 2);
            wrpo__pack_begin(r);
            for (int64_t i = 0; i < samples; i++)
                wrpo__pack_label(r, i, 0),
                    wrpo__pack_rows(r, ids + i, 1, keys - 1, (wrpo_seg){0, 0, 0, 0, i * keys, (i + 1) * keys});
            wrpo__pack_end(r);
            const int64_t key[4] = {1, samples, samples, samples};
            double step;
            for (int i = 0; i < 4; i++) be->replay(with->dev, key, wrpo__step_ops, r);
            TIME(step, with->dev, be->replay(with->dev, key, wrpo__step_ops, r));
            wrpo_prompt *prompts = wrpo__alloc(arena, (size_t)samples, sizeof *prompts);
            for (int64_t i = 0; i < samples; i++) prompts[i] = (wrpo_prompt){.ids = ids + i, .count = keys / 2};
            wrpo_generate_desc d = {
                .max_tokens = tokens, .batch = samples, .temperature = WRPO_ZERO, .stop = ids, .stop_count = 0};
            const double begin = wrpo__now();
            if (wrpo_generate(m, prompts, samples, &d) != WRPO_OK) {
                printf("FAIL %s: %s\n", label, with->error.text), failed = 1;
                continue;
            }
            const double seconds = wrpo__now() - begin;
            printf("%-44s %10.3f ms a step   texts, with the host's drawing: %.0f tokens/s\n", label, step * 1e3,
                   (double)(samples * tokens) / seconds);
            fflush(stdout);
        }
        if (wrpo__end(&wrpo__entry) != WRPO_OK) printf("FAIL %s: %s\n", label, with->error.text), failed = 1;
        wrpo_close(with);
    }
}

/* ---- the numbers at these sizes: elements of every result, drawn at random, against sums in double on the host.
   Inputs are known without reading them back: number() of their places. ---- */
typedef struct worst { double off, scale; int64_t at; } worst;
static void compare(worst *w, int64_t at, double got, double want) {
    const double off = fabs(got - want);
    if (!(off <= w->off) && !isnan(w->off)) w->at = at;
    w->off = test_larger(w->off, off);
    w->scale = WRPO__MAX(w->scale, fabs(want));
}
static void verdict(const char *name, worst w, double allowed, int64_t drawn) {
    const double error = w.off / w.scale;
    const bool good = error <= allowed;
    printf("%s%-44s %lld numbers: off by %.2g of the largest (allowed %.0e)", good ? "" : "FAIL ", name,
           (long long)drawn, error, allowed);
    if (!good) printf(", worst at %lld", (long long)w.at), failed = 1;
    printf("\n");
    fflush(stdout);
}
static uint64_t draws;
static int64_t drawn_below(int64_t n) { return (int64_t)(wrpo__random64(17, 0, draws++) % (uint64_t)n); }
static double bf16_at(const void *p, int64_t i) {
    const uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &u, 4);
    return (double)x;
}
static void *fetched(const void *p, int64_t bytes) {
    void *host = malloc((size_t)bytes);
    if (!host) exit(1);
    be->get(ctx->dev, host, p, (size_t)bytes);
    return host;
}
/* c[m, n] = sum over k; a, b as the layout has them. And the bits of the last rows, when they are computed alone. */
static void exact_product(void *dev, const char *by, wrpo_mm mm, int64_t m, int64_t n, int64_t k) {
    const int64_t drawn = small ? 200 : 1000, few = WRPO__MIN(m, 200), size = mm == WRPO_MM_TN ? 4 : 2;
    const bool at = mm == WRPO_MM_TN, bt = mm == WRPO_MM_NT;
    void *a = numbers(m * k, 2, 1), *b = numbers(n * k, 2, 0.02), *c = numbers(m * n, (int)size, 0);
    char name[96];
    worst w = {0};
    be->gemm(dev, mm, c, n, a, at ? m : k, b, bt ? k : n, WRPO_DTYPE_BF16, m, n, k, 0);
    settle(dev);
    char *got = fetched(c, m * n * size);
    for (int64_t s = 0; s < drawn; s++) {
        const int64_t i = drawn_below(m), j = drawn_below(n);
        double sum = 0;
        for (int64_t q = 0; q < k; q++)
            sum += number(at ? q * m + i : i * k + q, 1) * number(bt ? j * k + q : q * n + j, 0.02);
        compare(&w, i * n + j, at ? (double)((float *)(void *)got)[i * n + j] : bf16_at(got, i * n + j), sum);
    }
    snprintf(name, sizeof name, "exact gemm %s %lldx%lldx%lld, %s", mm_name(mm), (long long)m, (long long)n,
             (long long)k, by);
    verdict(name, w, at ? 1e-5 : 4e-3, drawn);
    if (!at) {
        be->zero(dev, c, (size_t)(few * n * size));
        be->gemm(dev, mm, c, n, (char *)a + (m - few) * k * 2, k, b, bt ? k : n, WRPO_DTYPE_BF16, few, n, k, 0);
        settle(dev);
        char *alone = fetched(c, few * n * size);
        const bool same = !memcmp(alone, got + (m - few) * n * size, (size_t)(few * n * size));
        printf("%s%-44s the last %lld rows alone have %s bits\n", same ? "" : "FAIL ", name, (long long)few,
               same ? "the same" : "other");
        failed |= !same;
        free(alone);
    }
    free(got), drop(a), drop(b), drop(c);
}
/* Row r sees its keys in order: those of its prefix, then its own up to itself. */
static int64_t key_of(const wrpo_seg *g, int64_t i) {
    const int64_t shared = g->prefix_end - g->prefix;
    return i < shared ? g->prefix + i : g->own + i - shared;
}
static void exact_attention(int64_t H, int64_t G, int64_t d, int64_t P, int64_t R) {
    wrpo_seg segs[4], *ds = be->alloc(ctx->dev, sizeof segs);
    const int64_t n = P + 3 * R, W = (H + 2 * G) * d, drawn = small ? 20 : 200, share = H / G;
    const double scale = 1 / sqrt((double)d);
    segments(segs, P, R);
    be->put(ctx->dev, ds, segs, sizeof segs);
    const wrpo_attn a = {n, ds, 4, H, G, d, W, W, H * d, 0, (float)scale, 0};
    char *qkv = numbers(n * W, 2, 1), *dqkv = numbers(n * W, 2, 0), *o = numbers(n * H * d, 2, 0),
         *d_o = numbers(n * H * d, 2, 1), name[96];
    float *lse = numbers(n * H, 4, 0);
    void *scratch = be->alloc(ctx->dev, be->attention_scratch(ctx->dev, n, H, G, d));
    be->attention(ctx->dev, &a, o, lse, qkv, qkv + H * d * 2, qkv + (H + G) * d * 2);
    be->attention_bwd(ctx->dev, &a, dqkv, dqkv + H * d * 2, dqkv + (H + G) * d * 2, d_o, o, lse, qkv,
                      qkv + H * d * 2, qkv + (H + G) * d * 2, scratch);
    settle(ctx->dev);
    char *got_o = fetched(o, n * H * d * 2), *got_d = fetched(dqkv, n * W * 2);
    float *got_lse = fetched(lse, n * H * 4);
    double *p = malloc((size_t)n * sizeof *p), *sum = malloc((size_t)(2 * d) * sizeof *sum);
    double *delta = malloc((size_t)(n * H) * sizeof *delta);
    if (!p || !sum || !delta) exit(1);
#define Q(r, h) ((r) * W + (h) * d)
#define K(r, g) ((r) * W + (H + (g)) * d)
#define V(r, g) ((r) * W + (H + G + (g)) * d)
    for (int64_t i = 0; i < n * H; i++) {
        delta[i] = 0;
        for (int64_t c = 0; c < d; c++) delta[i] += number(i * d + c, 1) * bf16_at(got_o, i * d + c);
    }
    worst wo = {0}, wl = {0}, wq = {0}, wk = {0}, wv = {0};
    for (int64_t s = 0; s < drawn; s++) {
        const int64_t r = drawn_below(n), h = drawn_below(H), g = h / share;
        const wrpo_seg *seg = segs;
        while (r >= seg->end) seg++;
        const int64_t keys = seg->prefix_end - seg->prefix + r - seg->own + 1;
        double top = -INFINITY, total = 0;
        for (int64_t i = 0; i < keys; i++) {
            p[i] = 0;
            for (int64_t c = 0; c < d; c++) p[i] += number(Q(r, h) + c, 1) * number(K(key_of(seg, i), g) + c, 1);
            p[i] *= scale, top = WRPO__MAX(top, p[i]);
        }
        for (int64_t i = 0; i < keys; i++) total += exp(p[i] - top);
        compare(&wl, r * H + h, (double)got_lse[r * H + h], top + log(total));
        memset(sum, 0, (size_t)(2 * d) * sizeof *sum);
        for (int64_t i = 0; i < keys; i++) {
            const int64_t key = key_of(seg, i);
            double weight = exp(p[i] - top) / total, dp = -delta[r * H + h];
            for (int64_t c = 0; c < d; c++) dp += number((r * H + h) * d + c, 1) * number(V(key, g) + c, 1);
            for (int64_t c = 0; c < d; c++)
                sum[c] += weight * number(V(key, g) + c, 1),
                    sum[d + c] += weight * dp * scale * number(K(key, g) + c, 1);
        }
        for (int64_t c = 0; c < d; c++)
            compare(&wo, (r * H + h) * d + c, bf16_at(got_o, (r * H + h) * d + c), sum[c]),
                compare(&wq, Q(r, h) + c, bf16_at(got_d, Q(r, h) + c), sum[d + c]);
    }
    for (int64_t s = 0; s < drawn / 8; s++) {
        const int64_t key = drawn_below(s % 2 ? n : P), g = drawn_below(G);
        memset(sum, 0, (size_t)(2 * d) * sizeof *sum);
        for (const wrpo_seg *seg = segs; seg < segs + 4; seg++)
            for (int64_t r = seg->begin; r < seg->end; r++) {
                if (!(key >= seg->prefix && key < seg->prefix_end) && !(key >= seg->own && key <= r)) continue;
                for (int64_t h = g * share; h < (g + 1) * share; h++) {
                    double x = 0, dp = -delta[r * H + h];
                    for (int64_t c = 0; c < d; c++)
                        x += number(Q(r, h) + c, 1) * number(K(key, g) + c, 1),
                            dp += number((r * H + h) * d + c, 1) * number(V(key, g) + c, 1);
                    const double weight = exp(x * scale - (double)got_lse[r * H + h]);
                    for (int64_t c = 0; c < d; c++)
                        sum[c] += weight * dp * scale * number(Q(r, h) + c, 1),
                            sum[d + c] += weight * number((r * H + h) * d + c, 1);
                }
            }
        for (int64_t c = 0; c < d; c++)
            compare(&wk, K(key, g) + c, bf16_at(got_d, K(key, g) + c), sum[c]),
                compare(&wv, V(key, g) + c, bf16_at(got_d, V(key, g) + c), sum[d + c]);
    }
    const struct { const char *what; worst w; double allowed; int64_t drawn; } all[] = {
        {"o", wo, 6e-3, drawn * d}, {"lse", wl, 1e-5, drawn}, {"dq", wq, 1e-2, drawn * d},
        {"dk", wk, 1e-2, drawn / 8 * d}, {"dv", wv, 1e-2, drawn / 8 * d}};
    for (int i = 0; i < WRPO__COUNT(all); i++) {
        snprintf(name, sizeof name, "exact attention %s, d=%lld, %lld + 3 x %lld", all[i].what, (long long)d,
                 (long long)P, (long long)R);
        verdict(name, all[i].w, all[i].allowed, all[i].drawn);
    }
    free(p), free(sum), free(delta), free(got_o), free(got_d), free(got_lse);
    drop(qkv), drop(dqkv), drop(o), drop(d_o), drop(lse), drop(scratch), drop(ds);
}
static void exact(void) {
    const int64_t n = small ? 300 : 4096;
    const struct { int64_t out, in; } shape[] = {{6144, 4096}, {28672, 4096}, {4096, 14336}};
    for (int way = rate > 0 ? 0 : 1; way < (wg ? 3 : 2); way++)
        for (int i = 0; i < 3; i++) {
            void *dev = way == 0 ? ctx->dev : way == 1 ? own->dev : wg->dev;
            const char *by = way == 0 ? "cuBLASLt" : way == 1 ? "mma.sync" : "wgmma";
            const int64_t out = small ? 72 + 64 * i : shape[i].out, in = small ? 200 - 64 * i : shape[i].in;
            exact_product(dev, by, WRPO_MM_NT, n, out, in);
            exact_product(dev, by, WRPO_MM_NN, n, in, out);
            exact_product(dev, by, WRPO_MM_TN, out, in, n);
        }
    if (small) { exact_attention(4, 2, 16, 70, 40); return; }
    exact_attention(32, 8, 128, 1024, 1024), exact_attention(32, 8, 128, 100, 1948);
    exact_attention(9, 3, 64, 1024, 1024);
}

/* ---- whole steps: random weights, every parameter trained ---- */
static int by_seconds(const void *a, const void *b) {
    const double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return (x < y) - (x > y);
}
static void print_ops(double step) {
    double sum = 0;
    qsort(rows, (size_t)n_rows, sizeof *rows, by_seconds);
    printf("  of the last step, with a wait after each op:\n");
    for (int i = 0; i < n_rows; i++) {
        const row *w = &rows[i];
        sum += w->seconds;
        printf("  %-42s %6lld calls %9.2f ms %5.1f %%", w->name, (long long)w->calls, w->seconds * 1e3,
               100 * w->seconds / step);
        if (w->ideal > 0) printf("  floor %8.2f ms, %5.1f %%", w->ideal * 1e3, 100 * w->ideal / w->seconds);
        if (w->flops > 0) printf("  %6.1f TFLOP/s\n", w->flops / w->seconds * 1e-12);
        else printf("  %6.0f GB/s\n", w->bytes / w->seconds * 1e-9);
    }
    printf("  %-42s              %9.2f ms %5.1f %%\n", "all of these", sum * 1e3, 100 * sum / step);
}
static void step(const char *name, wrpo_config c, int64_t P, int64_t R, int records_n) {
    static int32_t ids[4][4096];
    wrpo_record records[16];
    wrpo_tokens y[3];
    wrpo_data *data = NULL;
    char label[96];
    snprintf(label, sizeof label, "step %s, %lld + 3 x %lld", name, (long long)P, (long long)R);
    for (int s = 0; s < 4; s++)
        for (int j = 0; j < 4096; j++)
            ids[s][j] = (int32_t)(wrpo__random64(1, (uint64_t)s, (uint64_t)j) % (uint64_t)c.vocab_size);
    for (int k = 0; k < 3; k++) y[k] = (wrpo_tokens){.role = (wrpo_role)k, .ids = ids[k + 1], .count = R, .share = 1};
    for (int i = 0; i < records_n; i++)
        records[i] = (wrpo_record){
            .prompt_id = "r", .line = 1, .prompt = ids[0], .prompt_count = P, .responses = y, .count = 3, .weight = 1};
    if (wrpo_data_from_ids(ctx, records, records_n, &data) != WRPO_OK) { check(false, label); return; }
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo_model *m = wrpo__model_new(wrpo__entry.arena, &c);
        random_weights(wrpo__entry.arena, m);
        wrpo_train_desc d = {.batch_size = records_n,
                             .epochs = 3,
                             .max_steps = 3,
                             .learning_rate = 1e-6,
                             .micro_tokens = P + 3 * R,
                             .no_shuffle = true};
        wrpo_bytes bytes = {0};
        wrpo_trainer *t = NULL;
        wrpo_metrics x;
        const size_t before = be->room(ctx->dev);
        for (int i = 0; i < 3 && !t; i++) {            /* the widest moments that fit */
            d.moments = (wrpo_moments)i;
            if (wrpo_train_bytes(ctx, &c, data, &d, NULL, &bytes) == WRPO_OK && bytes.device <= bytes.room &&
                wrpo_trainer_open(m, data, &d, &t) != WRPO_OK)
                t = NULL;
        }
        if (!t) {
            if (wrpo_trainer_open(m, data, &d, &t) == WRPO_OK) wrpo_trainer_free(t);
            printf("%-44s does not fit: %s\n", label, ctx->error.text);
        } else {
            const size_t taken = before - be->room(ctx->dev);
            double seconds = 0;
            bool ok = true;
            for (int i = 0; i < (small ? 1 : 3) && ok; i++) {
                const double begin = wrpo__now();
                timing = i == (small ? 0 : 2);
                ok = wrpo_trainer_step(t, &x) == WRPO_OK;
                timing = false;
                seconds = wrpo__now() - begin;         /* of the last */
            }
            wrpo_trainer_free(t);
            if (!ok) printf("FAIL %s: %s\n", label, ctx->error.text), failed = 1;
            else {
                wrpo_seg segs[4];
                const double all_rows = (double)(records_n * (P + 3 * R)), targets = (double)(records_n * 3 * R),
                             D = (double)c.hidden_size, L = (double)c.num_hidden_layers;
                const double layer = (double)((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim) * D +
                    (double)(c.num_attention_heads * c.head_dim) * D + 3.0 * D * (double)c.intermediate_size;
                const double pairs =
                    segments(segs, P, R) * records_n * L * (double)(c.num_attention_heads * c.head_dim);
                const double flop = 6 * all_rows * L * layer + 6 * targets * D * (double)c.vocab_size + 14 * pairs;
                printf("%-44s %10.3f s   %8.0f rows/s  %8.0f tokens/s unshared  %6.1f TFLOP/s", label, seconds,
                       all_rows / seconds, (double)records_n * 3 * (double)(P + R) / seconds, flop / seconds * 1e-12);
                if (rate > 0) printf(", %4.1f %% of the products' rate", 100 * flop / seconds / rate);
                printf("; moments %s, %lld of %lld layers recomputed; memory %.2f GiB, predicted %.2f\n",
                       wrpo_moments_name((int)d.moments), (long long)bytes.recompute, (long long)c.num_hidden_layers,
                       (double)(taken + bytes.weights) / 1073741824.0, (double)bytes.device / 1073741824.0);
                if (n_rows) print_ops(seconds);
            }
        }
        fflush(stdout);
    }
    if (wrpo__end(&wrpo__entry) != WRPO_OK) printf("%-44s does not fit: %s\n", label, ctx->error.text);
    wrpo_data_free(data);
}
static wrpo_config shape(int64_t V, int64_t D, int64_t I, int64_t L, int64_t H, int64_t G, int64_t d, bool tied) {
    wrpo_config c = {.model_type = "llama",
                     .vocab_size = V,
                     .hidden_size = D,
                     .intermediate_size = I,
                     .num_hidden_layers = L,
                     .num_attention_heads = H,
                     .num_key_value_heads = G,
                     .head_dim = d,
                     .max_position_embeddings = 8192,
                     .rms_norm_eps = 1e-5,
                     .initializer_range = 0.02,
                     .rope = {.theta = 500000},
                     .tie_word_embeddings = tied};
    return c;
}
/* A context with and without some features. Without one where cuBLASLt cannot be opened. */
static wrpo_ctx *open_with(const wrpo_backend *table, unsigned on, unsigned off, wrpo_error *why) {
    static wrpo_backend kept[3];
    static int n_kept;
    wrpo_ctx *opened = NULL;
    wrpo_backend *with = &kept[n_kept++];
    *with = *table;
    with->features = (with->features & ~off) | on;
    return wrpo_open(&(wrpo_desc){.backend = with, .why = why}, &opened) == WRPO_OK ? opened : NULL;
}
static void measure(void) {          /* bandwidth and rate */
    const int64_t n = small ? 1 << 16 : (int64_t)1 << 29, k = small ? 128 : 8192;
    double t;
    char *p = be->alloc(ctx->dev, (size_t)(2 * n));
    be->zero(ctx->dev, p, (size_t)(2 * n));
    TIME(t, ctx->dev, be->copy(ctx->dev, p, p + n, (size_t)n));
    bandwidth = 2 * (double)n / t;
    drop(p);
    printf("measured: copy %.0f GB/s (read + written)", bandwidth * 1e-9);
    if (rate > 0) {
        void *a = numbers(k * k, 2, 1), *b = numbers(k * k, 2, 1), *c = numbers(k * k, 2, 1);
        TIME(t, ctx->dev, be->gemm(ctx->dev, WRPO_MM_NT, c, k, a, k, b, k, WRPO_DTYPE_BF16, k, k, k, 0));
        rate = 2 * (double)k * (double)k * (double)k / t;
        printf(", product of %lld^3 by cuBLASLt %.1f TFLOP/s", (long long)k, rate * 1e-12);
        drop(a), drop(b), drop(c);
    }
    printf("; %.1f GiB free\n", (double)be->room(ctx->dev) / 1073741824.0);
}
int main(int argc, char **argv) {
    wrpo_error why = {0};
    const wrpo_backend *table = be = wrpo_backend_cuda();
    static wrpo_backend stopwatch;
    bool with_wgmma = false, ops8 = false;
    for (int i = 1; i < argc; i++) {
        small |= !strcmp(argv[i], "small"), with_wgmma |= !strcmp(argv[i], "wgmma"), ops8 |= !strcmp(argv[i], "ops8");
    }
    inner = be;
    if (ops8) stopwatch = watched(be), stopwatch.replay = NULL, table = &stopwatch;
    rate = 1;                        /* until it is measured */
    if (!(ctx = open_with(table, WRPO_FEATURE_CUBLAS, 0, &why))) {
        rate = 0, ctx = open_with(table, 0, WRPO_FEATURE_CUBLAS, &why);
        if (ctx) printf("%s: no product by cuBLASLt, no shares of its rate\n", why.text);
    }
    if (!ctx || !(own = open_with(be, 0, WRPO_FEATURE_CUBLAS, &why))) return printf("cuda_bench: %s\n", why.text), 1;
    if (with_wgmma && !(wg = open_with(be, WRPO_FEATURE_WGMMA, 0, &why))) printf("skip: wgmma: %s\n", why.text);
    measure();
    const wrpo_config m8 = shape(128256, 4096, 14336, 32, 32, 8, 128, false),
                      m1 = shape(128256, 2048, 8192, 16, 32, 8, 64, true),
                      m135 = shape(49152, 576, 1536, 30, 9, 3, 64, true), tiny = shape(97, 32, 48, 2, 4, 2, 8, true);
    for (int i = 1; i < argc; i++) {
        const char *part = argv[i];
        if (!strcmp(part, "step8") || !strcmp(part, "ops8")) {
            if (small) step("tiny", tiny, 9, 6, 2);
            else {
                step("8B", m8, 1024, 1024, 2);
                if (!ops8) step("8B", m8, 100, 1948, 2);
            }
        } else if (!strcmp(part, "step135")) {
            if (small) step("tiny", tiny, 9, 6, 2);
            else step("135M", m135, 1024, 1024, 8), step("135M", m135, 100, 1948, 8);
        } else if (!strcmp(part, "step1")) {
            if (small) step("tiny", tiny, 9, 6, 2);
            else step("1B", m1, 1024, 1024, 4), step("1B", m1, 100, 1948, 4);
        } else if (!strcmp(part, "exact")) exact();
        else if (!strcmp(part, "products")) {
            if (small) products("tiny", 40, 24, 48, 24, 32);
            else products("8B", 6144, 4096, 6144, 4096, 14336), products("135M", 6144, 576, 960, 576, 1536);
        } else if (!strcmp(part, "attention")) {
            if (small) attentions("tiny", 4, 2, 16, 20, 10), decoding_attention("tiny", 4, 2, 16, 2, 600);
            else {
                attentions("8B", 32, 8, 128, 1024, 1024), attentions("8B", 32, 8, 128, 100, 1948);
                attentions("135M", 9, 3, 64, 1024, 1024), attentions("Gemma", 16, 8, 256, 1024, 1024);
                attentions("Phi-3", 32, 32, 96, 1024, 1024);
                for (int64_t n = 1; n <= 256; n *= 16) decoding_attention("8B", 32, 8, 128, n, 2048);
            }
        } else if (!strcmp(part, "streams")) {
            if (small) streams(40, 64, 96, 6, 16, 200, 30, 5000);
            else streams(6144, 4096, 14336, 40, 128, 128256, 1024, (int64_t)1 << 29);
        } else if (!strcmp(part, "decode")) {
            if (small) decode("tiny", tiny, 3, 12, 8);
            else decode("135M", m135, 1, 512, 256), decode("135M", m135, 16, 512, 256);
        } else if (strcmp(part, "small") != 0 && strcmp(part, "wgmma") != 0) {
            printf("cuda_bench: %s: no such part\n", part);
            failed = 1;
        }
    }
    if (wg) wrpo_close(wg);
    wrpo_close(own), wrpo_close(ctx);
    return failed;
}
