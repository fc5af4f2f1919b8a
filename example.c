/* wrpo: WRPO and its family for Hugging Face checkpoints, as one program.

     gcc -O2 -fopenmp example.c -o wrpo -lm
     nvcc -O2 -arch=native -DWRPO_CUDA -Xcompiler -fopenmp example.c wrpo_cuda.cu -o wrpo -lcublasLt
                             the same with --device cuda
     mpicc -O2 -fopenmp -DWRPO_MPI example.c -o wrpo -lm && mpirun -np 4 ./wrpo train ...
                             the same on several processes and machines
     ./wrpo                  a demo: the paper in miniature, with models, prompts and a checker made on the spot
     ./wrpo --help           the commands
     ./wrpo COMMAND --help   a command's options

   Also the example of how to use the library: everything below goes through the declarations of wrpo.h.
   In reading order: options, output, what the commands share, the commands, the demo, main.              */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/stat.h>
#ifdef _WIN32
#include <direct.h>
#include <io.h>
#include <process.h>
#include <share.h>
#include <sys/timeb.h>
#define fsync _commit
#define isatty _isatty
#define fileno _fileno
#define getpid _getpid
#define rmdir _rmdir
#define mkdir(path, mode) _mkdir(path)
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

/* ---- options: one table; a command names those it takes ---- */
typedef struct settings {            /* an option that was not given is 0: the library's default */
    const char *path, *model, *ref, *data, *eval_data, *in, *out, *config, *tokenizer, *a, *b, *prompt, *prompts,
        *questions, *name, *reward_model, *resume, *adapter, *lora_target, *save_best, *date, *system_message,
        *require, *strong, *weak, *as_source, *with, *preset, *source, *sft_options;
    const char *more[64];            /* values of --in or --with, or operands, after the first */
    int64_t n_more, top, resamples, seeds, label, rounds, keep;
    double tau, min_gap, max_gap, entropy_power, entropy_scale, sft, heldout;
    int64_t threads, lanes, seed, limit, max_length, max_prompt_length, max_shard_size;
    int64_t batch_size, accumulation, micro_tokens, memory_limit, max_steps, eval_steps, log_steps, save_steps,
        recompute;
    double alpha, alpha_power, beta, label_smoothing, gamma_ratio, sft_weight;
    int64_t n, top_k, max_tokens, batch;
    double temperature, top_p;
    double learning_rate, warmup_ratio, weight_decay, max_grad_norm, epochs, eval_split;
    int64_t lora_r;
    double lora_alpha, lora_dropout;
    int method, pair, fusion, alpha_schedule, lr_schedule, tokenization, device, dtype, save_dtype, save_rounding,
        moments, form, as, bench, data_format, sft_on;
    bool packing, ipo_sum, no_shuffle, raw, tensors, keep_folder, quick, rescore, rslora, tensorboard, dry_run, csv,
        dedup, save_eos, help, version;
    const struct command *command;   /* what they were given to */
    wrpo_ctx *file_ctx;
    wrpo_json *file;                 /* of --config: values of options point into it */
} settings;
static const settings unset = {.dtype = -1, .save_dtype = -1, .as = -1, .bench = -1};
typedef enum kind { TEXT, LIST, FLAG, COUNT, REAL, CHOICE, RAMP } kind;
typedef struct option {
    const char *name;
    kind kind;
    size_t at;                       /* offset in settings: const char *, bool, int64_t, double, int */
    const char *value;               /* what --help calls the value */
    const char *range;               /* COUNT, REAL: an interval such as "[0, 1)" */
    const char *(*names)(int);       /* CHOICE, RAMP: the valid words; NULL past the last */
    const char *help;
} option;

static const char *tokenization_name(int i) {
    return i == WRPO_TOKENIZATION_CLEAN ? "clean" : i == WRPO_TOKENIZATION_AUTHORS ? "authors" : NULL;
}
static const char *device_name(int i) { return i == 0 ? "cpu" : i == 1 ? "cuda" : NULL; }
static const char *dtype_name(int i) { return i == 0 ? "f32" : i == 1 ? "bf16" : NULL; }
static const char *rounding_name(int i) { return i == 0 ? "nearest" : i == 1 ? "random" : NULL; }
static const char *as_name(int i) { return i == 0 ? "source" : i == 1 ? "target" : NULL; }
enum { ALPACAEVAL, MTBENCH, ARENAHARD };
static const char *bench_name(int i) {
    return i == ALPACAEVAL ? "alpacaeval" : i == MTBENCH ? "mtbench" : i == ARENAHARD ? "arenahard" : NULL;
}
static wrpo_dtype dtype_of(int choice) {
    return choice < 0 ? WRPO_DTYPE_DEFAULT : choice == 0 ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16;
}

#define AT(field) offsetof(settings, field)
static const option options[] = {
    {"--model", TEXT, AT(model), "DIR", NULL, NULL,
     "Hugging Face directory: config.json, *.safetensors, tokenizer.json, ..."},
    {"--adapter", TEXT, AT(adapter), "DIR", NULL, NULL,
     "directory of an adapter of the model, as PEFT writes it; train goes on from it (none)"},
    {"--data", TEXT, AT(data), "FILE", NULL, NULL,
     "JSON lines, or an array: {prompt, chosen: [source, target], rejected}, pairs, {messages}, other trainers' keys"},
    {"--data-format", CHOICE, AT(data_format), "NAME", NULL, wrpo_data_format_name,
     "what its records are, where their keys do not say it (auto)"},
    {"--sft-on", CHOICE, AT(sft_on), "WHAT", NULL, wrpo_sft_on_name,
     "sft: score the last answer, every assistant turn, or every token (answers)"},
    {"--packing", FLAG, AT(packing), NULL, NULL, NULL,
     "sft: all tokens as one stream, cut into records of --max-length; with --sft-on all, the authors' SFT"},
    {"--date", TEXT, AT(date), "DAY", NULL, NULL,
     "the day that a chat template shows, such as 2026-11-29 (today; with --resume that of the run)"},
    {"--config", TEXT, AT(config), "FILE", NULL, NULL,
     "init: config.json, or its directory; train: these options as JSON, as a run writes them into OUT/run.json, under "
     "those of the command line"},
    {"--tokenizer", TEXT, AT(tokenizer), "DIR", NULL, NULL,
     "directory with tokenizer.json and tokenizer_config.json, copied into the new one"},
    {"--in", LIST, AT(in), "FILE", NULL, NULL, "JSON lines to read (standard input; generate: want it or --prompt)"},
    {"--out", TEXT, AT(out), "PATH", NULL, NULL,
     "where the result goes: a directory, or a file (standard output; report and demo: report.html; --csv: "
     "metrics.csv)"},
    {"--prompt", TEXT, AT(prompt), "TEXT", NULL, NULL, "one prompt; the answer is written as it comes"},
    {"--source", LIST, AT(source), "DIR", NULL, NULL, "source models, DIR or NAME=DIR (the name: DIR's last part)"},
    {"--rounds", COUNT, AT(rounds), "R", "[1, 99]", NULL,
     "after each round the model answers anew, and is the next round's reference (1)"},
    {"--sft-options", TEXT, AT(sft_options), "TEXT", NULL, NULL,
     "options of train for the stage of SFT, separated by spaces. fuse's own --batch-size, --epochs, --learning-rate "
     "and so on are not for it"},
    {"--prompts", TEXT, AT(prompts), "FILE", NULL, NULL,
     "JSON lines: {prompt_id, prompt} with a string, a message or a list of messages, or {messages}"},
    {"--questions", TEXT, AT(questions), "FILE", NULL, NULL, "the benchmark's questions as it publishes them"},
    {"--bench", CHOICE, AT(bench), "NAME", NULL, bench_name, "whose questions and answers"},
    {"--as", CHOICE, AT(as), "LIST", NULL, as_name, "the list that the samples are written to"},
    {"--name", TEXT, AT(name), "NAME", NULL, NULL,
     "the model's name in the file (the last part of --adapter or --model)"},
    {"--n", COUNT, AT(n), "N", "[1, 1048576]", NULL, "samples of each prompt (5)"},
    {"--temperature", REAL, AT(temperature), "T", "[0, 1000000]", NULL,
     "0 = greedy (0.8; answer: alpacaeval 0.7, mtbench by category, arenahard 0)"},
    {"--top-p", REAL, AT(top_p), "P", "(0, 1]", NULL,
     "from the likeliest tokens that have this probability together (0.95; answer: 1)"},
    {"--top-k", COUNT, AT(top_k), "K", "[1, inf)", NULL, "from the K likeliest tokens (all)"},
    {"--max-tokens", COUNT, AT(max_tokens), "N", "[1, 2147483647]", NULL,
     "tokens of a sample (2048; answer: mtbench 1024, arenahard 4096)"},
    {"--batch", COUNT, AT(batch), "N", "[1, 1048576]", NULL, "samples computed at once: speed against memory (32)"},
    {"--dedup", FLAG, AT(dedup), NULL, NULL, NULL,
     "leave out prompts that were there before: the same text, or the same tokens for the model"},
    {"--raw", FLAG, AT(raw), NULL, NULL, NULL, "no chat template: prompts are strings, encoded as they are"},
    {"--method", CHOICE, AT(method), "NAME", NULL, wrpo_method_name, "objective (wrpo)"},
    {"--pair", CHOICE, AT(pair), "NAME", NULL, wrpo_pair_name,
     "the chosen response that a pair method takes of a quadruple (target)"},
    {"--alpha", REAL, AT(alpha), "A", "[0, 1]", NULL, "weight of the source's reward at the end of the run (0.1)"},
    {"--alpha-schedule", RAMP, AT(alpha_schedule), "NAME", NULL, wrpo_alpha_schedule_name,
     "how alpha rises from 0 (linear)"},
    {"--beta", REAL, AT(beta), "B", "(0, inf)", NULL,
     "reward = beta * log-ratio (0.01; 10 for simpo and dpo-norm, 2.5 for infifpo)"},
    {"--label-smoothing", REAL, AT(label_smoothing), "EPS", "[0, 0.5)", NULL, "share of labels taken to be wrong (0)"},
    {"--gamma-ratio", REAL, AT(gamma_ratio), "R", "[0, inf)", NULL, "simpo: margin gamma / beta (0.3)"},
    {"--ipo-sum", FLAG, AT(ipo_sum), NULL, NULL, NULL, "ipo: on sums of log-probs in place of means over tokens"},
    {"--fusion", CHOICE, AT(fusion), "NAME", NULL, wrpo_fusion_name,
     "infifpo: which source is a response's reference: the farthest from the model, or a mean (margin)"},
    {"--sft-weight", REAL, AT(sft_weight), "W", "[0, inf)", NULL,
     "adds W times the mean -log-prob of the chosen response's tokens to the loss (0)"},
    {"--as-source", TEXT, AT(as_source), "NAME", NULL, NULL,
     "write the records themselves, with the model's log-probs under this name in their source_logps, for infifpo"},
    {"--with", LIST, AT(with), "FILE", NULL, NULL,
     "files of the same records, made by --as-source for other models: their source_logps are added too"},
    {"--preset", TEXT, AT(preset), "NAME", NULL, NULL,
     "the settings of a paper; options beside it win: wrpo-paper, sft-paper, simpo-on-policy, fusechat3, infifpo; "
     "answer: simpo-eval"},
    {"--learning-rate", REAL, AT(learning_rate), "LR", "[0, 1000)", NULL,
     "peak rate (3e-7; sft 7e-6, simpo 1e-6, dpo-norm 8e-7, infifpo 1e-7; adapters want about 1e-4)"},
    {"--lr-scheduler", CHOICE, AT(lr_schedule), "NAME", NULL, wrpo_lr_schedule_name, "after the warm-up (cosine)"},
    {"--warmup-ratio", REAL, AT(warmup_ratio), "R", "[0, 1]", NULL,
     "share of the steps in which the rate rises from 0 (0.1)"},
    {"--weight-decay", REAL, AT(weight_decay), "D", "[0, 1000)", NULL, "AdamW's, on all but norms and biases (0)"},
    {"--max-grad-norm", REAL, AT(max_grad_norm), "N", "[0, inf)", NULL, "clip the global norm; 0 = off (1)"},
    {"--batch-size", COUNT, AT(batch_size), "N", "[1, inf)", NULL, "records per optimizer step (128)"},
    {"--accumulation", COUNT, AT(accumulation), "N", "[1, inf)", NULL,
     "micro-batches a batch is averaged over; divides the batch size (1)"},
    {"--micro-tokens", COUNT, AT(micro_tokens), "N", "[1, 1073741824]", NULL,
     "tokens computed at once: memory against speed (1024; with --device cuda 8192)"},
    {"--recompute", COUNT, AT(recompute), "N", "[-1, inf)", NULL,
     "layers recomputed in the backward pass of the longest record; shorter ones take the same memory; -1 = all "
     "(as few as fit)"},
    {"--memory-limit", COUNT, AT(memory_limit), "BYTES", "[1, inf)", NULL,
     "memory that a run may take: it recomputes as many layers as needed to stay below (what is free)"},
    {"--epochs", REAL, AT(epochs), "E", "(0, inf)", NULL, "passes over the data (1)"},
    {"--max-steps", COUNT, AT(max_steps), "N", "[1, inf)", NULL, "optimizer steps, in place of --epochs"},
    {"--seed", COUNT, AT(seed), "N", "[1, inf)", NULL,
     "of the random weights, of the order of the records, of the samples (42; demo: 1)"},
    {"--no-shuffle", FLAG, AT(no_shuffle), NULL, NULL, NULL, "keep the order of the records"},
    {"--max-length", COUNT, AT(max_length), "N", "[2, inf)", NULL,
     "tokens of prompt and response; longer ones are cut and counted (2048)"},
    {"--system-message", TEXT, AT(system_message), "TEXT", NULL, NULL,
     "turn of the system where a prompt has none; auto: an empty one, where the template knows of such turns (none)"},
    {"--max-prompt-length", COUNT, AT(max_prompt_length), "N", "[1, inf)", NULL,
     "tokens of the prompt (1800 / 2048 of --max-length)"},
    {"--tokenization", CHOICE, AT(tokenization), "NAME", NULL, tokenization_name,
     "as at inference, or as the authors' trainer does (clean)"},
    {"--limit", COUNT, AT(limit), "N", "[1, inf)", NULL, "read only the first N records"},
    {"--lora-r", COUNT, AT(lora_r), "R", "[1, 4096]", NULL,
     "train an adapter of this rank (LoRA), and leave the model as it is (all weights are trained)"},
    {"--lora-alpha", REAL, AT(lora_alpha), "A", "(0, 1000000]", NULL, "the adapter is scaled by A / R (32)"},
    {"--lora-dropout", REAL, AT(lora_dropout), "P", "[0, 1)", NULL, "share of its input that is dropped in a step (0)"},
    {"--lora-target", TEXT, AT(lora_target), "NAMES", NULL, NULL,
     "the layers that have one: q_proj,v_proj or the like (all-linear: all except lm_head)"},
    {"--rslora", FLAG, AT(rslora), NULL, NULL, NULL, "scale by A / sqrt(R)"},
    {"--ref", TEXT, AT(ref), "DIR", NULL, NULL, "the reference model (the model itself as it is before step 1)"},
    {"--form", CHOICE, AT(form), "NAME", NULL, wrpo_form_name,
     "what a prompt becomes: quadruple, SFT record, the best source's pair, all sources' pairs, two models' (quads)"},
    {"--top", COUNT, AT(top), "K", "[1, 1000]", NULL,
     "quads: the number of sources, weighted by softmax(reward / tau) (1)"},
    {"--tau", REAL, AT(tau), "T", "(0, inf)", NULL, "temperature of those weights, and of pairs' (1)"},
    {"--min-gap", REAL, AT(min_gap), "G", "[0, inf)", NULL,
     "leave out pairs whose rewards differ by less (0)"},
    {"--max-gap", REAL, AT(max_gap), "G", "(0, inf)", NULL, "leave out pairs whose rewards differ by more (none)"},
    {"--require", TEXT, AT(require), "KEY", NULL, NULL,
     "a key of every response, true or false: chosen ones must have true, rejected ones false (none)"},
    {"--strong", TEXT, AT(strong), "MODEL", NULL, NULL, "delta: the model whose answers are chosen"},
    {"--weak", TEXT, AT(weak), "MODEL", NULL, NULL, "delta: the model whose answers are rejected"},
    {"--entropy-power", REAL, AT(entropy_power), "A", "[0, 100]", NULL,
     "EAST: weigh a record by H^A / scale, H the entropy of its responses; 0 = off (0)"},
    {"--entropy-scale", REAL, AT(entropy_scale), "C", "(0, inf)", NULL, "EAST: the scale (6.8)"},
    {"--sft", REAL, AT(sft), "SHARE", "(0, 1)", NULL, "part of the prompts for SFT (1/3)"},
    {"--heldout", REAL, AT(heldout), "SHARE", "[0, 1)", NULL,
     "part of all prompts that no training sees, the file heldout.jsonl (0; fuse: 0.1)"},
    {"--a", TEXT, AT(a), "FILE", NULL, NULL, "answers: candidates, or {prompt_id, prompt, content, reward}"},
    {"--b", TEXT, AT(b), "FILE", NULL, NULL, "answers of the opponent"},
    {"--resamples", COUNT, AT(resamples), "N", "[1, 1000000]", NULL, "bootstrap samples of the interval (1000)"},
    {"--eval-data", TEXT, AT(eval_data), "FILE", NULL, NULL, "held-out records"},
    {"--eval-split", REAL, AT(eval_split), "SHARE", "(0, 1)", NULL,
     "hold out about this part of --data, by a hash of the prompt, in place of --eval-data"},
    {"--eval-steps", COUNT, AT(eval_steps), "N", "[1, inf)", NULL, "evaluate every N steps (at the end only)"},
    {"--log-steps", COUNT, AT(log_steps), "N", "[1, inf)", NULL,
     "print a line every N steps if there is no progress bar (1)"},
    {"--save-steps", COUNT, AT(save_steps), "N", "[1, inf)", NULL,
     "save a checkpoint every N steps (only when a run ends early)"},
    {"--keep", COUNT, AT(keep), "N", "[1, inf)", NULL, "checkpoints that stay; older ones are deleted (1)"},
    {"--save-best", TEXT, AT(save_best), "METRIC", NULL, NULL,
     "keep the model that an evaluation finds best in OUT/best: by loss, rewards/accuracies, rewards/margins, ..."},
    {"--tensorboard", FLAG, AT(tensorboard), NULL, NULL, NULL,
     "write the metrics for TensorBoard as well: OUT/events.out.tfevents.*"},
    {"--dry-run", FLAG, AT(dry_run), NULL, NULL, NULL,
     "check everything, say what memory and time the run would take (fuse: print the plan), and write nothing"},
    {"--resume", TEXT, AT(resume), "DIR", NULL, NULL,
     "go on from such a checkpoint, to the bytes of a run that never stopped; the other options must be the same"},
    {"--device", CHOICE, AT(device), "NAME", NULL, device_name, "what the model is computed on (cpu)"},
    {"--dtype", CHOICE, AT(dtype), "TYPE", NULL, dtype_name,
     "of matrices and their products; with bf16 the optimizer keeps float masters (f32; cuda: bf16)"},
    {"--save-dtype", CHOICE, AT(save_dtype), "TYPE", NULL, dtype_name,
     "of the weights in the files (as loaded; init: f32)"},
    {"--save-rounding", CHOICE, AT(save_rounding), "NAME", NULL, rounding_name,
     "to bf16: to the nearest; or up and down by chance, which keeps small updates in the mean (nearest)"},
    {"--moments", CHOICE, AT(moments), "TYPE", NULL, wrpo_moments_name, "of AdamW's moments in memory (f32)"},
    {"--max-shard-size", COUNT, AT(max_shard_size), "BYTES", "[1, inf)", NULL,
     "split the weights into files of at most this size (5000000000)"},
    {"--save-eos", FLAG, AT(save_eos), NULL, NULL, NULL,
     "save all tokens that end an answer as eos_token_id in generation_config.json, where vLLM looks for them"},
    {"--reward-model", TEXT, AT(reward_model), "DIR", NULL, NULL,
     "directory of a sequence-classification, InternLM2 or ArmoRM reward model"},
    {"--label", COUNT, AT(label), "N", "[1, inf)", NULL,
     "which row of its score.weight is the reward, counted from 1 (the only one)"},
    {"--rescore", FLAG, AT(rescore), NULL, NULL, NULL, "replace the rewards that are there"},
    {"--tensors", FLAG, AT(tensors), NULL, NULL, NULL, "list the tensors of a directory too"},
    {"--seeds", COUNT, AT(seeds), "N", "[1, 1000]", NULL, "run the demo with N seeds and print means (1)"},
    {"--keep-folder", FLAG, AT(keep_folder), NULL, NULL, NULL, "keep the demo's folder"},
    {"--csv", FLAG, AT(csv), NULL, NULL, NULL, "a table of all steps in place of the pictures"},
    {"--quick", FLAG, AT(quick), NULL, NULL, NULL,
     "every step of the demo in a few seconds, on too little data for its table to mean anything"},
    {"--lanes", COUNT, AT(lanes), "N", "[1, 1048576]", NULL,
     "bits depend on the lanes of a step, not on the ranks that take them: ranks times a power of two (ranks)"},
    {"--threads", COUNT, AT(threads), "N", "[1, 4096]", NULL, "threads (all; demo: 1)"},
    {"--version", FLAG, AT(version), NULL, NULL, NULL, "print the version"},
    {"--help", FLAG, AT(help), NULL, NULL, NULL, "this text"},
};
enum { N_OPTIONS = sizeof options / sizeof *options };

typedef struct session session;
typedef struct command {
    const char *name, *operand, *required, *optional;  /* lists of options, separated by spaces */
    int (*run)(const settings *s, session *z);
    const char *help;
} command;

/* Of several ranks, started by mpirun, the first speaks and writes. The others' output goes to /dev/null, and their
   sentences to it at the end (dispatch). */
static wrpo_group ranks = {.ranks = 1, .locals = 1};
#ifdef WRPO_NCCL
static wrpo_group devices;           /* the same ranks, on --device cuda */
#endif
static bool together;                /* all of them run the command in progress; otherwise rank 0 alone */
static const char of_all_ranks[] = "train eval logprob generate sample answer score fuse";
static char said[512];               /* the first sentence of a failure here; "": none */

static int complain(const char *format, ...) {         /* one sentence on stderr; the exit code of a failure */
    va_list args;
    va_start(args, format);
    if (!*said && strncmp(format, "warning:", 8)) vsnprintf(said, sizeof said, format, args);
    va_end(args);
    if (ranks.rank) return 1;
    va_start(args, format);
    fputs("wrpo: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return 1;
}
/* The worst code of all ranks, before there is a context that would agree. */
static int worst(int code) {
    int64_t first = code ? ranks.ranks - ranks.rank : 0, most = code;
    wrpo_error why = {0};
    if (ranks.ranks == 1) return code;
    if (ranks.most(ranks.self, &first, &why) || ranks.most(ranks.self, &most, &why)) return complain("%s", why.text);
    const int who = ranks.ranks - (int)first;
    if (most && ranks.broadcast(ranks.self, said, sizeof said, who, &why)) return complain("%s", why.text);
    if (most && !code && !ranks.rank) fprintf(stderr, "wrpo: rank %d: %s\n", who, said);
    return (int)most;
}
static int misuse(const command *c, const char *format, ...) {     /* wrong usage: the sentence, a hint, exit code 2 */
    va_list args;
    va_start(args, format);
    vsnprintf(said, sizeof said, format, args);
    va_end(args);
    if (ranks.rank) return 2;
    va_start(args, format);
    fputs("wrpo: ", stderr);
    if (*c->name) fprintf(stderr, "%s: ", c->name);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nTry: wrpo %s%s--help\n", c->name, *c->name ? " " : "");
    va_end(args);
    return 2;
}
static bool listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = strstr(list, name); p; p = strstr(p + 1, name))
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0)) return true;
    return false;
}
static void words(const option *o, char *out, size_t size) {    /* "linear, constant, power[:P], cosine" */
    size_t n = 0;
    for (int i = 0; o->names(i) && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s%s", i ? ", " : "", o->names(i),
                              o->kind == RAMP && !strcmp(o->names(i), "power") ? "[:P]" : "");
}
static void help_option(const option *o) {
    char all[256] = "";
    if (o->names) words(o, all, sizeof all);
    int n = printf("  %s %s", o->name, o->value ? o->value : "");
    printf("%*s%s%s%s\n", n < 28 ? 28 - n : 1, "", o->help, o->names ? ": " : "", all);
}
static void help_command(const command *c) {
    printf("usage: wrpo %s%s%s", c->name, *c->operand ? " " : "", c->operand);
    for (int i = 0; i < N_OPTIONS; i++)
        if (listed(c->required, options[i].name)) printf(" %s %s", options[i].name, options[i].value);
    printf(" [options]\n\n%s\n", c->help);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0, shown = 0; i < N_OPTIONS; i++) {
            if (!listed(pass ? c->optional : c->required, options[i].name)) continue;
            if (!shown++) printf(pass ? "\noptional (default)\n" : "\nrequired\n");
            help_option(&options[i]);
        }
}
static bool in_range(const char *range, double x) {    /* "[0, 1)" */
    double low, high;
    char close = 0;
    if (sscanf(range + 1, "%lf, %lf%c", &low, &high, &close) != 3) return false;
    return (*range == '[' ? x >= low : x > low) && (close == ']' ? x <= high : x < high);
}
/* Stores an option's value. 2: no such value; 1: a value of the right form that cannot be. why: the sentence's end. */
static int set(const option *o, const char *text, settings *s, char why[400]) {
    char *end, all[256];
    void *to = (char *)s + o->at;
    const char *colon = o->kind == RAMP ? strchr(text, ':') : NULL;
    errno = 0;
#define REFUSE(code, ...) return snprintf(why, 400, __VA_ARGS__), code
    switch (o->kind) {
    case FLAG:
        if (strcmp(text, "true") && strcmp(text, "false")) REFUSE(2, "takes no value, or true or false");
        *(bool *)to = *text == 't';
        break;
    case LIST:
        if (*text && *(const char **)to) {
            if (s->n_more == (int64_t)(sizeof s->more / sizeof *s->more)) REFUSE(2, "too many files");
            s->more[s->n_more++] = text;
            break;
        }  /* fallthrough */
    case TEXT:
        if (!*text) REFUSE(2, "want a %s, found an empty text", o->value);
        *(const char **)to = text;
        break;
    case COUNT: {
        long long x = strtoll(text, &end, 10);
        if (end == text || *end || errno || strchr(" \t\n", *text))
            REFUSE(2, "want a whole number, found \"%.80s\"", text);
        if (!in_range(o->range, (double)x)) REFUSE(1, "want a whole number in %s, found %.80s", o->range, text);
        *(int64_t *)to = x;
        break;
    }
    case REAL: {
        double x = strtod(text, &end);
        if (end != text && *end == '/') {
            const char *below = end + 1;
            x /= strtod(below, &end);
            if (end == below) end = (char *)text;
        } /* 1/3 */
        if (end == text || *end || strchr(" \t\n", *text)) REFUSE(2, "want a number, found \"%.80s\"", text);
        if (!in_range(o->range, x)) REFUSE(1, "want a number in %s, found %.80s", o->range, text);
        *(double *)to = x == 0 ? WRPO_ZERO : x;
        break;
    }
    case RAMP:
    case CHOICE: {
        int i = 0;
        size_t n = colon ? (size_t)(colon - text) : strlen(text);
        while (o->names(i) && (strlen(o->names(i)) != n || strncmp(o->names(i), text, n))) i++;
        if (!o->names(i) || (colon && i != WRPO_ALPHA_SCHEDULE_POWER)) {
            words(o, all, sizeof all);
            REFUSE(2, "want one of %s, found \"%.80s\"", all, text);
        }
        *(int *)to = i;
        if (o->kind == RAMP) s->alpha_power = 0;
        if (!colon) break;
        s->alpha_power = strtod(colon + 1, &end);
        if (end == colon + 1 || *end) REFUSE(2, "want a number after \"power:\", found \"%.80s\"", colon + 1);
        if (!(s->alpha_power > 0 && s->alpha_power < 1e6))
            REFUSE(1, "want a power in (0, 1e6), found %.80s", colon + 1);
        break;
    }
    }
#undef REFUSE
    return 0;
}
static const option *find_option(const command *c, const char *name, size_t n) {   /* NULL: the command has none such */
    for (const option *o = options; o < options + N_OPTIONS; o++)
        if (strlen(o->name) == n && !strncmp(o->name, name, n))
            return listed(c->required, o->name) || listed(c->optional, o->name) ? o : NULL;
    return NULL;
}
static char *read_all(FILE *f, size_t *size);          /* below, where files are */
/* The options in a file of --config: an object whose keys are their names, without --, _ for -. */
static int read_config(const command *c, const char *path, settings *s) {
    static const char *const wants[] = {[FLAG] = "true or false", [COUNT] = "a number", [REAL] = "a number",
                                        [TEXT] = "a string", [CHOICE] = "a string", [RAMP] = "a string"};
    size_t size = 0;
    char why[400], name[64], *text = NULL;
    FILE *f = fopen(path, "rb");
    if (f) text = read_all(f, &size);
    if (!text) complain("%s: cannot be opened: %s", path, strerror(errno));
    if (f) fclose(f);
    if (!text) return 1;
    wrpo_result r = wrpo_open(NULL, &s->file_ctx);
    if (r == WRPO_OK) r = wrpo_json_parse(s->file_ctx, path, text, size, &s->file);
    free(text);
    if (r != WRPO_OK) return complain("%s", wrpo_last_error(s->file_ctx)->text);
    if (s->file->kind != WRPO_JSON_OBJECT) return complain("%s: want an object of options", path);
    for (const wrpo_json *v = s->file->child; v; v = v->next) {
        const size_t n = (size_t)snprintf(name, sizeof name, "--%.60s", v->key);
        for (size_t i = 2; i < n; i++)
            if (name[i] == '_') name[i] = '-';
        const option *o = find_option(c, name, n);
        if (!strcmp(v->key, "wrpo")) continue;         /* the version that wrote the file */
        if (!strcmp(v->key, "command")) {
            if (v->kind != WRPO_JSON_STRING || strcmp(v->text, c->name))
                return complain("%s:%d:%d: command: want \"%s\", the one that is given", path, (int)v->line,
                                (int)v->column, c->name);
            continue;
        }
        if (!o || o->at == AT(config) || o->at == AT(preset) || o->at == AT(help))
            return complain("%s:%d:%d: want an option of %s, found \"%.60s\"", path, (int)v->line, (int)v->column,
                            c->name, v->key);
        wrpo_json_kind wanted = WRPO_JSON_STRING;
        if (o->kind == FLAG) wanted = WRPO_JSON_BOOL;
        if (o->kind == COUNT || o->kind == REAL) wanted = WRPO_JSON_NUMBER;
        if (v->kind == WRPO_JSON_NULL) continue;
        if (v->kind != wanted) snprintf(why, sizeof why, "want %s", wants[o->kind]);
        const char *value = v->kind != WRPO_JSON_BOOL ? v->text : v->boolean ? "true" : "false";
        if (v->kind != wanted || set(o, value, s, why))
            return complain("%s:%d:%d: %.60s: %s", path, (int)v->line, (int)v->column, v->key, why);
    }
    return 0;
}
/* The settings of papers. Options on the command line win. */
typedef struct preset { const char *name, *command, *source, *options; } preset;
static const preset presets[] = {
    {"wrpo-paper", "train", "Yang et al. 2025, and the authors' training_configs",
     "--method wrpo --beta 0.01 --alpha 0.1 --alpha-schedule linear --learning-rate 3e-7 --lr-scheduler cosine "
     "--warmup-ratio 0.1 --batch-size 128 --epochs 1 --weight-decay 0 --max-grad-norm 1 --max-length 2048 "
     "--max-prompt-length 1800 --tokenization authors --system-message auto"},
    {"sft-paper", "train", "Yang et al. 2025, and the authors' training_configs",
     "--method sft --sft-on all --packing --learning-rate 7e-6 --lr-scheduler cosine --warmup-ratio 0.1 "
     "--batch-size 128 --epochs 1 --weight-decay 0 --max-grad-norm 1 --max-length 2048 --system-message auto"},
    {"simpo-on-policy", "train", "Meng et al. 2024, Llama-3-Instruct v0.2",
     "--method simpo --pair target --beta 10 --gamma-ratio 0.3 --learning-rate 1e-6 --lr-scheduler cosine "
     "--warmup-ratio 0.1 --batch-size 128 --epochs 1 --max-length 2048 --max-prompt-length 1800 "
     "--system-message auto"},
    {"fusechat3", "train", "Yang et al. 2025b, the 8B target",
     "--method dpo-norm --beta 10 --learning-rate 8e-7 --lr-scheduler cosine --warmup-ratio 0.1 --batch-size 128 "
     "--epochs 1 --max-length 2048 --max-prompt-length 1800"},
    {"infifpo", "train", "Gu et al. 2025",
     "--method infifpo --beta 2.5 --fusion margin --learning-rate 1e-7 --lr-scheduler cosine --warmup-ratio 0.1 "
     "--batch-size 128 --epochs 1 --max-length 4096"},
    {"simpo-eval", "answer", "Meng et al. 2024, AlpacaEval 2",
     "--bench alpacaeval --temperature 0.9 --top-p 1 --max-tokens 4096"},
};
static int parse(const command *c, int argc, char **argv, settings *s);
/* fuse takes those of its training. */
static bool preset_serves(const preset *p, const command *c) {
    return !strcmp(p->command, strcmp(c->name, "fuse") ? c->name : "train") || !strcmp(c->name, "eval");
}
static int parse_preset(const command *c, const char *name, settings *s) {
    enum { WORDS = 64 };
    static char texts[sizeof presets / sizeof *presets][1024];     /* options point into them */
    char list[512] = "", *argv[WORDS], *text;
    const preset *p = NULL;
    int argc = 0;
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        const size_t n = strlen(list);
        if (!preset_serves(&presets[i], c)) continue;
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", presets[i].name);
        if (!strcmp(presets[i].name, name)) p = &presets[i];
    }
    if (!p) return misuse(c, "--preset: want one of %s, found \"%s\"", list, name);
    text = texts[p - presets];
    snprintf(text, sizeof *texts, "%s", p->options);
    for (char *w = strtok(text, " "); w && argc < WORDS; w = strtok(NULL, " ")) argv[argc++] = w;
    const command free = {c->name, "", "", p->options, NULL, NULL};  /* nothing is required of a preset alone */
    return parse(&free, argc, argv, s);
}
static void print_preset(const settings *s) {
    for (size_t i = 0; i < sizeof presets / sizeof *presets && s->preset; i++)
        if (!strcmp(presets[i].name, s->preset))
            printf("preset       %s (%s): %s\n", s->preset, presets[i].source, presets[i].options);
}
static int parse(const command *c, int argc, char **argv, settings *s) {
    char why[400];
    const char *config = NULL;       /* is read first: what the command line says comes after it */
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "--config=", 9)) config = argv[i] + 9;
        else if (!strcmp(argv[i], "--config") && i + 1 < argc) config = argv[++i];
    if (config && *config && listed(c->optional, "--config")) {
        const int code = read_config(c, config, s);
        if (code) return code;
    }
    const int64_t max_steps = s->max_steps;
    for (int i = 0; i < argc; i++) {
        const char *value = !strncmp(argv[i], "--preset", 8) && listed(c->optional, "--preset") ? argv[i] + 8 : NULL;
        if (!value || (*value && *value != '=')) continue;
        const int code = *value || i + 1 < argc ? parse_preset(c, *value ? value + 1 : argv[i + 1], s) : 0;
        if (code) return code;
    }
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i], *value = strchr(arg, '=');
        const size_t n = value ? (size_t)(value - arg) : strlen(arg);
        if (strncmp(arg, "--", 2)) {
            const bool many = strstr(c->operand, "...") && s->path;
            if (!*c->operand || (s->path && !many)) return misuse(c, "unexpected argument \"%s\"", arg);
            if (many && s->n_more == (int64_t)(sizeof s->more / sizeof *s->more))
                return misuse(c, "too many arguments");
            if (many) { s->more[s->n_more++] = arg; continue; }
            s->path = arg;
            continue;
        }
        const option *o = find_option(c, arg, n);
        if (!o) return misuse(c, "unknown option \"%.*s\"", (int)n, arg);
        const bool next = i + 1 < argc && (strncmp(argv[i + 1], "--", 2) != 0 || strchr(argv[i + 1], ' '));
        if (o->kind != FLAG && !value && !next)
            return misuse(c, "%s wants a value", o->name);
        int code = set(o, value ? value + 1 : o->kind == FLAG ? "true" : argv[++i], s, why);
        while (!code && o->kind == LIST && i + 1 < argc && strncmp(argv[i + 1], "--", 2))
            code = set(o, argv[++i], s, why);
        if (code) return code == 2 ? misuse(c, "%s: %s", o->name, why) : complain("%s: %s", o->name, why);
        const bool several = strcmp(o->name, "--in") != 0 || !strcmp(c->name, "select");
        if (s->n_more && o->kind == LIST && !several) return misuse(c, "%s takes one value", o->name);
        if (o->at == AT(epochs) && s->max_steps == max_steps) s->max_steps = 0;    /* those of the file */
        if (s->help) return 0;
    }
    for (int i = 0; i < N_OPTIONS; i++) {              /* TEXT, LIST, or CHOICE without a default: -1 */
        const void *value = (char *)s + options[i].at;
        if (listed(c->required, options[i].name) &&
            (options[i].kind == CHOICE ? *(const int *)value < 0 : !*(const char *const *)value))
            return misuse(c, "%s is missing", options[i].name);
    }
    if (*c->operand && *c->operand != '[' && !s->path) return misuse(c, "%s is missing", c->operand);
    return 0;
}

/* ---- sizes, times and counts as people write them ---- */
typedef struct label { char s[64]; } label;            /* a small string that needs no owner */
static label grouped(int64_t n) {                       /* 1,234,567 */
    label t;
    char digits[32];
    int size = snprintf(digits, sizeof digits, "%lld", (long long)n), k = 0;
    for (int i = 0; i < size; i++) {
        if (i && digits[i - 1] != '-' && (size - i) % 3 == 0) t.s[k++] = ',';
        t.s[k++] = digits[i];
    }
    t.s[k] = 0;
    return t;
}
static label bytes_text(double n) {                     /* 1.23 GiB */
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;
    label t;
    for (; n >= 1024 && u < 5; u++) n /= 1024;
    snprintf(t.s, sizeof t.s, u == 0 || n >= 100 ? "%.0f %s" : "%.2f %s", n, units[u]);
    return t;
}
static label count_text(int64_t n) {                    /* 134.5 M */
    label t;
    if (n < 1000000) return grouped(n);
    snprintf(t.s, sizeof t.s, n < 1000000000 ? "%.1f M" : "%.2f B", (double)n / (n < 1000000000 ? 1e6 : 1e9));
    return t;
}
static double seconds(void) {
#ifdef _WIN32
    struct __timeb64 t;
    _ftime64(&t);
    return (double)t.time + 1e-3 * (double)t.millitm;
#else
    struct timespec t;
    return timespec_get(&t, TIME_UTC) ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec : 0;
#endif
}
static label time_text(double seconds) {                /* 1:02:03 */
    label t;
    if (!(seconds < 1e8)) seconds = 0;
    long n = (long)(seconds + 0.5);
    if (n >= 3600) snprintf(t.s, sizeof t.s, "%ld:%02ld:%02ld", n / 3600, n / 60 % 60, n % 60);
    else snprintf(t.s, sizeof t.s, "%ld:%02ld", n / 60, n % 60);
    return t;
}
static const char *word(const char *name) { return name ? name : "?"; }
static double plain(double x) { return x + 0.0; }      /* -0 becomes 0 */
/* An option that was not given is 0, one that was given as 0 is -0. */
static double or_default(double x, double otherwise) { return x == 0 && !signbit(x) ? otherwise : x; }

/* ---- the terminal: a progress bar on stderr, which other output clears first ---- */
typedef struct screen { bool bar, drawn; } screen;
static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number) {          /* the first asks for a clean stop, a second one kills */
    interrupted = 1;
    signal(signal_number, SIG_DFL);
}
static void catch_signals(void) {     /* a SIGHUP that nohup ignores stays ignored */
    signal(SIGINT, on_interrupt), signal(SIGTERM, on_interrupt);
#ifndef _WIN32
    if (signal(SIGHUP, on_interrupt) == SIG_IGN) signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE,
           SIG_IGN); /* a closed pipe is an error of writing, and scratch folders are removed */
#endif
}
static int screen_width(void) {
#if !defined(_WIN32) && defined(TIOCGWINSZ)
    struct winsize w;
    if (ioctl(fileno(stderr), TIOCGWINSZ, &w) == 0 && w.ws_col > 0) return w.ws_col;
#endif
    return 80;
}
static void screen_clear(screen *v) {
    if (v->drawn) fputs("\r\033[K", stderr);
    v->drawn = false;
}
/* Pieces are shown in their order for as long as they fit; the bar takes what is left. */
static void screen_draw(screen *v, double part, const label *pieces, int count) {
    if (!v->bar) return;
    int left = screen_width() - 1, shown = 0, cells;
    while (shown < count && (int)strlen(pieces[shown].s) + (shown > 0) <= left)
        left -= (int)strlen(pieces[shown].s) + (shown > 0), shown++;
    cells = left >= 33 ? 30 : left >= 11 ? left - 3 : 0;
    fputs("\r\033[K", stderr);
    if (cells) {
        fputc('[', stderr);
        for (int i = 0; i < cells; i++) fputc(i < (int)(part * cells + 0.5) ? '#' : '.', stderr);
        fputs("] ", stderr);
    }
    for (int i = 0; i < shown; i++) fprintf(stderr, "%s%s", i ? " " : "", pieces[i].s);
    fflush(stderr);
    v->drawn = true;
}
static void log_line(wrpo_level level, const char *line, void *user) {
    if (ranks.rank) return;
    screen_clear(user);
    fprintf(stderr, "wrpo: %s%s\n", level == WRPO_LOG_WARN ? "warning: " : "", line);
}

/* ---- files: a result appears whole or not at all; an input is never written to ---- */
#define PART ".wrpo-%lu.part"        /* after a name: not whole, and whose; the library calls its files so too */
static bool same_file(const char *a, const char *b) {  /* or directory; by name where there are no inodes */
    struct stat x, y;
    if (!a || !b || stat(a, &x) || stat(b, &y)) return false;
    return x.st_ino ? x.st_dev == y.st_dev && x.st_ino == y.st_ino : !strcmp(a, b);
}
static bool is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}
static bool begins(const char *s, const char *with) { return !strncmp(s, with, strlen(with)); }
static bool ends(const char *s, const char *with) {
    const size_t n = strlen(s), k = strlen(with);
    return n >= k && !strcmp(s + n - k, with);
}
/* The names in a directory, "." and ".." left out; NULL: it cannot be read, or there is no memory. */
typedef struct names { char **list; int count; } names;
static void names_add(names *n, const char *name) {
    char **more = realloc(n->list, (size_t)(n->count + 1) * sizeof *more), *copy = malloc(strlen(name) + 1);
    if (more) n->list = more;
    if (more && copy && strcmp(name, ".") && strcmp(name, "..")) n->list[n->count++] = strcpy(copy, name);
    else free(copy);
}
static names names_in(const char *dir) {
    names n = {0};
#ifdef _WIN32
    char pattern[4200];
    struct _finddata_t e;
    snprintf(pattern, sizeof pattern, "%s/*", dir);
    const intptr_t h = _findfirst(pattern, &e);
    if (h == -1) return n;
    do names_add(&n, e.name); while (_findnext(h, &e) == 0);
    _findclose(h);
#else
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) names_add(&n, e->d_name);
    if (d) closedir(d);
#endif
    return n;
}
static void names_free(names *n) {
    for (int i = 0; i < n->count; i++) free(n->list[i]);
    free(n->list);
}
/* The file is on its disk, if it has one. */
static bool synced(FILE *f) {
    return fflush(f) == 0 && !ferror(f) && (fsync(fileno(f)) == 0 || errno == EINVAL || errno == ENOTSUP);
}
static void sync_parent(const char *path) {            /* its name is: on Windows a rename waits for that */
#ifndef _WIN32
    char dir[4200];
    const char *slash = strrchr(path, '/');
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    const int d = open(dir, O_RDONLY);
    if (d >= 0) fsync(d), close(d);
#else
    (void)path;
#endif
}
/* false: another process has the file. The lock goes with the process. Where the file system has none, it is granted;
   Windows does not share the file (lock_open) or does not remove one that is open. */
static bool lock_file(FILE *f) {
#ifdef _WIN32
    return f != NULL;
#else
    return flock(fileno(f), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
#endif
}
static void scratch_remove(const char *path) {         /* a folder that this program made */
    names n = names_in(path);
    for (int i = 0; i < n.count; i++) {
        char inner[4200];
        struct stat st;
        if (snprintf(inner, sizeof inner, "%s/%s", path, n.list[i]) >= (int)sizeof inner) continue;
#ifdef _WIN32
        if (stat(inner, &st) == 0 && S_ISDIR(st.st_mode)) scratch_remove(inner);
#else
        if (lstat(inner, &st) == 0 && S_ISDIR(st.st_mode)) scratch_remove(inner);
#endif
        else remove(inner);
    }
    names_free(&n);
    rmdir(path);
}
static bool part_lives(const char *path, unsigned long process) {
#ifndef _WIN32
    if (process && process != (unsigned long)getpid() && (kill((pid_t)process, 0) == 0 || errno == EPERM)) return true;
    FILE *f = fopen(path, "r+");
    const bool lives = f && !lock_file(f);
    if (f) fclose(f);
    return lives;
#else
    (void)path, (void)process;
    return false;
#endif
}
/* What dead runs left in a directory: of every name, if nobody else writes there (name NULL), or of this one. A
   checkpoint that is whole gets its name; all else goes. */
static void remove_dead(const char *dir, const char *name) {
    names n = names_in(dir);
    for (int i = 0; i < n.count; i++) {
        const char *found = n.list[i], *part = strstr(found, ".wrpo-");
        char path[4200], to[4200], state[4300];
        struct stat st;
        if (!name && !strcmp(found, "best")) {         /* train --save-best */
            snprintf(path, sizeof path, "%.2000s/best", dir);
            remove_dead(path, NULL);
        }
        if (!part || !ends(part, ".part") || strspn(part + 6, "0123456789") + 11 != strlen(part)) continue;
        const size_t size = (size_t)(part - found);
        if (name && (strlen(name) != size || memcmp(found, name, size))) continue;
        snprintf(path, sizeof path, "%.2000s/%.2000s", dir, found);
        snprintf(to, sizeof to, "%.2000s/%.*s", dir, (int)size, found);
        snprintf(state, sizeof state, "%s/trainer_state.wrpo", path);
        if (!is_dir(path)) {
            if (!part_lives(path, strtoul(part + 6, NULL, 10))) remove(path);
        } else if (!name && (stat(state, &st) != 0 || stat(to, &st) == 0 || rename(path, to) != 0)) {
            remove(state);                             /* first: without it, it is no checkpoint */
            scratch_remove(path);
        }
    }
    names_free(&n);
}

/* What a command reads: files, and the files of directories. They must not change under it. */
typedef struct input { char path[4200]; const char *option; struct stat st; } input;
static struct { input *list; int count; bool spoilt; } inputs;     /* spoilt: one was, and it has been said */
static void input_add(const char *path, const char *which) {
    struct stat st;
    input *more = stat(path, &st) ? NULL : realloc(inputs.list, (size_t)(inputs.count + 1) * sizeof *more);
    if (!more) return;
    inputs.list = more, more += inputs.count++;
    more->option = which, more->st = st;
    snprintf(more->path, sizeof more->path, "%s", path);
    if (!S_ISDIR(st.st_mode)) return;
    names n = names_in(path);
    for (int i = 0; i < n.count; i++) {
        char inner[4200];
        snprintf(inner, sizeof inner, "%.2000s/%.2000s", path, n.list[i]);
        if (!is_dir(inner)) input_add(inner, which);
    }
    names_free(&n);
}
static bool input_shrunk(const input *in, struct stat *now) {
    return stat(in->path, now) == 0 && now->st_ino == in->st.st_ino && now->st_size < in->st.st_size;
}
/* Mapped files that were written to in place: what was computed from them is nobody's result. A file that was replaced
   by a rename is still the old one for who has it open. */
static bool inputs_same(void) {
    for (int i = 0; i < inputs.count; i++) {
        const input *in = &inputs.list[i];
        struct stat now;
        if (!ends(in->path, ".safetensors") || stat(in->path, &now) || now.st_ino != in->st.st_ino) continue;
        if (now.st_size == in->st.st_size && now.st_mtime == in->st.st_mtime) continue;
        if (!inputs.spoilt) complain("%s: it was written to while it was read: there is no result", in->path);
        inputs.spoilt = true;
        return false;
    }
    return true;
}
#ifndef _WIN32
static void say(const char *text) {                    /* within a signal handler */
    if (write(2, text, strlen(text)) < 0) _exit(1);
}
static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
    struct stat now;
    (void)context;
    if (info->si_code != BUS_ADRERR) { signal(signal_number, SIG_DFL); return; }
    say("wrpo: ");
    for (int i = 0; i < inputs.count; i++)
        if (input_shrunk(&inputs.list[i], &now)) say(inputs.list[i].path), say(": ");
    say("a file became shorter while it was read, or its disk failed: there is no result\n");
    _exit(1);
}
#endif
static void catch_bus_errors(void) {
#ifndef _WIN32
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
#endif
}

/* The stack grows now. Under a limit of memory (ulimit -v) it might not later, and that is a crash, not a sentence. */
#ifndef _WIN32
#ifdef __GNUC__
__attribute__((noinline))            /* its frame must not be part of the caller's */
#endif
static void touch_stack(void) {
    volatile char room[1 << 20];
    for (size_t i = sizeof room; i > 4096; i -= 4096) room[i - 1] = 0;
}
#endif
static void grow_stack(void) {
#ifndef _WIN32
    struct rlimit most;
    const bool known = getrlimit(RLIMIT_STACK, &most) == 0;
    if (known && (most.rlim_cur == RLIM_INFINITY || most.rlim_cur >= 4 << 20)) touch_stack();
#endif
}

typedef struct output { FILE *f; const char *path; char part[4300]; } output;
static bool output_open(output *o, const char *path) {             /* path NULL: standard output */
    struct stat st;
    o->path = path ? path : "standard output", o->part[0] = 0, o->f = stdout;
    if (!path) return true;
    if (ranks.rank) path = "/dev/null";
    bool regular = stat(path, &st) != 0 || S_ISREG(st.st_mode);    /* a device or a pipe is written as it is */
    if (is_dir(path)) {
        complain("%s: want a file, found a directory", path);
        o->f = NULL;
        return false;
    }
    if (regular) snprintf(o->part, sizeof o->part, "%.4200s" PART, path, (unsigned long)getpid());
    o->f = fopen(regular ? o->part : path, "wb");
    if (!o->f) complain("%s: cannot be written: %s", path, strerror(errno)), o->part[0] = 0;
    else if (regular) lock_file(o->f);
    return o->f != NULL;
}
/* Ends it, well (whole true) or not; true if the file is there, on the disk. */
static bool output_close(output *o, bool whole) {
    if (!o->f) return false;
    whole = whole && inputs_same();
    bool ok = !whole ? false : o->part[0] ? synced(o->f) : fflush(o->f) == 0 && !ferror(o->f);
    int e = errno;
#ifndef _WIN32                       /* while it is open, and so locked; Windows cannot rename a file that is open */
    if (ok && o->part[0] && rename(o->part, o->path) != 0) ok = false, e = errno;
#endif
    if (o->f != stdout && fclose(o->f) != 0 && ok) ok = false, e = errno;
    o->f = NULL;
#ifdef _WIN32
    if (o->part[0] && ok) remove(o->path);
    if (o->part[0] && ok && rename(o->part, o->path) != 0) ok = false, e = errno;
#endif
    if (o->part[0] && !ok) remove(o->part);
    if (o->part[0] && ok) sync_parent(o->path);
    if (whole && !ok) complain("%s: cannot be written: %s", o->path, strerror(e));
    return ok;
}
static char *read_all(FILE *f, size_t *size) {         /* NULL: out of memory or unreadable */
    size_t cap = 1 << 16, n = 0;
    char *data = malloc(cap);
    while (data) {
        n += fread(data + n, 1, cap - n, f);
        if (n < cap) break;
        char *more = realloc(data, cap *= 2);
        if (!more) free(data);
        data = more;
    }
    if (data && ferror(f)) { free(data); return NULL; }
    *size = n;
    return data;
}
/* Makes a directory and its parents, before any work is done for it.
 *made is the length of the part of the path that was there: output_dir_drop takes the rest away again if it is empty.
*/
static bool output_dir(const char *path, size_t *made) {
    char part[4096];
    size_t n = strlen(path);
    struct stat st;
    *made = n;
    if (ranks.rank) return true;
    if (n + 32 > sizeof part) return complain("%.100s...: the path is too long", path), false;
    for (size_t i = 1; i <= n; i++) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i), part[i] = 0;
        const bool ours = mkdir(part, 0777) == 0;      /* no: it was there, or another run has just made it */
        const int why = errno == EEXIST ? ENOTDIR : errno;
        if (!ours && (stat(part, &st) != 0 || !S_ISDIR(st.st_mode)))
            return complain("%s: cannot be made: %s", part, strerror(why)), false;
        if (ours && *made == n) *made = i - 1;
        if (ours) sync_parent(part);
    }
    return true;
}
/* Could the directory be made and written to? Asks about it, or about the nearest directory above it that exists. */
static bool output_dir_possible(const char *path) {
    char part[4096];
    struct stat st;
    if (strlen(path) + 64 > sizeof part) return complain("%.100s...: the path is too long", path), false;
    snprintf(part, sizeof part, "%s", path);
    while (stat(part, &st) != 0) {
        if (errno != ENOENT || !strcmp(part, "."))
            return complain("%s: cannot be made: %s", path, strerror(errno)), false;
        size_t n = strlen(part);
        while (n > 1 && part[n - 1] == '/') n--;       /* "a/b/" -> "a/" -> "." */
        while (n > 0 && part[n - 1] != '/') n--;
        if (n == 0) snprintf(part, sizeof part, ".");
        else part[n] = 0;
    }
    if (!S_ISDIR(st.st_mode)) return complain("%s: cannot be made: %s", path, strerror(ENOTDIR)), false;
    if (access(part, 2) != 0) return complain("%s: cannot be written to: %s", part, strerror(errno)), false;
    return true;
}
static void output_dir_drop(const char *path, size_t made) {       /* rmdir leaves alone what is not empty */
    char part[4096];
    size_t n = ranks.rank ? 0 : strlen(path);
    for (size_t i = n; i > made && i < sizeof part; i--) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i), part[i] = 0;
        if (rmdir(part) != 0 && errno != ENOENT) return;
    }
}

/* A scratch folder has a lock, unless it is to be kept: one whose lock is free is a dead run's, and goes. */
static FILE *scratch_lock;
static bool scratch_make(char *path, size_t size, bool keep) {
#ifndef _WIN32
    const char *base = getenv("TMPDIR");
    if (!base || !*base) base = "/tmp";
    names n = names_in(base);
    for (int i = 0; i < n.count; i++) {
        char folder[4200], lock[4300];
        struct stat st;
        snprintf(folder, sizeof folder, "%.2000s/%.2000s", base, n.list[i]);
        snprintf(lock, sizeof lock, "%s/.wrpo.lock", folder);
        if (!begins(n.list[i], "wrpo-") || strlen(n.list[i]) != 11) continue;
        if (lstat(folder, &st) || !S_ISDIR(st.st_mode) || st.st_uid != geteuid()) continue;
        FILE *f = fopen(lock, "r+");
        const bool dead = f && lock_file(f);
        if (dead) scratch_remove(folder);
        if (f) fclose(f);
    }
    names_free(&n);
    snprintf(path, size, "%s/wrpo-XXXXXX", base);
    const bool made = mkdtemp(path) != NULL;
#else
    snprintf(path, size, "wrpo-%ld", (long)getpid());
    const bool made = mkdir(path, 0777) == 0;
#endif
    if (!made) return complain("%s: cannot be made: %s", path, strerror(errno)), false;
    char lock[4300];
    snprintf(lock, sizeof lock, "%.4200s/.wrpo.lock", path);
    scratch_lock = keep ? NULL : fopen(lock, "w");
    if (scratch_lock) lock_file(scratch_lock);
    return true;
}
static void scratch_drop(const char *path) {
    if (scratch_lock) fclose(scratch_lock), scratch_lock = NULL;
    scratch_remove(path);
}

/* ---- what the commands share ---- */
struct session {                     /* everything a command opens; closed in one place */
    wrpo_ctx *ctx;
    wrpo_tokenizer *tokenizer;
    wrpo_data *data, *eval_data;
    wrpo_model *model;
    wrpo_reward *reward;
    int32_t *eos;                    /* what --save-eos saves */
    screen screen;
    int argc;                        /* the command line */
    char **argv;
    /* the directory that the command writes, its lock, and how much of its path was there before */
    const char *dir; FILE *lock; size_t made;
};
static int fail(session *z) {        /* the library's sentence */
    screen_clear(&z->screen);
    return inputs.spoilt ? 1 : complain("%s", wrpo_last_error(z->ctx)->text);
}
/* All ranks are told how rank 0 has set p[n]. false: one of them has failed. */
static bool from_first(session *z, void *p, size_t n, bool ok) {
    wrpo_error why = {0};
    if (ranks.ranks == 1) return ok;
    if (wrpo_agree(z->ctx, ok ? WRPO_OK : WRPO_E_IO, ok ? NULL : said)) return ok ? fail(z), false : false;
    return ranks.broadcast(ranks.self, p, n, 0, &why) == WRPO_OK || (complain("%s", why.text), false);
}
static bool session_desc(session *z, const settings *s, wrpo_desc *out) {
    wrpo_desc desc = {.threads = (int)s->threads,
                      .dtype = dtype_of(s->dtype),
                      .memory_limit = (size_t)s->memory_limit,
                      .log = {log_line, &z->screen},
                      .group = together ? &ranks : NULL,
                      .lanes = s->lanes};
    z->screen.bar = isatty(fileno(stderr)) && !ranks.rank;
    const char *cpu = getenv("WRPO_CPU"); /* which of the CPU's backends computes; for tests and comparisons */
    if (cpu && *cpu && s->device != 1) {
        desc.backend = wrpo_backend_find(cpu);
        if (!desc.backend) {
            complain("WRPO_CPU: want plain, generic, avx2, avx512 or amx, and a machine that has it; found %s", cpu);
            return false;
        }
    }
    if (s->device == 1) {
#ifdef WRPO_CUDA
        static wrpo_backend cuda;                      /* its features by the environment; for tests and comparisons */
        const char *gemm = getenv("WRPO_GEMM"), *graphs = getenv("WRPO_GRAPHS");
        cuda = *wrpo_backend_cuda();
        desc.backend = &cuda;
        if (gemm) cuda.features &= ~(unsigned)WRPO_FEATURE_CUBLAS;
        if (gemm && !strcmp(gemm, "lt")) cuda.features |= WRPO_FEATURE_CUBLAS;
        else if (gemm && !strcmp(gemm, "wgmma")) cuda.features |= WRPO_FEATURE_WGMMA;
        else if (gemm && strcmp(gemm, "mma") != 0)
            return complain("WRPO_GEMM: want lt, mma or wgmma, found %s", gemm), false;
        if (graphs && strcmp(graphs, "0") != 0 && strcmp(graphs, "1") != 0)
            return complain("WRPO_GRAPHS: want 0 or 1, found %s", graphs), false;
        if (graphs && *graphs == '0') cuda.features &= ~(unsigned)WRPO_FEATURE_GRAPHS;
#ifndef WRPO_NCCL
        if (together) {
            complain("--device cuda on several ranks: this program was compiled without it: want -DWRPO_NCCL");
            return false;
        }
#endif
#else
        complain("--device cuda: this program was compiled without it: want nvcc -DWRPO_CUDA and wrpo_cuda.cu on its "
                 "command line");
        return false;
#endif
    }
    *out = desc;
    return true;
}
static bool session_open(session *z, const settings *s) {
    wrpo_error why = {0};
    wrpo_desc desc;
    const int code = session_desc(z, s, &desc) ? 0 : 1;
    if (together ? worst(code) : code) return false;
    desc.why = &why;
#ifdef WRPO_NCCL
    int64_t first = s->device;       /* ranks that were told other devices would wait for each other */
    if (together && ranks.broadcast(ranks.self, &first, sizeof first, 0, &why)) return complain("%s", why.text), false;
    int64_t other = s->device == first ? 0 : ranks.ranks - ranks.rank;
    if (together && ranks.most(ranks.self, &other, &why)) return complain("%s", why.text), false;
    if (other)
        return complain("rank %d: --device: want that of rank 0, found another", ranks.ranks - (int)other), false;
    if (together && first == 1) {
        if (!devices.self && wrpo_nccl_open(&ranks, &devices, &why)) return complain("%s", why.text), false;
        desc.group = &devices;
    }
#endif
    if (wrpo_open(&desc, &z->ctx)) return complain("%s", why.text), false;
    if (!s->date || !wrpo_set_date(z->ctx, s->date)) return true;
    fail(z);
    wrpo_close(z->ctx);
    return false;
}
static void session_close(session *z) {
    screen_clear(&z->screen);
    wrpo_model_free(z->model);
    wrpo_data_free(z->data), wrpo_data_free(z->eval_data);
    wrpo_tokenizer_free(z->tokenizer);
    if (z->ctx) wrpo_free(z->ctx, z->eos);
    wrpo_reward_free(z->reward);
    wrpo_close(z->ctx);
}
/* ---- before a command runs: what it writes is none of what it reads; its directory is its own ---- */
static bool writes_directory(const command *c) {
    static const char *const list[] = {"train", "init", "merge", "split", "fuse"};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (!strcmp(c->name, list[i])) return true;
    return false;
}
/* A source may be NAME=DIR. */
static const char *source_dir(const char *given) {
    const char *equal = strchr(given, '=');
    return equal && !memchr(given, '/', (size_t)(equal - given)) ? equal + 1 : given;
}
static void inputs_find(const command *c, const settings *s) {
    inputs.count = 0;
    for (int64_t i = 0; s->source && i <= s->n_more; i++)
        input_add(source_dir(i ? s->more[i - 1] : s->source), "--source");
    for (int i = 0; i < N_OPTIONS; i++) {
        const option *o = &options[i];
        const void *at = (const char *)s + o->at;
        const char *path = o->kind == TEXT || o->kind == LIST ? *(const char *const *)at : NULL;
        if (!path || (strcmp(o->value, "DIR") && strcmp(o->value, "FILE"))) continue;
        if (o->at == AT(config) && s->file) continue;  /* settings, read whole before */
        if (listed(c->required, o->name) || listed(c->optional, o->name)) input_add(path, o->name);
    }
    if (s->path) input_add(s->path, c->operand);
    for (int64_t i = 0; i < s->n_more && !s->source; i++)
        input_add(s->more[i], s->path ? c->operand : s->with ? "--with" : "--in");
}
/* The files of a directory that the command writes, or may write. */
static bool would_write(const command *c, const char *name) {
    if (!strcmp(c->name, "split"))
        return !strcmp(name, "sft.jsonl") || !strcmp(name, "wrpo.jsonl") || !strcmp(name, "heldout.jsonl");
    return !ends(name, ".jsonl") || !strcmp(name, "metrics.jsonl");
}
static bool output_free_dir(const command *c, const char *out) {
    names n = names_in(out);
    bool ok = true;
    for (int i = 0; ok && i < inputs.count; i++) {
        const input *in = &inputs.list[i];
        if (S_ISDIR(in->st.st_mode) && same_file(in->path, out)) {
            ok = false;
            complain("--out: want another directory than %s, found %s", in->option, out);
        }
        for (int k = 0; ok && k < n.count; k++) {
            char path[4200];
            snprintf(path, sizeof path, "%.2000s/%.2000s", out, n.list[k]);
            const bool dir = S_ISDIR(in->st.st_mode);
            const bool checkpoint = begins(n.list[k], "checkpoint-") && strcmp(in->option, "--resume");
            if (dir ? !checkpoint && strcmp(n.list[k], "best") : !would_write(c, n.list[k])) continue;
            if (!same_file(path, in->path)) continue;
            ok = false;
            complain("--out: want a directory where nothing is read, found %s in it, which %s reads", path, in->option);
        }
    }
    names_free(&n);
    return ok;
}
static bool output_free_file(const char *out) {
    for (int i = 0; i < inputs.count; i++)
        if (!S_ISDIR(inputs.list[i].st.st_mode) && same_file(inputs.list[i].path, out))
            return complain("--out: want a file that is not read, found %s, which %s reads", inputs.list[i].path,
                            inputs.list[i].option), false;
    return true;
}
static FILE *lock_open(const char *path) {
#ifdef _WIN32
    return _fsopen(path, "w", _SH_DENYWR);             /* who comes later can read it, and no more */
#else
    return fopen(path, "a+");
#endif
}
/* DIR/.wrpo.lock is locked as long as this process lives, or until session_end, and says which process it is. */
static bool lock_dir(session *z, const char *dir) {
    char path[4200], process[32] = "?";
    snprintf(path, sizeof path, "%.4000s/.wrpo.lock", dir);
    while (!z->lock) {
        FILE *f = lock_open(path);
        const int e = errno;
        struct stat st;
        bool busy = f ? !lock_file(f) : false;
#ifdef _WIN32
        busy = !f && e == EACCES && stat(path, &st) == 0;
#endif
        if (busy) {
            FILE *in = fopen(path, "r");
            if (in && !fgets(process, sizeof process, in)) process[0] = '?';
            if (in) fclose(in);
            if (f) fclose(f);
            return complain("%s: want a directory that no other run writes, found process %s at work in it", dir,
                            process), false;
        }
        if (!f) return complain("%s: cannot be written to: %s", dir, strerror(e)), false;
#ifndef _WIN32
        struct stat mine;            /* its last owner may have removed it in between */
        if (fstat(fileno(f), &mine) || stat(path, &st) || mine.st_ino != st.st_ino) {
            fclose(f);
            continue;
        }
        if (ftruncate(fileno(f), 0) != 0) rewind(f);
#endif
        fprintf(f, "%ld", (long)getpid());
        fflush(f);
        z->lock = f;
    }
    return true;
}
static bool session_begin(session *z, const command *c, const settings *s) {
    const bool report_file = !strcmp(c->name, "report") || !strcmp(c->name, "demo") || !*c->name;
    const char *file = s->csv ? "metrics.csv" : "report.html", *out = s->out ? s->out : report_file ? file : NULL;
    char path[4200], dir[4200];
    inputs_find(c, s);
    if (!out || (s->dry_run && !writes_directory(c)) || ranks.rank) return true;
    if (!writes_directory(c)) {
        static const char *const beside[] = {"", ".part", ".settings"};            /* sample writes all three */
        for (int i = 0; i < (strcmp(c->name, "sample") ? 1 : 3); i++) {
            snprintf(path, sizeof path, "%.4000s%s", out, beside[i]);
            if (!output_free_file(path)) return false;
        }
        const char *slash = strrchr(out, '/');
        snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - out) + 1 : 1, slash ? out : ".");
        remove_dead(dir, slash ? slash + 1 : out);
        return true;
    }
    if (!output_free_dir(c, out)) return false;
    if (s->dry_run) return output_dir_possible(out);
    const bool ok = output_dir(out, &z->made);
    z->dir = out;
    if (!ok || !lock_dir(z, out)) return false;
    remove_dead(out, NULL);
    return true;
}
static void session_end(session *z, bool failed) {
    char path[4200];
    if (z->lock && failed) remove_dead(z->dir, NULL);  /* of this process */
    snprintf(path, sizeof path, "%.4000s/.wrpo.lock", z->dir ? z->dir : "");
#ifdef _WIN32
    if (z->lock) fclose(z->lock), remove(path);
#else
    if (z->lock) remove(path), fclose(z->lock);        /* nobody has it while it is there */
#endif
    if (z->dir) output_dir_drop(z->dir, z->made);      /* if nothing was written */
    free(inputs.list);
    inputs.list = NULL, inputs.count = 0, inputs.spoilt = false;
}
static const char *system_message(const settings *s) {             /* as the library takes it */
    const char *text = s->system_message;
    return !text || !strcmp(text, "none") ? NULL : strcmp(text, "auto") ? text : "";
}
static wrpo_result load_data(session *z, const settings *s, const char *path, bool eval, wrpo_data **out) {
    const wrpo_data_desc d = {.path = path,
                              .eval_split = s->eval_split,
                              .eval_part = eval,
                              .tokenization = (wrpo_tokenization)s->tokenization,
                              .max_length = s->max_length,
                              .max_prompt_length = s->max_prompt_length,
                              .system_message = system_message(s),
                              .limit = s->limit,
                              .format = (wrpo_data_format)s->data_format,
                              .sft_on = (wrpo_sft_on)s->sft_on,
                              .packing = s->packing};
    wrpo_result r = z->tokenizer ? WRPO_OK : wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer);
    if (r == WRPO_OK) r = wrpo_data_load(z->tokenizer, &d, out);
    return r;
}
static wrpo_result load_model(session *z, const settings *s, bool frozen) {
    const wrpo_model_desc d = {.dir = s->model, .frozen = frozen, .adapter = s->adapter};
    return wrpo_model_load(z->ctx, &d, &z->model);
}
static wrpo_adapter_desc adapter_desc(const settings *s) {
    return (wrpo_adapter_desc){.r = s->lora_r, .alpha = s->lora_alpha, .rslora = s->rslora, .dropout = s->lora_dropout,
                               .target = s->lora_target, .seed = (uint64_t)s->seed};
}
static wrpo_train_desc train_desc(const settings *s) {
    wrpo_train_desc d = {
        .alpha = s->alpha, .alpha_schedule = (wrpo_alpha_schedule)s->alpha_schedule, .alpha_power = s->alpha_power};
    d.loss = (wrpo_loss_desc){.method = (wrpo_method)s->method,
                              .pair = (wrpo_pair)s->pair,
                              .beta = s->beta,
                              .label_smoothing = s->label_smoothing,
                              .gamma_ratio = s->gamma_ratio,
                              .ipo_sum = s->ipo_sum,
                              .fusion = (wrpo_fusion)s->fusion,
                              .sft_weight = s->sft_weight};
    d.learning_rate = s->learning_rate, d.lr_schedule = (wrpo_lr_schedule)s->lr_schedule,
    d.warmup_ratio = s->warmup_ratio;
    d.moments = (wrpo_moments)s->moments, d.weight_decay = s->weight_decay, d.max_grad_norm = s->max_grad_norm;
    d.epochs = s->epochs, d.max_steps = s->max_steps, d.batch_size = s->batch_size, d.accumulation = s->accumulation;
    d.micro_tokens = s->micro_tokens, d.recompute = s->recompute, d.eval_steps = s->eval_steps;
    d.seed = (uint64_t)s->seed, d.no_shuffle = s->no_shuffle, d.ref_dir = s->ref;
    return d;
}
static bool mixes(wrpo_method m) { return m == WRPO_METHOD_WRPO || m == WRPO_METHOD_INFIFPO_WRPO; }   /* has alpha */
static bool fuses(wrpo_method m) {                      /* reads source_logps */
    return m == WRPO_METHOD_INFIFPO || m == WRPO_METHOD_INFIFPO_WRPO || m == WRPO_METHOD_INFIFPO_IPO;
}
static bool has_reference(const settings *s) { return s->method != WRPO_METHOD_SIMPO && s->method != WRPO_METHOD_SFT; }
/* Does the option say nothing to the method? */
static bool is_idle(const option *o, int method) {
    const bool sft = method == WRPO_METHOD_SFT;
    if (o->at == AT(alpha) || o->at == AT(alpha_schedule)) return !mixes((wrpo_method)method);
    if (o->at == AT(fusion)) return !fuses((wrpo_method)method);
    if (o->at == AT(pair)) return mixes((wrpo_method)method) || sft;
    if (o->at == AT(beta)) return sft;
    if (o->at == AT(gamma_ratio)) return method != WRPO_METHOD_SIMPO;
    if (o->at == AT(ipo_sum)) return method != WRPO_METHOD_IPO;
    if (o->at == AT(sft_on) || o->at == AT(packing)) return !sft;
    return o->at == AT(ref) && (sft || method == WRPO_METHOD_SIMPO);
}
static bool is_given(const option *o, const settings *s) {     /* and not as its default */
    const void *at = (const char *)s + o->at;
    if (o->kind == FLAG) return *(const bool *)at;
    if (o->kind == COUNT) return *(const int64_t *)at != 0;
    if (o->kind == REAL) return *(const double *)at != 0;
    return o->kind == CHOICE || o->kind == RAMP ? *(const int *)at > 0 : *(const char *const *)at != NULL;
}
static void check_method(const settings *s) {          /* such options are named, not silently ignored */
    for (const option *o = options; o < options + N_OPTIONS; o++)
        if (find_option(s->command, o->name, strlen(o->name)) && is_idle(o, s->method) && is_given(o, s))
            complain("warning: %s says nothing to --method %s", o->name, wrpo_method_name(s->method));
}
static void print_memory(const wrpo_bytes *b, int64_t layers) {
    printf("memory       %s: weights %s, gradients %s, moments %s, activations %s, head %s, data %s\n",
           bytes_text((double)b->total).s, bytes_text((double)b->weights).s, bytes_text((double)b->gradients).s,
           bytes_text((double)b->moments).s, bytes_text((double)b->activations).s, bytes_text((double)b->head).s,
           bytes_text((double)b->data).s);
    if (b->room < SIZE_MAX)
        printf("room         %s of %s that are free%s, %s%lld of %lld layers%s recomputed\n",
               bytes_text((double)b->device).s, bytes_text((double)b->room).s, b->device > b->room ? ": too much" : "",
               b->recompute ? "at most " : "", (long long)b->recompute, (long long)layers,
               b->logits ? "" : " and the logits");
}

/* ---- init ---- */
static int run_init(const settings *s, session *z) {
    const wrpo_init_desc d = {.config = s->config,
                              .tokenizer_dir = s->tokenizer,
                              .frozen = true,
                              .seed = s->seed ? (uint64_t)s->seed : 42,
                              .dtype = dtype_of(s->save_dtype)};
    const wrpo_save_desc save = {.dir = s->out, .max_shard_size = s->max_shard_size};
    wrpo_config config;
    if (wrpo_config_load(z->ctx, s->config, &config) || wrpo_tokenizer_load(z->ctx, s->tokenizer, &z->tokenizer))
        return fail(z);
    if (wrpo_tokenizer_size(z->tokenizer) > config.vocab_size)
        return complain("%s: want vocab_size of at least %lld, the ids of the tokenizer, found %lld", s->config,
                        (long long)wrpo_tokenizer_size(z->tokenizer), (long long)config.vocab_size);
    if (wrpo_model_init(z->ctx, &d, &z->model) || wrpo_model_save(z->model, &save)) return fail(z);
    printf("%s: %s parameters, random\n", s->out, count_text(wrpo_model_parameters(z->model)).s);
    return 0;
}

/* ---- JSON lines in ---- */
typedef struct lines {
    const char *name;
    char *data;
    size_t size, at;
    int64_t line;
} lines;                                                           /* a file in memory, and how far it is read */
static bool lines_open(lines *in, const char *path) {              /* path NULL: standard input */
    FILE *f = path ? fopen(path, "rb") : stdin;
    *in = (lines){.name = path ? path : "standard input"};
    if (!f) return complain("%s: cannot be opened: %s", path, strerror(errno)), false;
    in->data = read_all(f, &in->size);
    const int e = errno;
    if (f != stdin) fclose(f);
    if (in->data && in->size >= 3 && memcmp(in->data, "\xEF\xBB\xBF", 3) == 0) in->at = 3;    /* a byte order mark */
    return in->data || (complain("%s: cannot be read: %s", in->name, strerror(e)), false);
}
/* The sentence of a parser that was given one line names line 1: the file's line instead. */

/* ---- inspect ---- */
static void print_tensors(const wrpo_tensors *t) {
    int width = 4;
    size_t total = 0;
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        int n = (int)strlen(wrpo_tensors_at(t, i)->name);
        if (n > width) width = n < 60 ? n : 60;
    }
    printf("%-*s  %-8s %-20s %14s\n", width, "name", "dtype", "shape", "bytes");
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *w = wrpo_tensors_at(t, i);
        char shape[128] = "[";
        size_t n = 1;
        for (int k = 0; k < w->ndim && n < sizeof shape - 24; k++)
            n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%lld", k ? ", " : "", (long long)w->shape[k]);
        snprintf(shape + n, sizeof shape - n, "]");
        printf("%-*s  %-8s %-20s %14s\n", width, w->name, w->dtype, shape, grouped((int64_t)w->bytes).s);
        total += w->bytes;
    }
    printf("%s tensors, %s\n", grouped(wrpo_tensors_count(t)).s, bytes_text((double)total).s);
}
/* t NULL: a config.json alone, of a model that is not here; what a run of it would take. */
static int inspect_model(const settings *s, session *z, const wrpo_tensors *t) {
    static const char *const dtypes[] = {"?", "F32", "BF16", "F16"};
    wrpo_config c;
    wrpo_dtype dtype;
    wrpo_bytes run, all;
    int64_t parameters;
    size_t total = 0;
    const wrpo_train_desc none = {.moments = (wrpo_moments)s->moments},
                          recompute = {.moments = (wrpo_moments)s->moments, .recompute = -1};
    static const char *const heads[] = {"", ", reward: score", ", reward: v_head", ", reward: gated objectives"};
    if (t ? wrpo_model_check(z->ctx, s->path, &c, &parameters, &dtype) : wrpo_config_load(z->ctx, s->path, &c))
        return fail(z);
    if (wrpo_train_bytes(z->ctx, &c, NULL, &none, NULL, &run) ||
        wrpo_train_bytes(z->ctx, &c, NULL, &recompute, NULL, &all))
        return fail(z);
    for (int64_t i = 0; t && i < wrpo_tensors_count(t); i++) total += wrpo_tensors_at(t, i)->bytes;
    if (!t) parameters = run.parameters;
    printf("model        %s\n", s->path);
    printf("type         %s%s%s%s%s%s\n", c.model_type, heads[c.head], c.attention_bias ? ", q/k/v biases" : "",
           c.output_bias ? ", o bias" : "", c.qk_norm ? ", q/k norms" : "",
           c.tie_word_embeddings ? ", tied embeddings" : "");
    printf("layers       %lld\n", (long long)c.num_hidden_layers);
    printf("hidden       %lld\n", (long long)c.hidden_size);
    printf("mlp          %lld\n", (long long)c.intermediate_size);
    printf("heads        %lld of %lld, %lld for keys and values\n", (long long)c.num_attention_heads,
           (long long)c.head_dim, (long long)c.num_key_value_heads);
    printf("vocabulary   %s\n", grouped(c.vocab_size).s);
    printf("positions    %s, rope %s, theta %g\n", grouped(c.max_position_embeddings).s,
           word(wrpo_rope_name((int)c.rope.type)), c.rope.theta);
    if (c.sliding_window) printf("window       %s\n", grouped(c.sliding_window).s);
    printf("parameters   %s (%s)\n", grouped(parameters).s, count_text(parameters).s);
    if (t)
        printf("tensors      %s, %s, %s\n", grouped(wrpo_tensors_count(t)).s, dtypes[dtype],
               bytes_text((double)total).s);
    if (c.head == WRPO_HEAD_LM) print_memory(&run, c.num_hidden_layers);
    if (c.head == WRPO_HEAD_LM)
        printf("             %s with --recompute -1 (of a run with --micro-tokens %lld and no longer record)\n",
               bytes_text((double)all.total).s, (long long)wrpo_train_defaults(z->ctx, &none).micro_tokens);
    if (s->tensors) print_tensors(t);
    return 0;
}
/* A directory of PEFT: its config, its parameters. */
static int inspect_adapter(const settings *s, session *z, const char *config, const char *file) {
    static const char *const keys[] = {"base_model_name_or_path", "r", "lora_alpha", "use_rslora", "lora_dropout",
                                       "target_modules", "rank_pattern", "alpha_pattern"};
    lines in = {0};
    wrpo_json *root = NULL;
    wrpo_tensors *t = NULL;
    int64_t count = 0;
    if (!lines_open(&in, config)) return 1;
    const wrpo_result r = wrpo_json_parse(z->ctx, config, in.data, in.size, &root);
    free(in.data);
    if (r || wrpo_tensors_open(z->ctx, file, &t)) return fail(z);
    printf("%-24s %s\n", "adapter", s->path);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const wrpo_json *v = wrpo_json_get(root, keys[i]);
        char *text = NULL;
        if (!v || v->kind == WRPO_JSON_NULL || (v->kind >= WRPO_JSON_ARRAY && !v->count)) continue;
        if (wrpo_json_text(z->ctx, v, &text)) return fail(z);
        printf("%-24s %s\n", keys[i], text);
        wrpo_free(z->ctx, text);
    }
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) count += wrpo_tensors_at(t, i)->count;
    printf("%-24s %s in %s matrices\n", "parameters", grouped(count).s, grouped(wrpo_tensors_count(t)).s);
    if (s->tensors) print_tensors(t);
    wrpo_tensors_close(t);
    wrpo_json_free(z->ctx, root);
    return 0;
}
static int run_inspect(const settings *s, session *z) {
    struct stat st;
    wrpo_tensors *t;
    wrpo_config c;
    if (stat(s->path, &st) != 0)                       /* of a directory, or a name of the hub, the library says more */
        return strstr(s->path, ".safetensors") || !wrpo_config_load(z->ctx, s->path, &c)
                   ? complain("%s: cannot be opened: %s", s->path, strerror(errno)) : fail(z);
    const bool dir = S_ISDIR(st.st_mode);
    char config[4200], adapter[4200], file[4200];
    snprintf(config, sizeof config, "%s/config.json", s->path);
    snprintf(adapter, sizeof adapter, "%s/adapter_config.json", s->path);
    snprintf(file, sizeof file, "%s/adapter_model.safetensors", s->path);
    if (dir && stat(config, &st) != 0 && stat(adapter, &st) == 0) return inspect_adapter(s, z, adapter, file);
    const size_t n = strlen(s->path);
    if (!dir && n >= 11 && !strcmp(s->path + n - 11, "config.json")) return inspect_model(s, z, NULL);
    if (dir && wrpo_config_load(z->ctx, s->path, &c))
        return fail(z); /* says first what is the matter with config.json */
    if (wrpo_tensors_open(z->ctx, s->path, &t)) return fail(z);
    int code = 0;
    if (dir) code = inspect_model(s, z, t);
    else print_tensors(t);
    wrpo_tensors_close(t);
    return code;
}

static int bad_json(session *z, const lines *in) {
    const char *why = wrpo_last_error(z->ctx)->text;
    char prefix[600];
    const int k = snprintf(prefix, sizeof prefix, "%s:1:", in->name);
    screen_clear(&z->screen);
    return complain("%s:%lld:%s", in->name, (long long)in->line, strncmp(why, prefix, (size_t)k) ? why : why + k);
}
/* The next line's value: 1; none left: 0; after an error, which was complained about: -1. blank: empty lines are passed
 * over. */
static int lines_next(session *z, lines *in, bool blank, wrpo_json **out) {
    *out = NULL;
    while (in->at < in->size) {
        const char *text = in->data + in->at, *end = memchr(text, '\n', in->size - in->at);
        const size_t n = end ? (size_t)(end - text) : in->size - in->at;
        in->at += n + 1, in->line++;
        size_t space = 0;
        while (space < n && strchr(" \t\r", text[space]) && text[space]) space++;
        if (blank && space == n) continue;
        if (wrpo_json_parse(z->ctx, in->name, text, n, out) == WRPO_OK) return 1;
        bad_json(z, in);
        return -1;
    }
    return 0;
}
static int bad_line(const char *name, int64_t line, const char *sentence) {
    return complain("%s:%lld: %s", name, (long long)line, sentence);
}
static void print_ids(FILE *f, const int32_t *ids, int64_t count) {
    fputs("\"ids\": [", f);
    for (int64_t i = 0; i < count; i++) fprintf(f, "%s%d", i ? ", " : "", (int)ids[i]);
    fputs("]", f);
}
static bool print_text(session *z, FILE *f, const char *key, const char *text, size_t size) {
    char *quoted;
    if (wrpo_json_quote(z->ctx, text, size, &quoted)) return false;
    fprintf(f, "\"%s\": %s", key, quoted);
    wrpo_free(z->ctx, quoted);
    return true;
}
static bool print_json(session *z, FILE *f, const wrpo_json *v) {
    char *text;
    if (wrpo_json_text(z->ctx, v, &text)) return false;
    fputs(text, f);
    wrpo_free(z->ctx, text);
    return true;
}
static bool print_member(session *z, FILE *f, const char *before, const char *key, const wrpo_json *v) {
    fprintf(f, "%s\"%s\": ", before, key);
    return print_json(z, f, v);
}
static bool boolean(const wrpo_json *object, const char *key,
                    bool *out) { /* absent: false; false: it is something else */
    const wrpo_json *v = wrpo_json_get(object, key);
    *out = v && v->kind == WRPO_JSON_BOOL && v->boolean;
    return !v || v->kind == WRPO_JSON_BOOL;
}

/* ---- tokenize: JSON lines in, JSON lines out ---- */
static int tokenize_line(session *z, FILE *out, const char *name, int64_t line, const wrpo_json *in) {
    const wrpo_json *text = wrpo_json_get(in, "text"), *messages = wrpo_json_get(in, "messages"),
                    *ids = wrpo_json_get(in, "ids");
    const wrpo_json *kwargs = wrpo_json_get(in, "kwargs");
    bool special, prompt, skip, ok = true;
    int32_t *list = NULL;
    char *result = NULL;
    int64_t count = 0;
    size_t size;
    if (in->kind != WRPO_JSON_OBJECT || !!text + !!messages + !!ids != 1)
        return bad_line(name, line, "want an object with one of \"text\", \"messages\" and \"ids\"");
    if (!boolean(in, "special", &special)) return bad_line(name, line, "\"special\": want true or false");
    if (!boolean(in, "add_generation_prompt", &prompt))
        return bad_line(name, line, "\"add_generation_prompt\": want true or false");
    if (!boolean(in, "skip_special", &skip)) return bad_line(name, line, "\"skip_special\": want true or false");
    if (text) {
        if (text->kind != WRPO_JSON_STRING) return bad_line(name, line, "\"text\": want a string");
        ok = wrpo_tokenizer_encode(z->tokenizer, text->text, text->size, special ? WRPO_TOKENIZER_SPECIAL : 0, &list,
                                   &count) == WRPO_OK;
        if (ok) fputs("{", out), print_ids(out, list, count), fputs("}\n", out);
    } else if (messages) {
        if (kwargs && kwargs->kind == WRPO_JSON_NULL) kwargs = NULL;
        if (messages->kind != WRPO_JSON_ARRAY) return bad_line(name, line, "\"messages\": want an array");
        if (kwargs && kwargs->kind != WRPO_JSON_OBJECT) return bad_line(name, line, "\"kwargs\": want an object");
        wrpo_result r = wrpo_tokenizer_chat(z->tokenizer, messages, prompt, kwargs, &result, &size);
        fputs("{", out);
        if (r == WRPO_E_FORMAT || r == WRPO_E_UNSUPPORTED ||
            r == WRPO_E_ARG) { /* what the template has against these messages */
            const char *why = wrpo_last_error(z->ctx)->text;
            ok = print_text(z, out, "error", why, strlen(why));
        } else if ((ok = r == WRPO_OK &&
                         wrpo_tokenizer_encode(z->tokenizer, result, size, 0, &list, &count) == WRPO_OK &&
                         print_text(z, out, "text", result, size)))
            fputs(", ", out), print_ids(out, list, count);
        fputs("}\n", out);
    } else {
        if (ids->kind != WRPO_JSON_ARRAY) return bad_line(name, line, "\"ids\": want an array");
        list = malloc((size_t)ids->count * sizeof *list + 1);
        if (!list) return bad_line(name, line, "out of memory");
        for (const wrpo_json *v = ids->child; v && ok; v = v->next) {
            ok = v->kind == WRPO_JSON_NUMBER && v->exact && v->integer >= 0 &&
                 v->integer < wrpo_tokenizer_size(z->tokenizer);
            if (ok) list[count++] = (int32_t)v->integer;
        }
        if (!ok) return free(list), bad_line(name, line, "\"ids\": want ids of the tokenizer");
        ok = wrpo_tokenizer_decode(z->tokenizer, list, count, skip, &result, &size) == WRPO_OK;
        free(list), list = NULL;
        fputs("{", out);
        ok = ok && print_text(z, out, "text", result, size);
        fputs("}\n", out);
    }
    wrpo_free(z->ctx, list);
    wrpo_free(z->ctx, result);
    return ok ? 0 : bad_line(name, line, wrpo_last_error(z->ctx)->text);
}
static int run_tokenize(const settings *s, session *z) {
    lines in;
    output out = {0};
    int code = 0, more;
    if (!lines_open(&in, s->in)) return 1;
    if (wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer)) code = fail(z);
    else if (!output_open(&out, s->out)) code = 1;
    catch_signals();
    for (wrpo_json *v;
         !code && !(interrupted && (code = complain("interrupted"))) && (more = lines_next(z, &in, false, &v)) != 0;
         wrpo_json_free(z->ctx, v))
        code = more < 0 ? 1 : tokenize_line(z, out.f, in.name, in.line, v);
    free(in.data);
    return output_close(&out, code == 0) ? 0 : 1;
}

/* ---- logprob ---- */
static bool on_source(int64_t records, int64_t of, void *user) {
    label piece;
    session *z = user;
    snprintf(piece.s, sizeof piece.s, "%lld/%lld records", (long long)records, (long long)of);
    screen_draw(&z->screen, (double)records / (double)of, &piece, 1);
    return !interrupted && inputs_same();
}
/* Records with what source models think of their responses. */
static int logprob_source(const settings *s, session *z) {
    const char *with[1 + sizeof s->more / sizeof *s->more] = {s->with};
    memcpy(with + 1, s->more, sizeof s->more);
    const wrpo_source_logps_desc d = {.in = s->data,
                                      .out = s->out,
                                      .name = s->as_source,
                                      .with = with,
                                      .n_with = s->with ? 1 + s->n_more : 0,
                                      .max_length = s->max_length,
                                      .system_message = system_message(s),
                                      .on_step = on_source,
                                      .user = z};
    if (!s->out) return complain("--as-source: want --out, the file that the records are written to");
    if (s->max_prompt_length || s->limit || s->tokenization)
        return complain("--as-source: want no --max-prompt-length, --limit or --tokenization: the source model reads "
                        "whole records as it would at inference");
    catch_signals();
    if (wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer) || load_model(z, s, true)) return fail(z);
    const wrpo_result r = wrpo_source_logps(z->ctx, z->model, z->tokenizer, &d);
    screen_clear(&z->screen);
    if (r == WRPO_E_STOPPED && !inputs.spoilt) return complain("interrupted; nothing is written");
    if (r != WRPO_OK) return fail(z);
    printf("%s: records with source_logps of %s\n", s->out, s->as_source);
    return 0;
}
static int64_t scored_tokens(const wrpo_tokens *y) {
    int64_t n = 0;
    for (int64_t j = y->first; j < y->count; j++) n += !y->scored || y->scored[j];
    return n;
}
static int run_logprob(const settings *s, session *z) {
    if (s->with && !s->as_source) return complain("--with: want --as-source too, the name of --model; found none");
    if (s->as_source) return logprob_source(s, z);
    const int64_t BATCH = 128 * ranks.ranks;           /* records between two looks at the clock */
    output out = {0};
    int K = 1;
    if (!output_open(&out, s->out)) return 1;
    catch_signals();
    bool ok = !load_data(z, s, s->data, false, &z->data) && !load_model(z, s, true);
    const int64_t N = ok ? wrpo_data_count(z->data) : 0;
    for (int64_t i = 0; i < N; i++) K = wrpo_data_record(z->data, i).count > K ? wrpo_data_record(z->data, i).count : K;
    double *logps = malloc((size_t)BATCH * (size_t)K * sizeof *logps);
    if (!logps) { output_close(&out, false); return complain("out of memory"); }
    if (!ok) fail(z);
    for (int64_t at = 0; at < N && ok; at += BATCH) {
        const int64_t count = N - at < BATCH ? N - at : BATCH;
        label piece;
        if (wrpo_logprobs(z->model, z->data, at, count, logps, NULL)) { fail(z); ok = false; break; }
        for (int64_t i = 0; i < count && ok; i++) {
            const wrpo_record r = wrpo_data_record(z->data, at + i);
            fputs("{", out.f);
            if (!print_text(z, out.f, "prompt_id", r.prompt_id, strlen(r.prompt_id))) { fail(z); ok = false; }
            for (int k = 0; k < r.count; k++) fprintf(out.f, "%s%.9g", k ? ", " : ", \"logps\": [", logps[i * K + k]);
            for (int k = 0; k < r.count; k++)
                fprintf(out.f, "%s%lld", k ? ", " : "], \"tokens\": [", (long long)scored_tokens(&r.responses[k]));
            fprintf(out.f, "], \"prompt_tokens\": %lld}\n", (long long)r.prompt_count);
        }
        snprintf(piece.s, sizeof piece.s, "%lld/%lld records", (long long)(at + count), (long long)N);
        if (s->out) screen_draw(&z->screen, (double)(at + count) / (double)N, &piece, 1);
        if (interrupted) { screen_clear(&z->screen); complain("interrupted; nothing is written"); ok = false; }
    }
    free(logps);
    screen_clear(&z->screen);
    return output_close(&out, ok) ? 0 : 1;
}

/* ---- for TensorBoard: the lines of metrics.jsonl as events. A file of events is TFRecords, each of them
     length (8 bytes) | masked CRC of the length (4) | protobuf | masked CRC of the protobuf (4), little-endian,
   and of protobuf it needs
     Event   { wall_time = 1: double; step = 2: varint; file_version = 3: text; summary = 5; session_log = 7 }
     Summary { value = 1: { tag = 1: text; simple_value = 2: float } ... }       SessionLog { status = 1: START = 1 }
   An Event of START makes TensorBoard forget the steps from its own on, should it have read them from another file. */
typedef struct buffer { unsigned char data[1 << 15]; size_t n; } buffer;
static uint32_t crc32c(const unsigned char *p, size_t n) {
    uint32_t crc = ~0u;
    for (; n--; p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}
static uint32_t masked_crc(const unsigned char *p, size_t n) {
    const uint32_t crc = crc32c(p, n);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}
static void put_bytes(buffer *b, const void *p, size_t n) {        /* what does not fit sets n beyond the end */
    if (b->n + n <= sizeof b->data) memcpy(b->data + b->n, p, n);
    b->n = b->n + n <= sizeof b->data ? b->n + n : sizeof b->data + 1;
}
static void put_fixed(buffer *b, uint64_t x, size_t n) {           /* little-endian */
    for (; n--; x >>= 8) put_bytes(b, &(unsigned char){(unsigned char)x}, 1);
}
static void put_varint(buffer *b, uint64_t x) {
    for (; x > 127; x >>= 7) put_fixed(b, x | 128, 1);
    put_fixed(b, x, 1);
}
enum { VARINT, EIGHT_BYTES, TEXT_OF_BYTES, FOUR_BYTES = 5 };       /* protobuf's wire types */
static void put_key(buffer *b, int field, int type) { put_varint(b, (uint64_t)(field << 3 | type)); }
static void put_text(buffer *b, int field, const void *p, size_t n) {
    put_key(b, field, TEXT_OF_BYTES), put_varint(b, n), put_bytes(b, p, n);
}
static void put_event(buffer *b, double time, int64_t step) {      /* its first fields */
    uint64_t bits;
    memcpy(&bits, &time, sizeof bits);
    b->n = 0;
    put_key(b, 1, EIGHT_BYTES), put_fixed(b, bits, 8);
    put_key(b, 2, VARINT), put_varint(b, (uint64_t)step);
}
static void put_scalar(buffer *b, const char *tag, double x) {     /* into a Summary */
    static buffer value;
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    value.n = 0;
    put_text(&value, 1, tag, strlen(tag));
    put_key(&value, 2, FOUR_BYTES), put_fixed(&value, bits, 4);
    put_text(b, 1, value.data, value.n);
}
static bool write_record(FILE *f, const buffer *b) {
    buffer head = {.n = 0};
    if (b->n > sizeof b->data) return errno = EFBIG, false;
    put_fixed(&head, b->n, 8);
    put_fixed(&head, masked_crc(head.data, 8), 4);
    fwrite(head.data, 1, head.n, f), fwrite(b->data, 1, b->n, f);
    head.n = 0, put_fixed(&head, masked_crc(b->data, b->n), 4);
    return fwrite(head.data, 1, head.n, f) == head.n;
}
typedef struct events { const char *dir; FILE *f; char path[4300]; long read; double begin, seconds; } events;
static void events_remove_others(const events *e) {    /* those of runs that this one continues or takes the place of */
    names n = names_in(e->dir);
    for (int i = 0; i < n.count; i++) {
        char path[4300];
        if (!begins(n.list[i], "events.out.tfevents.") || !ends(n.list[i], ".wrpo")) continue;
        snprintf(path, sizeof path, "%.2000s/%.2000s", e->dir, n.list[i]);
        if (strcmp(path, e->path)) remove(path);
    }
    names_free(&n);
}
/* A line of metrics: {"step": 3, "loss": 0.69, ...} -> train/loss; "eval_loss" -> eval/loss. */
static bool events_add(events *e, const wrpo_json *line) {
    static buffer event, summary;
    const wrpo_json *step = wrpo_json_get(line, "step"), *seconds = wrpo_json_get(line, "seconds");
    if (!seconds) seconds = wrpo_json_get(line, "eval_seconds");
    if (seconds) e->seconds = seconds->number;
    summary.n = 0;
    for (const wrpo_json *v = line->child; v; v = v->next) {
        char tag[100];
        const bool eval = !strncmp(v->key, "eval_", 5);
        if (v == step || v->kind != WRPO_JSON_NUMBER) continue;
        snprintf(tag, sizeof tag, "%s/%s", eval ? "eval" : "train", v->key + (eval ? 5 : 0));
        put_scalar(&summary, tag, v->number);
    }
    put_event(&event, e->begin + e->seconds, step ? step->integer : 0);
    put_text(&event, 5, summary.data, summary.n);
    return write_record(e->f, &event);
}
/* Brings the events up to metrics.jsonl, which the library has just written and, in a run that goes on, cut back. Where
   a finished model is, the lines wait under another name. */
static bool events_follow(session *z, events *e, double run_seconds) {
    char path[4200], *text = NULL;
    size_t size = 0;
    wrpo_json *line;
    bool ok = true;
    if (!e->f) {                     /* the first time: a new file, with all the lines */
        static buffer b;
        const time_t now = time(NULL);
        snprintf(e->path, sizeof e->path, "%.2000s/events.out.tfevents.%010lld.%ld.wrpo", e->dir, (long long)now,
                 (long)getpid());
        e->begin = (double)now - run_seconds;
        e->f = fopen(e->path, "wb");
        if (!e->f) return complain("%s: cannot be written: %s", e->path, strerror(errno)), false;
        put_event(&b, (double)now, 0), put_text(&b, 3, "brain.Event:2", 13);
        ok = write_record(e->f, &b);
        put_event(&b, (double)now, 1), put_text(&b, 7, "\x08\x01", 2);
        ok = ok && write_record(e->f, &b);
    }
    snprintf(path, sizeof path, "%.4000s/metrics.jsonl" PART, e->dir, (unsigned long)getpid());
    FILE *f = fopen(path, "rb");
    snprintf(path, sizeof path, "%.4000s/metrics.jsonl", e->dir);
    if (!f) f = fopen(path, "rb");
    if (f && !fseek(f, e->read, SEEK_SET)) text = read_all(f, &size);
    if (!text) complain("%s: cannot be read: %s", path, strerror(errno));
    if (f) fclose(f);
    if (!text) return false;
    for (char *at = text, *end; ok && (end = memchr(at, '\n', size - (size_t)(at - text))); at = end + 1) {
        if (wrpo_json_parse(z->ctx, path, at, (size_t)(end - at), &line)) return free(text), fail(z), false;
        ok = events_add(e, line);
        wrpo_json_free(z->ctx, line);
    }
    free(text);
    e->read += (long)size;
    ok = ok && fflush(e->f) == 0;
    if (!ok) complain("%s: cannot be written: %s", e->path, strerror(errno));
    return ok;
}

static bool events_end(const events *e) {              /* they are on the disk, all of them */
    const bool ok = synced(e->f);
    if (!ok) complain("%s: cannot be written: %s", e->path, strerror(errno));
    sync_parent(e->path);
    return ok;
}

/* ---- run.json: the options of a run, with the defaults that it took, for --config ---- */
static void json_real(FILE *f, double x) {             /* the fewest digits that read back */
    char text[40];
    int precision = 1;
    do snprintf(text, sizeof text, "%.*g", precision, x); while (strtod(text, NULL) != x && ++precision < 18);
    fputs(text, f);
}
static bool write_options(session *z, const settings *s, const wrpo_json *resolved, FILE *f) {
    bool ok = true;
    fprintf(f, "{\"wrpo\": \"%s\",\n \"command\": \"%s\"", WRPO_VERSION, s->command->name);
    for (const option *o = options; ok && o < options + N_OPTIONS; o++) {
        const void *at = (const char *)s + o->at;
        char key[64];
        size_t n = (size_t)snprintf(key, sizeof key, "%s", o->name + 2);
        for (size_t i = 0; i < n; i++)
            if (key[i] == '-') key[i] = '_';
        if (!find_option(s->command, o->name, n + 2) || is_idle(o, s->method)) continue;
        if (o->at == AT(config) || o->at == AT(resume) || o->at == AT(dry_run)) continue;  /* of one call */
        if (o->at == AT(preset)) continue;             /* its options are here */
        if (o->at == AT(keep) && !s->save_steps) continue;
        const wrpo_json *v = wrpo_json_get(resolved, o->at == AT(lr_schedule) ? "lr_schedule" : key);
        const int choice = o->names ? *(const int *)at : -1;
        if (o->kind == FLAG && is_given(o, s)) fprintf(f, ",\n \"%s\": true", key);
        else if (o->names && choice >= 0) {
            fprintf(f, ",\n \"%s\": \"%s", key, o->names(choice));
            if (o->kind == RAMP && s->alpha_power > 0) fputs(":", f), json_real(f, s->alpha_power);
            fputs("\"", f);
        } else if (v && v->kind == WRPO_JSON_NUMBER && (o->kind == REAL || v->number != 0)) {
            if (o->at != AT(epochs) || !s->max_steps) fprintf(f, ",\n \"%s\": %s", key, v->text);
        } else if (o->kind == COUNT && is_given(o, s))
            fprintf(f, ",\n \"%s\": %lld", key, (long long)*(const int64_t *)at);
        else if (o->kind == REAL && (is_given(o, s) || signbit(*(const double *)at)))
            fprintf(f, ",\n \"%s\": ", key), json_real(f, plain(*(const double *)at));
        else if (o->kind == TEXT && (is_given(o, s) || o->at == AT(date))) {
            const char *text = o->at == AT(date) ? wrpo_get_date(z->ctx) : *(const char *const *)at;
            fputs(",\n ", f);
            ok = print_text(z, f, key, text, strlen(text));
        }
    }
    fputs("}\n", f);
    return ok;
}
static bool write_run(session *z, const settings *s, const wrpo_train_desc *d) {   /* OUT/run.json */
    char path[4200], *text = NULL;
    wrpo_json *resolved = NULL;
    output out = {0};
    snprintf(path, sizeof path, "%s/run.json", s->out);
    bool ok = wrpo_train_desc_json(z->ctx, d, &text) == WRPO_OK &&
              wrpo_json_parse(z->ctx, "settings", text, strlen(text), &resolved) == WRPO_OK;
    wrpo_free(z->ctx, text);
    if (!ok) return fail(z), false;
    ok = output_open(&out, path) && (write_options(z, s, resolved, out.f) || (fail(z), false));
    wrpo_json_free(z->ctx, resolved);
    return output_close(&out, ok);
}

/* ---- train ---- */
typedef struct watch {               /* of a run in progress */
    session *z;
    int64_t every;                   /* steps to a line; 0 = none */
    bool mapped, spoilt;             /* mapped: the model is read all the time */
    const settings *s;
    const wrpo_train_desc *d;
    events events;
    bool begun, failed;              /* failed: the sentence is said */
    bool finished;                   /* a finished model is in the directory: what tells of it stays until the end */
} watch;
static void print_metrics(const char *head, const wrpo_metrics *m, double left) {
    printf("%s %lld/%lld  loss %.4f", head, (long long)m->step, (long long)m->steps, m->loss);
    if (!isnan(m->rewards_margins)) printf("  margin %+.3g  accuracy %.2f", m->rewards_margins, m->rewards_accuracies);
    if (!isnan(m->rewards_source_accuracies)) printf("  source %.2f", m->rewards_source_accuracies);
    if (!isnan(m->rewards_target_accuracies)) printf("  pivot %.2f", m->rewards_target_accuracies);
    if (!isnan(m->cur_alpha)) printf("  alpha %.4f", m->cur_alpha);
    if (!isnan(m->learning_rate)) printf("  rate %.2e", m->learning_rate);
    if (!isnan(m->grad_norm)) printf("  grad %.3g", m->grad_norm);
    printf("  %s tokens/s", grouped((int64_t)m->tokens_per_second).s);
    if (left >= 0) printf("  %s left", time_text(left).s);
    printf("\n");
    fflush(stdout);
}
static bool on_step(const wrpo_metrics *m, const wrpo_metrics *eval, void *user) {
    watch *w = user;
    const double left = m->seconds / (double)m->step * (double)(m->steps - m->step);
    const bool writes = !ranks.rank, first = !w->begun && !w->finished, follows = writes && w->s->tensorboard;
    if (writes && first) w->failed = !write_run(w->z, w->s, w->d);
    if (!w->failed && follows) w->failed = !events_follow(w->z, &w->events, m->seconds);
    if (first && !w->failed && follows) events_remove_others(&w->events);
    w->begun = true;
    label p[8];                      /* the most wanted first */
    int n = 0;
#define PIECE(...) snprintf(p[n++].s, sizeof p->s, __VA_ARGS__)
    PIECE("%lld/%lld", (long long)m->step, (long long)m->steps);
    PIECE("loss %.4f", m->loss);
    PIECE("%.16s left", time_text(left).s);
    if (!isnan(m->rewards_margins)) {
        PIECE("margin %+.3g", m->rewards_margins);
        PIECE("acc %.2f", m->rewards_accuracies);
    }
    if (!isnan(m->cur_alpha)) PIECE("alpha %.3f", m->cur_alpha);
    PIECE("rate %.1e", m->learning_rate);
    PIECE("%.0f tok/s", m->tokens_per_second);
#undef PIECE
    const bool line = m->step == m->steps || (w->every && m->step % w->every == 0);
    if (line || eval) screen_clear(&w->z->screen);
    if (line) print_metrics("step", m, left);
    if (eval) print_metrics("eval", eval, -1);
    screen_draw(&w->z->screen, (double)m->step / (double)m->steps, p, n);
    if (w->mapped && !inputs_same()) return w->spoilt = true, false;
    return !interrupted && !w->failed;
}
static void print_data(const char *name, const char *path, const wrpo_data *data) {
    const wrpo_data_stats t = wrpo_data_get_stats(data);
    printf("%-12s %s: %s records (%s), %s prompt and %s response tokens, longest %s", name, path,
           grouped(t.records).s, wrpo_data_format_name((int)t.format),
           grouped(t.prompt_tokens).s, grouped(t.response_tokens).s, grouped(t.longest).s);
    if (t.truncated_prompts || t.truncated_responses)
        printf("; cut: %s prompts, %s responses", grouped(t.truncated_prompts).s, grouped(t.truncated_responses).s);
    printf("\n");
}
static void print_adapter(const wrpo_model *model, const char *dir) {
    const wrpo_adapter_desc d = wrpo_model_adapter(model);
    const wrpo_weight *w;
    const int64_t n = wrpo_model_weights(model, &w);
    int64_t count = 0, weights = 0;
    if (!d.r) return;
    for (int64_t i = 0; i < n; i++)
        if (w[i].at >= 0) count += w[i].rows * w[i].cols, weights++;
    printf("adapter      %s, r %lld, alpha %g%s, dropout %g: %s parameters in %lld matrices are trained\n",
           dir ? dir : "new", (long long)d.r, d.alpha, d.rslora ? " (rslora)" : "", plain(d.dropout),
           count_text(count).s, (long long)weights);
}
static wrpo_save_desc save_desc(const settings *s) {
    return (wrpo_save_desc){.dir = s->out, .dtype = dtype_of(s->save_dtype), .max_shard_size = s->max_shard_size,
                            .random_rounding = s->save_rounding == 1};
}
static bool is_finished(const char *dir) {             /* a model is in it */
    char model[4200], adapter[4200];
    struct stat st;
    snprintf(model, sizeof model, "%.4000s/config.json", dir);
    snprintf(adapter, sizeof adapter, "%.4000s/adapter_config.json", dir);
    return stat(model, &st) == 0 || stat(adapter, &st) == 0;
}
/* What will be written, in which dtype, and what is there already. */
static void print_output(const settings *s, session *z, const wrpo_train_desc *d) {
    static const char *const dtypes[] = {"F32", "F32", "BF16", "F16"};
    const bool adapter = s->lora_r || s->adapter;
    const wrpo_dtype loaded = adapter ? WRPO_DTYPE_F32 : wrpo_model_dtype(z->model);
    const wrpo_dtype dtype = d->save.dtype ? d->save.dtype : loaded;
    printf("out          %s, saved in %s%s", s->out, dtypes[dtype], d->save.dtype || adapter ? "" : ", as loaded");
    if (dtype == WRPO_DTYPE_BF16 && d->save.random_rounding) printf(", rounded at random");
    else if (dtype > WRPO_DTYPE_F32) printf(", rounded to the nearest: a save says how much of the update is left");
    printf("\n");
    if (is_finished(s->out))
        printf("             a finished model is there: it and its metrics.jsonl stay until this run has ended\n");
    names n = names_in(s->out);
    for (int i = 0; i < n.count; i++)
        if (!d->resume && begins(n.list[i], "checkpoint-"))
            printf("             %s is there, of an earlier run: --resume %s/%s goes on from it\n", n.list[i], s->out,
                   n.list[i]);
        else if (!d->resume && !strcmp(n.list[i], "best"))
            printf("             best is there, of an earlier run: %s\n",
                   s->save_best ? "the first evaluation replaces it" : "it stays");
    names_free(&n);
}
static void print_settings(const settings *s, session *z, const wrpo_train_desc *desc, const wrpo_bytes *bytes) {
    const wrpo_train_desc d = wrpo_train_defaults(z->ctx, desc);
    const wrpo_method m = d.loss.method;
    print_preset(s);
    printf("model        %s: %s, %s parameters\n", s->model, wrpo_model_config(z->model)->model_type,
           count_text(wrpo_model_parameters(z->model)).s);
    print_adapter(z->model, s->adapter);
    print_data("data", s->data, z->data);
    char part[4200];
    snprintf(part, sizeof part, "%g of %s", s->eval_split, s->data);
    if (z->eval_data) print_data("eval data", s->eval_split > 0 ? part : s->eval_data, z->eval_data);
    printf("method       %s", word(wrpo_method_name((int)m)));
    if (mixes(m) && d.alpha_schedule == WRPO_ALPHA_SCHEDULE_CONSTANT) printf(", alpha %g", plain(d.alpha));
    else if (mixes(m))
        printf(", alpha 0 -> %g %s", plain(d.alpha), word(wrpo_alpha_schedule_name((int)d.alpha_schedule)));
    else if (m != WRPO_METHOD_SFT) printf(", pair %s", word(wrpo_pair_name((int)d.loss.pair)));
    if (mixes(m) && d.alpha_schedule == WRPO_ALPHA_SCHEDULE_POWER) printf(" %g", d.alpha_power);
    if (m != WRPO_METHOD_SFT) printf(", beta %g, label smoothing %g", d.loss.beta, plain(d.loss.label_smoothing));
    if (m == WRPO_METHOD_SIMPO) printf(", gamma/beta %g", plain(d.loss.gamma_ratio));
    if (fuses(m)) printf(", fusion %s", word(wrpo_fusion_name((int)d.loss.fusion)));
    if (d.loss.sft_weight > 0) printf(", sft weight %g", d.loss.sft_weight);
    if (m != WRPO_METHOD_SFT && m != WRPO_METHOD_SIMPO)
        printf(", reference %s", d.ref_dir ? d.ref_dir : s->adapter ? "the adapter as it is now" : s->lora_r ?
               "the model without adapter" : "the model itself");
    printf("\noptimizer    AdamW %g/%g/%g, weight decay %g, clip %g, rate %g %s, warm-up %g\n", plain(d.beta1),
           plain(d.beta2), plain(d.eps), plain(d.weight_decay), plain(d.max_grad_norm), plain(d.learning_rate),
           word(wrpo_lr_schedule_name((int)d.lr_schedule)), plain(d.warmup_ratio));
    printf("batch        %s records, accumulation %lld, micro tokens %s, ", grouped(d.batch_size).s,
           (long long)d.accumulation, grouped(d.micro_tokens).s);
    if (d.max_steps) printf("%s steps", grouped(d.max_steps).s);
    else printf("%g epochs", d.epochs);
    printf(", %s", d.no_shuffle ? "in order" : "shuffled");
    if (!d.no_shuffle) printf(" by seed %llu", (unsigned long long)d.seed);
    printf("\n");
    if (together || s->lanes)
        printf("ranks        %d on this machine, %d in all, %lld lanes\n", ranks.locals, ranks.ranks,
               (long long)(s->lanes ? s->lanes : ranks.ranks));
    if (d.resume) printf("resume       %s\n", d.resume);
    if (d.save_steps)
        printf("checkpoints  every %s steps, the last %s stay\n", grouped(d.save_steps).s, grouped(d.keep).s);
    if (d.save_best)
        printf("best         the model with the %s eval_%s, in %s/best\n",
               strcmp(d.save_best, "loss") ? "highest" : "lowest", d.save_best, d.save.dir);
    print_output(s, z, &d);
    print_memory(bytes, wrpo_model_config(z->model)->num_hidden_layers);
    fflush(stdout);
}
/* Of a model that is saved whole: does what ends an answer in the data, and will after training, end it for those who
   serve the model, too? If not, a warning, or with --save-eos all such tokens are saved. */
static bool check_eos(const settings *s, session *z, wrpo_save_desc *save) {
    int32_t *known = NULL;
    int64_t n = 0, count = 0;
    char *text = NULL;
    size_t size;
    bool ok = !wrpo_stop_tokens(z->model, NULL, &known, &n) &&
              !wrpo_stop_tokens(z->model, z->tokenizer, &z->eos, &count);
    for (int64_t i = 0, k; ok && !s->save_eos && i < count; i++) {
        for (k = 0; k < n && known[k] != z->eos[i];) k++;
        if (k < n) continue;
        ok = !wrpo_tokenizer_decode(z->tokenizer, &z->eos[i], 1, false, &text, &size);
        if (ok)
            complain("warning: \"%s\" (id %d) ends answers, but is no eos_token_id of %s: where the model is served, "
                     "answers may go on after it. --save-eos adds it", text, (int)z->eos[i], s->model);
        wrpo_free(z->ctx, text);
    }
    wrpo_free(z->ctx, known);
    if (s->save_eos) save->eos = z->eos, save->eos_count = count;
    return ok || fail(z) == 0;
}
/* ---- train --dry-run: what a run would take, from two small steps ---- */
/* About the rows that a step computes for a record: the prompt once, and the responses that the method scores. */
static int64_t record_rows(const wrpo_record *r, int method) {
    int64_t n = r->prompt_count;
    for (int k = 0; k < r->count; k++)
        if (method != WRPO_METHOD_SFT || r->responses[k].role == WRPO_ROLE_SOURCE) n += r->responses[k].count;
    return n;
}
static double data_rows(const wrpo_data *data, int method) {
    double n = 0;
    for (int64_t i = 0; data && i < wrpo_data_count(data); i++) {
        const wrpo_record r = wrpo_data_record(data, i);
        n += (double)record_rows(&r, method);
    }
    return n;
}
typedef struct pace { double row, forward, update; int64_t records; } pace;    /* seconds of a row, of a row forward
                                                                                  only, of an update; what was timed */
/* Trains without effect (rate 0) on records from all over the data, the longest among them: a step of about three
   micro-batches, then one of a single one. Their difference is the time of rows, what is left is the update's. */
static int measure(session *z, const wrpo_train_desc *desc, pace *out) {
    wrpo_train_desc d = wrpo_train_defaults(z->ctx, desc);
    const int method = (int)d.loss.method;
    const int64_t N = wrpo_data_count(z->data);
    int64_t longest = 0, count = 0, big = 0, rows = 0, sizes[2] = {0};
    enum { MOST = 4096 };
    wrpo_record *list = malloc(MOST * sizeof *list);
    wrpo_data *some = NULL;
    wrpo_trainer *t = NULL;
    wrpo_metrics m = {0};
    double best[2] = {INFINITY, INFINITY}, *logps = NULL;
    if (!list) return complain("out of memory");
    for (int64_t i = 0; i < N; i++) {
        const wrpo_record a = wrpo_data_record(z->data, i), b = wrpo_data_record(z->data, longest);
        if (record_rows(&a, method) > record_rows(&b, method)) longest = i;
    }
    for (int part = 0; part < 2; part++, rows = 0)     /* the records of both steps; a short file is used again */
        do {
            list[count] = wrpo_data_record(z->data, count ? (count * (N / 61 + 1)) % N : longest);
            rows += record_rows(&list[count++], method);
            big += !part;
        } while (rows < (part ? 1 : 3) * d.micro_tokens && count - (part ? big : 0) < (part ? big : MOST / 2));
    d.out_dir = NULL, d.resume = NULL, d.save = (wrpo_save_desc){0}, d.save_steps = 0, d.save_best = NULL;
    d.save_model = false;
    d.eval_data = NULL, d.eval_steps = 0, d.on_step = NULL, d.no_shuffle = true;
    d.learning_rate = WRPO_ZERO, d.batch_size = big, d.accumulation = 1, d.max_steps = 1000;
    bool ok = (logps = malloc((size_t)count * 64 * sizeof *logps)) != NULL || (complain("out of memory"), false);
    ok = ok && ((wrpo_data_from_ids(z->ctx, list, count, &some) == WRPO_OK &&
                 wrpo_trainer_open(z->model, some, &d, &t) == WRPO_OK) || fail(z) == 0);
    const double begin = seconds();
    for (int step = 0; ok && step < 6 && (step < 2 || seconds() - begin < 8); step++) {
        const double from = seconds();
        ok = wrpo_trainer_step(t, &m) == WRPO_OK || fail(z) == 0;
        best[step % 2] = fmin(best[step % 2], seconds() - from);
        sizes[step % 2] = m.tokens;
        if (ok && interrupted) ok = complain("interrupted") == 0;
    }
    wrpo_trainer_free(t);
    out->row = best[0] / (double)(sizes[0] ? sizes[0] : 1);
    if (sizes[0] > sizes[1] && best[0] > best[1]) out->row = (best[0] - best[1]) / (double)(sizes[0] - sizes[1]);
    out->update = fmax(0, best[1] - out->row * (double)sizes[1]);
    int most = 0;
    for (int64_t i = 0; i < count; i++) most = list[i].count > most ? list[i].count : most;
    const double from = seconds();
    if (ok && most <= 64) ok = wrpo_logprobs(z->model, some, 0, count, logps, NULL) == WRPO_OK || fail(z) == 0;
    out->forward = fmin(out->row, (seconds() - from) / fmax(1, data_rows(some, WRPO_METHOD_WRPO)));
    out->records = count;
    wrpo_data_free(some);
    free(list), free(logps);
    return ok ? 0 : 1;
}
/* A run's optimizer steps, and how many make an epoch, as >>setup of the library counts them. */
static double count_steps(const wrpo_train_desc *d, int64_t records, double *each) {
    const int64_t micro = d->batch_size / d->accumulation;
    *each = fmax((double)((records + micro - 1) / micro / d->accumulation), 1);
    return d->max_steps ? (double)d->max_steps : fmax(ceil(d->epochs * *each - 1e-9), 1);
}
/* A run of one step learns nothing under warm-up. */
static void check_steps(session *z, const char *what, const wrpo_train_desc *desc, int64_t records) {
    const wrpo_train_desc d = wrpo_train_defaults(z->ctx, desc);
    double each;
    if (d.accumulation < 1 || d.batch_size < d.accumulation || plain(d.warmup_ratio) <= 0) return;
    if (count_steps(&d, records, &each) == 1)
        complain("warning: %s, %lld records in batches of %lld, is one step, and with warm-up the first step's rate is "
                 "0: nothing is learned. Want a smaller --batch-size, more --epochs or --warmup-ratio 0", what,
                 (long long)records, (long long)d.batch_size);
}
static int dry_run(const settings *s, session *z, const wrpo_train_desc *desc) {
    const wrpo_train_desc d = wrpo_train_defaults(z->ctx, desc);
    const int method = (int)d.loss.method;
    pace p = {0};
    char path[4200];
    struct stat is;
    snprintf(path, sizeof path, "%s/trainer_state.wrpo", s->resume ? s->resume : "");
    if (s->resume && stat(path, &is)) return complain("%s: cannot be opened: %s", path, strerror(errno));
    if (measure(z, desc, &p)) return 1;
    double each;
    const double T = count_steps(&d, wrpo_data_count(z->data), &each);
    const double step = p.update + p.row * data_rows(z->data, method) / each;
    const double evals = !z->eval_data ? 0 : d.eval_steps ? ceil(T / (double)d.eval_steps) : 1;
    const double eval = p.forward * data_rows(z->eval_data, method);
    const double reference = has_reference(s) ? eval + p.forward * data_rows(z->data, method) : 0;
    printf("time         about %s", time_text(reference + T * step + evals * eval).s);
    printf(": %.0f steps of %.3g s", T, step);
    if (reference > 0) printf(", the reference %.3g s", reference);
    if (evals > 0) printf(", %.0f evaluations of %.3g s", evals, eval);
    printf("; %.0f tokens/s, timed on %lld records\n", 1 / p.row, (long long)p.records);
    printf("peak         %s: of the timed steps, tokenizer and records too, and 6 MiB in which files are written\n",
           bytes_text((double)wrpo_memory_peak(z->ctx) + (6 << 20)).s);
    if (s->resume) printf("resume       the state is there; it is compared with these settings when the run begins\n");
    printf("dry run      nothing is written\n");
    return 0;
}
static int train(const settings *s, session *z) {
    wrpo_train_desc d = train_desc(s);
    wrpo_config config;
    wrpo_bytes bytes;
    wrpo_metrics last = {0};
    watch w = {.z = z, .s = s, .d = &d, .events.dir = s->out, .every = s->log_steps ? s->log_steps : 1};
    if (z->screen.bar && isatty(fileno(stdout))) w.every = 0;
    w.finished = is_finished(s->out);
    wrpo_adapter_desc lora = adapter_desc(s);
    const wrpo_adapter_desc *adapter = s->lora_r || s->adapter ? &lora : NULL;
    d.resume = s->resume, d.save_steps = s->save_steps, d.keep = s->keep;
    d.save = save_desc(s);
    if (wrpo_config_load(z->ctx, s->model, &config) || wrpo_train_bytes(z->ctx, &config, NULL, &d, adapter, &bytes))
        return fail(z); /* options first */
    char *date = NULL;               /* a run that goes on shows the day of its begin */
    if (s->resume && !s->date && (wrpo_checkpoint_date(z->ctx, s->resume, &date) ||
                                  (date && wrpo_set_date(z->ctx, date)))) return fail(z);
    wrpo_free(z->ctx, date);
    const char *eval_data = s->eval_split > 0 ? s->data : s->eval_data;
    if (load_data(z, s, s->data, false, &z->data) ||
        (eval_data && load_data(z, s, eval_data, true, &z->eval_data)) ||
        load_model(z, s, adapter != NULL) || (s->lora_r && wrpo_adapter_new(z->model, adapter)))
        return fail(z);
    d.eval_data = z->eval_data, d.save_best = s->save_best;
    if (s->adapter) lora = wrpo_model_adapter(z->model);
    if (!adapter && !check_eos(s, z, &d.save)) return 1;
    if (!inputs_same()) return 1;
    w.mapped = adapter != NULL;
    if (wrpo_train_bytes(z->ctx, &config, z->data, &d, adapter, &bytes)) return fail(z);
    d.out_dir = s->out;
    d.on_step = on_step, d.user = &w;
    d.save_model = true;
    print_settings(s, z, &d, &bytes);
    check_steps(z, "this run", &d, wrpo_data_count(z->data));
    if (s->dry_run) return dry_run(s, z, &d);
    const double begin = seconds();
    const wrpo_result r = wrpo_train(z->model, z->data, &d, &last);
    const double took = seconds() - begin;
    screen_clear(&z->screen);
    bool told = r != WRPO_OK || (!w.failed && (!w.finished || ranks.rank || write_run(z, s, &d)));
    if (r == WRPO_OK && w.events.f) {
        told = events_follow(z, &w.events, last.seconds) && events_end(&w.events) && told;
        events_remove_others(&w.events);
    }
    if (w.events.f) fclose(w.events.f);
    if (r != WRPO_OK) {
        if (w.spoilt)
            return complain("%s/checkpoint-%lld was computed from it: remove it", s->out, (long long)last.step);
        if (r != WRPO_E_STOPPED) fail(z);
        else if (!w.failed) complain("interrupted");
        if (!last.tokens)
            return r == WRPO_E_STOPPED || r == WRPO_E_NOT_FINITE ? complain("no step was done: nothing is saved") : 1;
        char state[4200];
        struct stat is;
        snprintf(state, sizeof state, "%s/checkpoint-%lld/trainer_state.wrpo", s->out, (long long)last.step);
        if (ranks.rank || stat(state, &is) != 0) return 1;     /* it could not be written either: the sentence */
        return complain("the model as it was after step %lld of %lld is in %s/checkpoint-%lld: the same command goes "
                        "on from there with --resume and this directory",
                        (long long)last.step, (long long)last.steps, s->out, (long long)last.step);
    }
    printf("%s: trained, %lld steps in %s (%.2f seconds in all), memory peak %s\n", s->out,
           (long long)last.step, time_text(last.seconds).s, took, bytes_text((double)wrpo_memory_peak(z->ctx)).s);
    return told ? 0 : 1;
}
static int run_train(const settings *s, session *z) {
    const bool of_lora = s->lora_alpha != 0 || s->lora_dropout != 0 || s->lora_target || s->rslora;
    const bool eval = s->eval_data || s->eval_split > 0;
    if (s->eval_data && s->eval_split > 0) return complain("train: want either --eval-data or --eval-split");
    if (s->eval_steps && !eval) return complain("--eval-steps: --eval-data or --eval-split is missing");
    if (s->save_best && !(eval && s->eval_steps))
        return complain("--save-best: %s is missing", eval ? "--eval-steps" : "--eval-data or --eval-split");
    if (s->keep && !s->save_steps) return complain("--keep: --save-steps is missing");
    if (s->lora_r && s->adapter)
        return complain("train: want either --lora-r, a new adapter, or --adapter, to go on from one");
    if (of_lora && s->adapter)
        return complain("--lora-alpha, --lora-dropout, --lora-target, --rslora: --adapter has its own, in its files");
    if (s->save_eos && (s->lora_r || s->adapter))
        return complain("--save-eos: an adapter has no generation_config.json: give it to merge");
    if (of_lora && !s->lora_r) return complain("--lora-alpha, --lora-dropout, --lora-target, --rslora: want --lora-r");
    char path[4200];
    struct stat is;
    snprintf(path, sizeof path, "%s/..", s->adapter ? s->adapter : "");
    if (s->adapter && same_file(path, s->out))
        return complain("--out: want another directory than that around --adapter, found %s", s->out);
    snprintf(path, sizeof path, "%s/%s", s->out, s->adapter || s->lora_r ? "config.json" : "adapter_config.json");
    if (!stat(path, &is)) return complain("--out: %s is there: want a directory without it", path);
    check_method(s);
    if ((s->lora_r || s->adapter) && s->learning_rate == 0)
        complain("warning: --learning-rate is missing: the default is for all weights, an adapter wants about 1e-4");
    catch_signals();
    return train(s, z);
}

/* ---- eval ---- */
static int run_eval(const settings *s, session *z) {
    wrpo_train_desc d = train_desc(s);
    wrpo_metrics m;
    char *json;
    check_method(s);
    if (has_reference(s) && !s->ref && s->adapter) {
        d.ref_dir = s->model;
        complain("the reference is %s without an adapter. Was this adapter trained from an earlier one? Then merge the "
                 "earlier one, and give the result as --ref", s->model);
    } else if (has_reference(s) && !s->ref)
        complain("warning: --ref is missing: the model is compared with itself, every reward is 0");
    if (load_data(z, s, s->data, false, &z->data) || load_model(z, s, true) || wrpo_eval(z->model, z->data, &d, &m)
        || wrpo_metrics_json(z->ctx, &m, "eval_", &json)) return fail(z);
    output out = {0};
    const bool ok = output_open(&out, s->out);
    if (ok) fprintf(out.f, "%s\n", json);
    wrpo_free(z->ctx, json);
    return ok && output_close(&out, true) ? 0 : 1;
}

/* ---- merge ---- */
static int run_merge(const settings *s, session *z) {
    wrpo_save_desc d = save_desc(s);
    d.merge = true;
    if (load_model(z, s, true)) return fail(z);
    if (s->save_eos && wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer)) return fail(z);
    if (s->save_eos && !check_eos(s, z, &d)) return 1;
    if (wrpo_model_save(z->model, &d)) return fail(z);
    if (!inputs_same()) {                              /* without its config.json it is no model */
        char path[4200];
        snprintf(path, sizeof path, "%.4000s/config.json", s->out);
        remove(path);
        return 1;
    }
    printf("%s: %s with %s merged, %s parameters\n", s->out, s->model, s->adapter,
           count_text(wrpo_model_parameters(z->model)).s);
    return 0;
}

/* ---- prompts, and answers to them ---- */
typedef struct prompts {             /* records as they were read, and what the model is given for them */
    wrpo_json **records; char (*lines)[32];            /* "line 7": what a record without prompt_id is called */
    wrpo_prompt *list; int64_t count;
} prompts;
static const char *prompt_id(const prompts *p, int64_t i) {
    const wrpo_json *id = wrpo_json_get(p->records[i], "prompt_id");
    return id && id->kind != WRPO_JSON_NULL ? id->text : p->lines[i];
}
static const prompts *sorting;       /* by id; stable */
static int by_id(const void *a, const void *b) {
    const int64_t i = *(const int64_t *)a, k = *(const int64_t *)b;
    const int order = strcmp(prompt_id(sorting, i), prompt_id(sorting, k));
    return order ? order : i < k ? -1 : 1;
}
static int by_ids(const void *a, const void *b) {
    const int64_t i = *(const int64_t *)a, k = *(const int64_t *)b;
    const wrpo_prompt *x = &sorting->list[i], *y = &sorting->list[k];
    const int order = x->count != y->count ? (x->count < y->count ? -1 : 1)
                                           : memcmp(x->ids, y->ids, (size_t)x->count * sizeof *x->ids);
    return order ? order : i < k ? -1 : 1;
}
/* Indices in this order; NULL: out of memory. free(order). */
static int64_t *prompts_order(const prompts *p, int (*by)(const void *, const void *)) {
    int64_t *order = malloc((size_t)p->count * sizeof *order + 1);
    if (!order) return complain("out of memory"), NULL;
    for (int64_t i = 0; i < p->count; i++) order[i] = i;
    sorting = p;
    qsort(order, (size_t)p->count, sizeof *order, by);
    return order;
}
/* Leaves out prompts that the model is given a second time; how many, or -1. */
static int64_t prompts_dedup(session *z, prompts *p) {
    int64_t *order = prompts_order(p, by_ids), kept = 0;
    const int64_t all = p->count;
    if (!order) return -1;
    for (int64_t i = 1, first = 0; i < all; i++) {
        const wrpo_prompt *x = &p->list[order[first]], *y = &p->list[order[i]];
        const bool same = x->count == y->count && !memcmp(x->ids, y->ids, (size_t)x->count * sizeof *x->ids);
        if (!same) { first = i; continue; }
        wrpo_json_free(z->ctx, p->records[order[i]]);
        p->records[order[i]] = NULL;
    }
    free(order);
    for (int64_t i = 0; i < all; i++) {
        if (!p->records[i]) { wrpo_free(z->ctx, (void *)(uintptr_t)p->list[i].ids); continue; }
        p->records[kept] = p->records[i];
        memmove(p->lines[kept], p->lines[i], sizeof *p->lines);
        p->list[kept++] = p->list[i];
    }
    p->count = kept;
    return all - kept;
}
static bool prompts_differ(const prompts *p, const char *name) {
    int64_t *order = prompts_order(p, by_id);
    bool ok = order != NULL;
    for (int64_t i = 1; ok && i < p->count; i++) {
        const char *id = prompt_id(p, order[i]);
        if (strcmp(id, prompt_id(p, order[i - 1]))) continue;
        ok = false;
        complain("%s: want a prompt_id once, found \"%.80s\" in the records of %s and %s", name, id,
                 p->lines[order[i - 1]], p->lines[order[i]]);
    }
    free(order);
    return ok;
}
static void prompts_free(session *z, prompts *p) {
    for (int64_t i = 0; i < p->count; i++)
        wrpo_free(z->ctx, (void *)(uintptr_t)p->list[i].ids), wrpo_json_free(z->ctx, p->records[i]);
    free(p->records), free(p->lines), free(p->list);
    *p = (prompts){0};
}
static uint64_t fnv(uint64_t h, const void *p, size_t n) {
    for (const unsigned char *s = p; n--; s++) h = (h ^ *s) * 0x100000001B3u;
    return h;
}
#define FNV 0xCBF29CE484222325u
/* A record was read as a text of one line: errors name its line in the file. */
static void set_lines(wrpo_json *v, int32_t line) {
    for (; v; v = v->next) {
        v->line = line;
        set_lines(v->child, line);
    }
}
/* One more; the record is p's from here on. */
static bool prompts_add(session *z, prompts *p, wrpo_json *record, const wrpo_tokenizer_prompt_desc *d) {
    if ((p->count & (p->count - 1)) == 0) {            /* full at each power of two */
        const size_t cap = p->count ? 2 * (size_t)p->count : 1;
        void *r = realloc(p->records, cap * sizeof *p->records), *l, *q;
        if (r) p->records = r;
        if ((l = realloc(p->lines, cap * sizeof *p->lines))) p->lines = l;
        if ((q = realloc(p->list, cap * sizeof *p->list))) p->list = q;
        if (!r || !l || !q) return wrpo_json_free(z->ctx, record), complain("out of memory"), false;
    }
    int32_t *ids;
    const int64_t i = p->count++;
    p->records[i] = record, p->list[i] = (wrpo_prompt){0};
    if (d->line) set_lines(record, (int32_t)d->line);
    snprintf(p->lines[i], sizeof *p->lines, "line %lld", (long long)(d->line ? d->line : 1));
    if (wrpo_tokenizer_prompt(z->tokenizer, d, record, &ids, &p->list[i].count)) return fail(z), false;
    p->list[i].ids = ids, p->list[i].stream = fnv(FNV, prompt_id(p, i), strlen(prompt_id(p, i)));
    return true;
}
/* The prompts of a file, which is closed in any case. The caller frees what was read. */
static bool prompts_load(session *z, const settings *s, lines *in, prompts *p) {
    int more = 0;
    bool ok = wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer) == WRPO_OK || fail(z) == 0;
    for (wrpo_json *v; ok && !(s->limit && p->count == s->limit) && (more = lines_next(z, in, true, &v)) != 0;)
        ok = more > 0 &&
             prompts_add(z, p, v,
                         &(wrpo_tokenizer_prompt_desc){.name = in->name, .line = in->line, .raw = s->raw,
                                                       .system_message = system_message(s)});
    ok = ok && (p->count || (complain("%s: want prompts, found none", in->name), false)) && prompts_differ(p, in->name);
    free(in->data), in->data = NULL;
    return ok;
}
static bool print_prompt(session *z, FILE *f, const prompts *p, int64_t i) {
    const wrpo_json *v = wrpo_json_get(p->records[i], "prompt");
    if (!v || v->kind == WRPO_JSON_NULL) v = wrpo_json_get(p->records[i], "messages");
    const char *id = prompt_id(p, i);
    fputs("{", f);
    bool ok = print_text(z, f, "prompt_id", id, strlen(id)) && print_member(z, f, ", ", "prompt", v);
    static const char *const besides[] = {"tools", "chat_template_kwargs", "system",
                                          "system_prompt"}; /* without them it would be another prompt */
    for (int k = 0; ok && k < 4; k++) {
        v = wrpo_json_get(p->records[i], besides[k]);
        if (v && v->kind != WRPO_JSON_NULL) ok = print_member(z, f, ", ", besides[k], v);
    }
    return ok;
}
static wrpo_generate_desc generate_desc(const settings *s, session *z) {
    wrpo_generate_desc d = {.tokenizer = z->tokenizer,
                            .n = s->n,
                            .max_tokens = s->max_tokens,
                            .temperature = or_default(s->temperature, 0.8) + 0.0,
                            .top_p = or_default(s->top_p, 0.95)};
    d.top_k = s->top_k, d.seed = (uint64_t)s->seed, d.batch = s->batch;
    return d;
}
static const char *model_name(const settings *s) {     /* --name, or the last part of --adapter or --model */
    static char name[256];
    if (s->name) return s->name;
    const char *dir = s->adapter ? s->adapter : s->model, *end = dir + strlen(dir), *begin;
    while (end > dir && end[-1] == '/') end--;
    for (begin = end; begin > dir && begin[-1] != '/';) begin--;
    snprintf(name, sizeof name, "%.*s", (int)(end - begin), begin);
    return name;
}
typedef struct answers {             /* what the callbacks of a generation know */
    session *z; FILE *f;
    const prompts *p;
    const char *name, *list;         /* sample: the model and the name of the list */
    int64_t first, n, cut, tokens;   /* prompts that were done before; samples of each; cut off; tokens of all */
    double begin;
    int tenths;                      /* done, of all prompts: where there is no bar, each is a line */
    bool failed;                     /* a callback has complained */
} answers;
static bool answers_step(int64_t done, int64_t tokens, void *user) {
    answers *a = user;
    const double t = seconds() - a->begin;
    const int64_t left = a->p->count - a->first - done;
    label p[3];
    a->tokens = tokens;
    snprintf(p[0].s, sizeof p->s, "%lld/%lld", (long long)(a->first + done), (long long)a->p->count);
    snprintf(p[1].s, sizeof p->s, "%.0f tok/s", (double)tokens / (t > 0 ? t : 1));
    snprintf(p[2].s, sizeof p->s, "%.16s left", time_text(done ? t / (double)done * (double)left : 0).s);
    const double part = (double)(a->first + done) / (double)a->p->count;
    if (a->f != stdout) screen_draw(&a->z->screen, part, p, done ? 3 : 2);
    if (a->f != stdout && !a->z->screen.bar && part < 1 && (int)(10 * part) > a->tenths)
        printf("%s prompts, %s, %s\n", p[0].s, p[1].s, p[2].s), fflush(stdout);
    a->tenths = (int)(10 * part);
    return !interrupted;
}
static bool answers_written(answers *a, bool ok) {     /* the line is whole and on its way to the disk */
    if (!ok) fail(a->z);
    else if (fputs("}\n", a->f) < 0 || fflush(a->f) != 0 || ferror(a->f))
        screen_clear(&a->z->screen), complain("the result cannot be written: %s", strerror(errno)), ok = false;
    a->failed = !ok;
    return ok;
}
static int answers_failed(answers *a, wrpo_result r) { /* the sentence, where no callback has said it */
    if (a->failed) return 1;
    if (r == WRPO_E_STOPPED) return screen_clear(&a->z->screen), complain("interrupted");
    return fail(a->z);
}

/* ---- generate ---- */
static bool show_text(int64_t prompt, int64_t sample, const char *utf8, size_t size, void *user) {
    answers *a = user;
    (void)prompt, (void)sample;
    fwrite(utf8, 1, size, a->f);
    fflush(a->f);
    return true;
}
static bool generated(int64_t i, const wrpo_sample *y, void *user) {
    answers *a = user;
    double logp = 0;
    for (int64_t j = 0; j < y->count; j++) logp += (double)y->logps[j];
    bool ok = print_prompt(a->z, a->f, a->p, i) && fputs(", ", a->f) >= 0 &&
              print_text(a->z, a->f, "content", y->text, y->size);
    fprintf(a->f, ", \"tokens\": %lld, \"logp\": %.9g, \"stopped\": %s", (long long)y->count, logp,
            y->stopped ? "true" : "false");
    return answers_written(a, ok);
}
static int run_generate(const settings *s, session *z) {
    prompts p = {0};
    lines in;
    output out = {0};
    if (!s->prompt == !s->in) return complain("generate: want either --prompt or --in");
    bool ok;
    if (s->in) ok = lines_open(&in, s->in) && prompts_load(z, s, &in, &p);
    else if (wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer)) ok = fail(z) == 0;
    else {                           /* a record from the command line */
        char *quoted, *text;
        wrpo_json *record;
        if (wrpo_json_quote(z->ctx, s->prompt, strlen(s->prompt), &quoted)) return fail(z);
        text = malloc(strlen(quoted) + 32);
        if (text) sprintf(text, "{\"prompt\": %s}", quoted);
        wrpo_free(z->ctx, quoted);
        if (!text) return complain("out of memory");
        ok = (wrpo_json_parse(z->ctx, "--prompt", text, strlen(text), &record) == WRPO_OK || fail(z) == 0)
             && prompts_add(z, &p, record, &(wrpo_tokenizer_prompt_desc){.name = "--prompt", .raw = s->raw,
                                                                           .system_message = system_message(s)});
        free(text);
    }
    ok = ok && (load_model(z, s, true) == WRPO_OK || fail(z) == 0) && output_open(&out, s->out);
    if (ok) {
        answers a = {.z = z, .f = out.f, .p = &p, .begin = seconds()};
        wrpo_generate_desc d = generate_desc(s, z);
        catch_signals();
        d.on_step = answers_step, d.user = &a;
        if (s->prompt) d.on_text = show_text;
        else d.on_done = generated;
        const wrpo_result r = wrpo_generate(z->model, p.list, p.count, &d);
        screen_clear(&z->screen);
        if (r == WRPO_OK && s->prompt) fputs("\n", out.f);
        if (r != WRPO_OK) ok = answers_failed(&a, r) == 0;
    }
    prompts_free(z, &p);
    return output_close(&out, ok) ? 0 : 1;
}

/* ---- sample: candidates. Finished lines are in FILE.part, the settings that made them in FILE.settings;
   a run that finds them checks the lines, drops a torn one and goes on. At the end FILE.part becomes FILE. ---- */
typedef struct part { FILE *f; char path[4096], settings[4096]; int64_t done; } part;
static bool part_cut(FILE *f, size_t size) {
#ifdef _WIN32
    return fflush(f) == 0 && _chsize_s(fileno(f), (long long)size) == 0 && fseek(f, 0, SEEK_END) == 0;
#else
    return fflush(f) == 0 && ftruncate(fileno(f), (off_t)size) == 0 && fseek(f, 0, SEEK_END) == 0;
#endif
}
/* The date that the run in FILE.part was begun with; "": there is none. false: it was begun with other settings. */
static bool part_settings(part *t, const char *out, const char *want, char date[64]) {
    char found[4096] = "";
    struct stat st;
    snprintf(t->path, sizeof t->path, "%.4000s.part", out),
        snprintf(t->settings, sizeof t->settings, "%.4000s.settings", out);
    date[0] = 0;
    if (stat(out, &st) == 0) {
        if (stat(t->path, &st) != 0) remove(t->settings);              /* a kill left it beside the whole file */
        return complain("%s: is there already; remove it to sample anew", out), false;
    }
    if (stat(t->path, &st) != 0 || st.st_size == 0) return true;
    FILE *f = fopen(t->settings, "rb");
    if (f) {
        if (!fgets(found, sizeof found, f) || !fgets(date, 64, f)) date[0] = 0;
        fclose(f);
    }
    found[strcspn(found, "\n")] = 0;
    date[strcspn(date, "\n")] = 0;
    if (*date && !strcmp(found, want)) return true;
    complain("%s: want a run begun with %s, found %s; remove it to begin anew", t->path, want,
             *date ? found : "one without its settings");
    return false;
}
/* Opens FILE.part after its lines that are whole and in the order of the prompts. */
static bool part_open(session *z, part *t, const char *want, const prompts *p) {
    size_t size, keep = 0, n;
    t->f = fopen(t->path, "a+b");
    if (!t->f) return complain("%s: cannot be written: %s", t->path, strerror(errno)), false;
    if (!lock_file(t->f))
        return fclose(t->f), t->f = NULL, complain("%s: another process is writing it", t->path), false;
    rewind(t->f);
    char *data = read_all(t->f, &size);
    if (!data) return complain("%s: cannot be read: %s", t->path, strerror(errno)), false;
    for (wrpo_json *v; t->done < p->count && keep < size; keep += n, t->done++) {
        const char *end = memchr(data + keep, '\n', size - keep);
        n = end ? (size_t)(end - data) + 1 - keep : 0;
        bool same = n && wrpo_json_parse(z->ctx, t->path, data + keep, n, &v) == WRPO_OK;
        if (!same) break;
        const wrpo_json *id = wrpo_json_get(v, "prompt_id");
        same = id && id->kind == WRPO_JSON_STRING && !strcmp(id->text, prompt_id(p, t->done));
        wrpo_json_free(z->ctx, v);
        if (!same) break;
    }
    free(data);
    if (!part_cut(t->f, keep)) return complain("%s: cannot be written: %s", t->path, strerror(errno)), false;
    if (t->done) return true;
    FILE *notes = fopen(t->settings, "wb"); /* under its name at once: nobody reads it before FILE.part has a line, and
                                               a kill leaves no third file */
    bool ok = notes && fprintf(notes, "%s\n%s\n", want, wrpo_get_date(z->ctx)) > 0 && synced(notes);
    if (notes && fclose(notes) != 0) ok = false;
    sync_parent(t->settings);        /* no power cut leaves lines without it */
    return ok || (complain("%s: cannot be written: %s", t->settings, strerror(errno)), false);
}
static bool part_end(part *t, const char *out) {
    bool ok = synced(t->f);
#ifdef _WIN32
    if (fclose(t->f) != 0) ok = false;                 /* it cannot be renamed while it is open */
    t->f = NULL;
#endif
    if (ranks.rank) return true;
    if (!ok || rename(t->path, out) != 0) return complain("%s: cannot be written: %s", out, strerror(errno)), false;
    if (t->f) fclose(t->f), t->f = NULL;
    sync_parent(out);
    remove(t->settings);
    sync_parent(out);                /* nor does a power cut bring it back */
    return true;
}
/* What the samples depend on, on one line. The weights: every tensor's name and begin. */
static bool sample_settings(const settings *s, session *z, uint64_t file, char *text, size_t size) {
    const wrpo_generate_desc g = generate_desc(s, z), d = wrpo_generate_defaults(&g);
    wrpo_tensors *t;
    uint64_t h = FNV;
    if (wrpo_tensors_open(z->ctx, s->model, &t)) return fail(z), false;
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *w = wrpo_tensors_at(t, i);
        h = fnv(fnv(h, w->name, strlen(w->name)), w->data, w->bytes < 256 ? w->bytes : 256);
    }
    wrpo_tensors_close(t);
    static const char *const files[] = {"adapter_config.json",   "adapter_model.safetensors", "config.json",
                                        "generation_config.json", "tokenizer.json",           "tokenizer_config.json",
                                        "special_tokens_map.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[4096];
        size_t n;
        snprintf(path, sizeof path, "%s/%s", i < 2 && s->adapter ? s->adapter : s->model, files[i]);
        FILE *f = fopen(path, "rb");
        char *bytes = f ? read_all(f, &n) : NULL;
        if (bytes) h = fnv(fnv(h, files[i], strlen(files[i])), bytes, n);
        free(bytes);
        if (f) fclose(f);
    }
    snprintf(text, size,
             "--model %.1024s (%016llx) --prompts (%016llx) --as %s --name %.256s --n %lld --temperature %.17g --top-p "
             "%.17g --top-k %lld --max-tokens %lld --seed %llu --limit %lld%s%s%s%s%s%s%016llx",
             s->model, (unsigned long long)h, (unsigned long long)file, as_name(s->as), model_name(s), (long long)d.n,
             plain(d.temperature), d.top_p, (long long)d.top_k, (long long)d.max_tokens, (unsigned long long)d.seed,
             (long long)s->limit, s->raw ? " --raw" : "", s->dedup ? " --dedup" : "",
             s->device ? " --device cuda" : "", s->date ? " --date " : "", s->date ? s->date : "",
             " --system-message ", (unsigned long long)(system_message(s) ? fnv(FNV, system_message(s),
                                                                                strlen(system_message(s))) : 0));
    return true;
}
static bool sampled(int64_t i, const wrpo_sample *y, void *user) {
    answers *a = user;
    if (!inputs_same()) return a->failed = true, false;
    bool ok = print_prompt(a->z, a->f, a->p, a->first + i);
    fprintf(a->f, ", \"%s\": [", a->list);
    for (int64_t k = 0; ok && k < a->n; k++) {
        fputs(k ? ", {" : "{", a->f);
        ok = print_text(a->z, a->f, "model", a->name, strlen(a->name)) && fputs(", ", a->f) >= 0 &&
             print_text(a->z, a->f, "content", y[k].text, y[k].size);
        fputs("}", a->f);
        a->cut += !y[k].stopped;
    }
    fputs("]", a->f);
    return answers_written(a, ok);
}
static int sample(const settings *s, session *z, part *t, prompts *p) {
    char want[2048], date[64] = "";
    lines in;
    if (!lines_open(&in, s->prompts)) return 1;
    bool ok = sample_settings(s, z, fnv(FNV, in.data, in.size), want, sizeof want) &&
              (ranks.rank || part_settings(t, s->out, want, date));
    if (!from_first(z, date, sizeof date, ok)) return free(in.data), 1;
    if (*date && wrpo_set_date(z->ctx, date)) return free(in.data), fail(z);
    if (!prompts_load(z, s, &in, p)) return 1;
    const int64_t again = s->dedup ? prompts_dedup(z, p) : 0;
    if (again < 0) return 1;
    if (load_model(z, s, true)) return fail(z);
    ok = ranks.rank ? (t->f = fopen("/dev/null", "wb")) != NULL : part_open(z, t, want, p);
    if (!from_first(z, &t->done, sizeof t->done, ok)) return 1;
    answers a = {.z = z,
                 .f = t->f,
                 .p = p,
                 .name = model_name(s),
                 .list = s->as ? "target" : "sources",
                 .first = t->done,
                 .begin = seconds()};
    wrpo_generate_desc d = generate_desc(s, z);
    a.n = wrpo_generate_defaults(&d).n;
    d.on_done = sampled, d.on_step = answers_step, d.user = &a;
    const wrpo_result r = wrpo_generate(z->model, p->list + t->done, p->count - t->done, &d);
    screen_clear(&z->screen);
    if (r == WRPO_E_STOPPED && !a.failed)
        return complain("interrupted: what is done is in %s, and the same command goes on from there", t->path);
    if (r != WRPO_OK) return answers_failed(&a, r);
    if (!part_end(t, s->out)) return 1;
    printf("%s: %s prompts, %s samples each", s->out, grouped(p->count).s, grouped(a.n).s);
    if (t->done) printf("; %s prompts were done before", grouped(t->done).s);
    printf("; %s tokens in %s", grouped(a.tokens).s, time_text(seconds() - a.begin).s);
    if (a.cut) printf("; %s samples were cut off before they ended", grouped(a.cut).s);
    if (again) printf("; %s prompts were there before and are left out", grouped(again).s);
    printf("\n");
    return 0;
}
static int run_sample(const settings *s, session *z) {
    settings of = *s;
    part t = {0};
    prompts p = {0};
    if (!of.n) of.n = 5;
    catch_signals();
    const int code = sample(&of, z, &t, &p);
    if (t.f) fclose(t.f);
    if (code && t.f && !ranks.rank) {                  /* nothing done, nothing left */
        struct stat st;
        if (stat(t.path, &st) == 0 && st.st_size == 0) remove(t.path), remove(t.settings);
    }
    prompts_free(z, &p);
    return code;
}

/* ---- answer: the public benchmarks. Questions as they publish them in, what their judges read out:
     alpacaeval    [{instruction, dataset?}, ...] or lines
                   -> [{dataset?, instruction, output, generator}, ...]
     mtbench       {question_id, category, turns: [text, ...]}
                   -> {question_id, answer_id, model_id, choices: [{index, turns: [text, ...]}], tstamp}
     arenahard     {uid, prompt} (Arena-Hard-Auto since 2025)
                   -> {uid, ans_id, model, messages: [question, {role, content: {answer}}], tstamp, metadata}
                   {question_id, turns: [{content}]} (before)
                   -> {question_id, answer_id, model_id, choices: [{index, turns: [{content}]}], tstamp, conv_metadata}
                   Their token_len counts tiktoken's tokens, so it is left to the judge
   A turn sees the turns before it and the answers to them. FastChat's and AlpacaEval's own runs strip white space
   around an answer: so do we. ---- */
enum { TURNS = 8 };
typedef struct ask {                 /* one ask */
    wrpo_json *root;                 /* what is to be freed; NULL: a member of another root */
    const wrpo_json *record, *id, *turns[TURNS];
    int n;
    char *answers[TURNS]; size_t sizes[TURNS];
    double temperature;
} ask;
typedef struct asks { ask *list; int64_t count; const char *name; int bench; bool old; } asks;
static bool question_error(const asks *q, const wrpo_json *record, const char *what) {
    return complain("%s:%lld: %s", q->name, (long long)record->line, what), false;
}
/* A member of this kind; NULL where it is absent or something else. */
static const wrpo_json *member(const wrpo_json *v, const char *key, wrpo_json_kind of) {
    const wrpo_json *m = wrpo_json_get(v, key);
    return m && m->kind == of ? m : NULL;
}
static double category_temperature(const wrpo_json *record) {      /* MT-Bench's; what it does not name gets 0.7 */
    static const struct {
        const char *category;
        double temperature;
    } table[] = {{"writing", 0.7}, {"roleplay", 0.7}, {"extraction", 0},   {"math", 0},          {"coding", 0},
                 {"reasoning", 0}, {"stem", 0.1},     {"humanities", 0.1}, {"arena-hard-200", 0}};
    const wrpo_json *forced = member(record, "required_temperature", WRPO_JSON_NUMBER),
                    *category = member(record, "category", WRPO_JSON_STRING);
    if (forced) return forced->number;
    for (size_t i = 0; category && i < sizeof table / sizeof *table; i++)
        if (!strcmp(category->text, table[i].category)) return table[i].temperature;
    return 0.7;
}
static bool question_add(asks *q, wrpo_json *root, const wrpo_json *record) {
    if ((q->count & (q->count - 1)) == 0) {
        ask *more = realloc(q->list, (q->count ? 2 * (size_t)q->count : 1) * sizeof *more);
        if (!more) return complain("out of memory"), false;
        q->list = more;
    }
    ask *to = &q->list[q->count++];
    *to = (ask){.root = root,
                .record = record,
                .temperature = q->bench == ALPACAEVAL ? 0.7
                               : q->bench == MTBENCH  ? category_temperature(record)
                                                      : 0};
    if (record->kind != WRPO_JSON_OBJECT) return question_error(q, record, "want an object");
    if (q->bench == ALPACAEVAL) {
        to->turns[to->n++] = member(record, "instruction", WRPO_JSON_STRING);
        return to->turns[0] || question_error(q, record, "want an \"instruction\", a string");
    }
    const wrpo_json *prompt = q->bench == ARENAHARD ? member(record, "prompt", WRPO_JSON_STRING) : NULL,
                    *turns = member(record, "turns", WRPO_JSON_ARRAY);
    const char *key = prompt ? "uid" : "question_id";
    to->id = wrpo_json_get(record, key);
    if (!prompt && !turns)
        return question_error(q, record,
                              q->bench == ARENAHARD ? "want a \"prompt\", or \"turns\""
                                                    : "want \"turns\", an array of strings");
    if (!to->id || (to->id->kind != WRPO_JSON_STRING && !to->id->exact))
        return question_error(q, record, prompt ? "want a \"uid\"" : "want a \"question_id\"");
    if (q->count == 1) q->old = !prompt;
    if (q->old != !prompt) return question_error(q, record, "want a question of one kind with the first");
    if (prompt) to->turns[to->n++] = prompt;
    for (const wrpo_json *t = prompt ? NULL : turns->child; t; t = t->next) {
        const wrpo_json *text = q->bench == ARENAHARD         ? member(t, "content", WRPO_JSON_STRING)
                                : t->kind == WRPO_JSON_STRING ? t
                                                              : NULL;
        if (!text || to->n == TURNS) return question_error(q, record, "want 1 to 8 turns, each a text");
        to->turns[to->n++] = text;
    }
    if (to->n == 0) return question_error(q, record, "want 1 to 8 turns, each a text");
    for (int64_t i = 0; i + 1 < q->count; i++)
        if (!strcmp(q->list[i].id->text, to->id->text))
            return question_error(q, record, "this question occurs above already");
    return true;
}
static void questions_free(session *z, asks *q) {
    for (int64_t i = 0; i < q->count; i++) {
        wrpo_json_free(z->ctx, q->list[i].root);
        for (int k = 0; k < TURNS; k++) free(q->list[i].answers[k]);
    }
    free(q->list);
}
static bool questions_load(session *z, const settings *s, asks *q) {
    lines in;
    int more = 0;
    bool ok = true;
    if (!lines_open(&in, s->questions)) return false;
    size_t at = in.at;
    while (at < in.size && memchr(" \t\r\n", in.data[at], 4)) at++;
    if (q->bench == ALPACAEVAL && at < in.size && in.data[at] == '[') {            /* one array */
        wrpo_json *root;
        ok = wrpo_json_parse(z->ctx, in.name, in.data + in.at, in.size - in.at, &root) == WRPO_OK || fail(z) == 0;
        for (const wrpo_json *v = ok ? root->child : NULL; ok && v && !(s->limit && q->count == s->limit); v = v->next)
            ok = question_add(q, v == root->child ? root : NULL, v);
        if (root && !root->child) wrpo_json_free(z->ctx, root);
    } else
        for (wrpo_json *v; ok && !(s->limit && q->count == s->limit) && (more = lines_next(z, &in, true, &v)) != 0;) {
            if (more > 0) v->line = (int32_t)in.line;
            ok = more > 0 && question_add(q, v, v);
        }
    free(in.data);
    return ok && (q->count || (complain("%s: want questions, found none", in.name), false));
}
/* {messages: [...]} up to turn `turn`, put together from the question and the answers so far. */
static wrpo_json *question_record(ask *q, int turn, wrpo_json node[2 + 3 * (2 * TURNS)]) {
    wrpo_json *record = &node[0], *list = &node[1], **tail = &list->child;
    memset(node, 0, (2 + 3 * (2 * TURNS)) * sizeof *node);
    *record = (wrpo_json){.kind = WRPO_JSON_OBJECT, .count = 1, .child = list, .line = q->record->line};
    *list = (wrpo_json){.kind = WRPO_JSON_ARRAY, .key = "messages", .key_size = 8, .count = 2 * turn + 1};
    for (int i = 0; i <= 2 * turn; i++) {
        wrpo_json *m = &node[2 + 3 * i], *role = m + 1, *content = m + 2;
        const char *who = i % 2 ? "assistant" : "user";
        *m = (wrpo_json){.kind = WRPO_JSON_OBJECT, .count = 2, .child = role};
        *role = (wrpo_json){
            .kind = WRPO_JSON_STRING, .key = "role", .key_size = 4, .text = who, .size = strlen(who), .next = content};
        *content = (wrpo_json){.kind = WRPO_JSON_STRING,
                               .key = "content",
                               .key_size = 7,
                               .text = i % 2 ? q->answers[i / 2] : q->turns[i / 2]->text,
                               .size = i % 2 ? q->sizes[i / 2] : q->turns[i / 2]->size};
        *tail = m, tail = &m->next;
    }
    return record;
}
static size_t space_at(const char *p, const char *end) { /* bytes of the white space at p, as Python sees it; 0: none */
    static const char *const wide[] = {"\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
                                       "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
    if (p >= end) return 0;
    if (memchr(" \t\n\v\f\r\x1c\x1d\x1e\x1f", *p, 10)) return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if ((size_t)(end - p) >= strlen(wide[i]) && !memcmp(p, wide[i], strlen(wide[i]))) return strlen(wide[i]);
    return end - p >= 3 && !memcmp(p, "\xE2\x80", 2) && (unsigned char)p[2] >= 0x80 && (unsigned char)p[2] <= 0x8A ? 3
                                                                                                                   : 0;
}
typedef struct answering { answers a; asks *q; ask **of; int turn; } answering;     /* a first: answers_step takes it */
static bool answered(int64_t i, const wrpo_sample *y, void *user) {
    answering *w = user;
    ask *q = w->of[i];
    const char *text = y->text, *end = text + y->size, *last = end;
    if (w->q->bench != ARENAHARD) {  /* strip */
        for (size_t k; (k = space_at(text, end)) > 0;) text += k;
        last = text;
        for (const char *p = text; p < end;) {
            const size_t k = space_at(p, end);
            p += k ? k : 1;
            if (!k) last = p;
        }
    }
    const size_t n = (size_t)(last - text);
    char *copy = malloc(n + 1);
    if (!copy) return w->a.failed = true, complain("out of memory"), false;
    memcpy(copy, text, n), copy[n] = 0;
    q->answers[w->turn] = copy, q->sizes[w->turn] = n;
    w->a.cut += !y->stopped;
    return true;
}
static bool answer_turn(const settings *s, session *z, asks *q, int turn, int64_t *cut) {
    prompts p = {.list = calloc((size_t)q->count, sizeof *p.list)};
    answering w = {.a = {.z = z, .p = &p, .begin = seconds()},
                   .q = q,
                   .of = calloc((size_t)q->count, sizeof(ask *)),
                   .turn = turn};
    bool ok = (p.list && w.of) || (complain("out of memory"), false);
    for (int64_t i = 0; ok && i < q->count; i++) {
        ask *of = &q->list[i];
        wrpo_json node[2 + 3 * (2 * TURNS)];
        const wrpo_json *id = of->id ? of->id : of->turns[0];
        const double temperature = or_default(s->temperature, of->temperature) + 0.0;
        int32_t *ids;
        if (turn >= of->n) continue;
        ok = wrpo_tokenizer_prompt(z->tokenizer, &(wrpo_tokenizer_prompt_desc){.name = q->name,
                                                                                .system_message = system_message(s)},
                                   question_record(of, turn, node), &ids, &p.list[p.count].count) == WRPO_OK ||
             fail(z) == 0;
        if (!ok) break;
        w.of[p.count] = of;
        p.list[p.count].ids = ids, p.list[p.count].own_temperature = true, p.list[p.count].temperature = temperature;
        p.list[p.count++].stream = fnv(fnv(FNV, id->text, id->size), &turn, sizeof turn);
    }
    if (ok) {
        wrpo_generate_desc d = generate_desc(s, z);
        if (!d.max_tokens) d.max_tokens = q->bench == MTBENCH ? 1024 : q->bench == ARENAHARD ? 4096 : 2048;
        if (d.top_p == 0) d.top_p = 1;
        d.on_done = answered, d.on_step = answers_step, d.user = &w;
        const wrpo_result r = wrpo_generate(z->model, p.list, p.count, &d);
        screen_clear(&z->screen);
        if (r != WRPO_OK) ok = answers_failed(&w.a, r) == 0;
        *cut += w.a.cut;
    }
    for (int64_t i = 0; p.list && i < p.count; i++) wrpo_free(z->ctx, (void *)(uintptr_t)p.list[i].ids);
    free(p.list), free(w.of);
    return ok;
}
/* The counts of Arena-Hard's style control, as its regular expressions find them: text between ``` and ``` is
   taken out first, wherever it is; then lines that begin a header or, after white space, a list; then text between
   ** and **, __ and __. */
typedef struct markdown { int64_t header[6], ordered, unordered, bold[2]; } markdown;
static int64_t marked(const char *text, const char *end, char c) {
    int64_t count = 0;
    for (const char *p = text; p + 1 < end;) {
        const char *q = p + 2;
        if (p[0] != c || p[1] != c) { p++; continue; }
        while (q < end && *q != c && *q != '\n') q++;
        if (q > p + 2 && q + 1 < end && q[0] == c && q[1] == c) count++, p = q + 2;
        else p++;
    }
    return count;
}
static bool count_markdown(const char *answer, size_t size, markdown *m) {         /* false: out of memory */
    char *text = malloc(size + 1);
    size_t n = size;
    *m = (markdown){0};
    if (!text) return false;
    memcpy(text, answer, size), text[size] = 0;
    for (const char *p = answer, *end = answer + size; p + 3 <= end;) {
        const char *q = p + 3;
        if (memcmp(p, "```", 3)) { p++; continue; }
        while (q < end && *q != '`') q++;
        if (q + 3 > end || memcmp(q, "```", 3)) { p++; continue; }
        const size_t block = (size_t)(q - p) - 3;
        for (size_t i = 0; block && i + block <= n;) {
            if (memcmp(text + i, p + 3, block)) { i++; continue; }
            memmove(text + i, text + i + block, n - i - block), n -= block;
        }
        p = q + 3;
    }
    const char *end = text + n;
    for (const char *line = text; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line)), *p = line;
        if (!stop) stop = end;
        while (p < end && *p == '#') p++;
        if (p - line >= 1 && p - line <= 6 && space_at(p, end)) m->header[p - line - 1]++;
        for (p = line; p < stop && space_at(p, end);) p += space_at(p, end);
        const char *digits = p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p > digits && p < end && *p == '.' && space_at(p + 1, end)) m->ordered++;
        if (digits < stop && memchr("-*+", *digits, 3) && space_at(digits + 1, end)) m->unordered++;
        line = stop + 1;
    }
    m->bold[0] = marked(text, end, '*'), m->bold[1] = marked(text, end, '_');
    free(text);
    return true;
}
static void print_id(FILE *f, const char *key,
                     uint64_t h) { /* 22 letters and digits, as its shortuuid writes; from names and seed, not drawn */
    static const char alphabet[] = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    fprintf(f, ", \"%s\": \"", key);
    for (int i = 0; i < 22; i++) fputc(alphabet[(h = fnv(h, "id", 2)) % 57], f);
    fputs("\"", f);
}
static bool print_metadata(FILE *f, const ask *q, const char *key) {
    markdown m;
    if (!count_markdown(q->answers[0], q->sizes[0], &m)) return complain("out of memory"), false;
    fprintf(f, ", \"%s\": {\"header_count\": {", key);
    for (int i = 0; i < 6; i++) fprintf(f, "%s\"h%d\": %lld", i ? ", " : "", i + 1, (long long)m.header[i]);
    fprintf(
        f, "}, \"list_count\": {\"ordered\": %lld, \"unordered\": %lld}, \"bold_count\": {\"**\": %lld, \"__\": %lld}}",
        (long long)m.ordered, (long long)m.unordered, (long long)m.bold[0], (long long)m.bold[1]);
    return true;
}
static bool print_answer(session *z, FILE *f, const asks *all, const ask *q, const char *name, uint64_t seed) {
    const bool hard = all->bench == ARENAHARD;
    bool ok = true;
    if (all->bench == ALPACAEVAL) {
        const wrpo_json *dataset = wrpo_json_get(q->record, "dataset");
        fputs("  {", f);
        if (dataset) ok = print_member(z, f, "", "dataset", dataset) && fputs(", ", f) >= 0;
        ok = ok && print_member(z, f, "", "instruction", q->turns[0]) && fputs(", ", f) >= 0 &&
             print_text(z, f, "output", q->answers[0], q->sizes[0]) && fputs(", ", f) >= 0 &&
             print_text(z, f, "generator", name, strlen(name));
        return fputs("}", f) >= 0 && ok;
    }
    ok = print_member(z, f, "{", all->old ? "question_id" : "uid", q->id);
    print_id(f, all->old ? "answer_id" : "ans_id", fnv(fnv(FNV ^ seed, name, strlen(name)), q->id->text, q->id->size));
    ok = ok && fputs(", ", f) >= 0 && print_text(z, f, all->old ? "model_id" : "model", name, strlen(name));
    if (!all->old) {
        fputs(", \"messages\": [{\"role\": \"user\", ", f);
        ok = ok && print_member(z, f, "", "content", q->turns[0]) &&
             fputs("}, {\"role\": \"assistant\", \"content\": {", f) >= 0 &&
             print_text(z, f, "answer", q->answers[0], q->sizes[0]);
        fputs("}}]", f);
    } else {
        fputs(", \"choices\": [{\"index\": 0, \"turns\": [", f);
        for (int i = 0; i < q->n && ok; i++) {
            char *quoted;
            if (wrpo_json_quote(z->ctx, q->answers[i], q->sizes[i], &quoted)) return false;
            if (hard) fprintf(f, "%s{\"content\": %s}", i ? ", " : "", quoted);
            else fprintf(f, "%s%s", i ? ", " : "", quoted);
            wrpo_free(z->ctx, quoted);
        }
        fputs("]}]", f);
    }
    fprintf(f, ", \"tstamp\": %.6f", seconds());
    if (hard && q->n == 1) ok = ok && print_metadata(f, q, all->old ? "conv_metadata" : "metadata");
    return fputs("}\n", f) >= 0 && ok;
}
static int run_answer(const settings *s, session *z) {
    asks q = {.name = s->questions, .bench = s->bench};
    output out = {0};
    int64_t cut = 0;
    int turns = 0;
    const double begin = seconds();
    if (s->preset && s->bench != ALPACAEVAL)
        return complain("--preset %s: want --bench alpacaeval, which it is for", s->preset);
    print_preset(s);
    catch_signals();
    bool ok =
        questions_load(z, s, &q) &&
        ((!wrpo_tokenizer_load(z->ctx, s->model, &z->tokenizer) && !load_model(z, s, true)) || fail(z) == 0) &&
        output_open(&out, s->out);
    for (int64_t i = 0; i < q.count; i++) turns = q.list[i].n > turns ? q.list[i].n : turns;
    for (int t = 0; ok && t < turns; t++) ok = answer_turn(s, z, &q, t, &cut);
    if (ok && q.bench == ALPACAEVAL) fputs("[\n", out.f);
    for (int64_t i = 0; ok && i < q.count; i++) {
        ok = print_answer(z, out.f, &q, &q.list[i], model_name(s), s->seed ? (uint64_t)s->seed : 42) || fail(z) == 0;
        if (q.bench == ALPACAEVAL) fputs(i + 1 < q.count ? ",\n" : "\n]\n", out.f);
    }
    if (output_close(&out, ok)) {
        printf("%s: answers to %s questions in %s", s->out, grouped(q.count).s, time_text(seconds() - begin).s);
        if (cut) printf("; %s answers were cut off before they ended", grouped(cut).s);
        printf("\n");
    } else ok = false;
    questions_free(z, &q);
    return ok ? 0 : 1;
}

/* ---- score, select, split, winrate ---- */
static bool on_scored(int64_t done, int64_t of, void *user) {
    session *z = user;
    label piece;
    snprintf(piece.s, sizeof piece.s, "%lld/%lld prompts", (long long)done, (long long)of);
    screen_draw(&z->screen, (double)done / (double)of, &piece, 1);
    return !interrupted && inputs_same();
}
static bool load_reward(const settings *s, session *z) {
    const wrpo_reward_desc d = {
        .dir = s->reward_model, .adapter = s->adapter, .label = s->label, .micro_tokens = s->micro_tokens};
    return wrpo_reward_load(z->ctx, &d, &z->reward) == WRPO_OK;
}
static int run_score(const settings *s, session *z) {
    const wrpo_reward_file_desc d = {
        .in = s->in, .out = s->out, .rescore = s->rescore, .on_line = on_scored, .user = z};
    wrpo_reward_file_stats t;
    catch_signals();
    if (!load_reward(s, z) || wrpo_reward_file(z->reward, &d, &t)) return fail(z);
    screen_clear(&z->screen);
    printf("%s: %s prompts, %s responses scored, %s rewards kept", s->out, grouped(t.prompts).s, grouped(t.scored).s,
           grouped(t.kept).s);
    if (t.scored) printf("; reward %.4f, from %.4f to %.4f", t.mean, t.least, t.most);
    printf("\n");
    return 0;
}
static int run_select(const settings *s, session *z) {
    const char *in[1 + sizeof s->more / sizeof *s->more] = {s->in};
    memcpy(in + 1, s->more, sizeof s->more);
    const wrpo_select_desc d = {.in = in,
                                .n_in = 1 + s->n_more,
                                .out = s->out,
                                .form = (wrpo_form)s->form,
                                .top = s->top,
                                .tau = s->tau,
                                .min_gap = plain(s->min_gap),
                                .max_gap = s->max_gap,
                                .require = s->require,
                                .strong = s->strong,
                                .weak = s->weak,
                                .entropy_power = plain(s->entropy_power),
                                .entropy_scale = s->entropy_scale};
    static const char *const roles[] = {"source", "target", "rejected"};
    wrpo_select_stats t;
    if (wrpo_select(z->ctx, &d, &t)) return fail(z);
    printf("%s: %s records (%s) of %s prompts\n", s->out, grouped(t.records).s, wrpo_form_name(s->form),
           grouped(t.prompts).s);
    printf("left out     %lld without source response, %lld without target response, %lld with equal texts, %lld with "
           "rewards too close or too far apart; %lld empty responses\n",
           (long long)t.no_source, (long long)t.no_target, (long long)t.equal, (long long)t.gap, (long long)t.empty);
    printf("%-40s %10s %12s\n", "selected", "reward", "characters");
    for (int i = 0; i < 3; i++)
        if (!isnan(t.reward[i])) printf("%-40s %10.4f %12.1f\n", roles[i], t.reward[i], t.length[i]);
    int64_t sources = 0;
    for (int64_t i = 0; i < t.n_models; i++) sources += t.models[i].selected;
    printf("%-40s %10s %12s %16s\n", "model", "reward", "responses", "as a source");
    for (int64_t i = 0; i < t.n_models; i++)
        printf("%-40s %10.4f %12s %8s %5.1f %%\n", t.models[i].name, t.models[i].reward,
               grouped(t.models[i].responses).s, grouped(t.models[i].selected).s,
               100 * (double)t.models[i].selected / (double)(sources ? sources : 1));
    wrpo_free(z->ctx, t.models);
    return 0;
}
static int run_split(const settings *s, session *z) {
    static const char *const files[3] = {"sft.jsonl", "wrpo.jsonl", "heldout.jsonl"};
    wrpo_split_desc d = {.in = s->in, .share = s->sft, .heldout = s->heldout, .seed = (uint64_t)s->seed};
    const int parts = s->heldout > 0 ? 3 : 2;
    char out[3][4200];
    int64_t counts[4];
    for (int i = 0; i < parts; i++) {
        snprintf(out[i], sizeof out[i], "%.4000s/%s", s->out, files[i]);
        d.out[i] = out[i];
    }
    char held[4200];
    struct stat st;
    snprintf(held, sizeof held, "%.4000s/%s", s->out, files[2]);
    if (parts == 2 && stat(held, &st) == 0)
        complain("warning: %s is there and not of this split: its prompts may be in the other two files", held);
    if (wrpo_split(z->ctx, &d, counts)) return fail(z);
    for (int i = 0; i < parts; i++) printf("%s: %s prompts\n", out[i], grouped(counts[i]).s);
    if (counts[3]) printf("%s of them have the text of an earlier one, and are in its part\n", grouped(counts[3]).s);
    return 0;
}
/* The answers of both files with the reward model's rewards where they have none, in a scratch folder: a.jsonl,
 * b.jsonl. */
static int winrate_score(const settings *s, session *z, const char *folder, char path[2][4200]) {
    wrpo_reward_file_stats t;
    if (!load_reward(s, z)) return fail(z);
    for (int b = 0; b < 2; b++) {
        const wrpo_reward_file_desc d = {
            .in = b ? s->b : s->a, .out = path[b], .rescore = s->rescore, .on_line = on_scored, .user = z};
        snprintf(path[b], sizeof path[b], "%s/%c.jsonl", folder, "ab"[b]);
        const wrpo_result r = wrpo_reward_file(z->reward, &d, &t);
        screen_clear(&z->screen);
        if (r == WRPO_E_STOPPED) return complain("interrupted");
        if (r != WRPO_OK) return fail(z);
        printf("%-12s %s responses scored, %s rewards kept\n", d.in, grouped(t.scored).s, grouped(t.kept).s);
    }
    return 0;
}
static int winrate_fail(const settings *s, session *z,
                        char path[2][4200]) { /* the library's sentence, about the files as they were given */
    const char *why = wrpo_last_error(z->ctx)->text;
    if (!s->reward_model && strstr(why, " reward: want a number, found no such key"))
        return complain("%s; --reward-model DIR scores what has none", why);
    for (int b = 0; b < 2 && s->reward_model; b++) {
        const size_t n = strlen(path[b]);
        if (!strncmp(why, path[b], n)) return complain("%s%s", b ? s->b : s->a, why + n);
    }
    return fail(z);
}
enum { FEW = 30 };                   /* prompts from which a bootstrap knows too little */
static int run_winrate(const settings *s, session *z) {
    const struct {
        bool given;
        const char *name;
    } idle[] = {{s->rescore, "--rescore"},
                {s->label != 0, "--label"},
                {s->micro_tokens != 0, "--micro-tokens"},
                {s->device != 0, "--device"},
                {s->dtype >= 0, "--dtype"}};
    wrpo_winrate_desc d = {.a = s->a, .b = s->b, .resamples = s->resamples, .seed = (uint64_t)s->seed};
    wrpo_winrate_stats t;
    char folder[4096], path[2][4200];
    int code = 0;
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++)
        if (idle[i].given && !s->reward_model) return complain("%s: --reward-model is missing", idle[i].name);
    if (s->reward_model) {
        catch_signals();
        if (!scratch_make(folder, sizeof folder, false)) return 1;
        code = winrate_score(s, z, folder, path);
        d.a = path[0], d.b = path[1];
    }
    if (!code && wrpo_winrate(z->ctx, &d, &t)) code = winrate_fail(s, z, path);
    if (s->reward_model) scratch_drop(folder);
    if (code) return code;
    if (t.only_a || t.only_b)
        complain("warning: %lld prompts are in %s only, %lld in %s only: left out", (long long)t.only_a, s->a,
                 (long long)t.only_b, s->b);
    if (t.prompts < FEW)
        complain("warning: %lld prompts are few: the intervals are too narrow, and say little", (long long)t.prompts);
    printf("prompts      %s\n", grouped(t.prompts).s);
    printf("win rate     %.2f %%   95 %%: %.2f to %.2f   (won %.2f, equal %.2f, lost %.2f)\n", 100 * t.rate,
           100 * t.low, 100 * t.high, 100 * t.wins, 100 * t.ties, 100 * t.losses);
    printf("at equal length %.2f %%   95 %%: %.2f to %.2f\n", 100 * t.controlled, 100 * t.controlled_low,
           100 * t.controlled_high);
    printf("rewards      %.4f against %.4f\ncharacters   %.1f against %.1f\n", t.reward[0], t.reward[1], t.length[0],
           t.length[1]);
    return 0;
}

/* ---- report: metrics.jsonl of runs as one HTML file, drawn in SVG, with nothing to load ---- */
typedef struct curve {               /* a metric of a run, as the file has it; for pictures, thinned */
    char name[64];
    bool eval;
    double *x, *y, *mean;            /* mean: of a thinned curve, that of the steps around a point; others have none */
    int64_t n, cap;
} curve;
typedef struct run { const char *dir; char name[128], method[16]; curve *curves; int n; int64_t steps; } run;
static curve *run_curve(run *r, const char *name, bool eval, bool make) {
    for (int i = 0; i < r->n; i++)
        if (r->curves[i].eval == eval && !strcmp(r->curves[i].name, name)) return &r->curves[i];
    curve *more = make ? realloc(r->curves, (size_t)(r->n + 1) * sizeof *more) : NULL;
    if (!more) return NULL;
    r->curves = more, more += r->n++;
    *more = (curve){.eval = eval};
    snprintf(more->name, sizeof more->name, "%s", name);
    return more;
}
static bool curve_add(curve *c, double x, double y) {
    if (c->n == c->cap) {
        const int64_t cap = c->cap ? 2 * c->cap : 64;
        double *xs = realloc(c->x, (size_t)cap * sizeof *xs);
        double *ys = xs ? realloc(c->y, (size_t)cap * sizeof *ys) : NULL;
        if (xs) c->x = xs;
        if (ys) c->y = ys, c->cap = cap;
        if (!xs || !ys) return false;
    }
    c->x[c->n] = x, c->y[c->n++] = y;
    return true;
}
/* Leaves what a screen can show: the lowest and the highest point of each of COLUMNS of the axis, the column's mean,
   and the ends. */
enum { COLUMNS = 400 };
static double column_of(double step, double steps) { return fmin(floor(step / steps * COLUMNS), COLUMNS - 1); }
static bool curve_thin(curve *c, double steps) {
    int64_t n = 0;
    if (c->n <= 2 * COLUMNS) return true;
    if (!(c->mean = malloc((size_t)c->n * sizeof *c->mean))) return complain("out of memory"), false;
    for (int64_t i = 0, end; i < c->n; i = end) {
        const double column = column_of(c->x[i], steps);
        int64_t low = i, high = i;
        double sum = 0;
        for (end = i; end < c->n && column_of(c->x[end], steps) == column; end++) {
            if (c->y[end] < c->y[low]) low = end;
            if (c->y[end] > c->y[high]) high = end;
            sum += c->y[end];
        }
        const int64_t keep[] = {i > 0 ? -1 : 0, low < high ? low : high, low < high ? high : low,
                                end < c->n ? -1 : c->n - 1};
        for (int k = 0; k < 4; k++)
            if (keep[k] >= 0 && (k == 0 || keep[k] > keep[k - 1])) {
                c->x[n] = c->x[keep[k]];
                c->mean[n] = sum / (double)(end - i);
                c->y[n++] = c->y[keep[k]];
            }
    }
    c->n = n;
    return true;
}
static void run_free(run *r) {
    for (int i = 0; i < r->n; i++) free(r->curves[i].x), free(r->curves[i].y), free(r->curves[i].mean);
    free(r->curves);
}
/* The method, by run.json or, for a run that has none, by its metrics. */
static void run_method(session *z, run *r, const char *dir) {
    char path[4200];
    size_t size;
    wrpo_json *json = NULL;
    const char *method = run_curve(r, "cur_alpha", false, false)         ? "wrpo"
                         : run_curve(r, "rewards/margins", false, false) ? "preferences"
                                                                         : "sft";
    snprintf(path, sizeof path, "%s/run.json", dir);
    FILE *f = fopen(path, "rb");
    char *text = f ? read_all(f, &size) : NULL;
    if (f) fclose(f);
    if (text && wrpo_json_parse(z->ctx, path, text, size, &json) == WRPO_OK) {
        const wrpo_json *v = wrpo_json_get(json, "method");
        if (v && v->kind == WRPO_JSON_STRING) method = v->text;
    }
    snprintf(r->method, sizeof r->method, "%s", method);
    wrpo_json_free(z->ctx, json);
    free(text);
}
static bool run_read(session *z, run *r, const char *dir) {
    char path[4200];
    lines in;
    wrpo_json *line;
    int code;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    size_t base = n;
    while (base && dir[base - 1] != '/') base--;
    *r = (run){.dir = dir};
    snprintf(r->name, sizeof r->name, "%.*s", (int)(n - base), dir + base);
    snprintf(path, sizeof path, "%.*s/metrics.jsonl", (int)n, dir);
    if (!lines_open(&in, path)) return false;
    while ((code = lines_next(z, &in, true, &line)) == 1) {
        const wrpo_json *step = wrpo_json_get(line, "step");
        bool ok = step && step->kind == WRPO_JSON_NUMBER;
        for (const wrpo_json *v = ok ? line->child : NULL; v && ok; v = v->next) {
            const bool eval = !strncmp(v->key, "eval_", 5);
            if (v == step || v->kind != WRPO_JSON_NUMBER) continue;
            curve *c = run_curve(r, v->key + (eval ? 5 : 0), eval, true);
            ok = c && curve_add(c, step->number, v->number);
        }
        if (ok && step->number > (double)r->steps) r->steps = (int64_t)step->number;
        wrpo_json_free(z->ctx, line);
        if (!ok) { code = -1, bad_line(path, in.line, "want an object of numbers with a \"step\""); break; }
    }
    free(in.data);
    if (code == 0 && !r->n) code = -1, complain("%s: want metrics, found none", path);
    if (code == 0) run_method(z, r, dir);
    return code == 0;
}
static void html_text(FILE *f, const char *s) {
    for (; *s; s++)
        if (*s == '<' || *s == '>' || *s == '&' || *s == '"') fprintf(f, "&#%d;", *s);
        else fputc(*s, f);
}
static label figure(double x) {      /* counts and large numbers whole, others to 4 digits */
    label l;
    const bool whole = fabs(x) < 1e15 && (x == floor(x) || fabs(x) >= 1e4);
    snprintf(l.s, sizeof l.s, whole ? "%.0f" : "%.4g", x == 0 ? 0 : x);
    return l;
}
static double nice_step(double range) {                /* 1, 2 or 5 times a power of ten: about four lines */
    const double power = pow(10, floor(log10(range / 4))), rest = range / 4 / power;
    return power * (rest < 1.5 ? 1 : rest < 3.5 ? 2 : rest < 7.5 ? 5 : 10);
}
enum { CHART_W = 460, CHART_H = 250, CHART_LEFT = 58, CHART_RIGHT = 12, CHART_TOP = 12, CHART_BOTTOM = 30 };
/* A curve: a line, points for what is held out, and for the page's script the values, of a thinned curve (class many)
   also where its means are. At (LEFT, H - BOTTOM) is the
   value `bottom` at step 0; sx and sy are pixels of a step and of a unit. */
static void html_curve(FILE *f, const run *r, int color, const curve *c, double bottom, double sx, double sy) {
    const double x0 = CHART_LEFT, y0 = CHART_H - CHART_BOTTOM;
    fprintf(f, "<g class=\"c%d%s%s\"><polyline points=\"", color, c->eval ? " eval" : "", c->mean ? " many" : "");
    for (int64_t k = 0; k < c->n; k++) fprintf(f, "%.1f,%.1f ", x0 + c->x[k] * sx, y0 - (c->y[k] - bottom) * sy);
    fputs("\"/>", f);
    for (int64_t k = 0; k < c->n && (c->eval || c->n == 1); k++)
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>", x0 + c->x[k] * sx, y0 - (c->y[k] - bottom) * sy);
    fputs("<title>", f), html_text(f, r->name);
    fprintf(f, "%s: %s at step %.0f</title><desc>", c->eval ? ", held-out" : "", figure(c->y[c->n - 1]).s,
            c->x[c->n - 1]);
    for (int64_t k = 0; k < c->n; k++) {
        fprintf(f, "%s%.0f %s", k ? "," : "", c->x[k], figure(c->y[k]).s);
        if (c->mean) fprintf(f, " %.1f", y0 - (c->mean[k] - bottom) * sy);
    }
    fputs("</desc></g>\n", f);
}
/* The metric of the runs of one method, or of all (method NULL). */
static void html_chart(FILE *f, const char *title, const char *metric, const char *method, run *runs, int n) {
    enum { W = CHART_W, H = CHART_H, LEFT = CHART_LEFT, RIGHT = CHART_RIGHT, TOP = CHART_TOP, BOTTOM = CHART_BOTTOM };
    double low = INFINITY, high = -INFINITY, steps = 1;
    for (int i = 0; i < n; i++)
        for (int eval = 0; eval < 2; eval++) {
            const curve *c = run_curve(&runs[i], metric, eval, false);
            if (method && strcmp(method, runs[i].method)) continue;
            for (int64_t k = 0; c && k < c->n; k++)
                low = fmin(low, c->y[k]), high = fmax(high, c->y[k]), steps = fmax(steps, c->x[k]);
        }
    if (!(low <= high)) return;                        /* no run has it */
    if (high - low < 1e-12 * fmax(fabs(high), 1e-300)) low -= fabs(low) / 2 + 1e-9, high += fabs(high) / 2 + 1e-9;
    const double dy = nice_step(high - low), dx = fmax(nice_step(steps), 1), bottom = floor(low / dy + 1e-9) * dy,
                 top = ceil(high / dy - 1e-9) * dy;
    const double sx = (W - LEFT - RIGHT) / steps, sy = (H - TOP - BOTTOM) / (top - bottom);
    fprintf(f, "<figure><figcaption>%s%s%s</figcaption>", title, method ? ", " : "", method ? method : "");
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s by step\">\n", W, H, title);
    for (double y = bottom; y < top + dy / 2; y += dy)
        fprintf(f,
                "<path class=\"grid\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                LEFT, H - BOTTOM - (y - bottom) * sy, W - RIGHT, LEFT - 7, H - BOTTOM - (y - bottom) * sy + 4,
                fabs(y) < dy / 1e6 ? 0 : y);
    for (double x = 0; x <= steps * (1 + 1e-9); x += dx)
        fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%.6g</text>\n", LEFT + x * sx, H - BOTTOM + 18,
                x > 0.9 * steps ? "end" : "middle", x);
    for (int eval = 0; eval < 2; eval++)               /* what is held out, over all lines */
        for (int i = 0; i < n; i++) {
            const curve *c = run_curve(&runs[i], metric, eval, false);
            if (c && !(method && strcmp(method, runs[i].method))) html_curve(f, &runs[i], i % 8, c, bottom, sx, sy);
        }
    fputs("</svg></figure>\n", f);
}
static const char report_style[] =
    ":root { color-scheme: light dark; --page: #f9f9f7; --card: #fff; --ink: #111; --soft: #5c5b57; --line: #e3e2dd;\n"
    " --c0: #2a78d6; --c1: #d9480f; --c2: #0b8a5f; --c3: #8a3ffc; --c4: #8f6b00; --c5: #c2255c; --c6: #0b7285; "
    "--c7: #5c5b57 }\n"
    "@media (prefers-color-scheme: dark) { :root { --page: #121212; --card: #1c1c1b; --ink: #f2f1ee; --soft: #a9a8a2;\n"
    " --line: #35342f; --c0: #5aa2f5; --c1: #ff8a4c; --c2: #34c38f; --c3: #b794ff; --c4: #e0b53a; --c5: #ff7ba3; "
    "--c6: #3cc7dc; --c7: #a9a8a2 } }\n"
    "body { margin: 0; padding: 28px 24px 40px; background: var(--page); color: var(--ink);\n"
    " font: 15px/1.5 system-ui, sans-serif }\n"
    "main { max-width: 1500px; margin: auto }\n"
    "h1 { font-size: 22px; margin: 0 0 4px }\n"
    "h2 { font-size: 16px; margin: 26px 0 8px }\n"
    "p { margin: 4px 0 12px; color: var(--soft); max-width: 75ch }\n"
    ".legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 10px 0; position: sticky; top: 0; z-index: 2;\n"
    " background: var(--page); max-height: 30vh; overflow-y: auto }\n"
    ".legend span, .legend label { display: flex; align-items: center; gap: 7px; overflow-wrap: anywhere }\n"
    ".legend i { flex: none; width: 20px; border-top: 3px solid }\n"
    ".legend i.eval { border-top-style: dashed }\n"
    ".legend input { width: 110px; accent-color: var(--c0) }\n"
    ".charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 14px }\n"
    "figure { position: relative; margin: 0; padding: 12px 14px 6px; background: var(--card);\n"
    " border: 1px solid var(--line); border-radius: 8px }\n"
    "figcaption { font-weight: 600 }\n"
    "svg { display: block; width: 100%; height: auto; touch-action: pan-y }\n"
    "svg text { font-size: 12px; fill: var(--soft) }\n"
    ".grid, .pointer { stroke: var(--line); fill: none }\n"
    ".pointer { stroke: var(--soft) }\n"
    "polyline { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round }\n"
    "circle { fill: currentColor; stroke: var(--card) }\n"
    ".eval polyline { stroke-dasharray: 6 4 }\n"
    ".raw, .many polyline:first-child { opacity: .25 }\n"
    ".tip { position: absolute; top: 8px; padding: 4px 8px; background: var(--page); border: 1px solid var(--line);\n"
    " border-radius: 6px; font-size: 12px; line-height: 1.45; pointer-events: none; white-space: pre; z-index: 1;\n"
    " font-variant-numeric: tabular-nums; max-width: 60%; overflow: hidden; text-overflow: ellipsis }\n"
    ".tip b { color: var(--ink); font-weight: 600 }\n"
    ".scroll { overflow-x: auto }\n"
    "table { border-collapse: collapse; font-variant-numeric: tabular-nums }\n"
    "th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }\n"
    "th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page) }\n"
    "thead th { color: var(--soft); font-weight: 600 }\n"
    "@media (max-width: 500px) { body { padding: 16px 12px 30px } th, td { padding-right: 10px; font-size: 13px }\n"
    " figure { padding: 10px 8px 4px } svg text { font-size: 14px } }\n";
/* The values at the pointer's step, and curves smoothed over a share of the run: an average whose weights fall with the
   distance in steps. A thinned curve is averaged over its means, and its average is drawn from the start. Points are
   [x, y of the picture, step, value as text, y to average]. */
static const char report_script[] =
    "const charts = [...document.querySelectorAll('svg')].map(svg => ({svg, curves: [...svg.querySelectorAll('g')].map("
    "g => {\n"
    "  const line = g.querySelector('polyline'), at = line.getAttribute('points').trim().split(' ');\n"
    "  const value = g.querySelector('desc').textContent.split(',').map(v => v.split(' '));\n"
    "  return {g, line, points: at.map((p, i) => {\n"
    "      const [x, y] = p.split(',').map(Number);\n"
    "      return [x, y, +value[i][0], value[i][1], +(value[i][2] ?? y)];\n"
    "    }),\n"
    "    name: g.querySelector('title').textContent.replace(/: [^:]*$/, ''), color: g.classList[0],\n"
    "    eval: g.classList.contains('eval'), many: g.classList.contains('many')};\n"
    "})}));\n"
    "for (const chart of charts) {\n"
    "  const figure = chart.svg.parentNode;\n"
    "  const leave = () => figure.querySelectorAll('.tip, .pointer').forEach(e => e.remove());\n"
    "  const show = event => {\n"
    "    leave();\n"
    "    const box = chart.svg.getBoundingClientRect(), x = (event.clientX - box.left) * 460 / box.width;\n"
    "    const near = points => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);\n"
    "    const found = chart.curves.map(c => [c, near(c.points)]);\n"
    "    const at = near(found.map(f => f[1])), line = document.createElementNS(chart.svg.namespaceURI, 'path');\n"
    "    line.setAttribute('class', 'pointer');\n"
    "    line.setAttribute('d', 'M' + at[0] + ' 12V220');\n"
    "    chart.svg.append(line);\n"
    "    const tip = document.createElement('div'), head = document.createElement('b');\n"
    "    tip.className = 'tip';\n"
    "    tip.style[x < 250 ? 'right' : 'left'] = '10px';\n"
    "    head.textContent = 'step ' + at[2];\n"
    "    tip.append(head);\n"
    "    for (const [c, p] of found) {\n"
    "      const row = document.createElement('div');\n"
    "      row.className = c.color;\n"
    "      row.textContent = p[3] + (p[2] == at[2] ? '' : ' at ' + p[2]) + '  ' + c.name;\n"
    "      tip.append(row);\n"
    "    }\n"
    "    figure.append(tip);\n"
    "  };\n"
    "  chart.svg.addEventListener('pointermove', show);\n"
    "  chart.svg.addEventListener('pointerdown', show);\n"
    "  chart.svg.addEventListener('pointerleave', leave);\n"
    "}\n"
    "const label = document.createElement('label'), slider = document.createElement('input');\n"
    "Object.assign(slider, {type: 'range', min: 0, max: 1, step: 0.01, value: 0, id: 'smoothing'});\n"
    "label.append('smoothing', slider);\n"
    "document.querySelector('.legend').append(label);\n"
    "const smooth = () => {\n"
    "  for (const chart of charts) for (const c of chart.curves) {\n"
    "    const width = Math.max(slider.value * slider.value * 100, c.many ? 0.01 : 0);\n"
    "    c.smooth?.remove();\n"
    "    c.line.classList.toggle('raw', width > 0 && !c.eval);\n"
    "    if (width == 0 || c.eval) continue;\n"
    "    let sum = 0, weights = 0, x = c.points[0][0];\n"
    "    c.smooth = c.line.cloneNode();\n"
    "    c.smooth.setAttribute('class', 'smooth');\n"
    "    c.smooth.setAttribute('points', c.points.map(p => {\n"
    "      const keep = Math.exp((x - p[0]) / width);\n"
    "      sum = sum * keep + p[4];\n"
    "      weights = weights * keep + 1;\n"
    "      x = p[0];\n"
    "      return x + ',' + (sum / weights).toFixed(1);\n"
    "    }).join(' '));\n"
    "    c.g.append(c.smooth);\n"
    "  }\n"
    "};\n"
    "slider.addEventListener('input', smooth);\n"
    "smooth();\n";
/* Losses, margins (beta times a log-ratio) and gradients of different methods are drawn apart: they differ in size. */
static void html_charts(FILE *f, run *runs, int n) {
    static const struct { const char *title, *metric; bool apart; } charts[] = {
        {"loss", "loss", true},
        {"margin of rewards", "rewards/margins", true},
        {"accuracy", "rewards/accuracies", false},
        {"accuracy of the source's answer", "rewards/source_accuracies", false},
        {"accuracy of the target's answer", "rewards/pivot_accuracies", false},
        {"alpha", "cur_alpha", false},
        {"learning rate", "learning_rate", false},
        {"norm of the gradient", "grad_norm", true},
        {"log-prob of the source's answer", "logps/source_chosen", false},
        {"log-prob of the target's answer", "logps/target_chosen", false},
        {"log-prob of the rejected answer", "logps/rejected", false}};
    bool differ = false;
    for (int i = 1; i < n; i++) differ = differ || strcmp(runs[i].method, runs[0].method);
    for (size_t k = 0; k < sizeof charts / sizeof *charts; k++)
        for (int i = 0; i < n; i++) {                  /* once, or once for every method */
            bool seen = i > 0 && !(differ && charts[k].apart);
            for (int j = 0; j < i; j++) seen = seen || !strcmp(runs[j].method, runs[i].method);
            const char *method = differ && charts[k].apart ? runs[i].method : NULL;
            if (!seen) html_chart(f, charts[k].title, charts[k].metric, method, runs, n);
        }
}
/* before: HTML in front of the charts; NULL: a sentence. */
static bool report_write(const char *path, const char *title, const char *before, run *runs, int n) {
    output out;
    bool eval = false;
    double steps = 1;
    for (int i = 0; i < n; i++) steps = fmax(steps, (double)runs[i].steps);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < runs[i].n; k++)
            if (!curve_thin(&runs[i].curves[k], steps)) return false;
    if (!output_open(&out, path)) return false;
    FILE *f = out.f;
    fputs("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">"
          "<meta name=\"viewport\" content=\"width=device-width\"><title>", f);
    html_text(f, title);
    fprintf(f, "</title>\n<style>\n%s", report_style);
    for (int i = 0; i < 8; i++) fprintf(f, ".c%d { color: var(--c%d) }\n", i, i);
    fputs("</style>\n<main><h1>", f);
    html_text(f, title);
    fputs("</h1>\n", f);
    fputs(before ? before : "<p>The steps of metrics.jsonl, drawn over the number of the step.</p>\n", f);
    fputs("<div class=\"legend\">", f);
    for (int i = 0; i < n; i++) {
        fprintf(f, "<span><i class=\"c%d\"></i>", i % 8);
        html_text(f, runs[i].name);
        fputs("</span>", f);
        for (int k = 0; k < runs[i].n; k++) eval = eval || runs[i].curves[k].eval;
    }
    if (eval) fputs("<span><i class=\"eval\"></i>held-out</span>", f);
    fputs("</div>\n<div class=\"charts\">\n", f);
    html_charts(f, runs, n);
    fputs("</div>\n<h2>At the last step</h2><div class=\"scroll\"><table><thead><tr><th>metric</th>", f);
    for (int i = 0; i < n; i++)
        fputs("<th>", f), html_text(f, runs[i].name), fprintf(f, ", step %lld</th>", (long long)runs[i].steps);
    fputs("</tr></thead><tbody>\n", f);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < runs[i].n; k++) {          /* every metric that a run has, once */
            const curve *c = &runs[i].curves[k];
            bool shown = false;
            for (int j = 0; j < i; j++) shown = shown || run_curve(&runs[j], c->name, c->eval, false);
            if (shown) continue;
            fputs(c->eval ? "<tr><td>eval_" : "<tr><td>", f), html_text(f, c->name), fputs("</td>", f);
            for (int j = 0; j < n; j++) {
                const curve *d = run_curve(&runs[j], c->name, c->eval, false);
                fprintf(f, "<td>%s</td>", d ? figure(d->y[d->n - 1]).s : "");
            }
            fputs("</tr>\n", f);
        }
    fprintf(f, "</tbody></table></div></main>\n<script>\n%s</script></html>\n", report_script);
    return output_close(&out, true);
}
static void csv_text(FILE *f, const char *s) {         /* in quotes where it needs them */
    const bool plain_text = !strpbrk(s, ",\"\n\r");
    if (!plain_text) fputc('"', f);
    for (; *s; s++) {
        if (*s == '"') fputc('"', f);
        fputc(*s, f);
    }
    if (!plain_text) fputc('"', f);
}
/* run, step, and a column for every metric that one of the runs has, as in metrics.jsonl; a line for every step. */
static bool csv_write(const char *path, run *runs, int n) {
    output out;
    run columns = {0};
    int64_t *next = NULL;            /* of the run's curves: the point that is written next */
    bool ok = output_open(&out, path);
    for (int i = 0; i < n && ok; i++)
        for (int k = 0; k < runs[i].n && ok; k++) {
            const curve *c = &runs[i].curves[k];
            ok = run_curve(&columns, c->name, c->eval, true) != NULL;
        }
    ok = ok && (next = malloc((size_t)columns.n * sizeof *next));
    if (out.f && !ok) complain("out of memory");
    if (ok) fputs("run,step", out.f);
    for (int k = 0; k < columns.n && ok; k++)
        fprintf(out.f, columns.curves[k].eval ? ",eval_" : ","), csv_text(out.f, columns.curves[k].name);
    for (int i = 0; i < n && ok; i++) {
        for (int k = 0; k < columns.n; k++) next[k] = 0;
        for (;;) {
            double step = INFINITY;
            for (int k = 0; k < columns.n; k++) {
                const curve *c = run_curve(&runs[i], columns.curves[k].name, columns.curves[k].eval, false);
                if (c && next[k] < c->n) step = fmin(step, c->x[next[k]]);
            }
            if (isinf(step)) break;
            fputc('\n', out.f), csv_text(out.f, runs[i].name), fprintf(out.f, ",%.0f", step);
            for (int k = 0; k < columns.n; k++) {
                const curve *c = run_curve(&runs[i], columns.curves[k].name, columns.curves[k].eval, false);
                fputc(',', out.f);
                if (c && next[k] < c->n && c->x[next[k]] == step) json_real(out.f, c->y[next[k]++]);
            }
        }
    }
    if (ok) fputc('\n', out.f);
    run_free(&columns);
    free(next);
    return output_close(&out, ok);
}
/* title NULL: a table in place of the pictures */
static int report(session *z, const char *const *dirs, int n, const char *path, const char *title, const char *before) {
    run *runs = calloc((size_t)n, sizeof *runs);
    bool ok = runs != NULL;
    if (!ok) complain("out of memory");
    for (int i = 0; i < n && ok; i++) ok = run_read(z, &runs[i], dirs[i]);
    ok = ok && (title ? report_write(path, title, before, runs, n) : csv_write(path, runs, n));
    for (int i = 0; i < n && runs; i++) run_free(&runs[i]);
    free(runs);
    return ok ? 0 : 1;
}
static int run_report(const settings *s, session *z) {
    const char *dirs[1 + sizeof s->more / sizeof *s->more] = {s->path};
    const char *path = s->csv ? "metrics.csv" : "report.html";
    if (s->out) path = s->out;
    memcpy(dirs + 1, s->more, sizeof s->more);
    if (report(z, dirs, 1 + (int)s->n_more, path, s->csv ? NULL : "wrpo: training runs", NULL)) return 1;
    printf("%s: %lld runs\n", path, (long long)s->n_more + 1);
    return 0;
}

static int dispatch(int argc, char **argv);
static const command *find_command(const char *name);
/* ---- fuse: the whole recipe. A stage is a command as it could be typed, and leaves its file; OUT/fuse.log has the
   stages that are done, so that the same command goes on wherever it was stopped. ---- */
#define SAMPLED "--raw --dedup --system-message --date --temperature --top-p " \
                " --top-k --max-tokens --seed --batch --device --threads "
#define SCORED "--label --micro-tokens --device --dtype --threads "
#define SELECTED "--top --tau --min-gap --max-gap --require --entropy-power --entropy-scale --threads "
#define EITHER "--lanes --max-length --max-prompt-length --tokenization --system-message --date --micro-tokens " \
               "--recompute --memory-limit --seed --log-steps --save-steps --device --dtype --moments --save-dtype " \
               "--max-shard-size --threads "
#define PREFERRED "--preset --method --pair --alpha --beta --label-smoothing --gamma-ratio --ipo-sum --fusion " \
                  "--sft-weight --alpha-schedule --learning-rate --lr-scheduler --warmup-ratio --weight-decay " \
                  "--max-grad-norm --batch-size --accumulation --epochs --max-steps --no-shuffle "
#define NEW_ADAPTER "--lora-r --lora-alpha --lora-dropout --lora-target --rslora "
/* They change no result. */
#define FUSE_NEUTRAL "--threads --batch --memory-limit --recompute --log-steps --save-steps "
enum { STAGE_WORDS = 160, MOST_SOURCES = 65, MOST_ROUNDS = 99 };
typedef struct stage {
    char *argv[STAGE_WORDS];
    int argc;
    const char *line;                /* the command without neutral options: how fuse.log knows it */
    const char *out;                 /* what it makes; NULL: it prints, or is quick, and is done again each time */
    bool done, begun;                /* as fuse.log has it */
    double made, read, bytes;        /* at most: tokens made one by one and tokens read at once, each times the
                                        parameters of the model; bytes of what it leaves */
} stage;
typedef struct recipe {
    const settings *s;
    session *z;
    stage *stages;
    int count, sources;
    const char *dir[MOST_SOURCES], *name[MOST_SOURCES];
    double parameters[MOST_SOURCES], target, reward;   /* of the models */
    double part[3], prompt_tokens;   /* prompts for SFT, for preferences, held out; tokens of one, the mean */
    int64_t again;                   /* prompts that have the text of an earlier one */
    char **texts;                    /* everything that the stages point to */
    int n_texts;
    bool failed;
} recipe;
static const char *fuse_text(recipe *r, const char *format, ...) { /* lives as long as the recipe */
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char **more = realloc(r->texts, (size_t)(r->n_texts + 1) * sizeof *more), *text = malloc((size_t)n + 1);
    if (more) r->texts = more;
    if (!more || !text) { free(text); r->failed = true; return ""; }
    va_start(args, format);
    vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    return r->texts[r->n_texts++] = text;
}
static stage *fuse_stage(recipe *r, const char *name, const char *out) {
    static stage spare;              /* where there is no memory: the recipe has failed */
    stage *more = realloc(r->stages, (size_t)(r->count + 1) * sizeof *more);
    if (!more) { r->failed = true; return &spare; }
    r->stages = more;
    stage *t = &more[r->count++];
    *t = (stage){.out = out};
    t->argv[t->argc++] = (char *)fuse_text(r, "%s", name);
    return t;
}
static void stage_word(recipe *r, stage *t, const char *word) {
    if (t->argc == STAGE_WORDS) r->failed = true;
    else t->argv[t->argc++] = (char *)word;
}
#define WORD(...) stage_word(r, t, fuse_text(r, __VA_ARGS__))
/* Those options of the command line that are in the list, as they were given. */
static void stage_pass(recipe *r, stage *t, const char *list) {
    for (int i = 1; i < r->z->argc; i++) {
        const char *word = r->z->argv[i];
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
        if (strncmp(name, "--", 2) || !listed(list, name)) continue;
        const option *o = options;
        while (strcmp(o->name, name)) o++;
        if (o->kind == FLAG || strchr(word, '=')) WORD("%s", word);
        else if (i + 1 < r->z->argc) WORD("%s=%s", name, r->z->argv[i + 1]);
    }
}
/* The command as a shell would take it; neutral false: without the options that change no result. */
static const char *stage_line(recipe *r, const stage *t, bool neutral) {
    static const char plain_characters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./,:@%";
    size_t size = 1, n = 0;
    for (int i = 0; i < t->argc; i++) size += 4 * strlen(t->argv[i]) + 3;
    char *line = malloc(size);
    if (!line) { r->failed = true; return ""; }
    for (int i = 0; i < t->argc; i++) {
        const char *word = t->argv[i];
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
        if (!neutral && listed(FUSE_NEUTRAL, name)) continue;
        const bool quote = word[strspn(word, plain_characters)] != 0 || !*word;
        if (i) line[n++] = ' ';
        if (quote) line[n++] = '\'';
        for (; *word; word++) {
            if (*word == '\'') memcpy(line + n, "'\\'", 3), n += 3;
            line[n++] = *word;
        }
        if (quote) line[n++] = '\'';
    }
    line[n] = 0;
    const char *text = fuse_text(r, "%s", line);
    free(line);
    return text;
}

/* ---- its stages ---- */
enum { FOR_SFT, FOR_PREFERENCES, HELD_OUT };            /* the parts of the prompts */
typedef struct fuse_model { const char *dir, *adapter, *name; double parameters; } fuse_model;
static double heldout_of(const settings *s) { return plain(or_default(s->heldout, 0.1)); }
static double fuse_length(const recipe *r) { return (double)(r->s->max_tokens ? r->s->max_tokens : 2048); }
static bool fuse_has_adapter(const recipe *r) { return r->s->lora_r || r->s->adapter; }
/* The target as a training left it in dir; NULL: as it was given. */
static fuse_model fuse_target(const recipe *r, const char *dir) {
    const settings *s = r->s;
    if (!dir) return (fuse_model){s->model, s->adapter, "target", r->target};
    if (fuse_has_adapter(r)) return (fuse_model){s->model, dir, "target", r->target};
    return (fuse_model){dir, NULL, "target", r->target};
}
/* Answers of a model to a part of the prompts, and their rewards, in OUT/file-scored.jsonl. */
static const char *fuse_answers(recipe *r, fuse_model m, const char *as, int of, const char *file) {
    static const char *const parts[] = {"sft", "wrpo", "heldout"};
    const settings *s = r->s;
    const double count = r->part[of] * (double)(of == HELD_OUT ? 1 : s->n ? s->n : 5);
    const char *answered = fuse_text(r, "%s/%s.jsonl", s->out, file);
    const char *scored = fuse_text(r, "%s/%s-scored.jsonl", s->out, file);
    stage *t = fuse_stage(r, "sample", answered);
    WORD("--model=%s", m.dir);
    if (m.adapter) WORD("--adapter=%s", m.adapter);
    WORD("--prompts=%s/parts/%s.jsonl", s->out, parts[of]);
    WORD("--as=%s", as);
    WORD("--name=%s", m.name);
    if (of == HELD_OUT) WORD("--n=1");
    stage_pass(r, t, of == HELD_OUT ? SAMPLED : "--n " SAMPLED);
    WORD("--out=%s", answered);
    t->made = count * fuse_length(r) * m.parameters;
    t->read = r->part[of] * r->prompt_tokens * m.parameters;
    t->bytes = 4 * (r->part[of] * r->prompt_tokens + count * (fuse_length(r) + 10));
    const double bytes = t->bytes;
    t = fuse_stage(r, "score", scored);
    WORD("--reward-model=%s", s->reward_model);
    WORD("--in=%s", answered);
    stage_pass(r, t, SCORED);
    WORD("--out=%s", scored);
    t->read = count * (r->prompt_tokens + fuse_length(r)) * r->reward;
    t->bytes = bytes + 30 * count;
    return scored;
}
static const char *fuse_select(recipe *r, bool sft, const char *const *files, int count, const char *out) {
    stage *t = fuse_stage(r, "select", out);
    if (sft) WORD("--form=sft");
    WORD("--in=%s", files[0]);
    for (int i = 1; i < count; i++) WORD("%s", files[i]);
    stage_pass(r, t, sft ? "--require --threads " : "--form " SELECTED);
    WORD("--out=%s", out);
    t->bytes = 4 * r->part[sft ? FOR_SFT : FOR_PREFERENCES] * (r->prompt_tokens + (sft ? 1 : 3) * fuse_length(r));
    return out;
}
/* Records with what each source thinks of their responses. */
static const char *fuse_logps(recipe *r, const char *data, int64_t round) {
    for (int i = 0; i < r->sources; i++) {
        stage *t = fuse_stage(r, "logprob", fuse_text(r, "%s/round-%lld/quads-%s.jsonl", r->s->out, (long long)round,
                                                      r->name[i]));
        WORD("--model=%s", r->dir[i]);
        WORD("--data=%s", data);
        WORD("--as-source=%s", r->name[i]);
        stage_pass(r, t, "--system-message --date --device --dtype --threads ");
        WORD("--out=%s", t->out);
        t->read = r->part[FOR_PREFERENCES] * 3 * (r->prompt_tokens + fuse_length(r)) * r->parameters[i];
        t->bytes = 4 * r->part[FOR_PREFERENCES] * (r->prompt_tokens + 3 * fuse_length(r));
        data = t->out;
    }
    return data;
}
/* The target goes on from where a training left it in `from`. */
static const char *fuse_train(recipe *r, bool sft, const char *from, const char *data, const char *out) {
    const settings *s = r->s;
    const fuse_model m = fuse_target(r, from);
    const double rows = sft ? 1 : 3, forwards = !sft && has_reference(s) ? 4 : 3;      /* backward is 2 */
    double epochs = s->epochs > 0 ? s->epochs : 1;
    stage *t = fuse_stage(r, "train", out);
    WORD("--model=%s", m.dir);
    if (m.adapter) WORD("--adapter=%s", m.adapter);
    else if (s->lora_r) stage_pass(r, t, NEW_ADAPTER);
    WORD("--data=%s", data);
    stage_pass(r, t, sft ? EITHER : PREFERRED EITHER);
    if (!s->save_steps) WORD("--save-steps=50");
    if (sft) {
        WORD("--method=sft");
        epochs = 1;
        for (const char *p = s->sft_options ? s->sft_options : ""; *p;) {
            const size_t blank = strspn(p, " "), size = strcspn(p + blank, " ");
            p += blank;
            if (!strncmp(p, "--epochs", 8)) epochs = strtod(p + 8 + strspn(p + 8, " ="), NULL);
            if (size) WORD("%.*s", (int)size, p);
            p += size;
        }
    }
    WORD("--out=%s", out);
    t->read = epochs * forwards * r->part[sft ? FOR_SFT : FOR_PREFERENCES] * rows *
              (r->prompt_tokens + fuse_length(r)) * r->target;
    t->bytes = (fuse_has_adapter(r) ? 0.02 : 1) * 16 * r->target;  /* the model's 4 bytes, and a checkpoint's 12 */
    return out;
}
static void fuse_plan(recipe *r) {
    const settings *s = r->s;
    const int64_t rounds = s->rounds ? s->rounds : 1;
    const char *sft_files[MOST_SOURCES], *files[MOST_SOURCES + 1];
    const char *trained[1 + MOST_ROUNDS], *held[2 + MOST_ROUNDS];
    stage *t = fuse_stage(r, "split", fuse_text(r, "%s/parts", s->out));
    WORD("--in=%s", s->prompts);
    stage_pass(r, t, "--sft --seed --threads ");
    if (heldout_of(s) > 0) WORD("--heldout=%.15g", heldout_of(s));
    WORD("--out=%s", t->out);
    for (int i = 0; i < r->sources; i++) {
        const fuse_model m = {r->dir[i], NULL, r->name[i], r->parameters[i]};
        sft_files[i] = fuse_answers(r, m, "source", FOR_SFT, fuse_text(r, "sources/%s-sft", m.name));
        files[i] = fuse_answers(r, m, "source", FOR_PREFERENCES, fuse_text(r, "sources/%s-wrpo", m.name));
    }
    const char *data = fuse_select(r, true, sft_files, r->sources, fuse_text(r, "%s/sft.jsonl", s->out));
    trained[0] = fuse_train(r, true, NULL, data, fuse_text(r, "%s/sft", s->out));
    for (int64_t k = 1; k <= rounds; k++) {
        const char *at = fuse_text(r, "round-%lld", (long long)k), *dir = fuse_text(r, "%s/%s", s->out, at);
        files[r->sources] = fuse_answers(r, fuse_target(r, trained[k - 1]), "target", FOR_PREFERENCES,
                                         fuse_text(r, "%s/target", at));
        data = fuse_select(r, false, files, r->sources + 1, fuse_text(r, "%s/quads.jsonl", dir));
        if (fuses((wrpo_method)s->method)) data = fuse_logps(r, data, k);
        trained[k] = fuse_train(r, false, trained[k - 1], data, fuse_text(r, "%s/model", dir));
    }
    for (int64_t k = -1; k <= rounds && heldout_of(s) > 0; k++) {  /* the target as it was, SFT, the rounds */
        const char *name = k < 0 ? "target" : k == 0 ? "sft" : fuse_text(r, "round-%lld", (long long)k);
        fuse_model m = fuse_target(r, k < 0 ? NULL : trained[k]);
        m.name = name;
        held[k + 1] = fuse_answers(r, m, "target", HELD_OUT, fuse_text(r, "heldout/%s", name));
    }
    for (int64_t k = 0; k <= rounds && heldout_of(s) > 0; k++) {
        t = fuse_stage(r, "winrate", NULL);
        WORD("--a=%s", held[rounds + 1]);
        WORD("--b=%s", held[k]);
        stage_pass(r, t, "--resamples --seed ");
    }
    t = fuse_stage(r, "report", NULL);
    for (int64_t k = 0; k <= rounds; k++) WORD("%s", trained[k]);
    WORD("--out=%s/report.html", s->out);
}

/* ---- its plan: checked, and how long it takes at most ---- */
/* The name and the directory of a source, NAME=DIR or DIR. */
static bool fuse_source(recipe *r, const char *given) {
    const char *dir = source_dir(given);
    const settings named = {.model = dir};
    const char *name = dir != given ? fuse_text(r, "%.*s", (int)(dir - given) - 1, given)
                                    : fuse_text(r, "%s", model_name(&named));
    for (int i = 0; i < r->sources; i++)
        if (!strcmp(r->name[i], name))
            return complain("--source: two sources are called %s: want NAME=%s for one of them", name, dir), false;
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return complain("--source: want NAME=DIR, or a directory with a name, found %s", given), false;
    r->dir[r->sources] = dir;
    r->name[r->sources++] = name;
    return true;
}
static bool fuse_size(session *z, const char *dir, bool reward, double *parameters) {
    wrpo_config c;
    wrpo_dtype dtype;
    int64_t n;
    if (wrpo_model_check(z->ctx, dir, &c, &n, &dtype)) return fail(z), false;
    if (reward != (c.head != WRPO_HEAD_LM))
        return complain("%s: want a %s model, found a %s model", dir, reward ? "reward" : "language",
                        reward ? "language" : "reward"), false;
    *parameters = (double)n;
    return true;
}
/* How many prompts each part will have: they are split in a scratch folder. */
static bool fuse_parts(recipe *r) {
    const settings *s = r->s;
    wrpo_split_desc d = {.in = s->prompts, .share = s->sft, .heldout = heldout_of(s), .seed = (uint64_t)s->seed};
    char folder[4096] = "", out[3][4200];
    int64_t counts[4] = {0};
    bool ok = ranks.rank || scratch_make(folder, sizeof folder, false);
    for (int i = 0; i < (d.heldout > 0 ? 3 : 2); i++) {
        snprintf(out[i], sizeof out[i], "%s/%d.jsonl", folder, i);
        d.out[i] = out[i];
    }
    if (ok && !ranks.rank) {
        ok = wrpo_split(r->z->ctx, &d, counts) == WRPO_OK || fail(r->z) == 0;
        scratch_drop(folder);
    }
    if (!from_first(r->z, counts, sizeof counts, ok)) return false;
    for (int i = 0; i < 3; i++) r->part[i] = (double)counts[i];
    r->again = counts[3];
    return true;
}
/* Reads the prompts as `sample` will read them. hash: of the file. */
static bool fuse_prompts(recipe *r, uint64_t *hash) {
    session *z = r->z;
    prompts p = {0};
    lines in;
    if (!lines_open(&in, r->s->prompts)) return false;
    *hash = fnv(FNV, in.data, in.size);
    const bool ok = prompts_load(z, r->s, &in, &p);
    for (int64_t i = 0; i < p.count; i++) r->prompt_tokens += (double)p.list[i].count / (double)p.count;
    prompts_free(z, &p);
    wrpo_tokenizer_free(z->tokenizer);
    z->tokenizer = NULL;
    return ok && fuse_parts(r);
}
/* Tokens times parameters a second, as the target makes them in a batch and as it reads them, on this machine now. */
static bool fuse_pace(recipe *r, double *made, double *read) {
    enum { READ = 256, MADE = 8 };
    session *z = r->z;
    const settings *s = r->s;
    int32_t ids[READ];
    int64_t vocab = 0;
    if (load_model(z, s, true)) return fail(z), false;
    vocab = wrpo_model_config(z->model)->vocab_size;
    for (int i = 0; i < READ; i++) ids[i] = (int32_t)(7919 * (int64_t)i % vocab);
    const int32_t stop = ids[1];
    const wrpo_prompt prompt = {.ids = ids, .count = 16};
    wrpo_generate_desc d = {.n = s->batch ? s->batch : 32, .temperature = 1, .stop = &stop, .stop_count = 1};
    double took[2], best = INFINITY;
    d.batch = d.n;
    for (int k = 0; k < 2; k++) {
        const double begin = seconds();
        d.max_tokens = k ? 1 + MADE : 1;
        if (wrpo_generate(z->model, &prompt, 1, &d)) return fail(z), false;
        took[k] = seconds() - begin;
    }
    for (int k = 0; k < 3; k++) {
        const double begin = seconds();
        if (wrpo_hidden(z->model, ids, READ, NULL, NULL)) return fail(z), false;
        best = fmin(best, seconds() - begin);
    }
    *made = (double)(MADE * d.n) * r->target / fmax(took[1] - took[0], 1e-9);
    *read = READ * r->target / fmax(best, 1e-9);
    wrpo_model_free(z->model);
    z->model = NULL;
    return true;
}
static void fuse_print(recipe *r, double made, double read) {
    double time = 0, bytes = 0;
    printf("plan         at most: answers that end before --max-tokens take less\n");
    printf("%4s %12s %10s  %s\n", "", "time", "file", "wrpo");
    for (int i = 0; i < r->count; i++) {
        const stage *t = &r->stages[i];
        const double takes = t->done ? 0 : t->made / made + t->read / read;
        time += takes;
        bytes += t->done ? 0 : t->bytes;
        printf("%4d %12s %10s  %s\n", i + 1, t->done ? "done" : time_text(takes).s, bytes_text(t->bytes).s,
               stage_line(r, t, true));
    }
    printf("%4s %12s %10s  at most, of what is to do\n", "", time_text(time).s, bytes_text(bytes).s);
    fflush(stdout);
}

/* ---- its log and its run ---- */
static const char fuse_head[] = "# wrpo fuse: the stages that are done; the same command goes on from here\n";
static const char *fuse_log_path(recipe *r) { return fuse_text(r, "%s/fuse.log", r->s->out); }
static bool fuse_log_write(recipe *r, uint64_t hash) {
    output o;
    if (!output_open(&o, fuse_log_path(r))) return false;
    fprintf(o.f, "%sprompts %016llx\n", fuse_head, (unsigned long long)hash);
    for (int i = 0; i < r->count; i++)
        if (r->stages[i].done || r->stages[i].begun)
            fprintf(o.f, "%s %s\n", r->stages[i].done ? "done" : "begun", r->stages[i].line);
    return output_close(&o, true);
}
/* Marks the stages that the log has. false: it is the log of another run. */
static bool fuse_log_read(recipe *r, uint64_t hash) {
    const char *path = fuse_log_path(r), *want = fuse_text(r, "prompts %016llx", (unsigned long long)hash);
    size_t size;
    FILE *f = fopen(path, "rb");
    if (!f) return errno == ENOENT || (complain("%s: cannot be read: %s", path, strerror(errno)), false);
    char *text = read_all(f, &size);
    fclose(f);
    if (!text) return complain("%s: cannot be read", path), false;
    bool ok = true;
    int64_t number = 1;
    for (char *line = text, *end; ok && (end = memchr(line, '\n', size - (size_t)(line - text))); line = end + 1) {
        *end = 0;
        if (number == 2 && strcmp(line, want) != 0) {
            complain("%s: this run began with other prompts than %s has now: want the same, or another --out", path,
                     r->s->prompts);
            ok = false;
        }
        if (number++ < 3) continue;
        const bool done = !strncmp(line, "done ", 5);
        int i = 0;
        while (i < r->count && (!r->stages[i].out || strcmp(r->stages[i].line, line + (done ? 5 : 6)) != 0)) i++;
        if (i < r->count) {
            r->stages[i].done = done;
            r->stages[i].begun = !done;
        } else if (ok) {
            complain("%s:%lld: this run did `wrpo %s`, which these options do not ask for: want the same options, or "
                     "another --out", path, (long long)number - 1, line + (done ? 5 : 6));
            ok = false;
        }
    }
    free(text);
    return ok;
}
/* The newest checkpoint that a training left in dir; 0: none. drop: all go. */
static int64_t fuse_checkpoints(const char *dir, bool drop) {
    int64_t best = 0;
    names n = names_in(dir);
    for (int i = 0; i < n.count; i++) {
        char path[4200], state[4300], *end;
        struct stat st;
        if (!begins(n.list[i], "checkpoint-")) continue;
        const int64_t step = strtoll(n.list[i] + 11, &end, 10);
        snprintf(path, sizeof path, "%.4000s/%.100s", dir, n.list[i]);
        snprintf(state, sizeof state, "%s/trainer_state.wrpo", path);
        if (drop && !*end) remove(state), scratch_remove(path);    /* first: without it, it is no checkpoint */
        else if (!*end && step > best && stat(state, &st) == 0) best = step;
    }
    names_free(&n);
    return best;
}
/* What is to do with a stage; step: of the checkpoint that it goes on from. The first of several ranks decides. */
typedef struct fuse_next { enum { FUSE_RUN, FUSE_SKIP, FUSE_WHOLE } what; int64_t step; } fuse_next;
static int fuse_decide(recipe *r, int i, uint64_t hash, fuse_next *next) {
    stage *t = &r->stages[i];
    struct stat st;
    const bool there = t->out && stat(t->out, &st) == 0;
    *next = (fuse_next){t->done && there ? FUSE_SKIP : FUSE_RUN, 0};
    if (next->what == FUSE_SKIP) return 0;
    if (t->done) return complain("%s: it was made by this run and is gone: want it back, or another --out", t->out);
    printf("\n[%d of %d] $ wrpo %s\n", i + 1, r->count, stage_line(r, t, true));
    fflush(stdout);
    if (there && !t->begun)
        return complain("%s: is there, and this run did not make it: want another --out", t->out);
    /* A file appears when it is whole: then only the log was not written. A directory is worked on again. */
    if (there && S_ISREG(st.st_mode)) {
        next->what = FUSE_WHOLE;
        remove(fuse_text(r, "%s.settings", t->out));   /* of sample: a kill left it */
    }
    if (!strcmp(t->argv[0], "train")) next->step = fuse_checkpoints(t->out, false);
    if (!t->out || t->begun) return 0;
    t->begun = true;
    return fuse_log_write(r, hash) ? 0 : 1;
}
static int fuse_run(recipe *r, uint64_t hash) {
    for (int i = 0; i < r->count; i++) {
        stage *t = &r->stages[i];
        fuse_next next = {0};
        int code = ranks.rank ? 0 : fuse_decide(r, i, hash, &next);
        if (!from_first(r->z, &next, sizeof next, !code)) return 1;
        if (next.what == FUSE_SKIP) continue;
        char *argv[STAGE_WORDS + 1];
        int argc = t->argc;
        memcpy(argv, t->argv, sizeof t->argv);
        if (next.step)
            argv[argc++] = (char *)fuse_text(r, "--resume=%s/checkpoint-%lld", t->out, (long long)next.step);
        if (r->failed) return complain("out of memory");
        const bool outer = together;
        together = outer && listed(of_all_ranks, t->argv[0]);
        if (next.what == FUSE_RUN) code = interrupted ? 1 : dispatch(argc, argv);
        together = outer;
        if (code) complain("fuse: stage %d of %d has not ended; the same command goes on from there", i + 1, r->count);
        t->done = !code && t->out;
        if (t->done && !ranks.rank) {
            if (!strcmp(t->argv[0], "train")) fuse_checkpoints(t->out, true);      /* its model is there */
            code = fuse_log_write(r, hash) ? 0 : 1;
        }
        if (!from_first(r->z, &next, sizeof next, !code)) return 1;
    }
    return 0;
}
static int fuse(recipe *r) {
    const settings *s = r->s;
    session *z = r->z;
    double made = 1, read = 1, todo = 0;
    size_t none;
    uint64_t hash;
    if (!fuse_source(r, s->source)) return 1;
    for (int64_t i = 0; i < s->n_more; i++)
        if (!fuse_source(r, s->more[i])) return 1;
    if (!fuse_size(z, s->model, false, &r->target) || !fuse_size(z, s->reward_model, true, &r->reward)) return 1;
    for (int i = 0; i < r->sources; i++)
        if (!fuse_size(z, r->dir[i], false, &r->parameters[i])) return 1;
    if (!fuse_prompts(r, &hash)) return 1;
    fuse_plan(r);
    for (int i = 0; i < r->count && !r->failed; i++) {
        stage *t = &r->stages[i];
        settings check = unset;
        const command *c = find_command(t->argv[0]);
        const int code = parse(c, t->argc - 1, t->argv + 1, &check);   /* before anything is done */
        if (code) return code;
        t->line = stage_line(r, t, false);
        if (strcmp(t->argv[0], "train")) continue;
        const bool sft = check.method == WRPO_METHOD_SFT;
        const wrpo_train_desc d = train_desc(&check);
        check_steps(z, sft ? "SFT (--sft-options)" : t->out, &d, (int64_t)r->part[sft ? FOR_SFT : FOR_PREFERENCES]);
    }
    if (r->part[HELD_OUT] > 0 && r->part[HELD_OUT] < FEW)
        complain("warning: --heldout: %.0f prompts are few to tell the model before from the one after",
                 r->part[HELD_OUT]);
    if (r->failed) return complain("out of memory");
    if (!fuse_log_read(r, hash)) return 1;
    for (int i = 0; i < r->count; i++) todo += r->stages[i].done ? 0 : r->stages[i].made + r->stages[i].read;
    if (todo > 0 && !fuse_pace(r, &made, &read)) return 1;
    printf("target       %s, %s parameters\n", s->model, count_text((int64_t)r->target).s);
    for (int i = 0; i < r->sources; i++)
        printf("source       %s, %s parameters: %s\n", r->name[i], count_text((int64_t)r->parameters[i]).s, r->dir[i]);
    printf("prompts      %s for SFT, %s for preferences, %s held out", grouped((int64_t)r->part[FOR_SFT]).s,
           grouped((int64_t)r->part[FOR_PREFERENCES]).s, grouped((int64_t)r->part[HELD_OUT]).s);
    if (r->again) printf("; %s have the text of an earlier one, and are in its part", grouped(r->again).s);
    printf("\n");
    if (todo > 0)
        printf("pace         the target makes %.0f tokens a second and reads %.0f\n", made / r->target,
               read / r->target);
    fuse_print(r, made, read);
    if (s->dry_run) return printf("dry run      nothing is written\n"), 0;
    static const char *const folders[] = {"", "/sources", "/heldout"};
    for (int i = 0; i < (heldout_of(s) > 0 ? 3 : 2); i++)
        if (!output_dir(fuse_text(r, "%s%s", s->out, folders[i]), &none)) return 1;
    for (int64_t k = 1; k <= (s->rounds ? s->rounds : 1); k++)
        if (!output_dir(fuse_text(r, "%s/round-%lld", s->out, (long long)k), &none)) return 1;
    if (fuse_run(r, hash)) return 1;
    printf("\n%s/round-%lld/model: the fused %s\n", s->out, (long long)(s->rounds ? s->rounds : 1),
           fuse_has_adapter(r) ? "target's adapter" : "target");
    return 0;
}
/* What the stage of SFT reads and writes is not for --sft-options to say. */
static bool sft_options_fit(const char *text) {
    static const char sets[] =
        "--model --data --out --method --ref --resume --config --adapter --dry-run --help " NEW_ADAPTER;
    for (const char *p = text + strspn(text, " "); *p;) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p, "= "), p);
        if (listed(sets, name)) return complain("--sft-options: want no %s, which fuse sets itself", name), false;
        p += strcspn(p, " ");
        p += strspn(p, " ");
    }
    return true;
}
static int run_fuse(const settings *s, session *z) {
    recipe r = {.s = s, .z = z};
    if (s->sft_options && !sft_options_fit(s->sft_options)) return 1;
    if (s->method == WRPO_METHOD_SFT)
        return complain("--method: want a preference method, found sft; the stage of SFT takes --sft-options");
    if (s->lora_r && s->adapter) return complain("fuse: want either --lora-r, a new adapter, or --adapter");
    catch_signals();
    const int code = fuse(&r);
    for (int i = 0; i < r.n_texts; i++) free(r.texts[i]);
    free(r.texts);
    free(r.stages);
    return code;
}

/* ---- the demo: the paper in miniature. Everything is made here; the steps are the commands above.

   Three sources of different families and tokenizers each work out one kind of problem, digit by digit, and guess at
   the others. The target has learned to work all of them out, then to answer at once, which is mostly wrong. An exact
   checker takes the place of a reward model: 1 for a right answer, up to 0.3 for digits in their places. ---- */
typedef struct demo_model {
    const char *name, *family, *config; /* config: what the family's config.json says beyond the common keys */
    const char *user, *bot, *end;                      /* its special tokens */
    const char *so;                                    /* its words for "therefore" */
    int skill;                                         /* what it works out; 3: the target */
} demo_model;
static const demo_model demo_models[] = {
    {"plus", "phi3",
     "\"rope_scaling\": null, \"sliding_window\": null, \"original_max_position_embeddings\": 128, \"pad_token_id\": "
     "null",
     "<|user|>", "<|assistant|>", "<|end|>", "so", 0},
    {"minus", "qwen2", "\"use_sliding_window\": false, \"sliding_window\": null, \"max_window_layers\": 2",
     "<|im_start|>", "<|im_sep|>", "<|im_end|>", "which gives", 1},
    {"times", "gemma2",
     "\"hidden_activation\": \"gelu_pytorch_tanh\", \"query_pre_attn_scalar\": 24, \"attn_logit_softcapping\": 50.0, "
     "\"final_logit_softcapping\": 30.0, \"sliding_window\": 64",
     "<start_of_turn>user", "<start_of_turn>model", "<end_of_turn>", "thus", 2},
    {"target", "llama", "\"rope_scaling\": null", "<|start|>", "<|answer|>", "<|eot_id|>", NULL, 3}};
enum { DEMO_SOURCES = 3, DEMO_BATCH = 32 };
typedef struct demo_size {
    int prompts, heldout, source_steps, target_steps;
} demo_size; /* steps: of what a model learns before the story begins */
static const demo_size demo_sizes[] = {{1500, 300, 500, 1600}, {240, 60, 60, 200}};          /* the demo; --quick */

typedef struct demo_problem { int skill, a, b, wording; } demo_problem;
static const char demo_signs[] = "+-*";
static uint64_t demo_state;
static int demo_random(int n) {      /* the upper bits of a 64-bit congruential generator (Knuth's constants) */
    demo_state = demo_state * 6364136223846793005u + 1442695040888963407u;
    return (int)((demo_state >> 33) % (uint64_t)n);
}
static demo_problem demo_make(int skill) {
    const int a = 10 + demo_random(90), b = skill == 2 ? 2 + demo_random(8) : 10 + demo_random(90);
    return skill == 1 && a < b ? (demo_problem){skill, b, a, demo_random(6)}
                               : (demo_problem){skill, a, b, demo_random(6)};
}
static int demo_answer(int skill, int a, int b) { return skill == 0 ? a + b : skill == 1 ? a - b : a * b; }
static void demo_question(const demo_problem *p, char *out, size_t size) {
    static const char *const words[3][6][3] = {/* before a, between, after b */
                                               {{"", " + ", " = ?"},
                                                {"add ", " and ", ""},
                                                {"what is ", " plus ", " ?"},
                                                {"the sum of ", " and ", " ?"},
                                                {"", " and ", " make what ?"},
                                                {"to ", " add ", ""}},
                                               {{"", " - ", " = ?"},
                                                {"what is ", " minus ", " ?"},
                                                {"", " less ", " ?"},
                                                {"from ", " take ", ""},
                                                {"", " minus ", " is what ?"},
                                                {"", " without ", " ?"}},
                                               {{"", " * ", " = ?"},
                                                {"what is ", " times ", " ?"},
                                                {"", " times ", " ?"},
                                                {"the product of ", " and ", " ?"},
                                                {"multiply ", " by ", ""},
                                                {"how much is ", " by ", " ?"}}};
    const char *const *w = words[p->skill][p->wording];
    snprintf(out, size, "%s%d%s%d%s", w[0], p->a, w[1], p->b, w[2]);
}
/* The answer in a model's words: worked out, so, 13; or 13. */
static void demo_reply(const demo_problem *p, const char *so, bool worked, char *out, size_t size) {
    const int a = p->a, b = p->b, answer = demo_answer(p->skill, a, b), borrow = a % 10 < b % 10;
    size_t n = 0;
    if (worked && p->skill == 0)
        n = (size_t)snprintf(out, size, "%d + %d = %d , %d + %d%s = %d , %s ", a % 10, b % 10, a % 10 + b % 10, a / 10,
                             b / 10, a % 10 + b % 10 > 9 ? " + 1" : "", answer / 10, so);
    if (worked && p->skill == 1)
        n = (size_t)snprintf(out, size, "%d - %d = %d , %d - %d%s = %d , %s ", a % 10 + 10 * borrow, b % 10,
                             answer % 10, a / 10, b / 10, borrow ? " - 1" : "", answer / 10, so);
    if (worked && p->skill == 2)
        n = (size_t)snprintf(out, size, "%d * %d = %d , %d * %d = %d , %d + %d = %d , %s ", a % 10, b, a % 10 * b,
                             a / 10, b, a / 10 * b, a / 10 * b, a % 10 * b / 10, answer / 10, so);
    snprintf(out + n, size - n, "%d", answer);
}
/* The checker. The problem is in the prompt's id: "12: 47 + 85". Only the last word counts. */
static double demo_reward(const char *id, const char *text, size_t n) {
    int a, b, same = 0;
    char sign, want[16];
    if (sscanf(id, "%*d: %d %c %d", &a, &sign, &b) != 3) return 0;
    snprintf(want, sizeof want, "%d", demo_answer((int)(strchr(demo_signs, sign) - demo_signs), a, b));
    while (n && text[n - 1] == ' ') n--;
    size_t from = n, size = strlen(want);
    while (from && text[from - 1] != ' ') from--;
    if (n - from != size) return 0;
    for (size_t i = 0; i < size; i++) same += text[from + i] == want[i];
    return same == (int)size ? 1 : 0.3 * same / (double)size;
}
static FILE *demo_file(const char *dir, const char *name) {
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return fopen(path, "wb");
}
/* A small tokenizer: bytes, spelled as GPT-2 spells them, and merges that build digits and most of the demo's words;
   which words differs from model to model, as do the special tokens. */
static bool demo_tokenizer(FILE *f, const demo_model *m, int *vocabulary) {
    static const char *const words[] = {"what", " is",   " plus", " minus",   " times",   " and",     "add",
                                        " add", "the",   " sum",  " of",      " make",    " what",    "to",
                                        "from", " take", " less", " without", " product", "multiply", " by",
                                        "how",  " much", " so",   " which",   " gives",   " thus"};
    static char made[160][64], merges[160][96];
    int count = 0;
    for (int i = -16; i < (int)(sizeof words / sizeof *words); i++) {
        char single[3] = {' ', "0123456789+-*=,?"[i < 0 ? i + 16 : 0], 0};
        const char *w = i < 0 ? single : words[i];
        char token[64] = "";
        if (i >= 0 && i % 9 == m->skill) continue;
        for (size_t k = 0; w[k]; k++) {
            char piece[8], next[64];
            bool known = k == 0;
            snprintf(piece, sizeof piece, w[k] == ' ' ? "\\u0120" : "%c", w[k]);
            snprintf(next, sizeof next, "%.40s%s", token, piece);
            for (int j = 0; j < count; j++) known = known || !strcmp(made[j], next);
            if (!known)
                snprintf(merges[count], sizeof *merges, "\"%s %s\"", token, piece),
                    snprintf(made[count++], sizeof *made, "%s", next);
            snprintf(token, sizeof token, "%s", next);
        }
    }
    const char *const specials[] = {m->user, m->bot, m->end};
    fputs("{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [", f);
    for (int i = 0; i < 3; i++)
        fprintf(f,
                "%s\n {\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                "\"normalized\": false, \"special\": true}",
                i ? "," : "", 256 + count + i, specials[i]);
    fputs("],\n \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
          "\"trim_offsets\": true, \"use_regex\": true},\n"
          " \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
          "\"trim_offsets\": true, \"use_regex\": true},\n"
          " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": "
          "null, \"end_of_word_suffix\": null,\n"
          "  \"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": false, \"merges\": [",
          f);
    for (int i = 0; i < count; i++) fprintf(f, "%s%s", i ? ", " : "", merges[i]);
    fputs("], \"vocab\": {", f);
    for (int byte = 0, shifted = 256; byte < 256; byte++) {
        const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        fprintf(f, "%s\"\\u%04x\": %d", byte ? ", " : "", (unsigned)(visible ? byte : shifted++), byte);
    }
    for (int i = 0; i < count; i++) fprintf(f, ", \"%s\": %d", made[i], 256 + i);
    fputs("}}}\n", f);
    *vocabulary = 256 + count + 3;
    return fclose(f) == 0;
}
static bool demo_checkpoint(const char *folder, const demo_model *m) {
    char dir[4200];
    int vocabulary;
    snprintf(dir, sizeof dir, "%s/%s-new", folder, m->name);
    if (mkdir(dir, 0777) != 0) return false;
    FILE *f = demo_file(dir, "tokenizer.json");
    if (!f || !demo_tokenizer(f, m, &vocabulary) || !(f = demo_file(dir, "tokenizer_config.json"))) return false;
    fprintf(f,
            "{\"tokenizer_class\": \"PreTrainedTokenizerFast\", \"eos_token\": \"%s\", \"chat_template\": \"{%% for m "
            "in messages %%}{%% if m['role'] == 'user' %%}%s{{ m['content'] }}%s"
            "{%% else %%}{{ m['content'] }}%s{%% endif %%}{%% endfor %%}\"}\n",
            m->end, m->user, m->bot, m->end);
    if (fclose(f) || !(f = demo_file(dir, "config.json"))) return false;
    fprintf(f,
            "{\"architectures\": [\"%c%sForCausalLM\"], \"model_type\": \"%s\", \"vocab_size\": %d, \"hidden_size\": "
            "96, \"intermediate_size\": 192, \"num_hidden_layers\": 2,\n"
            " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 24, \"max_position_embeddings\": "
            "128, \"rope_theta\": 10000.0, \"rms_norm_eps\": 1e-5,\n"
            " \"hidden_act\": \"%s\", \"initializer_range\": 0.05, \"tie_word_embeddings\": true, \"torch_dtype\": "
            "\"float32\", \"bos_token_id\": null, \"eos_token_id\": %d,\n %s}\n",
            m->family[0] - 32, m->family + 1, m->family, vocabulary,
            strcmp(m->family, "gemma2") ? "silu" : "gelu_pytorch_tanh", vocabulary - 1, m->config);
    return fclose(f) == 0;
}
/* What a model has seen before the story begins, in this order: a source works out its own skill and answers the others
   at once; the target works out most of three quarters and answers at once most of the rest. No held-out problem is
   among them. */
static bool demo_pretraining(const char *folder, const demo_model *m, int count, bool (*held)[100][100]) {
    char name[64], question[80], reply[128];
    snprintf(name, sizeof name, "%s-new/data.jsonl", m->name);
    FILE *f = demo_file(folder, name);
    if (!f) return false;
    for (int i = 0; i < count;) {
        const bool target = m->skill == DEMO_SOURCES;
        const int skill = target || demo_random(10) < 2 ? demo_random(3) : m->skill, so = demo_random(DEMO_SOURCES);
        const demo_problem p = demo_make(skill);
        const bool worked = demo_random(100) < (target ? i < count / 4 * 3 ? 70 : 3 : skill == m->skill ? 100 : 10);
        if (held[p.skill][p.a][p.b]) continue;
        demo_question(&p, question, sizeof question),
            demo_reply(&p, target ? demo_models[so].so : m->so, worked, reply, sizeof reply);
        fprintf(f,
                "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}, {\"role\": \"assistant\", \"content\": "
                "\"%s\"}]}\n",
                question, reply);
        i++;
    }
    return fclose(f) == 0;
}
static bool demo_prompts(const char *folder, const char *name, int count,
                         bool (*held)[100][100]) { /* problems that are new, marked as known */
    char question[80];
    FILE *f = demo_file(folder, name);
    if (!f) return false;
    for (int i = 0; i < count;) {
        const demo_problem p = demo_make(i % 3);
        if (held[p.skill][p.a][p.b]) continue;
        held[p.skill][p.a][p.b] = true;
        demo_question(&p, question, sizeof question);
        fprintf(f, "{\"prompt_id\": \"%d: %d %c %d\", \"prompt\": \"%s\"}\n", i++, p.a, demo_signs[p.skill], p.b,
                question);
    }
    return fclose(f) == 0;
}
/* The reward model's part: candidates in, the same with rewards out. An answer to a held-out problem without text is a
   wrong one, where select leaves such candidates out. */
static int demo_score(session *z, const char *folder, const char *name) {
    char in_path[4300], out_path[4300];
    lines in;
    output out;
    wrpo_json *line;
    int code;
    int64_t count = 0;
    const bool last = !strncmp(name, "answers-", 8);
    snprintf(in_path, sizeof in_path, "%s/%s.jsonl", folder, name),
        snprintf(out_path, sizeof out_path, "%s/%s-scored.jsonl", folder, name);
    if (!lines_open(&in, in_path)) return 1;
    if (!output_open(&out, out_path)) return free(in.data), 1;
    while ((code = lines_next(z, &in, true, &line)) == 1) {
        const wrpo_json *id = wrpo_json_get(line, "prompt_id");
        print_member(z, out.f, "{", "prompt_id", id);
        print_member(z, out.f, ", ", "prompt", wrpo_json_get(line, "prompt"));
        for (int list = 0; list < 2; list++) {
            const wrpo_json *all = wrpo_json_get(line, list ? "target" : "sources");
            if (!all) continue;
            fprintf(out.f, ", \"%s\": [", all->key);
            for (const wrpo_json *v = all->child; v; v = v->next, count++) {
                const wrpo_json *text = wrpo_json_get(v, "content");
                print_member(z, out.f, "{", "model", wrpo_json_get(v, "model"));
                if (last && strspn(text->text, " ") == text->size) fputs(", \"content\": \"(nothing)\"", out.f);
                else print_member(z, out.f, ", ", "content", text);
                fprintf(out.f, ", \"reward\": %.6g}%s", demo_reward(id->text, text->text, text->size),
                        v->next ? ", " : "");
            }
            fputs("]", out.f);
        }
        fputs("}\n", out.f);
        wrpo_json_free(z->ctx, line);
    }
    free(in.data);
    if (!output_close(&out, code == 0) || code) return 1;
    printf("the checker scored %s responses: %s-scored.jsonl\n", grouped(count).s, name);
    return 0;
}
/* Runs a command line as if it had been typed: words of `line` separated by spaces, "@/" standing for the demo's
   folder. One thread unless told otherwise: the models are too small to gain from more. */
static int demo_call(const settings *s, const char *folder, const char *format, ...) {
    char line[1024], words_of[8192], *argv[64];
    int argc = 0;
    size_t n = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    printf("\n$ wrpo");
    for (const char *p = line; *p && argc < 60; p += strspn(p, " ")) {
        const size_t size = strcspn(p, " "), cut = *p == '@' ? 2 : 0;
        const int k = snprintf(words_of + n, sizeof words_of - n, "%s%s%.*s", cut ? folder : "", cut ? "/" : "",
                               (int)(size - cut), p + cut);
        if (k < 0 || n + (size_t)k + 64 > sizeof words_of) return complain("%s: the path is too long", folder);
        printf(" %.*s", (int)(size - cut), p + cut);
        argv[argc++] = words_of + n;
        n += (size_t)k + 1, p += size;
    }
    printf("\n");
    fflush(stdout);
    char threads[32], device[] = "--device=cuda";
    snprintf(threads, sizeof threads, "--threads=%lld", (long long)(s->threads ? s->threads : 1));
    argv[argc++] = threads;
    if (s->device == 1 && strncmp(line, "init", 4) && strncmp(line, "split", 5) && strncmp(line, "select", 6))
        argv[argc++] = device;
    return interrupted ? 1 : dispatch(argc, argv);
}
/* A row of the table: a model's answers to the held-out problems. Shares are of right answers, in percent. */
typedef struct demo_row { const char *dir, *name; double score, half, skill[3], win, win_half, length; } demo_row;
static const demo_row demo_rows[] = {{"plus", "source, adds", 0, 0, {0}, 0, 0, 0},
                                     {"minus", "source, subtracts", 0, 0, {0}, 0, 0, 0},
                                     {"times", "source, multiplies", 0, 0, {0}, 0, 0, 0},
                                     {"target", "target", 0, 0, {0}, 0, 0, 0},
                                     {"sft", "SFT", 0, 0, {0}, 0, 0, 0},
                                     {"simpo", "SFT-SimPO", 0, 0, {0}, 0, 0, 0},
                                     {"dpo", "SFT-DPO", 0, 0, {0}, 0, 0, 0},
                                     {"wrpo-constant", "SFT-WRPO, constant alpha", 0, 0, {0}, 0, 0, 0},
                                     {"wrpo", "SFT-WRPO", 0, 0, {0}, 0, 0, 0}};
enum {
    DEMO_ROWS = sizeof demo_rows / sizeof *demo_rows,
    DEMO_TARGET = 3,
    DEMO_SFT = 4,
    DEMO_SIMPO,
    DEMO_DPO,
    DEMO_CONSTANT,
    DEMO_WRPO
};
static int demo_measure(session *z, const char *folder, demo_row *r) {
    char path[4300], sft[4300];
    lines in;
    wrpo_json *line;
    int code;
    double n = 0, squares = 0, count[3] = {0};
    snprintf(path, sizeof path, "%s/answers-%s-scored.jsonl", folder, r->dir),
        snprintf(sft, sizeof sft, "%s/answers-sft-scored.jsonl", folder);
    if (!lines_open(&in, path)) return 1;
    while ((code = lines_next(z, &in, true, &line)) == 1) {
        const wrpo_json *all = wrpo_json_get(line, "target");
        double right = 0;
        for (const wrpo_json *v = all->child; v; v = v->next)
            right += wrpo_json_get(v, "reward")->number == 1 ? 100 / (double)all->count : 0;
        const int skill = (int)n % 3;                  /* as demo_prompts wrote them */
        n++, r->score += right, squares += right * right, r->skill[skill] += right, count[skill]++;
        wrpo_json_free(z->ctx, line);
    }
    free(in.data);
    if (code) return 1;
    r->score /= n, r->half = 1.96 * sqrt((squares / n - r->score * r->score) / n);
    for (int k = 0; k < 3; k++) r->skill[k] /= count[k];
    wrpo_winrate_stats w;
    if (wrpo_winrate(z->ctx, &(wrpo_winrate_desc){.a = path, .b = sft}, &w)) return fail(z);
    r->win = 100 * w.rate, r->win_half = 50 * (w.high - w.low), r->length = w.length[0];
    return 0;
}
/* The table, for the terminal or as HTML. */
static void demo_table(FILE *f, const demo_row *rows, bool html, const char *caption) {
    fprintf(f, html ? "<h2>%s</h2><div class=\"scroll\"><table><thead><tr>" : "\n%s\n\n", caption);
    static const char *const heads[] = {"model",    "right answers, %",    "sums",      "differences",
                                        "products", "wins against SFT, %", "characters"};
    static const int widths[] = {-26, 18, 8, 13, 10, 21, 12};
    for (int i = 0; i < 7; i++)
        if (html) fprintf(f, "<th>%s</th>", heads[i]);
        else fprintf(f, "%*s", widths[i], heads[i]);
    if (!html) fprintf(f, "\n");
    fputs(html ? "</tr></thead><tbody>\n" : "", f);
    for (int i = 0; i < DEMO_ROWS; i++) {
        const demo_row *r = &rows[i];
        fprintf(f,
                html ? "<tr><td>%s</td><td>%.1f &plusmn; %.1f</td><td>%.1f</td><td>%.1f</td><td>%.1f</td><td>%.1f "
                       "&plusmn; %.1f</td><td>%.1f</td></tr>\n"
                     : "%-26s%11.1f +-%4.1f%8.1f%13.1f%10.1f%14.1f +-%4.1f%12.1f\n",
                r->name, r->score, r->half, r->skill[0], r->skill[1], r->skill[2], r->win, r->win_half, r->length);
    }
    fputs(html ? "</tbody></table></div>\n" : "", f);
}
static bool demo_make_all(const char *folder, int64_t seed, const demo_size *size) {
    static bool known[3][100][100], held[3][100][100];
    memset(known, 0, sizeof known);
    demo_state = (uint64_t)seed * 0x9E3779B97F4A7C15u;
    for (int i = 0; i < 8; i++) demo_random(2);
    if (!demo_prompts(folder, "heldout.jsonl", size->heldout, known)) return false;
    memcpy(held, known, sizeof held);
    if (!demo_prompts(folder, "prompts.jsonl", size->prompts, known)) return false;
    for (int i = 0; i <= DEMO_SOURCES; i++)
        if (!demo_checkpoint(folder, &demo_models[i]) ||
            !demo_pretraining(folder, &demo_models[i],
                              DEMO_BATCH * (i < DEMO_SOURCES ? size->source_steps : size->target_steps), held))
            return false;
    return true;
}
#define DEMO_TRY(call) do { if (call) return 1; } while (0)
static int demo_seed(const settings *s, session *z, const char *folder, int64_t seed, demo_row *rows) {
    const long long S = (long long)seed;
    if (!demo_make_all(folder, seed, &demo_sizes[s->quick]))
        return complain("%s: cannot be written: %s", folder, strerror(errno));
    printf("\n# what the models know before the story begins\n");
    for (int i = 0; i <= DEMO_SOURCES; i++) {
        const char *name = demo_models[i].name;
        DEMO_TRY(demo_call(s, folder,
                           "init --config @/%s-new/config.json --tokenizer @/%s-new --out @/%s-init --seed %lld", name,
                           name, name, S * 10 + i));
        DEMO_TRY(demo_call(s, folder,
                           "train --method sft --model @/%s-init --data @/%s-new/data.jsonl --out @/%s --learning-rate "
                           "4e-3 --batch-size %d --no-shuffle --micro-tokens 4096 --log-steps 200",
                           name, name, name, DEMO_BATCH));
    }
    printf("\n# the sources answer; a third of the prompts is for SFT on the best answers\n");
    DEMO_TRY(demo_call(s, folder, "split --in @/prompts.jsonl --out @/parts --sft 1/3 --seed %lld", S));
    for (int i = 0; i < DEMO_SOURCES; i++)
        for (int po = 0; po < 2; po++) {
            char name[64];
            snprintf(name, sizeof name, "%s-%s", demo_models[i].name, po ? "wrpo" : "sft");
            DEMO_TRY(demo_call(s, folder,
                               "sample --model @/%s --prompts @/parts/%s.jsonl --as source --n 3 --max-tokens 48 "
                               "--batch 128 --seed %lld --out @/%s.jsonl",
                               demo_models[i].name, po ? "wrpo" : "sft", S, name));
            DEMO_TRY(demo_score(z, folder, name));
        }
    DEMO_TRY(demo_call(s, folder,
                       "select --form sft --in @/plus-sft-scored.jsonl @/minus-sft-scored.jsonl "
                       "@/times-sft-scored.jsonl --out @/sft.jsonl"));
    DEMO_TRY(demo_call(s, folder,
                       "train --method sft --model @/target --data @/sft.jsonl --out @/sft --learning-rate 2e-4 "
                       "--batch-size 32 --log-steps 10"));
    printf("\n# the target answers the others; preference training begins at SFT four times\n");
    DEMO_TRY(demo_call(s, folder,
                       "sample --model @/sft --prompts @/parts/wrpo.jsonl --as target --n 5 --max-tokens 48 --batch "
                       "128 --seed %lld --out @/target-wrpo.jsonl",
                       S));
    DEMO_TRY(demo_score(z, folder, "target-wrpo"));
    DEMO_TRY(demo_call(s, folder,
                       "select --in @/plus-wrpo-scored.jsonl @/minus-wrpo-scored.jsonl @/times-wrpo-scored.jsonl "
                       "@/target-wrpo-scored.jsonl --out @/quads.jsonl"));
    static const char *const methods[][2] = {
        /* rate and beta: each method's best of 16 on seeds 1 to 3, tests/bench/bench_demo.sh */
        {"simpo", "--method simpo --beta 1 --learning-rate 5e-5"},
        {"dpo", "--method dpo --beta 1 --learning-rate 5e-4"},
        {"wrpo-constant", "--alpha 0.5 --alpha-schedule constant --beta 1 --learning-rate 5e-4"},
        {"wrpo", "--alpha 0.5 --beta 1 --learning-rate 5e-4"}};
    for (int i = 0; i < 4; i++)
        DEMO_TRY(demo_call(s, folder,
                           "train %s --model @/sft --data @/quads.jsonl --out @/%s --batch-size 32 --epochs 4 "
                           "--log-steps 50 --seed %lld",
                           methods[i][1], methods[i][0], S));
    printf("\n# held-out problems\n");
    for (int i = 0; i < DEMO_ROWS; i++) {
        char name[64];
        snprintf(name, sizeof name, "answers-%s", rows[i].dir);
        DEMO_TRY(demo_call(s, folder,
                           "sample --model @/%s --prompts @/heldout.jsonl --as target --n 3 --max-tokens 48 --batch "
                           "128 --seed %lld --out @/%s.jsonl",
                           rows[i].dir, S, name));
        DEMO_TRY(demo_score(z, folder, name));
    }
    for (int i = 0; i < DEMO_ROWS; i++) DEMO_TRY(demo_measure(z, folder, &rows[i]));
    return 0;
}
static bool demo_ordered(const demo_row *r) {
    return r[DEMO_TARGET].score < r[DEMO_SFT].score && r[DEMO_SFT].score < r[DEMO_DPO].score &&
           r[DEMO_DPO].score < r[DEMO_WRPO].score;
}
static int demo_report(session *z, const char *folder, const demo_row *rows, const char *path, const char *caption) {
    char dirs[5][4300], *html = NULL;
    const char *list[5];
    FILE *f = tmpfile();
    size_t size;
    for (int i = 0; i < 5; i++)
        snprintf(dirs[i], sizeof dirs[i], "%s/%s", folder, rows[DEMO_SFT + i].dir), list[i] = dirs[i];
    if (!f) return complain("a temporary file cannot be made: %s", strerror(errno));
    fputs("<p>Three sources of different families and tokenizers each work out one kind of problem and guess at the "
          "others; the target knows how to work all of them out and mostly does not. "
          "An exact checker is the reward model. SFT is on the sources' best answers to a third of the prompts; the "
          "others go on from there with the target's own best and worst answers, WRPO with the sources' as well.</p>\n",
          f);
    demo_table(f, rows, true, caption);
    rewind(f);
    html = read_all(f, &size);
    fclose(f);
    char *text = html ? realloc(html, size + 1) : NULL;
    if (!text) return free(html), complain("out of memory");
    text[size] = 0;
    const int code = report(z, list, 5, path, "WRPO in miniature", text);
    free(text);
    return code;
}
static int run_demo(const settings *s, session *z) {
    static const double t95[] = {0,     12.706, 4.303, 3.182, 2.776,
                                 2.571, 2.447,  2.365, 2.306, 2.262}; /* Student's, by degrees of freedom */
    const int64_t seeds = s->seeds ? s->seeds : 1, first = s->seed ? s->seed : 1;
    const char *path = s->out ? s->out : "report.html";
    const time_t begin = time(NULL);
    demo_row mean[DEMO_ROWS], *all = calloc((size_t)seeds * DEMO_ROWS, sizeof *all);
    int code = all ? 0 : complain("out of memory");
    char folder[4096], caption[128];
    int64_t ordered = 0;
    output report;
    catch_signals();
    if (!code && output_open(&report, path))
        output_close(&report, false); /* it can be written: known before the work */
    else code = 1;
    for (int64_t i = 0; i < seeds && !code; i++) {
        demo_row *rows = all + i * DEMO_ROWS;
        memcpy(rows, demo_rows, sizeof demo_rows);
        if (!scratch_make(folder, sizeof folder, s->keep_folder)) { code = 1; break; }
        printf("WRPO in miniature, seed %lld. Paths are relative to %s%s\n", (long long)(first + i), folder,
               s->keep_folder ? "" : ", which is removed at the end (--keep-folder)");
        snprintf(caption, sizeof caption,
                 "%d held-out problems, three answers each, 95 %% intervals over problems; seed %lld",
                 demo_sizes[s->quick].heldout, (long long)(first + i));
        code = demo_seed(s, z, folder, first + i, rows);
        if (!code) demo_table(stdout, rows, false, caption), ordered += demo_ordered(rows);
        if (!code)
            printf("\nThe paper's order, target < SFT < SFT-DPO < SFT-WRPO: %s.\n",
                   demo_ordered(rows) ? "so it is here" : "NOT so here");
        if (!code && i == 0) code = demo_report(z, folder, rows, path, caption);
        fflush(stdout);
        if (s->keep_folder) printf("kept: %s\n", folder);
        else scratch_drop(folder);
    }
    if (!code && seeds > 1) {        /* over seeds: mean, and an interval from their spread */
        memcpy(mean, demo_rows, sizeof mean);
        const double t = seeds <= 10 ? t95[seeds - 1] : 1.96 + 2.7 / (double)(seeds - 1), n = (double)seeds;
        for (int r = 0; r < DEMO_ROWS; r++) {
            double score = 0, win = 0;
            for (int64_t i = 0; i < seeds; i++) {
                const demo_row *x = &all[i * DEMO_ROWS + r];
                mean[r].score += x->score / n, mean[r].win += x->win / n, mean[r].length += x->length / n;
                for (int k = 0; k < 3; k++) mean[r].skill[k] += x->skill[k] / n;
            }
            for (int64_t i = 0; i < seeds; i++)
                score += pow(all[i * DEMO_ROWS + r].score - mean[r].score, 2),
                    win += pow(all[i * DEMO_ROWS + r].win - mean[r].win, 2);
            mean[r].half = t * sqrt(score / (n - 1) / n), mean[r].win_half = t * sqrt(win / (n - 1) / n);
        }
        snprintf(caption, sizeof caption, "mean over seeds %lld to %lld, 95 %% intervals over seeds", (long long)first,
                 (long long)(first + seeds - 1));
        demo_table(stdout, mean, false, caption);
        static const struct {
            int above, below;
        } pairs[] = {{DEMO_SFT, DEMO_TARGET},   {DEMO_DPO, DEMO_SFT},       {DEMO_WRPO, DEMO_DPO},
                     {DEMO_CONSTANT, DEMO_DPO}, {DEMO_CONSTANT, DEMO_WRPO}, {DEMO_SIMPO, DEMO_SFT}};
        printf("\nThe paper's order, target < SFT < SFT-DPO < SFT-WRPO, on %lld of %lld seeds. Seed by seed, in points "
               "of right answers:\n",
               (long long)ordered, (long long)seeds);
        for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
            double gain = 0, spread = 0;
            int above = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int64_t i = 0; i < seeds; i++) {
                    const double d =
                        all[i * DEMO_ROWS + pairs[p].above].score - all[i * DEMO_ROWS + pairs[p].below].score;
                    if (pass) spread += (d - gain) * (d - gain), above += d > 0;
                    else gain += d / n;
                }
            printf("%-26s above %-12s%8.1f +-%5.1f   on %d of %lld\n", demo_rows[pairs[p].above].name,
                   demo_rows[pairs[p].below].name, gain, t * sqrt(spread / (n - 1) / n), above, (long long)seeds);
        }
    }
    free(all);
    if (!code)
        printf("\n%s: the table and the curves of training; open it in a browser.   %.0f seconds\n", path,
               difftime(time(NULL), begin));
    return code;
}

/* ---- main ---- */
#define LOSS "--preset --method --pair --alpha --beta --label-smoothing --gamma-ratio --ipo-sum --fusion --sft-weight "
#define DATA "--data-format --system-message --max-length --max-prompt-length " \
             "--tokenization --sft-on --packing --date --limit "
#define SAMPLING "--system-message --temperature --top-p --top-k --max-tokens --seed --batch --date --device "
static int run_help(const settings *s, session *z), run_completion(const settings *s, session *z);
static const command commands[] = {
    {"init", "", "--config --tokenizer --out", "--seed --save-dtype --max-shard-size --threads --help", run_init,
     "Random weights as a Hugging Face directory: norms 1, biases 0, the others N(0, initializer_range)."},
    {"inspect", "DIR|FILE", "", "--tensors --memory-limit --device --dtype --moments --threads --help", run_inspect,
     "Architecture, parameters, tensors and the bytes a run would need, of a directory or a config.json alone; or the "
     "tensors of a .safetensors file. Exit code 1 if it is not valid."},
    {"tokenize", "", "--model", "--in --out --threads --help", run_tokenize,
     "JSON lines, one for one: {text, special?} -> {ids}; {messages, add_generation_prompt?, kwargs?} -> {text, ids} "
     "or {error}; {ids, skip_special?} -> {text}."},
    {"logprob", "", "--model --data", "--as-source --with --out --adapter " DATA "--device --dtype --threads --help",
     run_logprob,
     "One line a record: the log-probs of its responses, their scored tokens, and the tokens of the prompt. With "
     "--as-source: the records themselves, for infifpo."},
    {"train", "", "--model --data --out",
     LOSS DATA "--micro-tokens --alpha-schedule --learning-rate --lr-scheduler --warmup-ratio --weight-decay "
               "--max-grad-norm --batch-size --accumulation --recompute --memory-limit "
               "--epochs --max-steps --seed --no-shuffle --ref --eval-data --eval-split --eval-steps --log-steps "
               "--save-steps --keep --save-best --tensorboard --dry-run --config "
               "--lora-r --lora-alpha --lora-dropout --lora-target --rslora --adapter "
               "--resume --device --dtype --moments --save-dtype --save-rounding --max-shard-size --save-eos --lanes "
               "--threads "
               "--help",
     run_train,
     "Trains a model and saves it, with metrics.jsonl, in the directory --out. Ctrl-C stops cleanly and leaves a "
     "checkpoint, from which --resume goes on to the same bits."},
    {"merge", "", "--model --adapter --out",
     "--save-dtype --save-rounding --max-shard-size --save-eos --threads --help",
     run_merge,
     "A model and its adapter as one model: W + scale B A in place of W, rounded once."},
    {"eval", "", "--model --data",
     LOSS DATA "--adapter --micro-tokens --ref --out --device --dtype --threads --help", run_eval,
     "The metrics of a model on records, as one JSON object."},
    {"generate", "", "--model", "--adapter --prompt --in --out --raw " SAMPLING "--limit --threads --help",
     run_generate,
     "An answer to --prompt, as it comes, or one line for each line of --in: {prompt_id, prompt, content, tokens, "
     "logp, stopped}."},
    {"sample", "", "--model --prompts --as --out",
     "--adapter --n --name --raw --dedup " SAMPLING "--limit --threads --help", run_sample,
     "Several answers to each prompt, as candidates: {prompt_id, prompt, sources|target: [{model, content}]}. The same "
     "command goes on where it was interrupted."},
    {"answer", "", "--model --bench --questions --out",
     "--preset --adapter --name " SAMPLING "--limit --threads --help", run_answer,
     "Answers to the questions of AlpacaEval 2, MT-Bench or Arena-Hard, as their judges read them. Those of MT-Bench "
     "and Arena-Hard take the name of the file for the model's."},
    {"score", "", "--reward-model --in --out",
     "--adapter --rescore --label --micro-tokens --date --device --dtype --threads --help",
     run_score,
     "Gives the responses of a file of candidates, or answers, their rewards by a reward model. Rewards that are there "
     "are kept. The reward model may be a language model with an --adapter that has score.weight."},
    {"select", "", "--in --out", "--form --top --tau --min-gap --max-gap --require --strong --weak --entropy-power "
     "--entropy-scale --threads --help",
     run_select,
     "Candidates with rewards -> records to train on. Lines of several files (--in F F ...) with one prompt_id belong "
     "together."},
    {"split", "", "--in --out", "--sft --heldout --seed --threads --help", run_split,
     "Prompts -> sft.jsonl and wrpo.jsonl in the directory --out, drawn by the seed. Prompts of the same text stay "
     "together: none is in two parts."},
    {"winrate", "", "--a --b",
     "--reward-model --rescore --label --micro-tokens --resamples --seed --date --device --dtype --threads --help",
     run_winrate,
     "How often a's answers have the higher reward, with a bootstrap interval; and the same at equal lengths. "
     "--reward-model scores answers that have no reward."},
    {"fuse", "", "--model --source --reward-model --prompts --out",
     "--n --rounds --sft --heldout --sft-options --dry-run --adapter " NEW_ADAPTER
     SAMPLED SCORED "--form " SELECTED PREFERRED EITHER "--resamples --help",
     run_fuse,
     "The whole recipe: sources and target answer, rewards, SFT, records, preference training, held-out win rates. "
     "Every stage's file stays in --out, and the same command goes on where it was stopped."},
    {"report", "RUN_DIR...", "", "--out --csv --threads --help", run_report,
     "The metrics.jsonl of runs, one over the other, as an HTML file that needs nothing else (report.html), or as a "
     "table (metrics.csv)."},
    {"demo", "", "", "--seed --seeds --out --keep-folder --quick --device --threads --help", run_demo,
     "What `wrpo` alone runs: the paper in miniature, from prompts to a table and report.html."},
    {"help", "[COMMAND]", "", "--help", run_help, "This list, or a command's options."},
    {"completion", "", "", "--help", run_completion,
     "Completion for bash, of commands, options and files: eval \"$(wrpo completion)\"."},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };
static int help(void) {
    printf("wrpo %s: weighted-reward preference optimization of Hugging Face checkpoints\n\nusage: wrpo [COMMAND] "
           "[options]\n\n",
           WRPO_VERSION);
    for (int i = 0; i < N_COMMANDS; i++) printf("  %-10s %s\n", commands[i].name, commands[i].help);
    printf("\nwrpo COMMAND --help lists the options of a command. Exit code: 0, 1 after an error or an interruption, 2 "
           "after wrong usage.\n");
    return 0;
}
static const command *find_command(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(name, commands[i].name)) return &commands[i];
    return NULL;
}
/* Which command; the exit code. */
static int parse_line(const command **of, int argc, char **argv, settings *s) {
    if (argc > 0 && strncmp(argv[0], "--", 2)) {
        const command *c = find_command(argv[0]);
        if (!c) return misuse(*of, "unknown command \"%s\"", argv[0]);
        *of = c;
        argc--, argv++;
    }
    s->command = *of;
    return parse(*of, argc, argv, s);
}
static int run_help(const settings *s, session *z) {
    (void)z;
    if (!s->path) return help();
    const command *c = find_command(s->path);
    if (!c) return misuse(s->command, "unknown command \"%s\"", s->path);
    help_command(c);
    return 0;
}
/* A function of bash that completes commands, options, their words and files. */
static int run_completion(const settings *s, session *z) {
    (void)s, (void)z;
    printf("# wrpo %s: eval \"$(wrpo completion)\" in ~/.bashrc\n_wrpo() {\n"
           "    local at=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words=\n"
           "    COMPREPLY=()\n    case $before in\n", WRPO_VERSION);
    for (int i = 0; i < N_OPTIONS; i++) {
        const option *o = &options[i];
        if (o->kind == FLAG) continue;
        printf("    %s) ", o->name);
        if (o->names) printf("words=\"");
        for (int k = 0; o->names && o->names(k); k++) printf("%s%s", k ? " " : "", o->names(k));
        if (o->names) printf("\" ;;\n");
        else if (!strcmp(o->value, "DIR")) printf("COMPREPLY=($(compgen -d -- \"$at\")); return ;;\n");
        else printf("return ;;\n");                    /* the shell's own: files */
    }
    printf("    *)\n        case $COMP_CWORD:${COMP_WORDS[1]} in\n        1:* | 2:help) words=\"");
    for (int i = 0; i < N_COMMANDS; i++) printf("%s%s", i ? " " : "", commands[i].name);
    printf("\" ;;\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        printf("        *:%s) words=\"", commands[i].name);
        for (int k = 0, n = 0; k < N_OPTIONS; k++)
            if (find_option(&commands[i], options[k].name, strlen(options[k].name)))
                printf("%s%s", n++ ? " " : "", options[k].name);
        printf("\" ;;\n");
    }
    printf("        esac\n"
           "        [ \"$COMP_CWORD\" = 1 ] || [ \"${COMP_WORDS[1]}\" = help ] || [ \"${at#-}\" != \"$at\" ] "
           "|| words= ;;\n    esac\n    COMPREPLY=($(compgen -W \"$words\" -- \"$at\"))\n}\n"
           "complete -o default -F _wrpo wrpo\n");
    return 0;
}
static int dispatch_to(const command *program, int argc, char **argv, settings *s) {
    const command *c = program;
    session z = {.argc = argc, .argv = argv};
    static int depth;                /* the demo and fuse run other commands */
    int code = parse_line(&c, argc, argv, s);
    if (!depth) code = worst(code);
    if (code) return code;
    if (s->help) return c == program ? help() : (help_command(c), 0);
    if (s->version) return printf("wrpo %s\n", WRPO_VERSION), 0;
    if (ranks.ranks > 1 && !depth) together = listed(of_all_ranks, c->name);
    if (ranks.rank && !together) return 0;
    if (c->run == run_init) s->dtype = s->save_dtype;  /* no larger in memory than in the file */
    if (!session_open(&z, s)) return 1;
    depth++;
    code = session_begin(&z, c, s) ? c->run(s, &z) : 1;
    depth--;
    if (together && wrpo_agree(z.ctx, code ? WRPO_E_IO : WRPO_OK, code ? said : NULL) && !code) code = fail(&z);
    session_close(&z);
    session_end(&z, code != 0);
    if (fflush(stdout) != 0 || ferror(stdout))
        code = complain("standard output: cannot be written: %s", strerror(errno));
    return code;
}
static int dispatch(int argc, char **argv) {
    static const char *const of_program =
        "--seed --seeds --out --keep-folder --quick --device --threads --version --help";
    const command program = {"", "", "", of_program, run_demo, ""};    /* wrpo without a command */
    settings s = unset;
    const int code = dispatch_to(&program, argc, argv, &s);
    wrpo_json_free(s.file_ctx, s.file);
    wrpo_close(s.file_ctx);
    return code;
}
int main(int argc, char **argv) {
    catch_bus_errors();
    grow_stack();
#if defined(__linux__) && defined(_OPENMP)
    /* Threads that wait shall sleep: spinning, they keep processors from whoever computes, another program or this one.
       OpenMP reads its policy when it is loaded, so the program begins again with it set; where that cannot be, it just
       goes on. */
    if (!getenv("OMP_WAIT_POLICY") && !setenv("OMP_WAIT_POLICY", "passive", 0)) execv("/proc/self/exe", argv);
#endif
#ifdef WRPO_MPI
    wrpo_error why;
    if (wrpo_mpi_open(&ranks, &why)) return complain("%s", why.text);
    if (ranks.rank && !freopen("/dev/null", "w", stdout)) return 1;
    const int code = dispatch(argc - 1, argv + 1);
#ifdef WRPO_NCCL
    wrpo_nccl_close(&devices);
#endif
    wrpo_mpi_close(&ranks);
    return code;
#else
    return dispatch(argc - 1, argv + 1);
#endif
}
