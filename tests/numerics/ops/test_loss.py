"""The loss in chunks is the loss of whole logits, with its gradients."""

import sys

import pytest
import torch
from torch.nn import functional as F

from moc.ops import linear_cross_entropy

MODULE = sys.modules["moc.ops.loss"]


def make(dtype, positions=13, dim=5, vocab=7):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(positions, dim, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocab, dim, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(vocab, (positions,), generator=generator)
    counted = torch.rand(positions, generator=generator) < 0.7
    return x.requires_grad_(), weight.requires_grad_(), target, counted


def whole(x, weight, target, counted):
    return F.cross_entropy(x @ weight.T, target, reduction="none")[counted].sum()


@pytest.mark.parametrize("logits", [1, 7, 30, 10_000])  # a position at a time, two chunks, one
def test_it_is_the_loss_of_whole_logits(logits, monkeypatch):
    monkeypatch.setattr(MODULE, "_CPU_LOGITS", logits)
    arguments = make(torch.float64)
    (3.0 * whole(*arguments)).backward()
    expected = [arguments[i].grad.clone() for i in (0, 1)]
    for i in (0, 1):
        arguments[i].grad = None
    nll = linear_cross_entropy(*arguments)
    torch.testing.assert_close(nll, whole(*arguments), rtol=1e-12, atol=0)
    (3.0 * nll).backward()
    for i in (0, 1):
        torch.testing.assert_close(arguments[i].grad, expected[i], rtol=1e-11, atol=1e-12)


def test_by_hand():
    """Logits 0 and ln 3: probabilities 1/4 and 3/4."""
    x = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]], dtype=torch.float64)
    nll = linear_cross_entropy(x, weight, torch.tensor([1]), torch.tensor([True]))
    nll.backward()
    ln3 = weight[1, 0].item()
    assert nll.item() == pytest.approx(ln3 * 0 + 0.2876820724517809, rel=1e-6)  # ln 4/3
    assert x.grad.item() == pytest.approx((0.75 - 1) * ln3, rel=1e-6)


def test_logits_of_all_positions_never_exist_at_once(monkeypatch):
    monkeypatch.setattr(MODULE, "_CPU_LOGITS", 4 * 50)
    made = []
    log_softmax = torch.Tensor.log_softmax

    def recorded(self, *arguments):
        made.append(tuple(self.shape))
        return log_softmax(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "log_softmax", recorded)
    linear_cross_entropy(*make(torch.float32, positions=10, vocab=50)).backward()
    assert made == [(4, 50), (4, 50), (2, 50)]


def test_bfloat16_products_and_float32_sums():
    x, weight, target, counted = make(torch.float32, positions=200, dim=64, vocab=300)
    exact = whole(x.double(), weight.double(), target, counted)
    with torch.autocast("cpu", torch.bfloat16):
        nll = linear_cross_entropy(x, weight, target, counted)
    nll.backward()
    assert nll.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert nll.item() == pytest.approx(exact.item(), rel=2e-3)
    (whole(x.double(), weight.double(), target, counted)).backward()  # adds to the gradients


def test_without_gradients_none_are_made(monkeypatch):
    """Evaluations would pay for them."""
    arguments = make(torch.float64)
    made = []
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda *arguments: made.append(arguments))
    with torch.no_grad():
        nll = linear_cross_entropy(*arguments)
    assert not made
    torch.testing.assert_close(nll, whole(*arguments), rtol=1e-12, atol=0)
