"""Tokenizers and models small enough to know by heart, and what a score of them should be."""

import itertools
import math
from types import SimpleNamespace

import torch
from torch import nn

from moc.model import MemoryConfig, ModelConfig, build_model

EOS, IM_START, IM_END = 256, 257, 258
CONTROL = {"<|endoftext|>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}


class ByteTokenizer:
    """One id per byte, and one per control token."""

    eos_id = EOS
    vocab_size = 259

    def encode(self, text):
        ids = []
        while text:
            control = next((word for word in CONTROL if text.startswith(word)), None)
            ids += [CONTROL[control]] if control else list(text[0].encode())
            text = text[len(control or text[0]) :]
        return ids

    def decode(self, ids):
        words = {number: word.encode() for word, number in CONTROL.items()}
        return b"".join(words.get(i, bytes([i % 256])) for i in ids).decode(errors="replace")


class Chain(nn.Module):
    """Every token is followed by its successor in ``ids``; remembers what it was shown."""

    def __init__(self, ids):
        super().__init__()
        table = torch.zeros(259, 259)
        for before, after in itertools.pairwise(ids):
            table[before, after] = 10.0
        self.table = nn.Parameter(table)
        self.shown = []

    def forward(self, tokens_BL, valid_BL=None):
        valid_BL = torch.ones_like(tokens_BL).bool() if valid_BL is None else valid_BL
        rows = zip(tokens_BL, valid_BL, strict=True)
        self.shown += [row[valid].tolist() for row, valid in rows]
        return SimpleNamespace(logits_BLV=self.table[tokens_BL])


class Script(nn.Module):
    """Whatever it reads, position ``start + i`` predicts byte i of ``text``."""

    def __init__(self, start, text):
        super().__init__()
        self.start, self.text = start, text.encode()
        self.unused = nn.Parameter(torch.zeros(1))  # says which device

    def forward(self, tokens_BL, valid_BL=None):
        logits_BLV = torch.zeros(*tokens_BL.shape, 400)
        for i, byte in enumerate(self.text):
            logits_BLV[:, self.start + i : self.start + i + 1, byte] = 1.0
        return SimpleNamespace(logits_BLV=logits_BLV)


def routed_model():
    """Random weights large enough that routing moves the logits; routes by the whole sequence."""
    memory = MemoryConfig(
        num_chapters=9, num_routed=2, chapter_tokens=4, layers="all", output_init="normal"
    )
    memory.bank_init_std = 1.0
    config = ModelConfig(
        vocab_size=259, num_layers=2, dim=32, mlp_dim=64, init_std=0.2, residual_init_std=0.2,
        memory=memory,
    )  # fmt: skip
    return build_model(config).eval()


def brute_force(model, inputs, targets):
    """Sum of log p(targets) at the last positions of one unpadded sequence, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([inputs])).logits_BLV[0, -len(targets) :].double().numpy()
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        top = row.max()
        total += row[target] - top - math.log(sum(math.exp(x - top) for x in row))
    return total
