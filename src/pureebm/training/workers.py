"""The processes that train together: one by default, several through `accelerate` (an extra).

Each process draws its own batches; gradients are averaged, so that the weights of all stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pureebm.errors import InputError


class Workers:
    """One process, alone."""

    rank = 0
    count = 1

    def __init__(self, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.largest(float(flag)) > 0

    def largest(self, value: float) -> float:
        """The largest of the processes' values."""
        return value

    def close(self) -> None:
        """Wait for the others at the end, so that none leaves while another needs it."""


class AccelerateWorkers(Workers):
    """The processes that `accelerate launch` or `torchrun` started."""

    def __init__(self, device: str = "auto") -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise InputError("--accelerate needs the extra: pip install 'pureebm[multi]'") from error
        self._accelerator = Accelerator(cpu=device == "cpu")
        self.device = self._accelerator.device
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes

    def average(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        flat = self._accelerator.reduce(flat, reduction="mean")
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def largest(self, value: float) -> float:
        mine = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(self._accelerator.gather(mine).max())

    def close(self) -> None:
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
