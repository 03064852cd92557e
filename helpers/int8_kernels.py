"""Integer matrix products in 8 bits, by the kernel that is fastest on this CPU.

Each `by_...` takes an int8 weight (out, in) and the scales of its rows, float32 (out,), and returns a function that
multiplies by it: from rows of integers between -127 and 127, float32 (n, in), to `rows weightᵀ * scale`, float32
(n, out).
"""

import contextlib
import functools
import warnings
from collections.abc import Callable

import torch

#: Up to this many rows count as few, as in the step that writes a token.
FEW = 8


def by_onednn(weight: torch.Tensor, scale: torch.Tensor) -> Callable:
    """By oneDNN, the fastest on CPUs with VNNI (measured with AVX512-VNNI)."""
    packed, middles = torch.ops.onednn.qlinear_prepack(weight, None), torch.zeros(len(weight), dtype=torch.int64)

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        # It takes unsigned rows and their zero: adding 128 to 8 bits is flipping the first of them.
        unsigned = rows.to(torch.int8).bitwise_xor_(-128).view(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, packed, scale, middles, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return multiply


def by_fbgemm(weight: torch.Tensor, scale: torch.Tensor) -> Callable:
    """By FBGEMM, the fastest on other x86 CPUs. PyTorch has deprecated these functions; `by_onednn` is next."""
    packed = torch.fbgemm_pack_quantized_matrix(weight)
    sums, bias = weight.sum(1, dtype=torch.int32), torch.zeros(len(weight), dtype=torch.float32)
    shape = weight.new_empty(1, 1).expand(weight.shape)  # of this argument only the shape is used
    # FBGEMM rounds the rows again, over the range of all values in them; with this row in it, that changes nothing.
    span = torch.zeros(1, weight.shape[1], dtype=torch.float32)
    span[0, :2] = torch.tensor([-128.0, 127.0])

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([rows, span])
        y = torch.fbgemm_linear_int8_weight_fp32_activation(rows, shape, packed, sums, 1.0, 0, bias)
        return y[:-1].mul_(scale)

    return multiply


def by_float(weight: torch.Tensor, scale: torch.Tensor) -> Callable:
    """For any CPU, no faster than float32."""
    return lambda rows: (rows @ weight.float().t()).mul_(scale)


def few_by_bfloat16(weight: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The product for a few rows (n, in) of any floats, rounded to bfloat16: the fastest for so few where the other
    choice is `by_float`."""
    ones = torch.ones(len(weight), dtype=torch.bfloat16)
    return torch._weight_int8pack_mm(rows.bfloat16(), weight, ones).float().mul_(scale)


@functools.cache
def kernel_of_this_cpu() -> tuple[Callable, int]:
    """The kernel for this CPU, and the largest weight that it multiplies exactly, 127 or 63: both are found by trial.
    Without VNNI, 16-bit sums of two products overflow above 63."""
    ones = torch.ones(16, dtype=torch.float32)
    rows = torch.full((FEW + 1, 64), 127.0, dtype=torch.float32)
    # Those that get all 8 bits right come first, then the faster ones.
    order = ((by_onednn, 127), (by_fbgemm, 127), (by_fbgemm, 63), (by_onednn, 63), (by_float, 127))
    for kernel, limit in order:
        weight = torch.full((16, 64), limit, dtype=torch.int8)
        # Not every build has all of them, and deprecated ones warn at the first call.
        with contextlib.suppress(RuntimeError, AttributeError, TypeError), warnings.catch_warnings(action="ignore"):
            multiply = kernel(weight, ones)
            if all((multiply(sign * rows) == sign * 64 * 127 * limit).all() for sign in (1, -1)):
                return kernel, limit
    raise RuntimeError('This CPU gets int8 products wrong; leave quantization="int8" out.')
