"""The figures of SECURITY.md, one test a row. Few rounds by default; all of them with

pytest tests/test_reliability.py --soak
"""

import contextlib
import errno
import gc
import gzip
import io
import itertools
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref

import jinja2
import nbformat
import numpy as np
import pytest
import torch
from huggingface_hub.utils import httpx
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from phi3_v_data import copy_of, noise_image, tiny_model, tiny_processor
from PIL import Image

import helpers
from benchmarks import pictures
from helpers import CheckpointError, ImageLoadError, format_prompt, generate, load_image
from helpers.checkpoints import verify_checksums

ROOT = helpers.POCKET.parent.parent

# Pictures


def encoded(kind: str, mode: str = "RGB") -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    Image.fromarray(values).convert(mode).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One to four changes: a byte, a cut, a repeated piece, a block of one value, a number at its limits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(changed) + 1), rng.randrange(1, 9)
        match rng.randrange(5):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + length * 4]
            case 2:
                changed[place:place] = changed[place : place + length * 4]
            case 3:
                changed[place : place + length] = bytes([rng.choice((0, 255, 127, 128))]) * length
            case 4:
                changed[place : place + 4] = rng.choice((2**31 - 1, 2**32 - 1, 0, 65_535)).to_bytes(4, "big")
    return bytes(changed)


def test_damaged_pictures(rounds):
    """A picture or an ImageLoadError, and no other exception, whatever becomes of the bytes."""
    rng = random.Random(0)
    kinds = [("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK")]
    kinds += [("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB"), ("ICO", "RGBA"), ("PPM", "RGB")]
    files = [encoded(*kind) for kind in kinds]
    loaded = 0
    for i in range(rounds(1_200, 100_000)):
        with contextlib.suppress(ImageLoadError):
            picture = load_image(mutated(rng, files[i % len(files)]), max_pixels=1_000_000)
            assert picture.mode == "RGB"
            loaded += 1
    assert loaded > 0


@pytest.mark.parametrize("case", list(pictures.cases()), ids=lambda case: case[0])
def test_difficult_pictures(tmp_path, case):
    """`python -m benchmarks.pictures` shows what transformers' own loader makes of them."""
    _, data, truth = case
    (tmp_path / "picture").write_bytes(data)
    assert pictures.verdict(load_image, tmp_path / "picture", truth) in ("right", "right (ImageLoadError)")


# Addresses: each fault is what the server sends; the last element says whether it then stays silent, drips, or
# closes the connection only when it is used again.

OK = b"HTTP/1.1 200 OK\r\n"
FAULTS = {
    "status 301 without an address": (b"HTTP/1.1 301 Moved\r\n\r\n", None),
    "status 403": (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", None),
    "status 404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", None),
    "status 500": (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", None),
    "status 204": (b"HTTP/1.1 204 No Content\r\n\r\n", None),
    "status 206": (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\r\n\x89PNG", None),
    "status 999": (b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", None),
    "a thousand times 100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000, "silent"),
    "nothing at all": (b"", None),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n", None),
    "a header without an end": (OK + b"X: " + b"a" * 100_000, None),
    "a thousand headers": (OK + b"".join(b"X-%d: y\r\n" % i for i in range(1_000)) + b"\r\n", None),
    "an HTML page": (OK + b"Content-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", None),
    "an HTML page called a picture": (OK + b"Content-Type: image/png\r\nContent-Length: 6\r\n\r\n<html>", None),
    "an empty body": (OK + b"Content-Length: 0\r\n\r\n", None),
    "a body shorter than announced": (OK + b"Content-Length: 5000\r\n\r\n\x89PNG", None),
    "a body announced too large": (OK + b"Content-Length: 99999999999\r\n\r\n", None),
    "a body larger than announced": (OK + b"Content-Length: 3\r\n\r\n" + b"x" * 300_000, None),
    "a negative length": (OK + b"Content-Length: -5\r\n\r\nabc", None),
    "a length that is no number": (OK + b"Content-Length: many\r\n\r\nabc", None),
    "two lengths": (OK + b"Content-Length: 3\r\nContent-Length: 9\r\n\r\nabc", None),
    "a broken chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n", None),
    "a huge chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\nabc", None),
    "broken gzip": (OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd", None),
    "a gzip bomb": (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(50_000_000)), None),
    "a gzip bomb packed twice": (
        OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(gzip.compress(bytes(50_000_000))),
        None,
    ),
    "half a gzip": (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(range(256)))[:100], None),
    "a redirect to itself": (b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", "used again"),
    "a redirect to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", None),
    "a redirect to nowhere": (b"HTTP/1.1 302 Found\r\nLocation: http://\r\nContent-Length: 0\r\n\r\n", None),
    "a redirect to FTP": (b"HTTP/1.1 302 Found\r\nLocation: ftp://a/b.png\r\nContent-Length: 0\r\n\r\n", None),
    "a redirect to data": (b"HTTP/1.1 302 Found\r\nLocation: data:,x\r\nContent-Length: 0\r\n\r\n", None),
    "silence": (b"", "silent"),
    "silence after the headers": (OK + b"Content-Length: 99\r\n\r\n", "silent"),
    "dripping headers": (OK + b"X: ", "drip"),
    "a dripping body": (OK + b"\r\n", "drip"),
}
#: What the error says of some of them; it always names the address.
REASONS = {
    "status 206": "the server answered 206",
    "status 404": "the server answered 404",
    "an HTML page": "the server sent text/html",
    "a body shorter than announced": "the transfer failed",
    "a body announced too large": "larger than max_bytes=100,000; take a smaller picture",
    "a gzip bomb": "larger than max_bytes=100,000; take a smaller picture",
    "a redirect to itself": "redirects more than 5 times",
    "a redirect to a file": "redirects to something that is not an http",
    "dripping headers": "no complete answer within 0.5 s",
    "a dripping body": "no complete answer within 0.5 s",
}
PRIVATE = ("127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0", "127.1")


@pytest.fixture(scope="module")
def server():
    """Answers each connection by the fault whose number is in the path; returns its port and what was asked for."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked, closing = [], threading.Event()

    def answer(connection):
        with connection:
            try:
                path = connection.recv(65_536).split(b" ")[1].decode()
                asked.append(path)
                again = list(FAULTS).index("a redirect to itself")
                number = again if path == "/again" else int(path.strip("/"))
                data, then = list(FAULTS.values())[number]
                connection.sendall(data)
                if then == "used again":
                    connection.recv(1)
                    return
                while then and not closing.wait(0.1):
                    if then == "drip":
                        connection.sendall(b"x")
            except (OSError, IndexError, ValueError):
                pass

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1], asked
    closing.set()
    listener.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_servers(server, fault):
    timeout = 0.5 if FAULTS[fault][1] in ("silent", "drip") else 10
    address = f"http://127.0.0.1:{server[0]}/{list(FAULTS).index(fault)}"
    with pytest.raises(ImageLoadError, match=f"Cannot load picture.*{REASONS.get(fault, '')}") as caught:
        load_image(address, allow_private=True, max_bytes=100_000, timeout=timeout)
    assert address in str(caught.value)


def test_a_busy_machine_that_notices_the_deadline_late(server, monkeypatch):
    """The deadline is reported, not the timeout of the read that ended meanwhile."""
    join = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout: join(thread, timeout + 0.3))
    with pytest.raises(ImageLoadError, match=r"no complete answer within 0\.3 s"):
        load_image(f"http://127.0.0.1:{server[0]}/{list(FAULTS).index('silence')}", allow_private=True, timeout=0.3)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_see_no_request(server, host, scheme):
    before = len(server[1])
    with pytest.raises(ImageLoadError, match=r"private or local|not known"):
        load_image(f"{scheme}://{host}:{server[0]}/1")
    assert len(server[1]) == before


# Checkpoints


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def poison_auto_map(folder, code, canary):
    for name in ("config.json", "processor_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        file = folder / name
        settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoProcessor"), "evil.Evil")
        classes |= {"AutoImageProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        file.write_text(json.dumps(settings | {"auto_map": classes}))
    (folder / "evil.py").write_text(code)


def poison_generate(folder, code, canary):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)


def poison_kernel(folder, code, canary):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "someone/kernel:evil"}))


def poison_pickle(folder, code, canary):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))


def poison_pickle_beside(folder, code, canary):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))


def poison_index(folder, code, canary):
    (folder / "evil.bin").write_bytes(pickle.dumps(Canary(canary)))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "evil.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def poison_header(folder, code, canary):
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def poison_outside(folder, code, canary):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../../../etc/passwd"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def poison_template(folder, code, canary):
    escape = "{{ ''.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__ }}{{ cycler.__init__.__globals__.os."
    (folder / "chat_template.jinja").write_text(escape + f"system('touch {canary}') }}}}")


def poison_type(folder, code, canary):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))


def poison_nesting(folder, code, canary):
    (folder / "config.json").write_text("[" * 200_000)


def poison_sizes(folder, code, canary):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))


POISONS = [poison for name, poison in list(globals().items()) if name.startswith("poison_")]


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_poisoned_folders(golden_checkpoint, tmp_path, poison):
    """Loads by its own code or raises one of our errors; what the folder brings along never runs."""
    folder, canary = copy_of(golden_checkpoint, tmp_path / "model"), tmp_path / "canary"
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    poison(folder, f"open({str(canary)!r}, 'w').close()\n", canary)
    with contextlib.suppress(CheckpointError, RuntimeError):
        model, processor = helpers.load_model_and_processor(folder, device="cpu", num_crops=1)
        assert type(model).__module__ == "helpers.phi3_v.modeling_phi3_v"
        assert model.config._attn_implementation == "sdpa"
        generate(model, processor, "Hello", max_new_tokens=1)
        if processor.chat_template:
            with contextlib.suppress(jinja2.TemplateError):
                processor.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert not canary.exists()


def test_flipped_bits(tmp_path, rounds):
    """Any one bit of the bundled files."""
    folder = copy_of(helpers.POCKET, tmp_path / "pocket")
    files = [file for file in sorted(folder.iterdir()) if file.name != "README.md"]
    rng = random.Random(0)
    for i in range(rounds(30, 300)):
        file = files[i % len(files)]
        place, bit = rng.randrange(file.stat().st_size), 1 << rng.randrange(8)
        with file.open("r+b") as stream:
            for _ in range(2):  # the second time puts it right again
                stream.seek(place)
                byte = stream.read(1)[0]
                stream.seek(place)
                stream.write(bytes([byte ^ bit]))
                stream.flush()
                if _ == 0:
                    with pytest.raises(CheckpointError, match=r"changed|damaged|missing"):
                        verify_checksums(folder)
    assert verify_checksums(folder)


# Text


def test_control_tokens_in_any_text(tiny, rounds):
    """Random strings of pieces of control tokens, in the question, the system text and the history."""
    tokenizer = tiny[1].tokenizer
    control = set(tokenizer.added_tokens_decoder)
    pieces = [token.content for token in tokenizer.added_tokens_decoder.values()]
    pieces += [
        "<|image_1|>",
        "<|image_12|>",
        "<",
        "|",
        ">",
        "<|",
        "|>",
        "end",
        "user",
        "\n",
        " ",
        "image_",
        "1",
        "s",
        "/s",
        "/",
        "<0x0A>",
    ]
    pieces += ["\u200b", "\uff5c", "\ufeff", "\u0000", "é", "日", "\u202e"]

    def ids(prompt):
        return [token for token in tokenizer(prompt).input_ids if token in control]

    plain = ids(format_prompt("x", 0, system="s", history=[("q", "a")]))
    rng = random.Random(0)
    for _ in range(rounds(400, 50_000)):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        question = text if text.strip() else "x" + text
        assert ids(format_prompt(question, 0, system=text or "s", history=[(text, text)])) == plain, repr(text)


# Sizes, long prompts and batches, on a tiny random model whose short context is 64 tokens


def test_sizes(rounds):
    """The formula, the processor and the model agree on the number of image tokens."""
    model, processor, rng = tiny_model(), tiny_processor(), random.Random(0)
    blank = Image.new("RGB", (1, 1))
    for _ in range(rounds(60, 20_000)):
        width, height = (round(2 ** rng.uniform(0, 9)) for _ in range(2))
        picture = blank.resize((width, height))
        if max(width, height) > 4 * min(width, height) * 112:
            continue
        inputs = processor("<|image_1|>\n", [picture], return_tensors="pt")
        size = inputs["image_sizes"][0].tolist()
        expected = processor.image_processor.get_num_image_tokens(*size)
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == expected
        with torch.no_grad():
            (features,) = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        assert len(features) == expected


@pytest.mark.parametrize("size", [(1, 1_000), (3_000, 4)])
def test_a_strip_is_refused(size):
    with pytest.raises(ValueError, match=r"\d"):
        tiny_processor()("<|image_1|>\n", [Image.new("RGB", size)])


def run(model, inputs, **kwargs) -> list[list[int]]:
    """Eight greedy tokens of every row."""
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 9999, "pad_token_id": 1000}
    return model.generate(**inputs, **settings, **kwargs)[:, inputs["input_ids"].shape[1] :].tolist()


def test_the_cache_changes_nothing(rounds):
    """Prompts that pass the short context while the answer is written, before, or never."""
    model, processor, rng = tiny_model(), tiny_processor(num_crops=1), random.Random(0)
    for i in range(rounds(6, 100)):
        words = " ".join(rng.choices("abcdefgh", k=rng.randint(1, 20)))
        picture = noise_image(90, rng.randint(40, 200), i)
        inputs = processor(f"<|user|>\n<|image_1|>\n{words}<|end|>\n<|assistant|>\n", [picture], return_tensors="pt")
        assert run(model, inputs) == run(model, inputs, use_cache=False)


def test_a_batch_changes_nothing(rounds):
    model, processor, rng = tiny_model(), tiny_processor(num_crops=1), random.Random(1)
    for i in range(rounds(3, 34)):
        prompts = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 40))) for _ in range(3)]
        texts = [f"<|user|>\n<|image_1|>\n{words}<|end|>\n<|assistant|>\n" for words in prompts]
        pictures = [[noise_image(90, 80, 3 * i + j)] for j in range(3)]
        batch = run(model, processor(texts, pictures, return_tensors="pt"))
        solo = [run(model, processor(text, picture, return_tensors="pt"))[0] for text, picture in zip(texts, pictures)]
        assert batch == solo


def test_too_long_a_prompt_is_refused_before_any_work(tiny):
    model, processor = tiny
    longest, calls = model.config.max_position_embeddings, []
    refusal = pytest.raises(ValueError, match=rf"the model takes at most {longest}")
    with model.model.register_forward_pre_hook(lambda *args: calls.append(1)), refusal:
        generate(model, processor, "word " * longest, max_new_tokens=2)
    assert calls == []


# Interruptions


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(sys.platform == "win32", reason="sends itself SIGINT")
def test_interrupts_at_random_moments(tiny, rounds):
    question, picture = "What is this?", noise_image(90, 90)
    start = time.perf_counter()
    expected = generate(*tiny, question, picture, max_new_tokens=40)
    usual, threads = time.perf_counter() - start, threading.active_count()
    rng = random.Random(0)
    for _ in range(rounds(6, 30)):
        sent = threading.Event()

        def interrupt(sent=sent):
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)

        timer, stopped = threading.Timer(rng.uniform(0, usual / 2), interrupt), False
        try:
            timer.start()
            generate(*tiny, question, picture, max_new_tokens=40)
            timer.cancel()
            timer.join()
        except KeyboardInterrupt:
            stopped = True
        timer.join()
        assert stopped or not sent.is_set()
        assert generate(*tiny, question, picture, max_new_tokens=40) == expected
    assert threading.active_count() == threads


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory"),
    MemoryError(),
]


@pytest.mark.parametrize(("error", "place"), list(itertools.product(OUT_OF_MEMORY, ("tower", "decoder", "head"))))
def test_out_of_memory(tiny, error, place):
    model, kept = tiny[0], []
    places = {"tower": model.vision_tower.encoder.layers[0], "decoder": model.model.layers[1], "head": model.lm_head}

    def fail(module, args, output):
        kept.append(weakref.ref(output))
        raise error

    advice = r"num_crops.*quantization.*max_new_tokens"
    with places[place].register_forward_hook(fail), pytest.raises(RuntimeError, match=advice) as caught:
        generate(*tiny, "What is this?", noise_image(90, 90))
    assert caught.value.__context__ is None
    error.__traceback__ = None  # this test's own hold on it
    gc.collect()
    assert kept[0]() is None
    generate(*tiny, "What is this?", noise_image(90, 90), max_new_tokens=2)


def test_no_connection_is_made(tmp_path):
    """Loading and answering with all sockets disabled; missing weights say what to do."""
    code = f"""
import socket, sys
def refuse(*args): print("CONNECT", args[1:]); raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import helpers
loaded = helpers.load_model_and_processor(device="cpu")
print(helpers.generate(*loaded, "Who wrote this book?", helpers.load_image({str(ROOT)!r}
      + "/notebooks/images/book_cover.png")))
print(helpers.doctor())
helpers.machine.available_memory = lambda device: 64_000_000_000
try: helpers.load_model_and_processor(helpers.OFFICIAL, device="cpu", quantization="int8")
except helpers.CheckpointError as error: print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert "CONNECT" not in done.stdout, done.stdout
    assert "leave checkpoint out to use the bundled one" in done.stdout, done.stdout + done.stderr


def test_this_run_is_offline():
    with pytest.raises(OSError, match="no network in tests"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="no network in tests"):
        socket.getaddrinfo("example.org", 80)


def test_the_kernels_of_notebooks_are_offline():
    cell = nbformat.v4.new_code_cell("import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)")
    with pytest.raises(CellExecutionError, match="no network in tests"):
        NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120).execute()


# Other programs, other folders

ANSWER = """
import helpers
loaded = helpers.load_model_and_processor(device="cpu")
print(helpers.generate(*loaded, "Who wrote this book?", helpers.load_image("notebooks/images/book_cover.png")))
"""
NO_WRITING = """
import os, sys
def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0] != os.devnull:
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", arguments[0])
sys.addaudithook(refuse)
"""


def start(code: str) -> subprocess.Popen:
    command = [sys.executable, "-B", "-c", code]
    return subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)


def test_two_programs_at_once():
    """Two notebooks share a machine: both load and answer at the same time, and say the same."""
    answers = [program.communicate(timeout=300) for program in [start(ANSWER) for _ in range(2)]]
    assert answers[0][0].strip(), answers
    assert answers[0][0] == answers[1][0]


def test_a_disk_that_cannot_be_written():
    """Loading and answering write no file: a read-only or full disk does not matter."""
    said, errors = start(NO_WRITING + ANSWER).communicate(timeout=300)
    assert said.strip(), errors


DOWNLOADS = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), "The disk is full.*HF_HOME"),
    "a full disk, told by hf_xet": (RuntimeError("No space left on device (os error 28)"), "The disk is full.*HF_HOME"),
    "a disk that cannot be written": (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    "a lost connection": (httpx.ReadError("Connection reset by peer"), "Connection reset by peer.*try again"),
    "a lost connection, without a word": (httpx.ReadError(""), r"failed \(ReadError\); try again"),
}


@pytest.mark.parametrize("case", DOWNLOADS)
def test_a_download_that_fails(monkeypatch, case):
    error, message = DOWNLOADS[case]

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr(helpers.machine, "available_memory", lambda device: 64_000_000_000)
    with pytest.raises(CheckpointError, match=message):
        helpers.load_model_and_processor(helpers.OFFICIAL, device="cpu", quantization="int8")


def test_half_a_download(golden_checkpoint, tmp_path, monkeypatch):
    """A shard that is still called `.incomplete`: the message names the file that is missing."""
    folder = copy_of(golden_checkpoint, tmp_path / "half")
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.raises(CheckpointError, match=r"lacks model.*safetensors.*download"):
        helpers.load_model_and_processor("someone/phi-3-vision")
