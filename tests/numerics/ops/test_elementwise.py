"""Own backward passes of RMSNorm and SwiGLU, against finite differences and PyTorch's."""

import pytest
import torch
from torch.nn import functional as F

from moc.ops import rms_norm, swiglu


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gradients_are_finite_differences():
    x, weight = draw(3, 6).requires_grad_(), draw(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-2), (x, weight))
    assert torch.autograd.gradcheck(lambda a: rms_norm(a, None, 1e-2), (x,))
    assert torch.autograd.gradcheck(swiglu, (draw(2, 3, 8).requires_grad_(),))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_values_are_pytorchs(scale):
    x, weight = scale * draw(5, 8), draw(8)
    expected = F.rms_norm(x, (8,), weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=1e-12, atol=0)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(x), F.silu(gate) * up, rtol=1e-12, atol=0)


def test_a_row_of_zeros_has_a_finite_gradient():
    """A chapter that was knocked out."""
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, None, 1e-5).sum().backward()
    assert x.grad.isfinite().all()
