"""What the prefix cache is worth to resumed samples, and what becomes of a job whose contexts do not fit in it.

    python -m bench.cache [--samples 2]

The demo pair, Speculative Thinking, 200 problems. Computed again: prompt tokens of a resumed request that are neither
cached nor new to that model (everything since it last wrote is new); at most one cache block while they live. Past
the cue: tokens discarded at a takeover after the one that completed it; one more makes the cue certain. Of what is
noted per resume or takeover, mean, median and maximum within one run are given; each run is made once.

1. One large worker, two of them, two without affinity (each sample goes to whichever is free: their own queues are
   taken from the database, so that all messages go to the queue that both read).
2. A small worker whose cache holds a quarter of what 128 samples in flight need, with admission by cache room and
   without it (a trigger in this benchmark's database keeps the slots as they were registered). The same job as that
   on one large worker; the jobs on two have seeds of their own, since the workers' caches still hold the first one.
3. A large worker of 8 slots whose cache holds 24 contexts, where a sample is with it three times (random, rate 0.6, one
   sample per problem): the share of what it has seen that it computes again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import text

from bench.jobs import JobRun, Work, run_job
from bench.measurement import Report
from bench.stack import MODELS, Stack, running_stack
from pipeline.db.session import transaction
from pipeline.embedded import Program

IN_FLIGHT = 128
SEEDS = {"one large worker": 1, "two large workers": 2, "two, no affinity": 3, "quarter": 1, "quarter, no admission": 1}
"""By arm."""
CACHE, SLOTS = "SPECTHINK_ENGINE__VLLM__CPU_KV_CACHE_GIB", "SPECTHINK_ENGINE__MAX_IN_FLIGHT"
BYTES_PER_TOKEN = 2 * 2 * 64 * 4
"""Of the small demo model's cache: keys and values, 2 layers, width 64, float32."""
LARGE_BYTES_PER_TOKEN = 2 * 3 * 96 * 4
OFTEN = Work(small=MODELS["small"], large=MODELS["large"], policy="random", max_tokens=384, policy_values={"rate": 0.6})
"""With the large model three times a sample."""
SHORT_CONTEXTS, SHORT_SLOTS = 24, 8

RESUMES = """
    WITH written AS (
        SELECT g.author, g.prompt_tokens, g.cached_tokens,
               lag(g.prompt_tokens + cardinality(g.token_ids)) OVER before AS seen,
               (e.settings ->> 'block_size')::integer AS block_size
        FROM segments g JOIN samples s ON s.id = g.sample_id JOIN engines e ON e.id = g.engine_id
        WHERE s.job_id = {job} AND g.author <> 'inserted'
        WINDOW before AS (PARTITION BY g.sample_id, g.author ORDER BY g.segment_index)
    )
    SELECT author, seen - cached_tokens AS again, block_size FROM written WHERE seen IS NOT NULL
"""
SEEN_AGAIN = """
    WITH visits AS (
        SELECT g.cached_tokens, lag(g.prompt_tokens + cardinality(g.token_ids)) OVER before AS seen
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = {job} AND g.author = 'large'
        WINDOW before AS (PARTITION BY g.sample_id ORDER BY g.segment_index)
    )
    SELECT sum(greatest(0, seen - cached_tokens))::float8, sum(seen)::float8 FROM visits WHERE seen IS NOT NULL
"""
HITS = """
    SELECT g.author, sum(g.cached_tokens)::float8 / sum(g.prompt_tokens)
    FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = {job} AND g.author <> 'inserted'
    GROUP BY g.author
"""
TAKEOVERS = """
    SELECT g.discarded_text, g.token_lengths[cardinality(g.token_ids) + 1:] AS lengths, n.cue
    FROM segments g JOIN samples s ON s.id = g.sample_id,
         LATERAL (SELECT cue FROM segments n WHERE n.sample_id = g.sample_id AND n.segment_index > g.segment_index
                  AND n.author = 'large' ORDER BY n.segment_index LIMIT 1) n
    WHERE s.job_id = {job} AND g.author = 'small' AND n.cue <> '' AND cardinality(g.discarded_ids) > 0
"""
KEEP_SLOTS = (
    """CREATE FUNCTION keep_slots() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN NEW.num_slots := OLD.num_slots; RETURN NEW; END'""",
    "CREATE TRIGGER keep_slots BEFORE UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION keep_slots()",
)
IN_PIPELINE = """
    SELECT count(*) FROM samples WHERE state IN ('ready', 'drafting', 'awaiting_large', 'assisting')
"""


def rows(stack: Stack, query: str, run: JobRun) -> list[tuple]:
    return stack.rows(query.format(job=run.job_id))


def add_values(report: Report, figure: str, values: Sequence[int], unit: str) -> None:
    """What was noted many times in one run."""
    report.add(f"{figure}, mean", statistics.fmean(values), unit)
    report.add(f"{figure}, p50", statistics.median(values), unit)
    report.add(f"{figure}, max", max(values), unit)


def report_reuse(report: Report, stack: Stack, name: str, run: JobRun) -> None:
    """Hit share and tokens computed again, by role."""
    for author, share in sorted(rows(stack, HITS, run)):
        report.add(f"{name}: prompt tokens cached, {author}", share, "share")
    again: dict[str, list[int]] = {}
    for author, tokens, _ in rows(stack, RESUMES, run):
        again.setdefault(author, []).append(tokens)
    for author, values in sorted(again.items()):
        add_values(report, f"{name}: computed again per resume, {author}", values, "tokens")


def share_within_block(stack: Stack, run: JobRun) -> float:
    found = [tokens <= block_size for _, tokens, block_size in rows(stack, RESUMES, run)]
    return sum(found) / len(found)


def tokens_past_cue(discarded: str, lengths: Sequence[int], cue: str) -> int:
    """Discarded tokens after the one that completed the cue; all of them where the cue is not found."""
    end = 0
    for count, length in enumerate(lengths, 1):
        end += length
        if cue in " ".join(discarded[:end].casefold().split()):
            return len(lengths) - count
    return len(lengths)


@contextmanager
def watched(stack: Stack) -> Iterator[list[int]]:
    """Samples in the pipeline, counted twice a second."""
    counts: list[int] = []
    done = threading.Event()

    def count() -> None:
        while not done.wait(0.5):
            with transaction(stack.db_engine) as connection:
                counts.append(connection.execute(text(IN_PIPELINE)).scalar_one())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        done.set()
        thread.join()


def change(stack: Stack, *statements: str) -> None:
    with transaction(stack.db_engine) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def large_worker(name: str, **settings: str) -> Program:
    """One more large worker, with a cache of the default size unless settings say otherwise."""
    argv = (sys.executable, "-m", "workers", "large", "--model", str(MODELS["large"]))
    return Program(name=name, argv=argv, env={CACHE: "1.0"} | settings, stop_wait_s=40)


@dataclass(kw_only=True)
class Bench:
    report: Report
    num_samples: int
    need_tokens: float = field(default=0.0, init=False)

    def job(self, stack: Stack, arm: str) -> JobRun:
        return run_job(stack, seed=SEEDS[arm], num_samples=self.num_samples)

    def affinity(self) -> float:
        """Samples per second with all caches roomy."""
        report = self.report
        with running_stack(small=MODELS["small"], large=MODELS["large"]) as stack:
            run_job(stack, seed=0, num_samples=1, limit=64)  # not counted
            one = self.job(stack, "one large worker")
            report_reuse(report, stack, "one large worker", one)
            report.add("resumes within one block", share_within_block(stack, one), "share")
            report.goal("resumes within one block", "≥", 1.0)
            takeovers = rows(stack, TAKEOVERS, one)
            add_values(report, "discarded per takeover", [len(lengths) for _, lengths, _ in takeovers], "tokens")
            add_values(report, "discarded past the cue", [tokens_past_cue(*row) for row in takeovers], "tokens")
            report.goal("discarded past the cue, max", "≤", 2)
            [[self.need_tokens]] = rows(stack, """
                SELECT avg(f.prompt_tokens + s.tokens_small + s.tokens_large + s.tokens_inserted)::float8
                FROM samples s JOIN segments f ON f.sample_id = s.id AND f.segment_index = 0 WHERE s.job_id = {job}
            """, one)  # fmt: skip
            stack.start_programs([large_worker("large-2")])
            report_reuse(report, stack, "two large workers", self.job(stack, "two large workers"))
            change(stack, "UPDATE workers SET queue = regexp_replace(queue, '[.][^.]*$', '') WHERE kind = 'large'")
            report_reuse(report, stack, "two, no affinity", self.job(stack, "two, no affinity"))
        return one.samples_per_second

    def small_cache(self, gib: float, name: str, *, admission: bool) -> float:
        """Samples per second with a small worker whose cache has this size."""
        with running_stack(small=MODELS["small"], settings={CACHE: f"{gib:.6f}"}) as stack:
            stack.start_programs([large_worker("large")])
            if not admission:
                change(stack, *KEEP_SLOTS)
            run_job(stack, seed=0, num_samples=1, limit=64)  # not counted
            with watched(stack) as counts:
                run = self.job(stack, name)
            report_reuse(self.report, stack, name, run)
            add_values(self.report, f"{name}: in the pipeline", counts, "samples")
            self.report.add(f"{name}: rate", run.samples_per_second, "samples/s")
        return run.samples_per_second

    def short_large(self) -> None:
        """A large model whose cache holds a part of the samples that it is needed for."""
        gib = SHORT_CONTEXTS * self.need_tokens * LARGE_BYTES_PER_TOKEN / 2**30
        with running_stack(small=MODELS["small"]) as stack:
            stack.start_programs([large_worker("large", **{CACHE: f"{gib:.6f}", SLOTS: str(SHORT_SLOTS)})])
            run_job(stack, seed=0, num_samples=1, limit=64, work=OFTEN)  # not counted
            run = run_job(stack, seed=1, num_samples=1, work=OFTEN)
            [[again, seen]] = rows(stack, SEEN_AGAIN, run)
            self.report.add("short large cache: computed again of what was seen", again / seen, "share")
            self.report.add("short large cache: rate", run.samples_per_second, "samples/s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=2, help="per problem, and per part")
    num_samples = parser.parse_args().samples
    setting = {"samples_per_problem": num_samples, "in_flight": IN_FLIGHT, "seeds": SEEDS, "repeats": 1}
    report = Report(bench="cache", setting=setting)
    bench = Bench(report=report, num_samples=num_samples)
    roomy = bench.affinity()
    quarter_gib = IN_FLIGHT * bench.need_tokens / 4 * BYTES_PER_TOKEN / 2**30
    report.add("roomy cache: rate", roomy, "samples/s")
    report.add("mean context at the end", bench.need_tokens, "tokens")
    without = bench.small_cache(quarter_gib, "quarter, no admission", admission=False)
    admitted = bench.small_cache(quarter_gib, "quarter", admission=True)
    report.add("quarter ÷ roomy, no admission", without / roomy)
    report.add("quarter ÷ roomy", admitted / roomy)
    bench.short_large()
    report.print()


if __name__ == "__main__":
    main()
