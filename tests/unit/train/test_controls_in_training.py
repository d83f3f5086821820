"""Controls that any memory can be put through while it trains: a frozen bank, a random address, a
single row.

What would break for a user: a control that learns what it was to do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evals.measures.row_use import address_drift
from moc.config.schema import GroupConfig, OptimizerConfig
from moc.model import Transformer, build_model
from moc.train.optim import build_optimizer, freeze_groups
from moc.train.step import optimizer_step
from tests.support.helpers_training import copy_weights
from tests.support.kinds import KINDS, model_of, product_keys, third_kind
from tests.support.product_keys_model import randomise, small_config
from tests.support.small_models import DENSE, lively, tokens_of

TOKENS_ABL = torch.stack([tokens_of(2, 9, seed) for seed in (1, 2)])


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    with third_kind():
        yield


def train(
    model: Transformer, *, steps: int = 3, clip_norm: float = 1.0, **settings: object
) -> dict[str, Tensor]:
    """The weights before."""
    before = copy_weights(model)
    config = OptimizerConfig(**settings)  # type: ignore[arg-type]
    freeze_groups(model.train(), config)
    optimizer = build_optimizer(model, config, fused=False)
    counted_ABL = torch.ones_like(TOKENS_ABL[..., 1:]).bool()
    for _ in range(steps):
        result = optimizer_step(model, optimizer, TOKENS_ABL, counted_ABL, clip_norm=clip_norm)
        assert not result.skipped
    return before


def moved(model: Transformer, before: dict[str, Tensor]) -> set[str]:
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_bank_stands_still_and_nothing_else(name: str) -> None:
    model = model_of(name)
    before = train(model, bank=GroupConfig(freeze=True))
    changed = moved(model, before)
    assert not any(parameter.startswith("banks.") for parameter in changed)
    assert {"embedding.weight", "blocks.0.memory.read.out.weight"} <= changed
    # what does train, trains as beside a bank that does
    free, frozen = model_of(name), model_of(name)
    for model, still in ((free, False), (frozen, True)):
        train(model, steps=1, clip_norm=0.0, bank=GroupConfig(freeze=still))
    others = {n: w for n, w in free.state_dict().items() if not n.startswith("banks.")}
    found = {n: w for n, w in frozen.state_dict().items() if n in others}
    torch.testing.assert_close(found, others, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lazy", [False, True], ids=["dense", "lazy"])
@pytest.mark.parametrize("name", KINDS)
def test_all_that_may_train_does(name: str, lazy: bool) -> None:
    """With an address that stays random, all but the address."""
    model = model_of(name)
    changed = moved(model, train(model, lazy_bank=lazy))
    expected = {parameter for parameter, _ in model.named_parameters()}
    if "random" in name:
        expected = {parameter for parameter in expected if ".memory.address." not in parameter}
    assert changed == expected


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_drift_of_an_address(norm: str) -> None:
    """Of query and keys together, without their norm, by layer, over what they were; nothing where
    nothing trains."""
    memory = product_keys(query_norm=norm)
    model = lively(replace(DENSE, memory=memory))
    before = train(model)
    drift = address_drift(before, model.state_dict())
    learned = ["query.weight", "half_keys"]
    for layer in (0, 2):
        square = change = 0.0
        for part in learned:
            name = f"blocks.{layer}.memory.address.{part}"
            pairs = zip(before[name].flatten(), model.state_dict()[name].flatten(), strict=True)
            for old, new in pairs:
                square += old.item() ** 2
                change += (new.item() - old.item()) ** 2
        assert drift[layer] == pytest.approx((change / square) ** 0.5, rel=1e-5)
        assert drift[layer] > 0
    assert set(drift) == {0, 2}
    fixed = lively(replace(DENSE, memory=replace(memory, address="random")))
    before = train(fixed)
    assert set(address_drift(before, fixed.state_dict()).values()) == {0.0}


def test_a_single_row_learns_what_all_rows_would_together() -> None:
    """Its gradient is the sum of those of all the rows that it stands for."""
    one = randomise(build_model(small_config(rows="one")))
    every = randomise(build_model(small_config()))
    with torch.no_grad():
        row_1D = one.bank_rows()[0]
        state = one.state_dict() | {"banks.0.rows": row_1D.expand(9, -1)}
        every.load_state_dict(state)
    gradients = []
    for model in (one, every):
        tokens_BL = TOKENS_ABL[0] % 11
        model(tokens_BL).logits_BLV.square().sum().backward()
        gradients.append(model.bank_rows()[0].grad)
    assert gradients[0].shape == (1, 8)
    torch.testing.assert_close(gradients[0], gradients[1].sum(0, keepdim=True))
