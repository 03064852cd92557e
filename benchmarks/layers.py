"""The decoder's layers on their own, as three of the comparisons run them: a prompt, then tokens one by one."""

import argparse

import torch
from tqdm import tqdm

from helpers.cache import growing_cache
from helpers.phi3_v import Phi3VForCausalLM

from .compare import report, seconds, speeds


class Ours:
    """The layers of a loaded model, with the interface that every decoder here has."""

    def __init__(self, model: Phi3VForCausalLM):
        self.model, self.config = model.model, model.config

    def __call__(self, inputs_embeds: torch.Tensor, past: int) -> torch.Tensor:
        """Hidden states of the new positions after `past` earlier ones; 0 starts again."""
        if past == 0:
            self.cache = growing_cache()
        outputs = self.model(inputs_embeds=inputs_embeds.to(self.model.dtype), past_key_values=self.cache)
        return outputs.last_hidden_state


def read(decoder, embeds: torch.Tensor, length: int) -> torch.Tensor:
    """Hidden states of a prompt, the first `length` of `embeds`, and one by one of those after it."""
    steps = range(length, embeds.shape[1])
    states = [decoder(embeds[:, :length], 0), *(decoder(embeds[:, i : i + 1], i) for i in steps)]
    return torch.cat(states, dim=1).float()


def measure(decoder, embeds: torch.Tensor, length: int) -> dict[str, float]:
    """Seconds of a prompt, the first `length` of `embeds`, and of each further one."""
    steps = range(length, embeds.shape[1])
    prefill = seconds(lambda: decoder(embeds[:, :length], 0))
    answer = seconds(lambda: [decoder(embeds[:, i : i + 1], i) for i in steps])
    return {"prefill": prefill, "token": answer / len(steps)}


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=800, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=16, help="tokens of the answer")
    return parser.parse_args()


@torch.no_grad()
def compare_layers(decoders: dict, exact: Ours, packages: list[str], args: argparse.Namespace):
    """Prints how fast the decoders are, one of them named "int8", and how far their hidden states are from `exact`."""
    embeds = exact.config.initializer_range * torch.randn(1, args.length + args.steps, exact.config.hidden_size)
    truth = exact(embeds, 0)
    wrong = {name: read(decoder, embeds, args.length) - truth for name, decoder in decoders.items()}
    error = {name: round((difference.norm() / truth.norm()).item(), 3) for name, difference in wrong.items()}
    runs = {name: [] for name in decoders}
    for _ in tqdm(range(args.rounds)):
        for name, decoder in decoders.items():
            runs[name].append(measure(decoder, embeds, args.length))
    report(speeds(runs, "int8"), error, packages, args)
