from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.data.kinds import KINDS
from tests.data.test_remote import store  # noqa: F401
from tests.purify.job_fakes import Shift

from pureebm.data import remote
from pureebm.errors import InputError, Interrupted, MismatchError
from pureebm.purify.job import JobConfig, run
from pureebm.purify.remote import finished_at_url, plan_to_url, run_to_url

pytestmark = pytest.mark.usefixtures("small_chunks")
URL = "memory://out/set"
MEMORY_PUT = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem.put_file


class LineCut(BaseException):
    pass


def stored(files: Any, url: str) -> dict[str, bytes]:
    """All that stands at a target, but its run record, which holds times."""
    place = url.removeprefix("memory:/")
    found = {name.removeprefix(place): files.cat_file(name) for name in files.find("/out") if name.startswith(place)}
    return {name: data for name, data in found.items() if not name.endswith("pureebm-run.json")}


def local(target: Path) -> dict[str, bytes]:
    files = [one for root in target.parent.iterdir() for one in [root, *root.rglob("*")] if one.is_file()]
    found = {str(one).removeprefix(str(target)): one.read_bytes() for one in files}
    return {name: data for name, data in found.items() if not name.endswith("pureebm-run.json")}


@pytest.mark.parametrize("name", ["folder", "zip", "webdataset"])
def test_what_stands_at_the_url_is_what_a_local_target_would_be(name: str, store: Any, tmp_path: Path) -> None:  # noqa: F811
    kind = KINDS[name]
    path, url = kind.make(tmp_path, False), f"memory://out/{kind.target}"
    run(path, tmp_path / "local" / kind.target, Shift(), JobConfig(batch_size=8))
    order: list[str] = []
    real = type(store).put_file
    store.put_file = lambda *given: (order.append(given[1]), real(store, *given))
    try:
        record, report = run_to_url(path, url, Shift(), JobConfig(batch_size=8))
    finally:
        del store.put_file
    assert stored(store, url) == local(tmp_path / "local" / kind.target)
    assert order[-1].endswith("pureebm-run.json") and json.loads(store.cat_file(order[-1]))["target"] == url
    assert record.target == url and store.exists(report.removeprefix("memory:/"))
    assert not remote.RemoteTarget(url).folder.exists()


def test_an_upload_that_is_cut_off_anywhere_goes_on_and_ends_in_the_same_bytes(
    store: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, config = KINDS["folder"].make(tmp_path, False), JobConfig(batch_size=8)
    run(path, tmp_path / "local" / "set", Shift(), config)
    left = cut_after(monkeypatch, store, 0)
    for cut in (0, 3, 7):
        left[0] = cut
        with pytest.raises(LineCut):
            run_to_url(path, URL, Shift(), config)
        assert not store.exists("/out/set/pureebm-run.json")
    left[0] = 100
    stage = Shift()
    run_to_url(path, URL, stage, config)
    assert stored(store, URL) == local(tmp_path / "local" / "set")
    assert left[0] > 100 - 10 + 3  # what had arrived was not sent again


def test_other_settings_are_refused_while_the_upload_is_open_and_taken_with_overwrite(
    store: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = KINDS["folder"].make(tmp_path, False)
    cut_after(monkeypatch, store, 9)
    with pytest.raises(LineCut):
        run_to_url(path, URL, Shift(), JobConfig(batch_size=8))
    assert len(store.find("/out")) == 9
    with pytest.raises(MismatchError, match="not yet uploaded:\n  seed: was 0, is 1"):
        run_to_url(path, URL, Shift(), JobConfig(batch_size=8, seed=1))
    cut_after(monkeypatch, store, 100)
    config = JobConfig(batch_size=8, limit=3, overwrite=True)
    run_to_url(path, URL, Shift(), config)
    run(path, tmp_path / "local" / "set", Shift(), config)
    assert stored(store, URL) == local(tmp_path / "local" / "set")


def cut_after(monkeypatch: pytest.MonkeyPatch, files: Any, n_files: int) -> list[int]:
    """Only so many more uploads succeed; the number left."""
    real, left = MEMORY_PUT, [n_files]

    def put(self: Any, *given: Any) -> None:
        if left[0] == 0:
            raise LineCut
        left[0] -= 1
        real(self, *given)

    monkeypatch.setattr(type(files), "put_file", put)
    return left


def test_what_stands_there_is_replaced_only_if_it_is_ours_and_with_overwrite(store: Any, tmp_path: Path) -> None:  # noqa: F811
    path = KINDS["folder"].make(tmp_path, False)
    store.pipe_file("/out/set/mine.txt", b"keep")
    with pytest.raises(InputError, match="exists; name another"):
        run_to_url(path, URL, Shift(), JobConfig(batch_size=8))
    with pytest.raises(InputError, match="not ours to overwrite"):
        run_to_url(path, URL, Shift(), JobConfig(batch_size=8, overwrite=True))
    assert store.find("/out") == ["/out/set/mine.txt"]
    store.rm("/out", recursive=True)
    run_to_url(path, URL, Shift(), JobConfig(batch_size=8))
    first = stored(store, URL)
    store.pipe_file("/out/set/old.png", b"of the earlier run")
    with pytest.raises(InputError, match="exists; name another"):
        run_to_url(path, URL, Shift(), JobConfig(batch_size=8))
    with pytest.raises(InputError, match="exists; name another"):
        plan_to_url(path, URL, Shift(), JobConfig(batch_size=8, seed=1))
    run_to_url(path, URL, Shift(), JobConfig(batch_size=8, overwrite=True))
    assert stored(store, URL) == first


@pytest.mark.parametrize("name", ["folder", "zip"])
def test_a_job_that_is_finished_there_is_known(name: str, store: Any, tmp_path: Path) -> None:  # noqa: F811
    kind, config = KINDS[name], JobConfig(batch_size=8)
    path, url = kind.make(tmp_path, False), f"memory://out/{kind.target}"
    assert finished_at_url(path, url, Shift(), config) is None
    planned = plan_to_url(path, url, Shift(), config)
    assert (planned.target, planned.finished, planned.images_done) == (url, False, 0)
    made = run_to_url(path, url, Shift(), config)
    found = finished_at_url(path, url, Shift(), config)
    assert found is not None and found[1] == made[1] and found[0].counts == made[0].counts
    planned = plan_to_url(path, url, Shift(), config)
    assert (planned.target, planned.finished, planned.images_done) == (url, True, planned.images)
    assert finished_at_url(path, url, Shift(), JobConfig(batch_size=8, seed=1)) is None
    assert finished_at_url(path, url, Shift(), JobConfig(batch_size=8, overwrite=True)) is None
    for damage in (b"[1", b"[1]", b"{}", b'{"settings": 3}'):
        for record in [one for one in store.find("/out") if one.endswith("pureebm-run.json")]:
            store.pipe_file(record, damage)
        assert finished_at_url(path, url, Shift(), config) is None


@pytest.mark.parametrize(
    ("url", "config", "reason"),
    [
        ("https://host/out", JobConfig(), "cannot be written"),
        (URL, JobConfig(shard=(0, 2)), "shards meet in a local target"),
    ],
)
def test_what_cannot_be_a_remote_job_is_refused(
    url: str,
    config: JobConfig,
    reason: str,
    store: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=reason):
        run_to_url(KINDS["folder"].make(tmp_path, False), url, Shift(), config)


def test_an_upload_can_be_interrupted_and_a_url_is_never_taken_for_a_local_name(
    store: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, stop = KINDS["folder"].make(tmp_path, False), threading.Event()
    real = type(store).put_file
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", lambda *given: (stop.set(), real(*given)))
        with pytest.raises(Interrupted, match="while uploading; repeat the same command"):
            run_to_url(path, URL, Shift(), JobConfig(batch_size=8), stop=stop)
    assert len(store.find("/out")) == 1
    with pytest.raises(InputError, match="name a local target"):
        run(path, Path(URL), Shift(), JobConfig(batch_size=8))
