"""What the README shows works as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moc.cli import _parser
from moc.config.load import load_study
from moc.evaluate.asked import check_evals
from moc.plan.study_plan import plan_study, violations
from moc.plan.trials import grid_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONSOLE = "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
EXAMPLES = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for line in CONSOLE.splitlines() if line.startswith(("moc ", "make "))]


def test_its_study_loads_and_plans(tmp_path: Path) -> None:
    example, _ = EXAMPLES
    (tmp_path / "my-study.yaml").write_text(example)
    plan = plan_study(load_study(tmp_path / "my-study.yaml"))
    assert list(plan.arms) == ["moc", "iso_flop", "backbone"] and not violations(plan)
    override = "phases.tune.tokens=1_000_000"
    assert f"name=longer {override}" in README
    longer = load_study(tmp_path / "my-study.yaml", ["name=longer", override])
    assert longer.phases["tune"].tokens == 1_000_000


def test_what_it_adds_to_a_study_is_understood(tmp_path: Path) -> None:
    """Evaluations, controls and a probe, laid over the study above."""
    for name, text in zip(("base", "more"), EXAMPLES, strict=True):
        (tmp_path / f"{name}.yaml").write_text(text)
    with (tmp_path / "more.yaml").open("a") as file:
        file.write("\nextends: base.yaml\n")
    study = load_study(tmp_path / "more.yaml")
    check_evals(study)
    assert study.evals.controls.knockouts == ["bank", "top-8"] and list(study.probes) == ["relearn"]
    assert len(grid_of(study)) == 6 + 3 + 3  # the bank's rate is nothing to a dense arm


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str) -> None:
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
        return
    _, extra = _parser().parse_known_args(words)
    assert all("=" in word and not word.startswith("-") for word in extra)


def test_its_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) >= 4
    for target in targets:
        assert (ROOT / target).exists(), target
