"""Rules that are broken on purpose are found: each mutation changes one rule of a policy or an exit, and the comparison
of that row with its plain loop must fail.

A mutation replaces a piece of one function's source. The piece must be there, once: who rewrites a rule rewrites its
mutation. Whoever imported the function runs the changed one, so that helpers that several rows share are reached, too.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pipeline.policies import (
    drafted_steps,
    draws,
    first_steps,
    glimpse,
    mentor,
    random_delegation,
    redo,
    relay,
    reward,
    specreason,
    thinking_steps,
    turns,
)
from pipeline.policies.exits import controls, exit_names, exiting, numbering, think_brake, trials
from pipeline.policies.reading import handback, layout, reader
from pipeline.policies.speculative_thinking import improved, improved_watchers, paper, released_code, rules
from tests.unit.policies import (
    test_exits_by_loop,
    test_first_steps,
    test_glimpse,
    test_mentor,
    test_random_delegation,
    test_redo,
    test_relay,
    test_reward,
    test_specreason,
)
from tests.unit.policies.speculative_thinking import test_reference_loops

Check: TypeAlias = Callable[[], None]
"""A comparison of a row with its plain loop, over scripted cases; ends with an AssertionError at the first difference.
"""


@dataclass(frozen=True)
class Mutation:
    """A row, what its rule is taken for, and the piece of source that stands for the rule."""

    row: str
    name: str
    module: ModuleType
    piece: str
    instead: str

    def __str__(self) -> str:
        return f"{self.row}: {self.name}"


# The rows, and what compares each with its loop.

NUM_CASES = 300
"""Of a policy; an exit's are of each delegation that it is put around."""
NUM_SEEDS = 40
QUICK = settings(
    max_examples=NUM_CASES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def cases_of(test: Any, cases: Mapping[str, Any]) -> Check:
    """The first cases of a test of this suite, or others of these strategies."""
    check: Check = QUICK(given(**cases)(test.hypothesis.inner_test))
    return check


def seeds_of(kind: str) -> Check:
    def check() -> None:
        for seed in range(NUM_SEEDS):
            for delegation in test_exits_by_loop.DELEGATIONS:
                test_exits_by_loop.assert_same(*test_exits_by_loop.compare(kind, delegation, seed), seed)

    return check


REDO = test_redo.test_redo_does_as_the_plain_loop
SPECREASON = test_specreason.test_specreason_does_as_the_published_loop
ROWS: dict[str, Check] = {
    "glimpse": cases_of(test_glimpse.test_glimpse_does_as_the_published_loop, test_glimpse.CASES),
    "first-steps": cases_of(test_first_steps.test_first_steps_does_as_the_plain_loop, test_first_steps.CASES),
    "redo": cases_of(REDO, test_redo.CASES),
    "redo:trig": cases_of(REDO, test_redo.CASES | {"spec": test_redo.TRIG_SPECS}),
    "relay": cases_of(test_relay.test_relay_does_as_the_published_loop, test_relay.CASES),
    "specreason:rating": cases_of(SPECREASON, test_specreason.CASES | {"spec": test_specreason.RATED_SPECS}),
    "specreason:doubt": cases_of(SPECREASON, test_specreason.CASES | {"spec": test_specreason.DOUBTED_SPECS}),
    "mentor": cases_of(test_mentor.test_mentor_does_as_the_published_loop, test_mentor.CASES),
    "rsd": cases_of(test_reward.test_rsd_does_as_the_published_loop, test_reward.RSD_CASES),
    "specsearch": cases_of(
        test_reward.test_specsearch_does_as_a_loop_with_a_moving_threshold, test_reward.SPECSEARCH_CASES
    ),
    "improved": cases_of(
        test_reference_loops.test_the_preset_improved_does_as_its_plain_loop, test_reference_loops.IMPROVED_CASES
    ),
    "improved-instruct": cases_of(
        test_reference_loops.test_the_preset_improved_instruct_does_as_its_plain_loop,
        test_reference_loops.INSTRUCT_CASES,
    ),
    "paper": cases_of(
        test_reference_loops.test_the_preset_paper_does_as_its_plain_loop, test_reference_loops.PAPER_CASES
    ),
    "code": cases_of(
        test_reference_loops.test_the_preset_code_does_as_the_released_loop, test_reference_loops.CODE_CASES
    ),
    "random": cases_of(test_random_delegation.test_random_does_as_the_plain_loop, test_random_delegation.CASES),
    **{f"exit {kind}": seeds_of(kind) for kind in exit_names()},
}


MUTATIONS = [
    # large writes the steps whose first token small was unsure of
    Mutation("glimpse", "the threshold itself is sure", glimpse, "entropy < self._threshold",
             "entropy <= self._threshold"),
    Mutation("glimpse", "the uncertain token stays", glimpse, "keep=self.reader.position - 1",
             "keep=self.reader.position"),
    Mutation("glimpse", "a request's first token counts in mid-step", glimpse, "if not is_first or entropy is None",
             "if entropy is None"),
    Mutation("glimpse", "the text's first token always counts", glimpse, "is_open=self._spec.check_start",
             "is_open=True"),
    Mutation("glimpse", "a place stays open where large is silent", thinking_steps,
             '"is_open": keep > 0 and text.at_break', '"is_open": text.at_break'),
    # large writes the first steps
    Mutation("first-steps", "a step too few", handback, "self._num_left == 0", "self._num_left <= 1"),
    Mutation("first-steps", "the budget is that of one step", thinking_steps,
             "numbers.first_steps * numbers.step_tokens", "numbers.step_tokens"),
    Mutation("first-steps", "newlines that lengthen a break end a step", handback,
             "self.reader.ends_step", "self.reader.at_break"),
    Mutation("first-steps", "what a short step leaves is the next one's", handback,
             "self.limit = self.num_kept + self._step_tokens", "self.limit += self._step_tokens"),
    Mutation("first-steps", "small is watched where it writes the answer itself", first_steps,
             "if self._ends_phase else None", "if not self._ends_phase else None"),
    Mutation("first-steps", "the other model writes the answer", thinking_steps,
             "self._numbers.answer_role is ModelRole.LARGE", "self._numbers.answer_role is ModelRole.SMALL"),
    # large writes again what small was unsure of
    Mutation("redo", "the threshold itself is beyond", redo, "return value > self.threshold if",
             "return value >= self.threshold if"),
    Mutation("redo", "a step of the least length is not judged", redo, "len(self._logprobs) >= spec.min_step_tokens",
             "len(self._logprobs) > spec.min_step_tokens"),
    Mutation("redo", "the step's first token stays", redo, "self._begin = self.reader.position - 1",
             "self._begin = self.reader.position"),
    Mutation("redo", "a step without a hesitation leaves the count", redo, "self._streak + 1 if self._word else 0",
             "self._streak + 1 if self._word else self._streak"),
    Mutation("redo", "tokens of the step before count", redo, "self._logprobs.clear()", "pass"),
    Mutation("redo", "the trigger of the other side", redo, 'Trigger.OFFLOAD if spec.side == "above"',
             'Trigger.OFFLOAD if spec.side == "below"'),
    Mutation("redo", "the mean of the tokens is their sum", redo, "math.fsum(logprobs) / len(logprobs)",
             "math.fsum(logprobs)"),
    Mutation("redo:trig", "unsure tokens are counted", redo, "sum(logprob > least", "sum(logprob < least"),
    Mutation("redo:trig", "a step more of hesitation", redo, "0 < spec.streak <= self._streak",
             "0 < spec.streak < self._streak"),
    Mutation("redo:trig", "large writes one step after hesitations", redo, "return self._spec.rescue_steps if",
             "return 2 if"),
    Mutation("redo:trig", "the hesitating step is taken back", redo,
             "self._call(self.reader.position, Trigger.HESITATION", "self._call(self._begin, Trigger.HESITATION"),
    Mutation("redo:trig", "a hesitation lasts for all further steps", redo,
             'self._word = ""\n        if self._hesitation', 'if self._hesitation'),
    # large leads up to a cue, small ends the sentence
    Mutation("relay", "a token more before a cue counts", relay, "end >= self._lead_tokens", "end > self._lead_tokens"),
    Mutation("relay", "each lead counts on from the last", relay, '{**update, "num_led": 0}', "update"),
    Mutation("relay", "a cut lead counts anew", relay, '"num_led": num_led}', '"num_led": 0}'),
    Mutation("relay", "the token that shows a cue's end stays", relay,
             "self._last_shown if placed.is_before else self.reader.position", "self.reader.position"),
    Mutation("relay", "small writes to a break", relay, 'handback="sentence"', 'handback="break"'),
    Mutation("relay", "small always writes the answer", relay, "role = self._spec.answer_role",
             "role = ModelRole.SMALL"),
    Mutation("relay", "a cue behind the closing tag counts", relay,
             "is_thought = placed.is_before or self.reader.thinking", "is_thought = True"),
    # large rates drafts
    Mutation("specreason:rating", "the threshold itself is too little", specreason, "verdict(score >= threshold",
             "verdict(score > threshold"),
    Mutation("specreason:rating", "the least mass is too little", specreason, "rounded(mass) < self._spec.min_mass",
             "rounded(mass) <= self._spec.min_mass"),
    Mutation("specreason:rating", "the score is not over the mass", specreason, "for digit in found) / mass)",
             "for digit in found))"),
    Mutation("specreason:rating", "steps before a rejected one do not stay", specreason,
             "self._take_over(state, state.unsure[0], room", "self._take_over(state, 0, room"),
    Mutation("specreason:rating", "large sees what small is sure of", specreason,
             'if not verdict.accepts:\n            state = state', 'if verdict.accepts:\n            state = state'),
    Mutation("specreason:rating", "several steps have the budget of one", drafted_steps,
             "self._numbers.step_tokens * self._num_steps(state)", "self._numbers.step_tokens"),
    Mutation("specreason:rating", "the closing tag is judged, too", drafted_steps,
             "judged = place if after.thinking else _before(texts[:place], context.think_end)", "judged = place"),
    Mutation("specreason:rating", "where large is silent small is judged again", drafted_steps,
             "is_closed = keep == 0 and state.trigger is Trigger.REJECTED", "is_closed = False"),
    Mutation("specreason:rating", "most likely tokens are drafted", drafted_steps,
             "max_tokens=max_tokens, greedy=False", "max_tokens=max_tokens"),
    Mutation("specreason:doubt", "the threshold itself is no doubt", specreason, "verdict(doubt < threshold",
             "verdict(doubt <= threshold"),
    Mutation("specreason:doubt", "without room for the judgement a step stays", specreason,
             "return no_answer(0.0, threshold)", "return verdict(True, 0.0, threshold)"),
    Mutation("specreason:doubt", "the first step of those in doubt is judged over and over", specreason,
             "state.unsure[1:]", "state.unsure[:-1]"),
    Mutation("specreason:doubt", "a closed place lasts for a whole draft", drafted_steps,
             "1 if state.is_closed else self._numbers.steps_per_review", "self._numbers.steps_per_review"),
    # small chooses between its words and large's
    Mutation("mentor", "one draw decides all words", mentor, "draw(self._context, self.num_draws)",
             "draw(self._context, 1)"),
    Mutation("mentor", "a choice starts the words' numbers anew", mentor, '"num_draws": own.num_draws',
             '"num_draws": 0'),
    Mutation("mentor", "between equals large is taken", mentor, "is_mentors = value > 0.5",
             "is_mentors = value >= 0.5"),
    Mutation("mentor", "both orders by the arithmetic mean", mentor, "((a * b) ** 0.5", "((a + b) / 2"),
    Mutation("mentor", "the letter is read as if own stood first", mentor,
             "pair if self._is_own_first(context, state, own.num_draws) else pair[::-1]", "pair"),
    Mutation("mentor", "one draw orders all choices", mentor, 'f"order {number}"', '"order 1"'),
    Mutation("mentor", "small's continuation is a token short", mentor, "self.place + self._spec.chunk - num_tokens",
             "self.place + self._spec.chunk - 1 - num_tokens"),
    Mutation("mentor", "words before the place do not count", mentor, "room -= place + len(state.chunk)",
             "room -= len(state.chunk)"),
    Mutation("mentor", "large's end ends a thought", mentor, "state.mentor_ended and not context.think_end",
             "state.mentor_ended"),
    # a judge rewards drafts
    Mutation("rsd", "the threshold itself is too little", reward, "verdict(reward >= threshold",
             "verdict(reward > threshold"),
    Mutation("rsd", "the reward is the share of the bad answer", reward, "rounded(good / (good + bad))",
             "rounded(bad / (good + bad))"),
    Mutation("rsd", "a step that nobody could read is judged", reward, " if not step.is_blank)", ")"),
    Mutation("rsd", "steps before a rejected one do not stay", reward,
             "self._take_over(state, state.unsure[0], room", "self._take_over(state, 0, room"),
    Mutation("specsearch", "decay is the weight of the new reward", reward,
             "decay * state.threshold + (1 - decay) * reward", "(1 - decay) * state.threshold + decay * reward"),
    Mutation("specsearch", "a first step more", reward, "len(rewards) < self._moving.first_steps",
             "len(rewards) <= self._moving.first_steps"),
    Mutation("specsearch", "the last first step is the threshold", reward, "sum(rewards) / len(rewards)", "reward"),
    Mutation("specsearch", "a blank step of large's is judged", reward,
             "if is_blank(turn.texts[:keep], turn.context)", "if not keep"),
    Mutation("specsearch", "small drafts before there is a threshold", reward,
             "self._open if state.threshold is None else self._draft", "self._draft"),
    # Speculative Thinking
    Mutation("improved", "a reflection more until all is checked", improved,
             "turn.state.reflections >= turn.state.threshold", "turn.state.reflections > turn.state.threshold"),
    Mutation("improved", "a reflection lets large write as long as a verify cue", improved,
             "limit = spec.n1 if takeover.trigger in SHORT_TAKEOVERS else spec.n2", "limit = spec.n2"),
    Mutation("improved", "the count goes on after a check", rules, '"reflections": 0,',
             '"reflections": self.reflections,'),
    Mutation("improved", "a check's length grows on for ever", rules, "min(self.n3 + rules.n3_step, rules.n3_max)",
             "self.n3 + rules.n3_step"),
    Mutation("improved", "a window is a token longer", reader, "if self.position < self._closes_at:",
             "if self.position <= self._closes_at:"),
    Mutation("improved", "large writes from the nearest break", reader,
             'self._windows[0 if self._takeover_from == "earliest" else -1]', "self._windows[-1]"),
    Mutation("improved", "large always writes from the earliest break", reader,
             'self._windows[0 if self._takeover_from == "earliest" else -1]', "self._windows[0]"),
    Mutation("improved", "a sentence may end half a token early", handback, "math.ceil(self.limit * self._from)",
             "math.floor(self.limit * self._from)"),
    Mutation("improved", "large's verify cue counts a token longer", improved_watchers,
             "closes = self._num_read >= self._window_tokens", "closes = self._num_read > self._window_tokens"),
    Mutation("improved-instruct", "a break in an open formula ends a step", layout, "self._state.depth > 0 or ", ""),
    Mutation("improved-instruct", "a break between dollars ends a step", layout, "or self._state.dollars", ""),
    Mutation("improved-instruct", "a break in a block of code ends a step", layout, "or self._state.fence", ""),
    Mutation("improved-instruct", "a break after what introduces ends a step", layout,
             "or self._state.introduces)", ")"),
    Mutation("improved-instruct", "a break after a heading ends a step", layout, "_HEADING.match(line) or ", ""),
    Mutation("improved-instruct", "a break after an item's number ends a step", layout,
             "_ITEM_ALONE.match(line) or ", ""),
    Mutation("improved-instruct", "a break before a formula ends a step", layout,
             "_OPENS_FORMULA.match(shown) or ", ""),
    Mutation("improved-instruct", "a break before an indented line ends a step", layout,
             " or _INDENTED.search(blanks)", ""),
    Mutation("improved-instruct", "half a delimiter is text", layout, " or _UNDECIDED.fullmatch(shown)", ""),
    Mutation("improved-instruct", "blanks in the break's own token do not indent", layout,
             'text[text.rfind("\\n") :]', '"\\n"'),
    Mutation("improved-instruct", "the token behind a break stays", layout, "self.num_kept = pending or 0",
             "self.num_kept = self._num_read"),
    Mutation("improved-instruct", "code opens formulas", layout, "if state.fence:", "if False:"),
    Mutation("improved-instruct", "a closing delimiter alone counts", layout, "max(0, depth +", "(depth +"),
    Mutation("improved-instruct", "a takeover forgets the layout before it", improved,
             "for text in (*turn.texts[:keep], *inserted):", "for text in inserted:"),
    Mutation("improved-instruct", "a takeover at a break is as long as for a verify cue", improved,
             "limit = spec.n1 if takeover.trigger in SHORT_TAKEOVERS else spec.n2", "limit = spec.n2"),
    Mutation("improved-instruct", "breaks behind the closing tag call", improved_watchers,
             "self._step_ends.feed(text) and self.reader.thinking", "self._step_ends.feed(text)"),
    Mutation("paper", "a reflection more until all is checked", paper, "if reflections >= turn.state.threshold",
             "if reflections > turn.state.threshold"),
    Mutation("paper", "a reflection counts twice", paper, "ages = () if is_reflection else (0,)", "ages = (0,)"),
    Mutation("paper", "large's verify cue counts behind n1", paper, "min(self._spec.window_tokens, self._spec.n1)",
             "self._spec.window_tokens"),
    Mutation("paper", "a takeover is a token longer", paper, "return self.num_read >= self._limit",
             "return self.num_read > self._limit"),
    Mutation("paper", "a sentence is a token longer", paper, "self.num_read - self._starts[0] >= self._window_tokens",
             "self.num_read - self._starts[0] > self._window_tokens"),
    Mutation("paper", "breaks inside a reflection begin sentences", paper, "self._starts.clear()", "pass"),
    Mutation("paper", "the threshold does not grow", rules,
             "min(self.threshold + rules.threshold_step, rules.threshold_max)", "self.threshold"),
    Mutation("code", "a reflection more until all is checked", released_code,
             "if turn.state.reflections >= turn.state.threshold", "if turn.state.reflections > turn.state.threshold"),
    Mutation("code", "a break anywhere in the draft counts", released_code, "[-spec.break_within :]", ""),
    Mutation("code", "an end among the last tokens stops nothing", released_code, "end - eos_at < self._spec.n1",
             "end - eos_at < 0"),
    Mutation("code", "the budget itself is too much", released_code,
             "turn.context.num_prompt_tokens + end > turn.context.max_tokens",
             "turn.context.num_prompt_tokens + end >= turn.context.max_tokens"),
    Mutation("code", "a statement that is sampled again is no trigger", released_code,
             "trigger=Trigger.SAMPLE_AGAIN", "trigger=Trigger.RESUME"),
    Mutation("code", "large is taken where both reflect", released_code, "return not is_reflection", "return True"),
    Mutation("code", "what large answers does not count", released_code, "turn.state.reflections + is_reflection",
             "turn.state.reflections"),
    Mutation("code", "each check is as long as the first", released_code, "max_tokens=turn.state.n3",
             "max_tokens=self._spec.n3"),
    # the control
    Mutation("random", "one draw decides all places", random_delegation, "draw(self._context, self.num_draws)",
             "draw(self._context, 1)"),
    Mutation("random", "another seed", draws, "{context.job_seed}/{context.sample_index}",
             "{context.sample_index}/{context.job_seed}"),
    Mutation("random", "a takeover starts the places' numbers anew", random_delegation, '"num_draws": num_draws',
             '"num_draws": 0'),
    Mutation("random", "takeovers are as long as their mean rounded up", random_delegation,
             "return math.floor(number * tokens + drawn) - math.floor((number - 1) * tokens + drawn)",
             "return math.ceil(tokens)"),
    Mutation("random", "all takeovers are the first", random_delegation,
             'update["num_takeovers"] = turn.state.num_takeovers + 1', 'update["num_takeovers"] = 1'),
    Mutation("random", "each of a run's newlines is drawn about", random_delegation,
             "return self.reader.ends_step", "return self.reader.at_break"),
    Mutation("random", "a place that large passed is drawn again", random_delegation,
             "self._is_passed and self.num_kept == 0", "self._is_passed and self.num_kept < 0"),
    Mutation("random", "the word behind each takeover is passed", random_delegation,
             'update["is_passed"] = keep == 0', 'update["is_passed"] = True'),
    Mutation("random", "the drawn word stays", random_delegation,
             "whole_characters(self._texts, self.num_kept - 1)", "whole_characters(self._texts, self.num_kept)"),
    Mutation("random", "large goes on behind half a character", turns,
             "while num_tokens and (not texts[num_tokens - 1] or texts[num_tokens - 1].endswith(\"\\ufffd\")):",
             "while num_tokens < 0:"),
    # exits with a trial answer
    Mutation("exit deer", "less than the confidence is wanted", trials, "sureness > self._spec.confidence",
             "sureness < self._spec.confidence"),
    Mutation("exit deer", "the first token's probability counts", trials, "for logprob in logprobs[1:] if",
             "for logprob in logprobs if"),
    Mutation("exit deer", "the geometric mean is the arithmetic one", trials, 'if mean == "geometric"',
             'if mean == "harmonic"'),
    Mutation("exit deer", "a trial more", trials, "self._stored.num_trials >= self._spec.max_trials",
             "self._stored.num_trials > self._spec.max_trials"),
    Mutation("exit deer", "a step begins with a hesitation a token longer", trials,
             "self._begun >= WINDOW_TOKENS", "self._begun > WINDOW_TOKENS"),
    Mutation("exit deer", "what is thrown away for a trial is ended again", exiting, " and not state.lets_pass", ""),
    Mutation("exit agreement", "what a trial withholds is not put in", exiting, "insert=withheld.insert", "insert=()"),
    Mutation("exit agreement", "another answer goes on with the count", trials,
             "stored.num_equal + 1 if answer == stored.answer else 1", "stored.num_equal + 1"),
    Mutation("exit agreement", "one more has to agree", trials, "num_equal >= self._spec.agree",
             "num_equal > self._spec.agree"),
    Mutation("exit agreement", "a step more between trials", trials, "self._num_steps >= self._spec.every_steps",
             "self._num_steps > self._spec.every_steps"),
    Mutation("exit agreement", "a doubted answer counts", trials, " or _has_word(text, self._spec.doubts)", ""),
    Mutation("exit agreement", "a trial leaves the count of steps", trials,
             "TrialState(num_trials=", "TrialState(num_steps=stored.num_steps, num_trials="),
    Mutation("exit large-extract", "who answers tries", trials, "role=self._spec.by", "role=self._spec.answer_role"),
    Mutation("exit large-extract", "the delegation's asides are counted with the trials", numbering,
             "index += trial <= index", "index += 0"),
    Mutation("exit large-extract", "white space tells answers apart", trials, '"".join(answer', '" ".join(answer'),
    # an exit that reads
    Mutation("exit think_brake", "one more has to agree", think_brake, "self._num_near < self._spec.agree",
             "self._num_near <= self._spec.agree"),
    Mutation("exit think_brake", "a far tag leaves the count", think_brake,
             "self._num_near = 0\n            return False", "return False"),
    Mutation("exit think_brake", "the margin is a least one", think_brake, "margin > self._spec.threshold",
             "margin < self._spec.threshold"),
    Mutation("exit think_brake", "every token counts", think_brake, "not token.begins_step or token.readings is None",
             "token.readings is None"),
    # controls
    Mutation("exit cut", "a token more", controls, "self._num_tokens >= self._limit", "self._num_tokens > self._limit"),
    Mutation("exit cut", "only this piece counts", exiting, '{"num_tokens": event.start_token}', '{"num_tokens": 0}'),
    Mutation("exit cut", "the closing tag is no part of the budget", exiting,
             " - num_tokens - most_tokens(closing.text)", " - num_tokens"),
    Mutation("exit cut", "half a character stays", exiting,
             "whole_characters(event.piece.texts, place - watcher.exit.num_back)", "place - watcher.exit.num_back"),
    Mutation("exit random", "the draws of random delegation", controls, 'f"exit/{', 'f"{'),
    Mutation("exit random", "each piece counts its breaks anew", controls, '"num_breaks": self._num_breaks',
             '"num_breaks": 0'),
    Mutation("exit random", "a draw at each token", controls, "if not token.ends_step:", "if not token.text:"),
    Mutation("exit random", "the rate is exceeded", controls, 'if drawn < self._rate else None',
             'if drawn > self._rate else None'),
]  # fmt: skip


# How a mutation is made.


def place_of(source: str, line: int) -> list[str]:
    """The names that lead to the function, not inside another one, that has this line."""
    names: list[str] = []
    body: list[ast.stmt] = ast.parse(source).body
    while True:
        found = next(
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= (node.end_lineno or 0)
        )
        names.append(found.name)
        if isinstance(found, ast.FunctionDef):
            return names
        body = found.body


def function_at(module: ModuleType, names: list[str]) -> FunctionType:
    found: Any = module
    for name in names:
        found = vars(found)[name]
    found = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(found, FunctionType)
    return found


def compiled(source: str, module: ModuleType, names: list[str]) -> CodeType:
    """The code of that function in the changed source."""
    code = compile(source, module.__file__ or "", "exec", dont_inherit=True)
    for name in names:
        code = next(part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == name)
    return code


def mutated(mutation: Mutation) -> tuple[FunctionType, CodeType]:
    """The function with the rule, and what it does instead."""
    source = inspect.getsource(mutation.module)
    assert source.count(mutation.piece) == 1, f"{mutation.module.__name__} has changed: mend the mutation {mutation}"
    before, _, after = source.partition(mutation.piece)
    names = place_of(source, before.count("\n") + 1)
    return function_at(mutation.module, names), compiled(before + mutation.instead + after, mutation.module, names)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_broken_rule_is_found(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    function, code = mutated(mutation)
    monkeypatch.setattr(function, "__code__", code)
    with pytest.raises((AssertionError, ValueError)):  # a policy refuses what no engine gives
        ROWS[mutation.row]()


@pytest.mark.parametrize("row", ROWS)
def test_unbroken_rules_are_as_the_loop(row: str) -> None:
    ROWS[row]()


def test_every_row_has_mutations() -> None:
    """Three of a policy, two of an exit; and no policy or exit is left out."""
    num_mutations = Counter(mutation.row for mutation in MUTATIONS)
    assert num_mutations.keys() == ROWS.keys()
    assert all(num >= (2 if row.startswith("exit ") else 3) for row, num in num_mutations.items())
    assert {f"exit {name}" for name in exit_names()} <= ROWS.keys()
