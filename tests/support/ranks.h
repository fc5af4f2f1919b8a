/* A wrpo_group of threads, for tests: what MPI does between processes, with a barrier. After wrpo.h. */
#ifndef WRPO_RANKS_H
#define WRPO_RANKS_H
#include <pthread.h>
#include <string.h>
enum { MOST_RANKS = 8 };
typedef struct crew {
    int ranks;
    pthread_barrier_t gate;
    const void *at[MOST_RANKS];      /* what each rank lets the others read */
    int64_t value[MOST_RANKS];
    int64_t moved[MOST_RANKS];       /* bytes that each has read from the others */
    int64_t calls, breaks_at;        /* exchange and gather calls of rank 0; the one that fails, from 1; 0: none */
} crew;
typedef struct mate { crew *of; int rank; void (*work)(struct mate *m); wrpo_group group; void *user; } mate;

static inline wrpo_result crew_most(void *self, int64_t *x, wrpo_error *why) {
    mate *m = self;
    (void)why;
    m->of->value[m->rank] = *x;
    pthread_barrier_wait(&m->of->gate);
    for (int i = 0; i < m->of->ranks; i++) *x = m->of->value[i] > *x ? m->of->value[i] : *x;
    pthread_barrier_wait(&m->of->gate);
    return WRPO_OK;
}
static inline wrpo_result crew_broadcast(void *self, void *p, size_t n, int from, wrpo_error *why) {
    mate *m = self;
    (void)why;
    m->of->at[m->rank] = p;
    pthread_barrier_wait(&m->of->gate);
    if (m->rank != from) memcpy(p, m->of->at[from], n);
    pthread_barrier_wait(&m->of->gate);
    return WRPO_OK;
}
static inline bool crew_breaks(mate *m, wrpo_error *why) {     /* the same answer on all ranks */
    if (m->rank == 0) m->of->calls++;
    pthread_barrier_wait(&m->of->gate);
    const bool breaks = m->of->breaks_at && m->of->calls == m->of->breaks_at;
    if (breaks) snprintf(why->text, sizeof why->text, "the cable is out");
    return breaks;
}
static inline wrpo_result crew_exchange(void *self, void *dev, float *parts, const float *x, int64_t stride, int64_t n,
                                        wrpo_error *why) {
    mate *m = self;
    (void)dev;
    if (crew_breaks(m, why)) return WRPO_E_DEVICE;
    m->of->at[m->rank] = x;
    pthread_barrier_wait(&m->of->gate);
    for (int i = 0; i < m->of->ranks; i++)
        memcpy(parts + i * n, (const float *)m->of->at[i] + m->rank * stride, (size_t)n * sizeof *x);
    m->of->moved[m->rank] += (m->of->ranks - 1) * n * (int64_t)sizeof *x;
    pthread_barrier_wait(&m->of->gate);
    return WRPO_OK;
}
static inline wrpo_result crew_gather(void *self, void *dev, void *x, size_t n, wrpo_error *why) {
    mate *m = self;
    if (dev && crew_breaks(m, why)) return WRPO_E_DEVICE;
    m->of->at[m->rank] = x;
    pthread_barrier_wait(&m->of->gate);
    for (int i = 0; i < m->of->ranks; i++)
        if (i != m->rank) memcpy((char *)x + (size_t)i * n, (const char *)m->of->at[i] + (size_t)i * n, n);
    if (dev) m->of->moved[m->rank] += (m->of->ranks - 1) * (int64_t)n;
    pthread_barrier_wait(&m->of->gate);
    return WRPO_OK;
}
static inline void *crew_thread(void *p) {
    mate *m = p;
    m->work(m);
    return NULL;
}
/* work on every rank, each with a group of its own (device: for backends whose memory is the host's) */
static inline void crew_run(crew *c, int ranks, bool device, void (*work)(mate *m), void *user) {
    pthread_t threads[MOST_RANKS];
    mate mates[MOST_RANKS];
    c->ranks = ranks;
    pthread_barrier_init(&c->gate, NULL, (unsigned)ranks);
    for (int i = 0; i < ranks; i++) {
        mates[i] = (mate){.of = c, .rank = i, .work = work, .user = user};
        mates[i].group = (wrpo_group){.rank = i, .ranks = ranks, .local = i, .locals = ranks, .device = device,
                                      .self = &mates[i], .most = crew_most,
                                      .broadcast = crew_broadcast, .exchange = crew_exchange, .gather = crew_gather};
        pthread_create(&threads[i], NULL, crew_thread, &mates[i]);
    }
    for (int i = 0; i < ranks; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&c->gate);
}
#endif
