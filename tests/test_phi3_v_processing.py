import copy
import itertools
import shutil

import numpy as np
import pytest
import torch
from phi3_v_data import (
    CHECKPOINT,
    golden_image,
    golden_processor,
    golden_tokenizer,
    load_json,
    noise_image,
    tiny_processor,
)
from transformers import AutoProcessor, AutoTokenizer

from helpers.phi3_v import Phi3VProcessor
from helpers.phi3_v.processing_phi3_v import escape_control_tokens

CONTROL_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|user|>",
]
CONTROL_TOKENS += [f"<|placeholder{i}|>" for i in range(1, 40)] + ["<|image|>"]
CONTROL_IDS = {0, 2} | set(range(1000, 1064))  # <s> begins every piece and is looked at on its own


def control_ids(input_ids):
    return [i for i in input_ids if i in CONTROL_IDS and i != 1044]


@pytest.mark.parametrize("trust_remote_code", [None, True, False])
def test_auto_processor(trust_remote_code):
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=trust_remote_code, num_crops=4)
    assert type(processor) is Phi3VProcessor
    assert processor.image_processor.num_crops == 4
    assert processor.image_token_id == 1044


def test_round_trip(tmp_path):
    processor = golden_processor(num_crops=4)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    prompt, image = "<|user|>\n<|image_1|>\nHi<|end|>\n<|assistant|>\n", golden_image("square_224x224.png")
    expected = processor(prompt, image)
    for key, value in loaded(prompt, image).items():
        assert torch.equal(value, expected[key])


def test_a_checkpoint_in_a_subfolder(tmp_path):
    """The tokenizer comes from there too."""
    golden_processor().save_pretrained(tmp_path / "inner")
    loaded = AutoProcessor.from_pretrained(tmp_path, subfolder="inner")
    assert loaded.tokenizer.get_vocab() == golden_tokenizer().get_vocab()


def test_llama_tokenizer_trap(tmp_path):
    """tokenizer_config.json names LlamaTokenizer, which gives other ids than tokenizer.json."""
    prompt, ids = "<|user|>\nhi", [1, 1010, 355, 260, 950]
    assert AutoTokenizer.from_pretrained(CHECKPOINT)(prompt).input_ids == ids
    folder = shutil.copytree(
        CHECKPOINT, tmp_path / "without_config", ignore=shutil.ignore_patterns("config*", "*.saf*")
    )
    assert AutoProcessor.from_pretrained(folder).tokenizer(prompt).input_ids == ids


def runs(input_ids):
    """Ids, with a run of image tokens written as ("image", length), and only control tokens otherwise."""
    result = []
    for is_image, group in itertools.groupby(input_ids, lambda i: i == 1044):
        group = list(group)
        result += [("image", len(group))] if is_image else [i for i in group if i in CONTROL_IDS | {1}]
    return result


@pytest.mark.parametrize("case", load_json("real_tokenizer_ids.json")["with_images"], ids=lambda case: case["text"])
def test_structure_of_the_real_ids(case):
    """The real tokenizer is not here; its control tokens are those of the golden tokenizer plus 31000."""
    inputs = golden_processor(num_crops=4)(case["text"], [golden_image("square_224x224.png")] * case["n_images"])
    expected = []
    for item in case["ids_rle"]:
        if isinstance(item, list):
            expected.append(("image", item[1]))
        elif item < 3 or item >= 32000:
            expected.append(item if item < 3 else item - 31000)
    assert runs(inputs["input_ids"][0].tolist()) == expected


@pytest.mark.parametrize("case", load_json("real_tokenizer_ids.json")["text_only"], ids=lambda case: case["text"])
def test_structure_of_the_real_text_ids(case):
    inputs = golden_processor()(case["text"])
    expected = [i if i < 3 else i - 31000 for i in case["ids"] if i < 3 or i >= 32000]
    assert runs(inputs["input_ids"][0].tolist()) == expected
    assert torch.equal(inputs["input_ids"][0], torch.tensor(golden_tokenizer()(case["text"]).input_ids))


ERRORS = {row["name"]: row for row in load_json("errors_and_quirks.json")["errors"]}
CALLS = {
    "two_images_one_tag": ("a<|image_1|>b", 2),
    "one_image_two_tags": ("a<|image_1|>b<|image_2|>", 1),
    "first_tag_is_2": ("a<|image_2|>b", 1),
    "tag_0": ("a<|image_0|>b", 1),
    "tags_1_3": ("a<|image_1|>b<|image_3|>", 2),
    "no_tag_one_image": ("hello", 1),
    # Accepted by the original, with a picture lost or an error in the model later:
    "tag_but_images_none": ("a<|image_1|>b", 0),
    "repeated_tag": ("a<|image_1|>b<|image_1|>c", 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_tags_that_do_not_match(name):
    assert name in ERRORS
    text, num_images = CALLS[name]
    images = [noise_image(20, 20)] * num_images or None
    with pytest.raises(ValueError, match=rf"has {text.count('<|image_')} image tags.* {num_images} images"):
        tiny_processor()(text, images)


@pytest.mark.parametrize("num_images", [1, 3])
def test_no_picture_of_a_batch_is_left_over(num_images):
    with pytest.raises(ValueError, match=f"2 prompts have 2 image tags for {num_images} images"):
        tiny_processor()(["<|image_1|>", "<|image_1|>"], [noise_image(20, 20)] * num_images)


@pytest.mark.parametrize("digits", ["１", "१", "²", "9" * 5000, "2" * 12])
def test_strange_digits(digits):
    with pytest.raises(ValueError, match="image"):
        tiny_processor()(f"a<|image_{digits}|>", noise_image(20, 20))


def test_all_combinations_of_tags():
    processor = tiny_processor(1)
    for count in range(5):
        for tags in itertools.product(range(6), repeat=count):
            prompt = " ".join(f"<|image_{tag}|>" for tag in tags)
            for num_images in range(5):
                if sorted(tags) == list(range(1, num_images + 1)):
                    assert processor.order_images(prompt, list("abcd"[:num_images])) == ["abcd"[t - 1] for t in tags]
                else:
                    with pytest.raises(ValueError, match=rf"{count} image tags.* {num_images} images"):
                        processor.order_images(prompt, list("abcd"[:num_images]))


def test_accepted_calls():
    processor, image = tiny_processor(), noise_image(20, 20)
    expected = processor("a<|image_1|>b", [image])
    for text, images in (
        ("a<|image_1|>b", image),  # single_image_not_in_list
        ("a<|image_01|>b", [image]),  # tag_01
        (["a<|image_1|>b"], [image]),  # list_of_texts_with_images: an error in the original
        (["a<|image_1|>b"], [[image]]),
        ("a<|image_1|>b", [[image]]),
    ):
        for key, value in processor(text, images).items():
            assert torch.equal(value, expected[key]), key
    # An empty list of images, an IndexError in the original, is no picture.
    assert set(processor("hello", [])) == {"input_ids", "attention_mask"}


def test_tag_number_selects_the_picture():
    processor = tiny_processor()
    images = [noise_image(100, 100), noise_image(200, 60, seed=1)]
    in_order, reversed_tags = (
        processor("<|image_1|>x<|image_2|>", images),
        processor("<|image_2|>x<|image_1|>", images),
    )
    assert torch.equal(reversed_tags["pixel_values"], in_order["pixel_values"].flip(0))
    assert torch.equal(reversed_tags["image_sizes"], in_order["image_sizes"].flip(0))
    sizes = [size for kind, size in (r for r in runs(in_order["input_ids"][0].tolist()) if isinstance(r, tuple))]
    other = [size for kind, size in (r for r in runs(reversed_tags["input_ids"][0].tolist()) if isinstance(r, tuple))]
    assert sizes == other[::-1]
    assert sizes[0] != sizes[1]


def test_batch():
    processor = tiny_processor()
    images = [noise_image(100, 100), noise_image(200, 60, seed=1), noise_image(50, 90, seed=2)]
    prompts = ["<|image_1|>Hi", "text only", "One <|image_2|> and <|image_1|> two"]
    nested = [[images[0]], [], images[1:]]
    batch = processor(prompts, nested)
    solos = [processor(prompt, row) for prompt, row in zip(prompts, nested)]
    for i, solo in enumerate(solos):
        mask = batch["attention_mask"][i].bool()
        assert torch.equal(batch["input_ids"][i][mask], solo["input_ids"][0])
        assert (batch["input_ids"][i][~mask] == 1000).all()
        assert mask[-1]  # padded on the left
    assert torch.equal(batch["pixel_values"], torch.cat([solos[0]["pixel_values"], solos[2]["pixel_values"]]))
    assert torch.equal(batch["image_sizes"], torch.cat([solos[0]["image_sizes"], solos[2]["image_sizes"]]))
    for key, value in processor(prompts, images).items():  # a flat list
        assert torch.equal(value, batch[key])
    with pytest.raises(ValueError, match="3 prompts but 2 lists"):
        processor(prompts, [[images[0]], images[1:]])
    with pytest.raises(ValueError, match="3 prompts have 3 image tags for 2 images"):
        processor(prompts, images[:2])


def test_refusals():
    processor, image = tiny_processor(), noise_image(20, 20)
    with pytest.raises(ValueError, match=r"holds <\|image\|>"):
        processor("<|image_1|> <|image|>", image)
    with pytest.raises(ValueError, match="truncated"):
        processor("<|image_1|>", image, truncation=True, max_length=10)
    with pytest.raises(ValueError, match=r"string or a list of strings, at least one, got Image\. It comes first"):
        processor(image, "<|image_1|>")
    with pytest.raises(ValueError, match="text and images only"):
        processor("hi", videos=[image])


def test_text_options():
    processor = tiny_processor()
    assert processor("hello there all", truncation=True, max_length=3)["input_ids"].shape == (1, 3)
    assert (
        processor("<|image_1|>", noise_image(90, 90), truncation="do_not_truncate", max_length=10)["input_ids"].shape[1]
        > 10
    )
    assert processor(["hello", "hello there all"])["attention_mask"].tolist()[0][0] == 0
    assert isinstance(processor("hi", return_tensors=None)["input_ids"], list)


@pytest.mark.parametrize("group", [None, "images_kwargs", "text_kwargs", "common_kwargs"])
def test_unknown_settings(group):
    """Otherwise a typo would silently give 16 tiles where 4 were meant."""
    processor, image = tiny_processor(), noise_image(20, 20)
    for unknown in ({"num_crop": 4}, {"image_size": 56}, {"num_img_tokens": 4}, {"padding_sides": "right"}):
        for prompt, images in (("<|image_1|>", image), ("hi", None)):
            with pytest.raises(TypeError, match=rf"{next(iter(unknown))}\. Known are padding, .* num_crops"):
                processor(prompt, images, **({group: unknown} if group else unknown))
    for unknown in ({"num_crop": 4}, {"image_size": 56}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            processor.image_processor(image, **unknown)


def test_special_tokens_can_be_left_out():
    processor = tiny_processor()
    bare = processor("hi", add_special_tokens=False)
    assert torch.equal(bare["input_ids"], processor("hi")["input_ids"][:, 1:])


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "Hi"}], "<|user|>\nHi<|end|>\n<|assistant|>\n"),
        (
            [{"role": "user", "content": [IMAGE, TEXT]}],
            "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n",
        ),
        (
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [IMAGE, IMAGE, TEXT]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
                {"role": "user", "content": [TEXT, IMAGE]},
            ],
            "<|system|>\nBe brief.<|end|>\n<|user|>\n<|image_1|>\n<|image_2|>\nWhat is it?<|end|>\n"
            "<|assistant|>\nA cat.<|end|>\n<|user|>\nWhat is it?\n<|image_3|><|end|>\n<|assistant|>\n",
        ),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}],
            "<|user|>\nHi<|end|>\n<|assistant|>\nYes<|end|>\n",
        ),
    ],
)
def test_chat_template(messages, expected):
    processor = tiny_processor()
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    if all(isinstance(message["content"], str) for message in messages):
        official = golden_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert official == expected


@pytest.mark.parametrize("is_batch", [False, True])
def test_chat_template_gives_model_inputs(is_batch):
    processor = tiny_processor()
    images = [noise_image(100, 100), noise_image(200, 60, seed=1)]
    first = [{"role": "user", "content": [{"type": "image", "image": image} for image in images] + [TEXT]}]
    second = [{"role": "user", "content": "Only text"}]
    chats, prompts, pictures = (first, None, images)
    if is_batch:
        chats, pictures = [first, second], [images, []]
    prompts = processor.apply_chat_template(chats, add_generation_prompt=True)
    expected = processor(prompts, pictures)
    inputs = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert set(inputs) == set(expected)
    for key, value in inputs.items():
        assert torch.equal(value, expected[key])
    # A picture that is announced but not there.
    with pytest.raises(ValueError, match=r"1 image tags.* 0 images"):
        processor.apply_chat_template([{"role": "user", "content": [IMAGE, TEXT]}], tokenize=True)


def test_a_picture_by_its_address(tmp_path):
    """As `image_url`, the form of OpenAI's clients; transformers knows it by its inner key, and would lose others."""
    path = str(tmp_path / "noise.png")
    noise_image(90, 90).save(path)
    parts = {"type": "image", "path": path}, {"type": "image_url", "image_url": {"url": path}}
    chats = [[{"role": "user", "content": [part, TEXT]}] for part in parts]
    one, other = (tiny_processor().apply_chat_template(chat, tokenize=True, return_dict=True) for chat in chats)
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(ValueError, match="needs its address"):
        tiny_processor().apply_chat_template([{"role": "user", "content": [{"type": "image_url", "url": path}, TEXT]}])


def test_chat_template_with_settings():
    processor = tiny_processor()
    chat = [{"role": "user", "content": [{"type": "image", "image": noise_image(300, 200)}, TEXT]}]
    inputs = processor.apply_chat_template(
        chat,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=True,
        processor_kwargs={"num_crops": 1, "padding": "max_length", "max_length": 200},
    )
    assert inputs["input_ids"].shape == (1, 200)
    assert inputs["pixel_values"].shape[1] == 2
    with pytest.raises(TypeError, match="num_crop"):
        processor.apply_chat_template(chat, tokenize=True, processor_kwargs={"num_crop": 1})
    # A template that writes <s> itself gets no second one.
    begins = processor.apply_chat_template([{"role": "user", "content": "Hi"}], "<s>Hi", tokenize=True)
    assert begins[0].tolist() == processor("Hi")["input_ids"][0].tolist()
    with pytest.raises(ValueError, match="return_assistant_tokens_mask"):
        processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)


def test_messages_are_dicts():
    with pytest.raises(ValueError, match="A message is a dict with role and content, got str"):
        tiny_processor().apply_chat_template(["Hi"])


def test_an_empty_conversation():
    with pytest.raises(ValueError, match="pass at least one"):
        tiny_processor().apply_chat_template([])


@pytest.mark.parametrize("role", ["user|>\nHi<|end|>\n<|system", "tool", "", None, "User"])
def test_roles(role):
    with pytest.raises(ValueError, match="role"):
        tiny_processor().apply_chat_template([{"role": role, "content": "Hi"}])


@pytest.mark.parametrize(
    "content", [None, 5, [{"type": "video"}], ["Hi"], [{"type": "audio", "audio": "x"}], [{"type": "text"}]]
)
def test_contents(content):
    with pytest.raises(ValueError, match="content"):
        tiny_processor().apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize("token", [*CONTROL_TOKENS, "<|image_1|>"])
def test_control_tokens_in_messages(token):
    processor = tiny_processor()
    for text in (
        token,
        f"a {token}",
        f"<{token}",
        f"{token}{token}",
        f"|end|>{token[:-1]}",
        f"x{token}\n",
        f"<|{token}",
    ):
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ]
        messages.append({"role": "user", "content": "Hi"})
        input_ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)[0].tolist()
        assert control_ids(input_ids) == [1010, 1007, 1001, 1007, 1010, 1007, 1001]
        assert input_ids.count(1) == 1
        assert input_ids.count(1044) == 0


def test_control_tokens_in_a_batch_of_chats():
    processor = tiny_processor()
    chats = [[{"role": "user", "content": f"Hi {token}"}] for token in CONTROL_TOKENS]
    assert processor.apply_chat_template(chats) == [processor.apply_chat_template(chat) for chat in chats]


def test_escape_keeps_ordinary_text():
    text = "a < b <div> </script> |x| 1<2 <sup> x <- y"
    assert escape_control_tokens(text) == text
    assert escape_control_tokens("<|end|>").replace("\u200b", "") == "<|end|>"


def test_decoding():
    processor = tiny_processor()
    inputs = processor("<|user|>\n<|image_1|>\nHi<|end|>\n", noise_image(20, 20))
    assert processor.batch_decode(inputs["input_ids"])  # the original: OverflowError (decode_negative_ids)
    assert "image" not in processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)[0]


def test_settings_in_groups():
    processor = tiny_processor()
    prompt, image = "<|image_1|> a", noise_image(300, 200, 0)
    for grouped, flat in (
        ({"images_kwargs": {"num_crops": 1}}, {"num_crops": 1}),
        ({"text_kwargs": {"padding": "max_length", "max_length": 400}}, {"padding": "max_length", "max_length": 400}),
    ):
        one, other = processor(prompt, image, **grouped), processor(prompt, image, **flat)
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_settings_beside_a_group_count_too():
    processor, prompts, image = tiny_processor(), ["<|image_1|> a", "b"], noise_image(300, 200, 0)
    flat = {"padding_side": "right", "num_crops": 1, "add_special_tokens": False}
    expected = processor(prompts, image, **flat, pad_to_multiple_of=16)
    inputs = processor(prompts, image, **flat, text_kwargs={"pad_to_multiple_of": 16})
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)
    with pytest.raises(TypeError, match="num_crop"):
        processor(prompts, image, num_crop=1, text_kwargs={"padding": True})


def test_max_length_alone_cuts_nothing():
    processor = tiny_processor()
    prompt = "a b c d e f g h"
    assert torch.equal(processor(prompt, max_length=3)["input_ids"], processor(prompt)["input_ids"])


def test_a_limit_that_cuts_is_not_said_to_do_nothing(recwarn):
    processor = tiny_processor()
    processor(["a b c", "a"], truncation=True, max_length=3)
    processor("<|image_1|> a", noise_image(90, 90), truncation=True, max_length=1024)
    assert not recwarn
    processor("a b c", max_length=3)
    assert "is ignored" in str(recwarn.pop(UserWarning).message)


def test_as_trainers_call_it():
    """Padded on the right, to a multiple, and with a limit that cuts nothing; a limit that would is refused."""
    processor, image = tiny_processor(num_crops=1), noise_image(90, 90)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    chats = [[{"role": "user", "content": content}], [{"role": "user", "content": "Hi"}]]
    settings = {"padding": True, "padding_side": "right", "pad_to_multiple_of": 16, "truncation": True}
    settings |= {"max_length": 1024, "add_special_tokens": False}
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chats, **arguments, processor_kwargs=settings)
    assert inputs["input_ids"].shape[1] % 16 == 0
    assert inputs["attention_mask"][1].tolist() == sorted(inputs["attention_mask"][1].tolist(), reverse=True)
    with pytest.raises(ValueError, match=r"cannot be truncated from \d+ tokens to 20"):
        processor("<|image_1|> a", image, truncation=True, max_length=20)


def test_the_padding_side_of_the_tokenizer():
    """Training scripts set it there."""
    processor = tiny_processor()
    prompts, sides = ["a b c d", "a"], {"left": [0, 0, 0, 1, 1], "right": [1, 1, 0, 0, 0]}
    assert processor(prompts)["attention_mask"][1].tolist() == sides["left"]
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    processor.tokenizer.padding_side = "right"
    assert processor(prompts)["attention_mask"][1].tolist() == sides["right"]
    assert processor(prompts, padding_side="left")["attention_mask"][1].tolist() == sides["left"]


def test_rows_without_pictures_may_be_none_or_bare():
    processor, image = tiny_processor(num_crops=1), noise_image(90, 90)
    prompts = ["<|image_1|>a", "b", "<|image_1|>c"]
    inputs = processor(prompts, [[image], None, image])
    expected = processor(prompts, [[image], [], [image]])
    assert inputs["input_ids"].equal(expected["input_ids"])
    inputs = processor(prompts, [image, None, image])
    assert inputs["input_ids"].equal(expected["input_ids"])
    assert "pixel_values" not in processor(["a", "b"], [None, None])
    with pytest.raises(ValueError, match="at least one"):
        processor([])


def test_a_tag_in_a_message_says_what_to_do():
    processor = tiny_processor()
    text = processor.apply_chat_template([{"role": "user", "content": "<|image_1|> What?"}], add_generation_prompt=True)
    with pytest.raises(ValueError, match="is plain text: add a part"):
        processor(text, noise_image(20, 20))


def test_other_keys_reach_a_custom_template():
    message = {"role": "user", "content": "Hi", "name": "Bob"}
    assert tiny_processor().apply_chat_template([message], chat_template="{{ messages[0].name }}") == "Bob"
    with pytest.raises(ValueError, match="list of messages"):
        tiny_processor().apply_chat_template(message)


def test_stacked_pictures_are_a_list_of_them():
    processor = tiny_processor()
    pictures = np.zeros((2, 60, 90, 3), dtype=np.uint8)
    prompts = ["<|image_1|> a", "<|image_1|> b"]
    stacked, listed = processor(prompts, pictures), processor(prompts, list(pictures))
    assert all(torch.equal(stacked[name], listed[name]) for name in listed)


def test_half_a_character():
    with pytest.raises(ValueError, match="half a character"):
        tiny_processor()("a\ud800b")


def test_limits():
    processor, image = tiny_processor(num_crops=1), noise_image(9, 9)
    length = processor("<|image_1|> a", image)["input_ids"].shape[1]
    assert processor("<|image_1|> a", image, truncation=True, max_length=length)["input_ids"].shape[1] == length
    with pytest.raises(ValueError, match="to 16384"):
        processor("<|image_1|> " + "a " * 16384, image, truncation=True)
    with pytest.raises(ValueError, match="at least 1"):
        processor("<|image_1|>", image, num_crops=0)
    with pytest.raises(ValueError, match="0 image tags"):
        processor("<|IMAGE_1|>", image)
