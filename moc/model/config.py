"""What a model is made of. Plain dataclasses: nothing here needs more than the standard library.

Letters in comments are the shape letters used throughout ``moc.model`` and ``moc.ops``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Preset = Literal["paper", "small", "bench", "tiny"]
Scope = Literal["sequence", "segment", "token"]
RouterInput = Literal["block_input", "post_attention"]
Mixing = Literal["joint", "per_chapter", "log_bias"]
Variant = Literal["A", "B"]
OutputInit = Literal["zero", "normal"]


@dataclass
class RouterConfig:
    """How a routing group chooses its chapters."""

    scope: Scope = "segment"  # positions sharing one choice; "sequence" is non-causal
    segment_tokens: int = 32  # W, positions per segment
    window_tokens: int | None = None  # segment: pool the last so many positions; null: all so far
    input: RouterInput = "block_input"  # what is pooled; post_attention: the stream after it
    balance_coefficient: float = 0.01  # weight of the load-balancing loss; 0: off
    bias_rate: float = 0.0  # change of the selection bias per optimizer step, in logits; 0: off
    z_loss_coefficient: float = 0.001  # weight of mean(logsumexp(logits)^2)


@dataclass
class MemoryConfig:
    """A bank of chapters and the layers that read it."""

    num_chapters: int = 65  # C
    num_shared: int = 1  # S, always read, never routed
    num_routed: int | None = 8  # K per routing group; null reads every chapter, without a router
    chapter_tokens: int = 16  # T
    dim: int | None = None  # width of a memory token; null: the model's
    num_heads: int | None = None  # heads of the memory read; null: the model's
    num_kv_heads: int | None = None  # its key/value heads; null: num_heads
    layers: str = "every 2"  # "2,6,10" (0-based), "all", "every N", "first N" or "last N"
    layers_per_bank: int | None = None  # null: one bank for all; 1: one each; n: one per n layers
    variant: Variant = "A"  # A: attention, read, MLP; B: attention, MLP, read, second MLP
    mixing: Mixing = "joint"
    routed_scale: float = 2.5  # routed weights before the final normalisation; shared ones are 1
    output_init: OutputInit = "zero"  # zero: a fresh memory layer is the identity
    bank_init_std: float = 0.02
    router: RouterConfig = field(default_factory=RouterConfig)


@dataclass
class ModelConfig:
    """A decoder-only transformer; ``memory: null`` is the dense baseline."""

    preset: Preset | None = None  # where the values below start from
    vocab_size: int = 2048  # V
    num_layers: int = 4
    dim: int = 128  # D
    num_heads: int = 4  # H
    num_kv_heads: int = 2  # J
    mlp_dim: int = 384  # SwiGLU's intermediate width
    init_std: float = 0.02  # linear maps and embedding
    residual_init_std: float | None = None  # null: init_std / sqrt(2 * num_layers)
    activation_checkpointing: bool = False  # recompute each block in the backward pass
    memory: MemoryConfig | None = field(default_factory=MemoryConfig)

    def memory_layers(self) -> list[int]:
        """Indices of the blocks that read memory, ascending; empty without memory."""
        return [] if self.memory is None else parse_layers(self.memory.layers, self.num_layers)


def routing_scope(config: ModelConfig) -> str:
    """``sequence``, ``segment``, ``token``, or ``none`` without a router."""
    memory = config.memory
    return memory.router.scope if memory is not None and memory.num_routed is not None else "none"


def is_causal(config: ModelConfig) -> bool:
    """Whether logits depend on no later token (``sequence`` routing pools them)."""
    return routing_scope(config) != "sequence"


def parse_layers(spec: str, num_layers: int) -> list[int]:
    """Block indices that ``spec`` names among ``num_layers`` blocks.

    ``every N`` starts at N // 2: every 4 of 16 is 2, 6, 10, 14, the published placement.

    Raises:
        ValueError: if the spec cannot be read or names a block that does not exist.
    """
    words = spec.split()
    if spec == "all":
        chosen = list(range(num_layers))
    elif len(words) == 2 and words[0] in ("every", "first", "last") and words[1].isdigit():
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
        if not all(part.isdigit() for part in parts):
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


def validate_model(config: ModelConfig) -> None:
    """Check what the types cannot say.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """
    for name in ("vocab_size", "num_layers", "dim", "num_heads", "num_kv_heads", "mlp_dim"):
        if getattr(config, name) < 1:
            raise ValueError(f"model.{name} must be at least 1, not {getattr(config, name)}")
    _check_heads("model", config.dim, config.num_heads, config.num_kv_heads)
    if config.dim // config.num_heads % 2:
        raise ValueError(
            f"model.dim / model.num_heads is {config.dim // config.num_heads}; "
            "rotary embeddings need an even head width"
        )
    memory = config.memory
    if memory is None:
        return
    for name, choices in (("variant", Variant), ("mixing", Mixing), ("output_init", OutputInit)):
        _check_choice(f"memory.{name}", getattr(memory, name), get_args(choices))
    for name, choices in (("scope", Scope), ("input", RouterInput)):
        _check_choice(f"memory.router.{name}", getattr(memory.router, name), get_args(choices))
    _check_router(memory.router)
    parse_layers(memory.layers, config.num_layers)
    for name in ("dim", "num_heads", "num_kv_heads"):
        if (value := getattr(memory, name)) is not None and value < 1:
            raise ValueError(f"model.memory.{name} must be at least 1, or null; it is {value}")
    if memory.chapter_tokens < 1 or memory.num_chapters < 1:
        raise ValueError("model.memory needs at least one chapter of at least one token")
    routable = memory.num_chapters - memory.num_shared
    if not 0 <= memory.num_shared <= memory.num_chapters:
        raise ValueError(
            f"model.memory.num_shared is {memory.num_shared}, but there are "
            f"{memory.num_chapters} chapters"
        )
    if memory.num_routed is not None and not 1 <= memory.num_routed <= routable:
        raise ValueError(
            f"model.memory.num_routed must be 1 to {routable} (the chapters that are not "
            f"shared), or null for all; it is {memory.num_routed}"
        )
    if memory.layers_per_bank is not None and memory.layers_per_bank < 1:
        raise ValueError("model.memory.layers_per_bank must be at least 1, or null for one bank")
    num_heads = memory.num_heads or config.num_heads
    _check_heads("model.memory", config.dim, num_heads, memory.num_kv_heads or num_heads)


def preset(name: str) -> ModelConfig:
    """One of the named starting points: ``paper`` (arXiv 2603.21096), ``small``, ``tiny``, and
    ``bench``, on which ``python -m moc.bench`` measures.

    Raises:
        ValueError: for any other name.
    """
    match name:
        case "paper":
            return ModelConfig(
                preset="paper",
                vocab_size=49152,
                num_layers=16,
                dim=768,
                num_heads=12,
                num_kv_heads=4,
                mlp_dim=2304,
                residual_init_std=0.00378,
                memory=MemoryConfig(
                    num_chapters=4097,
                    num_routed=64,
                    chapter_tokens=64,
                    layers="2,6,10,14",
                    router=RouterConfig(scope="sequence"),
                ),
            )
        case "small":
            return ModelConfig(
                preset="small",
                vocab_size=8192,
                num_layers=8,
                dim=384,
                num_heads=6,
                num_kv_heads=2,
                mlp_dim=1152,
                memory=MemoryConfig(
                    num_chapters=513, num_routed=16, chapter_tokens=32, layers="every 2"
                ),
            )
        case "bench":
            return ModelConfig(
                preset="bench",
                vocab_size=4096,
                num_layers=8,
                dim=256,
                mlp_dim=768,
                memory=MemoryConfig(
                    num_chapters=1025,
                    num_routed=16,
                    chapter_tokens=64,
                    layers="1,3,5,7",
                    router=RouterConfig(segment_tokens=64),
                ),
            )
        case "tiny":
            return ModelConfig(preset="tiny")
    raise ValueError(f"model.preset {name!r} is none of paper, small, bench, tiny")


def _check_router(router: RouterConfig) -> None:
    where = "model.memory.router"
    if router.segment_tokens < 1:
        raise ValueError(f"{where}.segment_tokens must be at least 1, not {router.segment_tokens}")
    if router.window_tokens is not None:
        if router.window_tokens < 1:
            raise ValueError(
                f"{where}.window_tokens must be at least 1, or null; it is {router.window_tokens}"
            )
        if router.scope != "segment":
            raise ValueError(
                f"{where}.window_tokens limits what scope segment looks back on; "
                f"set it to null for scope {router.scope}"
            )
    for name in ("balance_coefficient", "z_loss_coefficient", "bias_rate"):
        if getattr(router, name) < 0:
            raise ValueError(f"{where}.{name} must not be negative, but is {getattr(router, name)}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"model.{name} {value!r} is none of {', '.join(choices)}")


def _check_heads(where: str, dim: int, num_heads: int, num_kv_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"{where}.num_heads {num_heads} does not divide model.dim {dim}")
    if num_heads % num_kv_heads:
        raise ValueError(f"{where}.num_kv_heads {num_kv_heads} does not divide {num_heads} heads")
