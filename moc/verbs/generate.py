"""What ``moc generate`` does: text from a stored model, as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moc.errors import ConfigError
from moc.verbs.stored import find_stored

if TYPE_CHECKING:
    from moc.data.tokenizer import Tokenizer
    from moc.model.decode.cache import DecodePolicy


def continue_prompts(
    path: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    chat: bool = False,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    policy: DecodePolicy = "prompt",
    window_tokens: int | None = None,
) -> Iterator[tuple[int, str | None]]:
    """Pieces of text as they come, each with the number of the prompt that it continues; None once
    that continuation has ended.

    Args:
        path: a boundary's folder, or a seed's, which stands for its last boundary.
        chat: a prompt is a user's turn.
        stop: strings that end a continuation and are left out of it.

    For the other settings see ``moc.model.decode.generate.stream``.

    Raises:
        ConfigError: if ``path`` holds no model, or a prompt or setting cannot be used.
        CheckpointError: if the files are damaged.
    """
    stored = find_stored(path)
    if not all(prompts):
        raise ConfigError("--prompt is empty")
    if not all(stop):
        raise ConfigError("--stop is empty")
    if window_tokens is not None and policy != "running":
        raise ConfigError("--window is of --policy running")
    from moc.data.document import TURN_END, chat_prompt
    from moc.model import is_causal, stream

    model, _ = stored.load(stored.boundaries[-1])
    if policy != "prompt" and is_causal(model.config):
        raise ConfigError("--policy is for scope sequence; this model decodes as it was trained")
    tokenizer = stored.tokenizer()
    if chat:
        prompts = [chat_prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    stop_ids = {tokenizer.eos_id}
    if len(turn_end := tokenizer.encode(TURN_END)) == 1:  # else it is ordinary text to this one
        stop_ids.add(turn_end[0])
    written = [_Writing(tokenizer, stop) for _ in prompts]
    steps = stream(
        model,
        [tokenizer.encode(prompt) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        policy=policy,
        window_tokens=window_tokens,
    )
    going = list(range(len(prompts)))
    try:
        for step in steps:
            for row in list(going):
                token = step[row]
                if token is not None and (piece := written[row].add(token)):
                    yield row, piece
                if token is None or written[row].stopped:
                    going.remove(row)
                    yield from _ending(row, written[row])
            if not going:
                break
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for row in going:
        yield from _ending(row, written[row])


def _ending(row: int, writing: _Writing) -> Iterator[tuple[int, str | None]]:
    if piece := writing.rest():
        yield row, piece
    yield row, None


class _Writing:
    """One continuation: what of it is certain, and what may still become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.num_shown = 0  # characters
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token makes certain."""
        if self.stopped:
            return ""
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens)
        if found := [at for word in self.stop if (at := text.find(word)) >= 0]:
            self.stopped = True
            return self._show(text[: min(found)])
        # a character's bytes can be spread over tokens; until the last they decode to this mark
        text = text.rstrip("\ufffd")
        held = max(
            (n for word in self.stop for n in range(len(word)) if text.endswith(word[:n])),
            default=0,
        )
        return self._show(text[: len(text) - held])

    def rest(self) -> str:
        """What was held back, once nothing follows."""
        return "" if self.stopped else self._show(self.tokenizer.decode(self.tokens))

    def _show(self, text: str) -> str:
        piece = text[self.num_shown :]
        self.num_shown = max(self.num_shown, len(text))
        return piece
