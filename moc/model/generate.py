"""Sampling text from a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float = 0.0,
    max_length: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """New tokens for every prompt, without the stop token that ended it.

    Each step runs the model on all that has been written so far, so ``sequence`` routing pools over
    prompt and answer, exactly as in training on a sequence of that length.

    Args:
        prompts: token ids; at least one each, of any lengths.
        temperature: 0 takes the likeliest token; otherwise samples, reproducibly from ``seed``.
        max_length: the model sees at most this many of the last tokens.

    Raises:
        ValueError: for an empty prompt.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    written = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        if not open_rows:
            break
        rows = [written[row][-max_length:] if max_length else written[row] for row in open_rows]
        logits_BV = _last_logits(model, rows, device)
        if temperature > 0:
            probs_BV = (logits_BV / temperature).softmax(-1).cpu()
            chosen = torch.multinomial(probs_BV, 1, generator=generator).flatten().tolist()
        else:
            chosen = logits_BV.argmax(-1).tolist()
        for row, token in zip(open_rows, chosen, strict=True):
            written[row].append(token)
        open_rows = [
            row for row, token in zip(open_rows, chosen, strict=True) if token not in stop_ids
        ]
    new = [tokens[len(prompt) :] for tokens, prompt in zip(written, prompts, strict=True)]
    return [tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens for tokens in new]


def _last_logits(model: nn.Module, rows: list[list[int]], device: torch.device) -> Tensor:
    """Float32 logits (B, V) after each row's last token."""
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    longest = int(lengths_B.max())
    padded = [row + [0] * (longest - len(row)) for row in rows]
    tokens_BL = torch.tensor(padded, device=device)
    valid_BL = torch.arange(longest, device=device)[None] < lengths_B[:, None]
    logits_BLV = model(tokens_BL, valid_BL).logits_BLV
    return logits_BLV[torch.arange(len(rows), device=device), lengths_B - 1].float()
