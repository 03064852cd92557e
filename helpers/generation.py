"""Ask the model: a whole answer with what it cost, or the same answer piece by piece."""

import contextlib
import math
import numbers
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator

import torch

from .cache import best_cache
from .images import Pictures, as_list, load_image
from .machine import out_of_memory
from .phi3_v import Phi3VForCausalLM, Phi3VProcessor
from .prompts import format_prompt

#: Settings of `generate` that every answer here relies on, whatever the checkpoint's generation config says.
FIXED_SETTINGS = {
    "use_cache": True,
    "num_beams": 1,
    "num_return_sequences": 1,
    "prompt_lookup_num_tokens": None,
    "return_dict_in_generate": False,
}
_FORMATTED = ("<|user|>", "<|system|>")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Answer(str):
    """The answer's text, with what it cost.

    Attributes:
        image_tokens: tokens that the pictures took in the prompt.
        prompt_tokens: all tokens of the prompt, pictures included.
        new_tokens: tokens generated, the end token included.
        seconds: wall-clock time from the call to the last token, preparing the pictures included.
        peak_memory: bytes; on CUDA the most that torch held at once, elsewhere the process's largest
            resident size so far; None where the platform does not tell.
        finished: True if the model ended the answer itself, False if max_new_tokens cut it off.
    """

    image_tokens: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    peak_memory: int | None
    finished: bool

    def __new__(
        cls,
        text: str = "",
        *,
        image_tokens: int = 0,
        prompt_tokens: int = 0,
        new_tokens: int = 0,
        seconds: float = 0.0,
        peak_memory: int | None = None,
        finished: bool = True,
    ):
        answer = super().__new__(cls, text)
        answer.image_tokens = image_tokens
        answer.prompt_tokens = prompt_tokens
        answer.new_tokens = new_tokens
        answer.seconds = seconds
        answer.peak_memory = peak_memory
        answer.finished = finished
        return answer

    @property
    def tokens_per_second(self) -> float:
        """New tokens over all seconds, reading the prompt included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def cost(self) -> str:
        """One line: tokens in and out, time, memory."""
        text_tokens = self.prompt_tokens - self.image_tokens
        line = (
            f"{self.image_tokens:,} image + {text_tokens:,} text tokens in, {self.new_tokens:,} out, "
            f"{self.seconds:.1f} s ({self.tokens_per_second:.1f} tokens/s)"
        )
        if self.peak_memory is not None:
            line += f", peak memory {self.peak_memory / 1e9:.2f} GB"
        return line if self.finished else line + "; cut off by max_new_tokens"


def generate(
    model: Phi3VForCausalLM,
    processor: Phi3VProcessor,
    prompt: str,
    images: Pictures = (),
    *,
    max_new_tokens: int = 1000,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Answer:
    """Return the model's answer to `prompt` about `images`.

    Args:
        prompt: a plain question, or a whole prompt that starts with `<|user|>` or `<|system|>`; the latter is passed on
            as it is, without spaces or `<s>` before it. Put untrusted text through `format_prompt` first.
        images: one picture (anything `load_image` takes), a list of them, or None.
        max_new_tokens: the answer is cut off after this many tokens.
        temperature: 0 takes the likeliest token each time; higher values draw at random.
        seed: makes a random answer repeatable; torch's own random state is left alone.

    Ctrl-C stops the answer at once and leaves the model ready for the next question.

    Raises:
        ValueError: an empty question, tags that do not match the pictures, an impossible setting, or arguments in
            the wrong order.
        ImageLoadError: a picture that cannot be read.
        RuntimeError: out of memory, with what to change.
    """
    pieces = stream(model, processor, prompt, images, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def stream(
    model: Phi3VForCausalLM,
    processor: Phi3VProcessor,
    prompt: str,
    images: Pictures = (),
    *,
    max_new_tokens: int = 1000,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Generator[str, None, Answer]:
    """Yield the answer in pieces of text as it is written; joined, they are the answer of `generate`.

    Takes and raises what `generate` does. It works in the calling thread, one token a step: Ctrl-C, leaving
    the loop, or closing the generator stops the model at once. The generator's return value is the `Answer`.

    If several streams run at once, only one of them uses the compiled step of `compile=True`.
    """
    check_order(model, processor)
    check_whole_number("max_new_tokens", max_new_tokens)
    if not isinstance(temperature, numbers.Real) or not (temperature == 0 or 1e-6 <= temperature < math.inf):
        raise ValueError(f"temperature is {temperature!r}; pass 0 for the likeliest answer, or a number such as 0.7.")
    if seed is not None and not (isinstance(seed, numbers.Real) and -(2**63) <= seed < 2**64 and seed == int(seed)):
        raise ValueError(f"seed is {seed!r}; pass a whole number, or None.")
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    return (yield from explain_out_of_memory(model, _stream(model, processor, prompt, images, **settings)))


def check_order(model, processor) -> None:
    """Raise if the model or the processor is missing, or if they are swapped or still in one tuple."""
    if not (hasattr(model, "generate") and hasattr(processor, "tokenizer")):
        raise ValueError("The first two arguments are the model and the processor, in this order.")


def check_whole_number(name: str, value) -> None:
    """Refuse a setting that is not a whole number of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; pass a whole number, at least 1.")


def explain_out_of_memory(
    model, steps: Iterator, ask_with: str = "fewer pictures or a smaller max_new_tokens"
) -> Generator:
    """Yield from `steps`; if these run out of memory, raise a RuntimeError that says what to change."""
    try:
        return (yield from steps)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Raised outside the handler: the first error's traceback would keep every tensor of the step alive.
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    raise RuntimeError(
        "Out of memory. Load the model with a smaller num_crops (fewer image tokens) or with "
        f'quantization="int4" (on a CPU "int8"), or ask with {ask_with}.'
    )


def _stream(model, processor, prompt, images, *, max_new_tokens, temperature, seed):
    start = time.perf_counter()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    pictures = [load_image(image) for image in as_list(images)]
    inputs = processor(text=whole_prompt(prompt, len(pictures)), images=pictures or None, return_tensors="pt").to(
        model.device
    )

    tokenizer = processor.tokenizer
    ends = model.config.stop_token_ids
    rng = torch.Generator(model.device).manual_seed(int(seed)) if seed is not None else None
    sampling = {"do_sample": True, "temperature": float(temperature)} if temperature > 0 else {"do_sample": False}

    hidden = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}

    def is_final(token: int) -> bool:
        """Whether no later token can change the text up to this one. The bytes of one character arrive as several
        tokens, perhaps with hidden tokens in between, so neither kind is final."""
        return token not in hidden and not _BYTE_TOKEN.fullmatch(tokenizer.convert_ids_to_tokens(token) or "<0x00>")

    ids, text = [], ""
    finished = False
    compiled = getattr(model, "compiled_decoding", None)
    positions = inputs["input_ids"].shape[1] + max_new_tokens
    with compiled.reserve(positions) if compiled else contextlib.nullcontext({}) as reserved:
        reserved = reserved or best_cache(model)
        tokens = model.generate(
            **inputs,
            **sampling,
            **reserved,
            **FIXED_SETTINGS,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            custom_generate=token_by_token,
            rng=rng,
        )
        for token in tokens:
            ids.append(token)
            if token in ends:
                finished = True
            elif is_final(token):
                longer = decode(tokenizer, ids)
                if len(longer) > len(text):
                    yield longer[len(text) :]
                text = longer
    whole = decode(tokenizer, ids[:-1] if finished else ids)
    if len(whole) > len(text):
        yield whole[len(text) :]
    return Answer(
        whole,
        image_tokens=int((inputs["input_ids"] == processor.image_token_id).sum()),
        prompt_tokens=inputs["input_ids"].shape[1],
        new_tokens=len(ids),
        seconds=time.perf_counter() - start,
        peak_memory=_peak_memory(model),
        finished=finished,
    )


def token_by_token(
    model, input_ids, logits_processor, stopping_criteria, generation_config, rng=None, one_step=None, **model_kwargs
) -> Iterator[int]:
    """transformers' own sampling loop for one row, as a generator of token ids.

    `generate` prepares the arguments and returns this generator, so that the caller sets the pace. `one_step` replaces
    the model in steps of a single token; each step is then launched before the previous token is read, so that the GPU
    never waits for Python (at the end, one step too many is launched).
    """
    ahead, unread, first = int(one_step is not None), deque(), True
    while True:
        with torch.no_grad():  # inside the loop: it must not apply to the caller's code between two steps
            if first:
                outputs = model._prefill(input_ids, generation_config, model_kwargs)
            else:
                step = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
                one = one_step is not None and step["input_ids"].shape[1] == 1  # more where the cache is rebuilt
                outputs = one_step(**step) if one else model(**step, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            scores = logits_processor(input_ids, outputs.logits[:, -1].to(torch.float32, copy=True))
            del outputs  # the next step should not hold on to a whole prompt's states
            if generation_config.do_sample:
                token = torch.multinomial(scores.softmax(-1), num_samples=1, generator=rng)
            else:
                token = scores.argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=-1)
            unread.append(_start_copy(torch.cat([token[0], stopping_criteria(input_ids, None).long()])))
        if first or len(unread) > ahead:
            token, stopped = unread.popleft()()
            yield token
            if stopped:
                return
        first = False


def _start_copy(numbers) -> Callable[[], list[int]]:
    """Start copying a small tensor from the GPU. The returned function waits for this copy alone, not for work that is
    launched later, and returns the numbers."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    here = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[int]:
        arrived.synchronize()
        return here.tolist()

    return read


def whole_prompt(prompt: str, num_images: int) -> str:
    """A plain question in the model's markup; a whole prompt stays as it is."""
    # The tokenizer adds <s> itself, and space before the markup would only confuse the model.
    whole = prompt.lstrip().removeprefix("<s>").lstrip() if isinstance(prompt, str) else ""
    return whole if whole.startswith(_FORMATTED) else format_prompt(prompt, num_images)


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _peak_memory(model) -> int | None:
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
