"""A scan finds each planted fault, names it, and finds nothing in a set without any."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.attacks.worlds import attacker
from tests.purify.job_fakes import Shift

from pureebm.attacks.badnets import Config, craft
from pureebm.attacks.base import LabeledSet
from pureebm.data import pictures as picture_files
from pureebm.data.labels import read_labeled_source
from pureebm.errors import InputError, Interrupted
from pureebm.evaluation import scan as scan_module
from pureebm.evaluation.sarif import SEVERITY, sarif_of, sarif_of_error
from pureebm.evaluation.scan import NOT_RULED_OUT, RULES, Scan, robust_scores, scan

N, CLASSES = 96, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """96 different pictures in three class folders, as BMP."""
    random = np.random.default_rng(0)
    for number in range(N):
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
        path = tmp_path / "set" / f"class{number % CLASSES}" / f"{number:03}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((24, 24), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "set"


class Roughness(Shift):
    """An energy as natural images have it: what is rough stands high."""

    def energies(self, images):  # type: ignore[no-untyped-def]
        return (images[:, :, 1:] - images[:, :, :-1]).square().flatten(1).mean(1)


def rules(found: Scan) -> dict[str, list[list[str]]]:
    """Rule -> the items of each of its findings."""
    told: dict[str, list[list[str]]] = {}
    for finding in found.findings:
        told.setdefault(finding.rule, []).append(finding.items)
    return told


def test_a_set_without_faults_has_no_findings(folder: Path) -> None:
    found = scan(folder, Shift())
    assert found.findings == [] and not found.fails("low")
    assert (found.images, found.readable, found.classes) == (N, N, CLASSES)
    assert found.to_json()["not_ruled_out"] == NOT_RULED_OUT


def test_bad_files_are_named_with_their_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 900)
    monkeypatch.setattr(scan_module, "MAX_PIXELS", 900)
    whole = (folder / "class0" / "000.bmp").read_bytes()
    (folder / "class0" / "empty.png").write_bytes(b"")
    (folder / "class1" / "cut.bmp").write_bytes(whole[: len(whole) // 2])
    (folder / "class2" / "text.jpg").write_text("GIF is what I am not")
    Image.new("RGB", (31, 31), "red").save(folder / "class2" / "bomb.png")
    Image.new("RGB", (8, 8), "red").save(folder / "class2" / "small.png")
    found = scan(folder, Shift())
    assert rules(found) == {
        "image-bomb": [["class2/bomb.png"]],
        "unreadable-image": [["class0/empty.png"], ["class1/cut.bmp"], ["class2/text.jpg"]],
        "unscorable-image": [["class2/small.png"]],
    }
    assert [finding.level for finding in found.findings] == ["high", "medium", "medium", "medium", "low"]
    assert found.fails("high") and found.readable == N + 1


def test_duplicates_are_told_apart_by_their_labels(folder: Path) -> None:
    def copy(source: str, target: str, **options: int) -> None:
        Image.open(folder / source).save(folder / target, **options)

    copy("class0/000.bmp", "class0/same.png")
    copy("class0/003.bmp", "class1/other-label.png")
    copy("class2/002.bmp", "class2/near.jpg", quality=90)
    copy("class2/005.bmp", "class1/near-other.jpg", quality=90)
    found = rules(scan(folder, Shift()))
    assert found == {
        "conflicting-labels": [["class0/003.bmp", "class1/other-label.png"]],
        "exact-duplicate": [["class0/000.bmp", "class0/same.png"]],
        "near-duplicate": [["class1/near-other.jpg", "class2/005.bmp"], ["class2/002.bmp", "class2/near.jpg"]],
    }


def test_a_badnets_patch_is_found_with_its_class_and_images(folder: Path) -> None:
    poisoned = sorted(folder.rglob("*.bmp"))[5::8]
    for path in poisoned:
        pixels = np.array(Image.open(path))
        pixels[-3:, -3:] = 255
        path.unlink()
        Image.fromarray(pixels).save(folder / "class1" / f"{path.stem}.png")
    (finding,) = scan(folder, Shift()).findings
    assert (finding.rule, finding.level, finding.count) == ("repeated-patch", "high", 12)
    assert {Path(item).stem for item in finding.items} == {path.stem for path in poisoned}
    assert "3 x 3 px at x 21, y 21" in finding.message and "class1" in finding.message


def test_energy_outliers_are_those_of_their_own_class() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    energies = np.exp(random.normal(labels * 3.0, 0.3)).astype(np.float32)  # two classes, e^3 apart
    assert np.abs(robust_scores(energies, labels)).max() < 4.5
    energies[[10, 11, 12]] = energies[11], energies[10], np.nan  # each is ordinary, but in the other class
    scores = robust_scores(energies, labels)
    assert scores[10] > 5 and scores[11] < -5 and scores[12] == 0
    assert sorted(np.flatnonzero(np.abs(scores) > 4.5)) == [10, 11]


def test_a_picture_of_noise_stands_out(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)).save(folder / "class0/noise.png")
    found = rules(scan(folder, Roughness()))
    assert found == {"energy-outlier": [["class0/noise.png"]]}


def test_labels_out_of_range_gaps_and_lonely_classes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    labels = np.arange(40) % 3
    labels[[7, 9, 11]] = -1, 12, 4
    names = np.array([f"c{i}" for i in range(6)])
    np.savez(tmp_path / "set.npz", images=images, labels=labels, classes=names)
    found = scan(tmp_path / "set.npz", Shift())
    assert rules(found) == {
        "label-out-of-range": [["images/7"], ["images/9"]],
        "label-gap": [[]],
        "single-image-class": [["images/11"]],
    }
    assert [f.details for f in found.findings if f.rule == "label-gap"] == [{"labels": [3, 5]}]
    assert "label-gap" not in rules(scan(tmp_path / "set.npz", Shift(), limit=30))


def test_a_cifar_label_out_of_range_is_no_broken_image(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (30, 3073), np.uint8)
    records[:, 0] = np.arange(30) % 10
    records[4, 0] = 200
    records.tofile(tmp_path / "data_batch_1.bin")
    assert rules(scan(tmp_path / "data_batch_1.bin", Shift()))["label-out-of-range"] == [["data_batch_1.bin/4"]]


def test_a_set_without_labels_is_scanned_as_one_class(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    images[3] = images[30]
    np.savez(tmp_path / "set.npz", images=images)
    found = scan(tmp_path / "set.npz", Shift())
    assert found.classes is None and rules(found) == {"exact-duplicate": [["images/3", "images/30"]]}
    assert len(found.notes) == 1 and "no labels" in found.notes[0]


def test_large_images_are_not_searched_for_patches_and_that_is_told(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(scan_module, "MAX_AREA", 500)
    for path in sorted(folder.rglob("*.bmp"))[::4]:
        pixels = np.array(Image.open(path))
        pixels[:3, :3] = 255
        Image.fromarray(pixels).save(path)
    found = scan(folder, Shift())
    assert found.findings == [] and found.notes == ["images of 24 x 24 px are not searched for repeated patches"]
    monkeypatch.undo()
    assert list(rules(scan(folder, Shift()))) == ["repeated-patch"]


def test_findings_are_limited_and_the_rest_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "MAX_FINDINGS", 3)
    for number in range(8):
        (folder / "class0" / f"empty{number}.png").write_bytes(b"")
    found = scan(folder, Shift())
    assert len(found.findings) == 4 and found.findings[-1].message == "and 5 more findings of this kind"


def test_stopping_and_an_empty_place(folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        scan(folder, Shift(), stop=stop)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        scan(tmp_path / "empty", Shift())


def check_sarif(log: dict) -> None:
    """What the published schema of SARIF 2.1.0 requires, and the values that it allows."""
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        assert driver["name"] == "pureebm" and re.fullmatch(r"\d+\.\d+\.\d+.*", driver["version"])
        assert [rule["id"] for rule in driver["rules"]] == list(RULES)
        for rule in driver["rules"]:
            assert rule["shortDescription"]["text"] and rule["help"]["text"]
            assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
            for note in invocation["toolExecutionNotifications"]:
                assert note["message"]["text"] and note["level"] in ("none", "note", "warning", "error")
        assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
        for result in run["results"]:
            assert result["message"]["text"] and result["level"] in ("none", "note", "warning", "error")
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["locations"] and len(result["locations"]) <= 100
            for location in result["locations"]:
                place = location["physicalLocation"]
                assert " " not in place["artifactLocation"]["uri"] and place["region"]["startLine"] >= 1
            assert all(isinstance(value, str) for value in result["partialFingerprints"].values())


def test_sarif_names_files_relative_to_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "class0" / "two words.png").write_bytes(b"")
    monkeypatch.chdir(folder.parent)
    log = sarif_of(scan(Path("set"), Shift()))
    check_sarif(log)
    (result,) = log["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("unreadable-image", SEVERITY["medium"])
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "set/class0/two%20words.png"


def test_sarif_names_rows_of_a_file_and_errors(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.where(np.arange(40) == 5, -1, 0))
    log = sarif_of(scan(tmp_path / "set.npz", Shift()))
    check_sarif(log)
    (location,) = log["runs"][0]["results"][0]["locations"]
    assert location["logicalLocations"][0]["name"] == "images/5"
    assert location["physicalLocation"]["artifactLocation"]["uri"] == f"file://{tmp_path}/set.npz"
    check_sarif(sarif_of_error("no such source"))
    assert sarif_of_error("no such source")["runs"][0]["invocations"][0]["executionSuccessful"] is False


def test_real_pictures_are_clean_and_their_badnets_copies_are_not(shared_data: Path, tmp_path: Path) -> None:
    images, labels, names, _ = read_labeled_source(shared_data / "cifar10" / "train.parquet", limit=600)
    np.savez(tmp_path / "clean.npz", images=images.numpy(), labels=labels.numpy())
    assert not scan(tmp_path / "clean.npz", Roughness()).fails("medium")
    data = LabeledSet(images, labels, len(names or []))
    poisoned = craft(data, Config(budget=0.05, target_class=3), attacker=attacker(), seed=0).apply(data)
    np.savez(tmp_path / "poisoned.npz", images=poisoned.images.numpy(), labels=poisoned.labels.numpy())
    (finding,) = [one for one in scan(tmp_path / "poisoned.npz", Roughness()).findings if one.rule == "repeated-patch"]
    assert finding.level == "high" and finding.details["class"] == 3
    assert 27 <= finding.count <= 32  # white on white does not stand out; a natural white corner may be among them


def test_bytes_of_a_jpeg_that_pretends_to_be_png_are_read_by_what_they_are(folder: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (24, 24, 3), np.uint8)).save(file, "JPEG")
    (folder / "class0" / "really.png").write_bytes(file.getvalue())
    assert scan(folder, Shift()).readable == N + 1
