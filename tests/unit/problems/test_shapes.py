"""The shapes that problem files come in: how they are packed and split, and what their columns hold."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ProblemSetError
from pipeline.problems import AnswerForm, ColumnNames, Problem, ProblemSet, load_problem_set

ROWS = [{"problem": "1+1?", "answer": 2}, {"problem": "1+2?", "answer": "3.0"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(folder: Path, content: str | bytes, name: str = "set.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def load_rows(folder: Path, *rows: dict[str, Any], **columns: Any) -> ProblemSet:
    file = write(folder, "".join(json.dumps(row) + "\n" for row in rows))
    return load_problem_set(file, columns=ColumnNames(**columns))


def load_one(folder: Path, row: dict[str, Any], **columns: Any) -> Problem:
    return load_rows(folder, row, **columns).problems[0]


def faults(path: Path, **options: Any) -> list[str]:
    with pytest.raises(ProblemSetError) as refused:
        load_problem_set(path, **options)
    return refused.value.faults


def answers(loaded: ProblemSet) -> list[str | None]:
    return [problem.answer for problem in loaded.problems]


# Files


def gzipped(content: bytes) -> bytes:
    """The same bytes at any time: no time of packing is in them."""
    return gzip.compress(content, mtime=0)


def zstd(content: bytes) -> bytes:
    with pa.BufferOutputStream() as packed:
        with pa.CompressedOutputStream(packed, "zstd") as output:
            output.write(content)
        return packed.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.jsonl", JSONL.encode()),
        ("set.json", JSONL.encode()),
        ("set.json", json.dumps(ROWS).encode()),
        ("set.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode()),
        ("set.json", json.dumps({"version": [1, 2], "data": ROWS, "note": {"by": "us"}}, indent=1).encode()),
        ("set.jsonl.gz", gzipped(JSONL.encode())),
        ("set.json.gz", gzipped(json.dumps(ROWS).encode())),
        ("set.jsonl.zst", zstd(JSONL.encode())),
        ("set.tsv", b"problem\tanswer\n1+1?\t2\n1+2?\t3.0\n"),
        ("set.csv", b"problem;answer\n1+1?;2\n1+2?;3.0\n"),
        ("set.csv", b'"a, problem";problem;answer\nx;1+1?;2\nx;1+2?;3.0\n'),
        ("set.csv.gz", gzipped(b"problem,answer\n1+1?,2\n1+2?,3.0\n")),
    ],
)
def test_same_rows_in_any_form_are_the_same_problems(tmp_path: Path, name: str, content: bytes) -> None:
    loaded = load_problem_set(write(tmp_path, content, name))
    assert [(problem.prompt, problem.answer) for problem in loaded.problems] == [("1+1?", "2"), ("1+2?", "3.0")]
    assert loaded.name == "set"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"problem": "a"},\n {"problem": }]', "line 2: broken JSON: Expecting value at column"),
        ('[{"problem": "a"},\n {"problem": "b"}', "line 2: broken JSON: ',' expected, not 'the end'"),
        ('[{"problem": "a"},\n\n 7]', "line 3: not a JSON object but a number"),
        ('[{"problem": "a"}]\n[]', "line 2: something follows the end of the JSON value"),
        ('{"problem":\n "a"}', "line 1: a JSON object without an array of objects in it"),
        ('{"a": [{"problem": "x"}],\n "b": [{"problem": "y"}]}', "line 2: it has two arrays of objects: 'a' and 'b'"),
        ('"text"', "line 1: not JSON: neither an array nor an object"),
        ('[{"problem": "a", "problem": "b"}]', "line 1: the key 'problem' occurs twice"),
        ("", "empty: it holds no problem"),
        ("[]", "empty: it holds no problem"),
        ('[{"problem": "a' + "\0" + '"}]', "line 1: a NUL byte in the file"),
        ("[" * 100_000, "line 1: "),
    ],
)
def test_fault_of_an_array_has_its_line(tmp_path: Path, content: str, told: str) -> None:
    assert faults(write(tmp_path, content, "set.json"))[0].startswith(told)


def test_array_longer_than_what_is_read_at_once_keeps_its_lines(tmp_path: Path) -> None:
    rows = [{"problem": f"{number} " + "x" * 900, "id": number} for number in range(300)]
    file = write(tmp_path, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]", "set.json")
    loaded = load_problem_set(file)
    assert [problem.prompt for problem in loaded.problems] == [row["problem"] for row in rows]
    assert (loaded.places[0], loaded.places[299]) == ("line 2", "line 301")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["set.jsonl", "set.csv", "set.json"])
def test_wide_encoding_is_told_by_its_name(tmp_path: Path, encoding: str, name: str) -> None:
    content = json.dumps(ROWS) if name == "set.json" else "problem,answer\n" if name == "set.csv" else JSONL
    (fault,) = faults(write(tmp_path, content.encode(encoding), name))
    assert f"it is {encoding.upper()[:6]}, as Excel and Windows write it; save it as UTF-8" in fault


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_packed_file_that_is_damaged_is_refused(tmp_path: Path, ending: str) -> None:
    packed = gzip.compress(JSONL.encode() * 500) if ending == ".gz" else zstd(JSONL.encode() * 500)
    for content in (packed[: len(packed) // 2], b"not packed at all"):
        assert "broken" in faults(write(tmp_path, content, f"set.jsonl{ending}"))[0]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_packed_file_may_not_grow_beyond_the_limit(tmp_path: Path, ending: str) -> None:
    large = json.dumps({"problem": "x" * 2**20}).encode() + b"\n"
    packed = gzip.compress(large * 20) if ending == ".gz" else zstd(large * 20)
    (fault,) = faults(write(tmp_path, packed, f"set.jsonl{ending}"), max_bytes=2**22)
    assert "unpacked it has more than 4 MiB" in fault


def test_folder_of_shards_is_one_set_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "maths"
    folder.mkdir()
    write(folder, '{"problem": "b", "answer": "2"}\n', "test-00001-of-00002.jsonl")
    write(folder, '{"problem": "a", "answer": "1"}\n', "test-00000-of-00002.jsonl")
    write(folder, "# about", "README.md")
    loaded = load_problem_set(folder)
    assert [problem.prompt for problem in loaded.problems] == ["a", "b"]
    assert loaded.places == ("test-00000-of-00002.jsonl, line 1", "test-00001-of-00002.jsonl, line 1")
    assert loaded.name == "maths"


def test_fault_in_a_shard_names_it(tmp_path: Path) -> None:
    write(tmp_path, '{"problem": "a"}\n', "1.jsonl")
    write(tmp_path, '{"problem": "b"}\n{"problem": ""}\n', "2.jsonl")
    assert faults(tmp_path) == ["2.jsonl, line 2: missing problem: 'problem' is empty"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a.csv", "b.jsonl"), "files of several kinds (.csv, .jsonl)"),
        (("train-0.jsonl", "test-0.jsonl"), "several splits (test, train)"),
        (("README.md",), "a folder without a file that ends in one of"),
    ],
)
def test_folder_that_is_no_one_set_is_refused(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    for name in names:
        write(tmp_path, JSONL, name)
    assert told in faults(tmp_path)[0]


@pytest.mark.parametrize(
    "content",
    [JSONL.encode(), json.dumps(ROWS).encode(), b"problem,answer\n1+1?,2\n1+2?,3.0\n", gzipped(JSONL.encode())],
)
def test_standard_input_is_read_as_what_it_is(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    loaded = load_problem_set("-")
    assert (loaded.name, loaded.source, answers(loaded)) == ("stdin", "standard input", ["2", "3.0"])


# Columns


def test_several_columns_are_joined(tmp_path: Path) -> None:
    row = {"Body": "Three cups.", "Ask": "How many?", "answer": "3"}
    assert load_one(tmp_path, row, problem="Body+Ask").prompt == "Three cups.\n\nHow many?"
    assert load_one(tmp_path, row | {"Body": None}, problem="Body+Ask").prompt == "How many?"


def test_context_that_a_question_needs_is_asked_with_it(tmp_path: Path) -> None:
    assert load_one(tmp_path, {"question": "n+1?", "context": "Let n=3."}).prompt == "Let n=3.\n\nn+1?"


def test_name_with_a_plus_or_a_dot_is_a_column_first(tmp_path: Path) -> None:
    row = {"a+b": "1+1?", "x.y": "2"}
    problem = load_one(tmp_path, row, problem="a+b", answer="x.y")
    assert (problem.prompt, problem.answer) == ("1+1?", "2")


def test_dotted_name_reaches_into_a_value_even_into_json_in_a_text(tmp_path: Path) -> None:
    row = {"data": {"q": "1+1?"}, "reward_model": json.dumps({"ground_truth": ["2"], "style": "rule"})}
    problem = load_one(tmp_path, row, problem="data.q", answer="reward_model.ground_truth.0")
    assert (problem.prompt, problem.answer) == ("1+1?", "2")
    assert problem.hidden.keys() == {"data", "reward_model"}


def test_unknown_column_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ProblemSetError, match="no column 'Body', which was named for the problem; the columns are 'q'"):
        load_one(tmp_path, {"q": "1?"}, problem="Body+q")


def test_ids_that_repeat_are_refused_with_two_ways_out(tmp_path: Path) -> None:
    rows = [{"id": 1, "subject": "a", "question": "1+1?"}, {"id": 1, "subject": "b", "question": "1+2?"}]
    with pytest.raises(ProblemSetError, match="duplicate id '1': line 1 has it; --column id= numbers the rows"):
        load_rows(tmp_path, *rows)
    assert [problem.external_id for problem in load_rows(tmp_path, *rows, id="").problems] == ["0", "1"]
    joined = load_rows(tmp_path, *rows, id="subject+id")
    assert [problem.external_id for problem in joined.problems] == ["a-1", "b-1"]


def test_kept_column_is_shown_and_no_other(tmp_path: Path) -> None:
    file = write(tmp_path, '{"problem": "1?", "hint": "odd", "proof": "long"}\n')
    (problem,) = load_problem_set(file, keep=["hint"]).problems
    assert (problem.metadata, problem.hidden) == ({"hint": "odd"}, {"proof": "long"})
    assert "no column 'tip'" in faults(file, keep=["tip"])[0]


def test_column_of_the_answers_is_shown_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n')
    with pytest.raises(ProblemSetError, match="the column 'answer' has the reference answer"):
        load_problem_set(path, keep=["answer"])


def test_bytes_are_left_out_where_nothing_uses_them_and_refused_by_name_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "set.parquet"
    pq.write_table(pa.table({"problem": ["1?"], "answer": ["2"], "image": [{"bytes": b"\x89PNG"}]}), file)
    loaded = load_problem_set(file)
    assert loaded.reading is not None
    assert (loaded.reading.binary, loaded.problems[0].hidden) == (("image",), {})
    told = "the column 'image' holds bytes, such as an image, which no prompt or answer can have"
    assert faults(file, keep=["image"]) == [f"row 1: {told}"]
    assert faults(file, columns=ColumnNames(problem="problem+image")) == [f"row 1: {told}"]


# Choices and answers

FOUR = ["red", "green", "blue", "black"]


@pytest.mark.parametrize(
    "choices",
    [
        FOUR,
        {"text": FOUR, "label": ["A", "B", "C", "D"]},
        {"A": "red", "B": "green", "C": "blue", "D": "black"},
        [{"label": label, "text": text} for label, text in zip("ABCD", FOUR, strict=True)],
        [{"key": label, "content": text} for label, text in zip("ABCD", FOUR, strict=True)],
        [f"{label}) {text}" for label, text in zip("ABCD", FOUR, strict=True)],
        [f"({label}) {text}" for label, text in zip("ABCD", FOUR, strict=True)],
        json.dumps(FOUR),
        str(FOUR),
    ],
)
@pytest.mark.parametrize("answer", ["C", "c", "(C)", "C.", "blue"])
def test_choices_in_any_shape_are_a_list_and_the_answer_its_letter(tmp_path: Path, choices: Any, answer: str) -> None:
    problem = load_one(tmp_path, {"question": "Sky?", "choices": choices, "answer": answer})
    assert problem.metadata == {"choices": FOUR}
    assert problem.answer == "C"


@pytest.mark.parametrize("names", ["ABCD", ["a", "b", "c", "d"], ["option_a", "option_b", "option_c", "option_d"]])
def test_choices_may_be_columns_of_their_own(tmp_path: Path, names: Any) -> None:
    row = {"question": "Sky?", "answer": "C"} | dict(zip(names, FOUR, strict=True))
    assert load_one(tmp_path, row).metadata == {"choices": FOUR}
    last = names[-1]
    assert load_one(tmp_path, row | {last: None}).metadata == {"choices": FOUR[:3]}
    with pytest.raises(ProblemSetError, match="is empty, and a later choice is not"):
        load_one(tmp_path, row | {names[1]: ""})


def mcq(answer: Any, choices: list[Any] | None = None) -> dict[str, Any]:
    return {"question": "Sky?", "choices": choices or FOUR, "answer": answer}


@pytest.mark.parametrize(
    ("given", "letters"),
    [
        ([0, 2, 3], ["A", "C", "D"]),
        ([1, 2, 4], ["A", "B", "D"]),
        ([2], ["C"]),
        (["0", "2.0"], ["A", "C"]),
        (["a", "D"], ["A", "D"]),
        (["red", "black"], ["A", "D"]),
    ],
)
def test_form_of_the_answers_is_told_apart_by_the_choices(tmp_path: Path, given: list[Any], letters: list[str]) -> None:
    assert answers(load_rows(tmp_path, *map(mcq, given))) == letters


def test_labels_of_the_file_come_before_any_other_reading(tmp_path: Path) -> None:
    row = {"question": "Sky?", "choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answer": "1"}
    assert load_one(tmp_path, row).answer == "A"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([mcq("2", ["1", "2", "3", "4"])], "can be read as numbers from 0 or as numbers from 1 or as texts of choices"),
        ([mcq("2")], "can be read as numbers from 0 or as numbers from 1; say which: --answer-as index0|index1"),
        ([mcq("B", ["B", "A", "C"])], "can be read as letters or as texts of choices"),
        ([mcq(2)] * 20, "can be read as numbers from 0 or as numbers from 1"),
        ([mcq("A"), mcq("violet")], "its answer is none of its 4 choices"),
        ([mcq("red", ["red", "red", "blue"])], "its answer is none of its 3 choices, or fits two of them"),
        ([mcq(0), mcq(4)], "its answer is none of its 4 choices"),
    ],
)
def test_ambiguous_or_impossible_answer_is_refused(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ProblemSetError, match=told.replace("|", r"\|")):
        load_rows(tmp_path, *rows)


def test_ambiguous_answer_is_read_as_one_says(tmp_path: Path) -> None:
    numbers = mcq("2", ["1", "2", "3", "4"])
    for form, letter in ((AnswerForm.INDEX0, "C"), (AnswerForm.INDEX1, "B"), (AnswerForm.TEXT, "B")):
        assert load_one(tmp_path, numbers, answer_as=form).answer == letter


def test_form_of_answers_that_the_file_has_not_is_refused(tmp_path: Path) -> None:
    row = {"question": "Sky?", "answer": "blue"}
    for form in (AnswerForm.LETTER, AnswerForm.INDEX0, AnswerForm.FIRST):
        with pytest.raises(ProblemSetError, match=f"--answer-as {form} is of choices, and no column has them"):
            load_one(tmp_path, row, answer_as=form)
    with pytest.raises(ProblemSetError, match="--answer-as boxed: no column is the answer"):
        load_one(tmp_path, row, answer="", answer_as=AnswerForm.BOXED)
    assert load_one(tmp_path, row, answer_as=AnswerForm.TEXT).answer == "blue"


def test_choices_column_that_holds_no_choices_can_be_done_without(tmp_path: Path) -> None:
    row = {"question": "Sky?", "options": "see below", "answer": "blue"}
    with pytest.raises(ProblemSetError, match="'options' must be a list of choices, not text; --column choices= does"):
        load_one(tmp_path, row)
    problem = load_one(tmp_path, row, choices="")
    assert (problem.metadata, problem.answer, problem.hidden) == ({}, "blue", {"options": "see below"})


def test_list_of_answers_means_what_one_says(tmp_path: Path) -> None:
    row = {"question": "Roots?", "answer": ["4", 7, "4"]}
    with pytest.raises(ProblemSetError, match="'answer' is a list of 3 answers; say what it means: --answer-as one-of"):
        load_one(tmp_path, row)
    one = load_one(tmp_path, row, answer_as=AnswerForm.ONE_OF)
    assert (one.answer, one.also_accepted) == ("4", ("7", "4"))
    every = load_one(tmp_path, row | {"answer": ["4", 7]}, answer_as=AnswerForm.ALL_OF)
    assert (every.answer, every.also_accepted) == ("4, 7", ())
    assert load_one(tmp_path, row | {"answer": ["4"]}).answer == "4"


def test_worked_solutions_are_read_for_their_answers(tmp_path: Path) -> None:
    solved = {"question": "1+1?", "answer": "We add one and one.\n#### 1,002"}
    assert answers(load_rows(tmp_path, solved, solved)) == ["1002", "1002"]
    boxed = {"question": "1+1?", "solution": r"First \boxed{x}, and so \boxed{\frac{1}{\text{\}2}}} it is."}
    assert load_one(tmp_path, boxed).answer == r"\frac{1}{\text{\}2}}"
    with pytest.raises(ProblemSetError, match="'answer' has no #### before its answer"):
        load_rows(tmp_path, solved, {"question": "?", "answer": "no mark"}, answer_as=AnswerForm.HASHES)


# Conversations


def test_conversation_keeps_its_earlier_turns_and_asks_the_last(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"}, {"role": "user", "content": [{"type": "text", "text": "And 1+2?"}]},
    ]  # fmt: skip
    problem = load_one(tmp_path, {"messages": messages, "answer": "3"})
    assert problem.prompt == "And 1+2?"
    assert problem.metadata == {"turns": messages[:3]}


def test_reply_of_an_assistant_is_hidden(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "It is 2."}]
    problem = load_one(tmp_path, {"conversations": talk})
    assert (problem.prompt, problem.metadata) == ("1+1?", {})
    assert problem.hidden["conversations"] == talk


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "system", "content": "Be brief."}], "has no message of the user to answer"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "than text in it, such as an image"),
        ([{"role": "tool", "content": "x"}], "has a message by another than assistant, gpt, human, system, user"),
        ([{"role": "user", "content": 7}], "content is a number, not text"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
         "has a system message after the first message"),
        (["a", "list"], "must be text or a list of messages"),
    ],
)  # fmt: skip
def test_conversation_that_cannot_be_asked_is_refused(tmp_path: Path, messages: Any, told: str) -> None:
    with pytest.raises(ProblemSetError, match=told):
        load_one(tmp_path, {"prompt": messages})


# What spreadsheets, pandas and numpy make of a set


def test_header_with_blanks_has_its_columns(tmp_path: Path) -> None:
    loaded = load_problem_set(write(tmp_path, "question, answer\n1+1?,2\n", "set.csv"))
    assert answers(loaded) == ["2"]


@pytest.mark.parametrize("text", ['{"version": 1, "data": [%s]}', '{"data":\n[%s]}\n'])
def test_object_with_rows_is_read_over_one_line_or_many(tmp_path: Path, text: str) -> None:
    rows = ", ".join(map(json.dumps, ROWS))
    assert answers(load_problem_set(write(tmp_path, text % rows, "set.json"))) == ["2", "3.0"]


def test_one_conversation_in_a_json_file_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "1+1?"}], "answer": 2}
    assert answers(load_problem_set(write(tmp_path, json.dumps(row) + "\n", "set.json"))) == ["2"]


def test_short_floats_keep_the_form_that_they_were_written_in(tmp_path: Path) -> None:
    table = pa.table({"problem": ["a", "b", "c"], "answer": pa.array([0.1, None, 2.5], pa.float32())})
    pq.write_table(table, tmp_path / "set.parquet")
    assert answers(load_problem_set(tmp_path / "set.parquet")) == ["0.1", None, "2.5"]


def test_choices_as_numpy_shows_them_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "question,choices,answer\nq,\"['x' 'y']\",A\n", "set.csv")
    assert "as numpy shows it" in faults(file)[0]
