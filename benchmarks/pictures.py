"""48 difficult pictures: what `helpers.load_image` and transformers' own `load_image` make of them.

    python -m benchmarks.pictures

Right means: the expected pixels within 1/255, or an exception where there is nothing to load (ours is always an
ImageLoadError that says what to do). `tests/test_reliability.py` holds ours to 48.
"""

import argparse
import collections
import io
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 16


def gradient() -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): smooth, without symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 10, y * 15, (x + y) * 6], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def cases():
    """Yields name, file (bytes) and truth: uint8 (H, W, 3), or None where the file is to be refused."""
    rgb = gradient()
    picture = Image.fromarray(rgb)
    grey = rgb[..., 0].repeat(3).reshape(rgb.shape)

    turns = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud]
    turns += [lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1)]
    turns += [lambda a: np.rot90(a, 2).swapaxes(0, 1), lambda a: np.rot90(a, 1)]
    for orientation, turn in enumerate(turns, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"EXIF orientation {orientation}", encoded(picture, exif=exif), turn(rgb)

    yield "1 bit", encoded(Image.fromarray(grey[..., 0] > 100)), (grey > 100) * np.uint8(255)
    yield "grey", encoded(Image.fromarray(grey[..., 0])), grey
    yield "grey, 16 bits, PNG", encoded(Image.fromarray(grey[..., 0].astype(np.uint16) * 257)), grey
    yield "grey, 16 bits, TIFF", encoded(Image.fromarray(grey[..., 0].astype(np.uint16) * 257), "TIFF"), grey
    yield "grey, 32 bits", encoded(Image.fromarray(grey[..., 0].astype(np.int32) * 257), "TIFF"), grey
    yield "grey, float of 0 to 1", encoded(Image.fromarray(grey[..., 0].astype(np.float32) / 255), "TIFF"), grey
    palette = picture.quantize(256)
    yield "palette", encoded(palette), np.asarray(palette.convert("RGB"))
    yield "CMYK", encoded(picture.convert("CMYK"), "TIFF"), np.asarray(picture.convert("CMYK").convert("RGB"))
    yield "RGB, GIF", encoded(palette, "GIF"), np.asarray(palette.convert("RGB"))

    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, WIDTH // 2 :] = 255
    white = np.where(alpha == 255, rgb, 255).astype(np.uint8)
    black_below = np.concatenate([np.where(alpha == 255, rgb, 0), alpha], -1).astype(np.uint8)
    grey_below = np.concatenate([np.where(alpha == 255, grey, 0)[..., :1], alpha], -1).astype(np.uint8)
    yield "transparent RGBA, PNG", encoded(Image.fromarray(black_below)), white
    yield "transparent RGBA, WebP", encoded(Image.fromarray(black_below), "WEBP", lossless=True), white
    white_grey = np.where(alpha == 255, grey, 255).astype(np.uint8)
    yield "transparent grey", encoded(Image.fromarray(grey_below)), white_grey
    half = np.concatenate([np.zeros_like(rgb), np.full_like(alpha, 128)], -1)
    yield "half transparent black", encoded(Image.fromarray(half)), np.full_like(rgb, 127)
    keyed = np.where(alpha == 255, rgb, (1, 2, 3)).astype(np.uint8)
    yield "one transparent colour", encoded(Image.fromarray(keyed), transparency=(1, 2, 3)), white
    two = Image.fromarray(alpha[..., 0] // 255).convert("P")
    two.putpalette([0, 0, 0, 0, 0, 200])
    yield "transparent palette", encoded(two, transparency=0), np.where(alpha == 255, (0, 0, 200), 255).astype(np.uint8)

    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        for part in (0.4, 0.9):
            data = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
            yield f"{kind} cut at {part:.0%}", data[: int(len(data) * part)], None

    for side in (8_000, 20_000, 60_000):
        yield f"bomb of {side:,} x {side:,}, PNG", png_bomb(side), None
        yield f"bomb of {side:,} x {side:,}, GIF", b"GIF89a" + struct.pack("<HH", side, side) + bytes(30), None

    yield "empty file", b"", None
    yield "text", b"This is not a picture." * 10, None
    yield "HTML", b"<!doctype html><title>404</title>", None
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None
    yield "zeros", bytes(1_000), None

    for width, height in ((1, 1), (1, 40), (40, 1), (3, 2), (2_000, 3), (300, 200)):
        pixels = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8)
        yield f"{width} x {height}", encoded(Image.fromarray(pixels)), pixels


def png_bomb(side: int) -> bytes:
    """A few kB that claim to be a black and white picture of `side` x `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezed = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(squeezed.compress(row) for _ in range(side)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def verdict(load, file: Path, truth) -> str:
    """`right`, with the name of the error where an error is right, or what went wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = np.asarray(load(str(file))).astype(int)
    except Exception as error:
        return f"{'right' if truth is None else 'refused'} ({type(error).__name__})"
    if truth is None:
        return "loaded"
    if pixels.shape != truth.shape:
        return "wrong size"
    return "right" if abs(pixels - truth).max() <= 1 else "wrong pixels"


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from transformers.image_utils import load_image as theirs

    from helpers import load_image as ours

    right = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'picture':32} {'helpers':24} transformers")
        for name, data, truth in cases():
            file = Path(folder, "picture")
            file.write_bytes(data)
            verdicts = [verdict(load, file, truth) for load in (ours, theirs)]
            right.update(i for i, said in enumerate(verdicts) if said.startswith("right"))
            print(f"{name:32} {verdicts[0]:24} {verdicts[1]}")
    print(f"{'right, of 48':32} {right[0]:<24} {right[1]}")


if __name__ == "__main__":
    main()
