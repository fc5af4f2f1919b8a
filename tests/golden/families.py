#!/usr/bin/env python3
"""Golden log-probs and gradients of every supported family, from transformers in float32.

    python families.py                  writes families/<name>/{config.json, golden.json} and checkpoints/ beside this file
    python families.py --check          makes them again in memory and compares them with what is committed
    python families.py --noise          also prints how far transformers is from itself (sdpa, float64 weights)

families/<name>/golden.json, the weights being those of common.py's formula over config.json:
    scale    {kind: [offset, scale]} of the formula
    records  prompt, responses: token ids; logps: one number per response token; coef: dL/dlogp of every token of that response
    grad     of L = sum over records and responses of coef * sum(logps): {tensor: {norm, samples: [[index, value], ...]}}
checkpoints/<name>/ are directories written by save_pretrained (one file; shards; float32; bfloat16), with a tokenizer and
a chat template; checkpoints/<name>.json has the same records and logps, computed in float32 from the stored weights.

Sequences run one by one (prompt + response, positions from 0, no padding, eager attention); sdpa must agree.
"""
import argparse
import json
import os
import shutil
import tempfile

import safetensors.torch
import torch
import transformers

import common

HERE = os.path.dirname(os.path.abspath(__file__))
# prompt tokens, response tokens: one-token prompts and responses, and lengths beyond every window and original length above
SHAPES = [(19, [17, 9, 23]), (1, [1, 3, 40]), (45, [5, 16, 31])]
COEF = [[0.125, 0.75, -1.0], [-0.5, 1.25, 0.25], [0.0, 0.5, -0.625]]  # a zero: a response without gradient
SAMPLES = 6


def golden(model, recs):
    """Adds logps and coef to the records; returns the gradients."""
    model.zero_grad()
    used = sorted({t for r in recs for ids in [r["prompt"]] + r["responses"] for t in ids})
    for r, coef in zip(recs, COEF):
        r["coef"], r["logps"] = coef, []
        for ids, c in zip(r["responses"], coef):
            lp = common.logps(model, r["prompt"], ids)
            (c * lp.sum()).backward()
            r["logps"].append(lp.tolist())
    grad = {}
    for name, p, part in common.parts(model):
        rows = used if "embed_tokens" in name else None  # the other rows may have no gradient at all
        grad[name] = {"norm": float(p.grad[part].double().norm()), "samples": common.sampled(name, p.grad[part], SAMPLES, rows)}
    return grad


def worst(recs, model):
    return max(float((common.logps(model, r["prompt"], ids) - torch.tensor(lp)).abs().max())
               for r in recs for ids, lp in zip(r["responses"], r["logps"]))


def family(name, out, noise):
    folder = os.path.join(out, "families", name)
    common.write_config(folder, common.FAMILIES[name])
    model = common.build(folder)
    recs = common.records(name, model.config.vocab_size, SHAPES)
    grad = golden(model, recs)
    common.write(os.path.join(folder, "golden.json"), {"scale": {k: list(v) for k, v in common.SCALE.items()}, "records": recs, "grad": grad})
    with torch.no_grad():
        sdpa = 0
        if "gemma2" not in name:  # whose caps sdpa cannot compute
            model.set_attn_implementation("sdpa")
            sdpa = worst(recs, model)
            model.set_attn_implementation("eager")
        f64 = worst(recs, model.double()) if noise else 0
    assert sdpa < 2e-5, (name, "sdpa and eager differ by", sdpa)
    flat = [v for r in recs for ids in r["logps"] for v in ids]
    print(f"{name:14s} parameters {sum(p.numel() for p in model.parameters()):7d}  logps mean {sum(flat) / len(flat):7.3f} "
          f"from {min(flat):7.2f} to {max(flat):6.2f}  sdpa {sdpa:.1e}" + (f"  float64 {f64:.1e}" if noise else ""))


# ---- directories ----
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def tokenizer():
    """A byte-level BPE of 300 ids: three special tokens first, 256 bytes, 41 merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m.split()) for m in (
        "Ġ t,h e,Ġ a,i n,Ġt he,r e,o n,Ġ w,Ġ s,e r,a t,Ġ o,n d,Ġ b,Ġ c,o r,e s,Ġ f,i s,e n,Ġ p,in g,Ġ d,i t,a n,o u,Ġa nd,Ġ m,a r,"
        "Ġt o,e d,Ġo f,a l,Ġ in,Ġw h,l l,o m,Ġ re,Ġ y,Ġy ou,a s").split(",")]
    vocab = {t: i for i, t in enumerate(special + alphabet + [a + b for a, b in merges])}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    assert tok.get_vocab_size() == 300
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                                chat_template=CHATML)


CHECKPOINTS = {  # name: config, dtype, max_shard_size
    "llama_f32": (common.new("Llama", "llama", 24, 37, 2, 4, 2, 300, {"rope_theta": 10000.0, "rope_type": "default"}, attention_bias=False, head_dim=6,
                             mlp_bias=False, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True), torch.float32, "5GB"),
    "qwen2_bf16_sharded": (common.new("Qwen2", "qwen2", 24, 45, 2, 4, 2, 300, {"rope_theta": 1000000.0, "rope_type": "default"}, bos_token_id=1,
                                      eos_token_id=2, pad_token_id=0, max_window_layers=2, sliding_window=None, use_sliding_window=False),
                           torch.bfloat16, "16KB"),
    "gemma2_bf16": (common.old("Gemma2", "gemma2", 24, 34, 2, 4, 2, 300, attention_bias=False, attn_logit_softcapping=50.0, final_logit_softcapping=8.0,
                               head_dim=8, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", pad_token_id=0,
                               query_pre_attn_scalar=64, sliding_window=16, tie_word_embeddings=True), torch.bfloat16, "5GB"),
    "phi3_bf16_sharded": (common.old("Phi3", "phi3", 24, 41, 2, 4, 2, 300, embd_pdrop=0.0, original_max_position_embeddings=32, pad_token_id=0,
                                     resid_pdrop=0.0, rope_scaling={"type": "longrope", "short_factor": [1.0, 1.0, 1.25], "long_factor": [1.5, 2.5, 4.0]},
                                     sliding_window=21), torch.bfloat16, "16KB"),
    "internlm2_f32": (common.old("InternLM2", "internlm2", 24, 37, 2, 6, 2, 300, bias=False, max_position_embeddings=40, pad_token_id=2,
                                 rope_scaling={"type": "dynamic", "factor": 2.0}, rope_theta=1000000), torch.float32, "5GB"),
    "gemma3_bf16": (common.old("Gemma3", "gemma3_text", 24, 34, 2, 4, 2, 300, attention_bias=False, final_logit_softcapping=None, head_dim=8,
                               hidden_activation="gelu_pytorch_tanh", layer_types=["sliding_attention", "full_attention"], pad_token_id=0,
                               query_pre_attn_scalar=64, rope_local_base_freq=500.0, rope_theta=20000.0, sliding_window=16, tie_word_embeddings=True),
                    torch.bfloat16, "5GB"),
    "olmo2_bf16": (common.old("Olmo2", "olmo2", 24, 37, 2, 4, 2, 300, attention_bias=False, pad_token_id=0, rope_theta=50000), torch.bfloat16, "5GB"),
    "granite4_bf16": (common.old("GraniteMoeHybrid", "granitemoehybrid", 24, 37, 2, 4, 2, 300, attention_bias=False, attention_multiplier=0.25,
                                 embedding_multiplier=3, layer_types=["attention"] * 2, logits_scaling=2, mamba_d_head=8, mamba_n_heads=6,
                                 num_experts_per_tok=0, num_local_experts=0, pad_token_id=0, position_embedding_type="rope", residual_multiplier=0.5,
                                 shared_intermediate_size=37, tie_word_embeddings=True), torch.bfloat16, "5GB"),
    "smollm3_bf16": (common.old("SmolLM3", "smollm3", 24, 37, 2, 4, 2, 300, attention_bias=False, mlp_bias=False, no_rope_layers=[1, 0], pad_token_id=0,
                                tie_word_embeddings=True, use_sliding_window=False), torch.bfloat16, "5GB"),
}


def checkpoint(name, out):
    config, dtype, shard = CHECKPOINTS[name]
    folder = os.path.join(out, "checkpoints", name)
    with tempfile.TemporaryDirectory() as tmp:
        common.write_config(tmp, config)
        model = common.build(tmp)
    if config["model_type"] == "internlm2":
        common.write_config(folder, config)
        tensors = common.to_internlm2(model.to(dtype).state_dict(), model.config)
        safetensors.torch.save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    else:
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    model, _ = common.load(folder)
    recs = common.records(name, model.config.vocab_size, SHAPES)
    golden(model, recs)
    common.write(folder + ".json", {"records": recs})
    for f in os.listdir(folder):
        os.chmod(os.path.join(folder, f), 0o644)
    print(f"{name:20s} {sorted(os.listdir(folder))}")


def numbers(x):
    """Every number of a golden, and its shape with the numbers taken out."""
    if isinstance(x, dict):
        parts = [(k, numbers(v)) for k, v in x.items()]
        return [n for _, (ns, _) in parts for n in ns], {k: s for k, (_, s) in parts}
    if isinstance(x, list):
        parts = [numbers(v) for v in x]
        return [n for ns, _ in parts for n in ns], [s for _, s in parts]
    return ([x], 0) if isinstance(x, float) else ([], x)


def compare(made, kept):
    """Files equal byte for byte, goldens to 1e-5 (another CPU adds in another order); returns what differs."""
    bad, seen = [], 0
    for root, _, files in os.walk(made):
        for f in sorted(files):
            a, seen = os.path.join(root, f), seen + 1
            b = os.path.join(kept, os.path.relpath(a, made))
            if not os.path.exists(b):
                bad.append(f"{b}: missing")
            elif f.endswith(".json") and ("records" in open(a).read() or f == "rewards.json"):
                (x, shape_x), (y, shape_y) = numbers(json.load(open(a))), numbers(json.load(open(b)))
                if shape_x != shape_y:
                    bad.append(f"{b}: another structure")
                elif any(abs(p - q) > 1e-5 * max(1, abs(q)) for p, q in zip(x, y)):
                    bad.append(f"{b}: numbers differ by {max(abs(p - q) for p, q in zip(x, y)):.1e}")
            elif open(a, "rb").read() != open(b, "rb").read():
                bad.append(f"{b}: bytes differ")
    return bad, seen


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=HERE)
    p.add_argument("--only", help="one family")
    p.add_argument("--check", action="store_true")
    p.add_argument("--noise", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as tmp:
        out = tmp if a.check else a.out
        for name in common.FAMILIES:
            if a.only in (None, name):
                if not a.check:
                    shutil.rmtree(os.path.join(out, "families", name), ignore_errors=True)
                family(name, out, a.noise)
        for name in CHECKPOINTS:
            if a.only in (None, name):
                if not a.check:
                    shutil.rmtree(os.path.join(out, "checkpoints", name), ignore_errors=True)
                checkpoint(name, out)
        if a.check:
            bad, seen = compare(out, a.out)
            print("\n".join(bad) or f"{seen} files as committed")
            raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
