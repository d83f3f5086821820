"""``python -m moc.bench`` at sizes that take seconds: what it writes; that it needs torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moc.bench.__main__ import main
from moc.bench.contenders import with_memory
from moc.model import preset

SMALL = ["--batch", "1", "--length", "64", "--repetitions", "1", "--device", "cpu"]
TINY = ["--preset", "tiny", *SMALL]


def figures(tmp_path: Path, *arguments: str) -> dict:
    file = tmp_path / "figures.json"
    assert main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(
        tmp_path, "step", *TINY, "--kind", "chapters,product_keys", "--scopes", "segment,token",
        "--chapters", "33", "--keys", "16",
    )  # fmt: skip
    arms = [(row["arm"], row["scope"], row["mixing"]) for row in found["rows"]]
    assert arms == [
        ("chapters", "segment", "joint"),
        ("chapters", "token", "per_chapter"),
        ("product_keys", "token", None),
        ("iso_flop", "none", None),
        ("backbone", "none", None),
    ]
    for row in found["rows"]:
        assert row["tokens_per_sec"] == pytest.approx(64 / row["step_sec"])
        assert row["step_min_sec"] <= row["step_sec"] <= row["step_max_sec"]
        assert 0 < row["mfu"] < 1.5  # two repetitions on a busy machine may beat the measured peak
        assert row["peak_bytes"] > 1e8
    assert found["matmul_peak_flops"] > 1e8
    out = capsys.readouterr().out
    assert "tokens/s" in out and max(map(len, out.splitlines())) <= 110
    assert "33 chapters, 256 values; lazy" in out and "chosen by fresh keys" in out


def test_step_in_bfloat16(tmp_path: Path) -> None:
    # 16 positions: a CPU without bfloat16 units takes a minute for 64
    short = [*TINY, "--length", "16", "--bf16", "--scopes", "token", "--chapters", "33"]
    found = figures(tmp_path, "step", *short)
    assert [row["arm"] for row in found["rows"]] == ["chapters", "iso_flop", "backbone"]


def test_growth(tmp_path: Path) -> None:
    found = figures(tmp_path, "growth", *SMALL, "--chapters", "33,513")
    rows = found["rows"]
    assert [(row["rows"], row["optimizer"]) for row in rows] == [
        (33, "lazy"),
        (33, "dense"),
        (513, "lazy"),
        (513, "dense"),
    ]
    assert {row["scope"] for row in rows} == {"sequence"} and found["iso_flop_step_sec"] > 0
    # weights and moments of 480 chapters of 64 x 256 float32, and a dense optimizer's gradient:
    # every row is measured in a process of its own
    peaks = {(row["rows"], row["optimizer"]): row["peak_bytes"] for row in rows}
    bank = 480 * 64 * 256 * 4
    assert peaks[513, "lazy"] - peaks[33, "lazy"] < 3.5 * bank
    assert peaks[513, "dense"] - peaks[33, "dense"] > 3.5 * bank


def test_growth_of_product_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = figures(
        tmp_path, "growth", *TINY, "--kind", "product_keys", "--keys", "8,16", "--optimizers",
        "lazy",
    )["rows"]  # fmt: skip
    assert [(row["arm"], row["scope"], row["rows"]) for row in rows] == [
        ("product_keys", "token", 64),
        ("product_keys", "token", 256),
    ]
    assert all(row["step_sec"] > 0 and row["peak_bytes"] > 1e8 for row in rows)
    out = capsys.readouterr().out
    assert "chosen by fresh keys" in out and "in turn" not in out


def test_read_and_decode(tmp_path: Path) -> None:
    read = figures(tmp_path, "read", *SMALL, "--chapters", "20", "--routed", "3", "--dim", "32")[
        "rows"
    ]
    assert [row["scope"] for row in read] == ["segment", "token"]
    for row in read:
        assert row["forward_sec"] > 0 and row["forward_backward_sec"] > 0
        assert row["forward_backward_bound_sec"] == pytest.approx(3.5 * row["forward_bound_sec"])
    rows = figures(
        tmp_path, "decode", "--kind", "chapters,product_keys", "--chapters", "65", "--keys", "8",
        "--batches", "1,2", "--new", "3", "--repetitions", "1",
    )["rows"]  # fmt: skip
    assert [(row["arm"], row["scope"], row["batch"]) for row in rows] == [
        (arm, scope, batch)
        for batch in (1, 2)
        for arm, scope in (("chapters", "segment"), ("product_keys", "token"), ("backbone", "none"))
    ]
    for row in rows:
        assert row["tokens_per_sec"] == pytest.approx(row["batch"] / row["token_sec"])


def test_settings_find_their_place() -> None:
    base = preset("bench")
    assert base.memory is not None
    changed = with_memory(
        base, kind="product_keys", num_chapters=33, scope="token", num_keys=8, gate="one"
    ).memory
    assert changed is not None
    assert (changed.kind, changed.gate, changed.output_init) == ("product_keys", "one", "normal")
    assert changed.chapters.num_chapters == 33 and changed.chapters.router.scope == "token"
    assert changed.product_keys.num_keys == 8
    assert changed.product_keys.num_heads == base.memory.product_keys.num_heads
    with pytest.raises(AssertionError, match="no settings of a memory: num_chapter"):
        with_memory(base, num_chapter=33)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step", "--scopes", "segmnt"], "'segmnt' is none of sequence, segment, token"),
        (["step", "--repetitions", "0"], "'0' is no number from 1 on"),
        (["step", "--json", "missing/figures.json"], "missing/figures.json cannot be written"),
        (["growth", "--chapters", "many"], "'many' is no comma-separated integers"),
        (["growth", "--chapters", "5", *SMALL], "num_routed must be 1 to 4"),
        (["step", "--kind", "product_kyes"], "'product_kyes' is none of chapters, product_keys"),
        (["growth", "--kind", "mixture"], "'mixture' is none of chapters, product_keys"),
        (["decode", "--kind", "experts"], "'experts' is none of chapters, product_keys"),
        (
            ["decode", "--kind", "product_keys", "--scopes", "segment"],
            "product_keys choose by token, not by segment",
        ),
        (["step", "--keys", "16"], "--keys is of product_keys, but --kind is chapters"),
    ],
)
def test_a_mistake_ends_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1


def test_it_needs_torch_alone() -> None:
    """A GPU box may have nothing else."""
    others = ("lightning", "omegaconf", "mlflow", "lm_eval", "datasets", "transformers", "numpy")
    code = (
        "import sys\n"
        f"for name in {others[:-1]!r}: sys.modules[name] = None\n"
        "from moc.bench.__main__ import main\n"
        "main(['decode', '--chapters', '33', '--batches', '1', '--new', '1', '--repetitions', '1'])"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert "tokens/s" in child.stdout
