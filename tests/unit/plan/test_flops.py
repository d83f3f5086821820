from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moc.model import ModelConfig, RouterConfig, build_model, preset
from moc.model.memory.build import build_memory
from moc.model.memory.chapters import costs
from moc.model.transformer import parameter_group
from moc.plan.activations import activation_bytes
from moc.plan.flops import (
    hardware_train_flops_per_token,
    paper_forward_flops,
    parameter_counts,
)
from moc.plan.iso_flop import solve_shape
from tests.support.small_models import chapters, take_turns

PAPER = preset("paper")
SMALL = ModelConfig(vocab_size=97, num_layers=3, dim=48, num_heads=4, num_kv_heads=2, mlp_dim=72)
MEMORY = chapters(num_chapters=9, num_shared=1, num_routed=3, chapter_tokens=4, layers="1,2")
DENSE = replace(SMALL, memory=None)


def with_memory(**changes) -> ModelConfig:
    return replace(SMALL, memory=chapters(MEMORY, **changes))


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
SCOPES = {  # settings, and whether three texts of 24 positions meet chapter after chapter
    "sequence": ({"router": RouterConfig(scope="sequence")}, False),
    "short sequence": ({"router": RouterConfig(scope="sequence"), "chapter_tokens": 96}, True),
    "segments": ({"router": RouterConfig(segment_tokens=8)}, False),
    "uneven segments": ({"router": RouterConfig(segment_tokens=7, window_tokens=3)}, False),
    "short segments": ({"router": RouterConfig(segment_tokens=6), "chapter_tokens": 24}, True),
    "tokens": ({"router": RouterConfig(scope="token")}, True),
    "tokens, tiny chapters": ({"router": RouterConfig(scope="token"), "chapter_tokens": 1}, False),
}
# Numbers of routed chapters that groups taking turns (``take_turns``) fill evenly, three by
# three: in three texts each of 9 is read equally often, and of 300 each once or not at all. So
# neither the number of distinct chapters nor that of their readers (batched products pad the
# smaller ones) is left to chance, and the closed form has to be exact.
READS = {
    "few chapters": {"num_chapters": 10},
    "own heads": {"num_chapters": 301, "num_heads": 6, "num_kv_heads": 3},
    "narrow memory": {"num_chapters": 301, "dim": 8},
}
ABSORBED = {  # where queries and outputs go through the key and value maps, and no chapter does
    "own heads": {"tokens"},
    "narrow memory": SCOPES.keys() - {"sequence"},
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

    memory = chapters(
        num_chapters=5,
        num_shared=1,
        num_routed=2,
        chapter_tokens=1,
        dim=6,
        num_heads=1,
        layers="0",
        router=RouterConfig(scope="sequence"),
    )
    read = 256 + 576 + 192 + 84 + 80 + 16  # q and out, k and v, products, softmax, norm, residual
    router = 16 + 80 + 50 + 10  # pooling, linear, softmax, top 2
    tokens = 36 + 168  # 2 x 3 memory tokens of width 6: weight, norm
    losses = 20 + 10 + 10 + 20 + 15 + 50 + 4 + 40
    routed = backbone + read + router + tokens + losses
    assert paper_forward_flops(replace(dense, memory=memory), 2, batch=2) == routed
    assert (
        paper_forward_flops(replace(dense, memory=chapters(memory, variant="B")), 2, batch=2)
        == routed + mlp
    )
    everything = 256 + 960 + 320 + 140 + 80 + 16  # five chapters, no router, no weights
    unrouted = chapters(memory, num_routed=None)
    assert paper_forward_flops(replace(dense, memory=unrouted), 2, batch=2) == backbone + everything
    no_shared = chapters(memory, num_shared=0, num_routed=3)  # three read, nothing to normalise
    extra = 10 + 10  # a second bit in ceil(log2 K); a third pick in the load statistics
    assert paper_forward_flops(replace(dense, memory=no_shared), 2, batch=2) == routed - 168 + extra


def test_paper_accounting_of_routing_groups_by_hand():
    """An iso-FLOP baseline of a causal arm is only as fair as this count."""
    # 2 sequences of 5 positions, D = 4; 8 chapters of one token of width 6, 1 + 2 read per group
    dense = ModelConfig(
        vocab_size=10, num_layers=1, dim=4, num_heads=2, num_kv_heads=1, mlp_dim=3, memory=None
    )

    def layer(**router):
        memory = chapters(
            num_chapters=8,
            num_shared=1,
            num_routed=2,
            chapter_tokens=1,
            dim=6,
            num_heads=1,
            layers="0",
            router=RouterConfig(**router),
        )
        read = paper_forward_flops(replace(dense, memory=memory), 5, batch=2)
        return read - paper_forward_flops(dense, 5, batch=2)

    read = 640 + 480 + 210 + 200 + 40  # q and out, products, softmax, norm, residual
    # 3 segments start at 0, 2, 4: 4 additions and 3 divisions for each of 4 dims and 2 sequences;
    # they route 6 groups to at most 1 + 6 chapters per sequence
    pooling = 7 * 8
    router = 384 + 240 + 48 + 108  # linear, softmax, top 2, weighting of 3 tokens per group
    tokens = 2 * 14 * 48 + 14 * 28  # keys, values and norm of 2 x 7 chapters
    losses = 96 + 48 + 16 + 96 + 24 + 240 + 12 + 192
    segments = layer(scope="segment", segment_tokens=2)
    assert segments == read + pooling + router + tokens + losses
    # a window of 2 leaves something out at the starts 2 and 4: one subtraction each
    assert layer(scope="segment", segment_tokens=2, window_tokens=2) == segments + 2 * 8

    # 10 groups; all 8 chapters may be read in each sequence; nothing to pool
    router = 640 + 400 + 80 + 180
    tokens = 2 * 16 * 48 + 16 * 28
    losses = 160 + 80 + 16 + 160 + 24 + 400 + 20 + 320
    assert layer(scope="token") == read + router + tokens + losses

    # one segment routes like a sequence, on its first position: a division instead of 5 operations
    assert layer(scope="segment", segment_tokens=9) == layer(scope="sequence") - 4 * 8


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
    check_hardware_accounting(config, micro_batch)


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("scope", SCOPES)
def test_hardware_accounting_follows_the_routing_scope(scope, read, mixing, micro_batch):
    """Otherwise the plan and the MFU of a causal arm are those of another model."""
    settings, grouped = SCOPES[scope]
    config = with_memory(mixing=mixing, **settings, **READS[read])
    check_hardware_accounting(config, micro_batch)
    check_hardware_accounting(replace(config, activation_checkpointing=True), micro_batch)
    if micro_batch == 3:
        executed = executed_read(config, 24, micro_batch)
        assert executed.grouped == grouped
        assert executed.absorbed == (scope in ABSORBED.get(read, ()))


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("scope", SCOPES)
def test_natural_routing_executes_no_more_than_is_planned(scope, read):
    """Fewer distinct chapters than there could be, and nothing else in exchange than what is said
    here: or the plan of a run would promise a time that its routing cannot keep."""
    config = with_memory(**SCOPES[scope][0], **READS[read])
    planned = hardware_train_flops_per_token(config, 24, 3)
    reading = planned - hardware_train_flops_per_token(replace(config, memory=None), 24, 3)
    sizes = executed_read(config, 24, 3)
    if sizes.grouped:  # readers of like numbers share a product: a seventh may be padding
        planned += 0.15 * reading
    if sizes.absorbed:  # maps are absorbed to save a quarter: few chapters may be projected again
        planned += reading / 3
    assert executed_flops_per_token(config, 3) <= planned


def test_a_gpu_projects_chapters_that_are_too_wide_for_its_kernels():
    """Otherwise its utilisation is that of work that it is spared on a CPU alone."""
    scope = {"router": RouterConfig(scope="token"), "chapter_tokens": 16, "num_chapters": 301}
    for memory_dim, too_wide in ((256, False), (264, True)):
        config = with_memory(dim=memory_dim, num_routed=1, **scope)
        read = executed_read(config, 24, 3)
        assert read.absorbed and read.head_width == memory_dim
        on_gpu = executed_read(config, 24, 3, gpu=True)
        assert (on_gpu.absorbed, on_gpu.head_width) == ((False, 12) if too_wide else (True, 256))
        cpu, gpu = (hardware_train_flops_per_token(config, 24, 3, gpu=on) for on in (False, True))
        assert (gpu > cpu) == too_wide


def executed_read(config, context_length, batch, **options):
    kind = build_memory(config)
    return costs.executed_read(kind, kind.sizes, context_length, batch, **options)


def check_hardware_accounting(config, micro_batch):
    planned = hardware_train_flops_per_token(config, 24, micro_batch)
    assert planned == pytest.approx(executed_flops_per_token(config, micro_batch), rel=1e-9)


def executed_flops_per_token(config, micro_batch):
    model = take_turns(build_model(config))
    tokens = torch.randint(
        config.vocab_size, (micro_batch, 24), generator=torch.Generator().manual_seed(0)
    )
    with FlopCounterMode(display=False, custom_mapping=CPU_PRODUCTS) as counter:
        output = model(tokens, targets_BL=tokens, counted_BL=torch.ones_like(tokens).bool())
        output.nll.backward()
    return counter.get_total_flops() / tokens.numel()


def product_flops(rows, inner, columns):
    return 2 * rows * inner * columns


def flash_flops(q_shape, k_shape, *_, **__):
    """Scores, and their sum of values: (B, H, L, E) queries to (B, J, S, E) keys."""
    batch, num_heads, length, width = q_shape
    return 2 * batch * num_heads * product_flops(length, width, k_shape[2])


def flash_backward_flops(_, q_shape, k_shape, *__, **___):
    """Scores once more, and the gradients of shares, values, queries and keys."""
    return 5 * flash_flops(q_shape, k_shape) // 2


def addmm_flops(_, left_shape, right_shape, **__):
    return product_flops(*left_shape, right_shape[1])


# flop_counter knows neither the fused kernels of the CPU nor a product that is added in place
CPU_PRODUCTS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flash_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward_flops,
    torch.ops.aten.addmm_: addmm_flops,
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_activation_estimate_is_near_what_autograd_saves(name, bf16):
    check_activation_estimate(SHAPES[name], bf16)


@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("scope", SCOPES)
def test_activation_estimate_follows_the_routing_scope(scope, read, mixing):
    check_activation_estimate(with_memory(mixing=mixing, **SCOPES[scope][0], **READS[read]))


def check_activation_estimate(config, bf16=False):
    model = take_turns(build_model(config))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(4, 64, dtype=torch.long)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(tokens, targets_BL=tokens, counted_BL=tokens == 0, slots=model.gradient_slots(4, 64))
    num_bytes = sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in saved.items()
        if pointer not in parameters
    )
    assert activation_bytes(config, 64, 4, bf16=bf16) == pytest.approx(num_bytes, rel=0.15)


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
            yield replace(base, memory=chapters(base.memory, **changes)), context_length


@pytest.mark.parametrize("accounting", ["paper", "hardware"])
@pytest.mark.parametrize(("moc", "context_length"), list(sweep()))
def test_solver_reaches_half_a_percent_by_depth_then_width(moc, context_length, accounting):
    def flops(config):
        if accounting == "paper":
            return 3 * paper_forward_flops(config, context_length) / context_length
        return hardware_train_flops_per_token(config, context_length, 8)

    dense = replace(moc, memory=None)
    solved, error = solve_shape(dense, flops(moc), flops)
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
    solved, error = solve_shape(cheap, target, flops)
    assert solved.memory == cheap.memory and abs(error) <= 0.005


def test_solver_says_when_no_shape_fits():
    with pytest.raises(ValueError, match="no num_layers and mlp_dim"):
        solve_shape(DENSE, 10.0, lambda config: paper_forward_flops(config, 64))
