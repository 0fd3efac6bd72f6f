"""Nothing but the allowed folder and the uploads can be reached."""

import os

import pytest

from pureebm.errors import InputError
from pureebm.web.places import Places
from pureebm.web.unpack import Limits


@pytest.fixture
def places(tmp_path, image_folder):
    """`images` is shown; `secret` beside it is not."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "images-secret").mkdir()
    (tmp_path / "images-secret" / "x.png").write_bytes(b"x")
    return Places(image_folder, tmp_path / "uploads", Limits())


def test_keys_and_paths_are_inverse(places):
    for key in ("files", "files/cat", "uploads"):
        assert places.key(places.path(key)) == key


@pytest.mark.parametrize(
    "key",
    [
        "files/..",
        "files/../images-secret",
        "files/cat/../../images-secret/x.png",
        "files//etc/passwd",
        "files/\0",
        "files/" + "a" * 5000,
        "files/none",
        "other/x",
        "",
        "..",
        "/etc",
        "uploads/../images-secret",
        "files/\ud800",
    ],
)
def test_what_leads_out_or_nowhere_is_refused(places, key):
    with pytest.raises(InputError):
        places.path(key)


def test_links_out_are_neither_followed_nor_listed_and_links_within_are(places, tmp_path):
    (places.root / "out").symlink_to(tmp_path / "images-secret")
    (places.root / "within").symlink_to(places.root / "cat")
    with pytest.raises(InputError, match="leads out of the folder"):
        places.path("files/out")
    assert places.path("files/within") == places.root / "cat"
    assert places.listing("files").folders == ["cat", "dog", "within"]


def test_a_set_with_a_link_that_leads_out_is_refused_as_a_whole(places, tmp_path):
    link = places.root / "cat" / "stolen.png"
    link.symlink_to(tmp_path / "images-secret" / "x.png")
    with pytest.raises(InputError, match=r"the link 'cat/stolen.png' leads out"):
        places.open("files")
    assert len(places.open("files/dog").source) == 32
    link.unlink()
    (places.root / "dog" / "again.png").symlink_to(places.root / "cat" / "000.png")
    assert len(places.open("files").source) == 65


def test_a_listing_counts_images_and_hides_hidden_names(places):
    (places.root / ".hidden").mkdir()
    (places.root / "list.csv").write_text("x")
    os.mkdir(os.fsencode(places.root) + b"/\xff")
    found = places.listing("files/cat")
    assert (found.n_images, found.folders, found.above) == (32, [], [("images", "files"), ("cat", "files/cat")])
    top = places.listing("files")
    assert (top.n_images, top.folders, top.files) == (0, ["cat", "dog"], ["list.csv"])


def test_only_uploads_are_removed(places):
    (places.uploads / "20260101-000000-abcd" / "set").mkdir(parents=True)
    for key in ("files/cat", "uploads", "uploads/20260101-000000-abcd"):
        with pytest.raises(InputError):
            places.remove_upload(key)
    assert places.uploaded() == ["uploads/20260101-000000-abcd/set"]
    places.remove_upload("uploads/20260101-000000-abcd/set")
    assert places.uploaded() == [] and (places.root / "cat").is_dir()
