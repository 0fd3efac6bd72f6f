"""The student's stage: its noise, its settings, and what a job makes of a purifier without energies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pureebm.energy.student import Student
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError
from pureebm.purify.job import JobConfig, run
from pureebm.purify.manifest import MANIFEST_NAME, RECORD_NAME, REPORT_NAME
from pureebm.purify.purifier import Purifier
from pureebm.purify.student import StudentStage, model_stage
from pureebm.sampling.noise import CounterNoise


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = Student((8, 12), (0, 1), initial_noise=0.1, levels=(0.5, 2.0))
    with torch.no_grad():
        network.head.weight.normal_(std=0.05)
        network.gain.fill_(0.05)
    path = tmp_path / "tiny-student.safetensors"
    save_model(path, network, {"data": "none: random weights"})
    return path


def images(n: int, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_an_image_has_its_noise_wherever_it_stands(student: Path) -> None:
    stage = model_stage(load_model(student), precision="float32")
    x, ids = images(40), [f"image {row}" for row in range(40)]
    whole = stage.purify_batch(x, ids, seed=5)
    back = stage.purify_batch(x.flip(0), ids[::-1], seed=5).flip(0)
    torch.testing.assert_close(whole, back, atol=1e-6, rtol=0)
    alone = stage.purify_batch(x[35:36], ids[35:36], seed=5)
    torch.testing.assert_close(whole[35:36], alone, atol=1e-6, rtol=0)
    assert torch.equal(whole, stage.purify_batch(x, ids, seed=5))
    assert (stage.purify_batch(x, ids, seed=6) - whole).abs().mean() > 0.01
    assert (stage.purify_batch(x[:1], ["another"], seed=5) - whole[:1]).abs().mean() > 0.01


def test_it_starts_where_the_chain_with_the_same_seed_and_ids_starts() -> None:
    stage = StudentStage(Student((8,), (0,), initial_noise=0.1, levels=(0.5, 2.0)), level=2.0, precision="float32")
    x, ids = images(40), [str(row) for row in range(40)]
    expected = x + 0.2 * CounterNoise(7, ids)(0, x)
    torch.testing.assert_close(stage.purify_batch(x, ids, seed=7), expected, atol=1e-6, rtol=0)


def test_how_its_noise_adapts_is_recorded_since_it_changes_results() -> None:
    first, second = (StudentStage(Student((8,), (1,), adapt_above=0.1, adapt_power=power)) for power in (1.0, 3.0))
    assert first.settings() != second.settings() and second.settings()["adapt_power"] == 3
    assert "adapt_power" not in StudentStage(Student((8,), (1,))).settings()


def test_bfloat16_is_for_the_convolutions_only_and_leaves_the_model_as_it_is(student: Path) -> None:
    model, x, ids = load_model(student), images(8), [str(row) for row in range(8)]
    low = model_stage(model, precision="bfloat16").purify_batch(x, ids, seed=0)
    high = model_stage(model, precision="float32").purify_batch(x, ids, seed=0)
    assert low.dtype == torch.float32 and 0 < (low - high).abs().max() < 0.02
    assert all(parameter.dtype == torch.float32 for parameter in model.network.parameters())


def test_what_does_not_fit_the_model_is_refused(student: Path, tiny_model: Path) -> None:
    from pureebm.sampling.langevin import LangevinConfig

    with pytest.raises(InputError, match="one-pass student: it has no sampler"):
        model_stage(load_model(student), LangevinConfig())
    with pytest.raises(InputError, match="a level is for students"):
        model_stage(load_model(tiny_model), level=1.0)
    with pytest.raises(InputError, match=r"levels 0.5 to 2 of noise, got 3"):
        model_stage(load_model(student), level=3.0)
    with pytest.raises(InputError, match="precision must be"):
        Purifier.from_pretrained(student, precision="half")


def test_a_purifier_takes_a_student_and_images_of_any_size(student: Path) -> None:
    purifier = Purifier.from_pretrained(student, level=1.5)
    image = np.random.default_rng(0).integers(0, 256, (21, 40, 3), dtype=np.uint8)
    out = purifier(image)
    assert out.shape == image.shape and out.dtype == np.uint8 and (out != image).any()


def test_a_job_copes_without_energies_and_its_report_tells_how_to_repeat_it(student: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source.npz", tmp_path / "target.npz"
    np.savez(source, images=np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    stage = model_stage(load_model(student), level=1.5, precision="float32")
    record = run(source, target, stage, JobConfig())
    side = tmp_path / "target.npz.pureebm"
    assert (record.status, record.steps, record.warnings, record.exit_code) == ("complete", None, [], 0)
    table = pq.read_table(side / MANIFEST_NAME)
    assert table["energy_before"].null_count == table["energy_after"].null_count == 12
    stage_settings = json.loads((side / RECORD_NAME).read_text())["settings"]["stage"]
    assert (stage_settings["stage"], stage_settings["level"]) == ("student", 1.5)
    report = (side / REPORT_NAME).read_text()
    assert "--level 1.5" in report and "tiny-student.safetensors" in report
    assert "Energy of every image" not in report and "How far the images moved" in report
