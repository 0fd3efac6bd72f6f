"""A scan as SARIF 2.1.0, the format in which code hosts and editors read findings (OASIS Standard, 2020)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pureebm
from pureebm.data.durable import check_place, write_file
from pureebm.errors import InputError
from pureebm.evaluation.scan import NOT_RULED_OUT, RULES, Finding, Level, Scan
from pureebm.types import JSON

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
SEVERITY: dict[Level, str] = {"low": "note", "medium": "warning", "high": "error"}
MAX_LOCATIONS = 100
"""Of one finding; code hosts refuse files with very many."""


def check_sarif(path: Path) -> None:
    """Raises `InputError` where it cannot be written, before a long scan."""
    try:
        check_place(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_sarif(path: Path, log: JSON) -> None:
    """Whole or not at all. Raises `InputError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write((json.dumps(log, indent=1) + "\n").encode()))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def sarif_of(scan: Scan) -> JSON:
    """The log of a finished scan."""
    notes = [{"level": "note", "message": {"text": note}} for note in (*scan.notes, NOT_RULED_OUT)]
    invocation = {"executionSuccessful": True, "toolExecutionNotifications": notes}
    return _log(invocation, [_result(finding, scan) for finding in scan.findings])


def sarif_of_error(message: str) -> JSON:
    """The log of a scan that could not be made."""
    told = [{"level": "error", "message": {"text": message}}]
    return _log({"executionSuccessful": False, "toolExecutionNotifications": told}, [])


def _log(invocation: JSON, results: Sequence[JSON]) -> JSON:
    driver = {
        "name": "pureebm",
        "version": pureebm.__version__,
        "rules": [
            {
                "id": rule,
                "shortDescription": {"text": text},
                "defaultConfiguration": {"level": SEVERITY[level]},
                "help": {"text": NOT_RULED_OUT},
            }
            for rule, (level, text) in RULES.items()
        ],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "utf16CodeUnits",
        "invocations": [invocation],
        "results": list(results),
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(finding: Finding, scan: Scan) -> JSON:
    identity = "\n".join([finding.rule, *finding.items[:MAX_LOCATIONS]]) if finding.items else finding.message
    more = finding.count - MAX_LOCATIONS
    return {
        "ruleId": finding.rule,
        "ruleIndex": list(RULES).index(finding.rule),
        "level": SEVERITY[finding.level],
        "message": {"text": finding.message + (f"; {more:,} more images" if finding.items and more > 0 else "")},
        "locations": [_location(item, scan) for item in finding.items[:MAX_LOCATIONS]] or [_location("", scan)],
        "partialFingerprints": {"pureebm/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {"level": finding.level, "count": finding.count, **finding.details},
    }


def _location(item: str, scan: Scan) -> JSON:
    """A file below the source, or a row of it; paths are relative to the current folder where they lie in it."""
    path = Path(scan.source)
    place: JSON = {}
    if item and not scan.single_file and (path / item).is_file():
        path = path / item
    elif item:
        place["logicalLocations"] = [{"name": item, "kind": "element"}]
    return place | {"physicalLocation": {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}}}


def _uri(path: Path) -> str:
    whole = path.absolute()
    try:
        return quote(whole.relative_to(Path.cwd()).as_posix())
    except ValueError:
        return "file://" + quote(whole.as_posix())
