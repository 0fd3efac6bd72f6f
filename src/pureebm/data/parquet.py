"""Parquet files with images: one file, or a folder of them such as a repository of the Hugging Face hub.

What a row is, `tables` says. Row groups of any size are read in small batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pureebm.data.cells import BATCH_ROWS
from pureebm.data.folder import Listing, list_folder
from pureebm.data.tables import Batches, TableSource, columns_of, first_line, image_columns
from pureebm.errors import InputError


class ParquetFile:
    """One file. Satisfies `tables.TableFile`."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises `InputError` if it is no Parquet file, or has no column of images."""
        self.path, self.name = path, name
        try:
            with self.open() as file:
                self.schema: pa.Schema = file.schema_arrow
                self.n_rows: int = file.metadata.num_rows
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                self.group_rows = [group.num_rows for group in groups]
                codec = groups[0].column(0).compression if groups and groups[0].num_columns else "SNAPPY"
                self.codec = "NONE" if codec == "UNCOMPRESSED" else codec  # as a writer takes it
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as Parquet ({first_line(error)}); is it damaged?") from error
        self.columns = columns_of(self.schema, path)
        self.column = self.columns[0]

    def open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)

    def batches(self, start: int = 0, columns: list[str] | None = None) -> Batches:
        """From the row group of row `start` on."""
        first = row = 0
        while first < len(self.group_rows) and row + self.group_rows[first] <= start:
            row += self.group_rows[first]
            first += 1
        with self.open() as file:
            groups = range(first, len(self.group_rows))
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                yield row, batch
                row += batch.num_rows

    def write(self, file: IO[bytes], batches: Iterator[pa.RecordBatch]) -> None:
        """A batch becomes a row group of at most `BATCH_ROWS`; as `datasets` does for images."""
        with pq.ParquetWriter(file, self.schema, compression=self.codec) as writer:
            for batch in batches:
                writer.write_batch(batch)


class ParquetSource(TableSource):
    """The rows of one file, or of all files in a folder by name."""

    kind = "parquet"

    def __init__(self, path: Path) -> None:
        if path.is_file():
            super().__init__(path, [ParquetFile(path, path.name)])
            return
        listing: Listing = list_folder(path)
        tables = [ParquetFile(path / name, name) for name in listing.others if is_parquet_name(name)]
        others = sorted(listing.images + [name for name in listing.others if not is_parquet_name(name)])
        super().__init__(path, tables, passed_on=others, left_out=listing.left_out)


def is_parquet_name(name: str) -> bool:
    return name.lower().endswith(".parquet")


def is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return is_parquet_name(path.name) or file.read(4) == b"PAR1"


def has_image_column(path: Path) -> bool:
    try:
        return bool(image_columns(pq.read_schema(path)))
    except (pa.ArrowException, OSError):
        return False
