"""specthink: batch evaluation with Speculative Thinking. The names a user needs; each is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.db.readonly_query import Table
    from pipeline.errors import PipelineError
    from pipeline.frames import Frame
    from pipeline.jobs.config import JobConfig, JobState
    from pipeline.jobs.submission import Submission
    from pipeline.policies.protocol import Policy, Reading, SampleContext, Transition, Watcher
    from pipeline.policies.requests import Answered, Ask, Finish, Generate, Insert, Take, Trigger, Written
    from pipeline.policies.specs import PolicySpec
    from pipeline.problems import ColumnNames, Problem, ProblemSet, load_problem_set
    from pipeline.results.jobs import Job, JobChange
    from pipeline.results.reports import JobProgress, JobStats, JobSummary
    from pipeline.results.samples import Result, SampleReport
    from pipeline.samples import Author, FinishReason, ModelRole, Piece, SampleState, SegmentFinish
    from pipeline.settings import Settings, load_settings
    from pipeline.signals import Signal

__all__ = [
    "Author",
    "Client",
    "ColumnNames",
    "FinishReason",
    "Frame",
    "Job",
    "JobChange",
    "JobConfig",
    "JobProgress",
    "JobState",
    "JobStats",
    "JobSummary",
    "ModelRole",
    "PipelineError",
    "Problem",
    "ProblemSet",
    "Result",
    "SampleReport",
    "SampleState",
    "Settings",
    "Submission",
    "Table",
    "load_problem_set",
    "load_settings",
    # to write a policy
    "Answered",
    "Ask",
    "Finish",
    "Generate",
    "Insert",
    "Piece",
    "Policy",
    "PolicySpec",
    "Reading",
    "SampleContext",
    "SegmentFinish",
    "Signal",
    "Take",
    "Transition",
    "Trigger",
    "Watcher",
    "Written",
]

_HOMES = {
    "client": ("Client",),
    "db.readonly_query": ("Table",),
    "frames": ("Frame",),
    "results.jobs": ("Job", "JobChange"),
    "results.reports": ("JobProgress", "JobStats", "JobSummary"),
    "results.samples": ("Result", "SampleReport"),
    "errors": ("PipelineError",),
    "jobs.config": ("JobConfig", "JobState"),
    "jobs.submission": ("Submission",),
    "problems": ("ColumnNames", "Problem", "ProblemSet", "load_problem_set"),
    "policies.protocol": ("Policy", "Reading", "SampleContext", "Transition", "Watcher"),
    "policies.requests": ("Answered", "Ask", "Finish", "Generate", "Insert", "Take", "Trigger", "Written"),
    "policies.specs": ("PolicySpec",),
    "samples": ("Author", "FinishReason", "ModelRole", "Piece", "SampleState", "SegmentFinish"),
    "settings": ("Settings", "load_settings"),
    "signals": ("Signal",),
}
_HOME = {name: f"pipeline.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
