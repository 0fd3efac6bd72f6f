"""The training of an autoencoder: its codes, its loss, its resume, its best model, and the command."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.cli.main import run
from pureebm.errors import InputError, Interrupted, MismatchError
from pureebm.purify.vq import VQAutoencoder, VQStage, load_vq
from pureebm.training import scalars
from pureebm.training.runtime import Runtime
from pureebm.training.scalars import read_scalars
from pureebm.training.settings import VQSettings
from pureebm.training.stepper import Phase
from pureebm.training.vq import (
    REVIVE_BELOW,
    Codebook,
    VQTrainer,
    build_network,
    straight_through,
    train_vq,
    validate_vq,
)
from pureebm.training.workers import Workers

TINY = VQSettings(
    width=8, layers=1, n_codes=8, code_dim=4, size=16, batch=4, steps=10, lr_warmup=2, validate_every=5,
    validation_images=4,
)  # fmt: skip
PHASE = Phase("vq", 0, 100, 1e-3)


@pytest.fixture(autouse=True)
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "_tensorboard", lambda folder, step: None)


def runtime(**options: object) -> Runtime:
    return Runtime(workers=Workers("cpu"), **options)  # type: ignore[arg-type]


def test_codes_are_running_means_of_the_vectors_that_chose_them() -> None:
    random = np.random.default_rng(0)
    codes, decay = torch.from_numpy(random.normal(size=(3, 2))).float(), 0.9
    book, generator = Codebook(codes, decay), torch.Generator().manual_seed(0)
    book.counts.fill_(5.0)
    book.sums.copy_(5 * codes)
    counts, sums = [5.0] * 3, (5 * codes.double()).tolist()
    for _ in range(20):
        vectors, numbers = torch.from_numpy(random.normal(size=(30, 2))).float(), torch.arange(30) % 3
        book.update(vectors, numbers, generator)
        for j in range(3):
            chose = [vector.tolist() for vector, number in zip(vectors, numbers, strict=True) if number == j]
            counts[j] = decay * counts[j] + (1 - decay) * len(chose)
            for d in range(2):
                sums[j][d] = decay * sums[j][d] + (1 - decay) * sum(vector[d] for vector in chose)
        for j in range(3):
            assert book.codes[j].tolist() == pytest.approx([value / counts[j] for value in sums[j]], abs=1e-5)
    assert book.codes is codes


def test_codes_begin_at_vectors_of_the_first_batch_and_dead_ones_begin_anew() -> None:
    codes = torch.full((4, 2), 100.0)
    book, generator = Codebook(codes, 0.5), torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    book.update(vectors, torch.zeros(20, dtype=torch.int64), generator)
    rows = [row.tolist() for row in vectors]
    assert book.counts.tolist() == [10, 1, 1, 1]  # half of the 20; the others were dead
    assert torch.allclose(codes[0], vectors.mean(0)) and all(code.tolist() in rows for code in codes[1:])
    last, dead = codes[3].clone(), torch.tensor([1, 2])
    book.counts[dead] = REVIVE_BELOW  # another batch without them, and they fall below it
    book.update(vectors + 50, torch.tensor([0, 3] * 10), generator)
    assert (codes[dead] > 40).all() and (book.counts[dead] == 1).all()
    expected = (0.5 * last + 0.5 * (vectors[1::2] + 50).sum(0)) / (0.5 + 5)
    assert torch.allclose(codes[3], expected, atol=1e-4)


def test_the_gradient_goes_straight_through_the_codes() -> None:
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes, weights = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    through = straight_through(z, codes)
    assert torch.allclose(through, codes, atol=1e-6)
    (through * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def test_the_loss_is_the_error_of_the_image_and_of_the_code_and_no_gradient_moves_a_code() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    trainer = VQTrainer(replace(TINY, commitment=0.5), images, Workers("cpu"))
    trainer.compute(PHASE)  # codes begin
    state, codes = trainer.generator.get_state(), trainer.network.codes.clone()
    loss = trainer.compute(PHASE).loss
    trainer.generator.set_state(state)
    x, network = trainer.batch(), trainer.network
    moved = network.codes.clone()
    network.codes.copy_(codes)
    with torch.no_grad():
        z = network.encode(x)
        e = network.embed(network.nearest(z))
        expected = (network.decode(e) - x).square().mean() + 0.5 * (z - e).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert network.codes.grad is None and not torch.equal(moved, codes)
    assert all(value.grad is not None for name, value in network.named_parameters() if name != "codes")


@pytest.mark.parametrize(("at", "precision"), [(3, "float32"), (5, "float32"), (6, "bfloat16")])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    source: Path, tmp_path: Path, at: int, precision: str
) -> None:
    settings = replace(TINY, precision=precision)  # type: ignore[arg-type]
    train_vq(source, tmp_path / "whole", settings, runtime=runtime())
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="repeat the same command"):
        train_vq(source, tmp_path / "cut", settings, runtime=runtime(stop=lambda: next(calls) >= at - 1))
    train_vq(source, tmp_path / "cut", settings, runtime=runtime())
    for name in ("model.safetensors", "checkpoints/step-000000010.safetensors"):
        whole, cut = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys() and len(whole) > 10
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    assert "codebook/sums" in whole
    records = [read_scalars(tmp_path / name / "scalars.jsonl") for name in ("whole", "cut")]
    for record in (*records[0], *records[1]):
        record.pop("minutes", None)
    assert records[0] == records[1]


def test_a_repeat_with_other_settings_is_refused_and_a_finished_run_changes_nothing(
    source: Path, tmp_path: Path
) -> None:
    card = train_vq(source, tmp_path / "run", TINY, runtime=runtime())
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train_vq(source, tmp_path / "run", TINY, runtime=runtime()) == card
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(MismatchError, match="settings.n_codes was 8, now 16"):
        train_vq(source, tmp_path / "run", replace(TINY, n_codes=16), runtime=runtime())


def test_training_learns_to_rebuild_images(source: Path, tmp_path: Path) -> None:
    # Four flat colors: as many codes are enough for all images, and a code for each is all there is to find.
    colors = np.array([[20, 40, 200], [230, 230, 20], [120, 10, 10], [10, 160, 90]], np.uint8)
    flat = colors[np.random.default_rng(1).integers(0, 4, 64)][:, None, None].repeat(16, 1).repeat(16, 2)
    np.savez(source, images=flat)
    settings = replace(TINY, steps=200, batch=8, ema=0.9, lr=1e-2, validate_every=200, validation_images=12)
    card = train_vq(source, tmp_path / "run", settings, runtime=runtime())
    assert card["validation"]["psnr"] > 20  # gray images have 6
    x = torch.from_numpy(flat[:8]).permute(0, 3, 1, 2) / 127.5 - 1
    assert (VQStage(load_vq(tmp_path / "run")).purify_batch(x, list("abcdefgh"), seed=0) - x).square().mean() < 0.04


def test_validation_is_the_error_on_held_out_images_and_counts_codes() -> None:
    class Four(VQAutoencoder):
        """Rebuilds nothing; the number of a vector's code is its column."""

        def nearest(self, z):  # type: ignore[no-untyped-def]
            return torch.arange(z.shape[3]).expand(len(z), z.shape[2], -1) % 4

        def decode(self, codes):  # type: ignore[no-untyped-def]
            return torch.zeros(len(codes), 3, 2 * codes.shape[2], 2 * codes.shape[3])

    result = validate_vq(Four(8, 1, 16, 4), torch.full((130, 3, 16, 16), 0.5))
    assert result["figure"] == pytest.approx(0.25) and result["psnr"] == pytest.approx(10 * np.log10(16))
    assert result["used"] == 4 and result["perplexity"] == pytest.approx(4)


def test_the_command_has_every_setting_and_leaves_a_model_that_purifies(source: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(["train", "vq", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"--{field.name.replace('_', '-')} " in shown for field in fields(VQSettings))
    arguments = ["train", "vq", str(source), "--out", str(tmp_path / "run"), "--width", "8", "--layers", "1"]
    arguments += ["--n-codes", "8", "--size", "16", "--batch", "4", "--steps", "3", "--device", "cpu", "--json"]
    assert run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert printed["card"] == card and card["settings"]["n_codes"] == 8
    assert (card["architecture"], card["training_data"]["trained_on"]) == ("vq", 32)
    assert run(["purify", str(source), str(tmp_path / "out.npz"), "--model", str(tmp_path / "run"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["stage"]["stage"] == "vq" and record["counts"]["purified"] == 40


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_codes": 0}, "n_codes must be at least 1"),
        ({"size": 18, "halvings": 2}, "size must be a multiple of 4 and at least 16, got 18"),
        ({"code_decay": 1.5}, "code_decay must be in 0 .. 1, got 1.5"),
        ({"commitment": float("nan")}, "commitment must be 0 or more and finite, got nan"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"halvings": 5, "size": 64}, "halvings at most 4"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(replace(TINY, **values))  # type: ignore[arg-type]


def test_the_default_network_fits_two_megabytes() -> None:
    assert sum(value.numel() for value in build_network(VQSettings()).state_dict().values()) < 500_000
