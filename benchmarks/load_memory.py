"""How much memory the official model takes while it is loaded in 8 bits, with random weights of its full size.

    python -m benchmarks.load_memory

Writes 8.3 GB to a temporary folder (set TMPDIR where the disk is small) and loads them in a process of its own. Counts
the process's own memory (RssAnon, Linux), not the cached pages of the files, which can be dropped at any time.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from helpers.int8 import Int8Config
from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM


def write(folder: Path):
    """The official layout: a shard a layer, bfloat16."""
    config = Phi3VConfig()
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Phi3VForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        shards.setdefault("-".join(name.split(".")[:3]) + ".safetensors", []).append(name)
    for file, names in tqdm(shards.items(), desc="write"):
        # One random block, repeated: only the sizes matter.
        block = torch.randn(1 << 20, dtype=torch.bfloat16) * 0.02
        weights = {}
        for name in names:
            size = shapes[name].numel()
            weights[name] = block.repeat(-(-size // len(block)))[:size].view(shapes[name])
        save_file(weights, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def memory() -> int:
    """Bytes of this process's own memory now."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def load(folder: str, dtype: str):
    """Prints the memory of this process: before, when the model is loaded, and at the peak between."""
    before, samples, done = memory(), [], threading.Event()

    def watch():
        while not done.wait(0.02):
            samples.append(memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    model = Phi3VForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=Int8Config())
    done.set()
    watcher.join()
    sizes = {"before": before, "loaded": memory(), "peak": max(samples)}
    print(json.dumps({"dtype": dtype, **{f"{name}_gb": round(size / 1e9, 2) for name, size in sizes.items()}}))
    del model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loaded", nargs="*", help="a folder and a dtype: load that and nothing else")
    if loaded := parser.parse_args().loaded:
        load(*loaded)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            for dtype in ("bfloat16", "float32"):  # of what is not rounded, the embedding and the head
                subprocess.run([sys.executable, "-m", "benchmarks.load_memory", folder, dtype], check=True)
