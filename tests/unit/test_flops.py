from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from moc.flops import (
    activation_bytes,
    hardware_train_flops_per_token,
    paper_forward_flops,
    parameter_counts,
    solve_iso_flop,
)
from moc.model import MemoryConfig, ModelConfig, build_model, preset
from moc.model.transformer import parameter_group

PAPER = preset("paper")
SMALL = ModelConfig(vocab_size=97, num_layers=3, dim=48, num_heads=4, num_kv_heads=2, mlp_dim=72)
MEMORY = MemoryConfig(num_chapters=9, num_shared=1, num_routed=3, chapter_tokens=4, layers="1,2")
DENSE = replace(SMALL, memory=None)


def with_memory(**changes) -> ModelConfig:
    return replace(SMALL, memory=replace(MEMORY, **changes))


SHAPES = {
    "dense": DENSE,
    "joint": with_memory(),
    "per_chapter": with_memory(mixing="per_chapter"),
    "log_bias": with_memory(mixing="log_bias"),
    "every chapter": with_memory(num_routed=None),
    "every chapter, per_chapter": with_memory(num_routed=None, mixing="per_chapter"),
    "no shared chapter": with_memory(num_shared=0),
    "variant B": with_memory(variant="B"),
    "narrow memory, own heads": with_memory(dim=20, num_heads=6, num_kv_heads=3),
    "bank per layer": with_memory(layers="all", layers_per_bank=1),
    "bank per two layers": with_memory(layers="all", layers_per_bank=2),
}


@pytest.mark.parametrize(
    ("config", "parameters", "flops"),
    [
        (replace(PAPER, memory=None), 147_874_560, 356_363_685_888),
        (replace(PAPER, memory=None, num_layers=24), 202_937_088, 495_763_542_016),
        (PAPER, 371_292_932, 459_171_802_488),
    ],
)
def test_published_figures_are_exact(config, parameters, flops):
    assert parameter_counts(config).total == parameters
    assert paper_forward_flops(config, 1024) == flops


def test_published_parameters_split_into_backbone_bank_and_memory_layers():
    counts = parameter_counts(PAPER)
    assert (counts.backbone, counts.bank, counts.memory_layers) == (
        147_874_560,
        201_375_744,
        22_042_628,
    )


def test_paper_accounting_by_hand():
    # N = 4 positions, D = 4, key/value width 2, V = 10
    dense = ModelConfig(
        vocab_size=10, num_layers=1, dim=4, num_heads=2, num_kv_heads=1, mlp_dim=3, memory=None
    )
    self_attention = 256 + 128 + 128 + 112 + 72  # q and out, k and v, products, softmax, rotary
    mlp = 288 + 60 + 80 + 16  # three maps, activation, norm, residual
    backbone = self_attention + 80 + 16 + mlp + 80 + 320 + 150  # norm, residual; norm, head, loss
    assert paper_forward_flops(dense, 2, batch=2) == backbone

    memory = MemoryConfig(
        num_chapters=5, num_shared=1, num_routed=2, chapter_tokens=1, dim=6, num_heads=1, layers="0"
    )
    read = 256 + 576 + 192 + 84 + 80 + 16  # q and out, k and v, products, softmax, norm, residual
    router = 16 + 80 + 50 + 10  # pooling, linear, softmax, top 2
    tokens = 36 + 168  # 2 x 3 memory tokens of width 6: weight, norm
    losses = 20 + 10 + 10 + 20 + 15 + 50 + 4 + 40
    routed = backbone + read + router + tokens + losses
    assert paper_forward_flops(replace(dense, memory=memory), 2, batch=2) == routed
    assert (
        paper_forward_flops(replace(dense, memory=replace(memory, variant="B")), 2, batch=2)
        == routed + mlp
    )
    everything = 256 + 960 + 320 + 140 + 80 + 16  # five chapters, no router, no weights
    unrouted = replace(memory, num_routed=None)
    assert paper_forward_flops(replace(dense, memory=unrouted), 2, batch=2) == backbone + everything
    no_shared = replace(memory, num_shared=0, num_routed=3)  # three read, nothing to normalise
    extra = 10 + 10  # a second bit in ceil(log2 K); a third pick in the load statistics
    assert paper_forward_flops(replace(dense, memory=no_shared), 2, batch=2) == routed - 168 + extra


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_those_of_the_model(name):
    counted = {"backbone": 0, "memory_layers": 0, "bank": 0}
    for parameter_name, parameter in build_model(SHAPES[name]).named_parameters():
        counted[parameter_group(parameter_name)] += parameter.numel()
    planned = parameter_counts(SHAPES[name])
    assert counted == {
        "backbone": planned.backbone,
        "memory_layers": planned.memory_layers,
        "bank": planned.bank,
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro_batch", [2, 5])
@pytest.mark.parametrize("name", SHAPES)
def test_hardware_accounting_is_what_flop_counter_sees(name, micro_batch, checkpointing):
    config = replace(SHAPES[name], activation_checkpointing=checkpointing)
    model = build_model(config)
    tokens = torch.randint(config.vocab_size, (micro_batch, 24))
    # flop_counter does not know the fused attention kernel of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(tokens)
        router = sum(routing.logits_BGC.sum() for routing in output.routing)
        (output.logits_BLV.sum() + router).backward()
    executed = counter.get_total_flops() / tokens.numel()
    planned = hardware_train_flops_per_token(config, 24, micro_batch)
    assert planned == pytest.approx(executed, rel=1e-3)  # promised: 1%


def test_fused_attention_counts_the_recomputed_scores():
    queries, memory = (2, 4, 24, 12), (2, 4, 4 * 4, 12)  # B, H, L, E; three layers, two reads
    recomputed = 0
    for keys, num_layers in ((queries, 3), (memory, 2)):
        backward = sdpa_backward_flop_count(queries, queries, keys, keys)
        recomputed += num_layers * (backward - 2 * sdpa_flop_count(queries, keys, keys))
    config = with_memory()
    plain = hardware_train_flops_per_token(config, 24, 2)
    fused = hardware_train_flops_per_token(config, 24, 2, fused_attention=True)
    assert (fused - plain) * 2 * 24 == pytest.approx(recomputed)


@pytest.mark.parametrize("name", SHAPES)
def test_activation_estimate_is_near_what_autograd_saves(name):
    model = build_model(SHAPES[name])
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.zeros(4, 64, dtype=torch.long))
    num_bytes = sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in saved.items()
        if pointer not in parameters
    )
    estimate = activation_bytes(SHAPES[name], 64, 4) - 3 * output.logits_BLV.nbytes
    assert estimate == pytest.approx(num_bytes, rel=0.15)


def sweep():
    for name, context_length in (("tiny", 64), ("tiny", 512), ("small", 256), ("paper", 1024)):
        base = preset(name)
        assert base.memory is not None
        for changes in (
            {},
            {"num_routed": 1},
            {"num_routed": 48},
            {"num_routed": None, "num_chapters": 33},
            {"variant": "B", "layers": "all"},
        ):
            yield replace(base, memory=replace(base.memory, **changes)), context_length


@pytest.mark.parametrize("accounting", ["paper", "hardware"])
@pytest.mark.parametrize(("moc", "context_length"), list(sweep()))
def test_solver_reaches_half_a_percent_by_depth_then_width(moc, context_length, accounting):
    def flops(config):
        if accounting == "paper":
            return 3 * paper_forward_flops(config, context_length) / context_length
        return hardware_train_flops_per_token(config, context_length, 8)

    dense = replace(moc, memory=None)
    solved, error = solve_iso_flop(dense, flops(moc), flops)
    assert abs(error) <= 0.005
    assert flops(solved) / flops(moc) - 1 == pytest.approx(error)
    assert replace(solved, num_layers=dense.num_layers, mlp_dim=dense.mlp_dim) == dense
    assert flops(replace(dense, num_layers=solved.num_layers)) <= flops(moc)
    assert flops(replace(dense, num_layers=solved.num_layers + 1)) > flops(moc)


def test_solver_also_shapes_an_arm_with_memory():
    def flops(config):
        return paper_forward_flops(config, 128)

    cheap = preset("tiny")
    target = flops(replace(cheap, memory=None, num_layers=9))
    solved, error = solve_iso_flop(cheap, target, flops)
    assert solved.memory == cheap.memory and abs(error) <= 0.005


def test_solver_says_when_no_shape_fits():
    with pytest.raises(ValueError, match="no num_layers and mlp_dim"):
        solve_iso_flop(DENSE, 10.0, lambda config: paper_forward_flops(config, 64))
