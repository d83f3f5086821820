"""What a model is made of. Plain dataclasses: nothing here needs more than the standard library.

Letters in comments are the shape letters used throughout ``moc.model`` and ``moc.ops``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from moc.ranges import Range

Preset = Literal["paper", "small", "bench", "tiny"]
Scope = Literal["sequence", "segment", "token"]
RouterInput = Literal["block_input", "post_attention"]
Mixing = Literal["joint", "per_chapter", "log_bias"]
Normalise = Literal["joint", "none"]
Variant = Literal["A", "B"]
OutputInit = Literal["zero", "normal"]
QueryNorm = Literal["none", "batch", "layer"]


@dataclass
class RouterConfig:
    """How a routing group chooses its chapters."""

    scope: Scope = "segment"  # positions sharing one choice; "sequence" is non-causal
    segment_tokens: Annotated[int, Range(1, 10**7)] = 32  # W, positions per segment
    # segment: pool the last so many positions; null: all so far
    window_tokens: Annotated[int | None, Range(1, 10**7)] = None
    input: RouterInput = "block_input"  # what is pooled; post_attention: the stream after it
    # weight of the load-balancing loss; 0: off
    balance_coefficient: Annotated[float, Range(0, 100)] = 0.01
    # whose mean probability it takes: of the routed chapters; all: of the softmax over shared ones
    # too, as in the published code, which also shrinks when a shared chapter's logit rises
    balance_over: Literal["routed", "all"] = "routed"
    # change of the selection bias per optimizer step, in logits; 0: off
    bias_rate: Annotated[float, Range(0, 10)] = 0.0
    # weight of mean(logsumexp(logits)^2)
    z_loss_coefficient: Annotated[float, Range(0, 100)] = 0.001


@dataclass
class ChaptersConfig:
    """Kind ``chapters``: a row is a chapter of memory tokens (arXiv 2603.21096)."""

    num_chapters: Annotated[int, Range(1, 10**9)] = 65  # C
    num_shared: Annotated[int, Range(0, 10**9)] = 1  # S, always read, never routed
    # K per routing group; null reads every chapter, without a router
    num_routed: Annotated[int | None, Range(1, 10**9)] = 8
    chapter_tokens: Annotated[int, Range(1, 10**6)] = 16  # T
    dim: Annotated[int | None, Range(1, 2**17)] = None  # width of a memory token; null: the model's
    # heads of the memory read; null: the model's
    num_heads: Annotated[int | None, Range(1, 10**4)] = None
    # its key/value heads; null: num_heads
    num_kv_heads: Annotated[int | None, Range(1, 10**4)] = None
    mixing: Mixing = "joint"
    # routed weights before they are normalised; shared ones are 1
    routed_scale: Annotated[float, Range(0, 1000, without="low")] = 2.5
    # joint: all weights of a group sum to 1, as published; none: shared ones stay at 1, routed ones
    # are routed_scale times the router's probabilities, which leaves a third of the tokens mixed
    # (routed ones that sum to routed_scale were tried, and read as flat: experiments/LOG.md)
    normalise: Normalise = "joint"
    qk_norm: bool = False  # attend by normalised queries and keys, with a learned temperature
    gated: bool = False  # the read times silu of a map of the stream, as of product keys
    router: RouterConfig = field(default_factory=RouterConfig)


@dataclass
class ProductKeysConfig:
    """Kind ``product_keys``: a row is a value, found by a pair of half-keys (arXiv 2412.09764)."""

    # n half-keys of either half, per head; the bank has n^2 values
    num_keys: Annotated[int, Range(1, 10**5)] = 32
    num_heads: Annotated[int, Range(1, 10**4)] = 4  # each with half-keys of its own
    num_read: Annotated[int, Range(1, 10**6)] = 16  # k values per head and position
    # width of a head's query, two halves; null: the model's / 2
    key_dim: Annotated[int | None, Range(2, 2**17)] = None
    query_norm: QueryNorm = "none"  # of a head's query; batch: statistics of the micro-batch


@dataclass
class MemoryConfig:
    """A bank and the layers that read it. Of the kinds' settings only those of ``kind`` count."""

    kind: str = "chapters"  # or product_keys; see moc.model.memory.build
    layers: str = "every 2"  # "2,6,10" (0-based), "all", "every N", "first N" or "last N"
    # null: one bank for all; 1: one each; n: one per n layers
    layers_per_bank: Annotated[int | None, Range(1, 10**4)] = None
    variant: Variant = "A"  # A: attention, read, MLP; B: attention, MLP, read, second MLP
    output_init: OutputInit = "zero"  # zero: a fresh memory layer is the identity
    # null: 0.02 of chapters, dim^-0.5 of product keys
    bank_init_std: Annotated[float | None, Range(0, 10)] = None
    # controls: what is left of an effect without a learned choice, without rows to choose from,
    # without the gate?
    address: Literal["learned", "random"] = "learned"  # random: fixed, nothing of it trains
    rows: Literal["all", "one"] = "all"  # one: a single row stands for every row that is picked
    gate: Literal["learned", "one"] = "learned"  # one: the read's output gate is left out
    chapters: ChaptersConfig = field(default_factory=ChaptersConfig)
    product_keys: ProductKeysConfig = field(default_factory=ProductKeysConfig)


@dataclass
class ModelConfig:
    """A decoder-only transformer; ``memory: null`` is the dense baseline."""

    preset: Preset | None = None  # where the values below start from
    vocab_size: Annotated[int, Range(1, 10**7)] = 2048  # V
    num_layers: Annotated[int, Range(1, 10**4)] = 4
    dim: Annotated[int, Range(1, 2**17)] = 128  # D
    num_heads: Annotated[int, Range(1, 10**4)] = 4  # H
    num_kv_heads: Annotated[int, Range(1, 10**4)] = 2  # J
    mlp_dim: Annotated[int, Range(1, 2**20)] = 384  # SwiGLU's intermediate width
    init_std: Annotated[float, Range(0, 10)] = 0.02  # linear maps and embedding
    # null: init_std / sqrt(2 * num_layers)
    residual_init_std: Annotated[float | None, Range(0, 10)] = None
    activation_checkpointing: bool = False  # recompute each block in the backward pass
    memory: MemoryConfig | None = field(default_factory=MemoryConfig)

    def memory_layers(self) -> list[int]:
        """Indices of the blocks that read memory, ascending; empty without memory."""
        return [] if self.memory is None else parse_layers(self.memory.layers, self.num_layers)


def parse_layers(spec: str, num_layers: int) -> list[int]:
    """Block indices that ``spec`` names among ``num_layers`` blocks.

    ``every N`` starts at N // 2: every 4 of 16 is 2, 6, 10, 14, the published placement.

    Raises:
        ValueError: if the spec cannot be read or names a block that does not exist.
    """
    words = spec.split()
    if spec == "all":
        chosen = list(range(num_layers))
    elif len(words) == 2 and words[0] in ("every", "first", "last") and _is_count(words[1]):
        count = int(words[1])
        match words[0]:
            case "every":
                chosen = list(range(count // 2, num_layers, count)) if count else []
            case "first":
                chosen = list(range(num_layers))[:count]
            case _:
                chosen = list(range(num_layers))[max(0, num_layers - count) :]
    else:
        parts = [part.strip() for part in spec.split(",")]
        if not all(_is_count(part) for part in parts):
            raise ValueError(
                f"model.memory.layers {spec!r} is none of "
                "'2,6,10', 'all', 'every N', 'first N', 'last N'"
            )
        chosen = sorted({int(part) for part in parts})
    if not chosen or chosen[-1] >= num_layers:
        raise ValueError(
            f"model.memory.layers {spec!r} does not fit a model of {num_layers} layers"
        )
    return chosen


def _is_count(word: str) -> bool:
    return word.isdecimal() and len(word) < 10


T = TypeVar("T")


def model_config(raw: dict[str, Any]) -> ModelConfig:
    """The config that ``dataclasses.asdict`` made ``raw`` of.

    Raises:
        TypeError, KeyError: if it was not.
    """
    _ = raw["memory"]  # without it, any mapping would do
    return _from_plain(ModelConfig, raw)


def _from_plain(schema: type[T], raw: dict[str, Any]) -> T:
    hints, values = get_type_hints(schema), dict(raw)
    for name, value in raw.items():
        hint = hints.get(name)
        nested = [part for part in (hint, *get_args(hint)) if isinstance(part, type)]
        if isinstance(value, dict) and nested and is_dataclass(nested[0]):
            values[name] = _from_plain(nested[0], value)
    return schema(**values)
