"""The list of attacks: every entry is one, and listing them costs nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from pureebm.attacks.registry import ATTACKS, find_attack
from pureebm.errors import InputError


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_config_of_defaults_with_help_and_a_craft(name: str) -> None:
    module = ATTACKS[name].load()
    assert module.__name__ == "pureebm.attacks." + name.replace("-", "_")
    config = module.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)
    hints = {field.name: field.type for field in dataclasses.fields(config)}
    assert all("Annotated" in str(hint) for hint in hints.values())
    assert callable(module.craft)
    assert "arXiv" in module.__doc__


def test_there_are_thirteen_and_the_list_needs_no_torch() -> None:
    assert len(ATTACKS) == 13
    code = "import sys, pureebm.attacks.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown attack 'badnet'; did you mean 'badnets'.*narcissus.*sleeper-agent"):
        find_attack("badnet")
