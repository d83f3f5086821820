"""A user's own task YAMLs: their scores against sums made here, and what they are made from."""

import csv
import json
import socket

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.scoring.harness import evaluate_model
from evals.scoring.user_tasks import UserTasks
from tests.support.fake_language import ByteTokenizer, Chain, brute_force, routed_model
from tests.support.fake_tasks import ANSWER, CHOICE, ITEMS, write_lines, write_task


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nor a cache of earlier data."""

    def refuse(*args, **kwargs):
        raise AssertionError("an evaluation asked the network")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    yield
    assert not cache.exists()


def run(model, folder, task, *, allow_code=False, **settings):
    scores, samples = evaluate_model(
        model, ByteTokenizer(), tasks=[task], task_dir=folder / "none", context_length=96,
        batch_size=4, user_tasks=UserTasks([folder], allow_code=allow_code), **settings,
    )  # fmt: skip
    return scores[task], samples[task]


def prompt(item):
    return f"Q: {item['question']}\nA:"


def test_a_choice_is_scored_by_the_brute_force_sums(tmp_path):
    """One unpadded sequence per option, summed in float64."""
    write_task(tmp_path, "quiz")
    model = routed_model("segment")
    score, samples = run(model, tmp_path, "quiz")
    assert len(samples) == score["num_items"] == len(ITEMS)
    hits = []
    for item, sample in zip(ITEMS, samples, strict=True):
        sums = []
        for option in item["options"]:
            after = list(f" {option}".encode())
            row = [*prompt(item).encode(), *after]
            sums.append(brute_force(model, row[:-1], after))
        assert sample["logprobs"] == pytest.approx(sums, abs=1e-4)
        hits.append(int(np.argmax(sums)) == item["label"])
    assert [sample["correct"] for sample in samples] == hits
    assert (score["metric"], score["value"]) == ("acc", pytest.approx(np.mean(hits)))
    assert score["chance"] == pytest.approx(1 / 3) and score["majority"] == pytest.approx(2 / 5)
    assert score["source"] is None and score["bits_per_byte"] > 0
    assert len({sample["doc_hash"] for sample in samples}) == len(ITEMS)


def test_a_written_answer_is_compared_with_the_items_own(tmp_path):
    """A model that writes " two" after every ":": two of the five are."""
    write_task(tmp_path, "written", ANSWER)
    score, samples = run(Chain(b": two\n"), tmp_path, "written")
    assert [sample["prediction"] for sample in samples] == ["two"] * 5
    assert [sample["correct"] for sample in samples] == [0, 0, 1, 1, 0]
    assert (score["metric"], score["value"], score["majority"]) == ("exact_match", 0.4, 0.4)


def test_few_shot_examples_come_from_the_split_that_the_yaml_names(tmp_path):
    more = "fewshot_split: train\n"
    path = write_task(tmp_path, "quiz", more=more)
    path.write_text(
        path.read_text().replace("test: quiz.jsonl", "test: quiz.jsonl, train: t.jsonl")
    )
    write_lines(tmp_path / "t.jsonl", [{**ITEMS[0], "question": f"shown {i}"} for i in range(9)])
    prompts = {}
    for num_items in (None, 2):
        chain = Chain(b"")
        score, _ = run(chain, tmp_path, "quiz", num_items=num_items, num_fewshot={"quiz": 2})
        assert score["num_fewshot"] == 2
        texts = {bytes(ids).decode(errors="replace") for ids in chain.shown}
        prompts[num_items] = {text for text in texts if "which is" in text}
        assert all("shown" in text for text in prompts[num_items])
    assert 0 < len(prompts[2]) < len(prompts[None]) and prompts[2] < prompts[None]


def in_jsonl(folder):
    write_lines(folder / "items.jsonl", ITEMS)
    return "dataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"


def in_json(folder):
    (folder / "items.json").write_text(json.dumps(ITEMS, indent=1))
    return "dataset_path: json\ndataset_kwargs: {data_files: {test: items.json}}\n"


def in_two_files(folder):
    write_lines(folder / "more/part-0.jsonl", ITEMS[:2])
    write_lines(folder / "more/part-1.jsonl", ITEMS[2:])
    return "dataset_path: json\ndataset_kwargs: {data_files: {test: more/part-*.jsonl}}\n"


def in_csv(folder):
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(ITEMS)
    choices = "doc_to_choice: [one, two, three]\n"
    return choices + "dataset_path: csv\ndataset_kwargs: {data_files: {test: items.csv}}\n"


def in_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ITEMS), folder / "items.parquet")
    return "dataset_path: parquet\ndataset_kwargs: {data_files: {test: items.parquet}}\n"


def in_folder(folder):
    write_lines(folder / "items/test.jsonl", ITEMS)
    write_lines(folder / "items/train-0.jsonl", ITEMS[:1])
    return "dataset_path: ./items\n"


@pytest.mark.parametrize(
    "write",
    [in_jsonl, in_json, in_two_files, in_csv, in_parquet, in_folder],
    ids=lambda f: f.__name__,
)
def test_data_in_any_local_form_gives_the_same_score(tmp_path, monkeypatch, write):
    """Relative to the YAML, wherever the command is given."""
    folder = tmp_path / "tasks"
    reference, expected = run(Chain(b": two"), write_task(tmp_path / "a", "quiz").parent, "quiz")
    lines = CHOICE.format(name="quiz", data="").splitlines()
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    data = write(folder)
    kept = [line for line in lines if not line.startswith("dataset_")]
    kept = [line for line in kept if not (line.startswith("doc_to_choice") and "choice" in data)]
    (folder / "quiz.yaml").write_text("\n".join(kept) + "\n" + data)
    score, samples = run(Chain(b": two"), folder, "quiz")
    assert score == reference
    same = ("correct", "prediction", "logprobs")
    assert [[s[k] for k in same] for s in samples] == [[s[k] for k in same] for s in expected]


def test_a_text_that_looks_like_a_date_or_a_number_stays_that_text(tmp_path):
    """Else the prompt says something else than the file."""
    (tmp_path / "days.csv").write_text("question,answer\n2001-01-02,007\n2001-01-03,1.50\n")
    text = ANSWER.format(name="days", data="days.csv").replace("path: json", "path: csv")
    (tmp_path / "days.yaml").write_text(text)
    (task,) = UserTasks([tmp_path]).load("days").values()
    docs = list(task.eval_docs)
    assert [task.doc_to_text(doc) for doc in docs] == ["Q: 2001-01-02\nA:", "Q: 2001-01-03\nA:"]
    assert [task.doc_to_target(doc) for doc in docs] == ["007", "1.50"]


@pytest.mark.parametrize("name", ["both", "tagged", "inline"])
def test_a_group_or_a_tag_is_one_task_of_all_its_items(tmp_path, name):
    for task in ("first", "second"):
        write_task(tmp_path, task, more="tag: tagged\n")
    write_task(tmp_path, "alone")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [first, {task: second}]\n")
    inner = "{group: inner, task: [second]}"
    (tmp_path / "inline.yml").write_text(f"group: inline\ntask: [first, {inner}]\n")
    score, samples = run(Chain(b": one"), tmp_path, name)
    assert score["num_items"] == 10 and score["value"] == 0.2  # "one" is right once in five
    assert [sample["subtask"] for sample in samples] == ["first"] * 5 + ["second"] * 5


def test_what_is_included_lies_below_and_names_data_beside_itself(tmp_path):
    write_task(tmp_path / "shared", "base")
    (tmp_path / "mine.yaml").write_text(
        'include: shared/base.yaml\ntask: mine\ndescription: "Go. "\n'
    )
    chain = Chain(b": one")
    score, _ = run(chain, tmp_path, "mine")
    assert score["value"] == 0.2
    assert {bytes(ids).decode()[:10] for ids in chain.shown} >= {"Go. Q: whi"}
    assert UserTasks([tmp_path]).names == {"base", "mine"}


def test_the_fingerprint_is_of_the_content_of_what_is_asked(tmp_path):
    folder = tmp_path / "one"
    write_task(folder, "quiz")
    write_task(folder, "other")
    write_task(folder / "shared", "base")
    (folder / "mine.yaml").write_text("include: shared/base.yaml\ntask: mine\n")
    (folder / "all.yaml").write_text("group: all_of_them\ntask: [quiz, mine]\n")
    asked = [["quiz"], ["mine"], ["all_of_them"], ["quiz", "boolq"]]

    def fingerprints(**settings):
        tasks = UserTasks([folder], **settings)
        return [tasks.fingerprint(names) for names in asked]

    before = fingerprints()
    assert len({*before[:3]}) == 3 and all(before) and before[0] == before[3]
    assert UserTasks([folder]).fingerprint(["boolq"]) == UserTasks().fingerprint(["quiz"]) == ""

    def changed(path, text):
        """Which of the fingerprints another content of ``path`` changes."""
        kept = path.read_text()
        path.write_text(text)
        now = [new != old for new, old in zip(fingerprints(), before, strict=True)]
        path.write_text(kept)
        assert fingerprints() == before
        return now

    data, yaml = folder / "quiz.jsonl", folder / "quiz.yaml"
    assert changed(data, data.read_text().replace("is 0", "is 9")) == [True, False, True, True]
    assert changed(yaml, yaml.read_text().replace("Q:", "Ask:")) == [True, False, True, True]
    base = folder / "shared/base.jsonl"
    assert changed(base, base.read_text().replace("is 0", "is 9")) == [False, True, True, False]
    base = base.with_suffix(".yaml")
    assert changed(base, base.read_text().replace("Q:", "Ask:")) == [False, True, True, False]
    other = folder / "other.yaml"
    assert changed(other, other.read_text().replace("Q:", "Ask:")) == [False] * 4
    (folder / "code.py").write_text("x = 1")
    assert fingerprints() == before
    allowed = fingerprints(allow_code=True)
    (folder / "code.py").write_text("x = 2")
    assert fingerprints(allow_code=True)[0] != allowed[0]
    folder = folder.rename(tmp_path / "two")
    (folder / "code.py").unlink()
    assert fingerprints() == before
