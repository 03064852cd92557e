import base64
import contextlib
import http.server
import io
import os
import re
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers import ImageLoadError, load_image
from helpers.fetch import is_public
from helpers.images import FORMATS


def encode(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width=32, height=20) -> Image.Image:
    """A picture without symmetry, so that every turn and flip shows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 7, y * 11, x + y], -1).astype(np.uint8))


def pixels(image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# Sources


@pytest.mark.parametrize("wrap", [str, lambda path: path], ids=["str", "Path"])
def test_path(tmp_path, wrap):
    path = tmp_path / "picture.png"
    gradient().save(path)
    assert (pixels(load_image(wrap(path))) == pixels(gradient())).all()


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes(wrap):
    assert (pixels(load_image(wrap(encode(gradient())))) == pixels(gradient())).all()


def test_pil_is_copied_and_left_alone():
    source = gradient().convert("RGBA")
    source.putalpha(10)
    before = source.tobytes(), source.mode
    load_image(source)
    assert (source.tobytes(), source.mode) == before
    source = gradient()
    load_image(source).putpixel((0, 0), (255, 255, 255))
    assert source.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [[0] * 3, [255] * 3]),
        (np.array([[0, 1, 255, 2]], np.uint8)[::-1, ::-2], [[2] * 3, [1] * 3]),
        (np.array([[[7], [9]]], np.uint8), [[7] * 3, [9] * 3]),
        (np.array([[[1, 2, 3]]], np.uint8), [[1, 2, 3]]),
        (np.array([[[1, 2, 3, 0], [1, 2, 3, 255]]], np.uint8), [[255] * 3, [1, 2, 3]]),
        (np.array([[0, 32896, 65535]], np.uint16), [[0] * 3, [128] * 3, [255] * 3]),
        (np.array([[0, 32896, 65535]], ">u2"), [[0] * 3, [128] * 3, [255] * 3]),
        (np.array([[False, True]]), [[0] * 3, [255] * 3]),
        (np.array([[0.0, 0.5, 1.0]]), [[0] * 3, [128] * 3, [255] * 3]),
        (np.array([[0.0, 1.0]], np.float16), [[0] * 3, [255] * 3]),
    ],
)
def test_array(array, expected):
    assert pixels(load_image(array))[0].tolist() == expected


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((2, 2, 3, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 2), np.int64),
        np.full((2, 2), 200.0),
        np.full((2, 2), 1.1),
        np.full((2, 2), -0.1),
        np.full((2, 2), np.nan),
        np.array([["a"]]),
    ],
)
def test_wrong_array(array):
    with pytest.raises(ImageLoadError, match="Cannot load picture from an array"):
        load_image(array)


@pytest.mark.parametrize("source", [None, 7, object(), [gradient()], io.BytesIO(b"")])
def test_wrong_type(source):
    with pytest.raises(ImageLoadError, match="pass a path, an http"):
        load_image(source)


# What a picture file can hold


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, "FLIP_LEFT_RIGHT"),
        (3, "ROTATE_180"),
        (4, "FLIP_TOP_BOTTOM"),
        (5, "TRANSPOSE"),
        (6, "ROTATE_90"),
        (7, "TRANSVERSE"),
        (8, "ROTATE_270"),
    ],
)
def test_a_turned_photo_comes_upright(orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient().transpose(Image.Transpose[stored]), exif=exif)
    assert (pixels(load_image(data)) == pixels(gradient())).all()


@pytest.mark.parametrize("block", [b"II*\0\xff\xff\xff\xff", b"no TIFF header"])
def test_damaged_exif_is_ignored(block):
    data = encode(gradient(), "PNG", exif=b"Exif\0\0" + block)
    assert load_image(data).size == gradient().size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_mode(mode):
    source = gradient().convert(mode)
    grey = mode in ("1", "L", "I", "F")
    expected = source.convert("L").convert("RGB") if grey else source.convert("RGB")
    assert np.abs(pixels(load_image(source)) - pixels(expected)).max() <= 1


def test_lab():
    lab = ImageCms.profileToProfile(
        gradient(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(pixels(load_image(lab)) - pixels(gradient())).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_file(kind):
    values = np.linspace(0, 65535, 600).round().astype(np.uint16).reshape(20, 30)
    loaded = pixels(load_image(encode(Image.fromarray(values), kind)))
    assert np.abs(loaded[..., 0] - values / 257).max() <= 1


def test_16_bit_i_and_big_endian():
    values = np.linspace(0, 65535, 600).round().astype(np.int32).reshape(20, 30)
    big = Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes())
    for source in (Image.fromarray(values), big):
        assert np.abs(pixels(load_image(source))[..., 0] - values / 257).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_stored_in_16(bits):
    """White is white, however many of the bits are used."""
    values = np.array([[0, 2 ** (bits - 1), 2**bits - 1]])
    file = encode(Image.fromarray(values.astype(np.uint16)))
    for source in (file, Image.fromarray(values.astype(np.int32)), Image.fromarray(values.astype(np.float32))):
        assert pixels(load_image(source))[0, :, 0].tolist() == [0, 128, 255]
    if bits > 8:
        assert pixels(load_image(values.astype(np.uint16)))[0, :, 0].tolist() == [0, 128, 255]


def test_float_of_0_to_1():
    """NaN becomes black."""
    picture = load_image(Image.fromarray(np.array([[0, 0.5, 1, np.nan]], np.float32)))
    assert pixels(picture)[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_below_zero_is_black(dtype):
    picture = load_image(Image.fromarray(np.array([[-3, 0, 255]], dtype)))
    assert pixels(picture)[0, :, 0].tolist() == [0, 0, 255]


HALF = 128
OVER = {"white": (255, 255, 255), "black": (0, 0, 0), "#0a141e": (10, 20, 30)}


def with_alpha(mode) -> Image.Image:
    """Two pixels: colour (or grey) 100 with alpha 0, and the same with alpha 255."""
    rgba = Image.new("RGBA", (2, 1), (100, 100, 100, 0))
    rgba.putpixel((1, 0), (100, 100, 100, 255))
    if mode == "PA":
        palette = Image.new("PA", (2, 1))
        palette.putpalette([100] * 768)
        palette.putalpha(rgba.getchannel("A"))
        return palette
    return rgba if mode == "RGBA" else rgba.convert(mode)


def palette_file(transparency) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 100, 100, 100])
    image.putpixel((1, 0), 1)
    return encode(image, transparency=transparency)


@pytest.mark.parametrize("background", OVER)
@pytest.mark.parametrize(
    "source",
    [
        with_alpha("RGBA"),
        with_alpha("LA"),
        with_alpha("LA").convert("La"),
        with_alpha("PA"),
        with_alpha("RGBa"),
        palette_file(0),
        palette_file(b"\x00\xff"),
        encode(Image.fromarray(np.array([[7, 100]], np.uint8)), transparency=7),
        encode(Image.fromarray(np.array([[[7, 7, 7], [100] * 3]], np.uint8)), transparency=(7, 7, 7)),
        encode(Image.fromarray(np.array([[7, 25700]], np.uint16)), transparency=7),
    ],
    ids=["RGBA", "LA", "La", "PA", "RGBa", "palette index", "palette bytes", "L tRNS", "RGB tRNS", "I;16 tRNS"],
)
def test_transparency(source, background):
    first, second = pixels(load_image(source, background=background))[0].tolist()
    assert tuple(first) == OVER[background]
    assert second == [100] * 3


def test_half_transparent_mixes():
    source = Image.new("RGBA", (1, 1), (0, 0, 0, HALF))
    assert abs(load_image(source).getpixel((0, 0))[0] - 127) <= 1
    with pytest.raises(ValueError, match="unknown color"):
        load_image(source, background="no colour")
    with pytest.raises(ValueError, match=r"background is .*name a colour"):
        load_image(source, background=(1, 2, 3))


@pytest.mark.parametrize("limit", ["max_pixels", "max_bytes"])
def test_a_limit_that_is_none_is_not_blamed_on_the_picture(limit):
    with pytest.raises(ValueError, match=f"{limit} is None; pass a whole number") as caught:
        load_image(gradient(), **{limit: None})
    assert not isinstance(caught.value, ImageLoadError)


@pytest.mark.parametrize("timeout", [None, "5", 0])
def test_a_timeout_that_is_no_number_of_seconds(timeout):
    with pytest.raises(ImageLoadError, match=r"timeout is .*; pass seconds"):
        load_image("http://127.0.0.1:9/a.png", timeout=timeout)


def test_every_format_has_a_decoder():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


# What is refused


def test_too_many_pixels_is_seen_before_decoding():
    data = encode(Image.new("1", (10_000, 10_000)))[:100]  # Pillow warns of such a size; decoding this would fail
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageLoadError, match="10000 x 10000 is more than max_pixels=50,000,000"):
            load_image(data)
    with pytest.raises(ImageLoadError, match="32 x 20 is more than max_pixels=600"):
        load_image(gradient(), max_pixels=600)
    with pytest.raises(ImageLoadError, match="max_pixels=600"):
        load_image(np.zeros((20, 32, 3), np.uint8), max_pixels=600)
    assert load_image(gradient(), max_pixels=32 * 20)


def test_an_icon_that_is_larger_than_it_says():
    data = bytearray(encode(gradient(64, 64), "ICO", sizes=[(64, 64)]))
    data[6:8] = 16, 16
    with pytest.raises(ImageLoadError, match="64 x 64 is more than max_pixels=600"):
        load_image(data, max_pixels=600)


def test_a_format_that_starts_a_program_is_not_opened():
    with pytest.raises(ImageLoadError, match="not a picture in a known format"):
        load_image(encode(gradient(), "EPS"))


def test_more_pixels_than_pillow_reads():
    data = encode(Image.new("1", (15_000, 15_000)), "PNG")
    with pytest.raises(ImageLoadError, match=r"more than 178,956,970 pixels; shrink it"):
        load_image(data, max_pixels=10**9)


def test_threads_leave_the_warnings_alone():
    before, data = list(warnings.filters), encode(gradient(), "PNG")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(load_image, [data] * 200))
    assert warnings.filters == before


def test_too_many_bytes(tmp_path):
    data = encode(gradient(), "BMP")
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        with pytest.raises(ImageLoadError, match="max_bytes=100"):
            load_image(source, max_bytes=100)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_no_pixels(size):
    with pytest.raises(ImageLoadError, match="no pixels"):
        load_image(Image.new("RGB", size))


@pytest.mark.parametrize("source", ["data:image/png;base64,AAAA", "file:///etc/hosts", "ftp://a.example/b.png"])
def test_other_addresses(source):
    with pytest.raises(ImageLoadError, match="addresses are not read"):
        load_image(source)


def test_base64_is_decoded_as_the_message_says(monkeypatch):
    # As in Python 3.14, where a name that is too long is no `OSError`.
    monkeypatch.setattr(Path, "is_file", lambda path: os.path.isfile(path))
    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))
    encoded = base64.b64encode(encode(Image.effect_noise((100, 100), 50))).decode()
    with pytest.raises(ImageLoadError, match=r"pass base64.b64decode\(text\)"):
        load_image(encoded)
    with pytest.raises(ImageLoadError, match=re.escape('pass base64.b64decode(address.partition(",")[2])')):
        load_image(address := f"data:image/png;base64,{encoded}")
    assert load_image(base64.b64decode(encoded)).size == (100, 100)
    assert load_image(base64.b64decode(address.partition(",")[2])).size == (100, 100)


def test_missing_folder_empty_and_text(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    reasons = {
        "nothing.png": "no such file",
        "": "not a file",
        "empty.png": "it is empty",
        "text.png": "known format",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageLoadError, match=reason) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(ImageLoadError):
        load_image("null\0byte.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageLoadError, match="not a file"):
        load_image(tmp_path / "pipe.png")


# Addresses


class Handler(http.server.BaseHTTPRequestHandler):
    picture = encode(gradient())

    def log_message(self, *args):
        pass

    def answer(self, status=200, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        match self.path:
            case "/picture":
                self.answer(body=self.picture, Content_Type="image/png")
            case "/moved":
                self.answer(302, Location="/picture")
            case "/with-a-cookie":  # as some publishers do, who send everyone else round and round
                seen = "seen=1" in self.headers.get("Cookie", "")
                self.answer(302, Location="/picture" if seen else "/with-a-cookie", Set_Cookie="seen=1")
            case path if path.startswith("/to/"):
                self.answer(302, Location=unquote(path.removeprefix("/to/")))
            case "/drip-headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not self.server.closing:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.1)

    def handle(self):
        with contextlib.suppress(OSError):  # the client went away, as it should
            super().handle()


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.closing = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.closing = True
    server.shutdown()
    thread.join()
    server.server_close()


def test_proxies_are_not_used(server, monkeypatch):
    """Behind one, nobody could check the address."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert (pixels(load_image(server + "/picture", allow_private=True)) == pixels(gradient())).all()


@pytest.mark.parametrize("path", ["/picture", "/moved", "/to/" * 5 + "/picture", "/with-a-cookie"])
def test_url(server, path):
    assert (
        pixels(load_image(server + path, allow_private=True, max_bytes=len(Handler.picture))) == pixels(gradient())
    ).all()


def test_an_unexpected_error_is_reported(server, monkeypatch):
    """It happens in another thread, where it would be lost."""

    def fail(*args):
        raise MemoryError("no room")

    monkeypatch.setattr("helpers.fetch._Transfer._read", fail)
    with pytest.raises(ImageLoadError, match="no room"):
        load_image(server + "/picture", allow_private=True)


def test_no_thread_is_left(server):
    before = set(threading.enumerate())
    with pytest.raises(ImageLoadError):
        load_image(server + "/drip-headers", allow_private=True, timeout=0.3)
    clients = [thread for thread in set(threading.enumerate()) - before if "run" in thread.name]
    for thread in clients:
        thread.join(60)
    assert not any(map(threading.Thread.is_alive, clients))


@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "0xa.1"])
@pytest.mark.parametrize("hops", [1, 3])
def test_every_hop_is_checked(server, monkeypatch, host, hops):
    """A public server, for which the loopback one stands here, may not lead to a private one."""
    monkeypatch.setattr("helpers.fetch.is_public", lambda address: address == "127.0.0.1" or is_public(address))
    url = f"{server}/to/" * hops + f"http://{host}/"
    with pytest.raises(ImageLoadError, match=rf"{re.escape(host.strip('[]'))}.*private or local"):
        load_image(url)


def test_all_addresses_of_a_host_are_checked(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("it was connected to"))
    with pytest.raises(ImageLoadError, match="private or local"):
        load_image("http://pictures.example/")


def test_a_host_is_looked_up_once(server, monkeypatch):
    """A second answer could be an address that nobody has checked."""
    asked, look_up = [], socket.getaddrinfo

    def answer(host, *args, **kwargs):
        asked.append(host)
        return look_up("127.0.0.1" if host == "pictures.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert load_image(server.replace("127.0.0.1", "pictures.example") + "/picture", allow_private=True)
    assert asked.count("pictures.example") == 1


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("::ffff:10.0.0.1", False),
        ("::7f00:1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_is_public(address, expected):
    assert is_public(address) is expected


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    gradient().save(tmp_path / "picture.png")
    assert load_image("~/picture.png").size == gradient().size


def test_a_name_that_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("~picture.png")
    assert load_image("~picture.png").size == (8, 8)
