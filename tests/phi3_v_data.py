"""What the tests of helpers.phi3_v share: the golden data, and a tiny random model with its tokenizer."""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "checkpoint"
CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("*.json"))


def load_json(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def load_case(name):
    return load_json(f"cases/{name}.json"), load_file(GOLDEN / "cases" / f"{name}.safetensors")


def copy_of(folder, to):
    """A writable copy, even of a read-only folder."""
    shutil.copytree(folder, to)
    for path in (to, *to.iterdir()):
        path.chmod(0o755)
    return to


def write_sums(folder):
    """Writes the SHA256SUMS of a checkpoint's folder."""
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), newline="\n")


def golden_image(name):
    return Image.open(GOLDEN / "images" / name)


@cache
def golden_tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def golden_processor(num_crops=16, **kwargs):
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops, **kwargs), golden_tokenizer())


def tiny_processor(num_crops=4):
    """112-pixel tiles: a picture of one tile has 41 image tokens."""
    return golden_processor(num_crops, image_size=112)


def tiny_config(**kwargs):
    vision_config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 112,
    }
    settings = {
        "vocab_size": 1064,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [2.0, 3.0, 5.0, 9.0, 17.0, 33.0],
        },
        "initializer_range": 0.2,
        "img_processor": {"vision_config": vision_config},
    }
    return Phi3VConfig(**{**settings, **kwargs})


def tiny_model(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Phi3VForCausalLM(tiny_config(**kwargs)).eval()
    # Initialised to zero, so that leaving them out would not show.
    for separator in (model.model.vision_embed_tokens.sub_GN, model.model.vision_embed_tokens.glb_GN):
        torch.nn.init.normal_(separator)
    return model


def noise_image(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
