"""How many bits of what it was trained on a model holds (arXiv 2404.05405). N documents, A
attributes, L positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from evals.scoring.observing import device_of, only_observing
from moc.model.transformer import Transformer


class Needed(NamedTuple):
    """What the right values cost a model to say, and whether it would have said them itself."""

    bits_NA: np.ndarray  # -log2 of the right value's probability, float64
    right_NA: np.ndarray  # bool: each of its tokens was the likeliest


def needed_bits(
    model: Transformer,
    ids: Sequence[Sequence[int]],
    column: Sequence[np.ndarray],
    num_attributes: int,
    *,
    context_length: int,
    batch_size: int,
) -> Needed:
    """Of every value in the documents, each read from its start.

    Args:
        ids: of each document's tokens; the first is never a part of a value.
        column: whose value each token is a part of, -1 of none.
        context_length: of longer documents, what comes later is not read; values there are NaN.
        batch_size: documents of ``context_length`` read at once, of shorter ones more.
    """
    device = device_of(model)
    bits_NA = np.zeros((len(ids), num_attributes))
    right_NA = np.ones((len(ids), num_attributes), bool)
    seen_NA = np.zeros((len(ids), num_attributes), bool)
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    with only_observing(model):
        for rows in _batches(order, ids, context_length, batch_size):
            longest = min(context_length + 1, len(ids[rows[-1]]))
            tokens_BL = torch.zeros(len(rows), longest, dtype=torch.int64)
            column_BL = torch.full((len(rows), longest), -1)
            real_BL = torch.zeros(len(rows), longest, dtype=torch.bool)
            for row, n in enumerate(rows):
                held = min(longest, len(ids[n]))
                tokens_BL[row, :held] = torch.tensor(ids[n][:held])
                column_BL[row, :held] = torch.from_numpy(column[n][:held])
                real_BL[row, :held] = True
            tokens_BL = tokens_BL.to(device)
            logits_BLV = model(tokens_BL[:, :-1], pool_BL=real_BL[:, :-1].to(device)).logits_BLV
            row_X, place_X = (column_BL[:, 1:] >= 0).nonzero(as_tuple=True)
            logits_XV = logits_BLV[row_X.to(device), place_X.to(device)].float()
            target_X = tokens_BL[:, 1:][row_X.to(device), place_X.to(device)]
            nats_X = F.cross_entropy(logits_XV, target_X, reduction="none").double().cpu().numpy()
            right_X = (logits_XV.argmax(-1) == target_X).cpu().numpy()
            where = np.array(rows)[row_X.numpy()], column_BL[:, 1:][row_X, place_X].numpy()
            np.add.at(bits_NA, where, nats_X / math.log(2))
            np.logical_and.at(right_NA, where, right_X)
            seen_NA[where] = True
    # a value that is cut off is not known; one whose beginning alone was read would seem cheap
    for n, of_document in enumerate(column):
        cut = of_document[context_length + 1 :]
        seen_NA[n, cut[cut >= 0]] = False
    return Needed(np.where(seen_NA, bits_NA, np.nan), right_NA & seen_NA)


def knowledge_record(needed: Needed, pool_bits: dict[str, float], num_all: int) -> dict[str, Any]:
    """``{"num_items", "num_all", "demand", "stored", "right", "attributes": {name: {"bits",
    "stored", "right"}}}``: bits in all are of all ``num_all``, those of an attribute of one value.

    An attribute of b bits that leaves a model n to say is b - n bits known, on average over
    documents; not less than nothing, since a model that is wrong and sure holds nothing of it.
    """
    attributes = {}
    for index, (name, bits) in enumerate(pool_bits.items()):
        cost_N, right_N = needed.bits_NA[:, index], needed.right_NA[:, index]
        known_N = np.isfinite(cost_N)
        if known_N.any():
            attributes[name] = {
                "bits": bits,
                "stored": max(0.0, bits - float(cost_N[known_N].mean())),
                "right": float(right_N[known_N].mean()),
            }
    return {
        "num_items": len(needed.bits_NA),
        "num_all": num_all,
        "demand": num_all * sum(pool_bits.values()),
        "stored": num_all * sum(each["stored"] for each in attributes.values()),
        "right": float(np.mean([each["right"] for each in attributes.values()] or [math.nan])),
        "attributes": attributes,
    }


def knowledge_items(
    needed: Needed, pool_bits: dict[str, float], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """A line for every document: who it is about, bits needed and right or not by attribute."""
    names = list(pool_bits)
    return [
        {
            "key": label,
            "bits": {n: float(b) for n, b in zip(names, bits_A, strict=True) if math.isfinite(b)},
            "right": [n for n, right in zip(names, right_A, strict=True) if right],
        }
        for label, bits_A, right_A in zip(labels, needed.bits_NA, needed.right_NA, strict=True)
    ]


def _batches(
    order: Sequence[int], ids: Sequence[Sequence[int]], context_length: int, batch_size: int
) -> list[list[int]]:
    """Documents in order of length, as many at once as take up as much as ``batch_size`` of the
    longest."""
    batches: list[list[int]] = []
    for n in order:
        length = min(len(ids[n]), context_length + 1)
        if not batches or (len(batches[-1]) + 1) * length > batch_size * (context_length + 1):
            batches.append([])
        batches[-1].append(n)
    return batches
