"""Chains as text: what is written is what is built, and an error names the place."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from pureebm.diffusion.process import DDPMConfig
from pureebm.errors import InputError
from pureebm.purify.baselines import BlurStage, JPEGStage
from pureebm.purify.chains import Link, Recipe, build_chain, chain_text, leaves, parse_chain
from pureebm.purify.stages import Chain, Highest
from pureebm.types import JSON


class Named:
    """A stage that says what it was made of, and adds the seed's last digit."""

    def __init__(self, kind: str, **told: object) -> None:
        self.told: JSON = {"stage": kind, **told}

    def purify_batch(self, images: Tensor, ids: list[str], *, seed: int) -> Tensor:
        return images * 10 + seed % 10

    def energies(self, images: Tensor) -> Tensor | None:
        return images.flatten(1).mean(1) if self.told["stage"] == "langevin" else None

    def settings(self) -> JSON:
        return self.told


def build(text: str) -> Chain | Highest | Named | JPEGStage | BlurStage:
    def energy(number: str | None) -> Named:
        return Named("langevin", n_steps=150 if number is None else 60 if number == "auto" else int(number), model={})

    def ddpm(config: DDPMConfig) -> Named:
        return Named("ddpm", level=config.level, ddim=config.ddim)

    vq = Named("vq")
    return build_chain(parse_chain(text), energy=energy, ddpm=ddpm, vq=lambda: vq)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("energy", [("energy", None, None)]),
        ("energy(150)>ddpm( 75 )", [("energy", "150", None), ("ddpm", "75", None)]),
        ("energy(auto) > ddpm(75, ddim=10)", [("energy", "auto", None), ("ddpm", "75", 10)]),
        ("2 * (energy > ddpm) > jpeg(9)", [("energy", None, None), ("ddpm", None, None)] * 2 + [("jpeg", "9", None)]),
        ("3*blur(0.7)", [("blur", "0.7", None)] * 3),
        ("vq > 2*vq", [("vq", None, None)] * 3),
        ("2 * (jpeg(9) > 2 * (energy))", ([("jpeg", "9", None)] + [("energy", None, None)] * 2) * 2),
    ],
)  # fmt: skip
def test_a_text_is_its_stages_with_repetitions_written_out(text: str, links: list[tuple[str, str, int]]) -> None:
    assert parse_chain(text) == Recipe(tuple(Link(*link) for link in links))


@pytest.mark.parametrize("text", ["filter(20%) > ddpm(125) > jpeg(75)", "highest(20%, ddpm(125) > jpeg(75))"])
def test_a_filter_stands_around_the_whole_chain_in_either_form(text: str) -> None:
    recipe = parse_chain(text)
    assert recipe == Recipe((Link("ddpm", "125"), Link("jpeg", "75")), 0.2)
    assert recipe.uses("energy") and recipe.uses("ddpm") and not parse_chain("jpeg(75)").uses("energy")
    stage = build(text)
    assert isinstance(stage, Highest) and isinstance(stage.stage, Chain) and stage.share == 0.2
    assert stage.energies(torch.ones(2, 3, 4, 4)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "energy(150) > ddpm(75)",
        "energy(10) > ddpm(50) > energy(10) > ddpm(50)",
        "ddpm(75, ddim=5)",
        "blur(0.7) > jpeg(75)",
        "energy(3) > vq",
        "filter(12.5%) > energy(150)",
    ],
)
def test_settings_tell_the_text_that_builds_them_again(text: str) -> None:
    told = build(text).settings()
    assert chain_text(told) == text
    assert build(chain_text(told)).settings() == told  # type: ignore[arg-type]


def test_a_purifier_of_another_kind_has_no_text() -> None:
    assert chain_text({"stage": "mine"}) is None
    assert chain_text({"stage": "chain", "stages": [{"stage": "mine"}, {"stage": "jpeg", "quality": 3}]}) is None
    told = build("filter(50%) > energy(5) > jpeg(3)").settings()
    assert [leaf["stage"] for leaf in leaves(told)] == ["langevin", "jpeg"]


def test_each_repetition_draws_its_own_noise() -> None:
    out = build("2 * (energy(1) > 2 * energy(2))").purify_batch(torch.zeros(1), ["a"], seed=1)
    assert out.item() == 123456


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy(150) > dppm(75)", "position 15: unknown stage 'dppm'; did you mean 'ddpm'? Known: energy, ddpm, jpeg"),
        ("", "position 1: expected a stage, found the end"),
        ("energy >", "position 9: expected a stage, found the end"),
        ("energy ddpm", "position 8: expected '>' and another stage, or the end, found 'ddpm'"),
        ("energy(1.5)", "position 8: expected a whole number, as in energy, energy(STEPS) or"),
        ("jpeg > ddpm", "position 6: expected jpeg(QUALITY), found '>'"),
        ("vq(3)", "position 3: expected '>' and another stage, or the end, found '('"),
        ("jpeg()", "position 6: expected a whole number, as in jpeg(QUALITY), found ')'"),
        ("(energy > jpeg(75)", "position 19: expected ')', found the end"),
        ("ddpm(75, steps=3)", "position 10: expected ddim=STEPS, found 'steps'"),
        ("3 (energy)", "position 3: expected '*', found '('"),
        ("0 * energy", "position 5: 0 x 1 stages: a chain has 1 to 200"),
        ("99999999999 * energy", "position 15: 99999999999 x 1 stages"),
        ("jpeg(75) > filter(50%) > energy", "position 12: filter chooses among the whole set, so it comes first"),
        ("filter(0%) > energy", "position 8: expected a share of the images, above 0% and at most 100%, found '0'"),
        ("filter(50) > energy", "position 10: expected '%', found ')'"),
        ("highest(20%)", "position 12: expected ',', found ')'"),
        ("energy; ddpm", "position 7: unexpected ';'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_chain(text)
    assert "Stages are written: energy" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("jpeg(101)", "quality must be 1 to 100"), ("ddpm(1000)", "1 to 999"), ("ddpm(5, ddim=6)", "ddim must be 1 to 5")],
)
def test_numbers_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(text)


def test_a_text_without_end_is_refused_in_words_too() -> None:
    with pytest.raises(InputError, match="position 21: more than 20 parentheses within each other"):
        parse_chain("(" * 2000 + "energy" + ")" * 2000)
    with pytest.raises(InputError, match="position 10: unexpected number of more than 20 digits"):
        parse_chain("energy > " + "9" * 5000 + " * energy")
    assert parse_chain("(" * 20 + "energy" + ")" * 20) == parse_chain("energy")
