"""Problem files: what is read, and where and why a bad file is refused."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.errors import ProblemSetError
from pipeline.problems import ColumnNames, Problem, ProblemSet, check_prompt_lengths, load_problem_set


def write(folder: Path, content: str | bytes, name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def faults_of(path: Path, **options: Any) -> list[str]:
    with pytest.raises(ProblemSetError) as refused:
        load_problem_set(path, **options)
    assert refused.value.path == str(path)
    return refused.value.faults


def test_jsonl_row_becomes_a_problem(tmp_path: Path) -> None:
    row = '{"id": 7, "problem": "1+1?", "answer": 2.0, "subject": "sums", "level": 3, "year": 2024, "tags": ["a", 1.5]}'
    loaded = load_problem_set(write(tmp_path, row + "\n"))
    assert loaded.name == "set"
    assert loaded.problems == (
        Problem(
            external_id="7",
            prompt="1+1?",
            answer="2.0",
            subject="sums",
            level="3",
            hidden={"year": 2024, "tags": ["a", 1.5]},
        ),
    )
    assert type(loaded.problems[0].answer) is str
    assert type(loaded.problems[0].hidden["year"]) is int


@pytest.mark.parametrize("written", ["1", "1.0", "1e3", "-0", "12345678901234567890123", "true"])
def test_answer_keeps_the_form_of_the_file(tmp_path: Path, written: str) -> None:
    loaded = load_problem_set(write(tmp_path, f'{{"problem": "p", "answer": {written}}}'))
    assert loaded.problems[0].answer == written


def test_bom_blank_lines_and_crlf_are_harmless(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"problem": "a"}\r\n\r\n  \n{"problem": "b"}')
    loaded = load_problem_set(path)
    assert [(problem.external_id, problem.prompt) for problem in loaded.problems] == [("0", "a"), ("1", "b")]
    assert loaded.places == ("line 1", "line 4")


@pytest.mark.parametrize("column", ["problem", "question", "prompt", "input", "Problem", "QUESTION"])
def test_usual_columns_are_found(tmp_path: Path, column: str) -> None:
    assert load_problem_set(write(tmp_path, json.dumps({column: "p?"}))).problems[0].prompt == "p?"


def test_first_usual_column_wins_and_the_others_are_hidden(tmp_path: Path) -> None:
    rows = [{"question": "q", "problem": "p", "solution": "long", "answer": "a"}, {"problem": "p2", "solution": "long"}]
    loaded = load_problem_set(write(tmp_path, "\n".join(map(json.dumps, rows))))
    assert [(problem.prompt, problem.answer) for problem in loaded.problems] == [("p", "a"), ("p2", None)]
    assert [problem.hidden for problem in loaded.problems] == [
        {"question": "q", "solution": "long"},
        {"solution": "long"},
    ]


def test_columns_can_be_named(tmp_path: Path) -> None:
    row = {"problem": "p", "text": "t", "gold": "g", "key": "k", "unit": "u"}
    columns = ColumnNames(problem="text", answer="gold", id="key", subject="unit")
    loaded = load_problem_set(write(tmp_path, json.dumps(row)), name="mine", columns=columns)
    expected = Problem(external_id="k", prompt="t", answer="g", subject="u", hidden={"problem": "p"})
    assert (loaded.name, loaded.problems) == ("mine", (expected,))


def test_named_column_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(write(tmp_path, '{"problem": "p"}'), columns=ColumnNames(answer="gold"))
    assert fault == "line 1: no column 'gold', which was named for the answer; the columns are 'problem'"


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    lines = [
        b'{"problem": "fine", "id": "a"}',
        b'{"problem": "broken',
        b'{"problem": "caf\xe9"}',
        b"",
        b'{"id": "b"}',
        b'{"problem": "again", "id": "a"}',
        b'{"problem": "nul \x00"}',
        b'{"problem": "nul \\u0000"}',
        b'{"problem": ["a", "list"]}',
        b'{"problem": 5}',
        b"[1]",
        b'{"problem": "p", "answer": {"a": 1}}',
        b'{"problem": "p", "problem": "q"}',
        b'{"problem": "p", "answer": NaN}',
        b'{"problem": "half \\ud800"}',
        b'{"problem": "p", "year": 1e999}',
        b'{"problem": "  "}',
        b'{"problem": "p", "deep": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"problem": "p", "deep": ' + b"[" * 100_000,
    ]
    assert faults_of(write(tmp_path, b"\n".join(lines)), max_faults=99) == [
        "line 2: broken JSON: Invalid control character at at column 20",
        "line 3: not UTF-8: byte 0xe9 at byte 17 of the line",
        "line 5: missing problem: 'problem' is empty",
        "line 6: duplicate id 'a': line 1 has it; --column id= numbers the rows instead, --column id=COLUMN+COLUMN "
        "joins columns",
        "line 7: a NUL byte at byte 18 of the line",
        "line 8: a NUL byte (written as \\u0000)",
        "line 9: wrong type: 'problem' must be text or a list of messages",
        "line 10: wrong type: 'problem' must be text, not a number",
        "line 11: not a JSON object but a list",
        "line 12: wrong type: 'answer' must be text or a number, not an object",
        "line 13: the key 'problem' occurs twice in one object",
        "line 14: broken JSON: NaN is not a JSON number",
        "line 15: half a surrogate pair (\\ud800)",
        "line 16: 'year': the number 1e999 is out of range",
        "line 17: missing problem: 'problem' is empty",
        "line 18: 'deep': nested deeper than 100 levels",
        "line 19: broken JSON: nested too deeply",
    ]


def test_only_the_first_faults_are_told(tmp_path: Path) -> None:
    faults = faults_of(write(tmp_path, "{\n" * 50), max_faults=3)
    assert [fault.split(":")[0] for fault in faults] == ["line 1", "line 2", "line 3"]


def test_message_names_file_and_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '{"problem": "p"}\n{')
    with pytest.raises(
        ProblemSetError, match=r"(?s)set\.jsonl was refused, nothing was stored:\n  line 2: broken JSON"
    ):
        load_problem_set(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", " \n\n"), ("a.csv", ""), ("a.csv", "problem\n"), ("a.parquet", "")],
)
def test_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert faults_of(write(tmp_path, content, name)) == ["empty: it holds no problem"]


def test_file_without_a_problem_column_says_what_it_has(tmp_path: Path) -> None:
    (fault,) = faults_of(write(tmp_path, '{"text": "t", "gold": 1}'))
    assert fault.startswith("line 1: missing problem")
    assert fault.endswith("'text', 'gold'")


def test_overlong_line_is_a_fault_and_the_rest_is_read(tmp_path: Path) -> None:
    long = json.dumps({"problem": "x" * 5000})
    path = write(tmp_path, f'{{"problem": "p"}}\n{long}\n{{"problem": 1}}\n')
    faults = faults_of(path, max_line_bytes=1000)
    assert faults == ["line 2: longer than 1000 bytes", "line 3: wrong type: 'problem' must be text, not a number"]


def test_csv_with_quotes_newlines_and_an_index_column(tmp_path: Path) -> None:
    text = ',problem,answer,choices\r\n0,"two\nlines, ""quoted""",2.50,"[""x"", 2.50]"\r\n1,next,,\r\n'
    loaded = load_problem_set(write(tmp_path, text, "set.csv"))
    assert loaded.problems == (
        Problem(
            external_id="0",
            prompt='two\nlines, "quoted"',
            answer="B",
            metadata={"choices": ["x", "2.50"]},
            hidden={"answer": "2.50"},
        ),
        Problem(external_id="1", prompt="next"),
    )
    assert loaded.places == ("line 2", "line 4")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"problem,answer\np,1\n\nq\n", "line 4: 1 cells, but the header has 2"),
        (b'problem,answer\n"a\nb",1\n"open,2\nx,3\n', "line 4: broken CSV: unexpected end of data"),
        (b"problem,answer\np,1\ncaf\xe9,2\n", "line 3: not UTF-8: byte 0xe9 at byte 4 of the line"),
        (b"problem,answer\np,\x00\n", "line 2: a NUL byte at byte 3 of the line"),
        (b"problem,problem\np,q\n", "line 1: the header has the column 'problem' twice"),
        (b"id,problem\n1,p\n1,q\n", "line 3: duplicate id '1': line 2 has it"),
        (b"id,problem\n1,\n", "line 2: missing problem: 'problem' is empty"),
        (b'problem,choices\np,"[1"\n', "line 2: 'choices' starts like a list: broken JSON: Expecting ',' delimiter"),
    ],
)
def test_csv_faults_have_their_line(tmp_path: Path, text: bytes, fault: str) -> None:
    (told,) = faults_of(write(tmp_path, text, "set.csv"))
    assert told.startswith(fault)


def write_parquet(folder: Path, columns: dict[str, list[Any]]) -> Path:
    path = folder / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_types_become_text_and_plain_values(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "question": ["a", "b"],
        "target": [1.0, None],
        "level": [3, 4],
        "choices": [["x", "y"], None],
    }
    loaded = load_problem_set(write_parquet(tmp_path, columns))
    assert loaded.problems == (
        Problem(
            external_id="0",
            prompt="a",
            answer="B",
            level="3",
            metadata={"choices": ["x", "y"]},
            hidden={"target": 1.0},
        ),
        Problem(external_id="1", prompt="b", level="4"),
    )


def test_parquet_faults_have_their_row(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"problem": ["a", None, "c"], "answer": [1, 2, 3]}
    faults = faults_of(write_parquet(tmp_path, columns))
    assert faults == ["row 2: missing problem: 'problem' is empty"]


def test_parquet_of_wrong_type_and_broken_files_are_refused(tmp_path: Path) -> None:
    assert faults_of(write_parquet(tmp_path, {"problem": [1]})) == [
        "row 1: wrong type: 'problem' must be text, not a number"
    ]
    path = write_parquet(tmp_path, {"problem": ["p" * 1000] * 100})
    for content in (b"not parquet", path.read_bytes()[:-20]):
        (fault,) = faults_of(write(tmp_path, content, "cut.parquet"))
        assert fault.startswith("broken Parquet after row 0: ")


@pytest.mark.parametrize(("name", "reason"), [("set.txt", "unknown ending '.txt'"), ("set", "unknown ending ''")])
def test_unknown_ending_lists_the_known(tmp_path: Path, name: str, reason: str) -> None:
    (fault,) = faults_of(write(tmp_path, "x", name))
    known = ".csv, .json, .jsonl, .ndjson, .parquet, .tsv"
    assert fault == f"{reason}; it must be one of {known}, all but .parquet also packed as .gz or .zst"


@pytest.mark.timeout(10)
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    folder, fifo, device, gone, loop = (
        tmp_path / f"{name}.jsonl" for name in ("folder", "fifo", "null", "gone", "loop")
    )
    folder.mkdir()
    os.mkfifo(fifo)
    device.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    assert faults_of(folder) == [
        "a folder without a file that ends in one of .csv, .json, .jsonl, .ndjson, .parquet, .tsv"
    ]
    assert faults_of(fifo) == ["not a regular file (a pipe, socket or device)"]
    assert faults_of(device) == ["not a regular file (a pipe, socket or device)"]
    assert faults_of(gone) == ["No such file or directory"]
    with pytest.raises(ProblemSetError, match="File name too long"):
        load_problem_set(gone.with_name(f"{300 * 'x'}.jsonl"))
    assert "symbolic links" in faults_of(loop)[0]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jsonl"))
        assert faults_of(tmp_path / "s.jsonl") == ["not a regular file (a pipe, socket or device)"]


def test_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(write(tmp_path, '{"problem": "p"}'))
    assert load_problem_set(link).name == "link"


def test_long_prompts_are_told_with_their_line(tmp_path: Path) -> None:
    loaded = load_problem_set(write(tmp_path, '{"problem": "a b"}\n\n{"problem": "a b c d"}\n'))
    check_prompt_lengths(loaded, [2, 4], 4)
    with pytest.raises(ProblemSetError) as refused:
        check_prompt_lengths(loaded, [3, 5], 4)
    assert refused.value.faults == ["line 3: the prompt has 5 tokens, the model takes 4 at most"]
    assert refused.value.path == str(tmp_path / "set.jsonl")


def test_long_prompts_of_a_stored_set_are_told_by_id() -> None:
    problems = tuple(Problem(external_id=str(index), prompt="long") for index in range(5))
    stored = ProblemSet(name="stored", content_sha256="", problems=problems)
    with pytest.raises(ProblemSetError) as refused:
        check_prompt_lengths(stored, [4] * 5, 3, max_faults=2)
    assert refused.value.faults == [
        f"problem '{index}': the prompt has 4 tokens, the model takes 3 at most" for index in range(2)
    ]


def test_reference_answer_is_not_in_the_repr() -> None:
    assert "secret" not in repr(Problem(external_id="1", prompt="p", answer="secret"))
