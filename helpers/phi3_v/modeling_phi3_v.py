"""Phi-3-Vision: a CLIP vision tower and a projection in front of the Phi-3 decoder."""

import copy

import torch
from torch import nn
from transformers import CLIPVisionModel, GenerationConfig, GenerationMixin, Phi3ForCausalLM, Phi3Model
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.logits_process import SuppressTokensLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3PreTrainedModel, Phi3RotaryEmbedding
from transformers.utils import can_return_tuple, is_torchdynamo_compiling

from .configuration_phi3_v import Phi3VConfig

#: transformers' name for the cache, as an argument and in outputs: "cache" since 5.24.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def clear_cache(cache: Cache) -> None:
    """Empties a cache of any kind; `crop` would leave a quantized part behind."""
    cache.reset()
    if not cache.is_compileable:  # static tensors stay where they are
        for layer in cache.layers:
            layer.is_initialized = False  # in some releases `reset` only zeroes a layer that grows


def keep_positions(hidden_states: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """`hidden_states` (batch, length, C) where `logits_to_keep` says, as `slice_logits_to_keep` of 5.24."""
    if isinstance(keep, int):
        return hidden_states[:, -keep:]
    if keep.dim() < 2:
        return hidden_states[:, keep]
    return hidden_states[keep] if keep.dtype == torch.bool else hidden_states.take_along_dim(keep[..., None], dim=1)


class Phi3VRotaryEmbedding(nn.Module):
    """
    LongRoPE (https://arxiv.org/abs/2402.13753), whose long factors take over in every row that passes
    `original_max_position_embeddings`, whatever the other rows of its batch do.
    """

    def __init__(self, config: Phi3VConfig):
        super().__init__()
        self.config = config
        default = config.max_position_embeddings
        self.short_context = config.rope_parameters.get("original_max_position_embeddings", default)
        inv_freq, self.attention_scaling = self.compute_inv_freq()
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def compute_inv_freq(self, device=None) -> tuple[torch.Tensor, float]:
        """Inverse frequencies of short and long rows, float32 (2, head_dim / 2); scale of cos and sin."""
        if self.config.rope_parameters["rope_type"] == "default":
            inv_freq, scaling = Phi3RotaryEmbedding.compute_default_rope_parameters(self.config, device)
            return torch.stack([inv_freq, inv_freq]), scaling
        compute = ROPE_INIT_FUNCTIONS["longrope"]
        short, scaling = compute(self.config, device, seq_len=self.short_context)
        long, _ = compute(self.config, device, seq_len=self.short_context + 1)
        return torch.stack([short, long]), scaling

    def _apply(self, fn, recurse=True):
        # Half precision would blur the positions: the table stays float32 through `.to(dtype)` and `.half()`.
        super()._apply(fn, recurse)
        self.inv_freq = self.compute_inv_freq(self.inv_freq.device)[0]
        return self

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, (batch, length, head_dim) in the dtype of `x`, for position_ids (batch, length)."""
        is_long = position_ids.amax(dim=-1) >= self.short_context
        inv_freq = torch.where(is_long[:, None], self.inv_freq[1], self.inv_freq[0])
        freqs = position_ids[..., None].float() * inv_freq[:, None, :]
        emb = torch.cat((freqs, freqs), dim=-1)
        cos, sin = emb.cos() * self.attention_scaling, emb.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


class Phi3VImageEmbedding(nn.Module):
    """
    Tiles to image features. Names as in the official checkpoints: `img_processor`, `img_projection`, and
    the separators `sub_GN`, at the end of every row, and `glb_GN`, before the global view.
    """

    def __init__(self, config: Phi3VConfig):
        super().__init__()
        vision_config = config.vision_config
        vision_config._attn_implementation = config._attn_implementation
        # The features come out of the last layer but one: the last layer and the final norm are not built.
        vision_config.num_hidden_layers -= 1
        vision_model = CLIPVisionModel(vision_config)
        vision_model.post_layernorm = nn.Identity()
        self.img_processor = nn.ModuleDict({"vision_model": vision_model})
        self.tile_size = vision_config.image_size
        self.side = vision_config.image_size // vision_config.patch_size // 2  # of a tile, in features
        # A CPU is faster with few: the activations of many (here up to 16 MB in float32) do not fit into its caches.
        positions = (2 * self.side) ** 2 + 1
        self.tiles_at_once = max(1, 2**22 // (positions * vision_config.intermediate_size))

        width, hidden = 4 * vision_config.hidden_size, config.hidden_size
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.LongTensor) -> BaseModelOutputWithPooling:
        """See [`Phi3VPreTrainedModel.get_image_features`]."""
        grids = self.get_grids(pixel_values, image_sizes)
        num_tiles = [h * w + 1 for h, w in grids]
        # One batch for all pictures, without the tiles that only pad `pixel_values`.
        tiles = torch.cat([tiles[:num] for tiles, num in zip(pixel_values, num_tiles)])
        parts = tiles.split(self.tiles_at_once) if tiles.device.type == "cpu" else [tiles]
        tower = self.img_processor["vision_model"]
        last_hidden_state = torch.cat([tower(part).last_hidden_state for part in parts])

        # Join the channels of each 2 x 2 patches: (tiles, patches, C) -> (tiles, side, side, 4 C)
        side = self.side
        patches = last_hidden_state[:, 1:].unflatten(1, (side, 2, side, 2)).transpose(2, 3).flatten(3)
        pieces = []
        for (h, w), views in zip(grids, patches.split(num_tiles)):
            sub = views[1:].unflatten(0, (h, w)).transpose(1, 2).reshape(h * side, w * side, -1)
            pieces += [self.end_rows(sub), self.glb_GN[0].to(sub), self.end_rows(views[0])]
        features = self.img_projection(torch.cat(pieces))
        return BaseModelOutputWithPooling(last_hidden_state, list(features.split(self.num_image_tokens(grids))))

    def end_rows(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Appends `sub_GN` to every row: (rows, columns, C) -> (rows * (columns + 1), C)."""
        separator = self.sub_GN[0].to(hidden_states).expand(len(hidden_states), 1, -1)
        return torch.cat([hidden_states, separator], dim=1).flatten(0, 1)

    def get_grids(self, pixel_values: torch.Tensor, image_sizes: torch.LongTensor) -> list[tuple[int, int]]:
        """Rows and columns of tiles of every picture. Raises `ValueError` if the arguments do not fit."""
        sizes = [] if image_sizes is None else image_sizes.tolist()
        grids = [(height // self.tile_size, width // self.tile_size) for height, width in sizes]
        max_tiles = pixel_values.shape[1] - 1 if pixel_values.dim() == 5 else 0
        whole = all(side % self.tile_size == 0 for size in sizes for side in size)
        if not whole or len(grids) != len(pixel_values) or not all(0 < h * w <= max_tiles for h, w in grids):
            raise ValueError(
                "`image_sizes` do not fit `pixel_values` (pictures, num_crops + 1, 3, height, width): got sizes "
                f"{sizes} in pixels, tiles of {self.tile_size} pixels, and {tuple(pixel_values.shape)}. "
                "Pass what one call of the processor returned."
            )
        return grids

    def num_image_tokens(self, grids: list[tuple[int, int]]) -> list[int]:
        """Features of every picture: h x w tiles, a separator, the global view; every row with its end."""
        side = self.side
        return [h * side * (w * side + 1) + 1 + side * (side + 1) for h, w in grids]


class Phi3VPreTrainedModel(Phi3PreTrainedModel):
    config: Phi3VConfig
    input_modalities = ("image", "text")
    _no_split_modules = ["Phi3DecoderLayer", "CLIPVisionEmbeddings", "CLIPEncoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)
        elif isinstance(module, Phi3VRotaryEmbedding):
            init.copy_(module.inv_freq, module.compute_inv_freq(module.inv_freq.device)[0])

    def _apply(self, fn, recurse=True):
        # Layers that cannot be moved (`helpers.int8`) raise first, before the embedding or any other layer has moved.
        for module in self.modules():
            if hasattr(module, "check_move"):
                module.check_move(fn)
        return super()._apply(fn, recurse)

    @property
    def vision_tower(self) -> CLIPVisionModel:
        """The CLIP tower up to the last layer in use; its `last_hidden_state` holds the patch features."""
        return self.base_model.vision_embed_tokens.img_processor["vision_model"]

    @can_return_tuple
    def get_image_features(self, pixel_values, image_sizes) -> BaseModelOutputWithPooling:
        """
        As in transformers' own models: `pooler_output` holds the features of every picture, a list of (image tokens,
        hidden_size), and `last_hidden_state` what the tower says of all their tiles, (tiles, patches + 1, channels).

        pixel_values (pictures, num_crops + 1, 3, height, width), the global view first, and image_sizes (pictures, 2),
        in pixels, are those of [`Phi3VImageProcessor`]; raises `ValueError` if they do not fit each other.
        """
        return self.base_model.vision_embed_tokens(pixel_values, image_sizes)


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):
    """The vision tower and the decoder, without a language modeling head."""

    def __init__(self, config: Phi3VConfig):
        super().__init__(config)
        self.rotary_emb = Phi3VRotaryEmbedding(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        last_layer = config.vision_config.num_hidden_layers - 1
        unused = rf"vision_model\.(encoder\.layers\.{last_layer}|post_layernorm)\."
        # The embedding once more, in checkpoints that were fine-tuned with the remote code.
        embedding = r"vision_embed_tokens\.wte\."
        self._keys_to_ignore_on_load_unexpected = {unused, embedding}
        self.post_init()

    def locate_pictures(self, input_ids, pixel_values, image_sizes) -> torch.LongTensor:
        """
        Row and column of the first image token of every picture, (pictures, 2).

        Raises `ValueError` unless the image tokens are those of the pictures in order, each in one piece.
        """
        grids = self.vision_embed_tokens.get_grids(pixel_values, image_sizes)
        sizes = torch.tensor(self.vision_embed_tokens.num_image_tokens(grids), device=input_ids.device)
        positions = (input_ids == self.config.image_token_id).nonzero()
        ends = sizes.cumsum(0)
        if len(positions) == sizes.sum():
            first, last = positions[ends - sizes], positions[ends - 1]
            if torch.equal(last[:, 0], first[:, 0]) and torch.equal(last[:, 1] - first[:, 1], sizes - 1):
                return first
        raise ValueError(
            f"Image tokens and pictures do not match: the input has {len(positions)} image tokens, the "
            f"{len(sizes)} pictures take {sizes.sum()} ({sizes.tolist()}), those of each picture in one piece. "
            "Pass what one call of the processor returned."
        )

    def merge_image_features(self, input_ids, inputs_embeds, pixel_values=None, image_sizes=None):
        """
        `inputs_embeds` (batch, length, hidden_size) with the features of the pictures, in order, at the image
        tokens of `input_ids` (batch, length). pixel_values (pictures, num_crops + 1, 3, height, width) and
        image_sizes (pictures, 2), in pixels, are None without pictures. Raises `ValueError` if pictures and image
        tokens do not match.
        """
        is_image = input_ids == self.config.image_token_id
        if pixel_values is None or len(pixel_values) == 0:
            if is_torchdynamo_compiling():  # checked at run time; a branch would break the graph
                torch._assert_async(~is_image.any(), "Image tokens but 0 pictures: no pixel_values.")
            elif is_image.any():
                raise ValueError(f"The input has {is_image.sum()} image tokens but 0 pictures: no pixel_values.")
            return inputs_embeds
        self.locate_pictures(input_ids, pixel_values, image_sizes)
        # With layers on several devices, the tower may be on another one than the embedding.
        features = self.get_image_features(pixel_values, image_sizes, return_dict=True).pooler_output
        features = torch.cat(features).to(inputs_embeds)
        return inputs_embeds.masked_scatter(is_image[..., None].to(inputs_embeds.device), features)

    def forward(self, input_ids=None, pixel_values=None, image_sizes=None, inputs_embeds=None, **kwargs):
        """
        As [`Phi3Model`]. pixel_values (pictures, num_crops + 1, 3, height, width) and image_sizes (pictures, 2),
        in pixels, hold the pictures of all rows of input_ids (batch, length) in reading order.

        Raises `ValueError` if pictures and image tokens do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            # A single token is a step of decoding: its pictures are in the cache.
            if input_ids.shape[1] > 1 or pixel_values is not None:
                inputs_embeds = self.merge_image_features(input_ids, inputs_embeds, pixel_values, image_sizes)
        elif pixel_values is not None:
            raise ValueError(
                "`pixel_values` go with `input_ids`, which say where the pictures belong, not with `inputs_embeds`: "
                "leave out one of the two, or merge the pictures yourself with `merge_image_features`."
            )
        mask = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
            # Padding does not count, or it could push a row over to the long factors.
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)


class Phi3VForCausalLM(Phi3VPreTrainedModel, GenerationMixin):
    """
    Phi-3-Vision with its language modeling head.

    With trl pass prompt and completion: of `messages` alone, its collator trains the image tokens too.

    For PEFT's `modules_to_save` write `model.embed_tokens`: `embed_tokens` alone would also match, and train,
    `vision_embed_tokens`, the whole vision tower.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan, _pp_plan, _fsdp_plan = Phi3ForCausalLM._tp_plan, Phi3ForCausalLM._pp_plan, Phi3ForCausalLM._fsdp_plan

    def __init__(self, config: Phi3VConfig):
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def generation_config(self) -> GenerationConfig:
        return self._generation_config

    @generation_config.setter
    def generation_config(self, generation_config: GenerationConfig):
        # The official files stop at `</s>` alone, but the model ends its answers with `<|end|>`.
        if generation_config.eos_token_id in (None, 2, [2]):
            generation_config = copy.copy(generation_config)  # it belongs to the caller
            generation_config.eos_token_id = self.config.stop_token_ids
        self._generation_config = generation_config

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """
        input_ids (batch, length) hold one image token for each feature of a picture; pixel_values (pictures,
        num_crops + 1, 3, height, width), the global view first, and image_sizes (pictures, 2), in pixels, hold
        the pictures of all rows in reading order. labels (batch, length) give `.loss`, the mean over labels
        other than -100: write -100 over image tokens, which no answer holds. logits_to_keep is how many last
        positions get logits (0 for all), or a tensor of positions, (positions) or (batch, positions), or a mask
        (batch, length), which gives logits (positions kept, vocab_size).

        The cache is `cache`, its name since transformers 5.24, or `past_key_values`, its name before. It is only valid
        on one side of `original_max_position_embeddings`: when a row passes it, [`generate`] rebuilds the cache; if
        you call `forward` step by step, begin again with all input_ids.

        Raises `ValueError` if pictures and image tokens do not match.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{CACHE: past_key_values if cache is None else cache},
            **kwargs,
        )
        logits = self.lm_head(keep_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        cache = getattr(outputs, CACHE)
        return CausalLMOutputWithPast(loss, logits, cache, outputs.hidden_states, outputs.attentions)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, cache=None, position_ids=None, inputs_embeds=None, **kwargs
    ):
        """
        As in [`GenerationMixin`], but a cache is rebuilt, pictures included, when a row passes the short
        context: its keys were rotated by the short factors, and the row goes on with the long ones.
        """
        cache = past_key_values if cache is None else cache
        total = 0 if position_ids is None else position_ids.shape[-1]
        limit, is_first = self.model.rotary_emb.short_context, kwargs.get("is_first_iteration")
        cached = cache is not None and not cache.is_compileable
        if cached and not is_first and cache.get_seq_length() == 0:
            # A draft model's first step, or one without a cache after all: it needs the whole input.
            kwargs.update(is_first_iteration=True, next_sequence_length=None)
        past = cache.get_seq_length() if cache is not None and (is_first or total > limit) else 0
        if past and past >= total:
            raise ValueError(
                f"The cache holds {past} positions, the input has {total}: it belongs to another prompt. Pass a new "
                "cache, or an input that goes on where this one ends."
            )
        if past and ((position_ids[:, past - 1] < limit) & (position_ids[:, -1] >= limit)).any():
            if inputs_embeds is not None:
                inputs_embeds = self._embed_all(input_ids, inputs_embeds, total)
            elif input_ids.shape[1] != total:
                raise ValueError(f"Rebuilding the cache takes all {total} input_ids, got {input_ids.shape[1]}.")
            clear_cache(cache)
            kwargs.update(next_sequence_length=None, is_first_iteration=True)
        elif past and is_first and kwargs.get("pixel_values") is not None and input_ids.shape[1] == total:
            kwargs.update(self._new_pictures(input_ids, past, kwargs["pixel_values"], kwargs.get("image_sizes")))
        kwargs.update({CACHE: cache}, position_ids=position_ids, inputs_embeds=inputs_embeds)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _embed_all(self, input_ids, inputs_embeds, total: int) -> torch.Tensor:
        """The prompt's `inputs_embeds` and those of the tokens written since, (batch, total, hidden_size)."""
        new = total - inputs_embeds.shape[1]
        new_ids = input_ids[:, input_ids.shape[1] - new :]
        return torch.cat([inputs_embeds, self.get_input_embeddings()(new_ids)], dim=1)

    def _new_pictures(self, input_ids, past: int, pixel_values, image_sizes) -> dict[str, torch.Tensor | None]:
        """The pictures after the first `past` positions of a continued chat: the others are in the cache."""
        is_new = self.model.locate_pictures(input_ids, pixel_values, image_sizes)[:, 1] >= past
        pictures = {"pixel_values": pixel_values, "image_sizes": image_sizes}
        return {key: value[is_new] if is_new.any() else None for key, value in pictures.items()}

    def _get_logits_processor(self, *args, **kwargs):
        # Besides what a user suppresses: an image token in an answer would stand for a picture that does not exist.
        processors = super()._get_logits_processor(*args, **kwargs)
        # First, so that top-k and top-p choose among the others.
        device = kwargs.get("device", self.device)  # the input's: offloaded weights are on "meta"
        processors.insert(0, SuppressTokensLogitsProcessor([self.config.image_token_id], device=device))
        return processors

    def _get_candidate_generator(self, *args, **kwargs):
        # Candidates on both sides of the short context would be verified with the factors of the far side.
        generator = super()._get_candidate_generator(*args, **kwargs)
        limit, get_candidates = self.model.rotary_emb.short_context, generator.get_candidates

        def get_capped_candidates(input_ids, *args, **kwargs):
            candidate_ids, logits = get_candidates(input_ids, *args, **kwargs)
            length = input_ids.shape[1]
            if length <= limit < candidate_ids.shape[1]:
                candidate_ids = candidate_ids[:, :limit]
                logits = None if logits is None else logits[:, : limit - length]
            return candidate_ids, logits

        generator.get_candidates = get_capped_candidates
        return generator

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None:
            raise ValueError("Leave out `prefill_chunk_size`: pictures and rotary factors need the whole prompt.")
        limit = self.config.max_position_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(
                f"The prompt has {input_ids.shape[1]} tokens, the model takes at most {limit}. Shorten it, or use "
                "fewer pictures or tiles."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        pictures = {}
        if expand_size > 1 and kwargs.get("pixel_values") is not None:
            # A row may have several pictures or none: repeat the pictures of a row together, like the row.
            pictures = {key: kwargs.pop(key, None) for key in ("pixel_values", "image_sizes")}
            rows = self.model.locate_pictures(input_ids, **pictures)[:, 0]
            index = [(rows == row).nonzero()[:, 0].repeat(expand_size) for row in range(len(input_ids))]
            pictures = {key: value[torch.cat(index)] for key, value in pictures.items()}
        arguments = (expand_size, is_encoder_decoder, input_ids)
        input_ids, kwargs = super()._expand_inputs_for_generation(*arguments, **kwargs)
        return input_ids, {**kwargs, **pictures}


__all__ = ["Phi3VForCausalLM", "Phi3VModel", "Phi3VPreTrainedModel"]
