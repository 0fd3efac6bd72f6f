"""A data set on disk before and after an attack: read it, write the same set with poisons in their places.

The target has the source's kind, names, order and sizes. Every item is stored the same way, poisoned or not, so that
the files do not tell which are which; only in a folder, an item with a new label moves to its new class. Beside them
stands the record (`attacks.storage`). It appears by one rename. Where the poisons come from is not known here.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import AvailabilityGoal, LabeledSet, Poisoned, TriggerGoal
from pureebm.attacks.storage import StoredAttack, describe_goal, save_attack
from pureebm.classifiers.base import Classifier
from pureebm.classifiers.weights import load_extractor
from pureebm.data.base import Loaded, Result, Sink, Source, Stored
from pureebm.data.labels import read_labeled_source
from pureebm.data.pictures import stored_pixels
from pureebm.data.relabel import check_relabels, relabel
from pureebm.errors import InputError
from pureebm.evaluation.cards import provenance
from pureebm.evaluation.verify import verify
from pureebm.purify.workplace import Workplace
from pureebm.types import JSON

CHUNK = 1000
DEFAULT_VICTIM = "small-resnet"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonSettings:
    """What poisoning a data set needs, wherever the poisons come from."""

    seed: Annotated[int, "of every draw"] = 0
    test: Annotated[Path | None, "labeled images of the same classes, for targets and for verifying"] = None
    extractors: Annotated[tuple[Path, ...], "trained classifiers, for transfer learning"] = ()
    extractor_network: Annotated[str | None, "which network a published checkpoint is; None: resnet18"] = None
    device: Annotated[str, "where to compute"] = "cpu"
    verify: Annotated[bool, "train small victims with and without the poison"] = False
    victim: Annotated[str | None, "network of these victims; None: small-resnet"] = None
    victim_epochs: Annotated[int | None, "passes of their training; None: the recipe's"] = None
    overwrite: Annotated[bool, "replace an earlier target"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSet:
    """A labeled data set on disk.

    whole: all its images. ids, names: of the items, of the classes. held_out: (H,) int64, images that no victim may
    train on. test: what is misread or measured, if there is any.
    """

    source: Source
    whole: LabeledSet
    ids: list[str]
    names: list[str] | None
    test: LabeledSet | None
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @classmethod
    def read(
        cls, source: Source, *, test: Path | None = None, limit: int | None = None, eight_bit: bool = False
    ) -> SourceSet:
        """Raises `InputError` where one cannot be read, or the test set has other classes or another size."""
        images, labels, names, ids = read_labeled_source(source.path, limit=limit, eight_bit=eight_bit)
        others = None if test is None else read_labeled_source(test)
        if names and others and others[2] and names != others[2]:
            raise InputError(
                f"{test} has the classes {', '.join(others[2][:10])}, but {source.path} has {', '.join(names[:10])}"
            )
        n_classes = len(names) if names else int(labels.max()) + 1
        if others and others[0].shape[1:] != images.shape[1:]:
            raise InputError(
                f"{test}: images of {tuple(others[0].shape[1:3])}, those of training have {tuple(images.shape[1:3])}"
            )
        if others and int(others[1].max()) >= n_classes:
            raise InputError(f"{test}: label {int(others[1].max())} is outside the training set's 0..{n_classes - 1}")
        test_set = LabeledSet(others[0], others[1], n_classes) if others else None
        whole = LabeledSet(images, labels, n_classes)
        return cls(source=source, whole=whole, ids=ids, names=names, test=test_set)

    @property
    def rows(self) -> Tensor:
        """Places of the training images, ascending: all that are not held out."""
        kept = torch.ones(len(self.whole), dtype=torch.bool)
        kept[self.held_out] = False
        return kept.nonzero().squeeze(1)

    def part(self, rows: Tensor) -> LabeledSet:
        """The images of some rows, copied; of all, the set itself."""
        if len(rows) == len(self.whole):
            return self.whole
        return replace(self.whole, images=self.whole.images[rows], labels=self.whole.labels[rows])


def load_extractors(settings: PoisonSettings, *, size: int) -> list[Classifier]:
    """The trained classifiers of the settings, frozen. size: side of the images. Raises `InputError`."""
    loaded = [load_extractor(path, network=settings.extractor_network, size=size)[1] for path in settings.extractors]
    return [network.to(settings.device).requires_grad_(False) for network in loaded]


def refuse_victim_of_transfer(settings: PoisonSettings) -> None:
    """Raises `InputError` for a victim by name where the victims are the extractor."""
    if settings.extractors and settings.victim is not None:
        raise InputError("with --extractor, the victims of --verify are the first extractor; leave --victim out")


def write_poisoned(
    data: SourceSet,
    target: Path,
    poisoned: Poisoned,
    about: JSON,
    settings: PoisonSettings,
    *,
    began: float,
    extractors: Sequence[Classifier] = (),
    recipe: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> JSON:
    """Verify the poisons if that is wanted, store the poisoned set, and return the record that stands beside it.

    Args:
        target: as `check_places` gave it.
        poisoned: its rows count in the whole set.
        about: the record's beginning: where the poisons come from.
        began: `time.perf_counter()` when the work on it began.
        extractors: where there are any, the victims are the first of them with a fresh head.
        recipe: the victims'; None: what `verify` takes.
        report: told of progress in words.
        command: what makes the same target again; recorded.

    Raises:
        InputError: labels or pixels of this source cannot be changed so.
    """
    if not poisoned.labels.equal(data.whole.labels[poisoned.rows]):
        check_relabels(data.source)
    record: JSON = {
        **about,
        "kind": _kind(poisoned),
        "clean_label": poisoned.labels.equal(data.whole.labels[poisoned.rows]),
        "seed": settings.seed,
        "settings": {key: _plain(value) for key, value in dataclasses.asdict(settings).items()},
        "source": {"path": str(data.source.path), **data.source.describe()},
        "target": str(target),
        "class_names": data.names,
        "n_classes": data.whole.n_classes,
        "images": len(data.ids),
        "held_out": [data.ids[row] for row in data.held_out.tolist()],
        "command": command,
        **provenance(),
    }
    if settings.verify:
        record["verified"] = _verified(data, poisoned, settings, extractors, recipe, report)
    record["seconds"] = round(time.perf_counter() - began, 3)
    _write(data, target, poisoned, record, overwrite=settings.overwrite)
    return record


def _verified(
    data: SourceSet,
    poisoned: Poisoned,
    settings: PoisonSettings,
    extractors: Sequence[Classifier],
    recipe: str | None,
    report: Callable[[str], None],
) -> JSON:
    assert data.test is not None
    poisoned = _as_stored(data, poisoned)
    return verify(
        replace(poisoned, rows=torch.searchsorted(data.rows, poisoned.rows)),
        data.part(data.rows),
        data.test,
        network=settings.victim or DEFAULT_VICTIM,
        recipe=recipe,
        epochs=settings.victim_epochs,
        extractor=extractors[0] if extractors else None,
        seed=settings.seed,
        device=settings.device,
        report=report,
    )


def _as_stored(data: SourceSet, poisoned: Poisoned) -> Poisoned:
    """The poisons as a reader of the target finds them: gray where the source's images are."""
    images = poisoned.images.clone()
    places = {row: place for place, row in enumerate(poisoned.rows.tolist())}
    for start in range(0, len(data.ids), CHUNK):
        stop = min(start + CHUNK, len(data.ids))
        if places.keys().isdisjoint(range(start, stop)):
            continue
        for item in data.source.load(start, stop):
            place = places.get(item.item.index)
            picture = None if place is None else _result(item, {item.item.index: images[place].numpy()}).picture
            if picture is not None:
                kept = torch.from_numpy(np.array(stored_pixels(replace(picture, alpha=None))))
                images[place] = kept if kept.ndim == 3 else kept[:, :, None]
    return replace(poisoned, images=images)


def _kind(poisoned: Poisoned) -> str:
    if isinstance(poisoned.goal, AvailabilityGoal):
        return "availability"
    return "triggered" if isinstance(poisoned.goal, TriggerGoal) else "triggerless"


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


def _write(data: SourceSet, target: Path, poisoned: Poisoned, record: JSON, *, overwrite: bool) -> None:
    """Store the poisoned set and its record; the record gets the poisons' names and the goal."""
    source, rows, n_images = data.source, poisoned.rows.tolist(), len(data.ids)
    old, new = data.whole.labels[poisoned.rows], poisoned.labels
    changes = {
        row: label for row, before, label in zip(rows, old.tolist(), new.tolist(), strict=True) if before != label
    }
    pixels = dict(zip(rows, poisoned.images.numpy(), strict=True))
    with Workplace(target) as place, ExitStack() as undo:
        place.clean_up()
        begun = place.recorded() or {}
        plan = {"attack": record["attack"], "begun": time.time_ns()}  # never the same: a killed attack starts over
        place.begin(lambda _: plan, (0, 1), overwrite=overwrite or "attack" in begun)
        undo.enter_context(_removed_on_failure(place))
        sink = _RelabelingSink(source.open_sink(place.staging), source, changes, data.names)
        names: list[str] = []
        for chunk, start in enumerate(range(0, n_images, CHUNK)):
            results = [_result(item, pixels) for item in source.load(start, min(start + CHUNK, n_images))]
            names += [stored.target_name for stored in sink.write(chunk, results)]

        def write_side(side: Path) -> None:
            record["poisons"] = {
                "count": len(rows),
                "relabeled": len(changes),
                "ids": [data.ids[row] for row in rows],
                "names": [sink.moved.get(row, names[row]) for row in rows],
                "old_labels": old.tolist(),
                "new_labels": new.tolist(),
            }
            record["goal"] = describe_goal(poisoned.goal)[0]
            save_attack(side, StoredAttack(poisoned.goal, poisoned.rows, new, record), old_labels=old)

        with place.finishing():
            place.finish(sink, chunk + 1, write_side, single_file=source.single_file, overwrite=overwrite)


@contextmanager
def _removed_on_failure(place: Workplace) -> Iterator[None]:
    """Nobody goes on with a poisoned set that was begun; but a target that was moved aside in there stays."""
    try:
        yield
    except BaseException:
        if not any(place.folder.glob("old-*")):
            shutil.rmtree(place.folder, ignore_errors=True)
        raise


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


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
