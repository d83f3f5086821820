"""A phase that trains nothing: the same tokens, and a model without a bit changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from moc.model.transformer import build_model
from tests.support.helpers_training import Recorder, copy_weights, tiny_study, train_phase

# Everything that moves weights: a selection bias, decay, clipping, and a warm-up from the first
# step on.
OVERRIDES = [
    "phases.facts.tokens=1024",
    "model.memory.output_init=normal",
    "model.memory.chapters.router.bias_rate=0.01",
    *(
        f"phases.facts.optimizer.{group}.weight_decay=0.5"
        for group in ("backbone", "memory_layers", "bank")
    ),
]


@pytest.mark.parametrize(
    ("arm", "override"),
    [
        ("moc", "model.memory.chapters.router.scope=segment"),
        ("moc", "model.memory.chapters.num_routed=null"),
        ("backbone", "seeds=[0]"),
    ],
)
def test_no_bit_changes_and_the_data_are_the_same(tmp_path: Path, arm: str, override: str) -> None:
    seen = {}
    for no_op in (True, False):
        study = tiny_study(
            tmp_path, *OVERRIDES, override, f"phases.facts.no_op={str(no_op).lower()}"
        )
        model = build_model(study.arms[arm].model, seed=0)
        with torch.no_grad():  # zeros have a sign, which an update by zero could lose
            model.blocks[0].attention.qkv.weight[0, :4] = torch.tensor([-0.0, 0.0, -0.0, 0.0])
        before = copy_weights(model)
        recorder = Recorder()
        train_phase(study, tmp_path, arm=arm, model=model, recorder=recorder)
        after = copy_weights(model)
        same = {k: before[k].numpy().tobytes() == after[k].numpy().tobytes() for k in before}
        if no_op:
            assert all(same.values()), [name for name, kept in same.items() if not kept]
            assert {result["lr_factor"] for result in recorder.results} == {0.0}
            assert not any(result["skipped"] for result in recorder.results)
        else:
            assert not any(same.values()), [name for name, kept in same.items() if kept]
        seen[no_op] = recorder
    tokens = {no_op: [b["tokens"] for b in recorder.batches] for no_op, recorder in seen.items()}
    assert len(tokens[True]) == 4
    assert all(torch.equal(*pair) for pair in zip(tokens[True], tokens[False], strict=True))
    assert seen[True].losses()[0] == seen[False].losses()[0]


def test_moments_cross_a_phase_that_trains_nothing(tmp_path: Path) -> None:
    """With carry.optimizer, the phase after it goes on from where training stopped."""
    optimizers: list[torch.optim.Optimizer] = []
    states = []
    carried = None
    for no_op in (False, True):
        study = tiny_study(tmp_path, *OVERRIDES, f"phases.facts.no_op={str(no_op).lower()}")
        module, _ = train_phase(study, tmp_path, optimizer_state=carried)
        optimizers.append(module.trainer.optimizers[0])
        states.append(get_optimizer_state_dict(module.model, optimizers[-1]))
        carried = states[-1]
    first, second = (state["state"] for state in states)
    assert first.keys() == second.keys()
    for name, moments in first.items():
        for key, value in moments.items():
            assert torch.equal(value, second[name][key]), (name, key)
