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
#endif
