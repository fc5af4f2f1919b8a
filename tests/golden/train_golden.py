#!/usr/bin/env python3
"""A committed golden of short training runs in plain PyTorch, for machines without it: train.json beside this file.

    python train_golden.py              makes train.json (and train/config.json, the model, weights by common.py's formula)
    python train_golden.py --check      makes it again in memory and compares

train.json:
    scale    the formula's {kind: [offset, scale]}
    records  8 records of token ids: prompt and three responses (source, target, rejected); taken in this order, no shuffle
    known    the same with two sources' log-probs of each response
    fused, sources    the same with roles, weights and pairs (procedure.py): two sources' pairs; two sources, target and rejected
    runs     [{options: as `wrpo train` names them, and "data", which of the three,
               steps: {metric: [one number per step]}            metrics a method does not define are left out
               weights: {tensor: {norm, moved, samples: [[index, value], ...]}}}]    after the last step; moved: norm of the change
As long as no update has been made (the first one has rate 0 under warm-up) all rewards are 0 and the accuracies with them.
"""
import argparse
import json
import math
import os

import torch
import transformers

import common
import procedure

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = common.new("Qwen2", "qwen2", 24, 27, 2, 4, 2, 61, {"rope_theta": 10000.0, "rope_type": "default"}, tie_word_embeddings=True,
                    max_window_layers=2, sliding_window=None, use_sliding_window=False)
SHAPES = [(7, [9, 5, 12]), (3, [4, 8, 6]), (12, [3, 14, 7]), (1, [11, 2, 5]), (16, [6, 6, 6]), (5, [13, 10, 1]), (9, [1, 7, 15]), (4, [8, 3, 9])]
BASE = {"batch_size": 4, "epochs": 5, "learning_rate": 1e-3, "beta": 0.1, "warmup_ratio": 0.25}
RUNS = [
    {"method": "wrpo", "alpha": 0.5},
    {"method": "wrpo", "alpha": 0.3, "alpha_schedule": "constant", "label_smoothing": 0.1, "weight_decay": 0.1, "lr_scheduler": "linear",
     "max_grad_norm": 0.05, "batch_size": 3, "epochs": 2.5},
    {"method": "wrpo", "alpha": 0.8, "alpha_schedule": "power:2", "lr_scheduler": "constant", "warmup_ratio": 0.0, "epochs": 2},
    {"method": "wrpo", "alpha": 0.8, "alpha_schedule": "cosine", "epochs": 2},
    {"method": "dpo", "pair": "target", "epochs": 2},
    {"method": "dpo", "pair": "source", "epochs": 2},
    {"method": "dpo", "pair": "both", "epochs": 2},
    {"method": "ipo", "epochs": 2},
    {"method": "hinge", "epochs": 2},
    {"method": "simpo", "beta": 2.0, "gamma_ratio": 0.5, "epochs": 2},
    {"method": "dpo-norm", "beta": 5.0, "epochs": 2},
    {"method": "sft", "epochs": 2},
    {"method": "sft", "data": "fused", "epochs": 2},  # FuseSFT
    {"method": "dpo", "data": "fused", "epochs": 2},  # FusePO, weighted by EAST's record weights
    {"method": "dpo-norm", "data": "fused", "beta": 5.0, "epochs": 2},
    {"method": "simpo", "data": "fused", "beta": 2.0, "gamma_ratio": 0.5, "epochs": 2},
    {"method": "wrpo", "data": "sources", "alpha": 0.5, "epochs": 3},
    {"method": "infifpo", "data": "known", "beta": 2.5},
    {"method": "infifpo", "data": "known", "beta": 2.5, "pair": "source", "fusion": "mean", "sft_weight": 0.2, "epochs": 2},
    {"method": "infifpo-wrpo", "data": "known", "beta": 2.5, "alpha": 0.5, "fusion": "margin-initial"},
    {"method": "infifpo-wrpo", "data": "known", "beta": 2.5, "alpha": 0.5, "label_smoothing": 0.1, "epochs": 2},
    {"method": "infifpo-ipo", "data": "known", "beta": 2.5, "fusion": "confidence", "epochs": 2},
    {"method": "wrpo", "alpha": 0.5, "sft_weight": 0.5, "epochs": 2},
]
# what is not defined, or named differently, by the papers of a method: loss, gradient and weights remain
UNDEFINED = {"ipo": ["rewards/"], "infifpo-ipo": ["rewards/"], "sft": ["logps/chosen", "logps/rejected", "logps/target", "logits/"]}


def fused(name, roles, pair):
    """The records of SHAPES with four responses: weights softmax(reward / tau) of made-up rewards, record weights H^a / c of entropies."""
    recs = common.records(name, CONFIG["vocab_size"], [(p, [*r, r[0] + 2]) for p, r in SHAPES])
    for i, r in enumerate(recs):
        e = math.exp((0.1 * i - 0.3) / 0.5)
        w = [round(e / (1 + e), 6), round(1 - round(e / (1 + e), 6), 6)]
        r.update(roles=roles, pairs=pair, weights=[w[0], w[1], *([w[0], w[1]] if roles[2] == 2 else [1, 1])], weight=round((0.5 + 0.25 * i) / 1.4, 6))
    return recs


def known():
    """The records of SHAPES with made-up log-probs under two models that have other tokens: nearer to 0 than the policy's, and farther."""
    recs = common.records("known", CONFIG["vocab_size"], SHAPES)
    for i, r in enumerate(recs):
        r["source_logps"] = [[[-round((3.2 + 0.3 * ((i + k + m) % 5)) * (len(y) + m + k), 4), len(y) + m + k] for k, y in enumerate(r["responses"])]
                             for m in (1, 2)]
    return recs


def make(folder):
    common.write_config(os.path.join(folder, "train"), CONFIG)
    recs = common.records("train", CONFIG["vocab_size"], SHAPES)
    out = {"scale": {k: list(v) for k, v in common.SCALE.items()}, "records": recs, "known": known(),
           "fused": fused("fused", [0, 0, 2, 2], [1, 2, 1, 2]), "sources": fused("sources", [0, 0, 1, 2], [0, 0, 0, 0]), "runs": []}
    for run in RUNS:
        options = {**BASE, **run}
        model = common.build(os.path.join(folder, "train"))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        steps = procedure.train(model, out[options.get("data", "records")], options)
        lines = {m: [s[m] for s in steps] for m in procedure.METRICS
                 if steps[0][m] is not None and not any(m.startswith(u) for u in UNDEFINED.get(run["method"], []))}
        weights = {n: {"norm": float(p.detach().double().norm()), "moved": float((p.detach() - before[n]).double().norm()),
                       "samples": common.sampled(n, p - before[n], 4)} for n, p in model.named_parameters()}
        for n, p in model.named_parameters():  # the sampled places, with the weight in place of its change
            weights[n]["samples"] = [[i, float(p.detach().reshape(-1)[i])] for i, _ in weights[n]["samples"]]
        out["runs"].append({"options": options, "steps": lines, "weights": weights})
        print(f"{run['method']:9s} {len(steps):2d} steps  loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}  "
              f"gradient {steps[0]['grad_norm']:.4f}  moved {sum(w['moved'] ** 2 for w in weights.values()) ** 0.5:.4f}")
    return common.rounded(out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=HERE)
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    path = os.path.join(a.out, "train.json")
    made = make(a.out)
    if not a.check:
        common.write(path, made)
        print(os.path.getsize(path), "bytes")
        return
    from families import numbers

    (x, shape_x), (y, shape_y) = numbers(json.loads(common.text_of(made))), numbers(json.load(open(path)))
    worst = max(abs(p - q) / max(1e-3, abs(q)) for p, q in zip(x, y))
    print("the same structure" if shape_x == shape_y else "another structure", f"worst relative difference {worst:.1e}")
    raise SystemExit(0 if shape_x == shape_y and worst < 1e-3 else 1)


if __name__ == "__main__":
    main()
