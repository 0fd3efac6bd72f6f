"""What holds of every kind: only colors change, bad images follow the decision, and no cut of the work shows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.data.data_job import copy_bad, invert, names_below, pass_through
from tests.data.kinds import BAD, CLASSES, KINDS, Kind, N

from pureebm.data.labels import read_labeled_source
from pureebm.data.open import open_source

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {name: (path / name).read_bytes() for name in names_below(path)}


@every_kind
def test_names_labels_splits_and_order_are_kept_and_only_colors_change(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(tmp_path, False)
    source = open_source(path)
    assert (source.kind, len(source)) == (kind.source_kind, N) and source.describe()["images"] == N
    pass_through(source, tmp_path / kind.target, change=invert, chunk=5)
    before, after = kind.read(path), kind.read(tmp_path / kind.target)
    assert [(row.name, row.label) for row in after] == [(row.name, row.label) for row in before]
    assert len(after) == N and {row.label for row in after} == set(CLASSES)
    for old, new in zip(before, after, strict=True):
        assert old.pixels is not None and new.pixels is not None and np.array_equal(new.pixels, 255 - old.pixels)


@every_kind
def test_the_target_is_a_source_of_the_same_kind_and_all_its_images_are_png(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(tmp_path, False)
    stored = pass_through(path, tmp_path / kind.target)
    target = tmp_path / kind.target / "list.csv" if kind.source_kind == "csv" else tmp_path / kind.target
    again = open_source(target)
    assert again.kind == kind.source_kind and len(again) == N
    items = [one.item for one in again.load(0, N)]
    assert [item.id.split("/")[1:] for item in items] == [entry.target_name.split("/")[1:] for entry in stored]
    assert [item.id for item in items] == [item.target_name for item in items]
    assert not any(name.endswith(".bmp") for name in content(tmp_path / kind.target))


@every_kind
def test_an_image_that_is_skipped_leaves_with_its_label_and_all_others_stay(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(tmp_path, True)
    source = open_source(path)
    failed = [one for one in source.load(0, N) if one.picture is None]
    assert [f"{BAD:03d}" in one.item.id or one.item.index == BAD for one in failed] == [True]
    assert "not an image" in str(failed[0].error) and str(failed[0].error).startswith(failed[0].item.id)
    stored = pass_through(source, tmp_path / kind.target, change=invert, chunk=4)
    assert [entry.target_name == "" for entry in stored] == [one == failed[0].item.index for one in range(N)]
    left = [row for row in kind.read(path) if row.pixels is not None]
    after = kind.read(tmp_path / kind.target)
    assert [(row.name, row.label) for row in after] == [(row.name, row.label) for row in left] and len(after) == N - 1


@every_kind
def test_an_image_that_is_copied_keeps_its_bytes_and_its_place(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(tmp_path, True)
    pass_through(path, tmp_path / kind.target, change=invert, decide=copy_bad, chunk=4)
    before, after = kind.read(path), kind.read(tmp_path / kind.target)
    assert [(row.name, row.label) for row in after] == [(row.name, row.label) for row in before]
    assert [row.pixels is None for row in after] == [row.pixels is None for row in before]
    expected = [row.extension if row.pixels is None else ".png" for row in before]
    assert [row.extension for row in after] == expected and ".bmp" in expected


@every_kind
def test_chunks_repeated_writes_and_the_date_change_no_byte(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kind.make(tmp_path, True)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pass_through(path, tmp_path / "a" / kind.target, decide=copy_bad, chunk=5, repeat=True)
    monkeypatch.setattr("time.time", lambda: 1e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2001, 1, 1, 0, 0, 0, 0, 1, 0))
    pass_through(path, tmp_path / "b" / kind.target, decide=copy_bad, chunk=N)
    assert content(tmp_path / "a" / kind.target) == content(tmp_path / "b" / kind.target)


@every_kind
def test_images_can_be_loaded_in_any_order(kind: Kind, tmp_path: Path) -> None:
    source = open_source(kind.make(tmp_path, False))
    whole = source.load(0, N)
    for start in (9, 2, 2, 11, 4, 0):
        for one, expected in zip(source.load(start, start + 3), whole[start : start + 3], strict=True):
            assert one.item == expected.item and one.sha256 == expected.sha256
            assert np.array_equal(one.picture.pixels, expected.picture.pixels)  # type: ignore[union-attr]


@every_kind
def test_the_fingerprint_changes_with_the_source_and_only_then(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(tmp_path, False)
    first = open_source(path).describe()
    assert first == open_source(path).describe()
    changed = max((one for one in [path, *path.rglob("*")] if one.is_file()), key=lambda one: one.stat().st_size)
    os.utime(changed, ns=(1, 1))
    assert open_source(path).describe()["fingerprint"] != first["fingerprint"]


@every_kind
def test_labels_can_be_read(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(tmp_path, False)
    found, labels, names, ids = read_labeled_source(path)
    assert names == list(CLASSES) and len(found) == len(ids) == N
    assert [names[label] for label in labels.tolist()] == [row.label for row in kind.read(path)]


@pytest.mark.parametrize("name", ["zip", "tar", "tar.gz"])
def test_an_archive_holds_what_its_unpacked_folder_would_become(name: str, tmp_path: Path) -> None:
    folder, packed = open_source(KINDS["folder"].make(tmp_path, False)), open_source(KINDS[name].make(tmp_path, False))
    assert [one.item for one in folder.load(0, N)] == [one.item for one in packed.load(0, N)]
    assert pass_through(folder, tmp_path / "out") == pass_through(packed, tmp_path / KINDS[name].target)
