"""From a picture to `pixel_values`: the image processor here against the original's steps, side by side.

    python -m benchmarks.preprocessing

Pixels are compared too: they must be equal. Times are medians of rounds in which both have their turn, and only their
ratio means something. For a large photo most of the time goes into Pillow's resizing, which both need.
"""

import argparse
import json
from functools import partial

import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from helpers.phi3_v import Phi3VImageProcessor

from .compare import seconds, speeds

#: Width and height of the pictures: small, as large as twelve tiles, and a phone's photo.
SIZES = {"640 x 480": (640, 480), "1344 x 1008": (1344, 1008), "4032 x 3024": (4032, 3024)}


def original(image: Image.Image, processor: Phi3VImageProcessor) -> torch.Tensor:
    """`pixel_values` of one landscape picture by the steps of the original code, each a tensor of its own."""
    side = processor.image_size
    image = image.convert("RGB")
    height, width = processor.get_resized_size(image.height, image.width)
    rows, columns = -(-height // side), width // side
    padded = Image.new("RGB", (width, rows * side), "white")
    padded.paste(image.resize((width, height), Image.BILINEAR), (0, (rows * side - height) // 2))
    pixels = torch.from_numpy(np.array(padded)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = pixels.clone().sub_(mean).div_(std)
    view = F.interpolate(pixels[None], size=(side, side), mode="bicubic")
    tiles = pixels.reshape(1, 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, side, side)
    rest = torch.zeros(processor.num_crops - len(tiles), 3, side, side)
    return torch.stack([torch.cat([torch.cat([view, tiles]), rest])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--num-crops", type=int, default=16)
    args = parser.parse_args()
    processor = Phi3VImageProcessor(args.num_crops)
    noise = np.random.default_rng(0)
    pictures = {
        name: Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for name, (width, height) in SIZES.items()
    }
    forms = {"original": lambda image: original(image, processor), "here": lambda image: processor(image).pixel_values}
    equal = all(torch.equal(forms["original"](image), forms["here"](image)) for image in pictures.values())
    runs = {form: [] for form in forms}
    for _ in tqdm(range(args.rounds)):
        for form, work in forms.items():
            runs[form].append({name: seconds(partial(work, image)) for name, image in pictures.items()})
    speed = speeds(runs, "original")["here"]
    for name, ratio in speed.items():
        print(f"{name:12} {ratio:5.2f} times as fast as the original")
    print(f"pixels equal: {equal}")
    facts = {"pillow": PIL.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"speed": speed, "equal": equal, **facts, **vars(args)}))


if __name__ == "__main__":
    main()
