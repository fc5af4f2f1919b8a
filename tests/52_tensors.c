/* safetensors: every rule of the format refused and kept, shard indexes, conversions over all bit patterns, saves that
   load back, split, fail half-way, run out of memory, and never leave a mixture. Writes under TMPDIR or tmp/. */
#define WRPO_IMPLEMENTATION
#define rename test_rename           /* the steps of a save, between which a process may die: see test_killed */
#define remove test_remove
#define fsync test_fsync
#include "wrpo.h"
#include "support/test.h"
#include "support/meter.h"
#include <fcntl.h>
#include <signal.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

static int steps_left = -1;          /* the process dies before step 0; negative: never */
static void step(void) { if (steps_left >= 0 && steps_left-- == 0) _exit(9); }
static int synced, renamed;
int test_fsync(int fd) { synced++; return fcntl(fd, F_GETFD) < 0 ? -1 : 0; }        /* counted, not waited for */
int test_rename(const char *from, const char *to) { step(); renamed++; return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int test_remove(const char *path) { step(); return unlink(path); }

static char last_log[1024];
static void logger(wrpo_level level, const char *text, void *user) {
    (void)user;
    snprintf(last_log, sizeof last_log, "%d %s", (int)level, text);
}

static meter memory;
static wrpo_ctx *ctx;
static char tmp[512];
static const char *why(void) { return wrpo_last_error(ctx)->text; }

/* ---- files ---- */
static char *in_tmp(const char *name) {
    static char path[8][1024];
    static int turn;
    char *p = path[turn++ & 7];
    snprintf(p, sizeof path[0], "%s%s%s", tmp, *name ? "/" : "", name);
    return p;
}
static void put_file(const char *path, const void *p, size_t n) {
    /* a new file: some systems wait for the disk where an old one is cut */
    unlink(path);
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(p, 1, n, f) == n;
    if (f) ok = fclose(f) == 0 && ok;
    CHECK(ok, "%s cannot be written", path);
}
static size_t get_file(const char *path, char *out, size_t cap) {
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(out, 1, cap - 1, f) : 0;
    out[n] = 0;
    if (f) fclose(f);
    return n;
}
/* The names in a directory, sorted, each followed by a space; empties it if asked. */
static const char *list(const char *dir, bool empty) {
    static char text[1 << 14];
    char names[256][64];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d)) && n < 256;)
        if (e->d_name[0] != '.') snprintf(names[n++], sizeof names[0], "%.63s", e->d_name);
    if (d) closedir(d);
    qsort(names, (size_t)n, sizeof names[0], (int (*)(const void *, const void *))strcmp);
    text[0] = 0;
    for (int i = 0; i < n; i++) {
        char path[2048];
        strcat(strcat(text, names[i]), " ");
        snprintf(path, sizeof path, "%s/%.63s", dir, names[i]);
        if (empty) { if (wrpo__disk_is_dir(path)) rmdir(path); else remove(path); }
    }
    return text;
}
/* N, the header, then n bytes of data 0, 1, 2, ... */
static void put_tensors(const char *path, const char *header, size_t n) {
    size_t size = strlen(header);
    unsigned char *p = malloc(8 + size + n);
    for (int i = 0; i < 8; i++) p[i] = (unsigned char)(size >> 8 * i);
    memcpy(p + 8, header, size);
    for (size_t i = 0; i < n; i++) p[8 + size + i] = (unsigned char)i;
    put_file(path, p, 8 + size + n);
    free(p);
}
static void describe(const wrpo_tensors *t, char *out, size_t n) {      /* "a":F32:[2, 2] "b":... */
    size_t at = 0;
    out[0] = 0;
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *info = wrpo_tensors_at(t, i);
        at += (size_t)snprintf(out + at, n - at, "%s\"%s\":%s:[", i ? " " : "", info->name, info->dtype);
        for (int d = 0; d < info->ndim; d++)
            at += (size_t)snprintf(out + at, n - at, "%s%lld", d ? ", " : "", (long long)info->shape[d]);
        at += (size_t)snprintf(out + at, n - at, "]");
    }
}

/* ---- reading ---- */
static void test_shared_cases(void) {
    const char *table = test_shared("safetensors_cases/expected.tsv");
    FILE *f = table ? fopen(table, "r") : NULL;
    char line[1024], name[128], detail[2048];
    int seen = 0, absent = 0;
    if (!f) { SKIP(50, "no shared safetensors_cases"); return; }
    for (int row = 0; fgets(line, sizeof line, f); row++) {
        char *column[5] = {line};
        for (int i = 1; i < 5; i++) {
            column[i] = column[i - 1] ? strchr(column[i - 1], '\t') : NULL;
            if (column[i]) *column[i]++ = 0;
        }
        if (!row || !column[3]) continue;
        snprintf(name, sizeof name, "safetensors_cases/%.80s.safetensors", column[0]);
        const char *path = test_shared(name);
        if (!path) { absent++; continue; }
        wrpo_tensors *t;
        wrpo_result r = wrpo_tensors_open(ctx, path, &t);
        seen++;
        if (!strcmp(column[1], "accept")) CHECK(r == WRPO_OK, "%s: %s", column[0], why());
        else if (!strcmp(column[1], "reject")) CHECK(r == WRPO_E_FORMAT, "%s: accepted or %d", column[0], (int)r);
        else CHECK(r == WRPO_OK || r == WRPO_E_FORMAT || r == WRPO_E_UNSUPPORTED, "%s: %d", column[0], (int)r);
        if (r) {
            CHECK(!t && !strncmp(why(), path, strlen(path)) && strstr(why(), "want") && !strchr(why(), '\n'), "%s",
                  why());
        } else {
            describe(t, detail, sizeof detail);
            if (*column[3]) CHECK(!strcmp(detail, column[3]), "%s: %s, want %s", column[0], detail, column[3]);
        }
        wrpo_tensors_close(t);
    }
    fclose(f);
    CHECK(seen >= 40, "%d cases", seen);
    if (absent) SKIP(absent, "%d cases of expected.tsv have no file here", absent);
}

typedef struct { const char *header; size_t bytes; wrpo_result verdict; const char *says; } header_case;
static void test_headers(void) {
    static const header_case cases[] = {
        {"{}", 0, 0, ""},
        {" {} ", 0, 0, ""},
        {"{\"__metadata__\":{}}", 0, 0, ""},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1, 0, ""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,9223372036854775807,4],\"data_offsets\":[0,0]}}", 0, 0, ""},
        {"{\"b\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3, 0, ""},
        {"{}", 1, WRPO_E_FORMAT, "x.safetensors: want 0 bytes of data, found 1"},
        {"", 0, WRPO_E_FORMAT, "header:1:1: want a value, found the end"},
        {"[]", 0, WRPO_E_FORMAT, "header:1:1: the header: want an object, found an array of 0"},
        {"{}x", 0, WRPO_E_FORMAT, "header:1:3: want the end of the text, found 'x'"},
        {"{\"__metadata__\":null}", 0, WRPO_E_FORMAT, "__metadata__: want an object, found null"},
        {"{\"__metadata__\":{\"a\":1}}", 0, WRPO_E_FORMAT, "header:1:22: a: want a string, found 1"},
        {"{\"a\":5}", 0, WRPO_E_FORMAT, "a: want an object, found 5"},
        {"{\"a\":[\"F32\",[1],[0,4]]}", 4, WRPO_E_FORMAT,
         "a: want an object, found an array of 3"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, WRPO_E_FORMAT,
         "x.safetensors: a:1:6: data_offsets: want an array, found no such key"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT, "dtype: want a string, found no such key"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "shape: want an array, found no such key"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"note\":0}}", 1, WRPO_E_FORMAT,
         "found \"note\" as well"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"dtype\\u0000\":0}}", 1, WRPO_E_FORMAT,
         "as well"},
        {"{\"a\":{\"dtype\":\"u8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "dtype: want a type of safetensors, found \"u8\""},
        {"{\"a\":{\"dtype\":\"U8\\u0000\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "dtype: want a type of safetensors, found \"U8\\u0000\""},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "dtype: want a string, found 7"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "x.safetensors: a:1:28: shape: want an array, found 1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "shape: want a size, found -1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,0]}}", 0, WRPO_E_FORMAT,
         "shape: want a size, found -0"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "shape: want a size, found 1.0"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,1]}}", 1, WRPO_E_FORMAT,
         "shape: want a size, found 9223372036854775808"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, WRPO_E_FORMAT,
         "product that fits 63 bits"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0, WRPO_E_FORMAT,
         "product that fits 63 bits"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, WRPO_E_FORMAT,
         "want a size that fits 63 bits"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, WRPO_E_FORMAT,
         "want whole bytes, found 3 x 4 bits"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, WRPO_E_FORMAT,
         "data_offsets: want [begin, end], found an array of 1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, WRPO_E_FORMAT, "found an array of 3"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}}", 1, WRPO_E_FORMAT,
         "data_offsets: want a size, found"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{}}}", 1, WRPO_E_FORMAT, "found an object of 0"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1, WRPO_E_FORMAT,
         "data_offsets: want data within the file's 1 bytes, found [1, 0)"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 1, WRPO_E_FORMAT,
         "data_offsets: want data within the file's 1 bytes, found [0, 2)"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,9223372036854775807]}}", 1,
         WRPO_E_FORMAT, "data_offsets: want data within the file's"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,12]}}", 12, WRPO_E_FORMAT,
         "data_offsets: want 16 bytes for 4 of F32, found 12"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, WRPO_E_FORMAT,
         ": a: want data from byte 0 on, found 1: a hole"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[1,3]}}",
         3, WRPO_E_FORMAT, ": b: want data from byte 2 on, found 1: an overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[0,2]}}",
         2, WRPO_E_FORMAT, "an overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 2, WRPO_E_FORMAT,
         "want 1 bytes of data, found 2"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[0,1]}}",
         1, WRPO_E_FORMAT, "found \"a\" again"},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, WRPO_E_UNSUPPORTED,
         "want a name without U+0000"}};
    wrpo_tensors *t;
    for (int64_t i = 0; i < WRPO__COUNT(cases); i++) {
        put_tensors(in_tmp("x.safetensors"), cases[i].header, cases[i].bytes);
        wrpo_result r = wrpo_tensors_open(ctx, in_tmp("x.safetensors"), &t);
        CHECK(r == cases[i].verdict && !r == !!t, "%s: %d %s", cases[i].header, (int)r, r ? why() : "");
        if (r)
            CHECK(strstr(why(), cases[i].says) && !strncmp(why(), tmp, strlen(tmp)), "%s, want %s", why(),
                  cases[i].says);
        wrpo_tensors_close(t);
    }
    static const struct { unsigned char n[8]; size_t size; const char *says;
    } sizes[] = {{{0}, 0, "want 8 bytes of header size, found a file of 0"},
                 {{2}, 7, "found a file of 7"},
                 {{1}, 8, "want 1 bytes of header, found 0"},
                 {{1, 0xE1, 0xF5, 5}, 8, "want a header of at most 100000000 bytes, found 100000001"},
                 {{0, 0xE1, 0xF5, 5}, 8, "want 100000000 bytes of header, found 0"},
                 {{255, 255, 255, 255, 255, 255, 255, 255}, 8, "at most 100000000 bytes, found 18446744073709551615"}};
    for (int64_t i = 0; i < WRPO__COUNT(sizes); i++) {
        put_file(in_tmp("x.safetensors"), sizes[i].n, sizes[i].size);
        CHECK(wrpo_tensors_open(ctx, in_tmp("x.safetensors"), &t) == WRPO_E_FORMAT && strstr(why(), sizes[i].says),
              "%s", why());
    }
    static const char whole[] = "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]},\"u\":{\"dtype\":"
                                "\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
    put_tensors(in_tmp("x.safetensors"), whole, 12);
    char bytes[256], detail[256];
    size_t n = get_file(in_tmp("x.safetensors"), bytes, sizeof bytes);
    for (size_t k = 0; k < n; k++) {                   /* cut off anywhere */
        put_file(in_tmp("y.safetensors"), bytes, k);
        CHECK(wrpo_tensors_open(ctx, in_tmp("y.safetensors"), &t) == WRPO_E_FORMAT && !t, "%zu bytes", k);
    }
    /* one byte changed: no crash; whatever opens stays within the file */
    for (uint64_t i = 0; i < 3000; i++) {
        uint64_t r = wrpo__random64(52, 1, i);
        char changed[256];
        memcpy(changed, bytes, n);
        changed[r % (n - 12)] = (char)(r >> 32);
        put_file(in_tmp("y.safetensors"), changed, n);
        wrpo_tensors_open(ctx, in_tmp("y.safetensors"), &t);
        for (int64_t k = 0; t && k < wrpo_tensors_count(t); k++)
            CHECK(wrpo_tensors_at(t, k)->bytes <= 12, "change %llu", (unsigned long long)i);
        wrpo_tensors_close(t);
    }
    CHECK(wrpo_tensors_open(ctx, in_tmp("x.safetensors"), &t) == WRPO_OK, "%s", why());
    describe(t, detail, sizeof detail);
    CHECK(!strcmp(detail, "\"u\":U8:[4] \"w\":F32:[2]"), "%s", detail);
    const wrpo_tensor_info *w = wrpo_tensors_find(t, "w");
    CHECK(w && w->ndim == 1 && w->count == 2 && w->bytes == 8 && *(const unsigned char *)w->data == 4 &&
              !strcmp(w->file, in_tmp("x.safetensors")),
          "w");
    CHECK(wrpo_tensors_find(t, "u") == wrpo_tensors_at(t, 0) && !wrpo_tensors_find(t, "v") &&
              !wrpo_tensors_find(t, "") && !wrpo_tensors_at(t, 2) && !wrpo_tensors_at(t, -1),
          "find");
    wrpo_tensors_close(t);
    wrpo_tensors_close(NULL);
    CHECK(wrpo_tensors_open(ctx, in_tmp("absent.safetensors"), &t) == WRPO_E_IO &&
              strstr(why(), "absent.safetensors: cannot be opened"),
          "%s", why());
    list(tmp, true);
    CHECK(wrpo_tensors_open(ctx, tmp, &t) == WRPO_E_IO && strstr(why(), "found no model.safetensors or"), "%s", why());
    put_tensors(in_tmp("other.safetensors"), "{}", 0); /* one other file is not a guess to make */
    CHECK(wrpo_tensors_open(ctx, tmp, &t) == WRPO_E_IO && strstr(why(), "found no model.safetensors or"), "%s", why());
    list(tmp, true);
}

static wrpo_result convert(const wrpo_tensor_info *t) {
    float x[8];
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) wrpo__to_float(x, t, 0, 8);
    return wrpo__end(&wrpo__entry);
}
/* Every dtype has its size, and only float ones are converted. */
static void test_dtypes(void) {
    static const struct { const char *name; int bits; bool number;
    } dtypes[] = {{"F64", 64, 0},    {"F32", 32, 1},    {"F16", 16, 1},        {"BF16", 16, 1},       {"I64", 64, 0},
                  {"I32", 32, 0},    {"I16", 16, 0},    {"I8", 8, 0},          {"U64", 64, 0},        {"U32", 32, 0},
                  {"U16", 16, 0},    {"U8", 8, 0},      {"BOOL", 8, 0},        {"C64", 64, 0},        {"F8_E5M2", 8, 0},
                  {"F8_E4M3", 8, 0}, {"F8_E8M0", 8, 0}, {"F8_E4M3FNUZ", 8, 0}, {"F8_E5M2FNUZ", 8, 0}, {"F6_E2M3", 6, 0},
                  {"F6_E3M2", 6, 0}, {"F4", 4, 0}};
    for (int64_t i = 0; i < WRPO__COUNT(dtypes); i++) {
        char header[256];
        wrpo_tensors *t;
        int bytes = 8 * dtypes[i].bits / 8;
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%d]}}",
                 dtypes[i].name, bytes);
        put_tensors(in_tmp("x.safetensors"), header, (size_t)bytes);
        CHECK(wrpo_tensors_open(ctx, in_tmp("x.safetensors"), &t) == WRPO_OK, "%s", why());
        if (!t) continue;
        const wrpo_tensor_info *a = wrpo_tensors_at(t, 0);
        CHECK(a->count == 8 && a->bytes == (size_t)bytes && !strcmp(a->dtype, dtypes[i].name) &&
                  !!wrpo__float_dtype(a) == dtypes[i].number,
              "%s", a->dtype);
        wrpo_result r = convert(a);
        CHECK(r == (dtypes[i].number ? WRPO_OK : WRPO_E_UNSUPPORTED), "%s: %d", a->dtype, (int)r);
        if (r) CHECK(strstr(why(), ": a: want F32, F16 or BF16, found ") && strstr(why(), a->dtype), "%s", why());
        wrpo_tensors_close(t);
    }
    list(tmp, true);
}

/* ---- conversion ---- */
static float from_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
/* x rounded to `bits` binary digits with least exponent `least` and greatest value `top`: the definition, in double. */
static double rounded(double x, int bits, int least, double top) {
    int e;
    if (x == 0 || isinf(x)) return x;
    frexp(x, &e);
    double unit = ldexp(1, WRPO__MAX(e - bits, least)), y = nearbyint(x / unit) * unit;
    return fabs(y) > top ? copysign(INFINITY, x) : y;
}
static double f16_value(uint16_t h) {
    int e = h >> 10 & 31, m = h & 1023;
    double x = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -x : x;
}
static void check_down(uint32_t u) {
    float x = from_bits(u);
    uint16_t h = wrpo__float_to_f16(x), b = wrpo__float_to_bf16(x);
    bool sign = u >> 31, ok;
    if (isnan(x)) ok = (h & 0x7C00) == 0x7C00 && (h & 0x3FF) && (b & 0x7F80) == 0x7F80 && (b & 0x7F);
    else
        ok = f16_value(h) == rounded(x, 11, -24, 65504) &&
            (double)from_bits((uint32_t)b << 16) == rounded(x, 8, -133, 3.3895313892515355e38);
    if (!ok || h >> 15 != sign || b >> 15 != sign) CHECK(false, "%08x: f16 %04x bf16 %04x", u, h, b);
}
static float number(int64_t generation, int64_t tensor, int64_t i) {
    return (float)wrpo__normal((uint64_t)generation, (uint64_t)tensor, (uint64_t)i);
}
/* What rounding leaves of a change, by its definition: to bf16 and f16, of floats and of halves, on AVX2 and not. */
static void test_rounding_left(void) {
    void (*bf16)(wrpo__rounded *) = wrpo__block_bf16;  /* as this machine has it */
#undef wrpo__block_bf16
    void (*const blocks[])(wrpo__rounded *) = {wrpo__block_f16, wrpo__block_bf16, bf16};
    float w[WRPO__ROUNDS], old[WRPO__ROUNDS];
    uint16_t h[WRPO__ROUNDS], halves[WRPO__ROUNDS];
    for (int i = 0; i < 6; i++) {
        const wrpo_dtype dtype = i < 2 ? WRPO_DTYPE_F16 : WRPO_DTYPE_BF16;
        wrpo__rounded r = {.w = w, .h = h, .same = i % 2};
        double changed = 0, kept = 0, by_sums[2] = {0};
        for (int k = 0; k < WRPO__ROUNDS; k++) {
            old[k] = number(1, i, k);
            halves[k] = i < 2 ? wrpo__float_to_f16(old[k]) : wrpo__float_to_bf16(old[k]);
            if (r.same) old[k] = wrpo__bits_float(wrpo__widen(dtype, halves[k]));
            w[k] = old[k] + 1e-3f * number(2, i, k);
        }
        blocks[i / 2](&r);
        r.old = r.same ? (const void *)halves : old;
        blocks[i / 2](&r);
        for (int k = 0; k < WRPO__ROUNDS; k++) {
            const uint16_t to = i < 2 ? wrpo__float_to_f16(w[k]) : wrpo__float_to_bf16(w[k]);
            const double d = (double)w[k] - (double)old[k];
            CHECK(h[k] == to, "%d: element %d: %04x, want %04x", i, k, h[k], to);
            changed += d * d;
            kept += d * ((double)wrpo__bits_float(wrpo__widen(dtype, to)) -
                         (double)wrpo__bits_float(wrpo__widen(dtype, halves[k])));
        }
        for (int k = 0; k < WRPO__SUMS; k++) by_sums[0] += r.changed[k], by_sums[1] += r.kept[k];
        CHECK(fabs(by_sums[0] - changed) < 1e-13 * changed && fabs(by_sums[1] - kept) < 1e-13 * changed && kept > 0,
              "%d: %.17g of %.17g are left, want %.17g of %.17g", i, by_sums[1], by_sums[0], kept, changed);
    }
}
static void test_conversion(void) {
    uint16_t *half = malloc(65536 * 2 + 1);
    unsigned char *odd = (unsigned char *)half + 1;    /* no alignment */
    float *x = malloc(65536 * sizeof *x);
    for (int i = 0; i < 65536; i++) { uint16_t h = (uint16_t)i; memcpy(odd + 2 * i, &h, 2); }
    int64_t shape = 65536;
    for (int kind = 0; kind < 2; kind++) {
        wrpo_tensor_info t = {.name = "t",
                              .dtype = kind ? "F16" : "BF16",
                              .file = "f",
                              .ndim = 1,
                              .shape = &shape,
                              .count = shape,
                              .bytes = 131072,
                              .data = odd};
        wrpo__to_float(x, &t, 0, 1000);           /* in two pieces */
        wrpo__to_float(x + 1000, &t, 1000, 64536);
        wrpo__to_float(NULL, &t, 65536, 0);
        int wrong = 0, back = 0;
        for (int i = 0; i < 65536; i++) {
            uint32_t u;
            memcpy(&u, x + i, 4);
            if (!kind) wrong += u != (uint32_t)i << 16;
            /* payload and signalling bit kept */
            else if (isnan(x[i]))
                wrong += u != ((uint32_t)(i & 0x8000) << 16 | 0x7F800000u | (uint32_t)(i & 1023) << 13);
            else wrong += (double)x[i] != f16_value((uint16_t)i) || u >> 31 != (uint32_t)i >> 15;
        }
        CHECK(wrong == 0, "%s: %d wrong", t.dtype, wrong);
        uint16_t *again = malloc(131072);
        for (int i = 0; i < 65536; i += WRPO__ROUNDS)
            (kind ? wrpo__block_f16 : wrpo__block_bf16)(&(wrpo__rounded){.w = x + i, .h = again + i});
        for (int i = 0; i < 65536; i++)
            back += again[i] != (isnan(x[i]) ? again[i] : i) ||
                !isnan(x[i]) != ((again[i] & 0x7FFF) <= (kind ? 0x7C00 : 0x7F80));
        CHECK(back == 0, "%s: %d do not come back", t.dtype, back);
        free(again);
    }
    unsigned char floats[17] = {0};                    /* floats, unaligned, a signalling NaN among them */
    const uint32_t pattern[4] = {0x7F800001u, 1u, 0x80000000u, 0xFF7FFFFFu};
    memcpy(floats + 1, pattern, 16);
    int64_t four = 4;
    wrpo_tensor_info t = {.name = "t",
                          .dtype = "F32",
                          .file = "f",
                          .ndim = 1,
                          .shape = &four,
                          .count = 4,
                          .bytes = 16,
                          .data = floats + 1};
    wrpo__to_float(x, &t, 1, 3);
    CHECK(!memcmp(x, pattern + 1, 12), "F32 from 1");
    wrpo__to_float(x, &t, 0, 4);
    CHECK(!memcmp(x, pattern, 16), "F32 unchanged");
    int before = test_failed;
    for (uint32_t i = 0; i < 1u << 20; i++)
        check_down(i << 12), check_down(i << 12 | 0x800), check_down((uint32_t)wrpo__random64(52, 2, i));
    for (uint32_t h = 0; h < 65536; h++)               /* around every border between two halves, and every bf16 tie */
        for (uint32_t near = 0; near < 3; near++) {
            uint32_t u;
            double middle =
                h & 0x7C00 && (h & 0x7C00) != 0x7C00 ? (f16_value((uint16_t)h) + f16_value((uint16_t)(h + 1))) / 2 : 0;
            float m = (float)middle;
            memcpy(&u, &m, 4);
            if (isfinite(m)) check_down(u + near - 1);
            check_down((h << 16 | 0x8000u) + near - 1);
        }
    CHECK(test_failed == before, "float to half");
    CHECK(wrpo__float_to_f16(65519.996f) == 0x7BFF && wrpo__float_to_f16(65520) == 0x7C00 &&
              wrpo__float_to_f16(-1e30f) == 0xFC00 && wrpo__float_to_f16(0x1p-25f) == 0 &&
              wrpo__float_to_f16(0x1.000002p-25f) == 1 && wrpo__float_to_f16(0x1.8p-24f) == 2 &&
              wrpo__float_to_bf16(1.00390625f) == 0x3F80 && wrpo__float_to_bf16(3.4e38f) == 0x7F80,
          "known values");
    free(half);
    free(x);
}

/* ---- the index ---- */
#define T1(name, at) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[" at "]}"
static void test_index(void) {
    static const struct { const char *index; wrpo_result verdict; const char *says;
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\"}}", 0, ""},
        {"{\"metadata\":{\"total_size\":3,\"x\":[]},\"weight_map\":{\"c\":\"two\",\"b\":\"one\",\"a\":\"one\"}}", 0,
         ""},
        {"{\"metadata\":{\"total_size\":3.0},\"weight_map\":{\"c\":\"two\",\"b\":\"one\",\"a\":\"one\"}}", 0, ""},
        {"{\"metadata\":null,\"weight_map\":{}}", 0, ""},
        {"{\"metadata\":{\"total_size\":4},\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\"}}", 0,
         "total_size: want 3, found 4"},
        {"{}", WRPO_E_FORMAT, "index.json:1:1: weight_map: want an object, found no such key"},
        {"[]", WRPO_E_FORMAT, "the index: want an object, found an array of 0"},
        {"{\"weight_map\":[]}", WRPO_E_FORMAT, "weight_map: want an object, found an array of 0"},
        {"{\"weight_map\":{\"a\":1}}", WRPO_E_FORMAT, ":1:20: a: want a string, found 1"},
        {"{\"metadata\":7,\"weight_map\":{}}", WRPO_E_FORMAT, "metadata: want an object, found 7"},
        {"{\"weight_map\":{\"a\":\"one\",\"a\":\"one\"}}", WRPO_E_FORMAT, "want every key once, found \"a\" again"},
        {"{\"weight_map\":{\"a\":\"../one\"}}", WRPO_E_FORMAT,
         "a: want the name of a file beside the index, found \"../one\""},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", WRPO_E_FORMAT, "want the name of a file beside"},
        {"{\"weight_map\":{\"a\":\"x\\\\one\"}}", WRPO_E_FORMAT, "want the name of a file beside"},
        {"{\"weight_map\":{\"a\":\"..\"}}", WRPO_E_FORMAT, "want the name of a file beside"},
        {"{\"weight_map\":{\"a\":\"\"}}", WRPO_E_FORMAT, "want the name of a file beside"},
        {"{\"weight_map\":{\"a\":\"one\\u0000\"}}", WRPO_E_FORMAT, "want the name of a file beside"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"three\"}}", WRPO_E_IO, "three: cannot be opened"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\",\"d\":\"two\"}}", 0,
         "index.json: its files do not have what it says of 1 tensors, such as d"},
        {"{\"weight_map\":{\"a\":\"one\",\"aa\":\"one\",\"b\":\"one\",\"c\":\"two\"}}", 0,
         "index.json: its files do not have what it says of 1 tensors, such as aa"},
        {"{\"weight_map\":{\"a\":\"one\",\"c\":\"two\"}}", 0,
         "index.json: 1 tensors of its files are not named there, such as b: they are read as well"},
        {"{\"weight_map\":{\"b\":\"one\",\"c\":\"two\"}}", 0, "1 tensors of its files are not named there, such as a"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"two\",\"c\":\"two\"}}", 0,
         "1 tensors of its files are not named there, such as b"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"both\",\"c\":\"two\"}}", WRPO_E_FORMAT,
         ": b: want it once, found it in "},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\\u0000\":\"two\",\"c\":\"two\"}}", 0,
         "its files do not have what it says of 1 tensors, such as c"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\",\"e\":\"bad\"}}", WRPO_E_FORMAT,
         "/bad: e: want data from byte 0 on, found 1: a hole"},
        {"{\"weight_map\":{\"a\":\"one\"}", WRPO_E_FORMAT, "index.json:1:26: want ',' or '}', found the end"}};
    put_tensors(in_tmp("one"), "{" T1("b", "0,1") "," T1("a", "1,2") "}", 2);
    put_tensors(in_tmp("two"), "{" T1("c", "0,1") "}", 1);
    put_tensors(in_tmp("both"), "{" T1("b", "0,1") "}", 1);
    put_tensors(in_tmp("bad"), "{" T1("e", "1,2") "}", 2);
    const char *index = in_tmp("model.safetensors.index.json");
    wrpo_tensors *t;
    for (int64_t i = 0; i < WRPO__COUNT(cases); i++) {
        put_file(index, cases[i].index, strlen(cases[i].index));
        for (int by_dir = 0; by_dir < 2; by_dir++) {
            last_log[0] = 0;
            wrpo_result r = wrpo_tensors_open(ctx, by_dir ? tmp : index, &t);
            CHECK(r == cases[i].verdict, "%s: %d %s", cases[i].index, (int)r, r ? why() : "");
            CHECK(strstr(r ? why() : last_log, cases[i].says) && (!r || !t), "%s, want %s", r ? why() : last_log,
                  cases[i].says);
            if (!r && !*cases[i].says) CHECK(!*last_log, "%s", last_log);
            if (!r && wrpo_tensors_count(t)) {
                char detail[256];
                describe(t, detail, sizeof detail);
                CHECK(!strcmp(detail, "\"a\":U8:[1] \"b\":U8:[1] \"c\":U8:[1]"), "%s", detail);
                const wrpo_tensor_info *a = wrpo_tensors_find(t, "a"), *c = wrpo_tensors_find(t, "c");
                CHECK(*(const char *)a->data == 1 && *(const char *)c->data == 0 && strstr(a->file, "/one") &&
                          strstr(c->file, "/two"),
                      "places");
            }
            wrpo_tensors_close(t);
        }
    }
    put_tensors(in_tmp("model.safetensors"), "{}", 0); /* the single file goes before the index */
    CHECK(wrpo_tensors_open(ctx, tmp, &t) == WRPO_OK && wrpo_tensors_count(t) == 0, "%s", why());
    wrpo_tensors_close(t);
    list(tmp, true);
}
/* 16 GB that nobody reads. */
static void test_large(void) {
    static const char header[] =
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4000000,1000],\"data_offsets\":[0,16000000000]}}";
    const char *path = in_tmp("model.safetensors");
    put_tensors(path, header, 0);
    wrpo_tensors *t;
    if (truncate(path, 8 + (off_t)sizeof header - 1 + 16000000000) != 0) {
        SKIP(1, "no sparse files here");
        remove(path);
        return;
    }
    double start = wrpo__now();
    wrpo_result r = wrpo_tensors_open(ctx, path, &t);
    double took = wrpo__now() - start;
    CHECK(r == WRPO_OK && took < 0.1 && wrpo_tensors_at(t, 0)->bytes == 16000000000u, "%g s %s", took, r ? why() : "");
    wrpo_tensors_close(t);
    remove(path);
}

/* ---- save ---- */
static int64_t fail_tensor;                            /* yield fails there; -1: nowhere */
static const float *yield(void *user, int64_t tensor, int64_t first, int64_t count, float *dst) {
    if (tensor == fail_tensor) wrpo__fail(ctx, WRPO_E_DEVICE, "the device is gone");
    for (int64_t i = 0; i < count; i++) dst[i] = number(*(int64_t *)user, tensor, first + i);
    return dst;
}
static wrpo_result save(const char *dir, const wrpo__save_tensor *t, int64_t n, wrpo_dtype dtype, int64_t limit,
                        int64_t generation) {
    TEST_TRY(ctx, wrpo__arena_new(ctx), true)
    wrpo__tensors_save(&(wrpo__save){.temp = wrpo__entry.arena, .dir = dir, .t = t, .n = n, .dtype = dtype,
                                     .max_shard_size = limit, .fn = yield, .user = &generation,
                                     .rounding = &(wrpo__rounding){0}});
    return wrpo__end(&wrpo__entry);
}
/* Of which generation the numbers of a directory are, bit for bit; -1: it does not open; 0: none, or a mixture. */
static int64_t generation_of(const char *dir, const wrpo__save_tensor *s, int64_t n, wrpo_dtype dtype, int64_t last) {
    wrpo_tensors *t;
    if (wrpo_tensors_open(ctx, dir, &t)) return -1;
    int64_t found = 0;
    for (int64_t g = 1; g <= last && !found; g++) {
        bool same = wrpo_tensors_count(t) == n;
        for (int64_t i = 0; i < n && same; i++) {
            const wrpo_tensor_info *info = wrpo_tensors_find(t, s[i].name);
            same = info && info->ndim == s[i].ndim && !memcmp(info->shape, s[i].shape, (size_t)s[i].ndim * 8) &&
                wrpo__float_dtype(info) == dtype;
            for (int64_t k = 0; same && k < info->count; k++) {
                float x = number(g, i, k);
                uint16_t h = dtype == WRPO_DTYPE_BF16 ? wrpo__float_to_bf16(x) : wrpo__float_to_f16(x);
                same = dtype == WRPO_DTYPE_F32 ? !memcmp((const char *)info->data + 4 * k, &x, 4)
                                               : !memcmp((const char *)info->data + 2 * k, &h, 2);
            }
        }
        if (same) found = g;
    }
    wrpo_tensors_close(t);
    return found;
}
/* 40, 12, 20, 4, 0, 24 floats: a name to be escaped, a scalar, no elements */
static const wrpo__save_tensor model[] = {{"model.embed.weight", 2, {8, 5}},
                                          {"model.norm.weight", 1, {12}},
                                          {"a\"b\n\xC3\xA9", 3, {2, 5, 2}},
                                          {"scale", 2, {4, 1}},
                                          {"empty", 2, {0, 7}},
                                          {"lm_head.weight", 2, {6, 4}}};
enum { TENSORS = 6 };

static void test_save(void) {
    static const wrpo_dtype dtypes[] = {WRPO_DTYPE_F32, WRPO_DTYPE_BF16, WRPO_DTYPE_F16};
    char text[4096];
    for (int d = 0; d < 3; d++)
        for (int64_t limit = 0; limit <= 200; limit += 20) {
            CHECK(save(tmp, model, TENSORS, dtypes[d], limit, d + 1) == WRPO_OK, "%s", why());
            CHECK(generation_of(tmp, model, TENSORS, dtypes[d], 3) == d + 1, "dtype %d limit %lld: %s", d,
                  (long long)limit, list(tmp, false));
        }
    CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, 160, 1) == WRPO_OK, "%s", why());
    CHECK(!strcmp(list(tmp, false),
                  "model-00001-of-00003.safetensors model-00002-of-00003.safetensors model-00003-of-00003.safetensors "
                  "model.safetensors.index.json "),
          "%s", list(tmp, false));
    get_file(in_tmp("model.safetensors.index.json"), text, sizeof text);
    CHECK(!strcmp(text,
                  "{\n  \"metadata\": {\n    \"total_size\": 400\n  },\n  \"weight_map\": {\n"
                  "    \"a\\\"b\\n\xC3\xA9\": \"model-00002-of-00003.safetensors\",\n    \"empty\": "
                  "\"model-00002-of-00003.safetensors\",\n"
                  "    \"lm_head.weight\": \"model-00003-of-00003.safetensors\",\n    \"model.embed.weight\": "
                  "\"model-00001-of-00003.safetensors\",\n"
                  "    \"model.norm.weight\": \"model-00002-of-00003.safetensors\",\n    \"scale\": "
                  "\"model-00002-of-00003.safetensors\"\n  }\n}\n"),
          "%s", text);
    CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_DEFAULT, 0, 1) == WRPO_OK &&
              !strcmp(list(tmp, false), "model.safetensors "),
          "the old shards are gone: %s", list(tmp, false));
    static const wrpo__save_tensor two[] = {{"b", 2, {1, 3}}, {"a", 1, {2}}};
    CHECK(save(tmp, two, 2, WRPO_DTYPE_BF16, 0, 1) == WRPO_OK, "%s", why());
    size_t n = get_file(in_tmp("model.safetensors"), text, sizeof text);
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},\"b\":{"
        "\"dtype\":\"BF16\",\"shape\":[1,3],\"data_offsets\":[4,10]}} ";
    CHECK(n == 8 + sizeof header - 1 + 10 && (unsigned char)text[0] == sizeof header - 1 &&
              !memcmp(text + 1, "\0\0\0\0\0\0\0", 7) && !memcmp(text + 8, header, sizeof header - 1),
          "%s", text + 8);
    CHECK(save(tmp, NULL, 0, WRPO_DTYPE_F32, 0, 1) == WRPO_OK, "%s", why());
    n = get_file(in_tmp("model.safetensors"), text, sizeof text);
    CHECK(n == 40 && !strcmp(text + 8, "{\"__metadata__\":{\"format\":\"pt\"}}"), "%zu %s", n, text + 8);
    for (int k = 0; k < 8; k++) {                      /* whatever the names, the data begins at a multiple of 8 */
        wrpo__save_tensor one = {&"seventy"[7 - k], 1, {2}};
        CHECK(save(tmp, &one, 1, WRPO_DTYPE_F32, 0, 1) == WRPO_OK &&
                  generation_of(tmp, &one, 1, WRPO_DTYPE_F32, 1) == 1,
              "%s", why());
        n = get_file(in_tmp("model.safetensors"), text, sizeof text);
        CHECK(n % 8 == 0 && (size_t)(unsigned char)text[0] == n - 16, "%zu bytes", n);
    }
    wrpo__save_tensor big = {"big", 2, {3, WRPO__CHUNK / 2 - 5}};      /* more than one piece */
    CHECK(save(tmp, &big, 1, WRPO_DTYPE_BF16, 0, 1) == WRPO_OK && generation_of(tmp, &big, 1, WRPO_DTYPE_BF16, 1) == 1,
          "%s", why());
    list(tmp, true);
}
/* The split of huggingface_hub 2.4: sizes, limit, file of each, as it gives them. */
static void test_split(void) {
    static const struct { int n, limit; int64_t bytes[12], shard[12];
    } cases[] = {{6, 10, {6, 6, 2, 6, 2, 2}, {0, 1, 1, 2, 2, 2}},
                 {1, 10, {10}, {0}},
                 {1, 10, {11}, {0}},
                 {3, 10, {3, 11, 3}, {1, 0, 1}},
                 {2, 10, {11, 11}, {0, 1}},
                 {5, 10, {3, 11, 3, 11, 9}, {2, 0, 2, 1, 3}},
                 {3, 10, {5, 5, 5}, {0, 0, 1}},
                 {3, 1, {1, 1, 1}, {0, 1, 2}},
                 {3, 1, {0, 0, 0}, {0, 0, 0}},
                 {3, 10, {0, 11, 0}, {1, 0, 1}},
                 {4, 10, {4, 12, 4, 4}, {1, 0, 1, 2}},
                 {2, 10, {12, 4}, {0, 1}},
                 {2, 10, {4, 12}, {1, 0}},
                 {9, 6, {4, 1, 7, 12, 7, 7, 10, 6, 12}, {5, 5, 0, 1, 2, 3, 4, 7, 6}},
                 {9, 6, {7, 0, 14, 13, 6, 6, 9, 12, 12}, {0, 3, 1, 2, 3, 7, 4, 5, 6}},
                 {8, 12, {4, 11, 12, 3, 9, 1, 14, 5}, {0, 1, 2, 3, 3, 5, 4, 5}},
                 {8, 5, {0, 10, 8, 0, 14, 6, 10, 3}, {5, 0, 1, 5, 2, 3, 4, 5}}};
    for (int64_t i = 0; i < WRPO__COUNT(cases); i++) {
        wrpo__placed p[12] = {{0}};
        int64_t last = 0, wrong = 0;
        for (int k = 0; k < cases[i].n; k++) p[k].bytes = cases[i].bytes[k];
        int64_t shards = wrpo__split(p, cases[i].n, cases[i].limit);
        for (int k = 0; k < cases[i].n; k++) last = WRPO__MAX(last, cases[i].shard[k]);
        for (int k = 0; k < cases[i].n; k++) wrong += p[k].shard != cases[i].shard[k];
        CHECK(shards == last + 1 && !wrong, "case %lld: %lld shards, %lld tensors elsewhere", (long long)i,
              (long long)shards, (long long)wrong);
    }
    CHECK(wrpo__split(NULL, 0, 10) == 0, "nothing");
}
/* What a save removes, and what it leaves. */
static void test_stale(void) {
    static const char *const names[] = {"model.safetensors",
                                        "model-00001-of-00009.safetensors",
                                        "model-00009-of-00009.safetensors",
                                        "model-00000-of-00003.safetensors",
                                        "model-00004-of-00003.safetensors",
                                        "keep.safetensors",
                                        "model-1-of-2.safetensors",
                                        "model-0000x-of-00002.safetensors",
                                        "xmodel-00001-of-00002.safetensors",
                                        "model-00001-of-00002.safetensors.bak",
                                        "config.json",
                                        "model.safetensors.bak",
                                        "adapter_model.safetensors",
                                        "pytorch_model.bin"};
    for (int sharded = 0; sharded < 2; sharded++) {
        for (int64_t i = 0; i < WRPO__COUNT(names); i++) put_file(in_tmp(names[i]), "old", 3);
        put_file(in_tmp("model.safetensors.index.json"), "{}", 2);
        CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, sharded ? 160 : 0, 1) == WRPO_OK &&
                  generation_of(tmp, model, TENSORS, WRPO_DTYPE_F32, 1) == 1,
              "%s", why());
        CHECK(!strcmp(
                  list(tmp, true),
                  sharded
                      ? "adapter_model.safetensors config.json keep.safetensors model-00001-of-00002.safetensors.bak "
                        "model-00001-of-00003.safetensors model-00002-of-00003.safetensors "
                        "model-00003-of-00003.safetensors model-0000x-of-00002.safetensors model-1-of-2.safetensors "
                        "model.safetensors.bak model.safetensors.index.json "
                        "pytorch_model.bin xmodel-00001-of-00002.safetensors "
                      : "adapter_model.safetensors config.json keep.safetensors model-00001-of-00002.safetensors.bak "
                        "model-0000x-of-00002.safetensors model-1-of-2.safetensors "
                        "model.safetensors model.safetensors.bak pytorch_model.bin xmodel-00001-of-00002.safetensors "),
              "sharded %d", sharded);
    }
}

/* ---- saves that fail ---- */
static void test_failures(void) {
    char before[2048];
    for (int64_t limit = 0; limit <= 160; limit += 160) {              /* one file; three files */
        CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, limit, 1) == WRPO_OK, "%s", why());
        snprintf(before, sizeof before, "%s", list(tmp, false));
        for (fail_tensor = 0; fail_tensor < TENSORS; fail_tensor++) {  /* the source of the numbers fails */
            if (fail_tensor == 4) continue;                            /* the empty one is never asked for */
            CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, limit, 2) == WRPO_E_DEVICE &&
                      strstr(why(), "the device is gone"),
                  "%s", why());
            CHECK(!strcmp(list(tmp, false), before) && generation_of(tmp, model, TENSORS, WRPO_DTYPE_F32, 2) == 1,
                  "tensor %lld: %s", (long long)fail_tensor, list(tmp, false));
        }
        fail_tensor = -1;
        struct rlimit old, tight;                                      /* the disk is full */
        getrlimit(RLIMIT_FSIZE, &old);
        signal(SIGXFSZ, SIG_IGN);
        for (rlim_t bytes = 0; bytes <= 400; bytes += 100) {
            tight = old, tight.rlim_cur = bytes;
            setrlimit(RLIMIT_FSIZE, &tight);
            wrpo_result r = save(tmp, model, TENSORS, WRPO_DTYPE_F32, limit, 2);
            setrlimit(RLIMIT_FSIZE, &old);
            CHECK(r == WRPO_E_IO && strstr(why(), "cannot be written: "), "%d %s", (int)r, why());
            CHECK(!strcmp(list(tmp, false), before) && generation_of(tmp, model, TENSORS, WRPO_DTYPE_F32, 2) == 1,
                  "%d bytes: %s", (int)bytes, list(tmp, false));
        }
        list(tmp, true);
    }
    CHECK(save(in_tmp("absent"), model, TENSORS, WRPO_DTYPE_F32, 0, 1) == WRPO_E_IO &&
              strstr(why(), "absent/model.safetensors: cannot be written"),
          "%s", why());
    put_file(in_tmp("file"), "x", 1);
    CHECK(save(in_tmp("file"), model, TENSORS, WRPO_DTYPE_F32, 0, 1) == WRPO_E_IO &&
              strstr(why(), "file/model.safetensors: cannot be written"),
          "%s", why());
    list(tmp, true);
    chmod(tmp, 0555);
    if (geteuid() == 0) SKIP(1, "root writes into any directory");
    else
        CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, 0, 1) == WRPO_E_IO && strstr(why(), "cannot be written"), "%s",
              why());
    chmod(tmp, 0755);
    /* the name is taken by a directory: the rename fails */
    mkdir(in_tmp("model.safetensors"), 0755);
    CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, 0, 1) == WRPO_E_IO &&
              strstr(why(), "/model.safetensors: cannot be written"),
          "%s", why());
    CHECK(!strcmp(list(tmp, true), "model.safetensors "), "part files remain");
    /* the same with shards, after the first is in place: */
    CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, 160, 1) == WRPO_OK, "%s", why());
    remove(in_tmp("model-00002-of-00003.safetensors"));
    mkdir(in_tmp("model-00002-of-00003.safetensors"), 0755);
    CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, 160, 2) == WRPO_E_IO &&
              strstr(why(), "model-00002-of-00003.safetensors: cannot be written"),
          "%s", why());
    /* old and new shards side by side, and no index that would join them */
    wrpo_tensors *t;
    CHECK(wrpo_tensors_open(ctx, tmp, &t) == WRPO_E_IO && strstr(why(), "found no model.safetensors or"), "%s", why());
    CHECK(
        !strcmp(list(tmp, true),
                "model-00001-of-00003.safetensors model-00002-of-00003.safetensors model-00003-of-00003.safetensors "),
        "part files remain");
}
/* A process that dies before any rename or removal of a save: what is left opens as the old or the new checkpoint, or
   not at all, and that only where old and new shards have the same names. */
static void test_killed(void) {
    static const struct {
        int64_t from, to;
        bool always;
    } cases[] = {{0, 0, true}, {0, 160, true}, {160, 0, true}, {60, 160, true}, {160, 60, true}, {160, 160, false}};
    for (int64_t c = 0; c < WRPO__COUNT(cases); c++) {
        bool alive = false;
        int64_t seen[3] = {0};
        for (int k = 0; !alive && k < 20; k++) {
            list(tmp, true);
            CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, cases[c].from, 1) == WRPO_OK, "%s", why());
            fflush(stdout);
            pid_t child = fork();
            int status = -1;
            if (child == 0) {
                steps_left = k;
                _exit(save(tmp, model, TENSORS, WRPO_DTYPE_F32, cases[c].to, 2) == WRPO_OK ? 0 : 1);
            }
            waitpid(child, &status, 0);
            CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 9 || WEXITSTATUS(status) == 0), "status %d", status);
            alive = WIFEXITED(status) && WEXITSTATUS(status) != 9;
            int64_t g = generation_of(tmp, model, TENSORS, WRPO_DTYPE_F32, 2);
            CHECK(g == 1 || g == 2 || (g == -1 && !cases[c].always), "case %lld, step %d: %lld of %s", (long long)c, k,
                  (long long)g, list(tmp, false));
            if (g > 0) { CHECK(g == 2 || !seen[2], "case %lld, step %d: old again", (long long)c, k); seen[g]++; }
            if (alive)
                CHECK(g == 2 && !strstr(list(tmp, false), ".part"), "case %lld: %lld", (long long)c, (long long)g);
        }
        CHECK(alive && seen[1] >= 1 && seen[2] >= 1, "case %lld: old %lld times, new %lld", (long long)c,
              (long long)seen[1], (long long)seen[2]);
    }
    list(tmp, true);
}
/* Many shards need few descriptors. */
static void test_descriptors(void) {
    enum { MANY = 200 };
    static wrpo__save_tensor t[MANY];
    static char names[MANY][16];
    struct rlimit old, tight;
    for (int i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "t%03d", i);
        t[i] = (wrpo__save_tensor){names[i], 1, {3}};
    }
    getrlimit(RLIMIT_NOFILE, &old);
    tight = old, tight.rlim_cur = 32;
    setrlimit(RLIMIT_NOFILE, &tight);
    wrpo_result r = save(tmp, t, MANY, WRPO_DTYPE_F32, 12, 1);
    int64_t g = generation_of(tmp, t, MANY, WRPO_DTYPE_F32, 1);
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK(r == WRPO_OK && g == 1 && strstr(list(tmp, false), "model-00200-of-00200.safetensors"), "%s", why());
    list(tmp, true);
}
/* Memory that runs out at every allocation in turn. */
static void test_memory(void) {
    wrpo_tensors *t;
    CHECK(save(tmp, model, TENSORS, WRPO_DTYPE_F32, 160, 1) == WRPO_OK, "%s", why());
    /* open; save over shards of the same names; save over them into one file */
    for (int what = 0; what < 3; what++) {
        int64_t failures = 0;
        for (bool done = false; !done;) {
            int64_t held = memory.held;
            memory.calls = 0, memory.fail_at = failures + 1;
            wrpo_result r = what ? save(tmp, model, TENSORS, WRPO_DTYPE_F32, what == 1 ? 160 : 0, what + 1)
                                 : wrpo_tensors_open(ctx, tmp, &t);
            memory.fail_at = 0;
            done = r == WRPO_OK;
            if (!done) CHECK(r == WRPO_E_MEMORY && strstr(why(), "out of memory"), "%d %s", (int)r, why());
            if (!what) wrpo_tensors_close(t);
            CHECK(memory.held == held, "%d, allocation %lld: %lld blocks lost", what, (long long)failures,
                  (long long)(memory.held - held));
            CHECK(!strstr(list(tmp, false), ".part"), "%s", list(tmp, false));
            int64_t g = generation_of(tmp, model, TENSORS, WRPO_DTYPE_F32, 3);
            CHECK(done ? g == what + 1 : g == WRPO__MAX(what, 1), "%d, allocation %lld: generation %lld", what,
                  (long long)failures, (long long)g);
            failures += !done;
        }
        CHECK(failures >= 8, "%lld allocations failed", (long long)failures);
    }
    list(tmp, true);
}

int main(void) {
    const char *base = getenv("TMPDIR");
    if (!base || !*base) base = "tmp", mkdir(base, 0755);
    snprintf(tmp, sizeof tmp, "%s/wrpo_tensors_XXXXXX", base);
    wrpo_desc desc = {.threads = 1, .memory = {meter_alloc, meter_free, &memory}, .log = {logger, NULL}};
    if (!mkdtemp(tmp) || wrpo_open(&desc, &ctx)) { printf("52_tensors: no temporary folder in %s\n", base); return 1; }
    fail_tensor = -1;
    test_shared_cases();
    test_headers();
    test_dtypes();
    test_rounding_left();
    test_conversion();
    test_index();
    test_large();
    test_save();
    test_split();
    test_stale();
    test_failures();
    test_killed();
    test_descriptors();
    test_memory();
    wrpo_close(ctx);
    CHECK(memory.held == 0, "%lld blocks lost", (long long)memory.held);
    CHECK(rmdir(tmp) == 0, "%s is not empty: %s", tmp, list(tmp, true));
    CHECK(renamed > 100 && synced >= renamed, "%d files synced, %d renamed", synced, renamed);
    rmdir("tmp");                                      /* only if it is ours alone */
    return test_end("52_tensors");
}
