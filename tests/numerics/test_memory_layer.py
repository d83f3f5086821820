"""The memory layer against the published definition, written out as loops in float64.

The oracle handles one unpadded sequence and one position at a time, weights the chosen tokens
before projecting them, and shares no code with ``moc``. What would break for a user: a model that
trains, but is not the one that the paper, the report and the FLOP counts speak of.
"""

import itertools
import math

import pytest
import torch

from moc.model import MemoryConfig, ModelConfig, RouterConfig, build_model
from moc.model.read import MemoryRead

torch.set_num_threads(1)
DIM, LENGTHS, NUM_CHAPTERS, CHAPTER_TOKENS = 8, (6, 4), 5, 3
MIXINGS = ("joint", "per_chapter", "log_bias")


def make_config(*, num_layers=1, **memory):
    defaults = {"num_chapters": NUM_CHAPTERS, "chapter_tokens": CHAPTER_TOKENS, "layers": "all"}
    return ModelConfig(
        vocab_size=11,
        num_layers=num_layers,
        dim=DIM,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=10,
        memory=MemoryConfig(**defaults | memory),
    )


def randomise(module):
    """Large float64 weights: zero-initialised maps would hide everything."""
    module.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.6, generator=generator)
    return module


def naive_norm(vector, weight=None):
    normed = vector / ((vector * vector).sum() / len(vector) + 1e-5).sqrt()
    return normed if weight is None else normed * weight


def naive_choice(config, weights, prefix, tapped):
    """Steps 2 to 4: [(chapter, mixing weight)] for one sequence, shared chapters first."""
    memory = config.memory
    if memory.num_routed is None:
        return [(c, 1 / memory.num_chapters) for c in range(memory.num_chapters)]
    pooled = sum(tapped) / len(tapped)
    linear = weights[prefix + "router.linear.weight"], weights[prefix + "router.linear.bias"]
    logits = [row @ pooled + bias for row, bias in zip(*linear, strict=True)]
    probs = torch.stack(logits).softmax(0)
    routed = range(memory.num_shared, memory.num_chapters)
    renormalised = {c: probs[c] / sum(probs[r] for r in routed) for c in routed}
    picked = sorted(routed, key=lambda c: -renormalised[c].item())[: memory.num_routed]
    total = sum(renormalised[c] for c in picked)
    raw = [(c, torch.ones((), dtype=torch.float64)) for c in range(memory.num_shared)]
    raw += [(c, memory.routed_scale * renormalised[c] / total) for c in picked]
    mass = sum(weight for _, weight in raw)
    return [(c, weight / mass) for c, weight in raw]


def naive_read(config, weights, prefix, stream, tapped, bank):
    """Steps 2 to 6 for one sequence: what every position reads."""
    memory = config.memory
    choice = naive_choice(config, weights, prefix, tapped)
    normalised = memory.num_shared > 0 and memory.num_routed is not None
    scaled = memory.mixing == "joint" and memory.num_routed is not None
    tokens = [  # per chapter read, its tokens as they enter the key and value projections
        [(naive_norm(token) if normalised else token) * (w if scaled else 1.0) for token in bank[c]]
        for c, w in choice
    ]
    num_heads = memory.num_heads or config.num_heads
    num_kv_heads = memory.num_kv_heads or num_heads
    width = config.dim // num_heads
    w_q, w_k, w_v, w_out = (weights[f"{prefix}{name}.weight"] for name in ("q", "k", "v", "out"))
    out = []
    for x in stream:
        q = w_q @ naive_norm(x, weights[prefix + "norm.weight"])
        heads = []
        for head in range(num_heads):
            mine = slice(head * width, (head + 1) * width)
            kv_head = head // (num_heads // num_kv_heads)
            theirs = slice(kv_head * width, (kv_head + 1) * width)
            scores, values = [], []
            for chapter in tokens:
                scores.append(
                    torch.stack([q[mine] @ (w_k @ token)[theirs] for token in chapter]) / width**0.5
                )
                values.append(torch.stack([(w_v @ token)[theirs] for token in chapter]))
            if memory.mixing == "per_chapter":
                parts = zip(choice, scores, values, strict=True)
                heads.append(sum(w * (s.softmax(0) @ v) for (_, w), s, v in parts))
                continue
            if memory.mixing == "log_bias":
                pairs = zip(choice, scores, strict=True)
                scores = [s + torch.as_tensor(w).log() for (_, w), s in pairs]
            heads.append(torch.cat(scores).softmax(0) @ torch.cat(values))
        out.append(w_out @ torch.cat(heads))
    return out


def naive_self_attention(config, weights, prefix, stream):
    width, half = config.dim // config.num_heads, config.dim // config.num_heads // 2

    def rotated(vector, position):
        out = vector.clone()
        for i in range(half):
            angle = position * config.rope_theta ** (-2 * i / width)
            a, b = vector[i], vector[i + half]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    names = ("q", "k", "v", "out")
    w_q, w_k, w_v, w_out = (weights[f"{prefix}attention.{name}.weight"] for name in names)
    normed = [naive_norm(x, weights[prefix + "attention_norm.weight"]) for x in stream]
    out = []
    for t, x in enumerate(normed):
        heads = []
        for head in range(config.num_heads):
            q = rotated((w_q @ x)[head * width : (head + 1) * width], t)
            kv_head = head // (config.num_heads // config.num_kv_heads)
            theirs = slice(kv_head * width, (kv_head + 1) * width)
            keys = [rotated((w_k @ normed[s])[theirs], s) for s in range(t + 1)]
            values = [(w_v @ normed[s])[theirs] for s in range(t + 1)]
            share = (torch.stack(keys) @ q / width**0.5).softmax(0)
            heads.append(share @ torch.stack(values))
        out.append(w_out @ torch.cat(heads))
    return out


def naive_mlp(weights, prefix, stream):
    gate, up, down = (weights[f"{prefix}.{name}.weight"] for name in ("gate", "up", "down"))
    normed = [naive_norm(x, weights[f"{prefix}_norm.weight"]) for x in stream]
    hidden = [(gate @ x) * (gate @ x).sigmoid() * (up @ x) for x in normed]
    return [down @ h for h in hidden]


def naive_logits(config, weights, tokens, bank_of_layer):
    """The whole model for one sequence without padding (step 1 and 9 around ``naive_read``)."""

    def add(stream, update):
        return [x + y for x, y in zip(stream, update, strict=True)]

    stream = [weights["embedding.weight"][token] for token in tokens]
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        tapped = stream
        stream = add(stream, naive_self_attention(config, weights, prefix, stream))
        if config.memory.router.tap == "post_attention":
            tapped = stream
        reads = layer in bank_of_layer
        variant = config.memory.variant if reads else "A"
        if variant == "B":
            stream = add(stream, naive_mlp(weights, prefix + "mlp", stream))
        if reads:
            bank = weights[f"banks.{bank_of_layer[layer]}.tokens"]
            read = naive_read(config, weights, prefix + "memory.", stream, tapped, bank)
            stream = add(stream, read)
        last = "mlp" if variant == "A" else "memory_mlp"
        stream = add(stream, naive_mlp(weights, prefix + last, stream))
    normed = [naive_norm(x, weights["norm.weight"]) for x in stream]
    return torch.stack([weights["embedding.weight"] @ x for x in normed])


def valid_mask(padded):
    return torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None] if padded else None


def assert_same_gradients(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def leaves(module):
    return {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}


def check_read(config, *, padded):
    """One memory layer, alone: its output, and the gradients of all that goes in."""
    read = randomise(MemoryRead(config))
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    memory_dim = config.memory.dim or DIM
    x_BLD, tapped_BLD, upstream_BLD = (draw(len(LENGTHS), max(LENGTHS), DIM) for _ in range(3))
    inputs = {"x": x_BLD, "tapped": tapped_BLD, "bank": draw(NUM_CHAPTERS, 3, memory_dim)}
    for tensor in inputs.values():
        tensor.requires_grad_()
    lengths = LENGTHS if padded else (max(LENGTHS),) * len(LENGTHS)
    kept_BL = torch.arange(max(LENGTHS))[None] < torch.tensor(lengths)[:, None]
    out_BLD, routing = read(*inputs.values(), valid_mask(padded))
    (out_BLD * upstream_BLD)[kept_BL].sum().backward()

    weights = leaves(read)
    copies = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    loss = 0.0
    for b, length in enumerate(lengths):
        rows = [list(copies[name][b, :length]) for name in ("x", "tapped")]
        naive_LD = torch.stack(naive_read(config, weights, "", *rows, copies["bank"]))
        torch.testing.assert_close(out_BLD[b, :length], naive_LD, rtol=1e-9, atol=1e-11)
        choice = naive_choice(config, weights, "", rows[1])
        assert routing.index_BGN[b, 0].tolist() == [c for c, _ in choice]
        weight_N = torch.stack([torch.as_tensor(w, dtype=torch.float64) for _, w in choice])
        torch.testing.assert_close(routing.weight_BGN[b, 0], weight_N, rtol=1e-9, atol=1e-11)
        loss = loss + (naive_LD * upstream_BLD[b, :length]).sum()
    loss.backward()
    expected = {k: v.grad for k, v in (weights | copies).items() if v.grad is not None}
    assert {"x", "bank", "q.weight", "k.weight", "v.weight", "out.weight"} <= set(expected)
    if config.memory.num_routed is not None:
        # one routed chapter has weight 1 among the routed, whatever the router says of it
        learns = float(expected["router.linear.weight"].abs().max()) > 1e-6
        assert learns == (config.memory.num_routed > 1)
    found = {name: p.grad for name, p in read.named_parameters()}
    found |= {name: tensor.grad for name, tensor in inputs.items()}
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("num_routed", [1, 2, "rest", None])
@pytest.mark.parametrize("num_shared", [0, 1, 2])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_read_and_gradients_follow_the_definition(mixing, num_shared, num_routed, padded):
    if num_routed == "rest":
        num_routed = NUM_CHAPTERS - num_shared
    config = make_config(num_shared=num_shared, num_routed=num_routed, mixing=mixing)
    check_read(config, padded=padded)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    ("dim", "num_heads", "num_kv_heads"), [(5, None, None), (None, 4, 2), (12, 4, 1), (3, 1, None)]
)
def test_memory_width_and_head_counts_may_differ_from_the_models(
    dim, num_heads, num_kv_heads, mixing
):
    check_read(
        make_config(
            num_routed=2, dim=dim, num_heads=num_heads, num_kv_heads=num_kv_heads, mixing=mixing
        ),
        padded=True,
    )


def test_routed_scale_moves_weight_from_shared_to_routed_chapters():
    check_read(make_config(num_routed=2, routed_scale=0.3), padded=False)


@pytest.mark.parametrize(
    ("variant", "tap", "layers_per_bank", "mixing"),
    list(itertools.product("AB", ("block_input", "post_attention"), (None, 1, 2), MIXINGS)),
)
def test_whole_model_and_gradients_follow_the_definition(variant, tap, layers_per_bank, mixing):
    """Order of the block, tap of the router, and which layers share a bank."""
    config = make_config(
        num_layers=4,
        layers="0,1,3",
        num_routed=2,
        variant=variant,
        layers_per_bank=layers_per_bank,
        mixing=mixing,
        router=RouterConfig(tap=tap),
    )
    bank_of_layer = {
        None: {0: 0, 1: 0, 3: 0},
        1: {0: 0, 1: 1, 3: 2},
        2: {0: 0, 1: 0, 3: 1},
    }[layers_per_bank]
    model = randomise(build_model(config))
    assert len(model.banks) == len(set(bank_of_layer.values()))
    generator = torch.Generator().manual_seed(2)
    tokens_BL = torch.randint(0, 11, (len(LENGTHS), max(LENGTHS)), generator=generator)
    upstream_BLV = torch.randn(*tokens_BL.shape, 11, generator=generator, dtype=torch.float64)
    valid_BL = valid_mask(True)
    logits_BLV = model(tokens_BL, valid_BL).logits_BLV
    (logits_BLV * upstream_BLV)[valid_BL].sum().backward()

    weights = leaves(model)
    loss = 0.0
    for b, length in enumerate(LENGTHS):
        naive_LV = naive_logits(config, weights, tokens_BL[b, :length].tolist(), bank_of_layer)
        torch.testing.assert_close(logits_BLV[b, :length], naive_LV, rtol=1e-9, atol=1e-10)
        loss = loss + (naive_LV * upstream_BLV[b, :length]).sum()
    loss.backward()
    assert all(w.grad is not None for w in weights.values())
    found = {name: p.grad for name, p in model.named_parameters()}
    assert_same_gradients(found, {name: w.grad for name, w in weights.items()})


def test_oracle_notices_a_wrong_weight():
    """The comparison has teeth: a routed scale other than the model's is no match."""
    config, other = make_config(num_routed=2), make_config(num_routed=2, routed_scale=2.4)
    read = randomise(MemoryRead(config))
    x_BLD = torch.randn(1, 3, DIM, dtype=torch.float64)
    bank = torch.randn(NUM_CHAPTERS, CHAPTER_TOKENS, DIM, dtype=torch.float64)
    out_LD = read(x_BLD, x_BLD, bank, None)[0][0]
    weights = dict(read.named_parameters())
    same, wrong = (
        torch.stack(naive_read(c, weights, "", list(x_BLD[0]), list(x_BLD[0]), bank))
        for c in (config, other)
    )
    assert (out_LD - same).abs().max() < 1e-10 < (out_LD - wrong).abs().max()
