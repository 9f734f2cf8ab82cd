"""What is mended in kombu's channel; what the transport lets through is tested with real servers."""

from __future__ import annotations

import pytest
from kombu.connection import Connection

from workers.broker.transport import GuardedChannel, guard_redis


def test_channel_of_a_given_up_connection_has_lost_it() -> None:
    guard_redis()
    connection = Connection("redis://127.0.0.1:1/0")
    channel = GuardedChannel.__new__(GuardedChannel)  # its constructor reaches for the server
    channel.connection = transport = connection.transport
    assert channel._connparams()["host"] == "127.0.0.1"
    connection.release()
    with pytest.raises(transport.connection_errors, match="given up"):
        channel._connparams()
