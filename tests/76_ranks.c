/* Several ranks, here threads (support/ranks.h): the bits of one rank, the memory of a share of it, and no rank that
   waits for one that failed. The same on devices, which are run on the host (cuda_emu.h), over NCCL (nccl_emu.h). */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/quads.h"
#include "support/ranks.h"
#include <unistd.h>

enum { HELD = 5, STEPS = 4 };
/* mktime takes the C library's own lock, which ThreadSanitizer does not see. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) { return "race:tzset_internal\ncalled_from_lib:libc.so.6\n"; }

/* ---- a run: what it is given, and what each rank says ---- */
typedef enum fault {
    NONE, DATA, RATE, RECORD, WEIGHTS, NAN_WEIGHT, MEMORY, NO_STATE, STOP, SCALE, DROPOUT, FAULTS
} fault;
typedef struct job {
    wrpo_dtype dtype; wrpo_moments moments; int64_t lanes, lora, micro_tokens, memory_limit;
    bool devices;                    /* of CUDA, over NCCL; otherwise the CPU */
    const char *out, *resume, *save; /* save: its state after the last step */
    int64_t save_at;                 /* steps, then it stops; 0: to the end */
    fault fault; int faulty;         /* on this rank */
    int64_t fail_at;                 /* MEMORY: the allocation, from 0 */
    wrpo_result result[MOST_RANKS]; char text[MOST_RANKS][512];
    wrpo_metrics last[MOST_RANKS];
    size_t predicted[MOST_RANKS], peak[MOST_RANKS];
    int64_t allocations[MOST_RANKS];
} job;
typedef struct meter { int64_t calls, live, fail_at; } meter;
static void *meter_alloc(size_t n, void *user) {
    meter *m = user;
    if (m->calls++ == m->fail_at) return NULL;
    m->live++;
    return malloc(n);
}
static void meter_free(void *p, void *user) { ((meter *)user)->live--; free(p); }
static bool stop_now(const wrpo_metrics *m, const wrpo_metrics *eval, void *user) {
    (void)m, (void)eval, (void)user;
    return false;
}
static void work(mate *m) {
    job *j = m->user;
    const bool bad = m->rank == j->faulty;
    meter memory = {.fail_at = bad && j->fault == MEMORY ? j->fail_at : -1};
    wrpo_error why = {0};
    wrpo_group nccl = {0};
    const wrpo_group *group = m->of->ranks > 1 ? &m->group : NULL;
    const wrpo_backend *backend = NULL;
    wrpo_result r = WRPO_OK;
#ifdef WRPO_EMULATED
    if (j->devices) backend = wrpo_backend_cuda();
    if (j->devices && group) r = wrpo_nccl_open(group, &nccl, &why), group = &nccl;
#endif
    const wrpo_desc open = {.threads = 1, .dtype = j->dtype, .lanes = j->lanes, .why = &why, .backend = backend,
                            .memory_limit = (size_t)j->memory_limit,
                            .memory = {meter_alloc, meter_free, &memory}, .group = group};
    wrpo_ctx *ctx;
    wrpo_model *model = NULL;
    wrpo_data *data = NULL, *held = NULL;
    wrpo_trainer *t = NULL;
    wrpo_metrics last = {0}, held_out;
    wrpo_record own[N];
    if (!r) r = wrpo_open(&open, &ctx);
    if (r) {
        j->result[m->rank] = r;
        snprintf(j->text[m->rank], sizeof j->text[0], "%s", why.text);
        return;
    }
    memcpy(own, records, sizeof own);
    if (bad && j->fault == RECORD) own[3].prompt_count--;
    if (bad && j->fault == DATA) own[3].count = 0;
    r = wrpo_model_init(ctx, &(wrpo_init_desc){.config = config_path, .seed = bad && j->fault == WEIGHTS ? 8 : 7,
                                               .frozen = j->lora > 0}, &model);
    if (!r && j->lora)
        r = wrpo_adapter_new(model, &(wrpo_adapter_desc){.r = j->lora, .alpha = bad && j->fault == SCALE ? 16 : 32,
                                                         .dropout = bad && j->fault == DROPOUT ? 0.2 : 0.1});
    if (!r) r = wrpo_data_from_ids(ctx, own, N, &data);
    if (!r) r = wrpo_data_from_ids(ctx, own, HELD, &held);
    wrpo_train_desc d = {.learning_rate = bad && j->fault == RATE ? 2e-3 : 1e-3, .batch_size = 6, .loss.beta = 0.5,
                         .warmup_ratio = WRPO_ZERO, .micro_tokens = j->micro_tokens ? j->micro_tokens : 60,
                         .max_steps = STEPS, .moments = j->moments, .weight_decay = 0.1, .eval_data = held,
                         .max_grad_norm = 0.5, .out_dir = j->out, .resume = j->resume};
    if (bad && j->fault == NO_STATE) d.resume = "nowhere";
    if (!r && j->fault == STOP) {
        d.save.dir = j->save;
        if (bad) d.on_step = stop_now;
        r = wrpo_train(model, data, &d, &last);
    } else {
        wrpo_bytes plan = {0};
        if (!r) r = wrpo_agree(ctx, WRPO_OK, NULL);
        const wrpo_adapter_desc lora = {.r = j->lora};
        if (!r) r = wrpo_train_bytes(ctx, wrpo_model_config(model), data, &d, j->lora ? &lora : NULL, &plan);
        j->predicted[m->rank] = plan.device;
        if (!r) r = wrpo_trainer_open(model, data, &d, &t);
        if (!r && bad && j->fault == NAN_WEIGHT) {     /* this rank's copy alone is spoilt */
            const float nan = NAN;
            ctx->desc.backend->put(ctx->dev, model->weights[0].data, &nan,
                                   model->weights[0].dtype == WRPO_DTYPE_F32 ? 4 : 2);
            float *x = model->weights[0].data;
            for (int64_t i = 0; model->weights[0].dtype == WRPO_DTYPE_F32 && i < 97 * 36; i++) x[i] = NAN;
        }
        for (; !r && last.step < (j->save_at ? j->save_at : STEPS);) r = wrpo_trainer_step(t, &last);
        if (!r && !j->save_at) r = wrpo_trainer_eval(t, held, &held_out);
        if (!r && j->save) r = wrpo_trainer_save(t, &(wrpo_save_desc){.dir = j->save});
        j->peak[m->rank] = wrpo_memory_peak(ctx);
    }
    r = wrpo_agree(ctx, r, NULL);
    j->result[m->rank] = r;
    snprintf(j->text[m->rank], sizeof j->text[0], "%s", wrpo_last_error(ctx)->text);
    j->last[m->rank] = last;
    wrpo_trainer_free(t);
    wrpo_data_free(data);
    wrpo_data_free(held);
    wrpo_model_free(model);
    wrpo_close(ctx);
#ifdef WRPO_EMULATED
    if (j->devices) wrpo_nccl_close(&nccl);
#endif
    j->allocations[m->rank] = memory.calls;
    if (memory.live) {
        j->result[m->rank] = WRPO_E_ARG;
        snprintf(j->text[m->rank], sizeof j->text[0], "%lld blocks are left", (long long)memory.live);
    }
}
static crew run(int ranks, job *j) {
    crew c = {0};
    crew_run(&c, ranks, true, work, j);
    return c;
}
static const char *place(const char *name) {
    static char path[16][128];
    static int turn;
    char *p = path[turn++ & 15];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}
/* Everything of a state except the times, and of metrics.jsonl except the times. */
static uint64_t state_of(const char *folder, const char *out) {
    wrpo_ctx *ctx;
    wrpo_tensors *t;
    char path[200], line[2048];
    uint64_t h = 0;
    if (wrpo_open(NULL, &ctx)) return 0;
    snprintf(path, sizeof path, "%s/trainer_state.wrpo", folder);
    if (wrpo_tensors_open(ctx, path, &t)) {
        printf("%s\n", wrpo_last_error(ctx)->text);
        wrpo_close(ctx);
        return 0;
    }
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *x = wrpo_tensors_at(t, i);
        if (!strcmp(x->name, "checksum") || !strcmp(x->name, "metrics.jsonl")) continue;
        h = wrpo__hash(h, x->name, strlen(x->name));
        h = wrpo__hash(h, x->data, x->bytes);
    }
    wrpo_tensors_close(t);
    wrpo_close(ctx);
    snprintf(path, sizeof path, "%s/metrics.jsonl", out);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        char *times = strstr(line, "tokens_per_second");
        if (times) *times = 0;
        h = wrpo__hash(h, line, strlen(line));
    }
    if (f) fclose(f);
    else h = 0;
    return h;
}
static void sound(const job *j, int ranks, const char *what) {
    for (int i = 0; i < ranks; i++)
        CHECK(j->result[i] == WRPO_OK, "%s: rank %d of %d: %s", what, i, ranks, j->text[i]);
}

/* ---- the same bits ---- */
static void bits(void) {
    static const char *const dtypes[] = {"", "f32", "bf16"};
    for (int lora = 0; lora <= 4; lora += 4)
        for (wrpo_dtype dtype = WRPO_DTYPE_F32; dtype <= WRPO_DTYPE_BF16; dtype++)
            for (int moments = 0; wrpo_moments_name(moments); moments++) {
                uint64_t want = 0;
                char what[64];
                if (SANITIZED && (lora > 0) != (moments == 2)) continue;
                snprintf(what, sizeof what, "%s, %s moments, %s", dtypes[dtype], wrpo_moments_name(moments),
                         lora ? "an adapter" : "all weights");
                job j = {.dtype = dtype, .moments = (wrpo_moments)moments, .lanes = 4, .lora = lora,
                         .out = place("out"), .save = place(lora ? "lora" : "state")};
                for (int ranks = 1; ranks <= 4; ranks *= 2) {
                    run(ranks, &j);
                    sound(&j, ranks, what);
                    const uint64_t h = state_of(j.save, j.out);
                    if (ranks == 1) want = h;
                    CHECK(h && h == want, "%s: %d ranks: other bits than one", what, ranks);
                    for (int i = 1; i < ranks; i++)
                        CHECK(!memcmp(&j.last[0].loss, &j.last[i].loss, sizeof(double)), "%s: rank %d: loss", what, i);
                }
                /* Half of it on 4 ranks, the rest on 1, 2 and 4; and half on one, the rest on 4. */
                for (int first = 4; first >= 1; first -= 3) {
                    job half = j;
                    half.save_at = STEPS / 2;
                    half.save = place(lora ? "lora_half" : "half");
                    run(first, &half);
                    sound(&half, first, what);
                    for (int ranks = 1; ranks <= 4; ranks *= 2) {
                        job rest = j;
                        rest.resume = half.save;
                        run(ranks, &rest);
                        sound(&rest, ranks, what);
                        CHECK(state_of(j.save, j.out) == want, "%s: %d ranks after %d: other bits", what, ranks, first);
                    }
                }
            }
}
/* Lanes by default: the number of ranks, three as well. The losses agree with one rank's. */
static void default_lanes(void) {
    job one = {.out = place("out")}, j = one;
    run(1, &one);
    for (int ranks = 2; ranks <= 5; ranks++) {
        j.save = place("state");
        run(ranks, &j);
        sound(&j, ranks, "default lanes");
        const uint64_t h = state_of(j.save, j.out);
        CHECK(fabs(j.last[0].loss - one.last[0].loss) <= 1e-6 && j.last[0].tokens == one.last[0].tokens,
              "%d ranks: loss %.17g, of one %.17g", ranks, j.last[0].loss, one.last[0].loss);
        run(ranks, &j);
        CHECK(state_of(j.save, j.out) == h, "%d ranks: other bits when it runs again", ranks);
    }
    j.lanes = 6, j.save = place("six");
    uint64_t want = 0;
    for (int ranks = 3; ranks <= 6; ranks += 3) {
        run(ranks, &j);
        sound(&j, ranks, "six lanes");
        const uint64_t h = state_of(j.save, j.out);
        if (!want) want = h;
        CHECK(h && h == want, "six lanes on %d ranks", ranks);
    }
    j.lanes = 6;
    run(2, &j);
    CHECK(j.result[0] == WRPO_E_ARG && j.result[1] == WRPO_E_ARG && strstr(j.text[0], "lanes: want the number of"),
          "%s", j.text[0]);
}

/* ---- one rank fails ---- */
static void failures(void) {
    static const struct { fault fault; wrpo_result code; const char *text; } table[] = {
        {DATA, WRPO_E_ARG, "rank 1: record 3: want a prompt, and responses"},
        {RATE, WRPO_E_ARG, "rank 1: learning_rate: want that of rank 0, found another"},
        {RECORD, WRPO_E_ARG, "rank 1: the data: want that of rank 0, found another"},
        {WEIGHTS, WRPO_E_ARG, "rank 1: the model's weights: want that of rank 0"},
        {NAN_WEIGHT, WRPO_E_NOT_FINITE, "rank 1: step 1: record \"r"},
        {NO_STATE, WRPO_E_ARG, "rank 1: the settings of training: want that of rank 0"},
        {SCALE, WRPO_E_ARG, "rank 1: the adapter's scale and dropout: want that of rank 0"},
        {DROPOUT, WRPO_E_ARG, "rank 1: the adapter's scale and dropout: want that of rank 0"},
        {STOP, WRPO_E_STOPPED, "rank 1: stopped by the callback"}};
    for (int k = 0; k < WRPO__COUNT(table); k++) {
        job j = {.fault = table[k].fault, .faulty = 1, .out = place("out"), .save = place("stopped")};
        if (j.fault == SCALE || j.fault == DROPOUT) j.lora = 4;
        run(3, &j);
        for (int i = 0; i < 3; i++)
            CHECK(j.result[i] == table[k].code && strstr(j.text[i], table[k].text) == j.text[i],
                  "fault %d: rank %d: code %d, \"%s\"", k, i, (int)j.result[i], j.text[i]);
    }
    /* the clean stop has left a checkpoint */
    CHECK(state_of(place("stopped/checkpoint-1"), place("out")), "no checkpoint after a stop");
    /* every allocation of one rank fails once: all ranks end, with its sentence, and nothing is left */
    job count = {.out = place("out"), .save = place("state"), .faulty = 1};
    run(2, &count);
    sound(&count, 2, "no fault");
    const int64_t all = count.allocations[1], step = SANITIZED ? 7 : 1;
    int64_t named = 0, runs = 0;
    for (int64_t n = 0; n < all; n += step) {
        job j = count;
        j.fault = MEMORY, j.fail_at = n;
        run(2, &j);
        runs++;
        for (int i = 0; i < 2; i++)
            CHECK(j.result[i] == WRPO_E_MEMORY, "allocation %lld: rank %d: code %d, \"%s\"", (long long)n, i,
                  (int)j.result[i], j.text[i]);
        named += strstr(j.text[0], "rank 1: out of memory") == j.text[0];
    }
    CHECK(named == runs, "%lld of %lld sentences name the rank", (long long)named, (long long)runs);
    printf("%lld of %lld allocations of a rank failed in turn\n", (long long)runs, (long long)all);
    /* the group itself fails */
    for (int call = 1; call <= 3; call++) {
        job j = {.out = place("out")};
        crew c = {.breaks_at = call};
        crew_run(&c, 2, true, work, &j);
        for (int i = 0; i < 2; i++)
            CHECK(j.result[i] == WRPO_E_DEVICE && strstr(j.text[i], "the group failed: the cable is out"), "%s",
                  j.text[i]);
    }
}

/* ---- on devices: the same bits, and errors of NCCL on one rank end them all ---- */
static void on_devices(void) {
#ifdef WRPO_EMULATED
    static const struct { const char *fail, *devices, *text; } table[] = {
        {"1:0", "4", "rank 1: ncclCommInitRankConfig: unhandled system error: asked to fail"},
        {"2:1", "4", "the group failed: rank 2: ncclSend and ncclRecv: unhandled system error: asked to fail"},
        {"0:2", "4", "the group failed: rank 0: ncclAllGather: unhandled system error: asked to fail"},
        {"", "0", "rank 0: cuda: no device can be used: none is there"},
        {"", "1", "rank 0: ncclCommInitRankConfig: invalid usage: Duplicate GPU detected: ranks 0 and 1"}};
    setenv("EMU_DEVICES", "4", 1);
    for (int kind = 0; kind < (SANITIZED ? 1 : 3); kind++) {
        uint64_t want = 0;
        job j = {.devices = true, .lanes = 4, .moments = kind == 1 ? WRPO_MOMENTS_8BIT : WRPO_MOMENTS_F32,
                 .lora = kind == 2 ? 4 : 0, .out = place("out"), .save = place(kind == 2 ? "lora" : "state")};
        for (int ranks = 1; ranks <= 4; ranks *= 2) {
            run(ranks, &j);
            sound(&j, ranks, "devices");
            const uint64_t h = state_of(j.save, j.out);
            if (ranks == 1) want = h;
            CHECK(h && h == want, "%d devices, kind %d: other bits than one", ranks, kind);
        }
        job half = j, rest = j;
        half.save_at = STEPS / 2, half.save = rest.resume = place(kind == 2 ? "lora_half" : "half");
        run(4, &half);
        sound(&half, 4, "half on devices");
        run(2, &rest);
        sound(&rest, 2, "the rest on devices");
        CHECK(state_of(j.save, j.out) == want, "2 devices after 4, kind %d: other bits", kind);
    }
    for (int k = 0; k < WRPO__COUNT(table); k++) {
        job j = {.devices = true, .out = place("out")};
        setenv("NCCL_EMU_FAIL", table[k].fail, 1);
        setenv("EMU_DEVICES", table[k].devices, 1);
        run(3, &j);
        for (int i = 0; i < 3; i++)
            CHECK(j.result[i] == WRPO_E_DEVICE && strstr(j.text[i], table[k].text), "NCCL %d: rank %d: code %d, \"%s\"",
                  k, i, (int)j.result[i], j.text[i]);
    }
    unsetenv("NCCL_EMU_FAIL");
#else
    SKIP(1, "no C++ compiler: ranks on devices");
#endif
}

/* ---- memory ---- */
static void memory(void) {
    size_t peak[5] = {0}, predicted[5] = {0};
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        job j = {.dtype = WRPO_DTYPE_BF16};
        run(ranks, &j);
        sound(&j, ranks, "memory");
        peak[ranks] = j.peak[ranks - 1];
        predicted[ranks] = j.predicted[ranks - 1];
    }
    printf("bf16, moments f32: predicted %zu, %zu, %zu bytes a rank, peak %zu, %zu, %zu at 1, 2, 4 ranks\n",
           predicted[1], predicted[2], predicted[4], peak[1], peak[2], peak[4]);
    CHECK(predicted[4] < predicted[2] && predicted[2] < predicted[1], "the prediction does not shrink");
}

int main(int argc, char **argv) {
    if (argc == 3) {                 /* for 78_mpi.sh: the state in argv[1] and the metrics in argv[2] */
        const uint64_t h = state_of(argv[1], argv[2]);
        if (h) printf("%016llx\n", (unsigned long long)h);
        return !h;
    }
    alarm(SANITIZED ? 3600 : 1500);   /* a rank that waits forever fails the test */
    snprintf(dir, sizeof dir, "tmp_ranks_%ld", (long)getpid());
    wrpo_ctx *ctx;
    if (wrpo_open(NULL, &ctx)) return 2;
    {
        TEST_TRY(ctx, wrpo__arena_new(ctx), true) wrpo__make_dir(ctx, dir);
        CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", ctx->error.text);
    }
    wrpo_close(ctx);
    snprintf(config_path, sizeof config_path, "%s/config.json", dir);
    FILE *f = fopen(config_path, "w");
    fputs(config_text, f);
    fclose(f);
    make_records();
    if (argc == 1) {                 /* 76_ranks devices: these alone */
        bits();
        default_lanes();
        failures();
        memory();
    }
    on_devices();
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0, "%s", command);
    return test_end("ranks");
}
