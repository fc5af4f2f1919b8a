/* Parts of the program that show a run in other tools: events as TensorBoard's writer writes them, and the numbers of
   run.json. The program is compiled into this test. */
#define main program_main
#include "example.c"
#undef main
#include "support/test.h"
#include "support/folder.h"

/* golden/tb_events.py bytes: wall_time 1.5, step 300, train/loss 0.6931, eval/rewards/margins -2e-9 */
static const unsigned char golden_event[] = {
    0x3e, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xd9, 0xd2, 0x40, 0xe7, 0x09, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0xf8, 0x3f, 0x10, 0xac, 0x02, 0x2a, 0x30, 0x0a, 0x11, 0x0a, 0x0a, 0x74, 0x72,
    0x61, 0x69, 0x6e, 0x2f, 0x6c, 0x6f, 0x73, 0x73, 0x15, 0x00, 0x6f, 0x31, 0x3f, 0x0a, 0x1b, 0x0a,
    0x14, 0x65, 0x76, 0x61, 0x6c, 0x2f, 0x72, 0x65, 0x77, 0x61, 0x72, 0x64, 0x73, 0x2f, 0x6d, 0x61,
    0x72, 0x67, 0x69, 0x6e, 0x73, 0x15, 0x5f, 0x70, 0x09, 0xb1, 0xfe, 0xb0, 0x1f, 0xe5};
static void events_bytes(void) {
    static buffer event, summary;
    unsigned char found[sizeof golden_event + 1];
    CHECK(crc32c((const unsigned char *)"123456789", 9) == 0xE3069283u, "the check value of CRC-32C");
    put_scalar(&summary, "train/loss", 0.6931);
    put_scalar(&summary, "eval/rewards/margins", -2e-9);
    put_event(&event, 1.5, 300);
    put_text(&event, 5, summary.data, summary.n);
    FILE *f = fopen(at("event"), "w+b");
    CHECK(f && write_record(f, &event), "%s", at("event"));
    if (!f) return;
    rewind(f);
    const size_t n = fread(found, 1, sizeof found, f);
    CHECK(n == sizeof golden_event && !memcmp(found, golden_event, sizeof golden_event), "%zu bytes", n);
    /* what does not fit is refused, not cut */
    for (int i = 0; i < 2000; i++) put_scalar(&summary, "train/loss/of/a/very/long/name", i);
    put_event(&event, 1.5, 1);
    put_text(&event, 5, summary.data, summary.n < sizeof summary.data ? summary.n : sizeof summary.data);
    CHECK(summary.n > sizeof summary.data && !write_record(f, &summary) && errno == EFBIG, "%zu bytes", summary.n);
    CHECK(!write_record(f, &event), "an event of %zu bytes", event.n);
    fclose(f);
}
/* The fewest digits that read back. */
static void reals(void) {
    static const struct { double x; const char *text; } cases[] = {
        {0.1, "0.1"}, {1e-7, "1e-07"}, {1. / 3, "0.3333333333333333"}, {0, "0"}, {2048, "2048"}, {1e300, "1e+300"},
        {0.1 + 0.2, "0.30000000000000004"}, {-2.5, "-2.5"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64] = "";
        FILE *f = fopen(at("real"), "w+b");
        if (f) json_real(f, cases[i].x), rewind(f), text[fread(text, 1, sizeof text - 1, f)] = 0, fclose(f);
        CHECK(strtod(text, NULL) == cases[i].x, "%s is not %.17g", text, cases[i].x);
        CHECK(!strcmp(text, cases[i].text), "%s, want %s", text, cases[i].text);
    }
}
/* Numbers of the report, and what it leaves of a long run. */
static void pictures(void) {
    static const struct { double x; const char *text; } cases[] = {
        {1, "1"}, {0.99999999, "1"}, {0.69314718, "0.6931"}, {-0., "0"}, {5e-8, "5e-08"}, {123456, "123456"},
        {123456.7, "123457"}, {-4321.5, "-4322"}, {1e20, "1e+20"}, {-3, "-3"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(!strcmp(figure(cases[i].x).s, cases[i].text), "%s, want %s", figure(cases[i].x).s, cases[i].text);
    enum { N = 300000 };
    for (int n = 1; n <= N; n = n * 7 + 1) {
        curve c = {.name = "loss"};
        double low = INFINITY, high = -INFINITY, last = 0;
        bool ok = true;
        for (int i = 0; i < n; i++) {
            last = i == n / 3 ? 100 : i == n / 2 ? -100 : sin(i) + i * 1e-5;
            low = fmin(low, last), high = fmax(high, last);
            ok = ok && curve_add(&c, i + 1, last);
        }
        const double first = c.y[0];
        double sum = 0, average = 0;
        double end = 0;
        int ends = 0;
        for (int i = 0; i < n; i++) sum += c.y[i] / n;
        for (int i = 0; i < n; i++)                    /* the last step is in the last column, not one of its own */
            if ((i + 1.) / n * 400 >= 399) end += c.y[i], ends++;
        ok = curve_thin(&c, n) && ok && !c.mean == (n <= 800);
        for (int64_t i = 0; i < c.n; i++) average += (c.mean ? c.mean : c.y)[i] / (double)c.n;
        CHECK(fabs(average - sum) < 0.01, "%d points: mean %g, want %g", n, average, sum);
        CHECK(n <= 800 || fabs(c.mean[c.n - 1] - end / ends) < 1e-9, "%d points: the last mean %g, want %g", n,
              c.mean[c.n - 1], end / ends);
        ok = ok && c.n <= 802 && (n > 800 || c.n == n) && c.y[0] == first && c.y[c.n - 1] == last && c.x[c.n - 1] == n;
        for (int64_t i = 0; i < c.n; i++) {
            if (c.y[i] == low) low = NAN;
            if (c.y[i] == high) high = NAN;
            ok = ok && (i == 0 || (c.x[i] > c.x[i - 1] && c.x[i] - c.x[i - 1] <= n / 200. + 1));
        }
        CHECK(ok && isnan(low) && isnan(high), "%d points are thinned to %d", n, (int)c.n);
        free(c.x), free(c.y), free(c.mean);
    }
}
int main(void) {
    snprintf(dir, sizeof dir, "/tmp/wrpo-tools-XXXXXX");
    CHECK(mkdtemp(dir), "mkdtemp");
    events_bytes();
    reals();
    pictures();
    scratch_remove(dir);
    return test_end("93_tools");
}
