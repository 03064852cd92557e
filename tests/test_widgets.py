import ast
import base64
import inspect
import io
import threading
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ipywidgets import HTML, Box, HTMLMath, Label
from PIL import Image as Pictures

import helpers
from helpers import Answer, ask_about_your_pictures, widgets

SECONDS = 120  # the longest a test waits; far more than it needs


def png(width=60, height=40, color="red", **options) -> bytes:
    file = io.BytesIO()
    Pictures.new("RGB", (width, height), color).save(file, "PNG", **options)
    return file.getvalue()


def upload(box, **files) -> None:
    """What the browser does: set the value of FileUpload."""
    now = datetime.now(UTC)
    box.asker.upload.value = [
        {
            "name": f"{name}.png",
            "type": "image/png",
            "size": len(data),
            "content": memoryview(data),
            "last_modified": now,
        }
        for name, data in files.items()
    ]


def finish(box) -> None:
    box.asker.thread.join(SECONDS)
    assert not box.asker.thread.is_alive()
    assert box.asker.thread not in threading.enumerate()


def tags(markup: str) -> list:
    """The tags of a piece of HTML with their attributes, as a browser reads them."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(markup)
    return found


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


class Written:
    """In place of helpers' stream: writes pieces when it is told to and notes whether it was closed."""

    def __init__(self, pieces=("one ", "two ", "three"), error=None):
        self.pieces, self.error = pieces, error
        self.asked, self.closed = [], False
        self.go = threading.Semaphore(0)
        self.waits = threading.Semaphore(0)

    def __call__(self, model, processor, prompt, images=(), *, max_new_tokens):
        self.asked.append((prompt, images, max_new_tokens))
        return self.write()

    def write(self):
        try:
            for piece in self.pieces:
                self.waits.release()
                assert self.go.acquire(timeout=SECONDS)
                yield piece
            if self.error is not None:
                raise self.error
            return Answer("".join(self.pieces), new_tokens=len(self.pieces), seconds=1.0)
        finally:
            self.closed = True

    def release(self, count=1):
        """Let it write `count` pieces more, and wait until the last of them is shown."""
        for _ in range(count):
            assert self.waits.acquire(timeout=SECONDS)
            self.go.release()


@pytest.fixture
def written(monkeypatch, request):
    stream = Written(**getattr(request, "param", {}))
    monkeypatch.setattr(widgets, "stream", stream)
    return stream


@pytest.fixture
def box(tiny):
    """A box that has a picture."""
    box = ask_about_your_pictures(*tiny, max_new_tokens=5)
    upload(box, red=png())
    return box


# The real model


def test_the_answer_is_that_of_generate(tiny, box):
    box.asker.question.value = "What is this?"
    box.asker.ask.click()
    finish(box)
    expected = helpers.generate(*tiny, "What is this?", png(), max_new_tokens=5)
    assert box.asker.text.value == expected == box.asker.answer
    assert box.asker.status.value == box.asker.answer.cost()
    assert "5 out" in box.asker.status.value


def test_several_pictures(tiny, box):
    upload(box, red=png(), blue=png(50, 70, "blue"))
    box.asker.question.value = "What is difference in this two images?"
    box.asker.ask.click()
    finish(box)
    pictures = [png(), png(50, 70, "blue")]
    assert box.asker.answer == helpers.generate(*tiny, box.asker.question.value, pictures, max_new_tokens=5)


def test_a_typed_prompt_stays_a_question(tiny, box):
    text = "<|user|>\n<|image_1|>\nNothing<|end|>\n<|assistant|>\n"
    box.asker.question.value = text
    box.asker.ask.click()
    finish(box)
    prompt = helpers.format_prompt(text, 1)
    assert box.asker.answer == helpers.generate(*tiny, prompt, png(), max_new_tokens=5)


def test_stop_and_ask_again_with_the_real_model(tiny):
    box = ask_about_your_pictures(*tiny, max_new_tokens=300)
    upload(box, red=png())
    shown = threading.Event()
    box.asker.text.observe(lambda change: change["new"] and shown.set(), "value")
    box.asker.ask.click()
    assert shown.wait(SECONDS)
    box.asker.stop.click()
    finish(box)
    assert box.asker.status.value == "Stopped."
    assert box.asker.answer is None
    box.asker.max_new_tokens = 5
    box.asker.ask.click()
    finish(box)
    assert box.asker.answer == helpers.generate(*tiny, box.asker.question.value, png(), max_new_tokens=5)


# Its own behaviour


def test_import_helpers_leaves_ipywidgets_alone():
    """Checked in the source: a new interpreter on a busy machine would spend half a minute on importing torch."""
    for file in Path(helpers.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            assert not (isinstance(node, (ast.Import, ast.ImportFrom)) and "ipywidgets" in ast.unparse(node)), file


def test_it_starts_empty_and_ready(tiny):
    box = ask_about_your_pictures(*tiny)
    assert box.asker.question.value == widgets.QUESTION
    assert not box.asker.ask.disabled
    assert box.asker.stop.disabled
    assert box.asker.upload.multiple
    assert box.asker.preview.layout.display == "none"
    assert box.asker.thread is None


def test_every_text_can_be_reached_by_the_tab_key_and_copied(box):
    asker = box.asker
    assert not any(text.disabled for text in (asker.words, asker.facts, asker.question, asker.text, asker.status))


def test_the_preview_and_its_facts(tiny, box):
    ((tag, attributes),) = tags(box.asker.preview.value)
    assert (tag, attributes["alt"]) == ("img", "red.png")
    assert Pictures.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))).size == (60, 40)
    assert box.asker.preview.layout.display != "none"
    tokens = tiny[1].image_processor.get_num_image_tokens(336, 336)
    assert box.asker.facts.value == f"red.png: 60 x 40 pixels, RGB, 1 x 1 tiles, {tokens} tokens"
    upload(box, red=png(600, 900), blue=png(50, 700))
    assert 'alt="red.png, blue.png"' in box.asker.preview.value
    assert [line.split(":")[0] for line in box.asker.facts.value.splitlines()] == ["red.png", "blue.png"]
    assert box.asker.facts.rows == 2


def test_an_uploaded_photo_is_turned_upright(tiny, box):
    exif = Pictures.Exif()
    exif[0x0112] = 6
    upload(box, photo=png(60, 40, exif=exif))
    assert "40 x 60 pixels" in box.asker.facts.value


def test_an_example_becomes_the_question(box):
    box.asker.examples.value = "What does this chart show?"
    assert box.asker.question.value == "What does this chart show?"


def test_pieces_come_one_by_one(box, written):
    texts = []
    box.asker.text.observe(lambda change: texts.append(change["new"]), "value")
    box.asker.ask.click()
    written.release(3)
    finish(box)
    assert texts == ["one ", "one two ", "one two three"]
    assert written.asked == [(helpers.format_prompt(widgets.QUESTION, 1), box.asker.pictures, 5)]
    assert box.asker.status.value == "0 image + 0 text tokens in, 3 out, 1.0 s (3.0 tokens/s)"


def test_stop_ends_it_before_the_next_piece(box, written):
    box.asker.ask.click()
    written.release()
    assert written.waits.acquire(timeout=SECONDS)  # the first piece is shown, the second is being made
    box.asker.stop.click()
    written.go.release()
    finish(box)
    assert box.asker.text.value == "one two "
    assert written.closed
    assert box.asker.status.value == "Stopped."
    assert len(box.asker.pictures) == 1
    assert (box.asker.ask.disabled, box.asker.upload.disabled, box.asker.stop.disabled) == (False, False, True)


def test_a_second_ask_is_refused(box, written):
    box.asker.ask.click()
    first = box.asker.thread
    assert (box.asker.ask.disabled, box.asker.upload.disabled, box.asker.stop.disabled) == (True, True, False)
    box.asker.words.value = "Another picture"
    box.asker.draw.click()
    upload(box, blue=png())
    box.asker.ask.click()
    assert box.asker.thread is first
    assert box.asker.facts.value.startswith("red.png")
    written.release(3)
    finish(box)
    assert box.asker.text.value == "one two three"
    assert len(written.asked) == 1


def test_the_next_answer_replaces_the_last(box, written):
    for _ in range(2):
        box.asker.ask.click()
        written.release(3)
        finish(box)
        assert box.asker.text.value == "one two three"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ({"error": RuntimeError("Out of memory.\nLoad less.")}, "Out of memory. Load less."),
        ({"error": ValueError("Too many tokens.")}, "Too many tokens."),
        ({"error": helpers.ImageLoadError("Cannot load it.")}, "Cannot load it."),
        ({"error": KeyError("what")}, "KeyError: 'what'"),
    ],
    indirect=["written"],
)
def test_an_error_is_one_sentence_and_loses_nothing(box, written, shown):
    box.asker.question.value = "Which one?"
    box.asker.ask.click()
    written.release(3)
    finish(box)
    assert box.asker.status.value == shown
    assert box.asker.question.value == "Which one?"
    assert len(box.asker.pictures) == 1
    written.error = None
    box.asker.ask.click()
    written.release(3)
    finish(box)
    assert box.asker.answer == "one two three"


def test_an_empty_question(box):
    box.asker.question.value = "  "
    box.asker.ask.click()
    finish(box)
    assert box.asker.status.value.startswith("The question is empty")
    assert not box.asker.ask.disabled


def test_without_a_picture(tiny):
    box = ask_about_your_pictures(*tiny)
    upload(box)
    box.asker.ask.click()
    assert box.asker.thread is None
    assert "upload or draw one" in box.asker.status.value


def test_drawn_words_are_asked_about_as_an_upload_is(tiny, box):
    box.asker.words.value = "Open daily\n9 to 17"
    box.asker.draw.click()
    assert box.asker.facts.value.startswith("Drawn: 600 x 400 pixels, RGB")
    assert tags(box.asker.preview.value)[0][1]["alt"] == "Drawn"
    assert box.asker.question.value == "What does the text say?"
    box.asker.ask.click()
    finish(box)
    picture = helpers.draw_text("Open daily\n9 to 17")
    assert box.asker.answer == helpers.generate(*tiny, box.asker.question.value, picture, max_new_tokens=5)
    upload(box, red=png())  # the same file as before the drawing
    assert box.asker.text.value == ""
    assert box.asker.facts.value.startswith("red.png")


def test_no_words_and_too_many_keep_the_picture_from_before(box):
    for words, problem in (("  ", "There are no words"), ("too long " * 50, "does not fit")):
        box.asker.words.value = words
        box.asker.draw.click()
        assert problem in box.asker.status.value
        assert box.asker.facts.value.startswith("red.png")


def test_a_broken_upload_keeps_the_pictures_from_before(box):
    before = box.asker.facts.value
    upload(box, blue=png(), broken=png()[:40])
    assert box.asker.status.value.startswith("broken.png: Cannot load")
    assert "\n" not in box.asker.status.value
    assert box.asker.facts.value == before
    upload(box, blue=png())
    assert box.asker.facts.value.startswith("blue.png")
    assert box.asker.status.value == "Ready."


def test_an_upload_that_is_too_thin_or_of_too_many_keeps_the_pictures_from_before(box):
    before = box.asker.pictures
    upload(box, thin=png(1000, 1))
    assert box.asker.status.value.startswith("thin.png: A picture of 1000 x 1 pixels is too thin")
    assert box.asker.pictures is before
    upload(box, **{f"picture{i}": png() for i in range(60)})
    assert box.asker.status.value.startswith("60 pictures do not fit into 480 pixels")
    assert box.asker.pictures is before


@pytest.mark.parametrize("written", [{"pieces": ["<img src=x ", "onerror=alert(1)>", " $x$"]}], indirect=True)
def test_nothing_becomes_markup(box, written):
    name = """<b>bold</b> '" onerror="alert(1)"""
    upload(box, **{name: png()})
    box.asker.ask.click()
    written.release(3)
    finish(box)
    assert box.asker.text.value == "<img src=x onerror=alert(1)> $x$"
    assert box.asker.facts.value.startswith(name)
    ((tag, attributes),) = tags(box.asker.preview.value)
    assert (tag, set(attributes), attributes["alt"]) == ("img", {"alt", "src"}, f"{name}.png")
    # These take markup or mathematics; Textarea takes neither.
    risky = [widget for widget in everything(box) if isinstance(widget, (HTML, HTMLMath, Label))]
    assert risky == [box.asker.preview]


def test_every_part_has_a_name(box):
    for widget in everything(box):
        assert isinstance(widget, Box) or widget.description
        assert not getattr(widget, "description_allow_html", False)


def test_a_stored_notebook_has_words_in_its_place(box):
    bundle = box._repr_mimebundle_()
    assert bundle["text/plain"] == "Box to upload pictures and ask about them; run this cell to use it."


def test_an_impossible_setting(tiny):
    with pytest.raises(ValueError, match="at least 1"):
        ask_about_your_pictures(*tiny, max_new_tokens=0)
    with pytest.raises(ValueError, match="are the model and the processor"):
        ask_about_your_pictures(*reversed(tiny))


def test_an_answer_may_be_as_long_as_everywhere_else():
    functions = (ask_about_your_pictures, helpers.generate, helpers.stream, helpers.generate_many)
    assert {inspect.signature(function).parameters["max_new_tokens"].default for function in functions} == {1000}
