"""Sampling text from a model, with a cache.

B rows still being written, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from moc.model.decode.cache import Cache, DecodePolicy


class Decodable(Protocol):
    """What a ``Transformer`` must be to write."""

    def new_cache(
        self,
        batch: int,
        max_length: int,
        *,
        policy: DecodePolicy = ...,
        window_tokens: int | None = ...,
    ) -> Cache[Any]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __call__(self, tokens_BL: Tensor, **arguments: Any) -> Any: ...


def generate(
    model: Decodable, prompts: Sequence[Sequence[int]], **settings: Any
) -> list[list[int]]:
    """New tokens for every prompt, without the stop token that ended it; settings of ``stream``."""
    written: list[list[int]] = [[] for _ in prompts]
    for step in stream(model, prompts, **settings):
        for tokens, token in zip(written, step, strict=True):
            if token is not None:
                tokens.append(token)
    return written


@torch.no_grad()
def stream(
    model: Decodable,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    policy: DecodePolicy = "prompt",
    window_tokens: int | None = None,
) -> Iterator[list[int | None]]:
    """Per step one new token for every prompt; None where a stop token has ended it.

    Args:
        prompts: token ids; at least one each, of any lengths.
        temperature: 0 takes the likeliest token; otherwise samples, reproducibly: a prompt's draws
            depend on ``seed`` and its place among the prompts, not on what the others are.
        top_k: sample from the so many likeliest tokens only; None: all.
        top_p: ... from the likeliest that together have this probability; None: all.
        policy: how ``sequence`` routing, which cannot decode as it trained, stands in for tokens
            that are not there yet; see ``Cache``. The causal scopes need no policy.
        window_tokens: of policy ``running``: pool the last so many positions; None: all so far.

    Raises:
        ValueError: for an empty prompt or a setting out of range.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, but is {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None; it is {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, or None; it is {top_p}")
    if not prompts or max_new_tokens < 1:
        return
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed + 1_000_003 * i) for i in range(len(prompts))]
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths_B.max())
    cache = model.new_cache(
        len(prompts), longest + max_new_tokens, policy=policy, window_tokens=window_tokens
    )
    tokens_BL = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    real_BL = torch.arange(longest, device=device) < lengths_B[:, None]
    logits_BLV = model(tokens_BL, real_BL=real_BL, cache=cache).logits_BLV
    logits_BV = logits_BLV[torch.arange(len(prompts), device=device), lengths_B - 1]
    rows = list(range(len(prompts)))  # those still being written
    for left in reversed(range(max_new_tokens)):
        drawn = [generators[row] for row in rows]
        chosen = _choose(logits_BV.float().cpu(), temperature, top_k, top_p, drawn)
        if dist.is_available() and dist.is_initialized():
            # a rounding apart, ranks would run different numbers of (collective) forward passes
            agreed_B = torch.tensor(chosen, device=device)
            dist.broadcast(agreed_B, src=0)
            chosen = agreed_B.tolist()
        going = [i for i, token in enumerate(chosen) if token not in stop_ids]
        step: list[int | None] = [None] * len(prompts)
        for i in going:
            step[rows[i]] = chosen[i]
        if not going:
            return
        yield step
        if not left:
            return
        if len(going) < len(rows):
            rows, chosen = [rows[i] for i in going], [chosen[i] for i in going]
            cache.keep_rows(torch.tensor(going, device=device))
        logits_BV = model(torch.tensor(chosen, device=device)[:, None], cache=cache).logits_BLV[
            :, 0
        ]


def _choose(
    logits_BV: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generators: Sequence[torch.Generator],
) -> list[int]:
    if temperature == 0:
        return logits_BV.argmax(-1).tolist()
    logits_BV, token_BV = (logits_BV / temperature).sort(descending=True, stable=True)
    if top_k is not None:
        logits_BV = logits_BV[:, :top_k]
    probs_BV = logits_BV.softmax(-1)
    if top_p is not None:
        before_BV = probs_BV.cumsum(-1) - probs_BV  # the likeliest token always stays
        probs_BV = probs_BV.masked_fill(before_BV >= top_p, 0.0)
    drawn = [
        torch.multinomial(probs_V, 1, generator=generator)
        for probs_V, generator in zip(probs_BV, generators, strict=True)
    ]
    return token_BV.gather(1, torch.stack(drawn)).flatten().tolist()
