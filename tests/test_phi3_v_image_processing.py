import math
import random
import sys

import numpy as np
import pytest
import torch
from phi3_v_data import CHECKPOINT, golden_image, load_json, noise_image
from PIL import Image
from transformers import AutoImageProcessor

from helpers.phi3_v import Phi3VImageProcessor

WHITE = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])


def test_reads_preprocessor_config():
    image_processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
    assert type(image_processor) is Phi3VImageProcessor
    assert (image_processor.num_crops, image_processor.image_size, image_processor.num_img_tokens) == (
        16,
        336,
        144,
    )
    assert AutoImageProcessor.from_pretrained(CHECKPOINT, num_crops=4).num_crops == 4
    assert Phi3VImageProcessor().num_crops == 1


def test_round_trip(tmp_path):
    Phi3VImageProcessor(num_crops=9, image_size=112, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert (loaded.num_crops, loaded.image_size, loaded.num_img_tokens) == (9, 112, 16)
    assert loaded.image_mean == [0.1, 0.2, 0.3]


def test_needs_no_torchvision():
    assert not any(name.split(".")[0] == "torchvision" for name in sys.modules)


@pytest.mark.parametrize(("image_size", "patches"), [(336, 24), (112, 8), (28, 2)])
def test_number_of_tokens(image_size, patches):
    image_processor = Phi3VImageProcessor(num_crops=16, image_size=image_size)
    half = patches // 2
    rng = random.Random(0)
    for _ in range(500):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        if max(width, height) > 16 * image_size * min(width, height):
            continue
        h, w = (math.ceil(side / image_size) for side in image_processor.get_resized_size(height, width))
        assert 1 <= w * h <= 16
        expected = (h * w + 1) * half**2 + 1 + (h + 1) * half
        assert image_processor.get_num_image_tokens(h * image_size, w * image_size) == expected
    for sides in ((450, image_size), (image_size, 450)):
        with pytest.raises(ValueError, match=f"{sides[0]} x {sides[1]} pixels are not a whole number of tiles"):
            image_processor.get_num_image_tokens(*sides)


@pytest.mark.parametrize(("width", "height"), [(300, 500), (500, 300), (224, 224), (40, 1000), (1000, 40), (1, 1)])
@pytest.mark.parametrize("num_crops", [1, 4, 6])
def test_tiles_are_the_picture(width, height, num_crops):
    """Put together again, the tiles are the scaled picture in the middle of white."""
    size = 56
    image_processor = Phi3VImageProcessor(num_crops=num_crops, image_size=size)
    image = noise_image(width, height)
    outputs = image_processor(image, return_tensors="pt")
    pixel_values, (hd_height, hd_width) = outputs["pixel_values"][0], outputs["image_sizes"][0].tolist()
    h, w = hd_height // size, hd_width // size
    assert pixel_values.shape == (num_crops + 1, 3, size, size)
    assert not pixel_values[h * w + 1 :].any()
    rows = [torch.cat(list(pixel_values[1 + i * w : 1 + (i + 1) * w]), dim=2) for i in range(h)]
    mosaic = torch.cat(rows, dim=1)
    resized_height, resized_width = image_processor.get_resized_size(height, width)
    left, top = (hd_width - resized_width) // 2, (hd_height - resized_height) // 2
    outside = torch.ones(hd_height, hd_width, dtype=torch.bool)
    outside[top : top + resized_height, left : left + resized_width] = False
    assert torch.allclose(mosaic[:, outside], WHITE[:, None].expand(3, int(outside.sum())), atol=1e-6)
    resized = torch.from_numpy(np.array(image.resize((resized_width, resized_height), Image.BILINEAR)))
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    expected = ((resized / 255 - mean) / std).permute(2, 0, 1)
    inside = mosaic[:, top : top + resized_height, left : left + resized_width]
    assert (inside - expected).abs().max() <= 2 / 255 / 0.26  # a transposed portrait may round otherwise
    global_view = torch.nn.functional.interpolate(mosaic[None], size=(size, size), mode="bicubic")[0]
    assert torch.equal(pixel_values[0], global_view)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((30, 40, 3), np.uint8),
        np.zeros((30, 40, 4), np.uint8),
        np.zeros((30, 40), np.uint8),
        np.zeros((3, 3, 3), np.uint8),
        np.zeros((30, 40, 1), np.uint8),
    ],
)
def test_uint8_arrays_are_pictures(image):
    # The original fails on arrays (see errors_and_quirks.json, numpy_image).
    outputs = Phi3VImageProcessor(image_size=28)(image)
    expected = Phi3VImageProcessor(image_size=28)(Image.fromarray(image.squeeze()))
    assert torch.equal(outputs["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((30, 40, 3)),
        np.zeros((3, 30, 40), np.uint8),
        np.zeros(5, np.uint8),
        torch.zeros(3, 8, 8),
        7,
        None,
        {},
    ],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="PIL image or a uint8 array"):
        Phi3VImageProcessor()(image)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK"])
def test_modes_are_converted_as_by_pillow(mode):
    image = noise_image(30, 20).convert(mode)
    before = image.tobytes()
    outputs = Phi3VImageProcessor(image_size=28)(image)
    assert torch.equal(
        outputs["pixel_values"], Phi3VImageProcessor(image_size=28)(image.convert("RGB"))["pixel_values"]
    )
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16L", "I;16B"])
def test_more_than_8_bits_are_refused(mode):
    """Pillow would make all values above 255 white."""
    with pytest.raises(ValueError, match=rf"mode {mode} .*helpers\.load_image"):
        Phi3VImageProcessor(image_size=28)(Image.new(mode, (30, 20)))


def test_files(tmp_path):
    """As transformers reads them, upright; and with all their bits, so that more than 8 are noticed."""
    picture, exif = noise_image(30, 20), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = Phi3VImageProcessor(image_size=28)(picture.transpose(Image.Transpose.ROTATE_270))["pixel_values"]
    for path in (tmp_path / "turned.png", str(tmp_path / "turned.png"), [str(tmp_path / "turned.png")]):
        assert torch.equal(Phi3VImageProcessor(image_size=28)(path)["pixel_values"], expected)
    Image.fromarray(np.full((20, 30), 4000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"mode I;16 .*helpers\.load_image"):
        Phi3VImageProcessor(image_size=28)(str(tmp_path / "deep.png"))


def test_errors():
    with pytest.raises(ValueError, match="empty"):
        Phi3VImageProcessor()([])
    for num_crops in (0, -3, 2.5):
        with pytest.raises(ValueError, match="num_crops must be a whole number of at least 1"):
            Phi3VImageProcessor()(noise_image(5, 5), num_crops=num_crops)


THIN = [row["call"] for row in load_json("errors_and_quirks.json")["errors"] if "thin" in row["name"]]


@pytest.mark.parametrize("call", THIN)
def test_thin_pictures(call):
    size, num_crops = call.removeprefix("image ").split(", num_crops ")
    image_processor = Phi3VImageProcessor(num_crops=int(num_crops))
    image = Image.new("RGB", tuple(map(int, size.split("x"))))
    for picture in (image, image.transpose(Image.TRANSPOSE)):
        if size == "1344x1":
            assert image_processor(picture)["image_sizes"].amax() == 1344
        else:
            with pytest.raises(ValueError, match=r"too thin.*num_crops"):
                image_processor(picture)


def test_num_crops_for_one_call():
    image_processor = Phi3VImageProcessor(num_crops=16)
    outputs = image_processor([golden_image("square_224x224.png")] * 2, num_crops=1)
    assert outputs["pixel_values"].shape == (2, 2, 3, 336, 336)
    assert isinstance(image_processor(noise_image(9, 9), return_tensors="np")["pixel_values"], np.ndarray)


def test_empty_picture():
    with pytest.raises(ValueError, match="5 x 0 pixels is empty"):
        Phi3VImageProcessor()(np.zeros((0, 5, 3), np.uint8))


def pixels(image, **settings):
    return Phi3VImageProcessor(image_size=28, **settings)(image)["pixel_values"]


def test_pil_pictures_are_converted_and_no_more():
    """The original neither turns them by EXIF nor puts anything behind transparent colours."""
    image = noise_image(30, 20)
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    assert torch.equal(pixels(turned), pixels(image))
    palette = image.convert("P")
    expected = pixels(palette.convert("RGB"))
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert torch.equal(pixels(palette), expected)


def test_mean_and_std_are_used():
    image, mean, std = noise_image(30, 20), [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    plain = pixels(image, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pixels(image, image_mean=mean, image_std=std), expected)


def test_settings_are_used():
    processor = Phi3VImageProcessor(num_img_tokens=36)
    assert processor.get_num_image_tokens(336, 336) == 2 * 36 + 1 + 2 * 6
    assert processor(noise_image(9, 9), num_crops=np.int64(4))["pixel_values"].shape[1] == 5
    assert {"pixel_values", "image_sizes"} <= set(processor.model_input_names)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_defaults_of_torch_change_nothing(device):
    image, before = noise_image(30, 20), torch.get_default_dtype()
    expected = pixels(image)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device(device):
            found = pixels(image)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
