"""The command demo: the whole pipeline on one machine in a few minutes, on the demo pair that comes with specthink."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import StateDir, chosen_state_dir, command_line, make_group
from pipeline.cli.render import console, number, percent, print_sample, table
from pipeline.texts import visible

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.local import LocalStack
    from pipeline.results.jobs import Job

PANEL = "Running it"

commands = make_group()

POLICIES = ("small-only", "large-only", "speculative-thinking:improved")

TABLE_SQL = """\
SELECT policy, accuracy, accuracy_low, accuracy_high, mean_output_tokens, p90_output_tokens, share_large,
       takeovers_per_sample, tokens_per_second
FROM job_summary WHERE job_id IN ({ids}) ORDER BY job_id"""

SAMPLE_SQL = """\
SELECT id FROM samples WHERE job_id = {id} AND num_takeovers > 0 AND score = 1
ORDER BY abs(num_takeovers - 2), id LIMIT 1"""


def demo_folder() -> Path:
    """Where the demo pair and its problems are: inside the package when installed, beside it in a checkout."""
    from pipeline.errors import ConfigurationError

    package = Path(__file__).parents[1]
    for folder in (package / "_demo", package.parent / "examples"):
        if (folder / "problems.jsonl").is_file():
            return folder
    raise ConfigurationError(f"no demo pair beside {package}; install specthink again")


@commands.command(
    rich_help_panel=PANEL, epilog="Examples: specthink demo --limit 20 · specthink --state-dir .demo demo --keep"
)
def demo(
    context: typer.Context,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many of the 200 problems.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Solutions per problem.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the table there as JSON too.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Fail where the table misses what the demo pair must show.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Solve 200 problems with a small model, a large one, and both: everything from nothing, in a few minutes.

    Starts Postgres, Redis, workers with the demo pair of models, and Flower. All of it ends with the command, however
    that ends. Its state folder is its own unless one is given.
    """
    import platformdirs

    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    folder = chosen_state_dir(context, state_dir) or Path(platformdirs.user_data_dir("specthink-demo"))
    complaints = run(folder, limit=limit, num_samples=samples, keep=keep, table_file=as_json, check=check)
    for complaint in complaints:
        print(f"specthink: {visible(complaint)}", file=sys.stderr)
    raise typer.Exit(1 if complaints else 0)


def _end(signum: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end the demo as an error would, so that what it started is stopped."""
    sys.exit(128 + signum)


def run(
    state_dir: Path, *, limit: int | None, num_samples: int, keep: bool, table_file: Path | None, check: bool
) -> list[str]:
    """Do it all; returns what is to be complained of."""
    import json

    from pipeline.cli.live import ProgressDisplay
    from pipeline.client import Client
    from pipeline.embedded import is_running
    from pipeline.jobs.config import JobState
    from pipeline.settings import load_settings

    out, command = console(), command_line(state_dir)
    is_left = keep or is_running(state_dir)
    start = time.monotonic()
    with running_stack(state_dir, keep=keep) as stack:
        out.print(f"all workers are up after {time.monotonic() - start:.0f} s; Flower: {stack.flower_url}")
        if stack.pages_url:
            out.print(f"pages of jobs and samples: {stack.pages_url}")
        with Client.connect(load_settings(state_dir=state_dir)) as client:
            jobs = [submit(client, policy, num_samples=num_samples, limit=limit) for policy in POLICIES]
            with ProgressDisplay(client, out) as display:
                ended = client.wait(*jobs, on_progress=display.show)
            rows = report(client, jobs)
    out.print(f"\n{time.monotonic() - start:.0f} s in all")
    if is_left:
        out.print(f"everything is left running; Flower: {stack.flower_url}")
        if stack.pages_url:
            out.print(f"pages of jobs and samples: {stack.pages_url}")
    else:
        out.print(
            f"Flower was at {stack.flower_url} while it ran; --keep (make demo KEEP=1) leaves it up, and serves pages "
            f"of the jobs and their samples. Without it: {command} up --no-flower, then {command} gateway"
        )
    show_ways_on(jobs, command, is_running=is_left)
    if table_file:
        table_file.write_text(json.dumps({"jobs": [job.id for job in jobs], "table": rows}, indent=1) + "\n")
    complaints = [
        f"job {job.job_id} ended {job.state}: {command} stats {job.job_id}"
        for job in ended
        if job.state is not JobState.COMPLETED
    ]
    return complaints + (missed_thresholds(rows) if check else [])


@contextmanager
def running_stack(state_dir: Path, *, keep: bool) -> Iterator[LocalStack]:
    """Servers and workers; stopped at the end unless they are kept or ran before."""
    from pipeline.embedded import is_running, stop
    from pipeline.local import start_local
    from pipeline.settings import load_settings

    settings = load_settings(state_dir=state_dir)
    ran_before = is_running(state_dir)
    try:
        yield start_local(
            settings,
            small=str(demo_folder() / "models" / "demo-small"),
            large=str(demo_folder() / "models" / "demo-large"),
            gateway=keep and _has_gateway(),
            die_with_parent=not keep,
            on_event=lambda event: print(visible(f"… {event}"), file=sys.stderr, flush=True),
        )
    except BaseException:
        if not ran_before:
            stop(state_dir)
        raise
    if not (keep or ran_before):
        stop(state_dir)


def _has_gateway() -> bool:
    """Whether the packages of the extra are here, which an engine brings."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("fastapi", "uvicorn", "python_multipart"))


def submit(client: Client, policy: str, *, num_samples: int, limit: int | None) -> Job:
    return client.submit(
        demo_folder() / "problems.jsonl",
        small=demo_folder() / "models" / "demo-small",
        large=demo_folder() / "models" / "demo-large",
        policy=policy,
        num_samples=num_samples,
        seed=0,
        temperature=0.6,
        max_tokens=384,
        limit=limit,
        name=policy,
    )


def report(client: Client, jobs: list[Job]) -> list[dict[str, Any]]:
    """Print the table and one sample; returns the table's rows as the SQL gave them."""
    out = console()
    rows = client.sql(_table_sql(jobs)).as_dicts()
    out.print()
    out.print(show_table(rows))
    found = client.sql(SAMPLE_SQL.format(id=jobs[-1].id)).rows
    if found:
        print_sample(client.sample(found[0][0]), out)
    return rows


def _table_sql(jobs: list[Job]) -> str:
    return TABLE_SQL.format(ids=", ".join(str(job.id) for job in jobs))


def show_ways_on(jobs: list[Job], command: str, *, is_running: bool) -> None:
    """Commands about these jobs, each as it can be pasted into the shell that the demo was started from."""
    ids = " ".join(str(job.id) for job in jobs)
    lines = [
        *([] if is_running else [f"{command} up --no-flower"]),
        f"{command} status",
        f"{command} compare {ids}",
        f"{command} stats {jobs[-1].id}",
        f"{command} report {ids} --html report.html",
        f'{command} sql "\n{textwrap.indent(_table_sql(jobs), "  ")}"',
        f"{command} down",
    ]
    out = console()
    out.print("\nLook around:", style="bold")
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


def show_table(rows: list[dict[str, Any]]) -> Any:
    columns = ["policy", "accuracy", "95 % interval", "mean tokens", "p90", "by large", "takeovers/sample", "tokens/s"]
    return table(
        columns,
        [
            [
                row["policy"],
                percent(row["accuracy"]),
                "–" if row["accuracy"] is None else f"{percent(row['accuracy_low'])} … {percent(row['accuracy_high'])}",
                number(row["mean_output_tokens"]),
                number(row["p90_output_tokens"]),
                percent(row["share_large"]),
                number(row["takeovers_per_sample"], 2),
                number(row["tokens_per_second"]),
            ]
            for row in rows
        ],
        title="Three ways to solve the same problems",
    )


def missed_thresholds(rows: list[dict[str, Any]]) -> list[str]:
    """What the demo pair must show on all 200 problems, where it does not."""
    small, large, both = rows
    promises = {
        "large alone is right in at least 90 %": large["accuracy"] >= 0.90,
        "small alone is right in 30 % to 70 %": 0.30 <= small["accuracy"] <= 0.70,
        "Speculative Thinking is right in at least 20 % more than small alone": both["accuracy"] - small["accuracy"]
        >= 0.2,
        "less than half of its tokens are the large model's": both["share_large"] < 0.5,
        "its texts are on average no longer than small alone's": both["mean_output_tokens"]
        <= small["mean_output_tokens"],
    }
    return [f"missed: {promise}" for promise, kept in promises.items() if not kept]
