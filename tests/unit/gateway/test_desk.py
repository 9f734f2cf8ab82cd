"""Which requests share a job, and which problem each is."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.batches import Caller
from pipeline.gateway.desk import Waiting, apart, question_id
from pipeline.gateway.requests import parse_request, read_request


def waiting(content: str, **changes: Any) -> Waiting:
    body = {"model": "pair", "messages": [{"role": "user", "content": content}], **changes}
    asked = read_request(parse_request(body), external_id="chat")
    loop = asyncio.new_event_loop()
    loop.close()
    return Waiting(asked=asked, caller=Caller(), request_sha256="", is_retry=False, loop=loop)


def test_seeded_question_is_one_problem_whoever_asks() -> None:
    first = question_id(waiting("1+1?", seed=7).asked)
    assert first is not None
    assert first == question_id(waiting("1+1?", seed=7, user="ann").asked)
    assert first != question_id(waiting("Twice?", seed=7).asked)
    assert question_id(waiting("1+1?").asked) is None, "without a seed each is another draw"


def test_no_job_has_a_seeded_question_twice() -> None:
    group = [waiting("1+1?", seed=7), waiting("1+1?", seed=7), waiting("Twice?", seed=7), waiting("1+1?", seed=7)]
    assert apart(group) == [[group[0], group[2]], [group[1]], [group[3]]]
    drawn = [waiting("1+1?"), waiting("1+1?")]
    assert apart(drawn) == [drawn]
    assert apart([]) == []
