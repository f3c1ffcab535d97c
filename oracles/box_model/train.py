#!/usr/bin/env python3
"""Trains the box model on the token streams that `tokens.py` wrote; one GPU, or a CPU for a trial of a few steps.

Keeps the checkpoint with the lowest held-out loss (the mean of the toolchain's and the crates' documents) as `model.safetensors` (f16)
beside `config.json` and `log.json`.

A small corpus is read many times, and what limits the model is overfitting. So a larger model of the same kind is trained first, with more
dropout, and the small one learns from its predictions (`--teacher`), which say more about each token than the token itself.

    python3 train.py --data DIR --out DIR/teacher --hidden 640 --layers 10 --heads 10 --dropout 0.25 ...
    python3 train.py --data DIR --out DIR/student --teacher DIR/teacher ...
"""

import argparse
import json
import math
import pathlib
import time
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from model import Config, Qwen3
from safetensors.torch import load_file, save_file


def check_against_transformers(config, device):
    """This model and transformers' must give the same logits for the same weights."""
    from transformers import Qwen3ForCausalLM
    ours = Qwen3(config).to(device).eval()
    theirs = Qwen3ForCausalLM(config.to_transformers()).to(device).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    theirs.tie_weights()
    ids = torch.randint(0, config.vocab_size, (2, 96), device=device)
    with torch.no_grad():
        a, b = ours(ids), theirs(ids).logits
    error = ((a - b).norm() / b.norm()).item()
    assert error < 2e-3, f"differs from transformers by {error}"  # tf32 may be on; in plain f32 it is about 1e-6
    return error


class Stream:
    """A token stream on the device, read in windows that start where paragraphs start."""

    def __init__(self, path, info, meta, device):
        ids = np.fromfile(path, dtype="<u2").astype(np.int32)
        self.ids = torch.from_numpy(ids).to(device)
        self.boundary = info["toolchain_tokens"]
        ends = np.isin(ids[:-1], meta["paragraph_ends"])
        starts = np.concatenate(([0], np.flatnonzero(ends) + 1))
        self.starts = torch.from_numpy(starts).to(device)
        self.split = int(np.searchsorted(starts, self.boundary))

    def batch(self, size, length, share, generator):
        """`share` of the rows starts in the toolchain's documents, the rest in crates'."""
        first = round(size * share)
        device = self.ids.device
        pick = torch.cat((torch.randint(0, self.split, (first,), device=device, generator=generator),
                          torch.randint(self.split, len(self.starts), (size - first,), device=device, generator=generator)))
        at = self.starts[pick].clamp(max=len(self.ids) - length - 1)
        rows = self.ids[at[:, None] + torch.arange(length + 1, device=device)].long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@torch.no_grad()
def heldout_losses(model, stream, length, autocast):
    """Mean loss per token (nats) of the toolchain's and the crates' held-out documents, in windows of `length`."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=stream.ids.device)
    counts = torch.zeros_like(sums)
    total = len(stream.ids)
    windows = list(range(0, total - length, length))
    for i in range(0, len(windows), 32):
        at = torch.tensor(windows[i:i + 32], device=stream.ids.device)
        index = at[:, None] + torch.arange(length + 1, device=at.device)
        rows = stream.ids[index].long()
        with autocast:
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none").double()
        crates = (index[:, 1:].flatten() >= stream.boundary).long()
        sums.index_add_(0, crates, loss)
        counts.index_add_(0, crates, torch.ones_like(loss))
    model.train()
    return (sums / counts).tolist(), (sums.sum() / counts.sum()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--share", type=float, default=0.25, help="share of training windows that start in the toolchain's documents")
    parser.add_argument("--evals", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="choose the number of steps so that the run takes this long on this machine")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--teacher", type=pathlib.Path, help="the --out folder of a finished run to learn from")
    parser.add_argument("--teacher-weight", type=float, default=0.7, help="weight of the teacher's distribution in the loss; the rest is the text itself")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    meta = json.loads((args.data / "streams.json").read_text())
    config = Config(vocab_size=meta["vocab_size"], hidden_size=args.hidden, intermediate_size=3 * args.hidden, num_hidden_layers=args.layers,
                    num_attention_heads=args.heads)
    print("differs from transformers by", check_against_transformers(config, device), flush=True)

    train = Stream(args.data / "train.u16", meta["train"], meta, device)
    heldout = Stream(args.data / "heldout.u16", meta["heldout"], meta, device)
    model = Qwen3(config, args.dropout).to(device).train()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(train.ids)} training tokens, {len(heldout.ids)} held out", flush=True)
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    autocast = torch.autocast(device, dtype=torch.bfloat16)
    generator = torch.Generator(device=device).manual_seed(args.seed)

    teacher = None
    if args.teacher:
        teacher = Qwen3(Config(**json.loads((args.teacher / "config.json").read_text()))).to(device).eval().requires_grad_(False)
        teacher.load_state_dict({k: v.float() for k, v in load_file(str(args.teacher / "model.safetensors")).items()})

    def loss_of(x, y):
        logits = model(x).float().flatten(0, 1)
        loss = F.cross_entropy(logits, y.flatten())
        if teacher is None:
            return loss
        with torch.no_grad():
            target = teacher(x).float().flatten(0, 1).softmax(-1)
        soft = -(target * logits.log_softmax(-1)).sum(-1).mean()
        return (1 - args.teacher_weight) * loss + args.teacher_weight * soft

    step_loss = loss_of
    if device == "cuda" and not args.no_compile:
        step_loss = torch.compile(loss_of)
        try:
            x, y = train.batch(args.batch, args.length, args.share, generator)
            with autocast:
                step_loss(x, y).backward()
            optimizer.zero_grad(set_to_none=True)
        except Exception as error:  # the compiler's failure must not cost the run
            print("torch.compile failed, running without:", repr(error)[:300], flush=True)
            step_loss = loss_of

    steps, warmup, step = args.steps, min(200, args.steps // 10 + 1), 0
    best, log, start = math.inf, [], time.time()
    while step < steps:
        if args.minutes and step in (10, 60):  # the first steps are slower; warm-up is longer than this, so the schedule does not notice
            torch.cuda.synchronize() if device == "cuda" else None
            if step == 60:
                steps = 60 + max(1, int((args.minutes * 60 - (time.time() - start)) / ((time.time() - mark) / 50)))
                print(f"{steps} steps", flush=True)
            mark = time.time()
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        lr = args.lr * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = train.batch(args.batch, args.length, args.share, generator)
        with autocast:
            loss = step_loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % max(1, steps // args.evals) == 0 or step == steps:
            (toolchain, crates), mean = heldout_losses(model, heldout, args.length, autocast)
            elapsed = time.time() - start
            log.append({"step": step, "train": loss.item(), "toolchain": toolchain, "crates": crates, "heldout": mean, "seconds": elapsed})
            score = (toolchain + crates) / 2
            print(f"{step} train {loss.item():.4f} toolchain {toolchain:.4f} crates {crates:.4f} all {mean:.4f} "
                  f"{step * args.batch * args.length / elapsed / 1e6:.2f} Mtok/s {elapsed:.0f} s", flush=True)
            if score < best:
                best = score
                save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, str(args.out / "model.safetensors"))
                (args.out / "config.json").write_text(json.dumps(asdict(config)))
            (args.out / "log.json").write_text(json.dumps({"args": {k: str(v) for k, v in vars(args).items()}, "log": log}))


if __name__ == "__main__":
    main()
