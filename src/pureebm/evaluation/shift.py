"""Training sets for energy models that lie ever farther from the victims' images, and how far each lies.

    cifar10       the victims' own kind, but images that no victim sees: what an honest defender does not have
    near, far     Tiny-ImageNet, the classes whose mean features lie nearest to a class of CIFAR-10, and farthest
    mixed         Tiny-ImageNet, random images: the kind that the bundled models are trained on
    textures      stripes and tints made on the spot: nothing natural
    poisoned-8    `mixed` with a Narcissus trigger of 8/255 on every image, in turn those of the ten classes
    poisoned-16   the same at 16/255

All hold equally many images of 32 px. The distance is Frechet's, to CIFAR-10 images of which none is in a set, in the
features of a small classifier that was trained here: the undefended victim of the suite cpu. Other features, say of
an Inception network, give other distances: these compare with each other only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from pureebm.attacks.base import TriggerGoal
from pureebm.classifiers.base import Classifier
from pureebm.defenses.features import features
from pureebm.errors import InputError
from pureebm.evaluation.arrays import save_arrays, textures
from pureebm.evaluation.cards import provenance, write_card
from pureebm.evaluation.metrics import accuracy, frechet_distance
from pureebm.evaluation.scenarios import Scenario, load_suite
from pureebm.evaluation.victims import Bench, clean_victim, poisons, victim_label
from pureebm.training.classifier import predict
from pureebm.types import JSON

N_IMAGES = 14_000
N_CLASSES = 50
"""Of Tiny-ImageNet, in `near` and in `far`."""


class Ruler:
    """What sets are measured by: features, and CIFAR-10 images that are in no set and trained no network here."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.scenario = bench, _scenario("narcissus-eps8")
        data = bench.shelf.load(self.scenario.data)
        network, _ = clean_victim(self.scenario, data.train, seed=0, bench=bench)
        self.network: Classifier = network
        self.about: JSON = {
            "network": victim_label(self.scenario),
            "trained_on": self.scenario.data,
            "accuracy": accuracy(predict(network, data.test.images, device=bench.device), data.test.labels),
            "size": network.head.in_features,
        }
        start, end = len(data.train) + N_IMAGES, len(data.train) + 2 * N_IMAGES
        unseen = bench.shelf.load(f"cifar10-{end}").train  # subsets nest
        self.own = unseen.images[len(data.train) : start]
        self.reference, self.labels = unseen.images[start:], unseen.labels[start:]

    def features(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D)."""
        return features(self.network, images.to(self.bench.device))

    def distance(self, images: Tensor) -> float:
        return frechet_distance(self.features(images), self.features(self.reference))


def check_names(names: Sequence[str]) -> Sequence[str]:
    """The names, all of sets above. Raises `InputError`."""
    for name in names:
        if name not in MAKERS:
            raise InputError(f"unknown set {name!r}; known: {', '.join(MAKERS)}")
    return names


def _mixed(ruler: Ruler) -> Tensor:
    return ruler.bench.shelf.load(f"tiny-imagenet-{N_IMAGES}").train.images


def _classes(ruler: Ruler, *, farthest: bool) -> Tensor:
    """Tiny-ImageNet's classes by the distance of their mean feature to the nearest such mean of CIFAR-10."""
    every = ruler.bench.shelf.load("tiny-imagenet").train
    ours = _means(ruler.features(ruler.reference), ruler.labels)
    apart = torch.cdist(_means(ruler.features(every.images), every.labels), ours).amin(dim=1)
    chosen = apart.argsort(descending=farthest, stable=True)[:N_CLASSES]
    rows = torch.isin(every.labels, chosen).nonzero().squeeze(1)
    return every.images[rows[:N_IMAGES]]


def _means(points: Tensor, labels: Tensor) -> Tensor:
    """(n_classes, D) means of (N, D)."""
    return torch.stack([points[labels == label].mean(dim=0) for label in sorted(set(labels.tolist()))])


def _poisoned(ruler: Ruler, *, eps: int) -> Tensor:
    scenario, images = _scenario(f"narcissus-eps{eps}"), _mixed(ruler).clone()
    data, goals = ruler.bench.shelf.load(scenario.data), scenario.goals()
    for number, goal in enumerate(goals):
        aim = poisons(scenario, goal, data, bench=ruler.bench).goal
        assert isinstance(aim, TriggerGoal)
        images[number :: len(goals)] = aim.trigger.apply(images[number :: len(goals)], seed=goal.seed)
    return images


MAKERS: Mapping[str, Callable[[Ruler], Tensor]] = MappingProxyType(
    {
        "cifar10": lambda ruler: ruler.own,
        "near": lambda ruler: _classes(ruler, farthest=False),
        "mixed": _mixed,
        "far": lambda ruler: _classes(ruler, farthest=True),
        "textures": lambda ruler: textures(N_IMAGES, 32, seed=0, n_classes=10).images,
        "poisoned-8": lambda ruler: _poisoned(ruler, eps=8),
        "poisoned-16": lambda ruler: _poisoned(ruler, eps=16),
    }
)


def run_shift(name: str, ruler: Ruler, *, folder: Path, out: Path, command: str = "") -> JSON:
    """Write a set as `folder`/NAME.npz, to train an energy on, and the card of its distance to `out`/shift."""
    images = MAKERS[name](ruler)
    path = folder / f"{name}.npz"
    save_arrays(path, images=images)
    card = {
        "suite": "shift",
        "set": name,
        "file": str(path),
        "n_images": len(images),
        "sha256": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
        "frechet_distance": ruler.distance(images),
        "features": ruler.about,
        "command": command,
        **provenance(),
    }
    write_card(out / "shift" / f"{name}.json", card)
    return card


def _scenario(name: str) -> Scenario:
    return next(one for one in load_suite("cpu").scenarios if one.name == name)
