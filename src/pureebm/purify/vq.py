"""A vector-quantized autoencoder as a purifier: one pass, no noise. A baseline beside JPEG, blur and DDPM.

The encoder makes of an image x a grid of vectors z(x); each is replaced by the nearest of K learned codes e_1 .. e_K;
the decoder makes an image of the grid again:

    k(x)  =  argmin_j |z(x) - e_j|^2         x'  =  decode(e_k(x))

As in JPEG, what survives is what the codes can say; they say what images are mostly made of. Knows nothing of training
(`pureebm.training.vq`).

Source: van den Oord, Vinyals & Kavukcuoglu, arXiv 1711.00937.
Differs: a grid of half the resolution, where the paper's is a quarter (8 x 8 codes are little for 32 px); fewer
    channels; sides that are no multiple of what the network needs are padded by replication.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.energy.networks import check_images, pad_to_multiple
from pureebm.energy.weights import LoadedModel, card_beside, load_of
from pureebm.errors import InputError
from pureebm.purify.stages import has_fast_bfloat16
from pureebm.types import JSON

DEFAULT_VQ = "vq-32"
"""The bundled weights: `purify/models/NAME.safetensors`."""


class VQAutoencoder(nn.Module):
    """Encoder, codes and decoder; fully convolutional.

    Args:
        width: channels of encoder and decoder.
        layers: residual blocks of each of them.
        n_codes: K.
        code_dim: length of a code.
        halvings: the grid has 1 / 2**halvings of the resolution.
    """

    architecture: ClassVar[str] = "vq"

    def __init__(
        self, width: int = 96, layers: int = 2, n_codes: int = 512, code_dim: int = 32, halvings: int = 1
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "layers": layers, "n_codes": n_codes}
        self.config |= {"code_dim": code_dim, "halvings": halvings}
        if not all(type(value) is int and value > 0 for value in self.config.values()) or halvings > 4:
            raise InputError(f"sizes must be whole numbers above 0, and halvings at most 4, got {self.config}")
        self.multiple = 2**halvings
        sides = [3, *[width] * halvings]
        down = [nn.Conv2d(above, width, 4, stride=2, padding=1) for above in sides[:-1]]
        up = [nn.ConvTranspose2d(width, above, 4, stride=2, padding=1) for above in reversed(sides[:-1])]
        self.encoder = nn.Sequential(*_between_relus(down), *_blocks(width, layers), nn.Conv2d(width, code_dim, 1))
        first = nn.Conv2d(code_dim, width, 3, padding=1)
        self.decoder = nn.Sequential(first, *_blocks(width, layers), nn.ReLU(), *_between_relus(up))
        self.codes = nn.Parameter(torch.randn(n_codes, code_dim), requires_grad=False)  # (K, D); moved by training.vq

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1], sides multiples of `multiple` -> z: (N, D, h, w) float32."""
        z: Tensor = self.encoder(images)
        return z.float()

    def nearest(self, z: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, h, w) int64: for each vector the number of its code.

        Always in float32, one product an image: neighbors in the batch change nothing.
        """
        vectors = z.float().flatten(2).transpose(1, 2)  # (N, h * w, D)
        lengths = self.codes.square().sum(1)
        with torch.autocast(z.device.type, enabled=False):  # |z - e|^2 / 2, less |z|^2 / 2 that all codes share
            far = torch.baddbmm(lengths[None, None], vectors, self.codes.T.expand(len(z), -1, -1), beta=0.5, alpha=-1)
        return far.min(2).indices.view(len(z), *z.shape[2:])

    def embed(self, numbers: Tensor) -> Tensor:
        """(N, h, w) numbers of codes -> (N, D, h, w)."""
        return F.embedding(numbers, self.codes).permute(0, 3, 1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, 3, H, W) float32."""
        images: Tensor = self.decoder(codes)
        return images.float()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1], at least 16 px -> the same shape, float32; may leave [-1, 1] a little."""
        check_images(images)
        z = self.encode(pad_to_multiple(images, self.multiple))
        return self.decode(self.embed(self.nearest(z)))[:, :, : images.shape[2], : images.shape[3]]


def _between_relus(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers, with a ReLU between two of them."""
    return [part for layer in layers for part in (nn.ReLU(), layer)][1:]


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [_Block(width) for _ in range(count)]


class _Block(nn.Module):
    """The paper's: h + 1x1(relu(3x3(relu(h))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        main: Tensor = self.c2(F.relu(self.c1(F.relu(h))))
        return h + main


class VQStage:
    """Every image is encoded, quantized and decoded once. Draws nothing and has no energy.

    Args:
        model: as `load_vq` gave it, or a network.
        precision: of the convolutions, "float32", "bfloat16", or "auto": bfloat16 where the processor multiplies it in
            hardware. The codes are chosen in float32 always.

    Raises:
        InputError: an unknown precision.
    """

    def __init__(
        self, model: LoadedModel | VQAutoencoder, *, device: torch.device | str = "cpu", precision: str = "auto"
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
        self.device = torch.device(device)
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16(self.device) else "float32"
        self.precision = precision
        network = model.network if isinstance(model, LoadedModel) else model
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.model: JSON = model.describe() if isinstance(model, LoadedModel) else {"name": "user network"}

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1] -> the same shape on the CPU; `ids` and `seed` change nothing."""
        bfloat16 = self.precision == "bfloat16"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            out: Tensor = self.network(images.to(self.device))
        return out.cpu().contiguous()

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> JSON:
        return {"stage": "vq", "model": self.model, "precision": self.precision, "device": self.device.type}


def bundled_vq() -> Path:
    """The bundled weights file; its card has the suffix .json."""
    return Path(str(resources.files("pureebm") / "purify" / "models" / f"{DEFAULT_VQ}.safetensors"))


def is_vq(name: str | Path) -> bool:
    """Whether a name is that of the bundled autoencoder, or of a file or folder of one, by its card alone."""
    try:
        return str(name) == DEFAULT_VQ or card_beside(name).get("architecture") == VQAutoencoder.architecture
    except (InputError, OSError):
        return False


def load_vq(name: str | Path = DEFAULT_VQ, device: torch.device | str = "cpu") -> LoadedModel:
    """Load the bundled autoencoder, a `.safetensors` file, a run's folder, or `hf:owner/name`.

    Raises:
        ModelError: missing file, wrong hash, names or shapes, or a hub out of reach.
    """
    return load_of({VQAutoencoder.architecture: VQAutoencoder}, {DEFAULT_VQ: bundled_vq()}, name, device)
