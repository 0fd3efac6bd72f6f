"""Verifying: an untouched target is as recorded, item by item; each kind of difference is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.purify.test_invariance import pictures

from pureebm.data.open import open_source
from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.purify.baselines import BlurStage, JPEGStage
from pureebm.purify.job import JobConfig, run
from pureebm.purify.recorded import stage_of
from pureebm.purify.stages import Chain, Highest, LangevinStage
from pureebm.purify.verify import verify
from pureebm.sampling.langevin import LangevinConfig

pytestmark = pytest.mark.usefixtures("small_chunks")
CONFIG = JobConfig(batch_size=4, seed=5)
SAMPLER = LangevinConfig(n_steps=3, step_size=0.05, temperature=1e-3, temperature_end=1e-4)


def stage_of_model(path: Path) -> LangevinStage:
    loaded = load_model(path)
    return LangevinStage(loaded.energy, SAMPLER, precision="float32", model=loaded.describe())


@pytest.fixture
def made(tmp_path: Path, tiny_model: Path) -> tuple[Path, Path]:
    """A folder of pictures of two sizes (one unreadable, one JPEG), and its purified target."""
    source = tmp_path / "in"
    for index, image in enumerate(pictures()):
        path = source / f"class{index % 2}" / f"{index:02d}.{'jpg' if index == 4 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (source / "class0" / "00-broken.png").write_bytes(b"x")
    record = run(source, tmp_path / "out", stage_of_model(tiny_model), CONFIG)
    assert record.counts["purified"] == 21 and record.source == str(source)
    return source, tmp_path / "out"


def test_an_untouched_target_is_as_recorded(made: tuple[Path, Path]) -> None:
    found = verify(made[1], n=100)
    assert (found.exit_code, found.purified, found.repurified, len(found.items)) == (0, 21, 21, 21)
    assert found.differs == found.notes == [] and all(item.differs == [] for item in found.items)


def test_each_item_alone_gives_the_bytes_that_it_gave_among_all_others(made: tuple[Path, Path]) -> None:
    seen = {verify(made[1], n=1, choice=choice).items[0].id for choice in range(12)}
    assert len(seen) > 6
    assert all(verify(made[1], n=1, choice=choice).exit_code == 0 for choice in range(12))


@pytest.mark.parametrize("kind", ["npz", "parquet", "cifar"])
def test_every_kind_of_target_can_be_verified(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    images = np.stack([np.asarray(image) for image in pictures() if image.shape[0] == 32])
    source = tmp_path / {"npz": "in.npz", "parquet": "in.parquet", "cifar": "data_batch_1.bin"}[kind]
    if kind == "npz":
        np.savez(source, images=images)
    elif kind == "cifar":
        records = np.zeros((len(images), 3073), np.uint8)
        records[:, 1:] = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records[3, 0] = 77  # an impossible label: left out of the target
        records.tofile(source)
    else:
        import io

        import pyarrow as pa

        cells = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        cells[2] = {"bytes": b"broken", "path": None}
        pq.write_table(pa.table({"image": cells}), source)
    target = tmp_path / "out" / source.name
    run(source, target, stage_of_model(tiny_model), CONFIG)
    found = verify(target, n=100)
    assert found.exit_code == 0 and found.repurified == len(images) - (kind != "npz")
    assert verify(target, n=1).exit_code == 0


def test_changed_bytes_of_the_target_are_named_and_counted(made: tuple[Path, Path]) -> None:
    path = made[1] / "class1" / "01.png"
    pixels = np.array(Image.open(path))
    pixels[0, :3, 0] ^= 2
    Image.fromarray(pixels).save(path)
    (made[1] / "class1" / "03.png").unlink()
    found = verify(made[1], n=100)
    assert found.exit_code == 1 and found.differs == []
    wrong = {item.id: item for item in found.items if item.differs}
    assert {name: item.differs for name, item in wrong.items()} == {
        "class1/01.png": ["target: other bytes than were stored"],
        "class1/03.png": ["target: the item is missing"],
    }


def test_a_changed_source_is_named(made: tuple[Path, Path]) -> None:
    path = made[0] / "class1" / "05.png"
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    found = verify(made[1], n=100)
    (item,) = [item for item in found.items if item.differs]
    assert item.id == "class1/05.png" and item.differs[0] == "source changed: other bytes than were read"
    assert item.differs[1].startswith("bytes: purifying it again gives others (") and item.values_changed > 1000
    path.unlink()
    found = verify(made[1], n=100)
    assert any("stands in its place" in line for item in found.items for line in item.differs)
    assert "source: images: was 22, is 21" in found.differs


def test_a_touched_source_is_a_note_only(made: tuple[Path, Path]) -> None:
    os.utime(made[0] / "class0" / "02.png", (1, 1))
    found = verify(made[1], n=5)
    assert found.exit_code == 0 and len(found.notes) == 1 and "source has changed since" in found.notes[0]


def test_a_moved_source_is_found_beside_the_target_or_where_one_says(made: tuple[Path, Path], tmp_path: Path) -> None:
    moved = shutil.move(made[0], tmp_path / "elsewhere" / "moved")
    with pytest.raises(InputError, match=r"the source 'in' is not at .*say where with --source"):
        verify(made[1])
    assert verify(made[1], source=Path(moved)).exit_code == 0
    (tmp_path / "far").mkdir()
    shutil.move(moved, tmp_path / "far" / "in")
    shutil.move(made[1], tmp_path / "far" / "out")
    assert verify(tmp_path / "far" / "out").exit_code == 0


def test_missing_and_other_weights_are_named(made: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kept.safetensors"
    shutil.copy(tiny_model, copy)
    shutil.copy(tiny_model.with_suffix(".json"), copy.with_suffix(".json"))
    record_path = made[1] / "pureebm-run.json"
    record = json.loads(record_path.read_text())
    record["settings"]["stage"]["model"]["name"] = str(tmp_path / "gone.safetensors")
    record_path.write_text(json.dumps(record))
    found = verify(made[1], n=5)
    assert found.exit_code == 1 and found.repurified == 0
    assert found.differs[0].startswith("model: missing: unknown model") and "--model" in found.differs[0]
    assert verify(made[1], n=5, model=str(copy)).exit_code == 0
    found = verify(made[1], n=5, model="local-32")
    assert found.exit_code == 1 and found.differs[0].startswith("model: changed: the sha256 of local-32 is")


def test_other_settings_give_other_bytes(made: tuple[Path, Path]) -> None:
    record_path = made[1] / "pureebm-run.json"
    record = json.loads(record_path.read_text())
    record["settings"]["seed"] = 6
    record["settings"]["versions"]["torch"] = "2.0.0"
    record_path.write_text(json.dumps(record))
    found = verify(made[1], n=3)
    assert all(item.differs[0].startswith("bytes: purifying it again gives others") for item in found.items)
    assert found.notes[0].startswith("made with torch 2.0.0, verified with")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda side: (side / "pureebm-run.json").unlink(), "no finished target"),
        (lambda side: (side / "pureebm-run.json").write_text("[1"), "is not a run record"),
        (lambda side: (side / "pureebm-run.json").write_text("{}"), "lacks settings, counts"),
        (lambda side: (side / "pureebm-manifest.parquet").write_bytes(b"PAR1"), "missing or damaged"),
        (lambda side: (side / "pureebm-manifest.parquet").unlink(), "missing or damaged"),
    ],
)
def test_what_is_no_finished_target_is_refused(made: tuple[Path, Path], damage, said: str) -> None:  # type: ignore[no-untyped-def]
    damage(made[1])
    with pytest.raises(InputError, match=said):
        verify(made[1])


def test_a_target_at_a_url_is_to_be_copied_first() -> None:
    with pytest.raises(InputError, match="s3://bucket/set is elsewhere; copy it here"):
        verify(Path("s3://bucket/set"))


def test_a_stage_is_made_again_from_its_settings(tiny_model: Path) -> None:
    stage = Chain([JPEGStage(50), stage_of_model(tiny_model), BlurStage(0.7)])
    told = json.loads(json.dumps(stage.settings()))
    assert stage_of(told, model=str(tiny_model)).settings() == told
    assert stage_of({"stage": "highest", "share": 0.5, "of": told, "by": {}}, model=str(tiny_model)).settings() == told


def test_a_record_from_before_noise_could_fade_is_of_noise_that_stays(tiny_model: Path) -> None:
    told = stage_of_model(tiny_model).settings()
    assert told.pop("adapt_fades") is True
    assert stage_of(json.loads(json.dumps(told)), model=str(tiny_model)).settings()["adapt_fades"] is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_steps", 1e9),
        ("n_steps", True),
        ("adapt_fades", 1),
        ("step_size", None),
        ("temperature", float("nan")),
        ("device", "cp-1u"),
        ("engine", 3),
        ("precision", []),
        ("model", "local-32"),
        ("stage", "magic"),
    ],
)
def test_a_damaged_record_is_refused(tiny_model: Path, name: str, value: object) -> None:
    told = json.loads(json.dumps(stage_of_model(tiny_model).settings()))
    with pytest.raises(InputError, match="damaged|cannot be made"):
        stage_of(told | {name: value}, model=str(tiny_model))


def test_only_images_of_highest_energy_are_verified_where_only_these_were_purified(
    made: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    stage = stage_of_model(tiny_model)
    run(made[0], tmp_path / "some", Highest(stage, 0.5, by=stage), CONFIG)
    found = verify(tmp_path / "some", n=100)
    assert found.exit_code == 0 and 0 < found.repurified < 21


def test_sources_of_a_target_are_read_without_writing(made: tuple[Path, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for root in made for path in root.rglob("*")}
    verify(made[1], n=3)
    assert before == {path: path.stat().st_mtime_ns for root in made for path in root.rglob("*")}
    assert len(open_source(made[1])) == 21
