"""A step means the same however it is cut into micro-batches.

The tokens that count are spread very unevenly, so that a mean of micro-batch means would be far
off. The balance loss is switched off here: it is a product of two means over the routing groups of
a micro-batch (the share of picks and the mean probability), and the mean of such products over
micro-batches is not the product over the step. It is defined per micro-batch.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import moc.train.optim
from moc.config.schema import StudyConfig
from moc.model import Transformer, build_model, routing_scope
from tests.support.helpers_training import Recorder, tiny_study, train_phase
from tests.support.one_batch import OneBatch

LENGTH, LR, DECAY, EPS, Z = 32, 1e-2, 0.1, 1e-2, 0.05
SCOPES = {"sequence": 1, "segment": 5, "token": LENGTH}  # routing groups in a sequence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def one_step(folder: Path, scope: str) -> StudyConfig:
    """One step of four sequences."""
    return tiny_study(
        folder,
        f"model.memory.chapters.router.scope={scope}",
        "model.memory.chapters.router.segment_tokens=7",
        "phases.facts.tokens=128",
        "phases.facts.tokens_per_step=128",
        "phases.facts.schedule.kind=constant",
        "phases.facts.schedule.warmup_steps=0",
        "phases.facts.optimizer.clip_norm=0",
        "model.memory.chapters.router.balance_coefficient=0",
        "model.memory.output_init=normal",
        f"model.memory.chapters.router.z_loss_coefficient={Z}",
        *(f"phases.facts.optimizer.{g}.lr={LR}" for g in ("backbone", "memory_layers", "bank")),
    )


@pytest.fixture(scope="module")
def sequences() -> tuple[Tensor, Tensor]:
    """Tokens (4, L + 1) and loss mask (4, L): 32, 1, 0 and 7 tokens count."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 400, (4, LENGTH + 1), generator=generator)
    mask = torch.zeros(4, LENGTH, dtype=torch.bool)
    mask[0] = True
    mask[1, 5] = True
    mask[3, 20:27] = True
    return tokens, mask


def direct(model: Transformer, tokens: Tensor, mask: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Mean cross-entropy and gradients of the whole batch in float64, sequence by sequence."""
    model = deepcopy(model).double()
    nll = torch.zeros((), dtype=torch.float64)
    squares = torch.zeros((), dtype=torch.float64)
    num_groups = 0  # of all layers and sequences
    for row, counted in zip(tokens, mask, strict=True):
        output = model(row[None, :-1])
        log_probs = output.logits_BLV[0] - output.logits_BLV[0].logsumexp(-1, keepdim=True)
        for position in range(LENGTH):
            if counted[position]:
                nll = nll - log_probs[position, row[position + 1]]
        for layer in output.addresses:
            for logits_C in layer.logits_BGC[0]:
                squares = squares + logits_C.logsumexp(-1) ** 2
                num_groups += 1
    assert num_groups == 4 * 2 * SCOPES[routing_scope(model.config)]
    loss = nll / mask.sum()
    (loss + Z * squares / num_groups).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


@pytest.fixture(autouse=True)
def large_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Adam's first step is the sign of the gradient, which magnifies rounding."""
    monkeypatch.setattr(moc.train.optim, "EPS", EPS)


@pytest.mark.parametrize("num_micro", [4, 2, 1])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_equals_the_whole_batch_computed_directly(
    folder: Path, sequences: tuple[Tensor, Tensor], tmp_path: Path, scope: str, num_micro: int
) -> None:
    study = one_step(folder, scope)
    tokens, mask = sequences
    model = build_model(study.arms["moc"].model, seed=0)
    expected_loss, expected = direct(model, tokens, mask)
    start = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    data = OneBatch(
        tokens.reshape(num_micro, 4 // num_micro, -1), mask.reshape(num_micro, 4 // num_micro, -1)
    )
    recorder = Recorder(weights=True)
    train_phase(study, tmp_path, model=model, data=data, recorder=recorder)
    assert recorder.losses() == pytest.approx([expected_loss], rel=1e-6)
    (gradients,) = recorder.gradients
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        wanted = expected[name]
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-7, msg=name)
        decay = 0.0 if "norm" in name or name.endswith("bias") else DECAY
        adam = wanted / (wanted.abs() + EPS)  # both moments' bias corrections cancel at step one
        stepped = start[name] * (1 - LR * decay) - LR * adam
        torch.testing.assert_close(
            recorder.weights[0][name].double(), stepped, rtol=1e-5, atol=1e-6, msg=name
        )


def test_a_step_without_a_single_counted_token_is_survived(
    folder: Path, sequences: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """An instruction phase has them; 0 / 0 must not reach the weights."""
    study = one_step(folder, "segment")
    tokens, mask = sequences
    data = OneBatch(tokens[:, None], torch.zeros_like(mask)[:, None])
    _, recorder = train_phase(study, tmp_path, data=data)
    assert recorder.losses() == [0.0] and not recorder.results[0]["skipped"]
