from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from tests.data.data_job import invert, names_below, pass_through
from tests.data.test_parquet import pixels, table

from pureebm.data.arrow import ArrowSource
from pureebm.data.open import open_source
from pureebm.data.relabel import relabel
from pureebm.errors import InputError


def save(folder: Path, *tables: pa.Table, batch: int = 30, **state: object) -> Path:
    """As `datasets` saves, in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, rows in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as stream:
            stream.write_table(rows, max_chunksize=batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0123456789abcdef"} | state
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"citation": "", "license": "mine"}')
    return folder


def rows(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def test_only_colors_change_and_without_the_library(tmp_path: Path) -> None:
    before = table(250)
    pass_through(save(tmp_path / "in", before), tmp_path / "out", change=invert, chunk=33, repeat=True)
    assert names_below(tmp_path / "out") == names_below(tmp_path / "in")
    after = rows(tmp_path / "out/data-00000-of-00001.arrow")
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.drop(["image"]).equals(before.drop(["image"]))
    for old, new in zip(before["image"].to_pylist(), after["image"].to_pylist(), strict=True):
        assert (pixels(new) == 255 - pixels(old)).all()


def test_the_new_rows_get_a_fingerprint_of_their_own_that_depends_on_them_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "in", table(9), table(4, first=50))
    found = {}
    for name, change in {"a": invert, "b": invert, "c": lambda picture: picture}.items():
        pass_through(source, tmp_path / name, change=change, chunk=5)
        state = json.loads((tmp_path / name / "state.json").read_text())
        assert state.keys() == {"_data_files", "_fingerprint"} and len(state["_fingerprint"]) == 16
        found[name] = state["_fingerprint"]
    assert found["a"] == found["b"] != found["c"] and "0123456789abcdef" not in found.values()


def test_counts_of_rows_in_the_description_follow(tmp_path: Path) -> None:
    source = save(tmp_path / "in", table(9), _split="train")
    info = {"splits": {"train": {"name": "train", "num_examples": 9, "num_bytes": 1}, "test": {"num_examples": 5}}}
    (source / "dataset_info.json").write_text(json.dumps(info))
    pass_through(source, tmp_path / "out", decide=lambda one: "purified" if one.item.index else "skipped")
    splits = json.loads((tmp_path / "out/dataset_info.json").read_text())["splits"]
    size = (tmp_path / "out/data-00000-of-00001.arrow").stat().st_size
    assert splits == {"train": {"name": "train", "num_examples": 8, "num_bytes": size}, "test": {"num_examples": 5}}


def test_the_fingerprint_follows_the_description_too(tmp_path: Path) -> None:
    first = open_source(save(tmp_path, table(3))).describe()["fingerprint"]
    (tmp_path / "dataset_info.json").write_text('{"license": "another"}')
    assert open_source(tmp_path).describe()["fingerprint"] != first


def test_cached_results_of_old_rows_are_left_out_and_other_files_kept(tmp_path: Path) -> None:
    source = save(tmp_path / "in", table(3))
    (source / "cache-1234.arrow").write_bytes((source / "data-00000-of-00001.arrow").read_bytes())
    (source / "README.md").write_text("a card")
    described = open_source(source).describe()
    assert described["caches"] == ["cache-1234.arrow"] and described["left_out"] == []
    pass_through(source, tmp_path / "out")
    assert names_below(tmp_path / "out") == [
        "README.md",
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    ]


def test_an_empty_split_stays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/dataset_dict.json").write_text('{"splits": ["train", "none"]}')
    save(tmp_path / "in/train", table(3))
    save(tmp_path / "in/none", table(0))
    source = open_source(tmp_path / "in")
    assert source.describe()["splits"] == {"train": 3, "none": 0}
    pass_through(source, tmp_path / "out")
    assert rows(tmp_path / "out/none/data-00000-of-00001.arrow").num_rows == 0


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "a/b.arrow", "", 7, None])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    save(tmp_path, table(3), _data_files=[{"filename": name}])
    with pytest.raises(InputError, match="names no files of rows beside it"):
        ArrowSource(tmp_path)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(InputError, match="names no folders of splits"):
        ArrowSource(tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "data-00000-of-00001.arrow").unlink(), "cannot be read as an Arrow stream"),
        (lambda folder: (folder / "data-00000-of-00001.arrow").write_bytes(b"x" * 99), "cannot be read as an Arrow"),
        (lambda folder: (folder / "state.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "state.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: save(folder, pa.table({"label": [1]})), "no column of images"),
        (lambda folder: save(folder, table(0)), "holds no rows"),
    ],
)
def test_what_is_no_saved_set_of_images_is_refused(damage, reason: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    damage(save(tmp_path, table(3)))
    with pytest.raises(InputError, match=reason):
        open_source(tmp_path)


def test_offsets_that_lead_out_of_the_file_are_refused_and_not_followed(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(value.to_bytes(4, "little") for value in (0, 2**30, 1)))
    cells = pa.StructArray.from_arrays(
        [pa.BinaryArray.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"x")]), pa.array(["a", "b"])],
        names=["bytes", "path"],
    )
    save(tmp_path, pa.table({"image": cells}))
    with pytest.raises(InputError, match="cannot be read as an Arrow stream"):
        open_source(tmp_path)


def test_labels_of_some_rows_can_be_changed(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "in", table(150), table(4, first=50)))
    pass_through(source, tmp_path / "out")
    assert relabel(tmp_path / "out", source, {0: 7, 149: 8, 151: 9}, None) == {}
    for name, changes in {"data-00000-of-00002.arrow": {0: 7, 149: 8}, "data-00001-of-00002.arrow": {1: 9}}.items():
        before, after = rows(tmp_path / "in" / name), rows(tmp_path / "out" / name)
        expected = [changes.get(row, label) for row, label in enumerate(before["label"].to_pylist())]
        assert after["label"].to_pylist() == expected and after["note"].equals(before["note"])
