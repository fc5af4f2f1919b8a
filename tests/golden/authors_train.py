#!/usr/bin/env python3
"""Ten optimizer steps of the authors' procedure in plain PyTorch (procedure.py) on real quadruples, against `wrpo train`.

    python authors_train.py --data DATA --wrpo PATH [--case llama3] [--records 20 --batch-size 2] [--method ...] [--noise]
    python authors_train.py --model DIR --quads F --wrpo PATH              a checkpoint of your own, float32
    python authors_train.py --data DATA --metrics metrics.jsonl --saved DIR --work DIR       compares with a run made before
    python authors_train.py --data DATA                                    prints the reference's metrics only

Every option of the run has `wrpo train`'s name and goes to both. Tokenization `authors` (or --tokenization clean), no shuffle,
the same initial weights, float32. The first step has learning rate 0 under warm-up: its rewards are 0 in both.

Reported per metric: the worst |a - b| / |b| over the steps (wanted: <= 1e-4), and the worst absolute difference of a final
weight (wanted: <= 1e-5) beside the largest change of a weight. Rewards and margins are differences of two sums of float32
log-probs and can cross 0, so for them the bound is 1e-4 |b| + beta * tokens * SLACK, tokens being a response's mean length:
what is needed of it is printed. --noise runs the reference a second time with another attention kernel and reports the same
figures for PyTorch against itself: about 1e-7 per token. Exits 1 if a bound is passed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
import transformers

import procedure
import quads
import real_logps


def load(folder, attn="eager"):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attn)


SLACK = 2e-7


def report(title, got, want, options, tokens):
    """Prints the worst relative difference of every metric; returns the number of metrics past their bound."""
    bad = 0
    print(f"{title}\n    {'metric':28s} {'relative':>9s}  at step, found, wanted")
    for m in procedure.METRICS:
        unit = options["beta"] * tokens if m.startswith("rewards/") and "accuracies" not in m else 0.0
        worst, past, need = (-1.0, 0, None, None), False, 0.0
        for k, (g, w) in enumerate(zip(got, want)):
            x, y = g.get(m), w.get(m)
            if y is None:
                continue
            x = float("nan") if x is None else x
            d = abs(x - y)
            past |= not d <= 1e-4 * abs(y) + unit * SLACK
            need = max(need, (d - 1e-4 * abs(y)) / unit if unit else 0.0)
            if d and not d / max(abs(y), 1e-30) <= worst[0] or worst[0] < 0:
                worst = (d / max(abs(y), 1e-30), k + 1, x, y)
        if worst[0] >= 0 or past:
            bad += past
            print(f"    {m:28s} {worst[0]:9.1e}  {worst[1]:2d} {worst[2]:.9g} {worst[3]:.9g}" + (f"   slack {need:.1e}" if need else "")
                  + ("   FAIL" if past else ""))
    return bad


def weights(made, after, before):
    """Prints and returns the worst absolute difference of a final weight."""
    gap = {n: (q.detach() - after[n]).abs() for n, q in made.items()}
    name = max(gap, key=lambda n: gap[n].max().item())
    moved = max((after[n] - before[n]).abs().max().item() for n in after)
    print(f"    final weights: worst absolute difference {gap[name].max().item():.2e} ({name}), past 1e-5: "
          f"{sum(int((g > 1e-5).sum()) for g in gap.values())} of {sum(g.numel() for g in gap.values())}; largest change {moved:.2e}")
    return gap[name].max().item()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", help="folder with tokenizers, chat and alpacaeval")
    p.add_argument("--case", default="llama3", choices=real_logps.CASES)
    p.add_argument("--model")
    p.add_argument("--quads")
    p.add_argument("--records", type=int, default=20)
    p.add_argument("--skip", type=int, default=0, help="records to pass over first")
    p.add_argument("--tokenization", default="authors", choices=quads.TOKENIZATIONS)
    p.add_argument("--max-length", type=int, default=2048)
    p.add_argument("--max-prompt-length", type=int, default=1800)
    p.add_argument("--wrpo")
    p.add_argument("--metrics")
    p.add_argument("--saved")
    p.add_argument("--work")
    p.add_argument("--noise", action="store_true")
    p.add_argument("--threads", type=int, default=1, help="of the program")
    for name, value in procedure.OPTIONS.items():
        if name != "gamma_ratio":
            p.add_argument("--" + name.replace("_", "-"), type=type(value), default={"batch_size": 2, "learning_rate": 1e-4}.get(name, value))
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {n: getattr(a, n, v) for n, v in procedure.OPTIONS.items()}
    work = a.work or tempfile.mkdtemp()

    folder = a.model
    if not folder:
        folder = os.path.join(work, "model")
        real_logps.make(a.data, folder, a.case, real_logps.CASES[a.case][2])
    records = quads.read(a.quads or os.path.join(a.data, "alpacaeval", "quads.jsonl"), a.skip + a.records)[a.skip :]
    file = os.path.join(work, "train.jsonl")
    with open(file, "w", encoding="utf-8") as f:
        for r in records:
            f.write(json.dumps(r, ensure_ascii=False) + "\n")
    text = quads.Text(folder)
    ids = [quads.TOKENIZATIONS[a.tokenization](text, r, a.max_length, a.max_prompt_length) for r in records]
    tokens = sum(len(y) for r in ids for y in r["responses"]) / (3 * len(ids))

    begin = time.time()
    model = load(folder)
    before = {n: q.detach().clone() for n, q in model.named_parameters()}
    want = procedure.train(model, ids, options, lambda k, T, m: print(
        f"step {k + 1}/{T} " + " ".join(f"{n}={v:.9g}" for n, v in m.items() if v is not None), flush=True))
    after = {n: q.detach().clone() for n, q in model.named_parameters()}
    model.save_pretrained(os.path.join(work, "reference"))
    with open(os.path.join(work, "reference.jsonl"), "w") as f:
        f.writelines(json.dumps(m) + "\n" for m in want)
    print(f"reference: {len(records)} records, {tokens:.0f} tokens a response, {sum(q.numel() for q in after.values())} parameters, "
          f"{time.time() - begin:.0f} s; kept in {work}")
    bad = 0
    if a.noise:
        other = load(folder, "sdpa")
        report("PyTorch against itself (sdpa)", procedure.train(other, ids, options), want, options, tokens)
        weights(dict(other.named_parameters()), after, before)

    metrics, saved = a.metrics, a.saved
    if a.wrpo:
        saved = os.path.join(work, "out")
        metrics = os.path.join(saved, "metrics.jsonl")
        flags = [f for n in procedure.OPTIONS if hasattr(a, n) for f in ("--" + n.replace("_", "-"), str(getattr(a, n)))]
        begin = time.time()
        p = subprocess.run([a.wrpo, "train", "--model", folder, "--data", file, "--out", saved, "--no-shuffle", "--tokenization", a.tokenization,
                            "--max-length", str(a.max_length), "--max-prompt-length", str(a.max_prompt_length), "--save-dtype", "f32",
                            "--threads", str(a.threads)] + flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if p.returncode:
            sys.exit(f"wrpo train: exit {p.returncode}: {p.stderr.strip()}")
        print(f"wrpo train: {time.time() - begin:.0f} s with {a.threads} threads")
    if metrics:
        with open(metrics) as f:
            got = [m for m in map(json.loads, f) if "loss" in m]
        if len(got) != len(want):
            print(f"{len(got)} steps, want {len(want)}")
            bad += 1
        bad += report(f"{a.method} {a.pair if a.method not in ('wrpo', 'sft') else ''}: wrpo train against PyTorch", got, want, options, tokens)
    if saved:
        bad += weights(dict(load(saved).named_parameters()), after, before) > 1e-5
    if metrics or saved:
        print("FAIL" if bad else "ok")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
