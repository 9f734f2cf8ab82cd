"""Hostile problem files: whatever its bytes are, a file gives a problem set, or is refused with place and reason."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from pipeline.errors import ProblemSetError
from pipeline.problems import ProblemSet, check_storable, content_sha256, decode_parquet, load_problem_set
from pipeline.problems.files import read_rows
from pipeline.problems.lines import Fault, Row, UnreadableFile
from pipeline.problems.parquet_rows import parse_decoded
from tests.fuzzing import examples

Edit = tuple[int, int, bytes]

JSONL = (
    b'{"id": "a-1", "problem": "What is $1+1$?", "answer": 2, "level": 1.0, "tags": ["x", {"y": null}]}\n'
    b'{"id": "a-2", "problem": "caf\xc3\xa9 \\ud83d\\ude00", "answer": "\\\\frac12", "choices": ["3", 4]}\r\n'
)
CSV = b'\xef\xbb\xbfid,problem,answer,choices\n1,"two\nlines, ""quoted""",4,"[""x"", 2.50]"\r\n2,next,,\n'
SPLINTERS = [
    b"\0", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b'"', b'""', b"'", b",", b"\n", b"\r", b"\r\n", b"\\", b"{", b"}",
    b"[", b"]", b":", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"-", b"9" * 5000, b"[" * 2000,
    b'{"a":' * 2000, b'"problem"', b"null", b"true", b" ", b"\t", b"\xe2\x80\xa8", b"a" * 3000,
]  # fmt: skip
edits = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 40), st.one_of(st.sampled_from(SPLINTERS), st.binary(max_size=8))),
    min_size=1,
    max_size=6,
)


def mutated(valid: bytes, changes: list[Edit]) -> bytes:
    """A valid file with some places cut out and overwritten."""
    for start, length, inserted in changes:
        start %= len(valid) + 1
        valid = valid[:start] + inserted + valid[start + length :]
    return valid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def faults_of(path: Path, **options: Any) -> list[str]:
    found = outcome(path, **options)
    assert not isinstance(found, ProblemSet)
    return found


def outcome(path: Path, **options: Any) -> ProblemSet | list[str]:
    """The set, which the database can keep; or the faults, which are short, printable and of lines that there are."""
    try:
        loaded = load_problem_set(path, **options)
    except ProblemSetError as error:
        check_refusal(error, path)
        return error.faults
    check_storable(loaded)
    assert loaded.content_sha256 == content_sha256(loaded.problems)
    assert len(loaded.places) == len(loaded.problems) > 0
    return loaded


def check_refusal(error: ProblemSetError, path: Path) -> None:
    assert error.path == str(path)
    assert 0 < len(error.faults) <= 10
    num_lines = path.read_bytes().count(b"\n") + 1 if path.stat().st_size < 2**20 else 2**20
    for fault in error.faults:
        assert fault.isprintable(), fault
        assert len(fault) < 400
        unit, _, rest = fault.partition(" ")
        if unit == "line":
            assert 1 <= int(rest.partition(":")[0]) <= num_lines, fault


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@examples(150)
@given(edits)
def test_damaged_jsonl_is_read_or_refused(folder: Path, changes: list[Edit]) -> None:
    found = outcome(write(folder, "damaged.jsonl", mutated(JSONL, changes)), max_line_bytes=2500)
    target(float(len(found.problems) if isinstance(found, ProblemSet) else -len(found)))


@examples(150)
@given(edits)
def test_damaged_csv_is_read_or_refused(folder: Path, changes: list[Edit]) -> None:
    outcome(write(folder, "damaged.csv", mutated(CSV, changes)), max_line_bytes=2500)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
columns = st.sampled_from(
    ["problem", "question", "PROMPT", "answer", "solution", "id", "level", "subject", "choices", "x"]
)


@examples(100)
@given(st.lists(st.dictionaries(columns, json_values, max_size=5), max_size=5), st.booleans())
def test_json_of_any_shape_is_read_or_refused(folder: Path, table: list[dict[str, Any]], ascii_only: bool) -> None:
    lines = (json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for row in table)
    outcome(write(folder, "shape.jsonl", b"\n".join(lines)))


@examples(100)
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=4), max_size=5), st.data())
def test_csv_of_any_cells_is_read_or_refused(folder: Path, table: list[list[str]], data: st.DataObject) -> None:
    header = data.draw(st.lists(columns, max_size=4))
    text = "\n".join(",".join(cells) for cells in [header, *table])
    outcome(write(folder, "cells.csv", text.encode()))


# Parquet: decoded here for speed; what the decoder's process adds is tested below


def parquet_bytes(table: pyarrow.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


PARQUET = [
    parquet_bytes(pyarrow.table({"problem": ["a", "b"], "answer": [1, 2]})),
    parquet_bytes(
        pyarrow.table({"problem": ["a"] * 50, "choices": [["x", "y"]] * 50, "at": [dt.datetime(2020, 1, 1)] * 50}),
        compression="zstd",
    ),
    parquet_bytes(
        pyarrow.table({"problem": pyarrow.array(["a", "b", "a"]).dictionary_encode(), "n": pyarrow.nulls(3)}),
        data_page_version="2.0",
    ),
    parquet_bytes(
        pyarrow.table({"problem": ["a"], "zone": pyarrow.array([1], pyarrow.timestamp("ns", "Europe/Berlin"))})
    ),
]


def decoded(content: bytes) -> list[Row | Fault] | str:
    """The rows as the loader gets them, or why the file is refused."""
    entries: list[Row | Fault] = []
    for number, line in enumerate(decode_parquet._lines(io.BytesIO(content)), 1):
        try:
            entry = parse_decoded(number, line.decode())
        except UnreadableFile as error:
            return str(error)
        if entry is None:
            return entries
        entries.append(entry)
    raise AssertionError("no word at the end")


@examples(120)
@given(st.sampled_from(PARQUET), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3), st.binary(max_size=4))))
def test_damaged_parquet_is_read_or_refused(valid: bytes, changes: list[Edit]) -> None:
    found = decoded(mutated(valid, changes))
    assert not isinstance(found, str) or found.startswith("broken Parquet after row ")


parquet_arrays = st.one_of(
    st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=2, max_size=2),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    st.lists(st.floats(), min_size=2, max_size=2),
    st.lists(st.lists(st.text(max_size=3), max_size=2), min_size=2, max_size=2),
    st.sampled_from(
        [
            pyarrow.array([1, 2**62], pyarrow.timestamp("ns")),
            pyarrow.array([1, 2**62], pyarrow.timestamp("us")),
            pyarrow.array([1, 2], pyarrow.timestamp("s", "No/Where")),
            pyarrow.array([1, 2], pyarrow.time64("ns")),
            pyarrow.array([1, 2], pyarrow.duration("s")),
            pyarrow.array([-(2**31), 2**31 - 1], pyarrow.date32()),
            pyarrow.array([Decimal("1.50"), None], pyarrow.decimal256(70, 2)),
            pyarrow.array([b"\xff", b""]),
            pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            pyarrow.array([{"a": {"b": None}}, None]),
            pyarrow.nulls(2),
            pyarrow.array([2**64 - 1, 0], pyarrow.uint64()),
        ]
    ),
)


@examples(80)
@given(st.dictionaries(columns, parquet_arrays, max_size=4))
def test_parquet_of_any_types_is_read_or_refused(table: dict[str, Any]) -> None:
    decoded(parquet_bytes(pyarrow.table(table)))


def test_times_that_python_has_not_are_read_and_times_that_are_none_are_refused(folder: Path) -> None:
    fine = pyarrow.table({"problem": ["p"], "at": pyarrow.array([1_700_000_000_123_456_789], pyarrow.timestamp("ns"))})
    loaded = outcome(write(folder, "fine.parquet", parquet_bytes(fine)))
    assert isinstance(loaded, ProblemSet)
    assert loaded.problems[0].hidden == {"at": "2023-11-14T22:13:20.123456"}
    for far in (
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([1], pyarrow.timestamp("s", "No/Where")),
    ):
        (fault,) = faults_of(write(folder, "far.parquet", parquet_bytes(pyarrow.table({"problem": ["p"], "at": far}))))
        assert "broken Parquet after row 0: " in fault


# Files that are small and want much, or are large


@pytest.fixture
def seconds() -> Iterator[None]:
    """The test takes no longer than a slow machine needs for an honest file of this size."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("seconds")
def test_repeated_name_among_many_is_found_without_comparing_all(folder: Path) -> None:
    names = [f"c{index}" for index in range(200_000)]
    line = "{" + ",".join(f'"{name}":1' for name in [*names, names[-1]]) + "}"
    assert outcome(write(folder, "keys.jsonl", line.encode())) == [
        "line 1: the key 'c199999' occurs twice in one object"
    ]
    header = ",".join([*names, names[-1]])
    assert outcome(write(folder, "keys.csv", f"{header}\n1\n".encode())) == [
        "line 1: the header has the column 'c199999' twice"
    ]


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize("value", ["[" * 10**6, '{"a":' * 10**6, "9" * 10**6, "1," * 10**6, "-" * 10**6])
def test_value_of_a_million_parts_is_refused(folder: Path, value: str) -> None:
    (fault,) = faults_of(write(folder, "deep.jsonl", f'{{"problem": "p", "x": {value}}}'.encode()))
    assert fault.startswith("line 1: ")


def test_quote_left_open_is_found_after_one_row_and_not_at_the_end(folder: Path) -> None:
    path = write(folder, "open.csv", b'problem,answer\np,1\n"q,2\n' + b"r,3\n" * 5000)
    assert outcome(path, max_line_bytes=1000) == ["line 3: a row of more than 1000 bytes; is a quote left open?"]
    cells = b'problem,answer\np,"' + b'\n","' * 5000
    assert outcome(write(folder, "cells.csv", cells), max_line_bytes=1000) == [
        "line 2: a row of more than 1000 bytes; is a quote left open?"
    ]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_file_beyond_the_limit_is_refused_unread(folder: Path, ending: str) -> None:
    path = folder / f"large.{ending}"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)
    (fault,) = faults_of(path)
    assert fault.startswith("it has 1,024 MiB, and 1,024 MiB is the limit; split it")
    path.unlink()


def test_rows_that_take_more_memory_than_the_file_are_refused(folder: Path) -> None:
    path = write(folder, "small.jsonl", b'{"problem": "p", "x": [' + b"[]," * 20_000 + b"[]]}\n")
    (fault,) = faults_of(path, max_bytes=2**17)
    assert fault.startswith("its first 1 rows take 0 MiB of memory, which is the limit; split it")
    assert isinstance(outcome(path, max_bytes=2**22), ProblemSet)


def test_long_ids_and_messages_are_short(folder: Path) -> None:
    rows = [{"problem": "p", "id": "i" * 500}, {"problem": "p", "id": "j" * 501}, {"problem": "p", "id": "i" * 500}]
    content = "\n".join(map(json.dumps, rows)).encode()
    first, second = faults_of(write(folder, "ids.jsonl", content))
    assert first == "line 2: an id of 501 characters; 500 is the limit"
    assert second.startswith("line 3: duplicate id 'iii")
    many = json.dumps({f"column {index} \x1b": 1 for index in range(1000)}).encode()
    (fault,) = faults_of(write(folder, "columns.jsonl", many))
    assert "and 980 more" in fault or fault.endswith("…")


LIMITED = """
import resource, sys
from pipeline.errors import ProblemSetError
from pipeline.problems import decode_parquet, load_problem_set
decode_parquet.MAX_MEMORY = int(sys.argv[2])
for path in sys.argv[3:]:
    try:
        load_problem_set(path, max_bytes=int(sys.argv[1]))
    except ProblemSetError as error:
        print(error.faults[0])
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]  # ru_maxrss: the parent's
print(int(own) // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def load_apart(*paths: Path, max_bytes: int, max_memory: int = decode_parquet.MAX_MEMORY) -> tuple[list[str], int]:
    """The first fault of each file, and the most memory of the process that loads or of a decoder, in MiB."""
    command = [sys.executable, "-c", LIMITED, str(max_bytes), str(max_memory), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    *faults, memory = done.stdout.splitlines()
    return faults, max(map(int, memory.split()))


def test_small_files_that_expand_to_gigabytes_take_little_memory(folder: Path) -> None:
    letter = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 50_000, pyarrow.int32()), ["a" * 300_000])
    nulls = pyarrow.nulls(1_000_000, pyarrow.string())
    bombs = [
        write(folder, f"{name}.parquet", parquet_bytes(pyarrow.table({"problem": column}), compression="zstd"))
        for name, column in (("letter", letter), ("nulls", nulls))
    ]
    assert sum(bomb.stat().st_size for bomb in bombs) < 10_000
    faults, memory = load_apart(*bombs, max_bytes=64 * 2**20)
    assert [fault.partition("rows ")[2].partition(";")[0] for fault in faults] == [
        "take 192 MiB of memory, which is the limit"
    ] * 2
    assert memory < 500


def test_decoder_is_stopped_at_its_memory_limit(folder: Path) -> None:
    page = pyarrow.table({"problem": ["a" * 100_000_000]})
    bomb = write(folder, "page.parquet", parquet_bytes(page, compression="zstd", use_dictionary=False))
    (fault,), memory = load_apart(bomb, max_bytes=2**30, max_memory=2**26)
    assert fault.startswith("broken Parquet after row 0: it")
    assert "to decode" in fault
    assert memory < 250


def test_file_that_is_almost_all_one_line_is_read_in_parts(folder: Path) -> None:
    sparse = folder / "sparse.jsonl"
    with sparse.open("wb") as file:
        file.write(b'{"problem": "p"}\n')
        file.truncate(2**30 - 1)
    faults, memory = load_apart(sparse, max_bytes=2**30)
    assert faults == ["line 2: longer than 16777216 bytes"]
    assert memory < 200
    sparse.unlink()


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("import os; os.abort()", "its decoder crashed (SIGABRT): damaged, or more than 3 GiB to decode"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "it takes longer than 300 s to decode"),
        ("raise SystemExit(3)", "its decoder ended with status 3"),
    ],
)
def test_decoder_that_dies_costs_its_file_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str, reason: str
) -> None:
    script = write(folder, "decoder.py", f"""print('{{"row": {{"problem": "p"}}}}', flush=True); {ending}""".encode())
    monkeypatch.setattr(decode_parquet, "__file__", str(script))
    assert outcome(write(folder, "any.parquet", b"any")) == [f"broken Parquet after row 1: {reason}"]


def test_set_that_is_refused_early_leaves_no_decoder_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "busy.py", b"""print('{"fault": "bad"}\\n' * 20, flush=True)\nimport time; time.sleep(600)""")
    monkeypatch.setattr(decode_parquet, "__file__", str(folder / "busy.py"))
    assert outcome(write(folder, "any.parquet", b"any")) == [f"row {number}: bad" for number in range(1, 11)]
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "busy.py"], capture_output=True, text=True)
    assert children.stdout == ""


# Files that are no files


@pytest.mark.timeout(20)
def test_files_of_the_kernel_are_refused_unread(folder: Path) -> None:
    for name in ("/proc/self/environ", "/proc/kmsg", "/proc/self/mem"):
        link = folder / "kernel.jsonl"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        with pytest.raises(ProblemSetError, match=r"holds no problem|Permission"):
            load_problem_set(link)


def test_file_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    path = write(folder, "growing.jsonl", b'{"problem": "p"}\n' * 3)
    rows = read_rows(path)
    assert isinstance(next(rows), Row)
    os.utime(path, ns=(0, 0))
    with pytest.raises(UnreadableFile, match="changed while it was read"):
        list(rows)


def test_name_of_a_file_is_made_storable(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9 \x1b[31m.jsonl"))
    path.write_bytes(b'{"problem": "p"}')
    assert load_problem_set(path).name == "caf\\udce9 \\x1b[31m"
    for bad in (folder / "a\0b.jsonl", folder / "\ud800.jsonl"):
        with pytest.raises(ProblemSetError):
            load_problem_set(bad)
