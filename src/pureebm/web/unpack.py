"""An uploaded archive becomes a source in the workspace: nothing outside its folder, nothing larger than allowed.

    UPLOADS/20261123-141502-9f3a/photos          of photos.zip
    UPLOADS/20261123-141502-9f3a/images.npz      of images.npz

Sizes are those that come out of the decompressor, not those that the archive claims.
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pureebm.data.open import open_source
from pureebm.errors import InputError

BLOCK = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may become."""

    files: int = 200_000
    unpacked_bytes: int = 16 * 2**30


def receive(upload: BinaryIO, name: str, folder: Path, limits: Limits) -> Path:
    """Make a source of an uploaded file.

    Args:
        upload: The file's bytes, seekable.
        name: As the browser says; only its last part and its plain letters are used.
        folder: New; removed again if the upload is refused.
        limits: Of what comes out of it.

    Raises:
        InputError: Neither .zip nor .npz, damaged, too large, with names that lead elsewhere, or with no images.
    """
    stem, suffix = _plain(name)
    folder.mkdir(parents=True)
    try:
        if suffix == ".npz":
            target = folder / f"{stem}.npz"
            with open(target, "xb") as file:
                shutil.copyfileobj(upload, file, BLOCK)
        elif suffix == ".zip":
            target = folder / stem
            unpack(upload, target, limits)
        else:
            raise InputError(f"{name!r} is neither a .zip nor a .npz file; pack the images into one of them")
        if not len(open_source(target)):
            raise InputError(f"{name!r} holds no images")
        return target
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def unpack(archive: BinaryIO, target: Path, limits: Limits) -> None:
    """Write the files of a zip archive into the new folder `target`.

    Links, names that lead out of the folder and encrypted files are refused; what macOS adds is left out.

    Raises:
        InputError: As above, or a limit is passed, or the disk would be full.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.filename.startswith("__MACOSX/")]
            _check(members, target.parent, limits)
            target.mkdir()
            left = limits.unpacked_bytes
            for info in members:
                left -= _write(opened, info, target, left)
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the archive is damaged or of an unknown kind: {error}; pack it again as a plain zip"
        ) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"the archive holds the name {Path(error.filename).name!r} twice") from error


def _check(members: list[zipfile.ZipInfo], folder: Path, limits: Limits) -> None:
    if len(members) > limits.files:
        raise InputError(f"the archive holds {len(members):,} files; at most {limits.files:,} are taken")
    if any(info.header_offset < 0 for info in members):
        raise zipfile.BadZipFile("a member begins before the archive")
    claimed = sum(info.file_size for info in members)
    if claimed > limits.unpacked_bytes:
        raise InputError(f"the archive unpacks to {claimed:,} bytes; at most {limits.unpacked_bytes:,} are taken")
    free = shutil.disk_usage(folder).free
    if claimed > free // 2:
        raise InputError(
            f"the archive unpacks to {claimed:,} bytes, but only {free:,} are free on the workspace's disk"
        )


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Unpack one member; the number of bytes that came out."""
    path = target.joinpath(*_parts(info))
    if info.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(info) as source, open(path, "xb") as file:
        while block := source.read(BLOCK):
            written += len(block)
            if written > left:
                raise InputError(f"{info.filename!r}: the archive unpacks to more than is taken")
            file.write(block)
    return written


def _parts(info: zipfile.ZipInfo) -> tuple[str, ...]:
    """The parts of a member's name, none of which leads anywhere."""
    name = info.filename
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InputError(f"the archive holds the link {name!r}; pack the files themselves")
    if info.flag_bits & 1:
        raise InputError(f"{name!r} is encrypted; pack it without a password")
    parts = PurePosixPath(name).parts
    plain = parts and not name.startswith("/") and not any(part in ("..", "/") for part in parts)
    if not plain or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        raise InputError(f"the archive holds the name {name!r}, which leads out of its folder; nothing was unpacked")
    if any(len(part.encode("utf-8", "replace")) > 255 for part in parts) or len(name) > 2000:
        raise InputError(f"the archive holds a name of {len(name)} letters; that is too long")
    return parts


def _plain(name: str) -> tuple[str, str]:
    """(stem, suffix) of an uploaded file's name, fit to be a file's name here."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = re.sub(r"[^\w .-]", "_", path.stem).strip(" .")[:80].strip(" .")
    return stem or "upload", path.suffix.lower()
