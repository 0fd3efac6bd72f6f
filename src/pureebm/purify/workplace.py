"""The hidden folder beside a target in which a job grows: its plan, its journal, its locks, and the last rename.

    .TARGET.pureebm-partial/
        plan.json              every setting that influences a byte; a repeated command is compared with it
        journal/000012.parquet chunk 12 is done
        staging/               the sink's own
        ranking.npz            energies of all images, where only the highest are purified
        ready/TARGET           the whole target, side files included, just before it takes its place
        commit                 `ready` is complete: nothing but renames and cleaning up is left
        lock, shard-0-of-1     held while planning or finishing, and while working on a shard
        shard-0-of-1-worker-2  held by a process that computes for the one that holds the shard

At every moment either the old target stands or the new one does (for a folder that replaces a folder: or neither, and
the same command puts it there). Nothing here knows of images or networks.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from pureebm.data.base import Sink, Source
from pureebm.data.durable import sync_folder
from pureebm.data.remote import as_url
from pureebm.errors import InputError, MismatchError
from pureebm.purify.manifest import RECORD_NAME, Journal, write_json
from pureebm.types import JSON

OUR_RECORDS = (RECORD_NAME, "pureebm-attack.json")
"""A folder that holds one of these was made here and may be replaced. (`attacks.storage` says the second; a test
compares.)"""


def check_places(source: Source, target: Path, *, overwrite: bool) -> Path:
    """The target's real path; `InputError` where writing there would be wrong or destroy what is not ours."""
    if as_url(target):
        raise InputError(f"{as_url(target)} is elsewhere; only `pureebm purify` writes there, so name a local target")
    here, there = source.path.resolve(), target.resolve()
    if there == here:
        raise InputError(
            f"the target is the source itself: {target}; nothing in a source is ever touched, name another"
        )
    if here.is_dir() and here in there.parents:
        raise InputError(f"the target {target} lies inside the source {source.path}; name a place outside of it")
    if there in here.parents:
        raise InputError(f"the source {source.path} lies inside the target {target}; name another target")
    if source.single_file and there.is_dir():
        raise InputError(f"the source is one file, but the target {target} is a folder; name a file in it")
    if source.single_file and there.suffix.lower() != here.suffix.lower():
        raise InputError(
            f"the target has the kind of the source: name it {target.stem}{here.suffix}, not {target.name}"
        )
    if not overwrite and exists(there):
        what = "exists and is complete" if _is_ours(side_folder(there, source.single_file)) else "exists"
        raise InputError(f"the target {target} {what}; name another, or replace it with --overwrite")
    side = side_folder(there, source.single_file)
    if overwrite and exists(there) and not _is_ours(side) and not Workplace(there).committing():
        raise InputError(f"no {' or '.join(OUR_RECORDS)} in {side}: not ours to overwrite; remove {target} yourself")
    return there


def _is_ours(folder: Path) -> bool:
    return any((folder / name).is_file() for name in OUR_RECORDS)


def exists(target: Path) -> bool:
    """Something stands there; an empty folder is as good as nothing."""
    return os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))


def side_folder(target: Path, single_file: bool) -> Path:
    """Where the manifest, record and report of a target stand."""
    return target.with_name(f"{target.name}.pureebm") if single_file else target


def record_path(target: Path, single_file: bool) -> Path:
    return side_folder(target, single_file) / RECORD_NAME


class Workplace:
    """One process's hold on the hidden folder of a target. Use it in a `with`: leaving gives the locks back."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.pureebm-partial")
        self.journal = Journal(self.folder / "journal")
        self.staging = self.folder / "staging"
        self._gone = target.with_name(f".{target.name}.pureebm-done")
        self._ready = self.folder / "ready" / target.name
        self._commit = self.folder / "commit"
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def recorded(self) -> JSON | None:
        """The plan of the job that was begun here, if any."""
        for folder in (self.folder, self._gone):
            with suppress(FileNotFoundError):
                plan: JSON = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
                return plan
        return None

    def committing(self) -> bool:
        """A job was cut off while it put its target in place; what it replaces may have moved aside in part."""
        return self._commit.exists()

    def left_over(self) -> bool:
        """The target has taken its place and only the cleaning up was cut off."""
        return self._is_spent() or (self._gone.exists() and not self.folder.exists())

    def clean_up(self) -> None:
        """Remove the folder at one stroke, then what was in it, the plan last: by it the repeated command is known."""
        self._remove_gone()
        if self._is_spent():
            os.rename(self.folder, self._gone)
            self._remove_gone()

    def _is_spent(self) -> bool:
        return self._commit.exists() and not os.path.lexists(self._ready)

    def _remove_gone(self) -> None:
        if not self._gone.exists():
            return
        for path in self._gone.iterdir():
            if path.name != "plan.json":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(self._gone, ignore_errors=True)

    def begin(self, settle: Callable[[JSON | None], JSON], shard: tuple[int, int], *, overwrite: bool) -> JSON:
        """Take a shard, and agree on the plan: the recorded one if it is the same, else a new one.

        Args:
            settle: Makes this command's plan, given the recorded one.
            shard: (index, count), the index below the count.
            overwrite: A job begun with other settings is thrown away.

        Raises:
            MismatchError: The recorded plan differs.
            InputError: Another process works on this shard, or on this target in another division.
        """
        self._make_folder()
        try:
            return self._agree(settle, shard, overwrite)
        except FileNotFoundError as error:
            if self.folder.exists():
                raise
            raise InputError(f"another process has just finished {self.target}") from error

    def _agree(self, settle: Callable[[JSON | None], JSON], shard: tuple[int, int], overwrite: bool) -> JSON:
        with _lock(self.folder / "lock"):
            self._held.enter_context(self._claim(shard))
            recorded = self.recorded()
            plan: JSON = json.loads(json.dumps(settle(recorded)))
            changes = differences(recorded, plan) if recorded else []
            if changes and not overwrite:
                raise MismatchError(
                    f"a job for {self.target} was begun with other settings:\n  " + "\n  ".join(changes) + "\n"
                    "repeat the first command to go on with it, or start over with --overwrite"
                )
            if changes or not recorded:
                self._start_over(shard)
            write_json(self.folder / "plan.json", plan)
            self.journal.folder.mkdir(exist_ok=True)
        return plan

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Only one process at a time looks whether all is done. FileNotFoundError if the folder is gone."""
        with _lock(self.folder / "lock"):
            yield

    def finish(
        self, sink: Sink, n_chunks: int, write_side: Callable[[Path], None], *, single_file: bool, overwrite: bool
    ) -> None:
        """Make the target of all chunks and put it in its place; call it while `finishing`."""
        if not self._commit.exists():
            self._prepare(sink, n_chunks, write_side, single_file)
        if exists(self.target) and not overwrite:
            raise InputError(f"the target {self.target} has appeared meanwhile; remove it and repeat the command")
        if single_file:
            self._put(side_folder(self._ready, True), side_folder(self.target, True))
        self._put(self._ready, self.target)
        self.clean_up()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write beside {self.target}: {error.strerror}: {error.filename}") from error

    @contextmanager
    def _claim(self, shard: tuple[int, int]) -> Iterator[None]:
        """Hold a shard; refuse if it is held, or if the target is being worked on in another division."""
        index, count = shard
        for path in self.folder.glob("shard-*"):
            if path.name.split("-")[3] != str(count) and _is_held(path):
                raise InputError(f"{self.target} is being worked on as {path.name}; use the same number of shards")
        try:
            with _lock(self.folder / f"shard-{index}-of-{count}", wait=False):
                for worker in self.folder.glob(f"shard-{index}-of-{count}-worker-*"):
                    with _lock(worker):  # one whose first process was killed ends by itself, after its batch
                        worker.unlink()
                yield
        except BlockingIOError:
            what = "this target" if count == 1 else f"shard {index} of {count} of this target"
            raise InputError(f"another process works on {what}: {self.target}; wait for it, or stop it") from None

    @contextmanager
    def working(self, shard: tuple[int, int], worker: int) -> Iterator[None]:
        """Held by each process that computes for the holder of a shard, so that none outlives a job unseen."""
        index, count = shard[0] % shard[1], shard[1]
        with _lock(self.folder / f"shard-{index}-of-{count}-worker-{worker}"):
            yield

    @contextmanager
    def ranking(self) -> Iterator[None]:
        """Only one process makes the ranking; BlockingIOError where another is at it."""
        with _lock(self.folder / "ranking-lock", wait=False):
            yield

    def _start_over(self, shard: tuple[int, int]) -> None:
        """Throw away what an earlier job left, unless another process is still at it."""
        mine = "shard-{}-of-{}".format(*shard)
        for path in self.folder.iterdir():
            if path.name.startswith("shard-") and path.name != mine and _is_held(path):
                raise InputError(f"{self.target} is being worked on as {path.name} with other settings; stop it first")
        for path in self.folder.iterdir():
            if path.name != "lock" and path.name != mine:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _prepare(self, sink: Sink, n_chunks: int, write_side: Callable[[Path], None], single_file: bool) -> None:
        """Make the whole target in `ready`. The sink's own rename tells whether it was done already."""
        self._ready.parent.mkdir(exist_ok=True)
        if not os.path.lexists(self._ready):
            sink.assemble(self._ready, n_chunks)
        side = side_folder(self._ready, single_file)
        side.mkdir(exist_ok=True)
        write_side(side)
        sync_folder(side)
        sync_folder(self._ready.parent)
        self._commit.touch()
        sync_folder(self.folder)

    def _put(self, new: Path, place: Path) -> None:
        """Rename to its place; an old folder there is renamed away first and goes with the workplace."""
        if os.path.lexists(new):
            if exists(place) and (place.is_dir() or new.is_dir()):
                os.rename(place, Path(tempfile.mkdtemp(prefix="old-", dir=self.folder)) / place.name)
            os.replace(new, place)
            sync_folder(place.parent)


def differences(recorded: JSON, plan: JSON) -> list[str]:
    """Each setting that differs, with both values; a source's fingerprint in words."""
    old, new = _flat(recorded), _flat(plan)
    return [
        "the source has changed since (names, sizes or times of its files)"
        if name.endswith("fingerprint")
        else f"{name}: was {old.get(name, 'not set')}, is {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) or (name in old) != (name in new)
    ]


def _flat(tree: JSON, prefix: str = "") -> JSON:
    flat: JSON = {}
    for name, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value)}
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@contextmanager
def _lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock that ends with the process, however it ends.

    Raises:
        BlockingIOError: `wait` is off and somebody else holds it.
        FileNotFoundError: The folder went away, since the job is finished.
    """
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):  # else removed while we waited
                yield
                return
        finally:
            os.close(handle)


def _is_held(path: Path) -> bool:
    try:
        with _lock(path, wait=False):
            return False
    except BlockingIOError:
        return True
