"""Chains as text: "energy(150) > ddpm(75)", "5 * (energy(10) > ddpm(50))", "filter(50%) > ddpm(125)".

    chain  =  step {">" step}
    step   =  [COUNT "*"] (stage | "(" chain ")")
    stage  =  energy | energy(STEPS) | energy(auto) | ddpm | ddpm(LEVEL) | ddpm(LEVEL, ddim=STEPS) | jpeg(QUALITY)
              | blur(SIGMA) | vq

The whole may be "filter(SHARE%) > chain" or, which is the same, "highest(SHARE%, chain)": only so many of the images,
those of highest energy, go through the chain. Naive, Reps and Filt of arXiv 2405.18627 are the three texts above.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from pureebm.diffusion.process import PAPER_LEVEL, DDPMConfig
from pureebm.diffusion.stage import DDPMStage
from pureebm.diffusion.weights import LoadedDDPM
from pureebm.errors import InputError
from pureebm.purify.baselines import BlurStage, JPEGStage
from pureebm.purify.stages import Chain, Highest, has_fast_bfloat16
from pureebm.types import JSON, Stage

STAGES: Mapping[str, str] = MappingProxyType(
    {
        "energy": "energy, energy(STEPS) or energy(auto)",
        "ddpm": "ddpm, ddpm(LEVEL) or ddpm(LEVEL, ddim=STEPS)",
        "jpeg": "jpeg(QUALITY)",
        "blur": "blur(SIGMA)",
        "vq": "vq",
    }
)
"""Name -> how it is written."""

FILTERS: Mapping[str, str] = MappingProxyType({"filter": "filter(SHARE%) > chain", "highest": "highest(SHARE%, chain)"})
MAX_LINKS, MAX_DEPTH, MAX_DIGITS = 200, 20, 20
"""Stages of a chain, parentheses within each other, digits of a number."""


@dataclass(frozen=True, slots=True)
class Link:
    """One stage as it is written. number: "150", "auto", or None where none is given."""

    stage: str
    number: str | None = None
    ddim: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a text asks for, repetitions written out. share: of the images, those of highest energy; None: all."""

    links: tuple[Link, ...]
    share: float | None = None

    def uses(self, stage: str) -> bool:
        """Whether it needs that kind of model; a filter needs an energy."""
        return any(link.stage == stage for link in self.links) or (stage == "energy" and self.share is not None)


def parse_chain(text: str) -> Recipe:
    """The recipe of a text.

    Raises:
        InputError: it cannot be read; the message names the position, counted from 1, and what is known.
    """
    return _Parser(text).recipe()


def build_chain(
    recipe: Recipe,
    *,
    energy: Callable[[str | None], Stage],
    ddpm: Callable[[DDPMConfig], Stage],
    vq: Callable[[], Stage],
) -> Stage:
    """The purifier of a recipe.

    Args:
        energy: makes the stage of an energy, given its number of updates ("150", "auto", None: its own).
        ddpm: makes the stage of a DDPM.
        vq: makes that of an autoencoder.

    Raises:
        InputError: a number out of range, or what the makers raise.
    """
    made: dict[Link, Stage] = {}
    for link in recipe.links:
        if link not in made:
            made[link] = _stage(link, energy, ddpm, vq)
    stages = [made[link] for link in recipe.links]
    stage = stages[0] if len(stages) == 1 else Chain(stages)
    return stage if recipe.share is None else Highest(stage, recipe.share, by=energy(None))


def ddpm_stage(
    model: LoadedDDPM, config: DDPMConfig, *, device: torch.device | str, precision: str = "auto"
) -> DDPMStage:
    """The stage of a loaded DDPM; precision "auto": bfloat16 where the processor multiplies it in hardware."""
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
    return DDPMStage(model, config, device=device, precision=precision)


def chain_text(settings: JSON) -> str | None:
    """The text of a stage's settings, repetitions written out; None for a purifier that a text cannot name."""
    kind = settings.get("stage")
    if kind == "highest":
        inner = chain_text(settings["of"])
        return inner and f"filter({100 * settings['share']:g}%) > {inner}"
    if kind == "chain":
        parts = [chain_text(stage) for stage in settings["stages"]]
        return None if None in parts else " > ".join(map(str, parts))
    if kind == "ddpm":
        ddim = "" if settings["ddim"] is None else f", ddim={settings['ddim']}"
        return f"ddpm({settings['level']}{ddim})"
    plain = {"langevin": ("energy", "n_steps"), "jpeg": ("jpeg", "quality"), "blur": ("blur", "sigma")}
    if kind in plain:
        name, number = plain[kind]
        return f"{name}({settings[number]})"
    return {"student": "energy", "vq": "vq"}.get(str(kind))


def leaves(settings: JSON) -> Iterator[JSON]:
    """The settings of each single stage of a purifier, in order."""
    inner = settings.get("stages") or ([settings["of"]] if settings.get("stage") == "highest" else None)
    if inner is None:
        yield settings
    for stage in inner or ():
        yield from leaves(stage)


def _stage(
    link: Link, energy: Callable[[str | None], Stage], ddpm: Callable[[DDPMConfig], Stage], vq: Callable[[], Stage]
) -> Stage:
    if link.stage == "energy":
        return energy(link.number)
    if link.stage == "vq":
        return vq()
    if link.stage == "ddpm":
        return ddpm(DDPMConfig(level=int(link.number or PAPER_LEVEL), ddim=link.ddim))
    assert link.number is not None
    return JPEGStage(int(link.number)) if link.stage == "jpeg" else BlurStage(float(link.number))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "number", "name", a sign, or "" at the end
    text: str
    place: int


class _Parser:
    """Reads a text once, from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._split())
        self.at, self.depth = 0, 0

    def recipe(self) -> Recipe:
        share = None
        if self._peek().text in FILTERS:
            name = self._next().text
            self._expect("(")
            share = self._share()
            self._expect("," if name == "highest" else ")")
            if name == "filter":
                self._expect(">")
            links = self._chain()
            if name == "highest":
                self._expect(")")
        else:
            links = self._chain()
        if self._peek().kind:
            raise self._error("expected '>' and another stage, or the end")
        return Recipe(tuple(links), share)

    def _chain(self) -> list[Link]:
        links = self._step()
        while self._accept(">"):
            links += self._step()
        return links

    def _step(self) -> list[Link]:
        count = 1
        if self._peek().kind == "number":
            count = self._whole("how often to repeat")
            self._expect("*")
        place = self._peek()
        if self._accept("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise self._error(f"more than {MAX_DEPTH} parentheses within each other", place)
            links = self._chain()
            self._expect(")")
            self.depth -= 1
        else:
            links = [self._link()]
        if not 1 <= count * len(links) <= MAX_LINKS:
            raise self._error(f"{count} x {len(links)} stages: a chain has 1 to {MAX_LINKS}", place)
        return links * count

    def _link(self) -> Link:
        token = self._peek()
        if token.text in FILTERS:
            raise self._error(f"{token.text} chooses among the whole set, so it comes first, and once")
        if token.kind != "name":
            raise self._error("expected a stage")
        if token.text not in STAGES:
            close = difflib.get_close_matches(token.text, STAGES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            known = ", ".join((*STAGES, *FILTERS))
            raise self._error(f"unknown stage {token.text!r}{hint} Known: {known}")
        name = self._next().text
        number, ddim = None, None
        if name != "vq" and self._accept("("):
            number = self._number(name)
            if name == "ddpm" and self._accept(","):
                if self._next_if("ddim") is None:
                    raise self._error("expected ddim=STEPS")
                self._expect("=")
                ddim = self._whole("the steps of DDIM")
            self._expect(")")
        elif name in ("jpeg", "blur"):
            raise self._error(f"expected {STAGES[name]}")
        return Link(name, number, ddim)

    def _number(self, name: str) -> str:
        token = self._peek()
        if name == "energy" and self._next_if("auto"):
            return "auto"
        if token.kind != "number" or (name != "blur" and "." in token.text):
            raise self._error(f"expected a {'number' if name == 'blur' else 'whole number'}, as in {STAGES[name]}")
        return self._next().text

    def _whole(self, what: str) -> int:
        token = self._peek()
        if token.kind != "number" or "." in token.text:
            raise self._error(f"expected a whole number: {what}")
        return int(self._next().text)

    def _share(self) -> float:
        token = self._peek()
        if token.kind != "number" or not 0 < float(token.text) <= 100:
            raise self._error("expected a share of the images, above 0% and at most 100%")
        self._next()
        self._expect("%")
        return float(token.text) / 100

    def _split(self) -> Iterator[_Token]:
        for match in re.finditer(r"\s*(?:(\d+(?:\.\d+)?)|([A-Za-z_]+)|(\S))", self.text):
            number, name, sign = match.groups()
            place = match.end() - len(number or name or sign)
            if sign and sign not in ">*(),=%":
                raise self._error(f"unexpected {sign!r}", _Token(sign, sign, place))
            if number and len(number) > MAX_DIGITS:
                raise self._error(f"unexpected number of more than {MAX_DIGITS} digits", _Token("number", "", place))
            yield _Token("number" if number else "name" if name else sign, number or name or sign, place)
        yield _Token("", "", len(self.text.rstrip()))

    def _peek(self) -> _Token:
        return self.tokens[self.at]

    def _next(self) -> _Token:
        token = self.tokens[self.at]
        self.at += bool(token.kind)
        return token

    def _accept(self, sign: str) -> bool:
        found = self._peek().kind == sign
        self.at += found
        return found

    def _next_if(self, name: str) -> _Token | None:
        return self._next() if self._peek() == _Token("name", name, self._peek().place) else None

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._error(f"expected {sign!r}")

    def _error(self, what: str, token: _Token | None = None) -> InputError:
        token = token or self._peek()
        found = f", found {token.text!r}" if token.kind else ", found the end"
        told = (
            what if what.startswith(("unknown", "unexpected")) or "chooses" in what or " x " in what else what + found
        )
        written = "; ".join((*STAGES.values(), *FILTERS.values()))
        return InputError(f"chain {self.text!r}, position {token.place + 1}: {told}\nStages are written: {written}")
