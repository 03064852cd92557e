"""Linear layers in 8 bits for the CPU: a quarter of the memory of float32, and several times its speed.

`load_model_and_processor(..., quantization="int8")` uses it on a CPU. Weights are rounded once, while they are read;
each row of activations is rounded when it comes by. As in LLM.int8() (Dettmers et al., 2022,
https://arxiv.org/abs/2208.07339) rows with outliers need more than 8 bits; here they take a second pass.
"""

import contextlib
import functools

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "phi3_v_int8"
#: The embedding is a table and the head decides between near words; both keep their precision.
KEPT = "lm_head"
#: A row whose largest value is so many times its root mean square loses 2 % of itself in 8 bits.
OUTLIER = 9.0
#: Up to so many rows (the step that writes a token has one) a CPU without AVX512-VNNI multiplies 8-bit weights faster
#: by bfloat16 rows than by 8-bit ones.
FEW = 8


class Int8Linear(nn.Module):
    """
    `x Wᵀ + b` with `weight` int8 (out_features, in_features) and `weight_scale` float32 (out_features,), so that
    W = weight * weight_scale[:, None]. Only for inference.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # Not int8 yet: transformers brings what it reads to the dtype that it finds here, and `_Round` rounds it then.
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_scale = nn.Parameter(torch.empty(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features) in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features).float()
        if len(rows) <= FEW and kernel_of_this_cpu() != (by_pytorch, 127):
            ones = torch.ones(self.out_features, dtype=torch.bfloat16)
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, ones).float() * self.weight_scale
        else:
            y, rest = self._product(rows)
            hard = rows.abs().amax(1) > OUTLIER * rows.square().mean(1).sqrt()
            if hard.any():
                y[hard] += self._product(rest[hard])[0]
        y = y.to(x.dtype) if self.bias is None else (y + self.bias).to(x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The product with the rows as 8 bits hold them, and what these leave of the rows."""
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        whole = (rows / scale).round_()
        multiply, _ = kernel_of_this_cpu()
        y = multiply(whole, self.weight)
        return y.mul_(self.weight_scale).mul_(scale), rows - whole.mul_(scale)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in) as int8, and its scales, float32 (out,)."""
    weight, (_, largest) = weight.float(), kernel_of_this_cpu()
    scale = weight.abs().amax(1).clamp_min(1e-30) / largest
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def by_pytorch(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`rows weightᵀ` for whole `rows` from -127 to 127 (n, in) and int8 `weight` (out, in), float32 (n, out).

    Fast with AVX512-VNNI. PyTorch has nothing but a plain loop for other CPUs.
    """
    return torch._int_mm(rows.to(torch.int8), weight.t()).float()


def by_onednn(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same for other x86 CPUs. The weights are packed anew each time, so that they are in memory only once."""
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    unsigned = (rows + 128).to(torch.uint8)
    return torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def by_float(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same for any CPU, no faster than float32."""
    return rows @ weight.float().t()


@functools.cache
def kernel_of_this_cpu():
    """The fastest of these that this CPU gets right, and the largest weight for it, 127 or 63. It is tried out:
    without VNNI 16-bit sums of two products overflow above 63."""
    fast = by_pytorch if torch.cpu.get_capabilities().get("avx512_vnni") else by_onednn
    rows = torch.full((8, 64), 127.0)
    for kernel, largest in ((fast, 127), (fast, 63), (by_float, 127)):
        weight = torch.full((16, 64), largest, dtype=torch.int8)
        with contextlib.suppress(RuntimeError, AttributeError, TypeError):  # oneDNN is not in every build
            if all((kernel(sign * rows, weight) == sign * 64 * 127 * largest).all() for sign in (1, -1)):
                return kernel, largest
    raise RuntimeError('This CPU gets int8 products wrong; leave quantization="int8" out.')


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """What `from_pretrained(quantization_config=...)` takes for this method; it has no settings."""

    def __init__(self, **kwargs):
        self.quant_method = METHOD


class _Round(ConversionOps):
    """A weight to its int8 values and their scales, while the file is read."""

    def __init__(self, hf_quantizer):
        self.hf_quantizer = hf_quantizer

    @torch.no_grad()
    def convert(self, input_dict, full_layer_name=None, **kwargs):
        ((weight, *_),) = input_dict.values()
        values, scale = quantize(weight)
        return {full_layer_name: values, f"{full_layer_name}_scale": scale}


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Puts an `Int8Linear` in the place of every linear layer but the head."""

    requires_calibration = False
    is_trainable = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name != KEPT:
                with torch.device("meta"):
                    new = Int8Linear(module.in_features, module.out_features, module.bias is not None)
                model.set_submodule(name, new)

    def _process_model_after_weight_loading(self, model, **kwargs):
        return model.requires_grad_(False)

    def param_needs_quantization(self, model, param_name, **kwargs) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    def get_quantize_ops(self):
        return _Round(self)

    def is_serializable(self, *args, **kwargs) -> bool:
        return False
