"""Log-likelihoods of answers. What several answers have in common is read once.

B contexts of the batch, R answers of the batch, L length, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from evals.scoring.observing import device_of
from moc.model.memory.build import is_causal, routing_scope

if TYPE_CHECKING:
    from moc.model import Transformer

RouteOn = Literal["context", "full"]
Tokens = tuple[int, ...]
Score = tuple[float, bool]  # log-likelihood in nats; whether greedy decoding would write it
Item = TypeVar("Item")

# A context is read once if that divides the positions by at least so much, and for a model with a
# router only if the context is so long: both passes copy chapters to their rows. Measured on small
# models, four options each: contexts of 14 and 25 tokens took 1.2 times as long as without.
_WORTH = 1.5
_ROUTED_CONTEXT = 32

# Shorter rows wait for the next batch when this one would hold more padding: such a share of it,
# but never less than so many tokens, for every pass costs time of its own. Of 0.05, 0.1, 0.2 and
# 0.4, the two in the middle were the fastest on small models.
_PADDING_SHARE = 0.1
_PADDING_TOKENS = 512


class Answer(NamedTuple):
    context: Tokens  # at least one
    tokens: Tokens  # none scores (0, True)


def score_answers(
    model: Transformer,
    answers: Sequence[Answer],
    *,
    batch_size: int,
    context_length: int,
    route_on: RouteOn,
) -> list[Score]:
    """The sum of log p over each answer's tokens after its context.

    Answers of one token each come from one pass over their context. Of longer ones the context is
    read into a cache from which each goes on, where that saves enough; but not where an answer
    steers its own routing (``route_on`` full, and a model that is not causal). To be used within
    ``only_observing(model)``.

    What is read together takes no more memory than ``batch_size`` rows of ``context_length``
    tokens: padded tokens bound the logits, and whole routing groups the chapters that are copied
    to the rows. Scores do not depend on it.
    """
    max_tokens = batch_size * context_length
    of_context: dict[Tokens, list[Answer]] = defaultdict(list)
    for answer in dict.fromkeys(answers):
        if answer.tokens:
            of_context[answer.context].append(answer)
    may_share = route_on == "context" or is_causal(model.config)
    min_context = 1 if routing_scope(model.config) == "none" else _ROUTED_CONTEXT
    shared: list[list[Answer]] = []
    whole: dict[tuple[Tokens, int], list[Answer]] = defaultdict(list)
    for context, group in of_context.items():
        tails = {answer.tokens[:-1] for answer in group}  # the last token is only predicted
        num_apart = sum(len(context) + len(tail) for tail in tails)
        num_shared = len(context) + sum(map(len, tails))
        saves = num_apart >= _WORTH * num_shared and len(context) >= min_context
        if may_share and saves:
            shared.append(group)
            continue
        for answer in group:
            inputs = context + answer.tokens[:-1]
            whole[inputs, len(context) if route_on == "context" else len(inputs)].append(answer)
    scores: dict[Answer, Score] = {}
    for passes in batches(
        whole,
        lengths=lambda key: (len(key[0]),),
        max_tokens=max_tokens,
        group=copied_group(model, context_length),
    ):
        scores |= _read_whole(model, [(*key, whole[key]) for key in passes])
    for groups in batches(
        shared,
        lengths=_cached_lengths,
        max_tokens=max_tokens,
        rows=len,
        group=copied_group(model, context_length),
    ):
        scores |= _read_once(model, groups)
    return [scores[answer] if answer.tokens else (0.0, True) for answer in answers]


def batches(
    items: Iterable[Item],
    *,
    lengths: Callable[[Item], tuple[int, ...]],
    max_tokens: int,
    rows: Callable[[Item], int] = lambda item: 1,
    group: int = 1,
    passes: int = 1,
) -> Iterator[list[Item]]:
    """``items`` in batches of similar lengths, the longest first, each as large as its budget.

    A batch takes its rows times the length they are padded to: at most ``max_tokens``, unless it is
    a single item. It ends early where it would be too much padding.

    Args:
        lengths: of the parts of an item's rows; each part is padded to the longest of the batch.
        rows: of an item.
        group: tokens that a row is rounded up to, if it takes up whole groups.
        passes: that a batch costs; the more they are, the more padding is better than another.
    """
    batch: list[Item] = []
    num_rows, num_real, longest = 0, 0, tuple[int, ...]()
    for item in sorted(items, key=lengths, reverse=True):
        own_rows, own = rows(item), lengths(item)
        own_real = own_rows * sum(own)
        num_rows, num_real = num_rows + own_rows, num_real + own_real
        longest = tuple(map(max, longest or own, own))
        num_taken = num_rows * -(-sum(longest) // group) * group
        num_padded = num_rows * sum(longest)
        padding_limit = max(_PADDING_TOKENS * passes, _PADDING_SHARE * num_padded)
        if batch and (num_taken > max_tokens or num_padded - num_real > padding_limit):
            yield batch
            batch, num_rows, num_real, longest = [], own_rows, own_real, own
        batch.append(item)
    if batch:
        yield batch


def copied_group(model: Transformer, context_length: int) -> int:
    """Positions of a full row that share one copy of what they read; a shorter row needs it too."""
    return 1 if model.kind is None else model.kind.copied_positions(context_length)


def _cached_lengths(group: list[Answer]) -> tuple[int, int]:
    """What a group's rows of the cache hold: the context, and an answer without its last token."""
    return len(group[0].context), max(len(answer.tokens) for answer in group) - 1


def _read_whole(
    model: Transformer, passes: Sequence[tuple[Tokens, int, list[Answer]]]
) -> dict[Answer, Score]:
    """One pass over inputs, of which the first so many may steer, for all answers that they end."""
    tokens_BL, _ = _padded([inputs for inputs, _, _ in passes], model)
    num_pooled_B = torch.tensor([num for _, num, _ in passes], device=tokens_BL.device)
    position_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
    logits_BLV = model(tokens_BL, pool_BL=position_L < num_pooled_B[:, None]).logits_BLV
    return {
        answer: _score(logits_BLV[b, len(inputs) - len(answer.tokens) : len(inputs)], answer)
        for b, (inputs, _, answers) in enumerate(passes)
        for answer in answers
    }


def _read_once(model: Transformer, groups: Sequence[list[Answer]]) -> dict[Answer, Score]:
    """One pass over each group's context, and one over what its answers add."""
    contexts = [group[0].context for group in groups]
    owner_R = [b for b, group in enumerate(groups) for _ in group]
    answers = [answer for group in groups for answer in group]
    tokens_BL, real_BL = _padded(contexts, model)
    tails_RL, real_RL = _padded([answer.tokens[:-1] for answer in answers], model)
    cache = model.new_cache(len(groups), tokens_BL.shape[1] + tails_RL.shape[1])
    logits_BLV = model(tokens_BL, real_BL=real_BL, cache=cache).logits_BLV
    cache.keep_rows(torch.tensor(owner_R, device=tokens_BL.device))
    after_RLV = model(tails_RL, real_BL=real_RL, cache=cache).logits_BLV
    scores = {}
    for r, (b, answer) in enumerate(zip(owner_R, answers, strict=True)):
        end = len(answer.context)
        first_1V, later_NV = logits_BLV[b, end - 1 : end], after_RLV[r, : len(answer.tokens) - 1]
        scores[answer] = _score(torch.cat([first_1V, later_NV]), answer)
    return scores


def _padded(rows: Sequence[Tokens], model: Transformer) -> tuple[Tensor, Tensor]:
    """Tokens (B, L), padded on the right, where no other position looks; and which are real."""
    device = device_of(model)
    longest = max(map(len, rows))
    tokens_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    length_B = torch.tensor([len(row) for row in rows], device=device)
    return tokens_BL, torch.arange(longest, device=device) < length_B[:, None]


def _score(logits_NV: Tensor, answer: Answer) -> Score:
    logprobs_NV = logits_NV.float().log_softmax(-1)
    targets_N = torch.tensor(answer.tokens, device=logprobs_NV.device)
    chosen_N = logprobs_NV.gather(1, targets_N[:, None])
    greedy = bool((logprobs_NV.argmax(-1) == targets_N).all())
    return float(chosen_N.double().sum()), greedy
