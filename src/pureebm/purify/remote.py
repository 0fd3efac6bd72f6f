"""A job whose target is at a URL: it grows in a local place, and is uploaded when it is complete."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pureebm.data.base import Source
from pureebm.data.remote import RemoteTarget, held
from pureebm.errors import InputError, MismatchError
from pureebm.purify.job import JobConfig, Plan, RunRecord, nothing_left, opened, plan, run, same_job
from pureebm.purify.manifest import RECORD_NAME, REPORT_NAME, write_json
from pureebm.purify.workplace import differences, exists, record_path
from pureebm.types import JSON, Stage


def finished_at_url(source: Source | Path, url: str, stage: Stage, config: JobConfig) -> tuple[RunRecord, str] | None:
    """The record and the report's URL where this very job has finished the target before: there is nothing to do."""
    target, opened_source = RemoteTarget(url), opened(source)
    told = None if config.overwrite else target.record(RECORD_NAME)
    try:
        record = RunRecord(**told) if told is not None else None
        if record is None or not same_job(record, opened_source, stage, config):
            return None
    except (TypeError, KeyError, AttributeError, ValueError):
        return None  # damaged: whoever wants to write there is told that something stands there
    return dataclasses.replace(record, target=target.url), _report_url(target, opened_source)


def plan_to_url(source: Source | Path, url: str, stage: Stage, config: JobConfig) -> Plan:
    """As `job.plan`."""
    if done := finished_at_url(source, url, stage, config):
        return dataclasses.replace(nothing_left(done[0], config), target=done[0].target)
    target = RemoteTarget(url)
    target.check(RECORD_NAME, overwrite=config.overwrite)
    return dataclasses.replace(plan(source, target.path, stage, config), target=target.url)


def run_to_url(
    source: Source | Path, url: str, stage: Stage, config: JobConfig, **options: Any
) -> tuple[RunRecord, str]:
    """As `job.run`, with the target at a URL. Cut off anywhere and repeated, it goes on from there.

    Returns:
        The record, and the URL of the report.

    Raises:
        InputError: As `job.run`; or the target exists there; or a shard of several is asked for, as these meet in a
            local target only.
    """
    if config.shard[1] > 1:
        raise InputError(f"shards meet in a local target; purify to one, and copy it to {url} when it is complete")
    target = RemoteTarget(url)
    opened_source = opened(source)
    with held(target.folder):
        target.begin(RECORD_NAME, overwrite=config.overwrite)
        record = _finished(opened_source, target, stage, config) or run(source, target.path, stage, config, **options)
        record = dataclasses.replace(record, target=target.url)
        write_json(record_path(target.path, opened_source.single_file), record.to_json())
        target.upload(RECORD_NAME, options.get("stop"))
    return record, _report_url(target, opened_source)


def _report_url(target: RemoteTarget, source: Source) -> str:
    return f"{target.url}.pureebm/{REPORT_NAME}" if source.single_file else f"{target.url}/{REPORT_NAME}"


def _finished(source: Source, target: RemoteTarget, stage: Stage, config: JobConfig) -> RunRecord | None:
    """The record of the same job, if it was complete and only its upload was cut off."""
    if not exists(target.path):
        return None
    record = RunRecord(**json.loads(record_path(target.path, source.single_file).read_text(encoding="utf-8")))
    wanted = plan(source, target.folder / "compared" / target.path.name, stage, config).settings
    changes = differences(_without_sizes(record.settings), _without_sizes(json.loads(json.dumps(wanted))))
    if not changes:
        return record
    if not config.overwrite:
        raise MismatchError(
            f"a job for {target.url} was finished with other settings, and not yet uploaded:\n  "
            + "\n  ".join(changes)
            + "\nrepeat the first command to upload it, or start over with --overwrite"
        )
    target.start_over()
    return None


def _without_sizes(settings: JSON) -> JSON:
    """Those that are measured anew in each plan do not count."""
    return {name: value for name, value in settings.items() if name not in ("batch_size", "chunk_items")}
