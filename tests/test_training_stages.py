"""training/pretrain_vision.py and training/train.py: a few steps of both stages on the smallest amount of data."""

import json
from pathlib import Path

import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')

import torch
from training_data import small_model

from helpers import POCKET, load_model_and_processor
from training import pretrain_vision, recipe, train
from training.loop import Run, inner_matrices, optimizers


def test_stage_1_learns():
    torch.manual_seed(0)
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**{**recipe.VISION, "num_hidden_layers": 1}))
    run_optimizers = optimizers(reader, lambda name: 1e-3)
    batch = pretrain_vision.collate([pretrain_vision.picture("train", 0)])
    losses = []
    for _ in range(5):
        loss, _ = pretrain_vision.loss_and_accuracy(reader, batch, torch.device("cpu"))
        loss.backward()
        for optimizer in run_optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_tower_is_frozen_first_and_the_rate_rises_and_falls(tmp_path, monkeypatch):
    frozen, rates, update = [], [], Run.update

    def watched(run, loss, **measures):
        frozen.append(not any(p.requires_grad for p in run.model["model"].vision_tower.parameters()))
        update(run, loss, **measures)
        rates.append(run.optimizers[1].param_groups[0]["lr"])

    monkeypatch.setattr(Run, "update", watched)
    options = "--pictures 4 --batch 1 --workers 0 --kinds notes --frozen 0.5 --num-crops 1 4".split()
    paths = ["--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "checkpoint")]
    monkeypatch.setattr("sys.argv", ["train", *options, *paths])
    train.main()
    assert frozen == [True, True, False, False]
    assert rates[0] < 0.05 * rates[1]
    assert rates[1] > rates[2] > rates[3]
    log = json.loads((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8"))
    assert {"heldout_loss_notes", "heldout_loss_notes_1"} <= set(log)


def test_a_run_begins_with_the_given_weights_and_learns_from_all_losses(tmp_path, monkeypatch):
    losses, parts = [], [torch.tensor(part) for part in (1.0, 10.0, 100.0)]
    monkeypatch.setattr(Run, "update", lambda run, loss, **measures: losses.append(loss.item()))
    monkeypatch.setattr(train, "loss_and_measures", lambda *args: (*parts, {}))
    expected = train.weights_of(POCKET)
    tower = {name: torch.ones_like(weight) for name, weight in expected.items() if "vision_model" in name}
    stage_1 = {f"vision_tower.{name.split('vision_model.')[1]}": weight for name, weight in tower.items()}
    torch.save({"model": stage_1}, tmp_path / "state.pt")
    options = "--pictures 2 --batch 1 --workers 0 --kinds notes --read 0.5 --look 0.25".split()
    paths = ["--from", str(POCKET), "--vision", str(tmp_path / "state.pt")]
    paths += ["--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "checkpoint")]
    monkeypatch.setattr("sys.argv", ["train", *options, *paths])
    train.main()
    assert losses == [1 + 0.5 * 10 + 0.25 * 100] * 2
    exported = train.weights_of(tmp_path / "checkpoint")
    assert all(torch.equal(exported[name], weight) for name, weight in {**expected, **tower}.items())


def test_what_learns_at_which_rate():
    model = small_model(train.build_processor())
    assert train.part_of("reader.head.weight") == "reader"
    parts = {name: train.part_of(f"model.{name}") for name, _ in model.named_parameters()}
    tower = {name for name, part in parts.items() if part == "tower"}
    assert tower == {name for name in parts if "img_processor" in name}
    assert 0 < len(tower) < len(parts)
    ends = {name for name, p in model.named_parameters() if p.ndim == 2} - set(inner_matrices(model))
    assert {name.split(".")[-2] for name in ends} == {"embed_tokens", "lm_head", "position_embedding"}


def test_a_further_run_draws_new_pictures(monkeypatch):
    monkeypatch.setattr(train, "draw", lambda *picture: picture)
    drawing = train.Drawing(("cover", "table"), 2, 7)
    assert [drawing("train", i) for i in range(4)] == [
        ("cover", "train", 7),
        ("cover", "train", 8),
        ("table", "train", 9),
        ("table", "train", 10),
    ]


def test_the_tower_of_stage_1_is_taken_over(tmp_path):
    model = small_model(train.build_processor())
    ones = {f"vision_tower.{name}": torch.ones_like(p) for name, p in model.vision_tower.state_dict().items()}
    torch.save({"model": ones | {"head.weight": torch.ones(1)}}, tmp_path / "state.pt")
    train.with_tower(model, tmp_path / "state.pt")
    assert all((p == 1).all() for p in model.vision_tower.parameters())


def test_export_can_be_loaded_and_stage_1_fits_the_tower(tmp_path):
    processor = train.build_processor()
    model = train.Phi3VForCausalLM(train.build_config(processor))
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**recipe.VISION))
    tower = {k: v for k, v in reader.vision_tower.state_dict().items() if "post_layernorm" not in k}
    assert set(tower) == set(model.vision_tower.state_dict())
    train.export(model, processor, tmp_path)
    loaded, _ = load_model_and_processor(tmp_path)
    assert all(torch.equal(a.float(), b) for a, b in zip(model.parameters(), loaded.parameters()))
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "phi3_v"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--from", "no/such/folder"], "there is no folder"),
        (["--from", "tests/golden/checkpoint"], "has other words"),
        (["--times", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_begun(monkeypatch, capsys, options, problem):
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    monkeypatch.setattr("sys.argv", ["train", *options])
    with pytest.raises(SystemExit):
        train.main()
    assert problem in capsys.readouterr().err
