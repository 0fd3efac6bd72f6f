"""Images in tables, Parquet or Arrow, as Hugging Face lays them out: a struct of `bytes` and `path` in each row.

The column is named by the schema metadata ("huggingface"), else known by its type. Everything else (other columns,
metadata, file names, the order of rows) is kept. Read and written in small batches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pyarrow as pa

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.cells import CellChunks, Cells
from pureebm.data.durable import copy_file, sync_folder, sync_tree, write_file
from pureebm.data.folder import SHOWN, fingerprint_of, readable
from pureebm.data.pictures import in_threads, load_picture
from pureebm.errors import InputError, ItemError
from pureebm.types import JSON

_FAVORED = ("image", "img")

Batches = Iterator[tuple[int, pa.RecordBatch]]
"""(its first row in the file, a batch of at most `cells.BATCH_ROWS`)."""


class TableFile(Protocol):
    """One file of rows: where its images are, and its rows as a stream."""

    path: Path
    name: str  # below the source's root
    schema: pa.Schema
    n_rows: int
    columns: list[str]  # of images
    column: str  # the first of them: it is purified

    def __init__(self, path: Path, name: str) -> None: ...

    def batches(self, start: int = 0, columns: list[str] | None = None) -> Batches:
        """From a row at or before `start` on. Raises `pa.ArrowException` or OSError where it is damaged."""
        ...

    def write(self, file: IO[bytes], batches: Iterator[pa.RecordBatch]) -> None:
        """A file of the same kind and schema."""
        ...


class TableSource:
    """The rows of one file, or of several in a folder. Memory: a few batches."""

    kind: str

    def __init__(
        self,
        path: Path,
        files: Sequence[TableFile],
        *,
        passed_on: Sequence[str] = (),
        left_out: Sequence[str] = (),
        rewritten: Sequence[str] = (),
    ) -> None:
        """`passed_on` are copied, `left_out` are only named, `complete` writes those `rewritten`.

        Raises:
            InputError: There is no row.
        """
        self.path = path
        self.single_file = path.is_file()
        self.root = path.parent if self.single_file else path
        self.files = list(files)
        self.passed_on, self.left_out, self.rewritten = list(passed_on), list(left_out), list(rewritten)
        self.starts = [0]
        for file in self.files:
            self.starts.append(self.starts[-1] + file.n_rows)
        if not len(self):
            raise InputError(f"{path}: holds no rows; there is nothing to purify")
        self._cells = CellReader(self)

    def __len__(self) -> int:
        return self.starts[-1]

    def item(self, index: int) -> Item:
        which = next(i for i in range(len(self.files)) if index < self.starts[i + 1])
        name = f"{readable(self.files[which].name)}/{index - self.starts[which]}"
        return Item(index, name, name)

    def load(self, start: int, stop: int) -> list[Loaded]:
        items = [self.item(index) for index in range(start, min(stop, len(self)))]
        try:
            cells = self._cells.read(start, start + len(items))
        except (pa.ArrowException, OSError) as error:
            reason = f"the file is damaged: {first_line(error)}"
            return [Loaded(item, None, ItemError(f"{item.id}: {reason}"), "") for item in items]
        return in_threads(lambda pair: _load_one(*pair), zip(items, cells, strict=True))

    def describe(self) -> JSON:
        names = [file.name for file in self.files] + self.passed_on + self.rewritten
        fingerprint, n_bytes = fingerprint_of(self.root, names)
        return {
            "kind": self.kind,
            "images": len(self),
            "bytes": n_bytes,
            "column": self.files[0].column,
            "unpurified_image_columns": self.files[0].columns[1:],
            "files": {readable(file.name): file.n_rows for file in self.files},
            "passed_on": [readable(name) for name in self.passed_on],
            "left_out": [readable(name) for name in self.left_out],
            "labels_out_of_range": self._odd_labels(),
            "fingerprint": fingerprint,
        }

    def _odd_labels(self) -> JSON:
        """How many labels of the metadata's ClassLabels name no class (-1, "no label", is allowed), and the first."""
        count, first = 0, list[str]()
        for file in self.files:
            classes = class_counts(file.schema)
            for row, batch in file.batches(columns=list(classes)) if classes else ():
                for name, n_classes in classes.items():
                    values = batch.column(batch.schema.get_field_index(name)).to_numpy(zero_copy_only=False)
                    odd = np.flatnonzero((values < -1) | (values >= n_classes))
                    count += len(odd)
                    places = odd[: max(0, SHOWN - len(first))]
                    first += [f"{readable(file.name)}/{row + at}: {name} is {values[at]:g}" for at in places.tolist()]
        return {"count": count, "first": first}

    def open_sink(self, staging: Path) -> TableSink:
        return TableSink(self, staging)

    def complete(self, tree: Path, n_rows: Sequence[int]) -> None:
        """Add to the new folder what depends on its tables. `n_rows`: how many rows each file kept."""


class CellReader:
    """The image cells' bytes, read forward; going back opens the file again."""

    def __init__(self, source: TableSource) -> None:
        self._source = source
        self._which = -1
        self._batches: Batches = iter(())
        self._start = 0  # of the current batch, in its file
        self._cells: list[bytes | None] = []

    def read(self, start: int, stop: int) -> list[bytes | None]:
        """Items start .. stop-1 of the whole source."""
        found: list[bytes | None] = []
        for which, (first, end) in enumerate(zip(self._source.starts, self._source.starts[1:], strict=False)):
            for row in range(max(start - first, 0), min(stop, end) - first):
                found.append(self._cell(which, row))
        return found

    def _cell(self, which: int, row: int) -> bytes | None:
        if which != self._which or row < self._start:
            self._open(which, row)
        while row >= self._start + len(self._cells):
            try:
                self._advance()
            except BaseException:
                self._which = -1
                raise
        return self._cells[row - self._start]

    def _open(self, which: int, row: int) -> None:
        file = self._source.files[which]
        self._batches = file.batches(row, [file.column])
        self._which, self._start, self._cells = which, 0, []

    def _advance(self) -> None:
        entry = next(self._batches, None)
        if entry is None:
            raise OSError("it has fewer rows than it says")
        self._start, batch = entry
        self._cells = (
            batch.column(0).field("bytes").to_pylist()
            if not batch.column(0).null_count
            else [cell and cell["bytes"] for cell in batch.column(0).to_pylist()]
        )


class TableSink:
    """Finished cells in chunk files; the new file is the old one with its cells exchanged."""

    def __init__(self, source: TableSource, staging: Path) -> None:
        self._source, self._staging = source, staging
        originals = CellReader(source)  # its own, as the source reads in another thread
        self._chunks = CellChunks(staging, lambda index: originals.read(index, index + 1)[0] or b"")

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self._chunks.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        cells = self._chunks.read(n_chunks)
        aside = self._staging / "assembled"
        if self._source.single_file:
            write_file(target, self._filler(0, cells, [0]), aside=aside)
            sync_folder(target.parent)
            return
        tree = self._staging / "tree"
        n_rows = [0] * len(self._source.files)
        for index, file in enumerate(self._source.files):
            (tree / file.name).parent.mkdir(parents=True, exist_ok=True)
            write_file(tree / file.name, self._filler(index, cells, n_rows), aside=aside)
        for name in self._source.passed_on:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(self._source.path / name, tree / name, aside=aside)
        self._source.complete(tree, n_rows)
        sync_tree(tree)
        os.rename(tree, target)
        sync_folder(target.parent)

    def _filler(self, which: int, cells: Cells, n_rows: list[int]) -> Callable[[IO[bytes]], None]:
        """Writes the file with its cells exchanged, and counts its rows in `n_rows`."""
        file, offset = self._source.files[which], self._source.starts[which]

        def changed() -> Iterator[pa.RecordBatch]:
            for start, batch in _checked(file):
                kept = _exchange(batch, offset + start, file.column, cells)
                n_rows[which] += kept.num_rows
                if kept.num_rows:
                    yield kept

        return lambda out: file.write(out, changed())


def _checked(file: TableFile) -> Batches:
    """All batches. Raises `InputError` where they cannot be read."""
    try:
        yield from file.batches()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.path}: damaged ({first_line(error)}); write it again without the bad rows") from error


def _exchange(batch: pa.RecordBatch, start: int, column: str, cells: Cells) -> pa.RecordBatch:
    """A batch of source rows from `start` on -> the rows that stay, with their new images."""
    rows: list[int] = []
    images: list[JSON | None] = []
    position = batch.schema.get_field_index(column)
    originals = batch.column(position)
    for index, cell in cells.before(start + batch.num_rows):
        original = originals[index - start].as_py()
        images.append(original if cell is None else _with_bytes(original, cell))
        rows.append(index - start)
    kept = batch.take(pa.array(rows, pa.int64()))
    return kept.set_column(position, batch.schema.field(position), pa.array(images, originals.type))


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of images' type: those that the metadata name come first, and of equals "image" and "img"."""
    fitting, named = [field.name for field in schema if _is_image_type(field.type)], _named_images(schema)
    return sorted(fitting, key=lambda name: (name not in named, name not in _FAVORED))


def columns_of(schema: pa.Schema, path: Path) -> list[str]:
    """As `image_columns`, but never empty. Raises `InputError`."""
    columns = image_columns(schema)
    if not columns:
        raise InputError(
            f"{path}: no column of images (a struct of bytes and path); its columns are "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
        )
    return columns


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _load_one(item: Item, cell: bytes | None) -> Loaded:
    if cell is None:
        return Loaded(item, None, ItemError(f"{item.id}: the cell holds no bytes; store the image in it"), "")
    return load_picture(item, cell)


def _with_bytes(original: JSON, cell: bytes) -> JSON:
    path = original.get("path")
    return original | {"bytes": cell, "path": os.path.splitext(path)[0] + ".png" if path else path}


def _is_image_type(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or kind.get_field_index("path") < 0:
        return False
    content = kind.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _named_images(schema: pa.Schema) -> set[str]:
    return {name for name, feature in features_of(schema).items() if feature.get("_type") == "Image"}


def class_counts(schema: pa.Schema) -> dict[str, int]:
    """Columns of numbers that the metadata call a ClassLabel -> how many classes it names."""
    return {
        name: len(feature["names"])
        for name, feature in features_of(schema).items()
        if feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and name in schema.names
        and pa.types.is_integer(schema.field(name).type)
    }


def features_of(schema: pa.Schema) -> dict[str, JSON]:
    """The features that the metadata ("huggingface") describe, by column; none where there are none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
