"""Text to token ids and back: our own byte-level BPE or whole words, or any fast Hugging Face
tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from filelock import FileLock
from tokenizers import decoders, models, pre_tokenizers, trainers

from moc.config.data import SourceConfig
from moc.config.identity import config_hash
from moc.config.schema import StudyConfig
from moc.data.document import END_OF_TEXT, TURN_END, TURN_START
from moc.data.files import BadRows
from moc.data.records import vocabulary
from moc.data.source import documents, source_key
from moc.data.words import UNKNOWN, word_tokenizer
from moc.errors import ConfigError, DamagedFile
from moc.store.files import read_sound_json, whole_folder

log = logging.getLogger(__name__)

_SAVED_BY = "moc"
_REMEDY = "the `moc run` that wrote it writes it anew"


class Tokenizer:
    """A `tokenizers` tokenizer and the name of its end-of-text token.

    Control tokens are recognised in prompts (``encode``), which we write, and never in documents
    (``encode_texts``), where "<|im_end|>" is only a user's text.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, eos: str, texts: Mapping[str, str] | None = None
    ) -> None:
        eos_id = backend.token_to_id(eos)
        assert eos_id is not None
        backend.no_truncation()  # which a loaded tokenizer may ask for
        backend.no_padding()
        self.eos = eos
        self.texts = dict(texts or {})  # source -> hash of its text that this was trained on
        self.eos_id: int = eos_id  # document separator and end of text
        self.unknown_id = backend.token_to_id(UNKNOWN)  # of a closed vocabulary; None of others
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        self._prompts = backend
        self._texts = tokenizers.Tokenizer.from_str(backend.to_str())
        self._texts.encode_special_tokens = True  # as ordinary text

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, in which control tokens may occur."""
        return self._prompts.encode(text, add_special_tokens=False).ids

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; nothing in it becomes a control token."""
        return [e.ids for e in self._texts.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_pieces(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of each text as ``encode_texts`` gives them, and which characters each stands for."""
        found = self._texts.encode_batch(texts, add_special_tokens=False)
        return [(e.ids, e.offsets) for e in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._prompts.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when any id would."""
        return hashlib.sha256((self._prompts.to_str() + self.eos).encode()).hexdigest()[:16]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int64: bytes of text each id stands for; 0 for special tokens."""
        byte_level = "ByteLevel" in self._prompts.to_str()  # one character of a token per byte
        special = {i for i, t in self._prompts.get_added_tokens_decoder().items() if t.special}
        num_bytes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._prompts.get_vocab().items():
            if index in special:
                continue
            if byte_level:
                num_bytes[index] = len(token)
            else:  # SentencePiece: "▁" is a space, "<0x0A>" a byte
                is_byte = len(token) == 6 and token.startswith("<0x")
                num_bytes[index] = 1 if is_byte else len(token.replace("▁", " ").encode())
        return num_bytes

    def save(self, folder: Path) -> None:
        """Write what ``Tokenizer.load(folder)`` and transformers' AutoTokenizer read."""
        folder.mkdir(parents=True, exist_ok=True)
        self._prompts.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos}
        own = {"saved_by": _SAVED_BY, "fingerprint": self.fingerprint, "texts": self.texts}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | own, indent=2))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a folder, or by its name on the Hugging Face hub.

        Raises:
            ConfigError: if there is none, or it has no end-of-text token.
            DamagedFile: if ``save`` wrote it, and it has changed since.
        """
        if own := _read_own(Path(path)):
            return own
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(str(path))
        except Exception as error:  # of a damaged file, tokenizers raises nothing narrower
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"tokenizer.path '{path}' cannot be loaded: {reason}; check the name and the "
                "network, give a local folder, or set it to null to train a tokenizer"
            ) from error
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None or loaded.eos_token is None:
            missing = "fast version" if backend is None else "end-of-text token"
            raise ConfigError(f"tokenizer.path '{path}' has no {missing}; choose another")
        return cls(backend, loaded.eos_token)

    @classmethod
    def saved(cls, folder: Path) -> Tokenizer:
        """What ``save`` wrote to ``folder``.

        Raises:
            DamagedFile: if it is not there, or has changed since.
        """
        if (own := _read_own(folder)) is None:
            raise DamagedFile(folder, "tokenizer_config.json is missing or unreadable", _REMEDY)
        return own


def build_tokenizer(study: StudyConfig) -> Tokenizer:
    """The study's tokenizer: trained on the text of the sources its phases use (and kept in
    ``cache_dir``), or loaded. Several processes may call it at once.

    Raises:
        ConfigError: if it cannot be loaded, or a source cannot be read.
    """
    settings = study.tokenizer
    if settings.path is not None:
        return Tokenizer.load(settings.path)
    sources = {name: study.data[name] for name in used_sources(study)}
    keys = [_source_key(name, config) for name, config in sources.items()]
    folder = Path(study.cache_dir) / "tokenizers" / config_hash(settings, keys)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        try:
            if folder.is_dir():
                return Tokenizer.saved(folder)
        except DamagedFile:
            log.warning("%s is damaged: training it again", folder)
        hashes = {name: hashlib.sha256() for name in sources}
        texts = (
            text
            for name, config in sources.items()
            for text in _hashed(_training_text(name, config, settings.training_bytes), hashes[name])
        )
        if settings.kind == "words":
            words = [w for c in sources.values() if c.kind == "records" for w in vocabulary(c)]
            trained = word_tokenizer(texts, words, settings.vocab_size)
        else:
            trained = _train(texts, settings.vocab_size)
        found = {name: text.hexdigest()[:16] for name, text in hashes.items()}
        tokenizer = Tokenizer(trained, END_OF_TEXT, found)
        with whole_folder(folder) as building:
            tokenizer.save(building)
        log.info("trained a tokenizer of %d tokens: %s", tokenizer.vocab_size, folder)
        return tokenizer


def used_sources(study: StudyConfig) -> list[str]:
    """Names of the sources that some phase of some arm trains on, in the order of ``data``."""
    all_phases = [study.phases, *(arm.phases for arm in study.arms.values())]
    used = {name for phases in all_phases for phase in phases.values() for name in phase.mixture}
    return [name for name in study.data if name in used]


def _source_key(name: str, config: SourceConfig) -> str:
    try:
        return source_key(config, "train")
    except ConfigError as error:
        raise ConfigError(f"data.{name}: {error}") from error


def _training_text(name: str, config: SourceConfig, max_bytes: int) -> Iterator[str]:
    bad_rows = BadRows()
    num_bytes = 0
    try:
        for document in documents(config, "train", bad_rows):
            texts = [piece.text for piece in document if not piece.control]
            yield from texts
            num_bytes += sum(len(text.encode()) for text in texts)
            if num_bytes >= max_bytes:
                return  # too early to judge the rows: the token cache will
        bad_rows.check()
    except ConfigError as error:
        raise ConfigError(f"data.{name}: {error}") from error


def _hashed(texts: Iterable[str], digest: hashlib._Hash) -> Iterator[str]:
    for text in texts:
        digest.update(text.encode())
        yield text


def _train(texts: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    control = [END_OF_TEXT, TURN_START, TURN_END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(control):
        raise ConfigError(
            f"tokenizer.vocab_size must be at least {len(alphabet) + len(control)}, "
            f"every byte and {len(control)} control tokens, not {vocab_size}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _read_own(folder: Path) -> Tokenizer | None:
    """What ``save`` wrote, without importing transformers, which takes seconds; None if another
    has written there, or nobody.

    Raises:
        DamagedFile: if it has changed since.
    """
    settings = read_sound_json(folder / "tokenizer_config.json")
    if settings.get("saved_by") != _SAVED_BY:
        return None
    file = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_bytes().decode())
        own = Tokenizer(backend, settings["eos_token"], settings["texts"])
        fingerprint = settings["fingerprint"]
    except Exception as error:  # whatever the library raises of a damaged file
        raise DamagedFile(file, "not a tokenizer", _REMEDY) from error
    if own.fingerprint != fingerprint:
        raise DamagedFile(file, "its fingerprint differs", _REMEDY)
    return own
