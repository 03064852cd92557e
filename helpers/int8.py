"""Linear layers in 8 bits for the CPU: a quarter of the memory of float32, and one and a half to four times its speed.

`load_model_and_processor(..., quantization="int8")` uses it on a CPU. Weights are rounded once, while they are loaded;
activations are rounded row by row, at each call. As in LLM.int8() (Dettmers et al., 2022,
https://arxiv.org/abs/2208.07339) outliers need more than 8 bits; here the rows that hold one get a second pass. Where
it costs no time, the few rows of a step that writes a token keep more bits.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from .int8_kernels import FEW, by_float, few_by_bfloat16, kernel_of_this_cpu

METHOD = "phi3_v_int8"
#: A row whose largest value is this many times its root mean square has a relative error of 2 % in 8 bits.
OUTLIER = 9.0
PIECE = 256


class Int8Linear(nn.Module):
    """
    `x Wᵀ + b` with `weight` int8 (out_features, in_features) and `weight_scale` float32 (out_features,), so that
    W = weight * weight_scale[:, None]. `pack` puts the weight into the form that this CPU multiplies fastest. Only for
    inference.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # Not int8 yet: transformers casts what it loads to the dtype of this parameter, then `_Round` rounds it.
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_scale = nn.Parameter(torch.empty(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def pack(self):
        """Call this once, after the weight is loaded. The packed weight replaces it and cannot be pickled."""
        kernel, _ = kernel_of_this_cpu()
        weight, scale = self.weight.detach(), self.weight_scale.detach()
        self.weight, multiply = None, kernel(weight, scale)
        self.multiply, self.multiply_few = (functools.partial(f, multiply) for f in (in_8_bits, in_15_bits))
        if kernel is by_float and self.in_features % 16 == 0:  # other widths crash PyTorch's product for a few rows
            self.multiply_few = functools.partial(few_by_bfloat16, weight, scale)

    def check_move(self, fn: Callable):
        """Refuses a new device or dtype, as from `to`: packed weights cannot be moved or converted."""
        now, then = self.weight_scale, fn(self.weight_scale)
        if self.weight is None and (now.device, now.dtype) != (then.device, then.dtype):
            raise RuntimeError(
                "A model in 8 bits cannot change its device or dtype; load it again with the ones you want, or with "
                "quantization=False."
            )

    def _apply(self, fn, recurse=True):
        self.check_move(fn)
        return super()._apply(fn, recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features) in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features).float()
        y = self.multiply_few(rows) if len(rows) <= FEW else self.multiply(rows)
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class MLPInPieces(Phi3MLP):
    """
    The decoder's feed-forward layer, for `PIECE` positions at a time. The activations of a long prompt do not fit into
    the CPU's caches, and blocks of that size come as fresh pages from the system at each call.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size), as [`Phi3MLP`]."""
        forward = super().forward
        return torch.cat([forward(piece) for piece in hidden_states.split(PIECE, dim=1)], dim=1)


def in_8_bits(multiply: Callable, rows: torch.Tensor) -> torch.Tensor:
    """The product with the rows in 8 bits, and a second pass for the rounding errors of rows with outliers."""
    scale = largest(rows) / 127
    whole = (rows / scale).round_()
    y = multiply(whole).mul_(scale)
    length = torch.linalg.vector_norm(whole, dim=1)
    hard = (length > 0) & (OUTLIER * length < 127 * rows.shape[1] ** 0.5)
    if hard.any():
        rest = rows[hard] - whole[hard] * scale[hard]
        scale = largest(rest) / 127
        y[hard] += multiply((rest / scale).round_()).mul_(scale)
    return y


def in_15_bits(multiply: Callable, rows: torch.Tensor) -> torch.Tensor:
    """The product with the rows split into a coarse and a fine part of 8 bits each, both at once. For one or two rows
    it takes hardly longer than the coarse part alone: most of the time goes into reading the weight."""
    scale = largest(rows) / (127 * 127)
    fine = (rows / scale).round_()
    coarse = (fine / 127).round_()
    y = multiply(torch.cat([coarse, fine.sub_(coarse, alpha=127)]))
    return y[len(rows) :].add_(y[: len(rows)], alpha=127).mul_(scale)


def largest(rows: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each row, (n, in) to (n, 1); never zero."""
    return rows.abs().amax(1, keepdim=True).clamp_min_(1e-30)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in) as int8, and its scales, float32 (out,)."""
    weight, (_, limit) = weight.float(), kernel_of_this_cpu()
    scale = largest(weight) / limit
    return (weight / scale).round_().to(torch.int8), scale.squeeze(1)


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """What `from_pretrained(quantization_config=...)` takes for this method; it has no settings."""

    def __init__(self, **kwargs):
        self.quant_method = METHOD


class _Round(ConversionOps):
    """Turns a weight into int8 values and scales while the file is loaded."""

    @torch.no_grad()
    def convert(self, input_dict, full_layer_name=None, **kwargs):
        ((weight, *_),) = input_dict.values()
        values, scale = quantize(weight)
        return {full_layer_name: values, f"{full_layer_name}_scale": scale}


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Replaces every linear layer with an `Int8Linear`, and the decoder's `mlp` with `MLPInPieces`. The embedding, a
    look-up table, keeps its dtype, and so does a head that shares its weight."""

    requires_calibration = False
    is_trainable = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        for name, module in list(model.named_modules()):  # an `mlp` comes before its parts
            with torch.device("meta"):
                if isinstance(module, Phi3MLP):
                    model.set_submodule(name, MLPInPieces(module.config))
                elif isinstance(module, nn.Linear) and f"{name}.weight" not in model.all_tied_weights_keys:
                    new = Int8Linear(module.in_features, module.out_features, module.bias is not None)
                    model.set_submodule(name, new)

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in model.modules():
            if isinstance(module, Int8Linear):
                module.pack()
        return model.requires_grad_(False)

    def param_needs_quantization(self, model, param_name, **kwargs) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    def get_quantize_ops(self):
        return _Round()

    def is_serializable(self, *args, **kwargs) -> bool:
        return False
