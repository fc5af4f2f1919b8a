/* Nothing is lost: no command writes over what it reads, two runs do not share a directory, and whatever stops a
   command (a kill, a power cut, a full disk, no memory) leaves its inputs as they were and its outputs whole, absent or
   resumable, so that the next start ends with the same bytes. The program runs under support/disk.c.
     build/98_lost            every command at some moments
     build/98_lost full       every command at every operation on the disk and at 100 random moments: make lost */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "support/test.h"
#include "support/folder.h"
#include "support/tiny.h"

static char program[1000], shim[1000];
static bool full;

/* ---- trees: a folder in memory ---- */
typedef struct node { char name[300]; bool is_dir; char *data; size_t size; } node;
typedef struct tree { node *list; int count; } tree;
static node *tree_add(tree *t, const char *name, bool is_dir) {
    t->list = realloc(t->list, (size_t)(t->count + 1) * sizeof *t->list);
    node *n = &t->list[t->count++];
    *n = (node){.is_dir = is_dir};
    snprintf(n->name, sizeof n->name, "%s", name);
    return n;
}
static int by_name(const void *a, const void *b) { return strcmp(((const node *)a)->name, ((const node *)b)->name); }
static void tree_walk(tree *t, const char *root, const char *below) {
    char path[1000];
    snprintf(path, sizeof path, "%s%s", root, below);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char inner[300];
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(inner, sizeof inner, "%.100s/%.180s", below, e->d_name);
        snprintf(path, sizeof path, "%s%s", root, inner);
        if (lstat(path, &st)) continue;
        node *n = tree_add(t, inner, S_ISDIR(st.st_mode));
        if (n->is_dir) tree_walk(t, root, inner);
        else if (S_ISREG(st.st_mode)) n->data = slurp(path, &n->size);
    }
    if (d) closedir(d);
}
/* The events for TensorBoard, whose name has the time and the process, have one name here. */
static void tree_sort(tree *t) {
    static const char events[] = "events.out.tfevents.";
    for (int i = 0; i < t->count; i++) {
        char *name = strstr(t->list[i].name, events);
        if (name) snprintf(name + sizeof events - 1, 5, "wrpo");
    }
    if (t->count) qsort(t->list, (size_t)t->count, sizeof *t->list, by_name);
}
static tree tree_read(const char *root) {
    tree t = {0};
    tree_walk(&t, root, "");
    tree_sort(&t);
    return t;
}
static void tree_free(tree *t) {
    for (int i = 0; i < t->count; i++) free(t->list[i].data);
    free(t->list);
    *t = (tree){0};
}
static tree tree_copy(const tree *t) {
    tree copy = {0};
    for (int i = 0; i < t->count; i++) {
        node *n = tree_add(&copy, t->list[i].name, t->list[i].is_dir);
        n->size = t->list[i].size, n->data = malloc(n->size + 1);
        if (n->size) memcpy(n->data, t->list[i].data, n->size);
    }
    return copy;
}
/* Without the names that contain `part`. */
static void tree_drop(tree *t, const char *part) {
    int kept = 0;
    for (int i = 0; i < t->count; i++)
        if (strstr(t->list[i].name, part)) free(t->list[i].data);
        else t->list[kept++] = t->list[i];
    t->count = kept;
}
static const node *tree_find(const tree *t, const char *name) {
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->list[i].name, name)) return &t->list[i];
    return NULL;
}
static void tree_remove(const char *root) {
    tree t = {0};
    char path[1000];
    tree_walk(&t, root, "");
    for (int i = t.count - 1; i >= 0; i--) {           /* what is in a folder comes after it */
        snprintf(path, sizeof path, "%s%s", root, t.list[i].name);
        remove(path);
    }
    tree_free(&t);
    rmdir(root);
}
static void tree_write(const tree *t, const char *root) {
    char path[1000];
    mkdir(root, 0777);
    for (int i = 0; t && i < t->count; i++) {
        snprintf(path, sizeof path, "%s%s", root, t->list[i].name);
        if (t->list[i].is_dir) mkdir(path, 0777);
        else {
            FILE *f = fopen(path, "wb");
            CHECK(f && fwrite(t->list[i].data, 1, t->list[i].size, f) == t->list[i].size && !fclose(f), "%s", path);
        }
    }
}
/* What a run says of its speed is left out, and the state of a run, which has that too. */
static size_t timeless(const node *n, char *to) {
    size_t size = 0;
    const char *end = n->data + n->size;
    for (const char *p = n->data; p < end;) {
        const char *line = memchr(p, '\n', (size_t)(end - p));
        const char *stop = line ? line : end, *speed = memmem(p, (size_t)(stop - p), "tokens_per_second", 17);
        if (!speed) speed = memmem(p, (size_t)(stop - p), "<td>seconds", 11);
        const size_t size_of = (size_t)((speed ? speed : stop) - p);
        if (size_of) memcpy(to + size, p, size_of);
        size += size_of;
        p = line ? line + 1 : end;
        to[size++] = '\n';
    }
    return size;
}
/* Of events (example.c: for TensorBoard) the same: all but the wall time of each, the checksums, and speeds. false: not
   whole. */
static bool timeless_events(const node *n, char *to) {
    static const char *const tags[] = {"/tokens_per_second", "/seconds"};
    size_t at = 0;
    if (n->size) memcpy(to, n->data, n->size);
    while (at < n->size) {
        uint64_t size;
        if (n->size - at < 16) return false;
        memcpy(&size, to + at, sizeof size);
        if (size < 9 || size > n->size - at - 16) return false;
        char *event = to + at + 12;
        memset(event + 1, 0, 8), memset(event + size, 0, 4);
        for (int i = 0; i < 2; i++) {
            char *tag = memmem(event, size, tags[i], strlen(tags[i]));
            if (tag) memset(tag + strlen(tags[i]) + 1, 0, 4);
        }
        at += 16 + size;
    }
    return true;
}
static bool node_same(const node *a, const node *b) {
    const char *dot = strrchr(a->name, '.');
    if (a->is_dir != b->is_dir) return false;
    if (a->is_dir || strstr(a->name, "trainer_state.wrpo")) return true;
    if (strstr(a->name, "tfevents")) {
        char *x = malloc(a->size + 1), *y = malloc(b->size + 1);
        const bool same = a->size == b->size && timeless_events(a, x) && timeless_events(b, y) &&
                          !memcmp(x, y, a->size);
        free(x), free(y);
        return same;
    }
    if (!dot || (strcmp(dot, ".jsonl") && strcmp(dot, ".html")))
        return a->size == b->size && (!a->size || !memcmp(a->data, b->data, a->size));
    char *x = malloc(a->size + 2), *y = malloc(b->size + 2);
    const size_t n = timeless(a, x), m = timeless(b, y);
    const bool same = n == m && !memcmp(x, y, n);
    free(x), free(y);
    return same;
}
/* The first name of which two trees differ; NULL: they are the same. */
static const char *tree_differs(const tree *a, const tree *b) {
    int i = 0;
    while (i < a->count && i < b->count && !strcmp(a->list[i].name, b->list[i].name) &&
           node_same(&a->list[i], &b->list[i]))
        i++;
    if (i == a->count && i == b->count) return NULL;
    return i < a->count && (i == b->count || strcmp(a->list[i].name, b->list[i].name) <= 0) ? a->list[i].name
                                                                                             : b->list[i].name;
}

/* ---- runs of the program, in the folder w ---- */
typedef struct start { const char *variable, *value; } start;      /* of the environment; the list ends with NULL */
static char said[8000], error_text[8000];              /* by the last program: standard output, standard error */
static char *shim_log;
static char work[100];
static pid_t begin(const char *line, const start *environment, rlim_t memory) {
    char text[2000], *words[100] = {program};
    int n = 1;
    snprintf(text, sizeof text, "%s", line);
    for (char *p = strtok(text, " "); p && n < 99; p = strtok(NULL, " ")) words[n++] = p;
    fflush(stdout);
    const pid_t pid = fork();
    if (pid) return pid;
    char out[200], err[200];
    snprintf(out, sizeof out, "%s/%ld.out", dir, (long)getpid()), snprintf(err, sizeof err, "%s/%ld.err", dir,
                                                                         (long)getpid());
    const int o = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666), e = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (o < 0 || e < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0 || chdir(work)) _exit(98);
    close(o), close(e);
    for (; environment && environment->variable; environment++) setenv(environment->variable, environment->value, 1);
    const struct rlimit limit = {memory, memory};
    if (memory && setrlimit(RLIMIT_AS, &limit)) _exit(98);
    execv(program, words);
    _exit(97);
}
static void text_of(const char *kind, pid_t pid, char *to, size_t size) {
    char path[200];
    snprintf(path, sizeof path, "%s/%ld.%s", dir, (long)pid, kind);
    FILE *f = fopen(path, "rb");
    const size_t n = f ? fread(to, 1, size - 1, f) : 0;
    to[n] = 0;
    if (f) fclose(f);
    remove(path);
}
/* The exit status; a signal counts from 128. */
static int ended(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    text_of("out", pid, said, sizeof said), text_of("err", pid, error_text, sizeof error_text);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
static int run(const char *line, const start *environment) { return ended(begin(line, environment, 0)); }
static int run_file(const char *format, const char *a, const char *b) {
    char line[2000];
    snprintf(line, sizeof line, format, a, b);
    return run(line, NULL);
}
/* How many sentences were said, warnings apart; -1: there are other lines. OpenMP ends the process with its own where
   it has no memory for its threads. */
static int sentences(void) {
    int n = 0;
    for (char *p = error_text; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        if (*p == '\n') continue;
        if (!strncmp(p, "libgomp: ", 9)) return 1;
        if (strncmp(p, "wrpo: ", 6)) return -1;
        n += strncmp(p, "wrpo: warning: ", 15) != 0;
    }
    return n;
}

/* ---- fixtures ---- */
#define TRAIN "train --model ../in/tiny --data ../in/quads.jsonl --threads 1 --batch-size 2 --learning-rate 1e-2 " \
              "--warmup-ratio 0 "
static tree inputs;
static void fixtures(void) {
    char text[4000];
    size_t n = 0;
    snprintf(work, sizeof work, "%s/w", dir);
    mkdir(at("w"), 0777), mkdir(at("in"), 0777), mkdir(at("in/tok"), 0777), mkdir(at("tmp"), 0777);
    setenv("TMPDIR", "out/tmp", 1);
    tiny_tokenizer(at("in/tok"), "\"{% for m in messages %}<|im_start|>{{ m['role'] + '\\\\n' + m['content'] }}"
                                 "<|im_end|>\\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n"
                                 "{% endif %}\"");
    put("in/config.json",
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 260, \"hidden_size\": "
        "16, \"intermediate_size\": 24, \"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": "
        "1, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\", \"initializer_range\": "
        "0.05, \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\", \"bos_token_id\": 258, \"eos_token_id\": "
        "257}");
    for (int i = 1; i <= 8; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "{\"prompt_id\": \"r%d\", \"prompt\": \"question %d\", \"chosen\": [\"better %d\", "
                              "\"good %d\"], \"rejected\": \"bad %d\"}\n", i, i, i, i, i);
    put("in/quads.jsonl", text);
    n = 0;
    for (int i = 1; i <= 8; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "{\"prompt_id\": \"p%d\", \"prompt\": \"ask %d\"}\n", i, i);
    put("in/prompts.jsonl", text);
    n = 0;
    for (int i = 1; i <= 8; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "{\"prompt_id\": \"p%d\", \"prompt\": \"ask %d\", \"sources\": [{\"model\": \"a\", "
                              "\"content\": \"x%d\", \"reward\": %d}], \"target\": [{\"model\": \"t\", \"content\": "
                              "\"y\", \"reward\": 1}, {\"model\": \"t\", \"content\": \"z%d\", \"reward\": 0}]}\n",
                              i, i, i, i, i);
    put("in/candidates.jsonl", text);
    put("in/questions.json", "[{\"instruction\": \"What?\", \"dataset\": \"helpful\"}, {\"instruction\": \"Why?\", "
                             "\"dataset\": \"helpful\"}]");
    put("in/lines.jsonl", "{\"text\": \"Hi\"}\n{\"text\": \"there\"}\n");
    shell("cp -r %s %s", "golden/rewards/llama_f32", at("in/reward"));
    static const char *const lines[] = {
        "init --config ../in/config.json --tokenizer ../in/tok --out ../in/tiny --seed 3",
        "init --config ../in/config.json --tokenizer ../in/tok --out ../in/bf16 --seed 3 --save-dtype bf16",
        TRAIN "--out ../in/adapter --lora-r 2 --max-steps 2",
        TRAIN "--out ../in/run --max-steps 3",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        CHECK(run(lines[i], NULL) == 0, "%s: %s", lines[i], error_text);
    inputs = tree_read(at("in"));
}
static void inputs_unchanged(const char *after) {
    tree now = tree_read(at("in"));
    const char *name = tree_differs(&inputs, &now);
    CHECK(!name, "%s: in%s", after, name);
    if (name) tree_remove(at("in")), tree_write(&inputs, at("in"));
    tree_free(&now);
}
/* The folder w holds `out` with what is given, and nothing else. */
static void clean(const tree *given) {
    tree_remove(work);
    mkdir(work, 0777), mkdir(at("w/out"), 0777), mkdir(at("w/out/tmp"), 0777);
    if (given) tree_write(given, work);
}

/* ---- an output is no input ---- */
static void refused(const char *line, const char *pattern) {
    tree before = tree_read(dir);
    const int code = run(line, NULL);
    tree after = tree_read(dir);
    const char *name = tree_differs(&before, &after);
    CHECK(code == 1 && sentences() == 1 && strstr(error_text, pattern), "%s: exit %d: %s", line, code, error_text);
    CHECK(!name, "%s: %s", line, name);
    tree_free(&before), tree_free(&after);
}
static void outputs_are_no_inputs(void) {
    clean(NULL);
    shell("cp -r %s/. %s", at("in"), at("w"));
    shell("cd %s && ln -s tiny link && ln quads.jsonl hard.jsonl%s", work, "");
    static const char *const directories[] = {
        "train --model tiny --data quads.jsonl --out tiny",
        "train --model tiny --data quads.jsonl --out link",
        "train --model link --data quads.jsonl --out tiny/",
        "train --model tiny --data quads.jsonl --out tiny/../tiny",
        "train --model tiny --ref run --data quads.jsonl --out run",
        "train --model tiny --adapter adapter --data quads.jsonl --out adapter",
        "train --model tiny --lora-r 2 --data quads.jsonl --out tiny",
        "train --model tiny --data run/metrics.jsonl --out run",
        "train --model tiny --data quads.jsonl --eval-data run/metrics.jsonl --out run",
        "merge --model tiny --adapter adapter --out tiny",
        "merge --model tiny --adapter adapter --out adapter",
        "init --config config.json --tokenizer tiny --out tiny",
        "fuse --model tiny --source run --reward-model reward --prompts prompts.jsonl --out tiny",
        "fuse --model tiny --source tiny a=run --reward-model reward --prompts prompts.jsonl --out run",
        "fuse --model tiny --source run --reward-model reward --prompts prompts.jsonl --out reward",
        "init --config tiny/config.json --tokenizer tok --out tiny",
    };
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) refused(directories[i], "--out: want");
    static const char *const files[] = {
        "logprob --model tiny --data quads.jsonl --out quads.jsonl",
        "logprob --model tiny --data quads.jsonl --out hard.jsonl",
        "logprob --model tiny --data quads.jsonl --out tiny/model.safetensors",
        "logprob --model tiny --data quads.jsonl --as-source a --with candidates.jsonl --out candidates.jsonl",
        "eval --model tiny --data quads.jsonl --out quads.jsonl",
        "tokenize --model tiny --in lines.jsonl --out lines.jsonl",
        "tokenize --model tiny --in lines.jsonl --out tiny/tokenizer.json",
        "generate --model tiny --in prompts.jsonl --out prompts.jsonl --max-tokens 1",
        "sample --model tiny --prompts prompts.jsonl --as source --out prompts.jsonl",
        "answer --model tiny --bench alpacaeval --questions questions.json --out questions.json",
        "score --reward-model reward --in candidates.jsonl --out candidates.jsonl",
        "score --reward-model reward --in candidates.jsonl --out reward/config.json",
        "select --in candidates.jsonl --out candidates.jsonl",
        "select --in prompts.jsonl candidates.jsonl --out candidates.jsonl",
        "report run --out run/metrics.jsonl",
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) refused(files[i], "--out: want a file that is not read");
    shell("cd %s && cp prompts.jsonl sft.jsonl && cp prompts.jsonl x.jsonl.part%s", work, "");
    refused("split --in sft.jsonl --out .", "--out: want");
    shell("cd %s && cp prompts.jsonl heldout.jsonl%s", work, "");
    refused("split --in heldout.jsonl --heldout 0.2 --out .", "--out: want");
    refused("sample --model tiny --prompts x.jsonl.part --as source --out x.jsonl", "--out: want a file");
    /* Beside its inputs a command may write. */
    CHECK(run("split --in prompts.jsonl --out .", NULL) == 0 && strstr(error_text, "warning: ./heldout.jsonl is there"),
          "%s", error_text);
    CHECK(run("train --model tiny --data quads.jsonl --max-steps 1 --out tiny/inner", NULL) == 0, "%s", error_text);
    CHECK(run("train --model tiny/inner --data quads.jsonl --max-steps 1 --out .", NULL) == 0, "%s", error_text);
}

/* ---- one run to a directory ---- */
static int last_checkpoint(const char *training) {
    char path[300];
    int last = -1;
    snprintf(path, sizeof path, "%s/%s", work, training);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        int k, used = 0;
        if (sscanf(e->d_name, "checkpoint-%d%n", &k, &used) == 1 && !e->d_name[used] && k > last) last = k;
    }
    if (d) closedir(d);
    return last;
}
static void wait_for(const char *training, int k) {
    int found = -1;
    for (int i = 0; i < 20000 && (found = last_checkpoint(training)) < k; i++) usleep(2500);
    CHECK(found >= k, "%s/checkpoint-%d does not appear", training, k);
}
static void one_run_to_a_directory(void) {
    static const char four[] = TRAIN "--out out/run --max-steps 8 --save-steps 3";
    clean(NULL);
    CHECK(run(four, NULL) == 0, "%s", error_text);
    tree alone = tree_read(work);
    clean(NULL);
    pid_t pid[4];
    int won = 0;
    for (int i = 0; i < 4; i++) pid[i] = begin(four, NULL, 0);
    for (int i = 0; i < 4; i++) {
        if (ended(pid[i]) == 0) won++;
        else CHECK(sentences() == 1 && strstr(error_text, "out/run: want a directory that no other run writes, found "
                                                        "process "), "%s", error_text);
    }
    tree shared = tree_read(work);
    const char *name = tree_differs(&alone, &shared);
    CHECK(won >= 1 && !name, "%d of four runs into one directory ended; %s", won, name ? name : "");
    tree_free(&shared);
    /* The second is refused at once and told who the first is; the lock of a dead one does not hold. */
    clean(NULL);
    const pid_t first = begin(TRAIN "--out out/run --max-steps 1000000 --save-steps 3", NULL, 0);
    wait_for("out/run", 3);
    char process[40];
    snprintf(process, sizeof process, "process %ld ", (long)first);
    CHECK(run(four, NULL) == 1 && strstr(error_text, process), "%s: %s", process, error_text);
    static const char init[] = "init --config ../in/config.json --tokenizer ../in/tok --out out/run";
    CHECK(run(init, NULL) == 1 && strstr(error_text, process), "%s: %s", process, error_text);
    kill(first, SIGKILL), ended(first);
    tree_remove(at("w/out/run")), mkdir(at("w/out/run"), 0777);
    put("w/out/run/.wrpo.lock", "1");                  /* of a dead process, whose number another one may have now */
    put("w/out/run/model.safetensors.wrpo-999999999.part", "x");
    put("w/out/run/mine.part", "keep this");
    CHECK(run(four, NULL) == 0, "%s", error_text);
    CHECK(remove(at("w/out/run/mine.part")) == 0, "a file of somebody else was removed");
    shared = tree_read(work), name = tree_differs(&alone, &shared);
    CHECK(!name, "after a dead run: %s", name);
    tree_free(&shared), tree_free(&alone);
}

/* ---- what rounding leaves of the update is said ---- */
static double metric_last(const char *path, const char *metric) {
    size_t size;
    char *text = slurp(path, &size), *last = NULL;
    for (char *p = text; p && (p = strstr(p, metric)); p++) last = p;
    const double x = last ? strtod(last + strlen(metric) + 2, NULL) : (double)NAN;
    free(text);
    return x;
}
/* What is behind the header of a model's file, of `size` bytes a weight. */
static char *weights_in(const char *path, size_t size, size_t *count) {
    uint64_t header = 0;
    size_t bytes;
    char *file = slurp(path, &bytes);
    if (file) memcpy(&header, file, sizeof header), memmove(file, file + 8 + header, bytes - 8 - header);
    *count = file ? (bytes - 8 - header) / size : 0;
    return file;
}
static double bf16_at(const char *weights, size_t i) {
    uint32_t bits = 0;
    float x;
    memcpy((char *)&bits + 2, weights + 2 * i, 2), memcpy(&x, &bits, sizeof x);
    return (double)x;
}
/* The same number by its definition: sum (saved - from) (w - from) / sum (w - from)^2. */
static double kept_by_files(const char *from, const char *exact, const char *saved) {
    size_t n, n_exact, n_saved;
    char *old = weights_in(from, 2, &n), *w = weights_in(exact, 4, &n_exact), *to = weights_in(saved, 2, &n_saved);
    double kept = 0, changed = 0;
    CHECK(n && n == n_exact && n == n_saved, "%zu, %zu and %zu weights", n, n_exact, n_saved);
    for (size_t i = 0; n == n_exact && n == n_saved && i < n; i++) {
        float x;
        memcpy(&x, w + 4 * i, sizeof x);
        const double d = (double)x - bf16_at(old, i);
        changed += d * d, kept += (bf16_at(to, i) - bf16_at(old, i)) * d;
    }
    free(old), free(w), free(to);
    return kept / changed;
}
static void rounding_is_said(void) {
    static const char small[] = "train --model ../in/bf16 --data ../in/quads.jsonl --threads 1 --batch-size 2 "
                                "--max-steps 4 --warmup-ratio 0 --learning-rate 1e-5 --save-steps 2 ";
    char line[600];
    clean(NULL);
    CHECK(run_file("%s--out out/%s", small, "small") == 0, "%s", error_text);
    CHECK(strstr(said, "saved in BF16, as loaded, rounded to the nearest"), "%s", said);
    CHECK(strstr(error_text, "warning: out/small: ") && strstr(error_text, "--save-dtype f32"), "%s", error_text);
    const double small_kept = metric_last(at("w/out/small/metrics.jsonl"), "\"update_kept\"");
    CHECK(small_kept >= 0 && small_kept < 0.2, "of small updates %g are kept", small_kept);
    CHECK(run_file("%s--out out/%s --save-dtype f32", small, "f32") == 0, "%s", error_text);
    CHECK(strstr(said, "saved in F32") && !strstr(error_text, "warning: out/"), "%s%s", said, error_text);
    const double by_files = kept_by_files(at("in/bf16/model.safetensors"), at("w/out/f32/model.safetensors"),
                                          at("w/out/small/model.safetensors"));
    CHECK(fabs(small_kept - by_files) < 1e-12, "%.17g are kept, by the files %.17g", small_kept, by_files);
    for (int i = 0; i < 2; i++)
        CHECK(run_file("%s--out out/%s --save-rounding random", small, i ? "random2" : "random") == 0, "%s",
              error_text);
    CHECK(strstr(said, "saved in BF16, as loaded, rounded at random"), "%s", said);
    const double random_kept = metric_last(at("w/out/random/metrics.jsonl"), "\"update_kept\"");
    CHECK(random_kept > 0.7 && random_kept < 1.3, "rounded at random, of small updates %g are kept", random_kept);
    CHECK(!remove(at("w/out/random/run.json")) && !remove(at("w/out/random2/run.json")), "run.json");      /* --out */
    tree once = tree_read(at("w/out/random")), twice = tree_read(at("w/out/random2"));
    CHECK(once.count && !tree_differs(&once, &twice), "rounded at random: two results");
    tree_free(&once), tree_free(&twice);
    snprintf(line, sizeof line, "train --model ../in/bf16 --data ../in/quads.jsonl --threads 1 --batch-size 2 "
                                "--max-steps 4 --warmup-ratio 0 --learning-rate 1e-2 --out out/large");
    CHECK(run(line, NULL) == 0 && !strstr(error_text, "warning: out/"), "%s", error_text);
    const double large_kept = metric_last(at("w/out/large/metrics.jsonl"), "\"update_kept\"");
    CHECK(large_kept > 0.5, "of large updates %g are kept", large_kept);
    CHECK(run(TRAIN "--out out/plain --max-steps 2", NULL) == 0 && strstr(said, "saved in F32, as loaded"), "%s", said);
    /* Of weights and config.json, which say different dtypes, the weights are right. */
    shell("cp -r %s %s", at("in/bf16"), at("w/other"));
    shell("sed -i s/bfloat16/float32/ %s%s", at("w/other/config.json"), "");
    CHECK(run("train --model other --data ../in/quads.jsonl --max-steps 1 --out out/other", NULL) == 0 &&
          strstr(said, "saved in BF16, as loaded"), "%s%s", said, error_text);
}

/* ---- the best model, whose save failed, is saved when the run goes on ---- */
static void best_comes_after_all(void) {
    static const char line[] = TRAIN "--out out/run --max-steps 1 --eval-steps 1 --eval-data ../in/quads.jsonl "
                                     "--save-best loss";
    clean(NULL);
    mkdir(at("w/out/run"), 0777), put("w/out/run/best", "not a directory");
    CHECK(run(line, NULL) == 1 && strstr(error_text, "out/run/checkpoint-1"), "%s", error_text);
    CHECK(!remove(at("w/out/run/best")), "best");
    CHECK(run_file("%s --resume %s", line, "out/run/checkpoint-1") == 0, "%s", error_text);
    size_t n = 0, m = 0;
    char *best = slurp(at("w/out/run/best/model.safetensors"), &n);
    char *last = slurp(at("w/out/run/model.safetensors"), &m);
    CHECK(best && last && n == m && !memcmp(best, last, n), "best/ has %zu bytes, the model %zu", n, m);
    free(best), free(last);
}

/* ---- a run over a finished one ---- */
static void over_a_finished_run(void) {
    clean(NULL);
    CHECK(run(TRAIN "--out out/run --max-steps 2", NULL) == 0, "%s", error_text);
    tree finished = tree_read(at("w/out/run"));
    const pid_t second = begin(TRAIN "--out out/run --max-steps 1000000 --save-steps 2 --seed 9", NULL, 0);
    wait_for("out/run", 4);
    kill(second, SIGKILL), ended(second);
    CHECK(strstr(said, "a finished model is there"), "%s", said);
    tree now = tree_read(at("w/out/run"));
    for (int i = 0; i < finished.count; i++) {
        const node *n = tree_find(&now, finished.list[i].name);
        CHECK(n && node_same(n, &finished.list[i]), "%s", finished.list[i].name);
    }
    tree_free(&finished), tree_free(&now);
    CHECK(run(TRAIN "--out out/run --max-steps 1 --seed 9", NULL) == 0, "%s", error_text);
    CHECK(strstr(said, "of an earlier run: --resume out/run/checkpoint-"), "%s", said);
}

/* ---- what stops a command: kills, power cuts, faults ---- */
typedef struct job {
    const char *name, *line;
    const char *given;               /* run before, in the same folder; NULL: nothing */
    const char *training;            /* its --out: a checkpoint there is what the next start resumes */
    bool refuses;                    /* a finished output is not made anew */
} job;
static const job jobs[] = {
    {"init", "init --config ../in/config.json --tokenizer ../in/tok --out out/new/model --save-dtype bf16 "
             "--max-shard-size 9000", NULL, NULL, false},
    {"train", TRAIN "--out out/run --max-steps 4 --save-steps 2 --eval-data ../in/quads.jsonl", NULL, "out/run", false},
    {"train over a finished run", TRAIN "--out out/run --max-steps 4 --save-steps 3 --seed 9",
     TRAIN "--out out/run --max-steps 3 --max-shard-size 9000", "out/run", false},
    {"train, keeping the best", TRAIN "--out out/run --max-steps 4 --save-steps 2 --eval-data ../in/quads.jsonl "
     "--eval-steps 1 --save-best loss --tensorboard", NULL, "out/run", false},
    {"train an adapter", TRAIN "--out out/lora --max-steps 3 --save-steps 2 --lora-r 2", NULL, "out/lora", false},
    {"merge", "merge --model ../in/tiny --adapter ../in/adapter --out out/merged", NULL, NULL, false},
    {"tokenize", "tokenize --model ../in/tiny --in ../in/lines.jsonl --out out/ids.jsonl", NULL, NULL, false},
    {"logprob", "logprob --model ../in/tiny --data ../in/quads.jsonl --out out/logps.jsonl",
     "logprob --model ../in/run --data ../in/quads.jsonl --out out/logps.jsonl", NULL, false},
    {"eval", "eval --model ../in/run --ref ../in/tiny --data ../in/quads.jsonl --out out/eval.jsonl", NULL, NULL,
     false},
    {"generate", "generate --model ../in/tiny --in ../in/prompts.jsonl --out out/answers.jsonl --max-tokens 4", NULL,
     NULL, false},
    {"sample", "sample --model ../in/tiny --prompts ../in/prompts.jsonl --as source --n 2 --max-tokens 4 --out "
               "out/sampled.jsonl", NULL, NULL, true},
    {"answer", "answer --model ../in/tiny --bench alpacaeval --questions ../in/questions.json --out out/answers.json "
               "--max-tokens 4", NULL, NULL, false},
    {"score", "score --reward-model ../in/reward --rescore --in ../in/candidates.jsonl --out out/scored.jsonl", NULL,
     NULL, false},
    {"select", "select --in ../in/candidates.jsonl --out out/quads.jsonl", NULL, NULL, false},
    {"split", "split --in ../in/prompts.jsonl --out out/parts --seed 2 --heldout 0.3",
     "split --in ../in/prompts.jsonl --out out/parts --seed 3 --heldout 0.4", NULL, false},
    {"report", "report ../in/run --out out/report.html", NULL, NULL, false},
    {"report --csv", "report ../in/run --csv --out out/metrics.csv", NULL, NULL, false},
    {"fuse", "fuse --model ../in/tiny --source a=../in/run --reward-model ../in/reward --prompts ../in/prompts.jsonl "
             "--out out/fuse --n 2 --max-tokens 4 --heldout 0 --batch-size 2 --learning-rate 1e-2 --max-steps 2 "
             "--sft-options=--max-steps=2 --threads 1", NULL, NULL, false},
};
enum { JOBS = sizeof jobs / sizeof *jobs };
typedef struct plan {                /* of a job: what is there before it and after it, and how long it takes */
    const job *job;
    tree before, after;
    long operations, reads, mallocs;
    double seconds;
} plan;
static long kills, cuts, faults;
static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
/* A folder of a dead run, or one that could not be removed: it goes when another is made, if it has its lock. */
#define SCRATCH "/out/tmp/wrpo-"
/* A file is the old one, the new one, or not there; a directory that opens as a model is the old one or the new one. */
static void whole(const plan *p, const tree *now, const char *when) {
    static const char *const of_model[] = {"config.json", "model.safetensors", "tokenizer.json"};
    for (int i = 0; i < now->count; i++) {
        const node *n = &now->list[i], *old = tree_find(&p->before, n->name), *new = tree_find(&p->after, n->name);
        if (n->is_dir || strstr(n->name, ".part") || strstr(n->name, "/checkpoint-") || strstr(n->name, ".wrpo.lock") ||
            strstr(n->name, "metrics.jsonl") || strstr(n->name, ".settings") || strstr(n->name, "fuse.log") ||
            strstr(n->name, "tfevents") || !strncmp(n->name, "/out/tmp/", 9))
            continue;
        if (new && strstr(n->name, "/best/") && n->size == new->size) continue;    /* of another step */
        CHECK((old && node_same(n, old)) || (new && node_same(n, new)), "%s, %s: %s is neither the old nor the new one",
              p->job->name, when, n->name);
    }
    if (!p->job->training) return;
    int there = 0, old_ones = 0, new_ones = 0;
    for (int i = 0; i < 3; i++) {
        char name[300];
        snprintf(name, sizeof name, "/%s/%s", p->job->training, of_model[i]);
        const node *n = tree_find(now, name), *old = tree_find(&p->before, name), *new = tree_find(&p->after, name);
        there += n != NULL, old_ones += n && old && node_same(n, old), new_ones += n && new && node_same(n, new);
    }
    CHECK(there < 3 || old_ones == 3 || new_ones == 3, "%s, %s: a model of two runs", p->job->name, when);
}
/* All lines of a file are lines of b, in their order. Left out may be those of one step and its evaluation. */
static bool lines_among(const node *a, const node *b) {
    if (!a || !b) return false;
    char *x = malloc(a->size + 2), *y = malloc(b->size + 2), *p = x, *q = y;
    const char *x_end = x + timeless(a, x), *y_end = y + timeless(b, y);
    int missing = 0;
    while (q < y_end) {
        const char *stop = memchr(q, '\n', (size_t)(y_end - q));
        const size_t n = (size_t)(stop - q) + 1;
        if ((size_t)(x_end - p) >= n && !memcmp(p, q, n)) p += n;
        else missing++;
        q += n;
    }
    const bool among = p == x_end && missing <= 2;
    free(x), free(y);
    return among;
}
/* After a stop, in the folder w: the inputs are unchanged, the outputs whole, the next start succeeds and ends with the
   bytes of a run that nothing stopped. failed: it ended by itself, with a checkpoint of where it was, perhaps without
   the line of metrics that could not be made. */
static void goes_on(const plan *p, const char *when, bool failed) {
    char line[1200];
    int n = snprintf(line, sizeof line, "%s", p->job->line);
    inputs_unchanged(when);
    tree now = tree_read(work);
    whole(p, &now, when);
    const int k = p->job->training ? last_checkpoint(p->job->training) : -1;
    if (k >= 0)
        snprintf(line + n, sizeof line - (size_t)n, " --resume %s/checkpoint-%d", p->job->training, k);
    const int code = run(line, NULL);
    if (code == 1 && p->job->refuses && strstr(error_text, "is there already")) (void)0;
    else CHECK(code == 0, "%s, %s: the next start: exit %d: %s", p->job->name, when, code, error_text);
    tree end = tree_read(work), want = tree_copy(&p->after);
    if (!strncmp(when, "power", 5)) tree_drop(&end, ".wrpo.lock");     /* that of a directory which is done may stay */
    tree_drop(&end, SCRATCH);
    if (failed) tree_drop(&end, "/checkpoint-"), tree_drop(&want, "/checkpoint-");
    if (failed && p->job->training) {
        char path[300];
        snprintf(path, sizeof path, "/%s/metrics.jsonl", p->job->training);
        const node *lines = tree_find(&end, path), *all = tree_find(&want, path);
        CHECK(lines_among(lines, all), "%s, %s: other metrics", p->job->name, when);
        /* The best of the evaluations that have a line. */
        if (lines && all && !node_same(lines, all)) tree_drop(&end, "/best/"), tree_drop(&want, "/best/");
        tree_drop(&end, "metrics.jsonl"), tree_drop(&want, "metrics.jsonl");
        tree_drop(&end, "tfevents"), tree_drop(&want, "tfevents");
    }
    /* Of a stage that is done, a line of metrics may be missing, or a file be there that could not be removed. */
    static const char *const of_stages[] = {"metrics.jsonl", "report.html", ".settings", ".wrpo.lock"};
    for (int i = 0; failed && i < 4 && !strcmp(p->job->name, "fuse"); i++)
        tree_drop(&end, of_stages[i]), tree_drop(&want, of_stages[i]);
    const char *name = tree_differs(&want, &end);
    CHECK(!name, "%s, %s: after the next start %s differs", p->job->name, when, name);
    tree_free(&now), tree_free(&end), tree_free(&want);
}
static plan plan_of(const job *j) {
    plan p = {.job = j};
    const start counting[] = {{"LD_PRELOAD", shim}, {"DISK_ROOT", "out"}, {"DISK_COUNT", "../count"}, {NULL, NULL}};
    clean(NULL);
    if (j->given) CHECK(run(j->given, NULL) == 0, "%s: %s", j->given, error_text);
    p.before = tree_read(work);
    const double begin_time = seconds();
    CHECK(run(j->line, NULL) == 0, "%s: %s", j->line, error_text);
    p.seconds = seconds() - begin_time;
    p.after = tree_read(work);
    clean(&p.before);
    CHECK(run(j->line, counting) == 0, "%s: %s", j->line, error_text);
    tree counted = tree_read(work);
    const char *name = tree_differs(&p.after, &counted);
    CHECK(!name, "%s: two runs, two results: %s", j->name, name);
    tree_free(&counted);
    FILE *f = fopen(at("count"), "r");
    CHECK(f && fscanf(f, "%ld %ld %ld", &p.operations, &p.reads, &p.mallocs) == 3 && p.operations > 0, "%s: %ld "
          "operations on the disk are counted", j->name, p.operations);
    if (f) fclose(f);
    return p;
}
static void plan_free(plan *p) { tree_free(&p->before), tree_free(&p->after); }
/* The numbers from 1 to n, or about `some` of them that differ from job to job. */
static long stride_of(long n, long some) { return full || n <= some ? 1 : (n + some - 1) / some; }
static long first_of(const plan *p, long stride) { return 1 + (long)(p->job - jobs) * 7 % stride; }

static void killed_at_operations(const plan *p) {
    const long stride = stride_of(p->operations, 8);
    for (long n = first_of(p, stride); n <= p->operations; n += stride)
        for (int tear = 0; tear < (full ? 2 : 1); tear++) {
            char number[24], when[60];
            snprintf(number, sizeof number, "%ld", n), snprintf(when, sizeof when, "killed at operation %ld", n);
            const start killing[] = {{"LD_PRELOAD", shim}, {"DISK_ROOT", "out"}, {"DISK_KILL", number},
                                     {"DISK_TEAR", full ? (tear ? "1" : "0") : (n % 2 ? "1" : "0")}, {NULL, NULL}};
            clean(&p->before);
            const int code = run(p->job->line, killing);
            CHECK(code == 128 + SIGKILL, "%s, %s: exit %d", p->job->name, when, code);
            kills++;
            goes_on(p, when, false);
        }
}
static void killed_at_random(const plan *p, unsigned seed) {
    for (int i = 0; i < (full ? 100 : 2); i++) {
        seed = seed * 1664525u + 1013904223u;
        clean(&p->before);
        const pid_t pid = begin(p->job->line, NULL, 0);
        usleep((useconds_t)((double)(seed >> 8) / 16777216.0 * p->seconds * 1.1e6));
        kill(pid, SIGKILL), ended(pid);
        kills++;
        goes_on(p, "killed at a random moment", false);
    }
}

/* ---- power cuts: the disk that a run leaves, worked out from what it did ----
   What is synced is kept: a file's bytes by the sync of the file, its name by the sync of its directory. Of the rest
   two extremes are tried: no name that is not synced is there, and (as on ext4) all names are there and no byte that is
   not synced. */
typedef struct entry { char name[120]; int inode; } entry;
typedef struct content { char *data; size_t size; entry *list; int count; } content;   /* of a file, of a directory */
typedef struct inode { bool is_dir; content now, kept; } inode;
typedef struct disk { inode *list; int count; } disk;
static int disk_new(disk *d, bool is_dir) {
    d->list = realloc(d->list, (size_t)(d->count + 1) * sizeof *d->list);
    d->list[d->count] = (inode){.is_dir = is_dir};
    return d->count++;
}
static void content_free(content *c) { free(c->data), free(c->list); }
static void keep(inode *i) {
    content_free(&i->kept);
    i->kept = i->now;
    i->kept.data = malloc(i->now.size + 1);
    if (i->now.size) memcpy(i->kept.data, i->now.data, i->now.size);
    i->kept.list = malloc((size_t)(i->now.count + 1) * sizeof(entry));
    if (i->now.count) memcpy(i->kept.list, i->now.list, (size_t)i->now.count * sizeof(entry));
}
static int entry_of(const content *c, const char *name, size_t size) {
    for (int i = 0; i < c->count; i++)
        if (strlen(c->list[i].name) == size && !memcmp(c->list[i].name, name, size)) return i;
    return -1;
}
/* The inode of a path, -1: none. parent, name: where its entry is or would be. */
static int look_up(const disk *d, const char *path, int *parent, char *name) {
    int at_inode = 0, above = 0;
    snprintf(name, 120, "%s", "");
    for (const char *p = path; *p;) {
        const size_t n = strcspn(p, "/");
        if (n) {
            above = at_inode;
            snprintf(name, 120, "%.*s", (int)n, p);
            const int e = above < 0 ? -1 : entry_of(&d->list[above].now, p, n);
            at_inode = e < 0 ? -1 : d->list[above].now.list[e].inode;
        }
        p += n;
        p += *p == '/';
    }
    *parent = above;
    return at_inode;
}
static void link_name(disk *d, int parent, const char *name, int to) {
    content *c = &d->list[parent].now;
    int e = entry_of(c, name, strlen(name));
    if (e < 0) {
        c->list = realloc(c->list, (size_t)(c->count + 1) * sizeof *c->list);
        e = c->count++;
        snprintf(c->list[e].name, sizeof c->list[e].name, "%s", name);
    }
    c->list[e].inode = to;
}
static void unlink_name(disk *d, int parent, const char *name) {
    content *c = &d->list[parent].now;
    const int e = entry_of(c, name, strlen(name));
    if (e >= 0) c->list[e] = c->list[--c->count];
}
static void file_write(inode *i, const char *data, size_t size) {
    i->now.data = realloc(i->now.data, i->now.size + size + 1);
    if (size) memcpy(i->now.data + i->now.size, data, size);
    i->now.size += size;
}
static disk disk_of(const tree *t) {
    disk d = {0};
    disk_new(&d, true);
    for (int i = 0; i < t->count; i++) {
        char name[120];
        int parent;
        if (look_up(&d, t->list[i].name, &parent, name) >= 0) continue;
        const int made = disk_new(&d, t->list[i].is_dir);
        link_name(&d, parent, name, made);
        if (!t->list[i].is_dir) file_write(&d.list[made], t->list[i].data, t->list[i].size);
    }
    for (int i = 0; i < d.count; i++) keep(&d.list[i]);
    return d;
}
static void disk_free(disk *d) {
    for (int i = 0; i < d->count; i++) content_free(&d->list[i].now), content_free(&d->list[i].kept);
    free(d->list);
}
static void disk_do(disk *d, char what, const char *path, const char *to, const char *data, size_t size) {
    char name[120], new_name[120];
    int parent, new_parent;
    int i = look_up(d, path, &parent, name);
    if (parent < 0) return;          /* in a scratch folder, which is not of the tree */
    if (what == 'c' || what == 'm') link_name(d, parent, name, disk_new(d, what == 'm'));
    if (i < 0) return;
    inode *n = &d->list[i];
    if (what == 'w') file_write(n, data, size);
    if (what == 't') {
        int64_t left = 0;
        if (size) memcpy(&left, data, sizeof left);
        if ((size_t)left < n->now.size) n->now.size = (size_t)left;
    }
    if (what == 's') keep(n);
    if (what == 'u' || (what == 'd' && n->now.count == 0)) unlink_name(d, parent, name);
    if (what == 'r') {
        look_up(d, to, &new_parent, new_name);
        link_name(d, new_parent, new_name, i);
        unlink_name(d, parent, name);
    }
}
/* The tree after a power cut. names: all of them, else only those that are synced. */
static void disk_tree(const disk *d, int i, bool names, const char *below, tree *t) {
    const content *c = names ? &d->list[i].now : &d->list[i].kept;
    for (int e = 0; e < c->count; e++) {
        char path[300];
        const inode *in = &d->list[c->list[e].inode];
        snprintf(path, sizeof path, "%.150s/%.120s", below, c->list[e].name);
        node *n = tree_add(t, path, in->is_dir);
        if (in->is_dir) disk_tree(d, c->list[e].inode, names, path, t);
        else {
            n->data = malloc(in->kept.size + 1), n->size = in->kept.size;
            if (n->size) memcpy(n->data, in->kept.data, n->size);
        }
    }
}
static void power_cuts(const plan *p) {
    const start logging[] = {{"LD_PRELOAD", shim}, {"DISK_ROOT", "out"}, {"DISK_LOG", shim_log}, {NULL, NULL}};
    const long stride = stride_of(p->operations, 6);
    size_t size = 0;
    remove(shim_log);
    clean(&p->before);
    CHECK(run(p->job->line, logging) == 0, "%s: %s", p->job->line, error_text);
    char *log = slurp(shim_log, &size);
    disk d = disk_of(&p->before);
    long done = 0;
    for (size_t at_byte = 0; log && at_byte < size;) {
        size_t sizes[3];
        char path[600], to[600];
        const char what = log[at_byte], *q = log + at_byte + 1;
        memcpy(sizes, q, sizeof sizes), q += sizeof sizes;
        snprintf(path, sizeof path, "%.*s", (int)sizes[0], q), q += sizes[0];
        snprintf(to, sizeof to, "%.*s", (int)sizes[1], q), q += sizes[1];
        disk_do(&d, what, path, to, q, sizes[2]);
        at_byte = (size_t)(q - log) + sizes[2];
        if (done++ % stride != first_of(p, stride) - 1 && at_byte < size) continue;
        for (int names = 0; names < 2; names++) {
            char when[80];
            tree left = {0};
            disk_tree(&d, 0, names, "", &left);
            tree_sort(&left);
            snprintf(when, sizeof when, "power cut after operation %ld, names %s", done, names ? "kept" : "lost");
            clean(&left);
            cuts++;
            goes_on(p, when, false);
            tree_free(&left);
        }
    }
    CHECK(done == p->operations, "%s: %ld operations in the log, want %ld", p->job->name, done, p->operations);
    tree now = {0};                  /* after the end of a command all is there */
    disk_tree(&d, 0, false, "", &now);
    tree_drop(&now, ".wrpo.lock");
    tree_sort(&now);
    const char *name = tree_differs(&p->after, &now);
    CHECK(!name || p->job->refuses, "%s: a power cut after its end loses %s", p->job->name, name);
    tree_free(&now), disk_free(&d), free(log);
}

/* ---- faults: the command ends well, or with one sentence; nothing is lost ---- */
static void faulty(const plan *p, const start *environment, const char *when) {
    clean(&p->before);
    const int code = run(p->job->line, environment);
    faults++;
    CHECK(code == 0 || (code == 1 && sentences() > 0), "%s, %s: exit %d: %s", p->job->name, when, code, error_text);
    if (code == 0) {
        tree now = tree_read(work);
        tree_drop(&now, SCRATCH);
        const char *name = tree_differs(&p->after, &now);
        CHECK(!name || strstr(name, ".part") || strstr(name, ".lock") || strstr(name, ".settings"),
              "%s, %s: it ends well, but %s differs", p->job->name, when, name);
        tree_free(&now);
    }
    goes_on(p, when, true);
}
static void with_faults(const plan *p) {
    static const struct { const char *variable, *error, *what; long some; } kinds[] = {
        {"DISK_FAIL", "28", "no space at operation", 5}, {"DISK_FAIL", "5", "an I/O error at operation", 2},
        {"DISK_READ", "5", "an I/O error at read", 3}, {"DISK_READ", "4", "an interrupted call at read", 2},
        {"DISK_MALLOC", "12", "no memory at allocation", 4},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const long n = k < 2 ? p->operations : k < 4 ? p->reads : p->mallocs;
        long stride = stride_of(n, kinds[k].some);
        if (k == 4 && full) stride = (n + 199) / 200;
        for (long i = first_of(p, stride); i <= n; i += stride) {
            char number[24], when[80];
            snprintf(number, sizeof number, "%ld", i), snprintf(when, sizeof when, "%s %ld", kinds[k].what, i);
            const start fault[] = {{"LD_PRELOAD", shim}, {"DISK_ROOT", "out"}, {kinds[k].variable, number},
                                   {"DISK_ERRNO", kinds[k].error}, {NULL, NULL}};
            faulty(p, fault, when);
        }
    }
    const start bits[] = {{"LD_PRELOAD", shim}, {"DISK_ROOT", "out"}, {"DISK_READ", "0"}, {NULL, NULL}};
    clean(&p->before);
    CHECK(run(p->job->line, bits) == 0, "%s, short reads: %s", p->job->name, error_text);
    tree now = tree_read(work);
    const char *name = tree_differs(&p->after, &now);
    CHECK(!name, "%s, short reads: %s differs", p->job->name, name);
    tree_free(&now);
    faults++;
    /* Little address space: a sentence, once there is enough to begin. */
    for (rlim_t limit = 24 << 20, end = 0; !end; limit += (rlim_t)(full ? 2 : 16) << 20) {
        clean(&p->before);
        const int code = ended(begin(p->job->line, NULL, limit));
        /* Before the program begins, others say it. */
        const bool of_others = code == 127 && strstr(error_text, "shared libraries");
        CHECK(code == 0 || of_others || (code == 1 && sentences() > 0), "%s, %ld MiB of address space: exit %d: %s",
              p->job->name, (long)(limit >> 20), code, error_text);
        faults++;
        end = code == 0 || limit > (rlim_t)4 << 30;
        if (end) CHECK(code == 0, "%s: 4 GiB of address space are not enough", p->job->name);
        else goes_on(p, "too little address space", true);
    }
}
/* A model that becomes shorter, or other, while it is mapped: no result, and a sentence that names it. */
static void mapped_and_changed(void) {
    static const char *const lines[] = {
        TRAIN "--out out/lora --max-steps 3 --save-steps 1 --lora-r 2",
        TRAIN "--out out/run --max-steps 3",
        "logprob --model ../in/tiny --data ../in/quads.jsonl --threads 1 --out out/logps.jsonl",
        "logprob --model ../in/tiny --data ../in/quads.jsonl --as-source a --threads 1 --out out/a.jsonl",
        "eval --model ../in/tiny --ref ../in/run --data ../in/quads.jsonl --threads 1 --out out/eval.jsonl",
        "answer --model ../in/tiny --bench alpacaeval --questions ../in/questions.json --max-tokens 4 --threads 1 "
        "--out out/answers.json",
        "merge --model ../in/tiny --adapter ../in/adapter --threads 1 --out out/merged",
        "sample --model ../in/tiny --prompts ../in/prompts.jsonl --as source --max-tokens 4 --threads 1 --out "
        "out/s.jsonl",
        "generate --model ../in/tiny --in ../in/prompts.jsonl --max-tokens 4 --threads 1 --out out/g.jsonl",
    };
    char path[300];
    if (!realpath(at("in/tiny/model.safetensors"), path)) return;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        for (int shrinks = 0; shrinks < 2; shrinks++) {
            const start changing[] = {{"LD_PRELOAD", shim}, {"DISK_ROOT", "out"},
                                      {shrinks ? "DISK_SHRINK" : "DISK_TOUCH", path}, {NULL, NULL}};
            clean(NULL);
            const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
            CHECK(utimensat(AT_FDCWD, path, old, 0) == 0, "%s", path);
            const int code = run(lines[i], changing);
            faults++;
            CHECK(code == 1 && sentences() > 0 && strstr(error_text, "in/tiny/model.safetensors"),
                  "%s, %s: exit %d: %s", lines[i], shrinks ? "cut" : "written to", code, error_text);
            tree_remove(at("in")), tree_write(&inputs, at("in"));
        }
}

/* ---- full only ---- */
/* The demo calls the other commands; its folder for them goes with the next start. */
static void demo_killed(void) {
    static const char line[] = "demo --quick --out out/report.html";
    clean(NULL);
    const double begun = seconds();
    CHECK(run(line, NULL) == 0, "%s", error_text);
    const double whole_time = seconds() - begun;
    tree after = tree_read(work);
    for (int i = 0; i < 5; i++) {
        clean(NULL);
        const pid_t pid = begin(line, NULL, 0);
        usleep((useconds_t)(whole_time * 1e6 * (i + 0.5) / 5));
        kill(pid, SIGKILL), ended(pid);
        kills++;
        tree now = tree_read(work);
        const node *n = tree_find(&now, "/out/report.html");
        CHECK(!n || (n->size > 7 && !memcmp(n->data + n->size - 8, "</html>\n", 8)), "half a report");
        tree_free(&now);
    }
    CHECK(run(line, NULL) == 0, "%s", error_text);
    tree end = tree_read(work);
    CHECK(end.count == after.count, "a killed demo leaves %d files", end.count - after.count);
    tree_free(&after), tree_free(&end);
}
static long status_of(pid_t pid, const char *field) {
    char path[60], line[200];
    long value = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, field, strlen(field))) value = atol(line + strlen(field));
    if (f) fclose(f);
    return value;
}
static long open_files(pid_t pid) {
    char path[60];
    long n = 0;
    snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) n += e->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}
static long lines_in(const char *path) {
    size_t size;
    long n = 0;
    char *text = slurp(path, &size);
    for (const char *p = text; p && (p = strchr(p, '\n')); p++) n++;
    free(text);
    return n;
}
/* 20,000 steps with saves and evaluations: memory and open files stay as they were. */
static void long_run(void) {
    static const char line[] = TRAIN "--out out/run --max-steps 20000 --save-steps 500 --eval-steps 500 "
                                     "--eval-data ../in/quads.jsonl --log-steps 1000";
    long memory[2] = {0}, handles[2] = {0};
    int status;
    clean(NULL);
    const pid_t pid = begin(line, NULL, 0);
    for (long steps = 0; waitpid(pid, &status, WNOHANG) == 0; usleep(20000)) {
        steps = lines_in(at("w/out/run/metrics.jsonl"));
        const int late = steps > 19000;
        if (steps < 1000 || (!late && memory[0])) continue;
        const long resident = status_of(pid, "VmRSS:"), open = open_files(pid);
        if (resident && open) memory[late] = resident, handles[late] = open;   /* else it has just ended */
    }
    printf("20,000 steps: %ld kB and %ld open files after 1,000, %ld kB and %ld at the end\n", memory[0], handles[0],
           memory[1], handles[1]);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
    CHECK(memory[0] && memory[1] && memory[1] <= memory[0] + memory[0] / 20, "memory grows");
    CHECK(handles[1] <= handles[0] + 2, "open files");
    text_of("out", pid, said, sizeof said), text_of("err", pid, error_text, sizeof error_text);
}

int main(int argc, char **argv) {
    const char *given = getenv("WRPO_PROGRAM"), *only = argc > 2 ? argv[2] : NULL;
    char here[600];
    full = argc > 1 && !strcmp(argv[1], "full");
    if (!given || !getcwd(here, sizeof here)) return printf("98_lost: WRPO_PROGRAM names no program\n"), 1;
    snprintf(program, sizeof program, "%s%s%s", *given == '/' ? "" : here, *given == '/' ? "" : "/", given);
    snprintf(shim, sizeof shim, "%.*s/disk.so", (int)(strrchr(program, '/') - program), program);
    const char *base = getenv("TMPDIR");
    /* In memory a sync takes no time; what it would keep is worked out above. */
    const char *scratch = base && *base ? base : access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    snprintf(dir, sizeof dir, "%.40s/lost_XXXXXX", scratch);
    if (!mkdtemp(dir)) return printf("98_lost: no folder\n"), 1;
    setenv("OMP_WAIT_POLICY", "passive", 1), setenv("LC_ALL", "C", 1);
    shim_log = strdup(at("log"));
    fixtures();
    if (!only) {
        outputs_are_no_inputs();
        one_run_to_a_directory();
        rounding_is_said();
        best_comes_after_all();
        over_a_finished_run();
    }
    if (SANITIZED) SKIP(1, "kills, power cuts and faults: the program is sanitized");
    else {
        for (int i = 0; i < JOBS; i++) {
            if (only && strcmp(only, jobs[i].name)) continue;
            const double begun = seconds();
            plan p = plan_of(&jobs[i]);
            killed_at_operations(&p);
            killed_at_random(&p, (unsigned)i + 1);
            power_cuts(&p);
            with_faults(&p);
            if (full) printf("%s: %ld operations, %.1f s\n", p.job->name, p.operations, seconds() - begun);
            fflush(stdout);
            plan_free(&p);
        }
        if (!only || !strcmp(only, "mapped")) mapped_and_changed();
        if (full && (!only || !strcmp(only, "demo"))) demo_killed();
        if (full && (!only || !strcmp(only, "long"))) long_run();
        printf("%ld kills, %ld power cuts, %ld faults\n", kills, cuts, faults);
    }
    tree_remove(dir);
    tree_free(&inputs);
    free(shim_log);
    return test_end("98_lost");
}
