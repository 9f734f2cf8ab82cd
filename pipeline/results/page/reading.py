"""A sample as a person reads it: step by step, each piece with its author."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.results.samples import Result, SampleReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Text by one author. trigger, cue: of the takeover that begins with it, '' where none does.

    discarded, num_discarded: what the author wrote behind it and was thrown away, and its tokens.
    """

    author: str
    text: str
    trigger: str = ""
    cue: str = ""
    discarded: str = ""
    num_discarded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStep:
    """A step as the reader shows it. sentence_class: '' before the sample's steps are stored."""

    step_index: int
    sentence_class: str
    num_tokens: int
    spans: tuple[Span, ...]

    @property
    def authors(self) -> tuple[str, ...]:
        """Each once, in the order in which they begin."""
        return tuple(dict.fromkeys(span.author for span in self.spans if span.text))


def read_steps(report: SampleReport) -> list[ReadStep]:
    """A sample's steps with the author of every piece; one step with all of it where they do not make up its text."""
    spans = [
        Span(
            author=part.author.value,
            text=part.text or "",
            trigger=part.trigger if part.takes_over else "",
            cue=part.cue,
            discarded=part.discarded_text or "",
            num_discarded=part.tokens_discarded,
        )
        for part in report.segments
    ]
    written = "".join(span.text for span in spans)
    if "".join(step.text for step in report.steps) != written or not report.steps:
        return [ReadStep(step_index=0, sentence_class="", num_tokens=report.result.output_tokens, spans=tuple(spans))]
    pieces = _cut(spans, [len(step.text) for step in report.steps])
    return [
        ReadStep(
            step_index=step.step_index,
            sentence_class=step.sentence_class,
            num_tokens=step.tokens_small + step.tokens_large + step.tokens_inserted,
            spans=tuple(piece),
        )
        for step, piece in zip(report.steps, pieces, strict=True)
    ]


def _cut(spans: Sequence[Span], lengths: Sequence[int]) -> list[list[Span]]:
    """The spans cut into runs of these lengths; a trigger stays with the first piece of its span, and what was
    discarded behind it with the last."""
    runs: list[list[Span]] = []
    rest = list(reversed(spans))
    for length in lengths:
        run: list[Span] = []
        while length > 0:
            span = rest.pop()
            head, tail = span.text[:length], span.text[length:]
            length -= len(head)
            if tail:
                run.append(Span(author=span.author, text=head, trigger=span.trigger, cue=span.cue))
                rest.append(replace(span, text=tail, trigger="", cue=""))
            else:
                run.append(span)
        runs.append(run)
    return runs


def verdict(result: Result) -> str:
    return "unscored" if result.score is None else "right" if result.score >= 0.5 else "wrong"
