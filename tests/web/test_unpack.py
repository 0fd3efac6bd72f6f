"""Uploaded archives: what they become, and what is refused."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.web.helpers import archive

from pureebm.errors import InputError
from pureebm.web.unpack import Limits, receive

SMALL = Limits(files=20, unpacked_bytes=100_000)


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_zip_becomes_the_folder_that_was_packed(tmp_path):
    members = {"cat/ä b.png": png(1), "dog/2.png": png(2), "notes.txt": b"x", "__MACOSX/cat/._1.png": b"junk"}
    target = receive(archive(members), "../my photos!.ZIP", tmp_path / "new", SMALL)
    assert target == tmp_path / "new" / "my photos_"
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {name: data for name, data in members.items() if not name.startswith("__")}


def test_a_npz_is_kept_as_it_is(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((2, 16, 16, 3), np.uint8))
    buffer.seek(0)
    target = receive(buffer, "x.npz", tmp_path / "new", SMALL)
    assert target.name == "x.npz" and target.read_bytes() == buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["../a.png", "/a.png", "a/../../b.png", "C:/a.png", "a\\..\\..\\b.png", "..", "a/" + "b" * 300]
)
def test_a_name_that_leads_elsewhere_refuses_the_whole_archive(tmp_path, name):
    file = archive({"ok.png": png()})
    data = (
        archive({"ok.png": png(), "X" * len(name.encode()): png()})
        .getvalue()
        .replace(b"X" * len(name.encode()), name.encode())
    )
    with pytest.raises(InputError, match="leads out|too long"):
        receive(io.BytesIO(data), "a.zip", tmp_path / "deep" / "new", SMALL)
    assert not list((tmp_path / "deep").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    receive(file, "a.zip", tmp_path / "deep" / "new", SMALL)


def test_a_member_that_begins_before_the_archive_is_damage(tmp_path):
    data = archive({"a.png": png()}).getvalue()
    end = data.rindex(b"PK\x05\x06")
    (tmp_path / "sent").write_bytes(data[: end + 16] + b"\xff\xff\xff\x7f" + data[end + 20 :])
    with open(tmp_path / "sent", "rb") as sent, pytest.raises(InputError, match="damaged.*begins before"):
        receive(sent, "a.zip", tmp_path / "new", SMALL)


def test_a_link_is_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        made.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="holds the link 'link.png'"):
        receive(file, "a.zip", tmp_path / "new", SMALL)


def test_more_bytes_or_files_than_allowed_are_refused(tmp_path):
    with pytest.raises(InputError, match="unpacks to 100,001 bytes"):
        receive(archive({"a.png": b"\0" * 100_001}), "a.zip", tmp_path / "new", SMALL)
    with pytest.raises(InputError, match="holds 21 files; at most 20"):
        receive(archive({f"{i}.png": b"" for i in range(21)}), "a.zip", tmp_path / "new", SMALL)
    assert not (tmp_path / "new").exists()


def test_an_archive_that_lies_about_its_sizes_does_not_unpack_past_the_limit(tmp_path):
    data = bytearray(archive({"a.png": b"\0" * 200_000}).getvalue())
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(signature) + place
        assert struct.unpack_from("<I", data, at) == (200_000,)
        struct.pack_into("<I", data, at, 10)
    with pytest.raises(InputError, match="damaged|more than is taken"):
        receive(io.BytesIO(bytes(data)), "a.zip", tmp_path / "new", SMALL)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "data, name, message",
    [
        (b"no zip", "a.zip", "damaged or of an unknown kind"),
        (b"no npz", "a.npz", "not a .npz file"),
        (b"x", "a.tar", "neither a .zip nor a .npz"),
        (b"", "", "neither a .zip nor a .npz"),
        (archive({}).getvalue(), "a.zip", "is empty"),
        (archive({"a.txt": b"x"}).getvalue(), "a.zip", "no images"),
        (archive({"a.png": png(), "a.png/b.png": png()}).getvalue(), "a.zip", "twice"),
    ],
)
def test_what_is_no_set_of_images_is_refused_and_leaves_nothing(tmp_path, data, name, message):
    with pytest.raises(InputError, match=message):
        receive(io.BytesIO(data), name, tmp_path / "new", SMALL)
    assert not list(tmp_path.iterdir())


def test_an_encrypted_member_is_refused(tmp_path):
    data = bytearray(archive({"a.png": png()}).getvalue())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + place] |= 1
    with pytest.raises(InputError, match="encrypted"):
        receive(io.BytesIO(bytes(data)), "a.zip", tmp_path / "new", SMALL)
