"""Is a finished target what its record says? Some items are purified again, with the recorded settings, and compared.

An item is asked three questions: does the source still hold the bytes that were read, does the target still hold the
bytes that were stored, and does purifying give those bytes again. An item alone gives what it gave among all others,
since a short batch is filled up to the recorded shape.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pureebm.data.base import Loaded, Picture, Result, Source
from pureebm.data.folder import FolderSource, read_regular
from pureebm.data.open import open_source
from pureebm.data.pictures import decode, stored_pixels
from pureebm.data.remote import as_url
from pureebm.errors import InputError, ItemError, ModelError
from pureebm.purify.batches import Outcome, Work, purify_items
from pureebm.purify.manifest import MANIFEST_NAME, SCHEMA, printable
from pureebm.purify.recorded import stage_of
from pureebm.purify.workplace import differences, record_path
from pureebm.types import JSON, Stage

RECORDED = ("settings", "counts")
PLANNED = ("seed", "images", "source_name", "stage", "source", "versions", "batch_size", "chunk_items")
"""What a record, and the settings in it, must hold to be verified."""


@dataclass(slots=True)
class Checked:
    """One item: what differs, in words; nothing where all is as recorded."""

    id: str
    differs: list[str] = field(default_factory=list)
    values_changed: int = 0  # of the stored picture, against the one purified again
    largest_change: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """`differs` concerns the whole target, `items` one each; `notes` (other versions, touched files) are no fault."""

    target: str
    source: str
    purified: int  # items of the target that were purified
    chosen_by: int  # the seed of the choice
    repurified: int
    differs: list[str]
    notes: list[str]
    items: list[Checked]

    @property
    def exit_code(self) -> int:
        """1 if anything differs, else 0."""
        return 1 if self.differs or any(item.differs for item in self.items) else 0

    def to_json(self) -> JSON:
        told = dataclasses.asdict(self)
        return told | {
            "checked": len(self.items),
            "same": sum(not item.differs for item in self.items),
            "verified": self.exit_code == 0,
        }


def verify(
    target: Path,
    *,
    n: int = 20,
    source: Path | None = None,
    model: str | None = None,
    choice: int | None = None,
    device: str | None = None,
) -> Verification:
    """Check `n` random purified items of a finished target.

    Args:
        target: as it was given to the job.
        n: items to purify again; all, if there are fewer.
        source: where the source is now; None: where it was, else beside the target.
        model: the weights, where the recorded name is not known here.
        choice: fixes which items; None: others each time.
        device: None: the recorded one.

    Raises:
        InputError: no finished target, a record that cannot be read, no source, or a purifier that is not known here.
    """
    record, rows = read_finished(target)
    settings = record["settings"]
    told, here = settings["source"], _find_source(record, target, source)
    notes, differs = _version_notes(settings), list[str]()
    for line in differences(told, json.loads(json.dumps(here.describe()))):
        (notes if "has changed since" in line else differs).append(f"source: {line}")
    if len(rows) != settings["images"]:
        differs.append(f"manifest: it has {len(rows):,} rows, the record {settings['images']:,} images")
    purified = np.flatnonzero(np.array(rows["status"].to_pylist()) == "purified").tolist()
    choice = secrets.randbelow(2**32) if choice is None else choice
    chosen = sorted(random.Random(choice).sample(purified, min(n, len(purified))))
    stage: Stage | None = None
    try:
        stage = stage_of(settings["stage"], model=model, device=device)
    except ModelError as error:
        differs.append(f"model: {error}")
    entries = [rows.slice(index, 1).to_pylist()[0] for index in chosen]
    loaded = [_load(here, index) for index in chosen]
    items = [_compare_source(entry, one) for entry, one in zip(entries, loaded, strict=True)]
    stored = _stored(target, rows, chosen, entries, items)
    again: dict[int, Outcome] = {}
    if stage is not None:
        usable = [i for i, one in enumerate(loaded) if one is not None and one.picture is not None]
        outcomes = _purify([one for one in loaded if one is not None and one.picture is not None], stage, settings)
        again = dict(zip(usable, outcomes, strict=True))
        told_stage = settings["stage"]["of"] if settings["stage"].get("stage") == "highest" else settings["stage"]
        now = json.loads(json.dumps(stage.settings()))
        differs += [f"settings: {line}" for line in differences(told_stage, now)]
    _compare_results(here, again, entries, stored, items)
    return Verification(
        target=str(target),
        source=str(here.path),
        purified=len(purified),
        chosen_by=choice,
        repurified=len(again),
        differs=differs,
        notes=notes,
        items=items,
    )


def read_finished(target: Path) -> tuple[JSON, pa.Table]:
    """The run record of a finished target and its manifest, both checked for what is needed of them.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if url := as_url(target):
        raise InputError(f"{url} is elsewhere; copy it here to verify it, with what stands beside it")
    path = record_path(target, target.is_file())
    if not path.is_file():
        raise InputError(f"no finished target at {target}: {path} is not there; name what `pureebm purify` wrote")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a run record: {error}; purify again") from error
    record = record if isinstance(record, dict) else {}
    lacking = [name for name in RECORDED if not isinstance(record.get(name), dict)]
    settings: JSON = record["settings"] if "settings" not in lacking else {}
    lacking += [name for name in PLANNED if name not in settings]
    if lacking:
        raise InputError(f"{path} is not a run record: it lacks {', '.join(lacking)}; purify again")
    for name, kind in (("stage", dict), ("source", dict), ("versions", dict), ("source_name", str)):
        if not isinstance(settings[name], kind):
            raise InputError(f"{path}: settings.{name} is no {kind.__name__}; the record is damaged, purify again")
    for name, most in (("seed", 2**64 - 1), ("images", 2**40), ("batch_size", 2**16), ("chunk_items", 2**20)):
        if type(settings[name]) is not int or not (name != "seed") <= settings[name] <= most:
            raise InputError(f"{path}: settings.{name} is {settings[name]!r}; the record is damaged, purify again")
    return record, _read_manifest(path.parent / MANIFEST_NAME)


def _read_manifest(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, columns=SCHEMA.names)
        if not table.schema.equals(SCHEMA):
            raise InputError(f"{path} is not a manifest: its columns are {table.schema.names}; purify again")
        for column in ("id", "target_name", "status", "sha256_before", "sha256_after"):
            if table[column].null_count:
                raise InputError(f"{path} is damaged: {column} has empty cells; purify again")
            table[column].validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is missing or damaged: {reason}; purify again") from error


def _find_source(record: JSON, target: Path, given: Path | None) -> Source:
    name = record["settings"]["source_name"]
    recorded = str(record.get("source") or "")
    places = [given] if given is not None else [*([Path(recorded)] if recorded else []), target.parent / name]
    for place in places:
        if place.exists():
            return open_source(place)
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise InputError(f"the source {name!r} is not at {looked}; say where with --source")


def _load(source: Source, index: int) -> Loaded | None:
    return source.load(index, index + 1)[0] if index < len(source) else None


def _compare_source(entry: JSON, loaded: Loaded | None) -> Checked:
    checked = Checked(entry["id"])
    if loaded is None or printable(loaded.item.id) != entry["id"]:
        found = "nothing" if loaded is None else repr(printable(loaded.item.id))
        checked.differs.append(f"source changed: {found} stands in its place")
    elif loaded.sha256 != entry["sha256_before"]:
        checked.differs.append("source changed: other bytes than were read")
    return checked


def _stored(
    target: Path, rows: pa.Table, chosen: Sequence[int], entries: Sequence[JSON], items: Sequence[Checked]
) -> list[Picture | None]:
    """The pictures in the target; what is wrong with its bytes is entered in `items`."""
    ranks = np.cumsum(np.array(rows["status"].to_pylist()) != "skipped") - 1
    pictures: list[Picture | None] = []
    try:
        opened = open_source(target)
    except InputError as error:
        for item in items:
            item.differs.append(f"target: {error}")
        return [None] * len(items)
    for index, entry, item in zip(chosen, entries, items, strict=True):
        sha256, picture = _stored_item(opened, entry["target_name"], int(ranks[index]))
        if sha256 != entry["sha256_after"]:
            item.differs.append("target: other bytes than were stored" if sha256 else "target: the item is missing")
        pictures.append(picture)
    return pictures


def _stored_item(target: Source, name: str, rank: int) -> tuple[str, Picture | None]:
    if not isinstance(target, FolderSource):
        one = _load(target, rank)
        return (one.sha256, one.picture) if one else ("", None)
    path = (target.path / name).resolve()
    if target.path.resolve() not in path.parents:
        return "", None
    try:
        data = read_regular(path)
    except OSError:
        return "", None
    try:
        return hashlib.sha256(data).hexdigest(), decode(data, name)
    except ItemError:
        return hashlib.sha256(data).hexdigest(), None


def _purify(loaded: list[Loaded], stage: Stage, settings: JSON) -> list[Outcome]:
    return purify_items(
        loaded,
        stage,
        seed=settings["seed"],
        batch_size=settings["batch_size"],
        work=Work(),
        on_batch=lambda n: None,
    )


def _compare_results(
    source: Source,
    again: dict[int, Outcome],
    entries: Sequence[JSON],
    stored: Sequence[Picture | None],
    items: Sequence[Checked],
) -> None:
    """What the sink would store of each new result, against the manifest."""
    with tempfile.TemporaryDirectory(prefix="pureebm-verify-") as folder:
        sink = source.open_sink(Path(folder) / "staging")
        for position, outcome in again.items():
            item, entry = items[position], entries[position]
            if outcome.pixels is None:
                item.differs.append(f"bytes: it could not be purified again: {outcome.message}")
                continue
            picture = dataclasses.replace(outcome.picture, pixels=outcome.pixels)
            sha256 = sink.write(position, [Result(outcome.loaded.item, "purified", picture)])[0].sha256
            if sha256 != entry["sha256_after"]:
                item.differs.append("bytes: purifying it again gives others" + _count(item, picture, stored[position]))


def _count(item: Checked, new: Picture, old: Picture | None) -> str:
    """Enter how many values differ and by how much; the same in words."""
    after, before = stored_pixels(new), stored_pixels(old) if old is not None else None
    if before is None or before.shape != after.shape:
        return ""
    change: Any = np.abs(after.astype(np.int64) - before.astype(np.int64))
    item.values_changed, item.largest_change = int((change > 0).sum()), int(change.max())
    return f" ({item.values_changed:,} of {change.size:,} values, by at most {item.largest_change})"


def _version_notes(settings: JSON) -> list[str]:
    now = {"pureebm": version("pureebm"), "torch": torch.__version__}
    return [
        f"made with {name} {settings['versions'].get(name)}, verified with {mine}: last bits may differ"
        for name, mine in now.items()
        if settings["versions"].get(name) != mine
    ]
