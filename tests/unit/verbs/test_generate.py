"""Text from a model.

What would break for a user: an answer that depends on the prompts beside it, a sample that cannot
be drawn again, a setting that does something else than its name says.
"""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from moc.model import ModelConfig, RouterConfig, build_model, generate
from moc.model.decode.generate import stream
from tests.support.small_models import chapters

torch.set_num_threads(1)
CONFIG = ModelConfig(
    vocab_size=23,
    num_layers=2,
    dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=24,
    init_std=0.4,
    memory=chapters(
        num_chapters=5, num_routed=2, chapter_tokens=3, layers="all", output_init="normal"
    ),
)
ROUTERS = {
    "sequence": RouterConfig(scope="sequence"),
    "segment": RouterConfig(segment_tokens=4),
    "window": RouterConfig(segment_tokens=4, window_tokens=3),
    "token": RouterConfig(scope="token"),
}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]  # 10 more tokens cross two borders at least
RUNNING = {"policy": "running", "window_tokens": 3}


def build(scope):
    memory = None
    if scope in ROUTERS:
        memory = chapters(CONFIG.memory, router=ROUTERS[scope], bank_init_std=1.0)
    return build_model(replace(CONFIG, residual_init_std=0.4, memory=memory)).eval()


@pytest.fixture(scope="module")
def model():
    return build("segment")


def forward_loop(model, prompt, max_new_tokens, stop_ids=()):
    """The likeliest token of a plain forward pass, time and again; no cache, no batch.

    ``sequence`` routing pools the prompt alone, which is what the policy ``prompt`` means.
    """
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        pool_BL = (torch.arange(len(tokens)) < len(prompt))[None]
        with torch.no_grad():
            likeliest = int(
                model(torch.tensor([tokens]), pool_BL=pool_BL).logits_BLV[0, -1].argmax()
            )
        if likeliest in stop_ids:
            break
        tokens.append(likeliest)
    return tokens[len(prompt) :]


# greedy


@pytest.mark.parametrize("scope", [*ROUTERS, "dense"])
def test_answers_are_those_of_a_plain_forward_loop(scope):
    model = build(scope)
    answers = generate(model, PROMPTS, max_new_tokens=10)
    assert answers == [forward_loop(model, prompt, 10) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) > 1


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}, RUNNING])
@pytest.mark.parametrize("scope", [*ROUTERS, "dense"])
def test_batched_answers_are_those_of_one_prompt_at_a_time(scope, settings):
    """Alone but in its place: the place among the prompts is part of the seed."""
    model = build(scope)
    answers = generate(model, PROMPTS, max_new_tokens=10, **settings)
    for i, answer in enumerate(answers):
        others = [[i + 12]] * i
        assert generate(model, [*others, PROMPTS[i]], max_new_tokens=10, **settings)[i] == answer


def test_the_policy_matters_to_sequence_routing_alone():
    answers = {}
    for scope in ("sequence", "segment"):
        model = build(scope)
        long = [PROMPTS[0] * 3, PROMPTS[2] * 4]
        answers[scope] = [
            generate(model, long, max_new_tokens=20, **settings)
            for settings in ({"policy": "prompt"}, {"policy": "running"}, RUNNING)
        ]
    assert len({str(answer) for answer in answers["sequence"]}) == 3
    assert len({str(answer) for answer in answers["segment"]}) == 1


# ends


def test_rows_end_at_stop_tokens_of_their_own():
    """The stop token is left out, and the rows that go on do not notice."""
    model = build("token")
    free = generate(model, PROMPTS, max_new_tokens=10)
    stop_ids = {free[1][6], free[2][0]}
    answers = generate(model, PROMPTS, max_new_tokens=10, stop_ids=stop_ids)
    assert answers == [forward_loop(model, prompt, 10, stop_ids) for prompt in PROMPTS]
    lengths = [len(answer) for answer in answers]
    assert lengths[2] == 0 < lengths[0] < lengths[1] <= 6


@pytest.mark.parametrize("scope", ROUTERS)
def test_ended_rows_leave_the_draws_of_others_alone(scope):
    model = build(scope)
    settings = {"max_new_tokens": 12, "temperature": 2.0}
    free = generate(model, PROMPTS * 2, **settings)
    stops = {free[0][1], free[4][6]}
    answers = generate(model, PROMPTS * 2, stop_ids=stops, **settings)
    for answer, unstopped in zip(answers, free, strict=True):
        ends = [i for i, token in enumerate(unstopped) if token in stops]
        assert answer == unstopped[: ends[0] if ends else None]
    assert len({len(answer) for answer in answers}) > 2


def test_streamed_tokens_are_the_generated_ones(model):
    free = generate(model, PROMPTS, max_new_tokens=10)
    settings = {"max_new_tokens": 10, "stop_ids": {free[0][1], free[2][0]}}
    steps = list(stream(model, PROMPTS, **settings))
    answers = generate(model, PROMPTS, **settings)
    assert len(steps) == max(map(len, answers)) > min(map(len, answers))
    for column, answer in zip(zip(*steps, strict=True), answers, strict=True):
        assert list(column) == answer + [None] * (len(steps) - len(answer))


def test_tokens_come_as_they_are_written(model):
    """One step is one pass over the new tokens, and nothing is computed before it is asked for."""
    widths = []
    model = build("segment")
    model.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    steps = stream(model, PROMPTS, max_new_tokens=5)
    assert widths == []
    for expected in ([7], [7, 1], [7, 1, 1]):
        next(steps)
        assert widths == expected


def test_nothing_asked_nothing_written(model):
    assert generate(model, PROMPTS, max_new_tokens=0) == [[], [], []]
    assert list(stream(model, PROMPTS, max_new_tokens=0)) == []
    assert generate(model, [], max_new_tokens=3) == []


# sampling


def test_sampling_is_reproducible_by_seed(model):
    def sample(seed, temperature=1.0):
        return generate(model, PROMPTS, max_new_tokens=9, temperature=temperature, seed=seed)

    torch.manual_seed(0)
    first = sample(1)
    torch.manual_seed(1)  # what else has been drawn plays no part
    assert sample(1) == first != sample(2)
    assert sample(1, temperature=1e-4) == generate(model, PROMPTS, max_new_tokens=9)


def test_one_prompt_given_twice_is_continued_in_two_ways(model):
    first, second = generate(model, [[3], [3]], max_new_tokens=12, temperature=3.0)
    assert first != second


@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"top_p": 1e-6}])
def test_only_the_likeliest_is_left_to_sample(model, truncation):
    answers = generate(model, PROMPTS, max_new_tokens=9, temperature=5.0, **truncation)
    assert answers == generate(model, PROMPTS, max_new_tokens=9)


def truncated(logits, temperature, top_k=None, top_p=None):
    """{token: probability}: the top k, then of these the fewest that reach top p, renormalised."""
    weights = {token: math.exp(logit / temperature) for token, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda token: -weights[token])[:top_k]
    total = sum(weights[token] for token in ranked)
    kept, mass = [], 0.0
    for token in ranked:
        if top_p is not None and mass >= top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    return {token: weights[token] / total / mass for token in kept}


@pytest.mark.parametrize(
    ("truncation", "num_left"),
    [
        ({}, 23),
        ({"top_k": 5}, 5),
        ({"top_k": 100}, 23),
        ({"top_p": 0.6}, None),
        ({"top_p": 1.0}, 23),
        ({"top_k": 8, "top_p": 0.5}, None),
    ],
)
def test_sampled_frequencies_are_the_truncated_distribution(model, truncation, num_left):
    with torch.no_grad():
        logits = model(torch.tensor([[3]])).logits_BLV[0, -1].tolist()
    expected = truncated(logits, 2.0, **truncation)
    assert len(expected) == num_left or 2 < len(expected) < 12
    draws = generate(model, [[3]] * 4000, max_new_tokens=1, temperature=2.0, **truncation)
    counts = Counter(token for (token,) in draws)
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        error = 5 * math.sqrt(probability * (1 - probability) / 4000)  # five standard errors
        assert counts[token] / 4000 == pytest.approx(probability, abs=error)


# settings out of range


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ([[1], []], {}, "^a prompt needs at least one token$"),
        ([[1]], {"temperature": -0.1}, "^temperature must not be negative, but is -0.1$"),
        ([[1]], {"top_k": 0}, "^top_k must be at least 1, or None; it is 0$"),
        ([[1]], {"top_p": 0.0}, "^top_p must be above 0 and at most 1, or None; it is 0.0$"),
        ([[1]], {"top_p": 1.1}, "^top_p must be above 0 and at most 1, or None; it is 1.1$"),
        ([[1]], {"policy": "future"}, "^policy 'future' is none of prompt, running$"),
        ([[1]], {"window_tokens": 0}, "^window_tokens must be at least 1, or None; it is 0$"),
    ],
)
def test_settings_out_of_range_are_refused(model, prompts, settings, words):
    with pytest.raises(ValueError, match=words):
        generate(model, prompts, max_new_tokens=3, **settings)
