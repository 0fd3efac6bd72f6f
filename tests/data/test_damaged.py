"""Whatever bytes a file holds: it is a source whose images load or are reported, or it is refused in a sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.data_job import copy_bad, pass_through
from tests.data.kinds import KINDS

from pureebm.data.open import open_source
from pureebm.errors import InputError

KIND_NAMES = ("zip", "tar", "tar.gz", "webdataset", "arrow", "csv")
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for what, where, new in edits:
        at = int(where * len(data))
        match what:
            case "set":
                data = data[:at] + new + data[at + len(new) :]
            case "cut":
                data = data[:at] if new[0] % 2 else data[:at] + data[at + new[0] :]
            case "insert":
                data = data[:at] + new + data[at:]
            case "repeat":
                data = data[:at] + data[at : at + 600] + data[at:]
    return data


def survives(path: Path, target: Path) -> None:
    """Opened, loaded and written, or refused."""
    try:
        source = open_source(path)
        assert 0 < len(source) < 10_000
        source.describe()
        for one in source.load(0, 20):
            assert (one.picture is None) != (one.error is None)
        pass_through(source, target, decide=copy_bad)
    except InputError as error:
        assert str(error)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, bytes]]]:
    """kind -> (the source's path, the bytes of its files), with the source itself gone."""
    made = {}
    for name in KIND_NAMES:
        if name == "arrow":
            pytest.importorskip("datasets")
        root = tmp_path_factory.mktemp("valid")
        path = KINDS[name].make(root, False)
        files = {one.relative_to(root).as_posix(): one.read_bytes() for one in root.rglob("*") if one.is_file()}
        made[name] = path.relative_to(root), files
    return made


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_damaged_source_is_refused_or_its_images_are_reported(
    kind: str, valid: dict[str, tuple[Path, dict[str, bytes]]]
) -> None:
    path, files = valid[kind]
    names = sorted(name for name in files if not name.endswith((".png", ".bmp", ".md")))

    @settings(deadline=None, max_examples=60)
    @given(st.sampled_from(names), EDITS)
    def check(damaged: str, edits: list[tuple[str, float, bytes]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(damage(data, edits) if name == damaged else data)
            survives(Path(folder) / path, Path(folder) / KINDS[kind].target)

    check()


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([".zip", ".tar", ".tar.gz", ".tgz", ".csv", ".tsv", ""]),
    st.sampled_from(
        [b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08\x00", b"\x80\x02", b"file,label\n", b"\0" * 257 + b"ustar"]
    ),
    st.binary(max_size=1200),
)
def test_random_bytes_are_refused(extension: str, begin: bytes, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"in{extension}"
        path.write_bytes(begin + data)
        survives(path, Path(folder) / f"out{extension}")
