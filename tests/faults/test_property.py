"""Whatever happens to a run, in whatever order: it ends where an undisturbed one does."""

from __future__ import annotations

import itertools
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from tests.conftest import Run
from tests.faults.conftest import run_in
from tests.support.helpers_runs import outcome, run_dir
from tests.support.ranks import launched_by_torchrun

SHORT = ("phases.facts.tokens=1024", "phases.skills.tokens=768")  # 4 steps and 3
STEPS = [("facts", step) for step in range(1, 5)] + [("skills", step) for step in range(1, 4)]
SAVED = ["facts-00000002", "1-facts", "skills-00000002", "2-skills"]

MOMENTS = st.one_of(
    st.sampled_from(STEPS).map(lambda at: {"at": "after step", "phase": at[0], "step": at[1]}),
    st.sampled_from(STEPS).map(lambda at: {"at": "before commit", "phase": at[0], "step": at[1]}),
    st.sampled_from(SAVED).map(lambda folder: {"at": "while writing", "folder": folder}),
    st.integers(0, 2).map(lambda number: {"at": "while evaluating", "boundary": number}),
    st.sampled_from(["0-start", *SAVED[1::2]]).map(
        lambda to: {"at": "before scores", "folder": to}
    ),
)
EVENTS = st.one_of(
    st.tuples(st.just("kill"), MOMENTS),
    st.tuples(st.just("stop"), MOMENTS),
    st.tuples(st.just("eval"), st.none()),
)
ONE, TWO, BOTH = [1], [2], [2, 1]  # how many ranks, by turns


class Tiny:
    """Runs of a seven-step study, with one rank or two."""

    def __init__(self, folder: Path, cache: Path, in_child: Run) -> None:
        self.folder, self.cache, self.in_child = folder, cache, in_child

    def run(self, ranks: int, stop: dict[str, Any] | None = None) -> tuple[int | None, str]:
        overrides = (*SHORT, "trainer.checkpoint_every_steps=2", f"trainer.devices={ranks}")
        env = launched_by_torchrun(ranks) if ranks > 1 else [{}]
        return run_in(self.folder, self.cache, self.in_child, overrides, stop, env=env)

    def evaluate(self) -> tuple[int | None, str]:
        log = self.folder / "log"
        if not run_dir(self.folder).joinpath("boundaries/0-start/model.json").is_file():
            return 0, ""
        argv = ["eval", str(run_dir(self.folder)), "evals.num_items=2"]
        (code,) = self.in_child("command", log=log, argv=argv)
        return code, log.read_text()


@pytest.fixture(scope="module")
def undisturbed_by(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, in_child: Run
) -> dict[int, dict[str, Any]]:
    """By number of ranks."""
    found = {}
    for ranks in (1, 2):
        tiny = Tiny(tmp_path_factory.mktemp("short"), cache, in_child)
        code, log = tiny.run(ranks)
        assert code == 0, log
        found[ranks] = outcome(tiny.folder)
    return found


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(turns=st.sampled_from([ONE, TWO, BOTH]), events=st.lists(EVENTS, min_size=2, max_size=4))
@example(turns=BOTH, events=[("kill", {"at": "after step", "phase": "facts", "step": 3})] * 2)
def test_any_history_ends_alike(
    turns: list[int],
    events: list[tuple[str, Any]],
    undisturbed_by: dict[int, dict[str, Any]],
    cache: Path,
    in_child: Run,
) -> None:
    """world size 2, then 1, then 2. Kept: the run, its journal's points once; weights and losses as
    near as another order of sums allows (1e-5), to the bit where the number of ranks stays."""
    with tempfile.TemporaryDirectory() as folder:
        tiny, ranks = Tiny(Path(folder), cache, in_child), itertools.cycle(turns)
        for what, moment in events:
            if what == "eval":
                code, log = tiny.evaluate()
                assert code == 0, log
                continue
            number = signal.SIGKILL if what == "kill" else signal.SIGTERM
            count = next(ranks)
            code, log = tiny.run(count, {**moment, "signal": number})
            # a moment that is past is not reached, and the run ends
            assert code in (0, -number, 130) or count > 1, f"{events}: {code}\n{log}"
        code, log = tiny.run(turns[0])
        assert code == 0, log
        found = outcome(Path(folder))
    expected = undisturbed_by[turns[0]]
    if turns is not BOTH:
        for key, value in expected.items():
            assert found[key] == value, (key, turns, events)
        return
    for key in ("records", "chapters", "checkpoints"):
        assert found[key] == expected[key], (key, events)
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
        weights, others = load(mine), load(theirs)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-5, msg=name)
