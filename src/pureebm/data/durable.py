"""Files that are whole or absent: written aside, flushed to disk, then renamed. Knows nothing of images."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, fill: Callable[[BinaryIO], object], *, aside: Path | None = None) -> None:
    """Make `path` of what `fill` writes, replacing what stands there; its folder is synced by the caller.

    `aside` is where it grows (default: `path` with ".part" added), on the same file system.
    """
    aside = aside or path.with_name(path.name + ".part")
    with open(aside, "wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def check_place(path: Path) -> None:
    """Before work of hours whose end is to be written there. Makes its folder; OSError where a file cannot appear."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


def copy_file(source: Path, path: Path, *, aside: Path | None = None) -> None:
    """A durable copy of a file's bytes (a link is followed)."""
    with open(source, "rb") as original:
        write_file(path, lambda file: shutil.copyfileobj(original, file, 1 << 20), aside=aside)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync_folder` for a folder and all folders under it."""
    for here, _, _ in os.walk(folder):
        sync_folder(Path(here))
