"""Writes the weighted mean of two checkpoints trained from a common start: it forgets less than either.

    python -m training.soup runs/old_checkpoint runs/new_checkpoint --share 0.2 --checkpoint runs/mean

As in "Model soups" (Wortsman et al., 2022, https://arxiv.org/abs/2203.05482).
"""

import argparse
from pathlib import Path

from helpers.phi3_v import Phi3VForCausalLM

from .train import build_config, build_processor, export, weights_of


def mean(first: str, second: str, share: float) -> Phi3VForCausalLM:
    """A model whose weights are `share` of the first checkpoint's and the rest of the second's.

    Raises `ValueError` if one of them has other sizes than `recipe.py`.
    """
    model = Phi3VForCausalLM(build_config(build_processor()))
    weights, others = weights_of(first), weights_of(second)
    sizes = {name: weight.shape for name, weight in model.state_dict().items()}
    for folder, found in ((first, weights), (second, others)):
        if {name: weight.shape for name, weight in found.items()} != sizes:
            raise ValueError(f"{folder} has other sizes than training/recipe.py; a mean needs two that have its sizes.")
    model.load_state_dict({name: other.lerp(weights[name], share) for name, other in others.items()})
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="folder of a checkpoint")
    parser.add_argument("second", help="folder of another one of the same sizes")
    parser.add_argument("--share", type=float, default=0.5, help="share of the first in the mean")
    parser.add_argument("--checkpoint", type=Path, required=True, help="where the result goes")
    args = parser.parse_args()
    export(mean(args.first, args.second, args.share), build_processor(), args.checkpoint)


if __name__ == "__main__":
    main()
