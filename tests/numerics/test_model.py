"""The model as a whole: sizes, initialisation, causality, losses, and what must not change it."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from moc.model import MemoryConfig, ModelConfig, RouterConfig, Transformer, build_model, preset
from moc.model.config import validate_model
from moc.model.router import balance_loss, pick_counts, z_loss
from moc.model.transformer import parameter_group

torch.set_num_threads(1)
DENSE = ModelConfig(
    vocab_size=37, num_layers=3, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, memory=None
)
MEMORY = MemoryConfig(num_chapters=9, num_routed=3, chapter_tokens=4, layers="0,2")
MOC = replace(DENSE, memory=MEMORY)


def tokens_of(batch, length, seed=0):
    return torch.randint(37, (batch, length), generator=torch.Generator().manual_seed(seed))


def lively(config, seed=0):
    """A model whose every part matters: no zero maps, weights far from their small init."""
    memory = config.memory and replace(config.memory, output_init="normal", bank_init_std=0.5)
    return build_model(replace(config, init_std=0.3, residual_init_std=0.3, memory=memory), seed)


# sizes


def test_parameter_counts_are_the_published_ones():
    paper = preset("paper")
    shapes = {
        "backbone": (replace(paper, memory=None), (147_874_560, 0, 0)),
        "iso_flop": (replace(paper, memory=None, num_layers=24), (202_937_088, 0, 0)),
        "moc": (paper, (147_874_560, 22_042_628, 201_375_744)),
    }
    for name, (config, expected) in shapes.items():
        with torch.device("meta"):
            model = Transformer(config)
        counts = {"backbone": 0, "memory_layers": 0, "bank": 0}
        for parameter_name, parameter in model.named_parameters():
            counts[parameter_group(parameter_name)] += parameter.numel()
        assert tuple(counts.values()) == expected, name
    assert sum(expected) == 371_292_932


def test_every_parameter_is_in_the_group_that_its_learning_rate_is_meant_for():
    model = build_model(replace(MOC, memory=replace(MEMORY, variant="B", layers_per_bank=1)))
    groups = {name: parameter_group(name) for name, _ in model.named_parameters()}
    assert {name for name, group in groups.items() if group == "bank"} == {
        "banks.0.tokens",
        "banks.1.tokens",
    }
    parts = ("memory.", "memory_mlp.", "memory_mlp_norm.")
    assert {name for name, group in groups.items() if group == "memory_layers"} == {
        name for name in groups if name.split(".", 2)[-1].startswith(parts)
    }


# initialisation


def test_a_fresh_memory_changes_nothing():
    """Variant A with its memory at init is the dense model of the same seed, bit for bit."""
    dense, moc = build_model(DENSE, 5), build_model(MOC, 5)
    tokens_BL = tokens_of(2, 10)
    assert torch.equal(moc(tokens_BL).logits_BLV, dense(tokens_BL).logits_BLV)
    normal = build_model(replace(MOC, memory=replace(MEMORY, output_init="normal")), 5)
    assert not torch.equal(normal(tokens_BL).logits_BLV, dense(tokens_BL).logits_BLV)


def test_a_fresh_memory_in_variant_b_adds_only_the_second_mlp():
    model = build_model(replace(MOC, memory=replace(MEMORY, variant="B")), 5)
    tokens_BL = tokens_of(2, 10)
    fresh_BLV = model(tokens_BL).logits_BLV
    for block in model.blocks:
        block.memory = None
    assert torch.equal(model(tokens_BL).logits_BLV, fresh_BLV)
    assert not torch.equal(build_model(DENSE, 5)(tokens_BL).logits_BLV, fresh_BLV)


def test_arms_of_one_seed_start_from_the_same_backbone():
    """Paired comparisons assume it: the arms differ in their memory, not in their luck."""
    dense = build_model(DENSE, 3).state_dict()
    for config in (
        MOC,
        replace(MOC, memory=replace(MEMORY, variant="B", num_chapters=30, layers="all")),
        replace(DENSE, num_layers=5),
    ):
        torch.manual_seed(torch.randint(1000, ()).item())  # the global generator plays no part
        other = build_model(replace(config, residual_init_std=0.02 / math.sqrt(6)), 3).state_dict()
        for name, tensor in dense.items():
            assert torch.equal(other[name], tensor), name
    assert not torch.equal(build_model(DENSE, 4).embedding.weight, dense["embedding.weight"])


@pytest.mark.parametrize(
    ("residual_init_std", "residual"), [(0.00378, 0.00378), (None, 0.02 / math.sqrt(2 * 3))]
)
def test_initial_standard_deviations(residual_init_std, residual):
    config = replace(
        DENSE,
        vocab_size=512,
        dim=128,
        mlp_dim=256,
        residual_init_std=residual_init_std,
        memory=replace(MEMORY, num_chapters=33, chapter_tokens=16, variant="B"),
    )
    for name, parameter in build_model(config).named_parameters():
        leaf = name.split(".", 2)[-1]
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
            continue
        if leaf in ("memory.out.weight", "memory.router.linear.bias"):
            assert (parameter == 0).all(), name
            continue
        small = leaf in ("attention.out.weight", "mlp.down.weight", "memory_mlp.down.weight")
        std = residual if small else 0.02
        # five standard errors of a standard deviation, of a mean
        error = 5 * std / math.sqrt(parameter.numel())
        assert parameter.std().item() == pytest.approx(std, abs=error), name
        assert parameter.mean().item() == pytest.approx(0, abs=error), name


def test_paper_preset_has_the_published_init():
    paper = preset("paper")
    assert (paper.init_std, paper.residual_init_std) == (0.02, 0.00378)
    assert paper.memory.bank_init_std == 0.02 and paper.memory.output_init == "zero"


# the backbone


def test_backbone_is_the_llama_architecture():
    """Weights copied into an independent implementation give the same logits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=37,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        attn_implementation="eager",
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    model = lively(DENSE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    renamed = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ("blocks.", "model.layers."),
            ("embedding.", "model.embed_tokens."),
            ("attention_norm.", "input_layernorm."),
            ("mlp_norm.", "post_attention_layernorm."),
            ("attention.out.", "self_attn.o_proj."),
            ("attention.", "self_attn."),
            ("mlp.", "mlp."),
        ):
            name = name.replace(ours, theirs)
        for short in ("q", "k", "v", "gate", "up", "down"):
            name = name.replace(f".{short}.weight", f".{short}_proj.weight")
        renamed["model.norm.weight" if name == "norm.weight" else name] = tensor
    renamed["lm_head.weight"] = renamed["model.embed_tokens.weight"]
    llama.load_state_dict(renamed)
    tokens_BL = tokens_of(2, 50)
    with torch.no_grad():
        logits_BLV, theirs_BLV = model(tokens_BL).logits_BLV, llama(tokens_BL).logits
    assert logits_BLV.std() > 0.1
    scale = theirs_BLV.abs().max()
    torch.testing.assert_close(logits_BLV / scale, theirs_BLV / scale, rtol=0, atol=1e-5)


# causality and padding


def change_after(position, tokens_BL):
    changed_BL = tokens_BL.clone()
    changed_BL[:, position + 1 :] = (changed_BL[:, position + 1 :] + 1) % 37
    return changed_BL


@pytest.mark.parametrize("position", [0, 5, 10])
def test_dense_model_does_not_look_ahead(position):
    model, tokens_BL = lively(DENSE), tokens_of(2, 12)
    before = model(tokens_BL).logits_BLV
    after = model(change_after(position, tokens_BL)).logits_BLV
    torch.testing.assert_close(
        after[:, : position + 1], before[:, : position + 1], rtol=0, atol=1e-5
    )
    assert (after - before)[:, position + 1 :].abs().max() > 0.1


def test_memory_without_a_router_does_not_look_ahead():
    model = lively(replace(MOC, memory=replace(MEMORY, num_routed=None)))
    tokens_BL = tokens_of(2, 12)
    before = model(tokens_BL).logits_BLV[:, :6]
    after = model(change_after(5, tokens_BL)).logits_BLV[:, :6]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_sequence_scope_looks_ahead():
    """The published routing is not causal, and is labelled so: this test would find it mended."""
    model, tokens_BL = lively(MOC), tokens_of(2, 12)
    before = model(tokens_BL).logits_BLV
    after = model(change_after(5, tokens_BL)).logits_BLV
    assert (after - before)[:, :6].abs().max() > 1e-3


@pytest.mark.parametrize("tap", ["block_input", "post_attention"])
def test_scores_do_not_depend_on_padding(tap):
    """A request scored alone, in a batch with longer ones, or over other filler: the same."""
    model = lively(replace(MOC, memory=replace(MEMORY, router=RouterConfig(tap=tap)))).double()
    lengths, tokens_BL = (3, 12, 7), tokens_of(3, 12)
    valid_BL = torch.arange(12)[None] < torch.tensor(lengths)[:, None]
    out = model(tokens_BL, valid_BL)
    refilled = model(tokens_BL.masked_fill(~valid_BL, 36), valid_BL)
    for b, length in enumerate(lengths):
        alone = model(tokens_BL[b : b + 1, :length])
        for batched in (out, refilled):
            torch.testing.assert_close(
                batched.logits_BLV[b, :length], alone.logits_BLV[0], rtol=1e-9, atol=1e-9
            )
            for together, single in zip(batched.routing, alone.routing, strict=True):
                assert torch.equal(together.index_BGN[b], single.index_BGN[0])
    unmarked_BLV = model(tokens_BL).logits_BLV
    assert (unmarked_BLV - out.logits_BLV)[0, :3].abs().max() > 1e-3  # marking it matters


# what may change speed or memory, and nothing else


def loss_and_gradients(model, tokens_BL):
    model.zero_grad()
    out = model(tokens_BL)
    loss = F.cross_entropy(out.logits_BLV[:, :-1].flatten(0, 1), tokens_BL[:, 1:].flatten())
    for routing in out.routing:
        probs_XC, logits_XC = routing.probs_BGC.flatten(0, 1), routing.logits_BGC.flatten(0, 1)
        picks_C = pick_counts(routing.index_BGN, 9, 1)
        loss = loss + balance_loss(probs_XC, picks_C) + 0.1 * z_loss(logits_XC)
    loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("variant", ["A", "B"])
def test_activation_checkpointing_changes_nothing(variant):
    config = replace(MOC, memory=replace(MEMORY, variant=variant))
    model, tokens_BL = lively(config), tokens_of(2, 12)
    recomputing = lively(replace(config, activation_checkpointing=True))
    out, gradients = loss_and_gradients(model, tokens_BL)
    again, gradients_again = loss_and_gradients(recomputing, tokens_BL)
    assert torch.equal(out.logits_BLV, again.logits_BLV)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    for one, two in zip(out.routing, again.routing, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))


@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
def test_bf16_autocast_stays_close_and_routes_in_float32(mixing):
    model = lively(replace(MOC, memory=replace(MEMORY, mixing=mixing)))
    tokens_BL = tokens_of(2, 12)
    expected, _ = loss_and_gradients(model, tokens_BL)
    with torch.autocast("cpu", torch.bfloat16):
        out, gradients = loss_and_gradients(model, tokens_BL)
    for routing in out.routing:
        assert {t.dtype for t in (routing.logits_BGC, routing.probs_BGC, routing.weight_BGN)} == {
            torch.float32
        }
    first, expected_first = out.routing[0], expected.routing[0]
    # the first router sees the embedding itself: no bfloat16 on its way
    torch.testing.assert_close(first.logits_BGC, expected_first.logits_BGC, rtol=0, atol=1e-6)
    assert all(grad.isfinite().all() and grad.dtype == torch.float32 for grad in gradients.values())
    error = (out.logits_BLV.float() - expected.logits_BLV).square().mean().sqrt()
    assert error < 0.05 * expected.logits_BLV.square().mean().sqrt()


def test_compiled_model_is_one_graph_and_equals_eager():
    """Forward and backward; aot_eager captures as the default backend does, without a compiler."""
    model = lively(replace(MOC, num_layers=1, memory=replace(MEMORY, layers="0")))
    tokens_BL = tokens_of(2, 8)
    out, gradients = loss_and_gradients(model, tokens_BL)
    model.compile(fullgraph=True, backend="aot_eager")
    again, gradients_again = loss_and_gradients(model, tokens_BL)
    torch.testing.assert_close(again.logits_BLV, out.logits_BLV, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.routing[0].index_BGN, out.routing[0].index_BGN)
    torch.testing.assert_close(gradients_again, gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler"
)
def test_compiled_kernels_of_the_memory_read_equal_eager():
    read = lively(replace(MOC, num_layers=1, memory=replace(MEMORY, layers="0"))).blocks[0].memory
    generator = torch.Generator().manual_seed(0)
    x_BLD, upstream_BLD = (torch.randn(2, 8, 32, generator=generator) for _ in range(2))
    bank_CTM = torch.randn(9, 4, 32, generator=generator)

    def run():
        read.zero_grad()
        inputs = [tensor.clone().requires_grad_() for tensor in (x_BLD, bank_CTM)]
        out_BLD, routing = read(inputs[0], inputs[0], inputs[1], None)
        (out_BLD * upstream_BLD).sum().backward()
        weights = [parameter.grad for parameter in read.parameters()]
        return [out_BLD, routing.weight_BGN, *(tensor.grad for tensor in inputs), *weights]

    expected = run()
    read.compile(fullgraph=True)
    torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-5)


# the router's losses


def test_balance_loss_by_hand():
    """Two groups, three chapters, one pick each: C * sum f P = 3 * (1 * 0.6 + 0 + 1 * 0.15)."""
    probs_XC = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], requires_grad=True)
    loss = balance_loss(probs_XC, torch.tensor([2, 0, 0]))
    assert loss.item() == pytest.approx(3 * 1.0 * 0.6)
    loss = balance_loss(probs_XC, torch.tensor([1, 0, 1]))
    assert loss.item() == pytest.approx(3 * (0.5 * 0.6 + 0.5 * 0.15))
    loss.backward()  # the counts carry no gradient: d/dp = C * f_c / groups
    assert probs_XC.grad.tolist() == [pytest.approx([0.75, 0, 0.75])] * 2


def test_balanced_routing_has_the_least_balance_loss():
    """Uniform load and probabilities over C chapters give exactly K."""
    probs_XC = torch.full((10, 5), 0.2)
    assert balance_loss(probs_XC, torch.full((5,), 4)).item() == pytest.approx(2.0)


def test_z_loss_by_hand():
    logits_XC = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    expected = (math.log(4) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert z_loss(logits_XC).item() == pytest.approx(expected)


def test_losses_and_load_of_a_batch_follow_their_definition():
    model = lively(MOC)
    num_groups, num_chapters = 6, 9
    for routing in model(tokens_of(num_groups, 12)).routing:
        logits, probs = routing.logits_BGC.tolist(), routing.probs_BGC.tolist()
        index = routing.index_BGN.tolist()
        balance, squares = 0.0, 0.0
        for c in range(num_chapters):
            picked = sum(c in row[0][1:] for row in index) / num_groups
            balance += picked * sum(row[0][c] for row in probs) / num_groups
        for row in logits:
            squares += math.log(sum(map(math.exp, row[0]))) ** 2
        picks_C = pick_counts(routing.index_BGN, num_chapters, 1)
        flat = routing.probs_BGC.flatten(0, 1), routing.logits_BGC.flatten(0, 1)
        found = balance_loss(flat[0], picks_C).item(), z_loss(flat[1]).item()
        assert found == pytest.approx((num_chapters * balance, squares / num_groups), rel=1e-5)
        assert picks_C[0] == 0  # the shared chapter is read, never picked
        assert (picks_C / num_groups).sum().item() == pytest.approx(3)
        assert routing.probs_BGC[..., 0].abs().max() == 0
        torch.testing.assert_close(routing.weight_BGN.sum(-1), torch.ones(num_groups, 1))


def test_shared_mass_is_measured_on_request():
    model = lively(replace(MOC, memory=replace(MEMORY, mixing="per_chapter")))
    tokens_BL = tokens_of(2, 12)
    assert all(routing.shared_mass is None for routing in model(tokens_BL).routing)
    out = model(tokens_BL, measure_mass=True)
    # the shared chapter weighs 1 against routed_scale times weights that sum to 1
    assert [routing.shared_mass.item() for routing in out.routing] == [pytest.approx(1 / 3.5)] * 2


# configs that cannot be built


@pytest.mark.parametrize(
    ("changes", "memory", "words"),
    [
        ({"dim": 33}, {}, "model.num_heads 4 does not divide model.dim 33"),
        ({"num_kv_heads": 3}, {}, "model.num_kv_heads 3 does not divide 4 heads"),
        ({"num_heads": 32, "num_kv_heads": 1}, {}, "even head width"),
        ({"vocab_size": 0}, {}, "model.vocab_size must be at least 1, not 0"),
        ({"num_heads": -4}, {}, "model.num_heads must be at least 1, not -4"),
        ({}, {"num_chapters": 0, "num_shared": 0}, "at least one chapter"),
        ({}, {"chapter_tokens": 0}, "at least one token"),
        ({}, {"num_shared": 10}, "num_shared is 10, but there are 9"),
        ({}, {"num_shared": -1}, "num_shared is -1"),
        ({}, {"num_routed": 9}, "num_routed must be 1 to 8"),
        ({}, {"num_routed": 0}, "num_routed must be 1 to 8"),
        ({}, {"layers": "0,3"}, "'0,3' does not fit a model of 3 layers"),
        ({}, {"layers": "every other"}, "'every other' is none of"),
        ({}, {"layers": "every 0"}, "'every 0' does not fit"),
        ({}, {"layers": ""}, "'' is none of"),
        ({}, {"layers_per_bank": 0}, "layers_per_bank must be at least 1"),
        ({}, {"num_heads": 5}, "model.memory.num_heads 5 does not divide model.dim 32"),
        ({}, {"num_heads": -2}, "model.memory.num_heads must be at least 1"),
        ({}, {"num_kv_heads": 3}, "model.memory.num_kv_heads 3 does not divide 4"),
        ({}, {"dim": 0}, "model.memory.dim must be at least 1"),
        ({}, {"variant": "C"}, "model.memory.variant 'C' is none of A, B"),
        ({}, {"mixing": "sum"}, "model.memory.mixing 'sum' is none of joint"),
        ({}, {"output_init": "one"}, "model.memory.output_init 'one'"),
        ({}, {"router": RouterConfig(scope="batch")}, "model.memory.router.scope 'batch'"),
        ({}, {"router": RouterConfig(tap="output")}, "model.memory.router.tap 'output'"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(changes, memory, words):
    config = replace(MOC, **changes, memory=replace(MEMORY, **memory))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are checked below
        build_model(config)
    message = str(caught.value)
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("spec", "num_layers", "expected"),
    [
        ("every 4", 16, [2, 6, 10, 14]),
        ("every 2", 4, [1, 3]),
        ("every 1", 3, [0, 1, 2]),
        ("all", 3, [0, 1, 2]),
        ("first 2", 4, [0, 1]),
        ("last 2", 4, [2, 3]),
        ("last 9", 3, [0, 1, 2]),
        ("3, 1,1", 4, [1, 3]),
    ],
)
def test_memory_layers_can_be_named(spec, num_layers, expected):
    config = replace(MOC, num_layers=num_layers, memory=replace(MEMORY, layers=spec))
    validate_model(config)
    assert config.memory_layers() == expected
    reads = [block.memory is not None for block in build_model(config).blocks]
    assert [i for i, read in enumerate(reads) if read] == expected
