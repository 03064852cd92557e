"""Lessons in finding for the decoder: where in its own text stands what it is about to say.

The loss of the answers hardly tells a small model where to look: it reads all values of a chart and then names any
label beside the highest. Most of what is said comes in pairs ("1,932 at Q2", "a red star at the top left"). Two
attention heads (`attention.py`) are told what to do with them. One binds: what says the second half of a pair looks at
the end of the first half. One finds: what says a second half again looks at the letter that comes next where the pair
stands already.
"""

import re

from .pictures.scene import COLORS, SHAPES

_LABEL, _VALUE = r" (?:[A-Z][a-z]+|FY\d{4}|\d{4}|Q\d \d\d)", r" \d[\d,]*(?:\.\d+)?"
_COLOR, _SHAPE = f" (?:{'|'.join(COLORS)})", f" (?:{'|'.join(SHAPES)})"
_PLACE = r"(?: (?:top|middle|bottom) (?:left|center|right)| center)"
#: What stands in pairs, by kind.
PAIRS = [
    re.compile(rf"({_VALUE}) at({_LABEL})(?=[;,.]| to | the )"),
    re.compile(rf"({_LABEL})(?: is)?({_VALUE})(?=;|\. |\.<)"),
    re.compile(rf"({_COLOR}{_SHAPE})(?: is)? at the({_PLACE})(?=[,.])"),
    re.compile(r"(?<=[:;])( [A-Z]\S*)( [^ ;]+)(?=;|\. The)"),
    re.compile(r"(?<=The)( [A-Z]\S*) of \S+ is( [^ ;]+)(?=\. |\.<)"),
]
_THING = PAIRS[2]
_COUNT = re.compile(rf"((?: \d:{_PLACE}[,.])+) There (?:is|are) \w+({_COLOR})?({_SHAPE})s?\.")
_COUNTED = re.compile(rf" \d:({_PLACE})")
#: What is compared with what.
SIDES = [
    re.compile(r" first( \S+?(?: \w+)*), second( \S+?(?: \w+)*), (?:same|different)\."),
    re.compile(rf"From({_VALUE}) at{_LABEL} to({_VALUE}) at"),
]


def lessons(parts: list[str]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """For the head that binds and the one that finds: pairs of a position that looks and one that it looks at.

    `parts` has the text of every token, nothing where a token is a part of a picture.
    """
    text, owner = "".join(parts), [i for i, part in enumerate(parts) for _ in part]

    def tokens(span):
        return sorted(set(owner[slice(*span)]))

    bind, find, stands = [], [], {}
    pairs = (pair for pattern in PAIRS for pair in pattern.finditer(text))
    for pair in sorted(pairs, key=lambda pair: pair.span(2)):
        first, second = tokens(pair.span(1)), tokens(pair.span(2))
        bind += [(token - 1, first[-1]) for token in second]
        places = stands.setdefault(pair.groups(), [])
        find += [(token - 1, place[k]) for place in places for k, token in enumerate(second) if place[k] < token]
        places.append(second)
    for count in _COUNT.finditer(text):
        label = "".join(part for part in count.groups()[1:] if part)
        things = [thing for thing in _THING.finditer(text, 0, count.start()) if thing[1].endswith(label)]
        look = tokens((count.start() - 1, count.start()))[0]
        for place in _COUNTED.finditer(text, *count.span(1)):
            here = tokens(place.span(1))
            for there in (tokens(thing.span(2)) for thing in things if thing[2] == place[1]):
                # Before its number is said: is there one more? Then its place.
                find += [(look, there[0]), *((token - 1, source) for token, source in zip(here, there, strict=True))]
            look = here[-1]
    for sides in (sides for pattern in SIDES for sides in pattern.finditer(text)):
        # Letter by letter, so that one that differs stands out.
        there, here = (tokens(sides.span(group)) for group in (1, 2))
        bind += zip(here, there, strict=False)
    return bind, find
