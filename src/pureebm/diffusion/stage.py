"""PureGen-DDPM as a stage: batches in, batches out; no files, no journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.diffusion.process import DDPMConfig, ddpm
from pureebm.diffusion.weights import LoadedDDPM, multiple, predict_noise
from pureebm.errors import InputError
from pureebm.sampling.noise import CounterNoise
from pureebm.types import JSON


class DDPMStage:
    """Every image is noised up to `config.level` and walked back by the network.

    Args:
        model: as `load_ddpm` gave it; a bare `UNet2DModel` is taken as trained on all levels.
        device: "cpu", "cuda", "cuda:1", ...
        precision: of the network's products, "float32" or "bfloat16"; the state is float32 always.

    An image whose sides are no multiple of what the network needs is padded at its right and bottom by replication,
    goes through all steps so, and is cut back at the end. It has no energy.

    Raises:
        InputError: the level lies beyond those that the model has learned.
    """

    def __init__(
        self,
        model: LoadedDDPM | nn.Module,
        config: DDPMConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"the precision of a DDPM must be float32 or bfloat16, got {precision!r}")
        loaded = model if isinstance(model, LoadedDDPM) else LoadedDDPM("user network", model, {}, "")
        self.config = config or DDPMConfig()
        if self.config.level > loaded.levels:
            raise InputError(
                f"{loaded.name} has learned {loaded.levels} levels of noise; level {self.config.level} is beyond them"
            )
        self.device, self.precision = torch.device(device), precision
        self.network = loaded.network.eval().requires_grad_(False).to(self.device)
        self.model = loaded.describe()

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1] and N ids -> the same shape on the CPU."""
        height, width = images.shape[2:]
        step = multiple(self.network)
        x = F.pad(images.to(self.device), (0, -width % step, 0, -height % step), mode="replicate")
        out = ddpm(self._predict, x, self.config, noise=CounterNoise(seed, ids, device=self.device))
        return out[:, :, :height, :width].cpu().contiguous()

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> JSON:
        return {
            "stage": "ddpm",
            "model": self.model,
            **dataclasses.asdict(self.config),
            "precision": self.precision,
            "device": self.device.type,
        }

    @torch.no_grad()
    def _predict(self, x: Tensor, level: int) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return predict_noise(self.network, x, level).float()
