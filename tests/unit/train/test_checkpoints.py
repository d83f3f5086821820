"""Which checkpoint a run goes on from, and which are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moc.errors import CheckpointError
from moc.model.config import ModelConfig
from moc.model.transformer import Transformer, build_model
from moc.train.checkpoints import (
    latest_checkpoint,
    load_training_state,
    prune_checkpoints,
    restore_optimizer,
    save_training_state,
)
from tests.support.small_models import chapters

MODEL = ModelConfig(
    vocab_size=16,
    num_layers=1,
    dim=8,
    num_heads=1,
    num_kv_heads=1,
    mlp_dim=8,
    memory=chapters(num_chapters=3, num_routed=1, chapter_tokens=2, layers="all"),
)


def trained(*, freeze_bank: bool = False) -> tuple[Transformer, torch.optim.AdamW]:
    """A model after one AdamW step on made-up gradients."""
    model = build_model(MODEL)
    model.banks[0].rows.requires_grad_(not freeze_bank)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 0.1 * (index + 1))
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def write(folder: Path, phase: str, step: int) -> Path:
    path = folder / f"{phase}-{step:08d}"
    save_training_state(path, *trained(), callbacks={}, phase=phase, step=step, config_hash="")
    return path


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    good, bad = write(tmp_path, "a", 3), write(tmp_path, "a", 6)
    match damage:
        case "flip":
            content = bytearray((bad / "training.pt").read_bytes())
            content[len(content) // 2] ^= 1
            (bad / "training.pt").write_bytes(content)
        case "truncate":
            (bad / "training.pt").write_bytes(b"")
        case "missing":
            (bad / "training.pt").unlink()
        case "manifest":
            (bad / "manifest.json").write_text('{"sha256": {')
        case _:
            (bad / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path, "a") == good
    assert f"passed over: {bad}" in capsys.readouterr().out
    with pytest.raises(CheckpointError):
        load_training_state(bad)


def test_phases_whose_names_begin_alike_do_not_mix(tmp_path: Path) -> None:
    one, two = write(tmp_path, "tune", 4), write(tmp_path, "tune-2", 9)
    assert latest_checkpoint(tmp_path, "tune") == one
    prune_checkpoints(tmp_path, "tune", keep=0)
    assert not one.exists() and two.exists()
    assert latest_checkpoint(tmp_path, "tune") is None


def test_the_last_ones_are_kept_and_half_written_ones_removed(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a", step) for step in (3, 6, 9, 12)]
    (tmp_path / "a-00000015.partial").mkdir()
    assert latest_checkpoint(tmp_path, "a") == paths[-1]
    prune_checkpoints(tmp_path, "a", keep=2)
    assert sorted(tmp_path.iterdir()) == paths[2:]


def test_a_killed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a", 3)
    before = (path / "training.pt").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, "a", 3)
    assert (path / "training.pt").read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frozen_then", "frozen_now"), [(False, False), (True, False), (False, True)]
)
def test_moments_come_back_by_name(tmp_path: Path, frozen_then: bool, frozen_now: bool) -> None:
    """Also where the phases freeze different groups: a bank that thaws starts without moments."""
    model, optimizer = trained(freeze_bank=frozen_then)
    path = tmp_path / "a-00000001"
    save_training_state(path, model, optimizer, callbacks={}, phase="a", step=1, config_hash="")
    state = load_training_state(path)
    model.banks[0].rows.requires_grad_(not frozen_now)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # another order and other settings than those of the saved optimizer
    reverse = list(named.values())[::-1]
    groups = [
        {"params": reverse[:5], "lr": 0.5, "lazy": False},
        {"params": reverse[5:], "weight_decay": 0.7, "lazy": False},
    ]
    fresh = torch.optim.AdamW(groups, lr=0.25)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    restore_optimizer(model, fresh, state["optimizer"])
    assert [(g["lr"], g["weight_decay"]) for g in fresh.param_groups] == [(0.5, 0.01), (0.25, 0.7)]
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter), f"restoring moved {name}"
    for name, parameter in named.items():
        found = fresh.state[parameter]
        if parameter in optimizer.state:
            for key, value in optimizer.state[parameter].items():
                assert torch.equal(found[key], value), f"{name}: {key}"
        else:
            assert name == "banks.0.rows" and not found["exp_avg"].any() and found["step"] == 0
