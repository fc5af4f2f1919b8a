/* JSON: what is accepted and refused, and where; numbers to the last bit; memory that runs out; texts that break off.
 */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/meter.h"
#include <locale.h>

static meter memory;
static wrpo_ctx *ctx;

/* The text in a block of exactly its size, so that a sanitizer sees any byte read beyond it. */
static wrpo_result parse(const char *text, size_t n, wrpo_json **root) {
    char *exact = malloc(n ? n : 1);
    if (n) memcpy(exact, text, n);
    wrpo_result r = wrpo_json_parse(ctx, "t.json", exact, n, root);
    free(exact);
    return r;
}

static void test_accept(void) {
    static const char *const ok[] = {"null",
                                     " \t\r\n true \n",
                                     "false",
                                     "0",
                                     "-0",
                                     "\"\"",
                                     "[]",
                                     "{}",
                                     "[ ]",
                                     "{ }",
                                     "[[],{}]",
                                     "{\"\":0}",
                                     "[1,2 , 3]",
                                     "{\"a\":{\"a\":1},\"b\":[{\"a\":2}]}",
                                     "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"",
                                     "\"\\uD83D\\uDE00\"",
                                     "\"\\ud83d\\ude00\"",
                                     "\"\x7F\"",
                                     "\"\xF0\x9F\x98\x80 \xC3\xA9 \xEF\xBB\xBF\"",
                                     "\"\\u0000\"",
                                     "1e5",
                                     "1E+5",
                                     "1.5e-5",
                                     "-1.25",
                                     "1e999",
                                     "123456789012345678901234567890",
                                     "{\"a\":1,\"A\":1,\"a \":1}"};
    for (int64_t i = 0; i < WRPO__COUNT(ok); i++) {
        wrpo_json *root;
        wrpo_result r = parse(ok[i], strlen(ok[i]), &root);
        CHECK(r == WRPO_OK && root, "%s: %s", ok[i], wrpo_last_error(ctx)->text);
        wrpo_json_free(ctx, root);
    }
}

typedef struct { const char *text; int64_t line, column; const char *says; } refusal;
static void test_refuse(void) {
    static const refusal bad[] = {
        {"", 1, 1, "want a value, found the end of the text"},
        {" \n ", 2, 2, "want a value, found the end of the text"},
        {"\xEF\xBB\xBF{}", 1, 1, "want a value, found a byte order mark"},
        {"{} x", 1, 4, "want the end of the text, found 'x'"},
        {"1 2", 1, 3, "want the end of the text, found '2'"},
        {"[]]", 1, 3, "want the end of the text, found ']'"},
        {"01", 1, 2, "want the end of the text, found '1'"},
        {"-", 1, 2, "want a digit, found the end"},
        {"-x", 1, 2, "want a digit, found 'x'"},
        {"1.", 1, 3, "want a digit"},
        {"1.e5", 1, 3, "want a digit, found 'e'"},
        {".5", 1, 1, "want a value, found '.'"},
        {"+1", 1, 1, "want a value, found '+'"},
        {"1e", 1, 3, "want a digit"},
        {"[1e+]", 1, 5, "want a digit, found ']'"},
        {"0x10", 1, 2, "found 'x'"},
        {"-Infinity", 1, 2, "found 'Infinity'"},
        {"NaN", 1, 1, "found 'NaN'"},
        {"True", 1, 1, "found 'True'"},
        {"nul", 1, 1, "found 'nul'"},
        {"[1,]", 1, 4, "want a value, found ']'"},
        {"[,1]", 1, 2, "found ','"},
        {"[1 2]", 1, 4, "want ',' or ']', found '2'"},
        {"[1}", 1, 3, "want ',' or ']', found '}'"},
        {"[", 1, 2, "want a value, found the end"},
        {"[1", 1, 3, "want ',' or ']'"},
        {"{\"a\":1,}", 1, 8, "want a key in double quotes, found '}'"},
        {"{\"a\" 1}", 1, 6, "want ':' after a key, found '1'"},
        {"{a:1}", 1, 2, "want a key in double quotes, found 'a'"},
        {"{'a':1}", 1, 2, "found '''"},
        {"{1:1}", 1, 2, "want a key"},
        {"{\"a\":}", 1, 6, "want a value, found '}'"},
        {"{\"a\":1", 1, 7, "want ',' or '}'"},
        {"{\"a\":1]", 1, 7, "want ',' or '}', found ']'"},
        {"{,}", 1, 2, "want a key"},
        {"[1]//", 1, 4, "want the end"},
        {"/**/1", 1, 1, "want a value, found '/'"},
        {"\"abc", 1, 5, "want a string's text or its closing '\"', found the end"},
        {"\"a\nb\"", 1, 3, "found the control character U+000A"},
        {"\"\t\"", 1, 2, "U+0009"},
        {"\"\\x41\"", 1, 3, "after a backslash, found 'x'"},
        {"\"\\", 1, 3, "after a backslash, found the end"},
        {"\"\\u12G4\"", 1, 6, "four hexadecimal digits after \\u, found 'G'"},
        {"\"\\u123", 1, 7, "four hexadecimal digits after \\u, found the end"},
        {"\"\\U0041\"", 1, 3, "found 'U'"},
        {"\"a\\uD800\"", 1, 3, "want both halves of a surrogate pair, found \\uD800 alone"},
        {"\"\\uDC00\"", 1, 2, "found \\uDC00 alone"},
        {"\"\\uD800\\u0041\"", 1, 2, "found \\uD800 alone"},
        {"\"\\uD800\\uD800\"", 1, 2, "found \\uD800 alone"},
        {"\"\\uD800x\"", 1, 2, "found \\uD800 alone"},
        {"\"\\uDFFF\"", 1, 2, "found \\uDFFF alone"},
        {"\"\\uDBFF\\uE000\"", 1, 2, "found \\uDBFF alone"},
        {"{\"\\u001f\":1,\"\\u001F\":1}", 1, 22, "found \"\\u001f\" again"},
        {"\"\x80\"", 1, 2, "byte 0x80, which is not UTF-8"},
        {"\"\xC0\xAF\"", 1, 2, "byte 0xC0"},
        {"\"\xE0\x80\xAF\"", 1, 2, "byte 0xE0"},
        {"\"\xED\xA0\x80\"", 1, 2, "byte 0xED"},
        {"\"\xF4\x90\x80\x80\"", 1, 2, "byte 0xF4"},
        {"\"\xC3", 1, 2, "byte 0xC3"},
        {"\"\xC3\xA9\xFF\"", 1, 3, "byte 0xFF"},
        {"\xFF", 1, 1, "byte 0xFF"},
        {"[\"\xC3\xA9\xF0\x9F\x98\x80\", x]", 1, 8, "found 'x'"}, /* columns count code points */
        {"[1,\n \"\xC3\xA9\",\r\n\n  ?]", 4, 3, "want a value, found '?'"},
        {"[\xC3\xA9]", 1, 2, "want a value, found '\xC3\xA9'"},
        {"[\f1]", 1, 2, "control character U+000C"},
        {"[\xC2\xA0]", 1, 2, "want a value, found '\\u00a0'"},
        {"{\"a\":1,\n \"b\":2,\n \"a\": 3}", 3, 7, "want every key once, found \"a\" again (first on line 1)"},
        {"{\"a\":{\"x\":1,\"\\u0078\":2}}", 1, 22, "found \"x\" again"},
        {"{\"\":1,\"\":1}", 1, 10, "found \"\" again"}};
    for (int64_t i = 0; i < WRPO__COUNT(bad); i++) {
        wrpo_json *root = (wrpo_json *)(void *)&root;
        wrpo_result r = parse(bad[i].text, strlen(bad[i].text), &root);
        const wrpo_error *e = wrpo_last_error(ctx);
        char place[64];
        snprintf(place, sizeof place, "t.json:%lld:%lld: want ", (long long)bad[i].line, (long long)bad[i].column);
        CHECK(r == WRPO_E_FORMAT && !root, "%s", bad[i].text);
        CHECK(e->line == bad[i].line && e->column == bad[i].column, "%s: %lld:%lld", bad[i].text, (long long)e->line,
              (long long)e->column);
        CHECK(!strncmp(e->text, place, strlen(place)) && strstr(e->text, bad[i].says), "%s: %s", bad[i].text, e->text);
    }
    wrpo_json *root;                                   /* a NUL is a character like another: not the end */
    CHECK(parse("1\0", 2, &root) == WRPO_E_FORMAT && wrpo_last_error(ctx)->column == 2, "%s",
          wrpo_last_error(ctx)->text);
    CHECK(parse("\"a\0b\"", 5, &root) == WRPO_E_FORMAT && wrpo_last_error(ctx)->column == 3, "%s",
          wrpo_last_error(ctx)->text);
    for (int c = 0; c < 0x20; c++) {
        char text[] = "\"?\"", says[32];
        text[1] = (char)c;
        snprintf(says, sizeof says, "control character U+%04X", (unsigned)c);
        CHECK(parse(text, 3, &root) == WRPO_E_FORMAT && (!c || strstr(wrpo_last_error(ctx)->text, says)), "U+%04X: %s",
              (unsigned)c, wrpo_last_error(ctx)->text);
    }
    CHECK(parse("[tru\0]", 6, &root) == WRPO_E_FORMAT, "NUL in a word");
}

static void test_tree(void) {
    wrpo_json *root;
    const char text[] = "{\"a\\u0000b\": \"x\\u0000\\uD83D\\uDE00y\",\n \"list\": [1, -2.5, true, false, null, [], "
                        "{}],\n \"k\": \"v\"}";
    CHECK(parse(text, sizeof text - 1, &root) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    CHECK(root->kind == WRPO_JSON_OBJECT && root->count == 3 && !root->next && !root->key && root->line == 1 &&
              root->column == 1,
          "root");
    const wrpo_json *a = root->child, *list = wrpo_json_get(root, "list"), *v = list->child;
    CHECK(a->key_size == 3 && !memcmp(a->key, "a\0b", 4) && a->size == 7 && !memcmp(a->text, "x\0\xF0\x9F\x98\x80y", 8),
          "NULs inside, one behind");
    CHECK(!strcmp(root->name, "t.json") && !strcmp(list->child->name, "t.json"), "the name of the text");
    CHECK(a->line == 1 && a->column == 14 && list->line == 2 && list->column == 10, "places");
    CHECK(list->count == 7 && v->exact && v->integer == 1 && v->number == 1 && !strcmp(v->text, "1"), "1");
    v = v->next;
    CHECK(!v->exact && v->number == -2.5 && v->size == 4 && !strcmp(v->text, "-2.5") && v->column == 14, "-2.5");
    v = v->next;
    CHECK(v->kind == WRPO_JSON_BOOL && v->boolean && v->next->kind == WRPO_JSON_BOOL && !v->next->boolean &&
              v->next->next->kind == WRPO_JSON_NULL,
          "words");
    v = v->next->next->next;
    CHECK(v->kind == WRPO_JSON_ARRAY && !v->count && !v->child && v->next->kind == WRPO_JSON_OBJECT &&
              !v->next->child && !v->next->next,
          "empty ones");
    CHECK(!wrpo_json_get(root, "a") && !wrpo_json_get(root, "lis") && !wrpo_json_get(list, "k") &&
              !wrpo_json_get(NULL, "k"),
          "absent");
    CHECK(!strcmp(wrpo_json_get(root, "k")->text, "v"), "k");
    wrpo_json_free(ctx, root);
    wrpo_json_free(ctx, NULL);
    CHECK(wrpo_json_parse(ctx, NULL, "x", 1, &root) == WRPO_E_FORMAT &&
              !strncmp(wrpo_last_error(ctx)->text, "JSON:1:1: ", 10),
          "%s", wrpo_last_error(ctx)->text);
    CHECK(wrpo_json_parse(ctx, NULL, NULL, 0, &root) == WRPO_E_FORMAT, "no text at all");
}

static double number_of(const char *text, bool *exact, int64_t *integer) {
    wrpo_json *root;
    double x = NAN;
    if (parse(text, strlen(text), &root) != WRPO_OK) {
        CHECK(false, "%s: %s", text, wrpo_last_error(ctx)->text);
        return x;
    }
    x = root->number, *exact = root->exact, *integer = root->integer;
    wrpo_json_free(ctx, root);
    return x;
}
static void check_double(const char *text) {
    bool exact;
    int64_t integer;
    double x = number_of(text, &exact, &integer), want = strtod(text, NULL);
    CHECK(!memcmp(&x, &want, sizeof x), "%.60s: %.17g, want %.17g", text, x, want);
}
static void test_numbers(void) {
    static const struct { const char *text; bool exact; int64_t integer;
    } whole[] = {{"0", 1, 0},
                 {"-0", 1, 0},
                 {"9223372036854775807", 1, INT64_MAX},
                 {"9223372036854775808", 0, 0},
                 {"-9223372036854775808", 1, INT64_MIN},
                 {"-9223372036854775809", 0, 0},
                 {"18446744073709551616", 0, 0},
                 {"99999999999999999999", 0, 0},
                 {"9007199254740993", 1, 9007199254740993},
                 {"1.0", 0, 0},
                 {"1e0", 0, 0}};
    for (int64_t i = 0; i < WRPO__COUNT(whole); i++) {
        bool exact;
        int64_t integer;
        number_of(whole[i].text, &exact, &integer);
        CHECK(exact == whole[i].exact && integer == whole[i].integer, "%s: %d %lld", whole[i].text, exact,
              (long long)integer);
        check_double(whole[i].text);
    }
    static const char *const hard[] = {"0.1",
                                       "-0.0",
                                       "0e5",
                                       "0e99999999999999999999",
                                       "0.0e-99999999999999999999",
                                       "1e999999999999999999999",
                                       "1e-999999999999999999999",
                                       "5e-324",
                                       "2.4703282292062327e-324",
                                       "2.4703282292062328e-324",
                                       "2.2250738585072011e-308",
                                       "2.2250738585072014e-308",
                                       "1.7976931348623157e308",
                                       "1.7976931348623158e308",
                                       "1.7976931348623159e308",
                                       "9007199254740993.0",
                                       "9007199254740992.9999",
                                       "1.00000000000000011102230246251565",
                                       "1.00000000000000011102230246251566",
                                       "123456.789e-3",
                                       "100.00e+2",
                                       "0.000001",
                                       "12345678901234567890123456789012345678901234567890e-30",
                                       "1E5",
                                       "6.02214076e+23",
                                       "8.5e01"};
    for (int64_t i = 0; i < WRPO__COUNT(hard); i++) check_double(hard[i]);
    uint64_t at = 0;
    for (int i = 0; i < 20000; i++) {                  /* random digits, points and exponents */
        char text[400];
        size_t n = 0, digits = 1 + wrpo__random64(50, 1, at++) % (i % 100 ? 25 : 200),
               point = wrpo__random64(50, 1, at++) % (digits + 1);
        if (wrpo__random64(50, 1, at++) & 1) text[n++] = '-';
        for (size_t k = 0; k < digits; k++) {
            if (k == point && k) text[n++] = '.';
            text[n++] = (char)('0' + (k ? wrpo__random64(50, 1, at++) % 10 : 1 + wrpo__random64(50, 1, at++) % 9));
        }
        if (i % 3)
            n += (size_t)snprintf(text + n, 32, "%c%s%d", "eE"[i & 1],
                                  i & 2       ? ""
                                      : i & 4 ? "-"
                                              : "+",
                                  (int)(wrpo__random64(50, 1, at++) % 340));
        text[n] = 0;
        check_double(text);
    }
    enum { LONG = 100000 };                            /* zeros without end: 0.000...01 10^100000 */
    char *big = malloc(LONG + 64);
    memset(big, '0', LONG);
    big[1] = '.';
    snprintf(big + LONG, 64, "1e%d", LONG);
    check_double(big);
    free(big);
}

/* The text that is written for x, which a private function needs an entry for. */
static void written(double x, bool python, char *out, size_t n) {
    wrpo__text t = {.arena = wrpo__current};
    if (python) wrpo__double_write(&t, x, true);
    else wrpo__json_number(&t, x);
    snprintf(out, n, "%s", t.data);
}
static void write_double(double x, bool python, char *out, size_t n) {
    WRPO__CALL(ctx, wrpo__arena_new(ctx), true, written(x, python, out, n));
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "number");
}
static void write_number(double x, char *out, size_t n) { write_double(x, false, out, n); }
static void check_written(double x, bool shortest) {
    char text[64], other[64];
    bool exact;
    int64_t integer;
    write_number(x, text, sizeof text);
    double back = number_of(text, &exact, &integer);
    CHECK(!memcmp(&x, &back, sizeof x), "%.17g: %s", x, text);
    if (!shortest) return;
    int digits = 0, zeros = 0;                         /* significant: from the first that is not 0 to the last */
    for (const char *p = text; *p && *p != 'e'; p++) {
        if (*p == '0') zeros += digits > 0;
        else if (*p != '-' && *p != '.') digits += 1 + zeros, zeros = 0;
    }
    if (digits < 2) return;
    snprintf(other, sizeof other, "%.*e", digits - 2, x);
    CHECK(strtod(other, NULL) != x, "%s is longer than %s", text, other);
}
static void test_written(void) {
    static const struct { double x; const char *text;
    } cases[] = {{0, "0"},
                 {-0.0, "-0"},
                 {1, "1"},
                 {-1.5, "-1.5"},
                 {0.1, "0.1"},
                 {1.0 / 3, "0.3333333333333333"},
                 {1e-5, "0.00001"},
                 {1.25e-5, "0.0000125"},
                 {1e-6, "1e-6"},
                 {1.5e-7, "1.5e-7"},
                 {123456789, "123456789"},
                 {1e16, "10000000000000000"},
                 {1e17, "1e17"},
                 {1.5e300, "1.5e300"},
                 {12.5, "12.5"},
                 {5e-324, "5e-324"},
                 {1.7976931348623157e308, "1.7976931348623157e308"},
                 {3e-7, "3e-7"},
                 {5.684341886080802e-14, "5.684341886080802e-14"},
                 {9007199254740993.0, "9007199254740992"},
                 {NAN, "null"},
                 {INFINITY, "null"},
                 {-INFINITY, "null"}};
    for (int64_t i = 0; i < WRPO__COUNT(cases); i++) {
        char text[64];
        write_number(cases[i].x, text, sizeof text);
        CHECK(!strcmp(text, cases[i].text), "%s, want %s", text, cases[i].text);
    }
    static const struct { double x; const char *text;
    } repr[] = {/* as Python prints them */
                {0, "0.0"},
                {-0.0, "-0.0"},
                {5, "5.0"},
                {-1.5, "-1.5"},
                {1e-4, "0.0001"},
                {1.25e-5, "1.25e-05"},
                {1e-300, "1e-300"},
                {123456789, "123456789.0"},
                {1e15, "1000000000000000.0"},
                {1e16, "1e+16"},
                {1.5e300, "1.5e+300"},
                {5.684341886080802e-14, "5.684341886080802e-14"}};
    for (int64_t i = 0; i < WRPO__COUNT(repr); i++) {
        char text[64];
        write_double(repr[i].x, true, text, sizeof text);
        CHECK(!strcmp(text, repr[i].text), "%s, want %s", text, repr[i].text);
    }
    for (int e = -1074; e < 1024; e++)
        check_written(ldexp(1, e), true), check_written(-nextafter(ldexp(1, e), 0), true);
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t bits = wrpo__random64(50, 2, i);
        double x;
        memcpy(&x, &bits, sizeof x);
        if (isfinite(x)) check_written(x, true);
        check_written((double)(int64_t)(bits >> 40) / 1000, true);
    }
}
/* A decimal comma changes nothing. */
static void test_locale(void) {
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8",  "fr_FR.UTF-8",
                                        "de_DE",       "pl_PL.UTF-8", "ru_RU.UTF-8"};
    int64_t i = 0;
    while (i < WRPO__COUNT(names) && !setlocale(LC_NUMERIC, names[i])) i++;
    if (i == WRPO__COUNT(names)) { SKIP(1, "no locale with a decimal comma is installed"); return; }
    bool exact;
    int64_t integer;
    char text[64];
    CHECK(number_of("-12.5e-1", &exact, &integer) == -1.25, "read");
    write_number(1234.5625, text, sizeof text);
    CHECK(!strcmp(text, "1234.5625"), "%s", text);
    write_number(1.5e-9, text, sizeof text);
    CHECK(!strcmp(text, "1.5e-9"), "%s", text);
    setlocale(LC_NUMERIC, "C");
}

static void test_depth(void) {
    char text[1024];
    for (int depth = 255; depth <= 258; depth++) {
        wrpo_json *root;
        for (int i = 0; i < depth; i++) text[i] = '[', text[2 * depth - 1 - i] = ']';
        wrpo_result r = parse(text, (size_t)depth * 2, &root);
        CHECK((r == WRPO_OK) == (depth <= 256), "depth %d: %s", depth, wrpo_last_error(ctx)->text);
        if (r)
            CHECK(wrpo_last_error(ctx)->column == 257 && strstr(wrpo_last_error(ctx)->text, "at most 256 levels"), "%s",
                  wrpo_last_error(ctx)->text);
        wrpo_json_free(ctx, root);
    }
    enum { BOMB = 1000000 };
    char *bomb = malloc(BOMB);
    for (int i = 0; i < BOMB; i++) bomb[i] = "{\"a\":"[i % 5];
    wrpo_json *root;
    CHECK(wrpo_json_parse(ctx, "bomb", bomb, BOMB, &root) == WRPO_E_FORMAT &&
              wrpo_last_error(ctx)->column == 256 * 5 + 1,
          "%s", wrpo_last_error(ctx)->text);
    free(bomb);
}

/* Objects of every size around the change of method, and a large one; the second "twice" stands last. */
static void test_duplicates(void) {
    static const int sizes[] = {2, 3, 15, 16, 17, 18, 31, 32, 33, 64, 65, 100000};
    for (int64_t s = 0; s < WRPO__COUNT(sizes); s++)
        for (int twice = 0; twice < 2; twice++) {
            int n = sizes[s];
            size_t cap = (size_t)n * 24 + 64, at = 0;
            char *text = malloc(cap);
            at += (size_t)snprintf(text, cap, "{\"key%d\":0", n / 2 * !twice + 1000000);
            for (int i = 1; i < n - 1; i++) at += (size_t)snprintf(text + at, cap - at, ",\n\"key%d\":%d", i, i);
            at += (size_t)snprintf(text + at, cap - at, ",\n\"key1000000\":1}");
            if (n / 2 * !twice == 0 && !twice) { free(text); continue; }
            wrpo_json *root;
            wrpo_result r = wrpo_json_parse(ctx, "t", text, at, &root);
            CHECK((r == WRPO_OK) == !twice, "%d members: %s", n, wrpo_last_error(ctx)->text);
            if (!twice && root) CHECK(root->count == n && wrpo_json_get(root, "key1000000")->integer == 1, "%d", n);
            if (twice)
                CHECK(wrpo_last_error(ctx)->line == n &&
                          strstr(wrpo_last_error(ctx)->text, "\"key1000000\" again (first on line 1)"),
                      "%s", wrpo_last_error(ctx)->text);
            wrpo_json_free(ctx, root);
            free(text);
        }
    enum { COLLIDING = 1000 };                         /* all in one place of a table of 2048 */
    char *text = malloc(COLLIDING * 24), key[24];
    size_t at = 0;
    text[at++] = '{';
    for (int found = 0, i = 0; found < COLLIDING; i++) {
        size_t n = (size_t)snprintf(key, sizeof key, "k%d", i);
        if ((wrpo__hash(0, key, n) & 2047) != 5) continue;
        at += (size_t)snprintf(text + at, 24, "%s\"%s\":0", found++ ? "," : "", key);
    }
    text[at++] = '}';
    wrpo_json *root;
    CHECK(wrpo_json_parse(ctx, "t", text, at, &root) == WRPO_E_UNSUPPORTED &&
              strstr(wrpo_last_error(ctx)->text, "made to collide"),
          "%s", wrpo_last_error(ctx)->text);
    free(text);
}

static const char sample[] =
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"\xC4\xA0\": 1, \"\\u0120b\\n\": 2}, \"merges\": [[\"a\", "
    "\"b\"], \"c d\"]},\n"
    " \"rate\": -1.25e-3, \"none\": null, \"ok\": [true, false], \"smile\": \"\\uD83D\\uDE00\"}";
/* A document that breaks off anywhere is refused, and so is one with a byte too many. */
static void test_truncated(void) {
    wrpo_json *root;
    size_t n = sizeof sample - 1;
    for (size_t k = 0; k < n; k++) {
        wrpo_result r = parse(sample, k, &root);
        const wrpo_error *e = wrpo_last_error(ctx);
        CHECK(r == WRPO_E_FORMAT && !root && e->line >= 1 && e->column >= 1, "%zu bytes: %s", k, e->text);
    }
    CHECK(parse(sample, n, &root) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    wrpo_json_free(ctx, root);
    CHECK(parse(sample, n + 1, &root) == WRPO_E_FORMAT, "a NUL behind");
    int64_t accepted = 0;
    for (uint64_t i = 0; i < 30000; i++) {             /* one to three bytes changed: no crash, and nothing held */
        char text[sizeof sample];
        memcpy(text, sample, sizeof sample);
        for (uint64_t k = 0; k <= i % 3; k++) {
            uint64_t r = wrpo__random64(50, 3, i * 4 + k);
            text[r % n] = r & 1 << 20 ? (char)(r >> 32) : "{}[]\",:\\u0e-"[(r >> 32) % 12];
        }
        wrpo_result r = parse(text, n, &root);
        accepted += r == WRPO_OK;
        if ((r == WRPO_OK) != (root != NULL)) CHECK(false, "change %llu", (unsigned long long)i);
        wrpo_json_free(ctx, root);
    }
    CHECK(accepted > 100 && accepted < 20000, "%lld of 30000 changed texts accepted", (long long)accepted);
}

static void test_quote(void) {
    static const struct { const char *text; size_t n; const char *quoted;
    } cases[] = {{"", 0, "\"\""},
                 {"abc", 3, "\"abc\""},
                 {"\"\\/\b\f\n\r\t", 8, "\"\\\"\\\\/\\b\\f\\n\\r\\t\""},
                 {"\0\x1F\x7F", 3, "\"\\u0000\\u001f\x7F\""},
                 {"\xC3\xA9\xF0\x9F\x98\x80", 6, "\"\xC3\xA9\xF0\x9F\x98\x80\""},
                 {"a\xFFz", 3, "\"a\xEF\xBF\xBDz\""},
                 {"\xE2\x82", 2, "\"\xEF\xBF\xBD\""},
                 {"\xED\xA0\x80", 3, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},
                 {"\xC3", 1, "\"\xEF\xBF\xBD\""}};
    char *out;
    for (int64_t i = 0; i < WRPO__COUNT(cases); i++) {
        CHECK(wrpo_json_quote(ctx, cases[i].text, cases[i].n, &out) == WRPO_OK && !strcmp(out, cases[i].quoted),
              "case %lld: %s", (long long)i, out);
        wrpo_free(ctx, out);
    }
    for (uint64_t i = 0; i < 3000; i++) {              /* any code points come back as they were */
        char text[128];
        size_t n = 0;
        for (uint64_t k = 0; k < i % 20; k++) {
            uint64_t r = wrpo__random64(50, 4, i * 32 + k);
            uint32_t c = (uint32_t)(r >> 32) & (r & 1 ? 0x7Fu : r & 2 ? 0x7FFu : 0xFFFFFu);
            if (c < 0xD800 || c > 0xDFFF) n += wrpo__utf8_put(text + n, c);
        }
        wrpo_json *root = NULL;
        CHECK(wrpo_json_quote(ctx, text, n, &out) == WRPO_OK && parse(out, strlen(out), &root) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        CHECK(root && root->size == n && !memcmp(root->text, text, n), "text %llu", (unsigned long long)i);
        wrpo_json_free(ctx, root);
        wrpo_free(ctx, out);
    }
}

/* A value as one line: numbers digit for digit, spaces ours; read again it gives the same line. */
static void test_text(void) {
    static const char text[] = " {\"a\" :[1.50,-0, 1E+2 ,123456789012345678901234567890],\"b\\u0000\":{ },\n\"c\":[ ], "
                               "\"d\": [true,false,null,\"\\u00e9\\n\"]} ",
                      want[] = "{\"a\": [1.50, -0, 1E+2, 123456789012345678901234567890], \"b\\u0000\": {}, \"c\": [], "
                               "\"d\": [true, false, null, \"\xC3\xA9\\n\"]}";
    const char *from = text;
    size_t n = sizeof text - 1;
    char *out[2] = {NULL, NULL};
    for (int i = 0; i < 2 && from; from = out[i++], n = sizeof want - 1) {
        wrpo_json *root = NULL;
        CHECK(parse(from, n, &root) == WRPO_OK && wrpo_json_text(ctx, root, &out[i]) == WRPO_OK &&
                  !strcmp(out[i], want),
              "%s", out[i] ? out[i] : wrpo_last_error(ctx)->text);
        char *inner = NULL;
        CHECK(root && wrpo_json_text(ctx, root->child->next, &inner) == WRPO_OK && !strcmp(inner, "{}"),
              "a member alone, without its name");
        wrpo_free(ctx, inner), wrpo_json_free(ctx, root);
    }
    wrpo_free(ctx, out[0]), wrpo_free(ctx, out[1]);
}

/* The accessors of the other sections. */
static void test_wanted(void) {
    static const char text[] =
        "{\"n\": 7, \"x\": 1.5, \"s\": \"a\\nb\", \"none\": null, \"huge\": 1e999,\n \"list\": [1, \"two\"]}";
    static const char *const says[] = {"t.json:1:7: n: want a string, found 7",
                                       "t.json:1:1: absent: want a number, found no such key in this object",
                                       "t.json:1:25: s: want an integer from 1 to 9, found \"a\\nb\"",
                                       "t.json:1:15: x: want an integer from 1 to 9, found 1.5",
                                       "t.json:1:7: heads: want an integer from 8 to 9, found 7",
                                       "t.json:1:55: huge: want a finite number, found 1e999",
                                       "t.json:2:10: list: want an object, found an array of 2",
                                       "t.json:1:41: none: want true or false, found null",
                                       "t.json:1:1: JSON: want an array, found an object of 6",
                                       "t.json:1:7: n: want an object, found 7"};
    wrpo_json *root;
    CHECK(parse(text, sizeof text - 1, &root) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    for (int64_t i = 0; i < WRPO__COUNT(says); i++) {
        TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
            const wrpo_json *n = wrpo__need(root, "n", WRPO_JSON_NUMBER);
            if (i == 0) wrpo__maybe(root, "n", WRPO_JSON_STRING);
            if (i == 1) wrpo__need(root, "absent", WRPO_JSON_NUMBER);
            if (i == 2) wrpo__integer(wrpo_json_get(root, "s"), 1, 9, NULL);
            if (i == 3) wrpo__integer(wrpo_json_get(root, "x"), 1, 9, NULL);
            if (i == 4) wrpo__integer(n, 8, 9, "heads");
            if (i == 5) wrpo__real(wrpo_json_get(root, "huge"), NULL);
            if (i == 6) wrpo__want(wrpo_json_get(root, "list"), WRPO_JSON_OBJECT, NULL);
            if (i == 7) wrpo__need(root, "none", WRPO_JSON_BOOL);
            if (i == 8) wrpo__want(root, WRPO_JSON_ARRAY, NULL);
            if (i == 9) wrpo__need(n, "k", WRPO_JSON_BOOL);
        }
        wrpo_result r = wrpo__end(&wrpo__entry);
        CHECK(r == WRPO_E_FORMAT && !strcmp(wrpo_last_error(ctx)->text, says[i]), "%s, want %s",
              wrpo_last_error(ctx)->text, says[i]);
    }
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        CHECK(!wrpo__maybe(root, "none", WRPO_JSON_BOOL) &&
                  !wrpo__maybe(root, "absent", WRPO_JSON_BOOL),
              "absent");
        CHECK(wrpo__integer(wrpo_json_get(root, "n"), 7, 7, NULL) == 7 &&
                  wrpo__real(wrpo_json_get(root, "x"), NULL) == 1.5,
              "values");
        CHECK(wrpo__json_is(wrpo_json_get(root, "s"), "a\nb") && !wrpo__json_is(wrpo_json_get(root, "s"), "a") &&
                  !wrpo__json_is(wrpo_json_get(root, "n"), "7"),
              "is");
        /* JSON lines: first_line counts */
        wrpo_json *line = wrpo__json_parse(wrpo__entry.arena, "d.jsonl", 5000000000, "[1]", 3);
        CHECK(line->line == INT32_MAX && line->child->column == 2, "line");
        wrpo__json_parse(wrpo__entry.arena, "d.jsonl", 5000000000, "[1", 2);
    }
    CHECK(wrpo__end(&wrpo__entry) == WRPO_E_FORMAT && wrpo_last_error(ctx)->line == 5000000000 &&
              strstr(wrpo_last_error(ctx)->text, "d.jsonl:5000000000:3: "),
          "%s", wrpo_last_error(ctx)->text);
    wrpo_json_free(ctx, root);
}

/* Memory that runs out at every allocation in turn: refused as such, nothing held, and fine the next time. */
static void test_memory(void) {
    char text[4096], *out;
    size_t n = 0;
    n += (size_t)snprintf(text, sizeof text, "[%s, 0.%0200d, {", sample, 7);
    for (int i = 0; i < 40; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"k%d\": [%d]", i ? ", " : "", i, i);
    n += (size_t)snprintf(text + n, sizeof text - n, "}]");
    const wrpo_json value = {.kind = WRPO_JSON_STRING, .text = text, .size = n};
    for (int what = 0; what < 3; what++) {
        int64_t failures = 0;
        for (bool done = false; !done;) {
            wrpo_json *root = NULL;
            int64_t held = memory.held;
            memory.calls = 0, memory.fail_at = failures + 1;
            wrpo_result r = what == 2 ? wrpo_json_text(ctx, &value, &out)
                : what                ? wrpo_json_quote(ctx, text, n, &out)
                                      : wrpo_json_parse(ctx, "t", text, n, &root);
            memory.fail_at = 0;
            done = r == WRPO_OK;
            if (!done)
                CHECK(r == WRPO_E_MEMORY && strstr(wrpo_last_error(ctx)->text, "out of memory"), "%d %s", (int)r,
                      wrpo_last_error(ctx)->text);
            failures += !done;
            wrpo_json_free(ctx, root);
            if (done && what) wrpo_free(ctx, out);
            CHECK(memory.held == held, "allocation %lld: %lld blocks lost", (long long)failures,
                  (long long)(memory.held - held));
        }
        CHECK(failures >= 5, "%lld allocations failed", (long long)failures);
    }
}

int main(void) {
    wrpo_desc desc = {.memory = {meter_alloc, meter_free, &memory}};
    if (wrpo_open(&desc, &ctx)) return 1;
    test_accept();
    test_refuse();
    test_tree();
    test_numbers();
    test_written();
    test_locale();
    test_depth();
    test_duplicates();
    test_truncated();
    test_quote();
    test_text();
    test_wanted();
    test_memory();
    wrpo_close(ctx);
    CHECK(memory.held == 0, "%lld blocks lost", (long long)memory.held);
    return test_end("50_json");
}
