#!/usr/bin/env python3
"""Golden rewards: sequence classification of transformers, InternLM2's reward model and ArmoRM's gated head, in float32.

    python rewards.py                   writes rewards/<name>/ (directories, with a tokenizer) and rewards.json beside this file
    python rewards.py --check           makes them again in memory and compares them with what is committed

rewards.json, {name: ...}: "ids", whole conversations (some end in padding, which the head must look behind), and "scores", one
number a conversation (a list for a head of several labels). Of a directory also "prompt", "answers" and "answer_scores": the
conversations as the template renders them. "armorm" has no directory: its vocabulary is too large for one, so it has its "config", the
weights are common.py's formula, and test and script make the same head from the same names.

InternLM2's and ArmoRM's classes are not in transformers: the first is written below as Llama with renamed tensors, the second as its
authors describe it, both from their formulas.
"""
import argparse
import json
import os
import shutil
import tempfile

import peft
import safetensors.torch
import torch
import transformers

import common
import families

HERE = os.path.dirname(os.path.abspath(__file__))
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
DIRECTORIES = {  # name: config, dtype, labels
    "llama_f32": (common.new("Llama", "llama", 16, 21, 2, 4, 2, 300, ROPE, attention_bias=False, mlp_bias=False, head_dim=4, pad_token_id=0), torch.float32, 1),
    "gemma2_bf16": (common.old("Gemma2", "gemma2", 16, 18, 2, 2, 1, 300, attention_bias=False, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                               head_dim=8, hidden_activation="gelu_pytorch_tanh", pad_token_id=0, query_pre_attn_scalar=8, sliding_window=9,
                               tie_word_embeddings=True), torch.bfloat16, 3),
    "internlm2_f32": (common.old("InternLM2", "internlm2", 16, 20, 2, 4, 2, 300, bias=False, max_position_embeddings=24, pad_token_id=2,
                                 rope_scaling={"type": "dynamic", "factor": 2.0}, rope_theta=1000000, reward_token_id=299), torch.float32, 1),
}
ARMORM = {"architectures": ["LlamaForRewardModelWithGating"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 128258, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "hidden_act": "silu",
          "max_position_embeddings": 8192, "pad_token_id": 128256, "bos_token_id": 128000, "eos_token_id": 128009, "torch_dtype": "float32",
          "tie_word_embeddings": False, "num_objectives": 5, "gating_temperature": 10, "gating_hidden_dim": 7, "gating_n_hidden": 3}
HEADER = [128009, 128006, 78191, 128007, 271]
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which letter follows c?"}]
ANSWERS = ["d", "The letter that follows c is d.", "", "I do not know - naïve 😀\n"]


def tensor(name, *shape):
    return torch.from_numpy(common.formula(name, shape))


def trunk(model, ids):
    rotary = model.rotary_emb
    if rotary.rope_type == "dynamic":
        rotary.inv_freq, rotary.max_seq_len_cached = rotary.original_inv_freq, rotary.original_max_seq_len
    return model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0].float()


def directory(name, out):
    config, dtype, labels = DIRECTORIES[name]
    folder = os.path.join(out, "rewards", name)
    reward_token = config.get("reward_token_id")
    if reward_token:
        config = {**config, "architectures": ["InternLM2ForRewardModel"]}
        common.write_config(folder, config)
        model = common.fill(transformers.LlamaModel(common.config_of(folder)), names="model.").eval()
        head = tensor("v_head.weight", 1, config["hidden_size"])
        tensors = common.to_internlm2({"model." + k: v for k, v in model.state_dict().items()}, model.config)
        safetensors.torch.save_file({**tensors, "v_head.weight": head}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

        def score(ids):
            return float(trunk(model, ids if ids[-1] == reward_token else ids + [reward_token])[-1] @ head[0])
    else:
        with tempfile.TemporaryDirectory() as tmp:
            common.write_config(tmp, config)
            c = transformers.AutoConfig.from_pretrained(tmp)
        c.num_labels, c.dtype = labels, dtype
        model = common.fill(transformers.AutoModelForSequenceClassification.from_config(c, dtype=torch.float32, attn_implementation="eager"))
        model.to(dtype).save_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

        def score(ids):
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            return logits.tolist() if labels > 1 else float(logits[0])
    tok = families.tokenizer()
    tok.save_pretrained(folder)
    ids = [common.ids(f"reward/{name}/{i}", n, 299) for i, n in enumerate((1, 7, 19, 33))]
    ids += [ids[2][:9] + [0, 0, 0], [0] + ids[1], [0, 0], ids[2][:15] + ids[3][:20]]
    rendered = [tok.apply_chat_template(PROMPT + [{"role": "assistant", "content": a}], tokenize=True, return_dict=False) for a in ANSWERS]
    for f in os.listdir(folder):
        os.chmod(os.path.join(folder, f), 0o644)
    return {"ids": ids, "scores": [score(x) for x in ids], "prompt": PROMPT, "answers": ANSWERS, "answer_scores": [score(x) for x in rendered]}


def adapter(out):
    """A language model's directory, and in adapter/ what PEFT saves of a reward model trained on it: score.weight is in modules_to_save."""
    config = common.new("Llama", "llama", 16, 21, 2, 4, 2, 300, ROPE, attention_bias=False, mlp_bias=False, head_dim=4, pad_token_id=0)
    folder = os.path.join(out, "rewards", "llama_lora")
    with tempfile.TemporaryDirectory() as tmp:
        common.write_config(tmp, config)
        c = transformers.AutoConfig.from_pretrained(tmp)
    common.fill(transformers.AutoModelForCausalLM.from_config(c, dtype=torch.float32)).save_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, attn_implementation="eager")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules=["q_proj", "o_proj", "down_proj"], modules_to_save=["score"])
    model = peft.get_peft_model(model, lora)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data = tensor(name.replace("base_model.model.", ""), *p.shape)
    model.save_pretrained(os.path.join(folder, "adapter"))
    os.remove(os.path.join(folder, "adapter", "README.md"))
    path = os.path.join(folder, "adapter", "adapter_config.json")
    text = json.load(open(path, encoding="utf-8"))
    text["base_model_name_or_path"] = "llama_lora"
    text["target_modules"] = sorted(text["target_modules"])
    json.dump(text, open(path, "w", encoding="utf-8"), indent=2)
    families.tokenizer().save_pretrained(folder)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, os.path.join(folder, "adapter")).eval()
    for where, _, files in os.walk(folder):
        for f in files:
            os.chmod(os.path.join(where, f), 0o644)
    ids = [common.ids(f"reward/lora/{i}", n, 299) for i, n in enumerate((1, 7, 19, 33))] + [[5, 6, 0, 0]]
    return {"ids": ids, "scores": [float(model(input_ids=torch.tensor([x])).logits[0, 0]) for x in ids]}


def armorm():
    c, D, K, hidden = ARMORM, ARMORM["hidden_size"], ARMORM["num_objectives"], ARMORM["gating_hidden_dim"]
    with tempfile.TemporaryDirectory() as tmp:
        common.write_config(tmp, c)
        model = common.fill(transformers.LlamaModel(transformers.AutoConfig.from_pretrained(tmp)), names="model.").eval()
    regression, transform = tensor("regression_layer.weight", K, D), tensor("reward_transform_matrix", K, K)
    sizes = [D] + [hidden] * c["gating_n_hidden"] + [K]
    layers = [(tensor(f"gating.layers.{i}.weight", sizes[i + 1], sizes[i]), tensor(f"gating.layers.{i}.bias", sizes[i + 1])) for i in range(len(sizes) - 1)]
    scale = tensor("gating.logit_scale", 1)

    def score(ids):
        h = trunk(model, ids)
        pad = ids.index(c["pad_token_id"]) if c["pad_token_id"] in ids else 0
        last = (pad - 1) % len(ids)
        start = max(i for i in range(len(ids) - len(HEADER) + 1) if ids[i : i + len(HEADER)] == HEADER)
        x = h[start]
        for i, (w, b) in enumerate(layers):
            x = w @ x + b
            x = torch.relu(x) if i + 1 < len(layers) else x
        g = torch.softmax(x / c["gating_temperature"], 0) * scale[0]
        return float(g @ (h[last] @ regression.T @ transform))

    part = [common.ids(f"reward/armorm/{i}", n, 128000) for i, n in enumerate((11, 6, 4, 9))]
    pad = [c["pad_token_id"]]
    ids = [part[0] + HEADER + part[1] + [128009], part[0] + HEADER + part[3] + [128009], part[0] + HEADER + part[2] + HEADER + part[3] + [128009],
           part[1] + HEADER + part[2] + pad * 3, HEADER + [128009]]
    return {"config": c, "ids": ids, "scores": [score(x) for x in ids]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
        out = tmp if a.check else HERE
        shutil.rmtree(os.path.join(out, "rewards"), ignore_errors=True)
        made = {name: directory(name, out) for name in DIRECTORIES}
        made["armorm"] = armorm()
        made["llama_lora"] = adapter(out)
        common.write(os.path.join(out, "rewards.json"), made)
        for name, m in made.items():
            print(f"{name:14s} {len(m['ids'])} conversations, scores {json.dumps(common.rounded(m['scores'])[:4])} ...")
        if a.check:
            bad, seen = families.compare(out, HERE)
            print("\n".join(bad) or f"{seen} files as committed")
            raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
