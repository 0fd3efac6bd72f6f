"""The speed benchmark: its loop is the authors', its arithmetic adds up, its command keeps to its contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pureebm.cli.main import run
from pureebm.energy.networks import SNGANEnergy
from pureebm.evaluation import speed
from pureebm.evaluation.neighbors import neighbors
from pureebm.evaluation.speed import SpeedConfig, exact_flops, in_turns, measure, plain_loop
from pureebm.purify.baselines import baseline
from pureebm.sampling.langevin import LangevinConfig, langevin

TINY = SpeedConfig(width=8, batch=4, steps=1, rounds=2)


def test_the_plain_loop_is_the_langevin_chain_of_the_paper() -> None:
    torch.manual_seed(0)
    network, images = SNGANEnergy(8).eval(), torch.rand(3, 3, 16, 16) * 2 - 1
    torch.manual_seed(5)
    ours = plain_loop(network, images, 4)
    torch.manual_seed(5)
    reference = langevin(network, images, LangevinConfig(n_steps=4), noise=lambda step, like: torch.randn_like(like))
    assert torch.allclose(ours, reference, atol=1e-6)


def test_the_exact_engine_needs_the_operations_that_folding_leaves() -> None:
    # Multiplications of a forward pass at width W, by position: 3 -> W at 32x32, then the pooled 4x4 at 16x16 ...
    w = 128
    full = 9 * 3 * w * 32**2
    pooled = 16 * w * w * (16**2 + 8**2)
    plain = 9 * w * w * (16**2 + 4 * 8**2)
    shortcuts = 3 * w * 16**2 + w * w * 8**2
    cells = (16 - 9) * 3 * w * 32**2  # the last gradient is computed by cells of 2x2, with a few taps that are zero
    assert exact_flops(SNGANEnergy(w)) == 2 * (2 * (full + pooled + plain + shortcuts) + cells)


def test_contestants_take_turns_and_stop_when_time_is_up() -> None:
    order: list[str] = []
    work = {name: lambda name=name: order.append(name) for name in ("plain_loop", "other")}
    seconds, rounds = in_turns(work, SpeedConfig(rounds=5, seconds=0), torch.device("cpu"))
    assert rounds == 2 and order == ["plain_loop", "other"] * 3 and set(seconds) == set(work)


def test_rates_are_images_of_whole_chains_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict.fromkeys(("exact_float32", "exact_bfloat16", "default", "score"), 0.5) | {"plain_loop": 1.0}
    seconds |= {f"{kind}_{p}": 0.1 for kind in ("product", "convolution") for p in speed.PRECISIONS}
    rates = speed._rates(seconds, SpeedConfig(batch=30, steps=5), flops=1e9)
    assert rates["plain_loop"] == pytest.approx(1.0) and rates["exact_float32"] == pytest.approx(2.0)
    assert rates["default"] == 60 and rates["student"] is None and rates["ratios"]["default"] == pytest.approx(60)
    peak = speed.PEAK_REPEATS * max(2 * 1024**3, 2 * 9 * 32 * 128**2 * 256) / 0.1
    assert rates["peak_shares"]["float32"] == pytest.approx(30 * 5 / 0.5 * 1e9 / peak)


def test_the_sampler_beside_ours_makes_the_same_updates() -> None:
    pytest.importorskip("torchebm")
    torch.manual_seed(0)
    network, images = SNGANEnergy(8).eval().requires_grad_(False), torch.rand(3, 3, 16, 16) * 2 - 1
    beside = neighbors(network, images, steps=2, n_steps=150)["torchebm"]
    torch.manual_seed(5)
    theirs = beside.do()
    torch.manual_seed(5)
    assert torch.allclose(theirs, plain_loop(network, images, 2), atol=1e-6) and beside.images == 3 * 2 / 150


def test_a_student_is_measured_where_there_is_one(tiny_model: Path) -> None:
    measured = measure(TINY, model=str(tiny_model), student=baseline("jpeg-75"))
    assert measured["student"] > 0 and measured["rounds"] == 2
    assert measured["default_settings"]["engine"].startswith("exact: ")


def test_the_command_prints_one_object_and_writes_a_card(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "QUICK", TINY)
    monkeypatch.setattr(speed, "SpeedConfig", lambda: TINY)
    arguments = ["bench", "speed", "--model", str(tiny_model), "--device", "cpu", "--out", str(tmp_path)]
    assert run([*arguments, "--quick", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    contract = ("plain_loop", "exact_float32", "exact_bfloat16", "default", "student", "peak_share")
    assert all(told[name] > 0 for name in contract) and told["card"] is None and not list(tmp_path.iterdir())
    assert run(arguments) == 0
    card = json.loads(next(tmp_path.rglob("speed/*.json")).read_text())
    assert next(tmp_path.rglob("speed/*.png")).read_bytes().startswith(b"\x89PNG")
    assert {"jpeg-75", "diffusers"} <= set(card["neighbors"]) and min(card["neighbors"].values()) > 0
    assert card["ratios"]["plain_loop"] == 1 and {"machine", "versions", "processor", "command"} <= set(card)
    assert "authors' loop restated" in capfd.readouterr().err
