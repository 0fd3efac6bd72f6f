from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.importers.files import dump

from pureebm.attacks.importers import FORMATS, import_poisons, options_of
from pureebm.attacks.importers.imported import assemble, from_pixel01, load_object, stacked
from pureebm.errors import InputError


class Calls:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch never",)


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"narcissus", "ntga"}))
def test_a_hostile_pickle_is_refused_and_not_run_in_every_format(
    format: str, tmp_path: Path, base: object, test_set: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"benchmark": "poisons.pickle", "puregen": "a.pth", "backdoorbench": "attack_result.pt"}
    path = dump(tmp_path / "in" / names.get(format, "a.pth"), [Calls()])
    options = {"base": base, "test": test_set}
    given = {name: value for name, value in options.items() if name in options_of(format)}
    with pytest.raises(InputError, match="refused, and not run: it asks for 'posix.system'"):
        import_poisons(format, path.parent if format == "benchmark" else path, **given)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_unknown_formats_options_and_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format 'narcisus'; did you mean 'narcissus'"):
        import_poisons("narcisus", tmp_path)
    with pytest.raises(InputError, match="takes no option 'root'; it takes base, "):
        import_poisons("narcissus", tmp_path, root=tmp_path)
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        import_poisons("narcissus", tmp_path / "nowhere")
    with pytest.raises(InputError, match="none: no such file"):
        load_object(tmp_path / "none")
    assert all("base" in options_of(format) for format in FORMATS)


def test_every_value_of_a_pixel_survives_the_way_through_floats() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(from_pixel01((values / 255).astype(np.float32), "a"), values)
    with pytest.raises(InputError, match="finite floats"):
        from_pixel01(np.array([np.inf]), "a")
    with pytest.raises(InputError, match="finite floats"):
        from_pixel01(values, "a")


def test_a_file_that_refers_to_one_image_a_million_times_is_refused() -> None:
    with pytest.raises(InputError, match="more than fit in memory"):
        stacked([np.zeros((1024, 1024, 3), np.uint8)] * 1000, "a")


def test_a_record_can_be_written_as_json(tmp_path: Path) -> None:
    file = dump(tmp_path / "a.pickle", pickle.dumps(1))
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    found = assemble(format="x", files=[file], rows=[1], images=images, labels=[0], goal=None)
    assert json.loads(json.dumps(found.record))["poisons"] == 1
