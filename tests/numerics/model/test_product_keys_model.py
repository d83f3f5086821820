"""A model with product keys against the published definition, written out as loops in float64.

What would break for a user: a rival that is not the one of the literature, and so a comparison with
it that says nothing.
"""

from __future__ import annotations

import pytest
import torch

from moc.model import build_model
from moc.train.bank_gradients import BankGradients
from tests.support.oracle import unfused
from tests.support.product_keys_model import leaves, naive_logits, randomise, small_config

NORMS = ["none", "layer", "batch", "batch, evaluating"]
CASES = [  # gate, variant, layers per bank
    ("learned", "A", None), ("one", "A", 1), ("learned", "B", 1), ("one", "B", None),
]  # fmt: skip


def tokens_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("with_slots", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("gate", "variant", "per_bank"), CASES)
def test_logits_and_all_gradients_are_the_oracles(
    norm: str, gate: str, variant: str, per_bank: int | None, with_slots: bool
) -> None:
    config = small_config(
        query_norm=norm.split(",")[0], gate=gate, variant=variant, layers_per_bank=per_bank
    )
    training = "evaluating" not in norm
    model = randomise(build_model(config)).train(training)
    tokens_BL = tokens_of(2, 4)
    weights = leaves(model)
    upstream_BLV = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(2)).double()

    slots = model.gradient_slots(2, 4) if with_slots else []
    output = model(tokens_BL, slots=slots)
    (output.logits_BLV * upstream_BLV).sum().backward()
    first, second = (set(a.index_BGN.flatten().tolist()) for a in output.addresses)
    assert first & second  # of a shared bank: gradients of both layers meet in a value
    found = {name: p.grad for name, p in model.named_parameters()}
    if with_slots:
        of_banks = BankGradients(model)
        of_banks.add(slots, output.addresses)
        for bank, rows in of_banks.finish().items():
            assert found[f"banks.{bank}.rows"] is None
            found[f"banks.{bank}.rows"] = rows.dense(9)

    expected_BLV = naive_logits(config, weights, tokens_BL, training=training)
    (expected_BLV * upstream_BLV).sum().backward()
    torch.testing.assert_close(output.logits_BLV, expected_BLV, rtol=1e-9, atol=1e-10)
    expected = {name: w.grad for name, w in weights.items() if w.requires_grad}
    assert all(gradient is not None and gradient.any() for gradient in expected.values())
    torch.testing.assert_close(unfused(config, found), expected, rtol=1e-8, atol=1e-9)
