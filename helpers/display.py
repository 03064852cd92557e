"""Pictures in a notebook, small enough to store, with alt text and their facts."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from .images import Pictures, as_list, load_image
from .phi3_v import Phi3VProcessor

GAP = 8  # pixels between two pictures
MAX_HEIGHT = 65_500  # JPEG's limit
MAX_STORED_BYTES = 40_000  # 53 kB once the notebook has written it as base64


def show_images(
    images: Pictures,
    captions: Sequence[str] | None = None,
    *,
    width: int = 640,
    processor: Phi3VProcessor | None = None,
) -> None:
    """Show one picture or several side by side, and print one line of facts for each.

    Args:
        images: one picture or a list, anything `load_image` takes.
        captions: one text for each picture, printed below it and stored as its alt text (which JupyterLab drops;
            `jupyter nbconvert --to html --template classic` keeps it).
        width: largest width of everything shown, in pixels.
        processor: if given, each line also says how many tiles and tokens the picture costs.

    Raises:
        ImageLoadError: a picture that cannot be read.
        ValueError: no pictures or too many for `width`, captions that do not match them, or with `processor` a picture
            too thin for tiles.
    """
    from IPython.display import display

    images = as_list(images)
    captions = [captions] if isinstance(captions, str) else list(captions or [])
    if not images:
        raise ValueError("There is no picture to show; pass at least one.")
    if captions and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures; pass one for each, or none.")
    pictures = [load_image(image) for image in images]
    captions = captions or [f"Picture {number}" for number in range(1, len(pictures) + 1)]
    display(_Row(side_by_side(pictures, width), alt=" | ".join(captions)))
    for source, picture, caption in zip(images, pictures, captions, strict=True):
        print(f"{caption}: {facts_of(source, picture, processor)}")


class _Row:
    """What a notebook shows: the picture, and its alt text wherever no picture can be shown."""

    def __init__(self, picture: Image.Image, alt: str):
        self.kind, self.data = encode(picture)
        self.alt = alt

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = base64.b64encode(self.data).decode("ascii")
        return {self.kind: data}, {self.kind: {"alt": self.alt}}


def facts_of(source, picture: Image.Image, processor) -> str:
    mode = source.mode if isinstance(source, Image.Image) else picture.mode
    facts = f"{picture.width} x {picture.height} pixels, {mode}"
    if processor is not None:
        tiler = processor.image_processor
        rows, columns = tiler.get_tile_grid(picture.height, picture.width)
        tokens = tiler.get_num_image_tokens(rows * tiler.image_size, columns * tiler.image_size)
        facts += f", {columns} x {rows} tiles, {tokens:,} tokens"
    return facts


def side_by_side(pictures: list[Image.Image], width: int) -> Image.Image:
    """One picture at most `width` wide, all parts of the same height and none enlarged."""
    room = width - GAP * (len(pictures) - 1)
    height = min(picture.height for picture in pictures)
    height = min(height, MAX_HEIGHT, room / sum(picture.width / picture.height for picture in pictures))
    parts = [
        picture.resize((max(1, int(picture.width * height / picture.height)), max(1, int(height))))
        for picture in pictures
    ]
    total = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    if total > width:
        raise ValueError(f"{len(pictures)} pictures do not fit into {width} pixels; show fewer, or set a larger width.")
    row = Image.new("RGB", (total, parts[0].height), "gray")
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width + GAP
    return row


def encode(picture: Image.Image) -> tuple[str, bytes]:
    """MIME type and bytes: PNG where that is small (drawings), else JPEG, else JPEG of a smaller picture."""
    data = _save(picture, "PNG", optimize=True)
    if len(data) <= MAX_STORED_BYTES:
        return "image/png", data
    while len(data := _save(picture, "JPEG", quality=80)) > MAX_STORED_BYTES:
        picture = picture.reduce(2)
    return "image/jpeg", data


def _save(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
