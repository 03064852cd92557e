"""Processor of Phi-3-Vision: prompts with numbered image tags, and their pictures, to model inputs."""

import itertools
import re

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

ROLES = ("system", "user", "assistant")
IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
CONTROL_TOKEN_START = re.compile(r"<(?=\||/?s>|unk>)")

# The markup of the official template, and image tags numbered through all turns.
CHAT_TEMPLATE = """\
{%- set ns = namespace(images=0) -%}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- for part in ([message['content']] if message['content'] is string else message['content']) -%}
{%- if part['type'] == 'image' -%}{%- set ns.images = ns.images + 1 -%}{{- '<|image_' ~ ns.images ~ '|>' -}}
{%- else -%}{{- part if part is string else part['text'] -}}{%- endif -%}{{- '' if loop.last else '\\n' -}}
{%- endfor -%}{{- '<|end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}
{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


def escape_control_tokens(text: str) -> str:
    """
    `text` with a zero-width space in all that could be a control token or an image tag (`<|...|>`, `<s>`,
    `</s>`, `<unk>`), so that it is read as plain text. It looks the same.
    """
    return CONTROL_TOKEN_START.sub("<\u200b", text)


class Phi3VProcessor(ProcessorMixin):
    """
    A [`Phi3VImageProcessor`] and the tokenizer. A picture becomes as many `<|image|>` tokens as it has
    features.

    The chat template is the model's own; a template stored with the checkpoint is not used.
    """

    image_token = "<|image|>"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
        # `pipeline` pads its batches as the tokenizer says, and the official files, made for training, say "right".
        tokenizer.padding_side = "left"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, pretrained_model_name_or_path, **kwargs):
        # As tokenizer.json says: without a config.json, AutoTokenizer takes LlamaTokenizer, which gives other
        # ids.
        return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs)

    def __call__(
        self,
        text,
        images=None,
        padding=True,
        truncation=None,
        max_length=None,
        return_tensors="pt",
        add_special_tokens=True,
        num_crops=None,
        padding_side=None,
        pad_to_multiple_of=None,
        **kwargs,
    ) -> BatchFeature:
        """
        text: a prompt or a list of prompts, in which the tag `<|image_i|>` takes the prompt's i-th picture.
        images: a picture, a list, or a list for each prompt; a flat list is dealt out to the prompts in turn.
        num_crops: the most tiles a picture may use, by default as the image processor says.
        add_special_tokens: whether a prompt, and the text after each picture, begins with `<s>`. The model was trained
            so; trl's collator passes False, as it expects `<s>` in the chat template, where it is not here.

        Returns `input_ids` and `attention_mask` (prompts, length), padded on the left, as generation needs it,
        unless `padding_side`, here or of the tokenizer, says otherwise; with pictures also the `pixel_values` and
        `image_sizes` of [`Phi3VImageProcessor`], in the order of the tags in the text.

        Control tokens in `text` take effect: pass untrusted text through `escape_control_tokens`.

        In a process forked from one that has used it (a `Pool`, `num_proc`) call `torch.set_num_threads(1)` first, or
        PyTorch hangs; DataLoader workers call it themselves.

        Raises `ValueError` unless the tags of a prompt are `<|image_1|>` ... `<|image_n|>` for n pictures,
        each once, in any order; for `<|image|>` or half a character (a lone surrogate) in the text; where
        `truncation` would cut a prompt with pictures. Raises `TypeError` for a setting that is not one of these.
        """
        named = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
            "add_special_tokens": add_special_tokens,
            "num_crops": num_crops,
            "padding_side": padding_side,
            "pad_to_multiple_of": pad_to_multiple_of,
        }
        common, texts, pictures = (kwargs.pop(f"{kind}_kwargs", None) or {} for kind in ("common", "text", "images"))
        if grouped := {**common, **texts, **pictures}:
            return self(text, images, **{**named, **kwargs, **grouped})
        prompts = [text] if isinstance(text, str) else text
        strings = isinstance(prompts, (list, tuple)) and all(isinstance(prompt, str) for prompt in prompts)
        if not strings or not prompts:
            raise ValueError(
                f"`text` must be a string or a list of strings, at least one, got {type(text).__name__}. It comes "
                "first, then the images."
            )
        if kwargs.pop("videos", None) is not None or kwargs.pop("audio", None) is not None:
            raise ValueError("Phi-3-Vision takes text and images only.")
        if kwargs:
            raise TypeError(f"Unknown settings: {', '.join(sorted(kwargs))}. Known are {', '.join(named)}.")
        rows = self._deal_images(prompts, images)
        images = [image for prompt, row in zip(prompts, rows) for image in self.order_images(prompt, row)]

        data, sizes = {}, iter(())
        if images:
            data = self.image_processor(images, num_crops=num_crops, return_tensors=return_tensors)
            sizes = itertools.starmap(self.image_processor.get_num_image_tokens, data["image_sizes"].tolist())
        settings = {
            "truncation": truncation not in (None, "do_not_truncate") and truncation,
            "max_length": max_length,
            "add_special_tokens": add_special_tokens,
        }
        input_ids = [self._tokenize(prompt, sizes, settings) for prompt in prompts]
        inputs = self.tokenizer.pad(
            {"input_ids": input_ids},
            padding=padding,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            max_length=max_length,
            verbose=not settings["truncation"],  # or it warns that `max_length` does nothing: here it cut the texts
        )
        return BatchFeature({**inputs, **data}, tensor_type=return_tensors)

    def _deal_images(self, prompts: list[str], images) -> list[list]:
        """A list of pictures for each prompt."""
        if isinstance(images, np.ndarray) and images.ndim == 4:  # pictures of one size, stacked
            images = list(images)
        images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
        if any(row is None or isinstance(row, (list, tuple)) for row in images):
            if len(images) != len(prompts):
                raise ValueError(f"Got {len(prompts)} prompts but {len(images)} lists of images.")
            return [row if isinstance(row, (list, tuple)) else [] if row is None else [row] for row in images]
        if len(prompts) == 1:
            return [images]
        num_tags = [len(IMAGE_TAG.findall(prompt)) for prompt in prompts]
        if sum(num_tags) != len(images):
            raise ValueError(f"{len(prompts)} prompts have {sum(num_tags)} image tags for {len(images)} images.")
        rest = iter(images)
        return [[next(rest) for _ in range(num)] for num in num_tags]

    def order_images(self, prompt: str, images: list) -> list:
        """
        The pictures in the order of their tags in `prompt`. Raises `ValueError` where these do not match, or for a text
        that cannot be tokenized.
        """
        if self.image_token in prompt:
            raise ValueError(f"The prompt holds {self.image_token}. Write <|image_1|>, <|image_2|>, ... for pictures.")
        if LONE_SURROGATE.search(prompt):
            raise ValueError(
                "The prompt holds half a character (a lone surrogate): decode the text again, as UTF-8 for example."
            )
        tags = IMAGE_TAG.findall(prompt)
        numbers = [int(tag) if tag.isascii() and len(tag) < 10 else 0 for tag in tags]
        if sorted(numbers) != list(range(1, len(images) + 1)):
            escaped = escape_control_tokens("<|image_") in prompt
            raise ValueError(
                f"The prompt has {len(tags)} image tags {tags[:10]} but there are {len(images)} images. "
                "Write each of <|image_1|>, <|image_2|>, ... once, one for each image."
                + (" A tag in the text of a message is plain text: add a part {'type': 'image'} instead." * escaped)
            )
        return [images[number - 1] for number in numbers]

    def _tokenize(self, prompt: str, sizes, settings: dict) -> list[int]:
        """Token ids of a prompt, in which each tag takes the next of `sizes`, numbers of image tokens."""
        pieces, input_ids, limit = IMAGE_TAG.split(prompt), [], None
        if len(pieces) > 1 and settings["truncation"]:
            limit = settings["max_length"] or self.tokenizer.model_max_length
            settings = {**settings, "truncation": False, "max_length": None}
        # Like the original, tokenize every piece alone: the text after a picture begins with <s> again.
        for i, piece in enumerate(pieces):
            if i % 2:
                input_ids += [self.image_token_id] * next(sizes)
            else:
                input_ids += self.tokenizer(piece, **settings).input_ids
        if limit is not None and len(input_ids) > limit:
            raise ValueError(
                f"A prompt with pictures cannot be truncated from {len(input_ids)} tokens to {limit}: a picture would "
                "be lost in part. Use fewer or smaller pictures (`num_crops`), or a larger `max_length`."
            )
        return input_ids

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):
        """
        As in [`ProcessorMixin`], for messages `{"role", "content"}` with a string as content, or a list of
        `{"type": "image", ...}` and `{"type": "text", "text": ...}` parts, which are joined by line breaks.

        Texts go through `escape_control_tokens`, which leaves `sanitize_control_tokens` nothing to do. Raises
        `ValueError` for another role or type of content, or for `return_assistant_tokens_mask`.
        """
        if kwargs.get("return_assistant_tokens_mask"):
            raise ValueError(
                "`return_assistant_tokens_mask` is not possible: a prompt is tokenized in pieces, around its pictures. "
                "Look for the tokens between `<|assistant|>` and `<|end|>`."
            )
        kwargs.pop("sanitize_control_tokens", None)
        if not isinstance(conversation, (list, tuple)) or len(conversation) == 0:
            raise ValueError("A conversation is a list of messages; pass at least one.")
        if isinstance(conversation[0], (list, tuple)):
            conversation = [[self._escape(message) for message in chat] for chat in conversation]
        else:
            conversation = [self._escape(message) for message in conversation]
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    @staticmethod
    def _escape(message: dict) -> dict:
        """A copy of `message` that cannot yield control tokens."""
        if not isinstance(message, dict):
            raise ValueError(f"A message is a dict with role and content, got {type(message).__name__}.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"The role of a message must be one of {', '.join(ROLES)}, got {role!r}.")
        if isinstance(content, str):
            return {**message, "content": escape_control_tokens(content)}
        parts = []
        for part in content if isinstance(content, (list, tuple)) else [content]:
            part_type = part.get("type") if isinstance(part, dict) else type(part).__name__
            if part_type not in ("image", "image_url", "text"):
                raise ValueError(
                    f"The content of a message is a string, or parts of type image or text, not {part_type!r}."
                )
            if part_type == "image_url" and "image_url" not in part:  # transformers would leave the picture out
                raise ValueError(
                    'A content part of type image_url needs its address as {"type": "image_url", "image_url": {"url": '
                    f"...}}}}, got {part}."
                )
            if part_type == "text":
                if not isinstance(part.get("text"), str):
                    raise ValueError(f"A content part of type text needs its text as a string, got {part}.")
                part = {**part, "text": escape_control_tokens(part["text"])}
            parts.append(part)
        return {**message, "content": parts}


__all__ = ["Phi3VProcessor", "escape_control_tokens"]
