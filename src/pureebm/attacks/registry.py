"""The attacks by name. Imports none of them: `pureebm attack --help` must answer at once."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Literal

from pureebm.errors import InputError


@dataclass(frozen=True, slots=True)
class AttackEntry:
    """One attack. module: where its `Config` and `craft` are. clean_label: it leaves all labels as they are."""

    module: str
    summary: str
    kind: Literal["triggered", "triggerless", "availability"]
    clean_label: bool

    def load(self) -> ModuleType:
        """The attack's module; this imports torch."""
        return importlib.import_module(self.module)


def _entry(
    name: str, kind: Literal["triggered", "triggerless", "availability"], summary: str, *, clean: bool = True
) -> AttackEntry:
    return AttackEntry(f"pureebm.attacks.{name}", summary, kind, clean)


ATTACKS: Mapping[str, AttackEntry] = MappingProxyType(
    {
        "narcissus": _entry("narcissus", "triggered", "A universal trigger of the target class's own features."),
        "gradient-matching": _entry(
            "gradient_matching", "triggerless", "Witches' Brew: poisons whose gradient is that of the misread target."
        ),
        "bullseye-polytope": _entry(
            "bullseye_polytope", "triggerless", "Transfer: poisons whose mean feature is the target's."
        ),
        "ntga": _entry("ntga", "availability", "All images changed so that what is learned does not generalize."),
        "badnets": _entry("badnets", "triggered", "A white square in a corner, and new labels.", clean=False),
        "blended": _entry("blended", "triggered", "A key image shining through, and new labels.", clean=False),
        "sig": _entry("sig", "triggered", "A sine wave across images of the target class."),
        "label-consistent": _entry(
            "label_consistent", "triggered", "Images made hard to read, and a pattern in their corners."
        ),
        "wanet": _entry("wanet", "triggered", "A smooth warp, and new labels.", clean=False),
        "feature-collision": _entry(
            "feature_collision", "triggerless", "Transfer: poisons whose features are the target's."
        ),
        "convex-polytope": _entry(
            "convex_polytope", "triggerless", "Transfer: poisons whose features enclose the target's."
        ),
        "hidden-trigger": _entry(
            "hidden_trigger", "triggered", "Transfer: poisons whose features are those of patched images."
        ),
        "sleeper-agent": _entry("sleeper_agent", "triggered", "Gradient matching towards a patch."),
    }
)

SEE_THROUGH = ("narcissus",)
"""Attacks that use `Attacker.through`."""

TRANSFER = ("bullseye-polytope", "feature-collision", "convex-polytope", "hidden-trigger")
"""Attacks on victims that start from an extractor."""

WITH_EXTRACTORS = (*TRANSFER, "label-consistent")
"""Attacks that use `Attacker.extractors`."""


def find_attack(name: str) -> AttackEntry:
    """The entry of that name. Raises `InputError`, listing the names, if there is none."""
    if name not in ATTACKS:
        close = difflib.get_close_matches(name, ATTACKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown attack {name!r}; {hint}Known: {', '.join(ATTACKS)}")
    return ATTACKS[name]
