import numpy as np
import pytest

from helpers import draw_text


def edges(picture):
    """Left, top, right and bottom of what is not paper."""
    y, x = np.nonzero((np.asarray(picture) != picture.getpixel((0, 0))).any(-1))
    return x.min(), y.min(), x.max(), y.max()


def test_the_words_are_in_the_middle_and_as_large_as_they_fit():
    for text in ("A", "Open daily\n9 to 17", "A rather long line of text", "one\ntwo\nthree\nfour\nfive"):
        picture = draw_text(text)
        left, top, right, bottom = edges(picture)
        assert abs((left + right) / 2 - 300) < 6
        assert abs((top + bottom) / 2 - 200) < 25  # capitals stand higher than the middle of their line
        assert min(left, 600 - right, top, 400 - bottom) > 15
    assert edges(draw_text("five"))[3] > edges(draw_text("five long words in a line"))[3]


def test_colours_size_and_spaces_around():
    picture = draw_text("\n  Hi \n", (300, 100), ink="red", paper="navy")
    assert picture.size == (300, 100)
    assert picture.getpixel((0, 0)) == (0, 0, 128)
    assert (255, 0, 0) in {color for _, color in picture.getcolors(10_000)}
    assert picture.tobytes() == draw_text("Hi", (300, 100), ink="red", paper="navy").tobytes()
    assert draw_text("9\t17").tobytes() == draw_text("9   17").tobytes()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" \n ", "no words"),
        (5, "pass a string"),
        ("word " * 40, "write less"),
        ("a\n" * 20, "fit"),
        ("Åse “x”", "not 'Å“”'"),
        ("bell\a", r"not '\\x07'"),
    ],
)
def test_what_cannot_be_drawn(text, problem):
    with pytest.raises(ValueError, match=problem):
        draw_text(text)
