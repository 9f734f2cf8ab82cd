"""An exit that asks, on a real Postgres, with engines that answer from a script: stored, booked, replayed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.replays import get_stored_sample
from pipeline.db.session import transaction
from pipeline.policies import parse_policy
from pipeline.policies.exits import AgreementExit, LargeExtractExit
from pipeline.results.replay import replay
from pipeline.samples import ModelRole
from tests.integration.test_asides import write_all
from tests.integration.test_invariants import CHAT, hire, submit
from workers.engine.base import GenerateRequest
from workers.engine.scripted import Drawn

STEP, TRIED, ANSWER = "First add.\n\n", "{7}", "The result is 7."


def script(request: GenerateRequest) -> Iterable[int | Drawn]:
    """A trial is short; the answer comes after the tag; all else are steps without end."""
    if request.signals:
        return [Drawn(token_id, -0.001, {token_id: -0.001}) for token_id in CHAT.encode_text(TRIED)]
    is_over = CHAT.encode_text("</think>")[0] in request.prompt_ids[-8:]
    return CHAT.encode_text(ANSWER if is_over else STEP * 8)


@pytest.mark.parametrize(
    ("exit", "num_trials"), [(AgreementExit(every_steps=1), 3), (LargeExtractExit(every_steps=2, agree=2), 2)]
)
def test_an_exit_that_asks_is_stored_booked_and_replayed(
    db_engine: DbEngine, exit: AgreementExit | LargeExtractExit, num_trials: int
) -> None:
    members = [hire(db_engine, role, script=script) for role in (ModelRole.SMALL, ModelRole.LARGE)]
    job = submit(db_engine, policy=parse_policy("small-only"), exit=exit)
    write_all(db_engine, *members)
    with transaction(db_engine) as connection:
        for sample_id in connection.execute(text("SELECT id FROM samples")).scalars().all():
            sample = get_stored_sample(connection, sample_id)
            assert [aside.purpose for aside in sample.asides] == ["trial"] * num_trials
            assert sample.asides[-1].outcome == "exit"
            assert [segment.trigger for segment in sample.segments[-2:]] == ["exit", "answer"]
            found = replay(sample)
            assert (found.divergence, found.num_asides) == (None, num_trials)
    for member in members:
        counters = member.writer.counters()
        assert counters.tokens_committed == counters.tokens_generated
        member.say_goodbye(db_engine)
    with snapshot(db_engine) as connection:
        assert check_job(connection, job) == []
    for member in members:
        member.writer.close()
        member.engine.close()
