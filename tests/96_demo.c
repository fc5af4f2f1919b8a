/* The demo's parts: its checker is exact, its worked answers are true, its prompts and held-out problems share nothing,
   its tokenizers and configs are ones that the library reads. Then the whole of it, small (--quick): what each step
   left behind, what was selected, the table and the report, each recomputed here from the files before it. The program
   is compiled into this test. */
#define main program_main
#include "example.c"
#undef main
#include "support/test.h"

static double reward(const demo_problem *p, const char *text) {
    char id[64];
    snprintf(id, sizeof id, "7: %d %c %d", p->a, demo_signs[p->skill], p->b);
    return demo_reward(id, text, strlen(text));
}
static int64_t evaluate(int64_t a, char sign, int64_t b) { return sign == '+' ? a + b : sign == '-' ? a - b : a * b; }
/* Every "a + b = c" (or with a third term) in a worked answer holds; how many there are. */
static int equations(const char *text) {
    int count = 0;
    for (const char *p = text; *p;) {
        long long a, b, c, d;
        char sign, more;
        int n = 0;
        if (sscanf(p, "%lld %c %lld %c %lld = %lld ,%n", &a, &sign, &b, &more, &d, &c, &n) == 6 && n && more != '=')
            CHECK(evaluate(evaluate(a, sign, b), more, d) == c, "%s", text);
        else if (sscanf(p, "%lld %c %lld = %lld ,%n", &a, &sign, &b, &c, &n) == 4 && n)
            CHECK(evaluate(a, sign, b) == c, "%s", text);
        else break;
        count++;
        p += n;
        while (*p == ' ') p++;
    }
    return count;
}
static void checker(void) {
    char text[128], wrong[32];
    for (int skill = 0; skill < 3; skill++)
        for (int a = 10; a < 100; a++)
            for (int b = skill == 2 ? 2 : 10; b < (skill == 2 ? 10 : 100); b += 7 - 6 * (skill == 2)) {
                if (skill == 1 && a < b) continue;
                const demo_problem p = {skill, a, b, (a + b) % 6};
                const int right = demo_answer(skill, a, b);
                for (int worked = 0; worked < 2; worked++) {
                    demo_reply(&p, "so", worked, text, sizeof text);
                    CHECK(reward(&p, text) == 1, "%s is right for %d %c %d", text, a, demo_signs[skill], b);
                    CHECK(equations(text) == (worked ? skill == 2 ? 3 : 2 : 0), "%s", text);
                }
                snprintf(wrong, sizeof wrong, "%d", right + 1);
                CHECK(reward(&p, wrong) < 0.3, "%s is not right for %d %c %d", wrong, a, demo_signs[skill], b);
            }
    const demo_problem p = {0, 47, 85, 0};
    CHECK(fabs(reward(&p, "so 133") - 0.2) < 1e-12 && reward(&p, "132 ") == 1 && reward(&p, "1322") == 0 &&
              reward(&p, "") == 0 && reward(&p, "132 no") == 0 && reward(&p, "5132") == 0,
          "partial");
}
static void prompts_and_models(void) {
    static bool known[3][100][100];
    char folder[4096], path[4300];
    wrpo_ctx *ctx;
    CHECK(wrpo_open(&(wrpo_desc){.threads = 1}, &ctx) == WRPO_OK && scratch_make(folder, sizeof folder, false),
          "begin");
    demo_state = 1;
    CHECK(demo_prompts(folder, "heldout.jsonl", 300, known) && demo_prompts(folder, "prompts.jsonl", 1200, known),
          "files");
    int marked = 0;
    for (int k = 0; k < 30000; k++) marked += ((bool *)known)[k];
    CHECK(marked == 1500, "%d problems, each once", marked);
    for (int i = 0; i <= DEMO_SOURCES; i++) {
        const demo_model *m = &demo_models[i];
        wrpo_tokenizer *tok;
        wrpo_model *model;
        wrpo_data *data;
        char text[300];
        CHECK(demo_checkpoint(folder, m) && demo_pretraining(folder, m, 200, known), "%s", m->name);
        snprintf(path, sizeof path, "%s/%s-new", folder, m->name);
        CHECK(wrpo_tokenizer_load(ctx, path, &tok) == WRPO_OK &&
                  wrpo_model_init(ctx, &(wrpo_init_desc){.config = path, .seed = 1}, &model) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        if (!tok || !model) continue;
        CHECK(wrpo_tokenizer_size(tok) == wrpo_model_config(model)->vocab_size &&
                  !strcmp(wrpo_model_config(model)->model_type, m->family),
              "%s", m->name);
        snprintf(path, sizeof path, "%s/%s-new/data.jsonl", folder, m->name);
        CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = path}, &data) == WRPO_OK && wrpo_data_count(data) == 200,
              "%s", wrpo_last_error(ctx)->text);
        lines in;                                      /* and none of the known problems is among them */
        CHECK(lines_open(&in, path), "%s", path);
        in.data = realloc(in.data, in.size + 1), in.data[in.size] = 0;
        for (int line = 0; line < 3; line++) {
            demo_problem p = {line, 0, 0, 0};
            do p = demo_make(line); while (!known[p.skill][p.a][p.b]);
            for (p.wording = 0; p.wording < 6; p.wording++) {
                text[0] = '"', demo_question(&p, text + 1, sizeof text - 2), strcat(text, "\"");
                CHECK(!strstr(in.data, text), "%s", text);
            }
        }
        free(in.data);
        wrpo_data_free(data), wrpo_tokenizer_free(tok), wrpo_model_free(model);
    }
    scratch_drop(folder);
    wrpo_close(ctx);
}

/* ---- the whole demo ---- */
enum { ROWS = 400, REPLIES = 16 };
typedef struct reply { char model[16], text[320]; double reward; bool scored; } reply;
/* a line of candidates; one list of replies */
typedef struct row { char id[48]; reply reply[REPLIES]; int n; } row;
static session z;
static char folder[4096];
static char *slurp(const char *dir, const char *name, size_t *size) {       /* with a 0 behind it; the caller frees */
    char path[4300];
    snprintf(path, sizeof path, "%s%s%s", dir, *name ? "/" : "", name);
    FILE *f = fopen(path, "rb");
    char *data = f ? read_all(f, size) : NULL, *text = data ? realloc(data, *size + 1) : NULL;
    CHECK(text, "%s", path);
    if (f) fclose(f);
    if (text) text[*size] = 0;
    return text;
}
/* how many lines */
static int by_lines(const char *name, void (*take)(const wrpo_json *line, int i, void *user), void *user) {
    char path[4300];
    lines in;
    wrpo_json *line;
    int n = 0, code = -1;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (lines_open(&in, path)) {
        while (n < ROWS && (code = lines_next(&z, &in, false, &line)) == 1)
            take(line, n++, user), wrpo_json_free(z.ctx, line);
        free(in.data);
    }
    CHECK(code == 0, "%s", path);
    return n;
}
static void take_row(const wrpo_json *line, int i, void *user) {
    row *to = (row *)user + i;
    const wrpo_json *id = wrpo_json_get(line, "prompt_id"), *prompt = wrpo_json_get(line, "prompt"),
                    *all = wrpo_json_get(line, "sources");
    if (!all) all = wrpo_json_get(line, "target");
    *to = (row){.n = 0};
    snprintf(to->id, sizeof to->id, "%s", id ? id->text : "");
    CHECK(id && prompt && prompt->kind == WRPO_JSON_STRING, "line %d", i + 1);
    for (const wrpo_json *v = all ? all->child : NULL; v && to->n < REPLIES; v = v->next) {
        const wrpo_json *reward = wrpo_json_get(v, "reward");
        reply *r = &to->reply[to->n++];
        snprintf(r->model, sizeof r->model, "%s", wrpo_json_get(v, "model")->text),
            snprintf(r->text, sizeof r->text, "%s", wrpo_json_get(v, "content")->text);
        r->scored = reward != NULL, r->reward = reward ? reward->number : 0;
    }
}
static row *rows_of(const char *name, int *n) {
    row *r = calloc(ROWS, sizeof *r);
    *n = by_lines(name, take_row, r);
    return r;
}
/* The rule of the game, written a second time: 1 for the right last word; else 0.3 times the share of right digits, at
   the right length. */
static double exact(const char *id, const char *text) {
    long long a, b;
    char sign, copy[320], want[24], *word = NULL;
    if (sscanf(id, "%*d: %lld %c %lld", &a, &sign, &b) != 3) return NAN;
    sprintf(want, "%lld", (long long)evaluate(a, sign, b));
    snprintf(copy, sizeof copy, "%s", text);
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " ")) word = w;
    if (!word || strlen(word) != strlen(want)) return 0;
    double same = 0;
    for (size_t i = 0; want[i]; i++) same += word[i] == want[i];
    return strcmp(word, want) ? 0.3 * same / (double)strlen(want) : 1;
}
static bool blank(const char *text) { return strspn(text, " ") == strlen(text); }
/* NAME.jsonl and NAME-scored.jsonl are n answers of `model` to each prompt, in their order, with the rule's rewards. */
static row *scored(const char *name, const char *model, const row *asked, int count, int n) {
    char path[64];
    int raw_count, scored_count;
    snprintf(path, sizeof path, "%s.jsonl", name);
    row *raw = rows_of(path, &raw_count);
    snprintf(path, sizeof path, "%s-scored.jsonl", name);
    row *all = rows_of(path, &scored_count);
    CHECK(raw_count == count && scored_count == count, "%s: %d and %d of %d prompts", name, raw_count, scored_count,
          count);
    for (int i = 0; i < count; i++) {
        CHECK(!strcmp(raw[i].id, asked[i].id) && !strcmp(all[i].id, asked[i].id) && raw[i].n == n && all[i].n == n,
              "%s: %s: %d replies", name, raw[i].id, all[i].n);
        for (int k = 0; k < n; k++) {
            const reply *r = &all[i].reply[k], *from = &raw[i].reply[k];
            const bool nothing = !strncmp(name, "answers-", 8) && blank(from->text);
            CHECK(!from->scored && r->scored && !strcmp(r->model, model) &&
                      !strcmp(r->text, nothing ? "(nothing)" : from->text),
                  "%s: %s: \"%s\"", name, r->model, r->text);
            CHECK(fabs(r->reward - exact(all[i].id, from->text)) < 1e-6, "%s: \"%s\" for %s: %g", name, r->text,
                  all[i].id, r->reward);
        }
    }
    free(raw);
    return all;
}
/* ---- what select made: best and worst, first on a tie, without blank texts ---- */
typedef struct choice { const reply *r[3]; } choice;   /* the best source, the target's best and worst */
static void choose(const row *from, bool sources, choice *c) {
    for (int k = 0; k < from->n; k++) {
        const reply *r = &from->reply[k];
        if (blank(r->text)) continue;
        if (sources) { if (!c->r[0] || r->reward > c->r[0]->reward) c->r[0] = r; continue; }
        if (!c->r[1] || r->reward > c->r[1]->reward) c->r[1] = r;
        if (!c->r[2] || r->reward < c->r[2]->reward) c->r[2] = r;
    }
}
typedef struct selection {
    const row *asked;
    const choice *choices;
    int count, at;
    bool quads;
    double reward[3], length[3];
    int by_source[3];
} selection;
static bool usable(const selection *s, int i) {
    const choice *c = &s->choices[i];
    if (!s->quads) return c->r[0] != NULL;
    return c->r[0] && c->r[1] && strcmp(c->r[1]->text, c->r[2]->text) && strcmp(c->r[0]->text, c->r[2]->text);
}
static void take_record(const wrpo_json *line, int i, void *user) {
    selection *s = user;
    while (s->at < s->count && !usable(s, s->at)) s->at++;
    CHECK(s->at < s->count, "record %d is one too many", i + 1);
    if (s->at == s->count) return;
    const choice *c = &s->choices[s->at];
    const wrpo_json *chosen = wrpo_json_get(line, s->quads ? "chosen" : "messages"),
                    *rejected = wrpo_json_get(line, "rejected"), *text[3] = {0};
    CHECK(!strcmp(wrpo_json_get(line, "prompt_id")->text, s->asked[s->at++].id) && chosen && chosen->count == 2 &&
              !rejected == !s->quads,
          "record %d", i + 1);
    text[0] = wrpo_json_get(s->quads ? chosen->child : chosen->child->next, "content");
    if (s->quads)
        text[1] = wrpo_json_get(chosen->child->next, "content"), text[2] = wrpo_json_get(rejected->child, "content");
    for (int k = 0; k < (s->quads ? 3 : 1); k++) {
        CHECK(!strcmp(text[k]->text, c->r[k]->text), "record %d: \"%s\", not \"%s\"", i + 1, text[k]->text,
              c->r[k]->text);
        s->reward[k] += c->r[k]->reward, s->length[k] += (double)strlen(c->r[k]->text);
    }
    for (int k = 0; k < 3; k++) s->by_source[k] += !strcmp(c->r[0]->model, demo_models[k].name);
}
static void selected(const char *log, const char *file, const row *asked, const choice *choices, int count, bool quads,
                     row *const sources[3]) {
    selection s = {.asked = asked, .choices = choices, .count = count, .quads = quads};
    char text[200];
    const int records = by_lines(file, take_record, &s);
    int want = 0;
    for (int i = 0; i < count; i++) want += usable(&s, i);
    CHECK(records == want && records > 0, "%s: %d records, want %d", file, records, want);
    snprintf(text, sizeof text, "/%s: %d records (%s) of %d prompts\n", file, records, quads ? "quads" : "sft", count);
    const char *said = strstr(log, text), *end = said ? strstr(said, "\n$ ") : NULL;
    CHECK(said && end, "%s", text);
    if (!said || !end) return;
    for (int k = 0; k < (quads ? 3 : 1); k++) {        /* "source  0.2100  22.5" */
        snprintf(text, sizeof text, "\n%-40s %10.4f %12.1f\n", (const char *const[]){"source", "target", "rejected"}[k],
                 s.reward[k] / records, s.length[k] / records);
        const char *at = strstr(said, text);
        CHECK(at && at < end, "%s", text);
    }
    for (int k = 0; k < 3; k++) {                      /* "plus  0.0533  90  17  56.7 %" */
        double reward = 0;
        int n = 0;
        for (int i = 0; i < count; i++)
            for (int j = 0; j < sources[k][i].n; j++)
                if (!blank(sources[k][i].reply[j].text)) reward += sources[k][i].reply[j].reward, n++;
        snprintf(text, sizeof text, "\n%-40s %10.4f %12d %8d %5.1f %%\n", demo_models[k].name, reward / n, n,
                 s.by_source[k], 100.0 * s.by_source[k] / records);
        const char *at = strstr(said, text);
        CHECK(at && at < end, "%s", text);
    }
}
/* ---- training: a line a step, finite losses, and other weights than at the start ---- */
typedef struct metrics { wrpo_json *line[ROWS]; int n; } metrics;
static void metrics_read(const char *dir, metrics *m) {
    char path[4300];
    lines in;
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", folder, dir);
    m->n = 0;
    CHECK(lines_open(&in, path), "%s", path);
    while (m->n < ROWS && lines_next(&z, &in, false, &m->line[m->n]) == 1) m->n++;
    free(in.data);
}
static void metrics_free(metrics *m) { for (int i = 0; i < m->n; i++) wrpo_json_free(z.ctx, m->line[i]); }
static void trained(const char *dir, const char *start, int steps) {
    char a[64], b[64];
    size_t size[2];
    metrics m;
    metrics_read(dir, &m);
    CHECK(m.n == steps, "%s: %d lines, want %d steps", dir, m.n, steps);
    for (int i = 0; i < m.n; i++)
        CHECK(wrpo_json_get(m.line[i], "step")->integer == i + 1 && isfinite(wrpo_json_get(m.line[i], "loss")->number),
              "%s: step %d", dir, i + 1);
    if (!strcmp(start, "sft"))
        CHECK(!strcmp(dir, "simpo") || fabs(wrpo_json_get(m.line[0], "loss")->number - log(2)) < 1e-9,
              "%s: the first loss is ln 2", dir);
    metrics_free(&m);
    snprintf(a, sizeof a, "%s/model.safetensors", dir), snprintf(b, sizeof b, "%s/model.safetensors", start);
    char *new = slurp(folder, a, &size[0]), *old = slurp(folder, b, &size[1]);
    CHECK(new && old && size[0] == size[1] && memcmp(new, old, size[0]), "%s differs from %s", dir, start);
    free(new), free(old);
}
/* ---- the table's row of a model, from its answers ---- */
static size_t characters(const char *text) {
    size_t n = 0;
    for (; *text; text++) n += (*text & 0xC0) != 0x80;
    return n;
}
static void write_scored(const char *path, const row *r, int n) {
    FILE *f = fopen(path, "wb");
    CHECK(f, "%s", path);
    for (int i = 0; f && i < n; i++) {
        fprintf(f, "{\"prompt_id\": \"%s\", \"target\": [", r[i].id);
        for (int k = 0; k < r[i].n; k++) {
            const reply *y = &r[i].reply[k];
            char *quoted = NULL;
            CHECK(wrpo_json_quote(z.ctx, y->text, strlen(y->text), &quoted) == WRPO_OK, "%s", y->text);
            fprintf(f, "%s{\"model\": \"m\", \"content\": %s, \"reward\": %.6g}", k ? ", " : "", quoted,
                    exact(r[i].id, y->text));
            wrpo_free(z.ctx, quoted);
        }
        fputs("]}\n", f);
    }
    if (f) fclose(f);
}
static void table_row(const demo_row *d, const row *r, const row *sft, int n, const char *log, const char *html) {
    double score = 0, squares = 0, skill[3] = {0}, of[3] = {0}, win = 0, length = 0;
    char text[400], path[2][4300];
    wrpo_winrate_stats w;
    for (int i = 0; i < n; i++) {
        double right = 0, won = 0;
        for (int k = 0; k < 3; k++) {
            right += 100 * (exact(r[i].id, r[i].reply[k].text) == 1) / 3.0,
                length += (double)characters(r[i].reply[k].text) / 3 / n;
            for (int j = 0; j < 3; j++) {
                const double a = exact(r[i].id, r[i].reply[k].text), b = exact(sft[i].id, sft[i].reply[j].text);
                won += fabs(a - b) < 1e-9 ? 0.5 : a > b;
            }
        }
        const int s = strchr(r[i].id, '+') ? 0 : strchr(r[i].id, '-') ? 1 : 2;
        score += right / n, squares += right * right / n, skill[s] += right, of[s]++, win += 100 * won / 9 / n;
    }
    const double half = 1.96 * sqrt(fmax(squares - score * score, 0) / n);
    snprintf(path[0], sizeof path[0], "%s/check-a.jsonl", folder),
        snprintf(path[1], sizeof path[1], "%s/check-b.jsonl", folder);
    write_scored(path[0], r, n), write_scored(path[1], sft, n);
    CHECK(wrpo_winrate(z.ctx, &(wrpo_winrate_desc){.a = path[0], .b = path[1]}, &w) == WRPO_OK, "%s",
          wrpo_last_error(z.ctx)->text);
    CHECK(fabs(100 * w.rate - win) < 1e-6 && fabs(w.length[0] - length) < 1e-6, "%s: %g and %g, %g and %g", d->name,
          100 * w.rate, win, w.length[0], length);
    for (int s = 0; s < 3; s++) skill[s] /= of[s];
    const double shown[8] = {score, half, skill[0], skill[1], skill[2], win, 50 * (w.high - w.low), length};
    snprintf(text, sizeof text, "\n%-26s", d->name);   /* rounded to a tenth: either neighbour of a half */
    const char *at = strstr(log, text);
    double found[2][8] = {{NAN}, {NAN}};
    CHECK(at &&
              sscanf(at + 27, "%lf +-%lf%lf%lf%lf%lf +-%lf%lf", found[0], found[0] + 1, found[0] + 2, found[0] + 3,
                     found[0] + 4, found[0] + 5, found[0] + 6, found[0] + 7) == 8,
          "%s", d->name);
    snprintf(text, sizeof text, "<tr><td>%s</td>", d->name);
    const char *cell = strstr(html, text);
    CHECK(
        cell &&
            sscanf(cell + strlen(text),
                   "<td>%lf &plusmn; %lf</td><td>%lf</td><td>%lf</td><td>%lf</td><td>%lf &plusmn; %lf</td><td>%lf</td>",
                   found[1], found[1] + 1, found[1] + 2, found[1] + 3, found[1] + 4, found[1] + 5, found[1] + 6,
                   found[1] + 7) == 8,
        "%s in the report", d->name);
    for (int k = 0; k < 8; k++)
        CHECK(fabs(found[0][k] - shown[k]) < 0.05 + 1e-6 && found[0][k] == found[1][k],
              "%s: number %d is %g and %g, want %g", d->name, k + 1, found[0][k], found[1][k], shown[k]);
}
/* ---- the report: its curves read back through their own axes, its last table, and nothing to load ---- */
static const char *const runs_of[] = {"sft", "simpo", "dpo", "wrpo-constant", "wrpo"};
/* method: the runs that the chart has; NULL: all */
static const char *const methods_of[] = {"sft", "simpo", "dpo", "wrpo", "wrpo"};
static const char *in_table(double x) {
    static label l;
    l = figure(x);
    return l.s;
}
static void chart(const char *html, const char *title, const char *metric, const char *method, const metrics *m) {
    char text[300];
    double y[2], value[2] = {0}, x[2], step[2] = {0}, at;
    int n = 0, shown = 0;
    snprintf(text, sizeof text, "<figcaption>%s%s%s</figcaption>", title, method ? ", " : "", method ? method : "");
    const char *begin = strstr(html, text), *end = begin ? strstr(begin, "</figure>") : NULL;
    CHECK(end, "%s", text);
    if (!end) return;
    for (const char *p = begin; (p = strstr(p, "<path class=\"grid\" d=\"M58 ")) && p < end; p++)
        if (sscanf(p, "<path class=\"grid\" d=\"M58 %lfH448\"/><text x=\"51\" y=\"%*f\" text-anchor=\"end\">%lf<",
                   &y[n > 0], &value[n > 0]) == 2)
            n++;
    CHECK(n >= 3, "%s: %d lines", title, n);
    n = 0;
    for (const char *p = begin; (p = strstr(p, "<text x=\"")) && p < end; p++)
        if (sscanf(p, "<text x=\"%lf\" y=\"238\" text-anchor=\"%*[a-z]\">%lf<", &x[n > 0], &at) == 2)
            step[n > 0] = at, n++;
    CHECK(n >= 2 && step[0] == 0, "%s: %d steps named", title, n);
    const double dy = (value[1] - value[0]) / (y[1] - y[0]), dx = (step[1] - step[0]) / (x[1] - x[0]);
    for (int lap = 0; lap < 5; lap++) {
        snprintf(text, sizeof text, "<g class=\"c%d\"><polyline points=\"", lap);
        const char *p = strstr(begin, text);
        const bool has = wrpo_json_get(m[lap].line[0], metric) && (!method || !strcmp(method, methods_of[lap]));
        CHECK((p && p < end) == has, "%s of %s is %s", title, runs_of[lap], has ? "missing" : "made up");
        if (!has || !p) continue;
        p += strlen(text);
        for (int i = 0; i < m[lap].n; i++) {
            double px = NAN, py = NAN;
            int size = 0;
            const double want = wrpo_json_get(m[lap].line[i], metric)->number;
            CHECK(sscanf(p, "%lf,%lf %n", &px, &py, &size) == 2, "%s of %s: point %d", title, runs_of[lap], i + 1);
            p += size;
            CHECK(fabs(step[0] + (px - x[0]) * dx - (i + 1)) < 0.2 * fabs(dx) &&
                      fabs(value[0] + (py - y[0]) * dy - want) < 0.2 * fabs(dy),
                  "%s of %s: step %d is %g, want %g", title, runs_of[lap], i + 1, value[0] + (py - y[0]) * dy, want);
        }
        const wrpo_json *last = wrpo_json_get(m[lap].line[m[lap].n - 1], metric);
        snprintf(text, sizeof text, "\"/><title>%s: %s at step %d</title><desc>1 ", runs_of[lap],
                 in_table(last->number), m[lap].n);
        CHECK(!strncmp(p, text, strlen(text)), "%s", text);
        p = strstr(p, "<desc>") + 6;
        for (int i = 0; i < m[lap].n; i++) {           /* what the pointer shows */
            const int size = snprintf(text, sizeof text, "%d %s%s", i + 1,
                                      in_table(wrpo_json_get(m[lap].line[i], metric)->number),
                                      i + 1 < m[lap].n ? "," : "</desc>");
            CHECK(!strncmp(p, text, (size_t)size), "%s of %s: %s", title, runs_of[lap], text);
            p += size;
        }
        shown++;
    }
    CHECK(shown > 0, "%s", title);
}
static void report_checked(const char *html) {
    static const char *const charts[][2] = {{"accuracy", "rewards/accuracies"},
                                            {"accuracy of the source's answer", "rewards/source_accuracies"},
                                            {"accuracy of the target's answer", "rewards/pivot_accuracies"},
                                            {"alpha", "cur_alpha"},
                                            {"learning rate", "learning_rate"},
                                            {"log-prob of the source's answer", "logps/source_chosen"},
                                            {"log-prob of the target's answer", "logps/target_chosen"},
                                            {"log-prob of the rejected answer", "logps/rejected"}};
    static metrics m[5];
    int figures = 0, numbers = 0;
    for (int lap = 0; lap < 5; lap++) metrics_read(runs_of[lap], &m[lap]);
    for (int i = 0; i < 8; i++) chart(html, charts[i][0], charts[i][1], NULL, m);
    for (int i = 0; i < 4; i++) {                      /* apart: SFT's loss is three times the others' */
        chart(html, "loss", "loss", methods_of[i], m);
        chart(html, "norm of the gradient", "grad_norm", methods_of[i], m);
        if (i) chart(html, "margin of rewards", "rewards/margins", methods_of[i], m);
    }
    for (const char *p = html; (p = strstr(p, "<figure>")); p++) figures++;
    CHECK(figures == 19, "%d charts", figures);
    const char *table = strstr(html, "<h2>At the last step</h2>");
    CHECK(table, "the last table");
    for (int lap = 0; lap < 5 && table; lap++)
        for (const wrpo_json *v = m[lap].line[m[lap].n - 1]->child; v; v = v->next) {
            char text[100];
            snprintf(text, sizeof text, "<tr><td>%s</td>", v->key);
            const char *cell = strstr(table, text);
            if (!strcmp(v->key, "step")) continue;
            CHECK(cell, "%s", text);
            if (cell) cell += strlen(text);
            for (int k = 0; k < lap && cell; k++) cell = strstr(cell, "</td>"), cell = cell ? cell + 5 : NULL;
            snprintf(text, sizeof text, "<td>%s</td>", in_table(v->number));
            CHECK(cell && !strncmp(cell, text, strlen(text)), "%s of %s is %s", v->key, runs_of[lap], v->text);
            numbers++;
        }
    CHECK(numbers > 60, "%d numbers", numbers);
    CHECK(!strstr(html, "http") && !strstr(html, "src=") && !strstr(html, "url("), "nothing to load");
    for (int lap = 0; lap < 5; lap++) metrics_free(&m[lap]);
}
/* Runs the demo as `wrpo demo` would, its output in a file of `dir`; the text, which the caller frees. `kept` is the
   folder. */
static char *demo_run(const char *dir, const char *name, char kept[4096]) {
    char path[4300], report_path[4300];
    char *argv[] = {"demo", "--quick", "--keep-folder", "--seed", "5", "--out", report_path};
    size_t size;
    snprintf(path, sizeof path, "%s/%s.txt", dir, name),
        snprintf(report_path, sizeof report_path, "%s/%s.html", dir, name);
    fflush(stdout);
    const int before = dup(1), to = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(to, 1), close(to);
    const int code = dispatch(7, argv);
    fflush(stdout);
    dup2(before, 1), close(before);
    CHECK(code == 0, "exit code %d", code);
    snprintf(path, sizeof path, "%s.txt", name);
    char *log = slurp(dir, path, &size);
    const char *at = log ? strstr(log, "\nkept: ") : NULL;
    CHECK(at && sscanf(at, " kept: %4000s", kept) == 1, "the folder is named");
    return log;
}
static char *table_of(char *log) {
    char *t = strstr(log, "\n60 held-out problems"), *end = t ? strstr(t, "\nkept: ") : NULL;
    return end ? *end = 0, t : NULL;
}
static void whole_demo(void) {
    char dir[4096], again[4096], name[64];
    size_t size[2];
    int n, count[2], heldout, k;
    CHECK(scratch_make(dir, sizeof dir, true), "%s", dir);
    setenv("TMPDIR", dir, 1);
    CHECK(wrpo_open(NULL, &z.ctx) == WRPO_OK, "open");
    char *log = demo_run(dir, "first", folder), *html = slurp(dir, "first.html", &size[0]);
    if (!log || !html || test_failed) { scratch_remove(dir), wrpo_close(z.ctx); return; }
    row *asked = rows_of("prompts.jsonl", &n), *held = rows_of("heldout.jsonl", &heldout),
        *parts[2] = {rows_of("parts/sft.jsonl", &count[0]), rows_of("parts/wrpo.jsonl", &count[1])};
    CHECK(n == 240 && heldout == 60 && count[0] == 80 && count[1] == 160, "%d, %d, %d, %d", n, heldout, count[0],
          count[1]);
    for (int i = 0, at[2] = {0}; i < n; i++) {         /* the parts are the prompts, each once, in their order */
        const int p = at[0] < count[0] && !strcmp(parts[0][at[0]].id, asked[i].id) ? 0 : 1;
        CHECK(at[p] < count[p] && !strcmp(parts[p][at[p]++].id, asked[i].id), "%s", asked[i].id);
        for (int j = 0; j < heldout; j++)
            CHECK(strcmp(strchr(asked[i].id, ':'), strchr(held[j].id, ':')), "%s is held out", held[j].id);
    }
    for (int po = 0; po < 2; po++) {                   /* candidates, rewards, records */
        row *sources[3], *target = NULL;
        choice *choices = calloc((size_t)count[po], sizeof *choices);
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "%s-%s", demo_models[i].name, po ? "wrpo" : "sft");
            sources[i] = scored(name, demo_models[i].name, parts[po], count[po], 3);
            for (k = 0; k < count[po]; k++) choose(&sources[i][k], true, &choices[k]);
        }
        if (po) {
            target = scored("target-wrpo", "sft", parts[1], count[1], 5);
            for (k = 0; k < count[1]; k++) choose(&target[k], false, &choices[k]);
        }
        selected(log, po ? "quads.jsonl" : "sft.jsonl", parts[po], choices, count[po], po, sources);
        for (int i = 0; i < 3; i++) free(sources[i]);
        free(target), free(choices);
    }
    free(rows_of("quads.jsonl", &k));
    for (int i = 0; i < 4; i++)
        snprintf(name, sizeof name, "%s-init", demo_models[i].name),
            trained(demo_models[i].name, name, i < 3 ? 60 : 200);
    trained("sft", "target", 3);
    for (int i = 1; i < 5; i++) trained(runs_of[i], "sft", 4 * ((k + 31) / 32));
    const char *table = strstr(log, "60 held-out problems, three answers each");
    CHECK(table, "the caption");
    int rows = 0;
    row *sft = rows_of("answers-sft-scored.jsonl", &heldout);
    for (int i = 0; i < DEMO_ROWS && table; i++, rows++) {
        snprintf(name, sizeof name, "answers-%s", demo_rows[i].dir);
        row *of = scored(name, demo_rows[i].dir, held, heldout, 3);
        table_row(&demo_rows[i], of, sft, heldout, table, html);
        free(of);
    }
    CHECK(rows == 9, "%d rows", rows);
    report_checked(html);

    /* the same seed again */
    char *second = demo_run(dir, "second", again), *a = table_of(log), *b = second ? table_of(second) : NULL;
    CHECK(a && b && !strcmp(a, b) && strcmp(folder, again), "the same table from the same seed");
    static const char *const same[] = {"quads.jsonl", "sft.jsonl", "answers-wrpo-scored.jsonl",
                                       "wrpo/model.safetensors", "simpo/model.safetensors"};
    for (int i = 0; i < 5; i++) {
        char *x = slurp(folder, same[i], &size[0]), *y = slurp(again, same[i], &size[1]);
        CHECK(x && y && size[0] == size[1] && !memcmp(x, y, size[0]), "%s, twice the same", same[i]);
        free(x), free(y);
    }
    free(log), free(second), free(html), free(asked), free(held), free(parts[0]), free(parts[1]), free(sft);
    scratch_remove(dir);
    wrpo_close(z.ctx);
}
int main(void) {
    checker();
    prompts_and_models();
    if (SANITIZED) SKIP(1, "the whole demo takes minutes under a sanitizer");
    else whole_demo();
    return test_end("96_demo");
}
