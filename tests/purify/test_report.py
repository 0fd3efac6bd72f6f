"""The page: right pictures, right numbers, nothing from the data set is markup, and no byte depends on the clock."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.purify.job_fakes import FakeSource, Shift, write_source

from pureebm.data.base import Item, Loaded
from pureebm.purify import batches
from pureebm.purify.job import JobConfig, run
from pureebm.purify.report import command

HOSTILE = '"><script>alert(1)</script>'


class Hostile(FakeSource):
    """One good and one broken image have names that would be markup; one name is not UTF-8."""

    def load(self, start: int, stop: int) -> list[Loaded]:
        names = {2: HOSTILE + "2", 3: HOSTILE + "3", 4: "\udcff.png"}
        return [
            Loaded(
                Item(one.item.index, names.get(one.item.index, one.item.id), names.get(one.item.index, one.item.id)),
                one.picture,
                one.error,
                one.sha256,
            )
            for one in super().load(start, stop)
        ]


@pytest.fixture
def page(tmp_path: Path) -> str:
    source = Hostile(write_source(tmp_path / "in" / "set.npy", 6), broken=[3])
    run(source, tmp_path / "out", Shift(), JobConfig())
    return (tmp_path / "out" / "pureebm-report.html").read_text("utf-8")


def test_names_are_escaped(page: str) -> None:
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "truncated &lt;b&gt;file" in page and r"\udcff.png" in page


def test_page_needs_no_network_and_tells_what_happened(page: str) -> None:
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "url(http" not in page
    assert "5 of 6 images were purified by 3 Langevin steps each." in page
    assert "1 could not be purified and were left out of the target." in page
    assert page.count("<svg") == 2 and page.count('alt="difference"') == 5
    assert "--seed 0 --batch-size 64 --on-error skip" in page


def test_pictures_are_the_images_and_four_times_their_difference(page: str, tmp_path: Path) -> None:
    found = re.findall(r'alt="(before|after|difference)" src="data:image/png;base64,([^"]+)"', page)
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for _, data in found[:3]]
    assert [name for name, _ in found[:3]] == ["before", "after", "difference"]
    np.testing.assert_array_equal(pictures[2], ((pictures[1] - pictures[0]) * 4 + 128).clip(0, 255))
    rows = pq.read_table(tmp_path / "out" / "pureebm-manifest.parquet").to_pylist()
    most = min((row["psnr"], index) for index, row in enumerate(rows) if row["psnr"] is not None)[1]
    np.testing.assert_array_equal(pictures[0], np.load(tmp_path / "in" / "set.npy")[most])


def test_pictures_are_the_extremes_of_the_whole_set_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK_ITEMS", 8)
    source = FakeSource(write_source(tmp_path / "in" / "set.npy", 96))
    config = JobConfig(batch_size=2)
    run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(1, 2)))
    kept = pq.read_table(tmp_path / ".out.pureebm-partial" / "journal", columns=["before_png"])["before_png"]
    assert 12 <= len(kept) - kept.null_count < 48  # of this shard's images
    run(source, tmp_path / "out", Shift(), config)
    page = (tmp_path / "out" / "pureebm-report.html").read_text()
    rows = pq.read_table(tmp_path / "out" / "pureebm-manifest.parquet").to_pylist()
    shown = re.findall(r"<figcaption><b>(.*?)</b>", page)
    by_change = sorted(rows, key=lambda row: row["psnr"])
    by_energy = sorted(rows, key=lambda row: -row["energy_before"])
    most = [row["id"] for row in by_change[:4]]
    assert [row["id"] for row in rows if row["id"] in shown[:4]] == sorted(most)
    assert shown[4:8] == [row["id"] for row in by_energy if row["id"] not in most][:4]
    assert len(set(shown)) == 12


def test_large_pictures_show_their_center(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "in" / "set.npy", 2, size=200))
    run(source, tmp_path / "out", Shift(), JobConfig())
    page = (tmp_path / "out" / "pureebm-report.html").read_text()
    data = re.search(r'alt="before" src="data:image/png;base64,([^"]+)"', page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))  # type: ignore[index]
    assert "show their center only" in page
    assert any(np.array_equal(shown, image[20:180, 20:180]) for image in source.pixels)


def test_two_pages_of_the_same_job_are_the_same_bytes(page: str, tmp_path: Path) -> None:
    source = Hostile(tmp_path / "in" / "set.npy", broken=[3])
    run(source, tmp_path / "elsewhere" / "out2", Shift(), JobConfig())
    assert (tmp_path / "elsewhere" / "out2" / "pureebm-report.html").read_text("utf-8") == page


def test_only_the_first_failures_are_listed(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "in" / "set.npy", 210), broken=range(205))
    run(source, tmp_path / "out", Shift(), JobConfig(on_error="copy"))
    page = (tmp_path / "out" / "pureebm-report.html").read_text()
    assert page.count("<td>copied as it was</td>") == 200 and "The first 200 are listed" in page


def test_command_repeats_the_run() -> None:
    stage = {"stage": "langevin", "model": {"name": "my model"}, "n_steps": 9, "step_size": 0.02, "temperature": 1e-4}
    settings = {"stage": stage, "seed": 3, "batch_size": 64, "limit": None, "on_error": "skip"}
    words = "pureebm purify SOURCE TARGET --model 'my model' --steps 9 --step-size 0.02 --temperature 0.0001"
    assert (
        " ".join(command(settings).replace("\\\n", "").split()) == f"{words} --seed 3 --batch-size 64 --on-error skip"
    )


def test_the_command_leaves_a_schedule_to_the_model() -> None:
    stage = {"model": {"name": "m"}, "n_steps": 8, "step_size": 0.1, "temperature_end": 1e-4, "temperature": 1e-3}
    settings = {"stage": stage, "seed": 0, "batch_size": 64, "limit": None, "on_error": "skip"}
    words = " ".join(command(settings).replace("\\\n", "").split())
    assert words == "pureebm purify SOURCE TARGET --model m --steps 8 --seed 0 --batch-size 64 --on-error skip"
