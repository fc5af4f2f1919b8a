"""Token ids of records in the shapes that public data sets have, by TRL's own data code, for tests/58_data.c.

    OMP_NUM_THREADS=1 python data.py        (transformers 5.24, trl 1.16) writes data.json beside this file

Each case is a file as a user has it ("lines": the field names of the data set that is named, contents of our own) and what
DPOTrainer or SFTTrainer makes of it. Where TRL wants other fields, `ready` maps them, as a user of TRL has to:

    from/value with human and gpt    TRL renames the keys, not the roles: they are renamed here
    system, question, instruction    no names of TRL's: a prompt of messages
    strings as prompt and answer     TRL takes them for plain text, without the chat template: messages here

What differs on purpose, and how the test compares: TRL scores what a template writes after the end token (a newline, in
ChatML), wrpo.h stops there. So wrpo.h's answers are those of TRL up to that token."""
import json
import os
import types

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import tokenizers
import transformers
import trl
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

datasets.disable_progress_bars()
TURN = "<|im_start|>{{ m.role }}\n"
TEMPLATES = {
    "chatml": "{% for m in messages %}" + TURN + "{{ m.content }}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # the same, with the marks that TRL wants for assistant_only_loss
    "marked": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
              "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "tools": "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}" + TURN +
             "{{ m.content }}{% for key in m if key not in ['role', 'content'] %} {{ key }}={{ m[key] }}{% endfor %}"
             "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "header": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n{{ m.content | trim }}</s>{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n{% endif %}",
    # a generation prompt that the conversation does not have, and reasoning that it drops (R1's distillates)
    "prefilled": "{% for m in messages %}" + TURN + "{{ m.content }}<|im_end|>\n{% endfor %}"
                 "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "drops": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content.split('</think>')[-1] }}</s>"
             "{% else %}U:{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}A:<think>\n{% endif %}",
}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*contents, system=None, **more):
    first = [turn("system", system, **more)] if system else []
    return first + [turn(["user", "assistant"][i % 2], c, **more) for i, c in enumerate(contents)]


def share(*contents, names=("human", "gpt"), **more):
    return [{"from": names[i % 2], "value": c, **more} for i, c in enumerate(contents)]


SUM, FOUR, FIVE = "What is two plus two?", "Four, I am sure.", "Five, or so."
LONG = ["Name a colour.", "Red.", "Another one, please.", "  Blue, as the sky is."]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
NAMES = {"human": "user", "gpt": "assistant", "system": "system"}


def roles(messages):
    return [{**{k: v for k, v in m.items() if k not in ("from", "value")}, "role": NAMES[m["from"]], "content": m["value"]}
            for m in messages]


def prompted(r, question):
    system = r.get("system") or r.get("system_prompt")
    return ([turn("system", system)] if system else []) + [turn("user", question)]


def pair(r, question):
    return {"prompt": prompted(r, question), "chosen": [turn("assistant", r["chosen"])],
            "rejected": [turn("assistant", r["rejected"])]}


def answered(r, question, answer):
    return {"prompt": prompted(r, question), "completion": [turn("assistant", answer)]}


def last(messages):
    return {"prompt": messages[:-1], "completion": messages[-1:]}


# name: (method, template, lines, how a line becomes what TRL reads, options)
CASES = {
    "HuggingFaceH4/ultrafeedback_binarized": ("dpo", "chatml", [
        {"prompt": SUM, "prompt_id": "8a1f", "chosen": talk(SUM, FOUR), "rejected": talk(SUM, FIVE),
         "messages": talk(SUM, FOUR), "score_chosen": 8.0, "score_rejected": 3.5},
        {"prompt": "Hi", "prompt_id": "8a20", "chosen": talk("Hi", " Hello!"), "rejected": talk("Hi", "\nGo away."),
         "messages": talk("Hi", " Hello!"), "score_chosen": 7.0, "score_rejected": 1.0}], None, {}),
    "trl-lib/ultrafeedback_binarized": ("dpo", "header", [
        {"chosen": talk(SUM, FOUR), "rejected": talk(SUM, FIVE), "score_chosen": 9.0, "score_rejected": 2.0}], None, {}),
    "mlabonne/orpo-dpo-mix-40k": ("dpo", "chatml", [
        {"source": "x", "chosen": talk(SUM, FOUR, system="Be brief."), "rejected": talk(SUM, FIVE, system="Be brief."),
         "prompt": SUM, "question": SUM},
        {"source": "y", "chosen": talk(*LONG, "A third?", "Green."), "rejected": talk(*LONG, "A third?", "No."),
         "prompt": "Name a colour.", "question": None}], None, {}),
    "Intel/orca_dpo_pairs": ("dpo", "chatml", [
        {"system": "Be brief.", "question": SUM, "chosen": FOUR, "rejected": FIVE},
        {"system": "", "question": "Hi", "chosen": "Hello!", "rejected": "No."}], lambda r: pair(r, r["question"]), {}),
    "argilla/distilabel-intel-orca-dpo-pairs": ("dpo", "header", [
        {"system": "Be brief.", "input": SUM, "chosen": FOUR, "rejected": FIVE, "generations": [FOUR, FIVE],
         "order": ["a", "b"], "rating": [9.0, 7.0], "status": "unchanged", "chosen_score": 9.0, "in_gsm8k_train": False}],
        lambda r: pair(r, r["input"]), {}),
    "jondurbin/truthy-dpo-v0.1": ("dpo", "chatml", [
        {"id": "1", "source": "t", "system": "You are a person.", "prompt": SUM, "chosen": FOUR, "rejected": FIVE}],
        lambda r: pair(r, r["prompt"]), {}),
    "LLaMA-Factory, dpo in ShareGPT's form": ("dpo", "chatml", [
        {"conversations": share(*LONG[:3]), "chosen": share(LONG[3], names=["gpt"])[0],
         "rejected": share("No.", names=["gpt"])[0], "system": "You name colours."}],
        lambda r: {"prompt": [turn("system", r["system"])] + roles(r["conversations"]), "chosen": roles([r["chosen"]]),
                   "rejected": roles([r["rejected"]])}, {}),
    "TRL, explicit prompt, with keys that are null": ("dpo", "tools", [
        {"prompt": talk(SUM, tool_calls=None, name=None), "chosen": [turn("assistant", FOUR, tool_calls=None)],
         "rejected": [turn("assistant", FIVE, tool_calls=None)], "tools": json.dumps(TOOLS)}], None, {}),
    "a generation prompt that no conversation has": ("dpo", "prefilled", [
        {"prompt": talk("a"), "chosen": [turn("assistant", "four")],
         "rejected": [turn("assistant", "<think>\nhm\n</think>\nfive")]},
        {"prompt": talk("b"), "chosen": [turn("assistant", "<think>\nx\n</think>\nyes")],
         "rejected": [turn("assistant", "<think>\ny\n</think>\nno")]}], None, {}),
    "reasoning that the template drops": ("dpo", "drops", [
        {"prompt": talk("a"), "chosen": [turn("assistant", "<think>\nhm\n</think>\nfour")],
         "rejected": [turn("assistant", "five")]}], None, {}),
    "tatsu-lab/alpaca": ("sft", "chatml", [
        {"instruction": "Add the numbers.", "input": "2, 2", "output": "4", "text": "Below is an instruction ..."},
        {"instruction": SUM, "input": "", "output": FOUR, "text": "Below is an instruction ..."}],
        lambda r: answered(r, r["instruction"] + (r["input"] and "\n" + r["input"]), r["output"]), {}),
    "databricks/databricks-dolly-15k": ("sft", "header", [
        {"instruction": "Who did?", "context": "Ann did.", "response": "Ann.", "category": "closed_qa"}],
        lambda r: answered(r, r["instruction"] + "\n" + r["context"], r["response"]), {}),
    "Open-Orca/OpenOrca": ("sft", "chatml", [
        {"id": "niv.1", "system_prompt": "Think.", "question": SUM, "response": FOUR},
        {"id": "niv.2", "system_prompt": "", "question": "Hi", "response": "Hello!"}],
        lambda r: answered(r, r["question"], r["response"]), {}),
    "trl-lib, prompt and completion": ("sft", "header", [
        {"prompt": talk(SUM), "completion": [turn("assistant", FOUR)]}], None, {}),
    "teknium/OpenHermes-2.5": ("sft", "chatml", [
        {"id": None, "conversations": share(*LONG), "source": "s", "category": "c", "system_prompt": None, "title": None}],
        lambda r: last(roles(r["conversations"])), {}),
    "Open-Orca/SlimOrca, every turn": ("sft", "chatml", [
        {"conversations": [{"from": "system", "value": "Be kind.", "weight": None}] + share(*LONG, weight=0.5)}],
        lambda r: {"messages": roles(r["conversations"])}, {"sft_on": "assistant", "marks": "marked"}),
    "HuggingFaceH4/ultrachat_200k": ("sft", "chatml", [
        {"prompt": LONG[0], "prompt_id": "u1", "messages": talk(*LONG)},
        {"prompt": SUM, "prompt_id": "u2", "messages": talk(SUM, FOUR)}], lambda r: last(r["messages"]), {}),
    "the same, every turn": ("sft", "chatml", [
        {"prompt": LONG[0], "prompt_id": "u1", "messages": talk(*LONG)},
        {"prompt": SUM, "prompt_id": "u2", "messages": talk(SUM, "\n\nFour.")}],
        lambda r: {"messages": r["messages"]}, {"sft_on": "assistant", "marks": "marked"}),
    "the same, the template's own marks": ("sft", "marked", [
        {"messages": talk(*LONG)}], None, {"sft_on": "assistant"}),
    "trl-lib/Capybara, every token": ("sft", "header", [
        {"source": "c", "messages": talk(*LONG), "num_turns": 2}, {"source": "c", "messages": talk(SUM, FOUR), "num_turns": 1}],
        None, {"sft_on": "all"}),
    "the same, packed as the authors do": ("sft", "header", [
        {"messages": talk(*(LONG[i % 4] + " " * (i % 3) for i in range(2 * (1 + n % 4))))} for n in range(9)], None,
        {"sft_on": "all", "packing": True, "max_length": 48}),
    "the same, packed, every turn": ("sft", "header", [
        {"messages": talk(*(LONG[i % 4] for i in range(2 * (1 + n % 3))))} for n in range(6)], None,
        {"sft_on": "assistant", "packing": True, "max_length": 40, "marks": "header_marked"}),
    "every turn, cut": ("sft", "header", [
        {"messages": talk(*LONG)}, {"messages": talk(" ".join(LONG * 3), "Never.")}], None,
        {"sft_on": "assistant", "max_length": 40, "marks": "header_marked"}),
}
MARKED = {"header_marked": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n"
          "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}</s>{% endgeneration %}"
          "{% else %}{{ m.content | trim }}</s>{% endif %}{% endfor %}"}


def make_tokenizer():
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False,
                                             initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator([json.dumps(lines) for _, _, lines, _, _ in CASES.values()] + ["\n\n", " \n", "user\nassistant\n"] * 9,
                            trainer)
    tok.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return tok


def run(tok, method, template, lines, ready, options):
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATES[template]
    data = datasets.Dataset.from_list([ready(r) for r in json.loads(json.dumps(lines))] if ready else lines)
    self = types.SimpleNamespace(_tokenizer=fast, completion_only_loss=not options.get("sft_on"), chat_template=None)
    length = options.get("max_length", 2048)
    if method == "dpo":
        data = data.map(trl.data_utils.maybe_extract_prompt)
        extra = [c for c in data.column_names if c in ("messages", "question", "source")]
        args = types.SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
        out = DPOTrainer._prepare_dataset(self, data.remove_columns(extra), fast, args, "train")
        return [{"prompt": r["prompt_ids"], "responses": [r["chosen_ids"], r["rejected_ids"]]} for r in out]
    on_assistant = options.get("sft_on") == "assistant"
    marks = options.get("marks")
    self.chat_template = {**TEMPLATES, **MARKED}[marks] if marks else None
    args = types.SimpleNamespace(dataset_num_proc=None, max_length=length, truncation_mode="keep_start",
                                 assistant_only_loss=on_assistant, dataset_text_field="text", shuffle_dataset=False,
                                 packing_strategy="wrapped", seed=42)
    out = SFTTrainer._prepare_dataset(self, data, fast, args, options.get("packing", False), None, "train")
    return [{"ids": r["input_ids"], "scored": [int(x != -100) for x in r["labels"]]} for r in out]


def main():
    tok = make_tokenizer()
    assert trl.__version__.startswith("1.16"), trl.__version__
    cases = []
    for name, (method, template, lines, ready, options) in CASES.items():
        records = run(tok, method, template, lines, ready, options)
        cases.append({"name": name, "template": template, **options, "lines": lines, "records": records})
        cases[-1].pop("marks", None)
    head = {"made_by": f"data.py, trl {trl.__version__}, transformers {transformers.__version__}",
            "tokenizer": json.loads(tok.to_str()), "templates": TEMPLATES}
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "data.json"), "w") as f:
        f.write("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()) + ',\n"cases": [\n')
        f.write(",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


main()
