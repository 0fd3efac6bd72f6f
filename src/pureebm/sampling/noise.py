"""Noise that is a function, not a stream: the same (seed, id, step, element) gives the same number.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter and
a key into four 32-bit words. Here the key is the seed and the counter is

    (index of the four elements, step, low and high word of a 64-bit hash of the image's id)

so that neighbours, order, batches, workers and resume points cannot change an image's noise. The integers
are the same on every device; the normal numbers made of them (Box-Muller) agree up to float rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pureebm.errors import InputError

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Words, key: tuple[int, int], *, rounds: int = 10) -> Words:
    """Philox4x32 of int64 tensors that hold 32-bit words and broadcast together.

    Source: Salmon et al. 2011, section 3; agrees with the test vectors of their Random123 library.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # Products wrap modulo 2**64. Of x1 and x3 only the low words count; they are masked where it matters.
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0 = ((product1 >> 32) ^ x1).bitwise_xor_(k0).bitwise_and_(_MASK)
        x2 = ((product0 >> 32) ^ x3).bitwise_xor_(k1).bitwise_and_(_MASK)
        x1, x3 = product1, product0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return x0, x1 & _MASK, x2, x3 & _MASK


def id_words(ids: Sequence[str]) -> Tensor:
    """(N, 2) int64: the low and high 32-bit words of BLAKE2b-64 of each id's UTF-8 bytes."""
    words = []
    for name in ids:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        words.append((value & _MASK, value >> 32))
    return torch.tensor(words, dtype=torch.int64).reshape(-1, 2)


class CounterNoise:
    """N(0, 1) noise for a fixed list of images (`Noise` protocol).

    Args:
        seed: 0 .. 2**64 - 1.
        ids: one name an image, in batch order; the same name has the same noise wherever it stands.
        device: where the integers are computed.

    Calling it with a step (0 .. 2**32 - 1) and a tensor (N, ...) returns noise of that shape and type.
    """

    def __init__(self, seed: int, ids: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        if not 0 <= seed < 2**64:
            raise InputError(f"seed must be in 0 .. 2**64 - 1, got {seed}")
        self.key = (seed & _MASK, seed >> 32)
        words = id_words(ids).to(device)
        self.low, self.high = words[:, :1], words[:, 1:]  # (N, 1) each

    def __call__(self, step: int, like: Tensor, /) -> Tensor:
        if len(like) != len(self.low):
            raise InputError(f"noise was made for {len(self.low)} images, got {len(like)}")
        n_elements = like[0].numel() if len(like) else 0
        return self._normal(step, n_elements).to(like.device, like.dtype).reshape(like.shape)

    def _normal(self, step: int, n_elements: int) -> Tensor:
        quads = torch.arange(-(-n_elements // 4), device=self.low.device)[None]  # (1, Q)
        words = philox4x32((quads, torch.full_like(quads, step), self.low, self.high), self.key)
        u0, u1, u2, u3 = (((word >> 8).float() + 0.5) * 2.0**-24 for word in words)  # (N, Q), in (0, 1)
        r0, r1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
        a0, a1 = 2 * math.pi * u1, 2 * math.pi * u3
        normal = torch.stack((r0 * a0.cos(), r0 * a0.sin(), r1 * a1.cos(), r1 * a1.sin()), dim=2)
        return normal.flatten(1)[:, :n_elements]  # (N, Q, 4) -> (N, n_elements)
