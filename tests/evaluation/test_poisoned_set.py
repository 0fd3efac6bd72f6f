"""What victims train on, and what counts as ours to replace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attacks.worlds import textures

from pureebm.attacks import storage
from pureebm.attacks.base import AvailabilityGoal, LabeledSet, Poisoned, TargetGoal
from pureebm.data.open import open_source
from pureebm.errors import InputError, MismatchError
from pureebm.evaluation import poisoned_set
from pureebm.evaluation.import_job import _shown_targets
from pureebm.evaluation.poisoned_set import PoisonSettings, SourceSet, write_poisoned
from pureebm.purify import workplace

DATA = textures(30, seed=0)


def stored(path: Path, **more: Any) -> Path:
    np.savez(path, **({"images": DATA.images.numpy(), "labels": DATA.labels.numpy()} | more))
    return path


def test_the_record_of_an_attack_makes_a_folder_ours() -> None:
    assert storage.RECORD_NAME in workplace.OUR_RECORDS


def test_victims_train_on_all_but_the_held_out_images_and_on_the_poisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, LabeledSet] = {}

    def spy(poisoned: Poisoned, train: LabeledSet, test: LabeledSet, **_: Any) -> dict[str, int]:
        seen.update(clean=train, poisoned=poisoned.apply(train), test=test)
        return {}

    monkeypatch.setattr(poisoned_set, "verify", spy)
    data = SourceSet.read(open_source(stored(tmp_path / "set.npz")), test=stored(tmp_path / "test.npz"))
    data = replace(data, held_out=torch.tensor([0, 7, 29]))
    rows = torch.tensor([1, 8, 28])
    poisons = Poisoned(rows, 255 - DATA.images[rows], DATA.labels[rows], AvailabilityGoal())
    record = write_poisoned(data, tmp_path / "out.npz", poisons, {"attack": "x"}, PoisonSettings(verify=True), began=0)
    kept = [row for row in range(30) if row not in (0, 7, 29)]
    assert data.rows.tolist() == kept and seen["clean"].images.equal(DATA.images[kept])
    assert seen["poisoned"].images.equal(poisons.apply(DATA).images[kept])
    assert (seen["poisoned"].images != seen["clean"].images).flatten(1).any(1).sum() == 3
    assert record["held_out"] == ["images/0", "images/7", "images/29"] and record["kind"] == "availability"
    assert np.array_equal(np.load(tmp_path / "out.npz")["images"], poisons.apply(DATA).images.numpy())


def test_classes_are_those_with_names_else_as_many_as_labels_need(tmp_path: Path) -> None:
    few = open_source(stored(tmp_path / "few.npz", labels=np.zeros(30, np.int64)))
    all_ = stored(tmp_path / "all.npz")
    assert SourceSet.read(few).whole.n_classes == 1
    both = SourceSet.read(open_source(all_), test=few.path)
    assert both.whole.n_classes == 4 and both.test is not None and both.test.n_classes == 4
    with pytest.raises(InputError, match=r"all.npz: label 3 is outside the training set's 0..0"):
        SourceSet.read(few, test=all_)
    names = np.array(["ant", "bee", "cat", "dog", "eel"])
    named = open_source(stored(tmp_path / "named.npz", class_names=names))
    assert SourceSet.read(named).whole.n_classes == 5
    first = SourceSet.read(named, limit=7)
    assert len(first.whole) == len(first.ids) == 7 and first.whole.n_classes == 5


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    small = stored(tmp_path / "small.npz", images=DATA.images[:, :8].numpy())
    with pytest.raises(InputError, match=r"small.npz: images of \(8, 16\), those of training have \(16, 16\)"):
        SourceSet.read(open_source(stored(tmp_path / "set.npz")), test=small)


def test_verification_sees_gray_poisons_as_they_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Poisoned] = []
    monkeypatch.setattr(poisoned_set, "verify", lambda poisoned, *_, **__: seen.append(poisoned))
    path = stored(tmp_path / "set.npz", images=DATA.images[:, :, :, 0].numpy())
    data = SourceSet.read(open_source(path), test=path)
    rows = torch.tensor([1, 8, 28])
    poisons = Poisoned(rows, DATA.images[rows], DATA.labels[rows], AvailabilityGoal())  # in color
    write_poisoned(data, tmp_path / "out.npz", poisons, {"attack": "x"}, PoisonSettings(verify=True), began=0)
    after = SourceSet.read(open_source(tmp_path / "out.npz")).whole.images[rows]
    assert seen[0].images.equal(after) and not after.equal(poisons.images)


@pytest.mark.parametrize("aside", [False, True])
def test_a_failed_write_leaves_nothing_but_a_target_that_was_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: bool
) -> None:
    data = SourceSet.read(open_source(stored(tmp_path / "set.npz")))
    poisons = Poisoned(torch.tensor([3]), DATA.images[[4]], DATA.labels[[3]], AvailabilityGoal())
    hidden = tmp_path / ".out.npz.pureebm-partial"

    def fail(*_: Any, **__: Any) -> None:
        assert hidden.is_dir()
        if aside:
            (hidden / "old-x").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(poisoned_set, "save_attack", fail)
    with pytest.raises(KeyboardInterrupt):
        write_poisoned(data, tmp_path / "out.npz", poisons, {"attack": "x"}, PoisonSettings(), began=0)
    assert hidden.exists() == aside and not (tmp_path / "out.npz").exists()


def test_a_job_of_another_command_is_not_removed(tmp_path: Path) -> None:
    data = SourceSet.read(open_source(stored(tmp_path / "set.npz")))
    poisons = Poisoned(torch.tensor([3]), DATA.images[[4]], DATA.labels[[3]], AvailabilityGoal())
    with workplace.Workplace(tmp_path / "out.npz") as place:
        place.begin(lambda _: {"source": "x"}, (0, 1), overwrite=False)
    with pytest.raises(MismatchError, match="begun with other settings"):
        write_poisoned(data, tmp_path / "out.npz", poisons, {"attack": "x"}, PoisonSettings(), began=0)
    assert place.recorded() == {"source": "x"}


def test_the_kind_follows_from_the_goal() -> None:
    goal = TargetGoal(DATA.images[:1], DATA.labels[:1], DATA.labels[1:2])
    none = torch.empty(0, dtype=torch.int64)
    assert poisoned_set._kind(Poisoned(none, DATA.images[:0], none, goal)) == "triggerless"


def test_a_target_that_stands_in_the_source_is_held_out_unless_a_poison_takes_its_place() -> None:
    goal = TargetGoal(DATA.images[[4, 9]], DATA.labels[[4, 9]], DATA.labels[[5, 8]])
    rows = torch.tensor([2, 9])
    assert _shown_targets(Poisoned(rows, DATA.images[rows], DATA.labels[rows], goal), DATA).tolist() == [4]
    poisons = Poisoned(rows, DATA.images[rows], DATA.labels[rows], AvailabilityGoal())
    assert _shown_targets(poisons, DATA).tolist() == []
