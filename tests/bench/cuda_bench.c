/* Times of the CUDA backend on the shapes of real models, through its op table: each kernel beside its floor (bytes
   over the measured
   bandwidth, or FLOP over the measured rate of products), all ways of multiplying, whole WRPO steps. gpu.sh builds and
   runs it.
   usage: cuda_bench [small]      small: tiny shapes, one repetition, to see that it works where there is no GPU */
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
static double bandwidth, rate;       /* measured: bytes/s, FLOP/s */
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
static void row(const char *name, double seconds, double bytes, double flop, const char *note) {
    const double floor_ = WRPO__MAX(bytes / bandwidth, flop / rate);
    printf("%-44s %10.3f ms  floor %9.3f  %5.1f %%", name, seconds * 1e3, floor_ * 1e3, 100 * floor_ / seconds);
    if (flop > 0) printf("  %7.1f TFLOP/s", flop / seconds * 1e-12);
    else printf("  %7.0f GB/s   ", bytes / seconds * 1e-9);
    printf("  %s\n", note);
    fflush(stdout);
}
/* n numbers of a device's memory: bf16 or float, about N(0, scale) */
static void *numbers(int64_t n, int bytes, double scale) {
    enum { PIECE = 1 << 20 };
    static uint32_t piece[PIECE];
    char *p = be->alloc(ctx->dev, (size_t)(n * bytes));
    check(p != NULL, "memory of the benchmark");
    if (!p) exit(1);
    for (int i = 0; i < PIECE; i++) {
        float x = (float)(scale * wrpo__normal(1, 2, (uint64_t)i));
        uint32_t u;
        memcpy(&u, &x, 4);
        if (bytes == 4) piece[i] = u;
        else ((uint16_t *)piece)[i] = (uint16_t)(u >> 16);
    }
    for (int64_t at = 0; at < n; at += PIECE) {
        const size_t size = (size_t)(WRPO__MIN(PIECE, n - at) * bytes);
        if (at == 0) be->put(ctx->dev, p, piece, size);
        else be->copy(ctx->dev, p + at * bytes, p, size);
    }
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
        for (int way = 0; way < (wg ? 3 : 2); way++) {
            void *dev = way == 2 ? wg->dev : way ? own->dev : ctx->dev;
            char name[80];
            double t;
            const char *note = way == 2 ? "own kernel (wgmma)"
                : way                   ? "own kernel (mma.sync)"
                                        : "as linked (cuBLASLt unless left out)";
#define SAY(layout) \
    (snprintf(name, sizeof name, "gemm %s %s %s %lldx%lldx%lld", model, shape[i].name, layout, (long long)n, \
              (long long)out, (long long)in), \
     name)
            TIME(t, dev, be->gemm(dev, WRPO_MM_NT, y, out, x, in, w, in, WRPO_DTYPE_BF16, n, out, in, 0));
            row(SAY("y"), t, 0, flop, note);
            TIME(t, dev, be->gemm(dev, WRPO_MM_NN, x, in, y, out, w, in, WRPO_DTYPE_BF16, n, in, out, 0));
            row(SAY("dx"), t, 0, flop, note);
            TIME(t, dev, be->gemm(dev, WRPO_MM_TN, dw, in, y, out, x, in, WRPO_DTYPE_BF16, out, in, n, 1));
            row(SAY("dW"), t, 0, flop, note);
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
    row(name, t, 0, 4 * pairs, "4 d FLOP a pair");
    snprintf(name, sizeof name, "attention_bwd %s d=%lld, %lld + 3 x %lld", model, (long long)d, (long long)P,
             (long long)R);
    TIME(t, ctx->dev,
         be->attention_bwd(ctx->dev, &a, dqkv, dqkv + H * d * 2, dqkv + (H + G) * d * 2, d_o, o, lse, qkv,
                           qkv + H * d * 2, qkv + (H + G) * d * 2, scratch));
    row(name, t, 0, 10 * pairs, "10 d FLOP a pair counted, 14 done");
    drop(qkv), drop(dqkv), drop(o), drop(d_o), drop(lse), drop(scratch), drop(ds);
    check(true, model);
}
static void streams(int64_t n, int64_t D, int64_t I, int64_t heads, int64_t d, int64_t V, int64_t chunk,
                    int64_t weights) {
    const double nD = (double)n * (double)D, nI = (double)n * (double)I;
    void *x = numbers(n * D, 2, 1), *y = numbers(n * D, 2, 1), *gu = numbers(2 * n * I, 2, 1),
         *h = numbers(n * I, 2, 1), *q = numbers(n * heads * d, 2, 1);
    float *w = numbers(D, 4, 1), *dw = numbers(D, 4, 1), *rstd = numbers(n, 4, 1), *table = numbers(n * d, 4, 1);
    int32_t *ids = malloc((size_t)n * 4), *dids = be->alloc(ctx->dev, (size_t)n * 4);
    void *dev = ctx->dev;
    double t;
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(wrpo__random64(5, 6, (uint64_t)i) % (uint64_t)V);
    be->put(dev, dids, ids, (size_t)n * 4);
    TIME(t, dev, be->rmsnorm(dev, y, D, rstd, x, D, w, n, 1, D, 1e-5f, 0)); row("rmsnorm", t, 4 * nD, 0, "");
    TIME(t, dev, be->rmsnorm_bwd(dev, y, D, dw, y, D, y, D, x, D, w, rstd, n, 1, D, 0));
    row("rmsnorm_bwd, with dw", t, 12 * nD, 0, "");
    TIME(t, dev, be->rope(dev, q, heads * d, table, n, heads, d, 1));
    row("rope", t, 4 * (double)(n * heads * d) + 4 * (double)(n * d), 0, "");
    TIME(t, dev, be->glu(dev, h, gu, n, I, false)); row("glu", t, 6 * nI, 0, "");
    TIME(t, dev, be->glu_bwd(dev, gu, h, h, gu, n, I, false)); row("glu_bwd, with h", t, 12 * nI, 0, "");
    TIME(t, dev, be->add(dev, y, x, n * D)); row("add", t, 6 * nD, 0, "");
    TIME(t, dev, be->bias(dev, y, D, w, n, D)); row("bias", t, 4 * nD, 0, "");
    TIME(t, dev, be->bias_bwd(dev, dw, y, D, n, D)); row("bias_bwd", t, 2 * nD, 0, "");
    drop(gu), drop(h), drop(q), drop(table);
    void *e = numbers(V * D, 2, 0.02);
    float *de = numbers(V * D, 4, 0);
    TIME(t, dev, be->embed(dev, y, e, WRPO_DTYPE_BF16, dids, n, D, 1)); row("embed", t, 4 * nD, 0, "");
    TIME(t, dev, be->embed_bwd(dev, de, y, dids, n, D, 1)); row("embed_bwd", t, 10 * nD, 0, "");
    TIME(t, dev, be->colsum(dev, w, e, WRPO_DTYPE_BF16, V, D));
    row("colsum of the head", t, 2 * (double)V * (double)D, 0, "");
    drop(de);
    float *logits = numbers(chunk * V, 4, 2), *lse = numbers(chunk, 4, 1), *logp = numbers(chunk, 4, 1);
    void *dlogits = numbers(chunk * V, 2, 1);
    const double nV = (double)chunk * (double)V;
    TIME(t, dev, be->gemm(dev, WRPO_MM_NT_FLOAT, logits, V, x, D, e, D, WRPO_DTYPE_BF16, chunk, V, D, 0));
    row("gemm logits", t, 0, 2 * nV * (double)D, "");
    TIME(t, dev, be->logprob(dev, logp, lse, logits, V, dids, chunk, V, 0)); row("logprob", t, 4 * nV, 0, "");
    TIME(t, dev, be->logprob_bwd(dev, dlogits, logits, V, dids, lse, logp, chunk, V, 0));
    row("logprob_bwd", t, 6 * nV, 0, "");
    drop(e), drop(logits), drop(lse), drop(logp), drop(dlogits), drop(x), drop(y), drop(w), drop(dw), drop(rstd),
        drop(dids);
    free(ids);
    float *g = numbers(weights, 4, 1e-3), *master = numbers(weights, 2, 0.02), *low = numbers(weights, 2, 1);
    double *sum = be->alloc(dev, 8);
    be->zero(dev, sum, 8);
    TIME(t, dev, be->sumsq(dev, sum, g, weights)); row("sumsq", t, 4 * (double)weights, 0, "");
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
        row(name, t, 12 * (double)weights + 4 * (double)bytes, 0, "");
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
static void decode(const char *name, wrpo_config c, int64_t rows, int64_t keys, int64_t tokens) {
    static int32_t ids[4096];
    for (int j = 0; j < 4096; j++) ids[j] = (int32_t)(wrpo__random64(1, 2, (uint64_t)j) % (uint64_t)c.vocab_size);
    for (volatile int on = 0; on < 2; on++) {
        wrpo_ctx *with = NULL;
        wrpo_error why = {0};
        char label[96];
        snprintf(label, sizeof label, "decode %s, %lld x %lld keys, %s", name, (long long)rows, (long long)keys,
                 on ? "graphs" : "plain");
        wrpo_backend table = *be;
        table.features = (table.features & ~(unsigned)WRPO_FEATURE_GRAPHS) | (on ? WRPO_FEATURE_GRAPHS : 0u);
        const bool opened = wrpo_open(&(wrpo_desc){.backend = &table, .why = &why}, &with) == WRPO_OK;
        if (!opened) { printf("FAIL %s: %s\n", label, why.text), failed = 1; return; }
        TEST_TRY(with, wrpo__arena_new(with), true) {
            wrpo__arena *arena = wrpo__entry.arena;
            wrpo_model *m = wrpo__model_new(arena, &c);
            const wrpo__shape s = {.rows = rows, .chunk = rows, .cache = rows * keys};
            random_weights(arena, m);
            wrpo__run *r = wrpo__run_new(arena, m, &s);
            be->zero(with->dev, r->cache,
                     (size_t)(rows * keys * c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim) * 2);
            wrpo__pack_begin(r);
            for (int64_t i = 0; i < rows; i++)
                wrpo__pack_target(r, i, 0),
                    wrpo__pack_rows(r, ids + i, 1, keys - 1, (wrpo_seg){0, 0, 0, 0, i * keys, (i + 1) * keys});
            wrpo__pack_end(r);
            const int64_t key[4] = {1, rows, rows, rows};
            double step;
            for (int i = 0; i < 4; i++) be->replay(with->dev, key, wrpo__step_ops, r);
            TIME(step, with->dev, be->replay(with->dev, key, wrpo__step_ops, r));
            wrpo_prompt *prompts = wrpo__alloc(arena, (size_t)rows, sizeof *prompts);
            for (int64_t i = 0; i < rows; i++) prompts[i] = (wrpo_prompt){.ids = ids + i, .count = keys / 2};
            wrpo_generate_desc d = {
                .max_tokens = tokens, .batch = rows, .temperature = WRPO_ZERO, .stop = ids, .stop_count = 0};
            const double begin = wrpo__now();
            if (wrpo_generate(m, prompts, rows, &d) != WRPO_OK) {
                printf("FAIL %s: %s\n", label, with->error.text), failed = 1;
                continue;
            }
            const double seconds = wrpo__now() - begin;
            printf("%-44s %10.3f ms a step   texts, with the host's drawing: %.0f tokens/s\n", label, step * 1e3,
                   (double)(rows * tokens) / seconds);
            fflush(stdout);
        }
        if (wrpo__end(&wrpo__entry) != WRPO_OK) printf("FAIL %s: %s\n", label, with->error.text), failed = 1;
        wrpo_close(with);
    }
}

/* ---- whole steps: random weights, every parameter trained ---- */
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
                ok = wrpo_trainer_step(t, &x) == WRPO_OK;
                seconds = wrpo__now() - begin;         /* of the last */
            }
            wrpo_trainer_free(t);
            if (!ok) printf("FAIL %s: %s\n", label, ctx->error.text), failed = 1;
            else {
                wrpo_seg segs[4];
                const double rows = (double)(records_n * (P + 3 * R)), targets = (double)(records_n * 3 * R),
                             D = (double)c.hidden_size, L = (double)c.num_hidden_layers;
                const double layer = (double)((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim) * D +
                    (double)(c.num_attention_heads * c.head_dim) * D + 3.0 * D * (double)c.intermediate_size;
                const double pairs =
                    segments(segs, P, R) * records_n * L * (double)(c.num_attention_heads * c.head_dim);
                const double flop = 6 * rows * L * layer + 6 * targets * D * (double)c.vocab_size + 14 * pairs;
                printf("%-44s %10.3f s   %8.0f rows/s  %8.0f tokens/s unshared  %6.1f TFLOP/s, %4.1f %% of the "
                       "products' rate; moments %s, %lld of %lld layers recomputed;"
                       " memory %.2f GiB, predicted %.2f\n",
                       label, seconds, rows / seconds, (double)records_n * 3 * (double)(P + R) / seconds,
                       flop / seconds * 1e-12, 100 * flop / seconds / rate, wrpo_moments_name((int)d.moments),
                       (long long)bytes.recompute, (long long)c.num_hidden_layers,
                       (double)(taken + bytes.weights) / 1073741824.0, (double)bytes.device / 1073741824.0);
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
int main(int argc, char **argv) {
    wrpo_error why = {0};
    small = argc > 1 && !strcmp(argv[1], "small");
    be = wrpo_backend_cuda();
    if (wrpo_open(&(wrpo_desc){.backend = be, .why = &why}, &ctx) != WRPO_OK)
        return printf("cuda_bench: %s\n", why.text), 1;
    wrpo_backend mma = *be, wgmma = *be;
    mma.features &= ~(unsigned)WRPO_FEATURE_CUBLAS, wgmma.features |= WRPO_FEATURE_WGMMA;
    if (wrpo_open(&(wrpo_desc){.backend = &mma, .why = &why}, &own) != WRPO_OK)
        return printf("cuda_bench: %s\n", why.text), 1;
    if (wrpo_open(&(wrpo_desc){.backend = &wgmma, .why = &why}, &wg) != WRPO_OK)
        printf("skip: products by wgmma: %s\n", why.text);
    {
        const int64_t n = small ? 1 << 16 : (int64_t)1 << 29, k = small ? 128 : 8192;
        double t;
        char *p = be->alloc(ctx->dev, (size_t)(2 * n));
        be->zero(ctx->dev, p, (size_t)(2 * n));
        TIME(t, ctx->dev, be->copy(ctx->dev, p, p + n, (size_t)n));
        bandwidth = 2 * (double)n / t;
        drop(p);
        void *a = numbers(k * k, 2, 1), *b = numbers(k * k, 2, 1), *c = numbers(k * k, 2, 1);
        TIME(t, ctx->dev, be->gemm(ctx->dev, WRPO_MM_NT, c, k, a, k, b, k, WRPO_DTYPE_BF16, k, k, k, 0));
        rate = 2 * (double)k * (double)k * (double)k / t;
        drop(a), drop(b), drop(c);
        printf("measured: copy %.0f GB/s (read + written), product of %lld^3 %.1f TFLOP/s; %.1f GiB free\n",
               bandwidth * 1e-9, (long long)k, rate * 1e-12, (double)be->room(ctx->dev) / 1073741824.0);
    }
    if (small) {
        products("tiny", 40, 24, 48, 24, 32), attentions("tiny", 4, 2, 16, 20, 10),
            streams(40, 64, 96, 6, 16, 200, 30, 5000);
        decode("tiny", shape(97, 32, 48, 2, 4, 2, 8, true), 3, 12, 8);
        step("tiny", shape(97, 32, 48, 2, 4, 2, 8, true), 9, 6, 2);
    } else {
        products("8B", 6144, 4096, 6144, 4096, 14336), products("135M", 6144, 576, 960, 576, 1536);
        attentions("8B", 32, 8, 128, 1024, 1024), attentions("8B", 32, 8, 128, 100, 1948),
            attentions("135M", 9, 3, 64, 1024, 1024), attentions("Gemma", 16, 8, 256, 1024, 1024),
            attentions("Phi-3", 32, 32, 96, 1024, 1024);
        streams(6144, 4096, 14336, 40, 128, 128256, 1024, (int64_t)1 << 29);
        decode("135M", shape(49152, 576, 1536, 30, 9, 3, 64, true), 1, 512, 256),
            decode("135M", shape(49152, 576, 1536, 30, 9, 3, 64, true), 16, 512, 256);
        step("135M", shape(49152, 576, 1536, 30, 9, 3, 64, true), 1024, 1024, 8),
            step("135M", shape(49152, 576, 1536, 30, 9, 3, 64, true), 100, 1948, 8);
        step("1B", shape(128256, 2048, 8192, 16, 32, 8, 64, true), 1024, 1024, 4),
            step("1B", shape(128256, 2048, 8192, 16, 32, 8, 64, true), 100, 1948, 4);
        step("8B", shape(128256, 4096, 14336, 32, 32, 8, 128, false), 1024, 1024, 2),
            step("8B", shape(128256, 4096, 14336, 32, 32, 8, 128, false), 100, 1948, 2);
    }
    if (wg) wrpo_close(wg);
    wrpo_close(own), wrpo_close(ctx);
    return failed;
}
