"""Learning rates at the steps where a wrong schedule would spoil a run, computed by hand."""

from __future__ import annotations

import math

import pytest

from moc.config.schema import ScheduleConfig
from moc.train.schedules import lr_factor
from tests.support.small_models import chapters


def factors(config: ScheduleConfig, num_steps: int) -> list[float]:
    return [lr_factor(step, num_steps, config) for step in range(num_steps)]


def test_the_papers_schedule() -> None:
    """9,600 steps, warm-up 250, stable until exactly step 8,160, then linear towards a tenth."""
    config = ScheduleConfig(kind="wsd", warmup_steps=250, decay_fraction=0.15, final_ratio=0.1)
    found = factors(config, 9600)
    assert found[0] == pytest.approx(1 / 250)
    assert found[124] == pytest.approx(0.5)
    assert found[249] == 1.0
    assert set(found[249:8161]) == {1.0}  # 8,160 is where the straight line starts
    assert found[8161] == pytest.approx(1 - 0.9 / 1440)
    assert found[8880] == pytest.approx(0.55)  # half-way down
    assert found[9599] == pytest.approx(0.1 + 0.9 / 1440)
    assert lr_factor(9600, 9600, config) == pytest.approx(0.1)


def test_wsd_on_a_run_short_enough_to_write_down() -> None:
    config = ScheduleConfig(kind="wsd", warmup_steps=2, decay_fraction=0.4, final_ratio=0.0)
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(config, 10) == pytest.approx(expected)


def test_a_decay_longer_than_what_the_warm_up_leaves() -> None:
    """The decay waits for the warm-up; the rate never jumps."""
    config = ScheduleConfig(kind="wsd", warmup_steps=4, decay_fraction=1.0, final_ratio=0.0)
    assert factors(config, 8) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])


def test_cosine() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=2, final_ratio=0.2)
    expected = [0.5, 1.0] + [0.6 + 0.4 * math.cos(math.pi * k / 4) for k in range(4)]
    assert factors(config, 6) == pytest.approx(expected)
    assert lr_factor(6, 6, config) == pytest.approx(0.2)


def test_linear() -> None:
    config = ScheduleConfig(kind="linear", final_ratio=0.5)
    assert factors(config, 5) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


def test_constant_after_its_warm_up() -> None:
    config = ScheduleConfig(kind="constant", warmup_steps=4)
    assert factors(config, 7) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_a_schedule_carried_over_continues_over_both_phases() -> None:
    """Steps 3 and 4 of a phase that follows one of 6 are steps 9 and 10 of 12."""
    from moc.config.schema import PhaseConfig
    from moc.model.config import ModelConfig
    from moc.model.transformer import Transformer
    from moc.train.module import StudyModule

    model = Transformer(ModelConfig(num_layers=1, memory=chapters(layers="all")))
    phase = PhaseConfig(
        tokens=6 * 128, tokens_per_step=128, schedule=ScheduleConfig(kind="linear", final_ratio=0)
    )
    module = StudyModule(model, phase, start_step=3, schedule_offset=6)
    assert module.current_lr_factor() == pytest.approx(3 / 12)
    module.step += 1
    assert module.current_lr_factor() == pytest.approx(2 / 12)
