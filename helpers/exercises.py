"""Checks for the "Your turn" parts of the notebooks: each prints `Right` or `Not yet`, and why.

No check looks up a prepared answer of the model: it compares what you pass with facts about the pictures or with
what can be calculated.
"""

import re
from collections import Counter
from collections.abc import Mapping
from numbers import Real

from PIL import Image, ImageColor, ImageFont


def _verdict(right: bool, why: str, hint: str) -> None:
    print(f"Right: {why}" if right else f"Not yet: {hint}")


def _text(answer) -> str:
    return answer.strip() if isinstance(answer, str) else ""


def _number(answer, value: float, tolerance: float, why: str, hint: str) -> None:
    if isinstance(answer, Real):
        _verdict(abs(answer - value) <= tolerance, why, hint)
    else:  # the right digits in quotes, or with a comma between them, do not need the hint
        print("Not yet: write one plain number, without quotes or brackets, with a point before decimals.")


def _pair(answer) -> tuple:
    return tuple(answer) if isinstance(answer, (tuple, list)) else ()


# 01_setup


def check_author_only(answer) -> None:
    """The author without the title."""
    right = "Morgan Maxwell" in _text(answer) and "ALONE" not in _text(answer)
    _verdict(right, "the author, and nothing else.", "the answer should name the author and not the title.")


def check_tall_picture(answer) -> None:
    """Tokens of a picture of three tiles above one another."""
    hint = "the three tiles and the small view each have tokens and row ends; one more token stands between the two."
    _number(answer, 289, 0, "4 x 64 tokens, 24 + 8 row ends, one between the two views.", hint)


def check_six_bits(answer) -> None:
    """Gigabytes of 4,146,621,440 weights of six bits."""
    hint = "a byte has eight bits; 4,146,621,440 weights take six bits each, in 10^9 bytes."
    _number(answer, 3.11, 0.02, "three quarters of a byte each.", hint)


# 02_image_analysis


def check_growth(answer) -> None:
    """Revenue of FY2024 over that of FY2023."""
    hint = "divide the value of FY2024 by that of FY2023; without their commas they are numbers."
    _number(answer, 47_525 / 15_005, 0.05, "a little more than three times.", hint)


def check_wide_tokens(answer) -> None:
    """Tokens of a picture twice as wide as high at num_crops=4 with tiles of 224 pixels."""
    hint = "how many tiles stand side by side, how many above each other? The picture fills 448 x 224 pixels."
    _number(answer, 209, 0, "2 x 1 tiles need fewer rows, and fewer tokens, than 2 x 2.", hint)


def check_sunniest_month(answer) -> None:
    """The highest point of the sunshine chart."""
    _verdict(_text(answer).lower() == "may", "203 hours.", "write only the label below the highest point.")


# 03_ocr


def check_misread(title, said) -> None:
    """A title that the model reads wrongly."""
    if not _text(title):
        print("Not yet: my_title is empty.")
        return
    if not title.isascii():
        print("Not yet: use plain letters; Pillow's font has no others, so the cover shows boxes.")
        return
    if ImageFont.load_default(80).getlength(title.strip()) > 600:
        print("Not yet: the title is wider than the cover, which is 600 pixels; the model cannot see all of it.")
        return
    read = re.search('"(.*)"', said, re.DOTALL)
    right = read is None or read[1].split() != title.split()
    _verdict(right, f"it says {said!r}", "it was read correctly; try look-alike letters.")


def check_pale(ink, said) -> None:
    """An ink in which the model no longer reads the title."""
    hint = 'write my_ink in quotes: the name of a colour, or numbers as in "#e8dcc0".'
    if not _text(ink):
        print("Not yet:", hint)
        return
    if ImageColor.getrgb(ink)[:3] == ImageColor.getrgb("#f4ead5"):
        print("Not yet: that is the colour of the paper, so there is nothing to read.")
        return
    hint = "it was read correctly; go nearer to the colour of the paper, #f4ead5."
    _verdict("Winter Light" not in said, f"it says {said!r}; compare that with what you can read yourself.", hint)


def check_last_name(answer) -> None:
    """The last word of the author's name, taken out of an answer."""
    hint = "split the author at the spaces and take the last part, without the full stop."
    _verdict(_text(answer) == "Maxwell", "the last of the words.", hint)


# 04_multi_image_comparison


def check_new_shape(answer) -> None:
    """What the third scene has and the second has not."""
    hint = 'colour and shape only, as in "red circle"; compare the bottom rows of the two pictures.'
    _verdict(_text(answer).lower().removeprefix("a ") == "black square", "it stands at the bottom center.", hint)


def check_two_tags(answer) -> None:
    """A prompt that shows the second of two passed pictures first."""
    right = "<|user|><|image_2|><|image_1|>Whatisdifferenceinthistwoimages?<|end|><|assistant|>"
    hint = "a whole prompt, as above; a tag's number picks a picture, and the tags' order is the order shown."
    _verdict("".join(_text(answer).split()) == right, "the tags pick, the order shows.", hint)


def check_most_pictures(answer) -> None:
    """Pictures of 2,509 tokens in 131,072 positions, 1,000 of them kept."""
    hint = "subtract what is kept, then divide and round down."
    _number(answer, 51, 0, "and the cache for them would take 50 GB.", hint)


# 05_tables


def check_lemons(answer) -> None:
    """Price times stock."""
    _number(answer, 2.15 * 208, 0.01, "447.20 dollars.", "one number, the product of the two in the last row.")


def check_price_schema(answer) -> None:
    """A JSON schema that takes prices and nothing else."""
    from jsonschema import Draft202012Validator

    hint = '{"type": "string", "pattern": ...}; the pattern needs ^ and $, and \\$ for the dollar sign.'
    if not isinstance(answer, Mapping) or not answer:
        print("Not yet:", hint)
        return
    takes = Draft202012Validator(answer).is_valid
    wrong = [*"2.15 $2.1 $2,15 $2.155 $.15 $x.15 $2.xx $-2.15 $1.2.15".split(), "about $2.15", "$2.15 each", 2.15]
    try:
        right = all(map(takes, ("$2.15", "$10.00", "$7.05", "$340.99"))) and not any(map(takes, wrong))
    except Exception as error:  # a broken schema can fail anywhere in the package
        print("Not yet: this is no valid schema:", error)
        return
    _verdict(right, "prices pass, everything else is refused.", hint)


def check_cells(answer) -> None:
    """The cells of one Markdown row."""
    hint = "strip the bars at both ends, split at the others, strip the spaces."
    _verdict(answer == ["Lemon", "$2.15", "208", "Spain"], "four cells, no spaces around them.", hint)


# 06_objects


def check_bottom_row(answer) -> None:
    """The things in the bottom row of the shapes."""
    right = list(_pair(answer)) == ["red circle", "green triangle"]
    _verdict(
        right, "two things.", "`things` holds pairs of name and place; keep the names whose place begins with bottom."
    )


def check_pale_discs(grey, said) -> None:
    """A grey in which five discs are not described as five."""
    if len(_pair(grey)) != 3 or not grey[0] == grey[1] == grey[2] or grey[0] not in range(255):
        print("Not yet: write my_grey as three equal numbers up to 254, as in (200, 200, 200). White is the paper.")
        return
    count = said.count("circle at")
    _verdict(count != 5, f"it named {count}. Can you see all five?", "it named all five; go nearer to white.")


def check_counter(answer) -> None:
    """A counter of names."""
    _verdict(answer == Counter({"red circle": 2}), "two of one name.", "Counter takes the names, one for each thing.")


# 07_scores


def check_error_rate(answer) -> None:
    """One wrong character in 27."""
    hint = "one character differs; divide by the length of the truth."
    _number(answer, 1 / 27, 0.001, "one wrong digit in 27 characters.", hint)


def check_chance(answer) -> None:
    """Which differences are more than chance."""
    hint = "add n * p * (1 - p) of both counts; the difference varies by the root of the sum. Is it over twice that?"
    _verdict(_pair(answer) == (True, False), "20 is 3.7 times what the difference varies by, 1 only 0.7 times.", hint)


def check_fair_score(answer) -> None:
    """The score that does not depend on wording."""
    hint = "which of them asks what is said and not how?"
    _verdict(_text(answer).lower() == "facts", "the official weights say the same in other words.", hint)


# 08_your_picture


def check_upright_size(answer) -> None:
    """Size of a photo of 4000 x 3000 pixels after a quarter turn."""
    hint = "the pixels stay the same, but the phone was held upright. Which side is the long one then?"
    _verdict(_pair(answer) == (3000, 4000), "a quarter turn swaps width and height, and nothing is lost.", hint)


def check_five_pieces(answer) -> None:
    """The first five pieces of an answer."""
    right = isinstance(answer, list) and len(answer) == 5 and all(isinstance(piece, str) and piece for piece in answer)
    hint = "append each piece of `helpers.stream` to a list, and `break` as soon as there are five."
    why = "five pieces. After `break` the model computes nothing more; cut off by `[:5]` it would have finished first."
    _verdict(right, why, hint)


def check_background(answer) -> None:
    """A picture whose transparent corner became navy."""
    right = isinstance(answer, Image.Image) and answer.mode == "RGB" and answer.getpixel((0, 0)) == (0, 0, 128)
    hint = "the corner should be navy in a picture of mode RGB; `load_image` has an option for it."
    _verdict(right, "the colour you named now lies behind the transparent pixels.", hint)


# 09_speed


def check_half_the_tiles(answer) -> None:
    """Half the time to read, the same time to write."""
    hint = "add up reading and writing; which of the two gets shorter?"
    _number(answer, 14, 0.01, "2 seconds to read, 12 to write.", hint)


def check_ceiling(answer) -> None:
    """Memory speed over the bytes of the decoder's weights."""
    hint = "divide the bytes that arrive in a second by the bytes that one token needs."
    _number(answer, 40 / 7.445, 0.1, "a little over five tokens a second.", hint)


def check_format(answer) -> None:
    """The fastest to read on a CPU without bfloat16 units."""
    hint = "look for the largest number in the column `prefill`."
    _verdict(_text(answer).lower() == "int8", "more than twice as fast as float32, eleven times as bfloat16.", hint)
