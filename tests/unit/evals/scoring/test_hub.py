"""Stock benchmarks without a network, against prompts, picks and sums made here."""

import os
import socket
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.scoring.harness import evaluate_model
from evals.scoring.hub import MIRROR_VARIABLE
from evals.scoring.suites import SUITES
from moc.errors import ConfigError
from tests.support.fake_language import ByteTokenizer, Chain, brute_force, routed_model

SUBJECTS = 57
needs_mirror = pytest.mark.skipif(MIRROR_VARIABLE not in os.environ, reason="no hub mirror here")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nor anything left over from an earlier download."""

    def refuse(*args, **kwargs):
        raise AssertionError("an evaluation asked the network")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    yield
    assert not cache.exists()


def write(mirror, place, rows):
    path = mirror / f"{place}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def run(model, task, mirror, *, num_items=None, context_length=400, **settings):
    scores, samples = evaluate_model(
        model, ByteTokenizer(), tasks=[task], task_dir=Path(), context_length=context_length,
        batch_size=16, num_items=num_items, hub_mirror=mirror and str(mirror), **settings,
    )  # fmt: skip
    return scores[task], samples[task]


BOOLQ = [
    {"question": f"is it {i}", "passage": f"On number {i // 2}.", "idx": i, "label": label}
    for i, label in enumerate([1, 0, 1, 1, 0])
]


def test_stock_boolq_from_a_mirror_for_a_model_that_always_says_yes(tmp_path):
    write(tmp_path, "aps/super_glue/boolq/validation", BOOLQ)
    score, samples = run(Chain(b": yes"), "boolq", tmp_path)
    assert (score["metric"], score["value"]) == ("acc", pytest.approx(3 / 5))
    assert (score["chance"], score["majority"], score["centred"]) == (0.5, 0.6, 0.0)
    assert score["predictions"] == {"no": 0, "yes": 5}
    assert score["targets"] == {"no": 2, "yes": 3}
    assert (score["source"], score["num_fewshot"], score["extra"]) == (None, 0, {})
    assert [(s["prediction"], s["target"]) for s in samples] == [
        ("yes", ["no", "yes"][row["label"]]) for row in BOOLQ
    ]
    # ":" is followed by " " and so on with logit 10 among 259, each "n" or "o" costs those 10
    sure = -np.log1p(258 * np.exp(-10))
    assert samples[0]["logprobs"] == pytest.approx(
        [2 * sure - 10 - np.log(259), 4 * sure], rel=1e-4
    )
    assert samples[1]["gold_bits"] == pytest.approx(-samples[1]["logprobs"][0] / np.log(2))
    bits = sum(sample["gold_bits"] for sample in samples)
    assert score["bits_per_byte"] == pytest.approx(bits / (3 * 4 + 2 * 3))  # " yes", " no"


def test_questions_on_one_passage_are_one_cluster(tmp_path):
    """Or intervals come out too narrow."""
    write(tmp_path, "aps/super_glue/boolq/validation", BOOLQ)
    _, samples = run(Chain(b""), "boolq", tmp_path)
    a, b, c, d, e = (sample["cluster"] for sample in samples)
    assert a == b != c == d != e
    assert len({sample["doc_hash"] for sample in samples}) == 5


def arc(label, texts):
    choices = {"text": texts, "label": list("ABCDE")[: len(texts)]}
    return {"id": "x", "question": "Which?", "choices": choices, "answerKey": label}


def test_options_of_their_own_are_counted_by_place(tmp_path):
    rows = [arc("A", ["x yes", "no", "so"]), arc("B", ["a", " yes", "c", "d"]), arc("C", ["d"] * 3)]
    write(tmp_path, "allenai/ai2_arc/ARC-Challenge/test", rows)
    score, samples = run(Chain(b": yes"), "arc_challenge", tmp_path)
    assert score["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 3) / 3)
    assert score["majority"] == pytest.approx(1 / 3)
    assert score["targets"] == {"1": 1, "2": 1, "3": 1, "4": 0}
    places = [sample["choice"] for sample in samples]
    assert score["predictions"] == {str(i + 1): places.count(i) for i in range(4)}
    assert score["extra"] == {
        "acc_norm": pytest.approx(np.mean([s["correct_norm"] for s in samples]))
    }
    # per character the longest wins: most of it was expected
    assert [sample["correct_norm"] for sample in samples] == [1, 1, 0]


def test_a_group_is_one_task_of_all_its_items(tmp_path):
    """Pooled: a mean over subjects would weigh a small one like a large one."""
    from evals.scoring.hub import _index

    names = sorted(
        entry.cfg["dataset_name"]
        for entry in _index("mmlu/default").values()
        if entry.cfg and "dataset_name" in entry.cfg
    )
    assert len(names) == SUBJECTS
    right = 0
    for i, name in enumerate(names):
        answers = [1, 1, 1, 2, 1, 0] if name == "anatomy" else [i % 4]
        right += answers.count(1)
        rows = [{"question": f"{name} {k}?", "choices": list("wxyz"), "answer": answer}
                for k, answer in enumerate(answers)]  # fmt: skip
        write(tmp_path, f"cais/mmlu/{name}/test", rows)
    score, samples = run(Chain(b": B"), "mmlu", tmp_path)
    assert score["num_items"] == len(samples) == 56 + 6
    assert score["value"] == pytest.approx(right / 62)
    assert score["predictions"] == {"A": 0, "B": 62, "C": 0, "D": 0}
    assert sum(s["correct"] for s in samples if s["subtask"] == "mmlu_anatomy") == 4
    assert len({sample["subtask"] for sample in samples}) == SUBJECTS

    few, asked = run(Chain(b": B"), "mmlu", tmp_path, num_items=31)
    assert few["num_items"] == 31
    assert len({sample["subtask"] for sample in asked}) > 25  # spread over the group
    _, fewer = run(Chain(b": B"), "mmlu", tmp_path, num_items=10)
    hashes = [{sample["doc_hash"] for sample in part} for part in (fewer, asked, samples)]
    assert hashes[0] < hashes[1] < hashes[2]  # what is paired over items is asked in all of them
    assert {s["doc_hash"]: s["logprobs"] for s in fewer}.items() <= {
        s["doc_hash"]: s["logprobs"] for s in samples
    }.items()


def test_few_shot_examples_of_an_item_do_not_depend_on_the_other_items(tmp_path):
    write(tmp_path, "aps/super_glue/boolq/validation", BOOLQ)
    train = [{**row, "passage": f"Training {row['idx']}."} for row in BOOLQ * 4]
    write(tmp_path, "aps/super_glue/boolq/train", train)
    prompts = {}
    for num_items in (None, 2):
        chain = Chain(b"")
        score, _ = run(chain, "boolq", tmp_path, num_items=num_items,
                             context_length=2000, num_fewshot={"boolq": 2})  # fmt: skip
        assert score["num_fewshot"] == 2
        texts = {bytes(ids).decode() for ids in chain.shown if len(ids) > 40}
        prompts[num_items] = {text.rsplit("\n\n")[-1]: text for text in texts}
        assert all(text.count("Training ") == 2 for text in texts)
    assert 0 < len(prompts[2]) < len(prompts[None])
    assert prompts[2].items() <= prompts[None].items()


def test_what_the_mirror_lacks_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"boolq: no .*/aps/super_glue/boolq/validation.parquet"):
        run(Chain(b""), "boolq", tmp_path)
    write(tmp_path, "aps/super_glue/boolq/validation", BOOLQ)
    with pytest.raises(ConfigError, match=r"boolq/train.parquet, .* few-shot examples"):
        run(Chain(b""), "boolq", tmp_path, num_fewshot={"boolq": 1})
    with pytest.raises(ConfigError, match=r"evals.hub_mirror: .*nowhere is no folder"):
        run(Chain(b""), "boolq", tmp_path / "nowhere")


def test_the_mirror_may_come_from_the_environment(tmp_path, monkeypatch):
    write(tmp_path, "aps/super_glue/boolq/validation", BOOLQ)
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path))
    assert run(Chain(b""), "boolq", None)[0]["num_items"] == 5
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"\$MOC_HUB_MIRROR: .*gone is no folder"):
        run(Chain(b""), "boolq", None)


def table(place):
    return pq.read_table(Path(os.environ[MIRROR_VARIABLE], f"{place}.parquet")).to_pylist()


def question(task, sample):
    """The prompt of a stock task and its options, as its config words them."""
    if task == "boolq":
        row = table("aps/super_glue/boolq/validation")[sample["doc_id"]]
        return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"]
    if task == "mmlu":
        subject = sample["subtask"].removeprefix("mmlu_")
        row = table(f"cais/mmlu/{subject}/test")[sample["doc_id"]]
        about = subject.replace("_", " ")
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
        head = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        return "\n".join([head + row["question"].strip(), *lines, "Answer:"]), list("ABCD")
    if task == "arc_challenge":
        row = table("allenai/ai2_arc/ARC-Challenge/test")[sample["doc_id"]]
        return f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
    row = table("allenai/openbookqa/main/test")[sample["doc_id"]]
    return row["question_stem"], row["choices"]["text"]


@needs_mirror
@pytest.mark.parametrize("task", SUITES["paper"])
def test_log_likelihoods_are_the_brute_force_sums(task):
    """On 50 items: one unpadded, uncached sequence per option, summed in float64."""
    model, length = routed_model("segment"), 128
    score, samples = run(model, task, None, num_items=50, context_length=length)
    assert len(samples) == score["num_items"] == 50
    for sample in samples:
        prompt, options = question(task, sample)
        assert len(sample["logprobs"]) == len(options)
        sums = []
        for option in options:
            after = list(f" {option}".encode())
            row = [*prompt.rstrip(" ").encode(), *after][-length - 1 :]
            sums.append(brute_force(model, row[:-1], after))
        assert sample["logprobs"] == pytest.approx(sums, abs=1e-4)
        assert sample["choice"] == int(np.argmax(sums))
