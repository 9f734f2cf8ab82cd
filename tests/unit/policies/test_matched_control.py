"""The control is fair: matched to a job of any preset, it calls the large model as often, for as long."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from pipeline.breaks import BreakFinder
from pipeline.jobs.matching import DelegatedWriting, matched_values
from pipeline.policies import PolicySpec, parse_policy, policy_names
from pipeline.policies.protocol import SampleContext, Watcher
from pipeline.policies.reading.words import WordStarts
from pipeline.policies.requests import Answered, Ask, Event, Finish, Insert, Request, Written
from pipeline.policies.specreason import DoubtedSpec
from pipeline.samples import ModelRole, Piece, SegmentFinish
from pipeline.signals import Readings, Signal

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
NUM_SAMPLES, MAX_TOKENS = 40, 1000
PRESETS = [name for name in policy_names() if name not in ("small-only", "large-only")]
NEEDED: dict[str, dict[str, Any]] = {
    "relay": {"switch_cues": ["check", "w1", "w2", "w3"]},
    "first-steps": {"first_steps": 3},
    "redo:trig": {"first_steps": 2, "threshold": 0.2},
}
"""Values that a policy has no default for, and such as let it call large in these texts."""
LEADS = {"relay"}
"""Policies in which large leads: it writes most of the text, and small hardly ever writes a break."""
PLAIN = [f" w{index}" for index in range(80)]
WORDS = {
    SMALL: [*PLAIN, *[".\n\n"] * 12, *["\n"] * 4, " wait", " check", " yes"],
    LARGE: [*PLAIN, *[". So"] * 4, *[".\n\n"] * 4, " wait", " check"],
}


@dataclass
class Job:
    """What is counted of a job's samples, as the database counts it."""

    takeovers: Counter[str] = field(default_factory=Counter)
    """Segments that took over, by trigger."""
    num_calls: int = 0
    """Times that large wrote right after small."""
    num_tokens: int = 0
    """Kept tokens of large, those of an opening left out."""
    openings: list[int] = field(default_factory=list)
    """Kept tokens of each opening."""
    small_tokens: int = 0
    """Kept tokens of small."""
    num_breaks: int = 0
    """Breaks that small wrote in the kept think phase; a run of newlines is one, by the author of its last token."""
    num_words: int = 0
    """Words that small wrote in the kept think phase."""

    def count(self, role: ModelRole, num_tokens: int, *, has_taken_over: bool) -> None:
        """Kept tokens of a segment. has_taken_over: whether large was called in before or for it."""
        if role is SMALL:
            self.small_tokens += num_tokens
        elif has_taken_over:
            self.num_tokens += num_tokens
        else:
            self.openings.append(num_tokens)


def run(spec: PolicySpec, *, seed: int) -> Job:
    """A job on a pair of models that draw their words and doubts at random."""
    job = Job()
    for index in range(NUM_SAMPLES):
        write_sample(job, spec, Random(f"{seed}/{index}"), index)
    return job


def write_sample(job: Job, spec: PolicySpec, draws: Random, index: int) -> None:
    context = SampleContext(
        job_seed=7,
        problem_id="p",
        sample_index=index,
        max_tokens=MAX_TOKENS,
        think_end="</think>",
        num_prompt_tokens=0,
    )
    policy = spec.build()
    kept: list[tuple[str, ModelRole | None]] = []
    last_writer: ModelRole | None = None
    has_taken_over = False
    num_openings = len(job.openings)
    asides: list[tuple[Ask, tuple[str, ...]]] = []
    transition = policy.start(context)
    while not isinstance(transition.then, Finish):
        request, watcher = transition.then, policy.watcher(context, transition.state)
        texts, readings, finish = write(request, watcher, draws)
        piece = Piece(token_ids=tuple(range(len(texts))), texts=tuple(texts))
        if isinstance(request, Ask):
            labels = judgement(request.labels, draws) if request.labels else {}
            last_writer = last_writer if labels else request.role
            event: Event = Answered(
                index=len(asides), role=request.role, piece=piece, finish=finish, start_token=len(kept), labels=labels
            )
            asides.append((request, piece.texts))
            transition = policy.advance(context, transition.state, event)
        else:
            job.takeovers[request.trigger] += request.takes_over
            job.num_calls += last_writer is SMALL and request.role is LARGE
            has_taken_over = has_taken_over or request.takes_over
            signals = {signal: tuple(read[signal] for read in readings) for signal in request.signals}
            event = Written(role=request.role, piece=piece, finish=finish, start_token=len(kept), signals=signals)
            transition, last_writer = policy.advance(context, transition.state, event), request.role
            kept += [(text, request.role) for text in texts[: transition.keep]]
            job.count(request.role, transition.keep or 0, has_taken_over=has_taken_over)
        for part in transition.insert:
            if isinstance(part, Insert):
                kept.append((part.text, None))
                continue
            taken, written = asides[part.index]
            kept += [(text, taken.role) for text in written[: part.num_tokens]]
            has_taken_over = has_taken_over or part.takes_over
            job.count(taken.role, part.num_tokens, has_taken_over=has_taken_over)
            job.takeovers[taken.purpose] += part.takes_over
            job.num_calls += taken.role is LARGE
    opening = sum(job.openings[num_openings:])  # one, in however many steps it was written
    job.openings[num_openings:] = [opening] if opening else []
    job.num_breaks += count_breaks(kept)
    words = WordStarts()
    job.num_words += sum(words.feed(text) and author is SMALL for text, author in kept)


def write(request: Request, watcher: Watcher | None, draws: Random) -> tuple[list[str], list[Readings], SegmentFinish]:
    texts: list[str] = []
    readings: list[Readings] = []
    while len(texts) < request.max_tokens:
        texts.append(draws.choice(WORDS.get(request.role, PLAIN)))
        readings.append({Signal.FIRST_ENTROPY: draws.uniform(0, 1.2), Signal.LOGPROB: -draws.expovariate(2.2)})
        if watcher is not None and watcher.feed(texts[-1], readings[-1]):
            return texts, readings, SegmentFinish.WATCH
    return texts, readings, SegmentFinish.LENGTH


def judgement(labels: tuple[str, ...], draws: Random) -> dict[str, float | None]:
    """Some label is likely: a good or a poor rating or reward, doubt or none, the one or the other letter."""
    if labels == ("Yes", "No"):  # a judge's, who likes most steps
        likely = draws.choice(["Yes"] * 3 + ["No"])
    else:
        likely = draws.choice(labels) if len(labels) == 2 else draws.choice([*labels[-1:] * 3, *labels[:1]])
    sure = draws.random() < 0.3 if labels == DoubtedSpec().words else True
    return {label: -0.1 if label == likely and sure else None for label in labels}


def count_breaks(kept: list[tuple[str, ModelRole | None]]) -> int:
    finder = BreakFinder()
    ends = [finder.feed(text) for text, _ in kept]
    later = [*zip(ends[1:], kept[1:], strict=True)]
    return sum(
        end and author is SMALL and not (goes_on and not text.strip("\n"))
        for end, (_, author), (goes_on, (text, _)) in zip(ends, kept, later, strict=False)
    )


def is_likely(seen: int, *, trials: int, rate: float) -> bool:
    """Within four and a half standard deviations of the binomial: false once in 150,000 fair runs."""
    return abs(seen - trials * rate) <= 4.5 * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("name", PRESETS)
def test_random_calls_the_large_model_as_often_and_for_as_long_as_the_preset_it_is_matched_to(name: str) -> None:
    spec = parse_policy(name, NEEDED.get(name))
    job = run(spec, seed=1)
    assert job.takeovers.total() == job.num_calls
    values = matched_values(written_in(job, words=spec.control_at == "word"))
    assert 0.005 < values["rate"] < 0.98
    assert values["at"] == ("token" if name.endswith("-instruct") or name in LEADS else spec.control_at)
    control = run(parse_policy("random", values), seed=2)
    counts = ({"break": each.num_breaks, "token": each.small_tokens, "word": words_in(each)} for each in (job, control))
    places, control_places = (count[values["at"]] for count in counts)
    assert control_places > 500
    num_calls, num_tokens = (job.num_calls, job.num_tokens) if job.num_calls else (len(job.openings), sum(job.openings))
    assert set(+control.takeovers) == {"random"}
    assert is_likely(control.num_calls, trials=control_places, rate=num_calls / places)
    # Not nearer: budgets cut takeovers at the end of a sample, longer ones oftener.
    assert control.num_tokens / control.num_calls == pytest.approx(num_tokens / num_calls, rel=0.05)
    rel = max(0.15, 4.5 / math.sqrt(control.num_calls))
    assert control.num_tokens / control_places == pytest.approx(num_tokens / places, rel=rel)


def words_in(job: Job) -> int:
    """Words of small's, and those at which large took over."""
    return job.num_words + job.num_calls


def written_in(job: Job, *, words: bool = False) -> DelegatedWriting:
    return DelegatedWriting(
        num_words=words_in(job) if words else 0,
        num_breaks=job.num_breaks,
        small_tokens=job.small_tokens,
        num_takeovers=job.num_calls,
        takeover_tokens=job.num_tokens,
        num_openings=len(job.openings),
        opening_tokens=sum(job.openings),
    )


@pytest.mark.parametrize("preset", ["improved", "paper", "code"])
def test_random_opens_as_the_job_it_is_matched_to(preset: str) -> None:
    job = run(parse_policy(f"speculative-thinking:{preset}", {"opening_tokens": 50}), seed=1)
    assert job.takeovers["opening"] == 0
    assert sum(job.takeovers.values()) == job.num_calls
    control = run(parse_policy("random", matched_values(written_in(job))), seed=2)
    assert len(control.openings) == len(job.openings) == NUM_SAMPLES
    assert abs(sum(control.openings) - sum(job.openings)) <= NUM_SAMPLES
    assert set(control.takeovers) >= {"opening", "random"}


def test_opening_longer_than_the_budget_is_cut() -> None:
    job = run(parse_policy("random", {"opening_tokens": 5000, "handback": "tokens"}), seed=1)
    assert job.openings == [MAX_TOKENS] * NUM_SAMPLES


def test_a_wrong_rate_would_be_seen() -> None:
    job = run(parse_policy("random", {"rate": 0.3}), seed=1)
    assert is_likely(job.num_calls, trials=job.num_breaks, rate=0.3)
    assert not is_likely(job.num_calls, trials=job.num_breaks, rate=0.36)
