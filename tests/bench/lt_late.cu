/* cuBLASLt, found when a program runs and not when it is linked, so that one binary runs with and without it: the
   functions that wrpo_cuda.cu calls, each of which looks up the library's. WRPO_CUBLASLT names the file to try first.
   Without the library cublasLtCreate fails, and a context with products by cuBLASLt cannot be opened. gpu.sh links
   this. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>
static void *library(void) {
    static void *found;
    static int asked;
    const char *const names[] = {getenv("WRPO_CUBLASLT"), "libcublasLt.so.13", "libcublasLt.so.12"};
    for (size_t i = 0; i < sizeof names / sizeof *names && !found && !asked; i++)
        if (names[i] && *names[i]) found = dlopen(names[i], RTLD_NOW);
    asked = 1;
    return found;
}
#define LATE(name, parameters, ...) \
    cublasStatus_t CUBLASWINAPI name parameters { \
        static cublasStatus_t (*f) parameters; \
        if (!f && library()) *(void **)&f = dlsym(library(), #name); \
        return f ? f(__VA_ARGS__) : CUBLAS_STATUS_NOT_INITIALIZED; \
    }
LATE(cublasLtCreate, (cublasLtHandle_t *handle), handle)
LATE(cublasLtDestroy, (cublasLtHandle_t handle), handle)
LATE(cublasLtMatmulDescCreate, (cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale), d, compute,
     scale)
LATE(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t d), d)
LATE(cublasLtMatmulDescSetAttribute, (cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const void *x,
                                      size_t bytes), d, attribute, x, bytes)
LATE(cublasLtMatrixLayoutCreate, (cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t cols,
                                  int64_t ld), l, type, rows, cols, ld)
LATE(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t l), l)
LATE(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t *p), p)
LATE(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t p), p)
LATE(cublasLtMatmulPreferenceSetAttribute, (cublasLtMatmulPreference_t p,
     cublasLtMatmulPreferenceAttributes_t attribute, const void *x, size_t bytes), p, attribute, x, bytes)
LATE(cublasLtMatmulAlgoGetHeuristic, (cublasLtHandle_t handle, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
     cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to, cublasLtMatmulPreference_t p,
     int asked, cublasLtMatmulHeuristicResult_t results[], int *found), handle, d, a, b, c, to, p, asked, results,
     found)
LATE(cublasLtMatmul, (cublasLtHandle_t handle, cublasLtMatmulDesc_t d, const void *alpha, const void *a,
     cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
     cublasLtMatrixLayout_t c_layout, void *to, cublasLtMatrixLayout_t to_layout, const cublasLtMatmulAlgo_t *algo,
     void *work, size_t work_bytes, cudaStream_t stream), handle, d, alpha, a, a_layout, b, b_layout, beta, c, c_layout,
     to, to_layout, algo, work, work_bytes, stream)
