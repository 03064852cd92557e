"""Charts: vertical bars, horizontal ("lying") bars or a line, with title, unit, labels and every value written out."""

import random
from dataclasses import dataclass

from . import chart_by_hand, chart_by_matplotlib, effects, words
from .sample import Sample, letter, lettered, read_first

QUESTIONS = (
    "Could you please introduce this stock to me?",
    "Could you please introduce this chart to me?",
    "What does this chart show?",
    "Describe this chart.",
    "Please describe the chart with its numbers.",
)
VALUE_QUESTIONS = (
    "What is the value of {label}?",
    "What is the value for {label} in this chart?",
    "How much is {label}?",
)
HIGHEST_QUESTIONS = ("What is the highest value?", "Which one is the highest?")
LOWEST_QUESTIONS = ("What is the lowest value?", "Which one is the lowest?")

NAMES = {"bar": "bar chart", "lying": "bar chart", "line": "line chart"}
UNITS = ("million dollars", "billion dollars", "million", "thousand", "percent", "points", "tons", "hours")
MONTHS = "January February March April May June July August September October November December".split()


@dataclass
class Chart:
    """What a chart says. `values` are the numbers as they are written; `ordered` labels are points in time."""

    form: str
    title: str
    unit: str
    labels: list[str]
    values: list[str]
    ordered: bool

    @property
    def numbers(self) -> list[float]:
        """The values as numbers."""
        return numbers_of(self.values)


def numbers_of(values: list[str]) -> list[float]:
    """Values as they are written, as numbers."""
    return [float(value.replace(",", "")) for value in values]


def draw(rng: random.Random, split: str) -> Sample:
    """A random chart, drawn by hand or, one in four, by matplotlib; in training, every second one, as these are
    harder."""
    chart, share = content(rng, split), 0.5 if split == "train" else 0.25
    image, characters = (chart_by_matplotlib if rng.random() < share else chart_by_hand).draw(rng, split, chart)
    if split == "train" and rng.random() < effects.SHEETS:
        image, characters = effects.on_a_sheet(rng, image, characters)
    turns = [(rng.choice(QUESTIONS), description(chart))]
    more = small_questions(rng, chart)
    if split == "train":
        turns = rng.choice((turns, more, more + turns, turns + small_questions(rng, chart, read=False)))
    return Sample("chart", [effects.wear(rng, image)], turns, {**vars(chart)}, [characters])


def content(rng: random.Random, split: str, most: int = 8) -> Chart:
    """Random words and numbers. They differ enough to see the highest, the lowest and, in charts over time, whether the
    last is above the first."""
    # Training has more bars and lines, as they are harder: their unit is often rotated.
    form = rng.choice(("lying", "lying", "bar", "line") if split == "train" else (*4 * ("lying",), "bar", "line"))
    ordered = form == "line" or rng.random() < 0.5
    # Names and values need room, and below vertical bars and points there is less of it: only in training are there
    # more than five of those.
    count = rng.randint(3, min(most, 8 if form == "lying" or split == "train" else 5))
    longest = 9 if form == "lying" else {3: 9, 4: 7, 5: 6, 6: 5, 7: 4, 8: 4}[count]
    labels = _times(rng, count) if ordered else _things(rng, split, count, longest)
    while max(map(len, labels)) > longest:
        labels = _times(rng, count)
    while True:
        values = _values(rng, count, split)
        if max(map(len, values)) > longest:
            continue
        numbers = numbers_of(values)
        ranked = sorted(numbers)
        compared = [ranked[:2], ranked[-2:], *([sorted((numbers[0], numbers[-1]))] if ordered else [])]
        # In training some may differ less in the picture, if they differ much as numbers.
        clear = 1.2 if split == "train" else float("inf")
        if all(high - low > 0.03 * ranked[-1] or high > clear * low for low, high in compared):
            break
    unit = rng.choice([unit for unit in UNITS if unit != "percent" or ranked[-1] <= 100])
    title = " ".join(words.word(rng, split) for _ in range(rng.randint(1, 2)))
    title = rng.choice((title.title(), title.capitalize(), title.upper()))
    return Chart(form, title, unit, labels, values, ordered)


def description(chart: Chart) -> str:
    """The answer to "what does it show?": first all values as they are written in the picture, then the conclusions."""
    items, text = items_of(chart), f"{said_of(chart)} The highest value is {extreme(chart)}, the lowest is"
    text = f"{text} {extreme(chart, min)}."
    return text + (f" From {items[0]} to {items[-1]} the value {change(chart.numbers)}." if chart.ordered else "")


def said_of(chart: Chart) -> str:
    """The beginning of the description: all that is written in the picture."""
    return f'The {NAMES[chart.form]} "{chart.title}" shows values in {chart.unit}: {listed(chart)}.'


def items_of(chart: Chart) -> list[str]:
    """As in "a) Q1 830", "b) Q2 1,932"."""
    return lettered([f"{label} {value}" for label, value in zip(chart.labels, chart.values, strict=True)])


def listed(chart: Chart) -> str:
    """As in "a) Q1 830; b) Q2 1,932"."""
    return "; ".join(items_of(chart))


def extreme(chart: Chart, which=max) -> str:
    """The highest value and where it is, or the lowest, as in "1,932 in b) Q2"."""
    place = chart.numbers.index(which(chart.numbers))
    return f"{chart.values[place]} in {lettered(chart.labels)[place]}"


def change(numbers: list[float]) -> str:
    """`rises` where the last is above the first, else `falls`."""
    return "rises" if numbers[-1] > numbers[0] else "falls"


def small_questions(rng: random.Random, chart: Chart, most: int = 2, read: bool = True) -> list[tuple[str, str]]:
    """Up to `most` questions about single values in random order; with `read` the first begins with all values."""
    turns = [
        (rng.choice(HIGHEST_QUESTIONS), f"The highest value is {extreme(chart)}."),
        (rng.choice(LOWEST_QUESTIONS), f"The lowest value is {extreme(chart, min)}."),
    ]
    for i in rng.sample(range(len(chart.labels)), 2):
        question = rng.choice(VALUE_QUESTIONS).format(label=chart.labels[i])
        turns.append((question, f"{chart.labels[i]} is {letter(i)}: {chart.values[i]}."))
    turns = rng.sample(turns, min(most, len(turns)))
    return read_first(f"{listed(chart)}.", turns) if read else turns


def _times(rng: random.Random, count: int) -> list[str]:
    form = rng.choice(("FY{}", "{}", "{}", "Q", "month"))
    if form == "Q":
        first = rng.randrange(8)
        return [f"Q{i % 4 + 1} {20 + i // 4}" for i in range(first, first + count)]
    if form == "month":
        first = rng.randrange(12)
        return [MONTHS[i % 12][:3] for i in range(first, first + count)]
    first = rng.randint(1990, 2031 - count)
    return [form.format(year) for year in range(first, first + count)]


def _things(rng: random.Random, split: str, count: int, longest: int) -> list[str]:
    labels: list[str] = []
    while len(labels) < count:
        word = words.word(rng, split).capitalize()
        if word not in labels and len(word) <= longest:
            labels.append(word)
    return labels


def _values(rng: random.Random, count: int, split: str) -> list[str]:
    """A random walk, rising, falling or neither, all numbers in one format. In training every fourth grows or shrinks
    by factors, as sales do: numbers with fewer and with more digits have to be compared, too."""
    if split == "train" and rng.random() < 0.25:
        size, levels = 10 ** rng.uniform(2.7, 4.7), [1.0]
        while len(levels) < count:
            levels.append(levels[-1] * rng.uniform(0.7, 2.4))
        levels = [level / max(levels) for level in rng.choice((levels, levels, levels[::-1]))]
    else:
        size = 10 ** rng.uniform(0.7, 4.7)
        drift = rng.choice((-0.12, 0, 0, 0.12, 0.25))
        level, levels = rng.uniform(0.3, 0.8), []
        for _ in range(count):
            levels.append(level)
            level = min(1.0, max(0.04, level + rng.uniform(-0.25, 0.25) + drift))
    decimals = 1 if size < 300 and rng.random() < 0.5 else 0
    comma = "," if rng.random() < 0.5 else ""
    return [f"{level * size:{comma}.{decimals}f}" for level in levels]
