"""The official decoder on this CPU: 8 bits against PyTorch's own 4 bits, side by side, with random weights.

    python -m benchmarks.int4

4 of the 32 layers at full width; times are medians of rounds in which each has its turn, and only their ratios mean
something; the last column is how far the hidden states are from float32. 4 bits: weights in blocks of 32, each block
with its scale and its middle, times bfloat16 rows. Needs 6 GB of memory and 2 GB of disk.
"""

import torch
from torch import nn

from helpers.phi3_v import Phi3VForCausalLM

from .cpu import FORMS, random_checkpoint
from .layers import Ours, arguments, compare_layers

BLOCK = 32


class Int4Linear(nn.Module):
    """`x Wᵀ` with the weight of `linear` in 4 bits. Only for inference."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features, in_features = linear.weight.shape
        blocks = linear.weight.detach().float().view(self.out_features, in_features // BLOCK, BLOCK)
        low, high = blocks.amin(-1), blocks.amax(-1)
        scale = ((high - low) / 15).clamp_min(1e-8)
        whole = ((blocks - low[..., None]) / scale[..., None]).round_().to(torch.int32)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.view(self.out_features, in_features), 1)
        # The kernel takes a value v for (v - 8) * scale + middle.
        self.scales_and_middles = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).bfloat16().contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features) in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, BLOCK, self.scales_and_middles)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def in_4_bits(model: Phi3VForCausalLM) -> Phi3VForCausalLM:
    """The model with its decoder's linear layers replaced."""
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.layers.set_submodule(name, Int4Linear(module))
    return model


def main():
    args = arguments(__doc__)
    with random_checkpoint() as folder:
        int8, int4, plain = (
            Phi3VForCausalLM.from_pretrained(folder, **FORMS[name]) for name in ("int8", "float32", "float32")
        )
    decoders = {"int8": Ours(int8), "PyTorch int4": Ours(in_4_bits(int4))}
    compare_layers(decoders, Ours(plain), [], args)


if __name__ == "__main__":
    main()
