from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from tests.data.data_job import invert, noise_image, pass_through
from tests.data.kinds import add, pixels

from pureebm.data.open import open_source
from pureebm.errors import InputError


def data(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    noise_image(seed).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, *entries: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in entries:
            add(archive, name, content)
    return path


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive.getmembers()}  # type: ignore[union-attr]


def test_a_single_shard_with_labels_is_known_and_one_without_is_an_archive_of_images(tmp_path: Path) -> None:
    with_label = write(tmp_path / "a.tar", ("1.jpg", data(0)), ("1.cls", b"3"))
    without = write(tmp_path / "b.tar", ("cat/1.jpg", data(0)), ("cat/2.jpg", data(1)), ("notes.txt", b""))
    assert open_source(with_label).kind == "webdataset" and open_source(without).kind == "tar"


def test_ids_are_those_of_the_folder_however_few_of_its_shards_are_there(tmp_path: Path) -> None:
    for shard in ("00", "01"):
        write(tmp_path / "in" / f"{shard}.tar", (f"{shard}1.jpg", data(int(shard))), (f"{shard}1.cls", b"3"))
    ids = [one.item.id for one in open_source(tmp_path / "in").load(0, 2)]
    assert ids == ["00.tar/001.jpg", "01.tar/011.jpg"]
    assert open_source(tmp_path / "in" / "01.tar").load(0, 1)[0].item.id == ids[1]


def test_one_image_of_a_sample_is_purified_and_the_others_are_passed_on_and_counted(tmp_path: Path) -> None:
    mask, other = data(1, "PNG"), data(2)
    path = write(
        tmp_path / "in.tar",
        ("1.depth.jpg", other),
        ("1.jpg", data(0)),
        ("1.json", b"{}"),
        ("1.png", mask),
        ("2.left.jpg", data(3)),
        ("2.right.jpg", other),
    )
    source = open_source(path)
    assert source.describe()["unpurified_images"] == {"depth.jpg": 1, "png": 1, "right.jpg": 1}
    pass_through(source, tmp_path / "out.tar", change=invert)
    after = read(tmp_path / "out.tar")
    assert list(after) == ["1.depth.jpg", "1.jpg.png", "1.json", "1.png", "2.left.png", "2.right.jpg"]
    assert after["1.depth.jpg"] == after["2.right.jpg"] == other and after["1.png"] == mask
    for name, seed in {"1.jpg.png": 0, "2.left.png": 3}.items():
        assert (pixels(after[name]) == 255 - pixels(data(seed))).all()  # type: ignore[operator]


def test_samples_stay_whole_contiguous_and_in_order(tmp_path: Path) -> None:
    entries = []
    for number in (7, 3, 5):
        entries += [
            (f"{number}.cls", b"1"),
            (f"{number}.jpg", data(number) if number != 3 else b""),
            (f"{number}.txt", b"t"),
        ]
    path = write(tmp_path / "in.tar", *entries, ("__meta__", b"m"), ("8.cls", b"no image"))
    pass_through(path, tmp_path / "out.tar")
    assert list(read(tmp_path / "out.tar")) == [
        "7.cls",
        "7.png",
        "7.txt",
        "5.cls",
        "5.png",
        "5.txt",
        "__meta__",
        "8.cls",
    ]


def test_a_limit_keeps_the_first_samples_only(tmp_path: Path) -> None:
    path = write(tmp_path / "in.tar", *((f"{i}.{e}", data(i)) for i in range(4) for e in ("cls", "jpg")))
    source = open_source(path)
    sink = source.open_sink(tmp_path / "staging")
    from tests.data.data_job import keep, result, skip_bad

    sink.write(0, [result(one, skip_bad, keep) for one in source.load(0, 2)])
    sink.assemble(tmp_path / "out.tar", 1)
    assert list(read(tmp_path / "out.tar")) == ["0.cls", "0.png", "1.cls", "1.png"]


def test_a_shard_that_is_damaged_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in" / "0.tar", ("1.jpg", data(0)), ("1.cls", b"1"))
    (tmp_path / "in" / "1.tar").write_bytes((tmp_path / "in" / "0.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"1\.tar: damaged"):
        open_source(tmp_path / "in")


def test_shards_without_images_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "0.tar", ("1.txt", b"1"), ("1.cls", b"1"))
    with pytest.raises(InputError, match="no images in the tar files"):
        open_source(tmp_path / "in")
