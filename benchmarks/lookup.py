"""How many tokens a step writes where the model may copy: prompt lookup, with the bundled checkpoint.

    python -m pip install -e ".[training]"
    python -m benchmarks.lookup

Where the last words already occur in the prompt or the answer, transformers has the model check what followed them
there, several words in one step (`prompt_lookup_num_tokens`). Counts steps, not seconds: a step that checks five words
takes longer than one that writes a single one. The answers must be equal.
"""

import argparse
import json
from collections import Counter

import torch
from tqdm import tqdm

import helpers
from training.pictures import draw

KINDS = ("cover", "page", "table", "chart", "scene", "pair")
CHECKED = (2, 5, 10)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20, help="pictures of each kind")
    args = parser.parse_args()
    model, processor = helpers.load_model_and_processor()
    ends, steps = {"eos_token_id": model.config.stop_token_ids, "pad_token_id": processor.tokenizer.pad_token_id}, 0

    def count(*_):
        nonlocal steps
        steps += 1

    model.register_forward_hook(count)
    a_step = {}
    for kind in KINDS:
        taken = Counter()
        for i in tqdm(range(args.pictures), kind):
            sample = draw(kind, "heldout", i)
            prompt = helpers.format_prompt(sample.turns[0][0], len(sample.images))
            inputs = processor(prompt, sample.images, return_tensors="pt")
            answers = []
            for checked in (None, *CHECKED):
                lookup = {"prompt_lookup_num_tokens": checked, "max_matching_ngram_size": 3} if checked else {}
                steps = 0
                answers.append(model.generate(**inputs, **ends, **lookup, max_new_tokens=500, do_sample=False))
                taken[checked] += steps
            if not all(torch.equal(answer, answers[0]) for answer in answers):
                raise RuntimeError(f"Looking up changed the answer about {kind} {i}.")
        a_step[kind] = {checked: round(taken[None] / taken[checked], 2) for checked in CHECKED}
    print("tokens a step, checking up to", *(f"{checked:>6}" for checked in CHECKED))
    for kind, ratios in a_step.items():
        print(f"{kind:29}", *(f"{ratio:6.2f}" for ratio in ratios.values()))
    print(json.dumps({"tokens a step": a_step, **vars(args)}))


if __name__ == "__main__":
    main()
