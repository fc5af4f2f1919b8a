/* Errors, arenas, text, files, random numbers: what every other section stands on. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/counting.h"

static wrpo_ctx *counting_ctx(void) {
    wrpo_ctx *ctx;
    const wrpo_desc desc = {.memory = {counting_alloc, counting_free, NULL}, .threads = 1};
    return wrpo_open(&desc, &ctx) == WRPO_OK ? ctx : NULL;
}
static int cleaned;
static void cleanup(void *p) { cleaned = cleaned * 10 + *(int *)p; }
static wrpo_result nested(wrpo_ctx *ctx, int depth, bool fail) {
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        int64_t *array = NULL;
        for (int64_t i = 0; i < 1000; i++) stbds_arrput(array, i);
        struct { int64_t key, value; } *map = NULL;
        for (int64_t i = 0; i < 1000; i++) stbds_hmput(map, i * 7, i);
        CHECK(stbds_hmget(map, 7 * 123) == 123 && array[999] == 999, "stb_ds at depth %d", depth);
        wrpo__alloc(wrpo__entry.arena, 3, 5000);
        if (depth) wrpo__rethrow(ctx, nested(ctx, depth - 1, fail));
        else if (fail) wrpo__fail_at(ctx, WRPO_E_FORMAT, 12, 34, "file:%d: want %s", 12, "this");
    }
    return wrpo__end(&wrpo__entry);
}

static bool io_fails(wrpo_ctx *ctx, const char *path, bool write) {
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        if (write) wrpo__create(wrpo__entry.arena, path);
        else wrpo__open_file(wrpo__entry.arena, path);
    }
    return wrpo__end(&wrpo__entry) == WRPO_E_IO && strstr(ctx->error.text, path);
}

/* Files of the caller's: what is asked for, handed out and given back. */
static int64_t asked, given, returned;
static const void *memory_open(const char *path, size_t *size, void **handle, void *user) {
    asked++;
    CHECK(user == &asked, "user");
    *size = 0;
    if (strcmp(path, "dir/a") != 0 && strcmp(path, "empty") != 0) return NULL;
    given++;
    *handle = &given;
    *size = *path == 'd' ? 5 : 0;
    return "bytes";
}
static void memory_close(void *handle, const void *data, void *user) {
    CHECK(handle == &given && user == &asked && !strcmp(data, "bytes"), "close");
    returned++;
}
static const char *memory_list(const char *dir, int64_t i, void *user) {
    static const char *const names[] = {"b", "a"};
    CHECK(user == &asked, "user");
    return !strcmp(dir, "dir") && i < 2 ? names[i] : NULL;
}
static void read_memory(wrpo_ctx *ctx) {
    wrpo__arena *arena = wrpo__current;
    CHECK(wrpo__exists("dir/a") && wrpo__exists("empty") && !wrpo__exists("dir/b") && !wrpo__exists("/proc/self/maps"),
          "what exists");
    CHECK(wrpo__is_dir("dir") && !wrpo__is_dir("dir/a") && given == returned, "directories; %lld given, %lld returned",
          (long long)given, (long long)returned);
    const wrpo__file *f = wrpo__open_file(arena, "dir/a"), *none = wrpo__open_file(arena, "empty");
    CHECK(f->size == 5 && !memcmp(f->data, "bytes", 5) && none->size == 0 && given == returned + 2, "%zu bytes",
          f->size);
    const wrpo__name *names = wrpo__list_dir(arena, "dir");
    CHECK(stbds_arrlen(names) == 2 && !strcmp(names[0].text, "b") && !strcmp(names[1].text, "a") &&
              !wrpo__list_dir(arena, "other"),
          "names");
    const wrpo__file *disk = wrpo__disk_open(arena, "/proc/self/maps");        /* no regular file, read to its end */
    CHECK(disk->size > 0 && wrpo__disk_exists("/proc/self/maps") && wrpo__disk_is_dir("/proc/self"),
          "the file system is where it was");
    wrpo__open_file(arena, "dir/none");
    CHECK(false, "a file that is not there, in %s", ctx ? "memory" : "");
}
static wrpo_result memory_entry(wrpo_ctx *ctx) {
    WRPO__CALL(ctx, wrpo__arena_new(ctx), true, read_memory(ctx));
    return wrpo__end(&wrpo__entry);
}

int main(void) {
    CHECK(!strcmp(wrpo_last_error(NULL)->text, "out of memory"), "without a context");
    for (fail_at = 0;; fail_at++) {                    /* opening survives any failed allocation */
        calls = 0;
        wrpo_ctx *ctx = counting_ctx();
        if (ctx) { wrpo_close(ctx); break; }
        CHECK(live == 0, "allocation %lld failed: %lld blocks live", (long long)fail_at, (long long)live);
    }
    CHECK(fail_at >= 1 && live == 0, "%lld allocations to open, %lld live", (long long)fail_at, (long long)live);
    wrpo_ctx *ctx;
    CHECK(wrpo_open(&(wrpo_desc){.threads = -1}, &ctx) == WRPO_E_ARG && !ctx, "negative threads");
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, NULL, NULL}}, &ctx) == WRPO_E_ARG, "half an allocator");
    fail_at = -1;
    ctx = counting_ctx();
    const int64_t base = live;
    CHECK(nested(ctx, 3, false) == WRPO_OK && live == base, "entries nest: %lld blocks left", (long long)(live - base));
    CHECK(nested(ctx, 3, true) == WRPO_E_FORMAT && live == base, "failure unwinds: %lld blocks left",
          (long long)(live - base));
    CHECK(ctx->error.line == 12 && ctx->error.column == 34 && !strcmp(ctx->error.text, "file:12: want this"), "%s",
          ctx->error.text);
    CHECK(ctx->frame == NULL && wrpo__current == NULL, "frames are left");
    for (fail_at = 0; fail_at < 400; fail_at++) {      /* every n-th allocation inside entries */
        calls = 0;
        wrpo_result r = nested(ctx, 2, false);
        CHECK(live == base && (r == WRPO_OK || r == WRPO_E_MEMORY), "allocation %lld: %d, %lld left",
              (long long)fail_at, (int)r, (long long)(live - base));
        if (r == WRPO_OK) break;
    }
    CHECK(fail_at > 10, "only %lld allocations", (long long)fail_at);
    fail_at = -1;
    CHECK(wrpo_memory_peak(ctx) > 15000, "peak %zu", wrpo_memory_peak(ctx));

    {   /* cleanups run last in, first out; alignment; checked sizes */
        int one = 1, two = 2;
        TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
            wrpo__on_free(wrpo__entry.arena, cleanup, &one), wrpo__on_free(wrpo__entry.arena, cleanup, &two);
            for (size_t n = 1; n < 100000; n = n * 3 + 1)
                CHECK((uintptr_t)wrpo__raw(wrpo__entry.arena, n, 1) % WRPO__ALIGN == 0, "alignment of %zu", n);
            wrpo__raw(wrpo__entry.arena, SIZE_MAX / 2, 4);
        }
        CHECK(wrpo__end(&wrpo__entry) == WRPO_E_MEMORY && cleaned == 21, "product of sizes: %s (%d)", ctx->error.text,
              cleaned);
    }
    {   /* text */
        TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
            wrpo__text t = {.arena = wrpo__entry.arena};
            for (int i = 0; i < 2000; i++) wrpo__text_printf(&t, "%d,", i);
            char *long_one = memset(wrpo__alloc(wrpo__entry.arena, 3001, 1), 'x', 3000);
            wrpo__text_printf(&t, "%s", long_one);
            CHECK(t.size == 8890 + 3000 && t.data[t.size] == 0 && strlen(t.data) == t.size, "size %zu", t.size);
            CHECK(!strcmp(wrpo__join(wrpo__entry.arena, "a/", "b"), "a/b") &&
                      !strcmp(wrpo__join(wrpo__entry.arena, "a", "b"), "a/b"),
                  "join");
        }
        CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", ctx->error.text);
    }
    {   /* UTF-8: every code point there and back; what is not UTF-8 */
        char s[4];
        size_t n;
        int64_t wrong = 0;
        for (uint32_t c = 0; c < 0x110000; c++) {
            if (c >= 0xD800 && c < 0xE000) continue;
            size_t k = wrpo__utf8_put(s, c);
            wrong += wrpo__utf8_get(s, k, &n) != (int32_t)c || n != k || (k > 1 && wrpo__utf8_get(s, k - 1, &n) != -1);
        }
        CHECK(wrong == 0, "%lld code points", (long long)wrong);
        const struct {
            const char *s;
            size_t skip;
        } bad[] = {{"\xC0\x80", 1},         {"\xC1\xBF", 1},         {"\xE0\x80\x80", 1}, {"\xED\xA0\x80", 1},
                   {"\xF4\x90\x80\x80", 1}, {"\xF0\x8F\xBF\xBF", 1}, {"\x80", 1},         {"\xFF", 1},
                   {"\xE2\x82", 2},         {"\xF0\x9F\x98", 3},     {"\xE2\x28\xA1", 1}};
        for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++)
            CHECK(wrpo__utf8_get(bad[i].s, strlen(bad[i].s), &n) == -1 && n == bad[i].skip, "case %d: skip %zu", i, n);
    }
    {   /* files: whole or not at all */
        const char *name = "tmp_base_file";
        TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
            wrpo__writer *w = wrpo__create(wrpo__entry.arena, name);
            wrpo__write(w, "hello", 5);
            CHECK(!wrpo__exists(name) && wrpo__exists(w->part), "not yet there");
            wrpo__commit(w);
            const wrpo__file *f = wrpo__open_file(wrpo__entry.arena, name);
            CHECK(f->size == 5 && !memcmp(f->data, "hello", 5), "%zu bytes", f->size);
            w = wrpo__create(wrpo__entry.arena, name);
            wrpo__write(w, "other", 5);
            wrpo__fail(ctx, WRPO_E_STOPPED, "in the middle of a write");
        }
        CHECK(wrpo__end(&wrpo__entry) == WRPO_E_STOPPED, "%s", ctx->error.text);
        FILE *f = fopen(name, "rb");
        char s[6] = "";
        CHECK(f && fread(s, 1, 5, f) == 5 && !strcmp(s, "hello"), "the old file stays: %s", s);
        if (f) fclose(f);
        remove(name);
        const char *const bad[] = {"tmp_base_none", "/proc", "/dev/null/x"};
        for (int i = 0; i < 3; i++) {
            CHECK(io_fails(ctx, bad[i], false), "%s", ctx->error.text);
        }
        CHECK(io_fails(ctx, "/proc/none/file", true), "%s", ctx->error.text);
    }
    CHECK(live == base, "%lld blocks left", (long long)(live - base));
    {   /* files from the caller: all are given back, on failure too; without a list there are no names */
        wrpo_ctx *c;
        wrpo_desc desc = {.memory = {counting_alloc, counting_free, NULL},
                          .threads = 1,
                          .files = {memory_open, memory_close, memory_list, &asked}};
        CHECK(wrpo_open(&desc, &c) == WRPO_OK, "open");
        CHECK(memory_entry(c) == WRPO_E_IO &&
                  !strcmp(wrpo_last_error(c)->text, "dir/none: cannot be opened: wrpo_desc.files has no such file"),
              "%s", wrpo_last_error(c)->text);
        CHECK(asked > given && given > 2 && given == returned, "%lld asked for, %lld given, %lld returned",
              (long long)asked, (long long)given, (long long)returned);
        c->desc.files.list = NULL, c->desc.files.close = NULL;
        WRPO__CALL(c, wrpo__arena_new(c), true,
                   CHECK(!wrpo__list_dir(wrpo__current, "dir") && wrpo__open_file(wrpo__current, "dir/a")->size == 5,
                         "neither list nor close"));
        CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", wrpo_last_error(c)->text);
        wrpo_close(c);
        CHECK(live == base, "%lld blocks left", (long long)(live - base));
    }
    {   /* Philox4x32-10 against the known answers of its authors (Random123, kat_vectors) */
        wrpo__philox r = wrpo__random(0, 0, 0);
        CHECK(r.v[0] == 0x6627e8d5 && r.v[1] == 0xe169c58d && r.v[2] == 0xbc57ac4c && r.v[3] == 0x9b00dbd8, "%08x %08x",
              r.v[0], r.v[1]);
        r = wrpo__random(UINT64_MAX, UINT64_MAX, UINT64_MAX);
        CHECK(r.v[0] == 0x408f276d && r.v[1] == 0x41c83b0e && r.v[2] == 0xa20bc7c6 && r.v[3] == 0x6d5451fd, "%08x %08x",
              r.v[0], r.v[1]);
        double sum = 0, square = 0, fourth = 0;
        const int n = 200000;
        for (int i = 0; i < n; i++) {
            double x = wrpo__normal(3, 4, (uint64_t)i);
            sum += x, square += x * x, fourth += x * x * x * x;
        }
        CHECK(fabs(sum / n) < 0.01 && fabs(square / n - 1) < 0.02 && fabs(fourth / n - 3) < 0.15, "moments %g %g %g",
              sum / n, square / n, fourth / n);
        CHECK(wrpo__hash(0, "abcdefghi", 9) != wrpo__hash(0, "abcdefghj", 9) &&
                  wrpo__hash(0, "", 0) != wrpo__hash(0, "\0", 1),
              "hash");
    }
    wrpo_close(ctx);
    CHECK(live == 0, "%lld blocks after closing", (long long)live);
    return test_end("base");
}
