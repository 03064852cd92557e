"""The official decoder on this CPU: 8 bits here against ONNX Runtime GenAI with 4 bits, side by side, random weights.

    python -m pip install onnxruntime-genai onnx onnx-ir
    python -m benchmarks.onnxruntime

4 of the 32 layers at full width and the head; times are medians of rounds in which each has its turn, and only their
ratios mean something; the last column is how far the logits are from float32. ONNX Runtime gets the same weights as the
text model Phi-3, which has the same layers, by its own model builder (blocks of 32 weights, products in 8 bits). Needs
8 GB of memory and 3 GB of disk.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime_genai
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

from helpers import POCKET
from helpers.cache import growing_cache
from helpers.phi3_v import Phi3VForCausalLM

from .compare import report, seconds, speeds
from .cpu import FORMS, config
from .layers import arguments

EXTRA = ["int4_block_size=32", "int4_accuracy_level=4"]


def text_model(model: Phi3VForCausalLM) -> Phi3ForCausalLM:
    """The decoder alone, with the same weights; up to 4,096 tokens there is nothing special about its positions."""
    sizes = model.config
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
    length = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = Phi3ForCausalLM(Phi3Config(**{name: getattr(sizes, name) for name in names}, **length, **special))
    text.load_state_dict(model.state_dict(), strict=False)
    return text.to(torch.bfloat16)


def built(model: Phi3ForCausalLM, folder: Path) -> onnxruntime_genai.Model:
    """What ONNX Runtime's model builder makes of it."""
    model.save_pretrained(folder / "text")
    AutoTokenizer.from_pretrained(POCKET).save_pretrained(folder / "text")  # the builder wants one; it is not used
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder / "text", "-o", folder / "onnx"]
    command += ["-p", "int4", "-e", "cpu", "-c", folder / "cache", "--extra_options", *EXTRA]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The model builder failed:\n{done.stderr[-2000:]}")
    return onnxruntime_genai.Model(str(folder / "onnx"))


def started(model: onnxruntime_genai.Model, length: int) -> onnxruntime_genai.Generator:
    """A generator for at most `length` tokens."""
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=length, min_length=length)
    return onnxruntime_genai.Generator(model, params)


def measure_onnx(model: onnxruntime_genai.Model, ids: torch.Tensor, steps: int) -> dict[str, float]:
    """Seconds of a prompt and of each token after it."""
    generator = started(model, ids.shape[1] + steps + 1)
    prefill = seconds(lambda: generator.append_tokens(ids[0].tolist()))
    generator.generate_next_token()
    token = seconds(lambda: [generator.generate_next_token() for _ in range(steps)]) / steps
    if generator.token_count() != ids.shape[1] + steps + 1:
        raise RuntimeError(f"ONNX Runtime stopped after {generator.token_count()} tokens.")
    return {"prefill": prefill, "token": token}


@torch.no_grad()
def measure_ours(model: Phi3VForCausalLM, ids: torch.Tensor, steps: int) -> dict[str, float]:
    """The same for the model here."""
    cache, tokens = growing_cache(), [ids]

    def step():
        tokens.append(model(tokens[-1], past_key_values=cache, logits_to_keep=1).logits.argmax(-1))

    prefill = seconds(step)
    token = seconds(lambda: [step() for _ in range(steps)]) / steps
    return {"prefill": prefill, "token": token}


def main():
    args = arguments(__doc__)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = Phi3VForCausalLM(config()).to(torch.bfloat16)
        onnx = built(text_model(whole), folder)
        whole.save_pretrained(folder / "ours")
        del whole
        ours = Phi3VForCausalLM.from_pretrained(folder / "ours", **FORMS["int8"]).eval()
        ids = torch.randint(3, 32_000, (1, args.length))
        work = {
            "int8": lambda: measure_ours(ours, ids, args.steps),
            "ONNX Runtime int4": lambda: measure_onnx(onnx, ids, args.steps),
        }
        generator = started(onnx, args.length + 1)
        generator.append_tokens(ids[0].tolist())
        with torch.no_grad():
            exact = Phi3VForCausalLM.from_pretrained(folder / "ours", **FORMS["float32"])(ids, logits_to_keep=1).logits
            logits = {"int8": ours(ids, logits_to_keep=1).logits, "ONNX Runtime int4": generator.get_logits()}
        wrong = {name: (torch.as_tensor(said).flatten() - exact.flatten()).norm() for name, said in logits.items()}
        error = {name: round((size / exact.norm()).item(), 3) for name, size in wrong.items()}
        runs = {name: [] for name in work}
        for i in tqdm(range(args.rounds + 1)):
            for name, measure in work.items():
                times = measure()
                if i > 0:  # the first round warms up
                    runs[name].append(times)
    report(speeds(runs, "int8"), error, ["onnxruntime-genai", "onnxruntime"], args)


if __name__ == "__main__":
    main()
