"""What the reference scripts share: weights by formula, records by formula, JSON with nine digits, and the model
families. Nothing here reads or writes outside the folders it is given.

Weights by formula. The numbers of a tensor depend on its checkpoint name, its index and its kind, and on nothing
else, so that C and Python make the same model from a config alone and no weights need to be stored:

    bits  = splitmix64(fnv1a64(name) + index) >> 40           24 bits; index counts row-major
    value = offset + (bits / 2**24 - 0.5) * scale             in float32; every scale is a power of two, so only
                                                              the addition rounds
    name  = the Llama layout's: a family that fuses or renames tensors holds the same numbers in other places (see parts)
    kind  = the first that fits: norm (the name contains "norm"), bias (ends in ".bias"), embed (contains "embed_tokens"),
            head (begins with "lm_head"), linear (every other matrix)

splitmix64 is Steele, Lea & Flood's mixer (state + 0x9E3779B97F4A7C15, then two multiply-xorshift rounds).
"""
import json
import math
import os

import numpy as np

SCALE = {"norm": (1.0, 1.0), "bias": (0.0, 0.5), "embed": (0.0, 1.0), "head": (0.0, 0.5), "linear": (0.0, 0.5)}
U64 = (1 << 64) - 1


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & U64
    return h


def splitmix64(x):
    """x: array of uint64 (wraps)."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def bits64(name, count):
    with np.errstate(over="ignore"):
        return splitmix64(np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64))


def kind_of(name):
    if "norm" in name:
        return "norm"
    if name.endswith(".bias"):
        return "bias"
    if "embed_tokens" in name:
        return "embed"
    return "head" if name.startswith("lm_head") else "linear"


def formula(name, shape, scale=SCALE):
    offset, width = scale[kind_of(name)]
    u = (bits64(name, int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return (np.float32(offset) + (u - np.float32(0.5)) * np.float32(width)).astype(np.float32).reshape(shape)


def parts(model):
    """(name in the Llama layout, parameter, its rows) of every parameter; tied ones once, under the embedding's name. Phi-3 stacks
    the rows of q, k and v and those of gate and up in one tensor each, Granite 4 those of gate and up."""
    c = model.config
    d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    q, kv, inter = c.num_attention_heads * d, c.num_key_value_heads * d, getattr(c, "shared_intermediate_size", c.intermediate_size)
    for name, p in model.named_parameters():  # tied parameters are listed once
        name = name.replace("shared_mlp.input_linear", "mlp.gate_up_proj").replace("shared_mlp.output_linear", "mlp.down_proj")
        fused = {"qkv_proj": (("q_proj", q), ("k_proj", kv), ("v_proj", kv)), "gate_up_proj": (("gate_proj", inter), ("up_proj", inter))}
        key = next((k for k in fused if k in name), None)
        at = 0
        for part, rows in fused[key] if key else ((None, p.shape[0]),):
            yield name.replace(key, part) if key else name, p, slice(at, at + rows)
            at += rows
        assert at == p.shape[0], name


def fill(model, scale=SCALE, names=""):
    """Overwrites every parameter of a transformers model by the formula; names: what stands before a parameter's name in a checkpoint."""
    import torch

    with torch.no_grad():
        for name, p, rows in parts(model):
            p[rows] = torch.from_numpy(formula(names + name, tuple(p[rows].shape), scale))
    return model


# ---- InternLM2: transformers has no class of it, but it computes what Llama computes, from renamed tensors ----
INTERNLM2 = {"model.tok_embeddings": "model.embed_tokens", "output": "lm_head", "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
             "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def config_of(folder):
    """The transformers configuration of a folder; InternLM2's as a Llama's."""
    import transformers

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    if c["model_type"] != "internlm2":
        return transformers.AutoConfig.from_pretrained(folder)
    bias = c.pop("bias")
    c.pop("reward_token_id", None)
    return transformers.LlamaConfig(**{k: v for k, v in c.items() if k not in ("model_type", "architectures", "auto_map", "attn_implementation")},
                                    attention_bias=bias, mlp_bias=False)


def from_internlm2(tensors, config):
    """{name: tensor} of an InternLM2 checkpoint in the Llama layout. The rows of wqkv stand as [key/value head, its query heads and
    then its key and its value, head_dim], as InternLM2's own code takes them apart."""
    groups = config.num_attention_heads // config.num_key_value_heads
    d, out = config.hidden_size // config.num_attention_heads, {}
    for name, t in tensors.items():
        if ".wqkv." in name:
            rest = tuple(t.shape[1:])
            w = t.reshape(config.num_key_value_heads, groups + 2, d, *rest)
            for part, rows in (("q_proj", w[:, :groups]), ("k_proj", w[:, groups]), ("v_proj", w[:, groups + 1])):
                out[name.replace("attention.wqkv", "self_attn." + part)] = rows.reshape(-1, *rest)
        else:
            key = next((k for k in INTERNLM2 if k + "." in name), None)
            out[name.replace(key, INTERNLM2[key]) if key else name] = t
    return out


def to_internlm2(tensors, config):
    """The other way round."""
    import torch

    groups = config.num_attention_heads // config.num_key_value_heads
    d, out = config.hidden_size // config.num_attention_heads, {}
    for name, t in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            heads = [tensors[name.replace("q_proj", p)].reshape(config.num_key_value_heads, n, d, *t.shape[1:]) for p, n in
                     (("q_proj", groups), ("k_proj", 1), ("v_proj", 1))]
            out[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(heads, 1).reshape(-1, *t.shape[1:]).contiguous()
        else:
            key = next((k for k, v in INTERNLM2.items() if v + "." in name), None)
            out[name.replace(INTERNLM2[key], key) if key else name] = t
    return out


def load(folder):
    """A checkpoint in float32, and what transformers says about its tensors."""
    import safetensors.torch
    import torch
    import transformers

    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    if json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))["model_type"] != "internlm2":
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **how)
        return model.eval(), {k: sorted(v) for k, v in info.items() if v}
    config, tensors = config_of(folder), {}
    for f in sorted(os.listdir(folder)):
        if f.endswith(".safetensors"):
            tensors.update(safetensors.torch.load_file(os.path.join(folder, f)))
    model = transformers.AutoModelForCausalLM.from_config(config, **how)
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in from_internlm2(tensors, config).items()}, strict=False)
    return model.eval(), {k: v for k, v in (("missing_keys", missing), ("unexpected_keys", unexpected)) if v}


def build(config_dir, scale=SCALE, attn="eager"):
    """The formula model of a folder's config.json, in float32."""
    import torch
    import transformers

    config = config_of(config_dir)
    config.dtype = torch.float32
    config._attn_implementation = attn
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn)
    return fill(model, scale).eval()


def ids(name, count, vocab, low=3):
    """count token ids in [low, vocab), by formula."""
    return [int(b) for b in bits64("ids/" + name, count) % np.uint64(vocab - low) + np.uint64(low)]


def records(name, vocab, shapes, low=3):
    """Token-id records by formula. shapes: list of (prompt tokens, [response tokens, ...])."""
    out = []
    for i, (prompt, responses) in enumerate(shapes):
        r = {"prompt": ids(f"{name}/{i}/prompt", prompt, vocab, low)}
        r["responses"] = [ids(f"{name}/{i}/{k}", n, vocab, low) for k, n in enumerate(responses)]
        out.append(r)
    return out


def logps(model, prompt, response):
    """Log-probability of every response token, as a differentiable float32 vector. One sequence, no padding."""
    import torch

    rotary = model.model.rotary_emb
    if rotary.rope_type == "dynamic":  # otherwise the longest sequence so far would set the frequencies
        rotary.inv_freq, rotary.max_seq_len_cached = rotary.original_inv_freq, rotary.original_max_seq_len
    x = torch.tensor([prompt + response])
    logits = model(input_ids=x, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]


# ---- JSON: floats with nine significant digits (which name a float32 exactly), short arrays on one line ----
class Float(float):
    def __repr__(self):
        return "%.9g" % self


def rounded(x):
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v) for v in x]
    if isinstance(x, (float, np.floating)):
        if not math.isfinite(x):
            raise ValueError("not finite")
        return Float(x)
    return x


def text_of(x, width=150, indent=0):
    """JSON, broken into lines only where a value does not fit one; deterministic."""
    flat = json.dumps(x, ensure_ascii=False) if not isinstance(x, Float) else repr(x)
    if isinstance(x, (dict, list)):
        flat = flat_text(x)
    if len(flat) + indent <= width or not isinstance(x, (dict, list)) or not x:
        return flat
    pad = " " * (indent + 1)
    if isinstance(x, dict):
        parts = [json.dumps(k) + ": " + text_of(v, width, indent + 1) for k, v in x.items()]
        return "{\n" + ",\n".join(pad + p for p in parts) + "\n" + " " * indent + "}"
    if all(not isinstance(v, (dict, list)) for v in x) or all(isinstance(v, list) and len(v) == 2 for v in x):
        lines, line = [], ""  # a vector: filled lines
        for v in x:
            p = flat_text(v)
            if line and len(line) + len(p) + 2 + indent > width:
                lines.append(line)
                line = ""
            line += (", " if line else "") + p
        lines.append(line)
        return "[" + (",\n" + pad).join(lines) + "]"
    return "[\n" + ",\n".join(pad + text_of(v, width, indent + 1) for v in x) + "\n" + " " * indent + "]"


def flat_text(x):
    if isinstance(x, Float):
        return repr(x)
    if isinstance(x, dict):
        return "{" + ", ".join(json.dumps(k) + ": " + flat_text(v) for k, v in x.items()) + "}"
    if isinstance(x, list):
        return "[" + ", ".join(flat_text(v) for v in x) + "]"
    return json.dumps(x, ensure_ascii=False)


def write(path, value):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text_of(rounded(value)) + "\n")


def sampled(name, tensor, count, rows=None):
    """[index, value] of the largest entry and of count - 1 entries by formula; rows: only these rows of a matrix."""
    import torch

    flat = tensor.detach().reshape(-1)
    where = [int(torch.argmax(flat.abs()))]
    cols = tensor.shape[1] if tensor.dim() == 2 else 1
    for b in bits64("samples/" + name, 4 * count):
        i = int(b % np.uint64(flat.numel()))
        if rows is not None:
            i = rows[int(b >> np.uint64(32)) % len(rows)] * cols + i % cols
        if i not in where and len(where) < min(count, flat.numel()):
            where.append(i)
    return [[i, float(flat[i])] for i in where]


# ---- the families ----
# Every entry is a config.json. OLD is transformers v4's spelling (rope_theta, rope_scaling, torch_dtype), as the published
# checkpoints of that family have it, keys without meaning for the numbers included; NEW is what transformers v5 writes
# (rope_parameters, dtype, layer_types). Sizes are small and odd on purpose: heads share key/value heads, head_dim is
# given or derived, the intermediate size is no multiple of 16, windows and original lengths are shorter than the records.
def old(arch, model_type, hidden, inter, layers, heads, kv, vocab, **more):
    c = {"architectures": [arch + "ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
         "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": inter, "max_position_embeddings": 256,
         "model_type": model_type, "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv,
         "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
         "transformers_version": "4.43.1", "use_cache": True, "vocab_size": vocab}
    c.update(more)
    return c


def new(arch, model_type, hidden, inter, layers, heads, kv, vocab, rope, **more):
    c = {"architectures": [arch + "ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "float32", "eos_token_id": [2, 3],
         "hidden_act": "silu", "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": inter, "max_position_embeddings": 256,
         "model_type": model_type, "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv,
         "pad_token_id": None, "rms_norm_eps": 1e-06, "rope_parameters": rope, "tie_word_embeddings": False,
         "transformers_version": "5.23.0", "use_cache": True, "vocab_size": vocab}
    c.update(more)
    return c


LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64, "rope_type": "llama3"}
FAMILIES = {
    "llama": old("Llama", "llama", 48, 75, 2, 4, 2, 301, attention_bias=False, pretraining_tp=1, rope_scaling=None, mlp_bias=False),
    "llama_bias": new("Llama", "llama", 40, 53, 2, 5, 5, 257, {"rope_theta": 10000.0, "rope_type": "default"}, attention_bias=True, mlp_bias=False,
                      head_dim=8, pretraining_tp=1),
    "llama3": old("Llama", "llama", 64, 90, 2, 4, 1, 300, attention_bias=False, eos_token_id=[2, 3], mlp_bias=False, pretraining_tp=1,
                  rope_scaling=LLAMA3, rope_theta=500000.0),
    "llama3_new": new("Llama", "llama", 48, 70, 2, 6, 2, 293, {**LLAMA3, "factor": 32.0, "rope_theta": 2000.0}, attention_bias=False, head_dim=16,
                      mlp_bias=False, pretraining_tp=1, tie_word_embeddings=True, rms_norm_eps=1e-05),
    "llama_linear": old("Llama", "llama", 32, 45, 2, 4, 4, 259, rope_scaling={"type": "linear", "factor": 4.0}),
    "llama_yarn": new("Llama", "llama", 48, 61, 2, 4, 2, 259,
                      {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 6.0, "original_max_position_embeddings": 128, "beta_fast": 2.0,
                       "beta_slow": 0.5, "attention_factor": 1.375}, attention_bias=False, head_dim=12, mlp_bias=False),
    "smollm2": old("Llama", "llama", 36, 94, 3, 9, 3, 307, attention_bias=False, is_llama_config=True, max_position_embeddings=8192,
                   mlp_bias=False, pad_token_id=2, pretraining_tp=1, rope_interleaved=False, rope_scaling=None, rope_theta=100000,
                   tie_word_embeddings=True, initializer_range=0.041666666666666664),
    "yi": old("Llama", "llama", 64, 86, 2, 8, 2, 320, attention_bias=False, pad_token_id=0, pretraining_tp=1, rms_norm_eps=1e-06,
              rope_scaling=None, rope_theta=5000000.0),
    "mistral": old("Mistral", "mistral", 48, 84, 2, 4, 2, 300, sliding_window=13),
    "mistral_nemo": new("Mistral", "mistral", 40, 77, 2, 4, 2, 311, {"rope_theta": 1000000.0, "rope_type": "default"}, head_dim=14,
                        sliding_window=None),
    "qwen2": old("Qwen2", "qwen2", 56, 99, 2, 7, 1, 305, max_window_layers=1, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=16,
                 tie_word_embeddings=True, use_mrope=False, use_sliding_window=False),
    "qwen2_window": old("Qwen2", "qwen2", 48, 67, 3, 6, 3, 299, max_window_layers=1, rope_theta=1000000.0, sliding_window=11,
                        use_sliding_window=True),
    "qwen2_yarn": old("Qwen2", "qwen2", 32, 57, 2, 2, 1, 283, max_window_layers=2, rope_theta=1000000.0, sliding_window=None,
                      use_sliding_window=False, rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32, "type": "yarn"}),
    "qwen2_layers": new("Qwen2", "qwen2", 48, 59, 3, 4, 2, 277, {"rope_theta": 1000000.0, "rope_type": "default"}, max_window_layers=1,
                        layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=9, use_sliding_window=True),
    "llama_dynamic": new("Llama", "llama", 40, 51, 2, 4, 2, 271, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}, attention_bias=False,
                         head_dim=10, max_position_embeddings=40, mlp_bias=False),
    "gemma2": old("Gemma2", "gemma2", 48, 66, 3, 4, 2, 310, attention_bias=False, attn_logit_softcapping=50.0, cache_implementation="hybrid",
                  final_logit_softcapping=30.0, head_dim=16, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
                  query_pre_attn_scalar=24, rms_norm_eps=1e-06, sliding_window=12, sliding_window_size=12),
    "gemma2_new": new("Gemma2", "gemma2", 40, 59, 2, 5, 1, 287, {"rope_theta": 10000.0, "rope_type": "default"}, attention_bias=False,
                      attn_logit_softcapping=0.75, final_logit_softcapping=2.5, head_dim=8, hidden_act=None, hidden_activation="gelu_pytorch_tanh",
                      layer_types=["full_attention", "sliding_attention"], pad_token_id=0, query_pre_attn_scalar=8, sliding_window=15,
                      tie_word_embeddings=True, use_bidirectional_attention=None),
    "phi3": old("Phi3", "phi3", 48, 79, 2, 4, 4, 306, attention_bias=False, embd_pdrop=0.0, original_max_position_embeddings=256, pad_token_id=0,
                resid_pdrop=0.0, rope_scaling=None, sliding_window=14),
    "phi3_long": old("Phi3", "phi3", 48, 70, 2, 6, 3, 298, attention_bias=False, embd_pdrop=0.0, original_max_position_embeddings=40, pad_token_id=0,
                     resid_pdrop=0.0, sliding_window=262144,
                     rope_scaling={"type": "longrope", "short_factor": [1.0, 1.0625, 1.25, 2.0], "long_factor": [1.5, 2.25, 3.75, 9.5]}),
    "phi3_partial": new("Phi3", "phi3", 64, 83, 2, 4, 2, 293,
                        {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 48,
                         "short_factor": [1.0, 1.0, 1.125, 1.5, 2.0, 2.5], "long_factor": [1.0, 1.25, 1.5, 3.0, 6.0, 12.0]},
                        attention_bias=False, embd_pdrop=0.0, original_max_position_embeddings=48, resid_pdrop=0.0, sliding_window=None,
                        tie_word_embeddings=True, max_position_embeddings=384),
    "internlm2": old("InternLM2", "internlm2", 48, 73, 2, 6, 2, 302, bias=False, attn_implementation="eager", max_position_embeddings=40, pad_token_id=2,
                     rope_theta=1000000, rope_scaling={"type": "dynamic", "factor": 2.0}, hidden_act="silu",
                     auto_map={"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}),
    "internlm2_bias": old("InternLM2", "internlm2", 40, 61, 2, 5, 5, 281, bias=True, rms_norm_eps=1e-06, rope_scaling={"type": "linear", "factor": 2.0}),
    "qwen3": old("Qwen3", "qwen3", 40, 61, 2, 4, 2, 303, attention_bias=False, head_dim=16, max_window_layers=2, rms_norm_eps=1e-06,
                 rope_scaling=None, rope_theta=1000000, sliding_window=None, tie_word_embeddings=True, use_sliding_window=False),
    "qwen3_new": new("Qwen3", "qwen3", 48, 82, 2, 6, 2, 289, {"rope_theta": 1000000.0, "rope_type": "default"}, attention_bias=True, head_dim=10,
                     layer_types=["full_attention", "sliding_attention"], max_window_layers=1, sliding_window=12, use_sliding_window=True),
    "gemma3": old("Gemma3", "gemma3_text", 48, 66, 4, 4, 2, 310, sliding_window_pattern=3, attention_bias=False, attn_logit_softcapping=None,
                  final_logit_softcapping=None, head_dim=16, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, rms_norm_eps=1e-06,
                  rope_local_base_freq=500.0, rope_scaling=None, rope_theta=50000.0, sliding_window=12, tie_word_embeddings=True),
    "gemma3_new": new("Gemma3", "gemma3_text", 40, 59, 3, 5, 1, 287,
                      {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                       "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}, attention_bias=True, attn_logit_softcapping=None,
                      final_logit_softcapping=2.5, head_dim=8, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=96,
                      layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=15, use_bidirectional_attention=False),
    "smollm3": old("SmolLM3", "smollm3", 48, 73, 5, 4, 2, 303, attention_bias=False, max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4,
                   no_rope_layers=[1, 1, 1, 0, 1], pad_token_id=2, pretraining_tp=2, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=50000.0, sliding_window=None,
                   tie_word_embeddings=True, use_sliding_window=False, layer_types=["full_attention"] * 5),
    "smollm3_new": new("SmolLM3", "smollm3", 40, 61, 3, 5, 5, 289,
                       {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 128}, attention_bias=False,
                       mlp_bias=False, no_rope_layer_interval=2, pad_token_id=0, sliding_window=14, use_sliding_window=True),
    "olmo2": old("Olmo2", "olmo2", 48, 70, 2, 4, 2, 304, attention_bias=False, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=500000),
    "olmo2_new": new("Olmo2", "olmo2", 40, 53, 3, 5, 5, 281, {"rope_theta": 10000.0, "rope_type": "default"}, attention_bias=True,
                     tie_word_embeddings=True),
    "granite": old("Granite", "granite", 48, 75, 2, 4, 2, 307, attention_bias=False, attention_multiplier=0.125, embedding_multiplier=1.75,
                   logits_scaling=1.5, mlp_bias=False, residual_multiplier=0.22, rope_scaling=None, rope_theta=10000000.0, tie_word_embeddings=True),
    "granite_new": new("Granite", "granite", 40, 57, 3, 5, 1, 293, {"rope_theta": 10000.0, "rope_type": "default"}, attention_bias=True,
                       attention_multiplier=0.25, embedding_multiplier=0.5, logits_scaling=0.75, mlp_bias=False, residual_multiplier=1.0),
    "granite4": old("GraniteMoeHybrid", "granitemoehybrid", 48, 64, 2, 6, 2, 301, attention_bias=False, attention_multiplier=0.15,
                    embedding_multiplier=2, init_method="mup", layer_types=["attention"] * 2, logits_scaling=2, mamba_chunk_size=256,
                    mamba_conv_bias=True, mamba_d_conv=4, mamba_d_head=8, mamba_d_state=16, mamba_expand=2, mamba_n_groups=1, mamba_n_heads=12, mamba_proj_bias=False,
                    normalization_function="rmsnorm", num_experts_per_tok=0, num_local_experts=0, output_router_logits=False,
                    position_embedding_type="rope", residual_multiplier=0.5, rope_scaling=None, rope_theta=10000000, router_aux_loss_coef=0.01,
                    shared_intermediate_size=71, tie_word_embeddings=True),
    "mistral_small": old("Mistral", "mistral", 40, 89, 2, 4, 2, 296, head_dim=16, max_position_embeddings=32768, rope_theta=100000000.0,
                         sliding_window=None),
}


def write_config(folder, config):
    """config.json as transformers formats it: two spaces, sorted keys."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(config, indent=2, sort_keys=True) + "\n")
