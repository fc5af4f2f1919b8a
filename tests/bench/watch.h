/* A backend with a stopwatch around every op: times, FLOP and bytes by op, and what would be ideal. bench.c and
   cuda_bench.c include it; each says first how long an ideal device takes, in seconds, and what an op does with memory:
       enum { COPIED, READ, CHANGED, FILLED }: writes elsewhere, only reads, in place, only writes
       double ideal_of_flops(double flops, bool attention), ideal_of_bytes(double bytes, int use) */
#ifndef WRPO_BENCH_WATCH_H
#define WRPO_BENCH_WATCH_H
typedef struct row { char name[56]; int64_t calls; double seconds, flops, bytes, ideal; } row;
static row rows[256];
static int n_rows;
static bool timing;
static const wrpo_backend *inner;

static void add_row(const char *name, double seconds, double flops, double bytes, double ideal) {
    int i = 0;
    if (!timing) return;
    while (i < n_rows && strcmp(rows[i].name, name) != 0) i++;
    if (i == (int)(sizeof rows / sizeof *rows)) { fprintf(stderr, "bench: too many ops\n"); exit(1); }
    if (i == n_rows) snprintf(rows[n_rows++].name, sizeof rows->name, "%s", name);
    rows[i].calls++, rows[i].seconds += seconds, rows[i].flops += flops, rows[i].bytes += bytes, rows[i].ideal += ideal;
}
/* A device works on while the host returns: its stopwatch waits, so that the ops' times add up, without overlap. */
static void settle(void *dev) {
    wrpo_error why;
    if (inner->host || inner->sync(dev, &why) == WRPO_OK) return;
    printf("FAIL %s\n", why.text);
    exit(1);
}
#define ACT ((double)inner->act_bytes)
#define WATCH(name, flops, bytes, ideal, call) do { \
        const double f_ = (double)(flops), b_ = (double)(bytes), t_ = wrpo__now(); \
        call; \
        settle(dev); \
        add_row(name, wrpo__now() - t_, f_, b_, ideal); \
    } while (0)
#define MEMORY(name, total, call) WATCH(name, 0, total, ideal_of_bytes(b_, COPIED), call)
#define READING(name, total, call) WATCH(name, 0, total, ideal_of_bytes(b_, READ), call)
#define CHANGING(name, total, call) WATCH(name, 0, total, ideal_of_bytes(b_, CHANGED), call)
#define FILLING(name, total, call) WATCH(name, 0, total, ideal_of_bytes(b_, FILLED), call)
static const char *mm_name(wrpo_mm mm) {
    return mm == WRPO_MM_NT ? "NT" : mm == WRPO_MM_NT_FLOAT ? "NT logits" : mm == WRPO_MM_NN ? "NN" : "TN";
}
static void t_gemm(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b, int64_t ldb,
                   wrpo_dtype b_type, int64_t m, int64_t n, int64_t k, float beta) {
    char name[56];                   /* by the matrix of weights, whatever the number of rows */
    if (mm == WRPO_MM_TN) snprintf(name, sizeof name, "gemm TN        dW [%lld, %lld]", (long long)m, (long long)n);
    else
        snprintf(name, sizeof name, "gemm %-9s  W [%lld, %lld]", mm_name(mm), (long long)(mm == WRPO_MM_NN ? k : n),
                 (long long)(mm == WRPO_MM_NN ? n : k));
    WATCH(name, 2.0 * (double)m * (double)n * (double)k, 0, ideal_of_flops(f_, false),
          inner->gemm(dev, mm, c, ldc, a, lda, b, ldb, b_type, m, n, k, beta));
}
static void t_embed(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids, int64_t n, int64_t D,
                    float s) {
    MEMORY("embed", (ACT + (w_type == WRPO_DTYPE_F32 ? 4 : 2)) * (double)(n * D),
           inner->embed(dev, y, w, w_type, ids, n, D, s));
}
static void t_colsum(void *dev, float *y, const void *w, wrpo_dtype w_type, int64_t n, int64_t D) {
    READING("colsum", (w_type == WRPO_DTYPE_F32 ? 4 : 2) * n * D, inner->colsum(dev, y, w, w_type, n, D));
}
static void t_embed_bwd(void *dev, float *dw, const void *dy, const int32_t *ids, int64_t n, int64_t D, float s) {
    CHANGING("embed_bwd", (ACT + 8) * (double)(n * D), inner->embed_bwd(dev, dw, dy, ids, n, D, s));
}
static void t_gather(void *dev, void *y, const void *x, const int32_t *i, int64_t n, int64_t D) {
    MEMORY("gather", 2 * ACT * (double)(n * D), inner->gather(dev, y, x, i, n, D));
}
static void t_gather_bwd(void *dev, void *dx, const void *dy, const float *s, const int32_t *i, int64_t n, int64_t D) {
    CHANGING("gather_bwd", 3 * ACT * (double)(n * D), inner->gather_bwd(dev, dx, dy, s, i, n, D));
}
static void t_scatter(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *i, int64_t n,
                      int64_t D) {
    MEMORY("scatter", 2 * ACT * (double)(n * D), inner->scatter(dev, y, ldy, x, ldx, i, n, D));
}
static void t_bias(void *dev, void *y, int64_t ldy, const float *b, int64_t n, int64_t D) {
    CHANGING("bias", 2 * ACT * (double)(n * D), inner->bias(dev, y, ldy, b, n, D));
}
static void t_bias_bwd(void *dev, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D) {
    READING("bias_bwd", ACT * (double)(n * D), inner->bias_bwd(dev, db, dy, lddy, n, D));
}
static void t_add(void *dev, void *y, const void *x, int64_t count) {
    CHANGING("add", 3 * ACT * (double)(count), inner->add(dev, y, x, count));
}
static void t_rmsnorm(void *dev, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx, const float *w,
                      int64_t n, int64_t heads, int64_t D, float eps, float plus) {
    MEMORY("rmsnorm", 2 * ACT * (double)(n * heads * D),
           inner->rmsnorm(dev, y, ldy, rstd, x, ldx, w, n, heads, D, eps, plus));
}
static void t_rmsnorm_bwd(void *dev, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy, const void *dres,
                          int64_t lddres, const void *x, int64_t ldx, const float *w, const float *rstd, int64_t n,
                          int64_t heads, int64_t D, float plus) {
    CHANGING("rmsnorm_bwd", (dres ? 4 : 3) * ACT * (double)(n * heads * D),
           inner->rmsnorm_bwd(dev, dx, lddx, dw, dy, lddy, dres, lddres, x, ldx, w, rstd, n, heads, D, plus));
}
static void t_rope(void *dev, void *x, int64_t ldx, const float *table, const int32_t *index, int64_t n, int64_t heads,
                   int64_t d, float sign) {
    CHANGING("rope", 2 * ACT * (double)(n * heads * d), inner->rope(dev, x, ldx, table, index, n, heads, d, sign));
}
static double visible(void *dev, const wrpo_attn *a) { /* pairs of a query and a key it sees */
    double pairs = 0;
    wrpo_seg *segs = malloc((size_t)a->n_segs * sizeof *segs);
    if (!segs) exit(1);
    inner->get(dev, segs, a->segs, (size_t)a->n_segs * sizeof *segs);
    for (const wrpo_seg *g = segs; g < segs + a->n_segs; g++)
        for (int64_t i = g->begin; i < g->end; i++) {
            const int64_t keys = g->prefix_end - g->prefix + (g->own_end - g->own) - (g->end - 1 - i);
            pairs += (double)(a->window ? WRPO__MIN(keys, a->window) : keys);
        }
    free(segs);
    return pairs;
}
static void t_attention(void *dev, const wrpo_attn *a, void *o, float *lse, const void *q, const void *k,
                        const void *v) {               /* q k' and p v */
    WATCH("attention", 4 * visible(dev, a) * (double)(a->H * a->d), 0, ideal_of_flops(f_, true),
          inner->attention(dev, a, o, lse, q, k, v));
}
static void t_attention_bwd(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                            const float *lse, const void *q, const void *k, const void *v, void *scratch) {
    WATCH("attention_bwd", 10 * visible(dev, a) * (double)(a->H * a->d), 0,    /* q k', do v', and three gradients */
          ideal_of_flops(f_, true), inner->attention_bwd(dev, a, dq, dk, dv, d_o, o, lse, q, k, v, scratch));
}
static void t_glu(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu) {
    MEMORY("glu", 3 * ACT * (double)(n * I), inner->glu(dev, h, gu, n, I, gelu));
}
static void t_glu_bwd(void *dev, void *dgu, void *h, const void *dh, const void *gu, int64_t n, int64_t I, bool gelu) {
    MEMORY("glu_bwd", (h ? 6 : 5) * ACT * (double)(n * I), inner->glu_bwd(dev, dgu, h, dh, gu, n, I, gelu));
}
static void t_logprob(void *dev, float *logp, float *lse, const float *logits, int64_t ldl,
                      const int32_t *target, int64_t n, int64_t V, float softcap) {
    READING("logprob", 4 * n * V, inner->logprob(dev, logp, lse, logits, ldl, target, n, V, softcap));
}
static void t_logprob_bwd(void *dev, void *dlogits, const float *logits, int64_t ldl, const int32_t *target,
                          const float *lse, const float *dlogp, int64_t n, int64_t V, float softcap) {
    CHANGING("logprob_bwd", (4 + ACT) * (double)(n * V),
           inner->logprob_bwd(dev, dlogits, logits, ldl, target, lse, dlogp, n, V, softcap));
}
static void t_sumsq(void *dev, double *out, const float *x, int64_t count) {
    READING("sumsq", 4 * count, inner->sumsq(dev, out, x, count));
}
static void t_adamw(void *dev, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count,
                    const wrpo_adamw *step) {
    /* weights and moments in and out, gradients in */
    const int64_t moments = step->moments == WRPO_MOMENTS_F32 ? 16 : step->moments == WRPO_MOMENTS_BF16 ? 8 : 4;
    CHANGING("adamw", (8 + 4 + moments) * count, inner->adamw(dev, w, low, m, v, g, count, step));
}
static void t_dropout(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t n, int64_t D,
                      const wrpo_dropout *d) {
    MEMORY("dropout", 2 * ACT * (double)(n * D), inner->dropout(dev, y, ldy, x, ldx, n, D, d));
}
static void t_put(void *dev, void *dst, const void *host, size_t n) {
    MEMORY("put", 2 * n, inner->put(dev, dst, host, n));
}
static void t_get(void *dev, void *host, const void *src, size_t n) {
    MEMORY("get", 2 * n, inner->get(dev, host, src, n));
}
static void t_copy(void *dev, void *dst, const void *src, size_t n) {
    MEMORY("copy", 2 * n, inner->copy(dev, dst, src, n));
}
static void t_zero(void *dev, void *dst, size_t n) { FILLING("zero", n, inner->zero(dev, dst, n)); }
static wrpo_backend watched(const wrpo_backend *of) {
    wrpo_backend table = *(inner = of);
    table.put = t_put, table.get = t_get, table.copy = t_copy, table.zero = t_zero;
    table.gemm = t_gemm, table.embed = t_embed, table.embed_bwd = t_embed_bwd;
    table.gather = t_gather, table.gather_bwd = t_gather_bwd, table.scatter = t_scatter;
    table.colsum = t_colsum;
    table.bias = t_bias, table.bias_bwd = t_bias_bwd, table.add = t_add, table.dropout = t_dropout;
    table.rmsnorm = t_rmsnorm, table.rmsnorm_bwd = t_rmsnorm_bwd, table.rope = t_rope;
    table.attention = t_attention, table.attention_bwd = t_attention_bwd;
    table.glu = t_glu, table.glu_bwd = t_glu_bwd, table.logprob = t_logprob, table.logprob_bwd = t_logprob_bwd;
    table.sumsq = t_sumsq, table.adamw = t_adamw;
    return table;
}
#endif
