"""The keywords of Client.submit are the fields of a submission."""

from __future__ import annotations

import inspect
from typing import get_type_hints

from pipeline.client import Client
from pipeline.jobs.submission import Submission
from pipeline.submit_options import SubmitOptions


def test_the_keywords_are_the_fields_of_a_submission() -> None:
    assert set(get_type_hints(SubmitOptions)) == set(Submission.model_fields) - {"problems"}
    assert SubmitOptions.__required_keys__ == frozenset()


def test_help_shows_each_of_them() -> None:
    shown = inspect.signature(Client.submit).parameters
    assert list(shown)[:2] == ["self", "problems"]
    assert set(shown) - {"self", "problems"} == set(get_type_hints(SubmitOptions))


def test_submit_takes_them() -> None:
    assert Client.submit.__annotations__["options"] == "Unpack[SubmitOptions]"
