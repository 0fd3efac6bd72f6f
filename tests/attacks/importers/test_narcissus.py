from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pureebm.attacks.base import LabeledSet, TriggerGoal
from pureebm.attacks.importers import import_poisons
from pureebm.attacks.triggers import AddTrigger
from pureebm.errors import InputError


def write(folder: Path, scale: float, *, label: int = 3, size: int = 8) -> np.ndarray:
    """A trigger whose amplitude is `scale`."""
    noise = np.random.default_rng(0).uniform(-scale, scale, (1, 3, size, size)).astype(np.float32)
    noise[0, 0, 0, 0] = scale
    folder.mkdir(exist_ok=True)
    np.save(folder / f"best_noise_lab{label}.npy", noise)
    return noise


def test_sixteen_255ths_in_pm1_are_a_budget_of_eight(tmp_path: Path, base: LabeledSet) -> None:
    folder = tmp_path / "size=32_eps=8"
    noise = write(folder, 16 / 255)
    found = import_poisons("narcissus", folder / "best_noise_lab3.npy", base=base, budget=0.04)
    assert isinstance(found.goal, TriggerGoal) and found.goal.target_class == 3 and found.goal.source_class is None
    assert found.goal.trigger.pattern.numpy().tobytes() == noise[0].tobytes()
    assert found.rows.tolist() == [63, 73, 83, 93] and found.labels.tolist() == [3] * 4
    # By hand: a step of a pixel is 2/255 in pm1; the sum is rounded to the nearest step.
    exact = base.images[found.rows].numpy() + 127.5 * noise[0].transpose(1, 2, 0).astype(np.float64)
    assert np.array_equal(found.images.numpy(), np.rint(exact.clip(0, 255)).astype(np.uint8))
    assert found.record["max_change"] == 8 and found.record["eps"] == 8


def test_the_same_budget_in_pixel01_is_the_same_trigger(tmp_path: Path) -> None:
    noise = write(tmp_path, 8 / 255)
    for options in ({"space": "pixel01"}, {"eps": 8}):
        found = import_poisons("narcissus", tmp_path / "best_noise_lab3.npy", **options)
        assert np.array_equal(found.goal.trigger.pattern.numpy(), 2 * noise[0])
        assert len(found.rows) == 0 and found.images.shape == (0, 8, 8, 3)


def test_the_value_space_is_never_guessed(tmp_path: Path) -> None:
    write(tmp_path, 16 / 255)
    with pytest.raises(InputError, match=r"8.0/255 .*\(pm1\) and 16.0/255 .*\(pixel01\); say which"):
        import_poisons("narcissus", tmp_path / "best_noise_lab3.npy")
    with pytest.raises(InputError, match="say which"):  # fits neither
        import_poisons("narcissus", tmp_path / "best_noise_lab3.npy", eps=4)
    with pytest.raises(InputError, match="an amplitude of 16.00/255 in pixel01, more than eps = 8"):
        import_poisons("narcissus", tmp_path / "best_noise_lab3.npy", eps=8, space="pixel01")
    with pytest.raises(InputError, match="space must be"):
        import_poisons("narcissus", tmp_path / "best_noise_lab3.npy", space="norm")


def test_the_multiplier_is_for_test_images_only(tmp_path: Path, base: LabeledSet) -> None:
    write(tmp_path, 32 / 255)  # the published upstream trigger: 16/255, meant to be tripled at test time
    path = tmp_path / "best_noise_lab3.npy"
    once, tripled = (import_poisons("narcissus", path, base=base, eps=16, multiplier=m) for m in (1.0, 3.0))
    assert once.images.equal(tripled.images) and tripled.record["max_change"] == 16
    grey = torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)
    assert int(once.goal.trigger.apply(grey)[0, 0, 0, 0]) == 144
    assert int(tripled.goal.trigger.apply(grey)[0, 0, 0, 0]) == 176
    assert isinstance(tripled.goal.trigger, AddTrigger)


def test_rows_are_the_last_of_the_class_or_random_ones(tmp_path: Path, base: LabeledSet) -> None:
    write(tmp_path, 16 / 255)
    path = tmp_path / "best_noise_lab3.npy"
    random = import_poisons("narcissus", path, base=base, eps=8, budget=0.05, choose="random", seed=1)
    assert (
        len(random.rows) == 5
        and (base.labels[random.rows] == 3).all()
        and random.rows.tolist() != list(range(53, 100, 10))
    )
    other = import_poisons("narcissus", path, base=base, eps=8, budget=0.05, target_class=7)
    assert other.rows.tolist() == [57, 67, 77, 87, 97] and other.goal.target_class == 7
    with pytest.raises(InputError, match="last or random"):
        import_poisons("narcissus", path, base=base, eps=8, choose="first")


@pytest.mark.parametrize(
    ("array", "wrong"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), "a trigger is"),
        (np.zeros((2, 3, 8, 8), np.float32), "a trigger is"),
        (np.zeros((8, 8, 3), np.float32), "a trigger is"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "not finite"),
        (np.zeros((1, 3, 4, 4), np.float32), "for images of"),
    ],
)
def test_arrays_that_are_no_trigger_are_refused(
    tmp_path: Path, base: LabeledSet, array: np.ndarray, wrong: str
) -> None:
    np.save(tmp_path / "best_noise_lab3.npy", array)
    with pytest.raises(InputError, match=wrong):
        import_poisons("narcissus", tmp_path / "best_noise_lab3.npy", base=base, space="pm1")


def test_files_that_are_no_array_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object))
    (tmp_path / "b.npy").write_bytes(b"\x80\x04cos\nsystem\n.")
    np.savez(tmp_path / "c.npz", a=np.zeros(3))
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 99999, 99999), }".ljust(117) + b"\n"
    (tmp_path / "d.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    for name in "abcd":
        with pytest.raises(InputError, match=f"{name}.npy: not a .npy file of"):
            import_poisons("narcissus", tmp_path / f"{name}.npy", target_class=0)


def test_a_name_without_class_needs_the_class(tmp_path: Path) -> None:
    write(tmp_path, 16 / 255)
    path = (tmp_path / "best_noise_lab3.npy").rename(tmp_path / "trigger.npy")
    with pytest.raises(InputError, match="give target_class"):
        import_poisons("narcissus", path, eps=8)
