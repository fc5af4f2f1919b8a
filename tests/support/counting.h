/* An allocator that counts, and fails at call number fail_at (-1: never). After wrpo.h. */
#ifndef WRPO_COUNTING_H
#define WRPO_COUNTING_H
#include <stdlib.h>
static int64_t live, calls, fail_at = -1;
static void *counting_alloc(size_t n, void *user) {
    (void)user;
    if (calls++ == fail_at) return NULL;
    live++;
    return malloc(n);
}
static void counting_free(void *p, void *user) { (void)user; live--; free(p); }
#ifdef WRPO_IMPLEMENTATION
/* The bytes that a context holds beside Unicode's tables, which stay with it: they are freed here. */
static inline size_t bytes_left(wrpo_ctx *ctx) {
    wrpo__unicode *u = ctx->unicode;
    if (!u) return ctx->bytes;
    stbds_arrfree(u->parts);
    stbds_arrfree(u->wholes);
    wrpo__block_free(u);
    ctx->unicode = NULL;
    return ctx->bytes;
}
#endif
#endif
