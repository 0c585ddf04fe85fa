"""The tensor-parallel building blocks of the model: plain torch at tp = 1, Megatron-core above.

Both factories make modules whose only parameter is `weight`, without biases, so that names do not depend on
the grid. Weights are left uninitialised; `megatv.model.init` fills them alike on every grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatv.types import IGNORE


class Layers:
    """Makes the layers of an unsharded model (tp = 1)."""

    tp = 1

    def column_linear(self, inputs: int, outputs: int) -> nn.Module:
        """[..., inputs] -> [..., outputs / tp], the weight split along its outputs."""
        return nn.Linear(inputs, outputs, bias=False)

    def row_linear(self, inputs: int, outputs: int) -> nn.Module:
        """[..., inputs / tp] -> [..., outputs], the weight split along its inputs; summed over tp."""
        return nn.Linear(inputs, outputs, bias=False)

    def vocab_embedding(self, vocab: int, width: int) -> nn.Module:
        """int64 [...] -> [..., width], the table split along the vocabulary."""
        return nn.Embedding(vocab, width)

    def fan_out(self, x: Tensor) -> Tensor:
        """`x`, about to enter column linears: its gradient is summed over tp once for all of them."""
        return x

    def vocab_cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Negative log likelihood in nats, at least fp32: logits [T, V / tp], int64 targets [T] -> [T].

        Rows whose target is IGNORE give 0 and no gradient.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def megatron_layers(tp: int) -> Layers:
    """The same layers, split over Megatron's tensor-parallel group of `tp` ranks.

    Megatron's groups must exist already (`parallel_state.initialize_model_parallel`). Weights are made on
    torch's default device and dtype, as those of `Layers` are.
    """
    from megatron.core import ModelParallelConfig, parallel_state, tensor_parallel

    assert parallel_state.get_tensor_model_parallel_world_size() == tp
    group = parallel_state.get_tensor_model_parallel_group()

    class ColumnLinear(tensor_parallel.ColumnParallelLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    class RowLinear(tensor_parallel.RowParallelLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    def settings() -> dict[str, Any]:
        config = ModelParallelConfig(
            tensor_model_parallel_size=tp,
            params_dtype=torch.get_default_dtype(),
            use_cpu_initialization=True,  # allocates on torch's default device, which `meta` may be
            perform_initialization=False,
            gradient_accumulation_fusion=False,
        )
        return {"config": config, "init_method": nn.init.normal_, "tp_group": group}

    class MegatronLayers(Layers):
        def column_linear(self, inputs: int, outputs: int) -> nn.Module:
            # `fan_out` sums the input's gradient once, instead of every linear on its own
            return ColumnLinear(inputs, outputs, bias=False, disable_grad_reduce=True, **settings())

        def row_linear(self, inputs: int, outputs: int) -> nn.Module:
            return RowLinear(
                inputs, outputs, bias=False, input_is_parallel=True, skip_bias_add=False, **settings()
            )

        def vocab_embedding(self, vocab: int, width: int) -> nn.Module:
            return tensor_parallel.VocabParallelEmbedding(vocab, width, **settings())

        def fan_out(self, x: Tensor) -> Tensor:
            return tensor_parallel.copy_to_tensor_model_parallel_region(x, group=group)

        def vocab_cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
            counted = targets != IGNORE
            # Megatron overwrites fp32 logits with their softmax: give it a copy
            nll = tensor_parallel.vocab_parallel_cross_entropy(
                logits.to(torch.float32, copy=True), targets.clamp(min=0)
            )
            return nll.where(counted, 0.0)

    layers = MegatronLayers()
    layers.tp = tp
    return layers
