"""The pace and hygiene of every notebook; nbval runs them and compares their outputs."""

import itertools
import json
import re
from pathlib import Path
from statistics import median

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

UNCOMPARED = {"nbval-skip", "nbval-ignore-output"}
RAISES = {"nbval-raises-exception", "raises-exception"}
NBVAL_TAGS = {*UNCOMPARED, *RAISES, "nbval-check-output"}
# What asks the model: the helpers' functions and transformers' own.
ANSWER = re.compile(r"\b(generate|stream|pipe|pipeline)\(")
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/~)>\]])/(home|root|Users|tmp|var|opt|mnt|private|content|workspace|usr|work)/\w|\b[A-Z]:\\\w"
)
ACTIVE = re.compile(
    r"<\s*(script|iframe|object|embed|form|input|button|link|meta|base|style|svg)\b|<[^>]*\son\w+\s*=|javascript:",
    re.IGNORECASE,
)
TOKEN = re.compile(r"\b(hf_|gh[opsu]_|github_pat_|glpat-|sk-)[A-Za-z0-9_-]{20,}|\bAKIA[A-Z0-9]{16}\b|PRIVATE KEY-----")
WEB_PICTURE = re.compile(r"https?://\S+\.(png|jpe?g|gif|webp|svg)|<img[^>]*src=\W?https?:|!\[[^]]*\]\(https?:", re.I)

FORBIDDEN = {"an absolute path": ABSOLUTE_PATH, "active content": ACTIVE, "a secret": TOKEN}
# What may be stored as an output; the last one is an empty place for a widget.
STORED = {"text/plain", "text/markdown", "image/png", "image/jpeg", "application/vnd.jupyter.widget-view+json"}
# The only part of a notebook that may name pictures of the web.
WEB_PART = "## From the web"
FIRST = ("**You will learn**", "**Time:**", "**Memory:**", "**Contents:**")


def text_of(value) -> str:
    return "".join(value) if isinstance(value, list) else value


class Notebook:
    """A stored notebook with what the rules below ask about."""

    def __init__(self, content: dict, size: int = 0):
        self.content, self.size = content, size
        self.cells = content["cells"]
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]
        self.markdown = [cell for cell in self.cells if cell["cell_type"] == "markdown"]

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        return cls(json.loads(path.read_text(encoding="utf-8")), path.stat().st_size)


def lines_of(cell) -> int:
    return len([line for line in text_of(cell["source"]).splitlines() if line.strip()])


def tags_of(cell) -> set:
    return set(cell["metadata"].get("tags", []))


def is_import(cell) -> bool:
    lines = [line for line in text_of(cell["source"]).splitlines() if line.strip()]
    return all(re.match(r"(import|from|#|%|\s|\))", line) for line in lines)


def texts_of(output) -> list[str]:
    """The texts of an output that a reader can see; pictures are left out."""
    texts = [output.get("text", ""), output.get("evalue", ""), "\n".join(output.get("traceback", []))]
    texts += [text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
    return [text_of(text) for text in texts if isinstance(text, (str, list))]


def is_compared(cell) -> bool:
    """Whether nbval compares a text of this cell's output, and not only a picture."""
    if tags_of(cell) & UNCOMPARED:
        return False
    return any(output.get("name") != "stderr" and any(texts_of(output)) for output in cell["outputs"])


def problems_of(notebook: Notebook) -> list[str]:
    """Every broken rule in words, with the number of the cell (counted from 1, all kinds together)."""
    found = []
    code, markdown = notebook.code, notebook.markdown
    if not 10 <= len(code) <= 16:
        found.append(f"{len(code)} code cells, not 10 to 16")
    if len(markdown) < 1.2 * len(code):
        found.append(f"{len(markdown)} markdown cells for {len(code)} code cells, not 1.2 for each")
    lengths = [lines_of(cell) for cell in code] or [0]
    if median(lengths) > 4:
        found.append(f"the median code cell has {median(lengths)} lines, not at most 4")
    words = sum(len(re.findall(r"\w[\w'’-]*", text_of(cell["source"]))) for cell in markdown)
    if not 600 <= words <= 1200:
        found.append(f"{words} words of text, not 600 to 1,200")
    if notebook.size >= 300_000:
        found.append(f"{notebook.size:,} bytes, not below 300,000")
    answers = [number for number, cell in enumerate(code, 1) if ANSWER.search(text_of(cell["source"]))]
    if not answers or answers[0] > 4:
        found.append("no answer of the model by the 4th code cell")
    compared = sum(map(is_compared, code))
    if compared < 5:
        found.append(f"nbval compares {compared} cells, not at least 5")
    if notebook.content["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not python3")
    if "widgets" in notebook.content["metadata"]:
        found.append("metadata.widgets is stored")
    opening, ending = text_of(notebook.cells[0]["source"]), text_of(notebook.cells[-1]["source"])
    found += [f"the first cell lacks {words}" for words in FIRST if words not in opening]
    if "**What next:**" not in ending:
        found.append("the last cell does not say what next")

    in_a_row = executed = 0
    part = ""
    for number, cell in enumerate(notebook.cells, 1):
        source = text_of(cell["source"])
        outputs = cell.get("outputs", [])
        shown = "\n".join([source, *(text for output in outputs for text in texts_of(output))])
        for what, pattern in FORBIDDEN.items():
            if match := pattern.search(shown):
                found.append(f"cell {number}: {what}: {match[0]!r}")
        if cell["cell_type"] == "markdown":
            part = (re.findall(r"^##? .*", source, re.M) or [part])[-1]
        if part != WEB_PART and WEB_PICTURE.search(shown):
            found.append(f"cell {number}: a picture of the web")
        if "attachments" in cell:
            found.append(f"cell {number}: an attachment")
        if cell["cell_type"] != "code":
            in_a_row = 0
            without = re.findall(r"!\[\s*\]\(|<img(?![^>]*\balt=.\w)", source)
            found += [f"cell {number}: a picture without alt text" for _ in without]
            continue
        in_a_row += 1
        executed += 1
        if in_a_row > 2:
            found.append(f"cell {number}: the third code cell in a row")
        if lines_of(cell) > 12:
            found.append(f"cell {number}: {lines_of(cell)} lines, not at most 12")
        if not source.strip():
            found.append(f"cell {number}: empty")
        if cell["execution_count"] != executed:
            found.append(f"cell {number}: execution count {cell['execution_count']}, not {executed}")
        if not outputs and not is_import(cell):
            found.append(f"cell {number}: shows nothing")
        for tag in tags_of(cell):
            if "nbval" in tag.lower() and tag not in NBVAL_TAGS:
                found.append(f"cell {number}: unknown tag {tag}")
        if tags_of(cell) & UNCOMPARED and "#" not in source:
            found.append(f"cell {number}: kept from nbval without a comment that says why")
        if "execution" in cell["metadata"]:
            found.append(f"cell {number}: times are stored")
        streams = [output.get("name") for output in outputs]
        if any(one and one == next_one for one, next_one in itertools.pairwise(streams)):
            found.append(f"cell {number}: a stream in pieces; `.ci/store_outputs.py` joins them")
        raises = tags_of(cell) & RAISES
        for output in outputs:
            if output.get("name") == "stderr":
                found.append(f"cell {number}: stored stderr")
            found += [f"cell {number}: stored {kind}" for kind in output.get("data", {}) if kind not in STORED]
            if output["output_type"] == "error" and not raises:
                found.append(f"cell {number}: stored error {output['ename']}")
            pictures = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            if pictures and not any(other.get("name") == "stdout" for other in outputs):
                found.append(f"cell {number}: a picture without printed facts")
            alt = text_of(output.get("data", {}).get("text/plain", ""))
            if pictures and (not alt.strip() or alt.startswith("<")):
                found.append(f"cell {number}: a picture without alt text")
    return found


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_pace_and_hygiene(path):
    problems = problems_of(Notebook.read(path))
    assert not problems, f"{path.name}:\n" + "\n".join(problems)


def test_no_function_is_defined_in_two_notebooks():
    seen = {}
    for path in NOTEBOOKS:
        source = "\n".join(text_of(cell["source"]) for cell in Notebook.read(path).code)
        for name in set(re.findall(r"^(?:def|class) (\w+)", source, re.M)):
            assert name not in seen, f"{name} is defined in {seen[name]} and {path.name}; move it to helpers"
            seen[name] = path.name


# The rules themselves


def sound() -> Notebook:
    """A notebook that keeps every rule."""
    cells = []
    for number in range(1, 11):
        text = " ".join(["word"] * 60)
        output = {"output_type": "stream", "name": "stdout", "text": [f"answer {number}\n"]}
        cells.append({"cell_type": "markdown", "metadata": {}, "source": [f"## Part {number}\n", text]})
        cells.append(
            {
                "cell_type": "code",
                "metadata": {},
                "source": ["print(generate(model, processor, question))"],
                "execution_count": number,
                "outputs": [output],
            }
        )
    cells[0]["source"].append("".join(FIRST))
    cells += [{"cell_type": "markdown", "metadata": {}, "source": ["**What next:** more"]} for _ in range(2)]
    return Notebook({"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}})


def picture_output(alt):
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": "aGk=", "text/plain": alt}}


POISONS = {
    "not 10 to 16": lambda notebook: notebook.cells.pop(1),
    "not 1.2 for each": lambda notebook: [notebook.cells.pop() for _ in range(2)],
    "the median code cell": lambda notebook: [cell.update(source="x()\n" * 5) for cell in notebook.code],
    "words of text": lambda notebook: [cell.update(source="short") for cell in notebook.markdown],
    "not below 300,000": lambda notebook: setattr(notebook, "size", 300_000),
    "no answer of the model": lambda notebook: [cell.update(source="print(1)") for cell in notebook.code[:4]],
    "nbval compares 4 cells": lambda notebook: [
        cell["metadata"].update(tags=["nbval-ignore-output"]) for cell in notebook.code[4:]
    ],
    "the kernelspec": lambda notebook: notebook.content["metadata"].update(kernelspec={"name": "my-env"}),
    "metadata.widgets": lambda notebook: notebook.content["metadata"].update(widgets={}),
    "third code cell in a row": lambda notebook: (notebook.cells.pop(2), notebook.cells.pop(3)),
    "13 lines": lambda notebook: notebook.code[0].update(source="x()\n" * 13),
    "empty": lambda notebook: notebook.code[5].update(source=""),
    "execution count None": lambda notebook: notebook.code[5].update(execution_count=None),
    "execution count 9, not 6": lambda notebook: notebook.code[5].update(execution_count=9),
    "times are stored": lambda notebook: notebook.code[5]["metadata"].update(execution={}),
    "a stream in pieces": lambda notebook: notebook.code[5].update(outputs=notebook.code[5]["outputs"] * 2),
    "shows nothing": lambda notebook: notebook.code[5].update(outputs=[]),
    "unknown tag": lambda notebook: notebook.code[5]["metadata"].update(tags=["nbval_skip"]),
    "without a comment that says why": lambda notebook: notebook.code[5]["metadata"].update(tags=["nbval-skip"]),
    "stored stderr": lambda notebook: notebook.code[5]["outputs"][0].update(name="stderr"),
    "stored error": lambda notebook: notebook.code[5].update(
        outputs=[{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}]
    ),
    "absolute path": lambda notebook: notebook.code[5]["outputs"][0].update(text="saved /home/me/a.png"),
    "first cell lacks **Contents:**": lambda notebook: notebook.cells[0].update(source="".join(FIRST[:3])),
    "what next": lambda notebook: notebook.cells[-1].update(source="The end"),
    "a picture without printed facts": lambda notebook: notebook.code[5].update(outputs=[picture_output("A circle")]),
    "a picture of the web": lambda notebook: notebook.code[5].update(source="load_image('https://a.org/b.png')"),
    "an attachment": lambda notebook: notebook.cells[0].update(attachments={"a.png": {"image/png": "aGk="}}),
    "stored image/svg+xml": lambda notebook: notebook.code[5]["outputs"][0].update(data={"image/svg+xml": "<svg/>"}),
    "stored text/html": lambda notebook: notebook.code[5]["outputs"][0].update(data={"text/html": "<b>a</b>"}),
    "stored application/javascript": lambda notebook: notebook.code[5]["outputs"][0].update(
        data={"application/javascript": "alert(1)"}
    ),
    "a picture without alt text": lambda notebook: notebook.code[5]["outputs"].append(
        picture_output("<PIL.Image.Image>")
    ),
}


def test_a_sound_notebook_has_no_problem():
    notebook = sound()
    notebook.code[5]["outputs"].append(picture_output("A red circle"))
    assert problems_of(notebook) == []


@pytest.mark.parametrize("problem", POISONS)
def test_each_rule_finds_its_poison(problem):
    notebook = sound()
    POISONS[problem](notebook)
    found = problems_of(Notebook(notebook.content, notebook.size))
    assert any(problem in line for line in found), found


POISONED_TEXTS = {
    "active content": (
        "<iframe src='x'>", "<ScRiPt>x</script>", "<img src='x' alt='a' onerror='x()'>", "<p onfocus=x>", "<form>",
        "<meta http-equiv='refresh'>", "<link rel='x'>", "<svg onload=x>", "[a](javascript:x)", "<p onmouseenter = x>",
    ),
    "a secret": (
        "hf_" + "a" * 30, "ghp_" + "a" * 36, "github_pat_" + "a1_" * 20, "AKIA" + "A1" * 8, "glpat-" + "a" * 20,
        "sk-proj-" + "a" * 30, "-----BEGIN PRIVATE KEY-----",
    ),
    "an absolute path": ("/home/me/a.png", "C:\\Users\\me", "/Users/me/a.png"),
    "a picture of the web": ("![a](https://a.org/b)", "<img alt='a' src='http://a.org/b'>", "https://a.org/b.jpg"),
    "a picture without alt text": ("![ ](a.png)", "<img src='a.png'>", "<img src='a.png' alt=''>"),
}  # fmt: skip


@pytest.mark.parametrize("problem", POISONED_TEXTS)
def test_poisoned_texts(problem):
    for text in POISONED_TEXTS[problem]:
        notebook = sound()
        notebook.cells[2]["source"].append(f"\n{text}")
        assert any(problem in line for line in problems_of(notebook)), text


def test_a_traceback_is_read_too():
    notebook = sound()
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["File /home/me/a.py"]}
    notebook.code[5].update(outputs=[error])
    assert any("an absolute path" in line for line in problems_of(notebook))
