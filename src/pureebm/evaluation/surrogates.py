"""The attacker's training (`attacks.base.TrainSurrogate`); it keeps what it made: the same network is trained once."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from pureebm.attacks.base import LabeledSet
from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import build_network
from pureebm.evaluation.store import Store, set_hash
from pureebm.training.classifier import ClassifierConfig, settle_precision, train_classifier
from pureebm.types import JSON

N_SHARED = 100
"""Seeds after a goal's own that count as its surrogates' numbers; others are random draws of an attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogates:
    """network, recipe: what is trained where the caller says nothing else. store: where it is kept; None: nowhere.

    shared: seeds from the first number on are taken for seeds from the second on, so that the goals of a scenario
    share their surrogates of the clean set. report: told of every training in words.
    """

    network: str
    recipe: ClassifierConfig
    device: str = "cpu"
    precision: str = "float32"
    store: Store | None = None
    shared: tuple[int, int] = (0, 0)
    report: Callable[[str], None] = logging.getLogger(__name__).info

    def __call__(
        self,
        data: LabeledSet,
        *,
        seed: int,
        epochs: int | None = None,
        network: str | None = None,
        start: Classifier | None = None,
        peak_rate: float | None = None,
    ) -> Classifier:
        changes: JSON = {"epochs": epochs, "peak_rate": peak_rate}
        changes |= {"batch_size": min(self.recipe.batch_size, max(1, len(data) // 4))}  # a class may be few images
        recipe = replace(self.recipe, **{name: value for name, value in changes.items() if value is not None})
        name = network or self.network
        if 0 <= seed - self.shared[0] < N_SHARED:
            seed += self.shared[1] - self.shared[0]

        def empty() -> Classifier:
            if start is not None:
                return copy.deepcopy(start).cpu().requires_grad_(True)
            return build_network(name, data.n_classes, size=data.images.shape[1], seed=seed)

        def train() -> nn.Module:
            self.report(f"surrogate or extractor: {name}, {len(data):,} images, {recipe.epochs} epochs")
            return train_classifier(
                empty(), data.images, data.labels, recipe, seed=seed, device=self.device, precision=self.precision
            ).cpu()

        if self.store is None:
            trained = train()
        else:
            made_of = {"network": name, "recipe": asdict(recipe), "set": set_hash(data), "seed": seed}
            made_of |= {"start": None if start is None else _weights_hash(start)}
            made_of |= {"precision": settle_precision(self.precision, torch.device(self.device))}
            trained, _ = self.store.network(made_of, empty(), train)
        assert isinstance(trained, Classifier)
        return trained.to(self.device).eval().requires_grad_(False)


def _weights_hash(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
