"""What a model costs: parameters, FLOPs in two accountings, and the iso-FLOP solver.

``paper`` counts what arXiv 2603.21096 (appendix A.2) counts, element-wise work included, with every
chapter projected for every sequence that reads it. ``hardware`` counts the matrix products that
``moc.model`` executes, as ``torch.utils.flop_counter`` does. Both are closed forms: no torch.

B batch, L sequence length, D model dim, M memory width, V vocabulary, C chapters, T tokens per
chapter, S shared chapters, K routed chapters, N chapters read, U distinct chapters in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moc.model.config import MemoryConfig, ModelConfig, validate_model

FlopsFunction = Callable[[ModelConfig], float]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, by optimizer group."""

    backbone: int
    memory_layers: int
    bank: int

    @property
    def total(self) -> int:
        return self.backbone + self.memory_layers + self.bank


def parameter_counts(config: ModelConfig) -> Parameters:
    """Exact parameter counts; the tied embedding counts once, in the backbone."""
    dim = config.dim
    attention = 2 * dim * dim + 2 * dim * _kv_dim(config)
    mlp = 3 * dim * config.mlp_dim
    backbone = config.vocab_size * dim + config.num_layers * (attention + mlp + 2 * dim) + dim
    memory = config.memory
    if memory is None:
        return Parameters(backbone, 0, 0)
    memory_dim = memory.dim or dim
    layer = dim + 2 * dim * dim + 2 * memory_dim * _memory_kv_dim(config, memory)
    if memory.num_routed is not None:
        layer += dim * memory.num_chapters + memory.num_chapters
    if memory.variant == "B":
        layer += dim + mlp
    num_layers = len(config.memory_layers())
    num_banks = -(-num_layers // (memory.layers_per_bank or num_layers))
    bank = memory.num_chapters * memory.chapter_tokens * memory_dim
    return Parameters(backbone, num_layers * layer, num_banks * bank)


def paper_forward_flops(config: ModelConfig, context_length: int, batch: int = 1) -> int:
    """FLOPs of one forward pass over ``batch`` sequences with its losses (paper, appendix A.2).

    The three mixings count alike. Without a router (``num_routed: null``) all chapters are read,
    unweighted, and there are no router losses. Backward is twice this.
    """
    dim, tokens = config.dim, batch * context_length
    block = (
        2 * _linear(tokens, dim, dim)
        + 2 * _linear(tokens, dim, _kv_dim(config))
        + _scores(batch, context_length, context_length, dim, config.num_heads)
        + 3 * tokens * (dim + _kv_dim(config))  # rotary embedding
        + _paper_norm(tokens, dim)
        + tokens * dim  # residual
        + _paper_mlp(config, tokens)
    )
    head = _linear(tokens, dim, config.vocab_size) + 5 * (tokens - 1) * config.vocab_size
    total = config.num_layers * block + _paper_norm(tokens, dim) + head
    if config.memory is not None:
        read = _paper_memory_layer(config, config.memory, context_length, batch)
        total += len(config.memory_layers()) * read
    return total


def hardware_train_flops_per_token(
    config: ModelConfig, context_length: int, micro_batch: int, *, fused_attention: bool = False
) -> float:
    """FLOPs per token of one forward and backward pass over ``micro_batch`` sequences.

    Matrix products only, a multiply-add counting as two, nothing frozen, causal scores in full. A
    layer projects U = min(C, B * N) chapters once per micro-batch. ``fused_attention``: kernels
    that recompute the scores in their backward pass (flash, memory-efficient), 2.5 instead of 2
    forward passes; flop_counter does not see the fused kernel of the CPU at all.
    """
    dim, tokens = config.dim, micro_batch * context_length
    mlp = 3 * _linear(tokens, dim, config.mlp_dim)
    linear = config.num_layers * (
        2 * _linear(tokens, dim, dim) + 2 * _linear(tokens, dim, _kv_dim(config)) + mlp
    )
    attention = config.num_layers * 4 * tokens * context_length * dim
    head = _linear(tokens, dim, config.vocab_size)
    skipped = 0
    memory = config.memory
    if memory is not None:
        num_layers, num_read = len(config.memory_layers()), chapters_read(memory)
        distinct = min(memory.num_chapters, micro_batch * num_read)
        projection = _linear(
            distinct * memory.chapter_tokens, memory.dim or dim, _memory_kv_dim(config, memory)
        )
        linear += num_layers * (2 * _linear(tokens, dim, dim) + 2 * projection)
        if memory.variant == "B":
            linear += num_layers * mlp
        if memory.num_routed is not None:
            linear += num_layers * _linear(micro_batch, dim, memory.num_chapters)
        if memory.mixing == "per_chapter":
            mixed = num_layers * _linear(tokens, num_read, dim)
            linear += mixed
            if memory.num_routed is None:
                skipped += mixed  # without a router the mixing weights need no gradient
        attention += num_layers * 4 * tokens * num_read * memory.chapter_tokens * dim
    passes, attention_passes = 3.0, 3.5 if fused_attention else 3.0
    if config.activation_checkpointing:
        passes, attention_passes = passes + 1, attention_passes + 1
        # recomputation stops at the last tensor that backward needs, so a block's last product,
        # the MLP's down projection, is not repeated
        skipped += config.num_layers * _linear(tokens, config.mlp_dim, dim)
    return (passes * linear + attention_passes * attention + 3 * head - skipped) / tokens


def activation_bytes(
    config: ModelConfig, context_length: int, micro_batch: int, *, bf16: bool = False
) -> int:
    """Roughly what a forward pass keeps for its backward pass, on one device.

    Counted: what autograd saves (norms in float32, the rest in the compute precision), three
    float32 copies of the logits (values, softmax, gradient), and bfloat16 copies of the weights.
    """
    dim, tokens, width = config.dim, micro_batch * context_length, 2 if bf16 else 4
    mlp = 2 * 4 * dim + width * (dim + 4 * config.mlp_dim)
    block = tokens * (2 * 4 * dim + width * (3 * dim + 2 * _kv_dim(config)) + mlp)
    read = 0
    memory = config.memory
    if memory is not None:
        num_read = chapters_read(memory)
        distinct = min(memory.num_chapters, micro_batch * num_read) * memory.chapter_tokens
        taken = micro_batch * num_read * memory.chapter_tokens * _memory_kv_dim(config, memory)
        copies = 4 if memory.mixing == "joint" else 2  # keys and values; also weighted
        read = tokens * (2 * 4 * dim + width * 3 * dim) + width * copies * taken
        read += distinct * (memory.dim or dim) * (4 + width)
        if memory.mixing == "per_chapter":
            read += width * tokens * 2 * (num_read - 1) * dim  # queries and outputs per chapter
        if memory.variant == "B":
            read += tokens * mlp
    num_reads = len(config.memory_layers())
    if config.activation_checkpointing:
        kept = config.num_layers * tokens * 4 * dim + block + read
    else:
        kept = config.num_layers * block + num_reads * read
    counts = parameter_counts(config)
    weights = 2 * (counts.backbone + counts.memory_layers) if bf16 else 0
    return kept + weights + tokens * (3 * 4 * dim + 12 * config.vocab_size)


def chapters_read(memory: MemoryConfig) -> int:
    """N: chapters that one routing group reads."""
    if memory.num_routed is None:
        return memory.num_chapters
    return memory.num_shared + memory.num_routed


def solve_iso_flop(
    config: ModelConfig, target: float, flops: FlopsFunction, *, tolerance: float = 0.005
) -> tuple[ModelConfig, float]:
    """The shape whose ``flops`` come nearest to ``target``, and its relative error.

    Depth first: the most layers that stay at or below the target with the MLP as it is. Then MLP
    width, in multiples of 8, or of 1 where those miss ``tolerance``. Fewer layers are tried
    when the width is too coarse for ``tolerance``.

    Raises:
        ValueError: if no shape comes within ``tolerance``.
    """
    best: tuple[ModelConfig, float] | None = None
    for num_layers in range(_deepest(config, target, flops), 0, -1):
        shape = replace(config, num_layers=num_layers)
        solved = _solve_width(shape, target, flops, tolerance)
        if solved is None:
            continue
        if abs(solved[1]) <= tolerance:
            return solved
        if best is None or abs(solved[1]) < abs(best[1]):
            best = solved
    nearest = "none fits" if best is None else f"the nearest is off by {best[1]:+.2%}"
    raise ValueError(
        f"no num_layers and mlp_dim reach {target:.4g} FLOPs per token to within {tolerance:g} "
        f"({nearest}); change the arm's dim, or set iso_flop.solve: false and iso_flop.tolerance"
    )


def _deepest(config: ModelConfig, target: float, flops: FlopsFunction) -> int:
    """The most layers at or below ``target``; the fewest possible when all are above it."""
    deepest, num_layers = 0, 1
    while True:
        deeper = replace(config, num_layers=num_layers)
        if _is_valid(deeper):
            if deepest and flops(deeper) > target:
                return deepest
            deepest = num_layers
        elif num_layers > config.num_layers:
            return deepest
        num_layers += 1


def _solve_width(
    config: ModelConfig, target: float, flops: FlopsFunction, tolerance: float
) -> tuple[ModelConfig, float] | None:
    """``config`` with the best ``mlp_dim`` (FLOPs are linear in it); None where there is none."""
    if not _is_valid(config):
        return None
    narrow, wider = (flops(replace(config, mlp_dim=width)) for width in (1, 2))
    exact = 1 + (target - narrow) / (wider - narrow)
    solved = None
    for unit in (8, 1):
        shape = replace(config, mlp_dim=round(exact / unit) * unit)
        if shape.mlp_dim >= 1:
            solved = shape, flops(shape) / target - 1
            if abs(solved[1]) <= tolerance:  # odd widths are slow on matrix units
                break
    return solved


def _is_valid(config: ModelConfig) -> bool:
    try:
        validate_model(config)
    except ValueError:
        return False
    return True


def _paper_memory_layer(
    config: ModelConfig, memory: MemoryConfig, context_length: int, batch: int
) -> int:
    dim, tokens = config.dim, batch * context_length
    memory_dim, kv_dim = memory.dim or dim, _memory_kv_dim(config, memory)
    read = chapters_read(memory) * memory.chapter_tokens  # tokens per sequence
    total = (
        2 * _linear(tokens, dim, dim)
        + 2 * _linear(batch * read, memory_dim, kv_dim)
        + _scores(batch, context_length, read, dim, memory.num_heads or config.num_heads)
        + _paper_norm(tokens, dim)
        + tokens * dim  # residual
    )
    if memory.variant == "B":
        total += _paper_mlp(config, tokens)
    if memory.num_routed is None:
        return total
    chapters = memory.num_chapters
    total += batch * dim * context_length  # pooling: L - 1 additions and a division per dim
    total += _linear(batch, dim, chapters) + 5 * batch * chapters
    total += batch * chapters * (memory.num_routed - 1).bit_length()  # C * ceil(log2 K)
    total += batch * read * memory_dim  # weighting
    if memory.num_shared:
        total += _paper_norm(batch * read, memory_dim)
    return total + _paper_router_losses(batch, chapters, memory.num_routed)


def _paper_router_losses(groups: int, chapters: int, num_routed: int) -> int:
    """Statistics and losses of one router over ``groups`` routing groups."""
    mean = chapters * (groups - 1) + chapters
    load = groups * chapters * (num_routed - 1) + mean
    balance = mean + 2 * chapters
    squared_mean = groups * chapters + mean
    mse, entropy = 3 * chapters, 4 * groups * chapters
    z_loss = 5 * groups * chapters + 2 * groups
    return load + balance + squared_mean + mse + z_loss + entropy


def _paper_mlp(config: ModelConfig, tokens: int) -> int:
    """SwiGLU with its norm and residual."""
    products = 3 * _linear(tokens, config.dim, config.mlp_dim)
    activation = 5 * tokens * config.mlp_dim
    return products + activation + _paper_norm(tokens, config.dim) + tokens * config.dim


def _paper_norm(rows: int, dim: int) -> int:
    return rows * (4 * dim + 4)


def _scores(batch: int, queries: int, keys: int, dim: int, num_heads: int) -> int:
    """Both attention products, and 7 per score for scale, mask and softmax."""
    return 4 * batch * queries * keys * dim + 7 * batch * num_heads * queries * keys


def _linear(rows: int, dim_in: int, dim_out: int) -> int:
    return 2 * rows * dim_in * dim_out


def _kv_dim(config: ModelConfig) -> int:
    return config.num_kv_heads * (config.dim // config.num_heads)


def _memory_kv_dim(config: ModelConfig, memory: MemoryConfig) -> int:
    num_heads = memory.num_heads or config.num_heads
    return (memory.num_kv_heads or num_heads) * (config.dim // num_heads)
