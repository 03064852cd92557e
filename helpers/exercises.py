"""Checks for the "Your turn" parts of the notebooks: each prints `Right` or `Not yet`, and why.

No check looks up a prepared answer of the model: it compares what you pass with facts about the pictures or with
what can be calculated.
"""

from PIL import Image


def _verdict(right: bool, why: str, hint: str) -> None:
    print(f"Right: {why}" if right else f"Not yet: {hint}")


def _text(answer) -> str:
    return answer.strip() if isinstance(answer, str) else ""


def _near(answer, value: float, tolerance: float) -> bool:
    return isinstance(answer, (int, float)) and abs(answer - value) <= tolerance


# 01_setup


def check_author_only(answer) -> None:
    """The author without the title."""
    right = "Morgan Maxwell" in _text(answer) and "ALONE" not in _text(answer)
    _verdict(right, "the author, and nothing else.", "the answer should name the author and not the title.")


def check_square_tokens(answer) -> None:
    """Tokens of a square picture at num_crops=4 with tiles of 224 pixels."""
    hint = "2 x 2 tiles and one view of the whole, 8 x 8 tokens each, and row ends."
    _verdict(answer == 345, "5 x 64 tokens, 16 + 8 row ends, one between the two views.", hint)


def check_four_bit(answer) -> None:
    """Gigabytes of 4,146,621,440 weights of half a byte."""
    _verdict(_near(answer, 2.07, 0.05), "half a byte each.", "4,146,621,440 weights times half a byte, in 10^9 bytes.")


# 03_ocr


def check_misread(title, said) -> None:
    """A title that the model reads wrongly."""
    if not _text(title):
        print("Not yet: my_title is empty.")
        return
    _verdict(f'"{title}"' not in said, f"it says {said!r}", "it was read correctly; try look-alike letters.")


def check_pale(answer) -> None:
    """Any answer about the pale cover."""
    hint = "my_answer is empty; draw the cover in that ink and ask."
    _verdict(bool(_text(answer)), "now compare it with what you can read yourself.", hint)


def check_last_name(answer) -> None:
    """The last word of the author's name, taken out of an answer."""
    hint = "split the author at the spaces and take the last part."
    _verdict(_text(answer) == "Maxwell", "the last of the words.", hint)


# 08_your_picture


def check_upright_size(answer) -> None:
    """Size of a photo of 4000 x 3000 pixels after a quarter turn."""
    hint = "the pixels stay the same, but the phone was held upright. Which side is the long one then?"
    _verdict(answer == (3000, 4000), "a quarter turn swaps width and height, and nothing is lost.", hint)


def check_five_pieces(answer) -> None:
    """The first five pieces of an answer."""
    right = isinstance(answer, list) and len(answer) == 5 and all(isinstance(piece, str) and piece for piece in answer)
    hint = "append each piece of `helpers.stream` to a list, and `break` as soon as there are five."
    _verdict(right, "five pieces, and after `break` the model computed nothing more.", hint)


def check_background(answer) -> None:
    """A picture whose transparent corner became black."""
    right = isinstance(answer, Image.Image) and answer.mode == "RGB" and answer.getpixel((0, 0)) == (0, 0, 0)
    hint = "the corner should be black in a picture of mode RGB; `load_image` has an option for it."
    _verdict(right, "the colour you named now lies behind the transparent pixels.", hint)
