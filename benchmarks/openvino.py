"""The official decoder on this CPU: 8 bits here against OpenVINO with 4 and 8 bits, side by side, random weights.

    python -m pip install openvino nncf
    python -m benchmarks.openvino

4 of the 32 layers at full width, without the head; times are medians of rounds in which every form has its turn, and
only their ratios mean something. Needs 8 GB of memory and 2 GB of disk. OpenVINO gets the same layers, traced with
their cache as its state, and picks the rest for the CPU by itself. The last column is how far the hidden states are
from float32.
"""

import nncf
import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from helpers.phi3_v import Phi3VForCausalLM

from .cpu import FORMS, random_checkpoint
from .layers import Ours, arguments, compare_layers

#: How the weights of each form are compressed.
COMPRESSED = {
    "OpenVINO int8": {"mode": nncf.CompressWeightsMode.INT8_SYM},
    "OpenVINO int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 128, "ratio": 1.0},
}


class Decoder(nn.Module):
    """The layers with everything that changes passed as an argument: (hidden states, mask, rotary tables, cache...) to
    (hidden states, cache...). The tables are made outside: OpenVINO's bfloat16 is not exact for positions above 256."""

    def __init__(self, model: Phi3VForCausalLM):
        super().__init__()
        self.model = model.model

    def forward(self, hidden_states, attention_mask, cos, sin, *past):
        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        for layer in self.model.layers:
            hidden_states = layer(
                hidden_states, attention_mask, past_key_values=cache, use_cache=True, position_embeddings=(cos, sin)
            )
        return self.model.norm(hidden_states), *(part for layer in cache.layers for part in (layer.keys, layer.values))


def mask(new: int, past: int) -> torch.Tensor:
    """Which positions the `new` ones after `past` may look at: float32 (1, 1, new, past + new), 0 or minus infinity."""
    return torch.full((new, past + new), float("-inf")).triu(past + 1)[None, None]


def exported(model: Phi3VForCausalLM) -> openvino.Model:
    """The decoder as an OpenVINO model that keeps its cache as a state."""
    sizes = model.config
    heads, head_size = sizes.num_key_value_heads, sizes.hidden_size // sizes.num_attention_heads
    past = [torch.zeros(1, heads, 2, head_size) for _ in range(2 * sizes.num_hidden_layers)]
    hidden_states, table = torch.rand(1, 3, sizes.hidden_size), torch.rand(1, 3, head_size)
    example = (hidden_states, mask(3, 2), table, table, *past)
    dynamic = [[1, -1, sizes.hidden_size], [1, 1, -1, -1], *[[1, -1, head_size]] * 2]
    dynamic += [[1, heads, -1, head_size]] * len(past)
    result = openvino.convert_model(Decoder(model), example_input=example, input=dynamic)
    names = {}
    for i, (source, target) in enumerate(zip(result.inputs[4:], result.outputs[1:], strict=True)):
        source.get_tensor().set_names({f"past.{i}"})
        target.get_tensor().set_names({f"present.{i}"})
        names[f"past.{i}"] = f"present.{i}"
    # The pattern that OpenVINO's CPU plugin recognises as a cache: each past goes through a choice of beams.
    beams = ops.parameter([1], openvino.Type.i32, name="beams")
    beams.output(0).get_tensor().set_names({"beams"})
    result.add_parameters([beams])
    for source in result.inputs[4:-1]:
        users = source.get_target_inputs()
        chosen = ops.gather(source, beams, ops.constant(0))
        for user in users:
            user.replace_source_output(chosen.output(0))
    result.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(result, names)
    nothing = ops.constant(np.zeros((1, heads, 0, head_size), dtype=np.float32))
    for operation in result.get_ops():
        if operation.get_type_name() == "ReadValue":
            operation.set_arguments([nothing.output(0)])
    result.validate_nodes_and_infer_types()
    return result


class Engine:
    """An OpenVINO model with the interface of `Ours`."""

    def __init__(self, model: openvino.Model, rotary_emb: nn.Module):
        self.rotary_emb = rotary_emb
        compiled = openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        self.request = compiled.create_infer_request()

    def __call__(self, inputs_embeds: torch.Tensor, past: int) -> torch.Tensor:
        """Hidden states of the new positions after `past` earlier ones; 0 starts again."""
        if past == 0:
            self.request.reset_state()
        new = inputs_embeds.shape[1]
        tables = self.rotary_emb(inputs_embeds, torch.arange(past, past + new)[None])
        inputs = [inputs_embeds, mask(new, past), *tables, torch.zeros(1, dtype=torch.int32)]
        return torch.from_numpy(self.request.infer([part.numpy() for part in inputs])[0].copy())


def main():
    args = arguments(__doc__)
    with random_checkpoint() as folder:
        rounded, plain = (Phi3VForCausalLM.from_pretrained(folder, **FORMS[name]) for name in ("int8", "float32"))
    decoders, whole = {"int8": Ours(rounded)}, exported(plain)
    for name, form in COMPRESSED.items():
        decoders[name] = Engine(nncf.compress_weights(whole.clone(), **form), plain.model.rotary_emb)
    compare_layers(decoders, Ours(plain), ["openvino", "nncf"], args)


if __name__ == "__main__":
    main()
