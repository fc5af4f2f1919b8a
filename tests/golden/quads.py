"""Quadruples and tokenizers for the reference scripts: the `clean` and the `authors` tokenization of a record, with the
`tokenizers` library and Jinja2, and model folders with a real tokenizer.

clean    The prompt's ids are what the model is given at inference: the template with the generation prompt, tokenized alone.
         The response is what follows in the rendered conversation, up to and including the turn's end token. Where the
         tokenizer prepends a symbol to a text (SentencePiece style), conversation and prompt are tokenized together and cut
         at the border, so that nothing is prepended to the response. Truncation: the prompt keeps its last max_prompt_length
         ids, then every response what fits.
authors  The reference trainer's way: prompt without the generation prompt; every response rendered as a conversation of its
         own, BOS stripped; prompt + response tokenized together and split where the prompt's ids end (one token earlier if
         the last one merged); the EOS id appended once more; truncation `keep_end`. (Its dependency also inserts an empty
         system message for templates that mention one. Llama-3's does not; that is left out here.)
"""
import datetime
import json
import os
import shutil

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers


class Text:
    """The tokenizer files of one folder."""

    def __init__(self, folder):
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
            self.file = json.load(f)
        with open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8") as f:
            self.config = json.load(f)
        self.tok = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        template = os.path.join(folder, "chat_template.jinja")
        source = open(template, encoding="utf-8").read() if os.path.exists(template) else self.config["chat_template"]
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        env.globals["raise_exception"] = self.refuse
        env.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
        self.template = env.from_string(source)
        self.special = {t["content"] for t in self.file["added_tokens"] if t["special"]}
        # SentencePiece style: something is put before the text's first character
        text = json.dumps([self.file["normalizer"], self.file["pre_tokenizer"]])
        self.prepends = '"Prepend"' in text or ('"Metaspace"' in text and '"never"' not in text)

    @staticmethod
    def refuse(text):
        raise ValueError("template: " + text)

    def token(self, name):
        t = self.config.get(name)
        return t["content"] if isinstance(t, dict) else t

    def id(self, name):
        return self.tok.token_to_id(self.token(name))

    def render(self, messages, prompt):
        names = {n: self.token(n) for n in ("bos_token", "eos_token", "unk_token", "pad_token") if self.token(n)}
        return self.template.render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **names)

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False)


def clean(text, record, max_length, max_prompt_length):
    """{"prompt": ids, "responses": [ids, ...]}"""
    prompt_text = text.render([record["prompt"]], True)
    prompt = text.encode(prompt_text).ids
    out = {"prompt": prompt, "responses": []}
    for message in record["chosen"] + record["rejected"]:
        whole = text.render([record["prompt"], message], False)
        assert whole.startswith(prompt_text), "the prompt is no prefix of the conversation"
        content = message["content"].strip()
        end = whole.index(content, len(prompt_text)) + len(content)
        stops = [(whole.find(s, end), -len(s)) for s in text.special if whole.find(s, end) >= 0]
        assert stops, "the turn has no end token"
        at, size = min(stops)  # the first one; of two at one place the longer
        whole = whole[: at - size]
        if text.prepends:
            e = text.encode(whole)
            same = e.ids[: len(prompt)] == prompt and (len(prompt) == len(e.ids) or e.offsets[len(prompt)][0] >= len(prompt_text.rstrip()))
            assert same, "a token merges across the border"
            out["responses"].append(e.ids[len(prompt) :])
        else:
            out["responses"].append(text.encode(whole[len(prompt_text) :]).ids)
    out["prompt"] = prompt = prompt[-max_prompt_length:]
    out["responses"] = [y[: max_length - len(prompt)] for y in out["responses"]]
    return out


def authors(text, record, max_length, max_prompt_length):
    """{"prompts": [ids per response], "responses": [ids, ...]}"""
    prompt_text = text.render([record["prompt"]], False)
    prompt = text.encode(prompt_text).ids
    made = []
    for message in record["chosen"] + record["rejected"]:
        answer, bos = text.render([message], False), text.token("bos_token")
        if bos and answer.startswith(bos):
            answer = answer[len(bos) :]
        full = text.encode(prompt_text + answer).ids
        split = len(prompt) - (prompt != full[: len(prompt)])
        made.append((full[:split], full[split:] + [text.id("eos_token")]))
    longest = max(len(y) for _, y in made)
    out = {"prompts": [], "responses": []}
    for p, y in made:
        if len(p) + longest > max_length:
            p = p[-max_prompt_length:]
        if len(p) + longest > max_length:
            y = y[: max_length - max_prompt_length]
        out["prompts"].append(p)
        out["responses"].append(y)
    out["prompt"] = min(out["prompts"], key=len)
    return out


TOKENIZATIONS = {"clean": clean, "authors": authors}


def read(path, count):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for _, line in zip(range(count), f)]


def tokenizer_dir(folder, source, template=None, add=(), names=None):
    """Copies a tokenizer's files into folder: with another chat template (text), more special tokens, other names for them."""
    os.makedirs(folder, exist_ok=True)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(source, f), os.path.join(folder, f))
        os.chmod(os.path.join(folder, f), 0o644)
    if add:
        path = os.path.join(folder, "tokenizer.json")
        tok = tokenizers.Tokenizer.from_file(path)
        tok.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in add])
        tok.save(path)
    if template or names:
        path = os.path.join(folder, "tokenizer_config.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        config.update(names or {})
        if template:
            config["chat_template"] = template
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f, indent=2, ensure_ascii=False)
    return Text(folder)
