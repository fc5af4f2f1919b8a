#!/usr/bin/env python3
"""Log-probs of real quadruples on small random checkpoints of every family: `wrpo logprob` against transformers in float32.

    python real_logps.py --data DATA --wrpo PATH [--work DIR] [--records 30] [--only NAME ...] [--threads 2]
    python real_logps.py --data DATA --reference-only        the reference alone (its tokenizations and log-probs), no C program
    python real_logps.py --model DIR --quads F --wrpo PATH   one checkpoint of your own

DATA holds tokenizers/<name>/tokenizer.json, chat/index.json (templates) and alpacaeval/quads.jsonl. For every case below a
model folder is made under --work: the family's config of common.py with the tokenizer's vocabulary, weights by formula, saved
by transformers; with --init also one made by `wrpo init`, read by both. Compared for `clean` and `authors`: token counts
(equal), and |difference of a response's log-prob| / its tokens (worst <= 2e-5). Also with short --max-length, so that both
truncations run. With --as-source also the pairs that `wrpo logprob --as-source` puts into the records, added up over the cases:
each model reads the file of the one before, so that the last file has the log-probs of all, each in its own tokens. Exits 1 on
any difference.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers

import common
import quads

# name: family, tokenizer, template (None: the tokenizer's own), its special names, template of `authors` (None: the same; "": it cannot)
IM = {"add": ("<|im_start|>", "<|im_end|>"), "names": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}}
CASES = {
    "llama": ("llama", "llama3", None, {}, None),
    "llama_bias": ("llama_bias", "gemma2", "gemma2", {}, ""),
    "llama3": ("llama3", "llama3_1", "llama3", {}, None),
    "llama3_new": ("llama3_new", "llama3_2", None, {}, None),
    "llama_linear": ("llama_linear", "phi-3-mini", None, {}, None),
    "llama_yarn": ("llama_yarn", "gpt2", "chatml", IM, None),
    "smollm2": ("smollm2", "gpt2", "smollm2", IM, None),
    "yi": ("yi", "mistral_v1", "zephyr", {}, None),
    "mistral": ("mistral", "mistral_v1", "mistral_v0_2", {}, "mistral_wrpo"),
    "mistral_nemo": ("mistral_nemo", "mistral_v1", "mistral_wrpo", {}, None),
    "qwen2": ("qwen2", "qwen2_5", None, {}, None),
    "qwen2_window": ("qwen2_window", "qwen2_5", "chatml", {}, None),
    "qwen3": ("qwen3", "qwen2_5", None, {}, None),
    "qwen3_new": ("qwen3_new", "llama3_1", "llama3_old_always_prompt", {}, None),
}


def template_of(data, name):
    with open(os.path.join(data, "chat", "index.json"), encoding="utf-8") as f:
        return json.load(f)[name]["template"]


def make(data, folder, case, template):
    """The model folder of a case; returns its config."""
    family, tokenizer, _, changes, _ = CASES[case]
    text = quads.tokenizer_dir(folder, os.path.join(data, "tokenizers", tokenizer), template and template_of(data, template), **changes)
    config = json.loads(json.dumps(common.FAMILIES[family]))
    config["vocab_size"] = max(text.tok.get_vocab().values()) + 1 + 5  # some rows more than the tokenizer has, as published checkpoints do
    config["max_position_embeddings"] = 4096
    for c in (config, config.get("rope_parameters"), config.get("rope_scaling")):
        if c and c.get("original_max_position_embeddings"):
            c["original_max_position_embeddings"] *= 8
    if config.get("sliding_window"):
        config["sliding_window"] *= 9
    common.write_config(folder, config)
    model = common.build(folder)
    model.save_pretrained(folder)
    common.write_config(folder, config)  # save_pretrained has respelled it
    return config


@torch.no_grad()
def sum_logp(model, prompt, response, rows=128):
    """Log-prob of a response: float32 per token, added up in double; the head runs in chunks of rows to stay in cache."""
    h = model.model(input_ids=torch.tensor([prompt + response]), use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
    y, total = torch.tensor(response)[:, None], 0.0
    for i in range(0, len(response), rows):
        logits = model.lm_head(h[i : i + rows]).float()
        total += float(torch.log_softmax(logits, -1).gather(1, y[i : i + rows]).double().sum())
    return total


def reference(model, text, records, how, max_length, max_prompt_length):
    """[{"logps", "tokens", "prompt_tokens"}] as `wrpo logprob` prints them."""
    out = []
    for record in records:
        ids = quads.TOKENIZATIONS[how](text, record, max_length, max_prompt_length)
        sums = []
        for prompt, response in zip(ids.get("prompts") or [ids["prompt"]] * 3, ids["responses"]):
            sums.append(sum_logp(model, prompt, response))
        out.append({"logps": sums, "tokens": [len(y) for y in ids["responses"]], "prompt_tokens": len(ids["prompt"])})
    return out


def compare(name, got, want, records):
    worst, place, bad = 0.0, "", []
    if len(got) != len(want):
        bad.append(f"{len(got)} lines, want {len(want)}")
    for i, (g, w, r) in enumerate(zip(got, want, records)):
        if g["tokens"] != w["tokens"] or g["prompt_tokens"] != w["prompt_tokens"] or g["prompt_id"] != r["prompt_id"]:
            bad.append(f"record {i}: tokens {g['tokens']} prompt {g['prompt_tokens']}, want {w['tokens']} prompt {w['prompt_tokens']}")
            continue
        for k, (x, y, n) in enumerate(zip(g["logps"], w["logps"], w["tokens"])):
            if not abs(x - y) / n <= worst:
                worst, place = abs(x - y) / n, f"record {i} response {k}: {x:.6f}, want {y:.6f}, {n} tokens"
    if not worst <= 2e-5:
        bad.append(place)
    tokens = sum(sum(w["tokens"]) for w in want)
    print(f"{name:40s} {len(want)} records {tokens:6d} response tokens  worst difference per token {worst:.2e}  {'ok' if not bad else 'FAIL'}", flush=True)
    for b in bad[:5]:
        print("    " + b)
    return bool(bad)


def as_source(a, model, text, folder, name, records):
    """Adds the case's model to a.known, a file of records with source_logps; compares its pairs with the reference."""
    out = a.known + ".new"
    p = subprocess.run([a.wrpo, "logprob", "--model", folder, "--data", a.known, "--as-source", name, "--out", out, "--threads", str(a.threads)],
                       capture_output=True, text=True)
    if p.returncode:
        print(f"{name:40s} exit {p.returncode}: {p.stderr.strip()}")
        return 1
    os.replace(out, a.known)
    with open(a.known, encoding="utf-8") as f:
        got = [json.loads(line) for line in f]
    want = reference(model, text, records, "clean", 1 << 30, 1 << 29)
    pairs = [r["source_logps"][name] for r in got]
    numbers = [{"prompt_id": r["prompt_id"], "logps": [x for x, _ in p], "tokens": [n for _, n in p], "prompt_tokens": w["prompt_tokens"]}
               for r, p, w in zip(got, pairs, want)]
    failed = compare(name + " --as-source", numbers, want, records)
    models = list(got[0]["source_logps"])
    if [{k: v for k, v in r.items() if k != "source_logps"} for r in got] != records:
        print("    the records have changed")
        failed = 1
    print(f"{'':40s} models in the file: {', '.join(models)}; tokens of the first response: {[r[0][1] for r in got[0]['source_logps'].values()]}")
    return failed


def run(a, folder, name, records, hows):
    text = quads.Text(folder)
    # in float32, whatever the files hold
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False, encoding="utf-8") as f:
        for r in records:
            f.write(json.dumps(r, ensure_ascii=False) + "\n")
    failed = as_source(a, model, text, folder, name, records) if a.known else 0
    for how in hows:
        for lengths in ([2048, 1800], a.short):
            some = records if lengths == [2048, 1800] else records[:8]
            want = reference(model, text, some, how, *lengths)
            label = f"{name} {how} {lengths[0]}/{lengths[1]}"
            if not a.wrpo:
                flat = sum(sum(w["logps"]) for w in want) / sum(sum(w["tokens"]) for w in want)
                print(f"{label:40s} {len(want)} records, {sum(sum(w['tokens']) for w in want)} response tokens, {flat:.3f} per token", flush=True)
                continue
            p = subprocess.run([a.wrpo, "logprob", "--model", folder, "--data", f.name, "--tokenization", how, "--max-length", str(lengths[0]),
                                "--max-prompt-length", str(lengths[1]), "--threads", str(a.threads)], capture_output=True, text=True)
            if p.returncode:
                print(f"{label:40s} exit {p.returncode}: {p.stderr.strip()}")
                failed += 1
                continue
            failed += compare(label, [json.loads(line) for line in p.stdout.splitlines()][: len(some)], want, some)
    os.unlink(f.name)
    return failed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", help="folder with tokenizers, chat and alpacaeval")
    p.add_argument("--wrpo", help="the program")
    p.add_argument("--work", help="where model folders are made; default: a temporary folder")
    p.add_argument("--records", type=int, default=30)
    p.add_argument("--only", nargs="*", default=list(CASES))
    p.add_argument("--how", nargs="*", default=["clean", "authors"])
    p.add_argument("--short", nargs=2, type=int, default=[500, 40], metavar=("MAX", "PROMPT"), help="lengths of the truncation runs")
    p.add_argument("--init", action="store_true", help="also a checkpoint that `wrpo init` makes")
    p.add_argument("--as-source", action="store_true", help="also the log-probs that records carry")
    p.add_argument("--model", help="one folder in place of the cases")
    p.add_argument("--quads")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--reference-only", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if bool(a.wrpo) == a.reference_only or not (a.data or a.model):
        p.error("want --wrpo or --reference-only, and --data or --model")
    records = quads.read(a.quads or os.path.join(a.data, "alpacaeval", "quads.jsonl"), a.records)
    a.known = None
    if a.as_source:
        a.known = os.path.join(tempfile.mkdtemp(), "known.jsonl")
        with open(a.known, "w", encoding="utf-8") as f:
            for r in records:
                f.write(json.dumps(r, ensure_ascii=False) + "\n")
    if a.model:
        sys.exit(1 if run(a, a.model, os.path.basename(a.model), records, a.how) else 0)
    work, failed = a.work or tempfile.mkdtemp(), 0
    for case in a.only:
        family, _, template, _, other = CASES[case]
        folder = os.path.join(work, case)
        config = make(a.data, folder, case, template)
        same = [h for h in a.how if h == "clean" or other is None]
        failed += run(a, folder, case, records, same)
        if "authors" in a.how and other:
            make(a.data, folder, case, other)
            failed += run(a, folder, case + "+" + other, records, ["authors"])
        if a.init and a.wrpo:
            common.write_config(os.path.join(work, "config"), {**config, "initializer_range": 0.2})
            out = os.path.join(work, case + "_init")
            shutil.rmtree(out, ignore_errors=True)
            subprocess.run([a.wrpo, "init", "--config", os.path.join(work, "config", "config.json"), "--tokenizer", folder, "--out", out,
                            "--save-dtype", "f32"], check=True)
            failed += run(a, out, case + " (wrpo init)", records[:8], ["clean"])
        shutil.rmtree(folder, ignore_errors=True)
    if a.wrpo:
        print(f"{failed} comparisons failed" if failed else "all equal")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
