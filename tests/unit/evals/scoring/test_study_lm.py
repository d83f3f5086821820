"""Log-likelihoods and answers against sums and loops made here, one sequence at a time."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from evals.scoring.answers import batches
from evals.scoring.observing import only_observing
from evals.scoring.study_lm import StudyLM
from moc.errors import ConfigError
from moc.model import generate
from tests.support.fake_language import (
    EOS,
    IM_END,
    ByteTokenizer,
    Chain,
    brute_force,
    routed_model,
)

SCOPES = ["sequence", "segment", "token"]
MIXINGS = ["joint", "per_chapter", "log_bias"]


@pytest.fixture(scope="module")
def model():
    return routed_model("sequence")


@pytest.fixture(autouse=True)
def observing(model):
    with only_observing(model):
        yield


def language_model(model, batch_size=4, context_length=64, route_on="context"):
    return StudyLM(
        model, ByteTokenizer(), context_length=context_length, batch_size=batch_size,
        route_on=route_on,
    )  # fmt: skip


def request(*args):
    return SimpleNamespace(args=args)


def greedy_loop(model, prompt, count):
    """Routed on the prompt, where that makes a difference."""
    ids = list(prompt)
    for _ in range(count):
        pooled = torch.arange(len(ids))[None] < len(prompt)
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), pool_BL=pooled).logits_BLV[0, -1].argmax()))
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
@pytest.mark.parametrize("route_on", ["context", "full"])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", SCOPES)
def test_loglikelihood_is_the_brute_force_sum_at_any_batch_size(
    scope, mixing, route_on, batch_size
):
    """The sum is that of one sequence without padding, routed on its context or on all of it."""
    model = routed_model(scope, mixing)
    lm = language_model(model, batch_size, route_on=route_on)
    answers = lm.loglikelihood([request(*pair) for pair in PAIRS])
    for (context, continuation), (score, _) in zip(PAIRS, answers, strict=True):
        before, after = list(context.encode()) or [EOS], list(continuation.encode())
        steers = len(before) if (scope, route_on) == ("sequence", "context") else None
        expected = brute_force(model, [*before, *after][:-1], after, steers)
        assert score == pytest.approx(expected, abs=1e-4)


CONTEXTS = ["Question: Where was Ada Lovelace born?\nAnswer:", "Q: Who?\nA:", "0123456789" * 7]
OPTIONS = [" London", " Ulan Bator", " a", " Rome", " Londoner"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", SCOPES)
def test_options_that_share_a_context_are_scored_as_if_each_stood_alone(scope, mixing, batch_size):
    """Segments of four positions: forks fall within and between them. The last context is cut."""
    model = routed_model(scope, mixing)
    lm = language_model(model, batch_size)
    pairs = [(context, option) for option in OPTIONS for context in CONTEXTS]
    answers = lm.loglikelihood([request(*pair) for pair in pairs])
    for (context, option), (score, _) in zip(pairs, answers, strict=True):
        row = [*context.encode(), *option.encode()][-65:]
        num_before = len(row) - len(option)
        steers = num_before if scope == "sequence" else None
        expected = brute_force(model, row[:-1], row[num_before:], steers)
        assert score == pytest.approx(expected, abs=1e-4)


def num_positions(model, lm, pairs):
    """How many positions the model is shown to score ``pairs``, padding included."""
    shown = []
    hook = model.register_forward_pre_hook(lambda _, args: shown.append(args[0].numel()))
    lm.loglikelihood([request(*pair) for pair in pairs])
    hook.remove()
    return sum(shown)


def test_a_context_is_read_once_for_all_its_options():
    """Or a benchmark takes as many times longer as its questions have options."""
    model = routed_model("segment")
    (context, *_), count = CONTEXTS, len(CONTEXTS[0])
    pairs = [(context, f" {i} option") for i in range(4)]
    assert num_positions(model, language_model(model), pairs) == count + 4 * len(" 0 optio")
    one_token = [(context, letter) for letter in "ABCD"]
    assert num_positions(model, language_model(model), one_token) == count
    # too little in common to be worth a cache
    short = [("Q:", "abcdef"), ("Q:", "uvwxyz")]
    assert num_positions(model, language_model(model), short) == 14


def test_answers_that_steer_their_own_routing_share_nothing(model):
    (context, *_), count = CONTEXTS, len(CONTEXTS[0])
    pairs = [(context, f" {i} option") for i in range(4)]
    full = language_model(model, route_on="full")
    assert num_positions(model, full, pairs) == 4 * (count + len(" 0 optio"))


def test_an_answer_steers_the_routing_only_if_asked(model):
    """And it does make a difference, so that the test above tells the two apart."""
    pair = request("Question: Where was Ada Lovelace born?\nAnswer:", " Ulan Bator")
    ((context, _),) = language_model(model).loglikelihood([pair])
    ((full, _),) = language_model(model, route_on="full").loglikelihood([pair])
    assert abs(context - full) > 1e-2


TEXT = "What ended in 1066, and where?"


def chain_rule_errors(model):
    """log p(a | c) + log p(b | c, a) - log p(a, b | c) for every cut of a text after c."""
    parts = []
    for start in (1, 7):
        for cut in range(start + 1, len(TEXT)):
            if TEXT[cut - 1] != " ":  # lm-eval moves a context's last spaces to the answer
                context, first, second = TEXT[:start], TEXT[start:cut], TEXT[cut:]
                parts += [(context, first), (context + first, second), (context, first + second)]
    scores = language_model(model, route_on="full").loglikelihood([request(*p) for p in parts])
    values = iter([score for score, _ in scores])
    return [abs(a + b - both) for a, b, both in zip(values, values, values, strict=True)]


@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("router_input", ["block_input", "post_attention"])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    ("scope", "window"), [("segment", None), ("segment", 3), ("token", None), ("sequence", None)]
)
def test_scores_obey_the_chain_rule_if_and_only_if_routing_is_causal(
    scope, window, mixing, router_input, variant
):
    """The gate through the adapter: what follows in a request must not move what comes before.
    Cuts lie on both sides of segment borders; scope sequence is the positive control."""
    errors = chain_rule_errors(routed_model(scope, mixing, window, router_input, variant))
    assert max(errors) > 1e-2 if scope == "sequence" else max(errors) < 1e-4


def test_padding_would_change_scores_if_it_were_not_marked(model):
    """The test above has teeth: this model does look at every position marked as real."""
    ids = torch.tensor([list(b"Who?") + [EOS] * 20])
    valid = torch.arange(24)[None] < 4
    with torch.no_grad():
        marked, unmarked = model(ids, pool_BL=valid).logits_BLV, model(ids).logits_BLV
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
    assert score == pytest.approx(brute_force(model, inputs, list(b" yes"), 9), abs=1e-4)
    assert "1 of 1 prompts do not fit evals.context_length 12" in caplog.text


def test_an_answer_that_fills_the_context_is_routed_on_the_one_token_left_before_it(model):
    lm = language_model(model, context_length=12)
    ((score, _),) = lm.loglikelihood([request("0123456789", "twelve bytes")])
    expected = brute_force(model, list(b"9twelve byte"), list(b"twelve bytes"), 1)
    assert score == pytest.approx(expected, abs=1e-4)


def test_an_answer_longer_than_the_context_is_refused(model):
    with pytest.raises(ConfigError, match="context_length 12 is less than an answer's 20 tokens"):
        language_model(model, context_length=12).loglikelihood([request("a", "b" * 20)])


@pytest.mark.parametrize("scope", SCOPES)
def test_rolling_predicts_every_token_once_with_the_most_context(scope):
    """A text has no answer: under scope sequence all of a window steers, asked for or not."""
    model = routed_model(scope)
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
@pytest.mark.parametrize("scope", SCOPES)
def test_generation_is_the_naive_greedy_loop(scope, batch_size):
    model = routed_model(scope)
    prompts = ["Question: Who?\nAnswer:", "a", "Hi there, "]
    lm = language_model(model, batch_size)
    answers = lm.generate_until([request(p, {"until": [], "max_gen_toks": 6}) for p in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = greedy_loop(model, prompt.encode(), 6)
        stop = next((i for i, token in enumerate(expected) if token in (EOS, IM_END)), 6)
        assert answer == ByteTokenizer().decode(expected[:stop])


def test_generation_may_be_routed_on_what_has_been_written(model):
    prompt, options = "Question: Who?\nAnswer:", {"until": [], "max_gen_toks": 24}
    lm = language_model(model, route_on="full")
    (answer,) = lm.generate_until([request(prompt, options)])
    expected = {}
    for policy in ("prompt", "running"):
        settings = {"max_new_tokens": 24, "stop_ids": {EOS, IM_END}, "policy": policy}
        (tokens,) = generate(model, [list(prompt.encode())], **settings)
        expected[policy] = ByteTokenizer().decode(tokens)
    assert answer == expected["running"] != expected["prompt"]


@pytest.mark.parametrize(
    ("max_new", "seen", "answer"),
    [(4, b"89xyza", "bcde"), (9, b"a", "bcdefgh\0\0"), (50, b"a", "bcdefgh\0\0")],
)
def test_a_prompt_too_long_keeps_its_last_tokens_and_room_for_the_answer(
    caplog, max_new, seen, answer
):
    chain = Chain(b"abcdefgh")
    lm = language_model(chain, context_length=10)
    options = {"until": [], "max_gen_toks": max_new}
    assert lm.generate_until([request("0123456789xyza", options)]) == [answer]
    assert bytes(chain.shown[0]) == seen
    assert ("less room than their task asks for" in caplog.text) == (max_new == 50)


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
    assert b"".join(map(bytes, chain.shown)) == b"ab"  # the newline was not read again


def test_sampling_tasks_are_refused(model):
    with pytest.raises(ConfigError, match="do_sample"):
        language_model(model).generate_until([request("a", {"do_sample": True})])


def test_a_single_stop_string_may_stand_without_a_list():
    lm = language_model(Chain(b"abcd"))
    assert lm.generate_until([request("a", {"until": "db", "max_gen_toks": 3})]) == ["bcd"]


@pytest.mark.parametrize("group", [1, 32])
def test_batches_hold_every_item_once_and_no_more_tokens_than_their_budget(group):
    """Items of several rows, of two parts each; one item alone is larger than a batch."""
    rng = random.Random(0)
    items = [(rng.randint(1, 60), rng.randint(0, 9), rng.randint(1, 12)) for _ in range(300)]
    items.append((300, 5, 1))
    found = list(
        batches(
            items, lengths=lambda item: item[:2], rows=lambda item: item[2], max_tokens=256,
            group=group,
        )
    )  # fmt: skip
    assert sorted(item for batch in found for item in batch) == sorted(items)
    for batch in found:
        length = max(first for first, _, _ in batch) + max(second for _, second, _ in batch)
        taken = sum(rows for _, _, rows in batch) * math.ceil(length / group) * group
        assert taken <= 256 or len(batch) == 1


def test_mixed_lengths_are_padded_little_and_short_ones_read_many_at_once():
    """Against batches of 64 rows, whose memory 64 full rows of 512 are."""
    rng = random.Random(0)
    lengths = [min(512, int(rng.lognormvariate(4, 0.8)) + 1) for _ in range(4000)]
    found = list(batches(lengths, lengths=lambda length: (length,), max_tokens=64 * 512))
    ranked = sorted(lengths, reverse=True)
    by_rows = [ranked[i : i + 64] for i in range(0, len(ranked), 64)]
    assert len(found) < len(by_rows) / 2
    padded = [len(batch) * max(batch) for batch in found]
    assert max(padded) <= 64 * 512
    for tokens, batch in zip(padded, found, strict=True):
        assert tokens - sum(batch) <= max(512, 0.1 * tokens)
    few = [6] * 40 + [500] * 24  # in one batch of rows, 62 % of it padding
    found = list(batches(few, lengths=lambda length: (length,), max_tokens=64 * 512))
    assert sum(len(batch) * max(batch) for batch in found) < 1.1 * sum(few)
    generated = batches(few, lengths=lambda length: (length,), max_tokens=64 * 512, passes=64)
    assert len(list(generated)) == 1  # a second one would cost as many passes again


# most are short, and a few fill the context
PROMPTS = [chr(97 + i % 26) * (60 if i % 10 == 0 else 3 + i % 20) for i in range(80)]


@pytest.mark.parametrize("scope", SCOPES)
def test_short_choices_are_read_together_within_the_memory_of_full_rows(scope):
    """A row of scope sequence needs chapters of its own, however short: of these no more."""
    model, shapes = routed_model(scope), []
    hook = model.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    language_model(model).loglikelihood([request(prompt, "answer") for prompt in PROMPTS])
    hook.remove()
    assert sum(rows for rows, _ in shapes) == len(PROMPTS)
    if scope == "sequence":
        assert max(rows for rows, _ in shapes) == 4
    else:
        assert max(rows * length for rows, length in shapes) <= 4 * 64
        assert len(shapes) <= len(PROMPTS) / 4 / 1.5


@pytest.mark.parametrize(("max_new", "most"), [(4, 16), (40, 5)])
def test_prompts_are_continued_together_as_far_as_their_answers_leave_room(max_new, most):
    model, shapes = routed_model("segment"), []
    hook = model.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    options = {"until": [], "max_gen_toks": max_new}
    language_model(model).generate_until([request(prompt, options) for prompt in PROMPTS])
    hook.remove()
    prompts = [(rows, length) for rows, length in shapes if length > 1]
    assert sum(rows for rows, _ in prompts) == len(PROMPTS)
    assert max(rows * (length + max_new) for rows, length in prompts) <= 4 * 64
    assert max(rows for rows, _ in prompts) == most
