"""Attention as a lesson: four heads of the decoder are told where to look.

The loss of the answers alone teaches a small model hardly anything about that. `finding` and `looking` say where what
is said stands, in the text before and in the pictures. (The idea: https://arxiv.org/abs/1609.04186.)
"""

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from . import finding, looking
from .pictures.sample import Sample

#: Layer and head of each lesson; of all heads of their layers these did least before.
HEADS = {"bind": (2, 0), "find": (4, 4), "here": (2, 1), "next": (3, 4)}


class Lessons:
    """Reads off a batch of conversations where their tokens should look."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_token_id: int):
        self.image = image_token_id
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.texts = [piece.replace("▁", " ").replace("<0x0A>", "\n") for piece in pieces]
        for token in (image_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
            self.texts[token] = ""

    def __call__(self, input_ids: torch.Tensor, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """For each of the `HEADS` int64 (lessons, 3): row, position that looks, position that it looks at."""
        found: dict[str, list] = {name: [] for name in HEADS}
        for row, (ids, sample) in enumerate(zip(input_ids.tolist(), samples, strict=True)):
            parts = [self.texts[i] for i in ids]
            pairs = dict(zip(("bind", "find"), finding.lessons(parts), strict=True))
            pairs["here"] = looking.lessons(parts, [i == self.image for i in ids], sample)
            pairs["next"] = [(token - 1, place) for token, place in pairs["here"]]
            for name in HEADS:
                found[name] += [(row, *pair) for pair in pairs[name]]
        return {name: torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3) for name, pairs in found.items()}


def attention(model, hidden_states: torch.Tensor, here: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    """What a head of the decoder looks at from some positions of one row: log-probabilities (positions, length).

    `hidden_states` (length, hidden_size) are those that enter the layer, without padding; `here` (positions) counts in
    the same way.
    """
    block = model.layers[layer]
    size, weight = block.self_attn.head_dim, block.self_attn.qkv_proj.weight
    states, positions = block.input_layernorm(hidden_states), torch.arange(len(hidden_states), device=here.device)
    cos, sin = (part[0] for part in model.rotary_emb(hidden_states, positions[None]))
    query, key = (
        F.linear(part, weight[first : first + size])
        for part, first in ((states[here], head * size), (states, len(weight) // 3 + head * size))
    )
    query, _ = apply_rotary_pos_emb(query[None], query[None], cos[here], sin[here], unsqueeze_dim=0)
    key, _ = apply_rotary_pos_emb(key[None], key[None], cos, sin, unsqueeze_dim=0)
    scores = (query[0] @ key[0].T).float() * block.self_attn.scaling
    return scores.masked_fill(positions > here[:, None], -1e9).log_softmax(-1)


def loss_and_accuracy(model, hidden_states, attention_mask, lessons: dict[str, torch.Tensor]):
    """For each head minus the mean log-probability of looking where the lessons say, summed; and the shares of
    positions that look there most. `hidden_states` are those that enter each layer; padding stands on the left."""
    loss, right, length = torch.zeros(()), {}, attention_mask.shape[1]
    for name, (layer, head) in HEADS.items():
        losses, hits = [], []
        for row, real in enumerate(attention_mask.sum(1).tolist()):
            here, there = (lessons[name][lessons[name][:, 0] == row, 1:] - (length - real)).T
            here, which = here.unique(return_inverse=True)
            if len(here):
                logs = attention(model, hidden_states[layer][row, length - real :], here, layer, head)
                wanted = torch.zeros_like(logs, dtype=torch.bool)
                wanted[which, there] = True
                losses.append(-logs.masked_fill(~wanted, -1e9).logsumexp(-1))
                hits.append(wanted.gather(-1, logs.argmax(-1, keepdim=True)))
        if losses:
            loss = loss + torch.cat(losses).mean()
            right[name] = torch.cat(hits).float().mean().item()
    return loss, right
