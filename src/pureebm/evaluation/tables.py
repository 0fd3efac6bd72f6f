"""Cards of scenarios to rows, and rows to tables: terminal cells, Markdown, LaTeX.

A row is one attack x defense. Its mean is over goals (classes or targets), each the mean of its seeds, as the papers
average; the spread is over goals too (n - 1), and `poison_success_seed_sd` is that over the seeds of a goal.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from pureebm.evaluation.metrics import bootstrap_interval, wilson_interval
from pureebm.types import JSON

Row = dict[str, Any]

CONTRACT = (
    "attack", "eps", "budget", "data", "victim", "defence", "natural_accuracy", "natural_accuracy_sd", "poison_success",
    "poison_success_sd", "poison_success_max", "clean_floor", "runs", "defence_seconds", "train_seconds", "quoted",
)  # fmt: skip
"""Keys that every row has, first and in this order."""

LEGEND = (
    "Natural accuracy (also: clean accuracy, ACC): share of untouched test images read right.",
    "Poison success (also: PSR, attack success rate, ASR): share of triggered test images of other classes that are "
    "read as the target class, or share of targets read as the attacker wants; mean ± spread over goals, and the 95 % "
    "interval of the mean (bootstrap over classes; Wilson's for targets). Near the floor is good.",
    "Max: the worst class. Floor: the same rate for the victim of the clean, undefended set (ordinary confusions).",
    "True class (also: robust accuracy, RA): share of triggered images, or of targets, still read as what they show.",
    "No attack: what the defense costs when nothing is wrong. All rates are in %. Runs: victims trained. PSNR: of the "
    "training images after the defense to those before. Costs: wall-clock time and peak memory.",
    "† quoted from the papers named below, not measured here: other networks, data or recipes.",
)


def make_rows(cards: Iterable[JSON]) -> list[Row]:
    """One row for each attack x defense of the cards, in the order in which they first appear."""
    groups: dict[tuple[str, str, str], list[JSON]] = defaultdict(list)
    for card in cards:
        groups[(card["key"], card["defence"], card["defence_hash"])].append(card)
    return [_row(group) for group in groups.values()]


def _row(cards: Sequence[JSON]) -> Row:
    first = cards[0]
    row: Row = dict.fromkeys(CONTRACT)
    row |= {key: first[key] for key in ("attack", "eps", "data", "victim", "defence")}
    row["budget"] = _budget(first)
    row |= {"sharing": first.get("sharing", 1), "through": _through(first.get("protocol", {}))}
    victims = cards if row["sharing"] == 1 else [card for card in cards if card["goal"] == first["goal"]]
    natural, success = _by_goal(victims, "natural_accuracy"), _by_goal(cards, "poison_success")
    row |= {"natural_accuracy": _mean(natural), "natural_accuracy_sd": _spread([_values(victims, "natural_accuracy")])}
    row |= {"poison_success": _mean(success), "poison_success_sd": _spread([_means(success)])}
    row["poison_success_max"] = max(_means(success), default=None)
    row |= {"clean_floor": _mean(_by_goal(cards, "clean_floor")), "runs": len(victims), "quoted": False}
    for key in ("defence_seconds", "train_seconds", "defence_peak_mb", "train_peak_mb", "still_true", "l2", "psnr"):
        row[key] = _mean(_by_goal(cards, key))
    row["n_steps"] = first.get("settings", {}).get("n_steps")
    row |= {"key": first["key"], "clean_key": first["clean_key"], "regime": first["regime"], "kind": first["kind"]}
    row |= {"goals": len(success) or len(natural), "poison_success_seed_sd": _spread(list(success.values()))}
    row["poison_success_interval"] = _interval(_means(success), first["kind"])
    row["natural_accuracy_interval"] = bootstrap_interval(_means(natural))
    row["flipped"] = sum(
        card["kind"] == "targets" and card["poison_success"] == 1 == card["clean_still_true"] for card in cards
    )
    return row


def _budget(card: JSON) -> float:
    """Share of the training set that is poisoned. Cross samples, which a warp also changes and which keep their labels,
    come on top of it, as of BackdoorBench's ratio."""
    poisons = (card.get("attack_record") or {}).get("poisons")
    return float(card["budget"] if poisons is None else poisons / card["n_train"])


def _through(protocol: JSON) -> str | None:
    """The purifier that the attacker knew, and how it used it where that is not the usual way."""
    own = [
        str(value) for name, value in protocol.items() if name in ("through_in", "through_noise", "through_gradient")
    ]
    return ", ".join([protocol["through"], *own]) if protocol.get("through") else None


def _interval(means: Sequence[float], kind: str) -> tuple[float, float] | None:
    """Of their mean: Wilson's for targets, which are hit or not; else the bootstrap's over goals."""
    if kind == "targets" and means and set(means) <= {0.0, 1.0}:
        return wilson_interval(round(sum(means)), len(means))
    return bootstrap_interval(means)


def _by_goal(cards: Sequence[JSON], key: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for card in cards:
        if card[key] is not None:
            values[card["goal"]].append(card[key])
    return values


def _values(cards: Sequence[JSON], key: str) -> list[float]:
    return [card[key] for card in cards if card[key] is not None]


def _means(by_goal: Mapping[str, Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in by_goal.values()]


def _mean(by_goal: Mapping[str, Sequence[float]]) -> float | None:
    return statistics.fmean(_means(by_goal)) if by_goal else None


def _spread(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within the groups, pooled, n - 1; None where no group has two values."""
    wide = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in wide)
    if not freedom:
        return None
    return math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in wide) / freedom)


def quoted_rows(ours: Sequence[Row] | None = None) -> list[Row]:
    """Published figures as rows; with `ours`, those of the published experiment that is closest to each of them."""
    rows = []
    for entry in _quoted()["scenario"]:
        for defense, figures in entry["figures"].items():
            row: Row = dict.fromkeys(CONTRACT)
            row |= {
                key: entry.get(key) for key in ("attack", "eps", "budget", "data", "victim", "regime", "runs", "source")
            }
            success, natural, worst = (*figures, None)[:3]
            rates = {"poison_success": success, "natural_accuracy": natural, "poison_success_max": worst}
            row |= {key: None if value in (None, "") else value / 100 for key, value in rates.items()}
            aside = entry.get("aside", False)
            rows.append(row | {"defence": defense, "quoted": True, "title": entry["name"], "aside": aside})
    if ours is None:
        return rows
    wanted = {closest for row in ours if (closest := _closest(row, rows)) is not None}
    return [row for row in rows if row["title"] in wanted]


def quoted_seconds() -> dict[str, float]:
    """Published seconds by defense: of purifying a set, or of the training of a victim ("none", "friends")."""
    return {name: value for name, value in _quoted()["seconds"].items() if name != "source"}


def _quoted() -> JSON:
    return tomllib.loads((resources.files("pureebm") / "evaluation" / "quoted.toml").read_text())


def _closest(row: Row, quoted: Sequence[Row]) -> str | None:
    """Title of the published experiment that is most like ours: attack, eps and kind of training must agree."""
    alike = [one for one in quoted if all(one[key] == row[key] for key in ("attack", "eps", "regime"))]
    alike = [one for one in alike if not one.get("aside")]
    if not alike or row["quoted"]:
        return None

    def agreement(one: Row) -> tuple[bool, bool, bool, int]:
        ours, theirs = str(row["victim"]).split(", "), str(one["victim"]).split(", ")
        same_base = str(row["data"]).split("-")[0] == str(one["data"]).split("-")[0]
        near = abs(row["budget"] - one["budget"]) < 0.1 * one["budget"]
        return near, same_base, ours[0] == theirs[0], len(set(ours) & set(theirs))

    best = max(alike, key=agreement)  # the first of equals: the file's order
    return str(best["title"])


Block = tuple[str, list[Row]]


def blocks(rows: Sequence[Row], quoted: Sequence[Row] = ()) -> list[Block]:
    """Rows by scenario, with a title: the no-attack rows of its victim, its own rows, and quoted ones beside them.

    A victim that no attack was tried on has a block of its own.
    """
    found, used = [], set()
    for key in dict.fromkeys(row["key"] for row in rows if row["attack"] != "none"):
        own = [row for row in rows if row["key"] == key]
        clean = [row for row in rows if row["key"] == own[0]["clean_key"]]
        used.add(own[0]["clean_key"])
        closest = _closest(own[0], quoted)
        beside = [row for row in quoted if row["title"] == closest]
        found.append((_title(own[0]), clean + own + beside))
    for key in dict.fromkeys(row["key"] for row in rows if row["attack"] == "none"):
        if key not in used:
            own = [row for row in rows if row["key"] == key]
            found.append((_title(own[0]), own))
    return found


def _title(row: Row) -> str:
    if row["attack"] == "none":
        return f"No attack; {row['data']}, {row['victim']}"
    eps = "" if row["eps"] is None else f", eps {row['eps']:g}/255"
    shared = "" if row["sharing"] == 1 else f" for each of {row['sharing']} goals in one victim"
    aware = f", made through {row['through']}" if row.get("through") else ""
    return f"{row['attack']}{aware}{eps}, {100 * row['budget']:.3g} % poisons{shared}; {row['data']}, {row['victim']}"


COLUMNS = (
    "attack", "defense", "natural acc.", "poison success", "95 %", "max", "floor", "true class", "PSNR dB", "runs",
    "defense cost", "training cost",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row as texts, one for each of `COLUMNS`."""
    interval, one_by_one = row.get("poison_success_interval"), row.get("kind") == "targets"
    return [
        "no attack" if row["attack"] == "none" else "as published" if row["quoted"] else row["attack"],
        row["defence"] + (" †" if row["quoted"] else ""),
        _rate(row["natural_accuracy"], row["natural_accuracy_sd"]),
        _rate(row["poison_success"], None if one_by_one else row["poison_success_sd"]),
        "" if interval is None else f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}",
        "" if one_by_one else _rate(row["poison_success_max"]),
        _rate(row["clean_floor"]),
        _rate(row.get("still_true")),
        "" if row.get("psnr") is None else f"{row['psnr']:.1f}",
        "" if row["runs"] is None else str(row["runs"]),
        _cost(row["defence_seconds"], row.get("defence_peak_mb")),
        _cost(row["train_seconds"], row.get("train_peak_mb")),
    ]


def sources(rows: Sequence[Row]) -> list[str]:
    """What the quoted rows among these are taken from."""
    return sorted({f"† {row['title']}: {row['source']}." for row in rows if row["quoted"]})


def markdown(found: Sequence[Block]) -> str:
    """Every block as a heading and a pipe table, then the legend."""
    parts = []
    for title, rows in found:
        lines = [f"### {title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 2 + "---:|" * (len(COLUMNS) - 2)]
        lines += ["| " + " | ".join(text.replace("|", "\\|") for text in cells(row)) + " |" for row in rows]
        parts.append("\n".join(lines))
    notes = [*LEGEND[:-1], *([LEGEND[-1]] if _any_quoted(found) else []), *_all_sources(found)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes)]) + "\n"


def latex(found: Sequence[Block]) -> str:
    """Every block as a table with booktabs rules; needs \\usepackage{booktabs}."""
    parts = []
    for title, rows in found:
        head = " & ".join(_escape(name) for name in COLUMNS)
        lines = [r"\begin{table}", r"\centering", r"\small", rf"\caption{{{_escape(title)}}}"]
        lines += [rf"\begin{{tabular}}{{ll{'r' * (len(COLUMNS) - 2)}}}", r"\toprule", head + r" \\", r"\midrule"]
        for before, row in zip([None, *rows], rows, strict=False):
            if before and (before["attack"] == "none" != row["attack"] or row["quoted"] and not before["quoted"]):
                lines.append(r"\midrule")
            lines.append(" & ".join(_escape(text) for text in cells(row)) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    notes = "\n".join(f"% {line}" for line in [*LEGEND, *_all_sources(found)])
    return "\n\n".join([*parts, notes]) + "\n"


def _any_quoted(found: Sequence[Block]) -> bool:
    return any(row["quoted"] for _, rows in found for row in rows)


def _all_sources(found: Sequence[Block]) -> list[str]:
    return sources([row for _, rows in found for row in rows])


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "†": r"$\dagger$", **{mark: "\\" + mark for mark in "&%$#_{}"}}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _rate(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if spread is None else f" ±{100 * spread:.1f}")


def _cost(seconds: float | None, peak_mb: float | None) -> str:
    if not seconds:
        return ""
    time = f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"
    return time + (f", {peak_mb / 1000:.2g} GB" if peak_mb else "")
