"""The authors' training procedure in plain PyTorch, for authors_train.py and train_golden.py: their loss and metrics, a frozen
copy as reference, torch.optim.AdamW, clip_grad_norm_, transformers' schedules. Sequences run one by one in float32.

Records are dicts {"prompt": [ids], "responses": [[ids], [ids], [ids]]}: source, target, rejected; a response may bring its
own prompt as "prompts" (the `authors` tokenization can give responses prompts that differ in their last token).
Fused records have other responses and say which: "roles" (0 source, 1 target, 2 rejected), "weights" of the sources, "pairs"
(the number of the pair, 0 where there are none), and "weight", what the record's loss counts for.
For InfiFPO a record has "source_logps", for each source model a pair [log-prob, tokens] of each response.
"""
import copy
import math

import torch
import torch.nn.functional as F
import transformers

OPTIONS = {"method": "wrpo", "pair": "target", "alpha": 0.1, "alpha_schedule": "linear", "beta": 0.01, "label_smoothing": 0.0, "gamma_ratio": 0.3,
           "fusion": "margin", "sft_weight": 0.0,
           "learning_rate": 3e-7, "lr_scheduler": "cosine", "warmup_ratio": 0.1, "batch_size": 128, "epochs": 1.0, "max_grad_norm": 1.0,
           "weight_decay": 0.0}
METRICS = ["loss", "grad_norm", "learning_rate", "epoch", "cur_alpha", "rewards/chosen", "rewards/source_chosen", "rewards/target_chosen",
           "rewards/rejected", "rewards/accuracies", "rewards/source_accuracies", "rewards/pivot_accuracies", "rewards/margins", "logps/chosen",
           "logps/source_chosen", "logps/target_chosen", "logps/rejected", "logits/chosen", "logits/rejected"]


def alpha_at(schedule, end, k, T):
    """Their LinearDecayScheduler from 0 to end over T optimizer steps, or one of ours."""
    if schedule == "constant":
        return end
    u = min(max(k / T, 0), 1)
    if schedule == "linear":
        return 0 + (end - 0) * u
    if schedule == "cosine":
        return end * (1 - math.cos(math.pi * u)) / 2
    name, power = schedule.split(":")
    assert name == "power"
    return end * u ** float(power)


def sequence(model, prompt, response):
    """Sum of the response's log-probs (their get_batch_logps, but added up in double: at 700 tokens a float32 sum is good to
    5e-4, more than a step moves it); sum and number of all the sequence's logits."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
    per_token = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    return per_token.double().sum(), float(logits.detach().double().sum()), logits.numel()


def infifpo_scores(o, policy, ref, tokens, source_logps):
    """InfiFPO (Gu et al. 2025): l(policy) - c, where c is the sources' clipped and fused log-prob per token. The model before
    training is one of the sources."""
    n = torch.tensor(tokens, dtype=policy.dtype)
    own = (policy / n).detach()
    initial = ref / n
    sources = torch.stack([initial] + [torch.tensor([s / t for s, t in model], dtype=policy.dtype) for model in source_logps])
    good = torch.tensor([True, True, False])
    clipped = torch.where(good, torch.maximum(sources, initial), torch.minimum(sources, initial))
    if o["fusion"] == "mean":
        c = clipped.mean(0)
    elif o["fusion"] == "confidence":
        c = (torch.softmax(1 / (-sources + 1e-8), 0) * clipped).sum(0)
    else:
        pivot = own if o["fusion"] == "margin" else initial
        far = (sources.exp() - pivot.exp()).abs().argmax(0)
        c = clipped.gather(0, far[None])[0]
    return policy / n - c


def wrpo_loss(o, alpha, policy, ref, tokens, source_logps=None):
    """Losses of one record; policy, ref: log-probs of (source, target, rejected). Also the record's rewards."""
    beta, eps, method = o["beta"], o["label_smoothing"], o["method"]
    d = policy if method == "simpo" else policy - ref
    if method in ("simpo", "dpo-norm", "ipo"):
        d = d / torch.tensor(tokens, dtype=d.dtype)
    if method.startswith("infifpo"):
        d = infifpo_scores(o, policy, ref, tokens, source_logps)
    s, t, l = d
    w_s, w_t = (alpha, 1 - alpha) if method in ("wrpo", "infifpo-wrpo") else {"target": (0, 1), "source": (1, 0), "both": (0.5, 0.5)}[o["pair"]]
    anchor = -(w_s * policy[0] / tokens[0] + w_t * policy[1] / tokens[1])

    def logistic(margin):
        return -F.logsigmoid(beta * margin) * (1 - eps) - F.logsigmoid(-beta * margin) * eps

    link = {"wrpo": logistic, "dpo": logistic, "dpo-norm": logistic, "simpo": lambda m: logistic(m - o["gamma_ratio"]),
            "hinge": lambda m: F.relu(1 - beta * m), "ipo": lambda m: (m - 1 / (2 * beta)) ** 2}
    link.update({"infifpo": logistic, "infifpo-wrpo": logistic, "infifpo-ipo": link["ipo"]})
    link = link[method]
    if method in ("wrpo", "infifpo-wrpo"):
        chosen = alpha * s + (1 - alpha) * t
        loss = link(chosen - l)
    elif o["pair"] == "both":  # the authors' loss_type "sigmoid"
        chosen = (s + t) / 2
        loss = (link(s - l) + link(t - l)) / 2
    else:
        chosen = s if o["pair"] == "source" else t
        loss = link(chosen - l)
    return loss + o["sft_weight"] * anchor, [(beta * v).item() for v in (s, t, l, chosen)]


def fused_loss(o, alpha, policy, ref, record):
    """FusePO: sum_i w_i L(best_i, worst_i); WRPO over K sources. Loss, and the rewards of chosen and rejected."""
    d = o["beta"] * (policy if o["method"] == "simpo" else policy - ref)
    if o["method"] in ("simpo", "dpo-norm"):
        d = d / torch.tensor([len(y) for y in record["responses"]], dtype=d.dtype)
    role, weight, pair = record["roles"], record["weights"], record["pairs"]
    sources = [i for i in range(len(role)) if role[i] == 0]
    if o["method"] == "wrpo":
        chosen = alpha * sum(weight[i] * d[i] for i in sources) + (1 - alpha) * d[role.index(1)]
        rejected = d[role.index(2)]
        return -F.logsigmoid(chosen - rejected), chosen.item(), rejected.item()
    worst = {pair[i]: d[i] for i in range(len(role)) if role[i] == 2}
    gamma = o["beta"] * o["gamma_ratio"] if o["method"] == "simpo" else 0
    loss = sum(-weight[i] * F.logsigmoid(d[i] - worst[pair[i]] - gamma) for i in sources)
    return loss, sum(weight[i] * d[i].item() for i in sources), sum(weight[i] * worst[pair[i]].item() for i in sources)


def train(model, records, options, log=None):
    """Trains in place; returns one dict of METRICS per optimizer step (None where the method defines none).

    `loss` and the metrics are means over the step's records; logits/* means over all positions (prompt included) and the
    vocabulary; grad_norm is before clipping; learning_rate is the one the step used; epoch counts the step itself."""
    o = {**OPTIONS, **options}
    per_epoch = math.ceil(len(records) / o["batch_size"])
    T = math.ceil(o["epochs"] * per_epoch)
    warmup = math.ceil(o["warmup_ratio"] * T)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = copy.deepcopy(model).eval()
    trained = [p for p in model.parameters() if p.requires_grad]  # all, or an adapter's
    decay = [p for p in trained if p.dim() == 2]
    rest = [p for p in trained if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": o["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
                                  lr=o["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    make = {"cosine": transformers.get_cosine_schedule_with_warmup, "linear": transformers.get_linear_schedule_with_warmup,
            "constant": transformers.get_constant_schedule_with_warmup}[o["lr_scheduler"]]
    schedule = make(optimizer, warmup, *([] if o["lr_scheduler"] == "constant" else [T]))

    ref_logps = {}
    if o["method"] not in ("sft", "simpo"):
        with torch.no_grad():
            for i, r in enumerate(records):
                ref_logps[i] = torch.stack([sequence(reference, p, y)[0] for p, y in pairs(r)])
    del reference

    out = []
    for k in range(T):
        first = k % per_epoch * o["batch_size"]
        batch = list(range(first, min(first + o["batch_size"], len(records))))
        alpha = alpha_at(o["alpha_schedule"], o["alpha"], k, T)
        rows = [one_record(model, o, alpha, records[i], ref_logps.get(i), records, batch) for i in batch]
        norm = sum(float(q.grad.double().pow(2).sum()) for q in trained) ** 0.5  # clip_grad_norm_'s own float32 sum is off by 1e-5
        torch.nn.utils.clip_grad_norm_(trained, o["max_grad_norm"] if o["max_grad_norm"] > 0 else math.inf)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        mean = {m: sum(r[m] for r in rows) / len(rows) for m in rows[0] if not m.startswith("_")}
        if "_chosen" in rows[0]:
            for side in ("chosen", "rejected"):
                mean["logits/" + side] = sum(r["_" + side][0] for r in rows) / sum(r["_" + side][1] for r in rows)
        if o["method"] == "sft":
            mean["loss"] *= len(rows)  # their shares of the batch's mean over tokens
        mean.update(grad_norm=norm, learning_rate=rate, epoch=(k + 1) / per_epoch)
        if o["method"] in ("wrpo", "infifpo-wrpo"):
            mean["cur_alpha"] = alpha
        out.append({m: mean.get(m) for m in METRICS})
        if log:
            log(k, T, out[-1])
    return out


def pairs(record):
    return list(zip(record.get("prompts") or [record["prompt"]] * len(record["responses"]), record["responses"]))


def one_record(model, o, alpha, record, ref, records, batch):
    """Forward, loss and backward of one record; its share of the step's metrics."""
    if "roles" in record:
        return fused_record(model, o, alpha, record, ref, records, batch)
    if o["method"] == "sft":
        prompt, response = pairs(record)[0]
        logp = sequence(model, prompt, response)[0]
        loss = -logp / sum(len(records[i]["responses"][0]) for i in batch)
        loss.backward()
        return {"loss": loss.item(), "logps/source_chosen": logp.item()}
    made = [sequence(model, p, y) for p, y in pairs(record)]
    policy = torch.stack([m[0] for m in made])
    loss, (rs, rt, rl, rc) = wrpo_loss(o, alpha, policy, ref, [len(y) for y in record["responses"]], record.get("source_logps"))
    (loss / len(batch)).backward()
    s, t, l = policy.tolist()
    row = {"loss": loss.item(), "logps/chosen": (s + t) / 2, "logps/source_chosen": s, "logps/target_chosen": t, "logps/rejected": l,
           "_chosen": (made[0][1] + made[1][1], made[0][2] + made[1][2]), "_rejected": (made[2][1], made[2][2])}
    row.update({"rewards/chosen": rc, "rewards/source_chosen": rs, "rewards/target_chosen": rt, "rewards/rejected": rl,
                "rewards/accuracies": float(rc > rl), "rewards/source_accuracies": float(rs > rl), "rewards/pivot_accuracies": float(rt > rl),
                "rewards/margins": rc - rl})
    return row


def fused_record(model, o, alpha, record, ref, records, batch):
    if o["method"] == "sft":  # FuseSFT: the sources' answers by their weights, over the batch's tokens weighted alike
        of = lambda r: [i for i in range(len(r["roles"])) if r["roles"][i] == 0]
        tokens = sum(records[j]["weights"][i] * len(records[j]["responses"][i]) for j in batch for i in of(records[j]))
        loss = -sum(record["weights"][i] * sequence(model, record["prompt"], record["responses"][i])[0] for i in of(record)) / tokens * record["weight"]
        loss.backward()
        return {"loss": loss.item()}
    policy = torch.stack([sequence(model, p, y)[0] for p, y in pairs(record)])
    loss, chosen, rejected = fused_loss(o, alpha, policy, ref, record)
    loss = loss * record["weight"]
    (loss / len(batch)).backward()
    return {"loss": loss.item(), "rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
