"""Problem sets: named lists of problems, read from JSONL, JSON, CSV or Parquet and versioned by their content.

One row of a file, as JSONL (``answer`` may be missing, all other columns are hidden from those who generate)::

    {"id": "algebra-7", "problem": "Solve $x + 2 = 5$.", "answer": "3", "subject": "algebra", "level": 1}
"""

from pipeline.problems.columns import AnswerForm, ColumnNames
from pipeline.problems.loading import load_problem_set
from pipeline.problems.sets import (
    Problem,
    ProblemSet,
    SetReading,
    check_prompt_lengths,
    check_storable,
    content_sha256,
    hide_columns,
)

__all__ = [
    "AnswerForm",
    "ColumnNames",
    "Problem",
    "ProblemSet",
    "SetReading",
    "check_prompt_lengths",
    "check_storable",
    "content_sha256",
    "hide_columns",
    "load_problem_set",
]
