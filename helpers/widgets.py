"""A box in a notebook: upload or draw pictures, ask about them, watch the answer, stop it."""

import base64
import html
import threading

from .display import encode, facts_of, side_by_side
from .drawing import draw_text
from .generation import check_order, check_whole_number, stream
from .images import load_image
from .phi3_v import Phi3VForCausalLM, Phi3VProcessor
from .prompts import format_prompt

PREVIEW = (480, 240)  # largest width and height, in pixels
QUESTION = "Help me get the title and author information of this book?"
TEXT_QUESTION = "What does the text say?"
EXAMPLES = (
    QUESTION,
    "Describe this picture.",
    TEXT_QUESTION,
    "What does this chart show?",
    "Convert this table to Markdown.",
    "What is difference in this two images?",
)


def ask_about_your_pictures(model: Phi3VForCausalLM, processor: Phi3VProcessor, *, max_new_tokens: int = 1000):
    """Return an ipywidgets box that asks the model about pictures from the reader's disk, or about words it draws.

    The pictures go to the kernel and no further. The answer comes in pieces, then a line says what it cost.
    "Stop" ends it before its next piece. Jupyter sends an upload as one message of at most about 10 MB; read
    larger files with `load_image`.

    The returned box's `asker` has the state: `answer` (the last finished `Answer`, or None), `pictures`
    (those that are asked about) and `thread` (the one that writes the answer, or wrote the last one).

    Args:
        max_new_tokens: an answer is cut off after this many tokens.

    Raises:
        ValueError: max_new_tokens is not a whole number of at least 1, or model and processor are swapped. Later errors
            are shown in the box.
    """
    check_order(model, processor)
    check_whole_number("max_new_tokens", max_new_tokens)
    return _Asker(model, processor, max_new_tokens).box


class _Asker:
    """The box's parts and what they do.

    Jupyter hands clicks to the kernel only while no cell runs, so a thread writes the answer and looks at
    `stopping` before each piece. Texts are shown by Textarea, which never takes them for markup.
    """

    def __init__(self, model, processor, max_new_tokens: int):
        import ipywidgets  # here, so that `import helpers` stays light

        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.pictures, self.answer, self.thread = [], None, None
        self.stopping = threading.Event()
        wide = {"width": "auto", "max_width": "640px"}  # "100%" would cut the right border off in a narrow window

        # None is disabled, not even those that only show something: Tab would skip it, and it could not be copied.
        def text(description, value, rows):
            return ipywidgets.Textarea(value, description=description, rows=rows, layout=wide)

        self.upload = ipywidgets.FileUpload(
            accept=".png,.jpg,.jpeg,.webp", multiple=True, description="Upload pictures"
        )
        self.upload.layout.width, self.upload.layout.align_self = "auto", "flex-start"
        self.words = text("Or write", "", 2)
        self.words.placeholder = "Open daily\n9 to 17"
        self.draw = ipywidgets.Button(description="Draw")
        self.preview = ipywidgets.HTML(description="Preview", layout={"display": "none"})  # an Image has no alt text
        self.facts = text("Pictures", "none yet", 1)
        self.examples = ipywidgets.Dropdown(options=EXAMPLES, description="Examples", layout=wide)
        self.question = text("Question", QUESTION, 2)
        self.ask = ipywidgets.Button(description="Ask", button_style="primary")
        self.stop = ipywidgets.Button(description="Stop", disabled=True)
        self.text = text("Answer", "", 5)
        self.status = text("Status", "Upload pictures (at most 10 MB together) or draw one, then ask.", 2)

        self.upload.observe(self._take_uploads, "value")
        self.draw.on_click(self._take_drawing)
        self.examples.observe(lambda change: self.question.set_trait("value", change["new"]), "value")
        self.ask.on_click(self._start)
        self.stop.on_click(lambda _: self.stopping.set())

        class Box(ipywidgets.VBox):
            def __repr__(self) -> str:  # what a stored notebook shows instead of the box
                return "Box to upload pictures and ask about them; run this cell to use it."

        buttons = ipywidgets.HBox([self.ask, self.stop])
        inputs = [self.upload, self.words, self.draw, self.preview, self.facts, self.examples, self.question]
        self.box = Box([*inputs, buttons, self.text, self.status])
        self.box.asker = self

    def _take_uploads(self, change) -> None:
        if change["new"] and not self.ask.disabled:  # not while an answer about another picture is written
            self._take([(file["name"], file["content"]) for file in change["new"]])

    def _take_drawing(self, _button) -> None:
        if self.ask.disabled:
            return  # as above
        try:
            self._take([("Drawn", draw_text(self.words.value))])
            self.upload.value = ()  # so that the same file can be uploaded again
            self.examples.value = TEXT_QUESTION
        except ValueError as error:
            self.status.value = _sentence(error)

    def _take(self, sources: list) -> None:
        """Show pictures, given as (name, what `load_image` takes); if one is unusable, say so and keep the old ones."""
        pictures, facts = [], []
        for name, source in sources:
            try:
                picture = load_image(source)
                facts.append(f"{name}: {facts_of(picture, picture, self.processor)}")
            except ValueError as error:  # it cannot be read, or is too thin for tiles
                self.status.value = f"{name}: {_sentence(error)}"
                return
            pictures.append(picture)
        try:
            preview = side_by_side(pictures, PREVIEW[0])
        except ValueError as error:  # there are too many
            self.status.value = _sentence(error)
            return
        preview.thumbnail(PREVIEW)
        kind, data = encode(preview)
        alt = html.escape(", ".join(name for name, _ in sources))
        self.preview.value = f'<img alt="{alt}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'
        self.preview.layout.display = ""
        self.facts.value, self.facts.rows = "\n".join(facts), len(facts)
        self.pictures = pictures
        self.text.value, self.status.value = "", "Ready."  # clears what was said about another picture

    def _start(self, _button) -> None:
        if self.ask.disabled:
            return  # a second click, made before the button was greyed out
        if not self.pictures:
            self.status.value = "There is no picture yet: upload or draw one first."
            return
        self.stopping.clear()
        self._set_working(True)
        self.text.value, self.status.value = "", "Working ..."
        # Without daemon, an answer that is still being written would keep the kernel from ending.
        self.thread = threading.Thread(target=self._write, args=(self.question.value, self.pictures), daemon=True)
        self.thread.start()

    def _write(self, question: str, pictures: list) -> None:
        pieces, said = None, ""
        try:
            # Always formatted here: typed text that looks like a whole prompt must stay a question.
            prompt = format_prompt(question, len(pictures))
            pieces = stream(self.model, self.processor, prompt, pictures, max_new_tokens=self.max_new_tokens)
            while not self.stopping.is_set():
                said += next(pieces)
                self.text.value = said
            self.status.value = "Stopped."
        except StopIteration as end:
            self.answer = end.value
            self.status.value = self.answer.cost()
        except (ValueError, RuntimeError) as error:  # ImageLoadError is a ValueError
            self.status.value = _sentence(error)
        except Exception as error:  # in a thread it would be lost
            self.status.value = f"{type(error).__name__}: {_sentence(error)}"
        finally:
            if pieces is not None:
                pieces.close()
            self._set_working(False)

    def _set_working(self, working: bool) -> None:
        self.ask.disabled = self.upload.disabled = self.draw.disabled = working
        self.stop.disabled = not working


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())
