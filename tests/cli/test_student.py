"""`pureebm train student`, and a student wherever a model's name is taken."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pureebm.energy.student import Student
from pureebm.energy.weights import DEFAULT_MODEL, STUDENT, load_model, save_model
from pureebm.errors import InputError
from pureebm.evaluation.defenses import find_defense
from pureebm.evaluation.speed import bundled_student
from pureebm.purify.student import StudentStage, model_stage
from pureebm.sampling.langevin import LangevinConfig
from pureebm.training.settings import StudentSettings


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "my-student.safetensors"
    save_model(path, Student((4,), (0,), levels=(0.5, 2.0)), {"data": "none: random weights"})
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    return tmp_path / "images.npz"


def test_every_setting_is_an_option(pureebm) -> None:
    shown = " ".join(pureebm("train", "student", "--help").out.split())
    for field in fields(StudentSettings):
        assert f"--{field.name.replace('_', '-')} " in shown


def test_a_trained_student_purifies(pureebm, source, tmp_path, tiny_model) -> None:
    out = tmp_path / "run"
    tiny = "--widths 4,6 --blocks 0,1 --size 16 --batch 4 --pairs 8 --steps 3 --lr 0.1 --validation-images 4"
    done = pureebm("train", "student", source, "--out", out, "--teacher", tiny_model, *tiny.split(), "--json")
    assert done.code == 0 and "to the teacher" in done.err
    assert done.json["card"] == json.loads((out / "model.json").read_text())
    target = tmp_path / "target.npz"
    purified = pureebm("purify", source, target, "--model", out / "model.safetensors", "--json")
    assert purified.code == 0 and purified.json["steps"] is None
    assert purified.json["settings"]["stage"]["stage"] == "student"
    assert pq.read_table(f"{target}.pureebm/pureebm-manifest.parquet").num_rows == 20
    assert pureebm("models", "info", out / "model.safetensors", "--json").json["architecture"] == "student"
    assert pureebm("models", "verify", out / "model.safetensors").code == 0
    assert pureebm("train", "student", source, "--out", tmp_path / "b", "--blocks", "1").code == 2


def test_a_sampler_is_refused_and_a_level_taken(pureebm, source, student, tmp_path, tiny_model) -> None:
    target = tmp_path / "target.npz"
    for given in (["--steps", "3"], ["--temperature", "0.1"], ["--sampler", "paper"], ["--noise", "0"]):
        done = pureebm("purify", source, target, "--model", student, *given)
        assert done.code == 2 and f"takes --level, but no {given[0]}" in done.err and not target.exists()
    assert "levels 0.5 to 2" in pureebm("purify", source, target, "--model", student, "--level", "5").err
    assert "a level is for students" in pureebm("purify", source, target, "--model", tiny_model, "--level", "1").err
    weak, strong = (
        pureebm("purify", source, tmp_path / f"{x}.npz", "--model", student, "--level", x) for x in (0.5, 2)
    )
    assert weak.code == strong.code == 0
    moved = [np.abs(np.load(tmp_path / f"{x}.npz")["images"].astype(int) - np.load(source)["images"]) for x in (0.5, 2)]
    assert moved[1].mean() > 2 * moved[0].mean()


def test_a_student_has_no_scores(pureebm, source, student, tmp_path) -> None:
    done = pureebm("score", source, "--model", student, "--out", tmp_path / "scores.parquet")
    assert done.code == 2 and "has no energy; give an energy model" in done.err


def test_a_student_is_a_defense(student) -> None:
    defense = find_defense(f"pureebm:model={student},level=1.5,seed=3,precision=float32")
    assert isinstance(defense.stage, StudentStage) and defense.seed == 3
    assert defense.settings()["level"] == 1.5 and defense.settings()["precision"] == "float32"
    with pytest.raises(InputError, match="a student takes model, level, seed and precision only"):
        find_defense(f"pureebm:model={student},steps=3")
    with pytest.raises(InputError, match="level must be a number"):
        find_defense(f"pureebm:model={student},level=high")


def test_the_bundled_student_is_of_the_bundled_model_and_adapts_as_it_does(pureebm, source, tmp_path) -> None:
    student, teacher = load_model(STUDENT), load_model(DEFAULT_MODEL)
    assert isinstance(student.network, Student) and isinstance(bundled_student(), StudentStage)
    assert student.card["teacher"] == {
        "name": DEFAULT_MODEL, "sha256": teacher.sha256, "sampler": asdict(LangevinConfig(**teacher.card["sampler"]))
    }  # fmt: skip
    done = pureebm("purify", source, tmp_path / "target.npz", "--model", "student", "--json")
    assert done.code == 0 and done.json["settings"]["stage"]["model"]["sha256"] == student.sha256
    # Noise that no photograph has: teacher and student move it far, a gray image little.
    x = torch.stack([torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5, torch.zeros(3, 32, 32)])
    for model in (student, teacher):
        moved = (
            (model_stage(model, precision="float32").purify_batch(x, ["a", "b"], seed=0) - x).square().mean((1, 2, 3))
        )
        assert moved[0] > 20 * moved[1] > 0
