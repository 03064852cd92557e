"""Image processor of Phi-3-Vision: a global view and up to `num_crops` tiles of every picture."""

import math
import numbers
import os
from typing import TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

#: For new tensors, whatever `torch.set_default_dtype` and `torch.set_default_device` say.
CPU_FLOAT32 = {"dtype": torch.float32, "device": "cpu"}


class Phi3VImageProcessorKwargs(TypedDict, total=False):
    """The settings that a call may override."""

    num_crops: int | None
    return_tensors: str | None


class Phi3VImageProcessor(BaseImageProcessor):
    r"""
    Scales a picture to the largest grid of tiles allowed, pads it with white, and cuts it into the tiles.

    num_crops (`int`, defaults to 1):
        The most tiles a picture may use, the global view not counted: 16 in Phi-3-vision, 4 in Phi-3.5-vision.
    image_size (`int`, defaults to 336):
        Side of a tile in pixels, as in the model's vision tower.
    num_img_tokens (`int`, *optional*):
        Image tokens of a tile, (patches per side / 2)². By default those of patches of 14 pixels, as 144 for 336.
    image_mean, image_std (`list[float]`, *optional*):
        Mean and standard deviation of each channel, of pixels in 0..1. CLIP's by default.
    """

    model_input_names = ["pixel_values", "image_sizes"]
    valid_kwargs = Phi3VImageProcessorKwargs

    def __init__(self, num_crops=1, image_size=336, num_img_tokens=None, image_mean=None, image_std=None, **kwargs):
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.image_size = image_size
        self.num_img_tokens = num_img_tokens or (image_size // 28) ** 2
        self.image_mean = list(image_mean or OPENAI_CLIP_MEAN)
        self.image_std = list(image_std or OPENAI_CLIP_STD)

    def get_resized_size(self, height: int, width: int, num_crops: int | None = None) -> tuple[int, int]:
        """
        Height and width in pixels, before padding, of a picture of `height` x `width` pixels on its grid of tiles.

        The long side takes the largest number s of tiles with s * ceil(s / ratio) <= num_crops, for the ratio
        long / short side; the short side keeps the ratio, rounded down (`HD_transform` of the original code).

        Raises `ValueError` if `num_crops` is below 1, or the picture is empty or so thin that its short side vanishes.
        """
        num_crops = self.num_crops if num_crops is None else num_crops
        if not isinstance(num_crops, numbers.Integral) or num_crops < 1:
            raise ValueError(f"num_crops must be a whole number of at least 1, got {num_crops}.")
        if min(width, height) < 1:
            raise ValueError(f"A picture of {width} x {height} pixels is empty.")
        ratio = max(width, height) / min(width, height)
        scale = 1
        while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
            scale += 1
        long_side = self.image_size * scale
        short_side = int(long_side / ratio)
        if short_side == 0:
            raise ValueError(
                f"A picture of {width} x {height} pixels is too thin: with num_crops={num_crops} it becomes "
                f"{long_side} x 0 pixels. Cut off a part of its length, or raise num_crops."
            )
        return (short_side, long_side) if width >= height else (long_side, short_side)

    def get_tile_grid(self, height: int, width: int, num_crops: int | None = None) -> tuple[int, int]:
        """Rows and columns of tiles that a picture of `height` x `width` pixels, once resized, is padded to fill."""
        height, width = self.get_resized_size(height, width, num_crops)
        return math.ceil(height / self.image_size), math.ceil(width / self.image_size)

    def get_num_image_tokens(self, height: int, width: int) -> int:
        """
        Image tokens of a picture of padded size `height` x `width` (`image_sizes`). For h x w tiles of n x n
        tokens: (h w + 1) n² for tiles and global view, h n + n to end their rows, and 1 between them.

        Raises `ValueError` for sizes that are not a whole number of tiles.
        """
        if height % self.image_size or width % self.image_size:
            raise ValueError(
                f"{height} x {width} pixels are not a whole number of tiles of {self.image_size}. Pass height and "
                "width from `image_sizes`; for an unpadded picture, `get_tile_grid` says how many tiles it fills."
            )
        h, w = height // self.image_size, width // self.image_size
        return (h * w + 1) * self.num_img_tokens + 1 + (h + 1) * math.isqrt(self.num_img_tokens)

    def preprocess(self, images, num_crops: int | None = None, return_tensors=None) -> BatchFeature:
        """
        images: a PIL image, a uint8 array (height, width) or (height, width, 1, 3 or 4), a path, or
            anything else that transformers fetches, such as a URL; or a list of these.

        Returns `pixel_values`, float32 (pictures, num_crops + 1, 3, image_size, image_size): the global view,
        the tiles row by row, then zeros; and `image_sizes`, int64 (pictures, 2): padded height and width.

        Raises `ValueError` for no picture, one that is too thin, one of more than 8 bits, or an array of another kind.
        """
        num_crops = self.num_crops if num_crops is None else num_crops
        images = [*images] if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise ValueError("The list of images is empty.")
        shape = len(images), max(int(num_crops), 0) + 1, 3, self.image_size, self.image_size
        pixel_values = torch.zeros(shape, **CPU_FLOAT32)
        image_sizes = torch.tensor([self._cut(*pair, num_crops) for pair in zip(images, pixel_values)], device="cpu")
        return BatchFeature({"pixel_values": pixel_values, "image_sizes": image_sizes}, return_tensors)

    def _to_rgb(self, image) -> Image.Image:
        if isinstance(image, (str, os.PathLike)) and os.path.isfile(image):
            image = ImageOps.exif_transpose(Image.open(image))  # as transformers does, but not cut to 8 bits
        elif isinstance(image, (str, os.PathLike)):
            image = self.fetch_images(os.fspath(image))
        shape = getattr(image, "shape", ())
        if getattr(image, "dtype", None) == np.uint8 and len(shape) > 1 and shape[2:] in ((), (1,), (3,), (4,)):
            image = Image.fromarray(image[:, :, 0] if shape[2:] == (1,) else image)
        if not isinstance(image, Image.Image):
            raise ValueError(
                "An image must be a PIL image or a uint8 array (height, width) or (height, width, 1, 3 or 4), got "
                f"{type(image).__name__} of type {getattr(image, 'dtype', None)} and shape {tuple(shape)}. "
                "Channels come last: turn a tensor (3, height, width) by `.permute(1, 2, 0).numpy()`. Pass floats in "
                "0..1 through `helpers.load_image`."
            )
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ValueError(
                f"A picture of mode {image.mode} has more than 8 bits a pixel, and Pillow would clip values above 255. "
                "Pass `helpers.load_image(picture)`, which scales them."
            )
        return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy it

    def _cut(self, image, tiles: torch.Tensor, num_crops: int) -> tuple[int, int]:
        """Writes global view and tiles of a picture into `tiles`; returns its padded height and width."""
        size, image = self.image_size, self._to_rgb(image)
        height, width = self.get_resized_size(image.height, image.width, num_crops)
        # Like the original, resize portraits transposed: it can change the rounding.
        if image.width < image.height:
            resized = image.transpose(Image.TRANSPOSE).resize((height, width), Image.BILINEAR)
            resized = resized.transpose(Image.TRANSPOSE)
        else:
            resized = image.resize((width, height), Image.BILINEAR)
        h, w = self.get_tile_grid(image.height, image.width, num_crops)
        padded = Image.new("RGB", (w * size, h * size), "white")
        padded.paste(resized, ((padded.width - resized.width) // 2, (padded.height - resized.height) // 2))

        mean, std = torch.tensor(self.image_mean, **CPU_FLOAT32), torch.tensor(self.image_std, **CPU_FLOAT32)
        # Channels first in memory, too, which halves the time of what follows.
        pixels = torch.from_numpy(np.array(padded)).permute(2, 0, 1).contiguous().float().div_(255)
        pixels.sub_(mean[:, None, None]).div_(std[:, None, None])
        tiles[0] = torch.nn.functional.interpolate(pixels[None], size=(size, size), mode="bicubic")[0]
        cut = pixels.view(3, h, size, w, size).permute(1, 3, 0, 2, 4)
        tiles[1 : h * w + 1].view(cut.shape).copy_(cut)
        return padded.height, padded.width


__all__ = ["Phi3VImageProcessor"]
