"""A CSV or TSV file that names images and says something of each (`file,label`): these images, in its order.

The target is a folder: the list under its own name, and the images. The file column (one of `COLUMNS`) then holds the
new names; every other value, the order of rows, delimiter, line ends and byte order mark stay. Rows of an image that
leaves go with it. Several rows may name one image. Names are relative to the list's folder and stay below it.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.durable import write_file
from pureebm.data.folder import MAX_NAME_BYTES, FolderSource, Listing, fingerprint_of
from pureebm.errors import InputError
from pureebm.types import JSON

COLUMNS = ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "img")
"""Headers of the column of names, in any case; the first that is there counts."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class CsvSource:
    """The images that a list names. Memory: the names."""

    kind = "csv"
    single_file = False

    def __init__(self, path: Path) -> None:
        """Raises `InputError` if it is no such list, or a name in it leads out of its folder."""
        self.path = path
        self._delimiter = _DELIMITERS[path.suffix.lower()]
        with open(path, "rb") as file:
            begin = file.read(1 << 16)
        self._mark = codecs.BOM_UTF8 if begin.startswith(codecs.BOM_UTF8) else b""
        self._line_end = "\r\n" if b"\r\n" in begin else "\n"
        try:
            self.header = next(self._rows(), [])
            self._column = _find_column(path, self.header)
            self.names = list(dict.fromkeys(name for name in map(self._name, self._data()) if name))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as UTF-8 text with columns ({error}); save it again") from error
        if not self.names:
            raise InputError(f"{path}: its column {self.header[self._column]!r} names no image; there is nothing to do")
        self.folder = FolderSource(path.parent, Listing(images=self.names, folders=_folders(path, self.names)))

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> Item:
        return self.folder.item(index)

    def load(self, start: int, stop: int) -> list[Loaded]:
        return self.folder.load(start, stop)

    def describe(self) -> JSON:
        fingerprint, n_bytes = fingerprint_of(self.path.parent, [self.path.name, *self.names])
        return {
            "kind": self.kind,
            "images": len(self),
            "bytes": n_bytes,
            "column": self.header[self._column],
            "columns": self.header,
            "fingerprint": fingerprint,
        }

    def open_sink(self, staging: Path) -> CsvSink:
        return CsvSink(self, staging)

    def column(self, name: str) -> list[str]:
        """The values of a column, one an image: that of the first row that names it."""
        position, found = self.header.index(name), dict[str, str]()
        for row in self._data():
            if row and (image := self._name(row)):
                found.setdefault(image, row[position] if position < len(row) else "")
        return [found[image] for image in self.names]

    def rewrite(self, file: IO[bytes], new_names: dict[str, str]) -> None:
        """The list with new names, and without the rows of images that have none."""
        file.write(self._mark)
        writer = csv.writer(_Encoded(file), delimiter=self._delimiter, lineterminator=self._line_end)
        writer.writerow(self.header)
        for row in self._data():
            new = new_names.get(self._name(row))
            if new is not None:
                writer.writerow([*row[: self._column], new, *row[self._column + 1 :]])

    def _rows(self) -> Iterator[list[str]]:
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file, delimiter=self._delimiter, strict=True)

    def _data(self) -> Iterator[list[str]]:
        rows = self._rows()
        next(rows, None)
        for number, row in enumerate(rows, 1):
            if row and not self._name(row):
                raise InputError(f"{self.path}: row {number} below the header names no image; mend or remove it")
            if row:
                yield row

    def _name(self, row: Sequence[str]) -> str:
        """The image that a row names, relative to the list's folder; "" if it names none."""
        text = row[self._column] if self._column < len(row) else ""
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or "\0" in text:
            raise InputError(
                f"{self.path}: {text!r} is not below the list's folder {self.path.parent}; put the list above its "
                "images, and name them relative to it"
            )
        return "" if path == PurePosixPath() else str(path)


class CsvSink:
    """The images as of a folder, and the list beside them."""

    def __init__(self, source: CsvSource, staging: Path) -> None:
        self._source, self._staging = source, staging
        self._sink = source.folder.open_sink(staging)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self._sink.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        tree = self._staging / "tree"
        if tree.exists():  # else it was renamed already, before a crash
            names = self._stored_names(tree)
            aside = self._staging / "parts" / "list"
            write_file(tree / self._source.path.name, lambda file: self._source.rewrite(file, names), aside=aside)
        self._sink.assemble(target, n_chunks)

    def _stored_names(self, tree: Path) -> dict[str, str]:
        """name in the source -> name of what was stored of it: purified, or else copied."""
        names: dict[str, str] = {}
        for index, name in enumerate(self._source.names):
            item = self._source.item(index)
            stored = next((one for one in (item.target_name, item.id) if (tree / one).is_file()), None)
            if stored is not None:
                names[name] = stored
        return names


class _Encoded:
    """What the `csv` module writes to, as bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def is_list(path: Path) -> bool:
    return path.suffix.lower() in _DELIMITERS


def _folders(path: Path, names: Sequence[str]) -> list[str]:
    """The folders of all names. Raises `InputError` for a name that no file can have beside the others."""
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
    for name in names:
        if name in folders:
            raise InputError(f"{path}: {name!r} is named as an image and as a folder of others; mend the list")
        if len(name.encode()) > 1000 or any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/")):
            raise InputError(f"{path}: the name {name[:100]!r}... is too long for a file; mend the list")
    return sorted(folders)


def _find_column(path: Path, header: Sequence[str]) -> int:
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(header)))}
    for name in COLUMNS:
        if name in places:
            return places[name]
    raise InputError(
        f"{path}: no column of file names in its first line ({', '.join(header)[:200]}); name it one of "
        f"{', '.join(COLUMNS)}"
    )
