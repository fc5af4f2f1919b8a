/* The ops. First those of the plain backend, which define them: each gradient against finite differences of its own
   forward op. Then those of the CPU, at every vector width that the machine has, against the plain ones at odd shapes.
   All of them keep the contracts above the table: what is written and what accumulated, nothing beyond a row's width,
   the same bits for every number of threads, and rows that do not depend on their neighbours. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"

enum { WAYS = 4, KEPT = 16 };
static const int THREADS[WAYS] = {1, 2, 3, 5};
static struct { const char *op; double worst; int64_t numbers; } table[64];
static int ops;
static const wrpo_backend *plain;     /* the reference */
static wrpo_ctx *exact, *rounded;     /* of it: a context of float, one of bfloat16 */

/* One case runs once per number of threads, on the same inputs; the first run is compared with the reference, later
   ones with the first run's bits. */
typedef struct run {
    const wrpo_backend *be; void *dev;
    int way;                          /* 0: the first run */
    char name[160];
    void *blocks[96]; int n_blocks;
    struct { float *bits; size_t n; } kept[KEPT]; int n_kept;
    uint64_t seed, counter;
} run;

static double uniform(run *t, double low, double high) {
    return low + (high - low) * (double)(wrpo__random64(t->seed, 0, t->counter++) >> 11) / 9007199254740992.0;
}
static void *block(run *t, size_t n) {
    void *p = t->be->alloc(t->dev, n + 64);
    if (!p || t->n_blocks == 96) { printf("out of memory in the test\n"); exit(2); }
    t->blocks[t->n_blocks++] = p;
    return p;
}
static float *floats(run *t, int64_t n, float fill) {
    float *p = block(t, (size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = fill;
    return p;
}
static float *random_floats(run *t, int64_t n, double low, double high) {
    float *p = floats(t, n, 0);
    for (int64_t i = 0; i < n; i++) {
        p[i] = (float)uniform(t, low, high);
        if (t->be == plain) p[i] = roundf(p[i] * 1024) / 1024;     /* so that a step of finite differences is exact */
    }
    return p;
}
static double *doubles(run *t, int64_t n) {
    double *p = block(t, (size_t)n * sizeof *p);
    memset(p, 0, (size_t)n * sizeof *p);
    return p;
}
static double *as_doubles(run *t, const float *x, int64_t n) {
    double *p = doubles(t, n);
    for (int64_t i = 0; i < n; i++) p[i] = (double)x[i];
    return p;
}
static float *copy_of(run *t, const float *x, int64_t n) {
    float *p = floats(t, n, 0);
    memcpy(p, x, (size_t)n * sizeof *p);
    return p;
}
static int32_t *random_ids(run *t, int64_t n, int64_t below) {
    int32_t *p = block(t, (size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = (int32_t)(uniform(t, 0, 1) * (double)below) % (int32_t)below;
    return p;
}
static void tally(const char *op, double error, int64_t numbers) {
    int i = 0;
    while (i < ops && strcmp(table[i].op, op) != 0) i++;
    if (i == ops) table[ops++].op = op;
    table[i].worst = test_larger(table[i].worst, error);
    table[i].numbers += numbers;
}
/* got[rows, width] against want, the plain op's result, both of row stride ld (what is between is NaN and has to stay
   it): the largest difference over the largest element wanted, or over `least` if that is larger: gradients may cancel
   to 0. */
static double least = 1e-30;
static void result(run *t, const char *op, const char *what, const float *got, int64_t rows, int64_t width, int64_t ld,
                   const float *want, double tolerance) {
    const size_t n = (size_t)(rows ? (rows - 1) * ld + width : 0);
    if (t->way > 0) {
        CHECK(t->kept[t->n_kept].n == n && memcmp(t->kept[t->n_kept].bits, got, n * sizeof *got) == 0,
              "%s: %s: other bits with %d threads than with 1", t->name, what, THREADS[t->way]);
        t->n_kept++;
        return;
    }
    t->kept[t->n_kept].bits = malloc(n * sizeof *got + 1);
    memcpy(t->kept[t->n_kept].bits, got, n * sizeof *got);
    t->kept[t->n_kept++].n = n;
    double scale = least, worst = 0;
    int64_t at = -1, touched = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j++) scale = fmax(scale, fabs((double)want[r * ld + j]));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; j < width; j++) {
            double e = fabs((double)got[r * ld + j] - (double)want[r * ld + j]) / scale;
            if (!(e <= worst) && !isnan(worst)) at = r * ld + j;
            worst = test_larger(worst, e);
        }
        for (int64_t j = width; j < ld && r + 1 < rows; j++) touched += !isnan(got[r * ld + j]);
    }
    CHECK(touched == 0, "%s: %s: %lld numbers written between rows", t->name, what, (long long)touched);
    if (t->be == plain) return;
    tally(op, worst, rows * width);
    CHECK(worst <= tolerance, "%s: %s: relative error %.3g at %lld (found %.9g, wanted %.9g)", t->name, what, worst,
          (long long)at, at < 0 ? 0 : (double)got[at], at < 0 ? 0 : (double)want[at]);
}
static void each_way(const char *name, uint64_t seed, void (*fn)(run *, const int64_t *), const int64_t *args,
                     wrpo_ctx **ctx) {
    run t = {0};
    snprintf(t.name, sizeof t.name, "%s %s", ctx[0]->desc.backend->name, name);
    const int ways = ctx[0]->desc.backend == plain ? 1 : WAYS;         /* the plain backend has one thread */
    for (t.way = 0; t.way < ways; t.way++) {
        t.be = ctx[t.way]->desc.backend, t.dev = ctx[t.way]->dev;
        t.seed = seed, t.counter = 0, t.n_kept = 0;
        fn(&t, args);
        while (t.n_blocks) t.be->release(t.dev, t.blocks[--t.n_blocks]);
    }
    for (int i = 0; i < KEPT; i++) free(t.kept[i].bits);
}
static double dot(const float *a, const float *b, int64_t n) { return wrpo__dot(a, b, n); }
/* Some derivatives of loss(env), which is the plain forward op and then a sum in double, by differences of sixth order
   in steps of h; against the plain op's gradient. h is a power of 2 and x on a grid, so that x + h is exact; what is
   left is the rounding of the forward op's results to float, over h, and the stencil's error, which grows as h^6. */
static double worst_difference;
static void differences(run *t, const char *what, double (*loss)(run *t, void *env), void *env, float *x, int64_t n,
                        const float *gradient, double h) {
    static const double weights[] = {45, -9, 1};
    double scale = least, worst = 0;
    if (t->be != plain) return;
    for (int64_t i = 0; i < n; i++) scale = fmax(scale, fabs((double)gradient[i]));
    for (int64_t j = 0; j < 24 && j < n; j++) {
        const int64_t i = n <= 24 ? j : (int64_t)(wrpo__random64(7, 1, (uint64_t)j) % (uint64_t)n);
        const float keep = x[i];
        double slope = 0;
        for (int k = 1; k <= 3; k++)
            for (int sign = -1; sign <= 1; sign += 2) {
                x[i] = keep + (float)(sign * k) * (float)h;
                slope += sign * weights[k - 1] * loss(t, env) / (60 * h);
            }
        x[i] = keep;
        worst = test_larger(worst, isnan(slope) ? INFINITY : fabs(slope - (double)gradient[i]) / scale);
    }
    worst_difference = test_larger(worst_difference, worst);
    CHECK(worst < 1e-5, "%s: %s: the gradient is off by %.3g from finite differences", t->name, what, worst);
}
/* the largest power of 2 that is no more than x */
static double power_of_2(double x) { return exp2(floor(log2(x))); }

/* x rounded toward 0 to bfloat16, in place, and those halves */
static uint16_t *halves(run *t, float *x, int64_t n) {
    uint16_t *h = block(t, (size_t)WRPO__MAX(n, 1) * sizeof *h);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        h[i] = (uint16_t)(bits >> 16), bits &= 0xFFFF0000u;
        memcpy(x + i, &bits, 4);
    }
    return h;
}

/* x rounded to F16, in place, and those halves */
static uint16_t *f16_halves(run *t, float *x, int64_t n) {
    uint16_t *h = block(t, (size_t)WRPO__MAX(n, 1) * sizeof *h);
    for (int64_t i = 0; i < n; i++) {
        h[i] = wrpo__float_to_f16(i % 7 == 3 ? x[i] * 0x1p-15f : x[i]);        /* every seventh is denormal */
        x[i] = wrpo__bits_float(wrpo__f16_to_bits(h[i]));
    }
    return h;
}

/* NT products by a kept b have the bits of c: from what was kept, as b itself is spoiled, until it is forgotten. */
static void kept_product(run *t, void *dev, float beta, const float *before, const float *c, int64_t ldc,
                         const float *a, int64_t lda, const void *b, int64_t ldb, wrpo_dtype type, int64_t m, int64_t n,
                         int64_t k) {
    const size_t bytes = (size_t)((n - 1) * ldb + k) * wrpo__dtype_size(type), room = (size_t)(m * ldc) * sizeof *c;
    if (!t->be->keep || t->way != 1) return;  /* with two threads: the others have the same bits, as `result` checks */
    const int blocks = t->n_blocks;
    void *to = block(t, t->be->keep_bytes(dev, type, n, k)), *spoiled = block(t, bytes);
    float *got = floats(t, m * ldc, 0);
    memcpy(spoiled, b, bytes);
    memcpy(got, before, room);
    t->be->keep(dev, to, spoiled, ldb, type, n, k);
    memset(spoiled, 0xFF, bytes);
    t->be->gemm(dev, WRPO_MM_NT, got, ldc, a, lda, spoiled, ldb, type, m, n, k, beta);
    CHECK(!memcmp(got, c, room), "%s: a kept b of %zu bytes an element gives other bits", t->name,
          wrpo__dtype_size(type));
    t->be->gemm(dev, WRPO_MM_NT, got, ldc, a, lda, spoiled, ldb, type, m, n > 1 ? n - 1 : n, k, 0);
    CHECK(n < 2 || k == 0 || got[0] != got[0], "%s: another product takes what is kept", t->name);
    t->be->forget(dev);
    t->be->gemm(dev, WRPO_MM_NT, got, ldc, a, lda, spoiled, ldb, type, m, n, k, 0);
    CHECK(k == 0 || got[0] != got[0], "%s: forget forgets nothing", t->name);
    while (t->n_blocks > blocks) t->be->release(t->dev, t->blocks[--t->n_blocks]);
}
/* ---- gemm: args m, n, k, layout, beta, extra columns between rows ---- */
static void test_gemm(run *t, const int64_t *arg) {
    static const char *const layouts[] = {"NT", "NT_FLOAT", "NN", "TN"};
    const int64_t m = arg[0], n = arg[1], k = arg[2], extra = arg[5];
    const wrpo_mm mm = (wrpo_mm)arg[3];
    const bool bt = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT, at = mm == WRPO_MM_TN;
    const int64_t lda = (at ? m : k) + extra, ldb = (bt ? k : n) + extra, ldc = n + extra;
    float *a = random_floats(t, (at ? k : m) * lda, -1, 1), *b = random_floats(t, (bt ? n : k) * ldb, -1, 1),
          *c = floats(t, m * ldc, NAN);
    for (int64_t i = 0; i < m * ldc && arg[4]; i++)
        if (i % ldc < n) c[i] = (float)uniform(t, -1, 1);
    float *want = copy_of(t, c, m * ldc), *before = copy_of(t, c, m * ldc);
    if (t->way == 0) plain->gemm(exact->dev, mm, want, ldc, a, lda, b, ldb, WRPO_DTYPE_F32, m, n, k, (float)arg[4]);
    t->be->gemm(t->dev, mm, c, ldc, a, lda, b, ldb, WRPO_DTYPE_F32, m, n, k, (float)arg[4]);
    result(t, "gemm", layouts[mm], c, m, n, ldc, want, 2e-6);
    if (at) return;
    if (bt) kept_product(t, t->dev, (float)arg[4], before, c, ldc, a, lda, b, ldb, WRPO_DTYPE_F32, m, n, k);
    {                                  /* a weight in bfloat16 gives the bits of the same numbers as floats */
        uint16_t *half = halves(t, b, (bt ? n : k) * ldb);
        float *first = floats(t, m * ldc, 0.5f), *second = floats(t, m * ldc, 0.5f);
        t->be->gemm(t->dev, mm, first, ldc, a, lda, b, ldb, WRPO_DTYPE_F32, m, n, k, (float)arg[4]);
        t->be->gemm(t->dev, mm, second, ldc, a, lda, half, ldb, WRPO_DTYPE_BF16, m, n, k, (float)arg[4]);
        CHECK(memcmp(first, second, (size_t)(m * ldc) * sizeof *c) == 0, "%s: weights in bfloat16 give other bits",
              t->name);
        const float *half_c = floats(t, m * ldc, 0.5f);
        if (bt)
            kept_product(t, t->dev, (float)arg[4], half_c, first, ldc, a, lda, half, ldb, WRPO_DTYPE_BF16, m, n, k);
        float *b16 = copy_of(t, b, (bt ? n : k) * ldb);
        half = f16_halves(t, b16, (bt ? n : k) * ldb);
        t->be->gemm(t->dev, mm, first, ldc, a, lda, b16, ldb, WRPO_DTYPE_F32, m, n, k, 0);
        t->be->gemm(t->dev, mm, second, ldc, a, lda, half, ldb, WRPO_DTYPE_F16, m, n, k, 0);
        CHECK(memcmp(first, second, (size_t)(m * ldc) * sizeof *c) == 0, "%s: weights in F16 give other bits", t->name);
        if (bt) kept_product(t, t->dev, 0, first, first, ldc, a, lda, half, ldb, WRPO_DTYPE_F16, m, n, k);
    }
    if (arg[4]) return;                /* a row is a row, whichever others come with it */
    t->be->gemm(t->dev, mm, c, ldc, a, lda, b, ldb, WRPO_DTYPE_F32, m, n, k, 0);
    static const int64_t part[][2] = {{0, 1}, {5, 1}, {3, 2}, {2, 4}, {7, 13}, {1, 14}, {6, 30}, {30, 99}};
    for (int i = 0; i < 8; i++) {
        const int64_t first = part[i][0], count = part[i][1];
        if (first + count > m) continue;
        float *rows = floats(t, count * n, NAN);
        t->be->gemm(t->dev, mm, rows, n, a + first * lda, lda, b, ldb, WRPO_DTYPE_F32, count, n, k, 0);
        int64_t other = 0;
        for (int64_t r = 0; r < count; r++)
            other += memcmp(rows + r * n, c + (first + r) * ldc, (size_t)n * sizeof *c) != 0;
        CHECK(other == 0, "%s: rows %lld+%lld alone have other bits", t->name, (long long)first, (long long)count);
        t->be->release(t->dev, t->blocks[--t->n_blocks]);
    }
}

/* Operands that end where their memory ends, for a sanitizer to see what is read behind them. args m, n, k */
static void test_gemm_exact(run *t, const int64_t *arg) {
    const int64_t m = arg[0], n = arg[1], k = arg[2];
    float *a = malloc((size_t)(m * k) * 4), *b = malloc((size_t)(n * k) * 4), *c[2];
    uint16_t *half = malloc((size_t)(n * k) * 2);
    for (int64_t i = 0; i < m * k; i++) a[i] = (float)uniform(t, -1, 1);
    for (int64_t i = 0; i < n * k; i++) {
        half[i] = wrpo__float_to_bf16((float)uniform(t, -1, 1));
        b[i] = wrpo__float_of(half[i]);
    }
    for (int i = 0; i < 2; i++) {
        c[i] = malloc((size_t)(m * n) * 4);
        t->be->gemm(t->dev, WRPO_MM_NT, c[i], n, a, k, i ? (void *)half : (void *)b, k,
                    i ? WRPO_DTYPE_BF16 : WRPO_DTYPE_F32, m, n, k, 0);
    }
    CHECK(!memcmp(c[0], c[1], (size_t)(m * n) * 4), "%s: weights in bfloat16 give other bits", t->name);
    double error = 0;
    for (int64_t i = 0; i < m * n; i++) {
        double want = 0;
        for (int64_t j = 0; j < k; j++) want += (double)a[i / n * k + j] * (double)b[i % n * k + j];
        error = test_larger(error, fabs((double)c[0][i] - want));
    }
    CHECK(error < 1e-7 * (double)k, "%s: an element is off by %g", t->name, error);
    free(a), free(b), free(half), free(c[0]), free(c[1]);
}
/* ---- the same in a context of bfloat16: sums in float of factors rounded to it, where the machine multiplies pairs of
   them; of factors as they are elsewhere. The same bits for every number of threads, and for a row by itself. Args m,
   n, k, layout, beta, extra ---- */
static void test_gemm_pairs(run *t, const int64_t *arg) {
    const int64_t m = arg[0], n = arg[1], k = arg[2], extra = arg[5];
    const wrpo_mm mm = (wrpo_mm)arg[3];
    const bool bt = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT, at = mm == WRPO_MM_TN;
    const int64_t lda = (at ? m : k) + extra, ldb = (bt ? k : n) + extra, ldc = n + extra, all_a = (at ? k : m) * lda,
                  all_b = (bt ? n : k) * ldb;
    wrpo_ctx *ctx;
    const wrpo_desc desc = {.backend = t->be, .threads = THREADS[t->way], .dtype = WRPO_DTYPE_BF16};
    if (wrpo_open(&desc, &ctx) != WRPO_OK) { CHECK(false, "open"); return; }
    const bool pairs = t->be == plain || ((wrpo__cpu *)ctx->dev)->pairs;
    float *a = random_floats(t, all_a, -1, 1), *b = random_floats(t, all_b, -1, 1), *c = floats(t, m * ldc, NAN);
    uint16_t *half = at ? NULL : halves(t, b, all_b);
    for (int64_t i = 0; i < m * ldc && arg[4]; i++)
        if (i % ldc < n) c[i] = (float)uniform(t, -1, 1);
    float *want = copy_of(t, c, m * ldc), *before = copy_of(t, c, m * ldc);
    if (t->way == 0)
        plain->gemm((pairs ? rounded : exact)->dev, mm, want, ldc, a, lda, at ? (void *)b : (void *)half, ldb,
                    at ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16, m, n, k, (float)arg[4]);
    t->be->gemm(ctx->dev, mm, c, ldc, a, lda, at ? (void *)b : (void *)half, ldb, at ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16,
                m, n, k, (float)arg[4]);
    result(t, pairs ? "gemm in pairs" : "gemm of halves", "c", c, m, n, ldc, want, 2e-6);
    if (bt) kept_product(t, ctx->dev, (float)arg[4], before, c, ldc, a, lda, half, ldb, WRPO_DTYPE_BF16, m, n, k);
    for (int64_t r = 0; r < m && !at && !arg[4]; r += 1 + m / 5) {
        float *row = floats(t, n, NAN);
        t->be->gemm(ctx->dev, mm, row, n, a + r * lda, lda, half, ldb, WRPO_DTYPE_BF16, 1, n, k, 0);
        CHECK(!memcmp(row, c + r * ldc, (size_t)n * 4), "%s: row %lld alone has other bits", t->name, (long long)r);
        t->be->release(t->dev, t->blocks[--t->n_blocks]);
    }
    wrpo_close(ctx);
}

/* ---- embed, gather, bias, colsum, add, sum: args n, D, rows of the table, extra ---- */
/* p 0 scales. Otherwise about a share p is 0 and the rest is scaled; an element is the same whatever rows are computed
   with it; and the gradient is the op itself: it has the mask of its row and column. */
static void test_dropout(run *t, int64_t n, int64_t D, int64_t ld) {
    const wrpo_dropout none = {.scale = -1.5f}, some = {.scale = 2, .p = 0.3f, .seed = 5, .stream = 9, .row = 3};
    float *x = floats(t, n * ld, NAN), *y = floats(t, n * ld, NAN), *want = floats(t, n * ld, NAN);
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < D; j++) x[r * ld + j] = (float)uniform(t, 0.5, 1);
    plain->dropout(exact->dev, want, ld, x, ld, n, D, &none);
    t->be->dropout(t->dev, y, ld, x, ld, n, D, &none);
    result(t, "dropout", "y without", y, n, D, ld, want, 1e-7);
    plain->dropout(exact->dev, want, ld, x, ld, n, D, &some);
    t->be->dropout(t->dev, y, ld, x, ld, n, D, &some);
    result(t, "dropout", "y", y, n, D, ld, want, 1e-7);
    int64_t dropped = 0, wrong = 0, moved = 0;
    for (int64_t r = 0; r < n; r++) {
        wrpo_dropout row = some;
        row.row += r;
        float alone[8];
        if (D <= 8) plain->dropout(exact->dev, alone, D, x + r * ld, ld, 1, D, &row);
        for (int64_t j = 0; j < D; j++) {
            const float v = y[r * ld + j], kept = x[r * ld + j] * 2 / 0.7f;
            dropped += v == 0;
            wrong += v != 0 && fabsf(v - kept) > 1e-5f * kept;
            moved += D <= 8 && alone[j] != want[r * ld + j];
        }
    }
    const double share = (double)dropped / (double)(n * D), sd = sqrt(0.21 / (double)(n * D));
    CHECK(wrong == 0 && fabs(share - 0.3) < 5 * sd + 1e-3, "%s: dropout: %lld of %lld are 0, %lld wrong", t->name,
          (long long)dropped, (long long)(n * D), (long long)wrong);
    CHECK(moved == 0, "%s: dropout: %lld elements depend on the rows beside them", t->name, (long long)moved);
    t->be->dropout(t->dev, x, ld, x, ld, n, D, &some);
    CHECK(!memcmp(x, y, (size_t)((n - 1) * ld + D) * sizeof *x), "%s: dropout in place differs", t->name);
}
static void test_rows(run *t, const int64_t *arg) {
    const int64_t n = arg[0], D = arg[1], V = arg[2], ld = D + arg[3];
    const float scale = 1.5f;
    float *w = random_floats(t, V * D, -1, 1), *x = random_floats(t, n * D, -1, 1), *y = floats(t, n * D, NAN),
          *s = floats(t, n * ld, NAN);
    float *dw = random_floats(t, V * D, -1, 1), *dx = copy_of(t, dw, V * D), *b = random_floats(t, D, -1, 1),
          *db = copy_of(t, b, D);
    int32_t *ids = random_ids(t, n, V);
    float *want = floats(t, n * D, NAN), *dw_want = copy_of(t, dw, V * D), *dx_want = copy_of(t, dx, V * D);
    void *ref = exact->dev;
    plain->embed(ref, want, w, WRPO_DTYPE_F32, ids, n, D, scale);
    t->be->embed(t->dev, y, w, WRPO_DTYPE_F32, ids, n, D, scale);
    result(t, "embed", "y", y, n, D, D, want, 1e-7);
    {
        float *copy = copy_of(t, w, V * D), *sum = floats(t, D, NAN), *sum2 = floats(t, D, NAN),
              *y2 = floats(t, n * D, NAN), *sums = floats(t, D, NAN);
        uint16_t *half = halves(t, copy, V * D);
        plain->colsum(ref, sums, copy, WRPO_DTYPE_F32, V, D);
        t->be->colsum(t->dev, sum, copy, WRPO_DTYPE_F32, V, D),
            t->be->colsum(t->dev, sum2, half, WRPO_DTYPE_BF16, V, D);
        result(t, "colsum", "y", sum, 1, D, D, sums, 2e-6);
        t->be->embed(t->dev, y2, half, WRPO_DTYPE_BF16, ids, n, D, scale),
            t->be->embed(t->dev, y, copy, WRPO_DTYPE_F32, ids, n, D, scale);
        CHECK(!memcmp(sum, sum2, (size_t)D * 4) && !memcmp(y, y2, (size_t)(n * D) * 4),
              "%s: bfloat16 gives other bits in embed or colsum", t->name);
        half = f16_halves(t, copy, V * D);
        if (V * D > 8) half[2] = 0x7C00, half[5] = 0xFC00, copy[2] = INFINITY, copy[5] = -INFINITY;
        t->be->embed(t->dev, y2, half, WRPO_DTYPE_F16, ids, n, D, scale),
            t->be->embed(t->dev, y, copy, WRPO_DTYPE_F32, ids, n, D, scale);
        t->be->colsum(t->dev, sum, copy, WRPO_DTYPE_F32, V, D), t->be->colsum(t->dev, sum2, half, WRPO_DTYPE_F16, V, D);
        int64_t other = 0;           /* NaN may have another sign */
        for (int64_t j = 0; j < D; j++) other += sum[j] != sum2[j] && !(isnan(sum[j]) && isnan(sum2[j]));
        CHECK(!other && !memcmp(y, y2, (size_t)(n * D) * 4), "%s: F16 gives other bits in embed or colsum", t->name);
    }
    plain->embed_bwd(ref, dw_want, x, ids, n, D, scale);
    t->be->embed_bwd(t->dev, dw, x, ids, n, D, scale);
    result(t, "embed_bwd", "dw", dw, V, D, D, dw_want, 2e-6);
    plain->gather(ref, want, w, ids, n, D);
    t->be->gather(t->dev, y, w, ids, n, D);
    result(t, "gather", "y", y, n, D, D, want, 0);
    float *scales = random_floats(t, n, -1, 1);
    for (int i = 0; i < 2; i++) {
        plain->gather_bwd(ref, dx_want, x, i ? scales : NULL, ids, n, D);
        t->be->gather_bwd(t->dev, dx, x, i ? scales : NULL, ids, n, D);
        result(t, "gather_bwd", i ? "dx, scaled" : "dx", dx, V, D, D, dx_want, 2e-6);
    }
    {                                /* every third row of the table, from behind */
        float *to = floats(t, 3 * n * ld, NAN), *from = random_floats(t, n * (D + 2), -1, 1),
              *rows = floats(t, 3 * n * ld, NAN);
        int32_t *places = random_ids(t, n, 1);
        for (int64_t r = 0; r < n; r++) places[r] = (int32_t)(3 * (n - 1 - r));
        plain->scatter(ref, rows, ld, from, D + 2, places, n, D);
        t->be->scatter(t->dev, to, ld, from, D + 2, places, n, D);
        result(t, "scatter", "y", to, n, D, 3 * ld, rows, 0);          /* what lies between is not touched */
        int64_t other = 0;
        for (int64_t r = 0; r < n; r++) other += memcmp(to + places[r] * ld, from + r * (D + 2), (size_t)D * 4) != 0;
        CHECK(other == 0, "%s: scatter: %lld rows are not where they belong", t->name, (long long)other);
    }
    for (int64_t r = 0; r < n; r++) memcpy(s + r * ld, x + r * D, (size_t)D * 4);
    float *s_want = copy_of(t, s, n * ld), *db_want = copy_of(t, b, D);
    plain->bias_bwd(ref, db_want, s, ld, n, D);
    t->be->bias_bwd(t->dev, db, s, ld, n, D);
    result(t, "bias_bwd", "db", db, 1, D, D, db_want, 1e-6);
    plain->bias(ref, s_want, ld, b, n, D);
    t->be->bias(t->dev, s, ld, b, n, D);
    result(t, "bias", "y", s, n, D, ld, s_want, 1e-7);
    float *sum = copy_of(t, x, n * D), *sum_want = copy_of(t, x, n * D);
    plain->add(ref, sum_want, y, n * D);
    t->be->add(t->dev, sum, y, n * D);
    result(t, "add", "y", sum, n, D, D, sum_want, 1e-7);
    plain->sum(ref, sum_want, y, n * D);
    t->be->sum(t->dev, sum, y, n * D);
    result(t, "sum", "y", sum, n, D, D, sum_want, 0);
    test_dropout(t, n, D, ld);
    double squares = 3, found = 3;
    plain->sumsq(ref, &squares, x, n * D);
    t->be->sumsq(t->dev, &found, x, n * D);
    CHECK(fabs(found - squares) <= 1e-13 * squares, "%s: sumsq: found %.17g, wanted %.17g", t->name, found, squares);
    float bits[2];
    memcpy(bits, &found, sizeof bits);
    result(t, "sumsq (bits)", "sum", bits, 1, 2, 2, bits, 0);
}
/* ---- gradients of the linear ops: gemm, embed, gather, bias, rope. args m, n, k (rows, columns, sum) ---- */
typedef struct linear_env {
    int op;
    float *x, *w, *b, *y, *dy, *table; const int32_t *ids;
    int64_t m, n, k;
} linear_env;
static double linear_loss(run *t, void *p) {
    const linear_env *e = p;
    const int64_t m = e->m, n = e->n, k = e->k;
    int64_t count = m * n;
    if (e->op == 0) t->be->gemm(t->dev, WRPO_MM_NT, e->y, n, e->x, k, e->w, k, WRPO_DTYPE_F32, m, n, k, 0);
    if (e->op == 1) t->be->embed(t->dev, e->y, e->w, WRPO_DTYPE_F32, e->ids, m, k, 1.5f), count = m * k;
    if (e->op == 2) t->be->gather(t->dev, e->y, e->x, e->ids, m, k), count = m * k;
    if (e->op == 3) t->be->zero(t->dev, e->y, (size_t)count * 4), t->be->bias(t->dev, e->y, n, e->b, m, n);
    if (e->op == 4) {
        count = m * 2 * k, memcpy(e->y, e->x, (size_t)count * 4);
        t->be->rope(t->dev, e->y, 2 * k, e->table, e->ids, m, 2, k / 2 * 2, 1);
    }
    return dot(e->y, e->dy, count);
}
static void test_linear(run *t, const int64_t *arg) {
    const int64_t m = arg[0], n = arg[1], k = arg[2], most = WRPO__MAX(m, n) * WRPO__MAX(n, 2 * k) * 2;
    linear_env e = {.x = random_floats(t, most, -1, 1), .w = random_floats(t, most, -1, 1),
                    .b = random_floats(t, n, -1, 1), .y = floats(t, most, 0), .dy = random_floats(t, most, -1, 1),
                    .table = floats(t, n * k, 0),
                    .ids = random_ids(t, m, n), .m = m, .n = n, .k = k};
    float *dx = floats(t, most, 0), *dw = floats(t, most, 0), *db = floats(t, n, 0);
    for (int64_t i = 0; i < n * (k / 2); i++) {
        const double a = uniform(t, 0, 7);
        e.table[2 * i] = (float)cos(a), e.table[2 * i + 1] = (float)sin(a);
    }
    t->be->gemm(t->dev, WRPO_MM_NN, dx, k, e.dy, n, e.w, k, WRPO_DTYPE_F32, m, k, n, 0);
    t->be->gemm(t->dev, WRPO_MM_TN, dw, k, e.dy, n, e.x, k, WRPO_DTYPE_F32, n, k, m, 1);
    differences(t, "gemm dx", linear_loss, &e, e.x, m * k, dx, 1);
    differences(t, "gemm dw", linear_loss, &e, e.w, n * k, dw, 1);
    e.op = 1, memset(dw, 0, (size_t)(n * k) * 4), t->be->embed_bwd(t->dev, dw, e.dy, e.ids, m, k, 1.5f);
    differences(t, "embed dw", linear_loss, &e, e.w, n * k, dw, 1);
    e.op = 2, memset(dx, 0, (size_t)(n * k) * 4), t->be->gather_bwd(t->dev, dx, e.dy, NULL, e.ids, m, k);
    differences(t, "gather dx", linear_loss, &e, e.x, n * k, dx, 1);
    {                                /* dy without a factor of its rows, which is given beside it */
        float *scales = random_floats(t, m, 0.5, 2), *dy = copy_of(t, e.dy, m * k);
        for (int64_t i = 0; i < m * k; i++) dy[i] /= scales[i / k];
        memset(dx, 0, (size_t)(n * k) * 4), t->be->gather_bwd(t->dev, dx, dy, scales, e.ids, m, k);
        differences(t, "gather dx, scaled", linear_loss, &e, e.x, n * k, dx, 1);
    }
    e.op = 3, t->be->bias_bwd(t->dev, db, e.dy, n, m, n);
    differences(t, "bias db", linear_loss, &e, e.b, n, db, 1);
    e.op = 4, memcpy(dx, e.dy, (size_t)(m * 2 * k) * 4);
    t->be->rope(t->dev, dx, 2 * k, e.table, e.ids, m, 2, k / 2 * 2, -1);
    differences(t, "rope dx", linear_loss, &e, e.x, m * 2 * k, dx, 1);
}

/* ---- rmsnorm: args n, heads, D, extra, plus, aliasing (1: y = x and dx = dy, 2: dx = dres), a large eps ---- */
typedef struct norm_env { float *x, *w, *dy, *y, *rstd; int64_t n, heads, D; float eps, plus; } norm_env;
static double norm_loss(run *t, void *p) {
    const norm_env *e = p;
    const int64_t W = e->heads * e->D;
    t->be->rmsnorm(t->dev, e->y, W, e->rstd, e->x, W, e->w, e->n, e->heads, e->D, e->eps, e->plus);
    return dot(e->y, e->dy, e->n * W);
}
static void test_rmsnorm(run *t, const int64_t *arg) {
    const int64_t n = arg[0], heads = arg[1], D = arg[2], W = heads * D, ld = W + arg[3], alias = arg[5];
    const float eps = arg[6] ? 0.25f : 1e-5f, plus = (float)arg[4];
    float *x = floats(t, n * ld, NAN), *dy = floats(t, n * ld, NAN), *dres = floats(t, n * ld, NAN),
          *w = random_floats(t, D, 0.5, 1.5);
    float *xd = random_floats(t, n * W, -2, 2), *dyd = random_floats(t, n * W, -1, 1),
          *dresd = random_floats(t, n * W, -1, 1);
    float *dw = random_floats(t, D, -1, 1), *rstd = floats(t, n * heads, NAN);
    if (t->be == plain && (D > 1 || arg[6])) {         /* of one element with a small eps y is its sign */
        norm_env e = {xd, w, dyd, floats(t, n * W, NAN), floats(t, n * heads, NAN), n, heads, D, eps, plus};
        float *dx = floats(t, n * W, NAN), *dw0 = floats(t, D, 0);
        norm_loss(t, &e);
        t->be->rmsnorm_bwd(t->dev, dx, W, dw0, dyd, W, NULL, 0, xd, W, w, e.rstd, n, heads, D, plus);
        least = 0.1;
        differences(t, "rmsnorm dx", norm_loss, &e, xd, n * W, dx, power_of_2(sqrt((double)D) / 32));
        differences(t, "rmsnorm dw", norm_loss, &e, w, D, dw0, 1);
        least = 1e-30;
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < W; j++) {
            x[r * ld + j] = xd[r * W + j], dy[r * ld + j] = dyd[r * W + j], dres[r * ld + j] = dresd[r * W + j];
        }
    float *in = copy_of(t, x, n * ld), *y = alias ? x : floats(t, n * ld, NAN), *y_want = floats(t, n * ld, NAN),
          *rstd_want = floats(t, n * heads, NAN);
    float *dx_want = floats(t, n * ld, NAN), *dw_want = copy_of(t, dw, D);
    if (t->way == 0) {
        plain->rmsnorm(exact->dev, y_want, ld, rstd_want, x, ld, w, n, heads, D, eps, plus);
        plain->rmsnorm_bwd(exact->dev, dx_want, ld, dw_want, dy, ld, alias == 1 ? NULL : dres, ld, in, ld, w, rstd_want,
                           n, heads, D, plus);
    }
    t->be->rmsnorm(t->dev, y, ld, rstd, x, ld, w, n, heads, D, eps, plus);
    result(t, "rmsnorm", "y", y, n, W, ld, y_want, 1e-6);
    result(t, "rmsnorm", "rstd", rstd, n, heads, heads, rstd_want, 1e-6);
    float *out = alias == 1 ? dy : alias == 2 ? dres : floats(t, n * ld, NAN);
    t->be->rmsnorm_bwd(t->dev, out, ld, dw, dy, ld, alias == 1 ? NULL : dres, ld, in, ld, w, rstd, n, heads, D, plus);
    result(t, "rmsnorm_bwd", "dx", out, n, W, ld, dx_want, 3e-6);
    result(t, "rmsnorm_bwd", "dw", dw, 1, D, D, dw_want, 3e-6);
}

/* ---- rope: args n, heads, d, extra ---- */
static void test_rope(run *t, const int64_t *arg) {
    const int64_t n = arg[0], heads = arg[1], d = arg[2], W = heads * d, ld = W + arg[3];
    const int64_t positions = n + 3;
    float *x = floats(t, n * ld, NAN), *angles = floats(t, positions * d, 0);
    const int32_t *index = random_ids(t, n, positions);
    for (int64_t i = 0; i < positions * d / 2; i++) {
        double a = uniform(t, 0, 7);
        angles[2 * i] = (float)cos(a), angles[2 * i + 1] = (float)sin(a);
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < W; j++) x[r * ld + j] = (float)uniform(t, -1, 1);
    float *back = copy_of(t, x, n * ld), *want = copy_of(t, x, n * ld);
    plain->rope(exact->dev, want, ld, angles, index, n, heads, d, 1);
    t->be->rope(t->dev, x, ld, angles, index, n, heads, d, 1);
    result(t, "rope", "x", x, n, W, ld, want, 3e-7);
    t->be->rope(t->dev, x, ld, angles, index, n, heads, d, -1);
    result(t, "rope back", "x", x, n, W, ld, back, 1e-6);     /* the transpose of a rotation is its inverse */
}

/* ---- attention: args H, G, d, window, softcap, extra, layout of segments ---- */
typedef struct layout { int64_t n, count; wrpo_seg segs[12]; } layout;
static const layout LAYOUTS[] = {
    {1, 1, {{0, 1, 0, 0, 0, 1}}},
    {17, 1, {{0, 17, 0, 0, 0, 17}}},
    {129, 2, {{0, 3, 0, 0, 0, 3}, {3, 129, 3, 3, 3, 129}}},
    {25, 4, {{0, 5, 0, 0, 0, 5}, {5, 12, 0, 5, 5, 12}, {12, 13, 0, 5, 12, 13}, {13, 25, 0, 5, 13, 25}}},
    {230,
     8,
     {{0, 33, 0, 0, 0, 33},
      {33, 73, 0, 33, 33, 73},
      {73, 90, 0, 33, 73, 90},
      {90, 90, 0, 33, 90, 90},
      {90, 221, 0, 33, 90, 221},
      {221, 222, 221, 221, 221, 222},
      {222, 225, 221, 222, 222, 225},
      {225, 230, 221, 222, 225, 230}}},
    {640,
     4,
     {{0, 300, 0, 0, 0, 300},
      {300, 400, 0, 300, 300, 400},
      {400, 600, 0, 300, 400, 600},
      {600, 640, 10, 20, 600, 640}}},
};
typedef struct attn_env { const wrpo_attn *a; float *q, *k, *v, *d_o, *o, *lse; } attn_env;
static double attn_loss(run *t, void *env) {
    const attn_env *e = env;
    t->be->attention(t->dev, e->a, e->o, e->lse, e->q, e->k, e->v);
    double sum = 0;
    for (int64_t r = 0; r < e->a->n; r++) sum += dot(e->o + r * e->a->ldo, e->d_o + r * e->a->ldo, e->a->H * e->a->d);
    return sum;
}
/* rows of width w, spread to stride ld */
static float *spread(run *t, const float *x, int64_t n, int64_t w, int64_t ld) {
    float *p = floats(t, n * ld, NAN);
    for (int64_t r = 0; r < n; r++) memcpy(p + r * ld, x + r * w, (size_t)w * sizeof *p);
    return p;
}
/* gradients at some places of x, which has rows of width w, ld apart */
static void attn_differences(run *t, const char *what, attn_env *e, float *x, const float *dx, int64_t w, int64_t ld,
                             double h) {
    for (int64_t i = 0; i < 3; i++) {    /* in the first, the last and another row */
        const int64_t row = i == 0 ? 0 : i == 1 ? e->a->n - 1 : e->a->n / 3;
        differences(t, what, attn_loss, e, x + row * ld, w, dx + row * ld, h);
    }
}
/* of the error: bfloat16 keeps 8 bits of a factor, and softmax(q k) has the error of q k, which grows with its size */
static double attn_slack = 1;
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
                   (float)arg[4]};
    const double reach = arg[4] ? 3 : 1.5;
    float *q = random_floats(t, n * H * d, -reach, reach), *k = random_floats(t, n * G * d, -reach, reach);
    float *v = random_floats(t, n * G * d, -1, 1), *go = random_floats(t, n * H * d, -1, 1);
    float *fq = spread(t, q, n, H * d, a.ldq), *fk = spread(t, k, n, G * d, a.ldkv),
          *fv = spread(t, v, n, G * d, a.ldkv), *fgo = spread(t, go, n, H * d, a.ldo);
    float *o_want = floats(t, n * a.ldo, NAN), *lse_want = floats(t, n * H, NAN);
    float *dq_want = floats(t, n * a.ldq, NAN), *dk_want = floats(t, n * a.ldkv, NAN),
          *dv_want = floats(t, n * a.ldkv, NAN);
    if (t->way == 0) {
        plain->attention(exact->dev, &a, o_want, lse_want, fq, fk, fv);
        plain->attention_bwd(exact->dev, &a, dq_want, dk_want, dv_want, fgo, o_want, lse_want, fq, fk, fv, NULL);
    }
    if (t->be == plain && n * n * H * d <= 700000) {
        attn_env e = {&a, fq, fk, fv, fgo, floats(t, n * a.ldo, NAN), floats(t, n * H, NAN)};
        least = 0.1;
        attn_differences(t, "attention dq", &e, fq, dq_want, H * d, a.ldq, 0.125);
        attn_differences(t, "attention dk", &e, fk, dk_want, G * d, a.ldkv, 0.125);
        attn_differences(t, "attention dv", &e, fv, dv_want, G * d, a.ldkv, 1);
    }
    least = 1e-30;
    float *o = floats(t, n * a.ldo, NAN), *lse = floats(t, n * H, NAN);
    t->be->attention(t->dev, &a, o, lse, fq, fk, fv);
    result(t, "attention", "o", o, n, H * d, a.ldo, o_want, 3e-6 * attn_slack);
    result(t, "attention", "lse", lse, n, H, H, lse_want, 2e-6 * attn_slack);
    float *dq = floats(t, n * a.ldq, NAN), *dk = floats(t, n * a.ldkv, NAN), *dv = floats(t, n * a.ldkv, NAN);
    void *scratch = block(t, t->be->attention_scratch(t->dev, n, H, G, d));
    t->be->attention_bwd(t->dev, &a, dq, dk, dv, fgo, o, lse, fq, fk, fv, scratch);
    least = 0.1;
    result(t, "attention_bwd", "dq", dq, n, H * d, a.ldq, dq_want, 5e-6 * attn_slack);
    result(t, "attention_bwd", "dk", dk, n, G * d, a.ldkv, dk_want, 5e-6 * attn_slack);
    result(t, "attention_bwd", "dv", dv, n, G * d, a.ldkv, dv_want, 5e-6 * attn_slack);
    least = 1e-30;
}
/* the same in a context of bfloat16 */
static void test_attention_pairs(run *t, const int64_t *arg) {
    wrpo_ctx *ctx;
    void *dev = t->dev;
    const wrpo_desc desc = {.backend = t->be, .threads = THREADS[t->way], .dtype = WRPO_DTYPE_BF16};
    if (wrpo_open(&desc, &ctx) != WRPO_OK) { CHECK(false, "open"); return; }
    if (t->be != plain && ((wrpo__cpu *)ctx->dev)->pairs) {
        t->dev = ctx->dev, attn_slack = 4000;
        test_attention(t, arg);
        while (t->n_blocks) t->be->release(t->dev, t->blocks[--t->n_blocks]);
        t->dev = dev, attn_slack = 1;
    }
    wrpo_close(ctx);
}
/* A prompt with three responses gives each response the bits that it has as the only one, wherever it lies. */
static void test_sharing(run *t, const int64_t *arg) {
    const int64_t H = arg[0], G = arg[1], d = arg[2], P = 77, R[3] = {40, 133, 9}, n = P + 40 + 133 + 9;
    const wrpo_seg all[4] = {{0, P, 0, 0, 0, P},
                             {P, P + 40, 0, P, P, P + 40},
                             {P + 40, P + 173, 0, P, P + 40, P + 173},
                             {P + 173, n, 0, P, P + 173, n}};
    wrpo_attn a = {n, all, 4, H, G, d, H * d, G * d, H * d, arg[3], 0.2f, 0};
    float *q = random_floats(t, n * H * d, -2, 2), *k = random_floats(t, n * G * d, -2, 2),
          *v = random_floats(t, n * G * d, -1, 1);
    float *go = random_floats(t, n * H * d, -1, 1), *o[2], *lse[2], *dq[2], *dk[2], *dv[2];
    for (int i = 0; i < 2; i++) {
        o[i] = floats(t, n * H * d, NAN), lse[i] = floats(t, n * H, NAN), dq[i] = floats(t, n * H * d, NAN);
        dk[i] = floats(t, n * G * d, NAN), dv[i] = floats(t, n * G * d, NAN);
    }
    void *scratch = block(t, t->be->attention_scratch(t->dev, n, H, G, d));
    t->be->attention(t->dev, &a, o[0], lse[0], q, k, v);
    t->be->attention_bwd(t->dev, &a, dq[0], dk[0], dv[0], go, o[0], lse[0], q, k, v, scratch);
    int64_t at = P;
    for (int i = 0; i < 3; at += R[i++]) {
        const int64_t m = P + R[i];      /* the record by itself: prompt, then this response */
        const wrpo_seg one[2] = {{0, P, 0, 0, 0, P}, {P, m, 0, P, P, m}};
        float *in[4], *const from[4] = {q, k, v, go};
        for (int j = 0; j < 4; j++) {
            const int64_t w = j == 1 || j == 2 ? G * d : H * d;
            in[j] = floats(t, m * w, 0);
            memcpy(in[j], from[j], (size_t)(P * w) * sizeof(float));
            memcpy(in[j] + P * w, from[j] + at * w, (size_t)(R[i] * w) * sizeof(float));
        }
        wrpo_attn b = a;
        b.n = m, b.segs = one, b.n_segs = 2;
        t->be->attention(t->dev, &b, o[1], lse[1], in[0], in[1], in[2]);
        t->be->attention_bwd(t->dev, &b, dq[1], dk[1], dv[1], in[3], o[1], lse[1], in[0], in[1], in[2], scratch);
#define SAME(x, w) (memcmp(x[0] + at * (w), x[1] + P * (w), (size_t)(R[i] * (w)) * sizeof(float)) == 0)
        CHECK(SAME(o, H * d) && SAME(lse, H), "%s: response %d: forward bits depend on the others", t->name, i);
        CHECK(SAME(dq, H * d) && SAME(dk, G * d) && SAME(dv, G * d),
              "%s: response %d: backward bits depend on the others", t->name, i);
        CHECK(memcmp(o[0], o[1], (size_t)(P * H * d) * sizeof(float)) == 0,
              "%s: the prompt's bits depend on its responses", t->name);
#undef SAME
        for (int j = 0; j < 4; j++) t->be->release(t->dev, t->blocks[--t->n_blocks]);
    }
}

/* ---- glu: args n, I, gelu, aliasing (dgu = gu), h wanted ---- */
typedef struct glu_env { float *gu, *dh, *h; int64_t n, I; bool gelu; } glu_env;
static double glu_loss(run *t, void *p) {
    const glu_env *e = p;
    t->be->glu(t->dev, e->h, e->gu, e->n, e->I, e->gelu);
    return dot(e->h, e->dh, e->n * e->I);
}
static void test_glu(run *t, const int64_t *arg) {
    const int64_t n = arg[0], I = arg[1];
    float *gu = random_floats(t, n * 2 * I, -6, 6), *dh = random_floats(t, n * I, -1, 1), *h = floats(t, n * I, NAN),
          *again = floats(t, n * I, NAN);
    if (n * I > 20) gu[0] = 90, gu[1] = -90, gu[2] = 1e4f, gu[3] = -1e4f, gu[4] = 0, gu[5] = 1e-4f;
    float *h_want = floats(t, n * I, NAN), *dgu_want = floats(t, n * 2 * I, NAN);
    glu_env e = {gu, dh, h_want, n, I, arg[2] != 0};
    plain->glu_bwd(exact->dev, dgu_want, NULL, dh, gu, n, I, e.gelu);
    differences(t, "glu dgu", glu_loss, &e, gu, n * 2 * I, dgu_want, 1.0 / 16);
    plain->glu(exact->dev, h_want, gu, n, I, e.gelu);
    t->be->glu(t->dev, h, gu, n, I, e.gelu);
    result(t, "glu", "h", h, n, I, I, h_want, 1e-6);
    float *out = arg[3] ? gu : floats(t, n * 2 * I, NAN);
    t->be->glu_bwd(t->dev, out, arg[4] ? again : NULL, dh, gu, n, I, e.gelu);
    result(t, "glu_bwd", "dgu", out, n, 2 * I, 2 * I, dgu_want, 1e-6);
    if (arg[4])
        CHECK(memcmp(h, again, (size_t)(n * I) * sizeof *h) == 0, "%s: h of the backward pass has other bits", t->name);
}

/* ---- logprob: args n, V, softcap, aliasing, size of the logits, columns of -inf at the end ---- */
typedef struct lp_env { float *x, *dlogp, *logp, *lse; const int32_t *target; int64_t n, V; float softcap; } lp_env;
static double lp_loss(run *t, void *p) {
    const lp_env *e = p;
    t->be->logprob(t->dev, e->logp, e->lse, e->x, e->V, e->target, e->n, e->V, e->softcap);
    return dot(e->logp, e->dlogp, e->n);
}
static void test_logprob(run *t, const int64_t *arg) {
    const int64_t n = arg[0], V = arg[1];
    float *x = random_floats(t, n * V, -(double)arg[4], (double)arg[4]), *dlogp = random_floats(t, n, -1, 1),
          *logp = floats(t, n, NAN), *lse = floats(t, n, NAN);
    int32_t *target = random_ids(t, n, V - arg[5]);
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = V - arg[5]; i < V; i++) x[r * V + i] = -INFINITY;
    lp_env e = {x, dlogp, floats(t, n, NAN), floats(t, n, NAN), target, n, V, (float)arg[2]};
    float *dx = floats(t, n * V, NAN);
    lp_loss(t, &e);
    if (t->be == plain && arg[4] <= 10 && arg[5] == 0) {
        least = 1;
        t->be->logprob_bwd(t->dev, dx, x, V, target, e.lse, dlogp, n, V, e.softcap);
        differences(t, "logprob dlogits", lp_loss, &e, x, n * V, dx, 0.125);
        for (int64_t r = 0; r < n; r++)
            differences(t, "logprob dlogits of the target", lp_loss, &e, x + r * V + target[r], 1,
                        dx + r * V + target[r], 0.125);
        least = 1e-30;
    }
    plain->logprob(exact->dev, e.logp, e.lse, x, V, target, n, V, e.softcap);
    t->be->logprob(t->dev, logp, lse, x, V, target, n, V, e.softcap);
    double worst = 0;
    for (int64_t r = 0; r < n; r++) {    /* absolute; a float of that size cannot say more, and there are two */
        worst = test_larger(worst, fabs((double)lse[r] - (double)e.lse[r]) - fabs((double)e.lse[r]) * 1.2e-7);
        worst = test_larger(worst, fabs((double)logp[r] - (double)e.logp[r]) - fabs((double)e.logp[r]) * 1.2e-7);
    }
    CHECK(worst <= (arg[2] ? 4e-6 : 1e-6), "%s: lse and logp: absolute error %.3g", t->name, worst);
    result(t, "logprob", "logp", logp, n, 1, 1, e.logp, 1e-6);
    result(t, "logprob", "lse", lse, n, 1, 1, e.lse, 1e-6);
    float *out = arg[3] ? x : floats(t, n * V, NAN);
    /* of large logits: from the same lse */
    plain->logprob_bwd(exact->dev, dx, x, V, target, arg[4] > 100 ? lse : e.lse, dlogp, n, V, e.softcap);
    t->be->logprob_bwd(t->dev, out, x, V, target, lse, dlogp, n, V, e.softcap);
    result(t, "logprob_bwd", "dlogits", out, n, V, V, dx, 3e-6);
}
/* the slopes of the double functions, where differences can be small */
static void test_slopes(run *t, const int64_t *arg) {
    (void)arg;
    double worst = 0, slope, other;
    for (int kind = 0; kind < 3; kind++)
        for (double x = -12; x <= 12; x += 0.37) {
            const double h = 1e-5;
            const double up = kind == 2 ? wrpo__softcap(x + h, 4, &other) : wrpo__act(x + h, kind == 1, &other);
            const double down = kind == 2 ? wrpo__softcap(x - h, 4, &other) : wrpo__act(x - h, kind == 1, &other);
            if (kind == 2) wrpo__softcap(x, 4, &slope);
            else wrpo__act(x, kind == 1, &slope);
            worst = test_larger(worst, fabs((up - down) / (2 * h) - slope));
        }
    CHECK(worst < 1e-9, "%s: a slope is off by %.3g", t->name, worst);
    CHECK(wrpo__softcap(-INFINITY, 4, &slope) == -INFINITY && slope == 1, "%s: a logit that does not count", t->name);
    CHECK(wrpo__softcap(3, 0, &slope) == 3 && slope == 1, "%s: no cap", t->name);
}
/* the vector exp alone: with lse 0 and dlogp -1, dlogits is e^x */
static void test_exp(run *t, const int64_t *arg) {
    const int64_t n = 1 << 18;
    float *x = random_floats(t, n, -87.3, 88.3), *y = floats(t, n, NAN), lse = 0, g = -1;
    int32_t target = 0;
    (void)arg;
    x[0] = 0, x[1] = -0.0f, x[2] = -INFINITY, x[3] = -88, x[4] = NAN, x[5] = -1e-30f;
    t->be->logprob_bwd(t->dev, y, x, n, &target, &lse, &g, 1, n, 0);
    double worst = 0;
    for (int64_t i = 6; i < n; i++) worst = test_larger(worst, fabs((double)y[i] / exp((double)x[i]) - 1));
    if (t->way == 0) tally("exp", worst, n);
    CHECK(worst <= 2e-7, "%s: relative error %.3g", t->name, worst);
    CHECK(y[1] == 1 && y[2] == 0 && (y[3] == 0 || t->be == plain) && isnan(y[4]) && y[5] == 1,
          "%s: special values %g %g %g %g %g", t->name, (double)y[1], (double)y[2], (double)y[3], (double)y[4],
          (double)y[5]);
}
/* what is not finite has to show: a run must be able to stop */
static void test_not_finite(run *t, const int64_t *arg) {
    const float bad[] = {NAN, INFINITY};
    (void)arg;
    for (int i = 0; i < 2; i++)
        for (int64_t at = 0; at < 2100; at += 300) {
            float *x = random_floats(t, 2100, -1, 1), logp = 0, lse = 0;
            int32_t target = 7;
            x[at] = bad[i];
            t->be->logprob(t->dev, &logp, &lse, x, 2100, &target, 1, 2100, 0);
            CHECK(!isfinite(lse), "%s: logit %lld is %g, lse is %g", t->name, (long long)at, (double)bad[i],
                  (double)lse);
            t->be->release(t->dev, t->blocks[--t->n_blocks]);
        }
}

/* ---- adamw: args count, steps, decay. Against the formula in double; and the bits of the plain op, where the vectors
 * have fused multiply-adds ---- */
static bool fused(const run *t) { return t->be != plain && strcmp(t->be->name, "cpu-generic") != 0; }
static void close_to(run *t, const char *what, const float *got, const double *want, int64_t n) {
    double worst = 0, scale = 1e-30;
    for (int64_t i = 0; i < n; i++)
        scale = fmax(scale, fabs(want[i])),
        worst = test_larger(worst, isnan(got[i]) ? INFINITY : fabs((double)got[i] - want[i]));
    tally("adamw", worst / scale, n);
    CHECK(worst <= 1e-6 * scale, "%s: %s: relative error %.3g", t->name, what, worst / scale);
}
static void test_adamw(run *t, const int64_t *arg) {
    const int64_t n = arg[0];
    float *w = random_floats(t, n, -1, 1), *m = floats(t, n, 0), *v = floats(t, n, 0);
    double *wd = as_doubles(t, w, n), *md = doubles(t, n), *vd = doubles(t, n);
    float *wp = copy_of(t, w, n), *mp = floats(t, n, 0), *vp = floats(t, n, 0);
    wrpo_adamw s = {.lr = 1e-2f,
                    .beta1 = 0.9f,
                    .beta2 = 0.999f,
                    .eps = 1e-8f,
                    .weight_decay = arg[2] ? 0.1f : 0,
                    .grad_scale = 0.25f};
    const double b1 = (double)s.beta1, b2 = (double)s.beta2;
    for (int64_t step = 1; step <= arg[1]; step++) {
        float *g = random_floats(t, n, -1, 1);
        s.correction1 = 1 - pow(b1, (double)step), s.correction2 = sqrt(1 - pow(b2, (double)step));
        t->be->adamw(t->dev, w, NULL, m, v, g, n, &s);
        plain->adamw(exact->dev, wp, NULL, mp, vp, g, n, &s);
        for (int64_t i = 0; i < n; i++) {
            double gi = (double)g[i] * (double)s.grad_scale;
            wd[i] *= 1 - (double)s.lr * (double)s.weight_decay;
            md[i] += (1 - b1) * (gi - md[i]);
            vd[i] = b2 * vd[i] + (1 - b2) * gi * gi;
            wd[i] -= (double)s.lr / s.correction1 * md[i] / (sqrt(vd[i]) / s.correction2 + (double)s.eps);
        }
    }
    close_to(t, "w", w, wd, n), close_to(t, "m", m, md, n), close_to(t, "v", v, vd, n);
    result(t, "adamw", "w", w, 1, n, n, wp, fused(t) ? 0 : 4e-7);
    result(t, "adamw", "m", m, 1, n, n, mp, fused(t) ? 0 : 4e-7);
    result(t, "adamw", "v", v, 1, n, n, vp, fused(t) ? 0 : 4e-7);
}

/* ---- what adamw keeps in fewer bits: args count, steps. Masters give the float weights to the bit; moments that are
   rounded at random stay right in the mean; what 8 bits cannot hold is off by less than one step of the code. ---- */
static void test_adamw_states(run *t, const int64_t *arg) {
    const int64_t n = arg[0], all = (n + WRPO_BLOCK - 1) / WRPO_BLOCK * WRPO_BLOCK;
    float *start = random_floats(t, all, -1, 1), *w = copy_of(t, start, all), *m = floats(t, all, 0),
          *v = floats(t, all, 0), *g[64];
    for (int64_t i = 0; i < arg[1]; i++) {
        g[i] = random_floats(t, all, -1, 1);
        for (int64_t k = 0; k < n; k++) g[i][k] = (k % 7 ? 0.3f : 0) + g[i][k] * (float)exp2((double)(k % 11) - 12.0);
    }
    wrpo_adamw s = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f, .grad_scale = 1};
    for (int kind = 0; kind < 4; kind++) {
        const wrpo_moments moments = kind ? (wrpo_moments)(kind - 1) : WRPO_MOMENTS_F32;
        const bool masters = kind > 0;
        uint16_t *high = block(t, (size_t)all * 2), *low = block(t, (size_t)all * 2);
        char *sm = block(t, wrpo_moments_bytes(moments, all)), *sv = block(t, wrpo_moments_bytes(moments, all));
        const size_t bytes = wrpo_moments_bytes(moments, all);
        void *plain_high = block(t, (size_t)all * 4), *plain_low = block(t, (size_t)all * 2),
             *plain_m = block(t, bytes), *plain_v = block(t, bytes);
        memset(sm, 0, bytes), memset(sv, 0, bytes), memset(plain_m, 0, bytes), memset(plain_v, 0, bytes);
        for (int64_t i = 0; i < all; i++) {
            uint32_t bits;
            memcpy(&bits, start + i, 4);
            high[i] = (uint16_t)((bits + 0x8000u) >> 16), low[i] = (uint16_t)bits;
        }
        memcpy(plain_high, masters ? (void *)high : (void *)start, (size_t)all * (masters ? 2 : 4)),
            memcpy(plain_low, low, (size_t)all * 2);
        for (int64_t step = 0; step < arg[1]; step++) {
            s.moments = moments, s.seed = wrpo__random64(1, (uint64_t)step, 2);
            s.correction1 = 1 - pow(0.9, (double)step + 1), s.correction2 = sqrt(1 - pow(0.999, (double)step + 1));
            if (masters) t->be->adamw(t->dev, high, low, sm, sv, g[step], n, &s);
            else t->be->adamw(t->dev, w, NULL, m, v, g[step], n, &s);
            plain->adamw(exact->dev, plain_high, masters ? plain_low : NULL, plain_m, plain_v, g[step], n, &s);
        }
        if (fused(t)) {
            const bool same = masters ? !memcmp(high, plain_high, (size_t)n * 2) &&
                                            !memcmp(low, plain_low, (size_t)n * 2) && !memcmp(sm, plain_m, bytes) &&
                                            !memcmp(sv, plain_v, bytes)
                                      : !memcmp(w, plain_high, (size_t)n * 4) && !memcmp(m, plain_m, (size_t)n * 4) &&
                                            !memcmp(v, plain_v, (size_t)n * 4);
            CHECK(same, "%s: %s%s: other bits than the plain op", t->name, wrpo_moments_name((int)moments),
                  masters ? " and masters" : "");
        }
        double worst = 0, drift = 0, moved = 0;
        int64_t different = 0;
        for (int64_t i = 0; i < n && masters; i++) {
            uint32_t bits = ((uint32_t)high[i] << 16) + (uint32_t)(int16_t)low[i];
            float x;
            memcpy(&x, &bits, 4);
            different += memcmp(&x, w + i, 4) != 0;
            worst = test_larger(worst, fabs((double)x - (double)w[i])), drift += (double)x - (double)w[i],
            moved += fabs((double)w[i] - (double)start[i]);
        }
        if (kind == 1)
            CHECK(different == 0, "%s: %lld of %lld masters differ from float weights", t->name, (long long)different,
                  (long long)n);
        if (kind >= 2) {
            CHECK(worst < (kind == 2 ? 0.05 : 0.5) * (double)arg[1] * 1e-4, "%s: %s: a weight is off by %.3g", t->name,
                  wrpo_moments_name(kind - 1), worst);
            CHECK(n < 1000 || fabs(drift) < 0.01 * moved, "%s: %s: weights drift by %.3g of %.3g", t->name,
                  wrpo_moments_name(kind - 1), drift, moved);
        }
    }
}
/* A cache: the last rows alone, their keys at other places, have the bits that they have in one pass. args H, G, d,
 * window */
static void test_decoding(run *t, const int64_t *arg) {
    const int64_t H = arg[0], G = arg[1], d = arg[2], P = 37, R = 21, n = P + R, far = 90;
    const wrpo_seg all[2] = {{0, P, 0, 0, 0, P}, {P, n, 0, P, P, n}};
    wrpo_attn a = {n, all, 2, H, G, d, H * d, G * d, H * d, arg[3], 0.3f, 0};
    float *q = random_floats(t, n * H * d, -2, 2), *k = random_floats(t, n * G * d, -2, 2),
          *v = random_floats(t, n * G * d, -1, 1);
    float *o = floats(t, n * H * d, NAN), *lse = floats(t, n * H, NAN), *o2 = floats(t, n * H * d, NAN),
          *lse2 = floats(t, n * H, NAN);
    float *k2 = floats(t, (far + R) * G * d, NAN), *v2 = floats(t, (far + R) * G * d, NAN);
    memcpy(k2, k, (size_t)(P * G * d) * 4), memcpy(k2 + far * G * d, k + P * G * d, (size_t)(R * G * d) * 4);
    memcpy(v2, v, (size_t)(P * G * d) * 4), memcpy(v2 + far * G * d, v + P * G * d, (size_t)(R * G * d) * 4);
    t->be->attention(t->dev, &a, o, lse, q, k, v);
    for (int64_t rows = 1; rows <= R; rows += 4) {
        const wrpo_seg one = {0, rows, 0, P, far, far + R};
        a.n = rows, a.segs = &one, a.n_segs = 1;
        t->be->attention(t->dev, &a, o2, lse2, q + (n - rows) * H * d, k2, v2);
        CHECK(!memcmp(o2, o + (n - rows) * H * d, (size_t)(rows * H * d) * 4) &&
                  !memcmp(lse2, lse + (n - rows) * H, (size_t)(rows * H) * 4),
              "%s: %lld rows against a cache have other bits", t->name, (long long)rows);
    }
    wrpo_seg many[70]; /* siblings: single rows at different places of their sequences, which go through the prefix
                          together */
    float *qs = floats(t, 70 * H * d, NAN), *os = floats(t, 70 * H * d, NAN), *ls = floats(t, 70 * H, NAN);
    for (int64_t i = 0; i < 70; i++) {
        const int64_t j = i * 8 % R;
        many[i] = i == 31 ? (wrpo_seg){i, i + 1, 0, 0, 0, 1}
                          : (wrpo_seg){i, i + 1, 0, P, far, far + j + 1}; /* one in between is somebody else's */
        memcpy(qs + i * H * d, q + (i == 31 ? 0 : P + j) * H * d, (size_t)(H * d) * 4);
    }
    a.n = a.n_segs = 70, a.segs = many;
    t->be->attention(t->dev, &a, os, ls, qs, k2, v2);
    for (int64_t i = 0; i < 70; i++) {
        const int64_t row = i == 31 ? 0 : P + i * 8 % R;
        CHECK(!memcmp(os + i * H * d, o + row * H * d, (size_t)(H * d) * 4) &&
                  !memcmp(ls + i * H, lse + row * H, (size_t)H * 4),
              "%s: sibling %lld has other bits", t->name, (long long)i);
    }
}

static void test_memory(const wrpo_backend *be) {
    wrpo_ctx *ctx = NULL;
    wrpo_desc desc = {.backend = be, .threads = 2};
    if (wrpo_open(&desc, &ctx) != WRPO_OK) { CHECK(false, "open"); return; }
    void *cpu = ctx->dev;
    char *p = be->alloc(cpu, 1000), *q = be->alloc(cpu, 1);
    CHECK(p && q && (uintptr_t)p % 64 == 0 && (uintptr_t)q % 64 == 0, "alignment");
    CHECK(be->alloc(cpu, SIZE_MAX) == NULL && be->alloc(cpu, SIZE_MAX - 100) == NULL, "sizes that do not fit");
    be->zero(cpu, p, 1000);
    be->put(cpu, q, "x", 1);
    be->copy(cpu, p + 999, q, 1);
    char got[2] = "?";
    be->get(cpu, got, p + 999, 1);
    CHECK(got[0] == 'x' && p[998] == 0, "zero, put, copy, get");
    be->release(cpu, p), be->release(cpu, q), be->release(cpu, NULL);
    wrpo_error why;
    CHECK(be->sync(cpu, &why) == WRPO_OK, "sync");
    wrpo_close(ctx);
}
static int64_t budget;
static void *limited(size_t n, void *user) { (void)user; return budget-- > 0 ? malloc(n) : NULL; }
static void unlimited(void *p, void *user) { (void)user; free(p); }

int main(void) {
    static const char *const levels[] = {"plain", "avx512", "avx2", "generic"};
    static const int64_t gemms[][3] = {{1, 1, 1},     {3, 17, 1},      {1, 129, 17},    {17, 3, 129},   {13, 31, 17},
                                       {14, 32, 385}, {129, 129, 129}, {6, 16, 800},    {129, 65, 400}, {3, 577, 769},
                                       {33, 47, 63},  {780, 40, 330},  {40, 100, 3000}, {130, 8, 64},   {5, 5, 0}};
    plain = wrpo_backend_find("plain");
    if (wrpo_open(&(wrpo_desc){.backend = plain}, &exact) ||
        wrpo_open(&(wrpo_desc){.backend = plain, .dtype = WRPO_DTYPE_BF16}, &rounded))
        return 2;
    CHECK(plain == wrpo_backend_plain() && !wrpo_backend_find("") && !wrpo_backend_find("cpu") &&
              !wrpo_backend_find("plain "),
          "names of backends");
    for (int l = 0; l < WRPO__COUNT(levels); l++) {
        const wrpo_backend *be = wrpo_backend_find(levels[l]);
        if (!be) { SKIP(1, "this machine does not run %s", levels[l]); continue; }
        const bool is_plain = be == plain;
        printf("%s\n", be->name);
        wrpo_ctx *ctx[WAYS];
        for (int i = 0; i < WAYS; i++) {
            wrpo_desc desc = {.threads = THREADS[i], .backend = be};
            if (wrpo_open(&desc, &ctx[i]) != WRPO_OK) return 2;
        }
        uint64_t seed = 1;
        ops = 0;
        memset(table, 0, sizeof table);
        for (int i = 0; i < WRPO__COUNT(gemms); i++)
            for (int64_t mm = 0; mm < 4; mm++)
                for (int64_t beta = 0; beta < 2; beta++) {
                    int64_t arg[6] = {gemms[i][0], gemms[i][1], gemms[i][2], mm, beta, i % 3 * 5};
                    char what[80];
                    snprintf(what, sizeof what, "gemm %lld x %lld x %lld, layout %lld, beta %lld", (long long)arg[0],
                             (long long)arg[1], (long long)arg[2], (long long)mm, (long long)beta);
                    each_way(what, seed++, test_gemm, arg, ctx);
                }
#define EACH(fn, what, ...) do { \
        static const int64_t args[][8] = __VA_ARGS__; \
        for (int i = 0; i < WRPO__COUNT(args); i++) { \
            char text[80]; \
            snprintf(text, sizeof text, "%s, case %d", what, i); \
            each_way(text, seed++, fn, args[i], ctx); \
        } \
    } while (0)
        EACH(test_gemm_exact, "gemm of exact sizes",
             {{1, 33, 31}, {5, 40, 65}, {20, 47, 33}, {47, 20, 33}, {40, 17, 5}});
        EACH(test_gemm_pairs, "gemm in bfloat16",
             {{1, 1, 1, WRPO_MM_NT, 0, 0},
              {3, 17, 129, WRPO_MM_NT, 1, 3},
              {33, 47, 63, WRPO_MM_NT, 1, 3},
              {15, 47, 63, WRPO_MM_NT, 0, 1},
              {129, 70, 33, WRPO_MM_NN, 0, 1},
              {17, 129, 1300, WRPO_MM_NT_FLOAT, 0, 0},
              {45, 33, 97, WRPO_MM_TN, 1, 2},
              {130, 3, 700, WRPO_MM_TN, 0, 5},
              {31, 100, 65, WRPO_MM_NN, 1, 0},
              {600, 40, 64, WRPO_MM_NT, 0, 0}});
        EACH(test_rows, "rows", {{1, 1, 1, 0}, {3, 17, 2, 1}, {129, 5, 3, 3}, {17, 129, 40, 0}, {300, 577, 7, 15}});
        EACH(test_rmsnorm, "rmsnorm",
             {{1, 1, 1, 0, 0, 0},
              {3, 1, 17, 5, 1, 0},
              {17, 3, 33, 2, 0, 0},
              {129, 1, 577, 0, 0, 1},
              {40, 9, 64, 7, 0, 1},
              {65, 2, 31, 1, 1, 2},
              {70, 1, 129, 0, 0, 2}});
        EACH(test_rope, "rope", {{1, 1, 2, 0}, {3, 5, 6, 3}, {17, 9, 64, 1}, {129, 2, 34, 0}, {40, 3, 512, 0}});
        EACH(test_attention, "attention",
             {/* H, G, d, window, softcap, extra, layout */
              {1, 1, 1, 0, 0, 0, 0},
              {3, 1, 5, 0, 0, 3, 1},
              {4, 2, 8, 0, 0, 0, 3},
              {4, 4, 10, 3, 0, 1, 3},
              {2, 1, 6, 1, 0, 0, 3},
              {5, 1, 7, 0, 2, 0, 3},
              {9, 3, 64, 0, 0, 0, 4},
              {9, 3, 64, 50, 0, 0, 4},
              {2, 2, 33, 20, 5, 2, 4},
              {8, 2, 96, 0, 0, 5, 2},
              {4, 1, 128, 0, 0, 0, 4},
              {2, 1, 512, 0, 0, 0, 2},
              {3, 3, 17, 0, 0, 0, 5},
              {6, 2, 64, 0, 0, 0, 5},
              {4, 2, 40, 130, 0, 0, 5},
              {2, 1, 64, 0, 30, 0, 5},
              {48, 1, 16, 0, 0, 0, 4},
              {33, 1, 9, 7, 0, 0, 2}});
        EACH(test_attention_pairs, "attention in bfloat16",
             {/* H, G, d, window, softcap, extra, layout */
              {1, 1, 1, 0, 0, 0, 0},
              {3, 1, 5, 0, 0, 3, 1},
              {4, 2, 8, 0, 0, 0, 3},
              {4, 4, 10, 3, 0, 1, 3},
              {2, 1, 6, 1, 0, 0, 3},
              {5, 1, 7, 0, 2, 0, 3},
              {9, 3, 64, 0, 0, 0, 4},
              {9, 3, 64, 50, 0, 0, 4},
              {2, 2, 33, 20, 5, 2, 4},
              {8, 2, 96, 0, 0, 5, 2},
              {4, 1, 128, 0, 0, 0, 4},
              {2, 1, 512, 0, 0, 0, 2},
              {3, 3, 17, 0, 0, 0, 5},
              {6, 2, 64, 0, 0, 0, 5},
              {4, 2, 40, 130, 0, 0, 5},
              {2, 1, 64, 0, 30, 0, 5},
              {48, 1, 16, 0, 0, 0, 4},
              {33, 1, 9, 7, 0, 0, 2}});
        EACH(test_sharing, "shared prompts", {{9, 3, 64, 0}, {4, 4, 17, 0}, {6, 2, 96, 60}});
        EACH(test_glu, "glu",
             {{1, 1, 0, 0, 0},
              {3, 17, 0, 0, 1},
              {17, 129, 0, 1, 1},
              {1, 3, 1, 0, 1},
              {17, 129, 1, 1, 0},
              {129, 1537, 0, 1, 1},
              {5, 1000, 1, 0, 1}});
        EACH(test_logprob, "logprob",
             {{1, 1, 0, 0, 5, 0},
              {3, 17, 0, 1, 5, 0},
              {17, 129, 0, 0, 10, 0},
              {5, 5003, 0, 1, 10, 0},
              {3, 49152, 0, 1, 10, 0},
              {7, 1027, 0, 0, 10000, 0},
              {4, 2050, 0, 1, 5, 3},
              {3, 3000, 0, 0, 5, 1500},
              {5, 1100, 30, 0, 40, 0},
              {5, 1100, 8, 1, 10, 0},
              {3, 1030, 30, 0, 40, 6}});
        EACH(test_exp, "exp", {{0}});
        EACH(test_not_finite, "not finite", {{0}});
        EACH(test_adamw, "adamw", {{1, 3, 0}, {17, 5, 1}, {40000, 3, 1}});
        EACH(test_adamw_states, "adamw states", {{1, 3}, {300, 7}, {40000, 20}});
        EACH(test_decoding, "decoding", {{9, 3, 64, 0}, {4, 4, 17, 30}, {6, 2, 96, 9}});
        if (!is_plain)
            EACH(test_gemm, "gemm in several pieces",
                 {/* of k and of blocks of A; of k of B; of columns; of rows */
                  {530, 540, 2100, WRPO_MM_NT, 1, 0},
                  {540, 530, 2100, WRPO_MM_TN, 1, 3},
                  {2700, 2650, 3, WRPO_MM_NN, 0, 0},
                  {2650, 2700, 3, WRPO_MM_NT, 0, 0},
                  {60, 48, 20001, WRPO_MM_NT, 1, 1}});
        if (!is_plain)
            EACH(test_gemm_pairs, "gemm in bfloat16 in several pieces",
                 {{530, 540, 4200, WRPO_MM_NT, 1, 0}, {2700, 2650, 5, WRPO_MM_TN, 0, 0}});
        EACH(test_rmsnorm, "rmsnorm with a large eps",
             {{1, 1, 1, 0, 0, 0, 1}, {3, 17, 1, 1, 1, 0, 1}, {129, 1, 3, 0, 0, 2, 1}, {17, 3, 17, 0, 1, 0, 1}});
        EACH(test_attention, "attention of few elements",
             {{1, 1, 1, 0, 0, 0, 3}, {2, 1, 17, 0, 0, 0, 2}, {3, 3, 3, 5, 2, 1, 2}, {4, 2, 3, 40, 0, 0, 2}});
        if (is_plain) EACH(test_linear, "linear", {{1, 1, 1}, {3, 17, 3}, {17, 129, 18}, {129, 3, 64}, {40, 33, 129}});
        if (is_plain) EACH(test_slopes, "slopes", {{0}});
        test_memory(be);
        for (int i = 0; i < WAYS; i++) wrpo_close(ctx[i]);
        if (is_plain) printf("  gradients within %.1e of finite differences\n", worst_difference);
        for (int i = 0; i < ops; i++)
            printf("  %-16s worst relative error %.1e over %lld numbers\n", table[i].op, table[i].worst,
                   (long long)table[i].numbers);
    }
    for (int64_t i = 0; i < 32; i++) {   /* open survives every allocation that fails */
        static int opened[2];
        wrpo_desc desc = {.threads = 2, .memory = {limited, unlimited, NULL}, .backend = i % 2 ? plain : NULL};
        wrpo_ctx *ctx = NULL;
        budget = i / 2;
        wrpo_result r = wrpo_open(&desc, &ctx);
        CHECK((r == WRPO_OK) == (ctx != NULL) && (r == WRPO_OK || r == WRPO_E_MEMORY), "open with %lld allocations: %d",
              (long long)i / 2, (int)r);
        wrpo_close(ctx);
        if (r == WRPO_OK && !opened[i % 2]++) CHECK(i / 2 > 2, "open needs memory");
        CHECK(i < 30 || opened[i % 2], "open never succeeds");
    }
    wrpo_close(exact), wrpo_close(rounded);
    return test_end("30_ops");
}
