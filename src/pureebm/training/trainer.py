"""The moving parts of a training of an energy: one step of it, and its whole state as tensors and JSON.

Everything random comes from one generator on the CPU, so that a restored state goes on as if never interrupted.
Knows no files and no plan; `pureebm.training.energy` runs it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pureebm.data.ranges import to_pm1
from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, langevin
from pureebm.training import objectives
from pureebm.training.bank import Bank, rejuvenate
from pureebm.training.images import Images
from pureebm.training.settings import EnergySettings
from pureebm.training.watchdog import Watchdog
from pureebm.training.workers import Workers
from pureebm.types import JSON

Network = LocalEnergy | SNGANEnergy

_MULTISTEP = (40 / 120, 75 / 120, 100 / 120)  # of all steps: where the authors' rate falls tenfold


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps `start` .. `stop` - 1 of a run: which loss they minimise and from which rate."""

    name: str  # "warm", "dsm" or "mle"
    start: int
    stop: int
    lr: float

    def rate(self, step: int, settings: EnergySettings) -> float:
        """The learning rate at `step`."""
        done = step - self.start
        share = done / (self.stop - self.start)
        warmup = min(1.0, (done + 1) / (settings.lr_warmup + 1))
        if self.name != "mle":
            return self.lr * warmup * (1 + math.cos(math.pi * share)) / 2
        if settings.preset == "paper":
            return self.lr * warmup
        return self.lr * warmup * math.prod(0.1 for mark in _MULTISTEP if share >= mark)


class Step(NamedTuple):
    """What one step computed before its update."""

    loss: Tensor
    gap: Tensor | None = None  # (mean energy of data - mean energy of negatives) / T
    negatives: Tensor | None = None


class Trainer:
    """The moving parts of a training: network, average, optimiser, bank, generator, and where it stands.

    Args:
        settings: resolved, see `EnergySettings.resolved`.
        images: (N, size, size, 3) uint8 to train on.
        workers: the processes that take part.
    """

    def __init__(self, settings: EnergySettings, images: Images, workers: Workers) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.workers = workers
        self.images = torch.from_numpy(images)
        self.energy: Network = build_energy(settings)
        self.energy.to(workers.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.energy).requires_grad_(False).eval()
        self.parameters: list[Tensor] = list(self.energy.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.generator = torch.Generator().manual_seed(settings.seed * 1009 + workers.rank)
        self.watchdog = Watchdog()
        self.step = 0
        self.attempts = 0
        self.pending: list[list[float]] = []  # [loss, gradient norm, gap] of steps not yet in the log
        self.bank: Bank | None = Bank(self._first_negatives()) if settings.objective == "mle" else None
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.settings.objective == "mle" and self.settings.preset == "paper":
            return torch.optim.SGD(self.parameters, lr=1.0, fused=True)
        return torch.optim.Adam(self.parameters, lr=1.0, fused=True)

    def _first_negatives(self) -> Tensor:
        size = (self.settings.bank_size, 3, self.settings.size, self.settings.size)
        if self.settings.preset == "paper":
            return torch.rand(size, generator=self.generator) * 2 - 1
        chosen = torch.randint(len(self.images), size[:1], generator=self.generator)
        images = to_pm1(self.images[chosen].permute(0, 3, 1, 2))
        return images + known(self.settings.data_noise) * torch.randn(size, generator=self.generator)

    def enter(self, phase: Phase) -> None:
        """Begin a phase: from the averaged weights, with a fresh optimiser."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averaged, strict=True):
                parameter.copy_(average)
        self.optimizer = self._optimizer()
        self.watchdog = Watchdog()

    def batch(self) -> Tensor:
        """(batch, 3, size, size) in [-1, 1], on the device, channels last."""
        n = self.settings.batch
        images = self.images[torch.randint(len(self.images), (n,), generator=self.generator)]
        images = images.to(self.workers.device).permute(0, 3, 1, 2)
        if self.settings.augment == "flip":
            flipped = torch.rand(n, 1, 1, 1, generator=self.generator) < 0.5
            images = torch.where(flipped.to(images.device), images.flip(3), images)
        return to_pm1(images).contiguous(memory_format=torch.channels_last)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise from the run's generator."""
        return torch.randn(like.shape, generator=self.generator).to(like, memory_format=torch.channels_last)

    def compute(self, phase: Phase) -> Step:
        """Draw a batch and compute the phase's loss on it."""
        clean = self.batch()
        if phase.name == "mle":
            return self._likelihood(clean)
        low, high = math.log(self.settings.sigma_min), math.log(self.settings.sigma_max)
        sigma = torch.exp(low + (high - low) * torch.rand(len(clean), 1, 1, 1, generator=self.generator))
        sigma, z = sigma.to(clean.device), self.normal(clean)
        target = self.coordinates(clean)
        low_precision = self.settings.precision == "bfloat16"
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=low_precision):
            if phase.name == "warm":
                assert isinstance(self.energy, LocalEnergy)
                return Step(objectives.warm_start_loss(self.energy.restore, target, sigma, z))
            unit, energy = known(self.settings.energy_unit), self.energy
            potential = energy.potential if isinstance(energy, LocalEnergy) else energy
            return Step(objectives.score_matching_loss(potential, target, sigma, z, unit=unit))

    def coordinates(self, images: Tensor) -> Tensor:
        """Images as the network sees them: whitened, if it is made for colored noise."""
        whitening = self.energy.whitening if isinstance(self.energy, LocalEnergy) else None
        return whitening.whiten(images).contiguous(memory_format=torch.channels_last) if whitening else images

    def _likelihood(self, clean: Tensor) -> Step:
        assert self.bank is not None
        settings, noise = self.settings, known(self.settings.data_noise)
        positive = clean + noise * self.normal(clean)
        indices = self.bank.draw(len(positive), self.generator)
        chains = LangevinConfig(
            n_steps=settings.chain_steps, step_size=settings.chain_step_size, temperature=settings.temperature
        )
        start = self.bank.images[indices].to(clean.device, memory_format=torch.channels_last)
        negative = langevin(self.energy, start, chains, noise=lambda step, like: self.normal(like))
        self.bank.put(indices, rejuvenate(negative, positive, settings.rejuvenation, noise, self.generator))
        loss = objectives.maximum_likelihood_loss(self.energy, positive, negative, settings.temperature)
        return Step(loss, loss.detach(), negative)

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
        clip = known(self.settings.grad_clip)
        if clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(self.step, self.settings) * 0.5**self.attempts
        self.optimizer.step()
        self.step += 1
        decay = min(self.settings.ema, 1 - 1 / (self.step - phase.start + 1))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - decay)
        self.pending.append([loss, norm.item(), gap])
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Everything of the state that is a tensor, by name; see `restore`."""
        state = {"generator": self.generator.get_state()}
        for name, module in (("energy", self.energy), ("average", self.average)):
            state |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for number, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{number}/{key}"] = value
        if self.bank is not None:
            state["bank"] = self.bank.images
        return state

    def state(self) -> JSON:
        """The rest of the state."""
        watchdog = {"gradients": self.watchdog.gradients, "gaps": self.watchdog.gaps}
        return {"step": self.step, "attempts": self.attempts, "pending": self.pending, "watchdog": watchdog}

    def restore(self, tensors: dict[str, Tensor], state: JSON) -> None:
        """Stand where `tensors()` and `state()` were taken."""
        self.generator.set_state(tensors["generator"])
        for name, module in (("energy", self.energy), ("average", self.average)):
            module.load_state_dict({key: tensors[f"{name}/{key}"] for key in module.state_dict()})
        self.optimizer = self._optimizer()
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                parameter = self.parameters[int(number)]
                like = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
                self.optimizer.state[parameter][key] = like.copy_(value)  # keeps the parameter's memory layout
        if self.bank is not None:
            self.bank = Bank(tensors["bank"])
        self.step, self.attempts, self.pending = state["step"], state["attempts"], state["pending"]
        self.watchdog = Watchdog(**state["watchdog"])


def build_energy(settings: EnergySettings) -> Network:
    """The untrained network that the settings describe, or the weights that they start from."""
    if settings.model == "local":
        energy: Network = LocalEnergy(settings.widths, settings.blocks, settings.whiten, settings.chroma)
    else:
        energy = SNGANEnergy(settings.width, train_size=settings.size)
    if settings.init is None:
        return energy
    loaded = load_model(settings.init).energy
    assert isinstance(loaded, Network)
    if loaded.config != energy.config:
        raise InputError(f"{settings.init} is {loaded.config}, the settings ask for {energy.config}; make them agree")
    return loaded.requires_grad_(True)


def known(value: float | None) -> float:
    """A number that `EnergySettings.resolved` has filled in."""
    assert value is not None, "settings must be resolved"
    return value
