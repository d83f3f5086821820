"""The trials of ``moc tune``: what they are, and that they share nothing with the comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moc.config.schema import StudyConfig
from moc.config.tuning import TuningConfig
from moc.data.document import Document
from moc.data.source import documents
from moc.errors import ConfigError
from moc.plan.trials import grid_of, tuning_study
from tests.support.helpers_training import tiny_study

LR = {"lr_scale": [0.5, 2.0]}


def tuned(folder: Path, axes: dict, **options: object) -> StudyConfig:
    study = tiny_study(folder)
    study.tuning = TuningConfig(axes=axes, **options)  # type: ignore[arg-type]
    return study


def test_every_arm_is_tried_at_every_point_on_the_same_part_of_its_tokens(tmp_path: Path) -> None:
    study = tuned(tmp_path, LR, budget=0.5)
    trials = tuning_study(study, grid_of(study))
    assert [name.rpartition("-")[0] for name in trials.arms] == ["moc"] * 2 + ["backbone"] * 2
    more = tuned(tmp_path, {"lr_scale": [0.1, 0.5, 2.0]}, budget=0.5)
    wider = tuning_study(more, grid_of(more))
    assert all(wider.arms[name] == arm for name, arm in trials.arms.items())  # go on
    for name, trial in grid_of(study).items():
        arm = study.arms[trial.arm]
        for phase, short in trials.arms[name].phases.items():
            whole = arm.phases[phase]
            assert short.tokens == whole.tokens / 2 and short.tokens_per_step == 256
            for group in ("backbone", "memory_layers", "bank"):
                before, now = (getattr(p.optimizer, group).lr for p in (whole, short))
                assert now == pytest.approx(before * trial.point["lr_scale"])
        assert trials.arms[name].phases["facts"].schedule.warmup_steps == 1  # of 2
    assert trials.name == "tiny-tuning" and not trials.evals.tasks and not trials.probes
    assert study.arms["moc"].phases["facts"].tokens == 2048  # as it was


def test_axes_are_multiplied_and_a_point_that_changes_nothing_of_an_arm_is_left_out(
    tmp_path: Path,
) -> None:
    axes = {
        "lr_scale.backbone": [1.0, 2.0],
        "lr_scale.bank": [1.0, 3.0, 9.0],
        "phases.*.optimizer.beta2": [0.9],
        "phases.facts.schedule.warmup_steps": [4],
    }
    study = tuned(tmp_path, axes)
    trials = grid_of(study)
    assert [t.arm for t in trials.values()] == ["moc"] * 6 + ["backbone"] * 2
    last = list(trials)[5]
    assert trials[last].point == dict(zip(axes, (2.0, 9.0, 0.9, 4), strict=True))
    phases = tuning_study(study, grid_of(study)).arms[last].phases
    assert [p.optimizer.bank.lr for p in phases.values()] == pytest.approx([9e-3, 9e-3])
    assert [p.optimizer.backbone.lr for p in phases.values()] == pytest.approx([2e-3, 2e-3])
    assert {p.optimizer.beta2 for p in phases.values()} == {0.9}
    assert phases["facts"].schedule.warmup_steps == 2  # half of 4, with the budget


def test_neither_seeds_nor_scored_text_are_the_comparisons(tmp_path: Path) -> None:
    study = tuned(tmp_path, LR, hold_out=0.1)
    trials = tuning_study(study, grid_of(study))
    assert not set(trials.seeds) & set(study.seeds)
    for name, source in study.data.items():
        of_trials = trials.data[name]
        trained, scored, compared, all_of_it = (
            [_text(d) for d in documents(one, split)]
            for one, split in (
                (of_trials, "train"),
                (of_trials, "validation"),
                (source, "validation"),
                (source, "train"),
            )
        )
        assert scored and not set(scored) & set(compared)
        assert len(trained) + len(scored) == len(all_of_it)
        assert sorted(trained + scored) == sorted(all_of_it)
        assert len(scored) / len(all_of_it) == pytest.approx(0.1, abs=0.03)
    study.seeds = [0, 1000]
    with pytest.raises(ConfigError, match="share 1000"):
        tuning_study(study, grid_of(study))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "has no tuning.axes"),
        ({"lr_scale.banks": [1]}, "no group 'banks'; did you mean 'bank'"),
        ({"phases.fact.tokens": [1]}, "no 'fact' in an arm; did you mean 'facts'"),
        ({"phases.facts.optimizer.bta2": [1]}, "no 'bta2' in an arm; did you mean 'beta2'"),
        ({"model.num_layers": [2, 4]}, r"changes what a token costs arms.moc by \+"),
        ({"phases.facts.tokens": [4096]}, r"on how many tokens arms.moc trains by \+57.1%"),
    ],
)
def test_axes_that_cannot_be(tmp_path: Path, axes: dict, message: str) -> None:
    study = tuned(tmp_path, axes)

    def made() -> None:
        tuning_study(study, grid_of(study))

    with pytest.raises(ConfigError, match=message):
        made()


def test_a_setting_of_a_memory_may_be_tried_where_it_costs_nothing(tmp_path: Path) -> None:
    axes = {"model.memory.chapters.router.balance_coefficient": [0.0, 0.1]}
    study = tuned(tmp_path, axes)
    assert [t.arm for t in grid_of(study).values()] == ["moc", "moc", "backbone"]
    routers = [
        arm.model.memory.chapters.router.balance_coefficient
        for arm in tuning_study(study, grid_of(study)).arms.values()
        if arm.model.memory
    ]
    assert routers == [0.0, 0.1]
    assert replace(study.arms["moc"]).model.memory is not None


def _text(document: Document) -> str:
    return "".join(piece.text for piece in document)
