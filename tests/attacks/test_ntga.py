"""NTGA: its kernels are those of wide networks, its predictions those of trained ones, and its poison spoils a set."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.worlds import accuracy, attacker, textures, train
from torch import Tensor

from pureebm.attacks import ntga
from pureebm.attacks.base import AvailabilityGoal, LabeledSet
from pureebm.errors import InputError

W = math.sqrt(1.76)
Net = Callable[[Tensor, int], tuple[Callable[[list[Tensor]], Tensor], list[Tensor]]]


def bias_scale() -> float:
    return math.sqrt(ntga.BIAS_VARIANCE)


def images(n: int, side: int, seed: int) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_net(x: Tensor, width: int) -> tuple[Callable[[list[Tensor]], Tensor], list[Tensor]]:
    """A finite network in the tangent parameterization: standard normal parameters, scales in the forward pass."""
    sizes = [x[0].numel()] + [width] * 5 + [1]
    parameters = [
        torch.randn(shape, dtype=torch.float64)
        for n, m in zip(sizes, sizes[1:], strict=False)
        for shape in ((m, n), (m,))
    ]

    def forward(p: list[Tensor]) -> Tensor:
        h = x.flatten(1)
        for layer in range(6):
            h = W / math.sqrt(h.shape[1]) * h @ p[2 * layer].T + bias_scale() * p[2 * layer + 1]
            h = torch.erf(h) if layer < 5 else h
        return h[:, 0]

    return forward, parameters


def conv_net(x: Tensor, width: int) -> tuple[Callable[[list[Tensor]], Tensor], list[Tensor]]:
    side = x.shape[-1] // 4
    shapes = [(width, 3, 5, 5), (width, width, 5, 5), (width, width * side * side), (width, width), (1, width)]
    parameters = [torch.randn(s, dtype=torch.float64) for shape in shapes for s in (shape, shape[:1])]

    def forward(p: list[Tensor]) -> Tensor:
        h = x
        for layer in range(5):
            weight, bias = p[2 * layer], p[2 * layer + 1]
            scale = W / math.sqrt(weight[0].numel())
            if layer < 2:  # an even side, stride 2, 5 x 5: one zero before, two behind, as "SAME" has it
                h = F.conv2d(F.pad(h, (1, 2, 1, 2)), scale * weight, bias_scale() * bias, stride=2)
            else:
                h = h.flatten(1) @ (scale * weight).T + bias_scale() * bias
            h = F.relu(h) if layer < 4 else h
        return h[:, 0]

    return forward, parameters


def empirical_kernel(net: Net, x: Tensor, width: int, draws: int) -> Tensor:
    """The mean over fresh networks of <df/dp(x_i), df/dp(x_j)>."""
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for seed in range(draws):
        torch.manual_seed(seed)
        forward, parameters = net(x, width)
        parameters = [p.requires_grad_() for p in parameters]
        rows = []
        for output in forward(parameters):
            grads = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
        jacobian = torch.stack(rows)
        total += jacobian @ jacobian.T / draws
    return total


@pytest.mark.parametrize(
    ("kernel", "net", "side", "width", "draws"),
    [(ntga.dense_kernel, dense_net, 4, 256, 60), (ntga.conv_kernel, conv_net, 8, 64, 100)],
)
def test_the_kernel_is_the_limit_of_finite_networks(
    kernel: ntga.Kernel, net: Net, side: int, width: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One draw strays by 20 and 35 % at these widths, the mean of all by 2.6 and 3.5 %; a layer forgotten or counted
    # twice is a sixth. Larger biases than the published, to be seen.
    monkeypatch.setattr(ntga, "BIAS_VARIANCE", 0.5**2)
    x = torch.cat([images(2, side, 0), -images(1, side, 1), 0.3 * images(1, side, 2)])
    measured, exact = empirical_kernel(net, x, width, draws), kernel(x, x)
    scale = (exact.diagonal()[:, None] * exact.diagonal()).sqrt()
    assert ((measured - exact).abs() / scale).max() < 0.1
    assert (exact / scale).std() > 0.05  # the images are not all alike to it


@pytest.mark.parametrize("kernel", [ntga.dense_kernel, ntga.conv_kernel])
def test_kernels_are_symmetric_and_positive_and_know_their_rows(kernel: ntga.Kernel) -> None:
    x = images(12, 8, 0)
    theta = kernel(x, x)
    torch.testing.assert_close(theta, theta.T)
    assert torch.linalg.eigvalsh(theta).min() > 0
    torch.testing.assert_close(kernel(x[3:5], x[6:]), theta[3:5, 6:])


def test_after_endless_training_the_prediction_is_kernel_regression_and_before_it_is_nothing() -> None:
    x, v = images(20, 8, 0), images(5, 8, 1)
    y = F.one_hot(torch.arange(20) % 4, 4).double()
    theta = ntga.dense_kernel(x, x)
    theta += ntga.REGULARIZATION * theta.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    regression = ntga.dense_kernel(v, x) @ torch.linalg.solve(theta, y)
    torch.testing.assert_close(ntga.predict(ntga.dense_kernel, v, x, y, 1e9), regression, rtol=1e-6, atol=1e-8)
    assert ntga.predict(ntga.dense_kernel, v, x, y, 1e-12).abs().max() < 1e-10


def test_at_a_finite_time_it_is_where_gradient_descent_on_the_kernel_has_come() -> None:
    # f' = -Theta(., x) (f(x) - y) / (n C), the gradient flow of half the mean squared error, by small Euler steps.
    x, v, until, steps = images(10, 8, 0), images(4, 8, 1), 20.0, 4000
    y = F.one_hot(torch.arange(10) % 2, 2).double()
    theta, across = ntga.dense_kernel(x, x), ntga.dense_kernel(v, x)
    theta = theta + ntga.REGULARIZATION * theta.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    inside, outside = torch.zeros_like(y), torch.zeros(4, 2, dtype=torch.float64)
    for _ in range(steps):
        error = (inside - y) / y.numel() * (until / steps)
        inside, outside = inside - theta @ error, outside - across @ error
    torch.testing.assert_close(ntga.predict(ntga.dense_kernel, v, x, y, until), outside, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("kernel", [ntga.dense_kernel, ntga.conv_kernel])
def test_the_gradient_is_right_with_equal_eigenvalues_and_equal_images_too(kernel: ntga.Kernel) -> None:
    x, v = images(4, 4, 0), images(2, 4, 1)
    x = torch.cat([x, x[:1]])  # the same image twice
    y = F.one_hot(torch.arange(5) % 2, 2).double()
    direction = images(5, 4, 2) - 0.5
    direction[4] = direction[0]  # keeps them equal: elsewhere a ReLU's kernel has a kink there

    def loss(z: Tensor) -> Tensor:
        return ntga.predict(kernel, v, z, y, 50.0).square().sum()

    x.requires_grad_()
    slope = (torch.autograd.grad(loss(x), x)[0] * direction).sum()
    h = 1e-5
    with torch.no_grad():
        numeric = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    torch.testing.assert_close(slope, numeric, rtol=1e-4, atol=1e-8)
    a = torch.eye(3, dtype=torch.float64).requires_grad_()
    gradient = torch.autograd.grad(ntga._Learned.apply(a, 2.0).trace(), a)[0]
    expected = (math.exp(-2) * 3 - 1) * torch.eye(3, dtype=torch.float64)  # d/da (1 - exp(-2a)) / a at 1
    torch.testing.assert_close(gradient, expected)


def test_every_image_is_poisoned_within_the_budget_whatever_the_blocks() -> None:
    data = textures(50, seed=0)
    config = ntga.Config(eps=8, n_steps=2, block_size=16, n_validation=10)
    lines: list[str] = []
    poisoned = ntga.craft(data, config, attacker=attacker(report=lines.append), seed=0)
    change = (poisoned.images.int() - data.images.int()).abs()
    assert change.max() == 8 and change.flatten(1).amax(dim=1).min() > 0
    assert poisoned.rows.equal(torch.arange(50)) and poisoned.labels.equal(data.labels)
    assert poisoned.goal == AvailabilityGoal()
    assert len(lines) == 4
    before, after = poisoned.record["surrogate_loss"]
    assert after > before


def test_iterating_does_better_than_the_single_step() -> None:
    data = textures(96, seed=0)
    losses = {}
    for single in (False, True):
        config = ntga.Config(eps=16, block_size=48, n_validation=48, single_step=single)
        losses[single] = ntga.craft(data, config, attacker=attacker(), seed=0).record["surrogate_loss"][1]
    assert losses[False] > losses[True]


def test_a_single_step_moves_every_pixel_by_all_of_eps_or_to_the_border() -> None:
    data = textures(20, seed=0)
    config = ntga.Config(eps=8, single_step=True, n_validation=8)
    change = (ntga.craft(data, config, attacker=attacker(), seed=0).images.int() - data.images.int()).abs()
    assert ((change == 8) | (change == 0) | (data.images < 8) | (data.images > 247)).all()
    assert (change == 8).double().mean() > 0.9


@pytest.mark.parametrize(
    "config",
    [
        ntga.Config(eps=48, time=16, block_size=128, n_validation=64),
        ntga.Config(eps=48, surrogate="conv", time=64, block_size=64, n_validation=32, n_steps=2),
    ],
    ids=lambda config: config.surrogate,
)
def test_a_network_trained_on_the_poisoned_set_does_not_generalize(config: ntga.Config) -> None:
    # Times are for blocks of this size: what counts is time / (images x classes), as in the formula.
    data, test = textures(256, seed=0), textures(200, seed=1)
    poisoned = ntga.craft(data, config, attacker=attacker(), seed=0)
    clean, spoiled = (accuracy(train(d, seed=0, epochs=16), test) for d in (data, poisoned.apply(data)))
    assert clean > 0.75
    assert spoiled < clean - 0.2


def test_a_budget_or_surrogate_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="eps must be 1 to 255"):
        ntga.Config(eps=0)
    with pytest.raises(InputError, match="dense or conv, got 'fnn'"):
        ntga.Config(surrogate="fnn")  # type: ignore[arg-type]
    one = LabeledSet(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 1)
    with pytest.raises(InputError, match="at least 2"):
        ntga.craft(one, ntga.Config(), attacker=attacker(), seed=0)
