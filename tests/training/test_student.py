"""The training of a student: it comes to do what its teacher does, and goes on when it was cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.energy.networks import LocalEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError, Interrupted, MismatchError, ModelError
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig, residual_size
from pureebm.training import scalars
from pureebm.training.pairs import make_pairs
from pureebm.training.runtime import Runtime
from pureebm.training.scalars import read_scalars
from pureebm.training.settings import StudentSettings
from pureebm.training.stepper import Phase
from pureebm.training.student import Reference, StudentTrainer, train_student
from pureebm.training.workers import Workers

SAMPLER = {"n_steps": 3, "step_size": 0.04, "temperature": 1e6, "noise": 0.6, "initial_noise": 0.1}
TINY = StudentSettings(
    widths=(4, 6),
    blocks=(0, 1),
    pairs=40,
    gauged=64,
    size=16,
    batch=8,
    steps=12,
    validation_images=4,
    lr_warmup=2,
    validate_every=5,
)


@pytest.fixture(autouse=True)
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "_tensorboard", lambda folder, step: None)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """An energy that is 0 everywhere, in whitened coordinates: its chain only adds its noises."""
    path = tmp_path / "teacher.safetensors"
    save_model(path, LocalEnergy((4,), (1,), whiten=4.0, chroma=2.0), {"sampler": SAMPLER})
    return str(path)


def runtime(**options) -> Runtime:
    return Runtime(workers=Workers("cpu"), **options)


def stop_after(n: int):
    calls = iter(range(10**9))
    return lambda: next(calls) >= n


def test_the_comparison_is_exact_for_a_chain_that_only_adds_noise(teacher: str) -> None:
    # With E = 0 the chain ends at x + W^-1 (0.1 z0 + |s| z), z of variance 1: a student of gain |s| does just that.
    stage = LangevinStage(load_model(teacher).energy, LangevinConfig(**SAMPLER), precision="float32")
    clean = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    reference = Reference.make(stage, clean, seed=0)
    student = Student((4,), (0,), initial_noise=0.1, whiten=4.0, chroma=2.0)
    with torch.no_grad():
        student.gain.fill_(0.6 * 0.04 * 3**0.5)
    result = reference.compare(student.eval())
    assert result["figure"] < 1e-10 and result["psnr_to_teacher"] > 100
    assert result["variance_share"] == pytest.approx(1, abs=0.05)
    assert result["clean_psnr"] == pytest.approx(result["teacher"]["clean_psnr"])
    for shares in (result["perturbations"], result["teacher"]["perturbations"]):
        assert shares == {name: pytest.approx(1, abs=1e-3) for name in ("smooth", "sinusoid", "signs")}
    with torch.no_grad():
        student.gain.fill_(0)
    poorer = reference.compare(student)
    # without the later noise: 0.1^2 of 0.1^2 + |s|^2 is left
    assert poorer["variance_share"] == pytest.approx(0.01 / (0.01 + 3 * 0.024**2), rel=0.05)
    assert poorer["figure"] == pytest.approx(reference.variance * 3 * 0.024**2 / (0.01 + 3 * 0.024**2), rel=0.1)


def never() -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("a teacher whose noise does not adapt needs no gauge")


def test_the_loss_of_a_student_that_does_what_the_teacher_does_is_nothing(teacher, tmp_path) -> None:
    stage = LangevinStage(load_model(teacher).energy, LangevinConfig(**SAMPLER), precision="float32")
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    pairs = make_pairs(torch.from_numpy(images), stage, tmp_path / "pairs", count=100, levels=(1.0, 1.0), seed=0)
    student = Student((4,), (0,), initial_noise=0.1, whiten=4.0, chroma=2.0)
    with torch.no_grad():
        student.gain.fill_(0.6 * 0.04 * 3**0.5)
    for augment in ("none", "flip"):
        settings = replace(TINY, augment=augment, batch=32)
        trainer = StudentTrainer(settings, student, images, lambda: pairs, never, Workers("cpu"))
        assert trainer.compute(Phase("student", 0, 1, 1e-3)).loss < 1e-6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_what_the_teacher_does(source, teacher, tmp_path, precision) -> None:
    settings = replace(TINY, teacher=teacher, steps=48, lr=8e-3, ema=0.9, validate_every=12, precision=precision)
    card = train_student(source, tmp_path / "run", settings, runtime=runtime())
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    assert isinstance(loaded.network, Student) and loaded.network.whitening == load_model(teacher).energy.whitening
    assert float(loaded.network.gain) == pytest.approx(0.6 * 0.04 * 3**0.5, abs=0.01)
    figures = [record["figure"] for record in read_scalars(tmp_path / "run" / "scalars.jsonl") if "figure" in record]
    assert len(figures) == 4 and figures[-1] < 0.5 * figures[0]
    assert card["architecture"] == "student" and card["config"]["levels"] == [0.7, 1.4]
    assert card["teacher"]["sampler"]["n_steps"] == 3 and card["teacher"]["sha256"] == load_model(teacher).sha256
    assert {"limits", "intended_use", "validation", "command", "total_minutes"} <= card.keys()


def test_it_learns_how_the_noise_of_its_teacher_adapts(source, tmp_path) -> None:
    torch.manual_seed(0)
    energy = LocalEnergy((4,), (1,), whiten=4.0, residual=True)
    torch.nn.init.normal_(energy.head.weight, std=0.1)
    energy.requires_grad_(False)
    path = tmp_path / "teacher.safetensors"
    save_model(path, energy, {"sampler": SAMPLER | {"adapt_above": 0.01}})
    settings = replace(TINY, teacher=str(path), steps=60, lr=1e-2, ema=0.9, level_min=1.0, level_max=1.0)
    card = train_student(source, tmp_path / "run", settings, runtime=runtime())
    assert card["config"]["adapt_above"] == card["teacher"]["sampler"]["adapt_above"] == 0.01
    student = load_model(tmp_path / "run" / "model.safetensors").network
    pairs = [load_file(one) for one in sorted((tmp_path / "run" / "pairs").glob("*.safetensors"))]
    x, theirs = pairs[0]["images"].float() / 127.5 - 1, pairs[0]["residuals"]
    torch.testing.assert_close(theirs, residual_size(energy, x), rtol=1e-3, atol=0)
    gauged = load_file(tmp_path / "run" / "pairs" / "gauge.safetensors")
    assert gauged["images"].shape == (64, 3, 16, 16) and gauged["images"].dtype == torch.uint8
    x, theirs = gauged["images"].float() / 127.5 - 1, gauged["residuals"]
    torch.testing.assert_close(theirs, residual_size(energy, x), rtol=1e-3, atol=0)
    # what the steps have left of the first guess, which was off by a factor
    errors = [(network.residual(network.coordinates(x)) / theirs).log().abs().mean() for network in (
        Student(settings.widths, settings.blocks, whiten=4.0, adapt_above=0.01), student)]  # fmt: skip
    assert errors[1] < 0.15 < 0.5 < errors[0]


def test_a_student_of_a_chain_without_starting_noise(source, tmp_path, tiny_model) -> None:
    card = train_student(source, tmp_path / "run", replace(TINY, teacher=str(tiny_model)), runtime=runtime())
    assert card["config"]["initial_noise"] == 0 and card["validation"]["figure"] < 0.01


@pytest.mark.parametrize("at", [3, 8])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(source, teacher, tmp_path, at) -> None:
    settings = replace(TINY, teacher=teacher)
    train_student(source, tmp_path / "whole", settings, runtime=runtime())
    with pytest.raises(Interrupted, match="repeat the same command"):
        train_student(source, tmp_path / "cut", settings, runtime=runtime(stop=stop_after(at)))
    train_student(source, tmp_path / "cut", settings, runtime=runtime())
    for name in ("model.safetensors", "checkpoints/step-000000012.safetensors"):
        whole, cut = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys() and len(whole) > 3
        for key in whole:
            assert torch.equal(whole[key], cut[key]), (name, key)
    stamp = (tmp_path / "cut" / "model.safetensors").stat().st_mtime_ns
    train_student(source, tmp_path / "cut", settings, runtime=runtime())
    assert (tmp_path / "cut" / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_teacher_or_other_settings_are_refused(source, teacher, tmp_path, tiny_model) -> None:
    settings, out = replace(TINY, teacher=teacher, steps=2), tmp_path / "run"
    train_student(source, out, settings, runtime=runtime())
    with pytest.raises(MismatchError, match="settings.batch was 8, now 4"):
        train_student(source, out, replace(settings, batch=4), runtime=runtime())
    save_model(Path(teacher), load_model(tiny_model).network, {"sampler": SAMPLER})
    with pytest.raises(MismatchError, match="pairs of another teacher"):
        train_student(source, out, settings, runtime=runtime())
    train_student(source, out, settings, runtime=runtime(overwrite=True))
    with pytest.raises(ModelError, match="one-pass student and has no energy"):
        train_student(source, tmp_path / "b", replace(settings, teacher=str(out / "model.safetensors")))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"level_min": 1.2}, "level_min"),
        ({"lr": float("nan")}, "lr must"),
        ({"pairs": 0}, "pairs must"),
        ({"ema": 2}, "ema"),
    ],
)
def test_wrong_settings_are_refused(wrong, words) -> None:
    with pytest.raises(InputError, match=words):
        StudentSettings(**wrong)
