"""The training loop, with checkpoints."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


def save(value: object, path: Path) -> None:
    """Writes by way of a temporary file, so that an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(value, temporary)
    temporary.replace(path)


@dataclass
class Training:
    """One run of AdamW: warm-up, constant rate, linear decay to zero in the last 30 %.

    `loss` computes the loss of one fresh batch. The random state is part of a checkpoint, so an
    interrupted run repeats the undisturbed one. Afterwards the modules hold a running average of
    their weights; those averages at the steps `snapshots` are kept in files.
    """

    name: str
    modules: nn.ModuleDict
    loss: Callable[[], Tensor]
    steps: int
    rate: float
    work: Path
    warmup: int = 100
    decay: float = 0.995
    weight_decay: float = 0.01
    every: int = 100
    snapshots: tuple[int, ...] = ()

    def run(self) -> None:
        """Trains, or goes on from the checkpoint, or returns at once what is finished."""
        names, parameters = zip(*self.modules.named_parameters(), strict=True)
        optimiser = torch.optim.AdamW(
            parameters, lr=self.rate, betas=(0.9, 0.98), weight_decay=self.weight_decay
        )
        average = [p.detach().clone() for p in parameters]
        path = self.work / self.name / "checkpoint.pt"
        step, seconds = 0, 0.0
        if path.exists():
            state = torch.load(path)
            self.modules.load_state_dict(state["modules"])
            optimiser.load_state_dict(state["optimiser"])
            average, step, seconds = state["average"], state["step"], state["seconds"]
            torch.set_rng_state(state["random"])
        self.modules.train()
        started, total = time.perf_counter() - seconds, 0.0
        while step < self.steps:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * self._schedule(step)
            loss = self.loss()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            weight = 1 - min(self.decay, step / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
            total += loss.item()
            if step % self.every == 0 or step == self.steps:
                seconds = time.perf_counter() - started
                mean, total = total / self.every, 0.0
                print(f"{self.name}: step {step}/{self.steps} loss {mean:.4f} {seconds:.0f} s")
                state = {
                    "modules": self.modules.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average,
                    "step": step,
                    "seconds": seconds,
                    "random": torch.get_rng_state(),
                }
                save(state, path)
            if step in self.snapshots:
                save(dict(zip(names, average, strict=True)), path.with_name(f"step-{step}.pt"))
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
        self.modules.eval()

    def _schedule(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (0.3 * self.steps))


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Endless random batches of row numbers below `count`."""
    while True:
        yield torch.randint(count, (size,))
