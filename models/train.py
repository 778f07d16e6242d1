#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train a small byte-level MoE decoder and write it in the Hugging Face Qwen3-MoE layout.

The token of a byte is its value, 0..255; there is no other token. Reads train.txt, valid.txt and heldout.txt (from
models/make_corpus.py), writes config.json, model.safetensors (bf16), README.md, heldout.txt and log.txt.
The checkpoint with the best bits per byte on valid.txt is kept; heldout.txt is read once, at the end, with the weights
already rounded to bf16. One seed fixes initial weights, batches and dropout; GPUs still add in varying order, so a
second run gives a model of the same quality, not the same bits.

Usage: models/train.py [--data models/corpus] [--out models/kjv-moe]   (a GPU is used when there is one)
       models/train.py --smoke --out /tmp/smoke                        (40 steps on a CPU: does everything run?)
"""
import argparse
import copy
import json
import math
import pathlib
import shutil
import sys
import time

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "moe_intermediate_size": 64,
    "intermediate_size": 256,  # of dense layers, of which there are none; the loader wants a value
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "router_aux_loss_coef": 0.01,
    "output_router_logits": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
}
EVAL_WINDOW = 512


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
        return self.weight * wide.to(x.dtype)


def rotary_tables(length, device):
    size = CONFIG["head_dim"]
    frequency = CONFIG["rope_theta"] ** -(torch.arange(0, size, 2, device=device).float() / size)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-high, low), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        hidden, self.size, self.dropout = CONFIG["hidden_size"], CONFIG["head_dim"], dropout
        queries, keys = CONFIG["num_attention_heads"] * self.size, CONFIG["num_key_value_heads"] * self.size
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.size), RMSNorm(self.size)

    def forward(self, x, tables):
        batch, length, _ = x.shape

        def heads(projection):
            return projection(x).view(batch, length, -1, self.size)

        query = rotate(self.q_norm(heads(self.q_proj)).transpose(1, 2), *tables)
        key = rotate(self.k_norm(heads(self.k_proj)).transpose(1, 2), *tables)
        value = heads(self.v_proj).transpose(1, 2)
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value.to(query.dtype), is_causal=True,
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Moe(nn.Module):
    """All experts compute all tokens, and routes not chosen get weight 0: at this size two large matrix products beat
    sorting tokens by expert. The result is that of computing the chosen experts alone."""

    def __init__(self):
        super().__init__()
        hidden, inner, experts = CONFIG["hidden_size"], CONFIG["moe_intermediate_size"], CONFIG["num_experts"]
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, 2, inner, hidden))
        self.down = nn.Parameter(torch.empty(experts, inner, hidden))  # transposed, against the file

    def route(self, x):
        # In fp32 under autocast too: a rounded router would train other choices than the exported model makes.
        with torch.autocast(x.device.type, enabled=False):
            probability = F.linear(x.float(), self.gate.weight).softmax(-1)
            best, chosen = probability.topk(CONFIG["num_experts_per_tok"], dim=-1)
            weight = torch.zeros_like(probability).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
            share = (weight > 0).float().mean(0) / CONFIG["num_experts_per_tok"]
            balance = CONFIG["num_experts"] * (share * probability.mean(0)).sum()
        return weight, share, balance

    def forward(self, x):
        experts, _, inner, hidden = self.gate_up.shape
        flat = x.reshape(-1, hidden)
        weight, share, balance = self.route(flat)
        gate, up = F.linear(flat, self.gate_up.transpose(0, 1).reshape(-1, hidden)).chunk(2, dim=-1)
        act = (F.silu(gate) * up).view(-1, experts, inner) * weight.to(gate.dtype).unsqueeze(-1)
        out = act.view(-1, experts * inner) @ self.down.reshape(-1, hidden).to(act.dtype)
        return out.view(x.shape), share, balance


class Layer(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(CONFIG["hidden_size"]) for _ in range(2))
        self.self_attn, self.mlp, self.drop = Attention(dropout), Moe(), nn.Dropout(dropout)

    def forward(self, x, tables):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), tables))
        out, share, balance = self.mlp(self.post_attention_layernorm(x))
        return x + self.drop(out), share, balance


class Decoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(CONFIG["num_hidden_layers"]))
        self.norm, self.drop = RMSNorm(CONFIG["hidden_size"]), nn.Dropout(dropout)
        self.lm_head = nn.Linear(CONFIG["hidden_size"], CONFIG["vocab_size"], bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                # What is added to the residual stream starts smaller, so that depth does not change its size.
                scale = (2 * len(self.layers)) ** -0.5 if "o_proj" in name or "down" in name else 1.0
                nn.init.normal_(parameter, std=CONFIG["initializer_range"] * scale)

    def forward(self, tokens):
        """Return (logits, [share of routes per expert], mean balance loss: 1 when experts are used alike)."""
        x, tables = self.drop(self.embed_tokens(tokens)), rotary_tables(tokens.shape[1], tokens.device)
        shares, balances = [], []
        for layer in self.layers:
            x, share, balance = layer(x, tables)
            shares.append(share)
            balances.append(balance)
        return self.lm_head(self.norm(x)).float(), shares, torch.stack(balances).mean()


def export_tensors(model):
    """Return the weights in bf16 under Hugging Face's names, one tensor per expert and projection."""
    tensors = {}
    for name, parameter in model.state_dict().items():
        if name.endswith("mlp.gate_up"):
            for expert, (gate, up) in enumerate(parameter):
                tensors[f"model.{name[:-8]}.experts.{expert}.gate_proj.weight"] = gate
                tensors[f"model.{name[:-8]}.experts.{expert}.up_proj.weight"] = up
        elif name.endswith("mlp.down"):
            for expert, down in enumerate(parameter):
                tensors[f"model.{name[:-5]}.experts.{expert}.down_proj.weight"] = down.T
        else:
            tensors[name if name.startswith("lm_head") else f"model.{name}"] = parameter
    return {name: tensor.to(torch.bfloat16).contiguous().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def evaluate(model, data):
    """Return (bits per byte, [share of routes per expert] per layer), in fp32.

    Windows begin at byte 0, 512, 1024, ...; each predicts the bytes after its own 512 (the last, as many as there
    are), so that every byte but the first is predicted exactly once, from at most 512 bytes before it.
    """
    model.eval()
    device = next(model.parameters()).device
    whole = (len(data) - 1) // EVAL_WINDOW
    batches = [range(i, min(i + 32, whole)) for i in range(0, whole, 32)]
    windows = [torch.stack([data[w * EVAL_WINDOW:(w + 1) * EVAL_WINDOW + 1] for w in batch]) for batch in batches]
    if whole * EVAL_WINDOW + 1 < len(data):
        windows.append(data[whole * EVAL_WINDOW:].unsqueeze(0))
    bits, shares = 0.0, 0.0
    for window in windows:
        window = window.to(device).long()
        logits, share, _ = model(window[:, :-1])
        bits += F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum").item() / math.log(2)
        shares = shares + torch.stack(share) * (window[:, 1:].numel() / (len(data) - 1))
    model.train()
    return bits / (len(data) - 1), shares


def learning_rate(step, options):
    warm = min(1.0, (step + 1) / options.warmup)
    return options.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options.steps)))


def take_batch(data, step, options, generator, device):
    """Windows of a half, one and two contexts in turn: every position up to the largest is trained, short ones more."""
    length = options.context * (1, 2, 4)[step % 3] // 2
    starts = torch.randint(len(data) - length, (options.batch_bytes // length,), generator=generator).to(device)
    window = data[starts[:, None] + torch.arange(length + 1, device=device)].long()
    return window[:, :-1], window[:, 1:]


def make_optimizer(model, options):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": options.decay},
                              {"params": vectors, "weight_decay": 0.0}], lr=options.lr, betas=(0.9, 0.98))


def train(model, texts, options, device, log):
    """Train, and leave the best checkpoint on valid.txt in `model`. Returns (its bits per byte, its step)."""
    optimizer = make_optimizer(model, options)
    generator = torch.Generator().manual_seed(options.seed)
    data = texts["train"].to(device)
    best, best_step, best_state, start = math.inf, 0, None, time.time()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        inputs, targets = take_batch(data, step, options, generator, device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits, _, balance = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        (loss + CONFIG["router_aux_loss_coef"] * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % options.eval_every == 0 or step + 1 == options.steps:
            valid, _ = evaluate(model, texts["valid"])
            log(f"step {step + 1:6d}  train {loss.item() / math.log(2):.4f}  valid {valid:.4f} bits/byte  "
                f"balance {balance.item():.3f}  {time.time() - start:.0f} s")
            if valid < best:
                best, best_step, best_state = valid, step + 1, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return best, best_step


CARD = """# {name}

A byte-level Mixture-of-Experts language model that writes in the manner of the King James Bible. It is small enough to
ship with Muster and real enough to show whether a fault changed an answer.

| | |
|---|---|
| layout | Qwen3-MoE: `config.json` and `model.safetensors`, loads in Hugging Face `Qwen3MoeForCausalLM` |
| size | {parameters:,} parameters, bf16, {size:,} bytes for both files |
| shape | {layers} layers, hidden {hidden}, {heads} heads ({kv} for keys and values) |
| experts | {experts} per layer, of width {inner}; top-{top_k}, renormalised |
| tokens | bytes: the token of a byte is its value; no special tokens |
| positions | trained up to {positions} |
| text | King James Bible, from the Debian packages `bible-kjv` and `bible-kjv-text`; public domain |
| held out | {bits:.4f} bits per byte on `heldout.txt` ({heldout:,} bytes, kept out of training and of every choice) |
| busiest / idlest expert | {busiest:.2f} / {idlest:.2f} times its fair share of the routes on `heldout.txt` |
| licence | Apache-2.0, as the rest of Muster; the text is in the public domain |

## How it was made

    models/make_corpus.py
    {command}

Seed {seed}, {steps} steps of {batch} bytes, {seconds:.0f} s on {device}. The checkpoint of step {best_step}
was the best on the validation chapters ({valid:.4f} bits per byte). The script's default settings are the best there of
four that were tried (dropout 0.1 to 0.25, 5000 to 9000 steps, learning rate 0.002 and 0.003). A repeat gives a model of
the same quality, not the same bits, because GPUs add in varying order.

## How the bits per byte are counted

Windows begin at byte 0, 512, 1024, … of `heldout.txt`. Each feeds its 512 bytes and predicts the byte after each of
them (the last window: as many as there are). So every byte but the first is predicted once, from at most 512 bytes
before it. The figure is the sum of -log2 of their probabilities over their number, in fp32 with the bf16 weights of the
file. The book repeats itself, and some stories are told twice: 4 % of the 40-byte strings of `heldout.txt` occur
in the training text as well.

## Files

| file | what it holds |
|---|---|
| `heldout.txt` | the held-out chapters |
| `prompts.txt` | 16 prompts, one per line: openings of verses from held-out chapters |
| `log.txt` | the training log |
"""


def write_card(path, fields):
    keys = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
            "kv": "num_key_value_heads", "experts": "num_experts", "inner": "moe_intermediate_size",
            "top_k": "num_experts_per_tok", "positions": "max_position_embeddings"}
    path.write_text(CARD.format(**fields, **{key: CONFIG[value] for key, value in keys.items()}))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).parent
    parser.add_argument("--data", type=pathlib.Path, default=here / "corpus")
    parser.add_argument("--out", type=pathlib.Path, default=here / "kjv-moe")
    parser.add_argument("--seed", type=int, default=1611)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--context", type=int, default=512, help="bytes; batches use a half, one and two of it")
    parser.add_argument("--batch-bytes", type=int, default=16384)
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: PyTorch's choice")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--smoke", action="store_true", help="40 small steps on a CPU, to test the script")
    options = parser.parse_args()
    if options.smoke:
        options.steps, options.warmup, options.batch_bytes, options.eval_every, options.cpu = 40, 10, 2048, 20, True
    return options


def read_texts(folder):
    missing = [name for name in ("train", "valid", "heldout") if not (folder / f"{name}.txt").is_file()]
    if missing:
        sys.exit(f"train: {folder}/{missing[0]}.txt is missing: run models/make_corpus.py first")
    return {name: torch.frombuffer(bytearray((folder / f"{name}.txt").read_bytes()), dtype=torch.uint8)
            for name in ("train", "valid", "heldout")}


def main():
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = read_texts(options.data)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device("cpu" if options.cpu or not torch.cuda.is_available() else "cuda")
    device_name = f"an {torch.cuda.get_device_name()}" if device.type == "cuda" else "a CPU"

    with open(options.out / "log.txt", "w", encoding="utf-8") as log_file:
        def log(line):
            print(line, flush=True)
            print(line, file=log_file, flush=True)

        model = Decoder(options.dropout).to(device)
        parameters = sum(p.numel() for p in model.parameters())
        log(f"{parameters} parameters, torch {torch.__version__}, {device_name}, seed {options.seed}")
        log(f"steps {options.steps}, lr {options.lr}, decay {options.decay}, dropout {options.dropout}, "
            f"context {options.context}, batch {options.batch_bytes} bytes")
        start = time.time()
        valid, best_step = train(model, texts, options, device, log)
        seconds = time.time() - start

        tensors = export_tensors(model)
        safetensors.torch.save_file(tensors, options.out / "model.safetensors", metadata={"format": "pt"})
        (options.out / "model.safetensors").chmod(0o644)  # the writer leaves it to its owner alone
        (options.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
        shutil.copyfile(options.data / "heldout.txt", options.out / "heldout.txt")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
        rounded, _ = evaluate(model, texts["valid"])
        bits, shares = evaluate(model, texts["heldout"])
        loads = shares * CONFIG["num_experts"]
        size = sum((options.out / name).stat().st_size for name in ("config.json", "model.safetensors"))
        log(f"best step {best_step}: valid {valid:.4f}, in bf16 {rounded:.4f} bits/byte")
        log(f"held out, in bf16: {bits:.4f} bits/byte; {size} bytes; experts' loads over a fair share, per layer: "
            + ", ".join(f"{layer.min():.2f}..{layer.max():.2f}" for layer in loads))
        write_card(options.out / "README.md", {
            "name": options.out.resolve().name, "parameters": parameters, "size": size, "bits": bits, "valid": rounded,
            "heldout": len(texts["heldout"]), "busiest": loads.max().item(), "idlest": loads.min().item(),
            "seed": options.seed, "steps": options.steps, "batch": options.batch_bytes, "seconds": seconds,
            "device": device_name, "best_step": best_step,
            "command": " ".join(["models/train.py"] + [f"--{k} {getattr(options, k)}" for k in
                                                       ("steps", "lr", "decay", "dropout", "seed")])})


if __name__ == "__main__":
    main()
