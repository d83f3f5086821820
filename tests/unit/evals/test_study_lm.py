"""Log-likelihoods and answers against sums and loops made here, one sequence at a time."""

from types import SimpleNamespace

import pytest
import torch

from evals.observing import only_observing
from evals.study_lm import StudyLM
from moc.errors import ConfigError
from tests.fake_language import (
    EOS,
    IM_END,
    ByteTokenizer,
    Chain,
    brute_force,
    routed_model,
)


@pytest.fixture(scope="module")
def model():
    return routed_model()


@pytest.fixture(autouse=True)
def observing(model):
    with only_observing(model):
        yield


def language_model(model, batch_size=4, context_length=64):
    return StudyLM(model, ByteTokenizer(), context_length=context_length, batch_size=batch_size)


def request(*args):
    return SimpleNamespace(args=args)


def greedy_loop(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits_BLV[0, -1].argmax()))
    return ids[-count:]


PAIRS = [
    ("Question: Where was Ada Lovelace born?\nAnswer:", " London"),
    ("Q:", " Ulan Bator"),
    ("Question: Who?\nAnswer:", " a"),
    ("x", "yz" * 9),
    ("Question: What did Grace Hopper study?\nAnswer:", " mathematics"),
    ("", "no context"),
]


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_loglikelihood_is_the_brute_force_sum_at_any_batch_size(model, batch_size):
    answers = language_model(model, batch_size).loglikelihood([request(*pair) for pair in PAIRS])
    for (context, continuation), (score, _) in zip(PAIRS, answers, strict=True):
        before, after = list(context.encode()) or [EOS], list(continuation.encode())
        expected = brute_force(model, [*before, *after][:-1], after)
        assert score == pytest.approx(expected, abs=1e-4)


def test_padding_would_change_scores_if_it_were_not_marked(model):
    """The test above has teeth: this model does look at every position marked as real."""
    ids = torch.tensor([list(b"Who?") + [EOS] * 20])
    valid = torch.arange(24)[None] < 4
    with torch.no_grad():
        marked, unmarked = model(ids, valid).logits_BLV, model(ids).logits_BLV
    assert (marked[0, 3] - unmarked[0, 3]).abs().max() > 1e-2


def test_is_greedy_tells_whether_the_model_would_write_the_answer():
    answers = language_model(Chain(b"abcd")).loglikelihood(
        [request("xa", "bcd"), request("xa", "bc!"), request("xb", "cd")]
    )
    assert [greedy for _, greedy in answers] == [True, False, True]


def test_a_sequence_too_long_keeps_exactly_its_last_tokens(model, caplog):
    context, continuation = "0123456789" * 3, " yes"
    lm = language_model(model, context_length=12)
    ((score, _),) = lm.loglikelihood([request(context, continuation)])
    ids = list((context + continuation).encode())
    inputs = ids[len(ids) - 13 : -1]  # 12 go in, and the 13th is only predicted
    assert score == pytest.approx(brute_force(model, inputs, list(b" yes")), abs=1e-4)
    assert "1 of 1 prompts do not fit evals.context_length 12" in caplog.text


def test_an_answer_longer_than_the_context_is_refused(model):
    with pytest.raises(ConfigError, match="context_length 12 is less than an answer's 20 tokens"):
        language_model(model, context_length=12).loglikelihood([request("a", "b" * 20)])


def test_rolling_predicts_every_token_once_with_the_most_context(model):
    ids = list(b"A sentence of 21 byte")
    lm = language_model(model, context_length=8)
    short, total, empty = lm.loglikelihood_rolling(
        [request("Hi"), request("A sentence of 21 byte"), request("")]
    )
    expected = brute_force(model, [EOS, *ids[:7]], ids[:8])
    expected += brute_force(model, ids[7:15], ids[8:16])
    expected += brute_force(model, ids[12:20], ids[16:21])  # a full window for the last five
    assert total == pytest.approx(expected, abs=1e-4)
    assert short == pytest.approx(brute_force(model, [EOS, *b"H"], list(b"Hi")), abs=1e-4)
    assert empty == 0.0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_generation_is_the_naive_greedy_loop(model, batch_size):
    prompts = ["Question: Who?\nAnswer:", "a", "Hi there, "]
    lm = language_model(model, batch_size)
    answers = lm.generate_until([request(p, {"until": [], "max_gen_toks": 6}) for p in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = greedy_loop(model, prompt.encode(), 6)
        stop = next((i for i, token in enumerate(expected) if token in (EOS, IM_END)), 6)
        assert answer == ByteTokenizer().decode(expected[:stop])


def test_a_prompt_too_long_keeps_its_last_tokens_and_room_for_the_answer():
    chain = Chain(b"abcdefgh")
    lm = language_model(chain, context_length=10)
    lm.generate_until([request("0123456789xyza", {"until": [], "max_gen_toks": 4})])
    assert bytes(chain.shown[0]) == b"89xyza"
    assert max(len(row) for row in chain.shown) < 10


@pytest.mark.parametrize(
    ("ids", "until", "expected"),
    [
        (b"abcd", ["c"], "b"),
        (b"abcde", ["de", "cd"], "b"),  # the earliest of several
        ([*b"ab", EOS, *b"z"], [], "b"),
        ([*b"ab", IM_END, *b"z"], [], "b"),
    ],
)
def test_generation_stops_at_strings_end_of_text_and_end_of_turn(ids, until, expected):
    options = {"until": until, "max_gen_toks": 6}
    assert language_model(Chain(ids)).generate_until([request("a", options)]) == [expected]


def test_generation_stops_at_the_token_that_opens_with_a_stop_string():
    """Otherwise every answer costs max_gen_toks steps, however early its line ends."""
    chain = Chain(b"ab\ncdefgh")
    language_model(chain).generate_until([request("a", {"until": ["\n"], "max_gen_toks": 9})])
    assert max(len(row) for row in chain.shown) == 2  # "ab": the newline was not read again


def test_sampling_tasks_are_refused(model):
    with pytest.raises(ConfigError, match="do_sample"):
        language_model(model).generate_until([request("a", {"do_sample": True})])


def test_a_single_stop_string_may_stand_without_a_list():
    lm = language_model(Chain(b"abcd"))
    assert lm.generate_until([request("a", {"until": "db", "max_gen_toks": 3})]) == ["bcd"]
