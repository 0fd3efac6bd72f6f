"""Fill the tables of README and docs from the cards in results/: `make tables`.

A table stands between `<!-- table NAME -->` and `<!-- end NAME -->`. A test checks that none is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pureebm.evaluation.cards import read_card, read_cards, table
from pureebm.evaluation.runner import read_suite_cards
from pureebm.evaluation.scenarios import load_suite
from pureebm.evaluation.tables import Row, make_rows

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
TIMES = {
    "pureebm": "923 (150 updates)",
    "ddpm:ddim=10": "4,181 (75 steps)",
    "none": "3,690",
    "friends-b:preset=short": "11,502",
}
"""Seconds that PureGen's table 5 has for what is most like ours, on a TPU v3 and all of CIFAR-10."""


def triggered(name: str, suite: str = "cpu") -> str:
    """A scenario with a trigger: one row a defense, the best first."""
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
    return _table(head, lines)


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


def targets(name: str, suite: str = "cpu") -> str:
    """A scenario with targets: how many are read as the attacker wants, and how many of those by the poison alone."""
    head = ["defense", "accuracy, no attack", "accuracy", "targets read as intended", "of them right without poison"]
    lines = []
    for row, clean in _rows(name, suite):
        lines.append([_name(row), clean, _rate(row["natural_accuracy"]), _hit(row), str(row["flipped"])])
    return _table(head, lines)


def availability(name: str, suite: str) -> str:
    """A set of which every image is changed: what it still teaches, the best first."""
    lines = [
        [_name(row), clean, _rate(row["natural_accuracy"])]
        for row, clean in sorted(_rows(name, suite), key=lambda pair: -pair[0]["natural_accuracy"])
    ]
    return _table(["defense", "accuracy, no attack", "accuracy"], lines)


def knows(known: Mapping[str, str] = KNOWS, suite: str = "cpu") -> str:
    """Attackers who know the defense, beside one who does not."""
    head = ["the attacker knows", "defense", "accuracy", "poison success", "floor"]
    lines = []
    for name, knowledge in known.items():
        for row, _ in _rows(name, suite):
            rates = [_rate(row[key]) for key in ("natural_accuracy", "poison_success", "clean_floor")]
            lines.append([knowledge, _name(row), *rates])
    return _table(head, lines)


def shift() -> str:
    """Energies of other training sets: how far the set lies, and what they are worth."""
    head = [
        "training set",
        "Frechet distance",
        "accuracy, 8/255",
        "poison success",
        "accuracy, 16/255",
        "poison success",
    ]
    attacks = [[row for row, _ in _rows(name, "claims")] for name in ("narcissus-eps8", "narcissus-eps16")]
    lines = []
    for card in sorted(read_cards(RESULTS / "shift"), key=lambda card: card["frechet_distance"]):
        cells = [f"`{card['set']}`", f"{card['frechet_distance']:.3f}"]
        for rows in attacks:
            own = [row for row in rows if f"/{card['set']}/model" in row["defence"]]
            cells += [_rate(own[0][key]) if own else "" for key in ("natural_accuracy", "poison_success")]
        lines.append(cells)
    return _table(head, lines)


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
    rows = make_rows(read_suite_cards(load_suite("claims"), RESULTS))
    clean = [row for row in rows if row["attack"] == "none" and row["data"] == "cifar10-20000"]
    clean = [row for row in clean if row["victim"].startswith("small-resnet, fast, 8 ") and "/" not in row["defence"]]
    purifiers = [row for row in clean if row["defence_seconds"]]
    for row in sorted(purifiers, key=lambda row: row["defence_seconds"]):
        lines.append([f"purify by {_name(row)}", f"{row['defence_seconds']:,.0f}", TIMES.get(row["defence"], "")])
    for row in clean:
        if row not in purifiers:
            lines.append(
                [f"train a victim, {_name(row)}", f"{row['train_seconds']:,.0f}", TIMES.get(row["defence"], "")]
            )
    return _table(["", "seconds here", "published"], lines)


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
    "claims-16": lambda: triggered("narcissus-eps16", "claims"),
    "claims-8": lambda: triggered("narcissus-eps8", "claims"),
    "claims-matching": lambda: targets("gradient-matching", "claims"),
    "claims-bullseye": lambda: targets("bullseye-linear", "claims"),
    "badnets": lambda: triggered("badnets", "claims"),
    "blended": lambda: triggered("blended", "claims"),
    "wanet": lambda: triggered("wanet", "claims"),
    "tenth-8": lambda: triggered("narcissus-eps8-tenth", "claims"),
    "tenth-16": lambda: triggered("narcissus-eps16-tenth", "claims"),
    "ntga": lambda: availability("ntga", "claims"),
    "hlb": lambda: triggered("narcissus-eps16-hlb", "claims"),
    "mobilenet": lambda: triggered("narcissus-eps16-mobilenet", "claims"),
    "mobilenet-linear": lambda: targets("bullseye-linear-mobilenet", "claims"),
    "densenet-linear": lambda: targets("bullseye-linear-densenet", "claims"),
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


def _hit(row: Row) -> str:
    return f"{round(row['poison_success'] * row['goals'])} of {row['goals']}"


def _rows(name: str, of: str = "cpu") -> list[tuple[Row, str]]:
    """Rows of a scenario of a suite, least success first, each with its accuracy where nothing is attacked."""
    suite = load_suite(of)
    (key,) = (scenario.key() for scenario in suite.scenarios if scenario.name == name)
    every = make_rows(read_suite_cards(suite, RESULTS))
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
