"""Phi-3-Vision configuration."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, Phi3Config

# The official checkpoints do not state the sizes of their vision tower, openai/clip-vit-large-patch14-336.
CLIP_VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@strict
class Phi3VConfig(Phi3Config):
    r"""
    Configuration of [`Phi3VForCausalLM`]: the keys of [`Phi3Config`] and those below. Reads the official
    `config.json` of Phi-3-vision-128k-instruct and Phi-3.5-vision-instruct as they are.

    Token ids that are left out follow from the layout of the official vocabulary of 32064: of its last 64
    rows, the first is `<|endoftext|>` (32000), the 8th `<|end|>` (32007), and the 45th `<|image|>` (32044).

    img_processor (`dict`, *optional*):
        The vision tower: `vision_config` holds sizes as in [`CLIPVisionConfig`], by default those of CLIP
        ViT-L/14-336. Its `image_size` is the side of a tile in pixels.
    embd_layer (`dict`, *optional*): kept for the official layout, not read.
    image_token_id (`int`, *optional*, defaults to `vocab_size - 20`):
        Id of `<|image|>`, which stands for one image feature.

    Raises `ValueError` for an odd number of patches per side of a tile, or a tower of fewer than 2 layers.
    """

    model_type = "phi3_v"

    img_processor: dict | None = None
    embd_layer: dict | None = None
    image_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        # The official files demand flash-attn, but the caller decides (`attn_implementation`).
        kwargs.pop("_attn_implementation", None)
        if self.image_token_id is None:
            self.image_token_id = self.vocab_size - 20
        if self.pad_token_id is None:
            self.pad_token_id = self.vocab_size - 64
        super().__post_init__(**kwargs)
        # At least `max_position_embeddings` in the official files: no effect, but slower masks.
        self.sliding_window = None

        vision = self.vision_config
        if vision.image_size // vision.patch_size % 2 or vision.num_hidden_layers < 2:
            raise ValueError(
                "The vision tower needs an even number of patches per side and at least 2 layers, but has "
                f"{vision.image_size // vision.patch_size} patches and {vision.num_hidden_layers} layers."
            )

    def convert_rope_params_to_dict(self, **kwargs):
        # Phi3Config renames "su" too late for its own checks. A copy, because the dict belongs to the caller.
        rope = dict(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        if rope.get("rope_type", rope.get("type")) in ("su", "longrope"):
            rope.pop("type", None)
            rope["rope_type"] = "longrope"
            # Stored, so that the trained scale stays if a caller lowers max_position_embeddings afterwards.
            rope.setdefault("factor", self.max_position_embeddings / self.original_max_position_embeddings)
        self.rope_parameters = rope
        return super().convert_rope_params_to_dict(**kwargs)

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """A new [`CLIPVisionConfig`] of the whole tower, its unused last layer included."""
        return CLIPVisionConfig(**{**CLIP_VIT_L_14_336, **(self.img_processor or {}).get("vision_config", {})})

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids of `</s>`, `<|endoftext|>` and `<|end|>`."""
        # Relative to an id that is stored, as the vocabulary may be resized.
        return [2, self.image_token_id - 44, self.image_token_id - 37]


__all__ = ["Phi3VConfig"]
