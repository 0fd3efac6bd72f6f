"""Change the labels of some items of a data set that a sink has just assembled: what an attack on labels needs.

| kind    | what a new label changes                                                                   |
|---------|--------------------------------------------------------------------------------------------|
| folder  | the item moves to the folder of its new class; a taken name gets a number (`b.png`, `b-2.png`) |
| npz     | its entry in the array of labels: a number, a name or a one-hot row                        |
| CIFAR   | its label byte or list entry; of CIFAR-100 the fine one                                    |
| tables  | its cell in the label column                                                               |

Only for a place that nobody reads yet: a crash in between leaves it half changed.
"""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pureebm.data.base import Source
from pureebm.data.cifar import BinaryFile, CifarSource
from pureebm.data.durable import sync_tree, write_file
from pureebm.data.folder import FolderSource
from pureebm.data.labels import label_key
from pureebm.data.npz import NpzSource
from pureebm.data.tables import TableFile, TableSource
from pureebm.data.unpickle import dumps, loads
from pureebm.errors import InputError


def check_relabels(source: Source) -> None:
    """Raises `InputError` for a kind whose labels cannot be changed."""
    if not isinstance(source, FolderSource | NpzSource | CifarSource | TableSource):
        raise InputError(
            f"{source.path}: labels of a source of kind {source.kind!r} cannot be changed; give a folder, .npz, CIFAR, "
            "or Parquet"
        )


def relabel(target: Path, source: Source, changes: Mapping[int, int], names: Sequence[str] | None) -> dict[int, str]:
    """Give items their new labels.

    Args:
        target: what the sink of `source` has assembled; items may be missing at its end, but nowhere else.
        changes: index of an item -> its new label, as `labels.read_labeled_source` counts.
        names: of the classes, as from there.

    Returns:
        The new names of items that moved.
    """
    if not changes:
        return {}
    check_relabels(source)
    match source:
        case FolderSource():
            assert names is not None
            return _move(target, source, {index: names[label] for index, label in changes.items()})
        case NpzSource():
            _relabel_npz(target, source, changes, names)
        case CifarSource():
            _relabel_cifar(target, source, changes)
        case TableSource():
            _relabel_table(target, source, changes, names)
    return {}


def _move(target: Path, source: FolderSource, folders: Mapping[int, str]) -> dict[int, str]:
    moved = {}
    taken = {path.relative_to(target).as_posix().casefold() for path in target.rglob("*")}
    for index, folder in folders.items():
        old = source.item(index).target_name
        rest = PurePosixPath(folder, *PurePosixPath(old).parts[1:])
        numbered = (rest.with_name(f"{rest.stem}-{n}{rest.suffix}") for n in itertools.count(2))
        new = next(str(name) for name in itertools.chain([rest], numbered) if str(name).casefold() not in taken)
        (target / new).parent.mkdir(parents=True, exist_ok=True)
        os.rename(target / old, target / new)
        taken.add(new.casefold())
        moved[index] = new
    sync_tree(target)
    return moved


def _relabel_npz(target: Path, source: NpzSource, changes: Mapping[int, int], names: Sequence[str] | None) -> None:
    key = label_key(source)
    with np.load(target, allow_pickle=False) as arrays:
        values = arrays[key]
    for index, label in changes.items():
        if values.ndim == 2 and values.shape[1] > 1:
            values[index] = np.eye(values.shape[1], dtype=values.dtype)[label]
        else:
            values[index] = names[label] if values.dtype.kind == "U" and names else label
    write_file(target, lambda file: _copy_but(target, file, f"{key}.npy", values))


def _copy_but(path: Path, file: Any, name: str, values: NDArray[Any]) -> None:
    """The archive `path` with the member `name` exchanged."""
    changed = io.BytesIO()
    np.save(changed, values, allow_pickle=False)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            fresh = zipfile.ZipInfo(info.filename)
            fresh.compress_type = info.compress_type
            with old.open(info) as stream, new.open(fresh, "w", force_zip64=True) as out:
                if info.filename == name:
                    out.write(changed.getvalue())
                    continue
                while block := stream.read(1 << 20):
                    out.write(block)


def _relabel_cifar(target: Path, source: CifarSource, changes: Mapping[int, int]) -> None:
    for file, offset in zip(source.files, map(int, source.starts), strict=False):
        mine = {i - offset: label for i, label in changes.items() if offset <= i < offset + file.n_records}
        path = target if source.single_file else target / file.path.name
        if not mine:
            continue
        if isinstance(file, BinaryFile):
            with open(path, "r+b") as records:
                for record, label in mine.items():
                    records.seek(record * file.record_bytes + len(file.classes) - 1)
                    records.write(bytes([label]))
                records.flush()
                os.fsync(records.fileno())
        else:
            write_file(path, _relabeled_pickle(path, mine))


def _relabeled_pickle(path: Path, changes: Mapping[int, int]) -> Any:
    content = dict(loads(path.read_bytes(), path.name))
    keys = {key.decode("latin-1") if isinstance(key, bytes) else str(key): key for key in content}
    key = keys.get("fine_labels", keys.get("labels"))
    column = content[key] = content[key].copy()
    for record, label in changes.items():
        column[record] = label
    return lambda file: file.write(dumps(content))


def _relabel_table(target: Path, source: TableSource, changes: Mapping[int, int], names: Sequence[str] | None) -> None:
    key = label_key(source)
    for which, file in enumerate(source.files):
        start, stop = source.starts[which : which + 2]
        mine = {index - start: label for index, label in changes.items() if start <= index < stop}
        path = target if source.single_file else target / file.name
        if mine:
            write_file(path, _exchange_column(type(file)(path, file.name), key, mine, names))


def _exchange_column(
    file: TableFile, key: str, changes: Mapping[int, int], names: Sequence[str] | None
) -> Callable[[BinaryIO], None]:
    """Writes the table `file` with other labels in some rows."""
    position = file.schema.get_field_index(key)
    kind = file.schema.field(position).type
    as_names = pa.types.is_string(kind) or pa.types.is_large_string(kind)

    def changed() -> Iterator[pa.RecordBatch]:
        for start, batch in file.batches():
            values = batch.column(position).to_pylist()
            for row in changes.keys() & range(start, start + len(values)):
                label = changes[row]
                values[row - start] = names[label] if as_names and names else label
            yield batch.set_column(position, file.schema.field(position), pa.array(values, kind))

    return lambda out: file.write(out, changed())
