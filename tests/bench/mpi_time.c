/* Linked beside the program, through MPI's own profiling interface: at the end each rank says on stderr how long it was
   in MPI, and its resident memory at most. Moved: gradients to their shards (MPI_Sendrecv) and weights from them
   (MPI_Allgather of 64 KiB or more); waited: in all other calls, by which the ranks agree. */
#include <mpi.h>
#include <stdio.h>
#include <sys/resource.h>
static double begun, moved, waited;
#define TIMED(sum, call) \
    const double before = MPI_Wtime(); \
    const int code = call; \
    sum += MPI_Wtime() - before; \
    return code
int MPI_Init_thread(int *argc, char ***argv, int want, int *found) {
    const int code = PMPI_Init_thread(argc, argv, want, found);
    begun = MPI_Wtime();
    return code;
}
int MPI_Sendrecv(const void *from, int n, MPI_Datatype type, int to, int tag, void *x, int x_n, MPI_Datatype x_type,
                 int source, int x_tag, MPI_Comm comm, MPI_Status *status) {
    TIMED(moved, PMPI_Sendrecv(from, n, type, to, tag, x, x_n, x_type, source, x_tag, comm, status));
}
int MPI_Allgather(const void *from, int n, MPI_Datatype type, void *x, int x_n, MPI_Datatype x_type, MPI_Comm comm) {
    double *sum = x_n < 65536 ? &waited : &moved;
    TIMED(*sum, PMPI_Allgather(from, n, type, x, x_n, x_type, comm));
}
int MPI_Allreduce(const void *from, void *x, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    TIMED(waited, PMPI_Allreduce(from, x, n, type, op, comm));
}
int MPI_Bcast(void *x, int n, MPI_Datatype type, int root, MPI_Comm comm) {
    TIMED(waited, PMPI_Bcast(x, n, type, root, comm));
}
int MPI_Finalize(void) {
    int rank;
    struct rusage used;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    getrusage(RUSAGE_SELF, &used);
    fprintf(stderr, "rank %d: %.2f s, moved %.3f s, waited %.3f s, resident %ld MiB\n", rank, MPI_Wtime() - begun,
            moved, waited, used.ru_maxrss / 1024);
    return PMPI_Finalize();
}
