"""Random words, titles and names. A word belongs to one split for good, decided by a hash of its letters."""

import hashlib
import importlib
import random

from faker.providers.lorem.en_US import Provider as Lorem
from faker.providers.person.en_US import Provider as Person

from ..tokenizer import WORDS

#: Languages that are written in these letters, or nearly so, for training only: ten thousand words and names are harder
#: to learn by heart than one thousand.
LANGUAGES = ("cs_CZ", "da_DK", "de_DE", "es_ES", "fr_FR", "it_IT", "pl_PL")


def _foreign(provider: str, entries: str) -> list[str]:
    """What faker lists under this name for LANGUAGES."""
    modules = [importlib.import_module(f"faker.providers.{provider}.{language}") for language in LANGUAGES]
    words = {word for module in modules for word in getattr(module.Provider, entries)}
    return sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)


COMMON = [word for word in Lorem.word_list if len(word) > 2]
FIRST_NAMES = sorted(set(Person.first_names))
LAST_NAMES = sorted(set(Person.last_names))
FOREIGN = [word.lower() for word in _foreign("lorem", "word_list")]
FOREIGN_FIRST_NAMES = _foreign("person", "first_names")
FOREIGN_LAST_NAMES = _foreign("person", "last_names")
#: Words that are one token each: a model cannot say a token that it never said in training.
WHOLE = sorted({word.lower() for word in WORDS if len(word) > 2})

_ONSETS = """b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kn l m n p ph pl pr qu r s sc sh sk sl sm sn sp
    st str sw t th tr tw v w wh x y z""".split()
_VOWELS = "a a a e e e e i i i o o o u u y ai au ea ee ei ie io oa oo ou".split()
_CODAS = (
    ["", "", "", ""]
    + """b c ck d f ff g gh k l ll lm ld m mp n nd ng nt p r rd rk rm rn rt s ss sh st t tch
    tt v w x z zz""".split()
)
_SMALL = ("of", "and", "the", "in", "for", "to")
_NUMBERS = ("{}", "{}", "{}", "{}%", "${}", "{}.5", "{},000", "#{}", "({})", "+{}", "-{}")


def held_out(word: str) -> bool:
    """One word in ten, whatever its case, is never trained on; all words of one token are."""
    return word.lower() not in WHOLE and hashlib.sha1(word.lower().encode()).digest()[0] % 10 == 0


def of_split(rng: random.Random, split: str, make) -> str:
    """Calls `make(rng)` until it returns a word of the split."""
    while True:
        word = make(rng)
        if held_out(word) == (split != "train"):
            return word


def invented(rng: random.Random) -> str:
    """A word that no dictionary has, so that it has to be read and cannot be known."""
    syllables = rng.choices((1, 2, 3), (4, 5, 1))[0]
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))[:10]


def common(rng: random.Random) -> str:
    """An English word."""
    return rng.choice(COMMON)


def foreign(rng: random.Random) -> str:
    """A word of another language."""
    return rng.choice(FOREIGN)


def whole(rng: random.Random) -> str:
    """A word that is one token."""
    return rng.choice(WHOLE)


def shuffled(rng: random.Random) -> str:
    """The letters of a word in random order: they can be read, but not guessed."""
    letters = rng.choice(COMMON)
    return "".join(rng.sample(letters, len(letters)))


def word(rng: random.Random, split: str) -> str:
    """A lower-case word: every fourth one is invented. In training every second one of the others is foreign, has its
    letters shuffled or is one token: a model guesses words that it knows by heart, and takes other words for them."""
    if rng.random() < 0.25:
        return of_split(rng, split, invented)
    if split == "train" and rng.random() < 0.5:
        return of_split(rng, split, rng.choice((shuffled, foreign, foreign, whole)))
    return of_split(rng, split, common)


def number(rng: random.Random, split: str) -> str:
    """Digits in one of the shapes that charts, tables and titles use."""

    def make(rng):
        value = rng.randrange(10 ** rng.randint(1, 5))
        return rng.choice(_NUMBERS).format(value)

    return of_split(rng, split, make)


def name(rng: random.Random, split: str) -> str:
    """A person's name, at times with initials, a hyphen or an apostrophe."""

    def part(known):
        return of_split(rng, split, lambda r: r.choice(known) if r.random() < 0.75 else invented(r).capitalize())

    firsts, lasts = FIRST_NAMES, LAST_NAMES
    if split == "train" and rng.random() < 0.4:
        firsts, lasts = FOREIGN_FIRST_NAMES, FOREIGN_LAST_NAMES
    first, last = part(firsts), part(lasts)
    shape = rng.random()
    if shape < 0.10:
        first = f"{first[0]}. {rng.choice('ABCDEFGHIJKLMNOPRSTVW')}."
    elif shape < 0.20:
        first = f"{first} {rng.choice('ABCDEFGHIJKLMNOPRSTVW')}."
    elif shape < 0.25:
        last = rng.choice(("O'", "Mc", "D'")) + last
    elif shape < 0.30:
        last = f"{last}-{part(LAST_NAMES)}"
    return f"{first} {last}"


def title(rng: random.Random, split: str) -> str:
    """A book's title of one to four words, in capitals or in title case."""
    parts = [word(rng, split) for _ in range(rng.choices((1, 2, 3, 4), (8, 10, 5, 1))[0])]
    if len(parts) > 1 and rng.random() < 0.3:
        parts.insert(1, rng.choice((*_SMALL, "&", "of the")))
    if rng.random() < 0.2:
        parts.insert(0, rng.choice(("The", "A", "My")))
    if rng.random() < 0.08:
        parts.append(number(rng, split))
    text = " ".join(parts)
    if rng.random() < 0.5:
        return text.upper()
    return " ".join(part if part in _SMALL else part[0].upper() + part[1:] for part in text.split())
