"""Energy networks: published shapes, independence of area and of neighbours, slow restatements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.errors import InputError
from pureebm.sampling.langevin import energy_and_gradient


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = SNGANEnergy(8) if name == "sngan" else LocalEnergy((8, 12), (1, 1))
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net.eval()


def test_width_128_has_the_published_tensors() -> None:
    state = SNGANEnergy(128).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    expected: dict[str, tuple[int, ...]] = {"l5.weight": (1, 128)}
    for block in ("block1", "block2", "block3", "block4"):
        for conv in ("c1", "c2"):
            inputs = 3 if (block, conv) == ("block1", "c1") else 128
            expected[f"{block}.{conv}.weight"] = (128, inputs, 3, 3)
            expected[f"{block}.{conv}.bias"] = (128,)
    for block, inputs in (("block1", 3), ("block2", 128)):
        expected[f"{block}.c_sc.weight"] = (128, inputs, 1, 1)
        expected[f"{block}.c_sc.bias"] = (128,)
    assert shapes == expected
    assert len(shapes) == 21
    assert sum(value.numel() for value in state.values()) == 1_053_824


def test_sngan_agrees_with_a_restatement_of_the_published_forward_pass() -> None:
    net = small("sngan")
    p = net.state_dict()
    x = torch.rand(3, 3, 32, 32) * 2 - 1

    def conv(h: Tensor, name: str) -> Tensor:
        weight = p[f"{name}.weight"]
        return F.conv2d(h, weight, p[f"{name}.bias"], padding=weight.shape[2] // 2)

    h = F.avg_pool2d(conv(F.relu(conv(x, "block1.c1")), "block1.c2"), 2) + conv(F.avg_pool2d(x, 2), "block1.c_sc")
    main = F.avg_pool2d(conv(F.relu(conv(F.relu(h), "block2.c1")), "block2.c2"), 2)
    h = main + F.avg_pool2d(conv(h, "block2.c_sc"), 2)
    for block in ("block3", "block4"):
        h = h + conv(F.relu(conv(F.relu(h), f"{block}.c1")), f"{block}.c2")
    expected = (F.relu(h).mean(dim=(2, 3)) @ p["l5.weight"].T).squeeze(1)
    assert torch.allclose(net(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sngan", "local"])
def test_a_large_image_moves_away_from_borders_as_its_parts_do(name: str) -> None:
    # Exact where neither border is in reach: a gradient reaches twice the receptive radius, 2 * 26 px here.
    net = small(name)
    large = torch.rand(1, 3, 160, 160) * 2 - 1
    whole = energy_and_gradient(net, large)[1][:, :, 72:88, 72:88]
    part = energy_and_gradient(net, large[:, :, 16:144, 16:144].contiguous())[1][:, :, 56:72, 56:72]
    assert whole.abs().max() > 0
    assert torch.allclose(whole, part, rtol=1e-3, atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("name", ["sngan", "local"])
def test_the_drift_at_64_px_has_the_size_of_the_drift_at_32_px(name: str) -> None:
    net = small(name)
    large = torch.rand(4, 3, 64, 64) * 2 - 1
    whole = energy_and_gradient(net, large)[1][:, :, 8:24, 8:24]
    part = energy_and_gradient(net, large[:, :, :32, :32].contiguous())[1][:, :, 8:24, 8:24]
    assert whole.norm().item() == pytest.approx(part.norm().item(), rel=0.1)
    assert F.cosine_similarity(whole.flatten(), part.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", ["sngan", "local"])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (50, 19)])
def test_any_size_from_16_px_has_a_finite_gradient(name: str, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size) * 2 - 1
    values, gradient = energy_and_gradient(small(name), images)
    assert values.shape == (2,) and gradient.shape == images.shape
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["sngan", "local"])
def test_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    net = small(name)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    changed = images.clone()
    changed[1:] = torch.rand(3, 3, 32, 32)
    assert torch.equal(net(images)[0], net(changed)[0])


def test_the_gradient_of_the_local_energy_is_the_symmetric_part_of_its_denoiser() -> None:
    # U = <x, x - f(x)> / 2 and f(x) = J x  =>  grad U = x - (f(x) + J^T x) / 2
    net = small("local").double()
    assert isinstance(net, LocalEnergy)
    x = torch.rand(1, 3, 16, 16).double() * 2 - 1
    _, vjp = torch.autograd.functional.vjp(net.restore, x, x)
    _, gradient = energy_and_gradient(net, x)
    assert torch.allclose(gradient, x - (net.restore(x) + vjp) / 2)
    assert torch.allclose(net.restore(3 * x), 3 * net.restore(x))


def test_the_gradient_agrees_with_finite_differences() -> None:
    for name in ("sngan", "local"):
        net = small(name).double()
        x = torch.rand(1, 3, 16, 16).double() * 2 - 1
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
        _, gradient = energy_and_gradient(net, x)
        h = 1e-6
        numeric = (net(x + h * direction) - net(x - h * direction)) / (2 * h)
        assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 15, 40), (1, 3, 40, 8)])
def test_smaller_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"at least 16 px high and wide, got {shape[2]}x{shape[3]}"):
        small("local")(torch.zeros(shape))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(InputError, match="floating point"):
        small("sngan")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_residual_energy_is_followed_along_its_own_denoiser() -> None:
    torch.manual_seed(0)
    net = LocalEnergy((6, 8), (1, 1), whiten=4.0, chroma=2.0, residual=True)
    nn.init.normal_(net.head.weight, std=0.1)
    images = torch.rand(3, 3, 20, 18) * 2 - 1
    assert net.whitening is not None
    y = net.whitening.whiten(images)
    energies, field = energy_and_gradient(net, images)
    torch.testing.assert_close(energies, 0.5 * (y - net.restore(y)).square().sum((1, 2, 3)))
    torch.testing.assert_close(net(images), energies)
    torch.testing.assert_close(field, net.whitening.whiten(y - net.restore(y)))
    assert not field.requires_grad


def test_the_residual_is_the_gradient_where_the_denoiser_is_a_projection() -> None:
    class Projection(LocalEnergy):
        def correction(self, images):
            return images.mean((2, 3), keepdim=True) - images  # keeps the mean color

    net, images = Projection((6,), (1,), residual=True), torch.rand(2, 3, 16, 16) * 2 - 1
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(net.residual_field(images)[1], gradient)
