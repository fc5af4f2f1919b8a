/* The library, compiled once for all tests. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
