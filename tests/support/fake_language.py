"""Tokenizers and models small enough to know by heart, and what a score of them should be."""

import functools
import itertools
import math
from types import SimpleNamespace

import torch
from torch import nn

from moc.model import ModelConfig, RouterConfig, build_model
from tests.support.small_models import chapters

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


class Written:
    """The cache of a model that looks at nothing but a token and its place."""

    num_tokens = 0

    def keep_rows(self, rows):
        pass


class Chain(nn.Module):
    """Every token is followed by its successor in ``ids``; remembers what it was shown."""

    config, kind = ModelConfig(memory=None), None

    def __init__(self, ids):
        super().__init__()
        table = torch.zeros(259, 259)
        for before, after in itertools.pairwise(ids):
            table[before, after] = 10.0
        self.table = nn.Parameter(table)
        self.shown = []

    def new_cache(self, *args, **settings):
        return Written()

    def forward(self, tokens_BL, *, pool_BL=None, real_BL=None, cache=None):
        shown_BL = pool_BL if cache is None else real_BL
        shown_BL = torch.ones_like(tokens_BL).bool() if shown_BL is None else shown_BL
        rows = zip(tokens_BL, shown_BL, strict=True)
        self.shown += [row[shown].tolist() for row, shown in rows]
        return SimpleNamespace(logits_BLV=self.table[tokens_BL])


class Script(nn.Module):
    """Whatever it reads, position ``start + i`` predicts byte i of ``text``."""

    config, kind = ModelConfig(memory=None), None

    def __init__(self, start, text):
        super().__init__()
        self.start, self.text = start, text.encode()
        self.unused = nn.Parameter(torch.zeros(1))  # says which device

    def new_cache(self, *args, **settings):
        return Written()

    def forward(self, tokens_BL, *, pool_BL=None, real_BL=None, cache=None):
        before, length = (cache.num_tokens if cache else 0), tokens_BL.shape[1]
        logits_BLV = torch.zeros(*tokens_BL.shape, 400)
        for i, byte in enumerate(self.text, self.start - before):
            if 0 <= i < length:
                logits_BLV[:, i, byte] = 1.0
        if cache:
            cache.num_tokens += length
        return SimpleNamespace(logits_BLV=logits_BLV)


@functools.cache
def routed_model(
    scope="segment", mixing="joint", window=None, router_input="block_input", variant="A"
):
    """Random weights large enough that routing moves the logits; segments of four positions.

    Made once: leave it as it is.
    """
    memory = chapters(
        num_chapters=9, num_routed=2, chapter_tokens=4, layers="all", output_init="normal",
        mixing=mixing, variant=variant,
        router=RouterConfig(
            scope=scope, segment_tokens=4, window_tokens=window, input=router_input
        ),
    )  # fmt: skip
    memory.bank_init_std = 1.0
    config = ModelConfig(
        vocab_size=259, num_layers=2, dim=32, mlp_dim=64, init_std=0.2, residual_init_std=0.2,
        memory=memory,
    )  # fmt: skip
    return build_model(config).eval()


def brute_force(model, inputs, targets, num_pooled=None):
    """Sum of log p(targets) at the last positions of one unpadded sequence, in float64.

    ``num_pooled``: how many inputs steer the routing; None: all.
    """
    pooled = None if num_pooled is None else torch.arange(len(inputs))[None] < num_pooled
    with torch.no_grad():
        logits = model(torch.tensor([inputs]), pool_BL=pooled).logits_BLV[0, -len(targets) :]
    logits = logits.double().numpy()
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        top = row.max()
        total += row[target] - top - math.log(sum(math.exp(x - top) for x in row))
    return total
