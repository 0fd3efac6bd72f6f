from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.data_job import names_below, noise_image, pass_through

from pureebm.data import remote
from pureebm.data.open import open_source
from pureebm.errors import InputError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store at memory://, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def fill(store: Any, *names: str) -> None:
    for seed, name in enumerate(names):
        with store.open(name, "wb") as file:
            noise_image(seed).save(file, "PNG")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket/set.zip", "s3://bucket/set.zip"),
        (Path("s3://bucket/a/b"), "s3://bucket/a/b"),
        (Path("https://host/a.tar?x=1"), "https://host/a.tar?x=1"),
        (Path("file:///data/set"), "file:///data/set"),
        (Path("data/set"), None),
        (Path("/data/a:/b"), None),
        (Path("c:/data"), None),
        ("hf:datasets/a/b", None),
    ],
)
def test_a_url_is_known_even_as_a_path(text: Path | str, url: str | None) -> None:
    assert remote.as_url(text) == url


def test_a_local_folder_that_looks_like_a_url_stays_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/bucket").mkdir(parents=True)
    assert remote.as_url("s3://bucket") is None


def test_a_folder_is_copied_and_opened_and_later_only_what_changed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "/set/cat/1.png", "/set/dog/2.png", "/set/dog/3.png")
    source = open_source(Path("memory://set"))
    assert (source.kind, source.path.name, len(source)) == ("folder", "set", 3)
    first = source.describe()
    fetched: list[str] = []
    real = type(store).get_file
    monkeypatch.setattr(type(store), "get_file", lambda self, *given: (fetched.append(given[0]), real(self, *given)))
    assert open_source(Path("memory://set")).describe() == first and fetched == []
    fill(store, "/set/dog/2.png")
    store.rm("/set/cat/1.png")
    second = open_source(Path("memory://set"))
    assert fetched == ["/set/dog/2.png"] and [one.item.id for one in second.load(0, 9)] == ["dog/2.png", "dog/3.png"]
    assert second.describe()["fingerprint"] != first["fingerprint"]


def test_a_lost_copy_comes_back_with_the_same_fingerprint(store: Any) -> None:
    fill(store, "/set/1.png")
    source = open_source(Path("memory://set"))
    (source.path / "1.png").unlink()
    assert open_source(Path("memory://set")).describe() == source.describe()


def test_a_cut_off_copy_is_never_taken_for_a_whole_one(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "/set/1.png")

    def cut(self: Any, name: str, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise ConnectionError("the line went dead")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", cut)
        with pytest.raises(InputError, match="memory://set: the line went dead; check the address"):
            open_source(Path("memory://set"))
        patch.setattr(type(store), "get_file", lambda self, name, path: Path(path).write_bytes(b"half"))
        with pytest.raises(InputError, match="4 of [0-9,]+ bytes came"):
            open_source(Path("memory://set"))
    (loaded,) = open_source(Path("memory://set")).load(0, 9)
    assert loaded.picture is not None and [path.name for path in remote.fetch("memory://set").iterdir()] == ["1.png"]


def test_a_single_file_keeps_its_name(store: Any, tmp_path: Path) -> None:
    import zipfile

    with store.open("/a/images.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("1.png", "w") as entry:
            noise_image(0).save(entry, "PNG")
    source = open_source(Path("memory://a/images.zip"))
    assert source.kind == "zip" and source.path.name == "images.zip"
    pass_through(source, tmp_path / "out.zip")


@pytest.mark.parametrize("names", [["/set/../../evil.png"], ["/set/a/../b.png"]])
def test_a_name_that_leads_out_is_refused(store: Any, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "/set/1.png")
    found = {name: {"name": name, "size": 1, "type": "file"} for name in names}
    monkeypatch.setattr(type(store), "find", lambda *_, **__: found)
    with pytest.raises(InputError, match="leads out of its folder"):
        open_source(Path("memory://set"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://nothing/here", "memory://nothing/here: .*check the address, the network"),
        ("nostore://a/b", "Protocol not known: nostore"),
        ("memory://", "there is no source|names no file"),
    ],
)
def test_what_cannot_be_fetched_is_named(store: Any, url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_source(Path(url))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InputError, match=r"pip install 'pureebm\[remote\]'"):
        open_source(Path("memory://set"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'pureebm\[hub\]'"):
        open_source(Path("hf:datasets/a/b"))


def test_a_repository_of_the_hub_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[tuple[str, str, str | None]] = []

    def snapshot(repository: str, *, repo_type: str, revision: str | None, local_dir: Path) -> None:
        asked.append((repository, repo_type, revision))
        for name in ("data/1.png", ".cache/huggingface/notes.png"):
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            noise_image(0).save(local_dir / name)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    for _ in range(2):
        source = open_source(Path("hf:datasets/some-one/set@v1.0"))
    assert asked == [("some-one/set", "dataset", "v1.0")]
    assert source.path.name == "set" and names_below(source.path) == ["data/1.png"]


def test_without_a_network_the_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="download the repository elsewhere and give its folder as SOURCE"):
        open_source(Path("hf:datasets/a/b"))
    with pytest.raises(InputError, match="expected hf:datasets/owner/name"):
        open_source(Path("hf:a/b"))
