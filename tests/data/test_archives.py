"""Archives that mean harm are refused, and nothing of an honest one is lost."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.data_job import copy_bad, noise_image, pass_through
from tests.data.kinds import add

from pureebm.data import archives
from pureebm.data.archives import ArchiveSource
from pureebm.data.open import open_source
from pureebm.errors import InputError


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise_image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, *names: str, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, png(seed))
    return path


def write_tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for seed, name in enumerate(names):
            add(archive, name, png(seed))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../a.png", "a/../../b.png", "/etc/a.png", "a\\..\\b.png", "\\a.png", "C:\\a.png", "C:/a.png"]
)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_name_that_leads_out_is_refused(write: Callable[..., Path], name: str, tmp_path: Path) -> None:
    assert "leads out of the archive" in refusal(write(tmp_path / "in.tar", "good.png", name))


def test_dots_and_slashes_that_lead_nowhere_are_kept_and_do_not_count_in_names(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in.tar", "./cat/1.jpg", "./a//b..c.bmp", ".hidden.png")
    stored = pass_through(path, tmp_path / "out.tar")
    assert [one.item.id for one in open_source(path).load(0, 3)] == ["cat/1.jpg", "a/b..c.bmp", ".hidden.png"]
    assert [one.target_name for one in stored] == ["cat/1.png", "a/b..c.png", ".hidden.png"]
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == ["./cat/1.png", "./a//b..c.png", ".hidden.png"]


@pytest.mark.parametrize(("prefix", "kind"), [("", "webdataset"), ("text of ", "tar")])
def test_links_and_devices_are_not_followed(prefix: str, kind: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        add(archive, "a.png", png())
        for name, link in {"b.png": tarfile.SYMTYPE, "c.png": tarfile.LNKTYPE, "d.png": tarfile.CHRTYPE}.items():
            for entry in (name, f"{prefix}{name}.txt"):
                info = tarfile.TarInfo(entry)
                info.type, info.linkname = link, "/etc/passwd"
                archive.addfile(info)
    source = open_source(tmp_path / "in.tar")
    assert source.kind == kind
    assert [one.picture is None for one in source.load(0, 9)] == [False, True, True, True]
    assert "not followed" in str(source.load(1, 2)[0].error)
    assert source.describe()["left_out"]["first"] == [f"{prefix}{name}.png.txt" for name in "bcd"]
    pass_through(source, tmp_path / "out.tar", decide=copy_bad)
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == ["a.png"] and archive.getmembers()[0].isreg()


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("b.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(write_zip(tmp_path / "in.zip", "a.png"), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    pass_through(tmp_path / "in.zip", tmp_path / "out.zip", decide=copy_bad)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["a.png"]


def test_written_entries_are_plain_files_that_anybody_may_read(tmp_path: Path) -> None:
    pass_through(write_zip(tmp_path / "in.zip", "ü/ä.jpg", "b.bmp"), tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["ü/ä.png", "b.png"]
        assert {info.external_attr >> 16 for info in archive.infolist()} == {stat.S_IFREG | 0o644}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_empty_folders_other_entries_and_the_comment_stay_in_their_order(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.comment = b"of 2020"
        for name, data in {"z/": b"", "b.csv": b"1", "b.jpg": png(), "a.csv": b"2", "empty/": b""}.items():
            archive.writestr(name, data)
    pass_through(tmp_path / "in.zip", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.comment == b"of 2020"
        assert archive.namelist() == ["z/", "b.csv", "b.png", "a.csv", "empty/"]
        assert archive.read("b.csv") == b"1" and archive.getinfo("empty/").is_dir()


def test_two_images_of_one_target_name_are_both_kept(tmp_path: Path) -> None:
    pass_through(write_zip(tmp_path / "in.zip", "a.jpg", "a.png", "A.bmp"), tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["a.jpg.png", "a.png", "A.bmp.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_two_entries_of_one_name_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    assert "two entries are named 'a/b.png'" in refusal(write(tmp_path / "in.tar", "a/b.png", "a//b.png"))


def bomb(path: Path, n_bytes: int) -> Path:
    zeros = bytes(n_bytes)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", zeros)
    else:
        with tarfile.open(path, "w:gz") as archive:
            add(archive, "a.png", zeros)
    return path


@pytest.mark.parametrize("name", ["in.zip", "in.tar.gz"])
def test_what_would_fill_the_disk_is_refused_before_it_is_unpacked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "RATIO_FROM", 2**20)
    path = bomb(tmp_path / name, 30 * 2**20)
    tracemalloc.start()
    assert "an archive made to fill disks?" in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert len(open_source(bomb(tmp_path / f"small-{name}", 2**19))) == 1


def test_more_entries_or_bytes_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "in.tar", "a.png", "b.png", "c.png")
    monkeypatch.setattr(archives, "MAX_ENTRIES", 2)
    assert "more than the allowed 2 entries" in refusal(path)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MAX_TOTAL", 1000)
    assert "or 1,000 bytes" in refusal(path)


def test_an_image_larger_than_allowed_is_reported_and_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 3000)
    with zipfile.ZipFile(write_zip(tmp_path / "in.zip", "a.png"), "a") as archive:
        archive.writestr("b.png", bytes(3001))
    good, large = open_source(tmp_path / "in.zip").load(0, 2)
    assert good.picture is not None and "3,001 bytes are more than the allowed 3,000" in str(large.error)


def test_a_zip_whose_entries_overlap_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "in.zip", "a.png", "b.png", compression=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        for info in archive.infolist():
            info.header_offset, info.compress_size, info.file_size = 0, path.stat().st_size, path.stat().st_size
        archive.writestr("c.txt", b"")
    assert "its entries overlap" in refusal(path)


def test_a_size_that_lies_is_reported_and_does_not_unpack_more(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(50 * 2**20))
    data = path.read_bytes()
    path.write_bytes(data.replace((50 * 2**20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    tracemalloc.start()
    (loaded,) = open_source(path).load(0, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "cannot be read: Bad CRC-32" in str(loaded.error) and peak < 2**20


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"comment": "a" * (archives.MAX_HEADER + 1)}
        archive.addfile(info)
    assert "bytes of headers" in refusal(tmp_path / "in.tar.gz")


def test_many_entries_without_bytes_do_not_count_as_one_long_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_HEADER", 4096)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for index in range(50):
            folder = tarfile.TarInfo(f"folder-{index}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        add(archive, "a.png", png())
    assert len(open_source(tmp_path / "in.tar")) == 1


@pytest.mark.parametrize("name", ["in.tar", "in.tar.gz"])
def test_a_cut_off_or_damaged_archive_is_refused_and_not_read_in_part(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
        for index in range(9):
            add(archive, f"{index}.png", png(index))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(path)
    if name == "in.tar":
        path.write_bytes(whole[:2048] + b"?" * 512 + whole[2560:])  # the second header
        assert "damaged or cut off at byte 2,048" in refusal(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: write_zip(path, "a.txt"), "no images in .*found 1 other entries"),
        (lambda path: write_zip(path), "no images in"),
        (lambda path: write_zip(path, "a.png", compression=zipfile.ZIP_LZMA), "not compressed with deflate"),
        (lambda path: path.write_bytes(b"PK\3\4 and nothing else"), "damaged, or no zip"),
        (lambda path: os.truncate(write_zip(path, "a.png"), 300), "damaged, or no zip"),
    ],
)
def test_what_is_no_zip_of_images_is_refused(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "in.zip")
    with pytest.raises(InputError, match=reason):
        ArchiveSource(tmp_path / "in.zip")


def test_a_damaged_entry_is_reported_if_an_image_and_else_ends_the_work(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in {"a.png": png(), "b.png": png(1), "c.txt": b"text of c"}.items():
            archive.writestr(name, data)
    data = (tmp_path / "in.zip").read_bytes()
    (tmp_path / "image.zip").write_bytes(data.replace(png(1), png(1)[:-9] + b"?" * 9))
    a, b = open_source(tmp_path / "image.zip").load(0, 2)
    assert a.picture is not None and "b.png: cannot be read: Bad CRC-32" in str(b.error)
    (tmp_path / "text.zip").write_bytes(data.replace(b"text of c", b"text of ?"))
    with pytest.raises(InputError, match="the entry c.txt is damaged"):
        pass_through(tmp_path / "text.zip", tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_a_packed_tar_is_known_by_its_content(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images", "w:gz") as archive:
        add(archive, "a.jpg", png())
    source = open_source(tmp_path / "images")
    assert source.kind == "tar" and source.describe()["images"] == 1
