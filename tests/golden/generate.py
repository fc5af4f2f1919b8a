#!/usr/bin/env python3
"""Golden greedy answers of every family and of the committed checkpoints, from transformers' generate in float32.

    python generate.py                                 writes generate.json beside this file: 2 prompts of each
    python generate.py --prompts 20 --out FILE         more of them;  build/64_generate FILE  then compares with that
    python generate.py --check                         makes them again and compares with what is committed

families:     {name: [[prompt ids, answer ids], ...]}; the weights are those of common.py's formula over families/<name>/config.json
checkpoints:  {name: [[prompt, answer ids, answer text], ...]}; the prompt is a user's turn in the checkpoint's chat template

Answers end at an eos_token_id, after 64 tokens or at max_position_embeddings, and hold the first of these. Longrope turns by other
factors beyond its original length: prompts are longer than that, for which factors a shorter one gets depends on how long its
answer may become. Where two tokens are nearly equally likely, either
library may be right: a prompt on whose way the best logit leads by less than 1e-4 is left out for the next one and counted.
"""
import argparse
import json
import os
import tempfile

import torch
import transformers

import common
import families

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = ["Hello", "What is the answer?", "Say it again, please.", "Name three of them", "é and ü", "Once upon a time", "1 + 2 =", "the the the", "x",
         "Why?", "Write a poem about the sea", "Tell me more", "A list of words:", "Who was first?", "Go on", "no", "In what order?", "Is that all?",
         "Count to ten", "Good bye", "One more", "And another", "Or not", "Never mind", "A last one"]


LONGROPE = {name: c["original_max_position_embeddings"] for name, (c, _, _) in families.CHECKPOINTS.items() if "short_factor" in (c.get("rope_scaling") or {})}


def greedy(model, prompt):
    """The answer's ids, and by how much the best logit led where that was least."""
    most = min(64, model.config.max_position_embeddings - len(prompt))
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=most,
                             pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    best = torch.stack(out.logits)[:, 0].topk(2).values
    return out.sequences[0, len(prompt):].tolist(), float((best[:, 0] - best[:, 1]).min())


def family(name, folder, count):
    model = common.build(folder)
    config, out, skipped, i = common.FAMILIES[name], [], 0, 0
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    least = config["original_max_position_embeddings"] if "short_factor" in rope else 0
    while len(out) < count:
        prompt = common.ids(f"generate/{name}/{i}", least + 1 + i * 7 % min(41, config["max_position_embeddings"] - 8), model.config.vocab_size)
        answer, lead = greedy(model, prompt)
        i += 1
        if lead < 1e-4:
            skipped += 1
            continue
        out.append([prompt, answer])
    print(f"{name:20s} answers of {sorted(len(a) for _, a in out)} tokens, {skipped} prompts left out")
    return out


def checkpoint(name, count):
    folder = os.path.join(HERE, "checkpoints", name)
    model, _ = common.load(folder)
    tok = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    out, skipped = [], 0
    for text in TEXTS:
        text = " and ".join([text] * 3) if name in LONGROPE else text
        messages = [{"role": "user", "content": text}]
        prompt = tok.encode(tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), add_special_tokens=False)
        if len(prompt) > model.config.max_position_embeddings - 4 or len(prompt) <= LONGROPE.get(name, 0):
            continue
        answer, lead = greedy(model, prompt)
        if lead < 1e-4:
            skipped += 1
        elif len(out) < count:
            out.append([text, answer, tok.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)])
    assert len(out) == count, (name, len(out))
    print(f"{name:20s} answers of {sorted(len(a) for _, a, _ in out)} tokens, {skipped} prompts left out")
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=os.path.join(HERE, "generate.json"))
    p.add_argument("--prompts", type=int, default=2)
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made = {"families": {}, "checkpoints": {name: checkpoint(name, a.prompts) for name in families.CHECKPOINTS}}
    for name in common.FAMILIES:
        with tempfile.TemporaryDirectory() as tmp:
            common.write_config(tmp, common.FAMILIES[name])
            made["families"][name] = family(name, tmp, a.prompts)
    if a.check:
        same = made == json.load(open(a.out, encoding="utf-8"))
        print("as committed" if same else "differs from what is committed")
        raise SystemExit(0 if same else 1)
    common.write(a.out, made)


if __name__ == "__main__":
    main()
