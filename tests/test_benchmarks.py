"""benchmarks/compare.py: the ratios that the README and 09_speed show."""

import argparse
import json

from benchmarks.compare import report, speeds

RUNS = {
    "int8": [{"prefill": 2.0, "token": 0.3}, {"prefill": 90.0, "token": 0.1}, {"prefill": 1.0, "token": 0.2}],
    "other": [{"prefill": 8.0, "token": 0.1}, {"prefill": 8.0, "token": 0.1}, {"prefill": 1.0, "token": 9.0}],
}


def test_half_the_time_is_twice_as_fast():
    """By the median: one slow round changes nothing."""
    assert speeds(RUNS, "int8") == {"int8": {"prefill": 1, "token": 1}, "other": {"prefill": 0.25, "token": 2}}


def test_the_last_line_holds_what_the_table_shows(capsys):
    report(speeds(RUNS, "int8"), {"int8": 0.1, "other": 0.5}, ["pillow"], argparse.Namespace(rounds=3))
    header, _, row, line = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["prefill", "token", "error"]
    assert row.split() == ["other", "0.25", "2.00", "0.50"]
    said = json.loads(line)
    assert said["speed"]["other"] == {"prefill": 0.25, "token": 2}
    assert {"error", "pillow", "torch", "capability", "threads", "rounds"} <= set(said)
