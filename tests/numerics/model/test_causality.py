"""The gate: what comes later changes nothing before it.

What would break for a user: a validation loss, a score or a routing that knew the answer. Every
test that the causal scopes must pass, ``sequence`` routing must fail: else it would prove nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moc.model import build_model, is_causal
from tests.support.helpers_training import tiny_study, train_phase
from tests.support.one_batch import OneBatch
from tests.support.small_models import (
    CAUSAL,
    DENSE,
    MEMORY,
    MIXINGS,
    ROUTER_INPUTS,
    W,
    chapters,
    lively,
    tokens_of,
    with_router,
)

LENGTH = 3 * W + 2  # segments do not divide it
LAST_SEEN = (0, 1, W - 2, W - 1, W, W + 1, 2 * W - 1, 2 * W, LENGTH - 2)  # t: what follows changes
MARGIN = 1e-2  # a thousand times what the causal scopes are allowed
CONTEXTS = {  # how training and scoring call the model
    "training": lambda model: (model.train(), torch.enable_grad()),
    "scoring": lambda model: (model.eval(), torch.no_grad()),
}


def one_text_with_many_endings() -> torch.Tensor:
    """Row 0 is a text; row i shares its tokens up to ``LAST_SEEN[i - 1]`` and none after."""
    text_L = tokens_of(1, LENGTH)[0]
    rows = [text_L]
    for t in LAST_SEEN:
        rows.append(torch.where(torch.arange(LENGTH) <= t, text_L, (text_L + 1) % 37))
    return torch.stack(rows)


def leakage(model, context) -> list[float]:
    """For each of ``LAST_SEEN``: how far logits up to it moved when all that follows changed.

    Asserts that what follows did make a difference to what follows, and to its routing.
    """
    model, gradients = CONTEXTS[context](model)
    tokens_BL = one_text_with_many_endings()
    with gradients:
        out = model(tokens_BL)
    change_BL = (out.logits_BLV[1:] - out.logits_BLV[:1]).detach().abs().amax(-1)
    for moved_L, t in zip(change_BL, LAST_SEEN, strict=True):
        assert moved_L[t + 1] > 0.1, t
    for layer in out.addresses:
        if layer.weight_BGN.shape[1] > 1:
            assert (layer.weight_BGN[1:] - layer.weight_BGN[:1]).abs().max() > MARGIN
    return [moved_L[: t + 1].max().item() for moved_L, t in zip(change_BL, LAST_SEEN, strict=True)]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    ("scope", "mixing", "router_input", "variant"),
    list(itertools.product(CAUSAL, MIXINGS, ROUTER_INPUTS, "AB")),
)
def test_no_causal_scope_leaks(scope, mixing, router_input, variant, context):
    config = with_router(scope, router_input=router_input, mixing=mixing, variant=variant)
    assert is_causal(config)
    assert max(leakage(lively(config), context)) <= 1e-5


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    ("mixing", "router_input", "variant"), list(itertools.product(MIXINGS, ROUTER_INPUTS, "AB"))
)
def test_sequence_scope_leaks(mixing, router_input, variant, context):
    """The positive control: published routing fails the same test, at every single t."""
    config = with_router("sequence", router_input=router_input, mixing=mixing, variant=variant)
    assert not is_causal(config)
    assert min(leakage(lively(config), context)) > MARGIN


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_activation_checkpointing_shows_the_future_to_nobody(scope):
    config = replace(with_router(scope), activation_checkpointing=True)
    moved = leakage(lively(config), "training")
    assert min(moved) > MARGIN if scope == "sequence" else max(moved) <= 1e-5


@pytest.mark.parametrize("memory", [None, chapters(MEMORY, num_routed=None)], ids=["dense", "all"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_without_a_router_everything_is_causal(memory, context):
    config = replace(DENSE, memory=memory)
    assert is_causal(config)
    assert max(leakage(lively(config), context)) <= 1e-5


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_a_selection_bias_does_not_leak(scope):
    config = with_router(scope)
    config.memory.chapters.router = replace(config.memory.chapters.router, bias_rate=0.01)
    model = lively(config)
    for name, bias_C in model.named_buffers():
        assert name.endswith("selection_bias")
        bias_C.normal_(generator=torch.Generator().manual_seed(0))
    moved = leakage(model, "training")
    assert min(moved) > MARGIN if scope == "sequence" else max(moved) <= 1e-5


@pytest.mark.parametrize("t", [0, W - 1, W, W + 1, LENGTH - 2])
@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_no_gradient_flows_back_from_what_was_predicted_earlier(scope, t):
    """Exactly: a gradient of 1e-9 would still be a path along which training could cheat."""
    model = lively(with_router(scope))
    kept: list[torch.Tensor] = []

    def keep(module, inputs, out):
        out.retain_grad()
        kept.append(out)

    model.embedding.register_forward_hook(keep)
    model(tokens_of(2, LENGTH)).logits_BLV[:, : t + 1].square().sum().backward()
    later_L = kept[0].grad[:, t + 1 :].abs().amax(-1)
    assert kept[0].grad[:, : t + 1].abs().max() > 0.1
    assert later_L.min() > 0 if scope == "sequence" else later_L.max() == 0


# the training step itself


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_a_training_step_on_a_texts_beginning_does_not_depend_on_its_end(
    scope: str, tmp_path: Path
) -> None:
    """Loss on the first tokens alone: neither it nor its gradient may know the others."""
    settings = [
        "phases.facts.tokens=64",
        "phases.facts.tokens_per_step=64",
        "phases.facts.schedule.warmup_steps=0",
        "model.memory.output_init=normal",
        "model.init_std=0.3",
        "model.memory.bank_init_std=0.5",
        "model.memory.chapters.router.z_loss_coefficient=0",  # a loss of its own, on every group
        "model.memory.chapters.router.balance_coefficient=0",
        f"model.memory.chapters.router.scope={'segment' if scope == 'window' else scope}",
        f"model.memory.chapters.router.segment_tokens={W}",
    ]
    settings += ["model.memory.chapters.router.window_tokens=6"] if scope == "window" else []
    study = tiny_study(tmp_path, *settings)
    tokens_BL = torch.randint(0, 400, (2, 33), generator=torch.Generator().manual_seed(1))
    found = []
    for t in (W, 2 * W + 1):  # targets up to t + 1 count
        mask_BL = (torch.arange(32) <= t).expand(2, -1)
        ends = torch.arange(33) > t + 1
        for tokens in (tokens_BL, torch.where(ends, (tokens_BL + 1) % 400, tokens_BL)):
            model = build_model(study.arms["moc"].model, seed=0)
            data = OneBatch(tokens[None], mask_BL[None])
            _, recorder = train_phase(study, tmp_path, model=model, data=data)
            (result,) = recorder.results
            found.append(torch.tensor([result["loss"], result["grad_norm"]], dtype=torch.float64))
    moved = [((b - a) / a).abs() for a, b in (found[:2], found[2:])]
    if scope == "sequence":
        assert all(change.min() > 1e-4 for change in moved)
    else:
        assert max(change.max() for change in moved) <= 1e-6
