"""`pureebm models`."""

import hashlib
from importlib.util import find_spec

from pureebm.diffusion.weights import DEFAULT_DDPM
from pureebm.diffusion.weights import bundled_path as bundled_ddpm
from pureebm.energy.weights import MODELS, bundled_path
from pureebm.purify.vq import DEFAULT_VQ, bundled_vq


def test_list_shows_every_bundled_model_with_the_hash_of_its_file(pureebm):
    done = pureebm("models", "list", "--json")
    assert done.code == 0
    rows = {row["name"]: row for row in done.json["models"]}
    others = {DEFAULT_DDPM: bundled_ddpm(), DEFAULT_VQ: bundled_vq()}
    paths = {name: bundled_path(name) for name in MODELS} | {n: path for n, path in others.items() if path.is_file()}
    assert rows.keys() == paths.keys()
    for name, row in rows.items():
        data = paths[name].read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert len(data) <= 5_000_000
    told = pureebm("models", "list")
    assert (told.code, told.out) == (0, "")
    assert all(name in told.err for name in MODELS)


def test_info_is_the_card(pureebm, tiny_model):
    card = pureebm("models", "info", tiny_model, "--json").json
    assert (card["architecture"], card["auto_steps"]) == ("local", 5)
    assert "architecture: local" in pureebm("models", "info", tiny_model).err


def test_verify_is_two_for_a_file_that_its_card_does_not_know(pureebm, tiny_model, tmp_path):
    assert pureebm("models", "verify").code == 0
    assert pureebm("models", "verify", tiny_model).code == 0
    data = bytearray(tiny_model.read_bytes())
    data[-1] ^= 1
    (tmp_path / "bent.safetensors").write_bytes(data)
    (tmp_path / "bent.json").write_bytes(tiny_model.with_suffix(".json").read_bytes())
    done = pureebm("models", "verify", tmp_path / "bent.safetensors", "--json")
    assert done.code == done.json["exit_code"] == 2
    assert "sha256" in done.json["error"]


def test_the_bundled_ddpm_is_verified_and_shown_without_its_library_and_purifies_by_its_name(
    pureebm, image_folder, tmp_path, monkeypatch
):
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", "ddpm-32", "--steps", 1, "--limit", 2, "--json")
    assert done.code == 0 and done.json["settings"]["stage"]["model"]["name"] == "ddpm-32"
    found = find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else found(name))
    monkeypatch.setattr("pureebm.diffusion.weights.build_unet", None)
    sha256 = pureebm("models", "info", "ddpm-32", "--json").json["sha256"]
    assert pureebm("models", "verify", "--json").json["verified"]["ddpm-32"] == sha256
