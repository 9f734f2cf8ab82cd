"""Publishing to a real Redis."""

from __future__ import annotations

import redis

from pipeline.db.hops import Runnable
from pipeline.embedded import Connections
from pipeline.samples import SampleState
from workers.app import make_app
from workers.publish import Publisher


def test_queue_of_a_dead_worker_is_deleted_by_another_process(connections: Connections) -> None:
    sample = Runnable(
        sample_id=1,
        job_id=1,
        epoch=0,
        state=SampleState.READY,
        model="m",
        home_queue="small.m.dead",
        resumed=True,
        is_suspect=False,
    )
    Publisher(make_app(connections.redis_url)).publish([sample])
    upkeep = Publisher(make_app(connections.redis_url))
    assert upkeep.depth("small.m.dead") == 1
    upkeep.drop_queue("small.m.dead")
    assert upkeep.depth("small.m.dead") == 0
    with redis.Redis.from_url(connections.redis_url.get_secret_value()) as client:
        assert [key for key in client.scan_iter() if b"dead" in key] == []
