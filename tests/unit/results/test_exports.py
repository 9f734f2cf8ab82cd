"""Results written to files: nothing lost, nothing that a spreadsheet would run, nothing kept in memory."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.results.exports import ExportFormat, csv_text, write_results
from pipeline.results.samples import Result
from pipeline.samples import FinishReason, SampleState
from tests.fuzzing import examples


def make_result(**changes: Any) -> Result:
    result = Result(
        job_id=1, sample_id=7, problem="p", sample_index=0, state=SampleState.GRADED, prompt="2+2?", output="4",
        predicted_answer="4", score=1.0, finish_reason=FinishReason.EOS, output_tokens=9,
        tokens_small=5, tokens_large=4, tokens_inserted=0, discarded_small=0, discarded_large=0, num_takeovers=1,
        num_segments=2, subject=None, level=None, error_class=None, error=None,
        finished_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    )  # fmt: skip
    return replace(result, **changes)


def written(format: ExportFormat, *results: Result) -> bytes:
    output = io.BytesIO()
    assert write_results(results, output, format) == len(results)
    return output.getvalue()


def csv_rows(*results: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written(ExportFormat.CSV, *results).decode(), newline="")))


AWKWARD = 'é\u2028\n"quoted", \x1b[31m {}'


def test_jsonl_has_one_object_a_line_with_every_field() -> None:
    lines = written(ExportFormat.JSONL, make_result(output=AWKWARD), make_result(score=None)).split(b"\n")
    assert len(lines) == 3
    assert lines[2] == b""
    first, second = orjson.loads(lines[0]), orjson.loads(lines[1])
    assert list(first) == [field.name for field in fields(Result)]
    assert (first["output"], first["state"], first["finish_reason"]) == (AWKWARD, "graded", "eos")
    assert second["score"] is None


def test_right_answers_and_metadata_are_in_every_format() -> None:
    result = make_result(
        reference="=4", also_accepted=("four", "4.0"), metadata={"year": 2024, "tags": ["a"]}, seed=7, policy="p",
        small_model="S", rendered_prompt="2+2? Box it.",
    )  # fmt: skip
    (line,) = written(ExportFormat.JSONL, result).splitlines()
    plain = orjson.loads(line)
    assert (plain["reference"], plain["also_accepted"], plain["metadata"]) == (
        "=4", ["four", "4.0"], {"year": 2024, "tags": ["a"]},
    )  # fmt: skip
    (row,) = csv_rows(result)
    (stored,) = parquet.read_table(io.BytesIO(written(ExportFormat.PARQUET, result))).to_pylist()
    for flat in ({**row, "reference": csv_text(row["reference"]), "seed": int(row["seed"])}, stored):
        assert (flat["reference"], flat["seed"], flat["small_model"]) == ("=4", 7, "S")
        assert orjson.loads(str(flat["also_accepted"])) == ["four", "4.0"]
        assert orjson.loads(str(flat["metadata"])) == {"year": 2024, "tags": ["a"]}


def test_csv_comes_back_as_it_was() -> None:
    (row,) = csv_rows(make_result(output=AWKWARD, score=-0.5))
    assert (row["output"], row["state"], row["score"], row["subject"]) == (AWKWARD, "graded", "-0.5", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＠", "'=", "''-"])
def test_csv_texts_cannot_start_a_formula(start: str) -> None:
    (row,) = csv_rows(make_result(output=f"{start}HYPERLINK(1)", predicted_answer=f"{start}1", problem=f"{start}p"))
    assert [row[name] for name in ("output", "predicted_answer", "problem")] == [
        f"'{start}HYPERLINK(1)",
        f"'{start}1",
        f"'{start}p",
    ]


storable = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
formulas = st.builds(
    lambda start, rest: start + rest, st.text(st.sampled_from("'=+-@\t\r\n＝＋－＠,;\"1"), max_size=4), storable
)


@examples(60)
@given(st.one_of(storable, formulas), st.floats(allow_nan=False, allow_infinity=False))
def test_no_cell_is_a_formula_and_every_text_comes_back(written_text: str, score: float) -> None:
    result = make_result(output=written_text, problem=written_text, score=score, subject=written_text or None)
    (row,) = csv_rows(result)
    for name in ("output", "problem", "subject"):
        assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        assert csv_text(row[name]) == written_text
    assert float(row["score"]) == score  # -1 is a number, and stays one
    exact = orjson.loads(written(ExportFormat.JSONL, result))
    (typed,) = parquet.read_table(io.BytesIO(written(ExportFormat.PARQUET, result))).to_pylist()
    assert exact["output"] == typed["output"] == written_text


def test_parquet_keeps_types_and_nothings() -> None:
    table = parquet.read_table(
        io.BytesIO(
            written(ExportFormat.PARQUET, make_result(output=AWKWARD), make_result(score=None, finish_reason=None))
        )
    )
    assert table.column_names == [field.name for field in fields(Result)]
    types = {name: str(table.schema.field(name).type) for name in ("score", "job_id", "state", "finished_at")}
    assert types == {"score": "double", "job_id": "int64", "state": "string", "finished_at": "timestamp[us, tz=UTC]"}
    first, second = table.to_pylist()
    assert (first["output"], first["finished_at"]) == (AWKWARD, make_result().finished_at)
    assert (second["score"], second["finish_reason"]) == (None, None)


@pytest.mark.parametrize("format", list(ExportFormat))
def test_no_results_give_a_file_with_columns_alone(format: ExportFormat) -> None:
    content = written(format)
    if format is ExportFormat.JSONL:
        assert content == b""
    else:
        assert b"predicted_answer" in content


@pytest.mark.parametrize("format", list(ExportFormat))
def test_results_are_written_while_they_come(format: ExportFormat) -> None:
    output = io.BytesIO()
    sizes = []

    def results() -> Iterator[Result]:
        for index in range(3000):
            if index % 1000 == 999:
                sizes.append(output.tell())
            yield make_result(sample_id=index, output=str(index) * 20)

    write_results(results(), output, format)
    assert 0 < sizes[0] < sizes[1] < sizes[2]
