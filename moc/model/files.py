"""A model on disk: ``model.safetensors`` and ``model.json`` in one folder.

The safetensors format is a length, a JSON header and raw little-endian data; reading and writing
it here keeps ``moc.model`` usable with torch alone. Nothing is ever unpickled.
"""

from __future__ import annotations

import ctypes
import json
import struct
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from moc.model.config import ModelConfig, model_config
from moc.model.transformer import Transformer

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def save_model(state: dict[str, Tensor], config: ModelConfig, folder: Path) -> None:
    """Write a ``Transformer``'s state dict and config into ``folder``, which must exist."""
    write_safetensors(state, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(asdict(config), indent=2) + "\n")


def load_model(folder: str | Path) -> Transformer:
    """The model that ``save_model`` wrote, on the CPU, in eval mode.

    Raises:
        ValueError: when the folder holds no model, or the file is damaged.
    """
    folder = Path(folder)
    if not (folder / "model.json").is_file():
        raise ValueError(f"{folder}: no model here (model.json is missing)")
    model = Transformer(read_config(folder))
    state = read_safetensors(folder / "model.safetensors")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights do not fit model.json: {error}") from error
    return model.eval()


def read_config(folder: Path) -> ModelConfig:
    """The config that ``save_model`` wrote.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        raw = json.loads((folder / "model.json").read_text())
        return model_config(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'model.json'}: not a model's config ({error})") from error


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write ``tensors`` in the safetensors format."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # data starts aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous()
            size = flat.numel() * flat.element_size()
            file.write((ctypes.c_char * size).from_address(flat.data_ptr()) if size else b"")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: if the file is missing, shortened or not in this format.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{path}: not a safetensors file, or cut short")
        encoded = file.read(length)
    try:
        header = json.loads(encoded)
        header.pop("__metadata__", None)
        entries = {
            name: (_DTYPES[entry["dtype"]], torch.Size(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
        }
        end = max((stop for _, _, _, stop in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from error
    if 8 + length + end != size:
        raise ValueError(f"{path}: cut short ({size} bytes, {8 + length + end} expected)")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
    tensors = {}
    for name, (dtype, shape, begin, stop) in entries.items():
        if begin < 0 or stop - begin != shape.numel() * dtype.itemsize:
            raise ValueError(f"{path}: damaged, {name} does not fill its place")
        tensors[name] = data[begin:stop].clone().view(dtype).reshape(shape)
    return tensors
