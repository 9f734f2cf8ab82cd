"""What scripted models write in benchmarks: scripts for ``bench.scripted_worker``, chosen by name.

All samples of a job write the same text, whoever writes a part of it: a script sees how much of the text is there and
goes on. So every prompt must have the same number of tokens, as those of ``problem_set`` have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import ModelRole
from workers.engine.base import GenerateRequest

Script = Callable[[GenerateRequest], Iterable[int]]

ANSWER = "7"


def problem_set(num_problems: int, *, first: int = 0) -> ProblemSet:
    """Problems whose prompts differ in nothing but a number of seven digits, a token each."""
    problems = tuple(_problem(number) for number in range(first, first + num_problems))
    return ProblemSet(name=f"scripted-{num_problems}", content_sha256=content_sha256(problems), problems=problems)


def _problem(number: int) -> Problem:
    return Problem(external_id=str(number), prompt=f"Item {number:07}.", answer=ANSWER)


def takeovers_text(num_takeovers: int) -> str:
    """A text in which the large model takes over so often (policy speculative-thinking:improved).

    A takeover is an affirmation, so that rule R3 never comes to count it, and long enough to end at its own end.
    """
    steps = "".join("The result.\n\nYes, the result is right on on on on.\n\n" for _ in range(num_takeovers))
    return f"{steps}So the result.\n</think>\n\nThe result is \\boxed{{{ANSWER}}}."


def takeovers(chat: ChatModel, role: ModelRole, num_takeovers: int) -> Script:
    """Both models write ``takeovers_text``."""
    return _writing(chat, takeovers_text(num_takeovers))


def tokens(chat: ChatModel, role: ModelRole, num_tokens: int) -> Script:
    """Both models write a text without a cue, of about so many tokens (at least 15), with an answer."""
    words = " right" * max(0, num_tokens - 15)
    return _writing(chat, f"So{words}.\n</think>\n\nThe result is \\boxed{{{ANSWER}}}.")


def _writing(chat: ChatModel, text: str) -> Script:
    prompt_length = len(chat.prompt_ids(render_user_message("math", _problem(0))))
    token_ids = chat.encode_text(text)

    def script(request: GenerateRequest) -> Iterable[int]:
        return token_ids[len(request.prompt_ids) - prompt_length :]

    return script


_SCRIPTS: dict[str, Callable[[ChatModel, ModelRole, int], Script]] = {"takeovers": takeovers, "tokens": tokens}


def make_script(name: str, chat: ChatModel, role: ModelRole) -> Script:
    """The script of a name like ``takeovers:20``: which one, and its number."""
    kind, _, number = name.partition(":")
    return _SCRIPTS[kind](chat, role, int(number))
