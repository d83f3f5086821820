"""Leakage, against models that know how much it is, and a loop made here."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from evals.measures.leakage import _donors, choice_leakage, leakage_record, measure_leakage
from evals.scoring.harness import evaluate_model
from evals.statistics.intervals import clustered_mean, paired_difference
from moc.model import ModelConfig, RouterConfig, build_model
from tests.support.fake_language import ByteTokenizer, routed_model
from tests.support.small_models import chapters

SURE = 40.0  # a logit that leaves nothing to the others


def hand_set_model(next_VV, router_CV, bias_C, chapter_CV, scope="sequence"):
    """Logits at a token v: row v of ``next_VV``, plus row c of ``chapter_CV`` for the one chapter c
    whose ``bias_C`` plus mean of ``router_CV`` over the pooled tokens is largest.

    Embeddings are one-hot, with a large constant beside them that makes every norm a fixed scale.
    """
    num_chapters, vocab_size = router_CV.shape
    ballast, dim = 1e5, vocab_size + 1 + (vocab_size + 1) % 2
    memory = chapters(
        num_chapters=num_chapters, num_shared=0, num_routed=1, chapter_tokens=1, layers="all",
        variant="B", router=RouterConfig(scope=scope, segment_tokens=4),
    )  # fmt: skip
    model = build_model(
        ModelConfig(
            vocab_size=vocab_size, num_layers=1, dim=dim, num_heads=1, num_kv_heads=1,
            mlp_dim=vocab_size, memory=memory,
        )
    )  # fmt: skip
    scale = ballast / math.sqrt(dim)
    V = slice(vocab_size)
    block = model.blocks[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight[:, V] = torch.eye(vocab_size)
        model.embedding.weight[:, vocab_size] = ballast
        model.norm.weight[V] = block.mlp_norm.weight[V] = scale
        for gate_or_up in block.mlp.gate_up.weight.chunk(2):
            gate_or_up[:, V] = torch.eye(vocab_size)
        block.mlp.down.weight[V] = next_VV.T * (1 + math.exp(-1))  # silu(1) = 1 / (1 + 1/e)
        block.memory.read.kv.weight.chunk(2)[1].copy_(torch.eye(dim))  # values; keys stay zero
        block.memory.read.out.weight.copy_(torch.eye(dim))
        model.banks[0].rows[:, 0, V] = chapter_CV
        block.memory.address.router.linear.weight[:, V] = router_CV
        block.memory.address.router.linear.bias.copy_(bias_C)
    return model.eval()


# A window of 16 tokens: places that follow one another, a marker at 7, one of eight symbols at 8.
LENGTH, MARKER_AT, MARKER, NUM_SYMBOLS = 16, 7, 8, 8
PLACES = range(10, 10 + LENGTH + 1)


def symbol_windows(symbols):
    """Tokens (N, 17) and loss mask; only the symbol cannot be told from what precedes it."""
    tokens = torch.tensor(PLACES).repeat(len(symbols), 1)
    tokens[:, MARKER_AT] = MARKER
    tokens[:, MARKER_AT + 1] = torch.tensor(symbols)
    return tokens, torch.ones(len(symbols), LENGTH, dtype=torch.bool)


def symbol_model(lift, scope="sequence"):
    """Knows the order of places. After the marker, ``lift`` nats for the symbol that it is routed
    by, if any: e^lift / (e^lift + 7) for that one, and as much for each of the others."""
    vocab_size = PLACES.stop
    next_VV = torch.zeros(vocab_size, vocab_size)
    for place in PLACES[:-1]:
        next_VV[place, place + 1] = SURE
    next_VV[PLACES[MARKER_AT - 1]] = SURE * torch.eye(vocab_size)[MARKER]
    next_VV[MARKER, :NUM_SYMBOLS] = SURE
    next_VV[:NUM_SYMBOLS, PLACES[MARKER_AT + 2]] = SURE
    seen_CV = torch.eye(NUM_SYMBOLS + 1, vocab_size)
    seen_CV[-1] = 0.0  # the last chapter is read where no symbol has been seen, and says nothing
    bias_C = torch.eye(NUM_SYMBOLS + 1)[-1]
    return hand_set_model(next_VV, 1000 * seen_CV, bias_C, lift * seen_CV, scope)


def test_a_router_that_reads_the_future_gains_exactly_the_bits_that_it_hides():
    """One of eight symbols, known only from the future: 3 bits at its place and none elsewhere."""
    windows = symbol_windows([n % NUM_SYMBOLS for n in range(16)])
    found = measure_leakage(symbol_model(lift=20.0), *windows, batch_size=7)
    assert (found["num_windows"], found["num_tokens"]) == (16, 16 * LENGTH)
    assert found["full"] == pytest.approx(0.0, abs=1e-4)
    assert found["prefix"] == pytest.approx(3 / LENGTH, abs=1e-4)
    for key in ("value", "low", "high"):  # every window gains the same
        assert found["leakage"][key] == pytest.approx(3 / LENGTH, abs=1e-4)
    for part in found["by_position"]:
        assert part["num_tokens"] == 16 * 2
        hidden = part["start"] <= MARKER_AT < part["end"]
        assert part["leakage"]["value"] == pytest.approx(1.5 if hidden else 0.0, abs=1e-4)
    assert [part["start"] for part in found["by_position"]] == list(range(0, LENGTH, 2))
    assert found["by_position"][-1]["end"] == LENGTH


@pytest.mark.parametrize(
    ("symbols", "counterfactual"),
    [
        ([n // 2 for n in range(16)], math.log2(14)),  # another symbol: it misleads, 1/14 is left
        ([n % 8 for n in range(16)], 1.0),  # the same one: no worse than the true future
    ],
)
def test_a_counterfactual_future_is_read_as_if_it_were_the_true_one(symbols, counterfactual):
    """The true one gives the symbol 1/2, where knowing nothing gives 1/8."""
    windows = symbol_windows(symbols)
    found = measure_leakage(symbol_model(lift=math.log(7)), *windows, batch_size=64)
    expected = {"leakage": 2.0, "future": counterfactual - 1, "mismatch": 3 - counterfactual}
    for key, bits in expected.items():
        assert found[key]["value"] == pytest.approx(bits / LENGTH, abs=1e-4), key
    for key, bits in {"full": 1.0, "prefix": 3.0, "counterfactual": counterfactual}.items():
        assert found[key] == pytest.approx(bits / LENGTH, abs=1e-4), key


@pytest.mark.parametrize("scope", ["segment", "token"])
def test_the_same_weights_gain_nothing_where_routing_cannot_look_ahead(scope):
    windows = symbol_windows([n % NUM_SYMBOLS for n in range(16)])
    model = symbol_model(20.0, scope)
    found = measure_leakage(model, *windows, batch_size=16, even_if_causal=True)
    assert found["full"] == pytest.approx(3 / LENGTH, abs=1e-4)
    assert found["leakage"]["value"] == pytest.approx(0.0, abs=1e-5)


CHOICES = [" j.", " k.", " x.", " z."]  # letters that the questions do not contain


def answer_reading_model():
    """Always prefers j, unless a chapter is read that names the right letter; and such a chapter is
    read only where the routing has seen the question's digit and that letter."""
    digits, letters = [ord(d) for d in "0123"], [ord(choice[1]) for choice in CHOICES]
    next_VV, one_hot_VV = torch.zeros(259, 259), torch.eye(259)
    next_VV[ord(" "), letters] = SURE
    next_VV[ord(" "), letters[0]] += 1.0
    next_VV[ord(":"), ord(" ")] = next_VV[letters, ord(".")] = SURE
    router_CV = torch.stack(
        [1000 * (one_hot_VV[d] + one_hot_VV[a]) for d, a in zip(digits, letters, strict=True)]
        + [torch.zeros(259)]
    )
    num_tokens = len("Question: 0\nAnswer: j")
    neutral = 1.5 * 1000 / num_tokens  # one of the two gives less, both give more
    bias_C = torch.tensor([0.0, 0.0, 0.0, 0.0, neutral])
    chapter_CV = torch.cat((20 * one_hot_VV[letters], torch.zeros(1, 259)))
    return hand_set_model(next_VV, router_CV, bias_C, chapter_CV)


def test_routing_on_the_answer_turns_chance_into_full_marks(tmp_path):
    items = [
        {"id": n, "question": str(n % 4), "label": n % 4, "answer": CHOICES[n % 4][1:],
         "choices": [choice[1:] for choice in CHOICES], "attribute": "", "person_id": n}
        for n in range(40)
    ]  # fmt: skip
    lines = [json.dumps(item) + "\n" for item in items]
    for task in ("facts_choice", "facts_answer"):
        (tmp_path / f"{task}.jsonl").write_text("".join(lines))
    model = answer_reading_model()
    _, samples = evaluate_model(
        model, ByteTokenizer(), tasks=["facts_choice", "facts_answer"], task_dir=tmp_path,
        context_length=64, batch_size=16, num_items=40, route_on="both",
    )  # fmt: skip
    record = leakage_record(model, {}, samples, num_windows=2, batch_size=16)
    assert record["causal"] is False and record["sources"] == {}
    assert list(record["tasks"]) == ["facts_choice"]  # no answer is given to facts_answer
    found = record["tasks"]["facts_choice"]
    assert (found["num_items"], found["context"], found["full"]) == (40, 0.25, 1.0)
    assert found["leakage"]["value"] == 0.75
    # 30 of 40 gained, none lost, half an item more in each cell of the table
    half = 1.96 * math.sqrt(31 - 900 / 42) / 42
    bounds = (found["leakage"]["low"], found["leakage"]["high"])
    assert bounds == pytest.approx((30 / 42 - half, 30 / 42 + half), abs=1e-4)


def test_accuracies_of_different_items_are_not_compared():
    one, other = ([{"doc_hash": name, "correct": 1}] for name in "ab")
    with pytest.raises(ValueError, match="different items"):
        choice_leakage(one, other)


def text_windows(num_windows, length, *, seed=0, vocab_size=259):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (num_windows, length + 1), generator=generator)
    return tokens, torch.ones(num_windows, length, dtype=torch.bool)


def naive_bits(model, inputs, position, target):
    with torch.no_grad():
        logits = model(torch.tensor([inputs])).logits_BLV[0, position].double()
    return -float(logits.log_softmax(-1)[target]) / math.log(2)


def test_every_token_and_its_three_routings_are_those_of_a_naive_loop():
    """With a mask, a window without counted tokens and a last window that is padded."""
    model = routed_model("sequence")
    tokens, mask = text_windows(6, 12)
    mask &= torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[2] = False
    mask[5, 7] = True
    mask[5, 8:] = False  # the text ends here
    tokens[5, 9:] = 256
    texts = {n: tokens[n, : 8 if n == 5 else 12].tolist() for n in (0, 1, 3, 4, 5)}
    donors = {0: 3, 1: 4, 3: 0, 4: 1, 5: 3}  # two on, of the four whole windows
    full, prefix, counterfactual = [], [], []
    for n, text in texts.items():
        for t in mask[n].nonzero().flatten().tolist():
            target = int(tokens[n, t + 1])
            mixed = (text[: t + 1] + texts[donors[n]][t + 1 :])[: len(text)]
            full.append(naive_bits(model, text, t, target))
            prefix.append(naive_bits(model, text[: t + 1], t, target))
            counterfactual.append(naive_bits(model, mixed, t, target))
    for batch_size in (1, 5, 64):
        found = measure_leakage(model, tokens, mask, batch_size=batch_size)
        assert (found["num_windows"], found["num_tokens"]) == (5, len(full))
        means = [np.mean(full), np.mean(prefix), np.mean(counterfactual)]
        assert [found[k] for k in ("full", "prefix", "counterfactual")] == pytest.approx(
            means, abs=1e-5
        )
        assert found["leakage"]["value"] == pytest.approx(means[1] - means[0], abs=1e-5)
        assert found["future"]["value"] == pytest.approx(means[2] - means[0], abs=1e-5)
        assert found["mismatch"]["value"] == pytest.approx(means[1] - means[2], abs=1e-5)
    assert np.abs(np.subtract(prefix, full)).max() > 0.1  # or the loop would prove little


def test_constant_routing_gains_nothing():
    model = routed_model("sequence")
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for block in model.blocks:
            block.memory.address.router.linear.weight.zero_()
    found = measure_leakage(model, *text_windows(8, 24), batch_size=8)
    model.load_state_dict(kept)
    for key in ("leakage", "future", "mismatch"):
        assert found[key]["value"] == pytest.approx(0.0, abs=1e-5)
        assert found[key]["low"] - 1e-5 <= 0 <= found[key]["high"] + 1e-5


@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
@pytest.mark.parametrize("scope", ["segment", "token"])
def test_causal_scopes_gain_nothing(scope, mixing):
    model = routed_model(scope, mixing)
    found = measure_leakage(model, *text_windows(4, 24), batch_size=8, even_if_causal=True)
    for part in (found, *found["by_position"]):
        assert max(abs(value) for value in part["leakage"].values()) <= 1e-5


def test_a_causal_model_costs_one_pass_over_the_same_tokens():
    """Studies compare its loss with that of models that see later tokens."""
    windows = {"text": text_windows(4, 24)}
    model = routed_model("segment")
    settings = {"num_windows": 3, "batch_size": 8}
    record = leakage_record(model, windows, {}, **settings)
    found = record["sources"].pop("text")
    assert record == {"causal": True, "sources": {}, "tasks": {}}
    assert set(found) == {"num_windows", "num_tokens", "tokens", "full", "per_window"}
    more = leakage_record(model, windows, {}, even_if_causal=True, **settings)
    again = more["sources"]["text"]
    parts = found.pop("per_window")
    assert found.items() <= again.items() and parts.items() <= again["per_window"].items()


def test_few_positions_are_measured_but_all_are_reached():
    """Lengths of the prefixes: 16 of each window's 128, in every part of it, each place in some."""
    model = routed_model("sequence")
    windows = text_windows(40, 128)
    shown = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: shown.append(given["pool_BL"].sum(1)), with_kwargs=True
    )
    found = measure_leakage(model, *windows, num_windows=32, batch_size=64)
    hook.remove()
    assert (found["num_windows"], found["num_tokens"]) == (32, 32 * 16)
    assert [part["num_tokens"] for part in found["by_position"]] == [64] * 8
    assert set(torch.cat(shown).tolist()) == set(range(1, 129))
    assert measure_leakage(model, *windows, num_windows=32, batch_size=64) == found


def test_windows_are_taken_from_all_of_the_text():
    """The first few often belong to a document or two."""
    model = routed_model("segment")
    tokens, mask = text_windows(40, 16)
    shown = []
    hook = model.register_forward_pre_hook(lambda _, args: shown.extend(args[0].tolist()))
    measure_leakage(model, tokens, mask, num_windows=4, batch_size=8)
    hook.remove()
    assert shown == [tokens[n, :-1].tolist() for n in (0, 10, 20, 30)]


def test_a_single_window_has_no_other_future():
    """It still has a loss to compare; a study does not stop over it."""
    windows = text_windows(1, 12)
    for scope in ("sequence", "segment"):
        found = measure_leakage(routed_model(scope), *windows, batch_size=8)
        assert found["num_tokens"] == 12 and "leakage" not in found


def test_only_whole_windows_give_a_future():
    """A shorter future would not be of the length that routing was trained on."""
    texts = [torch.arange(8), torch.arange(8) + 10, torch.arange(8) + 20, torch.arange(3)]
    donors = _donors(texts, 8)
    assert all(len(donor) == 8 for donor in donors)
    assert all(donor is not text for donor, text in zip(donors, texts, strict=True))
    assert _donors([texts[0], texts[3]], 8) is None


def test_sums_per_window_add_up_to_the_losses():
    found = measure_leakage(routed_model("sequence"), *text_windows(4, 12), batch_size=8)
    parts = found["per_window"]
    assert sum(parts["num_tokens"]) == found["num_tokens"]
    for routing in ("full", "prefix", "counterfactual"):
        total = sum(parts[routing]) / found["num_tokens"]
        assert total == pytest.approx(found[routing], abs=1e-6)


def test_the_fingerprint_is_of_the_tokens_that_were_predicted():
    first, same = (
        measure_leakage(routed_model(scope), *text_windows(4, 12), batch_size=8)["tokens"]
        for scope in ("sequence", "token")
    )
    other = measure_leakage(routed_model(), *text_windows(4, 12, seed=1), batch_size=8)["tokens"]
    assert first == same != other


def test_accuracies_that_agree_on_few_items_are_not_certain_to():
    """Agresti and Min's interval: n = 10, no discordant pair, half an item in each cell."""
    right = np.array([1.0] * 6 + [0.0] * 4)
    found = paired_difference(right, right)
    assert found["value"] == 0 and found["high"] == -found["low"] == pytest.approx(1.96 / 12, 1e-3)
    better = right.copy()
    better[6:9] = 1  # three gained, none lost: (3.5 - 0.5) / 12 +- 1.96 sqrt(4 - 9 / 12) / 12
    found = paired_difference(right, better)
    half = 1.96 * math.sqrt(4 - 9 / 12) / 12
    assert found["value"] == pytest.approx(0.3)
    assert (found["low"], found["high"]) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-3)


def test_intervals_resample_windows_as_every_possible_draw_would():
    """Five windows of unequal lengths: all 5^5 draws are made here."""
    generator = np.random.default_rng(5)
    window = np.repeat(np.arange(5), [1, 7, 3, 2, 9])
    values = generator.normal(size=len(window)) + window
    draws = []
    for drawn in itertools.product(range(5), repeat=5):
        tokens = np.concatenate([values[window == n] for n in drawn])
        draws.append(tokens.mean())
    found = clustered_mean(values, window)
    assert found["value"] == pytest.approx(values.mean())
    assert np.mean(draws < np.float64(found["low"])) == pytest.approx(0.025, abs=0.012)
    assert np.mean(draws > np.float64(found["high"])) == pytest.approx(0.025, abs=0.012)


def test_intervals_hold_the_truth_as_often_as_they_claim():
    """Tokens of one window agree with each other: as if independent, the interval is too narrow."""
    generator = np.random.default_rng(0)
    window = np.repeat(np.arange(30), 16)
    held = {"windows": 0, "tokens": 0}
    for _ in range(200):
        values = generator.normal(size=30)[window] + generator.normal(size=len(window))
        for name, clusters in (("windows", window), ("tokens", np.arange(len(window)))):
            found = clustered_mean(values, clusters)
            held[name] += found["low"] <= 0 <= found["high"]
    assert 0.89 <= held["windows"] / 200 <= 0.98
    assert held["tokens"] / 200 < 0.7
