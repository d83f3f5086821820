"""What every arm has and costs."""

from __future__ import annotations

from collections.abc import Callable

from moc.report.numbers.results import NON_CAUSAL, Results
from moc.report.numbers.study import Arm, Match, Shape
from moc.report.numbers.times import evaluation_sec, peak_bytes, training_sec
from moc.report.tables.cells import MISSING, count, percent, shared_text, signed, table_of
from moc.report.tables.layout import Table

MEGABYTE = 2**20
LAYERS, KIND = "layers × width, MLP width", "memory"
BANK, READ = "bank: rows × shape of a row", "rows read"


def cost(results: Results) -> Table:
    """What each arm has and costs, from the plan, with the throughput measured."""
    arms = results.study.arms
    rows: list[list[str]] = []

    def add(label: str, cell: Callable[[Arm], str]) -> None:
        rows.append([label, *(cell(arm) for arm in arms.values())])

    def add_measured(label: str, values: dict[str, float | None], unit: float = 1) -> None:
        scaled = {arm: value and value / unit for arm, value in values.items()}
        add(label, lambda arm: count(scaled[arm.name]))

    for key in (LAYERS, KIND, BANK, READ):
        rows.append([key, *(_shape(arm.shape).get(key, MISSING) for arm in arms.values())])
    add("routing", lambda arm: results.routing(arm.name).replace(NON_CAUSAL, " (non-causal)"))
    add("bank optimizer", lambda arm: arm.bank_optimizer)
    add("parameters, total", lambda arm: count(arm.cost.parameters.total))
    add("parameters, trainable", lambda arm: count(arm.cost.parameters.trainable))
    add("parameters, backbone", lambda arm: count(arm.cost.parameters.backbone))
    add("parameters, memory layers", lambda arm: count(arm.cost.parameters.memory_layers))
    add("parameters, bank", lambda arm: count(arm.cost.parameters.bank))
    add(
        "forward FLOPs per sequence, paper accounting",
        lambda arm: count(arm.cost.paper_forward_flops),
    )
    add(
        "training FLOPs per token, hardware accounting",
        lambda arm: count(arm.cost.hardware_train_flops),
    )
    add(
        "deviation from iso-FLOP (training, per token)",
        lambda arm: _deviation(results, arm.iso_flop) or MISSING,
    )
    if any(_deviation(results, arm.iso_param) for arm in arms.values()):
        add(
            "deviation from iso-param",
            lambda arm: _deviation(results, arm.iso_param) or MISSING,
        )
    if baseline := results.iso_flop_arm:
        base, over = arms[baseline].cost, f"FLOPs over those of {results.label(baseline)}"
        add(
            f"{over}, paper accounting, forward",
            lambda arm: _over_baseline(arm.cost.paper_forward_flops, base.paper_forward_flops),
        )
        add(
            f"{over}, hardware accounting, training",
            lambda arm: _over_baseline(arm.cost.hardware_train_flops, base.hardware_train_flops),
        )
    for phase in results.phases:
        steps = [count(arm.cost.steps.get(phase)) for arm in arms.values()]
        rows.append([f"optimizer steps, {phase}", *steps])
    for phase in results.phases:
        speeds = {arm: results.tokens_per_sec(arm, phase) for arm in arms}
        add_measured(f"measured tokens/s, {phase}", speeds)
    for phase in results.phases:
        waits = [results.data_wait(arm, phase) for arm in arms]
        if any(wait is not None for wait in waits):
            label = f"waiting for data, % of the time, {phase}"
            rows.append([label, *(percent(wait) for wait in waits)])
    add_measured("training time per seed, s", {arm: training_sec(results, arm) for arm in arms})
    add_measured("evaluation time per seed, s", {arm: evaluation_sec(results, arm) for arm in arms})
    add("planned memory, state, MB", lambda arm: _megabytes(arm.cost.state_bytes))
    add("planned memory, activation, MB", lambda arm: _megabytes(arm.cost.activation_bytes))
    peaks = {arm: peak_bytes(results, arm) for arm in arms}
    if any(peaks.values()):
        add_measured("measured peak memory, MB", peaks, MEGABYTE)
    header = ["", *(results.label(arm) for arm in results.arms)]
    caption = "Shape and planned cost of every arm, and the time and memory measured"
    notes = [
        "Measured on the machine of the study: throughput is the median of what was logged, "
        "training time the tokens of every phase over it; evaluations are those at boundaries, "
        "with controls, and in phases. Memory is per device; activations are a rough estimate."
    ]
    shared = dict.fromkeys(
        f"{results.label(run.arm)}: {text}"
        for run in results.runs.values()
        if (text := shared_text(results, run))
    )
    if shared:
        notes.append(
            f"Trained once and counted for each arm that shares them: {'; '.join(shared)}."
        )
    return table_of(results, "cost", caption, header, rows, notes=notes)


def _shape(shape: Shape | None) -> dict[str, str]:
    if shape is None:
        return {}
    cells = {LAYERS: f"{shape.num_layers} × {shape.dim}, {shape.mlp_dim}"}
    if memory := shape.memory:
        cells[KIND] = memory.kind.replace("_", " ")
        cells[BANK] = " × ".join(f"{n:,}" for n in (memory.num_rows, *memory.row_shape))
        cells[READ] = memory.read
    return cells


def _deviation(results: Results, match: Match | None) -> str:
    """Of an arm from the one it is matched to; empty where it is matched to none."""
    if match is None or match.relative_error is None:
        return ""
    return f"{signed(100 * match.relative_error, 2)}% of {results.label(match.target)}"


def _over_baseline(mine: float | None, theirs: float | None) -> str:
    return MISSING if mine is None or theirs is None else f"{signed(100 * (mine / theirs - 1), 1)}%"


def _megabytes(value: float | None) -> str:
    return MISSING if value is None else count(value / MEGABYTE)
