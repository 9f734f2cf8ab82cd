from __future__ import annotations

from pipeline.db import states
from pipeline.samples import RUNNABLE_STATE, WRITING_STATE, ModelRole


def test_lists_name_the_states_in_their_own_order() -> None:
    assert states.ADMITTED == "('ready', 'drafting', 'awaiting_large', 'assisting')"
    assert states.RUNNABLE == "('ready', 'awaiting_large')"
    assert states.WRITING == "('drafting', 'assisting')"
    assert states.PUBLISHED == "('ready', 'awaiting_large', 'finished')"
    assert states.COMPLETE == "('finished', 'graded')"
    assert states.FINAL == "('graded', 'failed', 'cancelled')"


def test_sample_goes_back_to_where_its_role_is_waited_for() -> None:
    expression = states.waiting_again("s.state")
    for role in ModelRole:
        for state in (RUNNABLE_STATE[role], WRITING_STATE[role]):
            assert f"WHEN '{state}' THEN '{RUNNABLE_STATE[role]}'" in expression
    assert expression.startswith("CASE s.state WHEN")
    assert "ELSE" not in expression, "a state that is none of these must not become one of them"


def test_role_and_model_follow_the_state() -> None:
    assert states.role_of("state") == (
        "CASE state WHEN 'ready' THEN 'small' WHEN 'awaiting_large' THEN 'large' "
        "WHEN 'drafting' THEN 'small' WHEN 'assisting' THEN 'large' END"
    )
    assert (
        states.runnable_state_of("role") == "CASE role WHEN 'small' THEN 'ready' WHEN 'large' THEN 'awaiting_large' END"
    )
    assert (
        states.model_of("role", job="o")
        == "CASE role WHEN 'small' THEN o.small_model WHEN 'large' THEN o.large_model END"
    )
    assert states.model_waited_for("s.state") == (
        "CASE s.state WHEN 'ready' THEN j.small_model WHEN 'awaiting_large' THEN j.large_model END"
    )
    assert states.home_worker("s.state") == (
        "CASE s.state WHEN 'ready' THEN s.small_worker_id WHEN 'awaiting_large' THEN s.large_worker_id END"
    )
