"""The "Your turn" parts: a stub is told kindly what to do, the folded solution passes. Snippets stand on their own."""

import builtins
import itertools
import re
import symtable
from pathlib import Path

import nbformat
import pytest

from helpers import exercises

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKS = {name: check for name, check in vars(exercises).items() if name.startswith("check_")}
SOLUTION = re.compile(r"<details><summary>Solution</summary>\s+```python\n(.*?)```", re.S)


@pytest.fixture(autouse=True)
def in_the_notebooks_folder(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")


def code_cells(path: Path) -> list:
    """Pairs of a code cell and the Markdown that follows it."""
    cells = nbformat.read(path, as_version=4).cells
    return [(cell, after) for cell, after in itertools.pairwise(cells) if cell.cell_type == "code"]


def is_exercise(cell) -> bool:
    return "exercise" in cell.metadata.get("tags", [])


def run(source: str, namespace: dict):
    exec(compile(source, "a notebook's cell", "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_three_exercises_whose_stubs_are_told_what_to_do(path):
    outputs = [cell.outputs for cell, _ in code_cells(path) if is_exercise(cell)]
    assert len(outputs) == 3
    for *picture, verdict in outputs:
        assert len(picture) <= 1
        assert verdict.text.splitlines()[-1].startswith("Not yet: "), verdict.text


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives to something, and those that it uses."""
    top = symtable.symtable(source, "a notebook's cell", "exec")
    tables, gives, uses = [top], set(), set()
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top and (symbol.is_assigned() or symbol.is_imported()):
                gives.add(symbol.get_name())
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                uses.add(symbol.get_name())
    return gives, uses


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_solutions(path, capsys):
    """After the cells that they need (nbval runs them all)."""
    exercises, cells, namespace = [], [], {}
    for cell, after in code_cells(path):
        if is_exercise(cell):
            stub, check = cell.source.split("\n", 1)
            assert stub.startswith("my_")
            exercises.append(SOLUTION.search(after.source)[1] + check)
        else:
            cells.append(cell.source)
    needed, wanted = [], set()
    for source in exercises:
        gives, uses = names(source)
        wanted |= uses - gives
    for source in reversed(cells[:-1]):  # the last one stands on its own
        gives, uses = names(source)
        if gives & wanted:
            needed.insert(0, source)
            wanted = wanted - gives | uses
    for source in needed:
        run(source, namespace)
    for source in exercises:
        capsys.readouterr()
        run(source, namespace)
        assert capsys.readouterr().out.splitlines()[-1].startswith("Right: ")


WRONG = [*itertools.product(CHECKS, [None, "", "?", 0, 0.0, -1, [], {}, (), ...])]
WRONG = [pair for pair in WRONG if pair not in (("check_misread", "?"), ("check_pale", "?"))]  # any text will do there


@pytest.mark.parametrize(("name", "answer"), WRONG, ids=repr)
def test_a_wrong_answer_of_any_type_gets_one_kind_line(name, answer, capsys):
    said = ("nothing",) if name in ("check_misread", "check_pale", "check_pale_discs") else ()
    CHECKS[name](answer, *said)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Not yet: ")


@pytest.mark.parametrize("answer", ["3.11", (3, 11), [3.11], "3.11 GB"], ids=repr)
def test_the_right_digits_that_are_no_number(answer, capsys):
    """`3,11`, as many countries write it, is a pair."""
    CHECKS["check_six_bits"](answer)
    assert capsys.readouterr().out.startswith("Not yet: write one plain number")


def test_a_title_that_pillow_cannot_draw_is_not_misread(capsys):
    CHECKS["check_misread"]("Müller", "nothing")
    assert capsys.readouterr().out.startswith("Not yet: use plain letters")


@pytest.mark.parametrize(
    ("name", "answer", "right"),
    [
        ("check_misread", ("A", 'The title of the book is "A"A".'), True),
        ("check_misread", ("Winter  Light", 'The title of the book is "Winter Light".'), False),
        ("check_misread", ("Winter Light", "I cannot see a book cover in this picture."), True),
        ("check_pale", ("#f4ead5", "I cannot see a book cover in this picture."), False),
        ("check_pale_discs", ((255, 255, 255), "I see nothing."), False),
        ("check_pale_discs", ((300, 300, 300), "I see nothing."), False),
        ("check_pale_discs", ((254, 254, 254), "I see nothing."), True),
        ("check_price_schema", ({"type": "string", "pattern": r"^\$.+\.\d\d$"},), False),
        ("check_price_schema", ({"type": "string", "pattern": r"^\$\w+\.\d\d$"},), False),
        ("check_price_schema", ({"type": "string", "pattern": r"^\$\d+\.\w\w$"},), False),
        ("check_price_schema", ({"enum": ["$2.15", "$10.00"]},), False),
    ],
)
def test_what_a_learner_may_try(name, answer, right, capsys):
    CHECKS[name](*answer)
    assert capsys.readouterr().out.startswith("Right: " if right else "Not yet: ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_last_cell_stands_on_its_own(path):
    """It takes no name from another cell; nbval runs it, and compares what it prints."""
    cell, _ = code_cells(path)[-1]
    assert len(cell.source.splitlines()) <= 25
    gives, uses = names(cell.source)
    assert uses - gives <= set(dir(builtins))
    assert "tags" not in cell.metadata
    assert [output.name for output in cell.outputs] == ["stdout"]


def test_the_readme_shows_the_snippet_of_the_first_notebook():
    cell, _ = code_cells(ROOT / "notebooks" / "01_setup.ipynb")[-1]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert cell.source.replace('"images/', '"notebooks/images/') in readme
