/* Training runs against the same procedure in PyTorch (golden/train_golden.py): every metric of every step and the
   final weights, for all methods and schedules, FuseRL, EAST and several sources, from records of token ids. The same
   of adapters, against PEFT (golden/adapters.py). */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/golden.h"

static int index_of(const char *(*name)(int), const char *wanted) {
    for (int i = 0; name(i); i++)
        if (!strcmp(name(i), wanted)) return i;
    printf("FAIL the library knows no \"%s\"\n", wanted);
    exit(1);
}
static double explicit_zero(double x) { return x == 0 ? WRPO_ZERO : x; }
static wrpo_train_desc desc_of(const wrpo_json *o) {
    char ramp[32];
    snprintf(ramp, sizeof ramp, "%s", golden_text(o, "alpha_schedule", "linear"));
    char *power = strchr(ramp, ':');
    if (power) *power++ = 0;
    return (wrpo_train_desc){
        .loss = {.method = (wrpo_method)index_of(wrpo_method_name, golden_text(o, "method", "?")),
                 .pair = (wrpo_pair)index_of(wrpo_pair_name, golden_text(o, "pair", "target")),
                 .beta = golden_number(o, "beta", 0),
                 .label_smoothing = golden_number(o, "label_smoothing", 0),
                 .gamma_ratio = golden_number(o, "gamma_ratio", 0),
                 .fusion = (wrpo_fusion)index_of(wrpo_fusion_name, golden_text(o, "fusion", "margin")),
                 .sft_weight = golden_number(o, "sft_weight", 0)},
        .alpha = golden_number(o, "alpha", 0),
        .alpha_schedule = (wrpo_alpha_schedule)index_of(wrpo_alpha_schedule_name, ramp),
        .alpha_power = power ? atof(power) : 0,
        .learning_rate = golden_number(o, "learning_rate", 0),
        .weight_decay = golden_number(o, "weight_decay", 0),
        .max_grad_norm = golden_number(o, "max_grad_norm", 0),
        .lr_schedule = (wrpo_lr_schedule)index_of(wrpo_lr_schedule_name, golden_text(o, "lr_scheduler", "cosine")),
        .warmup_ratio = explicit_zero(golden_number(o, "warmup_ratio", 0.1)),
        .batch_size = (int64_t)golden_number(o, "batch_size", 0),
        .epochs = golden_number(o, "epochs", 1),
        .no_shuffle = true};
}
static double metric(const wrpo_metrics *m, const char *name) {
#define WRPO_X(field, text) if (!strcmp(name, text)) return m->field;
    WRPO_METRICS(WRPO_X)
#undef WRPO_X
    return NAN;
}

/* The weight of that name; of a layer that is several weights here, one after the other, the first. *size: elements. */
static const wrpo_weight *trained(const wrpo_model *model, const char *key, int64_t *size) {
    static const char *const fused[][4] = {{"qkv_proj.lora_A", "q_proj.lora_A"},
                                           {"gate_up_proj.lora_A", "gate_proj.lora_A"},
                                           {"qkv_proj.lora_B", "q_proj.lora_B", "k_proj.lora_B", "v_proj.lora_B"},
                                           {"gate_up_proj.lora_B", "gate_proj.lora_B", "up_proj.lora_B"},
                                           {"shared_mlp.input_linear.lora_A", "mlp.gate_proj.lora_A"},
                                           {"shared_mlp.output_linear.lora_A", "mlp.down_proj.lora_A"},
                                           {"shared_mlp.input_linear.lora_B", "mlp.gate_proj.lora_B",
                                            "mlp.up_proj.lora_B"},
                                           {"shared_mlp.output_linear.lora_B", "mlp.down_proj.lora_B"}};
    const wrpo_weight *w = golden_weight(model, key);
    *size = w ? w->rows * w->cols : 0;
    for (int i = 0; i < WRPO__COUNT(fused) && !w; i++) {
        const char *at = strstr(key, fused[i][0]);
        for (int k = 3; at && k > 0; k--) {
            char name[128];
            if (!fused[i][k]) continue;
            snprintf(name, sizeof name, "%.*s%s%s", (int)(at - key), key, fused[i][k], at + strlen(fused[i][0]));
            w = golden_weight(model, name);
            *size += w ? w->rows * w->cols : 0;
        }
    }
    return w;
}
static void all(const wrpo_backend *backend, const char *file, int runs) {
    wrpo_ctx *ctx;
    if (wrpo_open(&(wrpo_desc){.threads = 1, .backend = backend}, &ctx) != WRPO_OK) exit(1);
    printf("%s\n", backend->name);
    const wrpo_json *golden = golden_read(ctx, file);
    int n = 0;
    for (const wrpo_json *run = golden_get(golden, "runs")->child; run; run = run->next, n++) {
        const wrpo_json *o = golden_get(run, "options"), *steps = golden_get(run, "steps");
        const wrpo_train_desc desc = desc_of(o);
        const int64_t T = golden_get(steps, "loss")->count;
        wrpo_data *data = golden_data(ctx, golden_get(golden, golden_text(o, "data", "records")));
        wrpo_model *model = NULL;
        wrpo_trainer *t = NULL;
        wrpo_metrics m = {0};
        char name[96];
        const char *family = golden_text(run, "family", NULL);
        char config[96] = "golden/train", adapter[96];
        if (family) snprintf(config, sizeof config, "golden/families/%s", family);
        snprintf(adapter, sizeof adapter, "golden/adapters/%s", family ? family : "none");
        snprintf(name, sizeof name, "run %d (%s%s%s %s %s %s)", n, family ? family : "", family ? " " : "",
                 golden_text(o, "data", "quads"),
                 golden_text(o, "method", ""), golden_text(o, "pair", ""), golden_text(o, "alpha_schedule", ""));
        CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = config}, &model) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        if (!model) break;
        golden_fill(model, golden_get(golden, "scale"));
        CHECK(!family || !wrpo_adapter_load(model, adapter), "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_trainer_open(model, data, &desc, &t) == WRPO_OK, "%s: %s", name, wrpo_last_error(ctx)->text);
        double worst = 0;
        for (int64_t k = 0; t && k < T; k++) {
            wrpo_result r = wrpo_trainer_step(t, &m);
            CHECK(r == WRPO_OK && m.steps == T && m.step == k + 1, "%s: step %lld of %lld, want %lld: %s", name,
                  (long long)m.step, (long long)m.steps, (long long)T, wrpo_last_error(ctx)->text);
            if (r != WRPO_OK) break;
            for (const wrpo_json *v = steps->child; v; v = v->next) {
                const wrpo_json *at = v->child;
                for (int64_t i = 0; i < k; i++) at = at->next;
                /* a reward is beta times the difference of two log-probs of about 50, floats on the other side */
                const bool reward = !strncmp(v->key, "rewards/", 8) && !strstr(v->key, "accuracies");
                const double got = metric(&m, v->key), slack = reward ? desc.loss.beta * 1e-5 : 1e-8,
                             d = fabs(got - at->number);
                CHECK(d <= 1e-4 * fabs(at->number) + slack, "%s: step %lld: %s %.9g, want %.9g", name, (long long)k + 1,
                      v->key, got, at->number);
                if (!reward && d > 1e-8 && d / fabs(at->number) > worst) worst = d / fabs(at->number);
            }
        }
        double weights = 0;
        for (const wrpo_json *v = golden_get(run, "weights")->child; v; v = v->next) {
            int64_t size;
            const wrpo_weight *w = trained(model, v->key, &size);
            CHECK(w, "%s: no tensor %s", name, v->key);
            if (!w) continue;
            double sum = 0, norm = golden_number(v, "norm", NAN);
            for (int64_t k = 0; k < size; k++)
                sum += (double)((float *)w->data)[k] * (double)((float *)w->data)[k];
            CHECK(fabs(sqrt(sum) - norm) <= 1e-5, "%s: norm of %s %.9g, want %.9g", name, v->key, sqrt(sum), norm);
            for (const wrpo_json *s = golden_get(v, "samples")->child; s; s = s->next) {
                double d = fabs((double)((float *)w->data)[s->child->integer] - s->child->next->number);
                CHECK(d <= 1e-5, "%s: %s[%lld] differs by %g", name, v->key, (long long)s->child->integer, d);
                weights = test_larger(weights, d);
            }
        }
        printf("%-36s %2lld steps: metrics differ by %.1e relative at most, weights by %.1e\n", name, (long long)T,
               worst, weights);
        wrpo_trainer_free(t);
        wrpo_model_free(model);
        wrpo_data_free(data);
    }
    CHECK(n == runs, "%d runs", n);
    wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)golden);
    wrpo_close(ctx);
}
int main(void) {
    for (int i = 0; i < 2; i++) {
        const wrpo_backend *backend = i ? wrpo_backend_plain() : wrpo_backend_cpu();
        all(backend, "golden/train.json", 23);
        all(backend, "golden/adapters.json", 11);
    }
    return test_end("72_parity");
}
