import pytest
from phi3_v_data import noise_image

from helpers import generate, generate_many

PROMPTS = [
    "What is this?",
    "word " * 60,
    "<|user|>\nHello<|end|>\n<|assistant|>\n",
    "And these?",
    "a b c",
    "x",
    "a " * 30,
]


@pytest.fixture(scope="module")
def images():
    first, second = noise_image(90, 90), noise_image(120, 90, 1)
    return [first, second, [], [first, second], [first], second, []]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_as_one_by_one(tiny, images, batch_size):
    """Rows of all lengths, with two pictures, one or none; two of them pass the short context while answering."""
    expected = [str(generate(*tiny, *pair, max_new_tokens=16)) for pair in zip(PROMPTS, images)]
    assert generate_many(*tiny, PROMPTS, images, batch_size=batch_size, max_new_tokens=16) == expected


def test_the_bar_is_no_warning(tiny, images, capfd):
    generate_many(*tiny, PROMPTS[:2], images[:2], max_new_tokens=2)
    shown = capfd.readouterr()
    assert "/2" in shown.out
    assert shown.err == ""
    generate_many(*tiny, PROMPTS[:2], images[:2], max_new_tokens=2, progress=False)
    assert capfd.readouterr().out == ""


def test_nothing_to_do(tiny):
    assert generate_many(*tiny, [], []) == []


def test_wrong_counts(tiny, images):
    with pytest.raises(ValueError, match="2 prompts but 1 pictures"):
        generate_many(*tiny, PROMPTS[:2], images[:1])
    with pytest.raises(ValueError, match="batch_size is 0"):
        generate_many(*tiny, PROMPTS[:2], images[:2], batch_size=0)
    with pytest.raises(ValueError, match="0 images"):
        generate_many(*tiny, ["<|user|>\n<|image_1|>\nHello<|end|>\n<|assistant|>\n"], [[]])


def test_a_column_of_a_table(tiny, images):
    """Its rows count by position, whatever they are labelled."""
    pd = pytest.importorskip("pandas")

    table = pd.DataFrame({"prompt": PROMPTS, "images": images}, index=range(len(PROMPTS), 0, -1))
    assert generate_many(*tiny, table["prompt"], table["images"], max_new_tokens=4, progress=False) == generate_many(
        *tiny, PROMPTS, images, max_new_tokens=4, progress=False
    )
