"""The training of an energy, step by step: its network, its bank, and the loss of each phase.

What it shares with other trainings is in `pureebm.training.stepper`; `pureebm.training.energy` runs it.
"""

from __future__ import annotations

import math
from typing import ClassVar

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
from pureebm.training.stepper import Phase, Step, Stepper, known
from pureebm.training.workers import Workers
from pureebm.types import JSON

Network = LocalEnergy | SNGANEnergy


class Trainer(Stepper):
    """The moving parts of a training of an energy: those of every training, and the bank of negatives.

    Args:
        settings: resolved, see `EnergySettings.resolved`.
        images: (N, size, size, 3) uint8 to train on.
        workers: the processes that take part.
    """

    network_name: ClassVar[str] = "energy"
    network: Network
    average: Network

    def __init__(self, settings: EnergySettings, images: Images, workers: Workers) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        super().__init__(settings, build_energy(settings), images, workers)
        self.bank: Bank | None = Bank(self._first_negatives()) if settings.objective == "mle" else None

    def make_optimizer(self) -> torch.optim.Optimizer:
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
            if phase.name == "warm" or self.settings.residual:
                assert isinstance(self.network, LocalEnergy)
                return Step(objectives.warm_start_loss(self.network.restore, target, sigma, z))
            unit, energy = known(self.settings.energy_unit), self.network
            potential = energy.potential if isinstance(energy, LocalEnergy) else energy
            return Step(objectives.score_matching_loss(potential, target, sigma, z, unit=unit))

    def coordinates(self, images: Tensor) -> Tensor:
        """Images as the network sees them: whitened, if it is made for colored noise."""
        whitening = self.network.whitening if isinstance(self.network, LocalEnergy) else None
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
        negative = langevin(self.network, start, chains, noise=lambda step, like: self.normal(like))
        self.bank.put(indices, rejuvenate(negative, positive, settings.rejuvenation, noise, self.generator))
        loss = objectives.maximum_likelihood_loss(self.network, positive, negative, settings.temperature)
        return Step(loss, loss.detach(), negative)

    def tensors(self) -> dict[str, Tensor]:
        """As every training's, and the bank."""
        return super().tensors() | ({} if self.bank is None else {"bank": self.bank.images})

    def restore(self, tensors: dict[str, Tensor], state: JSON) -> None:
        """As every training's, and the bank."""
        super().restore(tensors, state)
        if self.bank is not None:
            self.bank = Bank(tensors["bank"])


def build_energy(settings: EnergySettings) -> Network:
    """The untrained network that the settings describe, or the weights that they start from."""
    if settings.model == "local":
        energy: Network = LocalEnergy(
            settings.widths, settings.blocks, settings.whiten, settings.chroma, settings.residual
        )
    else:
        energy = SNGANEnergy(settings.width, train_size=settings.size)
    if settings.init is None:
        return energy
    loaded = load_model(settings.init).energy
    assert isinstance(loaded, Network)
    if loaded.config != energy.config:
        raise InputError(f"{settings.init} is {loaded.config}, the settings ask for {energy.config}; make them agree")
    return loaded.requires_grad_(True)
