"""A tokenizer of whole words, from a closed vocabulary: a value is one token, and so is a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from moc.data.document import END_OF_TEXT, TURN_END, TURN_START
from moc.errors import ConfigError

UNKNOWN = "<|unknown|>"
_CONTROL = [END_OF_TEXT, TURN_START, TURN_END, UNKNOWN]
# A word or punctuation with the space before it, or one character of white space: put together
# again, known tokens give the text to the letter.
_WORD = r" ?\w+| ?[^\w\s]+|\s"


def word_tokenizer(
    texts: Iterable[str], always: Sequence[str], vocab_size: int
) -> tokenizers.Tokenizer:
    """Of the words in ``always``, then the most frequent ones of ``texts``, as far as there is room
    (of equals, the first by alphabet). Any other word is one unknown token.

    Raises:
        ConfigError: if ``vocab_size`` is too small for ``always``.
    """
    cut = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in cut.pre_tokenize_str(text))
    needed = list(dict.fromkeys([*_CONTROL, *always]))
    if len(needed) > vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size must be at least {len(needed)}, every word of the records and "
            f"{len(_CONTROL)} control tokens, not {vocab_size}"
        )
    frequent = sorted(counts.keys() - set(needed), key=lambda word: (-counts[word], word))
    vocabulary = [*needed, *frequent[: vocab_size - len(needed)]]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = cut
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(_CONTROL)
    return backend
