"""Counter-based noise: published vectors, distribution, and independence of everything but its arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pureebm.errors import InputError
from pureebm.sampling.noise import CounterNoise, id_words, philox4x32

# Known answers of Philox4x32-10 published with Random123 (kat_vectors): counter, key, output.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox4x32((c0, c1, c2, c3), key)) == expected


def test_philox_agrees_with_a_restatement_in_python_integers() -> None:
    def plain(counter: list[int], key: list[int]) -> list[int]:
        x, k = counter, key
        for _ in range(10):
            a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
            x = [(b >> 32) ^ x[1] ^ k[0], b % 2**32, (a >> 32) ^ x[3] ^ k[1], a % 2**32]
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        return x

    words = np.random.default_rng(0).integers(0, 2**32, (50, 6), dtype=np.int64)
    columns = [torch.from_numpy(words[:, i].copy()) for i in range(4)]
    for row in range(50):
        key = (int(words[row, 4]), int(words[row, 5]))
        ours = philox4x32((columns[0][row], columns[1][row], columns[2][row], columns[3][row]), key)
        assert [int(word) for word in ours] == plain([int(w) for w in words[row, :4]], list(key))


def test_noise_depends_on_seed_id_step_and_element_alone() -> None:
    like = torch.zeros(3, 3, 8, 8)
    together = CounterNoise(7, ["a", "b", "c"])(4, like)
    alone = CounterNoise(7, ["b"])(4, like[:1])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together.flip(0), CounterNoise(7, ["c", "b", "a"])(4, like))
    others = (CounterNoise(8, ["b"])(4, like[:1]), CounterNoise(7, ["b"])(5, like[:1]), together[:1])
    for other in others:
        assert abs(torch.corrcoef(torch.stack((alone.flatten(), other.flatten())))[0, 1]) < 0.25


def test_memory_format_does_not_move_the_noise() -> None:
    like = torch.zeros(2, 3, 8, 8)
    noise = CounterNoise(1, ["a", "b"])
    assert torch.equal(noise(1, like), noise(1, like.to(memory_format=torch.channels_last)))


def test_noise_is_standard_normal() -> None:
    n = 400 * 3072
    z = CounterNoise(0, [str(i) for i in range(400)])(1, torch.zeros(400, 3, 32, 32)).double().flatten()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    shares = [(z < q).double().mean().item() for q in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert shares == pytest.approx([0.02275, 0.15866, 0.5, 0.84134, 0.97725], abs=5 * 0.5 / n**0.5)
    lag = torch.corrcoef(torch.stack((z[:-1], z[1:])))[0, 1]
    assert abs(lag) < 5 / n**0.5


def test_recorded_values_stay() -> None:
    z = CounterNoise(123, ["class/b.jpg"])(2, torch.zeros(1, 1, 2, 2)).flatten()
    low, high = id_words(["class/b.jpg"])[0].tolist()
    words = philox4x32((torch.tensor([0]), torch.tensor([2]), torch.tensor([low]), torch.tensor([high])), (123, 0))
    u = [((int(word) >> 8) + 0.5) / 2**24 for word in words]
    r, s = (-2 * np.log(u[0])) ** 0.5, (-2 * np.log(u[2])) ** 0.5
    a, b = 2 * np.pi * u[1], 2 * np.pi * u[3]
    expected = [r * np.cos(a), r * np.sin(a), s * np.cos(b), s * np.sin(b)]
    assert z.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_wrong_seed_or_batch_is_refused() -> None:
    with pytest.raises(InputError, match="seed must be in"):
        CounterNoise(-1, ["a"])
    with pytest.raises(InputError, match="made for 1 images, got 2"):
        CounterNoise(0, ["a"])(1, torch.zeros(2, 3, 4, 4))
