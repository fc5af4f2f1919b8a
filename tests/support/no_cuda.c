/* In place of wrpo_cuda.cu where there is no C++ compiler to run its kernels on the host: the tests of devices skip. */
#include "wrpo.h"
const wrpo_backend *wrpo_backend_cuda(void) { return NULL; }
