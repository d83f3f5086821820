"""Text from a model, models on disk, and that both need nothing but torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moc.model import (
    MemoryConfig,
    ModelConfig,
    build_model,
    generate,
    load_model,
    read_safetensors,
    save_model,
    write_safetensors,
)

torch.set_num_threads(1)
CONFIG = ModelConfig(
    vocab_size=23,
    num_layers=2,
    dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=24,
    init_std=0.4,
    memory=MemoryConfig(
        num_chapters=5, num_routed=2, chapter_tokens=3, layers="all", output_init="normal"
    ),
)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG).eval()


def greedy_loop(model, prompt, *, max_new_tokens, stop_ids=(), max_length=None):
    """One prompt at a time, no padding, the likeliest token of a plain forward pass."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        seen = tokens if max_length is None else tokens[-max_length:]
        with torch.no_grad():
            likeliest = int(model(torch.tensor([seen])).logits_BLV[0, -1].argmax())
        if likeliest in stop_ids:
            break
        tokens.append(likeliest)
    return tokens[len(prompt) :]


# generation


@pytest.mark.parametrize("max_length", [None, 4])
def test_batched_answers_are_those_of_one_prompt_at_a_time(model, max_length):
    answers = generate(model, PROMPTS, max_new_tokens=9, max_length=max_length)
    expected = [
        greedy_loop(model, prompt, max_new_tokens=9, max_length=max_length) for prompt in PROMPTS
    ]
    assert answers == expected
    assert len({tuple(answer) for answer in answers}) > 1


def test_max_length_changes_what_the_model_sees(model):
    assert generate(model, PROMPTS, max_new_tokens=9, max_length=2) != generate(
        model, PROMPTS, max_new_tokens=9
    )


def test_generation_ends_at_a_stop_token_and_leaves_it_out(model):
    free = generate(model, PROMPTS, max_new_tokens=9)
    stop_ids = {free[0][3], free[2][0]}
    answers = generate(model, PROMPTS, max_new_tokens=9, stop_ids=stop_ids)
    expected = [greedy_loop(model, p, max_new_tokens=9, stop_ids=stop_ids) for p in PROMPTS]
    assert answers == expected
    assert answers[2] == [] and len(answers[0]) <= 3


def test_sampling_is_reproducible_by_seed(model):
    def sample(seed, temperature=1.0):
        return generate(model, PROMPTS, max_new_tokens=9, temperature=temperature, seed=seed)

    torch.manual_seed(0)
    first = sample(1)
    torch.manual_seed(1)  # what else has been drawn plays no part
    assert sample(1) == first != sample(2)
    assert sample(1, temperature=1e-4) == generate(model, PROMPTS, max_new_tokens=9)


def test_sampled_frequencies_are_the_models_probabilities(model):
    draws = generate(model, [[3]] * 4000, max_new_tokens=1, temperature=2.0)
    counts = torch.bincount(torch.tensor(draws).flatten(), minlength=23)
    with torch.no_grad():
        probs = (model(torch.tensor([[3]])).logits_BLV[0, -1] / 2).softmax(0)
    assert (counts / 4000 - probs).abs().max() < 0.04  # five standard errors


def test_nothing_asked_nothing_written(model):
    assert generate(model, PROMPTS, max_new_tokens=0) == [[], [], []]
    assert generate(model, [], max_new_tokens=3) == []


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [[1], []], max_new_tokens=3)


# files


@pytest.mark.parametrize("memory", [CONFIG.memory, None], ids=["moc", "dense"])
def test_a_saved_model_comes_back_whole(tmp_path, memory):
    model = build_model(replace(CONFIG, memory=memory), seed=3)
    save_model(model.state_dict(), model.config, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config and not loaded.training
    tokens_BL = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(tokens_BL).logits_BLV, model(tokens_BL).logits_BLV)


def sample_tensors():
    return {
        "half": torch.arange(6.0).view(2, 3).to(torch.bfloat16) / 7,
        "odd": torch.arange(3, dtype=torch.bfloat16),  # leaves the next one unaligned
        "full": torch.randn(3, 2),
        "wide": torch.randn(2, dtype=torch.float64),
        "transposed": torch.randn(2, 5).T,
        "part": torch.randn(4, 4)[1:3, 1:3],
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(5),
    }


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_files_are_exchanged_with_the_safetensors_library(tmp_path):
    """Weights trained here load anywhere, and the other way round."""
    safetensors = pytest.importorskip("safetensors.torch")
    tensors, ours, theirs = sample_tensors(), tmp_path / "ours", tmp_path / "theirs"
    write_safetensors(tensors, ours)
    assert_same_tensors(safetensors.load_file(ours), tensors)
    assert_same_tensors(read_safetensors(ours), tensors)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.save_file(contiguous, theirs, metadata={"format": "pt"})
    assert_same_tensors(read_safetensors(theirs), tensors)


def test_changing_what_was_read_leaves_the_file_alone(tmp_path):
    write_safetensors({"w": torch.ones(4)}, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    read_safetensors(tmp_path / "file")["w"].zero_()
    assert (tmp_path / "file").read_bytes() == before


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "file"
    write_safetensors(sample_tensors(), path)
    whole = path.read_bytes()
    for length in {0, 4, 8, 9, 200, *range(0, len(whole), 37), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"file: (not a safetensors file|cut short)"):
            read_safetensors(path)


def header_of(entries):
    encoded = json.dumps(entries).encode()
    return len(encoded).to_bytes(8, "little") + encoded


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 300,
        b"PK\x03\x04" + bytes(300),
        (50).to_bytes(8, "little") + b"\x80not json at all" * 10,
        header_of([1, 2]),
        header_of({"w": 3}),
        header_of({"w": {"dtype": "F32", "shape": [1]}}) + bytes(4),
        header_of({"w": {"dtype": "F8", "shape": [4], "data_offsets": [0, 4]}}) + bytes(4),
        header_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + bytes(4),
        header_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        header_of({"w": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}) + bytes(4),
    ],
)
def test_garbage_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match="weights: "):
        read_safetensors(tmp_path / "weights")


def test_a_folder_without_a_sound_model_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"model\.json is missing"):
        load_model(tmp_path)
    save_model(model.state_dict(), model.config, tmp_path)
    config = (tmp_path / "model.json").read_text()
    for broken in (config[:50], "[]", "{}", config.replace("vocab_size", "vocabulary")):
        (tmp_path / "model.json").write_text(broken)
        with pytest.raises(ValueError, match=r"model\.json: not a model's config"):
            load_model(tmp_path)
    (tmp_path / "model.json").write_text(config.replace('"dim": 16', '"dim": 32'))
    with pytest.raises(ValueError, match=r"do not fit model\.json"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(config)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no such weights file"):
        load_model(tmp_path)


# torch alone

TORCH_ALONE = """
import sys, tempfile
from pathlib import Path

FORBIDDEN = {
    "numpy", "lightning", "pytorch_lightning", "torchmetrics", "omegaconf", "safetensors",
    "mlflow", "transformers", "tokenizers", "lm_eval", "datasets", "yaml", "pyarrow", "rich",
    "matplotlib", "psutil", "filelock", "scipy", "pandas",
}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import numpy
except ImportError:
    pass
else:
    raise AssertionError("the blocker blocks nothing")

import torch
from moc.model import build_model, generate, load_model, preset, save_model
from moc.model.config import MemoryConfig, ModelConfig

config = ModelConfig(vocab_size=9, num_layers=1, dim=8, num_heads=2, num_kv_heads=1, mlp_dim=8,
                     memory=MemoryConfig(num_chapters=5, num_routed=2, layers="all"))
model = build_model(config)
model(torch.tensor([[1, 2]]), measure_mass=True).logits_BLV.sum().backward()
with tempfile.TemporaryDirectory() as folder:
    save_model(model.state_dict(), model.config, Path(folder))
    loaded = load_model(folder)
assert generate(loaded, [[1], [2, 3]], max_new_tokens=3) == generate(
    model, [[1], [2, 3]], max_new_tokens=3)
preset("paper")
print("FORBIDDEN LOADED:", sorted(FORBIDDEN & {name.partition(".")[0] for name in sys.modules}))
"""


def test_the_model_needs_torch_alone():
    """It runs on any machine with a GPU and torch."""
    done = subprocess.run(
        [sys.executable, "-c", TORCH_ALONE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FORBIDDEN LOADED: []" in done.stdout
