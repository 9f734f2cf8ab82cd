"""The whole pipeline on one machine in a few minutes: `python examples/demo.py`.

Starts Postgres, Redis, a small worker, a large worker, a grader, upkeep and Flower, and solves the shipped problems
three times: with the small model alone, the large model alone, and with Speculative Thinking. Everything it started
ends with it, however it ends; --keep leaves it running.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline import Client, Job, JobState, PipelineError, load_settings
from pipeline.cli.live import ProgressDisplay
from pipeline.cli.render import console, number, percent, print_sample, table
from pipeline.embedded import is_running, stop
from pipeline.local import LocalStack, start_local

HERE = Path(__file__).resolve().parent
POLICIES = ("small-only", "large-only", "speculative-thinking:improved")

TABLE_SQL = """\
SELECT policy, accuracy, accuracy_low, accuracy_high, mean_output_tokens, p90_output_tokens, share_large,
       takeovers_per_sample, tokens_per_second
FROM job_summary WHERE job_id IN ({ids}) ORDER BY job_id"""

SAMPLE_SQL = """\
SELECT id FROM samples WHERE job_id = {id} AND num_takeovers > 0 AND score = 1
ORDER BY abs(num_takeovers - 2), id LIMIT 1"""


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        return run(args)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    except PipelineError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state-dir", type=Path, default=HERE.parent / ".demo", help="default: .demo in the checkout")
    parser.add_argument("--limit", type=int, default=None, help="use the first so many of the 200 problems")
    parser.add_argument("--samples", type=int, default=4, help="solutions per problem")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the table there as JSON")
    parser.add_argument("--check", action="store_true", help="fail where the table misses what the demo pair must show")
    return parser.parse_args()


def _end(signum: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end the demo as an error would, so that what it started is stopped."""
    sys.exit(128 + signum)


def run(args: argparse.Namespace) -> int:
    out = console()
    start = time.monotonic()
    with running_stack(args) as stack:
        out.print(f"all workers are up after {time.monotonic() - start:.0f} s; Flower: {stack.flower_url}")
        with Client.connect(load_settings(state_dir=args.state_dir)) as client:
            jobs = [submit(client, policy, args) for policy in POLICIES]
            with ProgressDisplay(client, out) as display:
                ended = client.wait(*jobs, on_progress=display.show)
            rows = report(client, jobs)
            complaints = [
                f"job {job.job_id} ended {job.state}: specthink --state-dir {args.state_dir} stats {job.job_id}"
                for job in ended
                if job.state is not JobState.COMPLETED
            ]
        if args.keep:
            out.print(f"\neverything is left running; Flower: {stack.flower_url}")
            out.print(f"stop it: specthink --state-dir {args.state_dir} down")
        else:
            out.print(f"\nFlower was at {stack.flower_url} while it ran; --keep (make demo KEEP=1) leaves it up")
    out.print(f"{time.monotonic() - start:.0f} s in all")
    if args.json:
        args.json.write_text(json.dumps({"jobs": [job.id for job in jobs], "table": rows}, indent=1) + "\n")
    if args.check:
        complaints += missed_thresholds(rows)
    for complaint in complaints:
        print(f"demo: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


@contextmanager
def running_stack(args: argparse.Namespace) -> Iterator[LocalStack]:
    """Servers and workers; stopped at the end unless they are kept or ran before."""
    settings = load_settings(state_dir=args.state_dir)
    ran_before = is_running(args.state_dir)
    try:
        yield start_local(
            settings,
            small=str(HERE / "models" / "demo-small"),
            large=str(HERE / "models" / "demo-large"),
            die_with_parent=not args.keep,
            on_event=lambda event: print(f"… {event}", file=sys.stderr, flush=True),
        )
    except BaseException:
        if not ran_before:
            stop(args.state_dir)
        raise
    if not (args.keep or ran_before):
        stop(args.state_dir)


def submit(client: Client, policy: str, args: argparse.Namespace) -> Job:
    return client.submit(
        HERE / "problems.jsonl",
        small=HERE / "models" / "demo-small",
        large=HERE / "models" / "demo-large",
        policy=policy,
        num_samples=args.samples,
        temperature=0.6,
        max_tokens=384,
        limit=args.limit,
        name=policy,
    )


def report(client: Client, jobs: list[Job]) -> list[dict[str, Any]]:
    """Print the table, one sample and the SQL; returns the table's rows as the SQL gave them."""
    out = console()
    query = TABLE_SQL.format(ids=", ".join(str(job.id) for job in jobs))
    rows = client.sql(query).as_dicts()
    out.print()
    out.print(show_table(rows))
    out.print("The same by hand:", style="bold")
    out.print(f'specthink sql "\n{textwrap.indent(query, "  ")}"\n')
    found = client.sql(SAMPLE_SQL.format(id=jobs[-1].id)).rows
    if found:
        print_sample(client.sample(found[0][0]), out)
    return rows


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


if __name__ == "__main__":
    sys.exit(main())
