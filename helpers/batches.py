"""Many questions at once: what a GPU, and a little also a CPU, does faster than one after the other."""

import sys
from collections.abc import Sequence

from .generation import ONE_BY_ONE, decode, end_ids, whole_prompt
from .images import load_image


def generate_many(
    model,
    processor,
    prompts: Sequence[str],
    images: Sequence,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 1000,
    progress: bool = True,
) -> list[str]:
    """Return the likeliest answer to each of `prompts` about its pictures, in their order.

    Args:
        prompts: questions or whole prompts, as `generate` takes them.
        images: for each prompt one picture or a list of them, anything `load_image` takes.
        batch_size: how many are answered together; fewer take less memory.
        max_new_tokens: each answer is cut off after so many tokens.
        progress: whether to show a bar, on standard output.

    Prompts of similar length go together. Each answer is that of `generate`, but for rounding: where two words are
    nearly as likely, the other one may be taken.

    Raises:
        ValueError: another number of prompts than of images, tags that do not match the pictures, or no room.
        ImageLoadError: a picture that cannot be read.
    """
    from tqdm import tqdm

    prompts, images = list(prompts), list(images)  # a column of a table counts by its labels
    if len(prompts) != len(images):
        raise ValueError(f"There are {len(prompts)} prompts but {len(images)} pictures or lists of pictures.")
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}; pass at least 1 for both.")
    rows = [list(row) if isinstance(row, (list, tuple)) else [row] for row in images]
    order = sorted(range(len(prompts)), key=lambda i: (len(rows[i]), len(prompts[i])))
    tokenizer = processor.tokenizer
    answers = [""] * len(prompts)
    bar = tqdm(total=len(prompts), file=sys.stdout, leave=False, ncols=80, disable=not progress)
    with bar:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            pictures = [[load_image(image) for image in rows[i]] for i in part]
            texts = [whole_prompt(prompts[i], len(row)) for i, row in zip(part, pictures)]
            inputs = processor(texts, pictures if any(pictures) else None, return_tensors="pt").to(model.device)
            ids = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **ONE_BY_ONE,
                eos_token_id=end_ids(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :]
            for i, new in zip(part, ids.tolist()):
                answers[i] = decode(tokenizer, new)
            bar.update(len(part))
    return answers
