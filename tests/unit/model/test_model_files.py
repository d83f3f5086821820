"""Models on disk, and that they need nothing but torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moc.model import (
    ModelConfig,
    RouterConfig,
    build_model,
    load_model,
    read_safetensors,
    save_model,
    write_safetensors,
)
from tests.support.small_models import chapters

torch.set_num_threads(1)
CONFIG = ModelConfig(
    vocab_size=23,
    num_layers=2,
    dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=24,
    init_std=0.4,
    memory=chapters(
        num_chapters=5, num_routed=2, chapter_tokens=3, layers="all", output_init="normal"
    ),
)


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG).eval()


# files


BALANCED = chapters(CONFIG.memory, router=RouterConfig(scope="token", bias_rate=0.01))


@pytest.mark.parametrize(
    "memory", [CONFIG.memory, BALANCED, None], ids=["moc", "selection bias", "dense"]
)
def test_a_saved_model_comes_back_whole(tmp_path, memory):
    model = build_model(replace(CONFIG, memory=memory), seed=3)
    for bias_C in model.buffers():
        bias_C.copy_(torch.linspace(-1.0, 1.0, 5))
    save_model(model.state_dict(), model.config, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config and not loaded.training
    tokens_BL = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(tokens_BL).logits_BLV, model(tokens_BL).logits_BLV)
    biases = dict(loaded.named_buffers())
    assert len(biases) == (2 if memory is BALANCED else 0)
    assert all(bias_C[-1] == 1 for bias_C in biases.values())


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
from moc.model.config import ChaptersConfig, MemoryConfig, ModelConfig

chapters = ChaptersConfig(num_chapters=5, num_routed=2)
config = ModelConfig(vocab_size=9, num_layers=1, dim=8, num_heads=2, num_kv_heads=1, mlp_dim=8,
                     memory=MemoryConfig(layers="all", chapters=chapters))
model = build_model(config)
model(torch.tensor([[1, 2]]), measure=True).logits_BLV.sum().backward()
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
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FORBIDDEN LOADED: []" in done.stdout
