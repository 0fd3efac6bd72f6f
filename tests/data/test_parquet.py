from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.data_job import copy_bad, invert, names_below, noise_image, pass_through

from pureebm.data.open import open_source
from pureebm.data.parquet import ParquetSource
from pureebm.errors import InputError

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
}


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise_image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def table(
    n_rows: int, *, column: str = "image", metadata: dict[str, object] | None = FEATURES, first: int = 0
) -> pa.Table:
    cells = [{"bytes": png(first + i), "path": f"cat/{i}.jpg" if i % 3 else None} for i in range(n_rows)]
    columns = {
        "label": pa.array([i % 2 for i in range(n_rows)], pa.int64()),
        column: pa.array(cells, CELL),
        "note": pa.array([f"note {i}" if i % 2 else None for i in range(n_rows)]),
        "box": pa.array([[i, 2 * i] for i in range(n_rows)], pa.list_(pa.int32())),
    }
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(metadata)} if metadata else None)


def write(path: Path, content: pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def pixels(cell: dict[str, bytes]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


@pytest.mark.parametrize("row_group_size", [4, 250, 1000])
def test_a_file_makes_the_round_trip_and_only_colors_change(tmp_path: Path, row_group_size: int) -> None:
    source = write(tmp_path / "in.parquet", table(250), row_group_size=row_group_size, compression="zstd")
    before = pq.read_table(source)
    pass_through(source, tmp_path / "out.parquet", change=invert, chunk=33, repeat=True)
    after = pq.read_table(tmp_path / "out.parquet")
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.drop(["image"]).equals(before.drop(["image"]))
    for old, new in zip(before["image"].to_pylist(), after["image"].to_pylist(), strict=True):
        assert np.array_equal(pixels(new), 255 - pixels(old)) and new["bytes"].startswith(b"\x89PNG")
        assert new["path"] == (old["path"] and old["path"].replace(".jpg", ".png"))
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_folder_of_files_keeps_their_names_and_the_other_files(tmp_path: Path) -> None:
    write(tmp_path / "in/data/train-00000-of-00002.parquet", table(5))
    write(tmp_path / "in/data/train-00001-of-00002.parquet", table(3, first=50))
    (tmp_path / "in/README.md").write_text("a card")
    noise_image(0).save(tmp_path / "in/picture.png")
    source = open_source(tmp_path / "in")
    assert [one.item.id for one in source.load(4, 6)] == [
        "data/train-00000-of-00002.parquet/4",
        "data/train-00001-of-00002.parquet/0",
    ]
    pass_through(source, tmp_path / "out", change=invert, chunk=3)
    assert names_below(tmp_path / "out") == names_below(tmp_path / "in")
    for name in names_below(tmp_path / "in"):
        old, new = tmp_path / "in" / name, tmp_path / "out" / name
        if name.endswith(".parquet"):
            assert pq.read_table(new).drop(["image"]).equals(pq.read_table(old).drop(["image"]))
        else:
            assert new.read_bytes() == old.read_bytes()
    assert source.describe()["passed_on"] == ["README.md", "picture.png"]


@pytest.mark.parametrize("metadata", [None, {"info": {"features": {"photo": {"_type": "Image"}}}}, {"broken": 1}])
def test_the_column_is_found_by_metadata_or_by_type(tmp_path: Path, metadata: dict[str, object] | None) -> None:
    source = open_source(write(tmp_path / "a.parquet", table(3, column="photo", metadata=metadata)))
    assert source.describe()["column"] == "photo" and source.load(0, 1)[0].picture is not None


def test_of_two_image_columns_the_usual_name_is_purified_and_the_other_named(tmp_path: Path) -> None:
    both = table(3, metadata=None).add_column(0, "mask", table(3)["image"])
    described = open_source(write(tmp_path / "a.parquet", both)).describe()
    assert described["column"] == "image" and described["unpurified_image_columns"] == ["mask"]


def broken_table() -> pa.Table:
    cells = [
        {"bytes": png(0), "path": "0.png"},
        {"bytes": b"text", "path": "1.jpg"},
        None,
        {"bytes": None, "path": "3.png"},
    ]
    return pa.table({"image": pa.array([*cells, {"bytes": png(4), "path": "4.png"}], CELL), "label": range(5)})


def test_bad_cells_are_reported_and_leave_with_their_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", broken_table())
    errors = [str(one.error) for one in open_source(source).load(0, 5) if one.picture is None]
    assert [text.partition(":")[0] for text in errors] == ["in.parquet/1", "in.parquet/2", "in.parquet/3"]
    assert "not an image" in errors[0] and "holds no bytes" in errors[1] and "holds no bytes" in errors[2]
    pass_through(source, tmp_path / "out.parquet", chunk=2)
    assert pq.read_table(tmp_path / "out.parquet")["label"].to_pylist() == [0, 4]


def test_copied_cells_stay_as_they_are(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", broken_table())
    pass_through(source, tmp_path / "out.parquet", decide=copy_bad, change=invert, chunk=2)
    before, after = (pq.read_table(tmp_path / name)["image"].to_pylist() for name in ("in.parquet", "out.parquet"))
    assert after[1:4] == before[1:4] and np.array_equal(pixels(after[4]), 255 - pixels(before[4]))


def test_chunks_change_no_byte(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", table(120))
    pass_through(source, tmp_path / "a.parquet", chunk=7)
    pass_through(source, tmp_path / "b.parquet", chunk=120)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_rows_can_be_loaded_in_any_order(tmp_path: Path) -> None:
    before = table(250)
    source = open_source(write(tmp_path / "a.parquet", before, row_group_size=40))
    for start in (200, 3, 3, 120, 119, 249, 0):
        (loaded,) = source.load(start, start + 1)
        assert loaded.picture is not None
        assert np.array_equal(loaded.picture.pixels, pixels(before["image"][start].as_py()))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda path: write(path, pa.table({"label": [1], "text": ["a"]})),
            r"no column of images.*label \(int64\), text",
        ),
        (lambda path: write(path, table(0)), "holds no rows"),
        (lambda path: path.write_bytes(b"hello"), "cannot be read as Parquet"),
        (lambda path: os.truncate(write(path, table(9)), 500), "cannot be read as Parquet"),
    ],
)
def test_what_holds_no_images_is_refused(tmp_path: Path, make, reason: str) -> None:
    make(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=reason):
        ParquetSource(tmp_path / "a.parquet")


def test_a_repository_with_splits_is_loaded_by_the_library_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write(tmp_path / "in/data/train-00000-of-00002.parquet", table(5))
    write(tmp_path / "in/data/train-00001-of-00002.parquet", table(3, first=50))
    write(tmp_path / "in/data/test-00000-of-00001.parquet", table(2, first=70))
    (tmp_path / "in/README.md").write_text("---\npretty_name: A set\n---\nof images\n")
    pass_through(tmp_path / "in", tmp_path / "out", change=invert, chunk=3)
    before, after = (
        datasets.load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / f"cache-{name}")) for name in ("in", "out")
    )
    assert {name: len(rows) for name, rows in after.items()} == {"train": 8, "test": 2}
    for name in after:
        assert after[name].features == before[name].features
        for old, new in zip(before[name], after[name], strict=True):
            assert np.array_equal(np.asarray(new.pop("image")), 255 - np.asarray(old.pop("image"))) and new == old


def test_labels_that_name_no_class_are_told(tmp_path: Path) -> None:
    def odd(labels: list[int | None]) -> object:
        content = table(len(labels))
        content = content.set_column(0, "label", pa.array(labels, pa.int64()))
        path = write(tmp_path / f"{len(labels)}.parquet", content.replace_schema_metadata(table(1).schema.metadata))
        return open_source(path).describe()["labels_out_of_range"]

    assert odd([0, 1, -1, None]) == {"count": 0, "first": []}
    assert odd([0, 2, 1, 99, -2]) == {
        "count": 3,
        "first": ["5.parquet/1: label is 2", "5.parquet/3: label is 99", "5.parquet/4: label is -2"],
    }
    many = odd([7] * 30)
    assert many["count"] == 30 and len(many["first"]) == 20  # type: ignore[index]
    content = table(3, metadata=None)
    assert open_source(write(tmp_path / "a.parquet", content)).describe()["labels_out_of_range"]["count"] == 0
