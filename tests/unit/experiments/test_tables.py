"""The tables and the page of an experiment: what stands in them, and that no name commands a format."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipeline.experiments.page import render_experiment
from pipeline.experiments.results import Difference, Estimate, ExperimentReport, Gain, RowReport, TokensByOwner
from pipeline.experiments.tables import TableFormat, cells, notes, render
from pipeline.results.intervals import Interval
from pipeline.results.reports import BudgetPoint

HOSTILE = "=cmd|' /C calc'!A0 </td><script>alert(1)</script> 100 % of $x_1$ & \\input{x} \x1b[31m"
OWNERS = TokensByOwner(
    kept_small=100.0, kept_large=30.0, inserted=1.0, discarded_small=5.0, discarded_large=2.0, aside_small=0.0,
    aside_large=4.0, aside_judge=0.0, prompt_small=50.0, prompt_large=90.0, prompt_judge=0.0,
)  # fmt: skip


def row(
    job_id: int,
    name: str = HOSTILE,
    *,
    is_control: bool = False,
    gain: Gain | None = None,
    gain_over_cut: Gain | None = None,
) -> RowReport:
    return RowReport(
        name=name, job_id=job_id, state="completed", policy="random" if is_control else "glimpse",
        control_of=1 if is_control else None, is_control=is_control, num_problems=4, num_scored=8,
        accuracy=Estimate(mean=0.875, interval=Interval(0.5, 0.975)),
        large_tokens=Estimate(mean=36.0, interval=Interval(30.0, 40.25)),
        total_tokens=Estimate(mean=141.0), takeovers=1.25, owners=OWNERS, gain=gain, against_small=None,
        against_large=Difference(mean=-0.125, interval=Interval(-0.3, 0.1), num_problems=4), on_front=not is_control,
        on_total_front=False, small_tokens_per_s=None, large_tokens_per_s=1234.5, judge_tokens_per_s=None,
        small_seconds=0.0, large_seconds=0.25, judge_seconds=0.0, shares_engines=True,
        gain_over_cut=gain_over_cut,
        budget_curve=(
            BudgetPoint(job_id=job_id, budget=90, num_scored=8, num_complete=8, accuracy=0.5, mean_output_tokens=80.0),
        ),
    )  # fmt: skip


GAIN = Gain(difference=Difference(mean=0.25, interval=Interval(0.05, 0.45), num_problems=4), jobs=(2,), ratio=0.9)
REPORT = ExperimentReport(
    name=HOSTILE, problem_set=HOSTILE, num_problems=4, num_samples=2, seed=7, small_model="S", large_model="L",
    judge_model=None, rows=(row(1, gain=GAIN), row(2, is_control=True)), caveats=("one is partial",),
)  # fmt: skip


def test_a_row_has_its_intervals_in_brackets() -> None:
    assert cells(row(1, "glimpse", gain=GAIN), REPORT) == [
        "glimpse *", "87.5 [50.0, 97.5]", "36.0 [30.0, 40.2]", "141.0", "1.25", "+25.0 [+5.0, +45.0]", "–", "1234†",
    ]  # fmt: skip
    assert cells(row(2, "random", is_control=True), REPORT)[0] == "  random"
    assert cells(row(2, "random", is_control=True), REPORT)[5] == "–"


def test_notes_say_where_the_gain_is_from_and_what_speaks_against_it() -> None:
    told = " ".join(notes(REPORT))
    assert "job 1: against job 2 with 0.90 times its large tokens" in told
    assert "Beware: one is partial." in told
    assert "† other jobs ran at the same time" in told


def test_an_exit_is_compared_with_its_cut() -> None:
    cut = Gain(difference=Difference(mean=-0.125, interval=None, num_problems=4), jobs=(3,), ratio=1.02)
    exited = row(1, "glimpse exit.name=deer", gain_over_cut=cut)
    assert cells(exited, REPORT)[6] == "-12.5"
    told = " ".join(notes(replace(REPORT, rows=(exited,))))
    assert "at the same mean length, paired by problem. job 1: against job 3 with 1.02 times all its tokens." in told
    found = next(csv.DictReader(io.StringIO(render(replace(REPORT, rows=(exited,)), TableFormat.CSV))))
    assert (found["gain_over_cut"], found["cut_job"], found["cut_token_ratio"]) == ("-0.125", "3", "1.02")


def test_a_judge_has_columns_of_its_own_where_a_row_has_one() -> None:
    judged = replace(
        row(1, "rsd"), owners=replace(OWNERS, aside_judge=12.5, prompt_judge=400.0), judge_seconds=1.5,
        judge_tokens_per_s=8.0,
    )  # fmt: skip
    report = replace(REPORT, judge_model="J", rows=(judged, row(2, is_control=True)))
    assert cells(judged, report)[8:] == ["12.5", "1.50†"]
    assert cells(report.rows[1], report)[8:] == ["–", "–"]
    assert render(report, TableFormat.MARKDOWN).splitlines()[0].endswith("| judge tokens | judge, s |")
    assert "{lrrrrrrrrr}" in render(report, TableFormat.LATEX)
    assert "Judge J: its tokens and its engine's seconds per sample are in no other column" in " ".join(notes(report))
    first, _ = csv.DictReader(io.StringIO(render(report, TableFormat.CSV)))
    names = ("aside_judge", "prompt_judge", "judge_tokens_per_s", "judge_seconds", "total_tokens")
    assert [first[name] for name in names] == ["12.5", "400.0", "8.0", "1.5", "141.0"]
    html = render_experiment(report)
    assert all(
        f"<th>{name}" in html for name in ("judge tokens", "judge, tokens/s", "judge, s/sample", "prompt of judge")
    )
    assert "judge" not in render_experiment(REPORT)


def test_markdown_is_a_table_of_eight_columns() -> None:
    lines = render(REPORT, TableFormat.MARKDOWN).splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines[:4]] == [9] * 4
    assert lines[1] == "|---|---:|---:|---:|---:|---:|---:|---:|"
    assert "\x1b" not in "".join(lines)
    assert r"=cmd\|' /C calc'!A0 \</td>\<script>alert(1)\</script> 100 % of $x_1$ & \\input{x}" in lines[2]
    assert r"\* on the Pareto front of accuracy against large tokens, random's rows aside.  " in lines


def test_latex_escapes_what_latex_reads() -> None:
    text = render(REPORT, TableFormat.LATEX)
    first = text.splitlines()[4]
    assert first.count(" & ") == 7
    assert r"100 \% of \$x\_1\$ \& \textbackslash{}input\{x\}" in first
    assert first.endswith(r"1234$^\dagger$ \\")
    assert all(line.startswith("%") for line in text.splitlines()[8:])


def test_csv_has_every_number_and_no_formula() -> None:
    first, second = csv.DictReader(io.StringIO(render(REPORT, TableFormat.CSV)))
    assert first["name"].startswith("'=cmd")
    assert [first[f"gain{end}"] for end in ("", "_low", "_high")] == ["0.25", "0.05", "0.45"]
    assert [first[f"large_tokens{end}"] for end in ("", "_low", "_high")] == ["36.0", "30.0", "40.25"]
    assert (first["aside_large"], first["discarded_large"], first["gain_jobs"]) == ("4.0", "2.0", "2")
    assert (second["gain"], second["control_of"], second["total_tokens_low"]) == ("", "1", "")


@pytest.mark.parametrize("form", [TableFormat.TABLE, TableFormat.JSON])
def test_other_forms_are_printed_elsewhere(form: TableFormat) -> None:
    with pytest.raises(ValueError, match="printed elsewhere"):
        render(REPORT, form)


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]


def test_page_is_one_file_that_runs_nothing() -> None:
    html = render_experiment(REPORT)
    page = Page(html)
    assert "script" not in page.tags
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "+25.0 [+5.0, +45.0]" in html
    assert "\x1b" not in html
