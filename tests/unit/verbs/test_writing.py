"""Text as it streams: nothing shown is taken back, nothing is lost, stop strings are left out."""

import itertools

import pytest

from moc.verbs.generate import _Writing
from tests.support.fake_language import ByteTokenizer


def pieces(text, stop=()):
    writing = _Writing(ByteTokenizer(), stop)
    return [*(writing.add(token) for token in text.encode()), writing.rest()]


@pytest.mark.parametrize("text", ["plain", "Zoë naïve", "日本語 🙂", "🙂", ""])
def test_pieces_are_whole_characters_and_add_up(text):
    found = pieces(text)
    assert "".join(found) == text
    assert all("\ufffd" not in piece for piece in found)


def test_text_is_shown_as_soon_as_it_is_certain():
    assert pieces("ab") == ["a", "b", ""]
    assert pieces("é") == ["", "é", ""]


@pytest.mark.parametrize("stop", [("END",), ("\n", "END"), ("E", "EN")])
def test_a_stop_string_ends_the_text_and_is_never_seen_in_part(stop):
    for text in ("", "One", "E", "ENE", "aENb", "EEN", "xEN\nD"):
        shown = "".join(pieces(f"{text}END and more", stop))
        whole = f"{text}END and more"
        assert shown == whole[: min(whole.find(word) for word in stop if word in whole)]


def test_what_only_began_like_a_stop_string_is_shown_in_the_end():
    assert pieces("a EN", ("END",))[-1] == "EN"
    assert "".join(pieces("ENDE", ("ENDS",))) == "ENDE"


def test_any_split_of_overlapping_stops_agrees_with_cutting_the_whole():
    for letters in itertools.product("ab", repeat=6):
        text = "".join(letters)
        for stop in (("aab",), ("ab", "bba")):
            cuts = [text.find(word) for word in stop if word in text]
            assert "".join(pieces(text, stop)) == text[: min(cuts, default=len(text))]


def test_a_broken_character_at_the_end_is_not_lost():
    writing = _Writing(ByteTokenizer(), ())
    assert [writing.add(token) for token in "é".encode()[:1]] == [""]
    assert writing.rest() == "\ufffd"
