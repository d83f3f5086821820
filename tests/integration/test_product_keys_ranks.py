"""Two CPU processes over gloo train product keys as one process does.

What would break for a user: values whose gradients get lost on their way between ranks, which no
loss curve would show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.integration.test_two_ranks import (
    arguments,
    column,
    launched_by_torchrun,
    log_of,
    result_of,
)
from tests.support.helpers_training import tiny_study, train_phase

# Four steps of 8 sequences in two micro-batches, of which only the last communicates; 144 values.
# Of many more steps, one would have a position whose choice rounding decides.
COMMON = [
    "phases.facts.tokens=1024",
    "phases.facts.loss_on=assistant",  # uneven masks: questions count differently from prose
    "phases.facts.mixture={skills: 1.0, people: 1.0}",
    "model.memory.kind=product_keys",
    "model.memory.product_keys={num_keys: 12, num_heads: 2, num_read: 3, key_dim: 8}",
    "model.memory.output_init=normal",
]
ONE = [*COMMON, "phases.facts.micro_batch=4"]
TWO = [*COMMON, "phases.facts.micro_batch=2", "trainer.devices=2"]
LAZY = "phases.facts.optimizer.lazy_bank=true"
CASES = {  # what the runs have in common
    "dense": [],
    "lazy, checkpointing": [LAZY, "model.activation_checkpointing=true"],
    "dense, layer norm": ["model.memory.product_keys.query_norm=layer"],
    "lazy, one row": [LAZY, "model.memory.rows=one"],
}


def on_two_ranks(
    folder: Path, in_child: Run, strategy: str, overrides: list[str]
) -> list[dict[str, Any]]:
    options = arguments(folder, [*TWO, *overrides, f"trainer.strategy={strategy}"])
    codes = in_child("train", log=folder / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(folder)
    return [result_of(folder, rank) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("case", "strategy"),
    [*((case, "fsdp") for case in CASES), ("dense", "ddp"), ("lazy, one row", "ddp")],
)
def test_two_ranks_are_one_process(tmp_path: Path, in_child: Run, case: str, strategy: str) -> None:
    ranks = on_two_ranks(tmp_path, in_child, strategy, CASES[case])
    module, alone = train_phase(tiny_study(tmp_path, *ONE, *CASES[case]), tmp_path)
    assert len(alone.results) == 4 and alone.losses()[-1] < alone.losses()[0]
    for rank in ranks:
        assert rank["results"] == ranks[0]["results"]
        assert column(rank, "loss") == pytest.approx(alone.losses(), rel=1e-6)
        assert column(rank, "use") == [result["use"] for result in alone.results]
        assert rank["sharded"] == (strategy == "fsdp")
    num_rows = 1 if "one row" in case else 144
    shares = [num_rows - num_rows // 2, num_rows // 2] if strategy == "fsdp" else [num_rows] * 2
    assert [rank["bank rows here"] for rank in ranks] == [[shares[0]], [shares[1]]]
    for name, weight in module.model.state_dict().items():
        # Adam divides rounding by itself where a gradient is nearly zero; values read are few
        close = 1e-6 if name.startswith("banks.") else 1e-5
        if "one row" in case and ".memory.address." in name:
            continue  # whatever it chooses is the same row: its gradient is rounding, and no more
        difference = (ranks[0]["weights"][name] - weight).abs().max().item()
        assert difference < close, f"{name}: {difference}"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_running_statistics_are_the_same_on_both_ranks(
    tmp_path: Path, in_child: Run, strategy: str
) -> None:
    """Else every rank would evaluate another model."""
    norm = ["model.memory.product_keys.query_norm=batch"]
    first, second = on_two_ranks(tmp_path, in_child, strategy, norm)
    names = [name for name in first["buffers"] if "running" in name]
    assert len(names) == 2 * 2
    for name in names:
        assert torch.equal(first["buffers"][name], second["buffers"][name])
        fresh = torch.zeros(8) if "mean" in name else torch.ones(8)
        assert not torch.isclose(first["buffers"][name], fresh, atol=1e-4).any()
    seen = [name for name in first["buffers"] if name.endswith("seen_2Q")]
    for name in seen:  # each rank had other text
        assert not torch.equal(first["buffers"][name], second["buffers"][name])
    assert first["results"] == second["results"]
