"""Poison a whole data set on disk: read it, let an attack work on it, write the same set with its poisons in place.

The target has the source's kind, names, order and sizes. Every item is stored the same way, poisoned or not, so that
the files do not tell which are which. Beside them stands the record (`attacks.storage`). It appears by one rename.

Without a test set of its own, a tenth of the source, chosen by the seed, is held out: the attack takes its targets from
there and `verify` its test images. These images stay in the target as they were; a victim must not train on them.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned
from pureebm.attacks.registry import find_attack
from pureebm.attacks.storage import RECORD_NAME, StoredAttack, describe_goal, save_attack
from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import build_network, check_network_name
from pureebm.classifiers.weights import load_classifier
from pureebm.data.base import Loaded, Result, Sink, Source, Stored
from pureebm.data.labels import read_labeled_source
from pureebm.data.open import open_source
from pureebm.data.relabel import relabel
from pureebm.errors import InputError
from pureebm.evaluation.cards import provenance
from pureebm.evaluation.store import Store, set_hash
from pureebm.evaluation.verify import verify
from pureebm.purify.workplace import Workplace, check_places
from pureebm.training.classifier import train_classifier
from pureebm.training.recipes import find_recipe
from pureebm.types import JSON

CHUNK = 1000
HELD_OUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """What an attack on a data set needs besides the attack's own Config."""

    seed: Annotated[int, "of every draw"] = 0
    limit: Annotated[int | None, "only the first N images; the target has no others"] = None
    test: Annotated[Path | None, "labeled images of the same classes, for targets and for verifying"] = None
    public: Annotated[Path | None, "labeled images of other classes (Narcissus)"] = None
    surrogate: Annotated[str, "network that the attacker trains, a name of `classifiers.networks`"] = "small-resnet"
    surrogate_epochs: Annotated[int | None, "passes of its training, where the attack does not say"] = None
    extractors: Annotated[tuple[Path, ...], "trained classifiers, for the attacks on transfer learning"] = ()
    cache: Annotated[Path | None, "folder that keeps trained surrogates"] = None
    device: Annotated[str, "where to compute"] = "cpu"
    verify: Annotated[bool, "train small victims with and without the poison"] = False
    victim: Annotated[str, "network of these victims"] = "small-resnet"
    victim_epochs: Annotated[int | None, "passes of their training; None: the recipe's"] = None
    overwrite: Annotated[bool, "replace an earlier target"] = False


def run_attack(
    name: str,
    source: Path,
    target: Path,
    config: Any,
    settings: AttackSettings,
    *,
    report: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> JSON:
    """Poison `source` into `target` and return the record that stands beside it.

    Args:
        name: a name of `attacks.registry.ATTACKS`.
        config: the `Config` of that attack.
        report: told of progress in words.
        command: what makes the same target again; recorded.

    Raises:
        InputError: source, target, means or config are refused; nothing was written.
    """
    began, entry, opened = time.perf_counter(), find_attack(name), open_source(source)
    for network in (settings.surrogate, settings.victim):
        check_network_name(network)
    there = _check_places(opened, target, overwrite=settings.overwrite)
    world = _World.read(source, settings)
    attacker = _attacker(world, settings, report)
    report(f"{name}: {len(world.train):,} training images of {world.train.n_classes} classes")
    poisoned: Poisoned = entry.load().craft(world.train, config, attacker=attacker, seed=settings.seed)
    record: JSON = {
        "attack": name,
        "kind": entry.kind,
        "clean_label": bool((poisoned.labels == world.train.labels[poisoned.rows]).all()),
        "config": dataclasses.asdict(config),
        "seed": settings.seed,
        "settings": {key: _plain(value) for key, value in dataclasses.asdict(settings).items()},
        "source": {"path": str(source), **opened.describe()},
        "target": str(there),
        "class_names": world.names,
        "n_classes": world.train.n_classes,
        "images": len(world.ids),
        "held_out": [world.ids[row] for row in world.held_out.tolist()],
        "crafting": poisoned.record,
        "command": command,
        **provenance(),
    }
    if settings.verify:
        extractor = attacker.extractors[0] if attacker.extractors else None
        record["verified"] = verify(
            poisoned,
            world.train,
            world.test,
            network=settings.victim,
            epochs=settings.victim_epochs,
            extractor=extractor,
            seed=settings.seed,
            device=settings.device,
            report=report,
        )
    record["seconds"] = round(time.perf_counter() - began, 3)
    return _write(opened, there, world, poisoned, record, overwrite=settings.overwrite)


@dataclass(frozen=True, slots=True)
class _World:
    """rows: places of the training images in the source; held_out: of those that nobody trains on."""

    train: LabeledSet
    test: LabeledSet
    rows: Tensor
    held_out: Tensor
    ids: list[str]
    names: list[str] | None

    @classmethod
    def read(cls, source: Path, settings: AttackSettings) -> _World:
        images, labels, names, ids = read_labeled_source(source, limit=settings.limit)
        if settings.test is not None:
            test = read_labeled_source(settings.test)
            _refuse_other_classes(source, names, settings.test, test[2])
            n_classes = len(names) if names else int(torch.cat([labels, test[1]]).max()) + 1
            whole = LabeledSet(images, labels, n_classes)
            none = torch.empty(0, dtype=torch.int64)
            return cls(whole, LabeledSet(test[0], test[1], n_classes), torch.arange(len(ids)), none, ids, names)
        n_classes = len(names) if names else int(labels.max()) + 1
        held_out, rows = hold_out(len(ids), seed=settings.seed)
        train, test_set = (LabeledSet(images[part], labels[part], n_classes) for part in (rows, held_out))
        return cls(train, test_set, rows, held_out, ids, names)


def hold_out(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """A random tenth of 0 .. n-1, at least one, and the rest; both ascending. Raises `InputError` for n < 2."""
    if n < 2:
        raise InputError(f"{n} images are too few to hold any out; give more, or a test set of their own")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    count = max(1, round(HELD_OUT * n))
    return order[:count].sort().values, order[count:].sort().values


@dataclass(frozen=True, slots=True)
class Surrogates:
    """The attacker's training (`attacks.base.TrainSurrogate`); with a store, the same network is trained once."""

    network: str
    epochs: int | None = None
    device: str = "cpu"
    store: Store | None = None
    report: Callable[[str], None] = lambda line: None

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
        name = network or self.network
        recipe = find_recipe("fast", epochs=self.epochs if epochs is None else epochs)
        recipe = replace(recipe, batch_size=min(recipe.batch_size, max(1, len(data) // 4)))
        recipe = recipe if peak_rate is None else replace(recipe, peak_rate=peak_rate)

        def empty() -> Classifier:
            if start is not None:
                return copy.deepcopy(start).cpu().requires_grad_(True)
            return build_network(name, data.n_classes, size=data.images.shape[1], seed=seed)

        def train() -> nn.Module:
            self.report(f"surrogate {name}: {recipe.epochs} epochs of {len(data):,} images")
            return train_classifier(empty(), data.images, data.labels, recipe, seed=seed, device=self.device).cpu()

        if self.store is None:
            trained = train()
        else:
            made_of = {"network": name, "recipe": dataclasses.asdict(recipe), "set": set_hash(data), "seed": seed}
            made_of["start"] = None if start is None else _weights_hash(start)
            trained, _ = self.store.network(made_of, empty(), train)
        assert isinstance(trained, Classifier)
        return trained.to(self.device).eval().requires_grad_(False)


def _attacker(world: _World, settings: AttackSettings, report: Callable[[str], None]) -> Attacker:
    public, size = None, world.train.images.shape[1]
    if settings.public is not None:
        images, labels, names, _ = read_labeled_source(settings.public, size=size)
        public = LabeledSet(images, labels, len(names) if names else int(labels.max()) + 1)
    store = None if settings.cache is None else Store(settings.cache)
    return Attacker(
        train=Surrogates(settings.surrogate, settings.surrogate_epochs, settings.device, store, report),
        extractors=[load_classifier(path)[0].to(settings.device).requires_grad_(False) for path in settings.extractors],
        public=public,
        test=world.test,
        device=settings.device,
        report=report,
    )


@dataclass(slots=True)
class _RelabelingSink:
    """A sink whose assembled target gets the new labels before anybody sees it."""

    inner: Sink
    source: Source
    changes: Mapping[int, int]
    names: list[str] | None
    moved: dict[int, str] = field(default_factory=dict)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self.inner.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        self.inner.assemble(target, n_chunks)
        self.moved = relabel(target, self.source, self.changes, self.names)


def _write(source: Source, target: Path, world: _World, poisoned: Poisoned, record: JSON, *, overwrite: bool) -> JSON:
    """Store the poisoned set and its record; the record with the poisons' names is returned."""
    rows = world.rows[poisoned.rows]
    old = world.train.labels[poisoned.rows]
    changed = (poisoned.labels != old).tolist()
    changes = {
        row: label for row, label, new in zip(rows.tolist(), poisoned.labels.tolist(), changed, strict=True) if new
    }
    pixels = dict(zip(rows.tolist(), poisoned.images.numpy(), strict=True))
    with Workplace(target) as place:
        place.clean_up()
        begun = place.recorded() or {}
        plan = {"attack": record["attack"], "begun": time.time_ns()}  # never the same: a killed attack starts over
        place.begin(lambda _: plan, (0, 1), overwrite=overwrite or "attack" in begun)
        sink = _RelabelingSink(source.open_sink(place.staging), source, changes, world.names)
        names: list[str] = []
        for chunk, start in enumerate(range(0, len(world.ids), CHUNK)):
            results = [_result(item, pixels) for item in source.load(start, min(start + CHUNK, len(world.ids)))]
            names += [stored.target_name for stored in sink.write(chunk, results)]

        def write_side(side: Path) -> None:
            here = [sink.moved.get(row, names[row]) for row in rows.tolist()]
            record["poisons"] = {
                "count": len(rows),
                "relabeled": len(changes),
                "ids": [world.ids[row] for row in rows.tolist()],
                "names": here,
                "old_labels": old.tolist(),
                "new_labels": poisoned.labels.tolist(),
            }
            record["goal"] = describe_goal(poisoned.goal)[0]
            save_attack(side, StoredAttack(poisoned.goal, rows, poisoned.labels, record), old_labels=old)

        with place.finishing():
            place.finish(sink, chunk + 1, write_side, single_file=source.single_file, overwrite=overwrite)
    return record


def _result(loaded: Loaded, pixels: Mapping[int, Any]) -> Result:
    """What is stored of an item: its own picture, or the poison in its place."""
    picture, index = loaded.picture, loaded.item.index
    if picture is None:
        raise InputError(f"{loaded.item.id} has become unreadable: {loaded.error}")
    if index in pixels:
        if picture.pixels.dtype != np.uint8:
            raise InputError(f"{loaded.item.id} has 16 bits a color; poisons have 8: convert the set first")
        picture = replace(picture, pixels=pixels[index])
    return Result(loaded.item, "purified", picture)


def _check_places(source: Source, target: Path, *, overwrite: bool) -> Path:
    """`check_places`, which does not know that a folder with an attack's record is ours to replace."""
    here, there = source.path.resolve(), target.resolve()
    apart = there != here and there not in here.parents and here not in there.parents
    if overwrite and apart and not source.single_file and (there / RECORD_NAME).is_file():
        return there
    return check_places(source, target, overwrite=overwrite)


def _refuse_other_classes(source: Path, names: list[str] | None, test: Path, others: list[str] | None) -> None:
    if names and others and names != others:
        raise InputError(f"{test} has the classes {', '.join(others[:10])}, but {source} has {', '.join(names[:10])}")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _weights_hash(network: nn.Module) -> str:
    found = hashlib.sha256()
    for key, value in network.state_dict().items():
        found.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
