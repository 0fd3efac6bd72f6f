"""The exact engine against autograd: the same gradient, for every network, size and type; and its fallbacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.energy import engine
from pureebm.energy.engine import EagerScore, ExactScore, checked, make_score, median_error, relative_errors
from pureebm.energy.engine_graphs import adjoint3, pooled3, unpad
from pureebm.energy.networks import LocalEnergy, SNGANEnergy, pad_to_multiple
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, StepTrace, energy_and_gradient, langevin
from pureebm.sampling.noise import CounterNoise

NETWORKS = {
    "sngan-8": lambda: SNGANEnergy(8),
    "sngan-5-trained-at-16": lambda: SNGANEnergy(5, train_size=16),
    "sngan-32": lambda: SNGANEnergy(32),
    "local": lambda: LocalEnergy((8, 12, 16), (1, 2, 2)),
    "local-of-one-level": lambda: LocalEnergy((6,), (1,)),
    "local-whitened": lambda: LocalEnergy((8, 12), (1, 1), whiten=4.0),
    "local-residual": lambda: LocalEnergy((8, 12), (1, 1), whiten=4.0, chroma=2.0, residual=True),
}


def network(name: str) -> nn.Module:
    """Random weights, every one of which matters, biases included."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5)
    return net.eval().requires_grad_(False)


def pictures(count: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (48, 64), (17, 23), (31, 18)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_gradient_is_that_of_autograd(name: str, size: tuple[int, int], dtype: torch.dtype, limit: float) -> None:
    net, images = network(name).to(dtype), pictures(5, *size).to(dtype)
    score = make_score(net, str(dtype).removeprefix("torch."))
    energies, gradient = score(images, energies=True)
    expected_energies, expected = energy_and_gradient(net, images)
    assert isinstance(score, ExactScore) and gradient.dtype == dtype and gradient.shape == images.shape
    # In float32 a ReLU at 0 to the last bit may open in one engine only; an image in twenty has one.
    errors = relative_errors(gradient, expected)
    assert errors.median() <= limit and errors.max() <= (0.05 if dtype == torch.float32 else limit)
    assert energies is not None and torch.allclose(energies.double(), expected_energies.double(), rtol=1e-5, atol=1e-4)
    assert torch.allclose(score.energy(images), energies, rtol=1e-5)
    assert score(images)[0] is None


def test_the_published_network_and_the_bundled_size_agree_with_autograd() -> None:
    torch.manual_seed(0)
    for net in (SNGANEnergy(128), SNGANEnergy(48)):
        net.eval().requires_grad_(False)
        expected = energy_and_gradient(net, pictures(2))[1]
        assert median_error(make_score(net)(pictures(2))[1], expected) <= 1e-5


@pytest.mark.parametrize("name", ["sngan-32", "local"])
def test_bfloat16_is_as_near_to_float32_as_autocast_is(name: str) -> None:
    net, images = network(name), pictures(4)
    expected = energy_and_gradient(net, images)[1]
    autocast = median_error(EagerScore(net, "bfloat16", "")(images)[1], expected)
    gradient = make_score(net, "bfloat16")(images)[1]
    assert gradient.dtype == torch.float32
    assert 1e-4 < median_error(gradient, expected) <= 2 * autocast


@pytest.mark.parametrize("name", ["sngan-32", "local"])
def test_parts_of_a_batch_are_equal_and_a_place_in_it_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PART_BYTES", 3 * 32 * 1024 * 4)
    score, images = make_score(network(name)), pictures(8)
    seen = []
    plain = score.graph  # type: ignore[union-attr]
    monkeypatch.setattr(score, "graph", lambda part, energies: seen.append(len(part)) or plain(part, energies))
    energies, gradient = score(images[:7], energies=True)
    assert len(set(seen)) == 1 and gradient.shape == (7, 3, 32, 32) and energies.shape == (7,)  # type: ignore[union-attr]
    order = torch.tensor([5, 0, 6, 2, 1, 4, 3])
    assert torch.equal(score(images[:7][order])[1], gradient[order])


def test_a_pooled_convolution_is_one_of_stride_two() -> None:
    h, weight = torch.randn(2, 5, 8, 12, dtype=torch.float64), torch.randn(4, 5, 3, 3, dtype=torch.float64)
    expected = F.avg_pool2d(F.conv2d(h, weight, padding=1), 2)
    assert torch.allclose(F.conv2d(h, pooled3(weight), stride=2, padding=1), expected)


def test_the_adjoint_convolution_is_the_transposed_one() -> None:
    h, weight = torch.randn(2, 4, 8, 6, dtype=torch.float64), torch.randn(4, 5, 3, 3, dtype=torch.float64)
    assert torch.allclose(F.conv2d(h, adjoint3(weight), padding=1), F.conv_transpose2d(h, weight, padding=1))


def test_unpadding_is_the_adjoint_of_padding() -> None:
    x, y = torch.randn(1, 3, 17, 22, dtype=torch.float64), torch.randn(1, 3, 20, 24, dtype=torch.float64)
    assert torch.allclose((pad_to_multiple(x, 4) * y).sum(), (x * unpad(y.clone(), 17, 22)).sum())


def quadratic(images: Tensor) -> Tensor:
    return images.square().sum(dim=(1, 2, 3)) / 2


def test_an_unknown_network_is_left_to_autograd_with_a_reason() -> None:
    score = make_score(quadratic)
    assert score.name == "eager" and "no explicit graph" in score.why
    assert torch.equal(score(pictures(2))[1], pictures(2))
    with pytest.raises(InputError, match="the exact engine knows SNGANEnergy and LocalEnergy"):
        make_score(quadratic, engine="exact")
    assert make_score(network("local"), engine="eager").name == "eager"
    with pytest.raises(InputError, match="got 'fast'"):
        make_score(quadratic, engine="fast")
    with pytest.raises(InputError, match="got 'half'"):
        make_score(quadratic, "half")


class Changed(SNGANEnergy):
    """A subclass may compute anything."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def test_a_subclass_of_a_known_network_is_not_taken_for_it() -> None:
    assert make_score(Changed(8)).name == "eager"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_exact_score_that_is_wrong_is_left_with_a_reason(precision: str) -> None:
    net, images = network("sngan-8"), pictures(2)
    right = make_score(net, precision)
    assert checked(right, net, images) is right
    other = network("sngan-8")
    nn.init.normal_(other.block3.c1.weight)  # type: ignore[union-attr, arg-type]
    left = checked(make_score(other, precision), net, images)
    assert left.name == "eager" and left.precision == precision and "differs from autograd's" in left.why


def test_an_exact_score_that_fails_is_left_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(part: Tensor, energies: bool) -> tuple[None, Tensor]:
        raise RuntimeError("no such operator\nsecond line")

    net, score = network("local"), make_score(network("local"))
    monkeypatch.setattr(score, "graph", missing)
    monkeypatch.setattr(score, "compiled", True)
    plain = checked(score, net, pictures(2))
    assert plain.name == "exact" and plain.why.endswith("not compiled, since it failed: no such operator")
    monkeypatch.setattr(score, "compiled", False)
    assert checked(score, net, pictures(2)).why.endswith("since it failed: no such operator")


def test_a_compiled_score_runs_the_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: compiled.append(graph) or graph)
    net, images = network("local"), pictures(2)
    score = make_score(net, compiled=True)
    assert checked(score, net, images) is score and len(compiled) == 1 and score.why.endswith("graph, compiled")


def test_images_that_no_network_takes_are_refused() -> None:
    score = make_score(network("local"))
    for images, message in ((pictures(1, 12, 32), "at least 16 px"), (torch.rand(2, 4, 32, 32), "3 channels")):
        with pytest.raises(InputError, match=message):
            score(images)


def test_a_chain_by_the_engine_is_the_chain_by_autograd_traces_included() -> None:
    net, images = network("sngan-8"), pictures(3)
    config, noise = LangevinConfig(n_steps=5, step_size=0.02, temperature=1e-2), CounterNoise(0, ["a", "b", "c"])
    fast: list[StepTrace] = []
    slow: list[StepTrace] = []
    ours = langevin(net, images, config, noise=noise, on_step=fast.append, score=make_score(net))
    reference = langevin(net, images, config, noise=noise, on_step=slow.append)
    assert torch.allclose(ours, reference, atol=1e-5) and not ours.is_inference()
    for one, other in zip(fast, slow, strict=True):
        assert torch.allclose(one.energy, other.energy, rtol=1e-4)
        assert torch.allclose(one.gradient_norm, other.gradient_norm, rtol=1e-4)
