"""The official decoder on this CPU: 8 bits here against the libraries that transformers quantizes with, side by side.

    python -m benchmarks.quantizers --rounds 3 --length 300 --steps 8

4 of the 32 layers at full width with random weights, as transformers loads them: not compiled, which torchao is made
for. Times are medians of rounds in which each has its turn, and only their ratios mean something; the last column is
how far the hidden states are from float32. Needs `pip install torchao bitsandbytes accelerate`, 10 GB of memory and
2 GB of disk.
"""

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, TorchAoConfig

from helpers.phi3_v import Phi3VForCausalLM

from .cpu import FORMS, random_checkpoint
from .layers import Ours, arguments, compare_layers

KEPT = ["lm_head", "vision_embed_tokens"]
THEIRS = {
    "torchao int8": TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEPT),
    "torchao int8, dynamic": TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=KEPT),
    "bitsandbytes int8": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT),
    "bitsandbytes int4": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=KEPT
    ),
}


def main():
    args = arguments(__doc__)
    with random_checkpoint() as folder:
        int8, plain = (Phi3VForCausalLM.from_pretrained(folder, **FORMS[name]) for name in ("int8", "float32"))
        decoders = {"int8": Ours(int8)}
        for name, theirs in THEIRS.items():
            form = {**FORMS["float32"], "quantization_config": theirs, "device_map": {"": "cpu"}}
            decoders[name] = Ours(Phi3VForCausalLM.from_pretrained(folder, **form))
    compare_layers(decoders, Ours(plain), ["torchao", "bitsandbytes", "transformers"], args)


if __name__ == "__main__":
    main()
