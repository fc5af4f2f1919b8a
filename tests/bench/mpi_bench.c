/* What a network does with the two messages of a step: mpicc -O2 -DWRPO_MPI -I.. bench/mpi_bench.c -fopenmp -lm
   mpirun -np 2 ./a.out prints alpha, seconds of an empty message, and beta, bytes a second out of a rank. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
enum { FLOATS = 1 << 21, TRIES = 15 };
int main(void) {
    wrpo_group g;
    wrpo_error why;
    if (wrpo_mpi_open(&g, &why)) return 1;
    float *x = calloc((size_t)g.ranks * FLOATS, sizeof *x), *y = calloc((size_t)g.ranks * FLOATS, sizeof *y);
    double best[2] = {1e9, 1e9};
    if (!x || !y) return 1;
    for (int i = 0; i < TRIES; i++)
        for (int large = 0; large < 2; large++) {
            int64_t gate = 0;
            g.most(g.self, &gate, &why);
            const double begin = wrpo__now();
            g.exchange(g.self, NULL, y, x, FLOATS, large ? FLOATS : 1, &why);
            const double took = wrpo__now() - begin;
            if (took < best[large]) best[large] = took;
        }
    const double messages = g.ranks - 1, bytes = messages * (double)FLOATS * sizeof *x;
    if (g.rank == 0 && g.ranks > 1) printf("%.3g %.3g\n", best[0] / messages, bytes / (best[1] - best[0]));
    free(x);
    free(y);
    wrpo_mpi_close(&g);
    return 0;
}
