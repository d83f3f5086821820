"""`moc leakage` and `moc eval --route-on` on stored models, as a user runs them."""

import json
import re
from dataclasses import replace

import pytest

from evals.measures.leakage import measure_leakage
from evals.scoring.study_tasks import write_task_items
from moc.cli import main
from moc.config.load import save_study
from moc.data.tokenizer import build_tokenizer
from moc.data.windows import validation_windows
from moc.model import RouterConfig, build_model, load_model
from moc.store.files import seal_text
from moc.train.checkpoints import save_boundary
from moc.verbs.leakage import render_leakage
from tests.support.helpers_training import tiny_study
from tests.support.small_models import chapters

MODELS = {"sequence": "sequence", "segment": "segment", "dense": None}  # arm -> scope


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Untrained models with weights large enough that routing matters, stored as by a run."""
    folder = tmp_path_factory.mktemp("study")
    study = tiny_study(folder, "evals.num_items=12", "evals.leakage_windows=3")
    study.dir.mkdir(parents=True)
    tokenizer = build_tokenizer(study)
    tokenizer.save(study.dir / "tokenizer")
    write_task_items(study, study.dir / "tasks")
    for arm, scope in MODELS.items():
        memory = None
        if scope is not None:
            router = RouterConfig(scope=scope, segment_tokens=16)
            memory = chapters(
                num_chapters=9, num_routed=2, chapter_tokens=4, layers="all",
                output_init="normal", bank_init_std=1.0, router=router,
            )  # fmt: skip
        shape = {"init_std": 0.2, "residual_init_std": 0.2, "memory": memory}
        for seed, boundary in enumerate(("0-start", "1-facts")):
            model = build_model(replace(study.arms["moc"].model, **shape), seed)
            path = study.dir / f"arms/{arm}/seed-0/boundaries/{boundary}"
            save_boundary(path, model, None, phase=boundary[2:], step=0)
    save_study(study, study.dir / "study.yaml")
    seal_text(study.dir / "study.yaml")
    return study


def run_dir(study, arm):
    return str(study.dir / f"arms/{arm}/seed-0")


def run(capsys, *words):
    code = main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_record_is_that_of_the_last_boundary_on_the_studys_own_text(study, capsys):
    code, out, _ = run(capsys, "leakage", run_dir(study, "sequence"), "--json")
    record = json.loads(out)
    assert code == 0
    found = {key: record[key] for key in ("arm", "seed", "boundary", "scope", "causal")}
    assert found == {
        "arm": "sequence", "seed": 0, "boundary": "facts", "scope": "sequence", "causal": False,
    }  # fmt: skip
    tokenizer = build_tokenizer(study)
    model = load_model(study.dir / "arms/sequence/seed-0/boundaries/1-facts")
    for name in ("people", "skills"):
        tokens, mask, _ = validation_windows(study, name, tokenizer, 64, 512)
        expected = measure_leakage(model, tokens, mask, num_windows=3, batch_size=64)
        assert record["sources"][name] == expected
    assert expected["num_windows"] == 3
    assert list(record["tasks"]) == ["facts_choice"]
    assert record["tasks"]["facts_choice"]["num_items"] == 12


def test_the_tables_show_the_record_and_fit_a_terminal(study, capsys):
    folder = run_dir(study, "sequence")
    record = json.loads(run(capsys, "leakage", folder, "--json")[1])
    _, out, _ = run(capsys, "leakage", folder)
    assert max(map(len, out.splitlines())) <= 100
    assert "arm sequence, seed 0, boundary facts; scope sequence, non-causal" in out
    for name, found in record["sources"].items():
        for key in ("full", "prefix", "counterfactual"):
            assert f"{found[key]:.4f}" in out
        size = found["leakage"]
        shown = f"{size['value']:.4f} [{size['low']:.4f}, {size['high']:.4f}]"
        assert re.search(rf"^{name} +{re.escape(shown)}", out, re.MULTILINE)
        assert re.search(rf"{name}: [^\[]*{re.escape(shown)}", " ".join(out.split()))
        for part in found["by_position"]:
            assert f"{name}, {part['start']} to {part['end'] - 1}" in out
    task = record["tasks"]["facts_choice"]
    assert re.search(rf"facts_choice +12 +{task['context']:.4f} +{task['full']:.4f} ", out)


@pytest.mark.parametrize(
    ("arm", "closing"),
    [("segment", "scope segment"), ("dense", "no router")],
)
def test_a_causal_model_is_measured_too_and_gains_nothing(study, capsys, arm, closing):
    code, out, _ = run(capsys, "leakage", run_dir(study, arm), "--windows", "4")
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith(f"zero by construction: {closing}; measured ")
    assert float(last.rpartition(" ")[2]) <= 1e-5


def test_data_names_sources_files_and_globs(study, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "two.md"):
        (tmp_path / name).write_text("It rained on the day that the bridge was opened.\n" * 30)
    words = ["people", "one.txt", "*.md"]
    folder = run_dir(study, "sequence")
    code, out, _ = run(capsys, "leakage", folder, "--windows", "2", "--json", "--data", *words)
    sources = json.loads(out)["sources"]
    assert code == 0 and list(sources) == ["people", "people-trained", "one.txt", "*.md"]
    assert {found["num_windows"] for found in sources.values()} == {2}
    assert sources["one.txt"] == sources["*.md"] != sources["people"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "onne.txt"], "'onne.txt': no such file; did you mean 'one.txt'?"),
        (["--data", "poeple"], "nor is it a source of the study: did you mean 'people'?"),
        (["--data", "one.txt"], "leakage on 'one.txt': needs two whole windows of 64 tokens"),
        (["--data", "one.csv"], "cannot read .csv"),
        (["--windows", "1"], "--windows must be at least 2"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    study, capsys, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("Too short.")
    (tmp_path / "one.csv").write_text("a,b")
    code, out, err = run(capsys, "leakage", run_dir(study, "sequence"), *words)
    assert (code, out) == (2, "")
    assert err.startswith("moc: ") and said in err and err.count("\n") == 1


def difference(value, low, high):
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("leakage", "mismatch", "said"),
    [
        (
            difference(0.12, 0.08, 0.16),
            difference(0.03, 0.01, 0.05),
            "text: routing on the prefix only, instead of the whole, costs 0.1200 [0.0800, 0.1600] "
            "bits per token; by estimate, 0.0900 [0.0500, 0.1300] of it is knowing the future, and "
            "0.0300 [0.0100, 0.0500] of it is mere mismatch, routing unlike that of training",
        ),
        (
            difference(0.12, 0.08, 0.16),
            difference(-0.03, -0.05, 0.01),
            "text: routing on the prefix only, instead of the whole, costs 0.1200 [0.0800, 0.1600] "
            "bits per token; by estimate, 0.0900 [0.0500, 0.1300] of it is knowing the future, and "
            "no part shows as mere mismatch, routing unlike that of training",
        ),
        (
            difference(0.01, -0.00001, 0.02),
            difference(0.0, 0.0, 0.0),
            "text: no cost of routing on the prefix only shows: 0.0100 [0.0000, 0.0200] bits per "
            "token",
        ),
        (
            difference(-0.02, -0.03, -0.01),
            difference(0.0, 0.0, 0.0),
            "text: routing on the prefix only does better: it costs -0.0200 [-0.0300, -0.0100] "
            "bits per token",
        ),
    ],
)
def test_the_closing_line_says_no_more_than_was_found(leakage, mismatch, said):
    found = {
        "num_windows": 2, "num_tokens": 32, "full": 1.0, "prefix": 1.1, "counterfactual": 1.1,
        "leakage": leakage, "mismatch": mismatch, "future": difference(0.09, 0.05, 0.13),
        "by_position": [],
    }  # fmt: skip
    run = {"checkpoint": "x", "arm": "a", "seed": 0, "boundary": "b", "scope": "sequence"}
    record = {**run, "causal": False, "sources": {"text": found}, "tasks": {}}
    assert " ".join(render_leakage(record).split("\n\n")[-1].split()) == said


def test_eval_can_route_on_the_answer_as_well(study, capsys):
    folder = run_dir(study, "sequence")
    code, out, _ = run(capsys, "eval", f"{folder}/boundaries/1-facts", "--route-on", "both")
    assert code == 0 and "non-causal" in out
    both = dict(re.findall(r"(facts_choice\S*) +acc +(\S+)", out))
    assert list(both) == ["facts_choice", "facts_choice.full"]
    for route_on, name in (("context", "facts_choice"), ("full", "facts_choice.full")):
        words = ["eval", f"{folder}/boundaries/1-facts", "--route-on", route_on]
        found = dict(re.findall(r"(facts_choice\S*) +acc +(\S+)", run(capsys, *words)[1]))
        assert found == {"facts_choice": both[name]}
    task = json.loads(run(capsys, "leakage", folder, "--json")[1])["tasks"]["facts_choice"]
    assert [f"{task[key]:.4f}" for key in ("context", "full")] == list(both.values())


def test_eval_of_a_causal_model_needs_no_second_score_and_no_warning(study, capsys):
    folder = f"{run_dir(study, 'segment')}/boundaries/1-facts"
    code, out, _ = run(capsys, "eval", folder, "--route-on", "both")
    assert code == 0 and "facts_choice" in out
    assert "facts_choice.full" not in out and "non-causal" not in out
