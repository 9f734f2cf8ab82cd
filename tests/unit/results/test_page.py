"""The page about jobs: hostile text stays text, and every piece keeps its author."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.jobs.config import JobConfig, JobState, ModelSpec
from pipeline.policies import parse_policy
from pipeline.results.intervals import Interval
from pipeline.results.jobs import Job
from pipeline.results.page import PageData, render_page
from pipeline.results.page.charts import accuracy_against_length
from pipeline.results.page.reading import Span, read_steps
from pipeline.results.reports import (
    BudgetPoint,
    Comparison,
    DelegationTenth,
    JobCost,
    JobStats,
    JobSummary,
    LengthBucket,
    PairedTest,
    ProblemChange,
    Truncation,
)
from pipeline.results.samples import Result, SampleReport, SegmentReport, StepReport
from pipeline.samples import Author, FinishReason, SampleState

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOSTILE = "</div></details><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} $\\frac$ & \"'"
POLICY = "speculative-thinking:improved"


def segment(index: int, author: str, text: str, trigger: str = "resume", cue: str = "") -> SegmentReport:
    return SegmentReport(
        segment_index=index, author=Author(author), trigger=trigger, cue=cue, takes_over=author == "large", text=text,
        discarded_text="",
        tokens=len(text), tokens_discarded=0, tokens_generated=len(text), prompt_tokens=1, cached_tokens=0,
        finish="eos",
        wait_seconds=None, queue_seconds=None, first_token_seconds=None, write_seconds=None, worker_id=1, model="S",
        committed_at=NOW,
    )  # fmt: skip


def step(index: int, text: str) -> StepReport:
    return StepReport(
        step_index=index, author=Author.SMALL, text=text, tokens_small=len(text), tokens_large=0, tokens_inserted=0,
        sentence_class="statement", trigger=None,
    )  # fmt: skip


def sample(segments: list[SegmentReport], steps: list[StepReport]) -> SampleReport:
    result = Result(
        job_id=1, sample_id=7, problem=HOSTILE, sample_index=0, state=SampleState.GRADED, prompt=HOSTILE, output="",
        predicted_answer=HOSTILE, score=0.0, finish_reason=FinishReason.EOS, output_tokens=9, tokens_small=5,
        tokens_large=4, tokens_inserted=0, discarded_small=0, discarded_large=0, num_takeovers=1, num_segments=2,
        subject=None, level=None, error_class=None, error=None, finished_at=None,
    )  # fmt: skip
    return SampleReport(result=result, segments=tuple(segments), steps=tuple(steps))


def cost(job_id: int) -> JobCost:
    return JobCost(
        job_id=job_id, num_complete=4, num_right=2, engine_seconds_small=3.0, engine_seconds_large=1.0,
        engine_seconds_judge=0.0, request_seconds_judge=0.0, judge_seconds_per_right=0.0, prompt_tokens_judge=0,
        request_seconds_small=6.0, request_seconds_large=1.0, seconds_per_right=2.0, small_seconds_per_right=1.5,
        large_seconds_per_right=0.5, money=None, money_per_right=None, overlapping_jobs=(),
        prompt_tokens_small=1, prompt_tokens_large=1, p50_wall_seconds=1.0,
        p95_wall_seconds=2.0, mean_wait_seconds=0.1, p95_wait_seconds=0.2, mean_queue_seconds=0.0, share_length=0.25,
        share_context=0.0, share_repetition=0.0,
    )  # fmt: skip


def job(job_id: int, *, scored: bool = True) -> tuple[Job, JobStats]:
    config = JobConfig(small=ModelSpec(name="S"), large=ModelSpec(name="L"), policy=parse_policy(POLICY))
    summary = JobSummary(
        job_id=job_id, name=HOSTILE, policy=POLICY, small_model=HOSTILE, large_model="L", judge_model=None,
        state=JobState.COMPLETED,
        num_problems=2, num_samples=2, samples_total=4, samples_finished=0, samples_graded=4, samples_failed=0,
        samples_cancelled=0, samples_open=0, num_scored=4 * scored, accuracy=0.5 if scored else None,
        accuracy_low=0.2 if scored else None, accuracy_high=0.8 if scored else None, mean_output_tokens=10.0,
        p50_output_tokens=10.0, p90_output_tokens=20.0, share_large=0.25, takeovers=4, takeovers_per_sample=1.0,
        tokens_small=30, tokens_large=10, tokens_inserted=0, discarded_small=0, discarded_large=0, aside_small=0,
        aside_large=0, aside_judge=0, taken_small=0, taken_large=0, written_small=30, written_large=10, written_judge=0,
        seconds=2.0, tokens_per_second=20.0, tokens_per_second_small=15.0, tokens_per_second_large=5.0,
        tokens_per_second_judge=0.0, submitted_at=NOW,
        first_claimed_at=NOW, finished_at=NOW,
    )  # fmt: skip
    stats = JobStats(
        summary=summary, bootstrap=Interval(0.25, 0.75) if scored else None, cost=cost(job_id), token_lengths=(),
        length_histogram=(
            LengthBucket(job_id=job_id, bucket=1, from_tokens=0, to_tokens=10, n=4, num_right=2, num_wrong=1,
                         num_unscored=1),
        ),
        budget_curve=(
            BudgetPoint(job_id=job_id, budget=10, num_scored=4, num_complete=4, accuracy=0.5, mean_output_tokens=10.0),
        ) if scored else (),
        delegation=(),
        delegation_progress=(
            DelegationTenth(job_id=job_id, tenth=1, tokens=4.0, tokens_large=1.0, share_large=0.25, num_takeovers=1),
        ),
        takeover_flow=(), aside_summary=(), step_summary=(), pass_at_k=(), maj_at_k=(),
        truncation=Truncation(job_id=job_id, num_complete=4, num_truncated=1, share_truncated=0.25, num_length=1,
                              num_context=0, num_repetition=0, num_scored_truncated=1, accuracy_truncated=0.0,
                              num_scored_eos=3, accuracy_eos=0.7),
        errors=(),
    )  # fmt: skip
    return (
        Job(
            id=job_id, name=HOSTILE, state=JobState.COMPLETED, policy=POLICY, small_model="S", large_model="L",
            judge_model=None, problem_set="p", problem_set_id=1, num_problems=2, num_samples=2, stored_config=config,
            versions={}, submitted_at=NOW, first_claimed_at=NOW, finished_at=NOW,
        ),
        stats,
    )  # fmt: skip


def comparison() -> Comparison:
    change = ProblemChange(problem="p", score_a=0, score_b=1, mean_output_tokens_a=9, mean_output_tokens_b=9)
    return Comparison(
        job_a=1, job_b=2, num_problems=2, num_scored_a=4, num_scored_b=4, accuracy_a=0.5,
        accuracy_b=0.75, difference=0.25, difference_low=-0.1,
        difference_high=0.6, num_b_better=1, num_a_better=0, num_equal=1, mean_output_tokens_a=10.0,
        mean_output_tokens_b=5.0, token_ratio=0.5, test=PairedTest.SIGN, p_value=0.00001,
        gained=(change,), lost=(), cost_a=cost(1),
        cost_b=cost(2), caveats=(HOSTILE,),
    )  # fmt: skip


def page(reports: list[SampleReport], *, scored: bool = True) -> str:
    found = [job(1, scored=scored), job(2, scored=scored)]
    return render_page(
        PageData(
            jobs=tuple(row[0] for row in found),
            stats=tuple(row[1] for row in found),
            comparisons=(comparison(),) if scored else (),
            samples=(tuple(reports), ()),
            read_at=NOW,
        )
    )


class Elements(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return page(
        [sample([segment(0, "small", HOSTILE, trigger=HOSTILE), segment(1, "large", HOSTILE, HOSTILE, HOSTILE)], [])]
    )


def test_hostile_text_becomes_no_markup_anywhere(hostile_page: str) -> None:
    elements = Elements(hostile_page)
    assert "script" not in [tag for tag, _ in elements.found]
    assert [name for _, attributes in elements.found for name in attributes if name.startswith("on")] == []
    assert elements.text.count(HOSTILE) >= 9  # names, model, caveat, problem, prompt, texts, trigger, cue, answer
    assert "49" not in elements.text


def test_page_loads_nothing_and_forbids_scripts(hostile_page: str) -> None:
    elements = Elements(hostile_page)
    sources = [attributes["src"] or "" for tag, attributes in elements.found if tag == "img"]
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not {"link", "iframe", "object", "form", "a"} & {tag for tag, _ in elements.found}
    policy = next(attributes for tag, attributes in elements.found if tag == "meta" and "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert re.findall(r"url\(|@import", hostile_page) == []


def test_page_shows_the_papers_table_and_the_comparison(hostile_page: str) -> None:
    text = " ".join(Elements(hostile_page).text.split())
    for shown in ("50.0 %", "20.0 % … 80.0 %", "25.0 % … 75.0 %", "25.0 %", "< 0.0001", "1 gained, 0 lost", "S 1.50"):
        assert shown in text, shown


def test_page_shows_what_was_right_and_the_settings() -> None:
    report = sample([segment(0, "small", "x")], [])
    right = replace(report, result=replace(report.result, reference="<b>42</b>", also_accepted=("forty-two",)))
    text = " ".join(Elements(page([right])).text.split())
    assert "right is <b>42</b> or forty-two" in text
    assert "problem set 1, p, 2 problems" in text
    cut = replace(report, result=replace(report.result, grade_detail="no answer: <b>cut</b>"))
    assert "no answer: <b>cut</b>" in " ".join(Elements(page([cut])).text.split())
    assert '"temperature": 0.6' in text


def test_page_shows_one_problem_in_two_jobs_side_by_side() -> None:
    found = [job(1), job(2)]
    right = sample([segment(0, "small", "first job's text")], [])
    right = replace(right, result=replace(right.result, score=1.0))
    wrong = sample([segment(0, "large", HOSTILE, HOSTILE, HOSTILE)], [])
    data = PageData(
        jobs=tuple(row[0] for row in found), stats=tuple(row[1] for row in found), comparisons=(), samples=((), ()),
        read_at=NOW, side_by_side=((right, wrong),),
    )  # fmt: skip
    html = render_page(data)
    elements = Elements(html)
    assert [attributes.get("class") for tag, attributes in elements.found if tag == "div"].count("side") == 1
    assert len([tag for tag, _ in elements.found if tag == "section"]) == 2
    text = " ".join(elements.text.split())
    for shown in (
        "The same problem in each job",
        "right · wrong",
        "first job's text",
        f"1 · {POLICY} · right",
        f"2 · {POLICY} · wrong",
    ):
        assert shown in text, shown
    assert elements.text.count(HOSTILE) >= 5
    assert "script" not in [tag for tag, _ in elements.found]
    assert "The same problem" not in render_page(replace(data, side_by_side=()))


def test_page_has_nothing_wider_than_a_phone_but_what_scrolls(hostile_page: str) -> None:
    style = hostile_page.partition("<style>")[2].partition("</style>")[0]
    wide = [int(width) for width in re.findall(r"minmax\((\d+)px", style)]
    assert wide == [], "a column of fixed width pushes the page beyond a phone's"
    elements = Elements(hostile_page)
    inside = re.findall(r"<(div class=\"scroll\"|table)", hostile_page)
    assert inside[::2] == ['div class="scroll"'] * (len(inside) // 2), "every table scrolls by itself"
    assert any(attributes.get("name") == "viewport" for tag, attributes in elements.found if tag == "meta")


def test_page_marks_partial_and_shared_numbers() -> None:
    listed, stats = job(1)
    partial = replace(stats.summary, samples_graded=3, samples_open=1)
    shared = replace(stats.cost, overlapping_jobs=(9,), money=1.0, money_per_right=0.5)
    html = render_page(
        PageData(
            jobs=(listed,), stats=(replace(stats, summary=partial, cost=shared),), comparisons=(), samples=((),),
            read_at=NOW,
        )
    )  # fmt: skip
    text = " ".join(Elements(html).text.split())
    for shown in ("Job 1 is partial: 3 of 4 samples", "4 scored, partial", "2.00*", "0.5000 of money"):
        assert shown in text, shown


def test_comparison_of_unlike_sample_counts_names_nothing_gained() -> None:
    uneven = replace(comparison(), test=PairedTest.T, gained=None, lost=None, num_b_better=None, num_a_better=None,
                     num_equal=None)  # fmt: skip
    found = [job(1), job(2)]
    html = render_page(
        PageData(
            jobs=tuple(row[0] for row in found), stats=tuple(row[1] for row in found), comparisons=(uneven,),
            samples=((), ()), read_at=NOW,
        )
    )  # fmt: skip
    text = " ".join(Elements(html).text.split())
    assert "paired t test" in text
    assert "gained" not in text


def test_page_of_a_job_without_scores_has_no_chart_of_accuracy() -> None:
    elements = Elements(page([], scored=False))
    assert len([tag for tag, _ in elements.found if tag == "img"]) == 2


@pytest.mark.parametrize(("accuracy", "low", "high"), [(1.0, 0.8, 1 - 2e-16), (0.0, 2e-17, 0.2)])
def test_chart_takes_an_interval_whose_end_is_rounded_past_the_accuracy(
    accuracy: float, low: float, high: float
) -> None:
    _, stats = job(1)
    summary = replace(stats.summary, accuracy=accuracy, accuracy_low=low, accuracy_high=high)
    assert "<svg" in accuracy_against_length([replace(stats, summary=summary)])


def test_same_numbers_give_the_same_page() -> None:
    assert page([]) == page([])


def spans(*pieces: tuple[Any, ...]) -> tuple[Span, ...]:
    return tuple(Span(author=piece[0], text=piece[1], trigger=piece[2] if len(piece) > 2 else "") for piece in pieces)


def test_steps_are_cut_from_segments_whoever_wrote_them() -> None:
    segments = [
        segment(0, "small", "one\n\ntwo", trigger="start"),
        segment(1, "large", " wait\n\nthree", trigger="reflection"),
        segment(2, "small", " four"),
    ]
    found = read_steps(sample(segments, [step(0, "one\n\n"), step(1, "two wait\n\n"), step(2, "three four")]))
    assert [piece.spans for piece in found] == [
        spans(("small", "one\n\n")),
        spans(("small", "two"), ("large", " wait\n\n", "reflection")),
        spans(("large", "three"), ("small", " four")),
    ]


def test_sample_without_fitting_steps_is_one_step() -> None:
    check = "too_much_reflection"
    segments = [segment(0, "small", "one"), segment(1, "inserted", "two", check), segment(2, "large", "three", check)]
    (whole,) = read_steps(sample(segments, [step(0, "other")]))
    assert whole.spans == spans(("small", "one"), ("inserted", "two"), ("large", "three", check))
