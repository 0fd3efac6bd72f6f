"""Data sets that are elsewhere: URLs through fsspec (`s3://`, `gs://`, `https://`, ...), and `hf:datasets/owner/name`.

A source is copied to the user's cache folder, to a place that is a function of its URL, and opened there; what has not
changed since is not copied again. A target grows in such a place too, is uploaded when it is complete, its run record
last, and is then removed here. So a repeated command goes on wherever it was cut off. Nothing here knows of jobs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pureebm.data.durable import sync_folder, write_file
from pureebm.errors import InputError, Interrupted, PureebmError
from pureebm.types import JSON

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)
_HUB = re.compile(r"hf:datasets/([\w.-]+)/([\w.-]+?)(?:@([\w./-]+))?")
_READ_ONLY = ("http", "https")


def as_url(path: Path | str) -> str | None:
    """The URL that was given, also where `Path` has folded its slashes; None for what is a local path."""
    match = _URL.fullmatch(str(path))
    if match is None or os.path.lexists(path):
        return None
    scheme, rest = match.groups()
    return f"{scheme}:///{rest}" if scheme in ("file", "local") else f"{scheme}://{rest}"


def is_hub_name(path: Path | str) -> bool:
    return str(path).startswith("hf:") and as_url(path) is None and not os.path.lexists(path)


def fetch(url: str) -> Path:
    """Copy a file or a folder here, or what has changed of it, and return where it lies.

    Raises:
        InputError: There is nothing, it cannot be read, or fsspec or its part for this store is missing.
    """
    files, remote = _file_system(url)
    folder = cache_folder() / "sources" / _digest(url)
    here = folder / _name(url, remote)
    with held(folder), _reporting(url):
        infos = _list(files, remote)
        if not infos:
            raise InputError(f"there is nothing at {url}")
        for name, info in infos.items():
            _download(files, info, here / name if name else here)
        if here.is_dir():
            _remove_all_but(here, {here / name for name in infos})
    return here


def fetch_from_hub(name: str) -> Path:
    """Copy a data set repository of the Hugging Face hub here, once, and return where it lies.

    Args:
        name: `hf:datasets/owner/name`, and `@revision` if wanted.

    Raises:
        InputError: No such name, no such repository, no network, or huggingface_hub is missing.
    """
    match = _HUB.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} names no data set of the hub; expected hf:datasets/owner/name")
    owner, repository, revision = match.groups()
    folder = cache_folder() / "hub" / _digest(name)
    here, part = folder / repository, folder / "part"
    if here.is_dir():
        return here
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise InputError("hf: data sets need huggingface_hub: pip install 'pureebm[hub]'") from error
    with held(folder):
        try:
            snapshot_download(f"{owner}/{repository}", repo_type="dataset", revision=revision, local_dir=part)
        except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
            raise InputError(
                f"cannot fetch {name} from the Hugging Face hub ({type(error).__name__}). Check the name and the "
                "network; without a network, download the repository elsewhere and give its folder as SOURCE"
            ) from error
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the download's own notes
        os.rename(part, here)
        sync_folder(folder)
    return here


class RemoteTarget:
    """A target at a URL, and the local place where it grows."""

    def __init__(self, url: str) -> None:
        """Raises `InputError` if the store is unknown, or cannot be written."""
        self.url = url.rstrip("/")
        if self.url.partition(":")[0] in _READ_ONLY:
            raise InputError(f"{url} cannot be written; name a local target, or one in a store such as s3://")
        self._files, self._remote = _file_system(self.url)
        self.folder = cache_folder() / "targets" / _digest(self.url)
        self.path = self.folder / _name(self.url, self._remote)
        self._note = self.folder / "begun.json"
        self._journal = self.folder / "uploaded"

    def record(self, record_name: str) -> JSON | None:
        """The run record of a whole target that stands there; None where there is none, or a job of ours goes on."""
        if self._note.exists():
            return None
        with _reporting(self.url):
            for place in (f"{self._remote}.pureebm/{record_name}", f"{self._remote}/{record_name}"):
                if self._files.exists(place):
                    with suppress(ValueError, RecursionError):
                        found = json.loads(self._files.cat_file(place))
                        return found if isinstance(found, dict) else None
        return None

    def begin(self, record_name: str, *, overwrite: bool) -> None:
        """Take the place, where `check` lets us."""
        replace = self.check(record_name, overwrite=overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._note.exists():
            self._write_note(replace=replace)

    def check(self, record_name: str, *, overwrite: bool) -> bool:
        """Refuse to write over what is there, unless it is ours and `overwrite` is set; asked once a job.

        Returns:
            Whether something there is to be replaced.
        """
        if self._note.exists():
            return False
        with _reporting(self.url):
            there = self._files.exists(self._remote)
            records = [f"{self._remote}/{record_name}", f"{self._remote}.pureebm/{record_name}"]
            ours = any(self._files.exists(record) for record in records)
        if there and not overwrite:
            raise InputError(f"the target {self.url} exists; name another, or replace it with --overwrite")
        if there and not ours:
            raise InputError(f"{self.url} holds no {record_name}: not ours to overwrite; remove it yourself")
        return bool(there)

    def start_over(self) -> None:
        """Forget what has grown here; what of it was uploaded is replaced."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._write_note(replace=True)

    def upload(self, record_name: str, stop: threading.Event | None = None) -> None:
        """Copy the finished target there, its record last, and remove it here. May be repeated after a crash.

        Raises:
            Interrupted: `stop` was set.
        """
        side = self.path.with_name(f"{self.path.name}.pureebm")
        local = [self.path] if self.path.is_file() else []
        local += sorted(one for root in (self.path, side) if root.is_dir() for one in root.rglob("*") if one.is_file())
        local.sort(key=lambda path: path.name == record_name)
        with _reporting(self.url):
            if not self._journal.exists():
                if json.loads(self._note.read_text())["replace"]:
                    self._remove()
                self._journal.touch()
            done = set(self._journal.read_text().splitlines())
            for path in local:
                if stop is not None and stop.is_set():
                    raise Interrupted("interrupted while uploading; repeat the same command to go on")
                name = path.relative_to(self.folder).as_posix()
                if json.dumps(name) not in done:
                    self._put(path, f"{self._remote}{name.removeprefix(self.path.name)}")
                    with open(self._journal, "a") as journal:
                        journal.write(json.dumps(name) + "\n")
        shutil.rmtree(self.folder)

    def _write_note(self, *, replace: bool) -> None:
        note = json.dumps({"url": self.url, "replace": replace}).encode()
        write_file(self._note, lambda file: file.write(note))

    def _put(self, path: Path, remote: str) -> None:
        self._files.makedirs(self._files._parent(remote), exist_ok=True)
        self._files.put_file(str(path), remote)

    def _remove(self) -> None:
        for there in (self._remote, f"{self._remote}.pureebm"):
            if self._files.exists(there):
                self._files.rm(there, recursive=True)


def cache_folder() -> Path:
    """Where copies lie, by the XDG rules."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return folder / "pureebm" / "remote"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a cached folder, and wait until no other process works in it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise InputError(f"cannot write to the cache {folder.parent}: {error.strerror}; set XDG_CACHE_HOME") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield
    finally:
        os.close(lock)


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and its own name of the place."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError("URLs need fsspec: pip install 'pureebm[remote]'") from error
    with _reporting(url):
        files, remote = url_to_fs(url)
    return files, str(remote).rstrip("/")


def _list(files: Any, remote: str) -> dict[str, JSON]:
    """Name below the place -> what the store says of the file; "" if the place itself is the file."""
    info = files.info(remote)
    if info["type"] == "file":
        return {"": info}
    found: Mapping[str, JSON] = files.find(remote, detail=True)
    names = {path: path.removeprefix(remote).lstrip("/") for path in found}
    for path, name in names.items():
        if not name or ".." in name.split("/") or "\0" in name:
            raise InputError(f"{path} has a name that leads out of its folder; rename it")
    return {names[path]: found[path] for path in sorted(found)}


def _download(files: Any, info: JSON, here: Path) -> None:
    """Copy a file unless it is here already: its time tells the version, so that a source's fingerprint follows it."""
    version = int(hashlib.sha256(str(sorted(info.items())).encode()).hexdigest()[:15], 16)
    if here.is_file() and here.stat().st_mtime_ns == version:
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    part = here.with_name(f"{here.name[:200]}.part")
    files.get_file(info["name"], str(part))
    size = info.get("size")
    if size is not None and part.stat().st_size != size:
        raise OSError(f"{info['name']}: {part.stat().st_size:,} of {size:,} bytes came")
    os.utime(part, ns=(version, version))
    os.replace(part, here)


def _remove_all_but(folder: Path, wanted: set[Path]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in wanted:
            path.unlink()


@contextmanager
def _reporting(url: str) -> Iterator[None]:
    try:
        yield
    except PureebmError:
        raise
    except ImportError as error:
        raise InputError(f"{url}: {error}; install what fsspec needs for this store") from error
    except Exception as error:  # each store has errors of its own
        raise InputError(
            f"{url}: {error or type(error).__name__}; check the address, the network and your permissions"
        ) from error


def _name(url: str, remote: str) -> str:
    """The last part of the address: what the local copy is called, as its ending may tell its kind."""
    name = re.split(r"[?#]", remote)[0].rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise InputError(f"{url} names no file or folder; put one behind the store's name")
    return name


def _digest(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode("utf-8", "surrogateescape")).hexdigest()[:16]
