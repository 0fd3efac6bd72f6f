"""The vector-quantized autoencoder: the nearest code, one image one result, any size, and weights on disk."""

from __future__ import annotations

import json
import pickle
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pureebm.data.open import open_source
from pureebm.data.ranges import stack, to_pm1, to_uint8
from pureebm.energy.networks import LocalEnergy
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError, ModelError
from pureebm.purify.recorded import stage_of
from pureebm.purify.vq import VQAutoencoder, VQStage, bundled_vq, is_vq, load_vq

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
IDS = ["a", "b", "c", "d"]


def tiny(**sizes: int) -> VQAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VQAutoencoder(**{"width": 8, "layers": 1, "n_codes": 16, "code_dim": 4} | sizes).eval()
        network.codes.normal_(std=0.2)
    return network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_model(tmp_path / "vq" / "model.safetensors", tiny(), {"data": "none: random weights"})
    return tmp_path / "vq" / "model.safetensors"


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 4, 1, 1), (2, 4, 16, 16)])
def test_each_vector_gets_the_nearest_code(shape: tuple[int, ...]) -> None:
    network, z = tiny(), torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.3
    numbers = network.nearest(z)
    for n, h, w in torch.cartesian_prod(*[torch.arange(side) for side in (shape[0], *shape[2:])]).tolist():
        distances = (z[n, :, h, w].double() - network.codes.double()).square().sum(1)
        assert numbers[n, h, w] == distances.argmin()
    assert torch.equal(network.nearest(network.embed(numbers)), numbers)
    assert torch.equal(network.embed(numbers)[0, :, 0, 0], network.codes[numbers[0, 0, 0]])


def test_codes_are_chosen_in_float32_whatever_the_rest_is_computed_in() -> None:
    network, z = tiny(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    network.codes.copy_(1 + network.codes / 100)  # which are all the same in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        low = network.nearest(1 + z / 100)
    assert torch.equal(low, network.nearest(1 + z / 100)) and len(low.unique()) > 8


def test_an_image_does_not_depend_on_its_neighbors_their_order_its_id_or_the_seed() -> None:
    stage = VQStage(tiny(), precision="float32")
    whole = stage.purify_batch(X, IDS, seed=0)
    assert torch.equal(whole, stage.purify_batch(X.flip(0), IDS[::-1], seed=7).flip(0))
    assert torch.equal(whole[0], stage.purify_batch(torch.cat([X[:1], -X[1:]]), list("wxyz"), seed=1)[0])
    assert not torch.equal(whole, X) and whole.isfinite().all()


@pytest.mark.parametrize("halvings", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (17, 30), (33, 18)])
def test_images_of_any_size_keep_it_and_are_padded_by_replication(size: tuple[int, int], halvings: int) -> None:
    network = tiny(halvings=halvings)
    images = X[:, :, : size[0], : size[1]] if size[0] <= 32 else X[:, :, :1, :1].expand(4, 3, *size)
    out = VQStage(network, precision="float32").purify_batch(images, IDS, seed=0)
    assert out.shape == images.shape and out.is_contiguous() and out.isfinite().all()
    rows, columns = (torch.arange(-(-side // 2**halvings) * 2**halvings).clamp(max=side - 1) for side in size)
    padded: Tensor = network(images[:, :, rows][:, :, :, columns])
    assert torch.equal(out, padded[:, :, : size[0], : size[1]])


def test_small_images_are_refused() -> None:
    with pytest.raises(InputError, match="at least 16 px"):
        tiny()(X[:, :, :15])


def test_bfloat16_is_near_float32() -> None:
    network = tiny()
    low, high = (VQStage(network, precision=name).purify_batch(X, IDS, seed=0) for name in ("bfloat16", "float32"))
    assert low.dtype == torch.float32 and 0 < (low - high).abs().mean() < 0.01
    with pytest.raises(InputError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        VQStage(network, precision="half")


def test_a_saved_one_comes_back_from_its_file_and_its_folder_and_is_known_by_its_card(file: Path) -> None:
    for name in (file, file.parent):
        loaded = load_vq(name)
        assert torch.equal(loaded.network(X), tiny()(X)) and is_vq(name)
        assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    told = VQStage(load_vq(file), precision="float32").settings()
    assert told == {"stage": "vq", "model": load_vq(file).describe(), "precision": "float32", "device": "cpu"}
    assert told["model"]["sha256"] == json.loads(file.with_suffix(".json").read_text())["sha256"]
    assert VQStage(load_vq(file)).energies(X) is None


def test_a_record_makes_the_stage_again_unless_the_weights_are_others(file: Path) -> None:
    told = json.loads(json.dumps(VQStage(load_vq(file), precision="float32").settings()))
    stage = stage_of(told)
    assert stage.settings() == told and torch.equal(stage.purify_batch(X, IDS, seed=0), tiny()(X))
    with pytest.raises(ModelError, match="changed: the sha256 of"):
        stage_of(told | {"model": told["model"] | {"sha256": "0" * 64}})


def test_a_stage_can_be_sent_to_other_processes(file: Path) -> None:
    stage = VQStage(load_vq(file), precision="float32")
    sent = pickle.loads(pickle.dumps(stage))
    assert torch.equal(sent.purify_batch(X, IDS, seed=0), stage.purify_batch(X, IDS, seed=0))


def test_what_is_no_autoencoder_is_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "energy.safetensors"
    save_model(path, LocalEnergy((4,), (1,)), {})
    assert not is_vq(path) and not is_vq(tmp_path) and not is_vq("local-32") and not is_vq("nowhere")
    with pytest.raises(ModelError, match="unknown architecture 'local'; known: vq"):
        load_vq(path)
    with pytest.raises(ModelError, match="unknown architecture 'vq'; known: sngan, local, student"):
        load_model(file)
    with pytest.raises(ModelError, match="unknown model 'nowhere': no such file, and the bundled ones are vq-32"):
        load_vq("nowhere")
    path.with_suffix(".json").write_text("{")
    assert not is_vq(path)


def test_a_damaged_file_is_refused_in_words(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match="sha256 is .* its card says"):
        load_vq(file)
    file.write_bytes(whole[:100])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_vq(file)
    file.write_bytes(whole)
    card = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(card | {"config": card["config"] | {"n_codes": 17}}))
    with pytest.raises(ModelError, match=r"the first is 'codes': expected \(17, 4\), found \(16, 4\)"):
        load_vq(file)


@pytest.mark.parametrize(
    "change", [{"n_codes": 10**9}, {"width": -1}, {"layers": 1.5}, {"halvings": 5}, {"code_dim": None}, {"levels": 3}]
)
def test_a_card_whose_config_is_damaged_is_refused_in_words(file: Path, change: dict[str, object]) -> None:
    card = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(card | {"config": card["config"] | change}))
    with pytest.raises(ModelError, match="its card's config"):
        load_vq(file)


def test_the_bundled_one_is_small_and_rebuilds_real_pictures() -> None:
    assert bundled_vq().stat().st_size <= 2_000_000 and is_vq("vq-32")
    sample = resources.files("pureebm") / "data" / "demo" / "cifar10-sample.npz"
    loaded = open_source(Path(str(sample))).load(0, 64)
    images = stack([one.picture.pixels for one in loaded if one.picture])
    rebuilt = to_pm1(to_uint8(VQStage(load_vq()).purify_batch(images, [one.item.id for one in loaded], seed=0)))
    assert (rebuilt - images).square().mean() < 4 / 10**2.8  # 28 dB
