"""How much of a score lives in the bank: scores under knockouts and with earlier banks."""

from __future__ import annotations

from evals.statistics.estimates import Estimate, over_seeds
from evals.statistics.inference import share_interval
from moc.report.numbers.effects import control_names
from moc.report.numbers.results import Results
from moc.report.numbers.scores import Score, score_of


def controlled_boundaries(results: Results) -> list[str]:
    return [boundary for boundary in results.phases if control_names(results, boundary)]


def controlled_arms(results: Results, boundary: str) -> list[str]:
    return [
        arm
        for arm in results.arms
        if any(run.at(boundary).controls for run in results.runs_of(arm))
    ]


def score_under(results: Results, arm: str, task: str, boundary: str, control: str) -> Score | None:
    """The score under ``control``; under "" as it is, on the items that controls score."""
    key = ("under", arm, task, boundary, control)
    return results.once(key, lambda: _under(results, arm, task, boundary, control))


def loss_change(
    results: Results, arm: str, boundary: str, source: str, control: str
) -> Estimate | None:
    """Bits per byte under ``control`` minus those as it is, over seeds; positive is worse."""
    changes = []
    for at in (run.at(boundary) for run in results.runs_of(arm)):
        under = at.controls[control].bits_per_byte if control in at.controls else {}
        if source in under and source in at.bits_per_byte:
            changes.append(under[source] - at.bits_per_byte[source])
    return over_seeds(changes)


def _under(results: Results, arm: str, task: str, boundary: str, control: str) -> Score | None:
    other = control or next(iter(control_names(results, boundary)), "")
    controls = [run.at(boundary).controls for run in results.runs_of(arm)]
    tasks = [found[other].tasks for found in controls if other in found]
    scores = [found[task] for found in tasks if task in found]
    if control:
        common = results.items(task).common((arm, boundary, control))
        return score_of(scores, common)
    common = results.items(task).common((arm, boundary, ""), (arm, boundary, other))
    if common is None or not scores:
        return None
    value, low, high = share_interval(common.values[0], common.cluster_N)
    num_items = common.values[0].shape[1]
    return Score(value, low, high, scores[0].chance, scores[0].majority, num_items)
