"""One step of a training of a network on images, and its whole state as tensors and JSON.

Everything random comes from one generator on the CPU, so that a restored state goes on as if never interrupted.
Knows no files and no plan (`pureebm.training.run` has these), and no objective: `compute` is a subclass's affair.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pureebm.data.ranges import to_pm1
from pureebm.training.images import Images
from pureebm.training.settings import EnergySettings, Settings
from pureebm.training.watchdog import Watchdog
from pureebm.training.workers import Workers
from pureebm.types import JSON

_MULTISTEP = (40 / 120, 75 / 120, 100 / 120)  # of all steps: where the authors' rate falls tenfold


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps `start` .. `stop` - 1 of a run: which loss they minimise and from which rate."""

    name: str  # "warm", "dsm", "mle", "student", "ddpm" or "vq"
    start: int
    stop: int
    lr: float

    def rate(self, step: int, settings: Settings) -> float:
        """The learning rate at `step`."""
        done = step - self.start
        share = done / (self.stop - self.start)
        warmup = min(1.0, (done + 1) / (settings.lr_warmup + 1))
        if self.name != "mle":
            return self.lr * warmup * (1 + math.cos(math.pi * share)) / 2
        if isinstance(settings, EnergySettings) and settings.preset == "paper":
            return self.lr * warmup
        return self.lr * warmup * math.prod(0.1 for mark in _MULTISTEP if share >= mark)


class Step(NamedTuple):
    """What one step computed before its update."""

    loss: Tensor
    gap: Tensor | None = None  # (mean energy of data - mean energy of negatives) / T
    negatives: Tensor | None = None


class Stepper(ABC):
    """The moving parts of a training: network, average, optimiser, generator, and where it stands.

    Args:
        settings: resolved.
        network: untrained, on any device.
        images: (N, size, size, 3) uint8 to train on.
        workers: the processes that take part.
    """

    network_name: ClassVar[str] = "network"
    """Under which its tensors stand in a checkpoint."""
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    def __init__(
        self,
        settings: Settings,
        network: nn.Module,
        images: Images,
        workers: Workers,
    ) -> None:
        self.workers = workers
        self.images = torch.from_numpy(images)
        self.network = network
        self.network.to(workers.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.parameters: list[Tensor] = list(self.network.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.generator = torch.Generator().manual_seed(settings.seed * 1009 + workers.rank)
        self.watchdog = Watchdog()
        self.step = 0
        self.attempts = 0
        self.pending: list[list[float]] = []  # [loss, gradient norm, gap] of steps not yet in the log
        self._common = settings
        self.optimizer = self.make_optimizer()

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh one; its rate is set before every update."""

    @abstractmethod
    def compute(self, phase: Phase) -> Step:
        """Draw a batch and compute the phase's loss on it."""

    def enter(self, phase: Phase) -> None:
        """Begin a phase: from the averaged weights, with a fresh optimiser."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averaged, strict=True):
                parameter.copy_(average)
        self.optimizer = self.make_optimizer()
        self.watchdog = Watchdog()

    def batch(self) -> Tensor:
        """(batch, 3, size, size) in [-1, 1], on the device."""
        n = self._common.batch
        images = self.images[torch.randint(len(self.images), (n,), generator=self.generator)]
        images = images.to(self.workers.device).permute(0, 3, 1, 2)
        if self._common.augment == "flip":
            flipped = torch.rand(n, 1, 1, 1, generator=self.generator) < 0.5
            images = torch.where(flipped.to(images.device), images.flip(3), images)
        return to_pm1(images).contiguous(memory_format=self.memory_format)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise from the run's generator."""
        return torch.randn(like.shape, generator=self.generator).to(like, memory_format=self.memory_format)

    def advance(self, phase: Phase) -> str | None:
        """One step: loss, gradient, update, average. Returns the watchdog's sentence instead of updating."""
        step = self.compute(phase)
        self.optimizer.zero_grad()
        step.loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        numbers = torch.stack([step.loss.detach(), step.loss.new_zeros(()) if step.gap is None else step.gap])
        self.workers.average([*gradients, numbers])
        norm = torch.nn.utils.get_total_norm(gradients)
        loss, gap = numbers.tolist()
        problem = self.watchdog.check_step(loss, norm.item(), None if step.gap is None else gap)
        if problem is None and step.negatives is not None:
            problem = self.watchdog.check_negatives(step.negatives)
        if self.workers.count > 1 and self.workers.any(problem is not None):
            problem = problem or "another process reports a problem"
        if problem:
            return problem
        clip = known(self._common.grad_clip)
        if clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(self.step, self._common) * 0.5**self.attempts
        self.optimizer.step()
        self.step += 1
        decay = min(self._common.ema, 1 - 1 / (self.step - phase.start + 1))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - decay)
        self.pending.append([loss, norm.item(), gap])
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Everything of the state that is a tensor, by name; see `restore`."""
        state = {"generator": self.generator.get_state()}
        for name, module in ((self.network_name, self.network), ("average", self.average)):
            state |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for number, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{number}/{key}"] = value
        return state

    def state(self) -> JSON:
        """The rest of the state."""
        watchdog = {"gradients": self.watchdog.gradients, "gaps": self.watchdog.gaps}
        return {"step": self.step, "attempts": self.attempts, "pending": self.pending, "watchdog": watchdog}

    def restore(self, tensors: dict[str, Tensor], state: JSON) -> None:
        """Stand where `tensors()` and `state()` were taken."""
        self.generator.set_state(tensors["generator"])
        for name, module in ((self.network_name, self.network), ("average", self.average)):
            module.load_state_dict({key: tensors[f"{name}/{key}"] for key in module.state_dict()})
        self.optimizer = self.make_optimizer()
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                parameter = self.parameters[int(number)]
                like = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
                self.optimizer.state[parameter][key] = like.copy_(value)  # keeps the parameter's memory layout
        self.step, self.attempts, self.pending = state["step"], state["attempts"], state["pending"]
        self.watchdog = Watchdog(**state["watchdog"])


def known(value: float | None) -> float:
    """A number that a settings' `resolved` has filled in."""
    assert value is not None, "settings must be resolved"
    return value
