"""What decoding does not do again, and its limits.

What would break for a user: a token that costs as much as the text before it; ranks that wait for
one another for ever.
"""

from __future__ import annotations

import pytest
import torch

from moc.ops import routed_attention, take_rows
from tests.support.decoding import IN_CHUNKS, LENGTH
from tests.support.small_models import CAUSAL, W, lively, tokens_of, with_router


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_a_chapter_is_projected_once(scope):
    """However many rows, calls and positions read it, and not before one does."""
    model = lively(with_router(scope, num_chapters=40)).eval()
    projected = {}
    for layer in (0, 2):
        read = model.blocks[layer].memory.read
        rows = projected[layer] = []

        def counted(chapters_UTM, rows=rows, project=read.project):
            rows.extend(chapters_UTM)
            return project(chapters_UTM)

        read.project = counted
    tokens_BL = tokens_of(3, LENGTH)
    cache = model.new_cache(3, LENGTH, policy="running")
    read_by = {0: set(), 2: set()}
    with torch.no_grad():
        for chunk_BL in tokens_BL.split([5, 1, 1, 6, 1, 1, 4], dim=1):
            for layer, routing in zip((0, 2), model(chunk_BL, cache=cache).addresses, strict=True):
                read_by[layer] |= set(routing.index_BGN.flatten().tolist())
    bank_CTM = model.banks[0].rows
    for layer, rows in projected.items():
        found = [int((bank_CTM == row).all(-1).all(-1).nonzero()) for row in rows]
        assert sorted(found) == sorted(read_by[layer])
        assert len(found) < 40


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence", None])
def test_the_router_is_asked_only_where_a_choice_may_change(scope, monkeypatch):
    """And the bank only then, whatever is known: fetching may be a collective, in which every rank
    must take part, so that the positions of the tokens alone decide."""
    memory = {"num_routed": None} if scope is None else {}
    model = lively(with_router(scope or "segment", **memory)).eval()
    asked, fetched = [], []
    for layer in (0, 2) if scope else ():
        router = model.blocks[layer].memory.address.router

        def counted(*arguments, choose=router.choose):
            asked.append(arguments)
            return choose(*arguments)

        router.choose = counted

    def counted_take(bank_CTM, chapter_U):
        fetched.append(chapter_U)
        return take_rows(bank_CTM, chapter_U)

    monkeypatch.setattr("moc.model.memory.chapters.kept.take_rows", counted_take)
    tokens_BL = tokens_of(3, LENGTH)
    cache = model.new_cache(3, LENGTH + W)
    lengths = [0, 0, 0]
    with torch.no_grad():
        for counts in [*IN_CHUNKS, (1, 1, 1), (1, 1, 1)]:
            asked.clear()
            fetched.clear()
            real_BL = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
            model(tokens_BL[:, : max(counts)], real_BL=real_BL, cache=cache)
            may_change = lengths == [0, 0, 0]
            if scope in CAUSAL:
                width = 1 if scope == "token" else W
                may_change = any((n + i) % width == 0 for n in lengths for i in range(max(counts)))
            assert len(fetched) == (2 if may_change else 0)
            assert len(asked) == (len(fetched) if scope else 0)
            lengths = [n + count for n, count in zip(lengths, counts, strict=True)]


@pytest.mark.parametrize("scope", CAUSAL)
def test_no_chapter_is_projected_for_padding(scope):
    """Rows of one and of many tokens: what the short one reads is what it reads alone."""
    tokens_BL = tokens_of(2, 4 * W)
    counts = (2, 4 * W)
    wanted, fetched = set(), set()
    with torch.no_grad():
        for rows in ([0], [1], [0, 1]):
            model = lively(with_router(scope, num_chapters=60)).eval()
            read = model.blocks[0].memory.read
            found = wanted if len(rows) == 1 else fetched

            def counted(chapters_UTM, found=found, project=read.project):
                found |= {row.numpy().tobytes() for row in chapters_UTM}
                return project(chapters_UTM)

            read.project = counted
            length = max(counts[row] for row in rows)
            real_BL = torch.arange(length) < torch.tensor([counts[row] for row in rows])[:, None]
            cache = model.new_cache(len(rows), length)
            model(tokens_BL[rows, :length], real_BL=real_BL, cache=cache)
    assert fetched == wanted


def test_a_call_of_many_tokens_copies_chapters_for_segments_and_not_for_positions(monkeypatch):
    model = lively(with_router("segment")).eval()
    copied = []

    def counted(q_BLHE, k_CTJE, v_CTJE, index_BPN, *arguments, **how):
        copied.append(index_BPN.shape[1])
        return routed_attention(q_BLHE, k_CTJE, v_CTJE, index_BPN, *arguments, **how)

    monkeypatch.setattr("moc.model.memory.chapters.state.routed_attention", counted)
    tokens_BL = tokens_of(2, 4 * W)
    cache = model.new_cache(2, 4 * W)
    with torch.no_grad():
        model(tokens_BL[:, : 2 * W + 1], cache=cache)  # three segments
        model(tokens_BL[:, 2 * W + 1 : 3 * W], cache=cache)  # the rest of the third
        assert copied == [3, 3, 1, 1]
        model(tokens_BL[:, :1], cache=cache)
        model(tokens_BL[:, :1], cache=cache)  # reads copies that are kept from now on
    assert copied == [3, 3, 1, 1, 1, 1]


def test_a_full_cache_says_so_and_can_still_be_used():
    model, tokens_BL = lively(with_router("segment")).eval(), tokens_of(1, 8)
    cache = model.new_cache(1, 6)
    with torch.no_grad():
        model(tokens_BL[:, :4], cache=cache)
        with pytest.raises(ValueError, match=r"^the cache has room for 6 tokens a row, not for 7$"):
            model(tokens_BL[:, 4:7], cache=cache)
        logits_BLV = model(tokens_BL[:, 4:6], cache=cache).logits_BLV
        expected_BLV = model(tokens_BL[:, :6]).logits_BLV[:, 4:]
    assert (logits_BLV - expected_BLV).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "future"}, "^policy 'future' is none of prompt, running$"),
        ({"window_tokens": 0}, "^window_tokens must be at least 1, or None; it is 0$"),
        ({"policy": "running", "window_tokens": -3}, "window_tokens must be at least 1.* is -3$"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings, words):
    with pytest.raises(ValueError, match=words):
        lively(with_router("sequence")).new_cache(1, 6, **settings)
