"""Zip and tar archives of images: listed without trust, read as a stream, written again with the same tree inside.

Nothing is ever unpacked to disk. Refused are names that lead out of the archive, what would unpack to far more than it
is (`MAX_RATIO`), two entries of one name, encryption, and compressions other than deflate. Links are never followed:
one with the name of an image is an unreadable image, any other is left out. Entries are written in the source's order
with fixed dates, owners and permissions, so that the same content makes the same bytes. Knows nothing of samples or
folders: `webdataset` builds on it.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import stat
import struct
import tarfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol, cast

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.cells import CellChunks, Cells
from pureebm.data.durable import sync_folder, write_file
from pureebm.data.folder import SHOWN, fingerprint_of, is_image_name, odd_target_names, readable
from pureebm.data.pictures import MAX_BYTES, in_threads, load_picture
from pureebm.errors import InputError, ItemError
from pureebm.types import JSON

MAX_ENTRIES = 10_000_000
MAX_TOTAL = 2**44  # 16 TiB, unpacked
MAX_RATIO = 200  # unpacked to packed; asked of what unpacks to more than `RATIO_FROM`
RATIO_FROM = 2**30
MAX_NAME = 4096
MAX_HEADER = 2**20  # of one tar entry: what its names and attributes may take
BLOCK = 1 << 20

DAMAGE = (
    OSError,
    EOFError,
    ValueError,  # text that is no UTF-8 as well
    OverflowError,
    NotImplementedError,
    RecursionError,
    struct.error,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What the parsers raise on a damaged archive."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive, in its order."""

    name: str  # readable, without "." and doubled slashes: "cat/1.jpg"
    stored: str  # as the archive spells it
    size: int
    place: int  # tar: where its bytes begin, unpacked; zip: its number
    kind: Literal["file", "folder", "link"]  # "link" is also a device or a pipe

    def written_as(self, name: str) -> str:
        """The spelling of this entry's folder with the last part of `name`."""
        folder, slash, _ = readable(self.stored).rpartition("/")
        return f"{folder}{slash}{PurePosixPath(name).name}"


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of a new archive: an entry of the old one, under its own or a new name, with its own or new bytes."""

    entry: Entry
    name: str
    data: bytes | None = None


class Reader(Protocol):
    """Reads entries; quick where they are read in their order. For one thread at a time."""

    def stream(self, entry: Entry) -> IO[bytes]:
        """The entry's bytes, perhaps followed by others; valid until the next call. Raises `DAMAGE`."""
        ...


class Archive(Protocol):
    """An archive file that has been listed."""

    path: Path
    entries: list[Entry]

    def reader(self) -> Reader: ...

    def write(self, file: IO[bytes], parts: Iterable[Part]) -> None:
        """A new archive of the same kind. Raises `InputError` where an old entry's bytes are damaged."""
        ...


class ZipArchive:
    """A zip file; deflated or stored. Its one open file serves all readers."""

    def __init__(self, path: Path) -> None:
        """Raises `InputError`."""
        self.path = path
        with _as_input_error(path):
            self._zip = zipfile.ZipFile(path)  # closes itself when it is let go
        self._infos = self._zip.infolist()
        packed = sum(info.compress_size for info in self._infos)
        if packed > path.stat().st_size:
            raise InputError(f"{path}: its entries overlap, as in an archive made to fill disks; do not use it")
        tally = _Tally(path)
        self.entries = [self._entry(index, info, tally) for index, info in enumerate(self._infos)]
        _refuse_twins(path, self.entries)

    def _entry(self, index: int, info: zipfile.ZipInfo, tally: _Tally) -> Entry:
        name = _checked_name(self.path, info.orig_filename)
        if info.flag_bits & 1:
            raise InputError(f"{self.path}: {name} is encrypted; pack the images again without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{self.path}: {name} is not compressed with deflate; pack the images again as plain zip")
        tally.add(info.file_size)
        kind: Literal["file", "folder", "link"] = "folder" if info.orig_filename.endswith("/") else "file"
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR) or not name:
            kind = "link"
        return Entry(name, info.orig_filename, info.file_size, index, kind)

    def reader(self) -> Reader:
        return self

    def stream(self, entry: Entry) -> IO[bytes]:
        return self._zip.open(self._infos[entry.place])

    def write(self, file: IO[bytes], parts: Iterable[Part]) -> None:
        with zipfile.ZipFile(file, "w") as new:
            new.comment = self._zip.comment
            for part in parts:
                info = zipfile.ZipInfo(part.name)  # dated 1980
                folder = part.entry.kind == "folder"
                info.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10 if folder else (stat.S_IFREG | 0o644) << 16
                info.compress_type = self._infos[part.entry.place].compress_type
                info.file_size = part.entry.size if part.data is None else len(part.data)
                with new.open(info, "w") as out:
                    if part.data is not None:
                        out.write(part.data)
                    elif not folder:
                        shutil.copyfileobj(_Original(self, part.entry), out, BLOCK)


class TarArchive:
    """A tar file, plain or compressed with gzip."""

    def __init__(self, path: Path) -> None:
        """Raises `InputError`."""
        self.path = path
        with _as_input_error(path):
            with open(path, "rb") as file:
                self._packed = file.read(2) == b"\x1f\x8b"
            with self._open() as opened:
                self.entries = list(self._list(opened))
        _refuse_twins(path, self.entries)

    def _open(self) -> IO[bytes]:
        return cast(IO[bytes], gzip.open(self.path)) if self._packed else open(self.path, "rb")

    def _list(self, file: IO[bytes]) -> Iterator[Entry]:
        tally = _Tally(self.path)
        headers, end = _Headers(file, tally), 0
        with tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:", encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                if info.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError(f"an entry of {info.size:,} bytes")
                headers.n_read, end = 0, tar.offset
                _forget(tar)
                tally.add(info.size if info.isreg() else 0)
                name = _checked_name(self.path, info.name)
                kind: Literal["file", "folder", "link"] = "folder" if info.isdir() else "link"
                if info.isreg() and not info.issparse() and name:
                    kind = "file"
                yield Entry(name, info.name, info.size, info.offset_data, kind)
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if any(mark) or not mark:  # to tarfile a damaged header looks like the end, and so does a cut
            raise InputError(f"{self.path}: damaged or cut off at byte {end:,} (unpacked); get it or pack it again")

    def reader(self) -> Reader:
        return _TarReader(self._open())

    def write(self, file: IO[bytes], parts: Iterable[Part]) -> None:
        if not self._packed:
            return self._write(file, parts)
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            self._write(cast(IO[bytes], packed), parts)

    def _write(self, file: IO[bytes], parts: Iterable[Part]) -> None:
        originals = self.reader()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as new:
            for part in parts:
                info = tarfile.TarInfo(part.name.rstrip("/"))  # of 1970, owned by nobody
                if part.entry.kind == "folder":
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    new.addfile(info)
                elif part.data is not None:
                    info.size = len(part.data)
                    new.addfile(info, io.BytesIO(part.data))
                else:
                    info.size = part.entry.size
                    new.addfile(info, cast(IO[bytes], _Original(originals, part.entry)))
                _forget(new)


def _forget(tar: tarfile.TarFile) -> None:
    """It would keep all members that passed."""
    cast(Any, tar).members = []


class _TarReader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        weakref.finalize(self, file.close)

    def stream(self, entry: Entry) -> IO[bytes]:
        self._file.seek(entry.place)
        return self._file


class _Tally:
    """Counts entries and unpacked bytes, and refuses an archive that is made to fill disk or memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._packed = path, path.stat().st_size
        self._entries = self._bytes = 0

    def add(self, n_bytes: int) -> None:
        self._entries += 1
        self._bytes += n_bytes
        if self._entries > MAX_ENTRIES:
            raise InputError(f"{self._path}: more than the allowed {MAX_ENTRIES:,} entries; split the archive")
        self.reach(self._bytes)

    def reach(self, n_bytes: int) -> None:
        """Refuse so many bytes, unpacked."""
        if n_bytes > MAX_TOTAL or n_bytes > max(RATIO_FROM, MAX_RATIO * self._packed):
            raise InputError(
                f"{self._path}: its {self._packed:,} bytes unpack to {n_bytes:,} or more, which is beyond {MAX_RATIO} "
                f"times (or {MAX_TOTAL:,} bytes): an archive made to fill disks? Unpack it yourself and give the folder"
            )


class _Headers:
    """A tar file for `tarfile` to list: no headers longer than `MAX_HEADER`, no way farther than allowed."""

    def __init__(self, file: IO[bytes], tally: _Tally) -> None:
        self._file, self._tally = file, tally
        self.n_read = 0  # of this entry's headers

    def read(self, size: int) -> bytes:
        self.n_read += size
        if size < 0 or self.n_read > MAX_HEADER:
            raise tarfile.ReadError(f"an entry with {self.n_read:,} bytes of headers")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        self._tally.reach(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


class _Original:
    """An entry's bytes to be passed on, as a file. Raises `InputError` where they are damaged."""

    def __init__(self, reader: Reader, entry: Entry) -> None:
        self._reader, self._entry, self._left = reader, entry, entry.size
        self._stream: IO[bytes] | None = None

    def read(self, size: int = BLOCK) -> bytes:
        try:
            self._stream = self._stream or self._reader.stream(self._entry)
            data = self._stream.read(min(size, self._left))
            if not data and self._left:
                raise EOFError(f"it ends {self._left:,} bytes too early")
        except DAMAGE as error:
            raise InputError(f"the entry {self._entry.name} is damaged ({error}); pack the images again") from error
        self._left -= len(data)
        return data


class ArchiveSource:
    """The images of one zip or tar archive, by name. Memory: the names, and the range that is loaded."""

    single_file = True

    def __init__(self, path: Path, archive: Archive | None = None) -> None:
        """Raises `InputError` if it is damaged, unsafe, or holds no image."""
        self.path = path
        self.archive = archive or open_archive(path)
        self.kind = "zip" if isinstance(self.archive, ZipArchive) else "tar"
        self.images = [entry for entry in self.archive.entries if is_image_name(entry.name) and entry.kind != "folder"]
        if not self.images:
            raise InputError(f"no images in {path}; found {len(self.archive.entries)} other entries")
        self._odd_targets = odd_target_names([entry.name for entry in self.images], folders_of(self.archive.entries))
        self._reader = self.archive.reader()

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int) -> Item:
        name = self.images[index].name
        return Item(index, name, target_name(name, self._odd_targets.get(index)))

    def load(self, start: int, stop: int) -> list[Loaded]:
        indices = range(start, min(stop, len(self)))
        return load_entries([(self.item(i), self.images[i]) for i in indices], self._reader)

    def describe(self) -> JSON:
        fingerprint, n_bytes = fingerprint_of(self.path.parent, [self.path.name])
        images = {entry.place for entry in self.images}
        rest = [entry for entry in self.archive.entries if entry.kind != "folder" and entry.place not in images]
        return {
            "kind": self.kind,
            "images": len(self),
            "bytes": n_bytes,
            "classes": sorted({entry.name.partition("/")[0] for entry in self.images if "/" in entry.name})[:1000],
            "passed_on": shown([entry.name for entry in rest if entry.kind == "file"]),
            "left_out": shown([entry.name for entry in rest if entry.kind == "link"]),
            "fingerprint": fingerprint,
        }

    def open_sink(self, staging: Path) -> ArchiveSink:
        return ArchiveSink(self, staging)


class ArchiveSink:
    """Finished images in chunk files; the new archive is the old one with its images exchanged."""

    def __init__(self, source: ArchiveSource, staging: Path) -> None:
        self._source = source
        reader = source.archive.reader()  # its own, as the source reads in another thread
        self._chunks = CellChunks(staging, lambda index: read_or_none(reader, source.images[index]))

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self._chunks.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        cells = self._chunks.read(n_chunks)
        archive, parts = self._source.archive, self._parts(cells)
        write_file(target, lambda file: archive.write(file, parts), aside=self._chunks.staging / "assembled")
        sync_folder(target.parent)

    def _parts(self, cells: Cells) -> Iterator[Part]:
        index = -1
        for entry in self._source.archive.entries:
            if not is_image_name(entry.name) or entry.kind == "folder":
                if entry.kind != "link":
                    yield Part(entry, readable(entry.stored))
                continue
            index += 1
            for _, cell in cells.before(index + 1):
                name = entry.stored if cell is None else entry.written_as(self._source.item(index).target_name)
                yield Part(entry, readable(name), cell)


def open_archive(path: Path) -> Archive:
    """List a zip or tar archive. Raises `InputError`."""
    return ZipArchive(path) if is_zip(path) else TarArchive(path)


def is_zip(path: Path) -> bool:
    """By its first bytes, or by its name."""
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6") or path.suffix.lower() == ".zip"


def is_tar(path: Path) -> bool:
    """By its first header, unpacked if need be, or by its name."""
    if is_tar_name(path.name):
        return True
    try:
        with open(path, "rb") as file:
            begin = file.read(512)
        if begin[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                begin = packed.read(512)
    except (OSError, EOFError, zlib.error):
        return False
    return begin[257:262] == b"ustar"


def is_tar_name(name: str) -> bool:
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def folders_of(entries: Iterable[Entry]) -> set[str]:
    """All folders that entries name or stand in."""
    folders = {entry.name for entry in entries if entry.kind == "folder"}
    for parent in {entry.name.rpartition("/")[0] for entry in entries} - {""}:
        folders.update([parent, *(str(above) for above in PurePosixPath(parent).parents)])
    return folders - {"."}


def target_name(name: str, odd: str | None) -> str:
    """`cat/1.jpg` -> `cat/1.png`, unless `odd_target_names` said otherwise."""
    if odd is not None:
        return odd
    path = PurePosixPath(name)
    return name if path.suffix.lower() == ".png" else str(path.with_suffix(".png"))


def load_entries(pairs: Iterable[tuple[Item, Entry]], reader: Reader) -> list[Loaded]:
    """Read in order, decode in threads; a damaged entry becomes its item's error."""
    read: list[tuple[Item, bytes | ItemError]] = []
    for item, entry in pairs:
        try:
            read.append((item, _read(reader, entry)))
        except DAMAGE as error:
            read.append((item, ItemError(f"{item.id}: cannot be read: {error}")))
    return in_threads(lambda pair: _decode(*pair), read)


def read_or_none(reader: Reader, entry: Entry) -> bytes | None:
    """An entry's bytes; None where there are none to pass on."""
    try:
        return _read(reader, entry)
    except DAMAGE:
        return None


def shown(names: Sequence[str]) -> JSON:
    return {"count": len(names), "first": list(names[:SHOWN])}


def _read(reader: Reader, entry: Entry) -> bytes:
    if entry.kind == "link":
        raise OSError("it is a link or a device, which is not followed")
    if entry.size > MAX_BYTES:
        raise OSError(f"its {entry.size:,} bytes are more than the allowed {MAX_BYTES:,}")
    data = reader.stream(entry).read(entry.size)
    if len(data) < entry.size:
        raise EOFError(f"it ends {entry.size - len(data):,} bytes too early")
    return data


def _decode(item: Item, data: bytes | ItemError) -> Loaded:
    return Loaded(item, None, data, "") if isinstance(data, ItemError) else load_picture(item, data)


def _checked_name(path: Path, stored: str) -> str:
    """The readable name of an entry. Raises `InputError` if it leads out of the archive."""
    parts = re.split(r"[/\\]", stored)
    if stored[:1] in ("/", "\\") or ".." in parts or re.match(r"[A-Za-z]:[/\\]", stored) or "\0" in stored:
        raise InputError(f"{path}: the name {stored[:200]!r} leads out of the archive; pack it again without")
    if len(stored) > MAX_NAME:
        raise InputError(f"{path}: a name of {len(stored):,} characters; allowed are {MAX_NAME:,}")
    return readable("/".join(part for part in stored.split("/") if part not in ("", ".")))


def _refuse_twins(path: Path, entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.kind != "folder" and entry.name in seen:
            raise InputError(f"{path}: two entries are named {entry.name!r}; unpack it and pack it again")
        seen.add(entry.name)


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path}: damaged, or no zip or tar archive ({error}); pack the images again") from error
