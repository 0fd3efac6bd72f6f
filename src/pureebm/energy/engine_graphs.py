"""E and grad E of the known networks as explicit graphs of convolutions, without autograd.

Backward passes are written by hand: the transposed convolutions in reverse order, each masked where its ReLU was
shut. What can be folded is folded when a graph is made: a 3x3 convolution before a 2x2 average pool is one 4x4
convolution of stride 2 (2.25 times fewer multiplications), a 1x1 convolution pools first, and the constants of the
averages and of the area go into the last weights. Data lie channels-last, and what may is done in place.

A graph copies the weights; it does not see later training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.energy.networks import LocalEnergy, SNGANEnergy, _PlainBlock, pad_to_multiple


class Convolution:
    """A convolution with constant weights, and what follows it: y = relu(conv(x) + bias + add).

    Args:
        weight: (out, in, k, k), or (in, out, k, k) if `transposed`, as `conv_transpose2d` takes it.
        bias: (out,) or None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
        transposed: bool = False,
    ) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias, self.stride, self.padding, self.relu = bias, stride, padding, relu
        self.convolve: Callable[..., Tensor] = F.conv_transpose2d if transposed else F.conv2d

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = self.convolve(x, self.weight, self.bias, stride=self.stride, padding=self.padding)
        if add is not None:
            y.add_(add)
        return y.relu_() if self.relu else y


def adjoint3(weight: Tensor) -> Tensor:
    """The weight of the transposed 3x3 convolution of stride 1 and padding 1, as an ordinary convolution."""
    return weight.flip(2, 3).transpose(0, 1)


def shifted3(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) of padding 1 -> (out, 4, in, 4, 4) of stride 2 and padding 1: the four places of a 2x2 cell."""
    return torch.stack([F.pad(weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)], dim=1)


def pooled3(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) before a 2x2 average pool -> (out, in, 4, 4) of stride 2, both with padding 1."""
    return shifted3(weight).mean(dim=1)


def shut(gradient: Tensor, activation: Tensor) -> Tensor:
    """The backward pass of a ReLU in place: zero where `activation`, before or after its ReLU, is not above 0."""
    torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0, grad_input=gradient)
    return gradient


def unpad(gradient: Tensor, height: int, width: int) -> Tensor:
    """The backward pass of a padding by replication: what fell on copies belongs to the last row and column."""
    if gradient.shape[2] > height:
        gradient[:, :, height - 1] += gradient[:, :, height:].sum(dim=2)
    if gradient.shape[3] > width:
        gradient[:, :, :, width - 1] += gradient[:, :, :, width:].sum(dim=3)
    return gradient[:, :, :height, :width]


class SNGANGraph:
    """E and grad E of `SNGANEnergy`."""

    def __init__(self, energy: SNGANEnergy, dtype: torch.dtype) -> None:

        def tensors(layer: nn.Module) -> tuple[Tensor, Tensor]:
            return layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)  # type: ignore[operator]

        self.floats_per_pixel = energy.block1.c1.out_channels
        (w1, b1), (w2, b2), (ws, bs) = (tensors(c) for c in (energy.block1.c1, energy.block1.c2, energy.block1.c_sc))
        self.first = Convolution(w1, b1, padding=1, relu=True)
        # Three channels leave most of a processor's lanes empty: compute 2x2 cells of them, and shuffle.
        self.first_back = Convolution(shifted3(adjoint3(w1)).flatten(0, 1), stride=2, padding=1)
        self.pool1, self.pool1_back = _pooled_pair(w2, b2 + bs)
        self.shortcut1 = Convolution(ws)
        self.shortcut1_back = Convolution(ws.transpose(0, 1) / 4)
        (w1, b1), (w2, b2), (ws, bs) = (tensors(c) for c in (energy.block2.c1, energy.block2.c2, energy.block2.c_sc))
        self.second = Convolution(w1, b1, padding=1, relu=True)
        self.second_back = Convolution(adjoint3(w1), padding=1)
        self.pool2, self.pool2_back = _pooled_pair(w2, b2 + bs)
        self.shortcut2 = Convolution(ws)
        self.shortcut2_back = Convolution(ws.transpose(0, 1) / 4)
        self.blocks = []
        for block in (energy.block3, energy.block4):
            (w1, b1), (w2, b2) = tensors(block.c1), tensors(block.c2)
            into = Convolution(w1, b1, padding=1, relu=True)
            out = Convolution(w2, b2, padding=1)
            back = Convolution(adjoint3(w2), padding=1), Convolution(adjoint3(w1), padding=1)
            self.blocks.append((into, out, *back))
        # area / positions = (H W / train_size**2) / (H W / 16): no size is left in it
        self.last = (energy.l5.weight.detach() * 16 / energy.train_size**2).to(dtype).reshape(1, -1, 1, 1)

    def __call__(self, images: Tensor, energies: bool) -> tuple[Tensor | None, Tensor]:
        """(N,) energies in float32, if asked for, and the gradient of their sum."""
        x = pad_to_multiple(images, 4)
        a1 = self.first(x)  # (N, W, H, W)
        h1 = self.pool1(a1, self.shortcut1(F.avg_pool2d(x, 2)))  # (N, W, H/2, W/2)
        r1 = h1.relu()
        a2 = self.second(r1)
        h = self.pool2(a2, self.shortcut2(F.avg_pool2d(h1, 2)))  # (N, W, H/4, W/4)
        saved = []
        for into, out, *_ in self.blocks:
            r = h.relu()
            a = into(r)
            saved.append((a, r))
            h = out(a, h)
        values = self._total(h) if energies else None
        g = shut(self.last.expand(h.shape).contiguous(memory_format=torch.channels_last), h)
        for (_, _, out_back, into_back), (a, r) in zip(reversed(self.blocks), reversed(saved), strict=True):
            g = shut(into_back(shut(out_back(g), a)), r).add_(g)
        below = shut(self.second_back(shut(self.pool2_back(g), a2)), r1)
        g = below.add_(F.interpolate(self.shortcut2_back(g), scale_factor=2))
        side = F.interpolate(self.shortcut1_back(g), scale_factor=2)
        cells = self.first_back(shut(self.pool1_back(g), a1))  # (N, 12, H/2, W/2)
        gradient = F.pixel_shuffle(cells, 2).add_(side)
        return values, unpad(gradient, *images.shape[2:])

    def energy(self, images: Tensor) -> Tensor:
        """(N,) float32: the forward pass alone."""
        x = pad_to_multiple(images, 4)
        h = self.pool1(self.first(x), self.shortcut1(F.avg_pool2d(x, 2)))
        h = self.pool2(self.second(h.relu()), self.shortcut2(F.avg_pool2d(h, 2)))
        for into, out, *_ in self.blocks:
            h = out(into(h.relu()), h)
        return self._total(h)

    def _total(self, h: Tensor) -> Tensor:
        return (h.relu().float() * self.last.float()).sum(dim=(1, 2, 3))


def _pooled_pair(weight: Tensor, bias: Tensor) -> tuple[Convolution, Convolution]:
    """A 3x3 convolution with a 2x2 average pool, and its backward pass."""
    folded = pooled3(weight)
    return Convolution(folded, bias, stride=2, padding=1), Convolution(folded, stride=2, padding=1, transposed=True)


class LocalGraph:
    """U and grad U of `LocalEnergy`: U = -<x, c(x)> / 2, grad U = -(c(x) + J^T x) / 2.

    Of one with `residual`: U = |c(x)|^2 / 2, and -c(x) in place of the gradient.
    """

    def __init__(self, energy: LocalEnergy, dtype: torch.dtype) -> None:

        def weight(layer: nn.Module) -> Tensor:
            return layer.weight.detach().to(dtype)  # type: ignore[operator]

        def blocks(layers: nn.Module) -> list[_BlockPair]:
            return [_BlockPair(weight(block.c1), weight(block.c2)) for block in cast("list[_PlainBlock]", layers)]

        self.multiple, self.residual = energy.multiple, energy.residual
        self.floats_per_pixel = energy.stem.out_channels / 4
        self.stem = Convolution(weight(energy.stem), padding=1)
        self.stem_back = Convolution(adjoint3(weight(energy.stem)) * -0.5, padding=1)
        self.head = Convolution(weight(energy.head), padding=1)
        self.head_back = Convolution(adjoint3(weight(energy.head)), padding=1)
        self.encode, self.decode = [blocks(b) for b in energy.encode], [blocks(b) for b in energy.decode]
        self.middle = blocks(energy.middle)
        self.down = [Convolution(weight(d), stride=2) for d in energy.down]
        self.down_back = [Convolution(weight(d), stride=2, transposed=True) for d in energy.down]
        self.up = [Convolution(weight(u), stride=2, transposed=True) for u in energy.up]
        self.up_back = [Convolution(weight(u), stride=2) for u in energy.up]

    def correction(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """c(x) and the outputs of the ReLUs in the order in which they came."""
        opened: list[Tensor] = []
        h = self.stem(x)
        skips = []
        for encode, down in zip(self.encode, self.down, strict=True):
            h = _forward(encode, h, opened)
            skips.append(h)
            h = down(h)
        h = _forward(self.middle, h, opened)
        for decode, up in zip(reversed(self.decode), reversed(self.up), strict=True):
            h = _forward(decode, up(h, skips.pop()), opened)
        return self.head(h), opened

    def transposed(self, y: Tensor, opened: list[Tensor]) -> Tensor:
        """-J^T y / 2; uses `opened` up."""
        g = self.head_back(y)
        skips = []
        for decode, up_back in zip(self.decode, self.up_back, strict=True):
            g = _backward(decode, g, opened)
            skips.append(g)
            g = up_back(g)
        g = _backward(self.middle, g, opened)
        for encode, down_back in zip(reversed(self.encode), reversed(self.down_back), strict=True):
            g = _backward(encode, down_back(g, skips.pop()), opened)
        return self.stem_back(g)

    def __call__(self, images: Tensor, energies: bool) -> tuple[Tensor | None, Tensor]:
        """(N,) energies in float32, if asked for, and the gradient of their sum."""
        padded, y = self._inputs(images)
        correction, opened = self.correction(padded)
        if self.residual:
            change = self._cut(correction, images)
            return (_half_square(change) if energies else None), -change
        values = _half_product(y, correction) if energies else None
        g = self.transposed(y, opened)
        if y is padded:
            return values, F.pixel_shuffle(g.add_(correction, alpha=-0.5), 2)
        inside = self._cut(correction, images)
        return values, unpad(F.pixel_shuffle(g, 2), *images.shape[2:]).add_(inside, alpha=-0.5)

    def energy(self, images: Tensor) -> Tensor:
        """(N,) float32: the forward pass alone."""
        padded, y = self._inputs(images)
        correction = self.correction(padded)[0]
        return _half_square(self._cut(correction, images)) if self.residual else _half_product(y, correction)

    @staticmethod
    def _cut(correction: Tensor, images: Tensor) -> Tensor:
        """(N, 12, H/2, W/2) -> (N, 3, H, W), without the padding."""
        return F.pixel_shuffle(correction, 2)[:, :, : images.shape[2], : images.shape[3]]

    def _inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 12, H/2, W/2): the images continued by copies, which f sees, and by zeros, which <x, .> sees."""
        padded = pad_to_multiple(images, self.multiple)
        if padded is images:
            return (both := _unshuffled(images)), both
        bottom, right = (large - small for large, small in zip(padded.shape[2:], images.shape[2:], strict=True))
        return _unshuffled(padded), _unshuffled(F.pad(images, (0, right, 0, bottom)))


def _unshuffled(x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)


def _half_square(change: Tensor) -> Tensor:
    return change.float().square().sum(dim=(1, 2, 3)) / 2


def _half_product(y: Tensor, correction: Tensor) -> Tensor:
    return (y.float() * correction.float()).sum(dim=(1, 2, 3)) / -2


class _BlockPair:
    """h + c2(relu(c1(h))) and its transpose."""

    def __init__(self, w1: Tensor, w2: Tensor) -> None:
        conv = partial(Convolution, padding=1)
        self.into, self.out = conv(w1, relu=True), conv(w2)
        self.into_back, self.out_back = conv(adjoint3(w1)), conv(adjoint3(w2))


def _forward(blocks: list[_BlockPair], h: Tensor, opened: list[Tensor]) -> Tensor:
    for block in blocks:
        opened.append(block.into(h))
        h = block.out(opened[-1], h)
    return h


def _backward(blocks: list[_BlockPair], g: Tensor, opened: list[Tensor]) -> Tensor:
    for block in reversed(blocks):
        g = block.into_back(shut(block.out_back(g), opened.pop()), g)
    return g
