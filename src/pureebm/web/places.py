"""What of the disk can be seen: image sets under one folder, and uploads. Everything else is refused by its real path.

A place is named by a key: "files/cats/2024" under the allowed folder, "uploads/ID/photos" in the workspace.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from pureebm.data.base import Loaded, Source
from pureebm.data.folder import is_image_name
from pureebm.data.open import open_source
from pureebm.errors import InputError
from pureebm.web.unpack import Limits, receive

N_LISTED = 1000
"""Entries of a folder that its page shows."""

SECONDS_OPEN = 600.0
"""A set is looked at again after so long, or when its page is opened."""

N_OPEN = 8


@dataclass(slots=True)
class OpenSet:
    """An opened source, used by one thread at a time; what was computed of it is kept with it."""

    key: str
    source: Source
    since: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: dict[str, Any] = field(default_factory=dict)

    def load(self, indices: Sequence[int]) -> list[Loaded]:
        """These items, in growing order."""
        with self.lock:
            return [loaded for index in indices for loaded in self.source.load(index, index + 1)]


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder's page: names of its folders and files (but images), and how many images stand in it."""

    key: str
    above: list[tuple[str, str]]  # (name, key) from the allowed folder down
    folders: list[str]
    files: list[str]
    n_images: int
    cut: bool


class Places:
    """The allowed folder and the uploads."""

    def __init__(self, root: Path, uploads: Path, limits: Limits) -> None:
        self.root = root.resolve()
        self.uploads = uploads.resolve()
        self.limits = limits
        self._bases = {"files": self.root, "uploads": self.uploads}
        self._open: OrderedDict[str, OpenSet] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, key: str) -> Path:
        """The real path of a key. Raises `InputError` if it leads out of its place, or nowhere."""
        name, _, rest = key.partition("/")
        base = self._bases.get(name)
        if base is None or "\0" in rest:
            raise InputError(f"there is no place {key!r}; choose a set on the first page")
        try:
            path = (base / rest.lstrip("/")).resolve(strict=True)
        except (OSError, RuntimeError, UnicodeError) as error:
            raise InputError(f"there is nothing at {rest!r}") from error
        if not path.is_relative_to(base):
            raise InputError(f"{rest!r} leads out of the folder that this server shows")
        return path

    def key(self, path: Path) -> str:
        """The key of a real path. Raises `InputError` if it is in neither place."""
        for name, base in self._bases.items():
            if path.is_relative_to(base):
                return f"{name}/{path.relative_to(base).as_posix()}".removesuffix("/.")
        raise InputError(f"{path} is not in the folder that this server shows; start it with a --root that holds it")

    def open(self, key: str, *, afresh: bool = False) -> OpenSet:
        """An image set. Raises `InputError` as `path`, or if it is none, or if a link in it leads out."""
        with self._lock:
            known = self._open.get(key)
            if known and not afresh and time.monotonic() - known.since < SECONDS_OPEN:
                self._open.move_to_end(key)
                return known
        path = self.path(key)
        self._check_links(path, self._bases[key.partition("/")[0]])
        opened = OpenSet(key, open_source(path), time.monotonic())
        if not len(opened.source):
            raise InputError(f"{path.name!r} holds no images")
        with self._lock:
            self._open[key] = opened
            while len(self._open) > N_OPEN:
                self._open.popitem(last=False)
        return opened

    def listing(self, key: str) -> Listing:
        """What stands in a folder; hidden names and links that lead out are left out."""
        path = self.path(key)
        if not path.is_dir():
            raise InputError(f"{path.name!r} is no folder")
        base = self._bases[key.partition("/")[0]]
        folders, files, n_images, cut = list[str](), list[str](), 0, False
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not _is_text(entry.name):
                    continue
                if entry.is_symlink() and not _leads_within(Path(entry.path), base):
                    continue
                if not entry.is_dir() and is_image_name(entry.name):
                    n_images += 1
                elif len(folders) + len(files) < N_LISTED:
                    (folders if entry.is_dir() else files).append(entry.name)
                else:
                    cut = True
        own = self.key(path)
        parts = own.split("/")
        names = [self.root.name or str(self.root), *parts[1:]]
        above = [(name, "/".join(parts[: depth + 1])) for depth, name in enumerate(names)]
        return Listing(own, above, sorted(folders, key=str.casefold), sorted(files, key=str.casefold), n_images, cut)

    def receive(self, upload: BinaryIO, name: str) -> str:
        """Make a set of an uploaded file; its key. Raises `InputError` if it is refused."""
        return self.key(receive(upload, name, self.uploads / new_id(), self.limits))

    def uploaded(self) -> list[str]:
        """Keys of all uploads, the newest first."""
        folders = sorted((path for path in self.uploads.iterdir() if path.is_dir()), reverse=True)
        return [f"uploads/{folder.name}/{path.name}" for folder in folders for path in sorted(folder.iterdir())]

    def remove_upload(self, key: str) -> None:
        """Delete an upload. Raises `InputError` if it is none."""
        path = self.path(key)
        if path.parent.parent != self.uploads:
            raise InputError(f"{key!r} is no upload; only uploads can be deleted here")
        with self._lock:
            self._open.pop(key, None)
        shutil.rmtree(path.parent)

    def _check_links(self, path: Path, base: Path) -> None:
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                here = os.path.join(folder, name)
                if os.path.islink(here) and not _leads_within(Path(here), base):
                    shown = os.path.relpath(here, path)
                    raise InputError(f"the link {shown!r} leads out of the folder that this server shows; remove it")


def new_id() -> str:
    """A folder's name that sorts by time."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _leads_within(path: Path, base: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
