"""What a model costs: parameters, and FLOPs in two accountings.

``paper`` counts what arXiv 2603.21096 (appendix A.2) counts, element-wise work included, with every
chapter projected for every sequence that reads it. The paper routes whole sequences; of several
routing groups, each chooses and weights its own chapters, and a sequence's share projections.
``hardware`` counts the matrix products that ``moc.model`` executes, as ``torch.utils.flop_counter``
does. Both are closed forms.

B batch, L sequence length, D model dim, M memory width, V vocabulary, C chapters, T tokens per
chapter, S shared chapters, K routed chapters, N chapters read, U distinct chapters in a batch,
G routing groups per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from moc.model.config import MemoryConfig, ModelConfig
from moc.model.memory.router import group_tokens
from moc.ops.mixing import MIXINGS
from moc.ops.shapes import BIAS_WIDTH, absorbs, moves_queries


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
    attention = 2 * dim * dim + 2 * dim * kv_dim(config)
    mlp = 3 * dim * config.mlp_dim
    backbone = config.vocab_size * dim + config.num_layers * (attention + mlp + 2 * dim) + dim
    memory = config.memory
    if memory is None:
        return Parameters(backbone, 0, 0)
    memory_dim = memory.dim or dim
    layer = dim + 2 * dim * dim + 2 * memory_dim * memory_kv_dim(config, memory)
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
        + 2 * _linear(tokens, dim, kv_dim(config))
        + _scores(batch, context_length, context_length, dim, config.num_heads)
        + 3 * tokens * (dim + kv_dim(config))  # rotary embedding
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
    config: ModelConfig, context_length: int, micro_batch: int, *, gpu: bool = False
) -> float:
    """FLOPs per token of one forward and backward pass over ``micro_batch`` sequences.

    Matrix products only, a multiply-add counting as two, nothing frozen, causal scores in full.
    Attention keeps no scores: its backward pass makes five products where the forward pass made
    two. A batch is taken to read as many distinct chapters as it can (``executed_read``), and
    positions that are sorted by chapter as needing no padding, of which there is at most a seventh.
    """
    dim, tokens = config.dim, micro_batch * context_length
    mlp = 3 * _linear(tokens, dim, config.mlp_dim)
    linear = config.num_layers * (
        2 * _linear(tokens, dim, dim) + 2 * _linear(tokens, dim, kv_dim(config)) + mlp
    )
    attention = config.num_layers * 4 * tokens * context_length * dim
    head = _linear(tokens, dim, config.vocab_size)
    skipped = 0
    memory = config.memory
    if memory is not None:
        num_layers = len(config.memory_layers())
        read = executed_read(config, memory, context_length, micro_batch, gpu=gpu)
        if read.absorbed:
            maps = 2 * _linear(tokens, dim, memory.dim or dim)
        else:
            chapter_tokens = read.num_chapters * memory.chapter_tokens
            maps = 2 * _linear(chapter_tokens, memory.dim or dim, memory_kv_dim(config, memory))
        linear += num_layers * (2 * _linear(tokens, dim, dim) + maps)
        if memory.variant == "B":
            linear += num_layers * mlp
        if memory.num_routed is not None:
            linear += num_layers * _linear(read.num_groups, dim, memory.num_chapters)
        num_heads, head_width = memory.num_heads or config.num_heads, read.head_width
        mixing = MIXINGS[memory.mixing]
        if not read.grouped and mixing.score_bias:
            head_width += BIAS_WIDTH
        if not read.grouped and mixing.per_chapter:
            mixed = num_layers * _linear(read.num_pairs, 1, num_heads * head_width)
            linear += mixed
            if memory.num_routed is None:
                skipped += mixed  # without a router the mixing weights need no gradient
        num_scores = read.num_pairs * memory.chapter_tokens * num_heads
        attention += num_layers * 4 * num_scores * head_width
    passes, attention_passes = 3.0, 3.5
    if config.activation_checkpointing:
        passes, attention_passes = passes + 1, attention_passes + 1
        # recomputation stops at the last tensor that backward needs, so a block's last product,
        # the MLP's down projection, is not repeated
        skipped += config.num_layers * _linear(tokens, config.mlp_dim, dim)
    return (passes * linear + attention_passes * attention + 3 * head - skipped) / tokens


@dataclass(frozen=True)
class ExecutedRead:
    """What ``moc.model.memory.chapters`` makes of one memory layer's forward pass."""

    num_groups: int  # of the batch
    num_chapters: int  # U: as many as the batch can read
    grouped: bool  # queries meet chapter after chapter, rather than copies of their group's
    absorbed: bool  # queries and outputs go through the key and value maps, not the chapters
    head_width: int  # of the vectors that meet in attention: E, or M where maps are absorbed
    num_pairs: int  # of a query and a chapter; with copies, a short last group counts in full


def executed_read(
    config: ModelConfig, memory: MemoryConfig, context_length: int, batch: int, *, gpu: bool = False
) -> ExecutedRead:
    """The sizes of one layer's read for ``batch`` sequences, whose routing spreads evenly.

    ``gpu``: whose kernels take no heads as wide as some memories, see ``moc.ops.shapes.absorbs``.
    """
    num_heads = memory.num_heads or config.num_heads
    head_dim, memory_dim = config.dim // num_heads, memory.dim or config.dim
    num_read, num_tokens = chapters_read(memory), memory.chapter_tokens
    per_sequence = routing_groups(memory, context_length)
    num_groups, num_queries = batch * per_sequence, batch * context_length
    distinct = memory.num_chapters
    if memory.num_routed is not None:
        distinct = min(distinct, memory.num_shared + num_groups * memory.num_routed)
    absorbed = absorbs(
        num_queries=num_queries,
        num_read=num_read,
        num_tokens=num_tokens,
        num_chapters=distinct,
        memory_dim=memory_dim,
        num_heads=num_heads,
        num_kv_heads=memory.num_kv_heads or num_heads,
        head_dim=head_dim,
        gpu=gpu,
    )
    grouped = moves_queries(batch, context_length, per_sequence, num_tokens)
    if not grouped and memory.num_routed is not None:
        num_queries = num_groups * group_tokens(memory.router, context_length)
    return ExecutedRead(
        num_groups=num_groups,
        num_chapters=distinct,
        grouped=grouped,
        absorbed=absorbed,
        head_width=memory_dim if absorbed else head_dim,
        num_pairs=num_queries * num_read,
    )


def routing_groups(memory: MemoryConfig, context_length: int) -> int:
    """G: choices of chapters that a sequence makes; 1 where there is nothing to choose."""
    if memory.num_routed is None:
        return 1
    return -(-context_length // group_tokens(memory.router, context_length))


def chapters_read(memory: MemoryConfig) -> int:
    """N: chapters that one routing group reads."""
    if memory.num_routed is None:
        return memory.num_chapters
    return memory.num_shared + memory.num_routed


def kv_dim(config: ModelConfig) -> int:
    """Width of self-attention's keys, and of its values."""
    return config.num_kv_heads * (config.dim // config.num_heads)


def memory_kv_dim(config: ModelConfig, memory: MemoryConfig) -> int:
    """Width of a memory token's key, and of its value."""
    num_heads = memory.num_heads or config.num_heads
    return (memory.num_kv_heads or num_heads) * (config.dim // num_heads)


def _paper_memory_layer(
    config: ModelConfig, memory: MemoryConfig, context_length: int, batch: int
) -> int:
    dim, tokens = config.dim, batch * context_length
    memory_dim, kv_width = memory.dim or dim, memory_kv_dim(config, memory)
    num_groups = routing_groups(memory, context_length)
    groups = batch * num_groups
    read = chapters_read(memory) * memory.chapter_tokens  # tokens per group
    distinct = chapters_read(memory)  # chapters per sequence, at most
    if memory.num_routed is not None:
        routable = memory.num_chapters - memory.num_shared
        distinct = memory.num_shared + min(routable, num_groups * memory.num_routed)
    projected = batch * distinct * memory.chapter_tokens
    total = (
        2 * _linear(tokens, dim, dim)
        + 2 * _linear(projected, memory_dim, kv_width)
        + _scores(batch, context_length, read, dim, memory.num_heads or config.num_heads)
        + _paper_norm(tokens, dim)
        + tokens * dim  # residual
    )
    if memory.variant == "B":
        total += _paper_mlp(config, tokens)
    if memory.num_routed is None:
        return total
    chapters = memory.num_chapters
    total += batch * dim * _pooling(memory, context_length)
    total += _linear(groups, dim, chapters) + 5 * groups * chapters
    total += groups * chapters * (memory.num_routed - 1).bit_length()  # C * ceil(log2 K)
    total += groups * read * memory_dim  # weighting
    if memory.num_shared:
        total += _paper_norm(projected, memory_dim)
    return total + _paper_router_losses(groups, chapters, memory.num_routed)


def _pooling(memory: MemoryConfig, context_length: int) -> int:
    """Operations per dim to pool one sequence for its router."""
    num_groups = routing_groups(memory, context_length)
    match memory.router.scope:
        case "sequence":
            return context_length  # L - 1 additions and a division
        case "segment":
            # running sums up to the last segment's first position, and a division per segment;
            # a limited look-back takes the difference of two running sums
            width, window = memory.router.segment_tokens, memory.router.window_tokens
            last = (num_groups - 1) * width
            limited = 0
            if window is not None:
                limited = sum(start >= window for start in range(0, last + 1, width))
            return last + num_groups + limited
        case _:
            return 0  # a token's router reads that token


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
