"""The tensor-parallel building blocks of the model: plain torch at tp = 1, Megatron-core above.

Both factories make modules whose only parameter is `weight`, without biases, so that names do not depend on
the grid. Weights are left uninitialised; `megatv.model.init` fills them alike on every grid.

With sequence parallelism (Korthikanti et al. 2022, section 4.2.2) the residual stream between the matrices is
split by rows over tp as well: `scatter` begins such a region, `fan_out` gathers the rows for column linears,
row linears scatter their sums, `gather` ends it. The sums of row linears that every sibling would hold become
shares, for the same bytes sent.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatv_kernels import AttentionRecord
from torch import Tensor, nn

from megatv.parallel.context import Context
from megatv.parallel.sequence import gather_rows, scatter_rows, share_rows, sum_gradient, whole_rows
from megatv.types import IGNORE


class Layers:
    """Makes the layers of an unsharded model (tp = 1).

    context         the rows that this process has of a packed row
    row_shares      into how many shares `scatter` cuts them
    matrix_shares   tp, into how many shares matrices and their heads are split
    """

    row_shares = 1
    matrix_shares = 1

    def __init__(self, context: Context | None = None) -> None:
        self.context = context or Context()

    def column_linear(self, inputs: int, outputs: int) -> nn.Module:
        """[..., inputs] -> [..., outputs / tp], the weight split along its outputs."""
        return nn.Linear(inputs, outputs, bias=False)

    def row_linear(self, inputs: int, outputs: int) -> nn.Module:
        """[..., inputs / tp] -> [..., outputs], the weight split along its inputs; summed over tp."""
        return nn.Linear(inputs, outputs, bias=False)

    def norm(self, width: int, eps: float) -> nn.Module:
        """RMSNorm of [..., width] between `scatter` and `gather`."""
        return nn.RMSNorm(width, eps)

    def vocab_embedding(self, vocab: int, width: int) -> nn.Module:
        """int64 [...] -> [..., width], the table split along the vocabulary."""
        return nn.Embedding(vocab, width)

    def fan_out(self, x: Tensor) -> Tensor:
        """`x`, about to enter column linears: its gradient is summed over tp once for all of them."""
        return x

    def text_rows(self, record: AttentionRecord) -> int:
        """Text rows, the first of hidden states, between `scatter` and `gather`."""
        return self.context.text_rows(record) // self.row_shares

    def scatter(self, x: Tensor) -> Tensor:
        """Rows [R, ...] that every tp sibling has -> those that it keeps: all, or R / tp of them."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The inverse of `scatter`, for what every tp sibling computes alike on all rows."""
        return x

    def gather_vocab(self, logits: Tensor) -> Tensor:
        """[..., V / tp] -> [..., V], the same bits on every tp sibling."""
        return logits

    def vocab_cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Negative log likelihood in nats, at least fp32: logits [T, V / tp], int64 targets [T] -> [T].

        Rows whose target is IGNORE give 0 and no gradient.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def megatron_layers(tp: int, context: Context | None = None, sequence_parallel: bool = False) -> Layers:
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

    class RowScatterLinear(tensor_parallel.RowParallelLinear):
        def forward(self, x: Tensor) -> Tensor:
            return scatter_rows(F.linear(x, self.weight), group)

    class SharedNorm(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, self.normalized_shape, sum_gradient(self.weight, group), self.eps)

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
        row_linear_class: type[nn.Module] = RowLinear
        matrix_shares = tp

        def column_linear(self, inputs: int, outputs: int) -> nn.Module:
            # `fan_out` sums the input's gradient once, instead of every linear on its own
            return ColumnLinear(inputs, outputs, bias=False, disable_grad_reduce=True, **settings())

        def row_linear(self, inputs: int, outputs: int) -> nn.Module:
            return self.row_linear_class(
                inputs, outputs, bias=False, input_is_parallel=True, skip_bias_add=False, **settings()
            )

        def vocab_embedding(self, vocab: int, width: int) -> nn.Module:
            return tensor_parallel.VocabParallelEmbedding(vocab, width, **settings())

        def fan_out(self, x: Tensor) -> Tensor:
            return tensor_parallel.copy_to_tensor_model_parallel_region(x, group=group)

        def gather_vocab(self, logits: Tensor) -> Tensor:
            # Megatron's own gathers to a CUDA device, whatever the logits are on
            return whole_rows(logits.movedim(-1, 0), group).movedim(0, -1)

        def vocab_cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
            counted = targets != IGNORE
            # Megatron overwrites fp32 logits with their softmax: give it a copy
            nll = tensor_parallel.vocab_parallel_cross_entropy(
                logits.to(torch.float32, copy=True), targets.clamp(min=0)
            )
            return nll.where(counted, 0.0)

    class SequenceParallelLayers(MegatronLayers):
        row_linear_class = RowScatterLinear
        row_shares = tp

        def norm(self, width: int, eps: float) -> nn.Module:
            return SharedNorm(width, eps)

        def fan_out(self, x: Tensor) -> Tensor:
            return gather_rows(x, group)

        def scatter(self, x: Tensor) -> Tensor:
            return share_rows(x, group)

        def gather(self, x: Tensor) -> Tensor:
            return whole_rows(x, group)

    return SequenceParallelLayers(context) if sequence_parallel else MegatronLayers(context)
