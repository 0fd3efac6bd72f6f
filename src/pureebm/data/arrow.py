"""Folders that `datasets` wrote with `save_to_disk`, of one data set or of one for each split; without that library.

What a row is, `tables` says; the rows stand in Arrow streams, which `state.json` and `dataset_dict.json` name. The new
folder has the same files; its states name new fingerprints, since `datasets` would else take cached results of the old
rows for those of the new ones. Such caches (`cache-*.arrow`) are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pureebm.data.cells import BATCH_ROWS
from pureebm.data.durable import write_file
from pureebm.data.folder import list_folder
from pureebm.data.tables import Batches, TableSource, columns_of, first_line
from pureebm.errors import InputError
from pureebm.types import JSON

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


class ArrowFile:
    """One stream of record batches, mapped into memory. Satisfies `tables.TableFile`."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises `InputError` if it is no whole Arrow stream, or has no column of images."""
        self.path, self.name = path, name
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                self.schema: pa.Schema = stream.schema
                self.n_rows = 0
                for batch in stream:
                    batch.validate(full=True)  # offsets may lead anywhere; no image is read
                    self.n_rows += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: cannot be read as an Arrow stream ({first_line(error)}); save the data set again"
            ) from error
        self.columns = columns_of(self.schema, path)
        self.column = self.columns[0]

    def batches(self, start: int = 0, columns: list[str] | None = None) -> Batches:
        """Parts of the record batches from the one with row `start` on."""
        row = 0
        with pa.memory_map(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                if row + batch.num_rows > start:
                    chosen = batch if columns is None else batch.select(columns)
                    for first in range(0, batch.num_rows, BATCH_ROWS):
                        yield row + first, chosen.slice(first, BATCH_ROWS)
                row += batch.num_rows

    def write(self, file: IO[bytes], batches: Iterator[pa.RecordBatch]) -> None:
        with pa.ipc.new_stream(file, self.schema) as stream:
            for batch in batches:
                stream.write_batch(batch)


class ArrowSource(TableSource):
    """The rows of all files of all splits, in the order in which `datasets` reads them."""

    kind = "arrow"

    def __init__(self, path: Path) -> None:
        """Raises `InputError` if a file that a split names is missing or damaged."""
        folders = _split_folders(path)
        self.states = {folder: _read_json(path / folder / STATE) for folder in folders}
        self.infos = {folder: _read_json(path / folder / INFO) for folder in folders}
        names = [name for folder, state in self.states.items() for name in _data_files(path, folder, state)]
        listing = list_folder(path)
        rewritten = [_below(folder, name) for folder in folders for name in (STATE, INFO)]
        others = sorted({*listing.images, *listing.others} - {*names, *rewritten})
        caches = [name for name in others if name.endswith(".arrow")]
        super().__init__(
            path,
            [ArrowFile(path / name, name) for name in names],
            passed_on=[name for name in others if name not in caches],
            left_out=listing.left_out,
            rewritten=rewritten,
        )
        self.caches = caches

    def describe(self) -> JSON:
        splits = {folder or ".": self._n_rows(folder) for folder in self.states}
        return super().describe() | {"splits": splits, "caches": self.caches}

    def complete(self, tree: Path, n_rows: Sequence[int]) -> None:
        """The splits' states with new fingerprints, and their descriptions with new numbers of rows."""
        kept = {file.name: rows for file, rows in zip(self.files, n_rows, strict=True)}
        for folder, state in self.states.items():
            names = _data_files(self.path, folder, state)
            digest = hashlib.sha256()
            for name in names:
                with open(tree / name, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            info = self.infos[folder]
            splits, split = info.get("splits"), str(state.get("_split"))
            if isinstance(splits, dict) and isinstance(splits.get(split), dict):
                counts = {
                    "num_examples": sum(kept[name] for name in names),
                    "num_bytes": sum((tree / name).stat().st_size for name in names),
                }
                info = info | {"splits": splits | {split: splits[split] | counts}}
            _write_json(tree / folder / STATE, state | {"_fingerprint": digest.hexdigest()[:16]})
            _write_json(tree / folder / INFO, info)

    def _n_rows(self, folder: str) -> int:
        names = _data_files(self.path, folder, self.states[folder])
        return sum(file.n_rows for file in self.files if file.name in names)


def is_saved_dataset(path: Path) -> bool:
    return (path / SPLITS).is_file() or ((path / STATE).is_file() and (path / INFO).is_file())


def _split_folders(path: Path) -> list[str]:
    """The folders of the splits; [""] where the data set has none."""
    if not (path / SPLITS).is_file():
        return [""]
    splits = _read_json(path / SPLITS).get("splits")
    if not isinstance(splits, list) or not splits or not all(map(_is_plain, splits)) or len({*splits}) < len(splits):
        raise InputError(f"{path / SPLITS}: names no folders of splits; save the data set again")
    return splits


def _data_files(path: Path, folder: str, state: JSON) -> list[str]:
    files = state.get("_data_files")
    entries = files if isinstance(files, list) else []
    names: list[Any] = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    if not names or not all(map(_is_plain, names)) or len({*names}) < len(names):
        raise InputError(f"{path / folder / STATE}: names no files of rows beside it; save the data set again")
    return [_below(folder, name) for name in names]


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_plain(name: Any) -> bool:
    """One name without a path: nothing outside of the folder is read or written."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)


def _read_json(path: Path) -> JSON:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); save the data set again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; save the data set again")
    return content


def _write_json(path: Path, content: JSON) -> None:
    """As `datasets` writes it."""
    data = json.dumps(content, indent=2, sort_keys=True).encode()
    write_file(path, lambda file: file.write(data))
