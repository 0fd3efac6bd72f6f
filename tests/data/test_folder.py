from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.data_job import copy_bad, invert, names_below, noise_image, pass_through

from pureebm.data.base import Result
from pureebm.data.folder import FolderSource, list_folder, odd_target_names
from pureebm.data.open import open_source

JPEG_TO_PNG = {
    "cat/1.png": "cat/1.png",
    "cat/2.jpg": "cat/2.png",
    "dog/deep/3.webp": "dog/deep/3.png",
    "4.bmp": "4.png",
}


def make_folder(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise_image(seed).save(root / name)
    return root


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_below(folder)}


def test_nested_and_flat_images_become_png_at_their_places(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", list(JPEG_TO_PNG))
    pass_through(source, tmp_path / "out", change=invert, chunk=3)
    assert names_below(tmp_path / "out") == sorted(JPEG_TO_PNG.values())
    for old, new in JPEG_TO_PNG.items():
        assert np.array_equal(pixels(tmp_path / "out" / new), 255 - pixels(source / old))


def test_chunks_threads_and_repeated_writes_change_no_byte(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", [f"{i}.jpg" for i in range(23)])
    pass_through(source, tmp_path / "a", chunk=1)
    pass_through(source, tmp_path / "b", chunk=10, repeat=True)
    assert bytes_below(tmp_path / "a") == bytes_below(tmp_path / "b")


def test_other_files_and_empty_class_folders_are_kept_and_earlier_records_are_not(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", ["a/1.png"])
    (source / "empty").mkdir()
    for name in ("labels.csv", "a/notes.txt", "a/pureebm-run.json", "pureebm-run.json", "pureebm-manifest.parquet"):
        (source / name).write_text(name)
    pass_through(source, tmp_path / "out")
    assert names_below(tmp_path / "out") == ["a/1.png", "a/notes.txt", "a/pureebm-run.json", "labels.csv"]
    assert (tmp_path / "out/labels.csv").read_text() == "labels.csv"
    assert (tmp_path / "out/empty").is_dir()


def test_names_that_differ_only_in_extension_or_case_are_all_kept(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "b.JPG", "b.jpg", "c.bmp", "c.jpg.png", "c.gif", "d.jpg", "d.jpg.gif", "d.png"]
    source = make_folder(tmp_path / "in", names)
    stored = pass_through(source, tmp_path / "out")
    found = names_below(tmp_path / "out")
    assert len(found) == len(names) == len({name.casefold() for name in found})
    assert {"a.png", "a.jpg.png", "c.jpg.png", "c.bmp.png", "c.gif.png", "d.png"} <= set(found)
    by_source = dict(zip(sorted(names), stored, strict=True))
    for name in names:
        assert np.array_equal(pixels(tmp_path / "out" / by_source[name].target_name), pixels(source / name))


NAMES = st.lists(
    st.builds(
        lambda folder, stem, extension: folder + stem + extension,
        st.sampled_from(["", "x/", "X/", "x.png/"]),
        st.sampled_from(["a", "A", "a.jpg", "ß", "ä" * 120, "b" * 251, "b" * 250, " "]),
        st.sampled_from([".png", ".PNG", ".jpg", ".JPG", ".gif", ".tiff", ".webp"]),
    ),
    unique=True,
    max_size=40,
)


@settings(deadline=None)
@given(NAMES)
def test_target_names_never_meet_are_never_too_long_and_png_names_stay(names: list[str]) -> None:
    names = sorted(name for name in names if len(name.rpartition("/")[2].encode()) <= 255)
    odd = odd_target_names(names, ["x", "x.png"])
    plain = [name if name.lower().endswith(".png") else os.path.splitext(name)[0] + ".png" for name in names]
    targets = [odd.get(index, name) for index, name in enumerate(plain)]
    kept = [name for name in names if name.lower().endswith(".png")]
    made = [target.casefold() for name, target in zip(names, targets, strict=True) if name not in kept]
    assert len(set(targets)) == len(names) and len(set(made)) == len(made)
    assert not set(made) & {name.casefold() for name in kept} and set(kept) <= set(targets)
    assert "x.png" not in made
    assert all(
        len(target.rpartition("/")[2].encode()) <= 255 and target.endswith((".png", ".PNG")) for target in targets
    )
    assert odd == odd_target_names(names, ["x", "x.png"])


@settings(max_examples=25, deadline=None)
@given(
    stems=st.sets(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
)
def test_any_unicode_name_makes_the_round_trip(stems: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    names = {f"{stem}.ppm" for stem in stems if len(stem.encode()) <= 251} | {"é.ppm"}
    root = tmp_path_factory.mktemp("unicode")
    make_folder(root / "in", [])
    (root / "in").mkdir()
    for seed, name in enumerate(sorted(names)):
        noise_image(seed, (2, 2)).save(root / "in" / name, "PPM")
    stored = pass_through(root / "in", root / "out")
    assert len({entry.target_name for entry in stored}) == len(names) == len(names_below(root / "out"))


def test_a_name_that_is_no_utf8_is_made_readable_and_not_lost(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for raw in (b"\xff.png", b"\xfe.png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + raw)).write_bytes(
            (make_folder(tmp_path / "one", ["a.png"]) / "a.png").read_bytes()
        )
    stored = pass_through(tmp_path / "in", tmp_path / "out")
    assert len(names_below(tmp_path / "out")) == 2
    assert all(entry.target_name.encode() for entry in stored)


def test_the_longest_name_that_a_file_can_have_makes_the_round_trip(tmp_path: Path) -> None:
    names = ["a" * 251 + ".jpg", "a" * 251 + ".png", "ö" * 125 + ".jpg", "b" * 252 + ".gif"[:3]]
    source = make_folder(tmp_path / "in", names[:3])
    pass_through(source, tmp_path / "out")
    assert len(names_below(tmp_path / "out")) == 3


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who may not read it; the superuser, who may run the tests, always may."""
    noise_image(0).save(path)
    really_open = os.open

    def refuse(name: str, *arguments: int) -> int:
        if Path(name) == path:
            raise PermissionError(13, "Permission denied", str(name))
        return really_open(name, *arguments)

    monkeypatch.setattr(os, "open", refuse)


BAD: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], str]] = {
    "text": (lambda path, _: path.write_text("hello"), "not an image"),
    "zero": (lambda path, _: path.write_bytes(b""), "empty"),
    "pipe": (lambda path, _: os.mkfifo(path), "no regular file"),
    "loop": (lambda path, _: path.symlink_to(path.name), "symbolic links"),
    "dangling": (lambda path, _: path.symlink_to("nowhere"), "No such file"),
    "unreadable": (unreadable, "Permission denied"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_reported_by_name_and_the_others_go_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(tmp_path / "in", ["good.jpg"])
    make, reason = BAD[kind]
    make(source / "bad.png", monkeypatch)
    bad, good = open_source(source).load(0, 2)
    assert good.picture is not None and bad.picture is None
    assert str(bad.error).startswith("bad.png: ") and reason in str(bad.error)
    pass_through(source, tmp_path / "out")
    assert names_below(tmp_path / "out") == ["good.png"]


def test_a_copied_item_keeps_its_bytes_and_its_name(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", ["a.jpg", "a.png"])
    (source / "b.jpg").write_bytes(b"broken")
    stored = pass_through(source, tmp_path / "out", decide=copy_bad)
    assert names_below(tmp_path / "out") == ["a.jpg.png", "a.png", "b.jpg"]
    assert (tmp_path / "out/b.jpg").read_bytes() == b"broken" and stored[2].target_name == "b.jpg"


def test_what_an_earlier_attempt_stored_of_an_item_does_not_stay(tmp_path: Path) -> None:
    source = open_source(make_folder(tmp_path / "in", ["a.jpg", "b.jpg"]))
    sink = source.open_sink(tmp_path / "staging")
    a, b = source.load(0, 2)
    sink.write(0, [Result(a.item, "copied"), Result(b.item, "purified", b.picture)])
    sink.write(0, [Result(a.item, "purified", a.picture), Result(b.item, "skipped")])
    sink.assemble(tmp_path / "out", 1)
    assert names_below(tmp_path / "out") == ["a.png"]


def test_links_are_followed_to_files_but_not_to_folders_and_nothing_from_outside_is_copied(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", ["a/1.png"])
    outside = make_folder(tmp_path / "outside", ["x.png"])
    (outside / "secret.txt").write_text("secret")
    (source / "cycle").symlink_to(source)
    (source / "a/up").symlink_to("..")
    (source / "inner.png").symlink_to("a/1.png")
    (source / "outer.png").symlink_to(outside / "x.png")
    (source / "stolen.txt").symlink_to(outside / "secret.txt")
    (source / "stolen.png").symlink_to(outside / "secret.txt")
    pass_through(source, tmp_path / "out", decide=copy_bad)
    assert names_below(tmp_path / "out") == ["a/1.png", "inner.png", "outer.png"]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert open_source(source).describe()["left_out"]["first"] == ["a/up", "cycle", "stolen.txt"]


def test_assembling_again_after_the_rename_changes_nothing(tmp_path: Path) -> None:
    source = open_source(make_folder(tmp_path / "in", ["a.jpg"]))
    pass_through(source, tmp_path / "out")
    before = bytes_below(tmp_path / "out")
    (tmp_path / "out.staging/parts").rmdir()
    (tmp_path / "out.staging").rmdir()
    sink = source.open_sink(tmp_path / "fresh")
    (tmp_path / "fresh/tree").rmdir()
    sink.assemble(tmp_path / "out", 1)
    assert bytes_below(tmp_path / "out") == before


def test_the_fingerprint_changes_with_any_file_and_only_then(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", ["a.jpg", "b.png"])
    first = open_source(source).describe()
    assert first == open_source(source).describe()
    os.utime(source / "a.jpg", ns=(1, 1))
    second = open_source(source).describe()
    (source / "notes.txt").write_text("x")
    third = open_source(source).describe()
    assert len({entry["fingerprint"] for entry in (first, second, third)}) == 3


def test_an_item_is_named_by_its_posix_path_in_sorted_order(tmp_path: Path) -> None:
    source = FolderSource(make_folder(tmp_path / "in", ["b.png", "a/z.jpg", "a.png"]))
    items = [dataclasses.astuple(loaded.item) for loaded in source.load(0, 3)]
    assert items == [(0, "a.png", "a.png"), (1, "a/z.jpg", "a/z.png"), (2, "b.png", "b.png")]


def test_a_set_as_torchvision_reads_it_keeps_its_splits_classes_and_order(tmp_path: Path) -> None:
    names = [
        f"{split}/{label}/{i}.jpeg" for split in ("train", "val") for label in ("n01", "n02", "ß") for i in range(3)
    ]
    source = make_folder(tmp_path / "in", names)
    (source / "val/n03").mkdir()
    (source / "val/n01/.DS_Store").write_bytes(b"\0")
    pass_through(source, tmp_path / "out", change=invert, chunk=4)
    for split in ("train", "val"):
        (classes, before), (same, after) = (image_folder(tmp_path / one / split) for one in ("in", "out"))
        assert classes == same == ["n01", "n02", *(["n03"] if split == "val" else []), "ß"]
        assert [(path.stem, label) for path, label in before] == [(path.stem, label) for path, label in after]
        for (old, _), (new, _) in zip(before, after, strict=True):
            assert np.array_equal(pixels(new), 255 - pixels(old))


def image_folder(root: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """What torchvision's ImageFolder finds: sorted classes; their images in sorted order, with the classes' numbers."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    samples = []
    for label, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(root / name, followlinks=True)):
            images = [file for file in sorted(files) if file.lower().endswith((".jpg", ".jpeg", ".png", ".bmp"))]
            samples += [(Path(folder, file), label) for file in images]
    return classes, samples


def test_an_image_under_another_name_is_an_image_all_the_same_and_must_not_pass(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), (10, 200, 30))
    for name, kind in (("a.jfif", "JPEG"), ("b", "PNG"), ("c.old", "WEBP"), ("d.txt", None), ("e.bin", None)):
        if kind:
            picture.save(tmp_path / name, format=kind)
        else:
            (tmp_path / name).write_bytes(b"\x00 no picture")
    (tmp_path / "f.avif").write_bytes(b"\x00\x00\x00\x1cftypavif" + bytes(40))
    listing = list_folder(tmp_path)
    assert listing.images == ["a.jfif", "b", "c.old", "f.avif"] and listing.others == ["d.txt", "e.bin"]
    loaded = FolderSource(tmp_path).load(0, 4)
    assert [one.item.target_name for one in loaded] == ["a.png", "b.png", "c.png", "f.png"]
    assert [one.picture is not None for one in loaded] == [True, True, True, False]  # a format that is not read: named
