"""The whole model as its published definition, written out as loops in float64.

One unpadded sequence, one position and one head at a time; the chosen tokens are weighted before
they are projected. It shares no code with ``moc``: a config and a dictionary of weights go in.
``naive_attention`` is the attention of a read alone, of whole batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from moc.model import ModelConfig

Weights = dict[str, Tensor]
Sees = Callable[[int], range]  # the positions that the router pools for what position t reads


def unfused(config: ModelConfig, weights: Weights) -> Weights:
    """Maps that the model computes as one, each by itself: their rows follow one another.

    Gradients have the same names and shapes.
    """
    kv_dim = config.num_kv_heads * (config.dim // config.num_heads)
    parts = {
        "qkv": {"q": config.dim, "k": kv_dim, "v": kv_dim},
        "gate_up": {"gate": config.mlp_dim, "up": config.mlp_dim},
    }
    if config.memory is not None:
        num_heads = config.memory.chapters.num_heads or config.num_heads
        width = (config.memory.chapters.num_kv_heads or num_heads) * (config.dim // num_heads)
        parts["kv"] = {"k": width, "v": width}
    apart = {}
    for name, tensor in weights.items():
        *parents, owner, leaf = ["", *name.split(".")]
        if owner not in parts:
            apart[name] = tensor
            continue
        start = 0
        for part, width in parts[owner].items():
            apart[".".join([*parents, part, leaf]).lstrip(".")] = tensor[start : start + width]
            start += width
        assert start == len(tensor)
    return apart


def sees_of(config: ModelConfig, length: int) -> Sees:
    """Design: ``sequence`` pools everything, ``segment`` all up to its segment's first position
    (the last ``window_tokens`` of it), ``token`` itself."""
    assert config.memory is not None
    router = config.memory.chapters.router

    def sees(t: int) -> range:
        if router.scope == "sequence":
            return range(length)
        if router.scope == "token":
            return range(t, t + 1)
        first = t - t % router.segment_tokens
        start = 0 if router.window_tokens is None else max(0, first + 1 - router.window_tokens)
        return range(start, first + 1)

    return sees


def naive_norm(vector: Tensor, weight: Tensor | None = None) -> Tensor:
    normed = vector / ((vector * vector).sum() / len(vector) + 1e-5).sqrt()
    return normed if weight is None else normed * weight


def naive_choice(
    config: ModelConfig, weights: Weights, prefix: str, router_input: list[Tensor]
) -> list[tuple[int, Tensor]]:
    """Steps 2 to 4 for the pooled ``router_input``: (chapter, mixing weight), shared ones first.

    A selection bias is one of the weights: it says who is picked, and nothing more.
    """
    assert config.memory is not None
    memory = config.memory.chapters
    if memory.num_routed is None:
        share = torch.ones((), dtype=torch.float64) / memory.num_chapters
        return [(c, share) for c in range(memory.num_chapters)]
    pooled = sum(router_input) / len(router_input)
    linear = (
        weights[f"{prefix}memory.address.router.linear.{name}"] for name in ("weight", "bias")
    )
    logits = [row @ pooled + bias for row, bias in zip(*linear, strict=True)]
    probs = torch.stack(logits).softmax(0)
    routed = range(memory.num_shared, memory.num_chapters)
    renormalised = {c: probs[c] / sum(probs[r] for r in routed) for c in routed}
    bias = weights.get(
        prefix + "memory.address.router.selection_bias", torch.zeros(memory.num_chapters)
    )
    ranked = sorted(routed, key=lambda c: -(logits[c] + bias[c]).item())
    picked = ranked[: memory.num_routed]
    total = sum(renormalised[c] for c in picked)
    raw = [(c, torch.ones((), dtype=torch.float64)) for c in range(memory.num_shared)]
    raw += [(c, memory.routed_scale * renormalised[c] / total) for c in picked]
    mass = sum(weight for _, weight in raw)
    return [(c, weight / mass) for c, weight in raw]


def naive_attention(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
) -> Tensor:
    """Arguments and result of ``moc.ops.routed_attention``: a loop over positions and heads."""
    batch, length, num_heads, head_dim = q_BLHE.shape
    per_kv_head = num_heads // k_UTJE.shape[2]
    out = torch.zeros_like(q_BLHE)
    for b in range(batch):
        for position in range(length):
            rows_N = row_BGN[b, position // group_tokens]
            weight_N = weight_BGN[b, position // group_tokens]
            for head in range(num_heads):
                q_E = q_BLHE[b, position, head]
                k_NTE = k_UTJE[rows_N, :, head // per_kv_head]
                v_NTE = v_UTJE[rows_N, :, head // per_kv_head]
                scores_NT = k_NTE @ q_E / head_dim**0.5
                if mixing == "per_chapter":
                    out_NE = torch.einsum("nt,nte->ne", scores_NT.softmax(-1), v_NTE)
                    out[b, position, head] = weight_N @ out_NE
                    continue
                if mixing == "joint":
                    scores_NT = scores_NT * weight_N[:, None]
                elif mixing == "log_bias":
                    scores_NT = scores_NT + weight_N.log()[:, None]
                if mixing in ("joint", "joint_normed"):
                    v_NTE = v_NTE * weight_N[:, None, None]
                share_Y = scores_NT.flatten().softmax(-1)
                out[b, position, head] = share_Y @ v_NTE.flatten(0, 1)
    return out


def naive_read(
    config: ModelConfig,
    weights: Weights,
    prefix: str,
    stream: list[Tensor],
    router_input: list[Tensor],
    bank: Tensor,
    sees: Sees,
) -> list[Tensor]:
    """Steps 2 to 6 for one sequence: what every position reads."""
    assert config.memory is not None
    memory = config.memory.chapters
    num_heads = memory.num_heads or config.num_heads
    num_kv_heads = memory.num_kv_heads or num_heads
    width = config.dim // num_heads
    w_q, w_k, w_v, w_out = (
        weights[f"{prefix}memory.read.{name}.weight"] for name in ("q", "k", "v", "out")
    )
    normalised = memory.num_shared > 0 and memory.num_routed is not None
    scaled = memory.mixing == "joint" and memory.num_routed is not None
    projected = {}  # what positions that see the same have in common
    out = []
    for t, x in enumerate(stream):
        seen = sees(t)
        if seen not in projected:
            choice = naive_choice(config, weights, prefix, [router_input[s] for s in seen])
            tokens = [
                (naive_norm(token) if normalised else token) * (w if scaled else 1.0)
                for c, w in choice
                for token in bank[c]
            ]
            keys, values = (
                torch.stack([weight @ token for token in tokens]).split(memory.chapter_tokens)
                for weight in (w_k, w_v)
            )
            projected[seen] = [w for _, w in choice], keys, values
        shares, keys, values = projected[seen]
        q = w_q @ naive_norm(x, weights[prefix + "memory_norm.weight"])
        heads = []
        for head in range(num_heads):
            q_E = q[head * width : (head + 1) * width]
            kv_head = head // (num_heads // num_kv_heads)
            theirs = slice(kv_head * width, (kv_head + 1) * width)
            scores = [chapter[:, theirs] @ q_E / width**0.5 for chapter in keys]
            mine = [chapter[:, theirs] for chapter in values]
            if memory.mixing == "per_chapter":
                parts = zip(shares, scores, mine, strict=True)
                heads.append(sum(w * (s.softmax(0) @ v) for w, s, v in parts))
                continue
            if memory.mixing == "log_bias":
                scores = [s + w.log() for w, s in zip(shares, scores, strict=True)]
            heads.append(torch.cat(scores).softmax(0) @ torch.cat(mine))
        out.append(w_out @ torch.cat(heads))
    return out


def naive_logits(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    *,
    bank_of_layer: dict[int, int],
    sees: Sees | None = None,
) -> Tensor:
    """Logits (L, V) of one sequence: steps 1 and 9 around ``naive_read``.

    ``sees`` replaces what the config's scope says.
    """
    memory = config.memory
    assert memory is not None
    sees = sees or sees_of(config, len(tokens))

    def add(stream: list[Tensor], update: list[Tensor]) -> list[Tensor]:
        return [x + y for x, y in zip(stream, update, strict=True)]

    stream = [weights["embedding.weight"][token] for token in tokens]
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        router_input = stream
        stream = add(stream, _self_attention(config, weights, prefix, stream))
        if memory.chapters.router.input == "post_attention":
            router_input = stream
        reads = layer in bank_of_layer
        variant = memory.variant if reads else "A"
        if variant == "B":
            stream = add(stream, _mlp(weights, prefix + "mlp", stream))
        if reads:
            bank = weights[f"banks.{bank_of_layer[layer]}.rows"]
            read = naive_read(config, weights, prefix, stream, router_input, bank, sees)
            stream = add(stream, read)
        last = "mlp" if variant == "A" else "memory_mlp"
        stream = add(stream, _mlp(weights, prefix + last, stream))
    normed = [naive_norm(x, weights["norm.weight"]) for x in stream]
    return torch.stack([weights["embedding.weight"] @ x for x in normed])


def _self_attention(
    config: ModelConfig, weights: Weights, prefix: str, stream: list[Tensor]
) -> list[Tensor]:
    width = config.dim // config.num_heads
    speeds = [100_000.0 ** (-2 * i / width) for i in range(width // 2)]

    def rotated(vector: Tensor, position: int) -> Tensor:
        a, b = vector.split(width // 2)  # the pairs are (i, i + width / 2)
        cos, sin = (
            torch.tensor([wave(position * speed) for speed in speeds], dtype=torch.float64)
            for wave in (math.cos, math.sin)
        )
        return torch.cat((a * cos - b * sin, b * cos + a * sin))

    names = ("q", "k", "v", "out")
    w_q, w_k, w_v, w_out = (weights[f"{prefix}attention.{name}.weight"] for name in names)
    normed = [naive_norm(x, weights[prefix + "attention_norm.weight"]) for x in stream]
    keys = [  # [key/value head][position]
        [rotated((w_k @ x)[j * width : (j + 1) * width], s) for s, x in enumerate(normed)]
        for j in range(config.num_kv_heads)
    ]
    values = [[(w_v @ x)[j * width : (j + 1) * width] for x in normed] for j in range(len(keys))]
    out = []
    for t, x in enumerate(normed):
        heads = []
        for head in range(config.num_heads):
            q = rotated((w_q @ x)[head * width : (head + 1) * width], t)
            kv_head = head // (config.num_heads // config.num_kv_heads)
            share = (torch.stack(keys[kv_head][: t + 1]) @ q / width**0.5).softmax(0)
            heads.append(share @ torch.stack(values[kv_head][: t + 1]))
        out.append(w_out @ torch.cat(heads))
    return out


def _mlp(weights: Weights, prefix: str, stream: list[Tensor]) -> list[Tensor]:
    gate, up, down = (weights[f"{prefix}.{name}.weight"] for name in ("gate", "up", "down"))
    normed = [naive_norm(x, weights[f"{prefix}_norm.weight"]) for x in stream]
    hidden = [(gate @ x) * (gate @ x).sigmoid() * (up @ x) for x in normed]
    return [down @ h for h in hidden]
