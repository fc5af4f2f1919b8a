/* Products of bfloat16 by AMX tiles, on any machine with AVX-512 and its bfloat16: the six tile instructions are
   functions here, as the manual of the instruction set defines them, and check their own use (a configuration before
   anything else, whole rows in memory). */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <string.h>
static _Thread_local struct { int configured; float f[8][16][16]; } tiles_unit;
static int misuses;
static void tile_config(const void *p) {
    const unsigned char *b = p;
    tiles_unit.configured = b[0] == 1 && b[1] == 0;
    for (int t = 0; t < 8; t++)
        tiles_unit.configured = tiles_unit.configured && b[16 + 2 * t] == 64 && b[17 + 2 * t] == 0 && b[48 + t] == 16;
    for (int t = 0; t < 8; t++)
        for (int i = 0; i < 256; i++) tiles_unit.f[t][i / 16][i % 16] = 1e30f;      /* what was not loaded shows */
}
static void tile_use(void) { if (!tiles_unit.configured) misuses++; }
static void tile_load(int t, const void *p, int64_t stride) {
    tile_use();
    for (int r = 0; r < 16; r++) memcpy(tiles_unit.f[t][r], (const char *)p + r * stride, 64);
}
static void tile_store(int t, void *p, int64_t stride) {
    tile_use();
    for (int r = 0; r < 16; r++) memcpy((char *)p + r * stride, tiles_unit.f[t][r], 64);
}
static float tile_part(float word, int high) {
    uint32_t bits;
    memcpy(&bits, &word, 4);
    bits = high ? bits & 0xFFFF0000u : bits << 16;
    memcpy(&word, &bits, 4);
    return word;
}
static void tile_dot(int c, int a, int b) {
    tile_use();
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            float low = 0, high = 0;
            for (int k = 0; k < 16; k++) {
                low += tile_part(tiles_unit.f[a][i][k], 0) * tile_part(tiles_unit.f[b][k][j], 0);
                high += tile_part(tiles_unit.f[a][i][k], 1) * tile_part(tiles_unit.f[b][k][j], 1);
            }
            tiles_unit.f[c][i][j] += low + high;
        }
}
#define WRPO__TILE_CONFIG(p) tile_config(p)
#define WRPO__TILE_RELEASE() (tiles_unit.configured = 0)
#define WRPO__TILE_ZERO(t) (tile_use(), memset(tiles_unit.f[t], 0, sizeof tiles_unit.f[t]))
#define WRPO__TILE_LOAD(t, p, stride) tile_load(t, p, stride)
#define WRPO__TILE_STORE(t, p, stride) tile_store(t, p, stride)
#define WRPO__TILE_DOT(c, a, b) tile_dot(c, a, b)
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"

static double worst;
static float uniform(uint64_t stream, int64_t i) {
    return (float)((double)(wrpo__random64(5, stream, (uint64_t)i) >> 11) / 9007199254740992.0 * 2 - 1);
}
static uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
static void check(wrpo_ctx **ctx, wrpo_mm mm, int64_t m, int64_t n, int64_t k, int64_t extra, bool add) {
    const bool bt = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT, at = mm == WRPO_MM_TN;
    const int64_t lda = (at ? m : k) + extra, ldb = (bt ? k : n) + extra, ldc = n + extra, na = (at ? k : m) * lda,
                  nb = (bt ? n : k) * ldb;
    /* exact sizes: a sanitizer sees a read beyond */
    float *a = malloc((size_t)na * 4), *b = malloc((size_t)nb * 4), *c[2], *row = malloc((size_t)n * 4);
    uint16_t *h = malloc((size_t)nb * 2);
    for (int64_t i = 0; i < na; i++) a[i] = uniform(1, i);
    for (int64_t i = 0; i < nb; i++) h[i] = half_of(uniform(2, i)), b[i] = at ? uniform(2, i) : wrpo__float_of(h[i]);
    for (int t = 0; t < 2; t++) {
        c[t] = malloc((size_t)(m * ldc) * 4);
        for (int64_t i = 0; i < m * ldc; i++) c[t][i] = add && i % ldc < n ? uniform(3, i) : NAN;
        ctx[t]->desc.backend->gemm(ctx[t]->dev, mm, c[t], ldc, a, lda, at ? (void *)b : (void *)h, ldb,
                                   at ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16, m, n, k, add);
    }
    if (bt) {                          /* a kept weight gives the same bits, also when the weight itself is spoiled */
        const wrpo_backend *be = ctx[0]->desc.backend;
        void *to = be->alloc(ctx[0]->dev, be->keep_bytes(ctx[0]->dev, WRPO_DTYPE_BF16, n, k));
        float *kept = malloc((size_t)(m * ldc) * 4);
        for (int64_t i = 0; i < m * ldc; i++) kept[i] = add && i % ldc < n ? uniform(3, i) : NAN;
        be->keep(ctx[0]->dev, to, h, ldb, WRPO_DTYPE_BF16, n, k);
        memset(h, 0xFF, (size_t)nb * 2);
        be->gemm(ctx[0]->dev, mm, kept, ldc, a, lda, h, ldb, WRPO_DTYPE_BF16, m, n, k, add);
        be->forget(ctx[0]->dev);
        int64_t other = 0;
        for (int64_t i = 0; i < m; i++) other += memcmp(kept + i * ldc, c[0] + i * ldc, (size_t)n * 4) != 0;
        CHECK(other == 0, "%lld x %lld x %lld: kept, %lld rows have other bits", (long long)m, (long long)n,
              (long long)k, (long long)other);
        for (int64_t i = 0; i < nb; i++) h[i] = half_of(uniform(2, i));
        be->release(ctx[0]->dev, to);
        free(kept);
    }
    double error = 0, scale = 0;
    int64_t touched = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < ldc; j++) {
            if (j >= n) { touched += !isnan(c[0][i * ldc + j]); continue; }
            double want = add ? (double)uniform(3, i * ldc + j) : 0;
            for (int64_t l = 0; l < k; l++)
                want += (double)wrpo__float_of(half_of(a[at ? l * lda + i : i * lda + l])) *
                    (double)wrpo__float_of(half_of(b[bt ? j * ldb + l : l * ldb + j]));
            error = test_larger(error, fabs((double)c[0][i * ldc + j] - want)), scale = fmax(scale, fabs(want));
        }
    worst = test_larger(worst, error / scale);
    CHECK(error <= 2e-6 * scale && !touched,
          "layout %d, %lld x %lld x %lld: off by %.3g of %.3g, %lld written between rows", (int)mm, (long long)m,
          (long long)n, (long long)k, error, scale, (long long)touched);
    CHECK(!memcmp(c[0], c[1], (size_t)(m * ldc) * 4), "layout %d, %lld x %lld x %lld: threads change bits", (int)mm,
          (long long)m, (long long)n, (long long)k);
    for (int64_t r = 0; r < m && !at && !add; r += 1 + m / 7) {
        ctx[0]->desc.backend->gemm(ctx[0]->dev, mm, row, n, a + r * lda, lda, h, ldb, WRPO_DTYPE_BF16, 1, n, k, 0);
        CHECK(!memcmp(row, c[0] + r * ldc, (size_t)n * 4), "row %lld alone has other bits", (long long)r);
    }
    free(a), free(b), free(h), free(c[0]), free(c[1]), free(row);
}
int main(void) {
    wrpo_ctx *ctx[2];
    for (int t = 0; t < 2; t++)
        if (wrpo_open(&(wrpo_desc){.threads = 1 + 2 * t, .dtype = WRPO_DTYPE_BF16}, &ctx[t]) != WRPO_OK) return 2;
    if (!((wrpo__cpu *)ctx[0]->dev)->tiles) SKIP(1, "no AVX512_BF16 on this machine, which packs for the tiles");
    else {
        static const int64_t shapes[][3] = {{1, 1, 1},      {3, 17, 5},      {16, 32, 32},
                                            {17, 33, 31},   {33, 65, 129},   {129, 70, 640},
                                            {70, 129, 700}, {40, 300, 1500}, {700, 20, 33}};
        for (int i = 0; i < 9; i++)
            for (int mm = WRPO_MM_NT; mm <= WRPO_MM_TN; mm++)
                for (int more = 0; more < 2; more++)
                    check(ctx, (wrpo_mm)mm, shapes[i][0], shapes[i][1], shapes[i][2], more * 3, more);
        CHECK(misuses == 0, "%d uses of tiles without a configuration", misuses);
        printf("worst relative error %.2g\n", worst);
    }
    wrpo_close(ctx[0]), wrpo_close(ctx[1]);
    return test_end("tiles");
}
