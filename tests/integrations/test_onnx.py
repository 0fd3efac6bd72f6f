"""What onnxruntime computes of an exported file is what PyTorch computes here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, energy_and_gradient, langevin, noise_scale
from pureebm.sampling.noise import CounterNoise

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
from pureebm.integrations.onnx import export_model, export_sampler, export_score, export_student  # noqa: E402


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def images(n: int, height: int, width: int) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n)) * 2 - 1


def run(path: Path, **inputs: Tensor) -> list[np.ndarray]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def close(found: np.ndarray, expected: Tensor) -> None:
    expected = expected.detach()
    assert found.shape == tuple(expected.shape)
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())


NETWORKS: dict[str, Any] = {
    "local": lambda: LocalEnergy((8, 12), (1, 1)),
    "sngan": lambda: SNGANEnergy(8),
    "whitened": lambda: LocalEnergy((8,), (1,), whiten=4.0, chroma=1.5),
    "residual": lambda: LocalEnergy((8,), (1,), residual=True),
    "residual, whitened": lambda: LocalEnergy((8,), (1,), whiten=4.0, chroma=1.5, residual=True),
}


@pytest.mark.parametrize(
    "name", ["local", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sngan", "whitened", "residual"))]
)
def test_the_score_agrees_at_every_batch_and_size(tmp_path: Path, name: str) -> None:
    energy = filled(NETWORKS[name]())
    export_score(energy, tmp_path / "score.onnx")
    for x in (images(2, 32, 32), images(5, 32, 32), *([] if name == "whitened" else [images(1, 40, 24)])):
        values, gradient = run(tmp_path / "score.onnx", images=x)
        expected = energy.residual_field(x) if name == "residual" else energy_and_gradient(energy, x)
        close(values, expected[0])
        close(gradient, expected[1])


@pytest.mark.parametrize(
    "name",
    ["local", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sngan", "whitened", "residual, whitened"))],
)
def test_the_chain_agrees_noise_included(tmp_path: Path, name: str) -> None:
    energy = filled(NETWORKS[name]())
    start, adapt = 0.0 if name in ("sngan", "whitened") else 0.05, 0.05 if name == "residual, whitened" else 0.0
    config = LangevinConfig(
        n_steps=4,
        step_size=0.05,
        step_size_end=0.02,
        temperature=0.01,
        noise=0.7,
        initial_noise=start,
        adapt_above=adapt,
    )
    export_sampler(energy, config, tmp_path / "chain.onnx")
    x = images(3, 32, 32) if "whitened" in name else images(3, 24, 40)
    if adapt:
        x = x * torch.tensor([0.3, 0.6, 1.0])[:, None, None, None]
        assert len(set(noise_scale(energy, x, config).flatten().tolist())) == 3  # each image has its own
    noise = CounterNoise(7, ["a", "b", "c"])
    drawn = torch.stack([noise(step, x) for step in range(0 if start else 1, 5)])
    (purified,) = run(tmp_path / "chain.onnx", images=x, noise=drawn)
    expected = langevin(energy, x, config, noise=noise)
    assert (expected - x).abs().max() > 0.1
    close(purified, expected)


@pytest.mark.slow
@pytest.mark.parametrize("adapt", [0.0, 0.2])
def test_the_student_agrees(tmp_path: Path, adapt: float) -> None:
    student = filled(Student((8, 12), (1, 1), initial_noise=0.1, levels=(0.5, 2.0), adapt_above=adapt))
    export_student(student, tmp_path / "student.onnx")
    x, start, later = images(3, 32, 40), images(4, 32, 40)[:3], images(5, 32, 40)[:3]
    level = torch.tensor([0.5, 1.0, 2.0])
    close(
        run(tmp_path / "student.onnx", images=x, start=start, later=later, level=level)[0],
        student(x, start, later, level),
    )


def test_what_cannot_be_exported_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="only the networks of this package"):
        export_score(nn.Linear(2, 2), tmp_path / "a.onnx")
    with pytest.raises(InputError, match="0 steps"):
        export_sampler(NETWORKS["local"](), LangevinConfig(n_steps=0), tmp_path / "a.onnx")
    with pytest.raises(InputError, match="must be named .onnx"):
        export_model(load_model(tiny_model), tmp_path / "a.pt")
    with pytest.raises(InputError, match="at least 16 px"):
        export_score(NETWORKS["local"](), tmp_path / "a.onnx", size=(8, 32))
    assert not list(tmp_path.iterdir())
