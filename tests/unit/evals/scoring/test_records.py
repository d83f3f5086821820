"""Records and samples of our own tasks, against counts and sums made by hand."""

import json
import math

import pytest

from evals.scoring.harness import evaluate_model
from tests.support.fake_language import ByteTokenizer, Chain, Script, brute_force, routed_model

CITIES = ["London", "Paris", "Ulan Bator", "Rome"]


def run(model, folder, task, rows, **settings):
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores, samples = evaluate_model(
        model, ByteTokenizer(), tasks=[task], task_dir=folder, context_length=96, batch_size=4,
        **settings,
    )  # fmt: skip
    return scores[task], samples[task]


def facts(labels, choices=None):
    return [
        {"question": f"Where was {i} born?", "choices": choices[i] if choices else CITIES,
         "label": label, "answer": CITIES[label], "source": "people_a", "person_id": i // 2,
         "attribute": "birth_city", "pool_size": 40}
        for i, label in enumerate(labels)
    ]  # fmt: skip


def test_a_model_that_always_picks_one_option_is_no_better_than_its_baseline(tmp_path):
    score, samples = run(
        Chain(b": Rome"), tmp_path, "facts_choice.people_a", facts([3, 3, 3, 0, 2])
    )
    assert score["value"] == score["majority"] == 3 / 5
    assert score["centred"] == 0.0
    assert score["predictions"] == {"London": 0, "Paris": 0, "Ulan Bator": 0, "Rome": 5}
    assert score["targets"] == {"London": 1, "Paris": 0, "Ulan Bator": 1, "Rome": 3}
    assert score["source"] == "people_a"
    assert [s["cluster"] for s in samples] == [f"people_a-{i}" for i in (0, 0, 1, 1, 2)]
    assert {(s["attribute"], s["pool_size"]) for s in samples} == {("birth_city", 40)}


@pytest.mark.parametrize(
    ("labels", "centred"),
    [
        ([0, 1, 2, 3], 0.0),  # chance 1/4, majority 1/4, value 1/4
        ([3, 3, 0, 0, 3, 0, 3, 0], 0.0),  # majority 1/2, value 1/2
        ([3, 0, 1, 1], (1 / 4 - 1 / 2) / (1 / 2)),
        ([3, 3], 0.0),  # one answer alone: nothing can be above it
        ([1, 1], 0.0),
    ],
)
def test_centred_is_zero_at_the_better_of_chance_and_majority(tmp_path, labels, centred):
    score, _ = run(Chain(b": Rome"), tmp_path, "facts_choice", facts(labels))
    assert score["centred"] == pytest.approx(centred)


def test_options_that_differ_are_counted_by_their_place(tmp_path):
    orders = [CITIES, CITIES[::-1], CITIES]
    score, samples = run(Chain(b": Rome"), tmp_path, "facts_choice", facts([3, 3, 0], orders))
    assert [sample["choice"] for sample in samples] == [3, 0, 3]
    assert score["predictions"] == {"1": 1, "2": 0, "3": 0, "4": 2}
    assert score["targets"] == {"1": 1, "2": 0, "3": 0, "4": 2}


def test_bits_of_the_right_answer_are_those_of_its_whole_text(tmp_path):
    model, rows = routed_model("segment"), facts([0, 2, 1])
    score, samples = run(model, tmp_path, "facts_choice", rows)
    bits = []
    for row, sample in zip(rows, samples, strict=True):
        before, after = f"Question: {row['question']}\nAnswer:", f" {row['answer']}"
        ids = [*before.encode(), *after.encode()]
        bits.append(-brute_force(model, ids[:-1], list(after.encode())) / math.log(2))
        assert sample["gold_bits"] == pytest.approx(bits[-1], abs=1e-3)
        assert sample["gold_bytes"] == len(after)
    num_bytes = sum(len(row["answer"]) + 1 for row in rows)
    assert score["bits_per_byte"] == pytest.approx(sum(bits) / num_bytes, rel=1e-4)


def test_written_answers_have_no_histogram(tmp_path):
    rows = facts([0, 0, 3])
    model = Script(len("Question: Where was 0 born?\nAnswer:") - 1, " London\n")
    score, samples = run(model, tmp_path, "facts_answer", rows)
    assert (score["predictions"], score["targets"], score["bits_per_byte"]) == ({}, {}, None)
    assert (score["value"], score["chance"], score["majority"]) == pytest.approx((2 / 3, 0, 2 / 3))
    assert score["centred"] == pytest.approx(0.0)
    assert [sample["correct"] for sample in samples] == [1, 1, 0]
    assert "gold" not in samples[0] and samples[0]["cluster"] == "people_a-0"


def test_no_limit_runs_every_item_and_a_limit_the_first(tmp_path):
    rows = facts([i % 4 for i in range(9)])
    _, samples = run(Chain(b""), tmp_path, "facts_choice", rows)
    _, first = run(Chain(b""), tmp_path, "facts_choice", rows, num_items=4)
    assert [sample["doc_id"] for sample in samples] == list(range(9))
    assert first == samples[:4]
