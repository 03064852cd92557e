import base64
import io

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

import helpers
from helpers import show_images
from helpers.display import GAP, MAX_HEIGHT, side_by_side


@pytest.fixture
def shown(monkeypatch):
    """What show_images hands to the notebook: a list of (data, metadata)."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda item: bundles.append(DisplayFormatter().format(item)))
    return bundles


def noise(width, height) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def decoded(bundle):
    data, _ = bundle
    (kind,) = set(data) - {"text/plain"}
    picture = Image.open(io.BytesIO(base64.b64decode(data[kind])))
    assert picture.get_format_mimetype() == kind
    return picture


def test_one_picture_with_alt_text_and_facts(shown, capsys):
    show_images(Image.new("RGB", (300, 200), "red"), "A red field")
    (bundle,) = shown
    assert decoded(bundle).size == (300, 200)
    data, metadata = bundle
    assert data["text/plain"] == "A red field"
    assert [values["alt"] for values in metadata.values()] == ["A red field"]
    assert capsys.readouterr().out == "A red field: 300 x 200 pixels, RGB\n"


def test_two_pictures_side_by_side(shown, capsys):
    show_images([Image.new("RGB", (400, 400), "red"), Image.new("L", (300, 600), 255)], ["Red", "White"])
    (bundle,) = shown
    row = decoded(bundle).convert("RGB")
    assert row.width <= 640
    assert row.getpixel((2, 2)) == (255, 0, 0)
    assert row.getpixel((row.width - 2, 2)) == (255, 255, 255)
    assert bundle[0]["text/plain"] == "Red | White"
    assert capsys.readouterr().out == "Red: 400 x 400 pixels, RGB\nWhite: 300 x 600 pixels, L\n"


@pytest.mark.parametrize("pictures", [[noise(3000, 2000)], [noise(900, 900)] * 4, [noise(5, 4000)]])
def test_stored_output_stays_small(shown, pictures):
    show_images(pictures)
    data, _ = shown[0]
    assert sum(len(value) for value in data.values()) < 60_000
    assert decoded(shown[0]).width <= 640


def test_facts_with_a_processor_are_what_the_model_gets(shown, capsys, tiny):
    picture = noise(640, 360)
    show_images(picture, processor=tiny[1])
    answer = helpers.generate(*tiny, "x", picture, max_new_tokens=1)
    facts = f"640 x 360 pixels, RGB, 1 x 1 tiles, {answer.image_tokens} tokens"
    assert capsys.readouterr().out == f"Picture 1: {facts}\n"


def test_wrong_arguments():
    with pytest.raises(ValueError, match="no picture"):
        show_images([])
    with pytest.raises(ValueError, match="2 captions for 1 pictures"):
        show_images(noise(4, 4), ["a", "b"])
    with pytest.raises(helpers.ImageLoadError):
        show_images("missing.png")
    with pytest.raises(ValueError, match="41 pictures do not fit into 640 pixels"):
        show_images([noise(1000, 1), *[noise(1, 1000)] * 40])
    with pytest.raises(ValueError, match="90 pictures do not fit into 640 pixels"):
        show_images([noise(4, 4)] * 90)


@pytest.mark.parametrize("sizes", [[(100, 3000), (3000, 10)], [(10, 70_000)], [(7, 9), (13, 5), (900, 31)]])
def test_never_wider_than_the_page_nor_higher_than_a_jpeg(sizes):
    row = side_by_side([noise(*size) for size in sizes], 640)
    assert row.width <= 640
    assert row.height <= MAX_HEIGHT


def test_a_picture_that_is_too_thin_for_tiles(shown, tiny):
    with pytest.raises(ValueError, match="too thin"):
        show_images(noise(1000, 1), processor=tiny[1])
    show_images(noise(1000, 1))


def test_without_a_notebook_the_text_stands_in(capsys):
    show_images(noise(4, 4), "Noise")
    assert capsys.readouterr().out == "Noise\nNoise: 4 x 4 pixels, RGB\n"


def test_white_pictures_stay_apart():
    row = side_by_side([Image.new("RGB", (20, 10), "white")] * 2, 100)
    assert row.getpixel((20 + GAP // 2, 5)) == (128, 128, 128)
