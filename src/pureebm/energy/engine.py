"""The score of an energy: grad E by the exact engine where the network is known, by autograd where it is not.

    score = make_score(energy)     # score.name is "exact" or "eager", score.why says why
    _, gradient = score(images)    # (N, 3, H, W) -> (N, 3, H, W)

The exact engine is the explicit graph of `engine_graphs`, under inference mode. On processors a batch passes in equal
parts that fit the shared cache. Nothing here knows of sampling's settings or of files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from pureebm.energy.engine_graphs import LocalGraph, SNGANGraph
from pureebm.energy.networks import LocalEnergy, SNGANEnergy, check_images
from pureebm.errors import InputError
from pureebm.sampling.langevin import energy_and_gradient
from pureebm.types import Energy

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

PART_BYTES = 8 * 2**20
"""Largest activation of one part of a batch on a processor."""

CHECK_LIMIT = {"float32": 1e-4, "bfloat16": 0.05, "float64": 1e-10}
"""Largest relative error (L2) of an ordinary image's gradient against autograd's that `checked` accepts."""

Graph = Callable[[Tensor, bool], tuple[Tensor | None, Tensor]]


class EagerScore:
    """The score of any energy by autograd, with bfloat16 through autocast. Satisfies `Score`."""

    name = "eager"

    def __init__(self, energy: Energy, precision: str, why: str) -> None:
        self.energy, self.precision, self.why = energy, precision, why

    def __call__(self, images: Tensor, *, energies: bool = False) -> tuple[Tensor | None, Tensor]:
        """Energies come for nothing here."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            values, gradient = energy_and_gradient(self.energy, images)
        return values.float(), gradient


class ExactScore:
    """The score of `SNGANEnergy` or `LocalEnergy` by their graphs. Satisfies `Score`.

    Args:
        energy: its weights are copied, on their device: later changes of it are not seen.
        precision: of weights and activations; images and gradients keep their own type.
        compiled: through torch.compile.
    """

    name = "exact"

    def __init__(self, energy: SNGANEnergy | LocalEnergy, precision: str, why: str, *, compiled: bool = False) -> None:
        dtype = DTYPES[precision]
        self.precision, self.why, self.compiled, self.dtype = precision, why, compiled, dtype
        self.whitening = energy.whitening if isinstance(energy, LocalEnergy) else None
        graph = SNGANGraph(energy, dtype) if isinstance(energy, SNGANEnergy) else LocalGraph(energy, dtype)
        self.bytes_per_pixel = graph.floats_per_pixel * dtype.itemsize
        self.forward = graph.energy
        self.graph = cast(Graph, torch.compile(graph, dynamic=False) if compiled else graph)

    @torch.inference_mode()
    def __call__(self, images: Tensor, *, energies: bool = False) -> tuple[Tensor | None, Tensor]:
        """(N, 3, H, W) -> (N,) float32 energies, or None if not asked for, and (N, 3, H, W) grad E.

        Raises:
            InputError: not (N, 3, H, W) floating point of at least 16 px.
        """
        check_images(images)
        if images.shape[1] != 3:
            raise InputError(f"images must have 3 channels, got {tuple(images.shape)}")
        x = self._inputs(images)
        values, gradients = [], []
        for part in self._parts(x):
            value, gradient = self.graph(part, energies)
            values.append(value)
            gradients.append(gradient)
        gradient = (torch.cat(gradients)[: len(images)] if len(gradients) > 1 else gradients[0]).to(images.dtype)
        gradient = self.whitening.whiten(gradient) if self.whitening else gradient  # W is symmetric: grad E = W grad U
        return (torch.cat(cast("list[Tensor]", values))[: len(images)] if energies else None), gradient

    @torch.inference_mode()
    def energy(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N,) float32: the forward pass alone."""
        check_images(images)
        return torch.cat([self.forward(part) for part in self._parts(self._inputs(images))])[: len(images)]

    def _inputs(self, images: Tensor) -> Tensor:
        """What the graph works on."""
        x = self.whitening.whiten(images) if self.whitening else images
        return x.to(self.dtype, memory_format=torch.channels_last)

    def _parts(self, x: Tensor) -> list[Tensor]:
        """Equal parts: an image's bits then do not depend on its place. The last is filled up with the first image."""
        n, _, height, width = x.shape
        most = n if x.device.type != "cpu" else max(1, int(PART_BYTES // (self.bytes_per_pixel * height * width)))
        count = max(1, -(-n // max(1, most)))
        size = -(-n // count)
        if count * size > n:
            x = torch.cat([x, x[:1].expand(count * size - n, -1, -1, -1)])
        return list(torch.split(x, size)) if n else [x]


def make_score(
    energy: Energy, precision: str = "float32", *, engine: str = "auto", compiled: bool = False
) -> EagerScore | ExactScore:
    """The fastest score of an energy that is known to be right.

    Args:
        energy: a known network, whose weights are copied, or any energy.
        precision: "float32", "bfloat16" (weights and activations; the gradient comes back in the images' type) or
            "float64".
        engine: "auto", "eager" or "exact".
        compiled: the exact engine through torch.compile.

    Raises:
        InputError: unknown precision or engine, or "exact" for a network that has no graph.
    """
    if precision not in DTYPES:
        raise InputError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if engine not in ("auto", "eager", "exact"):
        raise InputError(f"engine must be auto, eager or exact, got {engine!r}")
    if engine == "eager":
        return EagerScore(energy, precision, "the eager engine was asked for")
    if type(energy) in (SNGANEnergy, LocalEnergy):
        network = cast("SNGANEnergy | LocalEnergy", energy)
        why = f"{type(energy).__name__} has an explicit graph" + ", compiled" * compiled
        return ExactScore(network, precision, why, compiled=compiled)
    why = f"{type(energy).__name__} has no explicit graph"
    if engine == "exact":
        raise InputError(f"the exact engine knows SNGANEnergy and LocalEnergy; {why}; take --engine auto")
    return EagerScore(energy, precision, why)


def checked(score: EagerScore | ExactScore, energy: Energy, images: Tensor) -> EagerScore | ExactScore:
    """`score` itself if it agrees with autograd at `images`, else the next simpler one, which says why.

    A compiled score falls back to the plain exact one, an exact one to autograd. Precision stays: in bfloat16 a score
    may be as far from float32 as twice what autograd is in bfloat16. The error is the median over the images and their
    mirror images, since a ReLU at 0 to the last bit may open in one engine and not in the other: a jump in a single
    image's gradient that says nothing of the engines.
    """
    if isinstance(score, EagerScore):
        return score
    x = torch.cat([images, images.flip(2), images.flip(3), -images])
    try:
        reference = energy_and_gradient(energy, x)[1]
        error, limit = median_error(score(x)[1], reference), CHECK_LIMIT[score.precision]
        if score.precision == "bfloat16":
            eager = EagerScore(energy, score.precision, "")(x)[1]
            limit = max(limit, 2 * median_error(eager, reference))
        if error <= limit:
            return score
        log.warning("the exact engine's gradient is %.2g from autograd's, more than %.2g", error, limit)
        problem = "its gradient differs from autograd's"
    except (RuntimeError, NotImplementedError) as raised:  # operators or compilers that are not there
        problem = f"it failed: {str(raised).strip().splitlines()[0][:200]}"
    if score.compiled:
        plain = checked(make_score(energy, score.precision), energy, images)
        plain.why += f"; not compiled, since {problem}"
        return plain
    return EagerScore(energy, score.precision, f"the exact engine was left, since {problem}")


def relative_errors(gradient: Tensor, reference: Tensor) -> Tensor:
    """(N,) L2 distances over the references' L2 norms; 0 for two zeros."""
    distance = (gradient.double() - reference.double()).flatten(1).norm(dim=1)
    return torch.where(distance == 0, distance, distance / reference.double().flatten(1).norm(dim=1))


def median_error(gradient: Tensor, reference: Tensor) -> float:
    """The median of `relative_errors`; NaN if any is NaN."""
    return float(relative_errors(gradient, reference).median())
