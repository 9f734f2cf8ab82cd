"""The beginning of a sample's text: whether its model thinks at all.

A model may be left to open its think phase and not do it, and it may close a phase as soon as it is open. Neither text
has thoughts: it is read as one of a model that does not reason.
"""

from __future__ import annotations

from pipeline.policies.protocol import SampleContext


def read_beginning(context: SampleContext, before: str, text: str) -> tuple[str, bool | None]:
    """What matters of the text so far, and whether it has thoughts; None where it does not say yet.

    before: what mattered of the text before. The first word of a thought, or of an answer, decides.
    """
    start, end = context.think_start, context.think_end
    head = (before + text).lstrip()
    if not context.think_opened:
        if not head.startswith(start):
            return head, None if start.startswith(head) else False
        thought = head.removeprefix(start).lstrip()
        return start + thought, _has_thought(thought, end)
    return head, _has_thought(head, end)


def _has_thought(thought: str, end: str) -> bool | None:
    if thought.startswith(end):
        return False
    return None if end.startswith(thought) else True
