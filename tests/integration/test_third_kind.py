"""A kind of memory that the project does not have: what is written here is all that it takes.

What would break for a user: a memory of their own that has to be known in many places, or goes
without the controls that the shipped ones are put through.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import moc.model.memory.build
import moc.study
from evals.measures.controls import knocked_out
from moc.cli import main
from moc.config.load import load_study
from moc.data.tokenizer import build_tokenizer
from moc.model import Transformer, load_model
from moc.model.memory import arithmetic
from moc.model.memory.bank import distinct_rows
from moc.model.memory.seam import Address, Context, Kind, Products
from moc.ops import weighted_rows
from moc.store.journal import read
from tests.support.child_tasks import NoTracker
from tests.support.decoding import IN_CHUNKS, LENGTH, decode
from tests.support.helpers_training import TINY_STUDY

EVERYWHERE = moc.model.memory.build.kind_called


class TokenAddress(nn.Module):
    """Every position's row is that of its token."""

    def forward(self, x_BLD: Tensor, context: Context) -> Address:
        index_BL1 = context.tokens_BL[..., None]
        return Address(index_BL1, torch.ones_like(index_BL1, dtype=torch.float32), 1)


class GatedRead(nn.Module):
    """``out(silu(gate(x)) * row)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BLD: Tensor, address: Address, context: Context) -> tuple[Tensor, Address]:
        rows_RD, slot_UD = context.bank
        row_U, index_BLN = distinct_rows(rows_RD, address.index_BGN, 0)
        index_XN, weight_XN = index_BLN.flatten(0, 1), address.weight_BGN.flatten(0, 1)
        read_XD = weighted_rows(rows_RD, row_U, index_XN, weight_XN, slot_UD)
        out_BLD = self.out(F.silu(self.gate(x_BLD)) * read_XD.view_as(x_BLD))
        return out_BLD, address._replace(row_U=row_U)


class TokenValues(Kind):
    """A vector for every token of the vocabulary (after STEM, arXiv 2601.10639)."""

    row_name = "value"
    num_picked = 1

    @property
    def num_rows(self) -> int:
        return self.config.vocab_size

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.config.dim,)

    def build_address(self) -> nn.Module:
        return TokenAddress()

    def build_read(self) -> nn.Module:
        return GatedRead(self.config.dim)

    def paper_flops(self, context_length: int, batch: int) -> int:
        tokens, dim = context_length * batch, self.config.dim
        return 2 * arithmetic.linear(tokens, dim, dim) + 6 * tokens * dim

    def products(self, context_length: int, batch: int, *, gpu: bool) -> Products:
        dim = self.config.dim
        return Products(2 * arithmetic.linear(context_length * batch, dim, dim))

    def activation_bytes(self, context_length: int, batch: int, width: int) -> int:
        return context_length * batch * width * 5 * self.config.dim


def with_third(name: str) -> type[Kind]:
    """``kind_called`` with one line more in its ``match``."""
    return TokenValues if name == "token_values" else EVERYWHERE(name)


ARMS = """
arms:
  toy: {model: {memory: {kind: token_values}}}
  iso_flop: {model: {memory: null}, iso_flop: {target: toy, tolerance: 0.02}}
  backbone: {model: {memory: null}}
"""
CONTROLS = "evals.controls={knockouts: [bank, top-2, row-5], bank_swap: [previous], num_items: 2}"


def test_it_takes_less_than_eighty_lines() -> None:
    parts = (TokenAddress, GatedRead, TokenValues, with_third)
    assert sum(len(inspect.getsource(part).splitlines()) for part in parts) < 80


@pytest.fixture(scope="module", autouse=True)
def third_kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moc.model.memory.build, "kind_called", with_third)
        patch.setattr(moc.study, "Tracker", NoTracker)
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("third")
    path = folder / "third.yaml"
    before, after = TINY_STUDY.format(folder=folder).split("arms:")
    path.write_text(before + ARMS + after[after.index("evals:") :])
    return path


@pytest.fixture(scope="module")
def study(file: Path) -> Path:
    """The study's folder, run to its report by ``moc run``."""
    assert main(["run", str(file), CONTROLS]) == 0
    return file.parent / "runs/tiny"


def record(study: Path, boundary: str) -> dict[str, Any]:
    path = study / "arms/toy/seed-0/boundaries" / boundary / "evals.json"
    return json.loads(path.read_text())


@pytest.fixture
def model(study: Path) -> Transformer:
    return load_model(study / "arms/toy/seed-0/boundaries/1-facts")


def test_it_is_planned(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), "--json"]) == 0
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert (arms["toy"]["memory"]["kind"], arms["toy"]["causal"]) == ("token_values", True)
    # norm, gate and map of both layers; a value per token of the vocabulary
    numbers = arms["toy"]["parameters"]
    assert numbers["memory_layers"] == 2 * (32 + 2 * 32 * 32) and numbers["bank"] == 512 * 32
    assert abs(arms["iso_flop"]["iso_flop"]["relative_error"]) < 0.02
    assert main(["plan", str(file)]) == 0
    assert "token_values" in capsys.readouterr().out


def test_it_trains_and_its_use_is_counted(study: Path) -> None:
    journal = read(study / "arms/toy/seed-0/metrics.jsonl")
    key = "facts/train/loss"
    losses = [r["metrics"][key] for r in journal if key in r["metrics"]]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.1
    lines = read(study / "arms/toy/seed-0/memory_use.jsonl")
    assert len(lines) == 2 * (8 + 6)
    for line in lines:  # every position picks one row
        assert sum(line["load"]) == line["step"] * 256 and "balance_loss" not in line


def test_it_is_knocked_out_and_swapped(study: Path) -> None:
    found = record(study, "2-skills")
    names = {"knockout-bank", "knockout-top-2", "knockout-row-5", "bank_swap-facts"}
    assert set(found["controls"]) == names
    plain = found["bits_per_byte"]["people"]
    for name in names - {"knockout-row-5"}:
        assert found["controls"][name]["bits_per_byte"]["people"] != plain, name


def test_it_reads_nothing_once_knocked_out(model: Transformer) -> None:
    tokens_BL = torch.arange(32)[None]
    with torch.no_grad():
        before = model(tokens_BL).logits_BLV
        with knocked_out(model, None):
            without = model(tokens_BL).logits_BLV
        for layer in (0, 1):
            model.blocks[layer].memory.read.out.weight.zero_()
        assert not torch.equal(before, without)
        assert torch.equal(model(tokens_BL).logits_BLV, without)


def test_it_decodes_as_it_was_trained(model: Transformer) -> None:
    tokens_BL = torch.randint(400, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    found = decode(model, tokens_BL, IN_CHUNKS)
    fed_BL = ~found.isnan().all(-1)
    with torch.no_grad():
        expected = model(tokens_BL[:, : found.shape[1]]).logits_BLV
    torch.testing.assert_close(found[fed_BL], expected[fed_BL], rtol=0, atol=1e-5)


def test_it_continues_a_prompt(
    file: Path, study: Path, model: Transformer, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the token that a whole pass finds most likely, four times."""
    boundary = str(study / "arms/toy/seed-0/boundaries/1-facts")
    assert main(["generate", boundary, "--prompt", "Where was", "--max-new-tokens", "4"]) == 0
    tokenizer = build_tokenizer(load_study(file))
    ids = tokenizer.encode("Where was")
    num_given = len(ids)
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits_BLV[0, -1].argmax()))
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(ids[num_given:]).rstrip("\n")


def test_it_passes_the_causality_gate(model: Transformer) -> None:
    text_L = torch.randint(400, (32,), generator=torch.Generator().manual_seed(0))
    other_L = torch.where(torch.arange(32) < 20, text_L, (text_L + 1) % 400)
    with torch.no_grad():
        first, second = (model(row_L[None]).logits_BLV[0] for row_L in (text_L, other_L))
    assert torch.equal(first[:20], second[:20]) and not torch.equal(first[20:], second[20:])


def test_it_is_in_the_report(study: Path) -> None:
    page = (study / "report/report.html").read_text()
    assert all(arm in page for arm in ("toy", "iso_flop", "backbone"))
    assert "knockout" in page
    assert "512 × 32" in page  # its bank: a row for every token of the vocabulary
