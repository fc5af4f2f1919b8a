/* What the group of MPI moves when it is larger than a message: bytes in pieces. With an argument, that many bytes as
   well, which -DWRPO__MPI_MOST=1073741824 moves in messages of the usual size: mpirun -np 2 mpi_pieces 2200000000 */
#ifndef WRPO__MPI_MOST
#define WRPO__MPI_MOST 64
#endif
#define WRPO_MPI
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
enum { MOST = 500 };
static unsigned char byte_of(int rank, size_t i) { return (unsigned char)((size_t)rank * 37 + i * 11 + i / 251); }
static float float_of(int from, int to, size_t i) { return (float)(from * 1000 + to) + (float)i / 8192; }
static int pieces(const wrpo_group *g, size_t n) {
    wrpo_error why = {0};
    int bad = 0;
    unsigned char *x = malloc((size_t)g->ranks * n + 1);
    float *from = malloc((size_t)g->ranks * (n + 3) * sizeof *from);
    float *to = malloc((size_t)g->ranks * n * sizeof *to + 1);
    for (size_t i = 0; i < n; i++) x[i] = byte_of(1, i);
    if (g->rank != 1) memset(x, 0, n);
    bad += g->broadcast(g->self, x, n, 1, &why) != WRPO_OK;
    for (size_t i = 0; i < n; i++) bad += x[i] != byte_of(1, i);
    for (size_t i = 0; i < n; i++) x[(size_t)g->rank * n + i] = byte_of(g->rank, i);
    bad += g->gather(g->self, NULL, x, n, &why) != WRPO_OK;
    for (int rank = 0; rank < g->ranks; rank++)
        for (size_t i = 0; i < n; i++) bad += x[(size_t)rank * n + i] != byte_of(rank, i);
    for (int rank = 0; rank < g->ranks; rank++)        /* what this rank has for each */
        for (size_t i = 0; i < n; i++) from[(size_t)rank * (n + 3) + i] = float_of(g->rank, rank, i);
    bad += g->exchange(g->self, NULL, to, from, (int64_t)n + 3, (int64_t)n, &why) != WRPO_OK;
    for (int rank = 0; rank < g->ranks; rank++)
        for (size_t i = 0; i < n; i++) bad += to[(size_t)rank * n + i] != float_of(rank, g->rank, i);
    free(x);
    free(from);
    free(to);
    return bad;
}
int main(int argc, char **argv) {
    wrpo_group g;
    wrpo_error why;
    int bad = 0;
    if (wrpo_mpi_open(&g, &why)) return 1;
    for (size_t n = 0; n < MOST; n = n * 5 / 4 + 1) bad += pieces(&g, n);
    if (argc > 1) {
        const size_t n = (size_t)atoll(argv[1]);
        unsigned char *x = malloc(n);
        if (!x) return 1;
        for (size_t i = 0; i < n; i++) x[i] = g.rank ? 0 : byte_of(0, i);
        bad += g.broadcast(g.self, x, n, 0, &why) != WRPO_OK;
        for (size_t i = 0; i < n; i++) bad += x[i] != byte_of(0, i);
        free(x);
    }
    printf(bad ? "%d elements are wrong\n" : "whole\n", bad);
    wrpo_mpi_close(&g);
    return bad != 0;
}
