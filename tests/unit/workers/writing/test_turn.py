"""A sample's turn: what an engine is asked, what stays in the claim, what is committed. No engine, no database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.chat.translation import ThinkPhase, ThinkTagTranslator, settle_think_phase
from pipeline.db.commits import SampleCommit
from pipeline.errors import BadProblem, ConfigurationError, DamagedRow, EngineRefused, PipelineError, PromptTooLong
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.policies import parse_policy
from pipeline.policies.exits import ThinkBrakeExit
from pipeline.policies.protocol import Reading
from pipeline.policies.requests import Answered, Ask, Event, Finish, Generate, Insert, Take, Written, request_to_json
from pipeline.policies.reward import RsdSpec
from pipeline.samples import (
    WRITING_ROLES,
    Author,
    ErrorClass,
    FinishReason,
    ModelRole,
    Piece,
    SampleState,
    SegmentFinish,
)
from pipeline.seeds import aside_seed, segment_seed
from pipeline.signals import Signal
from tests.turns import (
    PROBLEM,
    Move,
    Moves,
    as_claimed,
    babble,
    chat_of,
    claimed,
    commit_of,
    request_of,
    result_of,
    setup_of,
    start,
    walk,
)
from tests.unit.chat.test_translation import make_chat
from workers.writing import turn
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch
from workers.writing.turn import apply_result, begin, commit_gathered, error_class, failed

SMALL, LARGE, JUDGE = ModelRole.SMALL, ModelRole.LARGE, ModelRole.JUDGE
EMPTY_PIECE = Piece(token_ids=(), texts=())


def small(max_tokens: int = 50, **more: Any) -> Generate:
    return Generate(role=SMALL, max_tokens=max_tokens, trigger="start", **more)


def large(max_tokens: int = 50, **more: Any) -> Generate:
    return Generate(role=LARGE, max_tokens=max_tokens, trigger="reflection", takes_over=True, **more)


def then(decision: Any, **more: Any) -> Move:
    """Keep all that was written, and go on."""

    def move(event: Event | None) -> dict[str, Any]:
        keep = {"keep": len(event.piece)} if isinstance(event, Written) else {}
        return {"then": decision, **keep, **more}

    return move


def end(**more: Any) -> Move:
    return then(Finish(reason=FinishReason.EOS), **more)


def seed_of(index: int, role: ModelRole = SMALL) -> int:
    return segment_seed(job_seed=7, problem_id="p", sample_index=0, segment_index=index, role=role)


# One request.


def test_a_fresh_sample_begins_with_its_prompt() -> None:
    active, step = start(setup_of(Moves([then(small())])))
    request = request_of(step)
    assert request.request_id == active.request_id != start(setup_of(Moves([then(small())])))[0].request_id
    assert (request.max_tokens, request.priority, request.seed) == (50, 0, seed_of(0))
    assert list(request.prompt_ids) == setup_of(Moves([])).prompt_ids(1, claimed().problem)
    assert (request.signals, request.labels, request.reads_top) == (frozenset(), {}, False)


def test_a_request_is_as_long_as_the_context_has_room() -> None:
    prompt = len(setup_of(Moves([])).prompt_ids(1, claimed().problem))
    _, step = start(setup_of(Moves([then(small())]), max_model_len=prompt + 9))
    assert request_of(step).max_tokens == 9


def test_signals_are_asked_for_and_given_to_the_policy() -> None:
    seen: list[Event | None] = []

    def move(event: Event | None) -> dict[str, Any]:
        seen.append(event)
        reading = Reading(value=0, threshold=1.5, outcome="go_on")
        return {"keep": 1, "then": Finish(reason=FinishReason.EOS), "reading": reading}

    active, step = start(setup_of(Moves([then(small(signals=frozenset({Signal.LOGPROB}))), move])))
    request = request_of(step)
    assert (request.signals, request.think_end_id) == (frozenset({Signal.LOGPROB}), chat_of(SMALL).think_end_id)
    signals = {Signal.LOGPROB: (-0.5, -0.25)}
    commit = commit_of(apply_result(active, result_of(request, "First add", signals=signals)))
    [event] = seen
    assert isinstance(event, Written)
    assert event.signals == signals
    [segment] = commit.segments
    assert (segment.signals, segment.num_kept) == (signals, 1)
    assert (segment.value, segment.threshold, segment.outcome) == (0.0, 1.5, "go_on")


# Staying.


def test_what_the_same_role_does_next_is_done_in_the_same_claim() -> None:
    active, step = start(setup_of(Moves([then(small()), then(small()), then(large())])))
    first = request_of(step)
    second = request_of(apply_result(active, result_of(first, "First add")))
    added = chat_of(SMALL).encode_text("First add")
    assert list(second.prompt_ids) == [*first.prompt_ids, *added]
    assert (second.request_id, second.seed, second.priority) == (first.request_id, seed_of(1), -4)
    commit = commit_of(apply_result(active, result_of(second, " 3", SegmentFinish.LENGTH)))
    assert commit.to_state is SampleState.AWAITING_LARGE
    assert commit.next_request == large()
    assert [segment.kept.text for segment in commit.segments] == ["First add", " 3"]
    assert [segment.wait_seconds for segment in commit.segments] == [0.5, None], "it waited once"
    assert commit.policy_state == {"count": 3}
    assert (active.num_tokens, commit.tokens_generated) == (4, 4)


def test_a_claim_ends_where_the_worker_wants_to_stop() -> None:
    active, step = start(setup_of(Moves([then(small()), then(small())])))
    commit = commit_of(apply_result(active, result_of(request_of(step), "First"), may_stay=False))
    assert (commit.to_state, commit.next_request) == (SampleState.READY, small())


def test_a_claim_ends_after_so_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "STAY_TOKENS", 3)
    active, step = start(setup_of(Moves([then(small())] * 9)))
    step = apply_result(active, result_of(request_of(step), "First add"))
    commit = commit_of(apply_result(active, result_of(request_of(step), " 3")))
    assert (commit.to_state, len(commit.segments)) == (SampleState.READY, 2)


def test_a_request_may_be_longer_than_what_a_claim_gathers() -> None:
    setup = setup_of("speculative-thinking:improved", max_model_len=9_000, max_tokens=8_000)
    active, step = start(setup)
    assert request_of(step).max_tokens == 8_000 > turn.STAY_TOKENS
    text = "First add.\n\nThen go on. " * 400
    assert len(chat_of(ModelRole.SMALL).encode_text(text)) > turn.STAY_TOKENS
    commit = commit_of(apply_result(active, result_of(request_of(step), text, SegmentFinish.EOS)))
    assert (commit.to_state, len(commit.segments)) == (SampleState.FINISHED, 1), "one request, one segment"


def test_a_claim_ends_after_so_many_requests() -> None:
    active, step = start(setup_of(Moves([then(small())] * 99)))
    count = 0
    while not isinstance(step, SampleCommit):
        count += 1
        step = apply_result(active, result_of(request_of(step), EMPTY_PIECE))
    assert count == turn.STAY_REQUESTS


@pytest.mark.parametrize("policy", ["improved", "paper", "code"])
def test_staying_changes_no_text(policy: str) -> None:
    setups = {role: setup_of(f"speculative-thinking:{policy}", role) for role in WRITING_ROLES}
    stayed, hopped = walk(setups, babble), walk(setups, babble, may_stay=False)
    assert [replace(g, epoch=0) for g in stayed.segments] == [
        replace(g, epoch=0, wait_seconds=w.wait_seconds) for g, w in zip(hopped.segments, stayed.segments, strict=True)
    ]
    assert [request.prompt_ids for request in stayed.requests] == [request.prompt_ids for request in hopped.requests]
    assert stayed.commits[-1].steps == hopped.commits[-1].steps
    assert {segment.author for segment in stayed.segments} >= {Author.SMALL, Author.LARGE}
    assert len(stayed.commits) <= len(hopped.commits)
    if policy == "code":
        assert len(stayed.commits) < len(hopped.commits), "small looks ahead and goes on"


def test_takeovers_are_what_the_policy_calls_so() -> None:
    setups = {role: setup_of("speculative-thinking:improved", role) for role in WRITING_ROLES}
    way = walk(setups, babble)
    assert {segment.author for segment in way.segments if segment.takes_over} == {Author.LARGE}
    in_steps = [step.trigger for step in way.commits[-1].steps if step.trigger]
    assert in_steps, "the steps say where large was called in"


# No room.


def test_a_first_prompt_without_room_fails_the_sample() -> None:
    with pytest.raises(PromptTooLong):
        start(setup_of(Moves([then(small())]), max_model_len=5))


@pytest.mark.parametrize("policy", ["specreason:doubt", "mentor", "glimpse"])
def test_a_first_prompt_without_room_fails_whichever_way_small_writes(policy: str) -> None:
    config = JobConfig(
        small=ModelSpec(name="S"),
        large=ModelSpec(name="L"),
        policy=parse_policy(policy, {"words": ["Wait"]} if ":" in policy else {}),
    )
    chat = chat_of(SMALL)
    setup = JobSetup.of(config, settle_think_phase(chat), chat, role=SMALL, max_model_len=5)
    with pytest.raises(PromptTooLong, match="leave no room in a context of 5"):
        start(setup)


def full(written: str = "First add 3") -> tuple[int, list[Move], list[Event | None]]:
    """A context that has room for just this, and moves that write it and then find no room."""
    seen: list[Event | None] = []

    def last(event: Event | None) -> dict[str, Any]:
        seen.append(event)
        assert isinstance(event, Written)
        return {"keep": 0, "then": Finish(reason=FinishReason.CONTEXT)}

    room = len(setup_of(Moves([])).prompt_ids(1, claimed().problem)) + len(chat_of(SMALL).encode_text(written))
    signals = frozenset({Signal.LOGPROB})
    return room, [then(small()), then(small(max_tokens=20, signals=signals)), last], seen


def test_without_room_nothing_is_sent_and_the_policy_decides() -> None:
    room, moves, seen = full()
    active, step = start(setup_of(Moves(moves), max_model_len=room))
    commit = commit_of(apply_result(active, result_of(request_of(step), "First add 3", SegmentFinish.LENGTH)))
    [event] = seen
    assert event == Written(
        role=SMALL, piece=EMPTY_PIECE, finish=SegmentFinish.LENGTH, start_token=4, signals={Signal.LOGPROB: ()}
    )
    assert (commit.to_state, commit.finish_reason) == (SampleState.FINISHED, FinishReason.CONTEXT)
    empty = commit.segments[-1]
    assert (len(empty.piece), empty.finish, empty.tokens_generated) == (0, SegmentFinish.LENGTH, 0)
    assert (empty.prompt_tokens, empty.seed) == (0, None), "no engine had it"


def test_a_text_of_asides_alone_may_fill_the_context() -> None:
    room, [_, _, last], seen = full()
    ask = Ask(role=SMALL, purpose="draft", greedy=False, max_tokens=9)
    moves = [then(ask), then(small(), insert=(Take(index=0, num_tokens=4),)), last]
    active, step = start(setup_of(Moves(moves), max_model_len=room))
    commit = commit_of(apply_result(active, result_of(request_of(step), "First add 3", SegmentFinish.LENGTH)))
    assert [type(event) for event in seen] == [Written]
    assert (commit.to_state, commit.finish_reason) == (SampleState.FINISHED, FinishReason.CONTEXT)


@pytest.mark.parametrize("stay", [True, False])
def test_a_policy_that_goes_on_without_room_fails_its_sample(stay: bool) -> None:
    room, moves, _ = full()
    moves = [*moves[:2], then(small()), then(small())]
    setup = setup_of(Moves(moves), max_model_len=room)
    active, step = start(setup)
    result = result_of(request_of(step), "First add 3", SegmentFinish.LENGTH)
    if stay:
        with pytest.raises(PipelineError, match="nobody has room"):
            apply_result(active, result)
        return
    sample = as_claimed(active.sample, commit_of(apply_result(active, result, may_stay=False)))
    with pytest.raises(PipelineError, match="nobody has room"):
        begin(sample, setup, Latch(1))


def test_an_ask_without_room_is_answered_with_nothing() -> None:
    seen: list[Event | None] = []

    def note(event: Event | None) -> dict[str, Any]:
        seen.append(event)
        return {"then": Finish(reason=FinishReason.EOS)}

    ask = Ask(role=SMALL, purpose="rate", question=" So", max_tokens=4)
    room, moves, _ = full()
    active, step = start(setup_of(Moves([moves[0], then(ask), note]), max_model_len=room))
    commit = commit_of(apply_result(active, result_of(request_of(step), "First add 3")))
    assert seen == [Answered(index=0, role=SMALL, piece=EMPTY_PIECE, finish=SegmentFinish.LENGTH, start_token=4)]
    [aside] = commit.asides
    assert (len(aside.piece), aside.tokens_generated, aside.labels, aside.top) == (0, 0, {}, ())


def test_who_is_further_on_goes_first() -> None:
    moves = [then(small()), then(large()), then(small()), then(large()), end()]
    policy = Moves(moves)
    fresh, step = start(setup_of(policy))
    requests = [request_of(step)]
    sample = fresh.sample
    commit = commit_of(apply_result(fresh, result_of(requests[0], "First")))
    for role in (LARGE, SMALL, LARGE):
        sample = as_claimed(sample, commit)
        active, step = begin(sample, setup_of(policy, role=role), Latch(1))
        requests.append(request_of(step))
        commit = commit_of(apply_result(active, result_of(requests[-1], " 3")))
    assert [request.priority for request in requests] == [0, -2, -4, -4], "new, new here, and twice not new"
    assert {request.context for request in requests} == {sample.sample_id}


# Asides.


def test_an_ask_is_written_beside_the_text() -> None:
    ask = Ask(role=SMALL, purpose="choose", question=" So", labels=("3", "4"), max_tokens=1)
    active, step = start(setup_of(Moves([then(small()), then(ask), then(small()), end()])))
    first = request_of(step)
    asked = request_of(apply_result(active, result_of(first, "First add")))
    chat = chat_of(SMALL)
    assert list(asked.prompt_ids) == [*first.prompt_ids, *chat.encode_text("First add"), *chat.encode_text(" So")]
    assert (asked.priority, asked.seed, asked.sampling.temperature, asked.max_tokens) == (-5, None, 0.0, 1)
    assert (set(asked.labels), asked.reads_top) == ({"3", "4"}, True)
    answer = result_of(asked, " 3", SegmentFinish.LENGTH, labels={"3": -0.1, "4": None}, top=(-0.1, -3.0))
    after = request_of(apply_result(active, answer))
    assert list(after.prompt_ids) == list(asked.prompt_ids)[: -len(chat.encode_text(" So"))], "it is not in the text"
    assert after.seed == seed_of(1), "an aside is no segment"
    commit = commit_of(apply_result(active, result_of(after, " 4")))
    [aside] = commit.asides
    assert (aside.aside_index, aside.after_segment, aside.author, aside.purpose) == (0, 1, Author.SMALL, "choose")
    assert (aside.labels, aside.top, aside.piece.text) == ({"3": -0.1, "4": None}, (-0.1, -3.0), " 3")
    assert [segment.kept.text for segment in commit.segments] == ["First add", " 4"]
    assert commit.tokens_generated == active.num_tokens


def test_an_ask_may_be_drawn_and_stand_after_heads_of_others() -> None:
    first = Ask(role=SMALL, purpose="try", greedy=False, max_tokens=9)
    second = Ask(role=SMALL, purpose="check", question=" So", after=((0, 2),), greedy=False)
    active, step = start(setup_of(Moves([then(first), then(second), end()])))
    one = request_of(step)
    two = request_of(apply_result(active, result_of(one, "First add 3")))
    chat = chat_of(SMALL)
    assert list(two.prompt_ids) == [*one.prompt_ids, *chat.encode_text("First add"), *chat.encode_text(" So")]
    assert [one.seed, two.seed] == [
        aside_seed(job_seed=7, problem_id="p", sample_index=0, aside_index=index, role=SMALL) for index in (0, 1)
    ]
    assert one.sampling.temperature == 0.6
    commit = commit_of(apply_result(active, result_of(two, " is")))
    assert [(aside.after_segment, aside.after_asides) for aside in commit.asides] == [(0, ()), (0, ((0, 2),))]


def test_a_question_may_be_a_turn_of_its_own() -> None:
    ask = Ask(role=SMALL, purpose="rate", question="Is it right?", turn=True, opening="</think>So")
    active, step = start(setup_of(Moves([then(small()), then(ask), end()])))
    first = request_of(step)
    asked = request_of(apply_result(active, result_of(first, "First add")))
    chat = chat_of(SMALL)
    rest = list(asked.prompt_ids)[len(first.prompt_ids) + 2 :]
    text = chat.tokenizer.decode(rest, skip_special_tokens=False)
    assert text == "<|end|><|user|>Is it right?<|end|><|assistant|><think>\n</think>So"
    assert chat.think_end_id in rest


def test_the_head_of_an_aside_is_taken_into_the_text() -> None:
    ask = Ask(role=SMALL, purpose="try", greedy=False, max_tokens=9)
    take = Take(index=0, num_tokens=2)
    active, step = start(setup_of(Moves([then(ask), then(small(), insert=(take, Insert(text=" So", trigger="x")))])))
    request = request_of(apply_result(active, result_of(request_of(step), "First add 3")))
    added = [*chat_of(SMALL).encode_text("First add"), *chat_of(SMALL).encode_text(" So")]
    assert list(request.prompt_ids)[-len(added) :] == added
    taken, inserted = active.segments
    assert (taken.author, taken.trigger, taken.taken_from, taken.kept.text) == (Author.SMALL, "try", 0, "First add")
    assert (taken.tokens_generated, taken.finish, taken.seed) == (0, None, None)
    assert (inserted.author, inserted.taken_from) == (Author.INSERTED, None)


def test_an_aside_is_taken_by_whoever_has_the_sample_then() -> None:
    """Small tries, large judges and takes: the aside comes with the claim, its ids and its engine with it."""
    tries = Ask(role=SMALL, purpose="try", greedy=False, max_tokens=9)
    judges = Ask(role=LARGE, purpose="judge", after=((0, 3),), question=" So")
    moves = [then(tries), then(judges), end(insert=(Take(index=0, num_tokens=2),))]
    active, step = start(setup_of(Moves(moves)))
    commit = commit_of(apply_result(active, result_of(request_of(step), "First add 3")))
    assert (commit.to_state, commit.segments) == (SampleState.AWAITING_LARGE, ())
    sample = as_claimed(active.sample, commit)
    active, step = begin(sample, setup_of(Moves(moves), LARGE), Latch(1))
    commit = commit_of(apply_result(active, result_of(request_of(step), " is", SegmentFinish.LENGTH)))
    [judged], [taken] = commit.asides, commit.segments
    assert (judged.author, judged.aside_index) == (Author.LARGE, 1)
    assert (taken.author, taken.kept.text, taken.engine_id) == (Author.SMALL, "First add", 1)


# What a policy must not do.


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([then(small()), then(small(), keep=None)], "keeps None of 2"),
        ([then(small()), then(small(), keep=3)], "keeps 3 of 2"),
        ([then(Ask(role=SMALL, purpose="x")), then(small(), keep=1)], "only Take keeps"),
        ([then(small()), then(small(), insert=(Take(index=0, num_tokens=1),))], "names aside 0"),
        ([then(Ask(role=SMALL, purpose="x")), end(insert=(Take(index=0, num_tokens=3),))], "takes 3 tokens of aside 0"),
        ([then(small()), lambda event: {"keep": 2, "then": small(takes_over=True)}], "lets small take over"),
        (
            [then(small()), end(reading=Reading(value=float("inf"), threshold=0.0, outcome="x"))],
            "no number that can be stored",
        ),
    ],
)
def test_a_transition_that_cannot_be_carried_out_is_refused(moves: list[Move], message: str) -> None:
    active, step = start(setup_of(Moves(moves)))
    with pytest.raises(PipelineError, match=f"^policy speculative-thinking:improved:? .*{message}"):
        apply_result(active, result_of(request_of(step), "First add"))


def test_a_policy_that_opens_with_another_role_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"^policy speculative-thinking:improved opens with"):
        start(setup_of(Moves([then(large())])))


# What is stored of it.


def stored_request(**changes: Any) -> dict[str, Any]:
    return {**request_to_json(small()), **changes}


@pytest.mark.parametrize(
    "fields",
    [
        {"policy_state": {"count": 1}, "next_request": None},
        {"policy_state": None, "next_request": stored_request()},
        {"policy_state": {"count": 1}, "next_request": stored_request(max_tokens="many")},
        {"policy_state": {"count": 1}, "next_request": stored_request(version=2)},
        {"policy_state": {"count": 1}, "next_request": stored_request(role="large")},
        {"policy_state": {"count": 1}, "next_request": "small"},
    ],
)
def test_a_damaged_row_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DamagedRow) as error:
        start(setup_of(Moves([then(small())])), **fields)
    assert error_class(error.value) is ErrorClass.INTERNAL


def test_what_was_gathered_can_be_committed_before_the_request_that_runs() -> None:
    setup = setup_of(Moves([then(small()), then(small(max_tokens=7)), end()]))
    active, step = start(setup)
    assert commit_gathered(active) is None
    apply_result(active, result_of(request_of(step), "First add"))
    commit = commit_gathered(active)
    assert commit is not None
    assert (commit.to_state, commit.next_request, len(commit.segments)) == (SampleState.READY, small(7), 1)
    _, again = begin(as_claimed(active.sample, commit), setup, Latch(1))
    assert active.engine_request is not None
    assert (request_of(again).prompt_ids, request_of(again).seed) == (
        active.engine_request.prompt_ids,
        active.engine_request.seed,
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PromptTooLong("S", 9, 8), ErrorClass.BUDGET),
        (EngineRefused("S", "no"), ErrorClass.ENGINE_REFUSED),
        (BadProblem("p", ValueError("x")), ErrorClass.BAD_INPUT),
        (DamagedRow("x"), ErrorClass.INTERNAL),
        (ZeroDivisionError("x"), ErrorClass.INTERNAL),
    ],
)
def test_a_failure_says_what_kind_it_is(error: Exception, kind: ErrorClass) -> None:
    commit = failed(claimed(), error)
    assert (commit.claim, commit.to_state, commit.error_class) == ((5, 1), SampleState.FAILED, kind)
    assert type(error).__name__ in (commit.error or "")


def test_what_the_policy_puts_in_has_the_models_own_tags(tmp_path: Path) -> None:
    chat = make_chat(tmp_path / "mistral", tags=("[THINK]", "[/THINK]"))
    translator = ThinkTagTranslator(chat, ThinkPhase(start="<think>", end="</think>", opened=True))
    closing = then(small(), insert=(Insert(text="\n</think>\n\n", trigger="exit"),))
    setup = replace(setup_of(Moves([closing])), chat=chat, translator=translator)
    active, step = start(setup)
    [inserted] = active.segments
    assert inserted.kept.text == "\n</think>\n\n"
    assert chat.think_end_id in inserted.kept.token_ids
    assert list(request_of(step).prompt_ids)[-len(inserted.kept) :] == list(inserted.kept.token_ids)


def test_an_exit_that_reads_the_closing_tag_needs_a_token_for_it(tmp_path: Path) -> None:
    config = JobConfig(
        small=ModelSpec(name="S"), large=ModelSpec(name="L"), policy=parse_policy("glimpse"), exit=ThinkBrakeExit()
    )
    phase = ThinkPhase(start="<think>", end="</think>", opened=True)
    for number, (tags_as_tokens, role) in enumerate([(True, SMALL), (False, LARGE)]):
        chat = make_chat(tmp_path / f"{number}", tags_as_tokens=tags_as_tokens)
        assert JobSetup.of(config, phase, chat, role=role, max_model_len=2048).config.exit
    with pytest.raises(ConfigurationError, match="no token of its own for '</think>'"):
        JobSetup.of(config, phase, chat, role=SMALL, max_model_len=2048)


def test_a_judge_reads_the_problem_as_it_was_asked() -> None:
    """Earlier turns and choices, and no instruction of the prompt template's."""
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    problem = replace(PROBLEM, metadata={"choices": ["six", "seven"], "turns": turns})
    ask = RsdSpec(good="A", bad="B").ask("reward")
    moves = Moves([then(small()), then(ask), end()])
    active, step = start(setup_of(moves), problem=problem)
    commit = commit_of(apply_result(active, result_of(request_of(step), "First add 3")))
    _, step = begin(as_claimed(active.sample, commit), setup_of(moves, JUDGE), Latch(1))
    shown = chat_of(JUDGE).tokenizer.decode(list(request_of(step).prompt_ids))
    asked = "[user]\nHi.\n\n[assistant]\nHello.\n\n[user]\nStart at 3. Add 4. What is the result?\n\n(A) six\n(B) seven"
    assert f"{asked}\n\nSteps of a solution:\n\nFirst add 3\n\nIs the last" in shown


def test_a_watcher_reads_along() -> None:
    class Ends:
        def feed(self, text: str, readings: Any = None) -> bool:
            return text == " add"

    _, step = start(setup_of(Moves([then(small())], watch=Ends)))
    watching = request_of(step).watcher
    assert watching is not None
    assert [watching.feed("First"), watching.feed(" add")] == [False, True]
