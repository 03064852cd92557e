"""training/grow.py and training/soup.py: checkpoints made of others."""

import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')

import torch
from phi3_v_data import tiny_config, tiny_model

from helpers import POCKET
from training import grow, pretrain_vision, recipe, soup, train


def test_positions_of_smaller_tiles_are_repeated():
    small = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**{**recipe.VISION, "image_size": 112}))
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**recipe.VISION))
    name = "vision_tower.embeddings.position_embedding.weight"
    fresh = reader.state_dict()[name].clone()
    state = small.state_dict()
    state[name][1] += 1
    reader.load_state_dict(pretrain_vision.with_larger_tiles(state))
    grown = (reader.state_dict()[name] - fresh)[1:].reshape(16, 16, -1).mean(-1)
    assert torch.allclose(grown[::8, ::8], torch.ones(2, 2), atol=1e-5)
    assert torch.allclose(grown.sum(), torch.tensor(4.0), atol=1e-3)


def test_a_wider_decoder_begins_with_the_narrow_one():
    narrow, wide = tiny_model(), tiny_model(hidden_size=96, intermediate_size=160, num_attention_heads=8)
    weights = grow.grown(narrow.state_dict(), wide.state_dict())
    wide.load_state_dict(weights)
    old, new = narrow.state_dict(), wide.state_dict()
    for name, blocks in (("qkv_proj", 3), ("gate_up_proj", 2), ("o_proj", 1), ("down_proj", 1)):
        (key,) = (key for key in old if key.startswith("model.layers.0") and name in key)
        for before, after in zip(old[key].chunk(blocks), new[key].chunk(blocks)):
            rows, columns = before.shape
            assert torch.equal(after[:rows, :columns], before)
            assert not after[:rows, columns:].any()  # what is new is not read yet
            assert after[rows:].any()
    assert torch.equal(new["lm_head.weight"][:, :48], old["lm_head.weight"])
    assert not new["lm_head.weight"][:, 48:].any()
    assert new["model.embed_tokens.weight"][:, 48:].all()


def test_a_deeper_decoder_begins_with_the_shallow_one():
    shallow, deep = tiny_model(num_hidden_layers=2), tiny_model(num_hidden_layers=3)
    deep.load_state_dict(grow.grown(shallow.state_dict(), deep.state_dict()), strict=False)
    ids = torch.randint(3, 90, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, shallow(ids).logits, rtol=1e-4, atol=1e-5)
    assert deep.model.layers[2].self_attn.qkv_proj.weight.any()
    with pytest.raises(ValueError, match="has 3 layers and does not fit into 2"):
        grow.grown(deep.state_dict(), shallow.state_dict())


def test_a_deeper_tower_begins_with_the_shallow_one():
    tower = tiny_config().img_processor["vision_config"]
    shallow = tiny_model()
    deep = tiny_model(img_processor={"vision_config": {**tower, "num_hidden_layers": 5}})
    weights = grow.grown(shallow.state_dict(), deep.state_dict())
    deep.load_state_dict(weights, strict=False)
    tiles = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        expected, found = (model.vision_tower(tiles).last_hidden_state for model in (shallow, deep))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(deep.vision_tower.encoder.layers) == len(shallow.vision_tower.encoder.layers) + 2


def test_the_mean_of_two_checkpoints(tmp_path, monkeypatch):
    other = train.weights_of(POCKET)
    changed = train.Phi3VForCausalLM(train.build_config(train.build_processor()))
    changed.load_state_dict({name: weight + 1 for name, weight in other.items()})
    train.export(changed, train.build_processor(), tmp_path / "changed")
    arguments = ["soup", str(POCKET), str(tmp_path / "changed"), "--share", "0.25"]
    monkeypatch.setattr("sys.argv", [*arguments, "--checkpoint", str(tmp_path / "mean")])
    soup.main()
    for name, weight in train.weights_of(tmp_path / "mean").items():
        torch.testing.assert_close(weight, other[name] + 0.75, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("folders", [("other", "pocket"), ("pocket", "other")])
def test_there_is_no_mean_of_different_sizes(folders, monkeypatch):
    weights = {"pocket": train.weights_of(POCKET)}
    weights["other"] = {**weights["pocket"], "lm_head.weight": torch.ones(5, 5)}
    monkeypatch.setattr(soup, "weights_of", weights.get)
    with pytest.raises(ValueError, match=r"^other has other sizes than training"):
        soup.mean(*folders, 0.5)
