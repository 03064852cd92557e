"""What the README shows is what happens: its first answer, and its snippets as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from helpers.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_first_answer(capsys):
    command, answer = re.search(r"```\n\$ python -m helpers (.*?)\n(.*?)\n```", README, re.S).groups()
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.splitlines()[0] == answer


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets(number, capsys):
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {})  # noqa: S102
    assert "Morgan Maxwell" in capsys.readouterr().out


def test_the_tree_names_what_is_there():
    tree = README.split("## What is where")[1]
    for name in re.findall(r"^ *([.\w]+/)", tree.split("```")[1], re.M):
        assert (ROOT / name).is_dir() or (ROOT / "helpers" / name).is_dir(), name


@pytest.mark.parametrize("page", ["README.md", "notebooks/README.md"])
def test_every_notebook_has_its_row(page):
    rows = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert any(f"{path.name})" in row for row in rows), f"{page} has no row for {path.name}"
