from __future__ import annotations

import re

from pipeline.db import states
from pipeline.samples import FINAL_STATES, RUNNABLE_STATE, WRITING_STATE, ModelRole, SampleState


def test_lists_name_the_states_in_their_own_order() -> None:
    assert states.RUNNABLE == "('ready', 'awaiting_large', 'awaiting_judge')"
    assert states.WRITING == "('drafting', 'assisting', 'judging')"
    assert states.PUBLISHED == "('ready', 'awaiting_large', 'awaiting_judge', 'finished')"
    assert states.COMPLETE == "('finished', 'graded')"
    assert states.FINAL == "('graded', 'failed', 'cancelled')"


def test_phase_is_the_state_but_for_those_of_a_hand_over() -> None:
    admitted = {*RUNNABLE_STATE.values(), *WRITING_STATE.values()}
    for state in admitted:
        assert f"WHEN '{state.value}'::text THEN 'admitted'::character varying" in states.PHASE
    assert states.PHASE.count("WHEN") == len(admitted)
    assert states.PHASE.endswith(" ELSE state END")
    phases = {"admitted" if state in admitted else state.value for state in SampleState}
    named = {phase for condition in (states.OPEN, states.IN_WORK) for phase in re.findall(r"'(\w+)'", condition)}
    assert named == phases - {state.value for state in FINAL_STATES}


def test_sample_goes_back_to_where_its_role_is_waited_for() -> None:
    expression = states.waiting_again("s.state")
    for role in ModelRole:
        for state in (RUNNABLE_STATE[role], WRITING_STATE[role]):
            assert f"WHEN '{state}' THEN '{RUNNABLE_STATE[role]}'" in expression
    assert expression.startswith("CASE s.state WHEN")
    assert "ELSE" not in expression, "a state that is none of these must not become one of them"


def test_role_and_model_follow_the_state() -> None:
    assert states.role_of("state") == (
        "CASE state WHEN 'ready' THEN 'small' WHEN 'awaiting_large' THEN 'large' WHEN 'awaiting_judge' THEN 'judge' "
        "WHEN 'drafting' THEN 'small' WHEN 'assisting' THEN 'large' WHEN 'judging' THEN 'judge' END"
    )
    assert states.runnable_state_of("role") == (
        "CASE role WHEN 'small' THEN 'ready' WHEN 'large' THEN 'awaiting_large' WHEN 'judge' THEN 'awaiting_judge' END"
    )
    assert states.model_of("role", job="o") == (
        "CASE role WHEN 'small' THEN o.small_model WHEN 'large' THEN o.large_model WHEN 'judge' THEN o.judge_model END"
    )
    assert states.model_waited_for("s.state") == (
        "CASE s.state WHEN 'ready' THEN j.small_model WHEN 'awaiting_large' THEN j.large_model "
        "WHEN 'awaiting_judge' THEN j.judge_model END"
    )
    assert states.home_worker("s.state") == (
        "CASE s.state WHEN 'ready' THEN s.small_worker_id WHEN 'awaiting_large' THEN s.large_worker_id "
        "WHEN 'awaiting_judge' THEN s.judge_worker_id END"
    )
