"""`pureebm purify`: an untrusted image set goes in, the same set comes out purified."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import DEFAULT_MODEL, emit, say
from pureebm.cli.progress import duration, show_progress, stop_on_signals

if TYPE_CHECKING:
    from pureebm.purify.job import Plan, RunRecord

app = typer.Typer(add_completion=False)


@app.command()
def purify(
    source: options.Source,
    target: Annotated[
        Path,
        typer.Argument(
            help="Where the purified set goes, perhaps a URL; new, or begun by this command.", show_default=False
        ),
    ],
    model: options.Model = DEFAULT_MODEL,
    chain: options.Chain = None,
    ddpm: options.DDPM = None,
    vq: options.VQ = None,
    steps: options.Steps = None,
    step_size: options.StepSize = None,
    temperature: options.Temperature = None,
    sampler: options.Sampler = "default",
    noise: options.NoiseScale = None,
    level: options.Level = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_size: options.BatchSize = "auto",
    limit: options.Limit = None,
    on_error: options.OnError = "skip",
    shard: options.Shard = "0/1",
    workers: options.Workers = None,
    engine: options.Engine = "local",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET, or an unfinished run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Purify an image set: the same set comes out, harmless.

    TARGET gets the kind, names, labels and order of SOURCE, and beside them a manifest, a run record and a report.
    Killed at any moment and repeated, the same command goes on where it was; finished, it has nothing to do. Steps,
    step size and temperature come from the model unless given here.
    """
    batch, part, place = options.parse_batch_size(batch_size), options.parse_shard(shard), options.parse_device(device)
    options.use_threads(threads)
    from pureebm.data.remote import as_url
    from pureebm.purify.job import JobConfig, plan, run
    from pureebm.purify.remote import finished_at_url, plan_to_url, run_to_url

    config = JobConfig(seed=seed, limit=limit, on_error=on_error, shard=part, overwrite=overwrite, batch_size=batch)
    chosen = {"sampler": sampler, "steps": steps, "step_size": step_size, "temperature": temperature, "noise": noise}
    stage = options.purifier(
        model, chain=chain, ddpm=ddpm, vq=vq, level=level, device=place, precision=precision, **chosen
    )
    url = as_url(target)
    if dry_run:
        planned = plan_to_url(source, url, stage, config) if url else plan(source, target, stage, config)
        return emit(planned.to_json()) if json_ else _say_plan(planned)
    crew = options.crew(engine, workers, threads)
    report: str | None
    done: tuple[RunRecord, str] | None = None
    began = datetime.now(UTC).replace(microsecond=0)  # records tell seconds
    with stop_on_signals() as stop, show_progress() as progress:
        if url and (done := finished_at_url(source, url, stage, config)):
            record, report = done
        elif url:
            record, report = run_to_url(source, url, stage, config, progress=progress, stop=stop, crew=crew)
        else:
            record = run(source, target, stage, config, progress=progress, stop=stop, crew=crew)
            report = _report_path(record)
    if done or (url is None and datetime.fromisoformat(record.finished) < began):
        say(f"nothing to do: the same command has finished {record.target} before; what it said then:")
    emit(record.to_json() | {"report": report}) if json_ else _say_record(record, report, shared=crew is not None)
    raise typer.Exit(record.exit_code)


def _say_plan(plan: Plan) -> None:
    if plan.finished:
        return say(f"nothing to do: the same command has finished {plan.target} before")
    done = f", {plan.images_done:,} of them done" if plan.images_done else ""
    say(f"{plan.images:,} images{done} -> {plan.target}")
    say(f"batches of {plan.batch_shape[0]} x 3 x {plan.batch_shape[2]} x {plan.batch_shape[3]}")
    if plan.images_per_second is not None and plan.seconds is not None:
        say(f"about {duration(plan.seconds)} at {plan.images_per_second:,.1f} images/s, as measured on one batch")
    say(f"at most {plan.bytes_needed / 1e6:,.1f} MB on disk, {plan.bytes_free / 1e6:,.0f} MB free")
    say("dry run: nothing was written")


def _report_path(record: RunRecord) -> str | None:
    """Where the report stands; None while other shards are missing."""
    from pureebm.purify.manifest import REPORT_NAME
    from pureebm.purify.workplace import side_folder

    target = Path(record.target)
    return str(side_folder(target, target.is_file()) / REPORT_NAME) if record.status == "complete" else None


def _say_record(record: RunRecord, report: str | None, *, shared: bool) -> None:
    counts = ", ".join(f"{count:,} {name}" for name, count in record.counts.items() if count and name != "total")
    say(f"{record.counts['total']:,} images: {counts}")
    for note in record.notes:
        say(f"Note: {note}")
    for warning in record.warnings:
        say(f"Warning: {warning}")
    if report is None:
        return say("this shard is done; the target appears when the others are")
    over, each = (" over all workers", " each") if shared else ("", "")
    took, rate = duration(record.seconds["total"]), record.images_per_second
    say(f"{took}{over} at {rate:,.1f} images/s{each} -> {record.target}")
    say(f"report: {report}")
