"""A model in memory as lm-eval's language model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.scoring.answers import Answer, RouteOn, batches, copied_group, score_answers
from evals.scoring.observing import device_of
from moc.data.document import TURN_END
from moc.errors import ConfigError
from moc.model.decode.generate import generate

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from moc.data.tokenizer import Tokenizer
    from moc.model import Transformer

log = logging.getLogger(__name__)


class StudyLM(TemplateLM):
    """A ``Transformer`` as lm-eval's language model.

    To be used within ``only_observing(model)``, which sets eval mode and switches gradients off.
    Text is encoded with control tokens mapped, and nothing is put before a prompt. What does not
    fit into ``context_length`` is cut off at the left: a scored sequence keeps its last
    ``context_length + 1`` tokens (the last one is only predicted), a prompt to be continued keeps
    its last ``context_length - max_gen_toks``, and an answer ends where the context is full.
    Requests are batched by length: at most ``batch_size * context_length`` tokens at once, padding
    and what is yet to be written included.

    ``route_on`` matters to routing of scope ``sequence`` alone, which is not causal. ``context``:
    chapters are chosen by what precedes the answer, so that an answer never steers the routing that
    scores it, and by the prompt in generation. ``full``: by the answer too, as in scoring
    by a plain forward pass; in generation by all that has been written so far.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        context_length: int,
        batch_size: int,
        route_on: RouteOn = "context",
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.batch_size = batch_size
        self.route_on: RouteOn = route_on
        self._device = device_of(model)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self.tokenizer.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, in windows of L tokens.

        Here nothing is context and nothing answer: routing is always ``full``, so that under scope
        ``sequence`` this is no causal model's likelihood.
        """
        pairs, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            limit = self.context_length
            for window in get_rolling_token_windows(ids, self.prefix_token_id, limit, 1):
                pairs.append((("", ""), *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(
            owners, self._loglikelihood_tokens(pairs, route_on="full"), strict=True
        ):
            totals[owner] += score
        return totals

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        *,
        route_on: RouteOn | None = None,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        limit = self.context_length
        answers: list[Answer] = []
        num_cut = 0
        for _, context, continuation in requests:
            if len(continuation) > limit:
                raise ConfigError(
                    f"evals.context_length {limit} is less than an answer's {len(continuation)} "
                    "tokens; raise it"
                )
            row = [*(context or [self.prefix_token_id]), *continuation]
            num_cut += len(row) > limit + 1
            start = max(len(row) - limit - 1, 0)
            end = len(row) - len(continuation)
            answers.append(Answer(tuple(row[start:end]), tuple(continuation)))
        self._warn_of_cuts(num_cut, len(answers))
        return score_answers(
            self.model,
            answers,
            batch_size=self.batch_size,
            context_length=limit,
            route_on=route_on or self.route_on,
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, up to end of text, end of turn or one of the ``until`` strings.

        Raises:
            ConfigError: when a task asks for sampling.
        """
        policy = "prompt" if self.route_on == "context" else "running"
        prompts, settings, num_cut, num_short = [], [], 0, 0
        for text, options in (request.args for request in requests):
            if options.get("do_sample"):
                raise ConfigError("a task asks for do_sample: true, but answers are greedy here")
            asked = int(options.get("max_gen_toks", 128))
            max_new = min(asked, self.context_length - 1)  # after a prompt of at least one token
            num_short += max_new < asked
            until = options.get("until") or ()
            settings.append((max_new, (until,) if isinstance(until, str) else tuple(until)))
            prompt = self.tok_encode(text) or [self.prefix_token_id]
            room = self.context_length - max_new
            num_cut += len(prompt) > room
            prompts.append(prompt[-room:])
        self._warn_of_cuts(num_cut, len(prompts))
        if num_short:
            message = "%d of %d answers have less room than their task asks for: context_length %d"
            log.warning(message, num_short, len(prompts), self.context_length)
        answers = [""] * len(prompts)
        for max_new, until in sorted(set(settings)):
            group = [i for i, setting in enumerate(settings) if setting == (max_new, until)]
            stop_ids = self._stop_ids(until)
            for batch in batches(
                group,
                lengths=lambda i: (len(prompts[i]) + settings[i][0],),
                max_tokens=self.batch_size * self.context_length,
                group=copied_group(self.model, self.context_length),
                passes=max_new,
            ):
                new_tokens = generate(
                    self.model,
                    [prompts[i] for i in batch],
                    max_new_tokens=max_new,
                    stop_ids=stop_ids,
                    policy=policy,
                )
                for i, tokens in zip(batch, new_tokens, strict=True):
                    answers[i] = _cut(self.tokenizer.decode(tokens), until)
        return answers

    def _stop_ids(self, until: tuple[str, ...]) -> set[int]:
        """End of text, end of turn, and every token whose text begins with an ``until`` string."""
        ends = (*until, TURN_END)
        ids = range(self.tokenizer.vocab_size)
        return {self.eot_token_id, *(i for i in ids if self.tokenizer.decode([i]).startswith(ends))}

    def _warn_of_cuts(self, num_cut: int, num_requests: int) -> None:
        if num_cut:
            message = "%d of %d prompts do not fit evals.context_length %d and were cut at the left"
            log.warning(message, num_cut, num_requests, self.context_length)


def _cut(text: str, until: Sequence[str]) -> str:
    return text[: min([len(text), *(text.find(stop) for stop in until if stop in text)])]
