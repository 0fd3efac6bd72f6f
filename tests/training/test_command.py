"""`pureebm train energy` as a user calls it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.cli.main import run
from pureebm.training import energy as training
from pureebm.training.scalars import read_scalars
from pureebm.training.settings import EnergySettings
from pureebm.training.stepper import Step
from pureebm.training.trainer import Trainer

TINY = "--widths 4,6 --blocks 1,1 --size 16 --batch 4 --validation-images 4 --sample-steps 2 --device cpu".split()


@pytest.fixture
def source(tmp_path: Path) -> str:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    return str(tmp_path / "images.npz")


def test_every_setting_is_an_option_with_its_help(capsys):
    assert run(["train", "energy", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(EnergySettings):
        assert f"--{field.name.replace('_', '-')} " in shown
    assert "denoising score matching, or the paper's maximum likelihood" in shown


def test_a_run_leaves_a_model_its_card_curves_and_pictures(source, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "energy", source, "--out", str(out), *TINY, "--warm-steps", "4", "--steps", "4", "--json"]
    arguments += ["--validate-every", "8"]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    card = json.loads(printed.out)["card"]
    assert card == json.loads((out / "model.json").read_text())
    assert card["settings"]["widths"] == [4, 6] and card["plan"][-1]["stop"] == 8
    assert card["sampler"]["n_steps"] == 2 and isinstance(card["auto_steps"], int)
    assert {"loss", "clean_psnr"} <= card["curves"].keys() and card["training_data"]["trained_on"] == 32
    assert (out / "scalars.jsonl").exists() and (out / "diagnostics" / "distances.png").exists()
    assert "plan: warm 4 steps, dsm 4 steps" in printed.err
    from pureebm.energy.weights import load_model

    assert load_model(out / "model.safetensors").card["architecture"] == "local"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "sngan", "--warm-steps", "3"], "a warm start needs"),
        (["--sigma-min", "0.5"], "sigma_min and sigma_max"),
        (["--widths", "4;6"], "whole numbers with commas"),
        (["--lr", "nan"], "lr must be above 0"),
        (["--steps", "0"], "nothing to train"),
    ],
)
def test_wrong_settings_are_refused_with_exit_code_2(source, tmp_path, capsys, arguments, words):
    assert run(["train", "energy", source, "--out", str(tmp_path / "run"), *TINY, *arguments]) == 2
    assert words in capsys.readouterr().err


def launch(n: int, arguments: list[str]) -> list[subprocess.CompletedProcess]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pureebm.cli.main", *arguments]
    started = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(k), "LOCAL_RANK": str(k)}, stderr=subprocess.PIPE
        )
        for k in range(n)
    ]
    return [(process.communicate(timeout=300)[1], process.returncode) for process in started]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [["--warm-steps", "3"], ["--objective", "mle", "--bank-size", "8", "--chain-steps", "2"]]
)
def test_two_processes_keep_equal_weights_and_draw_different_batches(source, tmp_path, objective):
    pytest.importorskip("accelerate")
    out = tmp_path / "run"
    arguments = ["train", "energy", source, "--out", str(out), *TINY, *objective, "--steps", "3", "--accelerate"]
    arguments += ["--validate-every", "9"]
    for errors, code in launch(2, arguments):
        assert code == 0, errors.decode()
    first, second = (
        load_file(path) for path in sorted((out / "checkpoints").glob("*6*" if "mle" not in objective else "*3*"))
    )
    assert not torch.equal(first["generator"], second["generator"])
    for name in first:
        if name.startswith(("energy/", "average/")):
            assert torch.equal(first[name], second[name]), name


class GlobalBatch(Trainer):
    """One process that computes on the batches of both: the loss is a mean over images, so theirs are averaged."""

    def __init__(self, settings, images, workers):
        super().__init__(settings, images, workers)
        self.generators = [torch.Generator().manual_seed(settings.seed * 1009 + rank) for rank in (0, 1)]

    def compute(self, phase):
        losses = []
        for generator in self.generators:
            self.generator = generator
            losses.append(super().compute(phase).loss)
        return Step(sum(losses) / 2)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(source, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    arguments = ["train", "energy", source, *TINY, "--warm-steps", "4", "--steps", "12", "--validate-every", "8"]
    for errors, code in launch(2, [*arguments, "--out", str(tmp_path / "two"), "--accelerate"]):
        assert code == 0, errors.decode()
    monkeypatch.setattr(training, "Trainer", GlobalBatch)
    assert run([*arguments, "--out", str(tmp_path / "one")]) == 0
    curves = [
        [r["loss"] for r in read_scalars(tmp_path / name / "scalars.jsonl") if "loss" in r] for name in ("one", "two")
    ]
    assert len(curves[0]) > 1 and curves[0] == pytest.approx(curves[1], rel=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
