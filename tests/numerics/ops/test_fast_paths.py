"""The whole memory read, on every path, against the definition in float64.

What would break for a user: a path that is only taken for large banks, short groups or lazy
optimizers, and that is another function, or forgets part of a gradient.
"""

from dataclasses import replace

import pytest
import torch

from moc.model import ModelConfig, RouterConfig, build_model
from moc.model.memory.bank import most_distinct
from moc.model.memory.chapters import read as chapter_read
from moc.ops.cpu import bank as cpu_bank
from moc.ops.cpu import grouped
from tests.support.memory_layer import MemoryLayer
from tests.support.oracle import naive_attention
from tests.support.small_models import chapters

torch.set_num_threads(1)
BATCH, LENGTH, CHAPTERS = 2, 7, 9
SCOPES = {
    "sequence": RouterConfig(scope="sequence"),
    "segment": RouterConfig(scope="segment", segment_tokens=3),
    "token": RouterConfig(scope="token"),
}
MIXINGS = ("joint", "per_chapter", "log_bias")


def make_read(scope, *, dtype=torch.float64, seed=0, **memory):
    config = ModelConfig(
        vocab_size=11,
        num_layers=1,
        dim=16,
        num_heads=4,
        num_kv_heads=2,
        mlp_dim=8,
        memory=chapters(
            **{
                "num_chapters": CHAPTERS,
                "num_routed": 2,
                "chapter_tokens": 3,
                "num_kv_heads": 2,
                "dim": 12,
                "layers": "all",
                "router": SCOPES[scope],
                **memory,
            }
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    read = MemoryLayer(config)
    for parameter in read.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (parameter.data * 0.5).to(dtype)
    x = torch.randn(BATCH, LENGTH, 16, generator=generator, dtype=torch.float64)
    bank = torch.randn(
        config.memory.chapters.num_chapters, 3, 12, generator=generator, dtype=torch.float64
    )
    return read, x.to(dtype), bank.to(dtype)


def definition(layer, x_BLD, bank_CTM):
    """Steps 2 to 6 of the design: every chapter of the bank projected, a loop over positions."""
    routing = layer.memory.address.router(x_BLD, None)
    read, m_CTM = layer.memory.read, bank_CTM
    if read.num_shared:
        m_CTM = bank_CTM / (bank_CTM.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    maps = read.kv.weight.split([read.num_kv_heads * read.head_dim] * 2)
    shape = (read.num_kv_heads, read.head_dim)
    k_CTJE, v_CTJE = ((m_CTM @ w.T).unflatten(-1, shape) for w in maps)
    q_BLHE = read.q(layer.memory_norm(x_BLD)).unflatten(-1, (read.num_heads, read.head_dim))
    out_BLHE = naive_attention(
        q_BLHE,
        k_CTJE,
        v_CTJE,
        routing.index_BGN,
        routing.weight_BGN.to(q_BLHE.dtype),
        mixing=read.sizes.mixing,
        group_tokens=routing.group_tokens,
    )
    return read.out(out_BLHE.flatten(2))


def gradients(read, x, bank, run):
    """Output of ``run(read, x, bank)``, and gradients of everything that it is made from."""
    read.zero_grad()
    x, bank = x.clone().requires_grad_(), bank.clone().requires_grad_()
    out = run(read, x, bank)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out)
    (out * upstream).sum().backward()
    found = {name: p.grad.clone() for name, p in read.named_parameters()}
    return out.detach(), {**found, "x": x.grad, "bank": bank.grad}


def with_slot(read, x, bank):
    """The gradient of the bank goes to a slot; given to the bank by hand."""
    router = read.memory.address.router
    num_read = router.num_shared + router.num_routed
    groups = {"sequence": 1, "segment": 3, "token": LENGTH}[router.config.scope]
    most = most_distinct(len(bank), (BATCH, groups, num_read), router.num_shared)
    slot = torch.zeros((), dtype=bank.dtype).expand(most, *bank.shape[1:]).requires_grad_()
    out, routing = read(x, x, bank, slot_UX=slot)

    def give(_):
        bank.grad = torch.zeros_like(bank)
        bank.grad[routing.row_U] = slot.grad[: len(routing.row_U)]

    # once all is done: the slot's gradient is that of the chapters taken
    slot.register_post_accumulate_grad_hook(give)
    return out


def without_slot(read, x, bank):
    return read(x, x, bank)[0]


@pytest.fixture(params=["projected", "absorbed"])
def absorbed(request, monkeypatch):
    monkeypatch.setattr(chapter_read, "absorbs", lambda **_: request.param == "absorbed")


@pytest.fixture(params=["chapters move", "queries move"])
def moves(request, monkeypatch):
    for way in (grouped, cpu_bank):
        monkeypatch.setattr(way, "moves_queries", lambda *_: request.param == "queries move")


@pytest.mark.usefixtures("absorbed", "moves")
@pytest.mark.parametrize("run", [with_slot, without_slot])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_path_is_the_definition(scope, mixing, run):
    read, x, bank = make_read(scope, mixing=mixing)
    check(read, x, bank, run)


@pytest.mark.usefixtures("absorbed", "moves")
@pytest.mark.parametrize("run", [with_slot, without_slot])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    "case", ["all chapters", "one for every group", "many never picked", "no shared chapter"]
)
def test_extreme_choices(case, mixing, run):
    """Every path at its corners; token scope has the most groups."""
    changes = {
        "all chapters": {"num_routed": CHAPTERS - 1},
        "one for every group": {"num_chapters": 50},
        "many never picked": {"num_chapters": 150},
        "no shared chapter": {"num_shared": 0, "num_chapters": 50},
    }[case]
    read, x, bank = make_read("token", mixing=mixing, **changes)
    if case == "one for every group":
        read.memory.address.router.linear.bias.data[4] = 100.0
    _, grads = check(read, x, bank, run)
    index_BGN = read.memory.address.router(x, None).index_BGN
    if case == "one for every group":
        assert (index_BGN == 4).any(-1).all()
    unread = sorted(set(range(len(bank))) - set(index_BGN.flatten().tolist()))
    assert bool(unread) == (case != "all chapters")
    assert not grads["bank"][unread].any()


def check(read, x, bank, run):
    expected, expected_grads = gradients(read, x, bank, definition)
    out, grads = gradients(read, x, bank, run)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-8, atol=1e-10)
    assert all(grad.any() for grad in grads.values())
    return out, grads


@pytest.mark.usefixtures("absorbed", "moves")
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", SCOPES)
def test_float32_stays_within_a_millionth_of_the_largest_value(scope, mixing):
    """Stated bound: 1e-5 of each tensor's largest entry, against the definition in float64."""
    narrow, x, bank = make_read(scope, mixing=mixing, dtype=torch.float32)
    out, grads = gradients(narrow, x, bank, with_slot)
    wide, _, _ = make_read(scope, mixing=mixing)
    wide.load_state_dict(narrow.state_dict())
    expected, expected_grads = gradients(wide, x.double(), bank.double(), definition)
    for name, value, truth in [("out", out, expected)] + [
        (name, grads[name], expected_grads[name]) for name in grads
    ]:
        error = (value.double() - truth).abs().max() / truth.abs().max()
        assert error < 1e-5, name


@pytest.mark.usefixtures("absorbed", "moves")
@pytest.mark.parametrize("scope", SCOPES)
def test_a_frozen_bank_lets_everything_else_learn(scope):
    """A phase with ``bank: {freeze: true}`` has no slots."""
    read, x, bank = make_read(scope)

    def frozen(read, x, bank):
        bank.grad = torch.zeros_like(bank)  # for the comparison
        return read(x, x, bank.detach())[0]

    _, expected = gradients(read, x, bank, definition)
    _, grads = gradients(read, x, bank, frozen)
    assert not grads.pop("bank").any() and expected.pop("bank").any()
    torch.testing.assert_close(grads, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scope", SCOPES)
def test_without_gradients_the_output_is_the_same(scope):
    read, x, bank = make_read(scope)
    expected = definition(read, x, bank)
    with torch.no_grad():
        torch.testing.assert_close(without_slot(read, x, bank), expected, rtol=1e-9, atol=1e-11)


# the model around it


MODEL = ModelConfig(
    vocab_size=64,
    num_layers=3,
    dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=48,
    memory=chapters(
        num_chapters=40, num_routed=2, chapter_tokens=4, layers="0,2", output_init="normal"
    ),
)


def model_in(scope, **changes):
    router = RouterConfig(scope=scope, segment_tokens=16)
    memory = chapters(MODEL.memory, router=router, mixing="per_chapter")
    return build_model(replace(MODEL, memory=memory, **changes))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_slots_hold_what_the_bank_would(scope, checkpointing):
    """Over two layers that read one bank, recomputed or not; 70 positions of 3 sequences."""
    model = model_in(scope, activation_checkpointing=checkpointing)
    tokens = torch.randint(64, (3, 71), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    counted = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.8
    logits = model(inputs).logits_BLV
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    (nll * counted.flatten()).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    slots = model.gradient_slots(*inputs.shape)
    output = model(inputs, targets_BL=targets, counted_BL=counted, slots=slots)
    assert output.nll.item() == pytest.approx((nll * counted.flatten()).sum().item(), rel=1e-6)
    output.nll.backward()
    bank = torch.zeros(40, 4, 32)
    for slot, routing in zip(slots, output.addresses, strict=True):
        bank.index_add_(0, routing.row_U, slot.grad[: len(routing.row_U)])
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert "banks.0.rows" not in found
    torch.testing.assert_close(
        {**found, "banks.0.rows": bank}, expected, rtol=1e-4, atol=2e-5, check_stride=False
    )


@pytest.mark.parametrize(("scope", "mixing"), list(zip(SCOPES, MIXINGS, strict=True)))
def test_the_compiler_finds_no_break_in_the_forward_pass(scope, mixing):
    """``fullgraph`` refuses any; forward, slots and loss, and the same numbers as without."""
    model = model_in(scope)
    for block in model.blocks:
        if block.memory is not None:
            read = block.memory.read
            read.sizes = read.sizes._replace(mixing=mixing)
    tokens = torch.randint(64, (2, 71), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    counted = torch.ones_like(targets, dtype=torch.bool)

    def run(call):
        model.zero_grad()
        slots = model.gradient_slots(*inputs.shape)
        output = call(inputs, targets_BL=targets, counted_BL=counted, slots=slots)
        output.nll.backward()
        bank = torch.zeros(40, 4, 32)
        for slot, routing in zip(slots, output.addresses, strict=True):
            index = routing.index_BGN.unique()
            rows = torch.isin(routing.row_U, index)
            bank.index_add_(0, routing.row_U[rows], slot.grad[: len(rows)][rows])
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return output.nll.detach(), {**grads, "bank": bank}

    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), run(model), rtol=1e-4, atol=2e-5)
