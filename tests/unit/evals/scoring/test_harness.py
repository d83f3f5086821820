"""Task scores against sums computed here, one sequence at a time, without padding."""

import json
import logging
import math
import random
import socket

import numpy as np
import pytest
import torch

from evals.scoring import hub
from evals.scoring.harness import bits_per_byte, evaluate_model
from moc.config.data import SourceConfig
from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.document import document_text
from moc.data.facts import fact_questions
from moc.data.source import documents
from moc.data.tokenizer import build_tokenizer
from moc.errors import CheckpointError, ConfigError
from moc.model import ModelConfig, RouterConfig, build_memory
from tests.support.fake_language import (
    IM_END,
    IM_START,
    ByteTokenizer,
    Chain,
    Script,
    brute_force,
    routed_model,
)
from tests.support.small_models import chapters


@pytest.fixture(scope="module")
def model():
    return routed_model("sequence")


CITIES = ["London", "São Paulo", "Ulan Bator", "Rome"]
FACTS = [
    {"id": i, "question": f"Where was person {i} born?", "choices": CITIES, "label": label,
     "answer": CITIES[label], "attribute": "birth_city", "person_id": i}
    for i, label in enumerate([2, 0, 2, 3, 1, 2, 0, 0])
]  # fmt: skip


def write_items(folder, task, rows):
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(model, folder, task, num_items=100, batch_size=4, tokenizer=None, route_on="context"):
    scores, samples = evaluate_model(
        model, tokenizer or ByteTokenizer(), tasks=[task], task_dir=folder, context_length=96,
        batch_size=batch_size, num_items=num_items, route_on=route_on,
    )  # fmt: skip
    return scores[task], samples[task]


@pytest.mark.parametrize(
    ("scope", "route_on"), [("sequence", "context"), ("sequence", "full"), ("segment", "context")]
)
def test_facts_choice_picks_the_option_with_the_largest_brute_force_sum(tmp_path, scope, route_on):
    model = routed_model(scope)
    write_items(tmp_path, "facts_choice", FACTS)
    picked, picked_per_character = [], []
    for fact in FACTS:
        prompt = list(f"Question: {fact['question']}\nAnswer:".encode())
        sums = []
        for choice in CITIES:
            after = list(f" {choice}".encode())
            steers = len(prompt) if (scope, route_on) == ("sequence", "context") else None
            sums.append(brute_force(model, [*prompt, *after][:-1], after, steers))
        picked.append(int(np.argmax(sums)))
        lengths = [len(choice) for choice in CITIES]
        picked_per_character.append(int(np.argmax(np.array(sums) / lengths)))
    labels = [fact["label"] for fact in FACTS]
    hits = [a == b for a, b in zip(picked, labels, strict=True)]

    score, samples = run(model, tmp_path, "facts_choice", route_on=route_on)
    assert [sample["prediction"] for sample in samples] == [CITIES[i] for i in picked]
    assert [sample["target"] for sample in samples] == [fact["answer"] for fact in FACTS]
    assert [sample["correct"] for sample in samples] == [int(hit) for hit in hits]
    assert score["metric"] == "acc"
    assert score["value"] == pytest.approx(np.mean(hits))
    both = zip(picked_per_character, labels, strict=True)
    assert score["extra"] == {"acc_norm": pytest.approx(np.mean([a == b for a, b in both]))}
    assert score["chance"] == 0.25
    share = np.mean(hits)
    assert score["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 7))


def test_both_routings_stand_side_by_side_for_a_model_that_is_not_causal(model, tmp_path):
    for task in ("facts_choice", "facts_answer"):
        write_items(tmp_path, task, FACTS)
    settings = {"tasks": ["facts_choice", "facts_answer"], "task_dir": tmp_path,
                "context_length": 96, "batch_size": 4, "num_items": 8}  # fmt: skip
    scores, samples = evaluate_model(model, ByteTokenizer(), route_on="both", **settings)
    for route_on, ending in (("context", ""), ("full", ".full")):
        alone = evaluate_model(model, ByteTokenizer(), route_on=route_on, **settings)
        # an answer that the model has yet to write is not there to steer
        for task in settings["tasks"][: 1 if ending else 2]:
            assert scores.pop(task + ending) == alone[0][task]
            assert samples.pop(task + ending) == alone[1][task]
    assert scores == samples == {}


def test_a_causal_model_is_not_scored_twice(tmp_path):
    """Its answers cannot steer: the second pass would cost time and say nothing."""
    model = routed_model("segment")
    write_items(tmp_path, "facts_choice", FACTS)
    shown = []
    hook = model.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    counts = []
    for route_on in ("context", "both"):
        shown.clear()
        run(model, tmp_path, "facts_choice", route_on=route_on)
        counts.append(len(shown))
    hook.remove()
    assert counts[0] == counts[1] > 0


def test_majority_and_limit_count_the_items_that_were_run(model, tmp_path):
    write_items(tmp_path, "facts_choice", FACTS)
    score, samples = run(model, tmp_path, "facts_choice", num_items=6)
    assert score["num_items"] == len(samples) == 6
    assert score["majority"] == pytest.approx(3 / 6)  # label 2, three times in the first six


def test_scores_and_predictions_do_not_depend_on_the_batch_size(model, tmp_path):
    for task in ("facts_choice", "facts_answer"):
        write_items(tmp_path, task, FACTS)
        one, samples = run(model, tmp_path, task, batch_size=1)
        assert len({sample["doc_hash"] for sample in samples}) == len(FACTS)
        for batch_size in (3, 8):
            score, found = run(model, tmp_path, task, batch_size=batch_size)
            assert [rounded(record) for record in (score, *found)] == [
                rounded(record) for record in (one, *samples)
            ]


def rounded(record):
    """Other batches, other last bits of a sum."""
    exact = {key: value for key, value in record.items() if not isinstance(value, float)}
    exact["logprobs"] = [round(value, 3) for value in record.get("logprobs", [])]
    return exact | {k: round(v, 3) for k, v in record.items() if isinstance(v, float)}


def test_facts_answer_is_an_exact_match_of_the_stripped_answer(tmp_path):
    answers = ["2020-01-02", "2020-01-03", "2020-01-02"]  # no loader may turn these into dates
    rows = [{"id": i, "question": "When?", "answer": a} for i, a in enumerate(answers)]
    write_items(tmp_path, "facts_answer", rows)
    model = Script(len("Question: When?\nAnswer:") - 1, " 2020-01-02\n")
    score, samples = run(model, tmp_path, "facts_answer")
    assert [sample["prediction"] for sample in samples] == ["2020-01-02"] * 3
    assert score["value"] == pytest.approx(2 / 3)
    assert (score["metric"], score["chance"], score["extra"]) == ("exact_match", 0.0, {})
    assert score["majority"] == pytest.approx(2 / 3)


def test_facts_are_asked_and_scored_as_they_stand_in_the_training_text(tmp_path):
    source = SourceConfig(kind="facts", num_people=8, num_phrasings=4, question_share=1.0)
    study = StudyConfig(
        name="s", data={"people": source}, cache_dir=str(tmp_path / "cache"),
        phases={"pretrain": PhaseConfig(mixture={"people": 1.0})},
    )  # fmt: skip
    study.tokenizer.vocab_size = 400
    tokenizer = build_tokenizer(study)
    question = next(fact_questions(source, trained=True))
    row = {"question": question.question, "choices": question.choices, "label": question.label}
    write_items(tmp_path, "facts_choice", [row | {"answer": question.answer}])
    model = Script(0, "")
    model.config = ModelConfig(memory=chapters(router=RouterConfig(scope="sequence")))
    model.kind = build_memory(model.config)
    shown = []
    model.register_forward_pre_hook(lambda _, args: shown.append(args[0][0].tolist()))
    # steered by their answers, the four are read one by one
    run(model, tmp_path, "facts_choice", batch_size=1, tokenizer=tokenizer, route_on="full")
    texts = [document_text(document) for document in documents(source, "train")]
    trained = [" ".join(map(str, ids)) for ids in tokenizer.encode_texts(texts)]
    (right,) = [ids for ids in shown if any(" ".join(map(str, ids)) in text for text in trained)]
    assert tokenizer.decode(right).startswith(f"Question: {question.question}\nAnswer: ")
    assert len(shown) == 4  # the other three options stand nowhere


def test_skills_prompts_reach_the_model_with_control_tokens(tmp_path):
    prompt = "<|im_start|>user\nCopy b<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"id": 0, "prompt": prompt, "answer": "b", "skill": "copy"}]
    write_items(tmp_path, "skills_answer", rows)
    chain = Chain([*b"\nb", IM_END])
    score, samples = run(chain, tmp_path, "skills_answer")
    expected = [IM_START, *b"user\nCopy b", IM_END, *b"\n", IM_START, *b"assistant\n"]
    assert chain.shown[0] == expected
    assert samples[0]["prediction"] == "b"
    assert score["value"] == 1.0


def test_an_evaluation_leaves_random_states_modes_and_gradients_alone(model, tmp_path):
    for task in ("facts_choice", "facts_answer"):
        write_items(tmp_path, task, FACTS)

    def draw(*_):
        random.random(), np.random.rand(), torch.rand(1)

    hook = model.register_forward_pre_hook(draw)
    model.train()
    model.blocks[0].eval()  # a frozen part stays in eval mode
    modes = [module.training for module in model.modules()]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run(model, tmp_path, "facts_choice")
    run(model, tmp_path, "facts_answer")
    bits_per_byte(model, torch.ones(1, 5).long(), torch.ones(1, 4), 4, batch_size=1)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    hook.remove()
    model.eval()


def test_autocast_of_the_training_loop_does_not_reach_the_scores(model, tmp_path):
    logits = []
    hook = model.register_forward_hook(lambda *args: logits.append(args[-1].logits_BLV.clone()))
    for task in ("facts_choice", "facts_answer"):
        write_items(tmp_path, task, FACTS)
        logits.clear()
        run(model, tmp_path, task)
        plain = logits[:]
        logits.clear()
        with torch.autocast("cpu", torch.bfloat16):
            run(model, tmp_path, task)
        assert len(plain) > 0
        assert all(torch.equal(a, b) for a, b in zip(logits, plain, strict=True))
    hook.remove()


def test_autocast_of_the_training_loop_does_not_reach_bits_per_byte(model):
    tokens, mask = torch.arange(34).reshape(2, 17), torch.ones(2, 16)
    plain = bits_per_byte(model, tokens, mask, 32, batch_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert bits_per_byte(model, tokens, mask, 32, batch_size=2) == plain


def test_changed_items_are_read_again_without_network_or_noise(
    tmp_path, monkeypatch, capsys, caplog
):
    def refuse(*args, **kwargs):
        raise AssertionError("an evaluation asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    caplog.set_level(logging.INFO)
    chain = Chain(b":ab\n")
    for answer, expected in (("ab", 1.0), ("zz", 0.0)):
        write_items(tmp_path, "facts_answer", [{"id": 0, "question": "Who?", "answer": answer}])
        assert run(chain, tmp_path, "facts_answer")[0]["value"] == expected
    printed = capsys.readouterr()
    assert (printed.out, printed.err, caplog.text) == ("", "", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["fact_choice"]}, "no task 'fact_choice'; did you mean 'facts_choice'"),
        ({"tasks": ["facts_answer"]}, "facts_answer.jsonl is missing"),
        ({"num_items": 0}, "num_items must be at least 1"),
    ],
)
def test_a_wrong_request_is_refused_in_words(model, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(hub, "_index", lambda folder: {})  # all of lm-eval takes long to read
    arguments = {"tasks": ["facts_choice"], "task_dir": tmp_path, "context_length": 64,
                 "batch_size": 4, "num_items": 5, **changes}  # fmt: skip
    write_items(tmp_path, "facts_choice", FACTS)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        evaluate_model(model, ByteTokenizer(), **arguments)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_bits_per_byte_is_the_counted_loss_over_the_bytes(model, batch_size):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (5, 17), generator=generator)
    mask = torch.rand(5, 16, generator=generator) < 0.5
    mask[1] = False  # a window of nothing but prompts
    mask[4, 6] = True
    mask[4, 7:] = False  # the last window ends here, the rest is padding
    nats = 0.0
    for row in range(5):
        end = 7 if row == 4 else 16
        for position in range(16):
            if mask[row, position]:
                ids = tokens[row].tolist()
                with torch.no_grad():
                    logits = model(torch.tensor([ids[:end]])).logits_BLV[0, position].double()
                nats -= float(logits.log_softmax(-1)[ids[position + 1]])
    result = bits_per_byte(model, tokens, mask, 123, batch_size=batch_size)
    assert result == pytest.approx(nats / math.log(2) / 123, rel=1e-5)


def test_bits_per_byte_of_nothing_is_refused(model):
    with pytest.raises(ConfigError, match="at least one counted token"):
        bits_per_byte(model, torch.ones(1, 5), torch.zeros(1, 4), 0, batch_size=1)
