/* The demo's parts: its checker is exact, its worked answers are true, its prompts and held-out problems share nothing, its
   tokenizers and configs are ones that the library reads. The program is compiled into this test. */
#define main program_main
#include "../example.c"
#undef main
#include "test.h"

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
        if (sscanf(p, "%lld %c %lld %c %lld = %lld ,%n", &a, &sign, &b, &more, &d, &c, &n) == 6 && n && more != '=') CHECK(evaluate(evaluate(a, sign, b), more, d) == c, "%s", text);
        else if (sscanf(p, "%lld %c %lld = %lld ,%n", &a, &sign, &b, &c, &n) == 4 && n) CHECK(evaluate(a, sign, b) == c, "%s", text);
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
    CHECK(fabs(reward(&p, "so 133") - 0.2) < 1e-12 && reward(&p, "132 ") == 1 && reward(&p, "1322") == 0 && reward(&p, "") == 0 && reward(&p, "132 no") == 0 && reward(&p, "5132") == 0, "partial");
}
static void prompts_and_models(void) {
    static bool known[3][100][100];
    char folder[4096], path[4300];
    wrpo_ctx *ctx;
    CHECK(wrpo_open(&(wrpo_desc){.threads = 1}, &ctx) == WRPO_OK && scratch_make(folder, sizeof folder), "begin");
    demo_state = 1;
    CHECK(demo_prompts(folder, "heldout.jsonl", 300, known) && demo_prompts(folder, "prompts.jsonl", 1200, known), "files");
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
        CHECK(wrpo_tokenizer_load(ctx, path, &tok) == WRPO_OK && wrpo_model_init(ctx, &(wrpo_init_desc){.config = path, .seed = 1}, &model) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        if (!tok || !model) continue;
        CHECK(wrpo_tokenizer_size(tok) == wrpo_model_config(model)->vocab_size && !strcmp(wrpo_model_config(model)->model_type, m->family), "%s", m->name);
        snprintf(path, sizeof path, "%s/%s-new/data.jsonl", folder, m->name);
        CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = path}, &data) == WRPO_OK && wrpo_data_count(data) == 200, "%s", wrpo_last_error(ctx)->text);
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
    scratch_remove(folder);
    wrpo_close(ctx);
}
int main(void) {
    checker();
    prompts_and_models();
    return test_end("96_demo");
}
