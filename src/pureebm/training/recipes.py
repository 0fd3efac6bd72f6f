"""Recipes by name: how the published victims, and the fast ones of small machines, are trained.

| name                         | what it is                                                                          |
|------------------------------|-------------------------------------------------------------------------------------|
| fast                         | a few epochs of a small network on a processor                                      |
| scratch-200, scratch-80      | PureGen's training from scratch, 200 and 80 epochs                                  |
| conservative                 | the schedule of gradient matching (Witches' Brew), for surrogates and its victims   |
| hlb-small, -medium, -large   | HyperLight networks in minutes                                                      |
| hlb-tiny                     | their small network at half its widths, in minutes on two processor cores           |
| r18-hlb                      | a ResNet-18 in 25 epochs                                                            |
| linear-transfer, -sgd        | a new head on frozen features; by Adam as PureGen's code, by SGD as its paper says   |
| linear-transfer-benchmark    | the white-box transfer of the poisoning benchmark                                   |
| fine-tune                    | all weights on from an extractor, batch norm frozen (Bullseye Polytope)             |
| fine-tune-narcissus          | the same with ordinary batch norm, crops and flips                                  |

A changed number of epochs moves the milestones along. Source: PureGen (arXiv 2405.18627) and its code; the poisoning
benchmark; Witches' Brew.
Differs: `hlb-medium` trains 15 epochs (the published file says 1, a leftover; the older one 15).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from pureebm.errors import InputError
from pureebm.training.classifier import ClassifierConfig

_SCRATCH = ClassifierConfig(
    epochs=200,
    batch_size=128,
    keep_last=True,
    nesterov=False,
    schedule="steps",
    milestones=(1 / 2, 3 / 4),
    peak_rate=0.1,
    weight_decay=5e-4,
    pad=4,
)
_CONSERVATIVE = (1 / 2.667, 1 / 1.6 - 1e-9, 1 / 1.142)  # 40 // 1.6 is 24, as 1.6 in binary is a hair above
_TRANSFER = replace(_SCRATCH, pad=0, flip=False, fresh_head=True, batch_norm="frozen", optimizer="adam")
_LINEAR = replace(_TRANSFER, epochs=40, batch_size=64, milestones=(3 / 8, 5 / 8, 7 / 8), train="head")
_FINE_TUNE = replace(_TRANSFER, epochs=60, peak_rate=1e-4, milestones=(1 / 4, 1 / 2, 3 / 4))


def _hyperlight(
    epochs: int, rate: float, momentum: float, decay: float, bias_scaler: float, *, pad: int, cutout: int
) -> ClassifierConfig:
    """Rates as the HyperLight line of work quotes them: for a loss summed over 1024 images, with momentum's gain."""
    batch_size = 128
    kilostep = 1024 * (1 + 1 / (1 - momentum))
    return ClassifierConfig(
        epochs=epochs,
        batch_size=batch_size,
        momentum=momentum,
        peak_rate=rate / kilostep,
        weight_decay=(decay * batch_size / kilostep) / (rate / kilostep),
        bias_scaler=bias_scaler,
        first_rate=0.2,
        label_smoothing=0.2,
        sum_loss=True,
        pad=pad,
        reflect=True,
        cutout=cutout,
    )


_R18_HLB = replace(_hyperlight(25, 0.2, 0.9, 5e-4, 1.0, pad=4, cutout=12), peak_rate=0.2 / 128, weight_decay=5e-4 * 128)

RECIPES: Mapping[str, ClassifierConfig] = MappingProxyType(
    {
        "fast": ClassifierConfig(),
        "scratch-200": _SCRATCH,
        "scratch-80": replace(_SCRATCH, epochs=80, milestones=(3 / 8, 5 / 8, 7 / 8)),
        "conservative": replace(_SCRATCH, epochs=40, nesterov=True, milestones=_CONSERVATIVE),
        "hlb-tiny": _hyperlight(15, 11.6, 0.87, 0.0157, 64.5, pad=2, cutout=0),
        "hlb-small": _hyperlight(15, 11.6, 0.87, 0.0157, 64.5, pad=2, cutout=0),
        "hlb-medium": _hyperlight(15, 10.0, 0.85, 0.0153, 64.0, pad=2, cutout=0),
        "hlb-large": _hyperlight(40, 9.0, 0.85, 0.0153, 64.0, pad=4, cutout=12),
        "r18-hlb": _R18_HLB,
        "linear-transfer": _LINEAR,
        "linear-transfer-sgd": replace(_LINEAR, optimizer="sgd"),
        "linear-transfer-benchmark": replace(_LINEAR, peak_rate=0.01, milestones=(3 / 4,)),
        "fine-tune": _FINE_TUNE,
        "fine-tune-narcissus": replace(_FINE_TUNE, pad=4, flip=True, batch_norm="train"),
    }
)

NETWORK_OF: Mapping[str, str] = MappingProxyType(
    {
        "fast": "small-resnet",
        "hlb-tiny": "hlb-tiny",
        "hlb-small": "hlb-small",
        "hlb-medium": "hlb-medium",
        "hlb-large": "hlb-large",
    }
)
"""Recipe -> the network it is made for; the others are ResNet-18's."""


def find_recipe(name: str, *, epochs: int | None = None) -> ClassifierConfig:
    """The recipe of that name, with another number of epochs if one is given.

    Raises:
        InputError: there is none of that name.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown recipe {name!r}; {hint}Known: {', '.join(RECIPES)}")
    return RECIPES[name] if epochs is None else replace(RECIPES[name], epochs=epochs)
