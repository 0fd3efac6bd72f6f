"""NTGA: change every training image a little, so that what is learned from the set does not generalize. Availability.

    max over |x' - x|_inf <= eps of  CE(f_t(validation images; x'), their labels)
    f_t(v) = Theta(v, x') Theta(x', x')^-1 (I - exp(-t Theta(x', x') / (n C))) y

f_t is the mean prediction of an infinitely wide network that gradient descent on x' (halved mean squared error) has
trained for the time t. Theta is its neural tangent kernel, in closed form and float64: here of a fully connected net
(five Erf layers) or a convolutional one (two 5 x 5 convolutions of stride 2, two dense layers, ReLU). The set is
attacked in blocks, each as if it were all of the training set.

Source: Yuan and Wu, ICML 2021; kernels as Jacot et al., arXiv 1806.07572, and Novak et al., arXiv 1912.02803,
with the constants of the authors' code: weights of variance 1.76, biases of 0.18^2, diagonal regularization of 1e-4 of
the mean, 10 steps of 1.1 eps / 10, t = 4096 (fully connected) and 8 (convolutional) on CIFAR-10, blocks of 512.
Differs: the authors' loop begins each of its 10 iterations at the clean images with the full eps, and so takes a
single step; here it iterates, and does what theirs does with `single_step`. Their validation images are 10,000 of the
training set that nobody trains on; here each block's are clean images from the other blocks, so that the whole set
is poisoned, and none is left over at its end. The convolutional block is 128 images by default for memory's sake.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pureebm.attacks.base import Attacker, AvailabilityGoal, LabeledSet, Poisoned, within
from pureebm.errors import InputError

WEIGHT_VARIANCE = 1.76
BIAS_VARIANCE = 0.18**2
REGULARIZATION = 1e-4
_PUBLISHED = {"dense": (4096.0, 512), "conv": (8.0, 128)}  # time, block

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Two sets of images (N, 3, H, W) and (M, 3, H, W), float64 in [0, 1] -> their tangent kernel (N, M)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The budget, the surrogate and the search. What is None has the surrogate's own value."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255"] = 8
    surrogate: Annotated[Literal["dense", "conv"], "the infinitely wide network; conv takes much longer"] = "dense"
    time: Annotated[float | None, "how long it has trained (dense 4096, conv 8)"] = None
    n_steps: Annotated[int, "steps of the search"] = 10
    block_size: Annotated[int | None, "images attacked together (dense 512, conv 128)"] = None
    n_validation: Annotated[int, "clean images of other blocks that a block is to be useless for"] = 256
    single_step: Annotated[bool, "begin every step at the clean image with all of eps, as the authors' code"] = False

    def __post_init__(self) -> None:
        if self.surrogate not in _PUBLISHED:
            raise InputError(f"surrogate must be dense or conv, got {self.surrogate!r}")
        if not 0 < self.eps <= 255 or self.n_steps < 1 or self.n_validation < 1:
            raise InputError(
                f"eps must be 1 to 255, n_steps and n_validation >= 1, got {self.eps}, {self.n_steps} and "
                f"{self.n_validation}"
            )
        if (self.time is not None and not self.time > 0) or (self.block_size is not None and self.block_size < 1):
            raise InputError(f"time must be above 0 and block_size >= 1, got {self.time} and {self.block_size}")


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison every image. Raises `InputError` for a set of fewer than 2 images."""
    began = time.perf_counter()
    if len(data) < 2:
        raise InputError(f"{len(data)} images cannot be split into blocks; give at least 2")
    generator = torch.Generator().manual_seed(seed)
    size = min(config.block_size or _PUBLISHED[config.surrogate][1], math.ceil(len(data) / 2))
    order = torch.randperm(len(data), generator=generator)
    blocks = order.tensor_split(math.ceil(len(data) / size))
    images, before, after = data.images.clone(), 0.0, 0.0
    for number, block in enumerate(blocks):
        others = torch.cat([other for other in blocks if other is not block])
        validation = others[torch.randperm(len(others), generator=generator)[: config.n_validation]]
        images[block], losses = poison_block(data, block, validation, config, attacker.device)
        before, after = before + losses[0] * len(block) / len(data), after + losses[1] * len(block) / len(data)
        attacker.report(f"block {number + 1} of {len(blocks)}: loss {losses[0]:.3f} -> {losses[1]:.3f}")
    record = {
        "attack": "ntga",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "surrogate_loss": [before, after],
    }
    return Poisoned(torch.arange(len(data)), images, data.labels.clone(), AvailabilityGoal(), record)


def poison_block(
    data: LabeledSet, block: Tensor, validation: Tensor, config: Config, device: str
) -> tuple[Tensor, tuple[float, float]]:
    """The block's images (B, H, W, 3) uint8, poisoned, and the surrogate's loss with the clean and these images."""
    kernel = dense_kernel if config.surrogate == "dense" else conv_kernel
    until = config.time or _PUBLISHED[config.surrogate][0]
    clean, others = _unit(data.images[block], device), _unit(data.images[validation], device)
    y = F.one_hot(data.labels[block], data.n_classes).to(clean)
    answers = data.labels[validation].to(device)

    def loss(x: Tensor) -> Tensor:
        value: Tensor = F.cross_entropy(predict(kernel, others, x, y, until), answers)
        return value

    eps, x = config.eps / 255, clean
    step = eps if config.single_step else 1.1 * eps / config.n_steps
    for _ in range(1 if config.single_step else config.n_steps):
        x = x.detach().requires_grad_()
        moved = x.detach() + step * torch.autograd.grad(loss(x), x)[0].sign()
        x = moved.clamp(clean - eps, clean + eps).clamp(0, 1)
    poisoned = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    poisoned = within(poisoned, data.images[block], config.eps)
    with torch.no_grad():
        return poisoned, (loss(clean).item(), loss(_unit(poisoned, device)).item())


def predict(kernel: Kernel, test: Tensor, train: Tensor, y: Tensor, until: float) -> Tensor:
    """f_t of the test images (M, C), for training images (N, 3, H, W) and their one-hot labels (N, C)."""
    theta = kernel(train, train)
    theta = theta + REGULARIZATION * theta.diagonal().mean() * torch.eye(len(theta)).to(theta)
    learned: Tensor = _Learned.apply(theta, until / y.numel())  # type: ignore[no-untyped-call]
    prediction: Tensor = kernel(test, train) @ (learned @ y)
    return prediction


class _Learned(torch.autograd.Function):
    """g(A) = A^-1 (I - exp(-s A)) of a symmetric A, with a gradient that does not fear equal eigenvalues.

    With A = U diag(a) U^T, dg = U (G * (U^T dA U)) U^T where G_ij = (g(a_i) - g(a_j)) / (a_i - a_j), or g'(a_i).
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, s: float) -> Tensor:
        values, vectors = torch.linalg.eigh(a)
        values = values.clamp(min=torch.finfo(a.dtype).tiny)
        ctx.save_for_backward(values, vectors)
        ctx.s = s
        learned: Tensor = vectors * _share_learned(values, s) @ vectors.T
        return learned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        gap = values[:, None] - values
        middle = (values[:, None] + values) / 2
        near = gap.abs() <= 1e-5 * middle
        g = _share_learned(values, ctx.s)
        exact = (g[:, None] - g) / torch.where(near, torch.ones_like(gap), gap)
        slope = torch.where(near, _slope(middle, ctx.s), exact)
        return vectors @ (slope * (vectors.T @ grads[0] @ vectors)) @ vectors.T, None


def _share_learned(a: Tensor, s: float) -> Tensor:
    """(1 - exp(-s a)) / a, for a > 0."""
    return -torch.expm1(-s * a) / a


def _slope(a: Tensor, s: float) -> Tensor:
    """Its derivative (exp(-s a) (1 + s a) - 1) / a^2; by its series where s a is small."""
    z = s * a
    series = s**2 * (-0.5 + z / 3 - z.square() / 8)
    return torch.where(z < 1e-4, series, (torch.exp(-z) * (1 + z) - 1) / a.square())


def dense_kernel(x1: Tensor, x2: Tensor) -> Tensor:
    """Five dense layers with Erf between them and a last one that reads out: (N, M)."""
    flat1, flat2 = x1.flatten(1), x2.flatten(1)
    across = flat1 @ flat2.T / flat1.shape[1]
    own1, own2 = flat1.square().mean(dim=1), flat2.square().mean(dim=1)
    tangent = torch.zeros_like(across)
    for layer in range(6):
        across, own1, own2 = (_affine(covariance) for covariance in (across, own1, own2))
        tangent = WEIGHT_VARIANCE * tangent + across
        if layer < 5:
            scale = (1 + 2 * own1)[:, None] * (1 + 2 * own2)
            tangent = tangent * (4 / torch.pi) / (scale - 4 * across.square()).sqrt()
            across = (2 / torch.pi) * torch.asin(2 * across / scale.sqrt())
            own1, own2 = ((2 / torch.pi) * torch.asin(2 * own / (1 + 2 * own)) for own in (own1, own2))
    return tangent


def conv_kernel(x1: Tensor, x2: Tensor) -> Tensor:
    """Two convolutions of 5 x 5 and stride 2, flattened, two dense layers, ReLU between them, and a readout: (N, M).

    Without pooling only covariances of a place with itself matter: (N, M, h, w) of them. Rows are computed a few at a
    time and, for the gradient, once more.
    """
    rows = max(1, 2**22 // max(1, len(x2) * x1[0, 0].numel()))
    parts: list[Tensor] = []
    for part in torch.split(x1, rows):
        made: Tensor = checkpoint(_conv_rows, part, x2, use_reentrant=False)
        parts.append(made)
    return torch.cat(parts)


def _conv_rows(x1: Tensor, x2: Tensor) -> Tensor:
    across = torch.einsum("nchw,mchw->nmhw", x1, x2) / x1.shape[1]
    own1, own2 = x1.square().mean(dim=1), x2.square().mean(dim=1)
    tangent = torch.zeros_like(across)
    for _ in range(2):
        tangent = WEIGHT_VARIANCE * _patches(tangent)
        across, own1, own2 = (_affine(_patches(covariance)) for covariance in (across, own1, own2))
        across, tangent = _relu(across, tangent + across, own1[:, None], own2[None])
        own1, own2 = own1 / 2, own2 / 2
    across, tangent = across.mean(dim=(2, 3)), tangent.mean(dim=(2, 3))  # flattened: places are features now
    own1, own2 = own1.mean(dim=(1, 2)), own2.mean(dim=(1, 2))
    for layer in range(3):
        across, own1, own2 = (_affine(covariance) for covariance in (across, own1, own2))
        tangent = WEIGHT_VARIANCE * tangent + across
        if layer < 2:
            across, tangent = _relu(across, tangent, own1[:, None], own2)
            own1, own2 = own1 / 2, own2 / 2
    return tangent


def _affine(covariance: Tensor) -> Tensor:
    return WEIGHT_VARIANCE * covariance + BIAS_VARIANCE


def _patches(covariance: Tensor) -> Tensor:
    """(..., h, w) -> (..., ceil(h / 2), ceil(w / 2)): the mean over 5 x 5 places, zeros beside the image ("SAME")."""
    h, w = covariance.shape[-2:]
    high, wide = max((-(-h // 2) - 1) * 2 + 5 - h, 0), max((-(-w // 2) - 1) * 2 + 5 - w, 0)
    padded = F.pad(covariance, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
    pooled = F.avg_pool2d(padded.reshape(-1, 1, *padded.shape[-2:]), 5, stride=2)
    return pooled.reshape(*covariance.shape[:-2], *pooled.shape[-2:])


def _relu(across: Tensor, tangent: Tensor, own1: Tensor, own2: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance and tangent kernel behind a ReLU (the arc-cosine kernels of order 1 and 0)."""
    scale = (own1 * own2).sqrt()
    cosine = (across / scale).clamp(-1 + 1e-12, 1 - 1e-12)  # at 1, an image with itself, its gradient is truly 0
    angle = torch.acos(cosine)
    behind = scale * ((1 - cosine.square()).sqrt() + (torch.pi - angle) * cosine) / (2 * torch.pi)
    return behind, tangent * (torch.pi - angle) / (2 * torch.pi)


def _unit(images: Tensor, device: str) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float64 in [0, 1]."""
    return images.to(device).permute(0, 3, 1, 2).double() / 255
