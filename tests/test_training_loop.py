"""training/loop.py: runs, their log, batches, Muon and several processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')

import torch
from PIL import Image

from training import plot, train
from training.loop import Muon, Run, optimizers, repeated, start, stream_of_batches


def tiny_run(folder, total, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    return Run(str(folder), model, optimizers(model, lambda name: 0.01), total, **settings)


def steps(run, count):
    for step, batch in enumerate(run.steps(iter(torch.arange(40.0).reshape(10, 4)), 1)):
        if step == count:
            break
        run.update(run.model(batch).square().mean())


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    run = tiny_run(tmp_path, 8)
    steps(run, 4)
    run.seconds = 7.0
    run.save()
    resumed = tiny_run(tmp_path, 8)
    assert (resumed.seen, resumed.seconds) == (4, 7.0)
    for optimizer, before in zip(resumed.optimizers, run.optimizers, strict=True):
        assert before.state
        torch.testing.assert_close(optimizer.state_dict()["state"], before.state_dict()["state"])
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    for either in (run, resumed):  # at the same rate, not at a part of the last one
        either.update(either.model(torch.ones(1, 4)).square().mean())
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    run.report(lambda: {"score": 0.5})
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))["score"] == 0.5


def test_a_save_that_is_interrupted_leaves_the_last_one(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, 8)
    steps(run, 4)
    run.save()

    def interrupt(what, file):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert tiny_run(tmp_path, 8).seen == 4


def test_a_run_ends_when_its_minutes_are_over(tmp_path, monkeypatch):
    """The wait for the first batch does not count: it would use up the warm-up."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("training.loop.time", clock)

    def batches():
        clock.now += 300
        yield from range(100)

    run, done = tiny_run(tmp_path, math.inf, minutes=2), []
    for _ in run.steps(batches(), 1):
        done.append(run.done)
        clock.now += 30
    assert done == [0, 0.25, 0.5, 0.75]


def test_a_short_run_is_logged_at_its_end(tmp_path):
    run = tiny_run(tmp_path, 2)
    for batch in run.steps(iter(torch.ones(5, 1, 4)), 1, lambda: {"score": 0.5}):
        run.update(run.model(batch).square().mean())
    line = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))
    assert (line["seen"], line["score"]) == (2, 0.5)
    assert list(tiny_run(tmp_path, 2).steps(iter(torch.ones(5, 1, 4)), 1)) == []  # and not once more


@pytest.mark.parametrize(("rank", "files"), [(0, {"state.pt", "optimizers0.pt", "log.jsonl"}), (1, {"optimizers1.pt"})])
def test_processes_count_together_and_the_first_one_writes(tmp_path, monkeypatch, rank, files):
    monkeypatch.setattr("training.loop.WORLD", 2)
    monkeypatch.setattr("training.loop.RANK", rank)
    assert len(list(tiny_run(tmp_path, 8).steps(iter(torch.ones(5, 2, 4)), 2))) == 2
    assert {file.name for file in tmp_path.iterdir()} == files


def test_a_run_is_saved_and_logged_on_the_way(tmp_path, monkeypatch):
    """Every two minutes and, on a CPU, every ten: one that is stopped loses little."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("training.loop.time", clock)
    saved, logged, save, report = [], [], Run.save, Run.report
    monkeypatch.setattr(Run, "save", lambda run: (saved.append(run.seen), save(run)))
    monkeypatch.setattr(Run, "report", lambda run, evaluate: (logged.append(run.seen), report(run, evaluate)))
    for _ in tiny_run(tmp_path, 30).steps(range(100), 1):
        clock.now += 50
    assert saved == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 30]
    assert logged == [13, 26, 30]


def test_a_run_may_end_within_a_batch(tmp_path):
    assert len(list(tiny_run(tmp_path, 3).steps(iter(torch.ones(5, 2, 4)), 2))) == 2


@pytest.mark.parametrize("settings", [{"total": 0}, {"total": 8, "minutes": 0}])
def test_a_run_needs_something_to_do(tmp_path, settings):
    with pytest.raises(ValueError, match="Nothing to do"):
        tiny_run(tmp_path, **settings)


def test_several_processes_take_no_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.WORLD", 2)
    with pytest.raises(ValueError, match="give pictures, not minutes"):
        Run(str(tmp_path), torch.nn.Linear(1, 1), [], 8, minutes=5)


def test_a_batch_without_a_finite_gradient_changes_nothing(tmp_path, capsys):
    run = tiny_run(tmp_path, 8)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.update(run.model(torch.full((1, 4), float("inf"))).square().mean())
    assert "no finite gradient" in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_run_that_only_skips_batches_is_given_up(tmp_path):
    run = tiny_run(tmp_path, 8)
    bad = torch.full((1, 4), float("nan"))
    for _ in range(4):
        run.update(run.model(bad).square().mean())
    with pytest.raises(FloatingPointError, match="5 batches in a row"):
        run.update(run.model(bad).square().mean())
    run = tiny_run(tmp_path, 8)
    for values in 6 * [bad, torch.ones(1, 4)]:
        run.update(run.model(values).square().mean())


def test_one_process_trains_on_a_gpu(monkeypatch):
    monkeypatch.setattr("training.loop.WORLD", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="leave `torchrun` out"):
        start()


def number_of(split: str, index: int) -> int:
    return index


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_has_its_own_pictures(monkeypatch, rank):
    monkeypatch.setattr("training.loop.WORLD", 2)
    monkeypatch.setattr("training.loop.RANK", rank)
    assert next(iter(stream_of_batches(number_of, list, batch=2, workers=0, first=7))) == [4 + rank, 6 + rank]


def test_a_run_with_other_batches_goes_on_at_the_beginning_of_a_step():
    batches = stream_of_batches(number_of, list, batch=4, workers=1, first=10)
    assert next(iter(batches)) == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("times", "order"),
    [(1, range(6)), (2, [0, 1, 2, 0, 3, 1, 4, 2, 5, 3]), (3, [0, 1, 2, 0, 1, 3, 2, 0, 4, 1, 3, 5, 2, 4])],
)
def test_a_batch_comes_again_some_steps_later(times, order):
    assert list(repeated(range(6), times, later=2)) == list(order)


def steps_of_muon(optimizer) -> list[torch.Tensor]:
    """Some matrices after five steps, in which now and then one has no gradient."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(size)) for size in [(8, 4), (4, 8), (8, 4), (6, 6), (8, 4)]]
    muon = optimizer(matrices, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for i, matrix in enumerate(matrices):
            matrix.grad = torch.randn_like(matrix) if (step + i) % 4 else None
        muon.step()
    return [*matrices, *(state["momentum_buffer"] for state in muon.state.values())]


def test_muon_for_many_matrices_is_pytorchs():
    for ours, theirs in zip(steps_of_muon(Muon), steps_of_muon(torch.optim.Muon), strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # bfloat16; each step moves by about 0.05


def test_who_trains_what_and_how_fast():
    parts = {"embed_tokens": torch.nn.Embedding(9, 4), "layer": torch.nn.Linear(4, 4), "lm_head": torch.nn.Linear(4, 9)}
    model = torch.nn.ModuleDict(parts)
    rates = {name: 0.01 * i for i, (name, _) in enumerate(model.named_parameters(), 1)}
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adamw = (
        {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in optimizers(model, rates.get)
    )
    assert list(muon) == ["layer.weight"]
    assert muon | adamw == rates


def test_workers_can_be_spawned():
    batches = stream_of_batches(number_of, list, batch=2, workers=1, first=0)
    batches.multiprocessing_context = "spawn"
    assert next(iter(batches)) == [0, 1]


def test_logs_are_plotted(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, 8)
    steps(run, 2)
    run.report(lambda: {"heldout": 0.5, "heldout_loss": 1.0})
    run.report(lambda: {"heldout": 0.6})
    monkeypatch.setattr("sys.argv", ["plot", str(tmp_path), "--out", str(tmp_path / "curves.png")])
    plot.main()
    assert Image.open(tmp_path / "curves.png").width > 500


TWO_PROCESSES = """
import torch
from torch import nn

from training.loop import RANK, Run, optimizers, start

start()
model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2))
run = Run("run", model, optimizers(model, lambda name: 0.1), 100)
for _ in range(3):
    run.seen += 2
    run.update((model(torch.full((3, 4), 1.0 + RANK)) ** 2).mean())
    assert all(p.grad is None for p in model.parameters())
run.save()
torch.save(model.state_dict(), f"model{RANK}.pt")
"""


def test_two_processes_stay_in_sync(tmp_path):
    """Each trains its share of the matrices; both have all of them, all have changed, and either can go on."""
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "two.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"model{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.manual_seed(0)
    untrained = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2)).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
        assert not torch.allclose(weight, untrained[name]), name
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"state.pt", "optimizers0.pt", "optimizers1.pt"}
    # No matrix is remembered twice: Muon, the first of the two optimisers, has a share in each process.
    memory = [torch.load(tmp_path / "run" / f"optimizers{rank}.pt", weights_only=True)[0] for rank in (0, 1)]
    assert sorted(len(part["state"]) for part in memory) == [1, 2]
