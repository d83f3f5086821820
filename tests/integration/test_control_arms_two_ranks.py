"""Arms with a bank of one row, or a random address, on two ranks: what one process trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.integration.test_two_ranks import (
    LAZY,
    ONE,
    TWO,
    arguments,
    column,
    launched_by_torchrun,
    log_of,
    result_of,
)
from tests.support.helpers_training import Recorder, tiny_study, train_phase


@pytest.mark.parametrize(  # every pair of two settings, in half as many runs
    ("control", "strategy", "updates"),
    [
        ("rows=one", "ddp", []),
        ("rows=one", "fsdp", LAZY),
        ("address=random", "ddp", LAZY),
        ("address=random", "fsdp", []),
    ],
    ids=["one-ddp-dense", "one-fsdp-lazy", "random-ddp-lazy", "random-fsdp-dense"],
)
def test_two_ranks_train_what_one_process_does(
    tmp_path: Path, in_child: Run, control: str, strategy: str, updates: list[str]
) -> None:
    """A single row cannot be spread: one rank has it, and the other reads it all the same."""
    extra = [*updates, "phases.facts.tokens=1280", f"model.memory.{control}"]
    options = arguments(tmp_path, [*TWO, *extra, f"trainer.strategy={strategy}"])
    codes = in_child("train", log=tmp_path / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(tmp_path)
    recorder = Recorder(weights=True)
    train_phase(tiny_study(tmp_path, *ONE, *extra), tmp_path, recorder=recorder)
    one_row, sharded = control == "rows=one", strategy == "fsdp"
    shares = ([1], [0]) if one_row else ([5], [4])
    for rank, share in enumerate(shares):
        result = result_of(tmp_path, rank)
        assert result["sharded"] == sharded
        assert result["bank rows here"] == (share if sharded else [1 if one_row else 9])
        assert column(result, "use") == [step["use"] for step in recorder.results]
        for key, close in (("loss", 1e-6), ("grad_norm", 1e-5)):
            expected = [step[key] for step in recorder.results]
            assert column(result, key) == pytest.approx(expected, rel=close), key
        for name, weight in recorder.weights[-1].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=0, atol=1e-5, msg=name)
    bank = recorder.weights[-1]["banks.0.rows"]
    assert bank.shape[0] == (1 if one_row else 9)
    assert (bank - recorder.weights[0]["banks.0.rows"]).abs().max() > 1e-3  # it was trained
