"""`pureebm purify --chain` from end to end, with a tiny energy and, where diffusers is, a tiny DDPM."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pureebm.energy.weights import save_model
from pureebm.purify.vq import VQAutoencoder


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small DDPM of random weights."""
    pytest.importorskip("diffusers")
    from pureebm.diffusion.weights import build_unet, save_ddpm, unet_config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_unet(unet_config(widths=(4, 8), layers=1, patch=2, size=32, attention=False))
    folder = tmp_path_factory.mktemp("ddpm")
    save_ddpm(folder / "model.safetensors", network, {"levels": 250, "data": "none", "description": "tiny"})
    return folder


def statuses(target: Path) -> list[str]:
    return pq.read_table(target / "pureebm-manifest.parquet")["status"].to_pylist()


def manifest(target: Path) -> list[str]:
    return pq.read_table(target / "pureebm-manifest.parquet")["sha256_after"].to_pylist()


def test_reps_is_its_stages_written_out_and_the_report_tells_the_command(
    pureebm, image_folder, tiny_model, ddpm, tmp_path
):
    models = ["--model", tiny_model, "--ddpm", ddpm, "--limit", 4, "--json"]
    done = pureebm("purify", image_folder, tmp_path / "a", *models, "--chain", "2 * (energy(2) > ddpm(3, ddim=1))")
    assert done.code == 0 and done.json["counts"]["purified"] == 4 and done.json["steps"] == 4
    stages = done.json["settings"]["stage"]["stages"]
    assert [stage["stage"] for stage in stages] == ["langevin", "ddpm"] * 2
    assert stages[1]["level"] == 3 and stages[0]["model"]["name"] == str(tiny_model)
    text = "energy(2) > ddpm(3, ddim=1) > energy(2) > ddpm(3, ddim=1)"
    assert pureebm("purify", image_folder, tmp_path / "b", *models, "--chain", text).code == 0
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b")
    page = (tmp_path / "a" / "pureebm-report.html").read_text()
    assert f"--chain &#39;{text.replace('>', '&gt;')}&#39; --model {tiny_model} --ddpm {ddpm}" in page
    assert "--steps" not in page


def test_filt_purifies_the_share_of_highest_energy_and_says_so(pureebm, image_folder, tiny_model, tmp_path):
    arguments = ["purify", image_folder, tmp_path / "out", "--model", tiny_model, "--chain", "filter(25%) > jpeg(50)"]
    done = pureebm(*arguments)
    assert done.code == 0 and "64 images: 16 purified, 48 kept" in done.err
    assert pureebm("score", image_folder, "--model", tiny_model, "--out", tmp_path / "scores.parquet").code == 0
    highest = set(pq.read_table(tmp_path / "scores.parquet")["id"].to_pylist()[:16])
    rows = pq.read_table(tmp_path / "out" / "pureebm-manifest.parquet").to_pylist()
    assert {row["id"] for row in rows if row["status"] == "purified"} == highest
    assert "--chain &#39;filter(25%) &gt; jpeg(50)&#39;" in (tmp_path / "out" / "pureebm-report.html").read_text()


def test_a_chain_over_two_processes_gives_the_same_bytes(pureebm, image_folder, tiny_model, tmp_path):
    arguments = ["--model", tiny_model, "--chain", "filter(50%) > energy(1) > jpeg(50)", "--threads", 1]
    assert pureebm("purify", image_folder, tmp_path / "a", *arguments).code == 0
    assert pureebm("purify", image_folder, tmp_path / "b", *arguments, "--workers", 2).code == 0
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b") and statuses(tmp_path / "b").count("kept") == 32


def test_a_ddpm_is_recognized_as_a_model_and_by_models_info(pureebm, image_folder, ddpm, tmp_path):
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", ddpm, "--steps", 2, "--limit", 2, "--json")
    assert done.code == 0 and done.json["settings"]["stage"]["level"] == 2
    assert "--chain &#39;ddpm(2)&#39; --ddpm" in (tmp_path / "out" / "pureebm-report.html").read_text()
    card = pureebm("models", "info", ddpm / "model.safetensors", "--json").json
    assert card == json.loads((ddpm / "model.json").read_text()) and card["architecture"] == "ddpm"
    assert pureebm("models", "verify", ddpm, "--json").json["verified"] == {str(ddpm): card["sha256"]}


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small autoencoder of random weights."""
    folder = tmp_path_factory.mktemp("vq")
    save_model(folder / "model.safetensors", VQAutoencoder(8, 1, 16, 4), {"data": "none", "description": "tiny"})
    return folder


def test_an_autoencoder_purifies_alone_and_in_a_chain_and_the_report_tells_how(pureebm, image_folder, vq, tmp_path):
    done = pureebm("purify", image_folder, tmp_path / "a", "--model", vq, "--limit", 4, "--seed", 1, "--json")
    assert done.code == 0 and done.json["settings"]["stage"]["stage"] == "vq" and done.json["counts"]["purified"] == 4
    assert f"--chain vq --vq {vq}" in (tmp_path / "a" / "pureebm-report.html").read_text()
    chained = ["--chain", "vq", "--vq", vq, "--limit", 4, "--seed", 2]  # which draws nothing
    assert pureebm("purify", image_folder, tmp_path / "b", *chained).code == 0
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b")
    assert pureebm("verify", tmp_path / "a").code == 0
    card = pureebm("models", "info", vq, "--json").json
    assert card == json.loads((vq / "model.json").read_text()) and card["architecture"] == "vq"
    assert pureebm("models", "verify", vq, "--json").json["verified"] == {str(vq): card["sha256"]}
    refused = pureebm("purify", image_folder, tmp_path / "c", "--model", vq, "--steps", 3, "--level", 1, "--json")
    assert refused.code == 2 and "is an autoencoder: it takes no --steps, --level" in refused.json["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chain", "energy > dppm"], "position 10: unknown stage 'dppm'; did you mean 'ddpm'?"),
        (["--chain", "energy", "--steps", "3"], "--steps does not go with --chain"),
        (["--chain", "energy", "--ddpm", "x"], "the chain 'energy' has no ddpm"),
        (["--ddpm", "x"], "--ddpm names the DDPM of a chain"),
        (["--chain", "energy", "--vq", "x"], "the chain 'energy' has no vq"),
        (["--vq", "x"], "--vq names the autoencoder of a chain"),
        (["--chain", "vq", "--vq", "nowhere"], "unknown model 'nowhere': no such file, and the bundled ones are vq-32"),
        (["--chain", "ddpm", "--ddpm", "nowhere"], "no such DDPM: nowhere"),
        (["--chain", "jpeg(0)"], "JPEG quality must be 1 to 100, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(pureebm, image_folder, tiny_model, tmp_path, options, message):
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model, *options, "--json")
    assert done.code == 2 and message in done.json["error"] and not (tmp_path / "out").exists()


def test_a_ddpm_takes_no_sampler_of_energies(pureebm, image_folder, ddpm, tmp_path):
    arguments = ["purify", image_folder, tmp_path / "out", "--model", ddpm, "--json"]
    for options, message in {
        ("--step-size", 0.1): "it takes --steps, its level of noise, but no --step-size",
        ("--steps", "auto"): "--steps must be the level of noise or a whole number",
        ("--steps", 300): "has learned 250 levels of noise; level 300 is beyond them",
    }.items():
        done = pureebm(*arguments, *options)
        assert done.code == 2 and message in done.json["error"]
