"""Synthetic instructions whose answers can be checked: copying, sorting, counting, and the like.

Small on purpose: few words, short answers, so that a model of a million parameters learns them
from a million tokens. What an instruction asks for (not its wording) decides by its hash whether
it belongs to training or validation, so no validation instruction is ever trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from moc.config.data import SourceConfig
from moc.data.document import Message, chat_prompt
from moc.data.hashing import Draws, stable_hash
from moc.errors import ConfigError

_VALIDATION_SHARE = 10  # one in so many instructions is kept for validation
_WORDS = """
apple bird boat book cake cat chair coat desk dog door farm fish flag goat hat jam king lamp milk
moon pig ring star
""".split()  # noqa: SIM905
_KEYS = "name color food place item".split()  # noqa: SIM905

# How each skill is asked for; {x} is replaced. Every wording of a skill has the same answer.
WORDINGS = {
    "copy": ["Copy: {x}", "Repeat after me: {x}"],
    "reverse": ["Reverse: {x}", "Say backwards: {x}"],
    "sort": ["Sort: {x}", "In alphabetical order: {x}"],
    "count": ["Count: {x}", "How many words: {x}"],
    "last": ["Last: {x}", "Which word is last: {x}"],
    "add": ["Add: {x}", "What is the sum: {x}"],
    "largest": ["Largest: {x}", "Which number is largest: {x}"],
    "commas": ["Commas: {x}", "Join with commas: {x}"],
    "json": ["JSON: {x}", "As a JSON object: {x}"],
}
SKILLS = tuple(WORDINGS)


class Instruction(NamedTuple):
    skill: str
    messages: list[Message]
    prompt: str  # the conversation as text, up to where the assistant's answer starts
    answer: str


def skill_examples(config: SourceConfig, split: str) -> Iterator[Instruction]:
    """``num_examples`` instructions to train on, or a tenth as many to validate on, all skills
    in turn.

    Raises:
        ConfigError: if ``num_examples`` is not positive.
    """
    if config.num_examples < 1:
        raise ConfigError(f"num_examples must be at least 1, not {config.num_examples}")
    validation = split == "validation"
    limit = -(-config.num_examples // _VALIDATION_SHARE) if validation else config.num_examples
    candidates = (_example(config.seed, number) for number in itertools.count())
    chosen = (item for item, in_validation in candidates if in_validation == validation)
    return itertools.islice(chosen, limit)


def _example(seed: int, number: int) -> tuple[Instruction, bool]:
    """Candidate ``number``, and whether it belongs to validation."""
    skill = SKILLS[number % len(SKILLS)]
    draws = Draws(seed, "skills", number)
    asked, answer = _task(skill, draws)
    user = draws.choice(WORDINGS[skill]).format(x=asked)
    messages = [{"role": "user", "content": user}]
    prompt = chat_prompt(messages)
    messages.append({"role": "assistant", "content": answer})
    in_validation = stable_hash(skill, asked) % _VALIDATION_SHARE == 0
    return Instruction(skill, messages, prompt, answer), in_validation


def _task(skill: str, draws: Draws) -> tuple[str, str]:
    """What is asked for, and the answer."""
    match skill:
        case "add":
            numbers = [draws.below(20), draws.below(10)]
            return f"{numbers[0]} and {numbers[1]}", str(sum(numbers))
        case "largest":
            numbers = draws.sample(range(20), 3)
            return ", ".join(map(str, numbers)), str(max(numbers))
        case "json":
            key, word = draws.choice(_KEYS), draws.choice(_WORDS)
            return f"{key} is {word}", f'{{"{key}": "{word}"}}'
        case "count":
            words = draws.sample(_WORDS, 1 + draws.below(8))
        case _:
            words = draws.sample(_WORDS, 2 + draws.below(2))
    match skill:
        case "copy":
            answer = " ".join(words)
        case "reverse":
            answer = " ".join(reversed(words))
        case "sort":
            answer = " ".join(sorted(words))
        case "count":
            answer = str(len(words))
        case "last":
            answer = words[-1]
        case _:
            assert skill == "commas"
            answer = ", ".join(words)
    return " ".join(words), answer
