"""Pictures from anywhere, as upright RGB pictures or one clear error."""

import contextlib
import io
import math
import numbers
import os
import re
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from .fetch import FetchError, fetch

# Decoders that read untrusted bytes in process; EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000")

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray
#: What a question may be about: one picture, several, or none.
Pictures = Picture | Sequence[Picture] | None

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(data|file|blob|javascript):", re.IGNORECASE)
_QUIET = threading.Lock()


class ImageLoadError(ValueError):
    """A picture could not be read; the message names the source and what to do."""


def load_image(
    source: Picture,
    *,
    max_pixels: int = 50_000_000,
    max_bytes: int = 20 * 2**20,
    timeout: float = 10.0,
    background: str = "white",
    allow_private: bool = False,
) -> Image.Image:
    """Return a picture as a new PIL image in mode "RGB", upright; if a file has several frames, the first of them.

    Args:
        source: path (str or Path), http(s) URL, encoded bytes, PIL image, or numpy array of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4) with dtype uint8, uint16, bool, or float in 0..1.
        max_pixels: largest width x height; checked before anything is decoded (and again afterwards, as
            the true size of an ICO file is known only then). For files, Pillow has a limit of its own, 179 million.
        max_bytes: largest encoded size of a file, a download or bytes.
        timeout: seconds for a whole download, redirects included.
        background: colour put behind transparent pixels, as PIL names colours.
        allow_private: allow URLs that lead to private or local addresses.

    The EXIF orientation is applied. Grey values of more than 8 bits are scaled to 0..255, from the smallest
    range of 8, 10, 12, 14 or 16 bits that holds the largest of them: a scan of 12 bits that is stored in 16 does not
    come out dark. `source` itself is never changed.

    Raises:
        ImageLoadError: the source cannot be read, whatever it is.
        ValueError: `background` does not name a colour, or `max_pixels` or `max_bytes` is not a whole number.
    """
    if not isinstance(background, str):
        raise ValueError(f'background is {background!r}; name a colour, as in "white" or "#f4ead5".')
    color = ImageColor.getrgb(background)[:3]
    for limit, value in (("max_pixels", max_pixels), ("max_bytes", max_bytes)):
        if not isinstance(value, numbers.Integral):
            raise ValueError(f"{limit} is {value!r}; pass a whole number, however large.")
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            image = source
        elif isinstance(source, np.ndarray):
            _check_size(source.shape[1::-1], max_pixels)
            image = _from_array(source)
        else:
            data, hint = _read_bytes(source, max_bytes, timeout, allow_private)
            image = _open(data, hint)
        _check_size(image.size, max_pixels)
        with _no_warnings():  # about damaged metadata that the pixels do not need
            image.load()
            _check_size(image.size, max_pixels)  # some containers only tell the true size when decoded
            return _to_rgb(_upright(image), color)
    except (FetchError, _Unreadable) as error:
        raise ImageLoadError(f"Cannot load {name}: {error}.") from None
    except MemoryError:
        raise ImageLoadError(f"Cannot load {name}: not enough memory; use a smaller picture.") from None
    except Exception as error:  # decoders raise nearly everything on damaged files
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageLoadError(
            f"Cannot load {name}: the file is damaged or incomplete ({text}); save or download it again."
        ) from error


def as_list(images: Pictures) -> list[Picture]:
    """One picture, several or none (`None`, or an empty cell of a table) as a list."""
    if images is None or (isinstance(images, float) and math.isnan(images)):
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


class _Unreadable(Exception):
    """Why a source is refused, without its name."""


def _name(source) -> str:
    if isinstance(source, (str, os.PathLike)):
        text = str(source)
        return f"picture {text if len(text) <= 200 else text[:200] + '...'!r}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"picture from {memoryview(source).nbytes:,} bytes"
    if isinstance(source, np.ndarray):
        return f"picture from an array of shape {source.shape} and dtype {source.dtype}"
    if isinstance(source, Image.Image):
        return f"PIL picture of mode {source.mode} and size {source.size}"
    return f"picture from an object of type {type(source).__name__}"


def _check_size(size: tuple[int, ...], max_pixels: int) -> None:
    if len(size) == 2:
        width, height = size
        if width < 1 or height < 1:
            raise _Unreadable(f"it has no pixels ({width} x {height})")
        if width * height > max_pixels:
            raise _Unreadable(
                f"{width} x {height} is more than max_pixels={max_pixels:,}; shrink it or raise max_pixels"
            )


def _read_bytes(source, max_bytes: int, timeout: float, allow_private: bool) -> tuple[bytes, str]:
    """The encoded picture, and a hint for the error message if it turns out not to be one."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, hint = bytes(source), "pass the bytes of a PNG, JPEG, WebP or GIF file"
    elif isinstance(source, str) and (scheme := _SCHEME.match(source)):
        if (kind := (scheme[1] or scheme[2]).lower()) == "data":
            raise _Unreadable('data: addresses are not read; pass base64.b64decode(address.partition(",")[2])')
        if kind not in ("http", "https"):
            raise _Unreadable(f"{kind}: addresses are not read; pass a path, bytes, or an http(s) URL")
        if not (isinstance(timeout, numbers.Real) and timeout > 0):
            raise _Unreadable(f"timeout is {timeout!r}; pass seconds, as a number above 0")
        data, kind = fetch(source, max_bytes=max_bytes, timeout=timeout, allow_private=allow_private)
        hint = f"the server sent {kind or 'no content type'}; use the address of the picture itself"
    elif isinstance(source, (str, os.PathLike)):
        data, hint = _read_file(source, max_bytes), "convert it to PNG or JPEG"
    else:
        raise _Unreadable(
            "pass a path, an http(s) URL, bytes, a PIL image or a numpy array; several pictures go in a list"
        )
    if len(data) > max_bytes:
        raise _Unreadable(f"it is larger than max_bytes={max_bytes:,}; shrink it or raise max_bytes")
    if not data:
        raise _Unreadable("it is empty; save or download it again")
    return data, hint


def _read_file(source, max_bytes: int) -> bytes:
    if len(str(source)) > 4096:  # no system's usual paths are so long, but encoded pictures are
        raise _Unreadable("it is too long for a path; if it is base64, pass base64.b64decode(text)")
    try:
        path = Path(source)
        path = path if path.is_file() else path.expanduser()
        if not path.is_file():  # a folder, a pipe or a device would block or never end
            found = "it is not a file" if path.exists() else "there is no such file"
            raise _Unreadable(f"{found}; check the path")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, ValueError, RuntimeError) as error:
        text = getattr(error, "strerror", None) or error
        raise _Unreadable(f"the file cannot be opened ({text})") from None


def _open(data: bytes, hint: str) -> Image.Image:
    try:
        with _no_warnings():  # the size is checked against max_pixels instead
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _Unreadable(f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; shrink it") from None
    except Image.UnidentifiedImageError:
        raise _Unreadable(f"it is not a picture in a known format; {hint}") from None


@contextlib.contextmanager
def _no_warnings():
    """Silence warnings inside. The filters belong to all threads, so only one thread at a time changes them."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a picture whose EXIF block is damaged stays as it is."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _to_rgb(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if not image.has_transparency_data:
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert modes I;16, I and F to L, or to LA if one grey value means "transparent"."""
    values = np.asarray(image)
    wide = image.mode.startswith("I;16")
    if image.mode == "F":
        values = np.nan_to_num(values)
        if values.max() <= 1:
            values = values * 255
    grey = Image.fromarray(_scaled(values))
    transparent = image.info.get("transparency")
    if wide and isinstance(transparent, int):
        alpha = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise _Unreadable("the shape must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = _scaled(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN is refused as well
            raise _Unreadable("float values must lie in 0..1; divide by 255 or use .astype('uint8')")
        array = _round(array.astype(np.float32) * 255)
    elif array.dtype != np.uint8:
        raise _Unreadable("the dtype must be uint8, uint16, bool or float; use .astype('uint8')")
    return Image.fromarray(array)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale to uint8 from the smallest range of 8, 10, 12, 14 or 16 bits that holds the largest value."""
    largest = values.max()
    white = next((white for white in (255, 1023, 4095, 16383) if largest <= white), 65535)
    return _round(values * (255 / white))


def _round(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
