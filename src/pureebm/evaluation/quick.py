"""The `quick` suite: one small victim, minutes on a processor core, to compare purifiers by what counts.

20,000 CIFAR-10 training images, 200 of them (1 %), all of one class and those that the attacker's surrogate recognizes
least, carry a Narcissus trigger of 8/255.
They are purified, base set and poisons separately, and a `SmallResNet` is trained on them for 8 epochs. Measured
on the 10,000 untouched test images: natural accuracy, and the share of the others' images that carry the
trigger and are taken for the class. The floor is that share for a victim of the clean, unpurified 20,000.

Three triggers of three classes are for choosing models and settings ("tune"), three others for reports.
Each victim is one card; cards that exist are not computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import LabeledSet, poison_rows
from pureebm.attacks.narcissus import Config as NarcissusConfig
from pureebm.attacks.narcissus import hardness, make_trigger, train_surrogate, warm_up
from pureebm.attacks.triggers import AddTrigger
from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError
from pureebm.evaluation.arrays import LabeledImages, read_labeled
from pureebm.evaluation.cards import provenance, read_card, write_card
from pureebm.evaluation.metrics import accuracy, poison_success
from pureebm.evaluation.surrogates import Surrogates
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier
from pureebm.types import JSON, Stage

log = logging.getLogger(__name__)

CHUNK = 500  # purified images are stored in files of this many
BATCH = 100
N_POOD = 28_000
SURROGATE_SEED = 20
SURROGATES = Surrogates(network="small-resnet", recipe=ClassifierConfig())


@dataclass(frozen=True, slots=True)
class TriggerSet:
    """Which triggers: target classes, and the seed that they and their poisoned images are drawn with."""

    classes: tuple[int, ...]
    seed: int


SETS: Mapping[str, TriggerSet] = MappingProxyType(
    {"tune": TriggerSet((1, 4, 8), 10), "report": TriggerSet((0, 3, 9), 30)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickConfig:
    """The protocol. Its defaults are `quick`; smaller numbers are for choosing and for tests."""

    n_train: Annotated[int, "training images, a fixed random subset"] = 20_000
    n_poisons: Annotated[int, "of them, images of the target class that carry the trigger"] = 200
    joint: Annotated[bool, "poison all classes of the set in one victim: a third of the time"] = False
    recipe: ClassifierConfig = field(default_factory=ClassifierConfig)
    attack: NarcissusConfig = field(default_factory=NarcissusConfig)

    def key(self) -> str:
        """A short name of this protocol, equal for equal settings."""
        kind = "joint" if self.joint else "single"
        return f"{self.n_train}-{self.n_poisons}-{kind}-{digest(asdict(self))[:6]}"


@dataclass(frozen=True, slots=True)
class Trigger:
    """A universal perturbation: (3, H, W) in [-1, 1] units, and the class that it stands for.

    ranking: rows of that class in the whole training set, the first of them to be poisoned first; None: random ones.
    """

    name: str
    target_class: int
    pattern: Tensor
    seed: int
    ranking: Tensor | None = None

    def rows(self, subset: Tensor, labels: Tensor, n_poisons: int) -> Tensor:
        """Which places of a subset of the training set (its rows and labels) carry the trigger, in order."""
        if self.ranking is None:
            return poison_rows(labels, self.target_class, n_poisons, seed=self.seed)
        place = {row: at for at, row in enumerate(subset.tolist())}
        found = [place[row] for row in self.ranking.tolist() if row in place]
        if len(found) < n_poisons:
            raise InputError(f"class {self.target_class} has {len(found)} images, fewer than {n_poisons} poisons")
        return torch.tensor(sorted(found[:n_poisons]))


@dataclass(frozen=True, slots=True)
class Defense:
    """A purifier and its name in tables; no stage is no defense."""

    name: str
    stage: Stage | None
    seed: int = 0

    def settings(self) -> JSON:
        return {"stage": "none"} if self.stage is None else {**self.stage.settings(), "seed": self.seed}


def digest(value: JSON) -> str:
    """sha256 of the JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class QuickData:
    """What the suite reads, each file when it is first needed, decoded once into `cache`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    @cached_property
    def train(self) -> LabeledImages:
        return self._load("cifar10/train")

    @cached_property
    def test(self) -> LabeledImages:
        return self._load("cifar10/test")

    @cached_property
    def pood(self) -> LabeledImages:
        """What the attacker's surrogate is trained on: a fixed subset of Tiny-ImageNet at 32 px."""
        every = self._load("tiny-imagenet/train")
        rows = torch.from_numpy(np.random.default_rng(0).permutation(len(every))[:N_POOD])
        return LabeledImages(every.images[rows], every.labels[rows])

    def subset(self, n_train: int) -> Tensor:
        """Rows of the training subset: the first `n_train` of one fixed random order, so subsets nest."""
        if n_train > len(self.train):
            raise InputError(f"n_train is {n_train}, but there are {len(self.train)} training images")
        return torch.from_numpy(np.random.default_rng(0).permutation(len(self.train))[:n_train])

    def _load(self, name: str) -> LabeledImages:
        stored = self.cache / f"{name.replace('/', '-')}.npz"
        if not stored.is_file():
            data = read_labeled(self.folder / f"{name}.parquet")
            _save_npz(stored, images=data.images, labels=data.labels)
        with np.load(stored) as arrays:
            return LabeledImages(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))


def load_triggers(
    name: Literal["tune", "report"], data: QuickData, folder: Path, config: NarcissusConfig
) -> list[Trigger]:
    """The triggers of a set, from `folder` or made (minutes) and stored there, pattern and ranking, as .npz."""
    triggers, surrogate, public, made_of = [], None, None, digest(asdict(config))[:6]
    for target in SETS[name].classes:
        path = folder / f"narcissus-eps{config.eps}-{made_of}-seed{SETS[name].seed}-class{target}.npz"
        if not path.is_file():
            public = public or LabeledSet(data.pood.images, data.pood.labels, int(data.pood.labels.max()) + 1)
            surrogate = surrogate or train_surrogate(public, config, train=SURROGATES, seed=SURROGATE_SEED)
            log.info("making %s", path.name)
            rows, seed = (data.train.labels == target).nonzero().squeeze(1), SETS[name].seed + target
            mine = data.train.images[rows]
            warm = warm_up(surrogate, mine, public, config, train=SURROGATES, seed=seed)
            pattern = make_trigger(warm, mine, public, config, seed=seed)
            hardest = hardness(warm, mine).argsort(descending=True, stable=True)
            _save_npz(path, pattern=pattern, ranking=rows[hardest].int())
        with np.load(path, allow_pickle=False) as arrays:
            pattern, ranking = (torch.from_numpy(arrays[key]) for key in ("pattern", "ranking"))
        seed = SETS[name].seed
        triggers.append(Trigger(path.stem, target, pattern, seed, ranking if config.hardest else None))
    return triggers


def purify_cached(defense: Defense, images: Tensor, ids: Sequence[str], cache: Path) -> tuple[Tensor, float]:
    """Purify (N, H, W, 3) uint8 in chunks that are kept on disk; the result and the seconds it took (once).

    A chunk's file is named by a hash of the stage's settings, the seed, the ids and the pixels.
    """
    if defense.stage is None:
        return images, 0.0
    done, seconds = [], 0.0
    for start in range(0, len(images), CHUNK):
        chunk, names = images[start : start + CHUNK], list(ids[start : start + CHUNK])
        pixels = hashlib.sha256(chunk.contiguous().numpy().tobytes()).hexdigest()
        path = cache / "purified" / f"{digest({**defense.settings(), 'ids': names, 'pixels': pixels})[:24]}.npz"
        if not path.is_file():
            begin = time.perf_counter()
            purified = _purify(defense.stage, chunk, names, defense.seed)
            _save_npz(path, images=purified, seconds=torch.tensor(time.perf_counter() - begin))
            log.info("%s: %d of %d images", defense.name, start + len(chunk), len(images))
        with np.load(path) as arrays:
            done.append(torch.from_numpy(arrays["images"]))
            seconds += float(arrays["seconds"])
    return torch.cat(done), seconds


def _purify(stage: Stage, pixels: Tensor, ids: list[str], seed: int) -> Tensor:
    batches = []
    for start in range(0, len(pixels), BATCH):
        x = to_pm1(pixels[start : start + BATCH]).permute(0, 3, 1, 2).contiguous()
        batches.append(stage.purify_batch(x, ids[start : start + BATCH], seed=seed))
    purified = torch.cat(batches)
    if not purified.isfinite().all():
        raise InputError(f"the purifier {stage.settings()} returned values that are not finite")
    return to_uint8(purified).permute(0, 2, 3, 1).contiguous()


def _save_npz(path: Path, **arrays: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: value.numpy() for name, value in arrays.items()})
    beside.replace(path)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a victim is trained on, and what purifying it took."""

    images: Tensor
    labels: Tensor
    seconds: float


def training_set(
    data: QuickData, config: QuickConfig, defense: Defense, triggers: Sequence[Trigger], cache: Path
) -> TrainingSet:
    """The subset, purified; then the poisons, purified separately, in place of their own originals.

    An image has the same id, so the same noise, in both. No triggers: the clean set.
    """
    rows = data.subset(config.n_train)
    base, labels = data.train.images[rows], data.train.labels[rows]
    ids = [f"cifar10/train/{row}" for row in rows.tolist()]
    images, seconds = purify_cached(defense, base, ids, cache)
    images = images.clone()
    for trigger in triggers:
        chosen = trigger.rows(rows, labels, config.n_poisons)
        poisons = AddTrigger(trigger.pattern).apply(base[chosen])
        names = [ids[row] for row in chosen.tolist()]
        images[chosen], more = purify_cached(defense, poisons, names, cache)
        seconds += more
    return TrainingSet(images, labels, seconds)


def train_victim(train: TrainingSet, recipe: ClassifierConfig, *, seed: int, device: str = "cpu") -> SmallResNet:
    """A freshly initialized victim; `seed` decides its weights and the order of training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        victim = SmallResNet(10)
    train_classifier(victim, train.images, train.labels, recipe, seed=seed, device=device)
    return victim


def run_quick(
    defense: Defense,
    trigger_set: Literal["tune", "report"],
    data: QuickData,
    config: QuickConfig,
    *,
    seeds: Sequence[int],
    out: Path,
    cache: Path,
    device: str = "cpu",
    command: str = "",
) -> list[JSON]:
    """All victims of one defense, as cards in `out`/quick; those that exist are read, not repeated.

    The clean victim of each seed comes first, since every card holds its floor.
    """
    triggers = load_triggers(trigger_set, data, out / "triggers", config.attack)
    groups = [triggers] if config.joint else [[trigger] for trigger in triggers]
    cards = []
    for seed in seeds:
        floor = clean_card(trigger_set, triggers, data, config, seed=seed, out=out, cache=cache, device=device)
        for group in groups:
            paths = [_card_path(out, defense, config, trigger, seed) for trigger in group]
            if not all(path.is_file() for path in paths):
                measured = _attack(defense, group, data, config, seed=seed, cache=cache, device=device)
                for path, trigger, found in zip(paths, group, measured, strict=True):
                    known = floor["success_by_trigger"][trigger.name]
                    write_card(path, {**found, "set": trigger_set, "clean_floor": known, "command": command})
                    log.info("%s", path.name)
            cards += [read_card(path) for path in paths]
    return cards


def _card_path(out: Path, defense: Defense, config: QuickConfig, trigger: Trigger, seed: int) -> Path:
    name = f"{defense.name.replace('/', '_')}-{digest(defense.settings())[:8]}"
    return out / "quick" / config.key() / name.replace(" ", "_") / f"{trigger.name}-victim{seed}.json"


def clean_card(
    trigger_set: str,
    triggers: Sequence[Trigger],
    data: QuickData,
    config: QuickConfig,
    *,
    seed: int,
    out: Path,
    cache: Path,
    device: str = "cpu",
) -> JSON:
    """The victim of the clean, unpurified set: its accuracy, and the floor of every trigger."""
    path = out / "quick" / config.key() / "clean" / f"{trigger_set}-victim{seed}.json"
    if path.is_file():
        return read_card(path)
    victim, seconds = clean_victim(data, config, seed=seed, cache=cache, device=device)
    card = _card(Defense("none", None), config, seed=seed, seconds=(0.0, seconds))
    found = {trigger.name: _success(victim, data, trigger, device) for trigger in triggers}
    natural = accuracy(predict(victim, data.test.images, device=device), data.test.labels)
    card |= {
        "attack": "none",
        "budget": 0.0,
        "natural_accuracy": natural,
        "success_by_trigger": found,
        "set": trigger_set,
    }
    write_card(path, card)
    return card


def clean_victim(
    data: QuickData, config: QuickConfig, *, seed: int, cache: Path, device: str = "cpu"
) -> tuple[SmallResNet, float]:
    """The victim of the clean set and the seconds of its training, kept in `cache` from one call to the next."""
    name = digest({"n_train": config.n_train, "recipe": asdict(config.recipe), "seed": seed})[:12]
    path, victim = cache / "victims" / f"clean-{name}.npz", SmallResNet(10)
    if not path.is_file():
        train = training_set(data, config, Defense("none", None), [], cache)
        begin = time.perf_counter()
        trained = train_victim(train, config.recipe, seed=seed, device=device).cpu()
        _save_npz(path, **trained.state_dict(), seconds=torch.tensor(time.perf_counter() - begin))
    with np.load(path) as arrays:
        victim.load_state_dict({key: torch.from_numpy(arrays[key]) for key in victim.state_dict()})
        seconds = float(arrays["seconds"])
    return victim.to(device).eval(), seconds


def _attack(
    defense: Defense,
    triggers: Sequence[Trigger],
    data: QuickData,
    config: QuickConfig,
    *,
    seed: int,
    cache: Path,
    device: str,
) -> list[JSON]:
    train = training_set(data, config, defense, triggers, cache)
    begin = time.perf_counter()
    victim = train_victim(train, config.recipe, seed=seed, device=device)
    seconds = time.perf_counter() - begin
    natural = accuracy(predict(victim, data.test.images, device=device), data.test.labels)
    cards = []
    for trigger in triggers:
        card = _card(defense, config, seed=seed, seconds=(train.seconds, seconds))
        card |= {"natural_accuracy": natural, "poison_success": _success(victim, data, trigger, device)}
        cards.append(card | {"target_class": trigger.target_class, "trigger": trigger.name})
    return cards


def _success(victim: SmallResNet, data: QuickData, trigger: Trigger, device: str) -> float:
    """Poison success on the test images; the trigger is added as it is, and nothing is purified."""
    predicted = predict(victim, AddTrigger(trigger.pattern).apply(data.test.images), device=device)
    return poison_success(predicted, data.test.labels, trigger.target_class)


def _card(defense: Defense, config: QuickConfig, *, seed: int, seconds: tuple[float, float]) -> JSON:
    return {
        "suite": "quick",
        "attack": "narcissus",
        "eps": config.attack.eps,
        "budget": config.n_poisons / config.n_train,
        "data": f"cifar10-{config.n_train}" + ("-joint" if config.joint else ""),
        "victim": f"small-resnet, {config.recipe.epochs} epochs",
        "defence": defense.name,
        "settings": defense.settings(),
        "protocol": asdict(config),
        "seed": seed,
        "natural_accuracy": None,
        "poison_success": None,
        "clean_floor": None,
        "defence_seconds": round(seconds[0], 1),
        "train_seconds": round(seconds[1], 1),
        **provenance(),
    }
