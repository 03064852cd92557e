"""The model's prompt markup."""

import numbers
from collections.abc import Iterable

from .phi3_v.processing_phi3_v import escape_control_tokens


def format_prompt(
    question: str,
    num_images: int = 1,
    *,
    system: str | None = None,
    history: Iterable[tuple[str, str]] = (),
) -> str:
    """Return the text that asks `question` about `num_images` pictures, ready for the processor.

        <|user|>\\n<|image_1|>\\nQUESTION<|end|>\\n<|assistant|>\\n

    `history` holds earlier (question, answer) pairs; the pictures belong to the very first question.
    Control tokens inside any of the texts stay plain text: they cannot end a turn, start a role, or take
    the place of a picture.

    Raises:
        ValueError: an empty question, a `num_images` that is negative or not a whole number, or texts that are not
            strings.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError("The question is empty or not a string; pass the text to ask, such as 'What is shown here?'.")
    if not isinstance(num_images, numbers.Integral) or num_images < 0:
        raise ValueError(f"num_images is {num_images!r}; pass 0 for a question without pictures, or more.")
    if not isinstance(system, (str, type(None))):
        raise ValueError(f"system is {system!r}; pass a text, or None.")
    prompt = f"<|system|>\n{escape_control_tokens(system)}<|end|>\n" if system else ""
    pictures = "".join(f"<|image_{i}|>\n" for i in range(1, num_images + 1))
    for turn in history or ():
        if not isinstance(turn, (tuple, list)) or [isinstance(text, str) for text in turn] != [True, True]:
            raise ValueError(f"history holds {turn!r}; pass pairs of a question and its answer, both texts.")
        asked, answered = turn
        prompt += _turn(pictures + escape_control_tokens(asked))
        prompt += f"{escape_control_tokens(answered)}<|end|>\n"
        pictures = ""
    return prompt + _turn(pictures + escape_control_tokens(question))


def _turn(content: str) -> str:
    return f"<|user|>\n{content}<|end|>\n<|assistant|>\n"
