"""What every memory gets for nothing: it looks at nothing later, decodes as it was trained, and
what it reads is counted.

What would break for a user: a rival memory that wins because it saw the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from evals.measures.row_use import row_use
from moc.model import is_causal
from tests.support.decoding import IN_CHUNKS, LENGTH, MIXED, ONE_BY_ONE, decode, difference
from tests.support.kinds import KINDS, config_of, model_of, third_kind
from tests.support.small_models import tokens_of

CALLS = {"one by one": ONE_BY_ONE, "mixed": MIXED, "in chunks": IN_CHUNKS}
LAST_SEEN = (0, 1, 5, LENGTH - 2)


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    with third_kind():
        yield


def with_endings() -> torch.Tensor:
    """Row 0 is a text; row i shares its tokens up to ``LAST_SEEN[i - 1]`` and none after."""
    text_L = tokens_of(1, LENGTH)[0]
    ends = [torch.arange(LENGTH) > t for t in LAST_SEEN]
    return torch.stack([text_L, *(torch.where(end_L, (text_L + 1) % 37, text_L) for end_L in ends)])


def moved_by_later_tokens(name: str, training: bool) -> float:
    """How far logits moved at most, before the tokens that changed."""
    model = model_of(name).train(training)
    rows_BL = with_endings()
    # each row in a batch of its own: what rows of a batch share is another question
    with torch.set_grad_enabled(training):
        first_LV, *others = (model(row_L[None]).logits_BLV[0].detach() for row_L in rows_BL)
    found = []
    for other_LV, t in zip(others, LAST_SEEN, strict=True):
        assert (other_LV - first_LV)[t + 1].abs().max() > 0.1
        found.append((other_LV - first_LV)[: t + 1].abs().max().item())
    return max(found)


@pytest.mark.parametrize("training", [False, True], ids=["scoring", "training"])
@pytest.mark.parametrize("name", KINDS)
def test_later_tokens_change_nothing_before_them(name: str, training: bool) -> None:
    """To the bit, but where chapters of many positions are read in one padded product."""
    assert is_causal(config_of(name))
    moved = moved_by_later_tokens(name, training)
    if training and "batch norm" in name:
        assert moved > 1e-3  # the positive control: it sees the statistics of all, as is said
    else:
        assert moved <= (1e-5 if name.startswith("chapters") else 0.0)


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("name", KINDS)
def test_decoding_with_a_cache_equals_one_pass(name: str, calls: str) -> None:
    model, tokens_BL = model_of(name), tokens_of(3, 2 * LENGTH)
    with torch.no_grad():
        expected_BLV = model(tokens_BL).logits_BLV
    assert difference(decode(model, tokens_BL, CALLS[calls]), expected_BLV) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_what_is_read_is_counted(name: str) -> None:
    """Over two batches, as in one."""
    model, tokens_NL = model_of(name), tokens_of(4, LENGTH)
    kind = model.kind
    assert kind is not None
    found = row_use(model, tokens_NL, batch_size=2)
    with torch.no_grad():
        addresses = model(tokens_NL).addresses
    for layer, address in zip((0, 2), addresses, strict=True):
        counts = [0] * kind.num_rows
        for row in address.index_BGN.tolist():
            for group in row:
                picked = group[kind.num_always :]
                assert len(picked) == kind.num_picked
                for r in picked:
                    counts[r] += 1
        assert found.load[layer].tolist() == counts
        assert sum(counts) == 4 * kind.num_groups(LENGTH) * kind.num_picked


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("product_keys")])
def test_how_many_values_a_position_mixes(name: str) -> None:
    """exp of the entropy of its weights, averaged over positions."""
    model, tokens_BL = model_of(name), tokens_of(2, LENGTH)
    with torch.no_grad():
        addresses = model(tokens_BL, measure=True).addresses
    assert len(addresses) == 2
    for address in addresses:
        numbers = []
        for weight_N in address.weight_BGN.flatten(0, 1).double().tolist():
            share = [w / sum(weight_N) for w in weight_N]
            numbers.append(math.exp(-sum(p * math.log(p) for p in share)))
        mean = sum(numbers) / len(numbers)
        assert 1 < mean < 6
        assert address.health["effective_read"].item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in KINDS if "random" in name])
def test_a_random_address_does_not_hang_on_what_was_learned(name: str) -> None:
    """Neither on rows nor on maps; of product keys, whose query is random, on the stream it is."""
    model, tokens_BL = model_of(name), tokens_of(2, LENGTH)
    with torch.no_grad():
        before = model(tokens_BL).addresses[0]
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith("banks.") or ".memory.read." in parameter_name:
                parameter.normal_()
        after = model(tokens_BL).addresses[0]
        other = model((tokens_BL + 1) % 37).addresses[0]
    assert torch.equal(before.index_BGN, after.index_BGN)
    by_group = "segments" in name
    assert torch.equal(before.index_BGN, other.index_BGN) == by_group
    for row in before.index_BGN.flatten(0, 1).tolist():
        assert len(set(row)) == len(row) or name.startswith("product_keys")  # heads may agree
