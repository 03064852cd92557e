"""What both training stages share: batches drawn by worker processes, optimisers, schedule, log and resuming.

One process uses one GPU or, with one thread each, one CPU core: `torchrun --nproc-per-node 2 -m training.train`
trains on two cores.
"""

import itertools
import json
import math
import os
import time
from collections import deque
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from helpers.machine import SMALL, choose_dtype, disable_cudnn_attention

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start() -> torch.device:
    """Fixes the seed, joins the other processes if `torchrun` started several, and returns the device."""
    torch.manual_seed(0)
    disable_cudnn_attention()
    if WORLD > 1:
        if torch.cuda.is_available():
            raise RuntimeError("One process trains on a GPU: leave `torchrun` out.")
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Does the machine have units for bfloat16? Without them it takes many times as long as float32."""
    return choose_dtype(device, SMALL).value is torch.bfloat16


def fastest_attention(device: torch.device) -> str:
    """Training on a CPU in bfloat16 is a fifth faster without sdpa, whose backward pass is slow then."""
    return "eager" if device.type == "cpu" and has_bfloat16(device) else "sdpa"


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the machine has units for it, float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def compile_layers(layers):
    """Compiles each layer for inputs of any length. Faster after a minute or so; needs a C++ compiler."""
    for layer in layers:
        layer.compile(dynamic=True)


def average_gradients(parameters: list[nn.Parameter]):
    """The mean over all processes, in one exchange."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.div_(WORLD).split([p.numel() for p in parameters])):
        parameter.grad.copy_(gradient.view_as(parameter))


class _Drawn(Dataset):
    """The pictures of the training split, each drawn on request; each process has its own."""

    def __init__(self, picture, first: int):
        self.picture, self.first = picture, first

    def __getitem__(self, index):
        return self.picture("train", self.first + index * WORLD + RANK)


def stream_of_batches(picture, collate, batch: int, workers: int, first: int):
    """An endless stream of `collate([picture("train", i), ...])`, from the step that has picture number `first`."""
    step = batch * WORLD
    return DataLoader(
        _Drawn(picture, first // step * step),  # a run may be resumed with another batch size
        batch,
        sampler=itertools.count(),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def repeated(batches, times: int, later: int = 32):
    """Every batch `times` times, with at least `later` others between: a GPU learns faster than pictures are drawn.
    (When a run is resumed, the batches that were waiting begin anew.)"""
    waiting = deque()
    for batch in batches:
        yield batch
        if times > 1:
            waiting.append((batch, times - 1))
        for _ in range(times - 1):
            if len(waiting) > later:
                batch, left = waiting.popleft()
                yield batch
                if left > 1:
                    waiting.append((batch, left - 1))


def inner_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight matrices inside the layers by name, the largest first."""
    ends = ("embed_tokens.weight", "embedding.weight", "head.weight")
    inner = [(name, p) for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith(ends)]
    return dict(sorted(inner, key=lambda pair: -pair[1].numel()))


def broadcast_matrices(matrices: list[nn.Parameter]):
    """Each process sends its share of the matrices, which it alone has updated, to all the others."""
    for owner in range(WORLD):
        share = matrices[owner::WORLD]
        flat = torch.cat([p.detach().flatten() for p in share])
        dist.broadcast(flat, owner)
        for parameter, values in zip(share, flat.split([p.numel() for p in share])):
            parameter.detach().copy_(values.view_as(parameter))


class Muon(torch.optim.Muon):
    """PyTorch's Muon, batched over all matrices of a size: one by one, a GPU takes longer to launch their kernels than
    to run them."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            sizes = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    sizes.setdefault(parameter.shape, []).append(parameter)
            for parameters in sizes.values():
                self._step(parameters, group)

    def _step(self, parameters: list[nn.Parameter], group: dict):
        gradients = torch.stack([p.grad for p in parameters])
        states = [self.state[p] for p in parameters]
        past = torch.stack([state.get("momentum_buffer", torch.zeros_like(p)) for state, p in zip(states, parameters)])
        past.lerp_(gradients, 1 - group["momentum"])
        update = orthogonal(gradients.lerp(past, group["momentum"]), group["ns_coefficients"], group["ns_steps"])
        rate = group["lr"] * 0.2 * math.sqrt(max(update.shape[1:]))  # `match_rms_adamw`
        for parameter, state, momentum, change in zip(parameters, states, past, update):
            state["momentum_buffer"] = momentum
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-rate)


def orthogonal(matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """Matrices (number, rows, columns) with all singular values near 1, by Newton and Schulz's iteration, in bfloat16
    where the machine has units for it (https://kellerjordan.github.io/posts/muon/)."""
    a, b, c = coefficients
    is_high = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_high else matrices).to(torch.bfloat16 if has_bfloat16(matrices.device) else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_high else x


def optimizers(model: nn.Module, rate) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices inside the layers, AdamW for embeddings, heads, norms and biases.

    `rate(name)` is the learning rate of the parameter of that name. Muon is slow: of several processes, each updates
    a share of the matrices and sends it to the others.
    """
    inner = inner_matrices(model)
    own = set(list(inner)[RANK::WORLD])
    matrices, others = {}, {}
    for name, parameter in model.named_parameters():
        if name not in inner or name in own:
            (matrices if name in inner else others).setdefault(rate(name), []).append(parameter)
    groups = [[{"params": params, "lr": lr} for lr, params in part.items()] for part in (matrices, others)]
    return [
        Muon(groups[0], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups[1], weight_decay=0.0, betas=(0.9, 0.98)),
    ]


class Run:
    """One resumable training run: `folder/state.pt`, `folder/log.jsonl` and a progress bar. Each process
    saves the state of its optimisers in a file of its own.

    Ends after `total` pictures or `minutes` of training, whichever comes first.
    """

    #: After so many batches in a row without a finite gradient, the run is given up.
    MAX_SKIPPED = 5
    #: Seconds from one save to the next.
    SAVE_EVERY = 120

    def __init__(
        self,
        folder: str,
        model: nn.Module,
        optimizers: list,
        total: int,
        minutes: float = math.inf,
    ):
        if total <= 0 or minutes <= 0:
            raise ValueError(f"Nothing to do: {total} pictures, {minutes} minutes; ask for more than 0 of both.")
        if WORLD > 1 and minutes < math.inf:
            raise ValueError("Several processes do not end at the same time: give pictures, not minutes.")
        self.folder, self.model, self.optimizers, self.total = Path(folder), model, optimizers, total
        self.seen, self.seconds, self.minutes = 0, 0.0, minutes
        self._peak = [group["lr"] for opt in optimizers for group in opt.param_groups]
        self._mean: dict[str, float] = {}
        self._skipped = 0
        self._evaluated = self._saved = time.monotonic()
        self._reported = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._memory = self.folder / f"optimizers{RANK}.pt"
        if (self.folder / "state.pt").exists():
            state = torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            self.seen, self.seconds = state["seen"], state["seconds"]
            self._reported = self.seen
            if self._memory.exists():
                memory = torch.load(self._memory, map_location="cpu", weights_only=True)
                for optimizer, saved in zip(optimizers, memory, strict=True):
                    try:
                        optimizer.load_state_dict(saved)
                    except ValueError as error:
                        raise ValueError(
                            f"{self.folder} was begun with another number of processes or other sizes; use the same, "
                            "or another --out."
                        ) from error

    @property
    def done(self) -> float:
        """The share of the run that is done, from 0 to 1."""
        return min(1.0, max(self.seen / self.total, self.seconds / 60 / self.minutes))

    def steps(self, batches, batch_size: int, evaluate=dict):
        """Yields batches until the run is done, counting and saving on the way. What `evaluate()` returns, scores by
        name, is added to the log now and then and at the end."""
        bar = tqdm(total=self.total, initial=self.seen, unit="pic", mininterval=5, smoothing=0.05, disable=RANK > 0)
        last = None
        for batch in batches:
            last = last or time.monotonic()  # the first batch takes a while to draw: that is not training yet
            if self.done == 1:
                break
            yield batch
            self.seen += batch_size * WORLD
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            bar.update(batch_size * WORLD)
            bar.set_postfix({name: f"{value:.3f}" for name, value in self._mean.items()}, refresh=False)
            if time.monotonic() - self._saved > self.SAVE_EVERY:
                self.save()
            if self._time_to_evaluate():
                self.report(evaluate)
        bar.close()
        self.save()
        if RANK == 0 and self.seen > self._reported:
            self.report(evaluate)

    def update(self, loss: torch.Tensor, **measures: float):
        """One optimiser step: warm-up over the first 2 %, then a cosine down to 2 % of the rate.

        A batch whose gradient is not finite is skipped; `MAX_SKIPPED` of them in a row raise `FloatingPointError`.
        """
        factor = min(1.0, (self.done + 1e-4) / 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))
        loss.backward()
        if WORLD > 1:
            average_gradients([p for p in self.model.parameters() if p.grad is not None])
        if not nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).isfinite():
            self._skip_batch()
            return
        self._skipped = 0
        peaks = iter(self._peak)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = next(peaks) * factor
            optimizer.step()
        self.model.zero_grad(set_to_none=True)  # also of parameters that other processes update
        if WORLD > 1:
            broadcast_matrices(list(inner_matrices(self.model).values()))
        for name, value in {"loss": loss.item(), **measures}.items():
            self._mean[name] = 0.98 * self._mean.get(name, value) + 0.02 * value

    def _skip_batch(self):
        self.model.zero_grad(set_to_none=True)
        self._skipped += 1
        tqdm.write(f"The batch after {self.seen} pictures has no finite gradient and is skipped.")
        if self._skipped == self.MAX_SKIPPED:
            raise FloatingPointError(
                f"{self._skipped} batches in a row had no finite gradient; begin from an older state, at a lower rate."
            )

    def _time_to_evaluate(self) -> bool:
        """True about every ten minutes on a CPU, where evaluating takes most of a minute; on a GPU every minute."""
        every = 60 if torch.cuda.is_available() else 600
        return RANK == 0 and time.monotonic() - self._evaluated > every

    @torch.no_grad()
    def report(self, evaluate):
        """Adds one line to the log: pictures seen, seconds, running means and the scores of `evaluate()`."""
        line = {"seen": self.seen, "seconds": round(self.seconds), **self._mean, **evaluate()}
        self._evaluated, self._reported = time.monotonic(), self.seen
        line = {name: round(value, 4) for name, value in line.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line))

    def save(self):
        """Replaces each file in one move, so that an interruption never leaves half of one."""
        self._saved = time.monotonic()
        self._write([optimizer.state_dict() for optimizer in self.optimizers], self._memory)
        if RANK == 0:
            state = {"model": self.model.state_dict(), "seen": self.seen, "seconds": self.seconds}
            self._write(state, self.folder / "state.pt")

    def _write(self, what, file: Path):
        torch.save(what, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
