"""Switch cues for the policy ``relay``: words behind which the large model is sure of the rest of its sentence.

Source: RelayGen, arXiv 2602.06454: words by the mean difference between the two most likely tokens (MARGIN) behind
them, in what large wrote alone. Which words are looked at is ours: those with which sentences begin. All of their uses
count, since ``relay`` finds its cues anywhere.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from pipeline.calibration.overlap import Overlap, overlap_caveats
from pipeline.calibration.steps import reading_context
from pipeline.errors import JobError
from pipeline.policies.reading.cues import fold
from pipeline.policies.reading.reader import SentenceEndFinder, TextState
from pipeline.policies.relay import RelaySpec
from pipeline.policies.step_delegation import text_reader
from pipeline.results.intervals import Interval, cluster_bootstrap
from pipeline.results.stored import StoredSample
from pipeline.samples import Author
from pipeline.signals import Signal

MIN_PROBLEMS = 5
"""A word is a candidate where sentences begin with it in so many problems. Ours."""
MOST_CUES = 28
"""Most words of a list. RelayGen: 28 and 25."""
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_LEAD_TOKENS = RelaySpec().lead_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CueReport:
    """A word with what followed it.

    uses: how often it stands in the thoughts. tokens: from behind it to the end of its sentence, the mean over its
    uses. margin: mean over all of these tokens, with its 95 % interval over problems.
    """

    cue: str
    uses: int
    num_problems: int
    tokens: float
    margin: float
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CueCalibration:
    """What a pilot says of switch cues.

    margin: mean over all tokens of large's thoughts. cues: by their margin, the surest first. chosen: those to take.
    small_share: of large's thoughts, what small would have written with them.
    """

    job_id: int
    num_problems: int
    num_samples: int
    margin: float
    cues: tuple[CueReport, ...]
    chosen: tuple[str, ...]
    small_share: float
    caveats: tuple[str, ...] = ()


class _Use(NamedTuple):
    """A word in a text. token: the one that it ends in. end: tokens up to the end of its sentence."""

    word: str
    token: int
    end: int
    begins_sentence: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CueSample:
    """The thoughts that large wrote in a sample. margins: of each token."""

    problem: str
    margins: Sequence[float]
    uses: Sequence[_Use]


def read_cue_sample(sample: StoredSample) -> CueSample | None:
    """A sample's thoughts up to the first token that large did not write or whose margin is not known; None: there is
    none."""
    texts, margins = [], []
    reader = text_reader(reading_context(sample), TextState())
    finder, ends = SentenceEndFinder(), [0]
    for text, margin in _large_tokens(sample):
        reader.feed(text)
        end = finder.feed(text)
        if not reader.thinking:
            break
        texts.append(text)
        margins.append(margin)
        ends += [at for at in (end, len(texts) if reader.at_break else None) if at is not None]
    if not texts:
        return None
    sentence_ends = sorted({*ends, len(texts)})
    return CueSample(problem=sample.problem, margins=margins, uses=list(_uses(texts, sentence_ends)))


def _large_tokens(sample: StoredSample) -> Iterator[tuple[str, float]]:
    for segment in sample.segments:
        margins = segment.signals.get(Signal.MARGIN)
        if segment.author is not Author.LARGE or margins is None:
            return
        for text, margin in zip(segment.texts[: segment.num_kept], margins, strict=False):
            if margin is None:
                return
            yield text, margin


def _uses(texts: Sequence[str], sentence_ends: Sequence[int]) -> Iterator[_Use]:
    """sentence_ends: tokens up to each, from 0 to all of them."""
    shown = list(accumulate(map(len, texts)))
    begun: set[int] = set()
    for match in _WORD.finditer("".join(texts)):
        token = bisect_left(shown, match.end())
        sentence = bisect_left(sentence_ends, bisect_left(shown, match.start() + 1) + 1)
        yield _Use(fold(match[0]), token, sentence_ends[bisect_left(sentence_ends, token + 1)], sentence not in begun)
        begun.add(sentence)


@dataclass(slots=True)
class _Sums:
    """Of one word in one problem."""

    margin: float = 0.0
    tokens: int = 0
    uses: int = 0
    begun: int = 0


def find_cues(job_id: int, pilot: Sequence[CueSample | None], overlap: Overlap | None = None) -> CueCalibration:
    """Which words to take as switch cues. pilot: the job's samples, as ``read_cue_sample`` gives them. overlap: with
    what will be scored; None: nobody said what that is.

    Raises JobError for a pilot in which large wrote no thoughts with margins.
    """
    samples = [sample for sample in pilot if sample is not None]
    if not samples:
        raise JobError(
            job_id,
            "no margins are stored of what large thought; submit a pilot with --policy large-only --set "
            "policy.signals=margin",
        )
    margins = [margin for sample in samples for margin in sample.margins]
    mean = math.fsum(margins) / len(margins)
    reports = sorted(_reports(samples), key=lambda report: (-report.margin, report.cue))
    sure = [report.cue for report in reports if report.interval is not None and report.interval.low > mean]
    chosen = tuple(sure[:MOST_CUES])
    written = sum(_written_by_small(sample, frozenset(chosen)) for sample in samples)
    return CueCalibration(
        job_id=job_id,
        num_problems=len({sample.problem for sample in samples}),
        num_samples=len(pilot),
        margin=mean,
        cues=tuple(reports),
        chosen=chosen,
        small_share=written / len(margins),
        caveats=(*overlap_caveats(overlap), *_caveats(len(pilot) - len(samples), chosen)),
    )


def _reports(samples: Iterable[CueSample]) -> Iterator[CueReport]:
    sums: dict[str, dict[str, _Sums]] = defaultdict(lambda: defaultdict(_Sums))
    for sample in samples:
        totals = [0.0, *accumulate(sample.margins)]
        for use in sample.uses:
            found = sums[use.word][sample.problem]
            found.margin += totals[use.end] - totals[use.token + 1]
            found.tokens += use.end - use.token - 1
            found.uses += 1
            found.begun += use.begins_sentence
    for word, by_problem in sums.items():
        told = [each for each in by_problem.values() if each.tokens]
        if sum(each.begun > 0 for each in told) < MIN_PROBLEMS:
            continue
        num_tokens, uses = sum(each.tokens for each in told), sum(each.uses for each in by_problem.values())
        yield CueReport(
            cue=word,
            uses=uses,
            num_problems=len(by_problem),
            tokens=num_tokens / uses,
            margin=math.fsum(each.margin for each in told) / num_tokens,
            interval=cluster_bootstrap([each.margin for each in told], [each.tokens for each in told]),
        )


def _written_by_small(sample: CueSample, cues: frozenset[str]) -> int:
    """Tokens behind cues, had ``relay`` been at work with large's own text: small writes to the sentence's end."""
    led_from, written = 0, 0
    for use in sample.uses:
        if use.word in cues and use.token + 1 - led_from >= _LEAD_TOKENS:
            written += use.end - use.token - 1
            led_from = use.end
    return written


def _caveats(num_without: int, chosen: Sequence[str]) -> Iterator[str]:
    if not chosen:
        yield "behind no word large is surer than elsewhere: relay is nothing for this pair, or the pilot is too small"
    if num_without:
        yield f"{num_without} samples have no thoughts of large's with margins"
