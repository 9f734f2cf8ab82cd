"""The beginning of a sample's text: whether its model thinks at all.

A model may be left to open its think phase and not do it, and it may close a phase as soon as it is open. Neither text
has thoughts: it is read as one of a model that does not reason.
"""

from __future__ import annotations

from pipeline.policies.protocol import SampleContext


def read_beginning(context: SampleContext, before: str, text: str) -> tuple[str, bool | None]:
    """What matters of the text so far, and whether it has thoughts; None where it does not say yet.

    before: what mattered of the text before. The first word of a thought, or of an answer, decides. What matters of a
    text without thoughts is its answer.
    """
    head = (before + text).lstrip()
    if context.think_opened:
        return _read_thought("", head, context.think_end)
    start = context.think_start
    if not head.startswith(start):
        return head, None if start.startswith(head) else False
    return _read_thought(start, head.removeprefix(start).lstrip(), context.think_end)


def _read_thought(start: str, thought: str, end: str) -> tuple[str, bool | None]:
    if thought.startswith(end):
        answer = thought.removeprefix(end).lstrip()
        return (answer, False) if answer else (start + end, None)
    return start + thought, None if end.startswith(thought) else True
