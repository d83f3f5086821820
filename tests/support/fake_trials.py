"""Trials that come to a known metric at once: for what asks for them, prunes and chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moc.config.schema import ArmConfig, StudyConfig
from moc.plan.pause import find_pause
from moc.store.files import read_sound_json, write_json
from moc.store.rundir import RunDir, StudyDir

Loss = Callable[[ArmConfig, float], float]  # at a share of the trial's tokens


def bowl(arm: ArmConfig, share: float) -> float:
    """Lowest where the backbone learns at 3e-3, and the bank, if there is one, at 9e-4: at every
    share, and the lower the more was trained."""
    optimizer = arm.phases["facts"].optimizer
    off = math.log(optimizer.backbone.lr / 3e-3) ** 2
    if arm.model.memory is not None:
        off += math.log(optimizer.bank.lr / 9e-4) ** 2
    return 1 + off + 1 / (1 + 9 * share)


@dataclass
class FakeTraining:
    """Writes what a run's folder would hold, and no more than it is asked for."""

    loss: Loss = bowl
    die_after: int | None = None  # so many trials were trained on by one step or more
    asked: list[tuple[str, float]] = field(default_factory=list)  # trials and shares, in order
    tokens: int = 0  # trained, over all calls
    reports: int = 0

    def __call__(self, trials: StudyConfig, names: Sequence[str], last: bool) -> None:
        self.reports += last
        for name in names:
            share = trials.trainer.pause_at or 1.0
            for seed in trials.seeds:
                phases = trials.arms[name].phases
                run = StudyDir(trials.dir).run(name, seed, list(phases))
                if self._train(run, trials.arms[name], share):
                    self.asked.append((name, share))
                    if self.die_after is not None and len(self.asked) >= self.die_after:
                        raise KeyboardInterrupt

    def _train(self, run: RunDir, arm: ArmConfig, share: float) -> bool:
        """Whether there was anything to do."""
        phases = list(arm.phases.values())
        done = read_sound_json(run.path / "fake.json").get("tokens", 0)
        pause = find_pause(phases, share)
        total = sum(phase.num_steps() * phase.tokens_per_step for phase in phases)
        tokens = total if pause is None else pause.tokens
        if done >= tokens or read_sound_json(run.info).get("status") == "diverged":
            return False
        self.tokens += tokens - done
        write_json(run.path / "fake.json", {"tokens": tokens})
        value = self.loss(arm, tokens / total)
        if math.isinf(value):
            run.journal().append({"phase": "facts", "step": 1, "tokens": tokens, "metrics": {}})
            write_json(run.info, {"status": "diverged"})
            return True
        record = {"bits_per_byte": {"people": value, "skills": value}, "eval_hash": "now"}
        write_json(run.boundary(0) / "evals.json", record)
        ended = len(phases) if pause is None else pause.phase + pause.at_end
        for index in range(ended):
            write_json(run.boundary(index + 1) / "evals.json", record)
        if pause is not None and not pause.at_end:
            write_json(run.pause(pause.phase, pause.step), record)
        write_json(run.info, {"status": "finished" if pause is None else "paused"})
        return True
