import json

import pytest
from phi3_v_data import CHECKPOINT, load_json, tiny_config
from transformers import AutoConfig

from helpers.phi3_v import Phi3VConfig

OFFICIAL = {
    "hidden_size": 3072,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "_attn_implementation": "flash_attention_2",
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
}


@pytest.mark.parametrize("name", ["Phi-3-vision-128k-instruct", "Phi-3.5-vision-instruct"])
def test_official_config(name):
    rope_scaling = {"type": "su", **load_json("official_factors.json")[name]}
    before = json.dumps(rope_scaling)
    config = Phi3VConfig(**OFFICIAL, rope_scaling=rope_scaling, sliding_window=262144)
    assert json.dumps(rope_scaling) == before
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["original_max_position_embeddings"] == 4096
    assert config.sliding_window is None
    assert config._attn_implementation is None
    assert (config.image_token_id, config.pad_token_id) == (32044, 32000)
    assert config.stop_token_ids == [2, 32000, 32007]
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (4096, 336, 14)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)


@pytest.mark.parametrize("file", ["config.json", "config.phi35.json"])
@pytest.mark.parametrize("trust_remote_code", [None, True, False])
def test_loads_whatever_auto_map_says(file, trust_remote_code):
    config = AutoConfig.from_pretrained(CHECKPOINT / file, trust_remote_code=trust_remote_code)
    assert type(config) is Phi3VConfig
    assert config.vision_config.hidden_size == 128
    assert (config.image_token_id, config.pad_token_id, config.stop_token_ids) == (
        1044,
        1000,
        [2, 1000, 1007],
    )


def test_attention_is_the_callers_choice():
    assert AutoConfig.from_pretrained(CHECKPOINT, attn_implementation="eager")._attn_implementation == "eager"


def test_stop_tokens_stay_when_the_vocabulary_is_resized():
    config = Phi3VConfig(vocab_size=858)
    before = config.stop_token_ids
    config.vocab_size = 864
    assert config.stop_token_ids == before == [2, 794, 801]
    assert Phi3VConfig(**config.to_dict()).stop_token_ids == before


def test_round_trip(tmp_path):
    config = tiny_config(image_token_id=77, pad_token_id=3)
    config.save_pretrained(tmp_path)
    loaded = Phi3VConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert (loaded.image_token_id, loaded.pad_token_id) == (77, 3)
    assert loaded.rope_parameters == config.rope_parameters
    assert loaded.vision_config.to_dict() == config.vision_config.to_dict()


def test_default_rope():
    assert tiny_config(rope_scaling=None).rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("sizes", [{"image_size": 126, "patch_size": 14}, {"num_hidden_layers": 1}])
def test_impossible_towers(sizes):
    with pytest.raises(ValueError, match="even number of patches"):
        Phi3VConfig(img_processor={"vision_config": sizes})


def test_the_trained_scale_stays_where_the_limit_is_lowered():
    assert AutoConfig.from_pretrained(CHECKPOINT, max_position_embeddings=4096).rope_parameters["factor"] == 32
