"""``optimizer.lazy_bank`` in training: the gradient is the same, idle chapters stand still, a run
goes on exactly, and everybody is told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from moc.errors import ConfigError
from moc.model.transformer import Transformer
from moc.plan.bank_optimizer import bank_optimizer
from moc.train.checkpoints import load_training_state, save_training_state
from tests.support.helpers_training import Recorder, module_of, tiny_study, train_phase

# two micro-batches a step and a clipping norm that is always exceeded; most chapters never read
OPTIONS = [
    "model.memory.chapters.num_chapters=200",
    "model.memory.output_init=normal",
    "phases.facts.optimizer.clip_norm=0.1",
]
LAZY = [*OPTIONS, "phases.facts.optimizer.lazy_bank=true"]


class Save(L.Callback):
    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        module = module_of(pl_module)
        if module.step == self.step:
            save_training_state(
                self.folder,
                module.model,
                trainer.optimizers[0],
                callbacks={},
                phase="facts",
                step=module.step,
                config_hash="",
            )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By optimizer: the eight steps; of lazy, a checkpoint after the third."""
    found: dict[str, Any] = {}
    for name, options in (("dense", OPTIONS), ("lazy", LAZY)):
        folder = tmp_path_factory.mktemp(name)
        found[name] = train_phase(
            tiny_study(folder, *options),
            folder,
            recorder=Recorder(weights=True),
            callbacks=(Save(folder / "third", 3),),
        )
        found[f"{name} folder"] = folder
    return found


def test_the_gradient_is_that_of_dense_training(runs: dict[str, Any]) -> None:
    """Its norm before clipping, bank included, over two micro-batches; the first step of AdamW goes
    one way per weight, so that what was read moves alike."""
    first, twin = (runs[name][1].results[0] for name in ("dense", "lazy"))
    assert twin["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-6)
    assert twin["loss"] == first["loss"] and first["grad_norm"] > 0.1
    read_C = torch.tensor(twin["use"]).sum(0) > 0
    read_C[0] = True  # the shared one
    dense, lazy = (runs[name][1].weights[0]["banks.0.rows"] for name in ("dense", "lazy"))
    torch.testing.assert_close(lazy[read_C], dense[read_C], rtol=1e-5, atol=1e-7)


def test_chapters_that_nobody_reads_stand_still(runs: dict[str, Any]) -> None:
    """Dense AdamW makes them smaller at every step."""
    recorders = [runs[name][1] for name in ("dense", "lazy")]
    for name, recorder in zip(("dense", "lazy"), recorders, strict=True):
        read_C = torch.tensor([r["use"] for r in recorder.results]).sum((0, 1)) > 0
        read_C[0] = True
        assert (~read_C).sum() > 0
        first, last = (recorder.weights[i]["banks.0.rows"][~read_C] for i in (0, -1))
        assert torch.equal(first, last) == (name == "lazy")


def test_a_run_goes_on_to_the_same_bits(runs: dict[str, Any], tmp_path: Path) -> None:
    state = load_training_state(runs["lazy folder"] / "third")
    moments = state["optimizer"]["state"]["banks.0.rows"]
    assert moments["step"].shape == (200,) and moments["step"].max() == 3
    study = tiny_study(tmp_path, *LAZY)
    model = Transformer(study.arms["moc"].model)
    model.load_state_dict(state["model"])
    module, _ = train_phase(
        study, tmp_path, model=model, start_step=3, optimizer_state=state["optimizer"]
    )
    for name, weight in module.model.state_dict().items():
        assert torch.equal(weight, runs["lazy"][0].model.state_dict()[name]), name


def test_runs_say_what_updated_their_bank(tmp_path: Path) -> None:
    def label(*options: str, arm: str = "moc") -> str:
        return bank_optimizer(asdict(tiny_study(tmp_path, *options).arms[arm]))

    every = "phases.{}.optimizer.{}=true".format
    assert label() == "dense" and label(arm="backbone") == "none"
    assert label(every("facts", "lazy_bank"), every("skills", "lazy_bank")) == "lazy"
    mixed = label(every("facts", "lazy_bank"), every("skills", "bank.freeze"))
    assert mixed == "facts: lazy, skills: frozen"


def test_moments_do_not_cross_into_another_condition(tmp_path: Path) -> None:
    words = "phases.skills.carry.optimizer: the phase before has optimizer.lazy_bank True"
    with pytest.raises(ConfigError, match=words):
        tiny_study(tmp_path, *LAZY, "phases.skills.carry.optimizer=true")
