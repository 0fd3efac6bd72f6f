"""The doctor passes what is right, and finds each fast path that has been made wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pureebm.energy.engine import ExactScore
from pureebm.energy.weights import DEFAULT_MODEL, MODELS
from pureebm.evaluation import doctor
from pureebm.evaluation.doctor import Diagnosis, examine, extras
from pureebm.purify.stages import LangevinStage


def failed(found: Diagnosis) -> set[str]:
    assert found.exit_code == (1 if any(check.status == "failed" for check in found.checks) else 0)
    return {check.name for check in found.checks if check.status == "failed"}


def test_a_sound_machine_has_no_failed_check_and_tells_what_it_is() -> None:
    found = examine()
    assert failed(found) == set() and found.to_json()["healthy"]
    names = {check.name for check in found.checks}
    assert {
        "files",
        "noise",
        f"model {DEFAULT_MODEL}",
        "model ddpm-32",
        "model vq-32",
        "one image, one result",
    } <= names
    assert {f"exact engine, {DEFAULT_MODEL}", f"bfloat16, {DEFAULT_MODEL}", "exact engine, paper's network"} <= names
    assert {f"extra {name}" for name in extras()} <= names and "dev" not in extras()
    assert found.environment["versions"]["torch"] == torch.__version__
    assert found.environment["cores"] >= 1 and found.environment["processor_features"]


def test_wrong_noise_weights_and_locks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "philox4x32", lambda counter, key: counter)
    monkeypatch.setattr(doctor.fcntl, "flock", lambda file, flags: None)
    monkeypatch.setattr(doctor, "load_model", _raise)
    monkeypatch.setattr(doctor, "_networks", lambda device: [])
    assert failed(examine()) == {"noise", "files", *(f"model {name}" for name in MODELS), "one image, one result"}


def _raise(*_: object) -> None:
    raise ValueError("sha256 is a, its card says b\nand more")


def _spoil(score: Callable[..., tuple[object, torch.Tensor]], precision: str):  # type: ignore[no-untyped-def]
    def wrong(self: ExactScore, images: torch.Tensor, **options: bool):  # type: ignore[no-untyped-def]
        energies, gradient = score(self, images, **options)
        return energies, gradient * (1.5 if self.precision == precision else 1.0)

    return wrong


@pytest.mark.parametrize(("precision", "name"), [("float32", "exact engine"), ("bfloat16", "bfloat16")])
def test_a_wrong_engine_is_found(monkeypatch: pytest.MonkeyPatch, precision: str, name: str) -> None:
    monkeypatch.setattr(ExactScore, "__call__", _spoil(ExactScore.__call__, precision))
    assert failed(examine()) == {f"{name}, {DEFAULT_MODEL}", f"{name}, paper's network"}


def test_a_result_that_depends_on_the_neighbors_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LangevinStage.purify_batch

    def leaking(self, images, ids, *, seed):  # type: ignore[no-untyped-def]
        out = real(self, images, ids, seed=seed)
        return out + 1e-6 * torch.arange(len(out)).view(-1, 1, 1, 1)

    monkeypatch.setattr(LangevinStage, "purify_batch", leaking)
    assert failed(examine()) == {"one image, one result"}
