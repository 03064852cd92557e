"""Stage 2, speak: projector and decoder learn to answer, first behind the frozen tower, then all together.

    python -m training.train --pictures 60000 --vision runs/vision/state.pt

At the end it writes a checkpoint in the official layout. The tower comes from stage 1 (`pretrain_vision.py`).
"""

import argparse
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from helpers.checkpoints import READ, SUMS
from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from helpers.prompts import format_prompt

from . import reading, recipe, tokenizer
from .grow import grown
from .looking import Looking, looks_of
from .loop import (
    RANK,
    WORLD,
    Run,
    compile_layers,
    fastest_attention,
    has_bfloat16,
    mixed_precision,
    optimizers,
    repeated,
    start,
    stream_of_batches,
)
from .pictures import KINDS, draw
from .pictures.sample import Sample
from .reading import FeatureReader, lessons

#: Kinds of pictures in the order of the steps, over and over: a batch of one kind needs less padding than a mixed one.
MIX = (
    "cover", "table", "chart", "notes", "scene", "page", "cover", "pair", "table", "chart", "notes", "cover", "page",
    "several", "chart", "table", "notes", "pair", "cover", "chart", "scene", "mismatch", "table", "cover",
)  # fmt: skip


def build_processor() -> Phi3VProcessor:
    """The processor of the bundled checkpoint."""
    return Phi3VProcessor(Phi3VImageProcessor(recipe.NUM_CROPS, recipe.TILE), tokenizer.build())


def build_config(processor: Phi3VProcessor) -> Phi3VConfig:
    """The official config's keys with the sizes of `recipe`."""
    # The features come out of the last layer but one: count one layer more than was trained. It is never built.
    vision = {**recipe.VISION, "num_hidden_layers": recipe.VISION["num_hidden_layers"] + 1}
    return Phi3VConfig(
        **recipe.DECODER,
        vocab_size=tokenizer.vocab_size(processor.tokenizer),
        rope_scaling=recipe.rope_scaling(),
        bos_token_id=1,
        eos_token_id=2,
        img_processor={
            "name": "clip_vision_model",
            "model_name": "phi-3-vision-pocket",
            "image_dim_out": vision["hidden_size"],
            "num_img_tokens": processor.image_processor.num_img_tokens,
            "vision_config": vision,
        },
        embd_layer={
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
    )


def weights_of(checkpoint: str, tower: bool = True) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, with or without those of its vision tower."""
    weights = Phi3VForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    return {name: weight for name, weight in weights.items() if tower or "img_processor" not in name}


def with_tower(model: Phi3VForCausalLM, state: str) -> Phi3VForCausalLM:
    """The model with the vision tower that stage 1 left in `state`."""
    prefix, weights = "vision_tower.", torch.load(state, map_location="cpu", weights_only=True)["model"]
    tower = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    model.vision_tower.load_state_dict({k: v for k, v in tower.items() if "post_layernorm" not in k})
    return model


def conversation(sample: Sample) -> str:
    """All turns of a sample in the model's markup."""
    *history, (question, answer) = sample.turns
    return format_prompt(question, len(sample.images), history=history) + f"{answer}<|end|><|endoftext|>"


class Collate:
    """Turns samples into model inputs with `labels`: what the assistant says and the tokens that end it; -100
    elsewhere. `lessons` adds those in reading, for the tiles of the pictures, and in looking, for the tokens of the
    answers. `dtype` is that of `pixel_values`; for each batch one of `num_crops` is chosen at random."""

    def __init__(
        self,
        processor: Phi3VProcessor,
        lessons: bool = False,
        dtype: torch.dtype = torch.float32,
        num_crops: Sequence[int] = (recipe.NUM_CROPS,),
    ):
        self.processor, self.lessons, self.dtype, self.num_crops = processor, lessons, dtype, num_crops
        names = ["<|assistant|>", "<|end|>", "<|endoftext|>", "<|image|>"]
        self.assistant, self.end, self.end_of_text, self.image = processor.tokenizer.convert_tokens_to_ids(names)

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        texts, images = [conversation(sample) for sample in samples], [sample.images for sample in samples]
        num_crops = self.num_crops[torch.randint(len(self.num_crops), ())]
        inputs = dict(self.processor(texts, images, padding_side="right", num_crops=num_crops))
        # The padding is on the right, where no other position looks, so that no mask is needed.
        del inputs["attention_mask"]
        inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
        for sample, ids, labels in zip(samples, inputs["input_ids"].tolist(), inputs["labels"], strict=True):
            inside, last = False, None
            for i, token in enumerate(ids):
                if inside or (last, token) == (self.end, self.end_of_text):
                    labels[i] = token
                inside, last = token == self.assistant or (inside and token != self.end), token
            if sample.told:
                begin = ids.index(self.assistant) + 1
                labels[begin : begin + len(self.processor.tokenizer.tokenize(sample.told))] = -100
        if self.lessons and "pixel_values" in inputs:
            # In the order of the pictures in the text, which is that of the samples' lists.
            pairs = [(image.size, marks) for s in samples for image, marks in zip(s.images, s.characters, strict=True)]
            parts = zip(*(lessons(*pair, num_crops) for pair in pairs), strict=True)
            inputs["classes"], inputs["boxes"] = (torch.cat(part) for part in parts)
            rows = enumerate(zip(samples, inputs["input_ids"].tolist(), strict=True))
            looks = [(row, *look) for row, (sample, ids) in rows for look in self.looks(sample, ids, num_crops)]
            inputs["looks"] = torch.tensor(looks, dtype=torch.int64).reshape(-1, 3)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return inputs

    def looks(self, sample: Sample, ids: list[int], num_crops: int) -> list[tuple[int, int]]:
        """Lessons in looking for one row of the batch: pairs (position that looks, position to look at)."""
        if not sample.images:
            return []
        begin, first = ids.index(self.assistant) + 1, ids.index(self.image)
        pieces = self.processor.tokenizer.convert_ids_to_tokens(ids[begin : ids.index(self.end, begin)])
        # The answer begins without the space that its first token has.
        pieces = [piece.replace("▁", " ").replace("<0x0A>", "\n") for piece in pieces]
        looks = looks_of(sample, [pieces[0].removeprefix(" "), *pieces[1:]], num_crops)
        # A token is predicted at the position before it.
        return [(begin + token - 1, first + feature) for token, feature in looks]


def part_of(parameter: str) -> str:
    """The part of the trained modules that a parameter belongs to."""
    return "reader" if parameter.startswith("reader.") else "tower" if "vision_model" in parameter else "decoder"


class Drawing:
    """Draws sample number `index` of the training mix, in which every `step` pictures in a row are of one kind; `first`
    is the number of its first picture."""

    def __init__(self, kinds: tuple[str, ...], step: int, first: int = 0):
        self.kinds, self.step, self.first = kinds, step, first

    def __call__(self, split: str, index: int) -> Sample:
        return draw(self.kinds[index // self.step % len(self.kinds)], split, self.first + index)


def loss_and_measures(model, batch, device, reader: FeatureReader | None = None, looking: Looking | None = None):
    """Cross entropy of the answers' tokens, the losses of the lessons in reading and looking (0 without them), and as
    measures the shares of answers that are right as a `whole` when given what came before, of parts of patches that are
    `read` correctly, and of tokens that `look` at the right place.

    `input_ids` and `labels` of a batch are int64 (rows, length). A token is predicted at the position before it, hence
    `[:, 1:]` and `[:, :-1]`; logits are computed only where there is a label: (answer tokens, vocabulary)."""
    batch = {name: part.to(device, non_blocking=True) for name, part in batch.items()}
    labels, looks = batch.pop("labels")[:, 1:], batch.pop("looks", ())
    tile_lessons = [batch.pop(name) for name in ("classes", "boxes") if name in batch]
    with mixed_precision(device):
        hidden_states = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden_states[labels != -100]).float()
        predicted = reader(model.model.vision_embed_tokens.img_projection) if reader and tile_lessons else None
        looked = looking.loss_and_accuracy(looks) if looking and len(looks) else None
    targets = labels[labels != -100]
    right = torch.ones_like(labels, dtype=torch.bool)
    right[labels != -100] = logits.argmax(-1) == targets
    measures, read, look = {"whole": right.all(1).float().mean().item()}, torch.zeros(()), torch.zeros(())
    if predicted:
        read, measures["read"] = reading.loss_and_accuracy(predicted, reader.tiles, *tile_lessons)
    if looked:
        look, measures["look"] = looked
    return F.cross_entropy(logits, targets), read, look, measures


def export(model: Phi3VForCausalLM, processor: Phi3VProcessor, folder: Path):
    """Writes the official layout: bfloat16 safetensors, config, tokenizer, preprocessor, generation config, sums."""
    for old in folder.glob("model*.safetensors*"):  # another number of shards would leave some behind
        old.unlink()
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="16MB")
    processor.save_pretrained(folder)
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.suffix in READ
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, help="how many to learn from: 60,000, or what --minutes allow")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many minutes; export not counted")
    parser.add_argument("--first", type=int, default=0, help="first picture's number; a further run needs new ones")
    parser.add_argument("--batch", type=int, default=8, help="pictures per step and process")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--frozen", type=float, default=0.6, help="share of the run before the tower learns too")
    parser.add_argument("--read", type=float, default=0.5, help="weight of the reading lessons beside the answers")
    parser.add_argument("--look", type=float, default=0.1, help="weight of the lessons in looking beside the answers")
    parser.add_argument("--kinds", nargs="+", default=MIX, choices=KINDS, help="kinds, one for each step, in turn")
    parser.add_argument(
        "--num-crops",
        nargs="+",
        type=int,
        default=[recipe.NUM_CROPS],
        help="most tiles per picture; of several numbers one is drawn for each batch",
    )
    parser.add_argument("--times", type=int, default=1, help="how often each picture is learned from, some steps apart")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw, for each training process")
    parser.add_argument("--compile", action="store_true", help="compile the layers: faster, needs a C++ compiler")
    parser.add_argument("--vision", help="state.pt of stage 1: the vision tower to begin with")
    parser.add_argument(
        "--from",
        dest="start",
        help="checkpoint to begin with, as large or smaller; with --vision all of it but the tower",
    )
    parser.add_argument("--out", default="runs/train", help="folder of the state and the log; resumed if there")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/checkpoint"), help="where the result goes")
    args = parser.parse_args()
    if min(args.batch, args.times) < 1 or min(args.workers, args.first) < 0:
        parser.error("--batch and --times must be at least 1, --workers and --first at least 0")
    if args.start and not Path(args.start).is_dir():
        parser.error(f"--from: there is no folder {args.start}")
    if args.start and AutoTokenizer.from_pretrained(args.start).get_vocab() != build_processor().tokenizer.get_vocab():
        parser.error(f"--from: {args.start} has other words than training/tokenizer.py; train from the beginning")
    return args


def main():
    args = arguments()
    device = start()
    processor = build_processor()
    model = Phi3VForCausalLM(build_config(processor)).to(device)
    model.set_attn_implementation(fastest_attention(device))
    if args.start:
        model.load_state_dict(grown(weights_of(args.start, tower=not args.vision), model.state_dict()), strict=False)
    if args.vision:
        model = with_tower(model, args.vision)
    reader = FeatureReader(model.model.vision_embed_tokens).to(device)
    looking = Looking(model)
    if args.compile:
        compile_layers((*model.model.layers, *model.vision_tower.encoder.layers))
    teachers = reader if args.read else None, looking if args.look else None
    learning = nn.ModuleDict({"model": model, "reader": reader})
    # The reading head begins anew each time and should be good before the tower begins to learn from it.
    rate = {"reader": 8 * args.lr, "tower": args.lr / 2, "decoder": args.lr}
    steps = optimizers(learning, lambda name: rate[part_of(name)])
    pictures = args.pictures
    if pictures is None:
        pictures = 60_000 if args.minutes == math.inf else math.inf
    run = Run(args.out, learning, steps, pictures, args.minutes)
    # Pixels for a computation in bfloat16 are handed over in it: half as much to move.
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    collate = partial(Collate, processor, args.read + args.look > 0, dtype)
    drawing = Drawing(args.kinds, args.batch * WORLD, args.first)
    held_out = {}
    kinds = sorted(set(args.kinds)) if RANK == 0 else []  # only the first process reports
    for kind, num_crops in itertools.product(kinds, sorted(set(args.num_crops))):
        name = kind if num_crops == recipe.NUM_CROPS else f"{kind}_{num_crops}"
        held_out[name] = collate([num_crops])([draw(kind, "heldout", i) for i in range(16)])
    drawn = stream_of_batches(drawing, collate(args.num_crops), args.batch, args.workers, run.seen // args.times)
    batches = repeated(drawn, args.times)

    def evaluate() -> dict[str, float]:
        scores = {}
        for kind, batch in held_out.items():
            loss, _, _, measures = loss_and_measures(model, batch, device, *teachers)
            measures = {f"heldout_{name}_{kind}": value for name, value in measures.items()}
            scores |= {f"heldout_loss_{kind}": loss.item()} | measures
        return scores

    for batch in run.steps(batches, args.batch, evaluate):
        model.vision_tower.requires_grad_(run.done >= args.frozen)
        loss, read, look, measures = loss_and_measures(model, batch, device, *teachers)
        run.update(loss + args.read * read + args.look * look, **measures)
    if RANK == 0:
        export(model, processor, args.checkpoint)
        print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "hours": run.seconds / 3600}))


if __name__ == "__main__":
    main()
