"""What scripted models write in benchmarks: scripts for ``bench.scripted_worker``, chosen by name.

A text is the same whoever writes a part of it: a script sees how much of the text is there and goes on. So every prompt
must have the same number of tokens, as those of ``problem_set`` have. All samples of a job write the same text, but
with ``paced`` and ``drafts``, where each problem has its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache

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


DISTINCT = 512
"""Texts of a seed; problems beyond have them again."""
TAKEOVER_EVERY = 130
"""Tokens of text per takeover, the takeover included: 7.7 in 1,000."""
SHORT_TAKEOVER = 20
"""Tokens: rule R1's most."""
LONG_TAKEOVER = (63, 125)
"""Rule R2's: a sentence may end it from half of its most on."""
LONG_SHARE = 1 / 3
MEDIAN_TOKENS, LENGTH_SPREAD, TOKENS = 500, 0.5, (100, 1500)
"""Texts: log-normal, and cut to a range."""
_LEAST_DRAFT = 24
"""Tokens, more than a window: a cue is never found from two breaks."""

_WORDS = (
    *("add", "and", "answer", "are", "as", "at", "be", "before", "begin", "by", "do", "every", "guess", "is", "it"),
    *("keep", "last", "may", "on", "put", "right", "see", "some", "step", "subtract", "that", "the", "this", "was"),
    *("whether", "with", "your"),
)
"""A token each with the blank before it; drawn at random, so that no text repeats itself."""


def paced_text(number: int, seed: int, *, with_cues: bool = True) -> str:
    """The text of a problem: drafts, and what calls large in after a break (speculative-thinking:improved), with
    lengths and places drawn at random. with_cues: False for a text of the same kind that calls nobody in."""
    generator = random.Random(f"{seed}-{number}")
    drawn = generator.lognormvariate(0, LENGTH_SPREAD) * MEDIAN_TOKENS
    left = min(max(drawn, TOKENS[0]), TOKENS[1])
    takeover_mean = SHORT_TAKEOVER * (1 - LONG_SHARE) + sum(LONG_TAKEOVER) / 2 * LONG_SHARE
    draft_mean = TAKEOVER_EVERY - takeover_mean - _LEAST_DRAFT
    paragraphs = []
    while left > 0:
        draft = _LEAST_DRAFT + round(generator.expovariate(1 / draft_mean))
        paragraphs.append(_sentence(generator, "So", draft - 3))
        if generator.random() < LONG_SHARE:
            takeover = generator.randint(*LONG_TAKEOVER)
            paragraphs.append(_sentence(generator, "Let me check," if with_cues else "So it may be,", takeover - 5))
        else:
            takeover = SHORT_TAKEOVER
            paragraphs.append(_sentence(generator, "Wait," if with_cues else "So,", takeover - 3))
        left -= draft + takeover
    return f"{''.join(paragraphs)}So the result.\n</think>\n\nThe result is \\boxed{{{ANSWER}}}."


def _sentence(generator: random.Random, begin: str, num_words: int) -> str:
    words = "".join(f" {word}" for word in generator.choices(_WORDS, k=num_words))
    return f"{begin}{words}.\n\n"


def paced(chat: ChatModel, role: ModelRole, seed: int) -> Script:
    """Both models write the problem's ``paced_text``."""
    return _writing_each(chat, lambda number: paced_text(number, seed))


def drafts(chat: ChatModel, role: ModelRole, seed: int) -> Script:
    """The same, without cues."""
    return _writing_each(chat, lambda number: paced_text(number, seed, with_cues=False))


def _writing_each(chat: ChatModel, text: Callable[[int], str]) -> Script:
    number_of = _Numbers(chat)

    @cache
    def token_ids(number: int) -> Sequence[int]:
        return chat.encode_text(text(number))

    def script(request: GenerateRequest) -> Iterable[int]:
        return token_ids(number_of(request.prompt_ids) % DISTINCT)[len(request.prompt_ids) - number_of.prompt_length :]

    return script


class _Numbers:
    """Finds a problem's number in its prompt."""

    def __init__(self, chat: ChatModel) -> None:
        """prompt_length: of every prompt."""
        prompts = [chat.prompt_ids(render_user_message("math", _problem(1_111_111 * digit))) for digit in range(10)]
        self.prompt_length = len(prompts[0])
        self._places = [place for place, ids in enumerate(zip(*prompts, strict=True)) if len(set(ids)) > 1]
        self._digits = {prompt[self._places[0]]: str(digit) for digit, prompt in enumerate(prompts)}

    def __call__(self, prompt_ids: Sequence[int]) -> int:
        return int("".join(self._digits[prompt_ids[place]] for place in self._places))


def _writing(chat: ChatModel, text: str) -> Script:
    prompt_length = len(chat.prompt_ids(render_user_message("math", _problem(0))))
    token_ids = chat.encode_text(text)

    def script(request: GenerateRequest) -> Iterable[int]:
        return token_ids[len(request.prompt_ids) - prompt_length :]

    return script


_SCRIPTS: dict[str, Callable[[ChatModel, ModelRole, int], Script]] = {
    "takeovers": takeovers,
    "tokens": tokens,
    "paced": paced,
    "drafts": drafts,
}


def make_script(name: str, chat: ChatModel, role: ModelRole) -> Script:
    """The script of a name like ``takeovers:20``: which one, and its number, a seed where each problem has a text."""
    kind, _, number = name.partition(":")
    return _SCRIPTS[kind](chat, role, int(number))
