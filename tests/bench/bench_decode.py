#!/usr/bin/env python3
"""Tokens a second of decoding, beside llama.cpp, in turn; medians.

usage: bench_decode.py MODEL GGUF [--threads 1 2] [--batch 1 32] [--weights f32 bf16 f16] [--reps 3] [--tokens 64]
  MODEL  a model's directory      GGUF  a folder with the same model as f32.gguf, bf16.gguf and f16.gguf
Run it in tests/, after `make build/bench`, with an interpreter that has llama-cpp-python (built for this machine, as
pip does). The files come from llama.cpp: convert_hf_to_gguf.py MODEL --outtype f16 --outfile GGUF/f16.gguf

Both take a prompt of 16 tokens, the same for each sample, and then tokens that do not matter; a step gives a token to
each sample. A run's figure is its median step. wrpo.h copies its weights once, in another step, in runs of 32 tokens or
more. With one thread, times are CPU time. llama.cpp's logits are computed and not read; there is no sampling in its
time, which wrpo.h's has."""
import argparse
import ctypes
import re
import statistics
import subprocess
import sys
import time


def llama(path, threads, batch, tokens):
    import llama_cpp as L

    L.llama_log_set(ctypes.cast(None, L.llama_log_callback), None)
    L.llama_backend_init()
    model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
    d = L.llama_context_default_params()
    d.n_ctx, d.n_seq_max, d.n_batch, d.n_ubatch = batch * (tokens + 32), batch, 512, 512
    d.n_threads = d.n_threads_batch = threads
    ctx = L.llama_init_from_model(model, d)
    b = L.llama_batch_init(512, 0, 1)

    def step(rows):                     # of (token, position, sequence, wants logits)
        for i, (token, position, sequence, logits) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, logits
            b.seq_id[i][0] = sequence
        b.n_tokens = len(rows)
        if L.llama_decode(ctx, b):
            sys.exit("llama_decode failed")

    for s in range(batch):
        step([(1 + i, i, s, i == 15) for i in range(16)])
    now = time.process_time if threads == 1 else time.monotonic
    seconds = []
    for t in range(tokens):
        begin = now()
        step([(100 + t + s, 16 + t, s, True) for s in range(batch)])
        seconds.append(now() - begin)
    print(batch / statistics.median(seconds[8:]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("gguf")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    p.add_argument("--weights", nargs="+", default=["f32", "bf16", "f16"])
    p.add_argument("--reps", type=int, default=3)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--one", action="store_true", help="a run of llama.cpp alone: MODEL is its file")
    a = p.parse_args()
    if a.one:
        return llama(a.model, a.threads[0], a.batch[0], a.tokens)
    print("| weights | threads | samples at once | wrpo.h, tokens/s | llama.cpp | ratio |")
    print("|---|---|---|---|---|---|")
    for batch in a.batch:
        for threads in a.threads:
            for weights in a.weights:
                ours, theirs = [], []
                for _ in range(a.reps):
                    of = ["--threads", str(threads), "--batch", str(batch), "--tokens", str(a.tokens)]
                    text = subprocess.run(["build/bench", "decode", "--model", a.model, "--weights", weights, *of],
                                          stdout=subprocess.PIPE, check=True, text=True).stdout
                    ours.append(float(re.search(r"([\d.]+) tokens/s", text)[1]))
                    text = subprocess.run([sys.executable, __file__, f"{a.gguf}/{weights}.gguf", "-", "--one", *of],
                                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                                          text=True).stdout
                    theirs.append(float(text))
                x, y = statistics.median(ours), statistics.median(theirs)
                print(f"| {weights} | {threads} | {batch} | {x:.0f} | {y:.0f} | {x / y:.2f}x |", flush=True)


main()
