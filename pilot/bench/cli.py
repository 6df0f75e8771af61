"""The sub-command ``pilotage bench pilot``."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any, Optional

import click
import msgspec
import psutil

from common.plugins import version
from pilot.bench import lives, xrootd
from pilot.bench.place import Place, place
from pilot.watch.measure import measure_watch

EIGHT = 8


class Report(msgspec.Struct, kw_only=True):
    """The benchmark's JSON: seconds, MB (2**20 bytes), per cent of one core. What was not measured is null."""

    job_p50_s: float
    job_max_s: float
    gap_p50_s: float
    gap_max_s: float
    failed_report_s: float
    sigterm_s: float
    rss_mb_1: float
    rss_mb_8: float
    watch_cpu_percent: float
    breach_s: float
    xrootd_ratio: Optional[float] = None
    xrootd_mb_s: dict[str, float] = {}
    container_job_p50_s: Optional[float] = None
    container_gap_p50_s: Optional[float] = None
    conditions: dict[str, Any] = {}


@click.command()
@click.option("--jobs", type=click.IntRange(3, 10_000), default=20, show_default=True, help="Jobs one after another.")
@click.option("--payload-s", type=click.FloatRange(0.0, 600.0), default=1.0, show_default=True, help="What each takes.")
@click.option("--image", metavar="IMAGE", help="Also in this image (with sh and sleep), by Apptainer.")
@click.option("--bind", "binds", multiple=True, metavar="PATH", help="A folder that the image needs.")
@click.option(
    "--xrootd", "xrootd_url", metavar="URL", help="A prefix that anybody may write to, such as root://host//tmp."
)
@click.option(
    "--xrootd-mb", type=click.IntRange(1, 100_000), default=5000, show_default=True, help="Megabytes to copy."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pilot(
    jobs: int,
    payload_s: float,
    image: Optional[str],
    binds: tuple[str, ...],
    xrootd_url: Optional[str],
    xrootd_mb: int,
    as_json: bool,
) -> None:
    """What a pilot adds to its jobs: a real server and real pilots, payloads that only sleep.

    A job's time is from the claim to the confirmation, as the server saw it; the gap is from the end of a payload to the
    start of the next one in the slot, as the payloads wrote it down.
    """
    with tempfile.TemporaryDirectory(prefix="pilotage-bench-") as folder:
        root = Path(folder)
        with place(root, list(binds)) as where:
            report = _measure(where, jobs, payload_s, image)
        if xrootd_url is not None:
            rates = xrootd.measure(xrootd_url.rstrip("/"), xrootd_mb * 1_000_000, root)
            report.xrootd_ratio = round(rates.ratio, 3)
            report.xrootd_mb_s = {name: round(rate, 1) for name, rate in vars(rates).items()}
    if as_json:
        click.echo(msgspec.json.encode(report))
        return
    for name, value in msgspec.to_builtins(report).items():
        if value is not None and value != {}:
            click.echo(f"{name:<22} {value}")


def _measure(where: Place, jobs: int, payload_s: float, image: Optional[str]) -> Report:
    machine = {
        "cores": psutil.cpu_count() or 1,
        "load_1_min": round(psutil.getloadavg()[0], 2),
        "python": platform.python_version(),
        "pilotage": version(),
        "jobs": jobs,
        "payload_s": payload_s,
    }
    plain = lives.run_lives(where, jobs, payload_s)
    boxed = lives.run_lives(where, jobs, payload_s, image) if image is not None else None
    failed_s, sigterm_s = lives.failed_report_s(where), lives.sigterm_s(where)
    rss_1, rss_8 = lives.rss_of(where, 1), lives.rss_of(where, EIGHT)
    cost = measure_watch()
    return Report(
        job_p50_s=round(plain.job_p50_s, 3),
        job_max_s=round(plain.job_max_s, 3),
        gap_p50_s=round(plain.gap_p50_s, 3),
        gap_max_s=round(plain.gap_max_s, 3),
        failed_report_s=round(failed_s, 3),
        sigterm_s=round(sigterm_s, 2),
        rss_mb_1=max(rss_1, plain.pilot_rss_mb),
        rss_mb_8=rss_8,
        watch_cpu_percent=round(cost.cpu_percent, 2),
        breach_s=round(cost.breach_s, 2),
        container_job_p50_s=round(boxed.job_p50_s, 3) if boxed is not None else None,
        container_gap_p50_s=round(boxed.gap_p50_s, 3) if boxed is not None else None,
        conditions=machine,
    )
