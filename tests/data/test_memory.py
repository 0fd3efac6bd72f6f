"""A data set that does not fit into memory is only ever there in small parts."""

from __future__ import annotations

import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.data_job import copy_bad, pass_through
from tests.data.kinds import add
from tests.data.test_arrow import save

from pureebm.data.arrow import ArrowSource
from pureebm.data.base import Loaded, Source
from pureebm.data.folder import FolderSource
from pureebm.data.npz import NpzSource
from pureebm.data.open import open_source
from pureebm.data.parquet import ParquetSource
from pureebm.data.tables import TableSource

MIB = 2**20


def load_all(source: Source, step: int) -> None:
    for start in range(0, len(source), step):
        assert len(source.load(start, start + step)) == min(step, len(source) - start)


def test_a_folder_needs_less_than_a_kilobyte_an_image(tmp_path: Path) -> None:
    n_images = 2_000
    for i in range(n_images):
        (tmp_path / f"a picture with a name of quite usual length {i}.jpg").touch()
    tracemalloc.start()
    source = FolderSource(tmp_path)
    source.describe()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == n_images and peak < 1000 * n_images


def test_an_npz_file_is_read_as_a_stream(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((4_000, 64, 64, 3), np.uint8))  # 49 MB
    source = NpzSource(tmp_path / "a.npz")
    tracemalloc.start()
    load_all(source, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * MIB


def test_a_parquet_file_of_one_row_group_is_read_and_written_as_a_stream(tmp_path: Path) -> None:
    cell = {"bytes": bytes(40_000), "path": "a.jpg"}  # no image, for speed: it is reported, and copied
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pylist([{"image": cell}] * 2_500, schema), row_group_size=2_500)  # 100 MB
    source = WatchedParquet(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    pass_through(source, tmp_path / "b.parquet", decide=copy_bad, chunk=250)
    assert source.peak - before < 48 * MIB
    assert pq.read_metadata(tmp_path / "b.parquet").num_rows == 2_500


@pytest.mark.parametrize("name", ["in.zip", "in.tar", "in.tar.gz", "samples.tar"])
def test_an_archive_is_read_and_written_as_a_stream(name: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(40_000)  # no image, for speed: it is reported, and copied
    names = [f"{i:04d}.{ending}" for i in range(400) for ending in ("jpg", "cls")[: 1 + (name == "samples.tar")]]
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for entry in names:
                archive.writestr(entry, data)  # 16 MB
    else:
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for entry in names:
                add(archive, entry, data)
    tracemalloc.start()
    source = open_source(tmp_path / name)
    load_all(source, 50)
    pass_through(source, tmp_path / f"out-{name}", decide=copy_bad, chunk=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == 400 and peak < 12 * MIB
    assert (tmp_path / f"out-{name}").stat().st_size > 400 * 40_000


def test_a_saved_dataset_is_read_and_written_as_a_stream(tmp_path: Path) -> None:
    cell = {"bytes": bytes(40_000), "path": "a.jpg"}
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    save(tmp_path / "in", pa.Table.from_pylist([{"image": cell}] * 2_500, schema), batch=2_500)  # 100 MB
    source = WatchedArrow(tmp_path / "in")
    before = pa.total_allocated_bytes()
    pass_through(source, tmp_path / "out", decide=copy_bad, chunk=250)
    assert source.peak - before < 48 * MIB
    assert pa.ipc.open_stream(tmp_path / "out/data-00000-of-00001.arrow").read_all().num_rows == 2_500


class Watched(TableSource):
    """Remembers the most memory that Arrow held, as seen from every load."""

    peak = 0

    def load(self, start: int, stop: int) -> list[Loaded]:
        loaded = super().load(start, stop)
        self.peak = max(self.peak, pa.total_allocated_bytes())
        return loaded


class WatchedParquet(Watched, ParquetSource):
    pass


class WatchedArrow(Watched, ArrowSource):
    pass
