"""training/: the drawn pictures, the tokenizer, and a few steps of both stages on the smallest amount of data."""

import json

import numpy as np
import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')
pytest.importorskip("faker", reason='needs `pip install -e ".[training]"`')

import torch

from helpers import format_prompt, load_model_and_processor
from training import pictures, pretrain_vision, recipe, tokenizer, train
from training.loop import Run, optimizers
from training.pictures import fonts, words
from training.pictures.sample import CHARACTERS


@pytest.mark.parametrize("kind", pictures.KINDS)
@pytest.mark.parametrize("split", pictures.SPLITS)
def test_a_picture_is_the_same_every_time(kind, split):
    first, again = (pictures.draw(kind, split, 3) for _ in range(2))
    assert first.turns == again.turns
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(again.images[0]))
    assert first.turns != pictures.draw(kind, split, 4).turns


def test_held_out_words_and_fonts_are_never_trained_on():
    assert not set(fonts.TRAIN) & set(fonts.HELD_OUT)
    assert len(fonts.TRAIN) >= 20
    seen = {
        split: {
            word.lower()
            for i in range(150)
            for word in pictures.draw("cover", split, i).truth["title"].split()
            if len(word) > 4 and word.isalpha()
        }
        for split in ("train", "heldout")
    }
    assert len(seen["train"]) > 50
    assert len(seen["heldout"]) > 50
    assert not seen["train"] & seen["heldout"]
    assert all(words.held_out(word) for word in seen["heldout"])


def test_answers_state_what_the_cover_says():
    for i in range(20):
        sample = pictures.draw("cover", "heldout", i)
        _, answer = sample.turns[0]
        assert (
            answer == f'The title of the book is "{sample.truth["title"]}" and the author is {sample.truth["author"]}.'
        )


def test_recorded_characters_lie_where_the_ink_is():
    sample = pictures.draw("cover", "train", 0)
    image = np.asarray(sample.images[0]).astype(int)
    letters = sample.truth["title"].replace(" ", "") + sample.truth["author"].replace(" ", "")
    drawn = "".join(CHARACTERS[int(index)] for index in sample.characters[0][:, 0])
    assert sorted(drawn) == sorted(letters)
    for index, left, top, right, bottom in sample.characters[0]:
        part = image[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        assert np.ptp(part) > 40, CHARACTERS[int(index)]


def test_tiles_and_targets_name_the_character_on_each_half_patch():
    image = pictures.draw("page", "train", 0).images[0].resize((224, 112))
    # One character over the left half of the second tile, one over a single half patch of the first.
    characters = np.array([[5, 112, 0, 168, 112], [7, 7, 14, 14, 28]], dtype=np.float32)
    tiles, classes, boxes = pretrain_vision.tiles_and_targets(image, characters, 1, 2)
    assert tiles.shape == (2, 112, 112, 3)
    assert classes.shape == (2, 64, 2)
    second = classes[1].reshape(8, 16)
    assert (second[:, :8] == 5).all()
    assert (second[:, 8:] == pretrain_vision.NONE).all()
    assert (classes[0] == 7).sum() == 1
    assert classes[0].reshape(8, 16)[1, 1] == 7
    assert np.allclose(boxes[0].reshape(8, 16, 3)[1, 1], [0, 0, 0.5])


def test_tokenizer_follows_the_official_layout():
    tok = tokenizer.build()
    base = tok.convert_tokens_to_ids("<|endoftext|>")
    expected = {"<|assistant|>": 1, "<|system|>": 6, "<|end|>": 7, "<|user|>": 10, "<|image|>": 44}
    assert {token: tok.convert_tokens_to_ids(token) - base for token in expected} == expected
    assert tokenizer.vocab_size(tok) == base + 64
    assert tok.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]


@pytest.mark.parametrize("text", ['The title of the book is "ALONE"', "Thunder titan", "a\nb", "héllo ✓ 漢", "tit"])
def test_tokenizer_gives_every_text_back(text):
    tok = tokenizer.build()
    assert tok.decode(tok(text).input_ids, skip_special_tokens=True) == text


def test_unknown_words_are_spelled():
    tok = tokenizer.build()
    assert tok.convert_ids_to_tokens(tok('"Morgan"').input_ids)[2:] == ['"', *"Morgan", '"']


def test_labels_are_what_the_assistant_says():
    processor = train.build_processor()
    sample = pictures.draw("cover", "heldout", 0)
    sample.turns = [("First?", "One."), ("Second?", "Two.")]
    inputs = train.Collate(processor)([sample])
    labels = inputs["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == "One.<|end|> Two.<|end|>"
    assert torch.equal(labels[labels != -100], inputs["input_ids"][0][labels != -100])


def test_training_prompts_are_those_of_generate():
    processor = train.build_processor()
    sample = pictures.draw("cover", "heldout", 0)
    question, _ = sample.turns[0]
    asked = processor(format_prompt(question), sample.images)["input_ids"][0]
    trained = train.Collate(processor)([sample])["input_ids"][0]
    assert torch.equal(asked, trained[: len(asked)])


def tiny_run(folder, total):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    return Run(str(folder), model, optimizers(model, lambda name: 0.01), total)


def steps(run, count):
    for step, batch in enumerate(run.steps(iter(torch.arange(40.0).reshape(10, 4)), 1)):
        if step == count:
            break
        run.update(run.model(batch).square().mean())


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    run = tiny_run(tmp_path, 8)
    steps(run, 4)
    run.save()
    resumed = tiny_run(tmp_path, 8)
    assert resumed.seen == 4
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    run.report(score=0.5)
    assert json.loads((tmp_path / "log.jsonl").read_text())["score"] == 0.5


def test_stage_1_learns():
    torch.manual_seed(0)
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**{**recipe.VISION, "num_hidden_layers": 1}))
    run_optimizers = optimizers(reader, lambda name: 1e-3)
    tiles = pretrain_vision.tiles_and_targets(np_page(), np.array([[3, 0, 0, 112, 112]], dtype=np.float32), 1, 1)
    batch = pretrain_vision.collate([tiles])
    losses = []
    for _ in range(5):
        loss, _ = pretrain_vision.loss_and_accuracy(reader, batch, torch.device("cpu"))
        loss.backward()
        for optimizer in run_optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def np_page():
    return pictures.draw("page", "train", 0).images[0].resize((112, 112))


def test_export_can_be_loaded_and_stage_1_fits_the_tower(tmp_path):
    processor = train.build_processor()
    model = train.Phi3VForCausalLM(train.build_config(processor))
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**recipe.VISION))
    tower = {k: v for k, v in reader.vision_tower.state_dict().items() if "post_layernorm" not in k}
    assert set(tower) == set(model.vision_tower.state_dict())
    train.export(model, processor, tmp_path)
    loaded, _ = load_model_and_processor(tmp_path)
    assert all(torch.equal(a.float(), b) for a, b in zip(model.parameters(), loaded.parameters()))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "phi3_v"
