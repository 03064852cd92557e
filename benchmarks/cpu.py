"""The official model's speed on this CPU: 8 bits against 16 and 32, side by side, with random weights.

    python -m benchmarks.cpu

Builds 4 of the decoder's 32 layers and 4 of the tower's 23 at full width; times are medians of rounds in which every
form has its turn, and only their ratios mean something. Needs 6 GB of memory and 2 GB of disk. To see what an older
CPU would do, set ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI (no bfloat16 units), or AVX2 with ATEN_CPU_CAPABILITY=avx2; but
parts of PyTorch still see the real CPU then, so only a real older one shows everything.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

import torch
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicCache

from helpers.cache import growing_cache
from helpers.int8 import Int8Config
from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM

from .compare import seconds, speeds

LAYERS, OFFICIAL_LAYERS = 4, 32
TOWER_LAYERS, OFFICIAL_TOWER_LAYERS = 4, 23
#: What each form is loaded with. The page that this project grew from ran the first, with transformers' own cache.
FORMS = {
    "bfloat16": {"dtype": torch.bfloat16, "attn_implementation": "eager"},
    "float32": {"dtype": torch.float32, "attn_implementation": "sdpa"},
    "int8": {"dtype": torch.float32, "attn_implementation": "sdpa", "quantization_config": Int8Config()},
}


def config() -> Phi3VConfig:
    """The official sizes with fewer layers."""
    return Phi3VConfig(
        num_hidden_layers=LAYERS,
        img_processor={"vision_config": {"num_hidden_layers": TOWER_LAYERS + 1}},
    )


@contextlib.contextmanager
def random_checkpoint() -> Iterator[str]:
    """A temporary folder with a checkpoint of `config()`: random weights, always the same, in bfloat16."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        Phi3VForCausalLM(config()).to(torch.bfloat16).save_pretrained(folder)
        yield folder


@torch.no_grad()
def measure(model: Phi3VForCausalLM, cache: Cache, tiles: int, length: int, steps: int) -> dict[str, float]:
    """Seconds of the tower for `tiles`, of the decoder for a prompt of `length`, of one more token, and of its head."""
    pixel_values = torch.rand(1, tiles, 3, 336, 336, dtype=model.dtype)
    sizes = torch.tensor([[336 * (tiles - 1), 336]])
    ids = torch.randint(0, 32_000, (1, length))
    tower = seconds(lambda: model.get_image_features(pixel_values, sizes))
    prefill = seconds(lambda: model(ids, past_key_values=cache, logits_to_keep=1))
    token = sum(seconds(lambda: model(ids[:, :1], past_key_values=cache)) for _ in range(steps)) / steps
    last = torch.rand(1, 1, model.config.hidden_size, dtype=model.dtype)
    head = sum(seconds(lambda: model.lm_head(last)) for _ in range(steps)) / steps
    return {"tower": tower, "prefill": prefill, "token": token, "head": head}


def whole(times: dict[str, float]) -> dict[str, float]:
    """Times of the pieces as they would add up in the whole model, and to its first token."""
    tower = times["tower"] * OFFICIAL_TOWER_LAYERS / TOWER_LAYERS
    prefill, token = (
        times["head"] + (times[name] - times["head"]) * OFFICIAL_LAYERS / LAYERS for name in ("prefill", "token")
    )
    return {"tower": tower, "prefill": prefill, "first token": tower + prefill, "token": token}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiles", type=int, default=5, help="tiles, the global view included")
    parser.add_argument("--padding", type=int, default=0, help="tiles of padding, which only bfloat16 has to encode")
    parser.add_argument("--length", type=int, default=800, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=8, help="tokens of the answer")
    args = parser.parse_args()
    results = {name: [] for name in FORMS}
    with random_checkpoint() as folder:
        models = {name: Phi3VForCausalLM.from_pretrained(folder, **form).eval() for name, form in FORMS.items()}
        bar = tqdm(total=(args.rounds + 1) * len(FORMS))
        for i in range(args.rounds + 1):
            for name, model in models.items():
                bar.set_description(name)
                original = name == "bfloat16"
                cache = DynamicCache() if original else growing_cache()
                tiles = args.tiles + args.padding if original else args.tiles
                times = whole(measure(model, cache, tiles, args.length, args.steps))
                if i > 0:  # the first round warms up
                    results[name].append(times)
                bar.update()
        bar.close()
    first, *_ = FORMS
    speed = speeds(results, first)
    columns = list(speed[first])
    print(f"times as fast as {first}", *(f"{column:>12}" for column in columns))
    for name, ratios in speed.items():
        print(f"{name:22}", *(f"{ratios[column]:12.2f}" for column in columns))
    capability = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "none")
    facts = {"torch": torch.__version__, "capability": capability, "limit": limit, "threads": torch.get_num_threads()}
    print(json.dumps({"speed": speed, **facts, **vars(args)}))


if __name__ == "__main__":
    main()
