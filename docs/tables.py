"""Fill the tables of README and docs from the cards in results/: `make tables`.

A table stands between `<!-- table NAME -->` and `<!-- end NAME -->`. A test checks that none is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from pureebm.evaluation.cards import read_card, read_cards, table
from pureebm.evaluation.runner import read_suite_cards
from pureebm.evaluation.scenarios import load_suite
from pureebm.evaluation.shift import MAKERS
from pureebm.evaluation.tables import Row, make_rows, quoted_rows, quoted_seconds

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
FILES = ("README.md", "docs/claims.md", "docs/model.md", "docs/results.md", "docs/scale.md", "docs/student.md")

DEFAULT = "**`residual-32`, the default** (ours)"
STUDENT = "`student`, one pass (ours)"
NAMES = {
    "none": "no defense",
    "pureebm": DEFAULT,
    "pureebm:model=student": STUDENT,
    "pureebm:steps=auto": "`residual-32`, `--steps auto` (ours)",
}
KNOWS = {
    "narcissus-knows-nothing": "nothing",
    "narcissus-knows-student": "the student",
    "narcissus-knows-chain": "the default chain",
}


WAYS = {
    "narcissus-eps16-knows-nothing": "nothing",
    "narcissus-eps16-knows-in-generation": "the default chain; in the trigger's generation",
    "narcissus-eps16-knows-in-surrogate": "the same, in its surrogate",
    "narcissus-eps16-knows-in-both": "in both",
    "narcissus-eps16-knows-fixed-noise": "in generation, with the same noise at every step",
    "narcissus-eps16-knows-no-gradient": "in generation, without its gradient",
}
TIMES = {"pureebm": " (150 updates)", "ddpm": " (75 steps)", "none": "", "friends-b": ""}
"""What is most like what the paper timed, and what differs there."""

BASELINES = {"epic": "EPIC", "friends": "FRIENDS", "jpeg": "JPEG"}


def triggered(name: str, suite: str = "cpu", published: str = "") -> str:
    """A scenario with a trigger: one row a defense, the best first. published: the title of a quoted experiment."""
    head = [
        "defense",
        "accuracy, no attack",
        "accuracy",
        "poison success, mean (worst class)",
        "over the floor",
        "PSNR",
    ]
    lines = []
    for row, clean in _rows(name, suite):
        success = f"{_rate(row['poison_success'])} ({_rate(row['poison_success_max'])})"
        over = f"{100 * (row['poison_success'] - row['clean_floor']):.1f}"
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
        lines.append([_name(row), clean, _rate(row["natural_accuracy"]), success, over, psnr])
    return _beside(head, lines, _defenses(name, suite), published)


def seeds(name: str) -> str:
    """One class, several victims: mean and spread over their seeds."""
    head = ["defense", "accuracy", "poison success", "spread over seeds", "victims", "over the floor"]
    lines = []
    for row, _ in _rows(name):
        spread = "" if row["poison_success_seed_sd"] is None else _rate(row["poison_success_seed_sd"])
        over = f"{100 * (row['poison_success'] - row['clean_floor']):.1f}"
        cells = [_rate(row["natural_accuracy"]), _rate(row["poison_success"]), spread, str(row["runs"]), over]
        lines.append([_name(row), *cells])
    return _table(head, lines)


def targets(name: str, suite: str = "cpu", published: str = "") -> str:
    """A scenario with targets: how many are read as the attacker wants, and how many of those by the poison alone."""
    head = ["defense", "accuracy, no attack", "accuracy", "targets read as intended", "of them right without poison"]
    lines = []
    for row, clean in _rows(name, suite):
        lines.append([_name(row), clean, _rate(row["natural_accuracy"]), _hit(row), str(row["flipped"])])
    return _beside(head, lines, _defenses(name, suite), published)


def availability(name: str, suite: str, published: str) -> str:
    """A set of which every image is changed: what it still teaches, the best first."""
    rows = sorted(_rows(name, suite), key=lambda pair: -pair[0]["natural_accuracy"])
    lines = [[_name(row), clean, _rate(row["natural_accuracy"])] for row, clean in rows]
    defenses = [row["defence"] for row, _ in rows]
    return _beside(["defense", "accuracy, no attack", "accuracy"], lines, defenses, published)


def knows(known: Mapping[str, str] = KNOWS, suite: str = "cpu") -> str:
    """Attackers who know the defense, beside one who does not."""
    head = ["the attacker knows", "defense", "accuracy, no attack", "accuracy", "poison success", "floor"]
    lines = []
    for name, knowledge in known.items():
        for row, clean in _rows(name, suite):
            rates = [_rate(row[key]) for key in ("natural_accuracy", "poison_success", "clean_floor")]
            lines.append([knowledge, _name(row), clean, *rates])
    return _table(head, lines)


def shift() -> str:
    """Models of other training sets: how far the set lies, and what they are worth."""
    head = [
        "training set",
        "model",
        "Frechet distance",
        "accuracy, no attack",
        "accuracy, 8/255",
        "poison success",
        "accuracy, 16/255",
        "poison success",
        "published, 16/255",
    ]
    attacks = [_every_row(name, "claims") for name in ("narcissus-eps8", "narcissus-eps16")]
    (poisoned,) = (row for row in quoted_rows() if row["title"].startswith(POISONED))
    published = {("poisoned-16", "energy"): _figures(poisoned)}
    lines = []
    for card in sorted(read_cards(RESULTS / "shift"), key=lambda card: card["frechet_distance"]):
        for model, folder in (("energy", card["set"]), ("DDPM", f"{card['set']}-ddpm")):
            found = [[pair for pair in rows if _made_of(pair[0]) == folder] for rows in attacks]
            if model == "DDPM" and not any(found):
                continue
            unharmed = next((clean for own in found for _, clean in own), "")
            cells = [f"`{card['set']}`", model, f"{card['frechet_distance']:.3f}", unharmed]
            for own in found:
                cells += [_rate(own[0][0][key]) if own else "" for key in ("natural_accuracy", "poison_success")]
            lines.append([*cells, published.get((card["set"], model), "")])
    return _table(head, lines)


POISONED = "Narcissus, eps 16, an energy trained on images poisoned"


def _made_of(row: Row) -> str:
    """The run's folder, NAME or NAME-ddpm, if the purifier was trained on a set of `pureebm bench shift`; else ""."""
    folders = (f"{name}{kind}" for name in MAKERS for kind in ("", "-ddpm"))
    return next((one for one in folders if re.search(rf"/{one}(/|,|$)", row["defence"])), "")


def steps(name: str) -> str:
    """One chain at several lengths, the shortest first."""
    head = ["updates", "accuracy, no attack", "accuracy", "targets read as intended"]
    rows = [(row, clean) for row, clean in _rows(name, "mid-run") if row["defence"] != "pureebm"]
    lines = [
        [f"{row['n_steps'] or 0:,}", clean, _rate(row["natural_accuracy"]), _hit(row)]
        for row, clean in sorted(rows, key=lambda pair: pair[0]["n_steps"] or 0)
    ]
    return _table(head, lines)


def timing() -> str:
    """Seconds of each part, of the clean set's rows and the models' cards."""
    lines = []
    for text, path in (("energy", "energy/models/residual-32"), ("DDPM", "diffusion/models/ddpm-32")):
        card = ROOT / "src" / "pureebm" / f"{path}.json"
        if card.is_file():
            about = read_card(card)
            minutes = about.get("total_minutes", about["minutes"])
            lines.append([f"train the {text}", f"{60 * minutes:,.0f}", ""])
    clean = [row for row in _suite_rows("claims") if row["attack"] == "none" and row["data"] == "cifar10-20000"]
    clean = [row for row in clean if row["victim"].startswith("small-resnet, fast, 8 ") and "/" not in row["defence"]]
    purifiers = [row for row in clean if row["defence_seconds"]]
    for row in sorted(purifiers, key=lambda row: row["defence_seconds"]):
        lines.append([f"purify by {_name(row)}", f"{row['defence_seconds']:,.0f}", _timed(row["defence"])])
    for row in clean:
        if row not in purifiers:
            lines.append([f"train a victim, {_name(row)}", f"{row['train_seconds']:,.0f}", _timed(row["defence"])])
    return _table(["", "seconds here", "published"], lines)


def _timed(defense: str) -> str:
    """The paper's seconds for what is most like it."""
    head = _head(defense)
    if head not in TIMES or (head == "pureebm" and defense != head):
        return ""
    return f"{quoted_seconds()[head.partition('-')[0]]:,}{TIMES[head]}"


def quick() -> str:
    """The `quick` protocol at 8/255."""
    head = ["defense", "accuracy", "poison success, mean (worst class)", "over the floor", "seconds"]
    rows = [row for row in table(card for card in read_cards(RESULTS / "quick") if card["set"] == "report")]
    (clean,) = (row for row in rows if row["attack"] == "none")
    attacked = sorted((row for row in rows if row["attack"] != "none"), key=lambda row: row["poison_success"])
    floor = attacked[0]["clean_floor"]
    lines = [["victim of the clean set", _rate(clean["natural_accuracy"]), f"{_rate(floor)} (the floor)", "", ""]]
    for row in attacked:
        success = f"{_rate(row['poison_success'])} ({_rate(row['poison_success_max'])})"
        over, seconds = f"{100 * (row['poison_success'] - floor):.1f}", f"{row['defence_seconds']:.0f}"
        lines.append([_name(row), _rate(row["natural_accuracy"]), success, over, seconds])
    return _table(head, lines)


def diagnosis() -> str:
    """What survives, by kind of perturbation."""
    kinds = {"trigger": "trigger", "pgd": "PGD", "sinusoid": "sinusoid", "random": "random signs"}
    head = ["purifier", "PSNR", *kinds.values(), "AUROC of energy", "poisoned above its original"]
    cards = read_cards(RESULTS / "diagnosis")
    cards.sort(key=lambda card: (_has_steps(card), " T " in card["defence"], card["settings"].get("n_steps", 0)))
    lines = []
    for card in cards:
        energy = card["energy"] or {}
        auroc = "" if energy.get("auroc") is None else f"{energy['auroc']:.3f}"
        paired = "" if energy.get("paired_share") is None else f"{100 * energy['paired_share']:.0f} %"
        survives = [f"{100 * card['survival'][kind]:.0f} %" for kind in kinds]
        lines.append([_purifier(card), f"{card['psnr']:.1f} dB", *survives, auroc, paired])
    return _table(head, lines)


def scale() -> str:
    """Whole jobs: seconds and memory against images and workers."""
    lines = []
    for card in read_cards(RESULTS / "scale"):
        for job in card["jobs"]:
            rate = f"{job['images_per_second']:,.0f}"
            workers = f"{job['workers']} of {job['threads']} thread" + "s" * (job["threads"] > 1)
            cells = [f"{job['images']:,}", workers, f"{job['seconds']:.1f}", rate, f"{job['peak_mb']:,.0f} MB"]
            lines.append([f"`{card['model']}`", *cells])
    return _table(["model", "images", "workers", "seconds", "images/s", "peak memory of a process"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "ten-8": lambda: triggered("narcissus-eps8"),
    "ten-16": lambda: triggered("narcissus-eps16"),
    "single-16": lambda: seeds("narcissus-eps16-single"),
    "gradient-matching": lambda: targets("gradient-matching"),
    "bullseye-linear": lambda: targets("bullseye-linear"),
    "bullseye-fine-tune": lambda: targets("bullseye-fine-tune"),
    "knows": knows,
    "claims-16": lambda: triggered("narcissus-eps16", "claims", "Narcissus of high power, eps 16"),
    "claims-8": lambda: triggered("narcissus-eps8", "claims", "Narcissus, CIFAR-10, ResNet-18, 200 epochs"),
    "claims-matching": lambda: targets(
        "gradient-matching", "claims", "Gradient Matching, CIFAR-10, ResNet-18, 200 epochs"
    ),
    "claims-bullseye": lambda: targets("bullseye-linear", "claims", "Bullseye Polytope, linear transfer, black-box"),
    "badnets": lambda: triggered("badnets", "claims"),
    "blended": lambda: triggered("blended", "claims"),
    "wanet": lambda: triggered("wanet", "claims"),
    "tenth-8": lambda: triggered("narcissus-eps8-tenth", "claims", "Narcissus of high power, 10 % poisons"),
    "tenth-16": lambda: triggered("narcissus-eps16-tenth", "claims", "Narcissus of high power, eps 16, 10 % poisons"),
    "ntga": lambda: availability("ntga", "claims", "NTGA, CIFAR-10, ResNet-18"),
    "hlb": lambda: triggered("narcissus-eps16-hlb", "claims", "Narcissus, CIFAR-10, HyperLight medium"),
    "hlb-matching": lambda: targets("gradient-matching-hlb", "claims"),
    "mobilenet": lambda: triggered("narcissus-eps16-mobilenet", "claims", "Narcissus, CIFAR-10, MobileNetV2"),
    "mobilenet-linear": lambda: targets("bullseye-linear-mobilenet", "claims"),
    "densenet-linear": lambda: targets(
        "bullseye-linear-densenet", "claims", "Bullseye Polytope, linear transfer, black-box"
    ),
    "tiny-64": lambda: triggered("narcissus-tiny-64px", "claims"),
    "knows-16": lambda: knows(WAYS, "claims"),
    "mid-run": lambda: steps("bullseye-linear"),
    "shift": shift,
    "timing": timing,
    "scale": scale,
    "quick": quick,
    "diagnosis": diagnosis,
}


def filled(text: str) -> str:
    """The text with every table that it marks made anew."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- table (?P<name>[\w-]+) -->.*?<!-- end (?P=name) -->", fill, text, flags=re.DOTALL)


@cache
def _suite_rows(of: str) -> list[Row]:
    return make_rows(read_suite_cards(load_suite(of), RESULTS))


def _hit(row: Row) -> str:
    return f"{round(row['poison_success'] * row['goals'])} of {row['goals']}"


def _rows(name: str, of: str = "cpu") -> list[tuple[Row, str]]:
    """As of `_every_row`, without those of `shift`."""
    return [pair for pair in _every_row(name, of) if not _made_of(pair[0])]


def _defenses(name: str, of: str) -> list[str]:
    """What the lines of a table are of, in their order."""
    return [row["defence"] for row, _ in _rows(name, of)]


def _beside(head: list[str], lines: list[list[str]], defenses: list[str], published: str) -> str:
    """A table with a last column of published figures, and a line of those that nothing here is like.

    Args:
        defenses: what the lines are of.
        published: title of the quoted experiment; "" for none.
    """
    if not published:
        return _table(head, lines)
    figures = {row["defence"]: row for row in quoted_rows() if row["title"] == published}
    one, rows = next(iter(figures.values())), figures.values()
    own = [_like(defense, figures) for defense in defenses]
    filled = [[*line, _figures(figures[name]) if name else ""] for line, name in zip(lines, own, strict=True)]
    rest = [row for name, row in figures.items() if name not in own]
    rest.sort(key=lambda row: (row["poison_success"] or 0, -(row["natural_accuracy"] or 0)))
    told = "success, accuracy" if any(row["poison_success"] is not None for row in rows) else "accuracy"
    if any(row["poison_success_max"] is not None for row in rows):
        told = "success (worst class), accuracy"
    source = f"Published ({told}): {published}" + f", {one['eps']}/255" * ("eps" not in published) + " (PureGen)."
    if rest:
        source += " Not in the table: " + "; ".join(f"{_published_name(row)} {_figures(row)}" for row in rest) + "."
    return _table([*head, "published"], filled) + f"\n\n{source}"


def _head(defense: str) -> str:
    """Its name without options; of diffusion and what combines with it, without the level."""
    head = defense.partition(":")[0]
    return head.partition("-")[0] if head.startswith(("ddpm", "naive", "reps", "filt")) else head


def _like(defense: str, figures: Mapping[str, Row]) -> str | None:
    """The published defense that ours is most like. Models and samplers other than the default's are like none."""
    head = _head(defense)
    return head if head in figures and (head != "pureebm" or defense == head) else None


def _published_name(row: Row) -> str:
    name = row["defence"]
    if name in BASELINES:
        return f"{BASELINES[name]} (its best variant)"
    return "PureGen-EBM" if name == "pureebm" else NAMES.get(name, name)


def _figures(row: Row) -> str:
    """With the digits that were published."""
    success, worst, natural = (
        "" if row[key] is None else f"{round(100 * row[key], 2):g}"
        for key in ("poison_success", "poison_success_max", "natural_accuracy")
    )
    return ", ".join(filter(None, (success + f" ({worst})" * bool(worst), natural)))


def _every_row(name: str, of: str) -> list[tuple[Row, str]]:
    """Rows of a scenario of a suite, least success first, each with its accuracy where nothing is attacked."""
    (key,) = (scenario.key() for scenario in load_suite(of).scenarios if scenario.name == name)
    every = _suite_rows(of)
    own = [row for row in every if row["key"] == key]
    own.sort(key=lambda row: (row["poison_success"] or 0, -row["natural_accuracy"]))
    if not own:
        return []
    clean = {row["defence"]: _rate(row["natural_accuracy"]) for row in every if row["key"] == own[0]["clean_key"]}
    return [(row, clean.get(row["defence"], "")) for row in own]


def _name(row: Row) -> str:
    name = row["defence"]
    if name.startswith("residual-32"):
        return DEFAULT
    return STUDENT if name == "student" else NAMES.get(name, name)


def _has_steps(card: Row) -> bool:
    return "n_steps" in card["settings"]


def _purifier(card: Row) -> str:
    if not _has_steps(card):
        return "`student`" if card["defence"] == "student" else str(card["defence"])
    steps, constant = card["settings"]["n_steps"], " T " in card["defence"]
    name = f"`residual-32`, {steps} update" + "s" * (steps > 1)
    if constant:
        return f"{name}, temperature {card['settings']['temperature'] ** 0.5:.2g}² throughout"
    default = read_card(ROOT / "src" / "pureebm" / "energy" / "models" / "residual-32.json")["sampler"]["n_steps"]
    return f"**{name} (the default)**" if steps == default else name


def _rate(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return "*Not measured yet.*"
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def main() -> None:
    for name in FILES:
        path = ROOT / name
        before = path.read_text()
        after = filled(before)
        if after != before:
            path.write_text(after)
            print(f"{name}: tables filled")


if __name__ == "__main__":
    main()
