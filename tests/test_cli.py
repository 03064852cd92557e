import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import helpers
from helpers.__main__ import main


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "helpers", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=300,
        check=False,
    )


def test_question_prints_the_answer_and_its_cost(golden_images, capfd):
    picture = golden_images / "square_224x224.png"
    assert main([str(picture), "What is this?", "--max-new-tokens", "8"]) == 0
    done = capfd.readouterr()
    model, processor = helpers.load_model_and_processor()
    answer = helpers.generate(model, processor, "What is this?", picture, max_new_tokens=8)
    assert done.out == f"{answer}\n"
    assert done.err.startswith("345 image + ")
    assert done.err.count("\n") == 1


def test_several_pictures(golden_checkpoint, golden_images, capsys):
    picture = str(golden_images / "gray_320x240.png")
    options = ["--checkpoint", str(golden_checkpoint), "--max-new-tokens", "1"]
    assert main([picture, picture, "Compare", *options]) == 0
    assert " image + " in capsys.readouterr().err


def test_an_error_is_one_line_without_traceback():
    done = run("missing.png", "What is this?")
    assert (done.returncode, done.stdout) == (2, "")
    assert "missing.png': there is no such file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_question_without_quotes(capsys):
    assert main("missing.png Who wrote this book?".split()) == 2
    error = capsys.readouterr().err
    assert error.endswith("Is the question in quotes?\n")
    assert error.count("\n") == 1
    for pictures in (["missing.png"], ["missing.png", "another.png"]):
        assert main([*pictures, "Who wrote this book?"]) == 2
        assert "quotes" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["only one"], 'give PICTURE and "QUESTION"'),
        (["a.png", "b", "--max-new-tokens", "many"], "invalid int value"),
        (["a.png", __file__], "is a file; put"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "/no/such/folder"], "There is no folder"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_errors_after_the_pictures(options, message, golden_checkpoint, golden_images, capsys):
    options = options if "--checkpoint" in options else [*options, "--checkpoint", str(golden_checkpoint)]
    assert main([str(golden_images / "gray_320x240.png"), "What?", *options]) == 2
    assert message in capsys.readouterr().err


def test_doctor_without_arguments(golden_checkpoint, capsys):
    assert main(["--checkpoint", str(golden_checkpoint)]) == 0
    assert capsys.readouterr().out.endswith("Ready.\n")
    assert main(["--checkpoint", "/no/such/folder"]) == 1
    assert "fix" in capsys.readouterr().out


PICTURE = Path(__file__).resolve().parent.parent / "notebooks/images/price_table.png"
TABLE = [sys.executable, "-m", "helpers", str(PICTURE), "Convert this table to Markdown."]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(os.name != "posix", reason="signals and pipes as shells have them")
def test_an_interrupt_stops_a_loop_of_the_shell_too():
    with subprocess.Popen(TABLE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (-signal.SIGINT, b"")


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes as shells have them")
def test_a_closed_pipe():
    with subprocess.Popen(TABLE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""


AS_TORCH_COMES = """
import os, sys
class Finder:
    def find_spec(name, *_):
        if name == "torch":
            sys.exit(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Finder)
import helpers
"""


@pytest.mark.parametrize(("before", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_idle_threads_sleep(before, policy):
    """Set before PyTorch is loaded, or it has no effect; what the user has set stays."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | before
    done = subprocess.run([sys.executable, "-c", AS_TORCH_COMES], capture_output=True, text=True, env=environment)
    assert done.stderr == f"{policy}\n"
