"""Two or three pictures and a question about one of them: to learn that the number in a question picks its picture."""

import random

from . import cover, scene
from .sample import Sample

ORDINALS = ("first", "second", "third")
QUESTIONS = {
    "scene": (
        "Describe image {number}.",
        "Describe the {ordinal} image.",
        "What do you see in image {number}?",
        "What objects are in the {ordinal} picture?",
    ),
    "cover": (
        "What is the title of the book in image {number}?",
        "What is the title of the {ordinal} book?",
        "What is the {ordinal} book called?",
    ),
}


def draw(rng: random.Random, split: str) -> Sample:
    """Scenes or covers; while training, questions about all of them in random order."""
    module = rng.choice((cover, scene, scene))
    samples = [module.draw(rng, split) for _ in range(rng.randint(2, 3))]
    turns = []
    for i, sample in enumerate(samples):
        question = rng.choice(QUESTIONS[sample.kind]).format(number=i + 1, ordinal=ORDINALS[i])
        truth = sample.truth
        turns.append((question, cover.TITLE_ANSWER.format(**truth) if module is cover else truth["description"]))
    rng.shuffle(turns)
    if split != "train":
        turns = turns[:1]
    truth = {"pictures": [sample.truth for sample in samples]}
    images, marks = zip(*((sample.images[0], sample.characters[0]) for sample in samples))
    return Sample("several", [*images], turns, truth, [*marks])
