"""Postgres and Redis without installing a server, under one state folder, with the workers beside them; Linux only.

state = start(state_dir)                      # both servers ready; a second call finds them running
migrate.upgrade(open_database(state.connections.database_url))
state.add_programs([Program(name="grade", argv=("specthink", "worker", "grade"))])
state.start_program("grade")
stop(state_dir)                               # what start() started, and nothing else
"""

from pipeline.embedded.connections import Connections, find_connections, is_running, resolve_connections, resolve_redis
from pipeline.embedded.opening import GATE, Listen, Opened, renew_gate
from pipeline.embedded.postgres import LOGINS as EMBEDDED_LOGINS
from pipeline.embedded.state import SERVERS, EmbeddedState, find_running, purge, start, stop
from pipeline.embedded.supervision import Program, ProgramPhase, ProgramState

__all__ = [
    "EMBEDDED_LOGINS",
    "GATE",
    "SERVERS",
    "Connections",
    "EmbeddedState",
    "Listen",
    "Opened",
    "Program",
    "ProgramPhase",
    "ProgramState",
    "find_connections",
    "find_running",
    "is_running",
    "purge",
    "renew_gate",
    "resolve_connections",
    "resolve_redis",
    "start",
    "stop",
]
