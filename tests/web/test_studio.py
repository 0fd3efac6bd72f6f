"""What the pages show is what the job would do, and it is bounded."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pureebm.data.ranges import stack, to_uint8
from pureebm.errors import InputError
from pureebm.purify.score import score
from pureebm.sampling.langevin import LangevinConfig
from pureebm.web import studio as module
from pureebm.web.drawing import curve
from pureebm.web.places import Places
from pureebm.web.settings import hints
from pureebm.web.studio import N_PREVIEW, Studio, evenly
from pureebm.web.unpack import Limits


@pytest.fixture
def studio(tiny_model):
    return Studio(tiny_model, precision="float32")


@pytest.fixture
def places(tmp_path, image_folder):
    (tmp_path / "uploads").mkdir()
    return Places(image_folder, tmp_path / "uploads", Limits())


@pytest.fixture
def opened(places):
    return places.open("files")


@pytest.mark.parametrize("initial_noise", [0.0, 0.1])
def test_a_chain_leads_from_the_image_to_what_a_job_makes_of_it(studio, opened, initial_noise):
    config = dataclasses.replace(studio.config(steps=5), initial_noise=initial_noise)
    chain = studio.chain(opened, 7, config, seed=3)
    (loaded,) = opened.load([7])
    stage, pixels = studio.stage(config), stack([loaded.picture.pixels])
    purified = stage.purify_batch(pixels, [loaded.item.id], seed=3)
    np.testing.assert_array_equal(chain.frames[0], loaded.picture.pixels)
    np.testing.assert_array_equal(chain.frames[-1], to_uint8(purified)[0].permute(1, 2, 0).numpy())
    ends = [stage.energies(pixels).item(), stage.energies(purified).item()]
    assert [chain.energies[0], chain.energies[-1]] == pytest.approx(ends, rel=1e-4)
    names = ["before", "noise added", *(f"step {k}" for k in range(1, 6))]
    if not initial_noise:
        names.remove("noise added")
    assert [chain.name(place) for place in chain.places] == names
    assert len(chain.energies) == len(chain.frames) == len(names)


def test_a_long_chain_keeps_a_bounded_number_of_frames_and_all_energies(studio, opened):
    chain = studio.chain(opened, 0, studio.config(steps=200), seed=0)
    assert (len(chain.frames), len(chain.places), len(chain.energies)) == (61, 61, 201)
    assert (chain.places[0], chain.places[-1]) == (0, 200)
    again = studio.chain(opened, 0, studio.config(steps=200), seed=0)
    assert again is chain
    assert studio.chain(opened, 0, studio.config(steps=200), seed=1) is not chain


def test_no_steps_change_nothing(studio, opened):
    chain = studio.chain(opened, 0, studio.config(steps=0), seed=0)
    assert (len(chain.frames), chain.psnr()) == (1, None)


def test_energies_are_those_of_the_score_command_highest_first(studio, opened, places):
    found = studio.energies(opened)
    wanted = score(places.root, studio.stage(studio.config())).table.to_pylist()
    assert [one.id for one in found.scored] == [row["id"] for row in wanted]
    assert found.values() == pytest.approx([row["energy"] for row in wanted], rel=1e-5)
    assert (found.total, found.sampled, found.cropped, found.failures) == (64, 64, False, [])
    assert studio.energies(opened) is found


def test_of_a_large_set_some_are_computed_spread_evenly(studio, opened, monkeypatch):
    monkeypatch.setattr(module, "N_ENERGIES", 40)
    found = studio.energies(opened)
    assert found.sampled == 40
    assert sorted(one.index for one in found.scored) == evenly(64, 40)


def test_of_large_images_fewer_are_computed_and_only_their_center(studio, places, monkeypatch):
    folder = places.root / "large"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (300, 40 + index), (index, 0, 0)).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"x")
    Image.new("RGB", (8, 300)).save(folder / "narrow.png")
    monkeypatch.setattr(module, "ENERGY_PIXELS", 1)
    monkeypatch.setattr(module, "FEWEST_ENERGIES", 7)
    opened = places.open("files/large")
    found = studio.energies(opened)
    assert found.cropped and found.sampled == 7 and len(found.scored) == 5
    assert [name for name, _ in found.failures] == ["broken.png", "narrow.png"]
    shapes = {one.before.shape for one in studio.preview(opened, studio.config(), 0).images if one.after is not None}
    assert {shape[1] for shape in shapes} == {studio.preview(opened, studio.config(), 0).side}


def test_the_preview_has_the_eight_of_highest_energy_and_is_what_the_stage_makes(studio, opened):
    config = studio.config(steps=2, noise=0.5)
    found = studio.preview(opened, config, seed=5)
    assert (len(found.images), found.side) == (N_PREVIEW, None)
    top = {one.index for one in studio.energies(opened).scored[:8]}
    assert top < {one.index for one in found.images}
    ids = [loaded.item.id for loaded in opened.load([one.index for one in found.images])]
    before = stack([one.before for one in found.images])
    wanted = to_uint8(studio.stage(config).purify_batch(before, ids, seed=5)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.stack([one.after for one in found.images]), wanted)


def test_a_constant_replaces_a_schedule_and_zero_is_a_value(tiny_model, studio):
    studio.loaded().card["sampler"] |= {"step_size_end": 0.001, "temperature_end": 0.002}
    config = studio.config(step_size=0.5, steps=0, noise=0.0)
    assert (config.step_size, config.step_size_end, config.temperature_end) == (0.5, None, 0.002)
    assert (config.n_steps, config.noise) == (0, 0.0)


def test_what_would_take_too_long_is_refused(studio, opened):
    for call in (studio.preview, lambda *rest: studio.chain(rest[0], 0, *rest[1:])):
        with pytest.raises(InputError, match="at most 1000 steps, not 1001"):
            call(opened, studio.config(steps=1001), 0)


@pytest.mark.parametrize("index", [-1, 64])
def test_an_image_that_is_not_there_is_refused(studio, opened, index):
    with pytest.raises(InputError, match="there is no image"):
        studio.chain(opened, index, studio.config(), 0)


def test_sixteen_bits_are_shown_as_eight():
    from pureebm.web.drawing import difference

    dark, light = np.full((2, 2, 3), 0x1000, np.uint16), np.full((2, 2, 3), 0x1800, np.uint16)
    assert difference(dark, light, 4).tolist() == np.full((2, 2, 3), 128 + 4 * 8).tolist()
    assert difference(light.astype(np.uint8), dark.astype(np.uint8) + 255, 16).max() == 255


def test_a_short_chain_has_every_step_under_its_curve_and_a_long_one_four():
    assert [text for _, text in curve([1.0, 9.0, 4.0, 2.0], first=1).x_ticks] == ["before", "noise", "1", "2"]
    assert [text for _, text in curve([1.0, 2.0, 3.0]).x_ticks] == ["before", "1", "2"]
    assert [text for _, text in curve([1.0] * 102, first=1).x_ticks] == ["before", "24", "49", "75", "100"]


def test_values_of_the_model_fit_their_fields():
    config = LangevinConfig(step_size=0.02371, temperature=2.8e-4, temperature_end=2.27e-6)
    assert hints(config)["step_size"] == "0.0237" and hints(config)["temperature"] == "0.00028 → 2.3e-6"
