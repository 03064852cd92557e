"""The official model's speed on a GPU with random weights: every form of decoding in its turn, in one run.

    python -m benchmarks.cuda

Times are the card's own: the table names it. `original` is the original code's way without flash-attn: eager
attention, and every picture padded with tiles to `num_crops`. The card's speed in copying and in multiplying is
measured beside it, for an estimated lower bound: a token reads every weight of the decoder once, a prompt multiplies
with each of them. Needs 16 GB of GPU memory and, for `compiled`, a C compiler.
"""

import argparse
import contextlib
import json
import statistics
import time
from unittest import mock

import torch
import transformers
from PIL import Image
from tqdm import tqdm

from helpers.compiled import CompiledDecoding, compile_prompts
from helpers.generation import FIXED_SETTINGS, token_by_token
from helpers.machine import disable_cudnn_attention
from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor

from .compare import speeds

#: Attention of each form, and whether it is compiled. That form comes last, as nothing undoes it.
FORMS = {
    "original": ("eager", False),
    "sdpa": ("sdpa", False),
    "compiled": ("sdpa", True),
}
#: Pictures of 4:3 and 16:9, width and height.
SIZES = {"4:3": (1344, 1008), "16:9": (1920, 1080)}
#: Tokens of a prompt beside those of its picture, and most tiles of a picture, as in Phi-3-vision.
TEXT, NUM_CROPS = 40, 16


def build_model(layers: int) -> Phi3VForCausalLM:
    """A model of the official sizes in bfloat16, created on the GPU."""
    config = Phi3VConfig(num_hidden_layers=layers)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Phi3VForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def seconds(work) -> float:
    """Seconds of one call, until the GPU has finished it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def ceilings() -> dict[str, float]:
    """Bytes a second of a large copy (read and written), and operations a second of a large matrix product."""
    source = torch.randn(2**29, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copies, products = [], []
    for _ in range(10):
        copies.append(seconds(lambda: target.copy_(source)))
        products.append(seconds(lambda: matrix @ matrix))
    return {
        "bytes/s": 2 * source.nbytes / statistics.median(copies),
        "operations/s": 2 * 8192**3 / statistics.median(products),
    }


def question(model, preprocess: Phi3VImageProcessor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Random tokens about one random picture."""
    inputs = preprocess(Image.effect_noise(size, 60).convert("RGB"))
    ids = torch.randint(3, 32_000, (1, TEXT + preprocess.get_num_image_tokens(*inputs["image_sizes"][0].tolist())))
    ids[0, TEXT // 2 : -TEXT // 2] = model.config.image_token_id
    inputs = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: value.to("cuda") for name, value in inputs.items()}


def longer(inputs: dict[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
    """The question with `tokens` more tokens. Real questions differ in length, and some kernels are planned again for
    each new length."""
    ids = torch.cat([inputs["input_ids"], inputs["input_ids"][:, -1:].expand(-1, tokens)], dim=1)
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def all_tiles(model: Phi3VForCausalLM, most_tiles: int):
    """A context in which the tower always encodes the global view and the most tiles that a picture can have."""
    tower, original = model.vision_tower, model.vision_tower.forward

    def forward(tiles, *args, **kwargs):
        empty = tiles.new_zeros(most_tiles + 1 - len(tiles), *tiles.shape[1:])
        output = original(torch.cat([tiles, empty]), *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state[: len(tiles)]
        return output

    return mock.patch.object(tower, "forward", forward)


def answer(model, inputs, tokens: int, compiled: CompiledDecoding | None) -> tuple[list[int], list[float]]:
    """The ids of a greedy answer of `tokens` tokens, and the seconds until each of them was ready."""
    positions = inputs["input_ids"].shape[1] + tokens
    ids, times = [], []
    torch.cuda.synchronize()
    start = time.perf_counter()
    with compiled.reserve(positions) if compiled else contextlib.nullcontext({}) as reserved:
        steps = model.generate(
            **inputs,
            **reserved,
            **FIXED_SETTINGS,
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            custom_generate=token_by_token,
        )
        for token in steps:
            ids.append(token)
            times.append(time.perf_counter() - start)
    return ids, times


def floors(model, inputs, ceiling: dict[str, float]) -> dict[str, float]:
    """Lower bounds in seconds. For a further token, every weight of the decoder is read once; for the first token, each
    of them is multiplied with every position, and those of the tower with every patch. Attention and its cache are
    not counted."""
    layers = sum(p.numel() for p in model.model.layers.parameters())
    tower = sum(p.numel() for p in model.vision_tower.encoder.parameters())
    grids = model.model.vision_embed_tokens.get_grids(inputs["pixel_values"], inputs["image_sizes"])
    patches = sum(h * w + 1 for h, w in grids) * model.vision_tower.embeddings.num_positions
    length = inputs["input_ids"].shape[1]
    return {
        "first token": 2 * (layers * length + tower * patches) / ceiling["operations/s"],
        "token": 2 * (layers + model.lm_head.weight.numel()) / ceiling["bytes/s"],
    }


def rounds_of(form: str, model, questions: dict, args, bar: tqdm):
    """For one form: the seconds of each round but the first, which warms up; the ids; and what else was measured.

    In each round the questions have a length that no earlier round had.
    """
    attention, is_compiled = FORMS[form]
    model.set_attn_implementation(attention)
    compiled = CompiledDecoding(model) if is_compiled else None
    if is_compiled:
        compile_prompts(model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rows, ids, begin = [], {}, time.perf_counter()
    with all_tiles(model, NUM_CROPS) if form == "original" else contextlib.nullcontext():
        for i in range(args.rounds + 1):
            row = {}
            for ratio, inputs in questions.items():
                bar.set_description(f"{form} {ratio}")
                ids[ratio], times = answer(model, longer(inputs, i * args.tokens), args.tokens, compiled)
                row[f"first token {ratio}"] = times[0]
                row[f"token {ratio}"] = (times[-1] - times[0]) / (len(times) - 1)
                bar.update()
            if i == 0:
                warm_up = time.perf_counter() - begin
            else:
                rows.append(row)
    peak = torch.cuda.max_memory_allocated() / 1e9
    return rows, ids, {"warm-up": round(warm_up, 1), "peak GB": round(peak, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="layers of the decoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer, at least 2")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU that PyTorch can use")
    torch.manual_seed(0)
    disable_cudnn_attention()
    ceiling, model, preprocess = ceilings(), build_model(args.layers), Phi3VImageProcessor(NUM_CROPS)
    questions = {ratio: question(model, preprocess, size) for ratio, size in SIZES.items()}
    floor = {
        f"{name} {ratio}": value
        for ratio, inputs in questions.items()
        for name, value in floors(model, inputs, ceiling).items()
    }

    def line(form: str, row: dict[str, float], note="") -> str:
        return " ".join([f"{form:15}", *(f"{1000 * row[name]:18.2f}" for name in floor), f"  {note}"])

    print("milliseconds   ", *(f"{name:>18}" for name in floor))
    times, medians, ids, more = {}, {"floor": floor}, {}, {}
    with tqdm(total=(args.rounds + 1) * len(FORMS) * len(SIZES)) as bar:
        for form in FORMS:
            times[form], ids[form], more[form] = rounds_of(form, model, questions, args, bar)
            same = (a == b for ratio in SIZES for a, b in zip(ids[form][ratio], ids["original"][ratio]))
            more[form]["same ids as original"] = sum(same)
            medians[form] = {name: statistics.median(row[name] for row in times[form]) for name in floor}
            tqdm.write(line(form, medians[form], more[form]))
    print(line("floor", floor))
    facts = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        **{name: float(f"{value:.3g}") for name, value in ceiling.items()},
    }
    rounded = {form: {name: round(value, 5) for name, value in row.items()} for form, row in medians.items()}
    print(json.dumps({"seconds": rounded, "speed": speeds(times, "original"), "more": more, **facts, **vars(args)}))


if __name__ == "__main__":
    main()
