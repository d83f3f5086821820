"""Whatever happens to a run, in whatever order: it ends where an undisturbed one does."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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
KILLS = st.tuples(st.just("kill"), st.sampled_from([1, 1, 2]), MOMENTS)
STOPS = st.tuples(st.just("stop"), st.sampled_from([1, 2]), MOMENTS)
EVALS = st.tuples(st.just("eval"), st.just(1), st.none())


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
def expected(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, in_child: Run
) -> dict[str, Any]:
    tiny = Tiny(tmp_path_factory.mktemp("short"), cache, in_child)
    code, log = tiny.run(1)
    assert code == 0, log
    return outcome(tiny.folder)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(events=st.lists(st.one_of(KILLS, STOPS, EVALS), min_size=2, max_size=4))
def test_any_history_ends_alike(
    events: list[tuple[str, int, Any]], expected: dict[str, Any], cache: Path, in_child: Run
) -> None:
    """Kills, stops, one rank or two, evaluations in between: the same bits, each point once."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = Tiny(Path(folder), cache, in_child)
        for what, ranks, moment in events:
            if what == "eval":
                code, log = tiny.evaluate()
                assert code == 0, log
                continue
            number = signal.SIGKILL if what == "kill" else signal.SIGTERM
            code, log = tiny.run(ranks, {**moment, "signal": number})
            # a moment that is past is not reached, and the run ends
            assert code in (0, -number, 130) or ranks > 1, f"{events}: {code}\n{log}"
        code, log = tiny.run(1)
        assert code == 0, log
        found = outcome(Path(folder))
    for key, value in expected.items():
        assert found[key] == value, (key, events)
