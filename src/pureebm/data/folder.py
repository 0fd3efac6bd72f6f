"""A folder of images, nested or flat: every image becomes a PNG at its place, every other file is copied.

`a/b.jpg` becomes `a/b.png`. Where two names would meet, the file that is a .png already keeps its name, and the others
become `b.jpg.png`; what still cannot stand (taken, or over 255 bytes) gets a hash. Links to folders are not followed;
links to files are, but what lies outside of the source is only ever read as an image, never copied.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.durable import copy_file, sync_folder, sync_tree, write_file
from pureebm.data.pictures import EXTENSIONS, MAX_BYTES, encode, in_threads, load_picture, looks_like_image
from pureebm.errors import InputError, ItemError
from pureebm.types import JSON

MAX_NAME_BYTES = 255
SHOWN = 20
_NO_IMAGES = frozenset({".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".xml", ".yaml", ".yml", ".html", ".parquet"})
"""Ends of names of files that often lie beside images, and in such numbers that looking into each would take long."""


@dataclass(slots=True)
class Listing:
    """What lies in a folder, as posix paths relative to it, sorted."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # copied as they are
    folders: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # links to folders, links out of it, pipes, ...


class FolderSource:
    """The images below a folder, by name. Memory: the names."""

    kind = "folder"
    single_file = False

    def __init__(self, path: Path, listing: Listing | None = None) -> None:
        """`listing` is what `list_folder` said. Raises `InputError` if there is no image."""
        self.path = path
        self.listing = listing or list_folder(path)
        if not self.listing.images:
            raise InputError(
                f"no images in {path}; looked for {', '.join(sorted(EXTENSIONS))} in it and its folders, "
                f"found {len(self.listing.others)} other files"
            )
        self._odd_targets = odd_target_names(self.listing.images, self.listing.folders)

    def __len__(self) -> int:
        return len(self.listing.images)

    def item(self, index: int) -> Item:
        name = self.listing.images[index]
        target = self._odd_targets.get(index) or _plain_target(readable(name))
        return Item(index, readable(name), target)

    def load(self, start: int, stop: int) -> list[Loaded]:
        return in_threads(self._load_one, range(start, min(stop, len(self))))

    def describe(self) -> JSON:
        listing = self.listing
        fingerprint, n_bytes = _fingerprint(self.path, listing)
        tops = {name.partition("/")[0] for name in listing.images if "/" in name}
        return {
            "kind": self.kind,
            "images": len(listing.images),
            "bytes": n_bytes,
            "classes": sorted(map(readable, tops))[:1000],
            "passed_on": _shown(listing.others),
            "left_out": _shown(listing.left_out),
            "fingerprint": fingerprint,
        }

    def open_sink(self, staging: Path) -> FolderSink:
        return FolderSink(self, staging)

    def _load_one(self, index: int) -> Loaded:
        item = self.item(index)
        try:
            data = read_regular(self.path / self.listing.images[index])
        except OSError as error:
            reason = f"{item.id}: cannot be read: {error.strerror or error}"
            return Loaded(item, None, ItemError(reason), "")
        return load_picture(item, data)


class FolderSink:
    """Grows the new folder as `staging/tree`; each image is written aside and renamed into it."""

    def __init__(self, source: FolderSource, staging: Path) -> None:
        self._source = source
        self._tree = staging / "tree"
        self._parts = staging / "parts"
        self._tree.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(exist_ok=True)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        stored = in_threads(self._write_one, results)
        for folder in {(self._tree / entry.target_name).parent for entry in stored if entry.target_name}:
            sync_folder(folder)
        return stored

    def assemble(self, target: Path, n_chunks: int) -> None:
        if not self._tree.exists() and target.is_dir():
            return  # renamed already, before a crash
        listing = self._source.listing
        for name in listing.folders:
            (self._tree / readable(name)).mkdir(parents=True, exist_ok=True)
        for name in listing.others:
            copy_file(self._source.path / name, self._tree / readable(name), aside=self._parts / "other")
        sync_tree(self._tree)
        os.rename(self._tree, target)
        sync_folder(target.parent)

    def _write_one(self, result: Result) -> Stored:
        """Store one image. What an earlier attempt at it left under its other name goes."""
        item = result.item
        places = {"purified": item.target_name, "copied": item.id}
        name = places.get(result.status, "")
        data = self._bytes(result)
        if data is None:
            name = ""
        for other in places.values():
            if other != name:
                (self._tree / other).unlink(missing_ok=True)
        if data is None:
            return Stored("", "")
        path = self._tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(data), aside=self._parts / str(item.index))
        return Stored(name, hashlib.sha256(data).hexdigest())

    def _bytes(self, result: Result) -> bytes | None:
        """None where nothing is to be stored: skipped, or to be copied, but unreadable or from outside."""
        if result.status == "purified":
            assert result.picture is not None
            return encode(result.picture)
        path = self._source.path / self._source.listing.images[result.item.index]
        if result.status == "skipped" or _leaves(path, self._source.path):
            return None
        try:
            return read_regular(path)
        except OSError:
            return None


def list_folder(root: Path) -> Listing:
    """Walk a folder without following links to folders.

    Raises:
        InputError: A folder cannot be opened.
    """
    listing = Listing()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            entries = os.scandir(root / prefix)
        except OSError as error:
            raise InputError(
                f"cannot open the folder {root / prefix}: {error.strerror}; check its permissions"
            ) from error
        with entries:
            for entry in entries:
                name = f"{prefix}/{entry.name}" if prefix else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                    listing.folders.append(name)
                else:
                    _sort_in(listing, name, entry, root)
    for names in (listing.images, listing.others, listing.folders, listing.left_out):
        names.sort()
    return listing


def _sort_in(listing: Listing, name: str, entry: os.DirEntry[str], root: Path) -> None:
    if is_image_name(entry.name) and not _is_folder_link(entry):
        listing.images.append(name)  # whatever it really is: if no image, then it is reported by name
    elif name.startswith("pureebm-"):
        return  # an earlier run's records
    elif not _is_file(entry) or (entry.is_symlink() and _leaves(Path(entry.path), root)):
        listing.left_out.append(name)
    elif _begins_like_an_image(entry):
        listing.images.append(name)  # under whatever name: it must not pass unpurified
    else:
        listing.others.append(name)


def _begins_like_an_image(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() in _NO_IMAGES:
        return False
    try:
        with open(entry.path, "rb") as file:
            return looks_like_image(file.read(16))
    except OSError:
        return False


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def readable(name: str) -> str:
    """A path as text that can be written anywhere; only parts that are no UTF-8 change."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "/".join(map(_readable_part, name.split("/")))
    return name


def _readable_part(part: str) -> str:
    raw = os.fsencode(part)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        stem, extension = os.path.splitext(raw.decode(errors="replace").replace("\ufffd", "_"))
        return f"{_cut(stem, 200)}~{_digest(raw)}{extension}"


def odd_target_names(names: Sequence[str], folders: Iterable[str]) -> dict[int, str]:
    """index -> target name of the images that cannot simply exchange their extension for .png.

    Names are compared without case, so that the target also fits on file systems that ignore it.
    """
    texts = [readable(name) for name in names]
    claims = Counter(_plain_target(text).casefold() for text in texts)
    taken = {readable(folder).casefold() for folder in folders}
    odd: list[int] = []
    for index, text in enumerate(texts):
        plain = _plain_target(text)
        if plain == text:
            continue  # a .png already
        if claims[plain.casefold()] > 1 or plain.casefold() in taken or _too_long(plain):
            odd.append(index)
    taken.update(claims)
    result: dict[int, str] = {}
    for index in odd:
        result[index] = next(name for name in _candidates(texts[index]) if name.casefold() not in taken)
        taken.add(result[index].casefold())
    return result


def _candidates(text: str) -> Iterator[str]:
    """`a/b.jpg` -> `a/b.jpg.png`, then with hashes until one is free; none longer than a name may be."""
    if not _too_long(f"{text}.png"):
        yield f"{text}.png"
    path = PurePosixPath(text)
    for attempt in range(1_000_000):
        digest = _digest(f"{text}/{attempt}".encode())
        yield str(path.with_name(f"{_cut(path.stem, 200)}~{digest}.png"))


def _plain_target(text: str) -> str:
    stem, extension = os.path.splitext(text)
    return text if extension.lower() == ".png" else f"{stem}.png"


def _too_long(text: str) -> bool:
    return len(text.rpartition("/")[2].encode()) > MAX_NAME_BYTES


def _cut(text: str, n_bytes: int) -> str:
    return text.encode()[:n_bytes].decode(errors="ignore")


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`; opening a pipe or device never blocks.

    Raises:
        OSError: It cannot be opened, is no file, or is too large.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > MAX_BYTES:
            raise OSError(f"its {status.st_size:,} bytes are more than the allowed {MAX_BYTES:,}")
        return file.read()


def fingerprint_of(root: Path, names: Iterable[str]) -> tuple[str, int]:
    """A hash of the names, sizes and modification times of files, and the sum of their sizes."""
    digest, n_bytes = hashlib.sha256(), 0
    for name in names:
        try:
            status = os.stat(os.path.join(root, name))  # a million times: pathlib would take longer than the disk
            size, time = status.st_size, status.st_mtime_ns
        except OSError:
            size, time = -1, -1
        digest.update(f"{name}\0{size}\0{time}\0".encode("utf-8", "surrogateescape"))
        n_bytes += max(size, 0)
    return digest.hexdigest(), n_bytes


def _fingerprint(root: Path, listing: Listing) -> tuple[str, int]:
    return fingerprint_of(root, (name for names in (listing.images, listing.others) for name in names))


def _shown(names: Sequence[str]) -> JSON:
    return {"count": len(names), "first": [readable(name) for name in names[:SHOWN]]}


def _is_folder_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _leaves(path: Path, root: Path) -> bool:
    """A link that leads out of the source, or nowhere."""
    try:
        return not path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return True
