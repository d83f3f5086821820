"""Studies side by side keep their assays: what one could not have seen is not claimed by both."""

from __future__ import annotations

from pathlib import Path

from moc.report.numbers.assay import UNSEEN, bank_verdicts, controls
from moc.report.numbers.results import load_results
from moc.report.numbers.stored import stored
from moc.report.numbers.verdicts import verdicts
from moc.verbs.compare import joined
from tests.support.fake_knowledge import records_study, write_records_study

HELD = {("keys", "learn"): 0.8, ("keys_frozen", "learn"): 0.5, ("dense", "learn"): 0.6}


def test_a_failed_assay_silences_its_own_arms_and_whoever_is_compared_with_them(
    tmp_path: Path,
) -> None:
    found = {}
    for name, held in (("good", HELD), ("bad", HELD | {("keys", "learn"): 0.5})):
        study = records_study(tmp_path, negative=False, name=name)
        found[name] = load_results(write_records_study(study, held))
    results = joined(found, tmp_path / "report")
    assert [(c.arm, c.passed) for c in controls(results)] == [
        ("good/keys", True),
        ("bad/keys", False),
    ]
    words = {entry.arm: entry.words for entry in bank_verdicts(results)}
    assert words == {"good/keys": "stores", "bad/keys": UNSEEN}
    assert {e.words for e in verdicts(results) if "bad/" in e.arm + e.base} == {UNSEEN}
    assert UNSEEN not in {e.words for e in verdicts(results) if "bad/" not in e.arm + e.base}
    for name in found:
        ours, theirs = (
            stored(results, f"{name}/keys", "learn", "a"),
            stored(found[name], "keys", "learn", "a"),
        )
        assert ours == theirs
