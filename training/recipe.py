"""The sizes of the bundled checkpoint, in one place."""

#: Four tiles of 224 pixels show a picture at 448: few characters are cut by a border, and the global view, at half
#: that size, still shows titles whole.
TILE, PATCH, NUM_CROPS = 224, 14, 4

#: The vision tower as stage 1 trains it: these layers and no more. The whole model's config counts one layer more,
#: since its features are taken before the last one, which is never built.
VISION = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": TILE,
    "patch_size": PATCH,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

DECODER = {
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def rope_scaling() -> dict:
    """LongRoPE factors, one for each pair of a head's channels: none up to 4,096 positions; beyond, the slow
    channels are stretched by up to max_position_embeddings / 4,096 = 32 (the official ones by up to 65)."""
    pairs = DECODER["hidden_size"] // DECODER["num_attention_heads"] // 2
    return {
        "type": "su",
        "short_factor": [1.0] * pairs,
        "long_factor": [round(32 ** min(1.0, 2 * i / pairs), 4) for i in range(pairs)],
    }
