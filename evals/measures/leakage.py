"""Leakage: how much of a loss or a score comes from routing that sees later tokens.

Routing of scope ``sequence`` pools the whole sequence, so the chapters read at position t depend on
the tokens after t. To measure what that is worth, the same tokens are predicted by the same weights
under three routings. For a window x of L tokens, and a position t whose logits predict token t + 1:

- ``full``: pools all of x, as in training. The router has seen token t + 1 and all that follow.
- ``prefix``: pools x up to t, as a model must that has yet to write token t + 1.
- ``counterfactual``: pools x up to t, and in place of the rest another whole window's tokens: as
  long as x, with a future that knows nothing of this text.

In bits per token: leakage = prefix - full, and leakage = future + mismatch, where
future = counterfactual - full and mismatch = prefix - counterfactual.

What this can say. ``leakage`` is what these weights lose when routing may not see later tokens.
``future`` is what the true future is worth against another text's.

What it cannot. ``leakage`` is not all knowledge of the future: the router never saw the mean of a
prefix in training, and a model trained on prefixes might do better on them; this is the mismatch.
The split separates the two only roughly. Another text's future is not a neutral one: it can pick
chapters that mislead, which raises ``counterfactual``, and then ``future`` overstates what knowing
the future is worth, and ``mismatch`` understates what merely unfamiliar routing costs (it can be
negative). A text that happens to share this one's subject works the other way. Nor does any of this
say what the model would have learnt under another scope: that takes training it
(``experiments/forgetting``).

N windows, L length, B rows of a batch, V vocabulary, P predicted tokens, X windows used.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evals.scoring.observing import device_of, only_observing
from evals.scoring.windows import real_lengths
from evals.statistics.intervals import clustered_mean, paired_difference
from moc.errors import ConfigError
from moc.model.memory.build import is_causal
from moc.store.rundir import ON_ANSWER

if TYPE_CHECKING:
    from moc.model import Transformer

POSITIONS_PER_WINDOW = 16  # each costs a pass under prefix and one under counterfactual routing
NUM_BINS = 8  # of the position axis

Record = dict[str, Any]


def leakage_record(
    model: Transformer,
    windows: Mapping[str, tuple[Tensor, Tensor]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    num_windows: int,
    batch_size: int,
    even_if_causal: bool = False,
) -> Record:
    """The leakage of ``model``: ``leakage`` of a boundary's ``evals.json``.

    Args:
        windows: per source, tokens (N, L + 1) and loss mask (N, L) of ``comparable_texts``.
        samples: of ``evaluate_model``; tasks that were also routed on the answer are compared.
        num_windows: use at most so many windows per source.
        even_if_causal: measure what is zero by construction too.

    Raises:
        ConfigError: when a source is too short to measure on.
    """
    sources = {}
    for source, (tokens_NL, loss_mask_NL) in windows.items():
        try:
            sources[source] = measure_leakage(
                model,
                tokens_NL,
                loss_mask_NL,
                num_windows=num_windows,
                batch_size=batch_size,
                even_if_causal=even_if_causal,
            )
        except ConfigError as error:
            raise ConfigError(f"leakage on {source!r}: {error}") from error
    tasks = {
        task: choice_leakage(samples[task], samples[task + ON_ANSWER])
        for task in samples
        if task + ON_ANSWER in samples
    }
    return {"causal": is_causal(model.config), "sources": sources, "tasks": tasks}


def measure_leakage(
    model: Transformer,
    tokens_NL1: Tensor | np.ndarray,
    loss_mask_NL: Tensor | np.ndarray,
    *,
    num_windows: int = 32,
    batch_size: int,
    even_if_causal: bool = False,
) -> Record:
    """Bits per token under the three routings, and the differences with 95% intervals.

    At most ``POSITIONS_PER_WINDOW`` counted positions of each of ``num_windows`` windows are
    predicted; all tokens weigh the same. Which ones depends on the arguments alone, so that the
    numbers of different models are of the same tokens.

    Args:
        tokens_NL1: ids (N, L + 1), consecutive windows of a text; only the last may be padded.
        loss_mask_NL: bool; whether predicting ``tokens[:, 1:]`` counts.
        batch_size: speed only.

    Returns:
        ``{"num_windows", "num_tokens", "tokens", "full", "per_window"}``, ``tokens`` being a hash
        of what was predicted and ``per_window`` the number of tokens and the sums of bits behind
        the means. Unless the model is causal, or there is no other whole window to take a future
        from, also ``prefix``, ``counterfactual``, ``leakage``, ``future``, ``mismatch`` and
        ``by_position``, the leakage over positions ``start`` to ``end`` (excluded), where there are
        any.

    Raises:
        ConfigError: when nothing is counted.
    """
    tokens_NL = torch.as_tensor(tokens_NL1).long()
    counted_NL = torch.as_tensor(loss_mask_NL).bool()
    usable = counted_NL.any(1).nonzero().flatten().tolist()
    chosen = [usable[i] for i in _spread(len(usable), num_windows)]
    if not chosen:
        raise ConfigError("no token counts; give it more text")
    lengths_N = real_lengths(counted_NL)
    texts = [tokens_NL[n, : lengths_N[n]] for n in chosen]
    positions = []
    for turn, n in enumerate(chosen):
        counted = counted_NL[n].nonzero().flatten()
        positions.append(counted[_spread(len(counted), POSITIONS_PER_WINDOW, turn)])
    window_P = np.repeat(np.arange(len(chosen)), [len(found) for found in positions])
    position_P = torch.cat(positions)
    target_P = tokens_NL[torch.tensor(chosen)[window_P], position_P + 1]

    def bits(rows: list[Tensor], row_P: np.ndarray) -> np.ndarray:
        row = torch.as_tensor(row_P)
        return _bits(model, rows, row, position_P, target_P, batch_size)

    with only_observing(model):
        full_P = bits(texts, window_P)
        counts_X = np.bincount(window_P)
        per_window = {"num_tokens": counts_X.tolist(), "full": _sums(full_P, window_P)}
        record: Record = {
            "num_windows": len(chosen),
            "num_tokens": len(full_P),
            "tokens": _fingerprint(window_P, position_P, target_P),
            "full": float(full_P.mean()),
            "per_window": per_window,
        }
        donors = _donors(texts, counted_NL.shape[1])
        if donors is None or (is_causal(model.config) and not even_if_causal):
            return record
        cuts = list(zip(window_P.tolist(), (position_P + 1).tolist(), strict=True))
        each_P = np.arange(len(cuts))
        prefix_P = bits([texts[n][:end] for n, end in cuts], each_P)
        mixed = [torch.cat((texts[n][:end], donors[n][end : len(texts[n])])) for n, end in cuts]
        counterfactual_P = bits(mixed, each_P)
    leakage_P = prefix_P - full_P
    per_window |= {
        "prefix": _sums(prefix_P, window_P),
        "counterfactual": _sums(counterfactual_P, window_P),
    }
    return record | {
        "prefix": float(prefix_P.mean()),
        "counterfactual": float(counterfactual_P.mean()),
        "leakage": clustered_mean(leakage_P, window_P),
        "future": clustered_mean(counterfactual_P - full_P, window_P),
        "mismatch": clustered_mean(prefix_P - counterfactual_P, window_P),
        "by_position": _by_position(leakage_P, window_P, position_P.numpy(), counted_NL.shape[1]),
    }


def choice_leakage(
    context: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Accuracy gained by letting the answer steer the routing, with a 95% interval over items.

    Args:
        context, full: samples of one task, routed on the context and on the answer as well; the
            same items (``doc_hash``) in the same order.

    Returns:
        ``{"num_items", "context", "full", "leakage"}``.

    Raises:
        ValueError: when the two are not of the same items.
    """
    if not context or [s["doc_hash"] for s in context] != [s["doc_hash"] for s in full]:
        raise ValueError("samples routed on the context and on the answer are of different items")
    context_P, full_P = (
        np.array([s["correct"] for s in group], float) for group in (context, full)
    )
    return {
        "num_items": len(context_P),
        "context": float(context_P.mean()),
        "full": float(full_P.mean()),
        "leakage": paired_difference(context_P, full_P),
    }


def _donors(texts: list[Tensor], length: int) -> list[Tensor] | None:
    """For each text another whole window; None if there is none."""
    whole = [i for i, text in enumerate(texts) if len(text) == length]
    if len(whole) < 2:
        return None
    # half the windows away: the next one often goes on with the same document
    found = [whole[(turn + len(whole) // 2) % len(whole)] for turn in range(len(texts))]
    return [texts[j if j != i else whole[whole.index(j) - 1]] for i, j in enumerate(found)]


def _sums(bits_P: np.ndarray, window_P: np.ndarray) -> list[float]:
    return [round(value, 6) for value in np.bincount(window_P, bits_P).tolist()]


def _fingerprint(window_P: np.ndarray, position_P: Tensor, target_P: Tensor) -> str:
    rows = np.stack([window_P, position_P.numpy(), target_P.numpy()]).astype(np.int64)
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def _bits(
    model: Transformer,
    rows: Sequence[Tensor],
    row_P: Tensor,
    position_P: Tensor,
    target_P: Tensor,
    batch_size: int,
) -> np.ndarray:
    """-log2 p of each target at its position of its row, all of the row pooled: (P,) float64."""
    device = device_of(model)
    bits_P = torch.zeros(len(row_P), dtype=torch.float64)
    lengths = torch.tensor([len(row) for row in rows])
    for batch_B in lengths.argsort(descending=True, stable=True).split(batch_size):
        tokens_BL = pad_sequence([rows[i] for i in batch_B], batch_first=True)
        pool_BL = torch.arange(tokens_BL.shape[1]) < lengths[batch_B][:, None]
        logits_BLV = model(tokens_BL.to(device), pool_BL=pool_BL.to(device)).logits_BLV
        place_of_row = torch.full((len(rows),), -1).scatter_(0, batch_B, torch.arange(len(batch_B)))
        here = (place_of_row[row_P] >= 0).nonzero().flatten()
        logits_PV = logits_BLV[place_of_row[row_P[here]].to(device), position_P[here].to(device)]
        logprob_PV = logits_PV.float().log_softmax(-1)
        chosen_P1 = logprob_PV.gather(1, target_P[here, None].to(device))
        bits_P[here] = -chosen_P1[:, 0].double().cpu() / math.log(2)
    return bits_P.numpy()


def _by_position(
    leakage_P: np.ndarray, window_P: np.ndarray, position_P: np.ndarray, length: int
) -> list[dict[str, Any]]:
    edges = np.unique(np.linspace(0, length, NUM_BINS + 1).astype(int)).tolist()
    bins = []
    for start, end in itertools.pairwise(edges):
        inside = (position_P >= start) & (position_P < end)
        if inside.any():
            leakage = clustered_mean(leakage_P[inside], window_P[inside])
            num_tokens = int(inside.sum())
            bins.append({"start": start, "end": end, "num_tokens": num_tokens, "leakage": leakage})
    return bins


def _spread(available: int, wanted: int, turn: int = 0) -> list[int]:
    """At most ``wanted`` of ``range(available)``, evenly spaced.

    Each ``turn`` is shifted by the golden ratio of the spacing, so that few turns reach them all.
    """
    if available <= wanted:
        return list(range(available))
    spacing = available / wanted
    shift = turn * (math.sqrt(5) - 1) / 2 % 1
    return [int((i + shift) * spacing) for i in range(wanted)]
