"""SwiGLU, plain and compiled, against its formula."""

import pytest
import torch
from megatv_kernels.swiglu import compiled, plain, swiglu
from torch.utils.checkpoint import checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def under_checkpoint(gate, up):
    return checkpoint(compiled(), gate, up, use_reentrant=False)


CALLS = {
    "swiglu": swiglu,
    "compiled": lambda gate, up: compiled()(gate, up),
    "under checkpoint": under_checkpoint,
}


@pytest.mark.slow  # the compiler
@pytest.mark.parametrize("name", CALLS)
def test_value_and_gradients(name):
    for rows in (3, 17):
        gate, up, weight = torch.randn(3, rows, 24, device=DEVICE)
        gate, up = gate.requires_grad_(), up.requires_grad_()
        out = CALLS[name](gate, up)
        gate_gradient, up_gradient = torch.autograd.grad(out, (gate, up), weight)
        sigma = 1 / (1 + torch.exp(-gate))
        torch.testing.assert_close(out, gate * sigma * up)
        torch.testing.assert_close(up_gradient, weight * gate * sigma)
        torch.testing.assert_close(gate_gradient, weight * up * sigma * (1 + gate * (1 - sigma)))


@pytest.mark.slow
def test_compiled_keeps_its_inputs_alone_for_the_backward_pass():
    """What the compiler is used for: silu(gate) is not kept."""
    assert count_kept(plain) == 3
    assert count_kept(compiled()) == 2


def count_kept(call):
    """Tensors that the backward pass of `call` keeps."""
    kept = set()

    def keep(x):
        kept.add(x.data_ptr())
        return x

    gate, up = (torch.randn(8, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call(gate, up)
    return len(kept)


@pytest.mark.skipif(DEVICE == "cuda", reason="there the compiled one serves")
def test_cpu_keeps_torchs_own_kernels():
    gate, up = torch.randn(2, 5, 24)
    assert torch.equal(swiglu(gate, up), torch.nn.functional.silu(gate) * up)
