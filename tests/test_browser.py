"""The notebooks as a reader meets them: in JupyterLab, in a browser.

Skipped without Playwright or a Chromium; .ci/run installs both.
Screenshots go to pytest's tmp_path, or to the folder that the environment variable SCREENSHOTS names.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 180  # the longest wait for anything; far more than it needs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

SETTINGS = {
    # Every cell in the page, also those that are scrolled out of sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "doNotDisturbMode": True},
}
#: An answer of the small model is over too soon to be stopped; the last cell of the copy makes it a slow one.
SLOWER = "import time\nbox.asker.model.register_forward_pre_hook(lambda *_: time.sleep(0.2)) and None"
#: Notes all that an element's value is set to.
WATCH = """element => {
    const value = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
    window.seen = [];
    Object.defineProperty(element, "value", {
        get() { return value.get.call(this); },
        set(text) { window.seen.push(text); value.set.call(this, text); },
    });
}"""
#: Whether all parts of the box end left of its right edge, where they would be cut off.
INSIDE = """() => {
    const right = element => Math.round(element.getBoundingClientRect().right);
    const parts = [...document.querySelectorAll(".widget-vbox :is(textarea, select)")];
    return innerWidth == 640 && parts.every(one => right(one) <= right(one.closest(".widget-vbox")));
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab whose folder is a copy of notebooks/, and its token; none of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    root = home / "notebooks"
    shutil.copytree(FOLDER, root, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    token = secrets.token_hex()
    places = {"CONFIG_DIR": "config", "RUNTIME_DIR": "runtime", "DATA_DIR": "data"}
    environment = os.environ | {f"JUPYTER_{name}": str(home / folder) for name, folder in places.items()}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_TOKEN": token,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={root}"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    log = home / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=output, stderr=output)
    try:
        yield address(server, home / "runtime", log), token, root
    finally:
        server.terminate()  # it ends its kernels too
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def address(server, runtime: Path, log: Path) -> str:
    """Where the server listens, as soon as it does."""
    file = runtime / f"jpserver-{server.pid}.json"
    end = time.monotonic() + SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            return f"http://127.0.0.1:{json.loads(file.read_text(encoding='utf-8'))['port']}"
        except (FileNotFoundError, ValueError):  # not there yet, or not all of it
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="module")
def browser():
    """One for all tests, so that JupyterLab's own files come out of its cache."""
    playwright.expect.set_options(timeout=SECONDS * 1000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(SECONDS * 1000)
        yield context
        browser.close()


@pytest.fixture
def page(lab, browser):
    """An empty page; at the end it is closed and every kernel shut down."""
    base, token, _ = lab
    page = browser.new_page()
    yield page
    page.close()
    headers = {"Authorization": f"token {token}"}
    for kernel in browser.request.get(f"{base}/api/kernels", headers=headers).json():
        browser.request.delete(f"{base}/api/kernels/{kernel['id']}", headers=headers)


@pytest.fixture
def open_notebook(lab, page):
    """Open a notebook in the page and wait until all of its cells are there."""
    base, token, root = lab

    def go(name):
        page.goto(f"{base}/doc/tree/{name}?reset&token={token}")
        cells = json.loads((root / name).read_text(encoding="utf-8"))["cells"]
        playwright.expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(cells))

    return go


@pytest.fixture
def shoot(page, tmp_path):
    """Write a screenshot."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png")


def problems(page) -> list[str]:
    """What no output of a notebook may show: errors, stderr, broken pictures."""
    kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    found = page.locator(", ".join(f'.jp-OutputArea [data-mime-type="{kind}"]' for kind in kinds)).all_inner_texts()
    broken = "all => all.filter(one => !one.naturalWidth).map(one => `broken picture: ${one.src.slice(0, 80)}`)"
    return found + page.locator(".jp-RenderedImage img").evaluate_all(broken)


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_the_stored_notebook_is_shown(open_notebook, page, shoot, name):
    open_notebook(name)
    playwright.expect(page.locator(".jp-RenderedMarkdown h1")).to_have_count(1)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert problems(page) == []
    shoot(name.removesuffix(".ipynb"))


def test_your_own_picture(lab, open_notebook, page, shoot):
    name = "08_your_picture.ipynb"
    notebook = json.loads((lab[2] / name).read_text(encoding="utf-8"))
    cell = {
        "cell_type": "code",
        "id": "slower",
        "metadata": {},
        "source": SLOWER,
        "outputs": [],
        "execution_count": None,
    }
    notebook["cells"].append(cell)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    (lab[2] / name).write_text(json.dumps(notebook), encoding="utf-8")

    open_notebook(name)
    # Before the kernel is there, "Run All Cells" would ask which one to take.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = [f"[{number}]:" for number, _ in enumerate(page.locator(".jp-CodeCell").all(), 1)]
    playwright.expect(page.locator(".jp-CodeCell .jp-InputPrompt")).to_have_text(prompts)
    assert problems(page) == []

    question, answer, status, facts = (
        page.get_by_label(label, exact=True) for label in ("Question", "Answer", "Status", "Pictures")
    )
    ask, stop = (page.get_by_role("button", name=label, exact=True) for label in ("Ask", "Stop"))
    ask.scroll_into_view_if_needed()
    ask.click()
    playwright.expect(status).to_have_value("There is no picture yet: upload or draw one first.")

    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload pictures").click()
    chooser.value.set_files(lab[2] / "images" / "book_cover.png")
    playwright.expect(facts).to_have_value("book_cover.png: 600 x 900 pixels, RGB, 2 x 2 tiles, 345 tokens")
    playwright.expect(page.get_by_alt_text("book_cover.png")).to_be_visible()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")

    page.get_by_label("Examples").select_option("Help me get the title and author information of this book?")
    playwright.expect(question).to_have_value("Help me get the title and author information of this book?")
    answer.evaluate(WATCH)
    ask.click()
    playwright.expect(ask).to_be_disabled()
    playwright.expect(answer).not_to_have_value("")
    shoot("answering")
    playwright.expect(status).to_have_value(re.compile("tokens/s"))
    whole = answer.input_value()
    assert "ALONE" in whole
    pieces = [text for text in page.evaluate("seen") if text]
    assert len(pieces) > 2, "it came at once, not in pieces"
    assert all(whole.startswith(piece) for piece in pieces)
    shoot("answered")

    ask.click()
    playwright.expect(stop).to_be_enabled()
    playwright.expect(answer).not_to_have_value(whole)
    playwright.expect(answer).not_to_have_value("")
    stop.click()
    playwright.expect(status).to_have_value("Stopped.")
    playwright.expect(ask).to_be_enabled()
    begun = answer.input_value()
    assert begun != whole
    assert whole.startswith(begun)
    assert problems(page) == []
    shoot("stopped")

    page.get_by_label("Or write", exact=True).fill("WINTER LIGHT\nNadia Holm")
    page.get_by_role("button", name="Draw", exact=True).click()
    playwright.expect(facts).to_have_value(re.compile("^Drawn: 600 x 400 pixels"))
    playwright.expect(page.get_by_alt_text("Drawn", exact=True)).to_be_visible()
    assert problems(page) == []
    shoot("drawn")

    page.set_viewport_size({"width": 640, "height": 1000})  # what 200 % zoom leaves of a small screen
    page.wait_for_function(INSIDE)
    shoot("narrow")
