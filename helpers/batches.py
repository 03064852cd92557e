"""Many questions at once, faster than one after the other. (On a GPU that was not measured.)"""

import os
import sys
import time
from collections.abc import Sequence

from PIL import Image
from tqdm import tqdm

from .cache import best_cache
from .generation import (
    FIXED_SETTINGS,
    Answer,
    check_order,
    check_whole_number,
    decode,
    explain_out_of_memory,
    whole_prompt,
)
from .images import Pictures, as_list, load_image
from .phi3_v import Phi3VForCausalLM, Phi3VProcessor


def generate_many(
    model: Phi3VForCausalLM,
    processor: Phi3VProcessor,
    prompts: Sequence[str],
    images: Sequence[Pictures] | None = None,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 1000,
    progress: bool = True,
) -> list[Answer]:
    """Return the likeliest answer to each of `prompts` about its pictures, in their order.

    Args:
        prompts: questions or whole prompts, as `generate` takes them.
        images: for each prompt one picture (anything `load_image` takes), a list of them, or None. Leave it out if no
            prompt has a picture.
        batch_size: how many prompts are answered together; fewer take less memory.
        max_new_tokens: each answer is cut off after this many tokens.
        progress: whether to show a bar, on standard error (in a notebook on standard output).

    Prompts of similar length share a batch. Each answer is the one that `generate` gives, apart from rounding: of two
    about equally likely tokens it may take the other. `seconds` is the time of the whole batch, `peak_memory` is None.

    Every picture is loaded and every image tag checked before the first batch, so that a broken one costs no answers.
    (To skip broken pictures, try `load_image` on each.) An interrupt loses all answers, so pass a long list in parts.

    Raises:
        ValueError: `prompts` and `images` of different length, tags that do not match the pictures, too long a prompt.
        ImageLoadError: a picture that cannot be read.
        RuntimeError: out of memory, with what to change.
    """
    check_order(model, processor)
    if isinstance(prompts, str) or isinstance(images, (str, os.PathLike, Image.Image)):
        raise ValueError("prompts and images are lists, one entry for each question; put a single entry in brackets.")
    prompts = list(prompts)  # indexing a pandas Series would go by its labels
    images = [None] * len(prompts) if images is None else list(images)
    if len(prompts) != len(images):
        raise ValueError(
            f"There are {len(prompts)} prompts but {len(images)} pictures or lists of pictures; pass one for each "
            "prompt (None where there is no picture)."
        )
    check_whole_number("batch_size", batch_size)
    check_whole_number("max_new_tokens", max_new_tokens)
    texts, rows = [], []
    for i, (prompt, row) in enumerate(zip(prompts, map(as_list, images))):
        try:
            texts.append(whole_prompt(prompt, len(row)))
            rows.append([_checked(image, processor) for image in row])
            processor.order_images(texts[i], row)  # raises if it cannot be tokenized, or if tags do not match
        except ValueError as error:  # among hundreds of questions, say which one it is
            error.args = (f"Question [{i}]: {error}",)
            raise
    order = sorted(range(len(prompts)), key=lambda i: (len(rows[i]), len(prompts[i])))
    # The longest first: if memory runs out, it does so before there are answers to lose.
    parts = [order[start : start + batch_size] for start in reversed(range(0, len(order), batch_size))]
    batches = (
        _answer(model, processor, [texts[i] for i in part], [rows[i] for i in part], max_new_tokens) for part in parts
    )
    batches = explain_out_of_memory(model, batches, "a smaller batch_size, fewer pictures or a smaller max_new_tokens")
    answers = [Answer()] * len(prompts)
    # A notebook would show standard error as a warning; a script's standard output is for its results.
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    bar = tqdm(total=len(prompts), file=file, leave=False, ncols=80, disable=not progress)
    with bar:
        for part, batch in zip(parts, batches):
            for i, answer in zip(part, batch):
                answers[i] = answer
            bar.update(len(part))
    return answers


def _checked(source, processor):
    """`source`, checked, or the picture itself if it is a web address, which is fetched only once.

    Other pictures are decoded again later, as hundreds of decoded ones may not fit into memory.
    """
    picture = load_image(source)
    processor.image_processor.get_resized_size(picture.height, picture.width)  # raises if it is too thin
    return picture if isinstance(source, str) and source.lower().startswith("http") else source


def _answer(model, processor, texts: list[str], rows: list[list], max_new_tokens: int) -> list[Answer]:
    """The answers to one batch."""
    start = time.perf_counter()
    pictures = [[load_image(image) for image in row] for row in rows]
    inputs = processor(texts, pictures if any(pictures) else None, padding_side="left", return_tensors="pt").to(
        model.device
    )
    tokenizer, ends = processor.tokenizer, model.config.stop_token_ids
    ids = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        **best_cache(model),
        **FIXED_SETTINGS,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )[:, inputs["input_ids"].shape[1] :]
    seconds = time.perf_counter() - start
    answers = []
    for prompt, mask, new in zip(inputs["input_ids"], inputs["attention_mask"], ids.tolist()):
        end = next((i for i, token in enumerate(new) if token in ends), None)
        text_ids = new[:end]
        answers.append(
            Answer(
                decode(tokenizer, text_ids),
                image_tokens=int((prompt == processor.image_token_id).sum()),
                prompt_tokens=int(mask.sum()),
                new_tokens=len(text_ids) + (end is not None),
                seconds=seconds,
                finished=end is not None,
            )
        )
    return answers
