/* An allocator that counts what is held, and fails at call number fail_at (0: never). After wrpo.h. */
#ifndef WRPO_METER_H
#define WRPO_METER_H
#include <stdlib.h>
typedef struct { int64_t held, calls, fail_at; } meter;
static void *meter_alloc(size_t n, void *user) {
    meter *m = user;
    if (++m->calls == m->fail_at) return NULL;
    void *p = malloc(n);
    m->held += p != NULL;
    return p;
}
static void meter_free(void *p, void *user) { ((meter *)user)->held--; free(p); }
#endif
