"""The student: what it sees, and that it is a network like the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pureebm.energy.coordinates import Whitening
from pureebm.energy.networks import LocalEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError, ModelError


def random_student(**options) -> Student:
    torch.manual_seed(0)
    network = Student((8, 12), (1, 1), levels=(0.5, 2.0), **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network.requires_grad_(False)


def drawn(n: int, height: int = 20, width: int = 17) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images, start, later = (torch.randn(n, 3, height, width, generator=generator) for _ in range(3))
    return images.clamp(-1, 1), start, later


def test_an_untrained_student_returns_the_start_of_the_chain() -> None:
    images, start, later = drawn(2)
    level = torch.tensor([1.0, 1.5])
    network = Student((8, 12), (1, 1), initial_noise=0.2, whiten=4.0, chroma=2.0, levels=(1.0, 2.0))
    colored = Whitening(strength=4.0, chroma=2.0).color(start)
    expected = images + 0.2 * level[:, None, None, None] * colored
    torch.testing.assert_close(network(images, start, later, level), expected, atol=1e-5, rtol=0)


def test_of_the_image_it_sees_only_what_the_starting_noise_has_left() -> None:
    images, start, later = drawn(2)
    network, level, moved = random_student(initial_noise=0.2), torch.full((2,), 1.3), 0.1 * torch.rand(2, 3, 20, 17)
    same = network(images + moved, start - moved / (0.2 * 1.3), later, level)
    torch.testing.assert_close(same, network(images, start, later, level), atol=1e-5, rtol=0)


def test_each_input_changes_the_result_and_the_other_images_of_a_batch_do_not() -> None:
    images, start, later = drawn(3)
    network, level = random_student(), torch.ones(3)
    whole = network(images, start, later, level)
    alone = network(images[1:2], start[1:2], later[1:2], level[1:2])
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=0)
    for other in (network(images, -start, later, level), network(images, start, -later, level)):
        assert (other - whole).abs().mean() > 1e-3
    assert (network(images, start, later, 1.5 * level) - whole).abs().mean() > 1e-3


def test_the_noise_of_an_image_grows_with_its_residual_between_the_bounds_and_with_no_other_image() -> None:
    images, start, later = drawn(3)
    images *= torch.tensor([0.02, 1.0, 100.0])[:, None, None, None]  # the gauge has no biases: twice is twice
    network = random_student(initial_noise=0.1, whiten=4.0, adapt_above=0.05, adapt_most=3.0)
    y, level = network.coordinates(images), torch.tensor([0.5, 1.0, 2.0])
    residual = network.residual(y)
    torch.testing.assert_close(network.residual(2 * y), 2 * residual, rtol=1e-5, atol=0)
    torch.testing.assert_close(network.residual(y[1:2]), residual[1:2], rtol=1e-5, atol=0)
    assert residual[0] < 0.05 < residual[1] < residual[2]
    strength = level * torch.tensor([1.0, min(3.0, 1.15 * float(residual[1]) / 0.05), 3.0])
    expected = network.purified(y, start, later, strength)
    torch.testing.assert_close(network(images, start, later, level), expected, atol=1e-5, rtol=1e-5)


def test_gradients_flow_to_the_image() -> None:
    images, start, later = drawn(1)
    network, x = random_student(whiten=4.0), images.requires_grad_()
    network(x, start, later, torch.ones(1))[0, 0, 8, 8].backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"widths": (4,), "blocks": (1, 1)}, "of one length"), ({"levels": (2.0, 1.0)}, "levels must be")],
)
def test_what_makes_no_network_is_refused(options, words) -> None:
    with pytest.raises(InputError, match=words):
        Student(**options)


def test_it_is_saved_and_loaded_like_an_energy_but_is_none(tmp_path: Path) -> None:
    network, path = random_student(initial_noise=0.3, chroma=2.0, adapt_above=0.1), tmp_path / "student.safetensors"
    save_model(path, network, {"data": "none"})
    loaded = load_model(path)
    images, start, later = drawn(2)
    level = torch.ones(2)
    assert torch.equal(loaded.network(images, start, later, level), network(images, start, later, level))
    with pytest.raises(ModelError, match="one-pass student and has no energy"):
        _ = loaded.energy
    save_model(path, LocalEnergy((4,), (1,)), {})
    assert load_model(path).energy is not None
