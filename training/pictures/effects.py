"""What screens, cameras, scanners and e-mail do to a picture, mildly."""

import io
import random

import numpy as np
from PIL import Image, ImageFilter

#: The share of training charts and tables that are placed on a larger sheet: small type is misread most.
SHEETS = 0.4


def on_a_sheet(rng: random.Random, image: Image.Image, characters: np.ndarray):
    """The picture somewhere on a sheet of its own colour, up to 1.35 times as wide and high, and where its characters
    end up. They are smaller once the sheet is scaled, and the borders of tiles cut other lines."""
    width, height = (round(side * rng.uniform(1, 1.35)) for side in image.size)
    left, top = rng.randint(0, width - image.width), rng.randint(0, height - image.height)
    sheet = Image.new("RGB", (width, height), image.getpixel((0, 0)))
    sheet.paste(image, (left, top))
    return sheet, characters + np.array([0, left, top, left, top], dtype=np.float32)


def wear(rng: random.Random, image: Image.Image) -> Image.Image:
    """The picture after none, one or several of: blur, noise, JPEG. Its size stays the same."""
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9) * max(image.size) / 448))
    if rng.random() < 0.2:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(image.size[::-1] + (1,), dtype=np.float32)
        noisy = np.asarray(image, dtype=np.float32) + noise * rng.uniform(2, 10)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(50, 92))
        image = Image.open(buffer).convert("RGB")
    return image
