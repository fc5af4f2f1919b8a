#!/usr/bin/env python3
"""Whole WRPO training runs: `wrpo train` against two trainers in PyTorch. Started by bench_peers.sh, which says how.

    bench_peers.py make    --config NAME --data DATA --work DIR --records N      config, tokenizer and records of a run
    bench_peers.py compare --work DIR --wrpo PATH --dtype f32|bf16 [...]         interleaved runs and the table
    bench_peers.py plain|trl --model DIR --ids FILE ...                          one run of a peer; prints a line of JSON

plain: the authors' procedure on plain PyTorch and transformers: the three responses of a quadruple concatenated into one
forward pass, a reference pass before the training, float32 log-softmax over the logits, their loss, AdamW, clipping.
trl: TRL's DPOTrainer with the WRPO loss put in: a subclass that collates quadruples instead of pairs.

What both are given: the ids of the program's own `clean` tokenization, in the same order, the same weights from the same
files, attention by scaled_dot_product_attention, the fused AdamW of torch, dropout off, no gradient checkpointing, reference
log-probs computed once before training, one quadruple a micro-batch, --threads threads, and MALLOC settings that keep freed
memory (glibc would otherwise return it to the system and fault it in again in every step). The faster of --padded (the
authors' and TRL's way: the three sequences as one padded batch) and one sequence at a time is taken: --rows 3 or 1.
bf16 comes in two kinds: `bf16` (model and optimizer in bfloat16) and `autocast` (float32 masters).

--lora R: all train an adapter of rank R on all linear layers, from the same A and B, which `wrpo train` makes first. The peers
are PEFT's: the reference is the model with its adapter disabled. The base is a bfloat16 file and the arithmetic float32: the
peers load it into float32, `wrpo train` maps it. One more engine, wrpo-full, trains all weights.

Threads that wait sleep (OMP_WAIT_POLICY=passive, unless the environment says otherwise), for all three.

Time: reference pass plus optimizer steps. Imports, loading, tokenizing and saving are not counted, in none of them. Tokens:
prompt + response of all three sequences of every quadruple, for all alike. Memory: peak resident set of the process.
"""
import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIGS = {
    "tiny": {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 16, "max_position_embeddings": 8192, "rope_theta": 10000.0},  # to try the scripts and to compare the losses
    "smollm2": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 100000.0},
    "llama1b": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0,
                "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 8192}},
    "llama8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": False},
}
COMMON = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "initializer_range": 0.02, "hidden_act": "silu",
          "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False}
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


# ---- make ----
def tokenizer(name, data, folder):
    """llama1b, llama8b: Llama-3.2's own. smollm2: GPT-2's, cut to SmolLM2's size (49,152) by leaving out the last merges."""
    os.makedirs(folder, exist_ok=True)
    source = os.path.join(data, "tokenizers", "llama3_2" if name.startswith("llama") else "gpt2")
    if name.startswith("llama"):
        for f in ("tokenizer.json", "tokenizer_config.json"):
            with open(os.path.join(source, f), "rb") as a, open(os.path.join(folder, f), "wb") as b:
                b.write(a.read())
        return
    with open(os.path.join(source, "tokenizer.json"), encoding="utf-8") as f:
        t = json.load(f)
    keep = 49152 - 3
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {k: v for k, v in t["model"]["vocab"].items() if v < keep}
    merges = [m for m in t["model"]["merges"] if (m if isinstance(m, str) else " ".join(m)).replace(" ", "", 1) in vocab]
    t["model"].update(vocab=vocab, merges=merges)
    t["added_tokens"] = [{"id": keep + i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                         for i, s in enumerate(special)]
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(t, f, ensure_ascii=False)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML, "tokenizer_class": "PreTrainedTokenizerFast"}, f)


def make(a):
    sys.path.insert(0, os.path.join(HERE, "..", "golden"))
    import quads

    folder = os.path.join(a.work, "tokenizer")
    tokenizer(a.config, a.data, folder)
    with open(os.path.join(a.work, "config.json"), "w") as f:
        json.dump({**COMMON, **CONFIGS[a.config], "torch_dtype": "float32"}, f, indent=1)
    records = quads.read(os.path.join(a.data, "alpacaeval", "quads.jsonl"), a.records)
    with open(os.path.join(a.work, "train.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    text = quads.Text(folder)
    ids = [quads.clean(text, r, a.max_length, min(1800, a.max_length - 1)) for r in records]
    with open(os.path.join(a.work, "ids.json"), "w") as f:
        json.dump(ids, f)
    lengths = [len(r["prompt"]) + len(y) for r in ids for y in r["responses"]]
    print(f"{a.config}: {len(ids)} quadruples, {sum(lengths)} tokens in {len(lengths)} sequences, longest {max(lengths)}, "
          f"{sum(len(r['prompt']) for r in ids)} prompt tokens (once)")


# ---- what the two peers share ----
def setup(a):
    import torch
    import transformers

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa")
    if a.lora:
        import peft

        model = peft.PeftModel.from_pretrained(model, os.path.join(a.work, "adapter"), is_trainable=True)
    with open(a.ids) as f:
        records = json.load(f)
    return torch, transformers, model, records


def wrpo_loss(torch, beta, alpha, policy, ref):
    """policy, ref: [..., 3] log-probs of (source, target, rejected); the mean loss."""
    s, t, l = (policy - ref).unbind(-1)
    return -torch.nn.functional.logsigmoid(beta * (alpha * s + (1 - alpha) * t - l)).mean()


def batch_of(torch, record, rows):
    """The sequences of a quadruple in batches of `rows`, padded on the right: (ids, mask of the attention, mask of the response)."""
    out = []
    for i in range(0, 3, rows):
        ys = record["responses"][i : i + rows]
        p, n = len(record["prompt"]), len(record["prompt"]) + max(map(len, ys))
        ids = torch.zeros(len(ys), n, dtype=torch.long)
        real, scored = torch.zeros_like(ids), torch.zeros_like(ids)
        for k, y in enumerate(ys):
            ids[k, : p + len(y)] = torch.tensor(record["prompt"] + y)
            real[k, : p + len(y)] = 1
            scored[k, p : p + len(y)] = 1
        out.append((ids, real if len(ys) > 1 else None, scored))
    return out


def result(a, name, seconds, reference, losses, norms):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"name": name, "seconds": seconds, "reference": reference, "peak_mib": peak, "losses": losses, "grad_norms": norms}))


def alpha_at(a, k, steps):
    return a.alpha * k / steps


# ---- the authors' procedure ----
def plain(a):
    torch, transformers, model, records = setup(a)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.dtype == "autocast", cache_enabled=True)

    def logps(record):
        sums = []
        for ids, real, scored in batch_of(torch, record, a.rows):
            with autocast:
                logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits
            per_token = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            sums.append((per_token * scored[:, 1:]).sum(-1))
        return torch.cat(sums)

    if a.compile:
        model.forward = torch.compile(model.forward, dynamic=True)
    model.train()
    steps = math.ceil(len(records) / a.batch_size)
    begin = time.perf_counter()
    with torch.no_grad(), model.disable_adapter() if a.lora else contextlib.nullcontext():
        ref = [logps(r) for r in records]
    reference = time.perf_counter() - begin
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=a.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)
    losses, norms = [], []
    for k in range(steps):
        batch = range(k * a.batch_size, min((k + 1) * a.batch_size, len(records)))
        total = 0.0
        for i in batch:
            loss = wrpo_loss(torch, a.beta, alpha_at(a, k, steps), logps(records[i]), ref[i]) / len(batch)
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    result(a, "plain", time.perf_counter() - begin, reference, losses, norms)


# ---- TRL ----
def trl(a):
    torch, transformers, model, records = setup(a)
    import datasets
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    losses, norms = [], []

    class Trainer(DPOTrainer):
        """A record is a quadruple; "chosen" reference log-probs are two numbers, of the source and of the target."""

        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

        def _set_signature_columns_if_needed(self):
            self._signature_columns = ["record", "ref_chosen_logps", "ref_rejected_logps"]

        def logps(self, model, batches):
            sums = []
            for ids, real, scored in batches:
                out = model(input_ids=ids, attention_mask=real, labels=ids.masked_fill(scored == 0, -100), use_cache=False, fused_lm_head=True)
                sums.append(out.log_probs.sum(1))
            return torch.cat(sums)

        def compute_ref_log_probs(self, model, inputs):
            off = self.accelerator.unwrap_model(model).disable_adapter() if a.lora else contextlib.nullcontext()
            with torch.no_grad(), self.accelerator.autocast(), off:
                y = self.logps(model, inputs["batches"])[None]
            return y[:, :2], y[:, 2]

        def _compute_loss(self, model, inputs, return_outputs):
            ref = torch.cat([inputs["ref"][0], inputs["ref"][1][:, None]], 1)
            return wrpo_loss(torch, a.beta, alpha_at(a, self.state.global_step, self.state.max_steps), self.logps(model, inputs["batches"])[None], ref)

        def log(self, logs, start_time=None):
            if "loss" in logs:
                losses.append(logs["loss"])
                norms.append(float(logs["grad_norm"]))

    def collate(rows):
        assert len(rows) == 1
        out = {"batches": batch_of(torch, records[rows[0]["record"]], a.rows)}
        if "ref_chosen_logps" in rows[0]:
            out["ref"] = (torch.tensor([rows[0]["ref_chosen_logps"]]), torch.tensor([rows[0]["ref_rejected_logps"]]))
        return out

    # the cache of reference log-probs is a file of TRL's: a folder of its own makes every run compute it
    args = DPOConfig(output_dir=os.path.join(a.work, "trl"), per_device_train_batch_size=1, gradient_accumulation_steps=a.batch_size, num_train_epochs=1,
                     learning_rate=a.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.1, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused",
                     beta=a.beta, max_length=None, bf16=a.dtype == "autocast", fp16=False, gradient_checkpointing=False, precompute_ref_log_probs=True, logging_steps=1,
                     logging_first_step=True, save_strategy="no", report_to="none", use_cpu=True, train_sampling_strategy="sequential", remove_unused_columns=False,
                     disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False, disable_dropout=True)
    processing = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(a.model, "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|im_end|>")
    begin = time.perf_counter()
    trainer = Trainer(model=model, args=args, train_dataset=datasets.Dataset.from_list([{"record": i} for i in range(len(records))]),
                      processing_class=processing, data_collator=collate)
    add_fused_lm_head(trainer.model.get_base_model() if a.lora else trainer.model)  # the log-probs alone: no entropy and other metrics, which cost time
    reference = time.perf_counter() - begin
    trainer.train()
    result(a, "trl", time.perf_counter() - begin, reference, losses, norms)


# ---- compare ----
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["make", "plain", "trl", "compare"])
    p.add_argument("--config", default="smollm2", choices=list(CONFIGS))
    p.add_argument("--data")
    p.add_argument("--work", required=True)
    p.add_argument("--model")
    p.add_argument("--ids")
    p.add_argument("--wrpo")
    p.add_argument("--records", type=int, default=32)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--max-length", type=int, default=1024)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--reps", type=int, default=3)
    p.add_argument("--dtype", default="f32", choices=["f32", "bf16", "autocast"])
    p.add_argument("--rows", type=int, default=1, choices=[1, 3], help="sequences in one forward pass of a peer")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--beta", type=float, default=0.1)
    p.add_argument("--alpha", type=float, default=0.1)
    p.add_argument("--learning-rate", type=float, default=1e-5)
    p.add_argument("--lora", type=int, default=0, metavar="R", help="train an adapter of this rank")
    p.add_argument("--options", help="more of wrpo train, as one text")
    p.add_argument("--small", help="options of one more engine, wrpo-small: less memory, say")
    p.add_argument("--only", nargs="*", help="of wrpo, wrpo-small, plain, trl, plain-autocast, trl-autocast")
    p.add_argument("--once", nargs="*", default=[], help="engines that run in the first round alone: slower ones, where time is short")
    a = p.parse_args()
    {"make": make, "plain": plain, "trl": trl, "compare": compare}[a.what](a)


def busy():
    """Seconds of processor time that all processes have used (Linux)."""
    with open("/proc/stat") as f:
        return sum(map(int, f.readline().split()[1:4])) / os.sysconf("SC_CLK_TCK")


def run_once(a, engine):
    """One run in a process of its own; None where it failed (out of memory, say)."""
    name, _, kind = engine.partition("-")
    env = {**os.environ, "OMP_NUM_THREADS": str(a.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    env.setdefault("OMP_WAIT_POLICY", "passive")
    env = {k: v for k, v in env.items() if not k.startswith("OPENBLAS_")}
    out = os.path.join(a.work, "out")
    if name == "wrpo":
        for f in os.listdir(out) if os.path.isdir(out) else []:
            os.remove(os.path.join(out, f))  # the cache of reference log-probs above all
        command = [a.wrpo, "train", "--model", os.path.join(a.work, "model"), "--data", os.path.join(a.work, "train.jsonl"), "--out", out, "--no-shuffle",
                   "--dtype", "f32" if a.dtype == "f32" else "bf16", "--threads", str(a.threads), "--batch-size", str(a.batch_size),
                   "--max-length", str(a.max_length), "--beta", str(a.beta), "--alpha", str(a.alpha), "--learning-rate", str(a.learning_rate)] + ((a.small if kind == "small" else a.options) or "").split()
        if a.lora and kind != "full":
            command += ["--adapter", os.path.join(a.work, "adapter")]
    else:
        env.update(MALLOC_TRIM_THRESHOLD_="68719476736", MALLOC_MMAP_THRESHOLD_="68719476736", MALLOC_TOP_PAD_="67108864")
        command = [sys.executable, "-W", "ignore", os.path.abspath(__file__), name, "--work", a.work, "--model", os.path.join(a.work, "model"), "--ids",
                   os.path.join(a.work, "ids.json"), "--dtype", kind or a.dtype, "--rows", str(a.rows), "--threads", str(a.threads), "--batch-size", str(a.batch_size),
                   "--beta", str(a.beta), "--alpha", str(a.alpha), "--learning-rate", str(a.learning_rate)] + (["--compile"] if a.compile else []) + (["--lora", str(a.lora)] if a.lora else [])
    with open(os.path.join(a.work, "log"), "w+") as log:
        begin, before = time.perf_counter(), busy()
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
        others = max(0.0, busy() - before - usage.ru_utime - usage.ru_stime) / wall / os.cpu_count()
        child.returncode = status
        log.seek(0)
        text = log.read()
    if status:
        print(f"{engine}: failed: {text.strip().splitlines()[-1] if text.strip() else status}", flush=True)
        return None
    got = {"peak_mib": usage.ru_maxrss / 1024, "wall": wall}
    if name == "wrpo":
        got["seconds"] = float(text.rsplit(" (", 1)[1].split()[0])
        with open(os.path.join(out, "metrics.jsonl")) as f:
            lines = [m for m in map(json.loads, f) if "loss" in m]
        got["losses"], got["grad_norms"] = [m["loss"] for m in lines], [m["grad_norm"] for m in lines]
    else:
        got = {**json.loads(text.rsplit("RESULT ", 1)[1].splitlines()[0]), **got}
    print(f"{engine}: {got['seconds']:.2f} s (whole process {wall:.1f} s), peak {got['peak_mib']:.0f} MiB, losses {' '.join(f'{x:.6f}' for x in got['losses'])}; others used "
          f"{100 * others:.1f} % of the processors{': DO NOT TRUST THIS' if others > 0.03 else ''}", flush=True)
    return got


def compare(a):
    with open(os.path.join(a.work, "ids.json")) as f:
        ids = json.load(f)
    tokens = sum(len(r["prompt"]) + len(y) for r in ids for y in r["responses"])
    if a.lora:  # its first step has rate 0: the adapter is saved as it was made
        subprocess.run([a.wrpo, "train", "--model", os.path.join(a.work, "model"), "--data", os.path.join(a.work, "train.jsonl"), "--out",
                        os.path.join(a.work, "adapter"), "--limit", "1", "--max-steps", "1", "--warmup-ratio", "1", "--lora-r", str(a.lora)],
                       check=True, stdout=subprocess.DEVNULL)
    engines = a.only or (["wrpo"] + ["wrpo-full"] * bool(a.lora) + ["plain", "trl"] if a.dtype == "f32" else ["wrpo", "plain", "plain-autocast", "trl", "trl-autocast"])
    engines = engines[:1] + ["wrpo-small"] * bool(a.small and "wrpo-small" not in engines) + engines[1:]
    runs = {e: [] for e in engines}
    for k in range(a.reps):
        for e in engines:
            if None not in runs[e] and not (k and e in a.once):
                runs[e].append(run_once(a, e))
    labels = {"wrpo": "wrpo.h", "plain": "PyTorch, the authors' procedure", "trl": "TRL DPOTrainer, WRPO loss"}
    kinds = {"": {"f32": "fp32", "bf16": "bf16 weights and moments"}[a.dtype], "autocast": "bf16 autocast, fp32 masters"}
    once = f" ({', '.join(e for e in a.once if e in engines)}: one run)" if a.once and a.reps > 1 else ""
    done = {e: [r for r in v if r] for e, v in runs.items()}

    def median(e, key):
        return sorted(r[key] for r in done[e])[len(done[e]) // 2]

    print(f"\n{len(ids)} quadruples, {tokens} tokens, batch {a.batch_size}, {a.threads} threads, medians of {a.reps} interleaved runs{once}, {a.rows} sequence(s) of a peer at once")
    print("| | arithmetic | tokens/s | seconds a quadruple | against the best peer | peak memory | against that peer |\n|---|---|---|---|---|---|---|")
    peers = [e for e in engines if not e.startswith("wrpo") and done[e]]
    best = min(peers, key=lambda e: median(e, "seconds")) if peers else None
    for e in engines:
        name, _, kind = e.partition("-")
        how = ("adapter, " if a.lora and kind != "full" else "all weights, " if a.lora else "") + (
            "bf16 products, fp32 masters" if name == "wrpo" and a.dtype == "bf16" else "fp32" if name == "wrpo" else kinds[kind])
        how += f", {a.small}" if kind == "small" else ""
        if not done[e]:
            print(f"| {labels[name]} | {how} | did not run | | | | |")
            continue
        s, m = median(e, "seconds"), median(e, "peak_mib")
        print(f"| {labels[name]} | {how} | {tokens / s:.0f} | {s / len(ids):.2f} | " + (f"{median(best, 'seconds') / s:.2f}x" if best else "")
              + f" | {m:.0f} MiB | " + (f"{m / median(best, 'peak_mib'):.2f}x" if best else "") + " |")
    bad = 0
    if done.get("wrpo"):
        for e in peers:
            gap = max(abs(x - y) / abs(y) for x, y in zip(done["wrpo"][0]["losses"], done[e][0]["losses"]))
            norm = max(abs(x - y) / abs(y) for x, y in zip(done["wrpo"][0]["grad_norms"], done[e][0]["grad_norms"]))
            want = a.dtype == "f32"
            bad += want and not (gap < 1e-3 and norm < 1e-2)
            print(f"wrpo.h and {e}: losses differ by at most {gap:.1e}, gradient norms by {norm:.1e} (relative){' FAIL' if want and not (gap < 1e-3 and norm < 1e-2) else ''}")
    sys.exit(1 if bad or not done.get("wrpo", True) else 0)


if __name__ == "__main__":
    main()
