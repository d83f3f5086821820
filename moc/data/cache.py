"""Documents, tokenised once: a flat stream of tokens and their loss mask, memory-mapped.

The manifest has a hash of every block of both files. A small cache is verified when it is opened,
and built again if it is damaged. Of any, a block is verified before the first window of it is read
in a process: no damaged token reaches a model, and nothing is read that is not needed. (A pass over
the whole in the background would compete with training for the disk, and find damage after it was
trained on.)
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike

from moc.config.data import SourceConfig
from moc.config.identity import config_hash
from moc.data.document import Document
from moc.data.files import BadRows
from moc.data.source import Split, documents, source_key
from moc.data.tokenizer import Tokenizer
from moc.errors import CheckpointError, ConfigError
from moc.store.files import read_json, whole_folder, write_json

log = logging.getLogger(__name__)

_BATCH_CHARS = 200_000  # tokenised at once
_FULL_CHECK_BYTES = 64_000_000  # smaller files are verified when opened, larger ones as needed
_BLOCK_BYTES = 2**20  # read whole for its first window: 1 ms; any other takes 2 us longer than 3
_HASH_CHARS = 32
_TOKENS, _MASK, _ENDS, _MANIFEST = "tokens.bin", "mask.bin", "ends.bin", "manifest.json"


class TokenCache:
    """The token stream of one split of a source; each document ends with the end-of-text token.

    manifest: num_documents, num_tokens, num_loss_tokens (assistant tokens of a chat, all of
    anything else), num_unknown_tokens (of a closed vocabulary), num_bytes and num_loss_bytes (of
    the text those tokens stand for), num_rows and
    num_skipped_rows (of files) with skipped_examples, dtype, blocks (hashes of each file's), and
    fingerprint, which changes when any token or mask does.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._sound = set[tuple[str, int]]()  # file and block: verified in this process

    @property
    def num_tokens(self) -> int:
        return self.manifest["num_tokens"]

    @property
    def num_documents(self) -> int:
        return self.manifest["num_documents"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @cached_property
    def tokens(self) -> np.ndarray:
        """(num_tokens,) uint16 or uint32, read from disk as needed; not verified."""
        return _mapped(self.folder / _TOKENS, self.manifest["dtype"])

    @cached_property
    def mask(self) -> np.ndarray:
        """(num_tokens,) bool: the token counts for the loss when only assistant tokens do; not
        verified."""
        return _mapped(self.folder / _MASK, np.bool_)

    @cached_property
    def ends(self) -> np.ndarray:
        """(num_documents,) int64, the token after each document's last; not verified."""
        return _mapped(self.folder / _ENDS, np.int64)

    def document(self, index: int) -> tuple[int, int]:
        """The first token of document ``index``, and the one after its last.

        Raises:
            CheckpointError: if they are damaged.
        """
        ends = self._verified(_ENDS, self.ends, max(0, index - 1), index + 1)
        return (int(ends[0]) if index else 0), int(ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """``tokens[start:stop]``, verified.

        Raises:
            CheckpointError: if they are damaged.
        """
        return self._verified(_TOKENS, self.tokens, start, stop)

    def read_mask(self, start: int, stop: int) -> np.ndarray:
        """``mask[start:stop]``, verified.

        Raises:
            CheckpointError: if it is damaged.
        """
        return self._verified(_MASK, self.mask, start, stop)

    def _verified(self, name: str, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        found = values[start:stop]
        first = start * values.itemsize
        for block in range(first // _BLOCK_BYTES, -(-(first + found.nbytes) // _BLOCK_BYTES)):
            if (name, block) not in self._sound:
                self._verify(name, values, block)
        return found

    def _verify(self, name: str, values: np.ndarray, block: int) -> None:
        start, stop = block * _BLOCK_BYTES, (block + 1) * _BLOCK_BYTES
        if _hash(values.view(np.uint8)[start:stop].data) != self.manifest["blocks"][name][block]:
            raise CheckpointError(
                f"{self.folder / name} is damaged (after byte {start:,}); remove {self.folder}: "
                "the same command builds it again and goes on"
            )
        self._sound.add((name, block))

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path, dict[str, Any]]]:
        return TokenCache, (self.folder, self.manifest)  # worker processes map the files anew


def build_cache(
    config: SourceConfig,
    split: Split,
    tokenizer: Tokenizer,
    cache_dir: Path,
    max_tokens: int,
    max_documents: int = 0,
) -> TokenCache:
    """The cache of one pass over the split, cut off after the document that reaches both
    ``max_tokens`` and ``max_documents``; tokenised now unless it exists and is whole.

    Several processes may ask for one cache at once: the first builds it, the others wait.

    Raises:
        ConfigError: if the source cannot be read, has too many bad rows or no documents.
    """
    most = (max_tokens, max_documents)
    key = config_hash(source_key(config, split), tokenizer.fingerprint, most)
    folder = Path(cache_dir) / "tokens" / f"{config.kind}-{split}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            if cache := _open(folder):
                return cache
            log.warning("%s is damaged: building it again", folder)
            shutil.rmtree(folder)
        with whole_folder(folder) as building:
            _build(config, split, tokenizer, most, building)
        cache = _open(folder)
        assert cache is not None
        return cache


def _build(
    config: SourceConfig, split: Split, tokenizer: Tokenizer, most: tuple[int, int], folder: Path
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    counts = {"num_documents": 0, "num_tokens": 0, "num_loss_tokens": 0, "num_unknown_tokens": 0}
    counts |= {"num_bytes": 0, "num_loss_bytes": 0}
    bad_rows = BadRows()
    started = time.monotonic()
    with (
        (folder / _TOKENS).open("wb") as tokens_file,
        (folder / _MASK).open("wb") as mask_file,
        (folder / _ENDS).open("wb") as ends_file,
    ):
        for ids, mask in _tokenise(documents(config, split, bad_rows), tokenizer):
            num_bytes = tokenizer.token_bytes[ids]
            tokens_file.write(ids.astype(dtype).tobytes())
            mask_file.write(mask.tobytes())
            counts["num_documents"] += 1
            counts["num_tokens"] += len(ids)
            ends_file.write(np.int64(counts["num_tokens"]).tobytes())
            counts["num_loss_tokens"] += int(mask.sum())
            counts["num_unknown_tokens"] += int((ids == tokenizer.unknown_id).sum())
            counts["num_bytes"] += int(num_bytes.sum())
            counts["num_loss_bytes"] += int(num_bytes[mask].sum())
            if counts["num_tokens"] >= most[0] and counts["num_documents"] >= most[1]:
                break
    bad_rows.finish()
    if not counts["num_documents"]:
        remedy = "; raise validation_fraction or give a validation split of its own"
        raise ConfigError(f"no documents in the {split} split{remedy * (split == 'validation')}")
    if unknown := counts["num_unknown_tokens"]:
        log.warning(
            "a %s source has %s words (%.1f%%) that the closed vocabulary lacks, each one unknown "
            "token; raise tokenizer.vocab_size to know more",
            config.kind,
            f"{unknown:,}",
            100 * unknown / counts["num_tokens"],
        )
    blocks = {name: _hashes(folder / name) for name in (_TOKENS, _MASK, _ENDS)}
    manifest = counts | {
        "num_rows": bad_rows.num_rows,
        "num_skipped_rows": bad_rows.num_bad,
        "skipped_examples": bad_rows.examples,
        "dtype": dtype.name,
        "fingerprint": config_hash(dtype.name, blocks),
        "blocks": blocks,
    }
    write_json(folder / _MANIFEST, manifest)
    elapsed_sec = time.monotonic() - started
    log.info(
        "tokenised %s documents (%s, %s): %s tokens, %s a second",
        f"{counts['num_documents']:,}",
        config.kind,
        split,
        f"{counts['num_tokens']:,}",
        f"{counts['num_tokens'] / elapsed_sec:,.0f}",
    )


def _tokenise(
    source: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids (int64) and loss mask (bool) of each document, the end-of-text token included."""
    control_ids: dict[str, list[int]] = {}
    for batch in _batches(source):
        texts = [piece.text for document in batch for piece in document if not piece.control]
        encoded = iter(tokenizer.encode_texts(texts))
        for document in batch:
            ids: list[int] = []
            mask: list[bool] = []
            for text, counts, control in document:
                if control and text not in control_ids:
                    control_ids[text] = tokenizer.encode(text)
                piece_ids = control_ids[text] if control else next(encoded)
                ids += piece_ids
                mask += [counts] * len(piece_ids)
            ids.append(tokenizer.eos_id)
            mask.append(document[-1].counts)
            yield np.array(ids), np.array(mask)


def _batches(source: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_chars = 0
    for document in source:
        batch.append(document)
        num_chars += sum(len(piece.text) for piece in document)
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _open(folder: Path) -> TokenCache | None:
    """The cache in ``folder``, or None if anything in it is missing or damaged."""
    try:
        manifest = read_json(folder / _MANIFEST)
        cache = TokenCache(folder, manifest)
        sizes = {
            _TOKENS: np.dtype(manifest["dtype"]).itemsize * cache.num_tokens,
            _MASK: cache.num_tokens,
            _ENDS: 8 * cache.num_documents,
        }
        for name, size in sizes.items():
            stat = (folder / name).stat()
            if stat.st_size != size:
                return None
            if stat.st_size < _FULL_CHECK_BYTES:
                found = _known_hashes(folder / name, stat.st_size, stat.st_mtime_ns)
                if found != manifest["blocks"][name]:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cache


def _mapped(path: Path, dtype: DTypeLike) -> np.ndarray:
    """A plain array over the file: every slice of a memmap is a memmap, which takes longer to make
    than a window to copy."""
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


@lru_cache(maxsize=256)
def _known_hashes(path: Path, size: int, mtime_ns: int) -> list[str]:
    """Once per process and state of the file."""
    return _hashes(path)


def _hashes(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [_hash(block) for block in iter(lambda: file.read(_BLOCK_BYTES), b"")]


def _hash(block: bytes | memoryview) -> str:
    return hashlib.sha256(block).hexdigest()[:_HASH_CHARS]
