"""Messages: small, strict, and refused when they are anything else."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from pipeline.samples import ModelRole
from pipeline.seeds import segment_seed
from workers.broker.messages import MAX_SAMPLES, JobMessage, SamplesMessage
from workers.broker.queues import model_queue, own_queue


def test_fullest_message_stays_under_a_kilobyte() -> None:
    message = SamplesMessage(job_id=2**63 - 1, samples=[(2**63 - 1, 2**31 - 1)] * MAX_SAMPLES)
    assert len(orjson.dumps(message.model_dump())) < 1024


@pytest.mark.parametrize(
    "hostile",
    [
        b'{"job_id": 1, "samples": [[1, 0]], "extra": 1}',
        b'{"job_id": "1", "samples": [[1, 0]]}',
        b'{"job_id": 1, "samples": []}',
        b'{"job_id": 1, "samples": [[1]]}',
        b'{"job_id": 1, "samples": [[1, -1]]}',
        b'{"job_id": 1, "samples": [[1, 0.5]]}',
        b'{"job_id": 0, "samples": [[1, 0]]}',
        b'{"version": 2, "job_id": 1, "samples": [[1, 0]]}',
        b'{"job_id": 1, "samples": [' + b",".join([b"[1, 0]"] * (MAX_SAMPLES + 1)) + b"]}",
        b'"text"',
    ],
)
def test_anything_else_is_refused(hostile: bytes) -> None:
    with pytest.raises(ValidationError):
        SamplesMessage.model_validate_json(hostile)


def test_job_message_takes_an_id_only() -> None:
    assert JobMessage.model_validate_json(b'{"job_id": 3}').job_id == 3
    with pytest.raises(ValidationError):
        JobMessage.model_validate_json(b'{"job_id": 3, "code": "x"}')


def test_queue_is_named_by_role_and_model() -> None:
    assert model_queue(ModelRole.SMALL, "Some_Model-1.5B") == "small.Some_Model-1.5B"
    queue = model_queue(ModelRole.SMALL, "org/Some Model-1.5B")
    assert re.fullmatch(r"small\.org-Some-Model-1\.5B~[0-9a-f]{10}", queue)
    names = ("org/Some Model", "org-Some-Model", "org/Some-Model", "org\\Some Model", "größe", "gr-e")
    assert len({model_queue(ModelRole.SMALL, name) for name in names}) == len(names), "one queue for each name"
    assert own_queue(ModelRole.LARGE, "m").startswith("large.m.")
    assert own_queue(ModelRole.LARGE, "m") != own_queue(ModelRole.LARGE, "m")


def test_seed_depends_on_each_of_its_parts_and_on_nothing_else() -> None:
    base: dict[str, Any] = {
        "job_seed": 1,
        "problem_id": "p",
        "sample_index": 0,
        "segment_index": 0,
        "role": ModelRole.SMALL,
    }
    changes: list[dict[str, Any]] = [
        {"job_seed": 2},
        {"problem_id": "q"},
        {"sample_index": 1},
        {"segment_index": 1},
        {"role": ModelRole.LARGE},
    ]
    seeds = [segment_seed(**base), *(segment_seed(**base | change) for change in changes)]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert segment_seed(**base) == seeds[0]
