#!/usr/bin/env python3
"""Committed goldens of adapters, made by PEFT: small directories as save_pretrained writes them, what a model is with one,
and training runs from one.

    python adapters.py                    makes adapters.json and adapters/FAMILY beside this file
    python adapters.py --check            makes all of it again in memory and compares
    python adapters.py --reload FOLDER    FOLDER/FAMILY-adapter and FOLDER/FAMILY-merged, written by the library
                                          (WRPO_KEEP=FOLDER ./build/74_adapter), load in PEFT and in transformers, and are
                                          what the goldens say

The base of a family is golden/families/FAMILY/config.json with weights by common.py's formula; A and B are by the formula
too, under PEFT's names. adapters.json:
    scale    the formula's {kind: [offset, scale]}
    records  8 records of token ids: prompt and three responses
    made     {family: {logps: [[a number per response] per record], with the adapter
                       merged: {tensor: [[index, value], ...]}}}    of merge_and_unload
    runs     [{family, options, steps: {metric: [one per step]}, weights: {tensor: {norm, samples}}}]    as in train.json
"""
import argparse
import json
import os

import peft
import torch
import transformers

import common
import procedure

HERE = os.path.dirname(os.path.abspath(__file__))
SHAPES = [(7, [9, 5, 12]), (3, [4, 8, 6]), (12, [3, 14, 7]), (1, [11, 2, 5]), (16, [6, 6, 6]), (5, [13, 10, 1]), (9, [1, 7, 15]), (4, [8, 3, 9])]
VOCABULARY = 300
LORA = {
    "llama": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
    "qwen2": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
    "qwen3": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "rank_pattern": {"v_proj": 1, "layers.1.mlp.up_proj": 3},
              "alpha_pattern": {"o_proj": 5}},
    "gemma2": {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"},
    "phi3": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "gemma3": {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "smollm3": {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "o_proj", "up_proj"]},
    "olmo2": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "granite4": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
}
BASE = {"batch_size": 4, "epochs": 5, "learning_rate": 1e-3, "beta": 0.1, "warmup_ratio": 0.25, "max_grad_norm": 1.0}
RUNS = [(f, {"method": m}) for f in ("llama", "gemma2", "phi3") for m in ("wrpo", "dpo", "sft")] + [("olmo2", {"method": "wrpo"}),
                                                                                                    ("granite4", {"method": "wrpo"})]
SCALE = {"linear": (0.0, 0.25)}
METRICS = ["loss", "grad_norm", "learning_rate"]


def plain(name):
    return name.replace(".default", "")


def with_adapter(family):
    model = common.build(os.path.join(HERE, "families", family))
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **LORA[family]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(torch.from_numpy(common.formula(plain(name), tuple(p.shape), SCALE)))
    return model


def logps(model, records):
    with torch.no_grad():
        return [[float(procedure.sequence(model, r["prompt"], y)[0]) for y in r["responses"]] for r in records]


def samples(model):
    return {n: common.sampled(n, p, 3) for n, p in model.named_parameters() if ".layers.1." in n and "proj" in n}


def make(save=None):
    out = {"scale": {k: list(v) for k, v in common.SCALE.items()}, "records": common.records("adapters", VOCABULARY, SHAPES), "made": {}, "runs": []}
    for family in LORA:
        model = with_adapter(family).eval()
        if save:
            model.save_pretrained(os.path.join(save, family))
            os.remove(os.path.join(save, family, "README.md"))
            path = os.path.join(save, family, "adapter_config.json")
            config = json.load(open(path, encoding="utf-8"))
            config.update(base_model_name_or_path="families/" + family, target_modules=sorted(config["target_modules"]))
            with open(path, "w", encoding="utf-8") as f:
                f.write(json.dumps(config, indent=2) + "\n")
        made = {"logps": logps(model, out["records"])}
        made["merged"] = samples(model.merge_and_unload())
        out["made"][family] = made
    for family, run in RUNS:
        options = {**BASE, **run}
        model = with_adapter(family)
        steps = procedure.train(model, out["records"], options)
        trained = {plain(n): p for n, p in model.named_parameters() if p.requires_grad}
        out["runs"].append({"family": family, "options": options, "steps": {m: [s[m] for s in steps] for m in METRICS},
                            "weights": {n: {"norm": float(p.detach().double().norm()), "samples": common.sampled(n, p, 4)} for n, p in trained.items()}})
        print(f"{family:7s} {run['method']:5s} {len(steps)} steps  loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}")
    return common.rounded(out)


def reload(folder):
    golden, bad = json.load(open(os.path.join(HERE, "adapters.json"), encoding="utf-8")), 0
    for family in LORA:
        base = common.build(os.path.join(HERE, "families", family))
        model = peft.PeftModel.from_pretrained(base, os.path.join(folder, family + "-adapter")).eval()
        merged = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(folder, family + "-merged"), dtype=torch.float32,
                                                                   attn_implementation="eager").eval()
        for what, m in (("adapter", model), ("merged", merged)):
            worst = max(abs(a - b) for x, y in zip(logps(m, golden["records"]), golden["made"][family]["logps"]) for a, b in zip(x, y))
            print(f"{family:7s} {what:8s} log-probs differ by {worst:.1e} at most")
            bad += not worst < 1e-4
    return bad


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true")
    p.add_argument("--reload", metavar="FOLDER")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    path = os.path.join(HERE, "adapters.json")
    if a.reload:
        raise SystemExit(1 if reload(a.reload) else 0)
    made = make(None if a.check else os.path.join(HERE, "adapters"))
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
