"""What the comparisons share: a clock, ratios of medians, a table of them, and one JSON line for `results/`."""

import argparse
import json
import statistics
import time
from importlib.metadata import version

import torch


def seconds(work) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speeds(runs: dict[str, list[dict[str, float]]], base: str) -> dict[str, dict[str, float]]:
    """How many times as fast as `base` each form is, by the medians of its runs (seconds of each piece of work)."""
    medians = {
        form: {key: statistics.median(run[key] for run in times) for key in times[0]} for form, times in runs.items()
    }
    return {
        form: {key: round(medians[base][key] / seconds, 2) for key, seconds in pieces.items()}
        for form, pieces in medians.items()
    }


def report(speed: dict, error: dict[str, float], packages: list[str], args: argparse.Namespace):
    """Prints both for a comparison with 8 bits here; `error` is how far each form is from float32."""
    columns = [*speed["int8"], "error"]
    print("times as fast as int8 here", *(f"{column:>12}" for column in columns))
    for form, ratios in speed.items():
        print(f"{form:26}", *(f"{value:12.2f}" for value in (*ratios.values(), error[form])))
    facts = {package: version(package) for package in (*packages, "torch")}
    facts |= {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    print(json.dumps({"speed": speed, "error": error, **facts, **vars(args)}))
