"""Synthetic instructions: correct answers, and validation that was never trained."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from moc.config.data import SourceConfig
from moc.data.skills import SKILLS, WORDINGS, Instruction, skill_examples
from moc.errors import ConfigError

CONFIG = SourceConfig(kind="skills", num_examples=5000)


def asked(item: Instruction) -> str:
    """What stands in the place of {x}, whichever wording was used."""
    user = item.messages[0]["content"]
    for wording in WORDINGS[item.skill]:
        before, after = wording.split("{x}")
        if user.startswith(before) and user.endswith(after):
            return user[len(before) : len(user) - len(after)]
    raise AssertionError(user)


def right_answer(skill: str, text: str) -> str:
    words = text.split()
    numbers = [int(word) for word in text.replace(",", " ").split() if word.isdigit()]
    answers = {
        "copy": text,
        "reverse": " ".join(words[::-1]),
        "sort": " ".join(sorted(words)),
        "count": str(text.count(" ") + 1),
        "last": text.rpartition(" ")[2],
        "add": str(sum(numbers)),
        "largest": str(sorted(numbers)[-1]) if numbers else "",
        "commas": text.replace(" ", ", "),
        "json": json.dumps({words[0]: words[-1]}),
    }
    return answers[skill]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_answers_are_right(split: str) -> None:
    counts: Counter[str] = Counter()
    for item in skill_examples(CONFIG, split):
        assert item.answer == right_answer(item.skill, asked(item))
        assert item.messages[1] == {"role": "assistant", "content": item.answer}
        counts[item.skill] += 1
    assert set(counts) == set(SKILLS)
    assert sum(counts.values()) == (5000 if split == "train" else 500)
    assert min(counts.values()) > 0.4 * max(counts.values())


def test_validation_instructions_are_never_trained_in_any_wording_or_seed() -> None:
    other_seed = SourceConfig(kind="skills", num_examples=5000, seed=1)
    both = [*skill_examples(CONFIG, "train"), *skill_examples(other_seed, "train")]
    trained = {(item.skill, asked(item)) for item in both}
    validation = {(i.skill, asked(i)) for i in skill_examples(CONFIG, "validation")}
    assert len(validation) > 200 and not trained & validation


def test_answers_cannot_be_guessed() -> None:
    """A task whose commonest answer is common would look learned when it is not."""
    answers = Counter(item.answer for item in skill_examples(CONFIG, "train"))
    assert answers.most_common(1)[0][1] < 0.03 * 5000


def test_the_prompt_is_the_training_text_up_to_the_answer() -> None:
    item = next(skill_examples(CONFIG, "train"))
    user = item.messages[0]["content"]
    assert item.prompt == f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def test_the_same_seed_gives_the_same_instructions() -> None:
    assert list(skill_examples(CONFIG, "train")) == list(skill_examples(CONFIG, "train"))


def test_no_examples_is_an_error() -> None:
    with pytest.raises(ConfigError, match="num_examples"):
        skill_examples(SourceConfig(kind="skills", num_examples=0), "train")
