#!/usr/bin/env python3
"""What `wrpo` has saved, loaded by transformers, against the directory it came from.

    python reload.py --reference DIR SAVED [SAVED ...]         the weights in SAVED are meant to equal REFERENCE's
    python reload.py --reference DIR --wrpo PATH --data F [--work W] [-- more options of `wrpo train`]
        makes SAVED itself, with --save-dtype f32, bf16, and f32 in small shards: one step of `wrpo train` under warm-up,
        whose learning rate is 0, so nothing may have changed

Checks for each SAVED: transformers loads it without a missing or unexpected tensor; the logits of some token ids are those of
REFERENCE (bit for bit, or for bfloat16 those of REFERENCE rounded to bfloat16); every weight likewise; the tensors on disk are
the ones transformers itself would write (tied weights once); every file has the metadata {"format": "pt"}; the index names every
tensor once, in an existing file, with the right total size; tokenizer and other side files are equal byte for byte, config.json
too or but for its dtype; no file is left over. Exits 1 if anything differs.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import safetensors
import torch
import transformers

import common

SIDE = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json",
        "generation_config.json", "tokenizer.model", "vocab.json", "merges.txt"]


def stored(folder):
    """{tensor: (dtype, file)} of a directory, and what is wrong with its files."""
    bad, out, size = [], {}, 0
    index = os.path.join(folder, "model.safetensors.index.json")
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    for f in files:
        with safetensors.safe_open(os.path.join(folder, f), "pt") as s:
            if s.metadata() != {"format": "pt"}:
                bad.append(f"{f}: metadata {s.metadata()}")
            for name in s.keys():
                if name in out:
                    bad.append(f"{name}: in {out[name][1]} and in {f}")
                t = s.get_tensor(name)
                out[name], size = (t.dtype, f), size + t.numel() * t.element_size()
    if os.path.exists(index):
        with open(index) as f:
            j = json.load(f)
        if j["weight_map"] != {n: f for n, (_, f) in out.items()}:
            bad.append("the index does not say where the tensors are")
        if j["metadata"]["total_size"] != size:
            bad.append(f"total_size {j['metadata']['total_size']}, found {size}")
        if files != [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]:
            bad.append(f"shards {files}")
    elif files != ["model.safetensors"]:
        bad.append(f"files {files} without an index")
    return out, bad, files


def check(reference, folder):
    model, trouble = common.load(folder)
    bad = [f"transformers: {k} {v}" for k, v in trouble.items()]
    tensors, wrong, files = stored(folder)
    bad += wrong
    dtypes = {d for d, _ in tensors.values()}
    want, _ = common.load(reference)
    if dtypes == {torch.bfloat16}:
        for q in want.parameters():  # not want.to(), which rounds the rotary frequencies as well
            q.data = q.data.to(torch.bfloat16).float()
    elif dtypes != {torch.float32}:
        bad.append(f"dtypes {dtypes}")
    for name, p in want.named_parameters():
        q = dict(model.named_parameters()).get(name)
        if q is None or not torch.equal(p, q):
            bad.append(f"{name}: differs" + ("" if q is None or q.shape != p.shape else f" by {(p - q).abs().max().item():.1e}"))
    ids = torch.tensor([common.ids("reload", 64, want.config.vocab_size)])
    with torch.no_grad():
        x, y = model(input_ids=ids).logits, want(input_ids=ids).logits
    if not torch.equal(x, y):
        bad.append(f"logits differ by {float((x - y).abs().max()):.1e}")
    with tempfile.TemporaryDirectory() as tmp:  # InternLM2, which transformers does not write, as the reference has it
        if json.load(open(os.path.join(reference, "config.json")))["model_type"] != "internlm2":
            want.save_pretrained(tmp)
            theirs, _, _ = stored(tmp)
        else:
            theirs, _, _ = stored(reference)
    if set(theirs) != set(tensors):
        bad.append(f"tensors: {sorted(set(theirs) ^ set(tensors))} on one side only")
    same, known = 0, {"config.json", "model.safetensors.index.json", "metrics.jsonl", *files}
    for f in SIDE:
        a, b = os.path.join(reference, f), os.path.join(folder, f)
        if os.path.exists(a):
            known.add(f)
            same += 1
            if not os.path.exists(b) or open(a, "rb").read() != open(b, "rb").read():
                bad.append(f"{f}: differs")
    a, b = (open(os.path.join(d, "config.json"), "rb").read() for d in (reference, folder))
    config = "config.json equal"
    if a != b:
        drop = ("dtype", "torch_dtype")
        a, b = ({k: v for k, v in json.loads(t).items() if k not in drop} for t in (a, b))
        config = "config.json equal but for its dtype"
        if a != b:
            bad.append("config.json: differs in " + ", ".join(k for k in sorted({**a, **b}) if a.get(k) != b.get(k)))
    left = [f for f in sorted(os.listdir(folder)) if f not in known and not f.startswith("reference_logps-")]
    print(f"{folder}: {len(tensors)} tensors {'/'.join(sorted(str(d)[6:] for d in dtypes))} in {len(files)} files, logits of {ids.numel()} ids, "
          f"{same} side files, {config}{', also there: ' + ' '.join(left) if left else ''}: {'ok' if not bad else 'FAIL'}")
    for text in bad[:10]:
        print("    " + text)
    return bool(bad)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--reference", required=True)
    p.add_argument("--wrpo")
    p.add_argument("--data")
    p.add_argument("--work")
    p.add_argument("saved", nargs="*")
    argv, more = sys.argv[1:], []
    if "--" in argv:
        argv, more = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    saved = list(a.saved)
    if a.wrpo:
        work = a.work or tempfile.mkdtemp()
        size = sum(os.path.getsize(os.path.join(a.reference, f)) for f in os.listdir(a.reference) if f.endswith(".safetensors"))
        for name, dtype, shard in (("f32", "f32", 5 * 10**9), ("bf16", "bf16", 5 * 10**9), ("shards", "f32", size // 5)):
            out = os.path.join(work, "saved_" + name)
            shutil.rmtree(out, ignore_errors=True)
            r = subprocess.run([a.wrpo, "train", "--model", a.reference, "--data", a.data, "--out", out, "--max-steps", "1", "--batch-size", "1",
                                "--warmup-ratio", "1", "--no-shuffle", "--save-dtype", dtype, "--max-shard-size",
                                str(shard)] + more, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)
            if r.returncode:
                sys.exit(f"wrpo train: exit {r.returncode}: {r.stderr.strip()}")
            saved.append(out)
    if not saved:
        p.error("want SAVED or --wrpo")
    sys.exit(1 if sum([check(a.reference, f) for f in saved]) else 0)


if __name__ == "__main__":
    main()
