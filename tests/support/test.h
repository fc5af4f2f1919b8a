/* The tests' few words. Every test program prints one line "name: N passed, N failed, N skipped" and exits 1 on
   failure. */
#ifndef WRPO_TEST_H
#define WRPO_TEST_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int test_passed, test_failed, test_skipped;
#define CHECK(ok, ...) \
    do { \
        if (ok) test_passed++; \
        else { \
            test_failed++; \
            printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #ok); \
            printf(__VA_ARGS__); \
            printf("\n"); \
        } \
    } while (0)
#define SKIP(n, ...) (test_skipped += (n), printf("skip: "), printf(__VA_ARGS__), printf("\n"))
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };              /* everything takes ten times as long */
#else
enum { SANITIZED = 0 };
#endif
/* The larger error of two. NaN is larger than any number, and stays: fmax(worst, NaN) is worst. */
static inline double test_larger(double worst, double error) {
    if (isnan(worst) || isnan(error)) return NAN;
    return worst > error ? worst : error;
}
static inline int test_end(const char *name) {
    printf("%s: %d passed, %d failed, %d skipped\n", name, test_passed, test_failed, test_skipped);
    return test_failed ? 1 : 0;
}
/* Path of a file in the shared data folder, or NULL where that folder is absent. */
static inline const char *test_shared(const char *name) {
    static char path[8][512];
    static int turn;
    const char *dir = getenv("WRPO_SHARED");
    char *p = path[turn++ & 7];
    snprintf(p, sizeof path[0], "%s/%s", dir && *dir ? dir : "../../shared/data", name);
    FILE *f = fopen(p, "rb");
    if (!f) return NULL;
    fclose(f);
    return p;
}
/* For tests of private functions: the statement that follows runs inside an entry of the library, as in WRPO__CALL. It
   must not be left by break or return. End with wrpo__end(&wrpo__entry). */
#define TEST_TRY(context, new_arena, is_temporary) \
    wrpo__frame wrpo__entry; \
    if (wrpo__begin(&wrpo__entry, context, new_arena, is_temporary) && setjmp(wrpo__entry.jump) == 0) \
        for (bool once = true; once; once = false, wrpo__entry.failed = false)
#endif
