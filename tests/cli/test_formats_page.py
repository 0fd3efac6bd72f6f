"""The commands of docs/formats.md run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.data.kinds import KINDS
from tests.data.test_npz import images
from tests.data.test_parquet import table, write
from tests.docs.pages import blocks, command_lines

SOURCES = {
    "photos/": "folder",
    "photos.zip": "zip",
    "photos.tar.gz": "tar.gz",
    "shards/": "webdataset",
    "saved-dataset/": "arrow",
    "listed/": "csv",
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's commands read, in the current folder; `hf:` and the stores are local places."""
    import numpy as np

    pytest.importorskip("datasets")
    for name, kind in SOURCES.items():
        root = tmp_path / "made" / kind
        root.mkdir(parents=True)
        path = KINDS[kind].make(root, False)
        shutil.move(path.parent if kind == "csv" else path, tmp_path / name.rstrip("/"))
    write(tmp_path / "repository/data/train-00000-of-00001.parquet", table(3))
    np.savez(tmp_path / "images.npz", images=images(4, 16, 16, 3), labels=np.arange(4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_every_command_of_the_page_runs(sources: Path, tiny_model: Path, pureebm) -> None:  # type: ignore[no-untyped-def]
    found = [words for block in blocks("docs/formats.md") for words in command_lines(block)]
    assert len(found) == 11
    for verb, *arguments in found:
        assert verb in ("purify", "score")
        places = {
            "s3://bucket/photos": f"file://{sources}/photos",
            "s3://bucket/clean-photos": f"file://{sources}/bucket/clean",
            "https://example.org/photos.zip": f"file://{sources}/photos.zip",
        }
        if arguments[0].startswith("hf:"):
            continue  # needs the hub
        arguments = [places.get(argument, argument) for argument in arguments]
        limit = ["--limit", 4, "--batch-size", 8] if verb == "purify" else ["--limit", 4]
        done = pureebm(verb, *arguments, "--model", tiny_model, *limit, "--json")
        assert done.code == 0, (arguments, done.err)
    assert (sources / "bucket/clean/pureebm-run.json").is_file() and (sources / "scores.parquet").is_file()
    assert (sources / "clean-listed/list.csv").is_file() and (sources / "clean.zip.pureebm").is_dir()
