from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.data_job import copy_bad, invert, names_below, noise_image, pass_through

from pureebm.data.csv_list import COLUMNS, CsvSource
from pureebm.data.open import open_source
from pureebm.errors import InputError


def make(root: Path, text: str, *names: str, name: str = "list.csv") -> Path:
    for seed, image in enumerate(names):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        noise_image(seed).save(root / image)
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text.encode())
    return root / name


@pytest.mark.parametrize("column", [*COLUMNS, "File", " PATH "])
def test_the_column_of_names_is_found_by_its_header(column: str, tmp_path: Path) -> None:
    source = open_source(make(tmp_path, f"label,{column}\n1,a.png\n", "a.png"))
    assert source.kind == "csv" and [one.item.id for one in source.load(0, 9)] == ["a.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\nb.jpg,1\na.png,2\n", "file,label\nb.png,1\na.png,2\n"),
        ("\ufefffile,label\r\nb.jpg,ü\r\n", "\ufefffile,label\r\nb.png,ü\r\n"),
        ('note,file\n"a, ""b""\nc",b.jpg\n', 'note,file\n"a, ""b""\nc",b.png\n'),
        ("file,box\nb.jpg,1\na.png,2\nb.jpg,3\n", "file,box\nb.png,1\na.png,2\nb.png,3\n"),
        ("file,label,more\nb.jpg\n\na.png,2\n", "file,label,more\nb.png\na.png,2\n"),
        ("file\n./b.jpg\n", "file\nb.png\n"),
    ],
)
def test_only_the_names_change(text: str, expected: str, tmp_path: Path) -> None:
    pass_through(make(tmp_path / "in", text, "a.png", "b.jpg"), tmp_path / "out", change=invert)
    assert (tmp_path / "out/list.csv").read_bytes() == expected.encode()


def test_tabs_separate_the_columns_of_a_tsv(tmp_path: Path) -> None:
    path = make(tmp_path / "in", "path\tlabel\nx/b.jpg\ta, b\n", "x/b.jpg", name="list.tsv")
    pass_through(path, tmp_path / "out")
    assert (tmp_path / "out/list.tsv").read_text() == "path\tlabel\nx/b.png\ta, b\n"


def test_only_what_the_list_names_is_written_and_in_its_order(tmp_path: Path) -> None:
    path = make(tmp_path / "in", "file,label\nz.png,1\na/b.bmp,2\n", "z.png", "a/b.bmp", "a/unlisted.png")
    stored = pass_through(path, tmp_path / "out")
    assert [one.target_name for one in stored] == ["z.png", "a/b.png"]
    assert names_below(tmp_path / "out") == ["a/b.png", "list.csv", "z.png"]


def test_rows_of_a_missing_or_bad_image_follow_the_decision(tmp_path: Path) -> None:
    text = "file,label\na.png,1\nmissing.jpg,2\nbad.jpg,3\nb.jpg,4\nbad.jpg,5\n"
    path = make(tmp_path / "in", text, "a.png", "b.jpg")
    (tmp_path / "in/bad.jpg").write_text("no image")
    errors = [str(one.error) for one in open_source(path).load(0, 4) if one.error]
    assert [error.partition(":")[0] for error in errors] == ["missing.jpg", "bad.jpg"] and "No such file" in errors[0]
    pass_through(path, tmp_path / "skipped")
    assert (tmp_path / "skipped/list.csv").read_text() == "file,label\na.png,1\nb.png,4\n"
    pass_through(path, tmp_path / "copied", decide=copy_bad)
    assert (tmp_path / "copied/list.csv").read_text() == "file,label\na.png,1\nbad.jpg,3\nb.png,4\nbad.jpg,5\n"
    assert (tmp_path / "copied/bad.jpg").read_text() == "no image"


def test_names_that_would_meet_are_all_kept(tmp_path: Path) -> None:
    path = make(tmp_path / "in", "file\na.jpg\na.png\nA.bmp\n", "a.jpg", "a.png", "A.bmp")
    pass_through(path, tmp_path / "out")
    assert (tmp_path / "out/list.csv").read_text() == "file\na.jpg.png\na.png\nA.bmp.png\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("label,text\n1,a.png\n", "no column of file names in its first line .label, text.; name it one of file"),
        ("file,label\n", "names no image; there is nothing to do"),
        ("file\n../a.png\n", r"'../a.png' is not below the list's folder"),
        ("file\n/etc/passwd\n", "'/etc/passwd' is not below the list's folder"),
        ("label,file\n1,a.png\n2\n", "row 2 below the header names no image"),
        ("label,file\n1,\n", "row 1 below the header names no image"),
        ('file\n"a.png\n', "cannot be read as UTF-8 text with columns"),
        ("file\na\nb/c\na/b\n", "'a' is named as an image and as a folder"),
        ("file\n" + "a" * 256 + "\n", "is too long for a file"),
        ("file\n" + "a/" * 501 + "\n", "is too long for a file"),
    ],
)
def test_what_is_no_list_of_images_below_it_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        open_source(make(tmp_path, text))


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("file,label\na.png,ü\n".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        open_source(tmp_path / "list.csv")


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=9), min_size=2
        ).map(lambda row: row[:4]),
        min_size=1,
        max_size=6,
    )
)
def test_any_text_in_the_other_columns_makes_the_round_trip(
    rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["note", "file", "x", "y"], *([row[0], "a.png", *row[2:]] for row in rows)])
    folder = tmp_path_factory.mktemp("any")
    CsvSource(make(folder, text.getvalue())).rewrite(out := io.BytesIO(), {"a.png": "b.png"})
    after = list(csv.reader(io.StringIO(out.getvalue().decode(), newline="")))
    assert after[1:] == [[row[0], "b.png", *row[2:]] for row in rows]
