"""Scores do not hang on what else is in the batch, whatever the kind of memory.

What would break for a user: a benchmark whose result depends on ``evals.batch_size``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from evals.scoring.observing import only_observing
from evals.scoring.study_lm import StudyLM
from moc.model import generate
from tests.support.fake_language import EOS, ByteTokenizer, brute_force
from tests.support.kinds import KINDS, config_of, third_kind
from tests.support.small_models import lively

CONTEXTS = ["Question: Where was Ada Lovelace born?\nAnswer:", "Q:", ""]
OPTIONS = [" London", " Ulan Bator", " a", "yz" * 9]
PAIRS = [(context, option) for option in OPTIONS for context in CONTEXTS]


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    with third_kind():
        yield


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_those_of_each_text_alone(name: str) -> None:
    """At any batch size, and however much padding its neighbours bring."""
    model = lively(replace(config_of(name), vocab_size=259)).eval()
    requests = [SimpleNamespace(args=pair) for pair in PAIRS]
    expected = []
    for context, option in PAIRS:
        before, after = list(context.encode()) or [EOS], list(option.encode())
        expected.append(brute_force(model, [*before, *after][:-1], after))
    assert max(expected) - min(expected) > 10
    for batch_size in (1, 3, 64):
        lm = StudyLM(
            model, ByteTokenizer(), context_length=64, batch_size=batch_size, route_on="context"
        )
        with only_observing(model):
            found = [score for score, _ in lm.loglikelihood(requests)]
        assert found == pytest.approx(expected, abs=2e-4), batch_size


@pytest.mark.parametrize("name", KINDS)
def test_continuations_are_those_of_each_prompt_alone(name: str) -> None:
    model = lively(replace(config_of(name), vocab_size=259)).eval()
    prompts = [list(context.encode()) or [EOS] for context in CONTEXTS]
    with only_observing(model):
        together = generate(model, prompts, max_new_tokens=8)
        alone = [generate(model, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert together == alone
