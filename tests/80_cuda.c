/* The CUDA backend: every op at odd shapes and strides against the plain one; a whole model's step and training against
   the CPU's. By default the kernels run on the host (cuda_emu.h), in several orders of threads and blocks and with
   asynchronous copies landing late and at once; compiled by nvcc the same text runs on a GPU. Inputs are bf16 numbers,
   the same for both; the tolerance of each comparison stands beside it: the largest difference over the largest number
   wanted. 4e-3 is one rounding to bf16 (2^-8), 1e-5 a sum in another order. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include <unistd.h>

#ifdef WRPO_EMULATED
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
#endif
static const char *const ORDERS[][2] = {
    {"0", "0"}, {"1", "1"}, {"2", "1"}, {"5", "0"}}; /* EMU_ORDER, EMU_ASYNC; on a GPU just four runs */
enum { WAYS = SANITIZED ? 1 : 4, KEPT = 24 };          /* under a sanitizer one order, and small cases */

/* An array on both sides. dev: bf16 for activations, or float. */
typedef struct array { float *host; void *dev; int64_t n; int bytes; } array;
typedef struct run {
    wrpo_ctx *cpu, *gpu; const wrpo_backend *be, *ref;       /* cpu, ref: of the plain backend */
    void *d;                         /* the device */
    int way;
    char name[120];
    void *hosts[64], *devs[64]; int n_hosts, n_devs;
    struct { void *bits; size_t n; } kept[KEPT]; int n_kept;
    uint64_t seed, counter;
} run;
static struct { const char *op; double worst, tolerance; int64_t numbers; } table[64];
static int ops;

static double uniform(run *t, double low, double high) {
    return low + (high - low) * (double)(wrpo__random64(t->seed, 0, t->counter++) >> 11) / 9007199254740992.0;
}
static float rounded(double x) {     /* the nearest bf16 */
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}
static void *host(run *t, size_t n) {
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (!p || t->n_hosts == 64) exit(2);
    return t->hosts[t->n_hosts++] = p;
}
static void *device(run *t, size_t n) {
    void *p = t->be->alloc(t->d, n);
    if (!p || t->n_devs == 64) exit(2);
    return t->devs[t->n_devs++] = p;
}
/* host floats to device memory, as bf16 or float; NaN becomes 0xffff, a mark */
static void up(run *t, const array *a) {
    if (a->bytes == 4) { t->be->put(t->d, a->dev, a->host, (size_t)a->n * 4); return; }
    uint16_t *h = malloc((size_t)a->n * 2 + 1);
    for (int64_t i = 0; i < a->n; i++) {
        uint32_t u;
        memcpy(&u, a->host + i, 4);
        h[i] = isnan(a->host[i]) ? 0xffff : (uint16_t)(u >> 16);
    }
    t->be->put(t->d, a->dev, h, (size_t)a->n * 2);
    t->be->sync(t->d, &(wrpo_error){0});
    free(h);
}
static array make(run *t, int64_t n, int bytes) {
    array a = {host(t, (size_t)n * 4), device(t, (size_t)(n * bytes)), n, bytes};
    for (int64_t i = 0; i < n; i++) a.host[i] = NAN;
    return a;
}
static array blank(run *t, int64_t n, int bytes) { array a = make(t, n, bytes); up(t, &a); return a; }
static array rnd(run *t, int64_t n, int bytes, double low, double high) {
    array a = make(t, n, bytes);
    for (int64_t i = 0; i < n; i++)
        a.host[i] = bytes == 2 ? rounded(uniform(t, low, high)) : (float)uniform(t, low, high);
    up(t, &a);
    return a;
}
/* rows of width numbers, ld apart, NaN between them */
static array rows_of(run *t, int64_t n, int64_t width, int64_t ld, double low, double high) {
    array a = make(t, n * ld, 2);
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < width; j++) a.host[r * ld + j] = rounded(uniform(t, low, high));
    up(t, &a);
    return a;
}
static const int32_t *ids_of(run *t, const int32_t *ids, int64_t n) {
    int32_t *p = device(t, (size_t)n * 4 + 4);
    t->be->put(t->d, p, ids, (size_t)n * 4);
    return p;
}
static void tally(const char *op, double error, double tolerance, int64_t numbers) {
    int i = 0;
    while (i < ops && strcmp(table[i].op, op) != 0) i++;
    if (i == ops) table[ops++].op = op;
    table[i].worst = test_larger(table[i].worst, error);
    table[i].tolerance = tolerance, table[i].numbers += numbers;
}
/* In the first order: a.dev against a.host (the plain op's result); what is between rows has to be
   what it was. Later: the first order's bits. */
static void result(run *t, const char *op, const char *what, array a, int64_t rows, int64_t width, int64_t ld,
                   double tolerance) {
    const size_t size = (size_t)(rows ? (rows - 1) * ld + width : 0) * (size_t)a.bytes;
    void *got = malloc(size + 4);
    wrpo_error why = {WRPO_OK, 0, 0, ""};
    t->be->get(t->d, got, a.dev, size);
    CHECK(t->be->sync(t->d, &why) == WRPO_OK, "%s: %s", t->name, why.text);
    if (t->way) {
        CHECK(t->kept[t->n_kept].n == size && !memcmp(t->kept[t->n_kept].bits, got, size),
              "%s: %s: other bits with order %s, copies %s", t->name, what, ORDERS[t->way][0], ORDERS[t->way][1]);
        t->n_kept++, free(got);
        return;
    }
    double scale = 1e-30, worst = 0;
    int64_t at = -1, touched = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j++) scale = fmax(scale, fabs((double)a.host[r * ld + j]));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < ld && (j < width || r + 1 < rows); j++) {
            uint32_t u;
            float f;
            if (a.bytes == 2) u = (uint32_t)((uint16_t *)got)[r * ld + j] << 16, memcpy(&f, &u, 4);
            else f = ((float *)got)[r * ld + j];
            if (j >= width) { touched += !isnan(f); continue; }
            double e = fabs((double)f - (double)a.host[r * ld + j]) / scale;
            if (!(e <= worst) && !isnan(worst)) at = r * ld + j;
            worst = test_larger(worst, e);
        }
    tally(op, worst, tolerance, rows * width);
    CHECK(worst <= tolerance, "%s: %s: relative error %.3g at %lld (wanted %.6g)", t->name, what, worst, (long long)at,
          at < 0 ? 0 : (double)a.host[at]);
    CHECK(!touched, "%s: %s: %lld numbers written between rows", t->name, what, (long long)touched);
    t->kept[t->n_kept].bits = got, t->kept[t->n_kept++].n = size;
}
static void each_way(const char *name, uint64_t seed, void (*fn)(run *, const int64_t *), const int64_t *arg,
                     wrpo_ctx *cpu, wrpo_ctx **gpu) {
    run t = {0};
    snprintf(t.name, sizeof t.name, "%s", name);
    for (t.way = 0; t.way < WAYS; t.way++) {
        setenv("EMU_ORDER", ORDERS[t.way + SANITIZED][0], 1),
            setenv("EMU_ASYNC", ORDERS[t.way + SANITIZED][1], 1); /* races show where copies land at once */
        t.cpu = cpu, t.gpu = gpu[0], t.be = wrpo_backend_cuda(), t.ref = cpu->desc.backend, t.d = gpu[0]->dev;
        t.seed = seed, t.counter = 0, t.n_kept = 0;
        fn(&t, arg);
        while (t.n_devs) t.be->release(t.d, t.devs[--t.n_devs]);
        while (t.n_hosts) free(t.hosts[--t.n_hosts]);
    }
    for (int i = 0; i < KEPT; i++) free(t.kept[i].bits);
}

/* ---- gemm: args m, n, k, layout, beta, extra columns between rows (-1: rows end on 16 bytes), weights in float ----
 */
static void test_gemm(run *t, const int64_t *arg) {
    const int64_t m = arg[0], n = arg[1], k = arg[2], extra = arg[5];
    const wrpo_mm mm = (wrpo_mm)arg[3];
    const bool bt = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT, at = mm == WRPO_MM_TN, wide = arg[6] && !at;
    const int64_t wa = at ? m : k, wb = bt ? k : n, lda = extra < 0 ? (wa + 15) / 8 * 8 : wa + extra,
                  ldb = extra < 0 ? (wb + 15) / 8 * 8 : wb + extra, ldc = n + (extra < 0 ? 3 : extra);
    array a = rnd(t, (at ? k : m) * lda + 8, 2, -1, 1), b = rnd(t, (bt ? n : k) * ldb + 8, wide ? 4 : 2, -1, 1),
          c = make(t, m * ldc, mm == WRPO_MM_NT || mm == WRPO_MM_NN ? 2 : 4);
    if (wide) { for (int64_t i = 0; i < b.n; i++) b.host[i] = rounded((double)b.host[i]); up(t, &b); }
    for (int64_t i = 0; i < m * ldc; i++)
        if (arg[4] && i % ldc < n) c.host[i] = rounded(uniform(t, -1, 1));
    up(t, &c);
    t->be->gemm(t->d, mm, c.dev, ldc, a.dev, lda, b.dev, ldb, wide ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16, m, n, k,
                (float)arg[4]);
    if (t->way == 0)
        t->ref->gemm(t->cpu->dev, mm, c.host, ldc, a.host, lda, b.host, ldb, WRPO_DTYPE_F32, m, n, k, (float)arg[4]);
    result(t, c.bytes == 2 ? "gemm to bf16" : "gemm to float",
           mm == WRPO_MM_NT         ? "NT"
           : mm == WRPO_MM_NT_FLOAT ? "NT_LOGITS"
           : mm == WRPO_MM_NN       ? "NN"
                                    : "TN",
           c, m, n, ldc, c.bytes == 2 ? 4e-3 : 1e-5);
    if (at || arg[4] || t->way || m < 20)
        return; /* a row is a row, whichever come with it: also through the kernel for few rows */
    array part = blank(t, 7 * n, c.bytes);
    t->be->gemm(t->d, mm, part.dev, n, (char *)a.dev + 5 * lda * 2, lda, b.dev, ldb,
                wide ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16, 7, n, k, 0);
    char *x = malloc((size_t)(7 * n * c.bytes)), *y = malloc((size_t)(n * c.bytes));
    t->be->get(t->d, x, part.dev, (size_t)(7 * n * c.bytes));
    for (int64_t r = 0; r < 7 && EMULATED; r++) {      /* cuBLASLt does not promise it */
        t->be->get(t->d, y, (char *)c.dev + (r + 5) * ldc * c.bytes, (size_t)(n * c.bytes));
        CHECK(!memcmp(x + r * n * c.bytes, y, (size_t)(n * c.bytes)), "%s: row %lld alone has other bits", t->name,
              (long long)r + 5);
    }
    free(x), free(y);
}

/* ---- embed, gather, bias, colsum, add, sum, sumsq: args n, D, rows of the table, extra ---- */
static void test_rows(run *t, const int64_t *arg) {
    const int64_t n = arg[0], D = arg[1], V = arg[2], ld = D + arg[3];
    int32_t *ids = host(t, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(uniform(t, 0, 1) * (double)V) % (int32_t)V;
    const int32_t *dids = ids_of(t, ids, n);
    array w = rnd(t, V * D, 2, -1, 1), wf = rnd(t, V * D, 4, -1, 1), x = rnd(t, n * D, 2, -1, 1),
          y = blank(t, n * D, 2);
    void *c = t->cpu->dev;
    t->be->embed(t->d, y.dev, w.dev, WRPO_DTYPE_BF16, dids, n, D, 1.5f),
        t->ref->embed(c, y.host, w.host, WRPO_DTYPE_F32, ids, n, D, 1.5f);
    result(t, "embed", "y", y, n, D, D, 4e-3);
    t->be->embed(t->d, y.dev, wf.dev, WRPO_DTYPE_F32, dids, n, D, 1),
        t->ref->embed(c, y.host, wf.host, WRPO_DTYPE_F32, ids, n, D, 1);
    result(t, "embed", "y of float weights", y, n, D, D, 4e-3);
    t->be->embed_bwd(t->d, wf.dev, x.dev, dids, n, D, 1.5f), t->ref->embed_bwd(c, wf.host, x.host, ids, n, D, 1.5f);
    result(t, "embed_bwd", "dw", wf, V, D, D, 1e-5);
    t->be->gather(t->d, y.dev, w.dev, dids, n, D), t->ref->gather(c, y.host, w.host, ids, n, D);
    result(t, "gather", "y", y, n, D, D, 0);
    array many = rows_of(t, n, D, ld, -1, 1), to = blank(t, 3 * n * ld, 2);
    int32_t *places = host(t, (size_t)n * 4);
    for (int64_t r = 0; r < n; r++) places[r] = (int32_t)(3 * (n - 1 - r));
    t->be->scatter(t->d, to.dev, ld, many.dev, ld, ids_of(t, places, n), n, D),
        t->ref->scatter(c, to.host, ld, many.host, ld, places, n, D);
    result(t, "scatter", "y", to, n, D, 3 * ld, 0);
    t->be->add(t->d, y.dev, x.dev, n * D), t->ref->add(c, y.host, x.host, n * D);
    result(t, "add", "y", y, n, D, D, 4e-3);
    array gradient = rnd(t, n * D, 4, -1, 1), other = rnd(t, n * D, 4, -1, 1);
    t->be->sum(t->d, gradient.dev, other.dev, n * D), t->ref->sum(c, gradient.host, other.host, n * D);
    result(t, "sum", "y", gradient, n, D, D, 0);
    array scales = rnd(t, n, 4, -1, 1);
    for (int i = 0; i < 2; i++) {
        t->be->gather_bwd(t->d, w.dev, x.dev, i ? scales.dev : NULL, dids, n, D);
        t->ref->gather_bwd(c, w.host, x.host, i ? scales.host : NULL, ids, n, D);
        result(t, "gather_bwd", i ? "dx, scaled" : "dx", w, V, D, D, i ? 8e-3 : 4e-3);
    }
    const wrpo_dropout drops[] = {{.scale = 1.5f}, {.scale = 2, .p = 0.3f, .seed = 5, .stream = 9, .row = 3}};
    for (int i = 0; i < 2; i++) {
        array in = rows_of(t, n, D, ld, -1, 1);
        t->be->dropout(t->d, in.dev, ld, in.dev, ld, n, D, &drops[i]),
            t->ref->dropout(c, in.host, ld, in.host, ld, n, D, &drops[i]);
        result(t, "dropout", "y", in, n, D, ld, 4e-3);
    }
    array s = rows_of(t, n, D, ld, -1, 1), b = rnd(t, D, 4, -1, 1), db = rnd(t, D, 4, -1, 1), sum = blank(t, D, 4);
    t->be->bias_bwd(t->d, db.dev, s.dev, ld, n, D), t->ref->bias_bwd(c, db.host, s.host, ld, n, D);
    result(t, "bias_bwd", "db", db, 1, D, D, 1e-5);
    t->be->bias(t->d, s.dev, ld, b.dev, n, D), t->ref->bias(c, s.host, ld, b.host, n, D);
    result(t, "bias", "y", s, n, D, ld, 4e-3);
    t->be->colsum(t->d, sum.dev, x.dev, WRPO_DTYPE_BF16, n, D),
        t->ref->colsum(c, sum.host, x.host, WRPO_DTYPE_F32, n, D);
    result(t, "colsum", "y", sum, 1, D, D, 1e-5);
    double got = 3, want = 3, *dev = device(t, 8);
    t->be->put(t->d, dev, &got, 8);
    t->be->sumsq(t->d, dev, wf.dev, V * D);
    if (t->way == 0) t->ref->sumsq(c, &want, wf.host, V * D);
    t->be->get(t->d, &got, dev, 8);
    if (t->way == 0) CHECK(fabs(got - want) <= 2e-6 * want, "%s: sumsq: found %.17g, wanted %.17g", t->name, got, want);
}

/* ---- rmsnorm: args n, heads, D, extra, plus, aliasing (1: y = x and dx = dy, 2: dx = dres) ---- */
static void test_rmsnorm(run *t, const int64_t *arg) {
    const int64_t n = arg[0], heads = arg[1], D = arg[2], W = heads * D, ld = W + arg[3], alias = arg[5];
    array x = rows_of(t, n, W, ld, -2, 2), in = make(t, n * ld, 2), dy = rows_of(t, n, W, ld, -1, 1),
          dres = rows_of(t, n, W, ld, -1, 1);
    array w = rnd(t, D, 4, 0.5, 1.5), dw = rnd(t, D, 4, -1, 1), rstd = blank(t, n * heads, 4);
    memcpy(in.host, x.host, (size_t)(n * ld) * 4), up(t, &in);
    array y = alias == 1 ? x : blank(t, n * ld, 2), dx = alias == 1 ? dy : alias == 2 ? dres : blank(t, n * ld, 2);
    const float plus = (float)arg[4];
    t->be->rmsnorm(t->d, y.dev, ld, rstd.dev, x.dev, ld, w.dev, n, heads, D, 1e-5f, plus);
    t->ref->rmsnorm(t->cpu->dev, y.host, ld, rstd.host, x.host, ld, w.host, n, heads, D, 1e-5f, plus);
    result(t, "rmsnorm", "y", y, n, W, ld, 4e-3);
    result(t, "rmsnorm rstd", "rstd", rstd, n, heads, heads, 1e-5);
    t->be->rmsnorm_bwd(t->d, dx.dev, ld, dw.dev, dy.dev, ld, alias == 1 ? NULL : dres.dev, ld, in.dev, ld, w.dev,
                       rstd.dev, n, heads, D, plus);
    t->ref->rmsnorm_bwd(t->cpu->dev, dx.host, ld, dw.host, dy.host, ld, alias == 1 ? NULL : dres.host, ld, in.host, ld,
                        w.host, rstd.host, n, heads, D, plus);
    result(t, "rmsnorm_bwd", "dx", dx, n, W, ld, 4e-3);
    result(t, "rmsnorm_bwd dw", "dw", dw, 1, D, D, 1e-5);
}
/* ---- rope: args n, heads, d, extra ---- */
static void test_rope(run *t, const int64_t *arg) {
    const int64_t n = arg[0], heads = arg[1], d = arg[2], W = heads * d, ld = W + arg[3];
    const int64_t positions = n + 3;
    array x = rows_of(t, n, W, ld, -1, 1), turn = make(t, positions * d, 4);
    int32_t *index = host(t, (size_t)n * 4);
    for (int64_t r = 0; r < n; r++) index[r] = (int32_t)uniform(t, 0, (double)positions);
    for (int64_t i = 0; i < positions * d / 2; i++) {
        const double angle = uniform(t, 0, 7);
        turn.host[2 * i] = (float)cos(angle), turn.host[2 * i + 1] = (float)sin(angle);
    }
    up(t, &turn);
    const int32_t *at = ids_of(t, index, n);
    for (int back = 0; back < 2; back++) {
        t->be->rope(t->d, x.dev, ld, turn.dev, at, n, heads, d, back ? -1 : 1);
        t->ref->rope(t->cpu->dev, x.host, ld, turn.host, index, n, heads, d, back ? -1 : 1);
        result(t, "rope", back ? "back" : "x", x, n, W, ld, back ? 8e-3 : 4e-3);
    }
}

/* ---- attention: args H, G, d, window, softcap, extra, layout of segments ---- */
typedef struct layout { int64_t n, count; wrpo_seg segs[12]; } layout;
#define SEG(b, e, p, q) {b, e, p, q, b, e}
static const layout LAYOUTS[] = {
    {1, 1, {SEG(0, 1, 0, 0)}},
    {17, 1, {SEG(0, 17, 0, 0)}},
    {129, 2, {SEG(0, 3, 0, 0), SEG(3, 129, 3, 3)}},
    {25, 4, {SEG(0, 5, 0, 0), SEG(5, 12, 0, 5), SEG(12, 13, 0, 5), SEG(13, 25, 0, 5)}},
    {230,
     8,
     {SEG(0, 33, 0, 0), SEG(33, 73, 0, 33), SEG(73, 90, 0, 33), SEG(90, 90, 0, 33), SEG(90, 221, 0, 33),
      SEG(221, 222, 221, 221), SEG(222, 225, 221, 222), SEG(225, 230, 221, 222)}},
    {400, 4, {SEG(0, 150, 0, 0), SEG(150, 230, 0, 150), SEG(230, 360, 0, 150), SEG(360, 400, 10, 20)}},
};
static const wrpo_seg *segs_of(run *t, const wrpo_seg *segs, int64_t count) {
    wrpo_seg *p = device(t, (size_t)count * sizeof *p);
    t->be->put(t->d, p, segs, (size_t)count * sizeof *p);
    return p;
}
static void test_attention(run *t, const int64_t *arg) {
    const layout *l = &LAYOUTS[arg[6]];
    const int64_t n = l->n, H = arg[0], G = arg[1], d = arg[2], extra = arg[5];
    wrpo_attn a = {n,
                   l->segs,
                   l->count,
                   H,
                   G,
                   d,
                   H * d + extra,
                   G * d + extra,
                   H * d + 2 * extra,
                   arg[3],
                   0.7f / sqrtf((float)d),
                   (float)arg[4]},
              b = a;
    const double reach = arg[4] ? 3 : 1.5;
    b.segs = segs_of(t, l->segs, l->count);
    array q = rows_of(t, n, H * d, a.ldq, -reach, reach), k = rows_of(t, n, G * d, a.ldkv, -reach, reach),
          v = rows_of(t, n, G * d, a.ldkv, -1, 1);
    array go = rows_of(t, n, H * d, a.ldo, -1, 1), o = blank(t, n * a.ldo, 2), lse = blank(t, n * H, 4);
    t->be->attention(t->d, &b, o.dev, lse.dev, q.dev, k.dev, v.dev);
    if (t->way == 0) t->ref->attention(t->cpu->dev, &a, o.host, lse.host, q.host, k.host, v.host);
    result(t, "attention", "o", o, n, H * d, a.ldo, 6e-3);
    result(t, "attention lse", "lse", lse, n, H, H, 1e-5);
    array dq = blank(t, n * a.ldq, 2), dk = blank(t, n * a.ldkv, 2), dv = blank(t, n * a.ldkv, 2);
    /* of NaN, whatever was there before: a sum that no block has written shows */
    array scratch = blank(t, (int64_t)(t->be->attention_scratch(t->d, n, H, G, d) / 4), 4);
    void *ref = host(t, t->ref->attention_scratch(t->cpu->dev, n, H, G, d));
    t->be->attention_bwd(t->d, &b, dq.dev, dk.dev, dv.dev, go.dev, o.dev, lse.dev, q.dev, k.dev, v.dev,
                         scratch.dev);
    if (t->way == 0)
        t->ref->attention_bwd(t->cpu->dev, &a, dq.host, dk.host, dv.host, go.host, o.host, lse.host, q.host, k.host,
                              v.host, ref);
    if (n > 1) result(t, "attention_bwd", "dq", dq, n, H * d, a.ldq, 1e-2);            /* one key: dq and dk are 0 */
    if (n > 1) result(t, "attention_bwd", "dk", dk, n, G * d, a.ldkv, 1e-2);
    result(t, "attention_bwd", "dv", dv, n, G * d, a.ldkv, 6e-3);
}
/* A cache: the last rows alone, their keys elsewhere, have the bits that they have in one pass. args H, G, d, window */
static void test_decoding(run *t, const int64_t *arg) {
    const int64_t H = arg[0], G = arg[1], d = arg[2], P = 37, R = 21, n = P + R, far = 90, kv = G * d * 2;
    const wrpo_seg all[2] = {SEG(0, P, 0, 0), SEG(P, n, 0, P)};
    wrpo_attn a = {n, segs_of(t, all, 2), 2, H, G, d, H * d, G * d, H * d, arg[3], 0.3f, 0};
    array q = rnd(t, n * H * d, 2, -2, 2), k = rnd(t, n * G * d, 2, -2, 2), v = rnd(t, n * G * d, 2, -1, 1),
          o = blank(t, n * H * d, 2), lse = blank(t, n * H, 4);
    array k2 = blank(t, (far + R) * G * d, 2), v2 = blank(t, (far + R) * G * d, 2), o2 = blank(t, n * H * d, 2),
          lse2 = blank(t, n * H, 4);
    for (int i = 0; i < 2; i++) {
        char *to = i ? v2.dev : k2.dev, *from = i ? v.dev : k.dev;
        t->be->copy(t->d, to, from, (size_t)(P * kv)),
            t->be->copy(t->d, to + far * kv, from + P * kv, (size_t)(R * kv));
    }
    t->be->attention(t->d, &a, o.dev, lse.dev, q.dev, k.dev, v.dev);
    char *x = host(t, (size_t)(n * H * d) * 2), *y = host(t, (size_t)(n * H * d) * 2);
    t->be->get(t->d, x, o.dev, (size_t)(n * H * d) * 2);
    for (int64_t rows = 1; rows <= R; rows += 4) {
        const wrpo_seg one = {0, rows, 0, P, far, far + R};
        wrpo_attn b = a;
        b.n = rows, b.segs = segs_of(t, &one, 1), b.n_segs = 1;
        t->be->attention(t->d, &b, o2.dev, lse2.dev, (char *)q.dev + (n - rows) * H * d * 2, k2.dev, v2.dev);
        t->be->get(t->d, y, o2.dev, (size_t)(rows * H * d) * 2);
        CHECK(!memcmp(y, x + (n - rows) * H * d * 2, (size_t)(rows * H * d) * 2),
              "%s: %lld rows against a cache have other bits", t->name, (long long)rows);
    }
}
/* Rows that are alone in their segments, against caches of many keys: right, and with the same bits whatever else is
   computed. args H, G, d, window, softcap, how many sequences */
static void test_splits(run *t, const int64_t *arg) {
    enum { MOST = 24 };
    static const int64_t lengths[] = {700, 1100, 511, 512, 37, 2600, 833, 576};
    const int64_t H = arg[0], G = arg[1], d = arg[2], count = arg[5], P = 130;
    wrpo_seg segs[MOST];
    int64_t n = 0, keys = P;                           /* the first P rows of k and v: the prefix of every other one */
    for (int64_t i = 0; i < count; i++) {
        const int64_t own = lengths[i % 8], rows = i % 6 == 4 ? 3 : 1, prefix = i % 2 ? 3 : P;
        segs[i] = (wrpo_seg){n, n + rows, 0, prefix, keys, keys + own};
        n += rows, keys += own;
    }
    wrpo_attn a = {n, segs, count, H, G, d, H * d, G * d, H * d, arg[3], 0.7f / sqrtf((float)d), (float)arg[4]}, b = a;
    array q = rnd(t, n * H * d, 2, -2, 2), k = rnd(t, keys * G * d, 2, -2, 2), v = rnd(t, keys * G * d, 2, -1, 1),
          o = blank(t, n * H * d, 2), lse = blank(t, n * H, 4), o2 = blank(t, n * H * d, 2), lse2 = blank(t, n * H, 4);
    b.segs = segs_of(t, segs, count);
    t->be->attention(t->d, &b, o.dev, lse.dev, q.dev, k.dev, v.dev);
    if (t->way == 0) t->ref->attention(t->cpu->dev, &a, o.host, lse.host, q.host, k.host, v.host);
    result(t, "attention", "o", o, n, H * d, H * d, 6e-3);
    result(t, "attention lse", "lse", lse, n, H, H, 1e-5);
    const size_t bytes = (size_t)(H * d) * 2;
    char *x = host(t, (size_t)n * bytes), *y = host(t, bytes);
    float *x_lse = host(t, (size_t)(n * H) * 4), *y_lse = host(t, (size_t)H * 4);
    t->be->get(t->d, x, o.dev, (size_t)n * bytes), t->be->get(t->d, x_lse, lse.dev, (size_t)(n * H) * 4);
    for (int64_t i = 0; i < count && i < 8; i++) {
        wrpo_seg one = segs[i];
        const int64_t row = one.begin;
        if (one.end - row != 1) continue;
        one.begin = 0, one.end = 1;
        b.n = b.n_segs = 1, b.segs = segs_of(t, &one, 1);
        t->be->attention(t->d, &b, o2.dev, lse2.dev, (char *)q.dev + (size_t)row * bytes, k.dev, v.dev);
        t->be->get(t->d, y, o2.dev, bytes), t->be->get(t->d, y_lse, lse2.dev, (size_t)H * 4);
        CHECK(!memcmp(y, x + (size_t)row * bytes, bytes) && !memcmp(y_lse, x_lse + row * H, (size_t)H * 4),
              "%s: a row against %lld keys has other bits alone", t->name, (long long)(one.own_end - one.own));
    }
    /* The last row of a piece of a prompt, which has no prefix: alone it is computed as with the row before it. */
    const wrpo_seg piece = {0, 2, 0, 0, P, P + 600}, last = {0, 1, 0, 0, P, P + 600};
    b.n = 2, b.n_segs = 1, b.segs = segs_of(t, &piece, 1);
    t->be->attention(t->d, &b, o.dev, lse.dev, q.dev, k.dev, v.dev);
    t->be->get(t->d, x, o.dev, 2 * bytes);
    b.n = 1, b.segs = segs_of(t, &last, 1);
    t->be->attention(t->d, &b, o2.dev, lse2.dev, (char *)q.dev + bytes, k.dev, v.dev);
    t->be->get(t->d, y, o2.dev, bytes);
    CHECK(!memcmp(y, x + bytes, bytes), "%s: a row of a prompt has other bits in a piece of its own", t->name);
}

/* ---- glu: args n, I, gelu, h wanted, dgu is gu ---- */
static void test_glu(run *t, const int64_t *arg) {
    const int64_t n = arg[0], I = arg[1];
    const bool gelu = arg[2];
    array gu = rnd(t, n * 2 * I, 2, -6, 6), h = blank(t, n * I, 2), h2 = blank(t, n * I, 2),
          dh = rnd(t, n * I, 2, -1, 1), dgu = arg[4] ? gu : blank(t, n * 2 * I, 2);
    t->be->glu(t->d, h.dev, gu.dev, n, I, gelu), t->ref->glu(t->cpu->dev, h.host, gu.host, n, I, gelu);
    result(t, "glu", "h", h, n, I, I, 4e-3);
    t->be->glu_bwd(t->d, dgu.dev, arg[3] ? h2.dev : NULL, dh.dev, gu.dev, n, I, gelu),
        t->ref->glu_bwd(t->cpu->dev, dgu.host, arg[3] ? h2.host : NULL, dh.host, gu.host, n, I, gelu);
    result(t, "glu_bwd", "dgu", dgu, n, 2 * I, 2 * I, 4e-3);
    if (arg[3]) result(t, "glu_bwd", "h", h2, n, I, I, 4e-3);
}
/* ---- logprob: args n, V, softcap, reach, -inf before, ldl - V ---- */
static void test_logprob(run *t, const int64_t *arg) {
    const int64_t n = arg[0], V = arg[1], ldl = V + arg[5];
    array x = make(t, n * ldl, 4), logp = blank(t, n, 4), lse = blank(t, n, 4), g = rnd(t, n, 4, -1, 1),
          dx = blank(t, n * ldl, 2);
    int32_t *target = host(t, (size_t)n * 4);
    for (int64_t r = 0; r < n; r++) {
        target[r] = (int32_t)(uniform(t, 0, 1) * (double)V) % (int32_t)V;
        for (int64_t j = 0; j < V; j++)
            x.host[r * ldl + j] = j < arg[4] && j != target[r] ? -INFINITY
                                                               : (float)uniform(t, (double)-arg[3], (double)arg[3]);
    }
    up(t, &x);
    const int32_t *dt = ids_of(t, target, n);
    t->be->logprob(t->d, logp.dev, lse.dev, x.dev, ldl, dt, n, V, (float)arg[2]);
    t->ref->logprob(t->cpu->dev, logp.host, lse.host, x.host, ldl, target, n, V, (float)arg[2]);
    result(t, "logprob", "logp", logp, n, 1, 1, 1e-5);
    result(t, "logprob", "lse", lse, n, 1, 1, 1e-5);
    t->be->logprob_bwd(t->d, dx.dev, x.dev, ldl, dt, lse.dev, g.dev, n, V, (float)arg[2]);
    t->ref->logprob_bwd(t->cpu->dev, dx.host, x.host, ldl, target, lse.host, g.host, n, V, (float)arg[2]);
    result(t, "logprob_bwd", "dlogits", dx, n, V, ldl, 4e-3);
}
/* ---- adamw: args count, steps, moments, masters. The same bits as the plain op. ---- */
static void test_adamw(run *t, const int64_t *arg) {
    const int64_t n = arg[0], all = (n + WRPO_BLOCK - 1) / WRPO_BLOCK * WRPO_BLOCK;
    const wrpo_moments moments = (wrpo_moments)arg[2];
    const size_t state_bytes = wrpo_moments_bytes(moments, moments == WRPO_MOMENTS_F32 ? n : all),
                 w_bytes = arg[3] ? (size_t)all * 2 : (size_t)n * 4;
    struct {
        void *host, *dev;
        size_t n;
        const char *what;
    } part[4] = {{.n = w_bytes, .what = "w"},
                 {.n = (size_t)all * 2, .what = "low"},
                 {.n = state_bytes, .what = "m"},
                 {.n = state_bytes, .what = "v"}};
    for (int i = 0; i < 4; i++)
        part[i].host = host(t, part[i].n), part[i].dev = device(t, part[i].n), memset(part[i].host, 0, part[i].n);
    for (int64_t i = 0; i < n; i++) {
        const float x = (float)uniform(t, -1, 1);
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (arg[3])
            ((uint16_t *)part[0].host)[i] = (uint16_t)((bits + 0x8000u) >> 16),
                       ((uint16_t *)part[1].host)[i] = (uint16_t)bits;
        else ((float *)part[0].host)[i] = x;
    }
    for (int i = 0; i < 4; i++) t->be->put(t->d, part[i].dev, part[i].host, part[i].n);
    wrpo_adamw s = {.lr = 1e-2f,
                    .beta1 = 0.9f,
                    .beta2 = 0.999f,
                    .eps = 1e-8f,
                    .weight_decay = 0.1f,
                    .grad_scale = 0.25f,
                    .moments = moments};
    for (int64_t step = 0; step < arg[1]; step++) {
        array g = make(t, n, 4);
        for (int64_t i = 0; i < n; i++)
            g.host[i] = i % 97 == 5 ? 0 : (float)(uniform(t, -1, 1) * exp2((double)(i % 11) - 9));
        up(t, &g);
        s.correction1 = 1 - pow(0.9, (double)step + 1), s.correction2 = sqrt(1 - pow(0.999, (double)step + 1)),
        s.seed = wrpo__random64(3, (uint64_t)step, 1);
        t->be->adamw(t->d, part[0].dev, arg[3] ? part[1].dev : NULL, part[2].dev, part[3].dev, g.dev, n, &s);
        t->ref->adamw(t->cpu->dev, part[0].host, arg[3] ? part[1].host : NULL, part[2].host, part[3].host, g.host, n,
                      &s);
    }
    for (int i = 0; i < 4; i++) {
        char *got = host(t, part[i].n);
        size_t other = 0;
        t->be->get(t->d, got, part[i].dev, part[i].n);
        for (size_t k = 0; k < part[i].n; k++) other += got[k] != ((char *)part[i].host)[k];
        if (i == 1 && !arg[3]) continue;
        CHECK(other == 0, "%s: %s: %zu of %zu bytes differ", t->name, part[i].what, other, part[i].n);
    }
}

/* ---- the model ---- */
static wrpo_config config(const char *name) {
    wrpo_config c = {.vocab_size = 129,
                     .hidden_size = 17,
                     .intermediate_size = 33,
                     .num_hidden_layers = 2,
                     .num_attention_heads = 3,
                     .num_key_value_heads = 1,
                     .head_dim = 6,
                     .max_position_embeddings = 512,
                     .rms_norm_eps = 1e-5,
                     .initializer_range = 0.2,
                     .rope = {.theta = 100}};
    snprintf(c.model_type, sizeof c.model_type, "%s", name);
    return c;
}
enum { RECORDS = 12, MOST = 80 };
static int32_t words[RECORDS][4][MOST];
static wrpo_tokens answers[RECORDS][3];
static wrpo_record records[RECORDS];
static char record_names[RECORDS][16];
static void make_records(int64_t V) {
    for (int i = 0; i < RECORDS; i++) {
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < MOST; j++)
                words[i][s][j] = (int32_t)(wrpo__random64(1, (uint64_t)(i * 4 + s), (uint64_t)j) % (uint64_t)V);
        for (int k = 0; k < 3; k++)
            answers[i][k] = (wrpo_tokens){
                .role = (wrpo_role)k, .ids = words[i][k + 1], .count = 1 + (i * 7 + k * 11) % 29, .share = 1};
        snprintf(record_names[i], sizeof record_names[i], "r%d", i);
        records[i] = (wrpo_record){.prompt_id = record_names[i],
                                   .line = i + 1,
                                   .prompt = words[i][0],
                                   .prompt_count = 1 + i * 13 % 71,
                                   .responses = answers[i],
                                   .count = 3,
                                   .weight = 1};
    }
}
typedef struct side { wrpo_ctx *ctx; wrpo_model *model; wrpo__workspace *run; float *logp, *mean, *grads; } side;
/* One micro-batch forward and backward: log-probs, mean logits, gradients on the host. */
static void one_side(side *s, wrpo__arena *arena, const wrpo_config *c, const wrpo_adapter_desc *adapter,
                     int64_t recompute) {
    const wrpo_backend *be = s->ctx->desc.backend;
    s->model = wrpo__model_new(arena, c);
    const int64_t most =
        WRPO__MAX(c->vocab_size, c->intermediate_size) * WRPO__MAX(c->hidden_size, c->intermediate_size);
    float *piece = wrpo__alloc(arena, (size_t)most, sizeof *piece);
    if (adapter) {
        s->model->low = NULL;        /* as in a model that was loaded frozen */
        wrpo__adapter_begin(s->model, adapter);
        wrpo__model_memory(s->model);
    }
    for (int64_t i = 0; i < s->model->n_weights; i++) {
        const wrpo_weight *w = &s->model->weights[i];
        for (int64_t k = 0; k < w->rows * w->cols; k++) {
            double z = wrpo__normal(11, (uint64_t)i, (uint64_t)k);
            piece[k] = rounded(w->vector ? 0.8 - c->norm_plus_one + 0.3 * z : c->initializer_range * z);
        }
        wrpo__weight_put(s->model, w, 0, w->rows * w->cols, piece);
    }
    wrpo__shape shape = {.rows = 400, .chunk = 37, .logits = !recompute, .recompute = recompute, .train = true};
    s->run = wrpo__workspace_new(arena, s->model, &shape);
    if (adapter) s->run->dropout = (wrpo_dropout){.p = (float)adapter->dropout, .seed = 3};
    wrpo__pack_begin(s->run);
    for (int i = 0; i < 4; i++) wrpo__pack_record(s->run, &records[i + 2]);
    wrpo__pack_end(s->run);
    wrpo__sum_head(s->run);
    wrpo__forward(s->run, true, true);
    s->logp = wrpo__alloc(arena, (size_t)s->run->n_labels, 4), s->mean = wrpo__alloc(arena, (size_t)s->run->n, 4);
    memcpy(s->logp, s->run->h_logp, (size_t)s->run->n_labels * 4),
        memcpy(s->mean, s->run->h_mean, (size_t)s->run->n * 4);
    for (int64_t i = 0; i < s->run->n_labels; i++) s->run->h_dlogp[i] = i % 5 == 3 ? 0 : (float)(i % 7) * 0.3f - 0.8f;
    float *grads = wrpo__device_alloc(arena, (size_t)s->model->count * 4, "gradients");
    be->zero(s->ctx->dev, grads, (size_t)s->model->count * 4);
    wrpo__backward(s->run, grads);
    s->grads = wrpo__alloc(arena, (size_t)s->model->count, 4);
    be->get(s->ctx->dev, s->grads, grads, (size_t)s->model->count * 4);
}
static double norm_of(const float *x, const float *y, int64_t n) {     /* of x - y */
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += ((double)x[i] - (y ? (double)y[i] : 0)) * ((double)x[i] - (y ? (double)y[i] : 0));
    return sqrt(s);
}
static void test_model_with(wrpo_ctx *cpu, wrpo_ctx *gpu, const char *what, const wrpo_config *c,
                            const wrpo_adapter_desc *adapter) {
    make_records(c->vocab_size);
    TEST_TRY(cpu, wrpo__arena_new(cpu), true) {
        side a = {.ctx = cpu}, b = {.ctx = gpu};
        wrpo__arena *far = wrpo__arena_new(gpu);
        one_side(&a, wrpo__entry.arena, c, adapter, 0);
        for (int64_t recompute = 0; recompute < (SANITIZED ? 1 : 2); recompute++) {
            float *first = recompute ? b.grads : NULL;
            one_side(&b, far, c, adapter, recompute * c->num_hidden_layers);
            double worst = 0, mean = 0, scale = 0, worst_grad = 0;
            for (int64_t i = 0; i < a.run->n; i++) {
                if (isnan(a.mean[i]) && isnan(b.mean[i])) continue;            /* soft caps: there is none */
                mean = test_larger(mean, fabs((double)a.mean[i] - (double)b.mean[i]));
                scale = fmax(scale, fabs((double)a.mean[i]));
            }
            int64_t targets = 0;
            for (int i = 0; i < 4; i++) for (int k = 0; k < 3; k++) targets += answers[i + 2][k].count;
            for (int64_t i = 0; i < targets; i++)
                worst = test_larger(worst, fabs((double)a.logp[i] - (double)b.logp[i]));
            CHECK(worst < 0.06, "%s: log-probs differ by %.3g", what, worst);
            CHECK(mean <= (adapter ? 0.03 : 0.02) * scale, "%s: mean logits differ by %.3g of %.3g", what, mean, scale);
            for (int64_t i = 0; i < a.model->n_weights; i++) {
                const wrpo_weight *w = &a.model->weights[i];
                if (w->at < 0) continue;
                const double size = norm_of(a.grads + w->at, NULL, wrpo__size(w)),
                             off = norm_of(b.grads + w->at, a.grads + w->at, wrpo__size(w)) / size;
                CHECK(size > 0 && off < (c->num_hidden_layers > 8 ? 0.08 : 0.05),
                      "%s: gradient of %s is off by %.3g of its norm %.3g", what, w->name, off, size);
                worst_grad = test_larger(worst_grad, off);
            }
            if (first)
                CHECK(!memcmp(first, b.grads, (size_t)a.model->count * 4),
                      "%s: recomputed layers and logits give other gradients", what);
            printf("  %s: log-probs within %.2g, mean logits within %.2g, gradients within %.2g of their norms\n", what,
                   worst, scale > 0 ? mean / scale : 0, worst_grad);
        }
        wrpo__arena_free(far);
    }
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s: %s / %s", what, cpu->error.text, gpu->error.text);
}

static void test_model(wrpo_ctx *cpu, wrpo_ctx *gpu, const char *what, const wrpo_config *c) {
    test_model_with(cpu, gpu, what, c, NULL);
}

/* ---- training: the same records on both, from the same weights ---- */
static char dir[64], config_path[96];
static void losses(wrpo_ctx *ctx, wrpo_train_desc d, int steps, double *loss, double *margin, float **start,
                   float **end, int64_t *count) {
    wrpo_model *m;
    wrpo_data *data;
    wrpo_trainer *t;
    wrpo_metrics x;
    make_records(97);
    if (wrpo_model_init(ctx, &(wrpo_init_desc){.config = config_path, .seed = 7}, &m) ||
        wrpo_data_from_ids(ctx, records, RECORDS, &data)) {
        CHECK(false, "%s", wrpo_last_error(ctx)->text);
        return;
    }
    *count = m->count, *start = calloc((size_t)m->count, 4), *end = calloc((size_t)m->count, 4);
    for (int64_t i = 0; i < m->n_weights; i++)
        wrpo__weight_get(m, &m->weights[i], 0, wrpo__size(&m->weights[i]), *start + m->weights[i].at);
    d.max_steps = steps;
    CHECK(wrpo_trainer_open(m, data, &d, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    for (int i = 0; t && i < steps; i++) {
        if (wrpo_trainer_step(t, &x) != WRPO_OK) { CHECK(false, "%s", wrpo_last_error(ctx)->text); break; }
        loss[i] = x.loss, margin[i] = x.rewards_margins;
    }
    for (int64_t i = 0; i < m->n_weights; i++)
        wrpo__weight_get(m, &m->weights[i], 0, wrpo__size(&m->weights[i]), *end + m->weights[i].at);
    wrpo_trainer_free(t), wrpo_data_free(data), wrpo_model_free(m);
}
static void test_training(wrpo_ctx *cpu, wrpo_ctx *gpu, const char *what, wrpo_train_desc d, int steps, double update,
                          double fall) {
    double loss[2][32], margin[2][32], worst = 0;
    float *start[2], *end[2];
    int64_t n = 0;
    for (int i = 0; i < 2; i++) losses(i ? gpu : cpu, d, steps, loss[i], margin[i], &start[i], &end[i], &n);
    for (int i = 0; i < steps; i++) worst = test_larger(worst, fabs(loss[1][i] / loss[0][i] - 1));
    const double moved = norm_of(end[0], start[0], n), apart = norm_of(end[1], end[0], n);
    printf("  %s: loss %.5f -> %.5f (CPU %.5f -> %.5f), within %.2g; weights moved by %.3g, apart by %.3g of it\n",
           what, loss[1][0], loss[1][steps - 1], loss[0][0], loss[0][steps - 1], worst, moved, apart / moved);
    CHECK(!memcmp(start[0], start[1], (size_t)n * 4), "%s: the models begin differently", what);
    CHECK(worst < 0.01, "%s: the loss is off by %.3g", what, worst);
    CHECK(apart < update * moved, "%s: weights moved by %.3g and are %.3g apart", what, moved, apart);
    CHECK(loss[1][steps - 1] < fall * loss[1][0], "%s: %g -> %g", what, loss[1][0], loss[1][steps - 1]);
    if (d.loss.method == WRPO_METHOD_WRPO && EMULATED)
        CHECK(loss[1][0] == (double)logf(2) || fabs(loss[1][0] - log(2)) < 1e-15, "%s: the first loss is ln 2 %+.3g",
              what, loss[1][0] - log(2));
    for (int i = 0; i < 2; i++) free(start[i]), free(end[i]);
}

static void test_memory(wrpo_ctx *gpu) {
    const wrpo_backend *be = wrpo_backend_cuda();
    wrpo_error why;
    char *p = be->alloc(gpu->dev, 1000), *q = be->alloc(gpu->dev, 0), got[2] = "?";
    CHECK(p && q && (uintptr_t)p % 64 == 0 && (uintptr_t)q % 64 == 0, "alignment");
    CHECK(be->alloc(gpu->dev, (size_t)1 << 60) == NULL && be->sync(gpu->dev, &why) == WRPO_OK,
          "a size that does not fit");
    be->zero(gpu->dev, p, 1000), be->put(gpu->dev, q, "x", 1), be->copy(gpu->dev, p + 999, q, 1),
        be->get(gpu->dev, got, p + 999, 1);
    CHECK(got[0] == 'x', "zero, put, copy, get");
    be->get(gpu->dev, got, p + 998, 1);
    CHECK(got[0] == 0, "zero");
    be->release(gpu->dev, p), be->release(gpu->dev, q), be->release(gpu->dev, NULL);
    wrpo_attn wide = {.n = 1, .n_segs = 1, .H = 1, .G = 1, .d = 258};
    be->attention(gpu->dev, &wide, NULL, NULL, NULL, NULL, NULL);
    CHECK(be->sync(gpu->dev, &why) == WRPO_E_DEVICE && strstr(why.text, "head_dim") &&
              be->sync(gpu->dev, &why) == WRPO_OK,
          "%s", why.text);
    wrpo_ctx *ctx = NULL;
    CHECK(wrpo_open(&(wrpo_desc){.backend = be, .dtype = WRPO_DTYPE_F32}, &ctx) == WRPO_E_UNSUPPORTED && !ctx,
          "f32 products");
    if (!EMULATED) return;
    setenv("EMU_MEMORY", "20000000", 1);
    CHECK(wrpo_open(&(wrpo_desc){.backend = be}, &ctx) == WRPO_OK || ctx == NULL, "little memory");
    wrpo_model *m = NULL;
    if (ctx) {
        CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = config_path}, &m) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        wrpo_model_free(m), wrpo_close(ctx);
    }
    setenv("EMU_MEMORY", "1000", 1);
    CHECK(wrpo_open(&(wrpo_desc){.backend = be}, &ctx) == WRPO_E_MEMORY && !ctx, "no memory");
    unsetenv("EMU_MEMORY");
}

/* ---- the ring of pinned memory: what put was given may change at once, and pieces are many and large ---- */
static void test_ring(wrpo_ctx *gpu) {
    enum { PIECES = 40, BIG = 20 * 1048576 + 5 };
    const wrpo_backend *be = wrpo_backend_cuda();
    uint32_t value, got[PIECES], wrong = 0;
    char *many = be->alloc(gpu->dev, sizeof got), *large = be->alloc(gpu->dev, BIG), *in = malloc(BIG),
         *out = malloc(BIG);
    for (int way = 0; way < 2; way++) {                /* copies land late, and at once */
        setenv("EMU_ASYNC", way ? "1" : "0", 1);
        for (uint32_t i = 0; i < PIECES; i++) {
            value = i * 77 + (uint32_t)way;
            be->put(gpu->dev, many + i * sizeof value, &value, sizeof value);
            value = 0;
        }
        be->get(gpu->dev, got, many, sizeof got);
        for (uint32_t i = 0; i < PIECES; i++) wrong += got[i] != i * 77 + (uint32_t)way;
        CHECK(!wrong, "%u of %d small pieces are not what was put", wrong, PIECES);
        for (int i = 0; i < BIG; i++) in[i] = (char)((uint32_t)i * 2654435761u >> 24);
        be->put(gpu->dev, large, in, BIG);
        memset(in, 0, BIG), memset(out, 1, BIG);
        be->get(gpu->dev, out, large, BIG);
        wrong = 0;
        for (int i = 0; i < BIG; i++) wrong += out[i] != (char)((uint32_t)i * 2654435761u >> 24);
        CHECK(!wrong && be->sync(gpu->dev, &(wrpo_error){0}) == WRPO_OK, "%u bytes of a large piece differ", wrong);
    }
    be->release(gpu->dev, many), be->release(gpu->dev, large);
    free(in), free(out);
}

/* ---- generation: what is decoded over a cache has the log-probs of the forward pass, in whatever batch ---- */
static int32_t said[6][40];
static wrpo_tokens spoken[6];
static bool on_said(int64_t prompt, const wrpo_sample *y, void *user) {
    for (int k = 0; k < 2; k++) {
        wrpo_tokens *to = &spoken[prompt * 2 + k];
        memcpy(said[prompt * 2 + k], y[k].ids, (size_t)y[k].count * 4);
        *to = (wrpo_tokens){.role = WRPO_ROLE_TARGET, .ids = said[prompt * 2 + k], .count = y[k].count, .share = 1};
        memcpy((float *)user + (prompt * 2 + k) * 40, y[k].logps, (size_t)y[k].count * 4);
    }
    return true;
}
static void test_generation(wrpo_ctx *gpu) {
    wrpo_model *m;
    wrpo_data *data = NULL;
    float first[6][40], again[6][40], *tokens = NULL;
    double sums[6];
    int64_t t = 0, differ = 0, moved = 0;
    make_records(97);
    CHECK(wrpo_model_init(gpu, &(wrpo_init_desc){.config = config_path, .seed = 7}, &m) == WRPO_OK, "%s",
          wrpo_last_error(gpu)->text);
    if (!m) return;
    wrpo_prompt prompts[3];
    wrpo_record lines[3];
    for (int i = 0; i < 3; i++) {
        prompts[i] =
            (wrpo_prompt){.ids = records[i + 3].prompt, .count = records[i + 3].prompt_count, .stream = (uint64_t)i};
        lines[i] = (wrpo_record){
            .prompt = prompts[i].ids, .prompt_count = prompts[i].count, .responses = spoken + 2 * i, .count = 2};
    }
    wrpo_generate_desc d = {
        .n = 2, .max_tokens = 20, .temperature = 0.8, .top_p = 0.95, .batch = 3, .on_done = on_said, .user = again};
    CHECK(wrpo_generate(m, prompts, 3, &d) == WRPO_OK, "%s", wrpo_last_error(gpu)->text);
    d.batch = 6, d.user = first;
    CHECK(wrpo_generate(m, prompts, 3, &d) == WRPO_OK, "%s", wrpo_last_error(gpu)->text);
    CHECK(wrpo_data_from_ids(gpu, lines, 3, &data) == WRPO_OK && wrpo_logprobs(m, data, 0, 3, sums, &tokens) == WRPO_OK,
          "%s", wrpo_last_error(gpu)->text);
    double worst = 0;
    for (int i = 0; i < 6 && tokens; i++)
        for (int64_t j = 0; j < spoken[i].count; j++, t++) {
            differ += memcmp(&first[i][j], &tokens[t], 4) != 0, moved += memcmp(&first[i][j], &again[i][j], 4) != 0;
            worst = test_larger(worst, fabs((double)first[i][j] - (double)tokens[t]));
        }
    printf("  generation: %lld tokens, %lld log-probs have other bits than the forward pass (by %.1e at most), %lld "
           "than in another batch\n",
           (long long)t, (long long)differ, worst, (long long)moved);
    CHECK(t > 60 && worst < 2e-2 && (!EMULATED || (differ == 0 && moved == 0)),
          "decoded and computed at once differ"); /* cuBLASLt does not promise bits */
    wrpo_free(gpu, tokens);
    wrpo_data_free(data);
    wrpo_model_free(m);
}
/* ---- graphs: a stretch is called three times, then recorded and launched; the results are those of calls, whatever
 * fails ---- */
#ifdef WRPO_EMULATED   /* recorded and launched so far; alive; calls that reached a device, the current one; how often
                          cuBLASLt's heuristic was asked, its products */
extern int64_t emu_captures, emu_replays, emu_graphs, emu_calls[8], emu_asked, emu_lt_products;
extern _Thread_local int emu_device;
#else
static int64_t emu_captures, emu_replays, emu_graphs, emu_calls[2], emu_asked, emu_lt_products;
static int emu_device;
#endif
enum { GRAPHS_KEPT = 32, GRAPH_AFTER = 3 };            /* as in wrpo_cuda.cu */
/* y += x, bf16, and on the way what a stretch must not do: 1 reads to the host, 2 is refused by its op */
typedef struct tape { void *dev, *x, *y; int calls, wrong; } tape;
static void tape_ops(void *user) {
    static const wrpo_attn wide = {.n = 1, .n_segs = 1, .H = 1, .G = 1, .d = 258};
    tape *t = user;
    uint16_t seen;
    t->calls++;
    wrpo_backend_cuda()->add(t->dev, t->y, t->x, 8);
    if (t->wrong == 1) wrpo_backend_cuda()->get(t->dev, &seen, t->y, 2);
    if (t->wrong == 2) wrpo_backend_cuda()->attention(t->dev, &wide, NULL, NULL, NULL, NULL, NULL);
}
static void fill(tape *t, void *to, float x) {
    uint16_t v[8];
    uint32_t u;
    memcpy(&u, &x, 4);
    for (int i = 0; i < 8; i++) v[i] = (uint16_t)(u >> 16);
    wrpo_backend_cuda()->put(t->dev, to, v, sizeof v);
    wrpo_backend_cuda()->sync(t->dev, &(wrpo_error){0});
}
static int played(tape *t, int times, int64_t a, int64_t b, int64_t c, int64_t d) {      /* calls that took */
    const int before = t->calls;
    for (int i = 0; i < times; i++) wrpo_backend_cuda()->replay(t->dev, (const int64_t[4]){a, b, c, d}, tape_ops, t);
    return t->calls - before;
}
static float sum_of(tape *t) {
    uint16_t v;
    uint32_t u;
    float x;
    wrpo_backend_cuda()->get(t->dev, &v, t->y, 2);
    u = (uint32_t)v << 16, memcpy(&x, &u, 4);
    return x;
}
/* The CUDA backend with other features; WRPO_GEMM=mma in the environment: none of these tests by cuBLASLt (gpu.sh). */
static const wrpo_backend *cuda_with(unsigned on, unsigned off) {
    static wrpo_backend kept[16];
    static int next;
    wrpo_backend *be = &kept[next++ & 15];
    const char *way = getenv("WRPO_GEMM");
    *be = *wrpo_backend_cuda();
    if (way && !strcmp(way, "mma")) off |= WRPO_FEATURE_CUBLAS;
    be->features = (be->features & ~off) | on;
    return be;
}
static void test_graphs(wrpo_ctx *gpu) {
    static const char *const stages[] = {"begin", "end", "instantiate", "launch"};
    const wrpo_backend *be = wrpo_backend_cuda();
    wrpo_error why = {WRPO_OK, 0, 0, ""};
    tape t = {.dev = gpu->dev, .x = be->alloc(gpu->dev, 16), .y = be->alloc(gpu->dev, 16)};
    void *other = be->alloc(gpu->dev, 16);
    be->release(gpu->dev, other);                      /* and nothing is recorded */
    const int64_t captures = emu_captures, replays = emu_replays;
    fill(&t, t.x, 1), fill(&t, t.y, 0);
    int calls = played(&t, 6, 1, 2, 3, 4);
    CHECK(calls == GRAPH_AFTER + 1 && sum_of(&t) == 6, "recorded: %d calls, sum %g", calls, (double)sum_of(&t));
    if (EMULATED)
        CHECK(emu_captures == captures + 1 && emu_replays == replays + 3 && emu_graphs == 1,
              "recorded: %lld, launched %lld, alive %lld", (long long)(emu_captures - captures),
              (long long)(emu_replays - replays), (long long)emu_graphs);
    fill(&t, t.x, 2);                                  /* memory is read anew */
    CHECK(played(&t, 1, 1, 2, 3, 4) == 0 && sum_of(&t) == 8, "other numbers: sum %g", (double)sum_of(&t));
    for (int i = 0; i < 4; i++)
        CHECK(played(&t, 1, 1 + (i == 0), 2 + (i == 1), 3 + (i == 2), 4 + (i == 3)) == 1,
              "a key that differs in number %d is taken for another", i);
    fill(&t, t.x, 1), fill(&t, t.y, 0);
    for (int k = 0; k < GRAPHS_KEPT + 8; k++) CHECK(played(&t, 5, 100, k, 0, 0) == GRAPH_AFTER + 1, "key %d", k);
    CHECK(sum_of(&t) == 5 * (GRAPHS_KEPT + 8), "many keys: sum %g", (double)sum_of(&t));
    if (EMULATED) CHECK(emu_graphs == GRAPHS_KEPT, "%lld graphs are kept", (long long)emu_graphs);
    CHECK(played(&t, 1, 100, GRAPHS_KEPT + 7, 0, 0) == 0 && played(&t, 1, 100, 0, 0, 0) == 1,
          "the oldest gives way, the newest is kept");
    be->release(gpu->dev, be->alloc(gpu->dev, 16));
    CHECK(played(&t, 1, 100, GRAPHS_KEPT + 7, 0, 0) == 1 && (!EMULATED || emu_graphs == 0),
          "release forgets: %lld graphs left", (long long)emu_graphs);
    fill(&t, t.y, 0), t.wrong = 1;
    calls = played(&t, 6, 200, 0, 0, 0);
    CHECK(calls == 7 && sum_of(&t) == 6 && be->sync(gpu->dev, &why) == WRPO_OK,
          "what cannot be recorded: %d calls, sum %g, %s", calls, (double)sum_of(&t), why.text);
    t.wrong = 2;
    for (int i = 0; i < 6; i++) {                      /* whether called or recorded in vain */
        played(&t, 1, 201, 0, 0, 0);
        CHECK(be->sync(gpu->dev, &why) == WRPO_E_DEVICE && strstr(why.text, "head_dim"),
              "time %d: an op's error is lost", i);
    }
    t.wrong = 0, played(&t, GRAPH_AFTER, 202, 0, 0, 0), t.wrong = 2, tape_ops(&t), t.wrong = 0;
    CHECK(played(&t, 2, 202, 0, 0, 0) == 1 && be->sync(gpu->dev, &why) == WRPO_E_DEVICE && strstr(why.text, "head_dim"),
          "an error from before a recording is lost");
    for (int i = 0; i < 4 && EMULATED; i++) {
        setenv("EMU_GRAPH_FAIL", stages[i], 1);
        fill(&t, t.y, 0);
        calls = played(&t, 6, 300, i, 0, 0);
        CHECK(calls == 6 + (i > 0) && sum_of(&t) == 6 && be->sync(gpu->dev, &why) == WRPO_OK,
              "%s fails: %d calls, sum %g, %s", stages[i], calls, (double)sum_of(&t), why.text);
    }
    unsetenv("EMU_GRAPH_FAIL");
    be->release(gpu->dev, t.x), be->release(gpu->dev, t.y);
    CHECK(!EMULATED || emu_graphs == 0, "%lld graphs are left", (long long)emu_graphs);
    wrpo_ctx *c = NULL;
    CHECK(wrpo_open(&(wrpo_desc){.backend = cuda_with(64, 0), .why = &why}, &c) == WRPO_E_ARG && !c &&
              strstr(why.text, "want those of CUDA in wrpo_feature, found 64"),
          "%s", why.text);
}
/* ---- the device: current in every call and restored; what it cannot launch is an error with the kernel's name ---- */
static char said_last[256];
static int said_times;
static void hear(wrpo_level level, const char *text, void *user) {
    (void)level, (void)user;
    snprintf(said_last, sizeof said_last, "%s", text);
    said_times++;
}
static wrpo_ctx *open_with(unsigned on, unsigned off) {
    wrpo_ctx *ctx = NULL;
    wrpo_error why = {WRPO_OK, 0, 0, ""};
    CHECK(wrpo_open(&(wrpo_desc){.backend = cuda_with(on, off), .threads = SANITIZED ? 1 : 0, .why = &why,
                                 .log = {.fn = hear}}, &ctx) == WRPO_OK, "%s", why.text);
    return ctx;
}
static void test_generation(wrpo_ctx *gpu);
static void test_device(wrpo_ctx *cpu) {
    if (!EMULATED) return;
    const wrpo_train_desc own = {.micro_tokens = 77};
    wrpo_error why = {WRPO_OK, 0, 0, ""};
    emu_device = 1;
    wrpo_ctx *second = open_with(0, 0);
    emu_device = 0;
    CHECK(wrpo_train_defaults(second, NULL).micro_tokens == 8192 &&
              wrpo_train_defaults(cpu, NULL).micro_tokens == 1024 &&
              wrpo_train_defaults(second, &own).micro_tokens == 77,
          "micro_tokens: not what the backend has by default");
    const int64_t before = emu_calls[0], there = emu_calls[1];
    test_training(cpu, second, "on the second device",
                  (wrpo_train_desc){.batch_size = 4, .learning_rate = 2e-3, .epochs = 100, .alpha = 0.5}, 2, 1, 2);
    test_generation(second);
    test_ring(second);
    wrpo_close(second);
    CHECK(emu_device == 0, "the current device is %d afterwards", emu_device);
    CHECK(emu_calls[0] == before && emu_calls[1] > there + 1000, "%lld calls reached the other device",
          (long long)(emu_calls[0] - before));
    setenv("EMU_SHARED", "40000", 1);
    wrpo_ctx *little = open_with(0, 0);
    unsetenv("EMU_SHARED");
    const wrpo_backend *be = wrpo_backend_cuda();
    const wrpo_seg seg = SEG(0, 3, 0, 0);
    wrpo_seg *segs = be->alloc(little->dev, sizeof seg);
    char *x = be->alloc(little->dev, 1 << 16);
    be->put(little->dev, segs, &seg, sizeof seg);
    const wrpo_attn a = {3, segs, 1, 1, 1, 128, 128, 128, 128, 0, 1, 0};
    be->attention(little->dev, &a, x, (float *)(void *)x, x, x, x);
    CHECK(be->sync(little->dev, &why) == WRPO_E_DEVICE &&
              !strcmp(why.text, "attention_kernel<128>: want 49152 bytes of shared memory for a block, "
                                "found 40000 on emulated"), "%s", why.text);
    CHECK(be->sync(little->dev, &why) == WRPO_OK, "an error is said twice");
    be->release(little->dev, segs), be->release(little->dev, x);
    wrpo_close(little);
}
/* ---- cuBLASLt, here its stand-in: one algorithm whatever the number of rows, none that splits k; what is not made by
   it is counted and said once. Stand-in or library: the first loss is ln 2. ---- */
static void test_lt(wrpo_ctx *cpu) {
    enum { ROWS = 1200, N = 24, K = 40 };
    static const int64_t begins[] = {0, 5, 900}, counts[] = {ROWS, 17, 200};
    const wrpo_backend *be = wrpo_backend_cuda();
    const char *way = getenv("WRPO_GEMM");
    if (!EMULATED && (!(be->features & WRPO_FEATURE_CUBLAS) || (way && !strcmp(way, "mma")))) {
        SKIP(1, "cuBLASLt is left out");
        return;
    }
    said_times = 0;
    wrpo_ctx *lt = open_with(WRPO_FEATURE_CUBLAS, 0);
    run t = {.gpu = lt, .be = be, .d = lt->dev, .seed = 3, .name = "cuBLASLt"};
    array a = rnd(&t, ROWS * K, 2, -1, 1), b = rnd(&t, N * K, 2, -1, 1);
    for (int mm = 0; mm < 3; mm++) {                   /* NT, NT_FLOAT, NN: a row is a row, from 17 rows on */
        const size_t size = mm == WRPO_MM_NT_FLOAT ? 4 : 2;
        const int64_t asked = emu_asked;
        char *whole = NULL;
        for (int i = 0; i < 3; i++) {
            char *c = device(&t, ROWS * N * size), *got = malloc(ROWS * N * size);
            be->gemm(lt->dev, (wrpo_mm)mm, c, N, (char *)a.dev + begins[i] * K * 2, K, b.dev, mm == 2 ? N : K,
                     WRPO_DTYPE_BF16, counts[i], N, K, 0);
            be->get(lt->dev, got, c, (size_t)counts[i] * N * size);
            if (!whole) { whole = got; continue; }
            CHECK(!memcmp(got, whole + (size_t)begins[i] * N * size, (size_t)counts[i] * N * size),
                  "cuBLASLt: layout %d: %lld rows alone have other bits", mm, (long long)counts[i]);
            free(got);
        }
        if (mm == WRPO_MM_NT_FLOAT) {                  /* parts of k that are added in bf16 are off by 2^-9 */
            double off = 0, scale = 0;
            for (int i = 0; i < 50 * N; i++) {
                double sum = 0;
                for (int q = 0; q < K; q++) sum += (double)a.host[i / N * K + q] * (double)b.host[i % N * K + q];
                off = test_larger(off, fabs((double)((float *)(void *)whole)[i] - sum)), scale = fmax(scale, fabs(sum));
            }
            CHECK(off <= 1e-5 * scale, "cuBLASLt: sums are not in fp32: off by %.2g of %.2g", off, scale);
        }
        if (EMULATED) CHECK(emu_asked == asked + 1, "layout %d: the heuristic was asked %lld times", mm,
                            (long long)(emu_asked - asked));
        free(whole);
    }
    const int64_t asked = emu_asked;
    be->gemm(lt->dev, WRPO_MM_NT, device(&t, ROWS * N * 2), N, a.dev, K, b.dev, K, WRPO_DTYPE_BF16, ROWS, N / 3, K, 0);
    if (EMULATED) CHECK(emu_asked == asked + 1, "for another n the heuristic was asked %lld times",
                        (long long)(emu_asked - asked));
    while (t.n_devs) be->release(t.d, t.devs[--t.n_devs]);
    while (t.n_hosts) free(t.hosts[--t.n_hosts]);
    const int64_t products = emu_lt_products;
    wrpo_config c = config("llama");
    c.head_dim = 16, c.num_attention_heads = 4, c.num_key_value_heads = 2, c.hidden_size = 64, c.intermediate_size = 96,
    c.vocab_size = 129, c.initializer_range = 0.1;
    test_model(cpu, lt, "products by cuBLASLt, an odd vocabulary", &c);
    test_training(cpu, lt, "wrpo by cuBLASLt, 2 steps",
                  (wrpo_train_desc){.batch_size = 4, .learning_rate = 2e-3, .epochs = 100, .alpha = 0.5,
                                    .loss = {.beta = 0.1}, .micro_tokens = 150}, 2, 1, 2);
    if (EMULATED) CHECK(emu_lt_products > products + 100, "%lld products by cuBLASLt",
                        (long long)(emu_lt_products - products));
    CHECK(said_times == 0, "aligned products were not made by cuBLASLt: %s", said_last);
    c.intermediate_size = 97;
    test_model(cpu, lt, "rows of 97 elements", &c);
    CHECK(said_times == 1 && strstr(said_last, "by mma.sync, not cuBLASLt: an operand is not on 16 bytes (said once)"),
          "said %d times: %s", said_times, said_last);
    wrpo_close(lt);
    CHECK(said_times == 2 && strstr(said_last, "products were made by mma.sync instead"), "%s", said_last);
    if (!EMULATED) return;
    c.intermediate_size = 96, said_times = 0;
    setenv("EMU_LT_FAIL", "1", 1);
    lt = open_with(WRPO_FEATURE_CUBLAS, 0);
    test_model(cpu, lt, "cuBLASLt refuses all", &c);
    unsetenv("EMU_LT_FAIL");
    CHECK(said_times == 1 && strstr(said_last, "it refuses this shape"), "%s", said_last);
    wrpo_close(lt);
}
/* Generation with and without. How often each key came says how many records and launches there have to be. */
static struct { int64_t key[4]; int times; } keys_seen[64];
static int n_keys_seen;
static void counted_replay(void *dev, const int64_t key[4], void (*stretch)(void *), void *user) {
    int i = 0;
    while (i < n_keys_seen && memcmp(keys_seen[i].key, key, sizeof keys_seen[i].key) != 0) i++;
    if (i == n_keys_seen && n_keys_seen < 63) memcpy(keys_seen[n_keys_seen++].key, key, sizeof keys_seen[i].key);
    keys_seen[i].times++;
    wrpo_backend_cuda()->replay(dev, key, stretch, user);
}
static void test_generation_graphs(void) {
    static wrpo_backend be;
    static const int32_t stops[] = {5, 17, 40, 61, 77, 90, 93, 101};   /* a short run has all, so that it ends too */
    be = *cuda_with(0, 0), be.replay = counted_replay;
    for (int way = 0; way < 3; way++) {                /* greedy, sampled, sampled with places refilled later */
        static int32_t ids[2][6][40];
        static float logps[2][6][40];
        int64_t counts[2][6], captures = 0, replays = 0, lengths = 0, tokens = 0;
        memset(ids, 0, sizeof ids), memset(logps, 0, sizeof logps);
        for (int on = 0; on < 2; on++) {
            wrpo_ctx *ctx = NULL;
            wrpo_model *m = NULL;
            wrpo_prompt prompts[3];
            be.features = (be.features & ~(unsigned)WRPO_FEATURE_GRAPHS) | (on ? WRPO_FEATURE_GRAPHS : 0u);
            CHECK(wrpo_open(&(wrpo_desc){.backend = &be, .threads = SANITIZED ? 1 : 0}, &ctx) == WRPO_OK,
                  "the device cannot be opened");
            if (!ctx) return;
            make_records(97);
            CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = config_path, .seed = 7}, &m) == WRPO_OK, "%s",
                  wrpo_last_error(ctx)->text);
            for (int i = 0; i < 3; i++)
                prompts[i] = (wrpo_prompt){
                    .ids = records[i + 3].prompt, .count = records[i + 3].prompt_count, .stream = (uint64_t)i};
            n_keys_seen = 0, memset(keys_seen, 0, sizeof keys_seen), captures = emu_captures, replays = emu_replays;
            wrpo_generate_desc d = {.n = 2,
                                    .max_tokens = SANITIZED ? 16 : 40,
                                    .batch = way == 2 ? 3 : 6,
                                    .temperature = way ? 1 : WRPO_ZERO,
                                    .seed = 3,
                                    .stop = stops,
                                    .stop_count = SANITIZED ? WRPO__COUNT(stops) : 3,
                                    .on_done = on_said,
                                    .user = logps[on]};
            CHECK(m && wrpo_generate(m, prompts, 3, &d) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
            captures = emu_captures - captures, replays = emu_replays - replays;
            for (int i = 0; i < 6; i++)
                counts[on][i] = spoken[i].count, memcpy(ids[on][i], said[i], (size_t)spoken[i].count * 4);
            wrpo_model_free(m), wrpo_close(ctx);
            int64_t want_captures = 0, want_replays = 0;
            for (int i = 0; i < n_keys_seen && on; i++)
                want_captures += keys_seen[i].times > GRAPH_AFTER,
                    want_replays += WRPO__MAX(keys_seen[i].times - GRAPH_AFTER, 0);
            if (EMULATED)
                CHECK(captures == want_captures && replays == want_replays && emu_graphs == 0,
                      "graphs %d: recorded %lld, want %lld; launched %lld, want %lld; alive %lld", on,
                      (long long)captures, (long long)want_captures, (long long)replays, (long long)want_replays,
                      (long long)emu_graphs);
            CHECK(!on || want_replays > 5, "only %lld steps are replayed", (long long)want_replays);
        }
        for (int i = 0; i < 6; i++) lengths += i > 0 && counts[0][i] != counts[0][0], tokens += counts[0][i];
        CHECK(way == 0 || lengths > 0, "all samples end at once");
        CHECK(!memcmp(counts[0], counts[1], sizeof counts[0]) && !memcmp(ids[0], ids[1], sizeof ids[0]) &&
                  !memcmp(logps[0], logps[1], sizeof logps[0]),
              "generation %d: other bits with graphs", way);
        printf("  graphs: %s: %lld tokens, %lld steps recorded, %lld replayed\n",
               way == 0   ? "greedy"
               : way == 1 ? "sampled"
                          : "sampled in turn",
               (long long)tokens, (long long)captures, (long long)replays);
    }
}
int main(int argc, char **argv) {
    if (!wrpo_backend_cuda()) {
        SKIP(1, "the CUDA kernels: there is no C++ compiler");
        return test_end("80_cuda");
    }
    const char *only =
        argc > 1 ? argv[1] : ""; /* one test by the name of its op, of that one case: 82_cuda_mutants.sh */
    const int one = argc > 2 ? atoi(argv[2]) : -1;
    wrpo_ctx *cpu = NULL, *gpu = NULL, *plain = NULL;
    setenv("EMU_ORDER", "0", 0), setenv("EMU_ASYNC", "0", 0);
    if (wrpo_open(&(wrpo_desc){.dtype = WRPO_DTYPE_F32, .threads = SANITIZED ? 1 : 0}, &cpu) != WRPO_OK) return 2;
    if (wrpo_open(&(wrpo_desc){.backend = wrpo_backend_plain()}, &plain) != WRPO_OK) return 2;
    wrpo_error why = {WRPO_OK, 0, 0, ""};
    wrpo_desc desc = {.backend = cuda_with(0, 0), .threads = SANITIZED ? 1 : 0, .why = &why};
    if (wrpo_open(&desc, &gpu) != WRPO_OK && strstr(why.text, "cuBLASLt cannot be opened")) {
        SKIP(1, "products by cuBLASLt: %s", why.text);
        setenv("WRPO_GEMM", "mma", 1);
        desc.backend = cuda_with(0, 0);
        (void)wrpo_open(&desc, &gpu);
    }
    if (!gpu) return printf("the device cannot be opened: %s\n", why.text), 2;
    uint64_t seed = 1;
#define WANTED(name) (!*only || strcmp(only, name) == 0)
#define EACH(name, fn, ...) do { \
        static const int64_t args[][8] = __VA_ARGS__; \
        for (int i = 0; i < WRPO__COUNT(args) && WANTED(name); i++) { \
            if (one >= 0 && i != one) continue; \
            char text[100]; \
            snprintf(text, sizeof text, "%s, case %d", name, i); \
            each_way(text, seed++, fn, args[i], plain, &gpu); \
        } \
    } while (0)
    static const int64_t gemms[][4] = {/* m, n, k, extra: rows on 16 bytes and not, both tile sizes, all tails */
                                       {1, 1, 1, 0},       {3, 17, 1, 5},    {1, 129, 17, 0},   {17, 3, 129, 3},
                                       {129, 129, 129, 1}, {129, 65, 72, 7}, {33, 136, 64, 8},  {16, 72, 200, 0},
                                       {130, 8, 64, 8},    {5, 5, 0, 0},     {40, 136, 330, 6}, {9, 64, 256, 0}};
    for (int i = 0; i < WRPO__COUNT(gemms) && WANTED("gemm"); i++)
        for (int64_t mm = 0; mm < 4; mm++)
            for (int64_t kind = 0; kind < 3; kind++) {
                const int64_t arg[7] = {gemms[i][0], gemms[i][1], gemms[i][2], mm, kind == 1, gemms[i][3], kind == 2};
                char what[80];
                if ((SANITIZED && one < 0 && (i + kind) % 3) || (one >= 0 && i != one)) continue;
                snprintf(what, sizeof what, "gemm %lld x %lld x %lld, layout %lld, %s", (long long)arg[0],
                         (long long)arg[1], (long long)arg[2], (long long)mm,
                         kind == 1 ? "added"
                         : kind    ? "float weights"
                                   : "written");
                each_way(what, seed++, test_gemm, arg, plain, &gpu);
            }
    /* The same by wgmma and TMA: tails of all sizes, the ring of stages several times around, tiles in several columns;
     * what TMA cannot take, as above. */
    wrpo_ctx *wg = NULL;
    if (!EMULATED && !getenv("WRPO_WGMMA")) SKIP(1, "products by wgmma, unless WRPO_WGMMA is set");
    else if (wrpo_open(&(wrpo_desc){.backend = cuda_with(WRPO_FEATURE_WGMMA, 0), .threads = SANITIZED ? 1 : 0,
                                    .why = &why}, &wg) != WRPO_OK) {
        CHECK(!EMULATED && why.code == WRPO_E_UNSUPPORTED, "%s", why.text);
        SKIP(1, "products by wgmma: %s", why.text);
    }
    if (EMULATED && WANTED("memory")) {
        wrpo_ctx *none = NULL;
        setenv("EMU_SM", "80", 1);
        CHECK(wrpo_open(&(wrpo_desc){.backend = cuda_with(WRPO_FEATURE_WGMMA, 0), .why = &why}, &none) ==
                      WRPO_E_UNSUPPORTED &&
                  !none && strstr(why.text, "9.0"),
              "%s", why.text);
        unsetenv("EMU_SM");
        CHECK(wrpo_open(&(wrpo_desc){.backend = cuda_with(WRPO_FEATURE_AMX, 0), .why = &why}, &none) == WRPO_E_ARG &&
                  !none && strstr(why.text, "found 2"),
              "%s", why.text);
    }
    static const int64_t wgmmas[][4] = {{17, 1, 1, -1},    {129, 257, 72, -1}, {40, 136, 650, -1}, {300, 17, 130, -1},
                                        {64, 515, 64, -1}, {33, 136, 64, 8},   {129, 65, 72, 7},   {1160, 9, 24, -1}};
    for (int i = 0; i < WRPO__COUNT(wgmmas) && WANTED("wgmma") && wg; i++)
        for (int64_t mm = 0; mm < 4; mm++)
            for (int64_t kind = 0; kind < 2; kind++) {
                const int64_t arg[7] = {wgmmas[i][0], wgmmas[i][1], wgmmas[i][2], mm, kind == 1, wgmmas[i][3], 0};
                char what[80];
                if ((SANITIZED && one < 0 && (i > 2 || kind)) || (one >= 0 && i != one)) continue;
                snprintf(what, sizeof what, "wgmma %lld x %lld x %lld, layout %lld, %s", (long long)arg[0],
                         (long long)arg[1], (long long)arg[2], (long long)mm, kind ? "added" : "written");
                each_way(what, seed++, test_gemm, arg, plain, &wg);
            }
    EACH("rows", test_rows,
         {{1, 1, 1, 0}, {3, 17, 2, 1}, {129, 5, 3, 3}, {17, 136, 40, 8}, {150, 577, 7, 15}, {300, 1032, 299, 0}});
    EACH("rmsnorm", test_rmsnorm,
         {{1, 1, 1, 0, 0, 0},
          {3, 1, 17, 5, 1, 0},
          {17, 3, 33, 2, 0, 0},
          {65, 1, 577, 0, 0, 1},
          {40, 9, 64, 8, 0, 1},
          {65, 2, 31, 1, 1, 2},
          {7, 1, 2056, 0, 0, 2},
          {3, 1, 1027, 0, 1, 0}});
    EACH("rope", test_rope, {{1, 1, 2, 0}, {3, 5, 6, 3}, {17, 9, 64, 1}, {29, 2, 34, 0}});
    EACH("attention", test_attention,
         {/* H, G, d, window, softcap, extra, layout */
          {1, 1, 2, 0, 0, 0, 0},
          {3, 1, 6, 0, 0, 3, 1},
          {4, 2, 8, 0, 0, 0, 3},
          {4, 4, 10, 3, 0, 2, 3},
          {2, 1, 6, 1, 0, 0, 3},
          {5, 1, 10, 0, 2, 0, 3},
          {9, 3, 64, 0, 0, 0, 4},
          {9, 3, 64, 50, 0, 8, 4},
          {2, 2, 34, 20, 5, 2, 4},
          {4, 2, 96, 0, 0, 5, 2},
          {4, 1, 128, 0, 0, 8, 4},
          {2, 1, 256, 0, 20, 0, 2},
          {3, 3, 18, 0, 0, 0, 5},
          {6, 2, 64, 0, 0, 0, 5},
          {4, 2, 40, 130, 0, 8, 5},
          {2, 1, 64, 0, 30, 0, 5},
          {24, 1, 16, 0, 0, 0, 3},
          {7, 1, 80, 100, 0, 0, 5},
          {24, 1, 16, 0, 0, 2, 5}});
    EACH("decoding", test_decoding, {{9, 3, 64, 0}, {4, 4, 18, 30}, {6, 2, 96, 9}});
    EACH("splits", test_splits, {{4, 2, 32, 0, 0, 8}, {3, 1, 64, 1500, 4, 3}, {2, 2, 18, 600, 0, 6},
                                 {64, 1, 250, 0, 0, 18}, {65, 1, 8, 0, 0, 2}});
    EACH("glu", test_glu,
         {{1, 1, 0, 0, 0},
          {3, 17, 0, 0, 1},
          {17, 136, 0, 1, 1},
          {1, 3, 1, 0, 1},
          {17, 129, 1, 1, 0},
          {12, 2056, 0, 1, 1}});
    EACH("logprob", test_logprob,
         {{1, 1, 0, 5, 0, 0},
          {3, 17, 0, 5, 0, 7},
          {17, 129, 0, 10, 0, 0},
          {5, 5003, 0, 10, 0, 5},
          {7, 1027, 0, 1000, 0, 2},
          {3, 3000, 0, 5, 1500, 0},
          {5, 1100, 30, 40, 0, 4},
          {3, 1030, 30, 40, 6, 2}});
    EACH("adamw", test_adamw,
         {{1, 3, 0, 0},
          {17, 3, 0, 1},
          {5000, 3, 0, 1},
          {300, 5, 1, 1},
          {5000, 4, 1, 0},
          {5000, 6, 2, 1},
          {300, 3, 2, 0}});
    for (int i = 0; i < ops; i++)
        printf("  %-16s worst relative error %.1e (allowed %.0e) over %lld numbers\n", table[i].op, table[i].worst,
               table[i].tolerance, (long long)table[i].numbers);

    snprintf(dir, sizeof dir, "tmp_cuda_%d", (int)getpid());
    snprintf(config_path, sizeof config_path, "%s.json", dir);
    FILE *f = fopen(config_path, "w");
    if (!f) return 2;
    fputs("{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":97,\"hidden_size\":40,"
          "\"intermediate_size\":56,\"num_hidden_layers\":2,"
          "\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":16,\"max_position_embeddings\":512,\"rms_"
          "norm_eps\":1e-5,\"rope_theta\":10000.0,"
          "\"initializer_range\":0.1,\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\"}",
          f);
    fclose(f);
    setenv("EMU_ORDER", "3", 1), setenv("EMU_ASYNC", "1", 1);
    if (WANTED("memory")) test_memory(gpu);
    if (WANTED("ring")) test_ring(gpu);
    if (WANTED("device")) test_device(cpu);
    if (WANTED("lt")) test_lt(cpu);
    if (WANTED("model")) {
        wrpo_config c = config("llama");
        test_model(cpu, gpu, "llama, nothing on 16 bytes", &c);
        c = config("qwen3"), c.qk_norm = true, c.attention_bias = true, c.head_dim = 16, c.num_attention_heads = 4,
        c.num_key_value_heads = 2, c.hidden_size = 64, c.intermediate_size = 96, c.vocab_size = 200,
        c.tie_word_embeddings = true;
        test_model(cpu, gpu, "q and k norms, biases, tied", &c);
        test_model_with(cpu, gpu, "an adapter on it", &c, &(wrpo_adapter_desc){.r = 3, .alpha = 1, .dropout = 0.25});
        if (wg && !SANITIZED) test_model(cpu, wg, "the same, products by wgmma", &c);
        c = config("gemma2"),
        c.gelu = c.norm_plus_one = c.post_norms = c.scale_embeddings = c.tie_word_embeddings = true, c.head_dim = 8,
        c.query_pre_attn_scalar = 10;
        c.attn_logit_softcapping = 5, c.final_logit_softcapping = 4, c.sliding_window = 12, c.sliding_layers[0] = 1;
        test_model(cpu, gpu, "soft caps, gelu, norms around, a window below", &c);
        c = config("mistral"), c.sliding_window = 9, c.sliding_layers[0] = 3, c.output_bias = true, c.hidden_size = 40;
        if (!SANITIZED) test_model(cpu, gpu, "window on all layers", &c);
        c = config("olmo2"), c.qk_norm = c.qk_norm_rows = c.post_norms = c.no_pre_norms = true, c.hidden_size = 40;
        c.embedding_multiplier = 2, c.residual_multiplier = 0.4, c.attention_multiplier = 0.2, c.logits_scaling = 1.5;
        c.no_rope_layers[0] = 1;
        test_model(cpu, gpu, "norms after only, over whole rows of q and k; factors; a layer without rope", &c);
        if (!SANITIZED) test_model_with(cpu, gpu, "an adapter on it", &c, &(wrpo_adapter_desc){.r = 3, .alpha = 1});
        c = config("gemma3_text"), c.gelu = c.norm_plus_one = c.post_norms = c.scale_embeddings = c.qk_norm = true;
        c.head_dim = 8, c.query_pre_attn_scalar = 40, c.sliding_window = 9, c.sliding_layers[0] = 1;
        c.sliding_rope_theta = 50;
        test_model_with(cpu, gpu, "two bases, norms of 1 + w, an adapter", &c,
                        &(wrpo_adapter_desc){.r = 3, .alpha = 1});
    }
    if (!strcmp(only, "135M")) {     /* on request: minutes on the host */
        wrpo_config c = config("llama");
        c.vocab_size = 49152, c.hidden_size = 576, c.intermediate_size = 1536, c.num_hidden_layers = one < 0 ? 30 : one;
        c.num_attention_heads = 9, c.num_key_value_heads = 3, c.head_dim = 64, c.initializer_range = 0.02;
        c.tie_word_embeddings = true, c.rope.theta = 1e5;
        test_model(cpu, gpu, "135M", &c);
    }
    if (WANTED("generation")) test_generation(gpu);
    if (WANTED("graphs")) test_graphs(gpu), test_generation_graphs();
    if (WANTED("training")) {
        wrpo_train_desc d = {.batch_size = 4,
                             .learning_rate = 2e-3,
                             .epochs = 100,
                             .alpha = 0.5,
                             .loss = {.beta = 0.1},
                             .micro_tokens = 300};
        test_training(cpu, gpu, "wrpo, 1 step",
                      (wrpo_train_desc){.batch_size = 12,
                                        .learning_rate = 2e-3,
                                        .epochs = 100,
                                        .alpha = 0.5,
                                        .warmup_ratio = WRPO_ZERO,
                                        .lr_schedule = WRPO_LR_SCHEDULE_CONSTANT},
                      1, 0.25, 1.01);
        if (!SANITIZED) {
            test_training(cpu, gpu, "wrpo, 20 steps", d, 20, 0.05, 0.95);
            d.loss.method = WRPO_METHOD_SFT, d.moments = WRPO_MOMENTS_8BIT, d.recompute = -1;
            test_training(cpu, gpu, "sft, 8-bit moments, recomputed, 20 steps", d, 20, 0.1, 0.95);
        }
    }
    remove(config_path);
    if (wg) wrpo_close(wg);
    wrpo_close(gpu), wrpo_close(cpu), wrpo_close(plain);
    return test_end("80_cuda");
}
