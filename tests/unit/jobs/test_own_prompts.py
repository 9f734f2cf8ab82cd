"""Templates and worked examples of one's own, from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, ProblemSetError
from pipeline.jobs.config import JobConfig
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.references import StoredSet
from pipeline.jobs.submission import SourceJob, Submission
from pipeline.problems import ProblemSet

MODEL = Path(__file__).parents[3] / "examples" / "models" / "demo-small"
TEMPLATE = "On {{ topic }}:\n{{problem}}\n{{choices}}\nBox it: \\boxed{}. {x} {% if %}\n"


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"problem": f"What is 1+{number}?", "answer": number + 1, "topic": "sums", "proof": "long"} | more


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "mine.txt"
    file.write_text(TEMPLATE)
    return file


def ready(problems: Path, **options: Any) -> ReadyJob:
    return make_ready(Submission.parse(problems=problems, small="S", policy="small-only", **options))


def messages(job: ReadyJob) -> list[str]:
    assert isinstance(job.problems, ProblemSet)
    return [job.config.prompt(problem.as_shown()).message for problem in job.problems.problems]


def test_template_of_a_file_shows_its_fields_and_nothing_else_of_a_row(tmp_path: Path, template: Path) -> None:
    job = ready(write(tmp_path, "set.jsonl", row(1), row(2, topic=None)), prompt_file=template)
    end = "\n\nBox it: \\boxed{}. {x} {% if %}"
    assert messages(job) == [f"On sums:\nWhat is 1+1?{end}", f"On :\nWhat is 1+2?{end}"]
    assert isinstance(job.problems, ProblemSet)
    assert job.problems.problems[0].metadata == {"topic": "sums"}
    assert job.config.prompt_template == "file:mine.txt"
    assert job.config.template_text == TEMPLATE.rstrip("\n")
    assert job.versions["prompt template"].startswith("sha256:")


def test_byte_order_mark_of_a_template_is_no_part_of_its_prompts(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{{problem}}", encoding="utf-8-sig")
    job = ready(write(tmp_path, "set.jsonl", row(1)), prompt_file=tmp_path / "mine.txt")
    assert messages(job) == ["What is 1+1?"]


def test_template_that_shows_no_choices_is_told(tmp_path: Path, template: Path) -> None:
    (tmp_path / "bare.txt").write_text("{{problem}}")
    file = write(tmp_path, "set.jsonl", row(1, choices=["1", "2"]) | {"answer": "B"})
    told = "the prompt template bare.txt shows no {{choices}}, and the problems have some"
    assert told in ready(file, prompt_file=tmp_path / "bare.txt").notes
    assert not [note for note in ready(file, prompt_file=template).notes if "choices}}" in note]


def test_choices_stand_where_the_template_has_them(tmp_path: Path, template: Path) -> None:
    problems = write(tmp_path, "set.jsonl", row(1, choices=["two", "three"], answer="A"))
    (message,) = messages(ready(problems, prompt_file=template))
    assert "What is 1+1?\n(A) two\n(B) three\nBox" in message


def test_what_stands_in_a_field_is_not_read_for_fields_again(tmp_path: Path, template: Path) -> None:
    problems = write(tmp_path, "set.jsonl", row(1, problem="{{topic}} {{answer}} {{proof}}?"))
    (message,) = messages(ready(problems, prompt_file=template))
    assert "{{topic}} {{answer}} {{proof}}?" in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Solve it.", "does not show the problem: write {{problem}}"),
        ("{{problem}} {{tip}}", "no column 'tip', which was named for the columns to keep"),
        ("{{problem}} {{__class__}}", "no column '__class__'"),
        ("{{problem}}" + "x" * 70_000, "65,536 is the limit"),
        ("{{problem}} \0", "NUL"),
    ],
)
def test_template_that_cannot_be_shown_is_refused(tmp_path: Path, template: Path, text: str, told: str) -> None:
    template.write_text(text)
    with pytest.raises((ConfigurationError, ProblemSetError), match=told):
        ready(write(tmp_path, "set.jsonl", row(1)), prompt_file=template)


def test_template_by_name_and_as_a_file_at_once_is_refused(tmp_path: Path, template: Path) -> None:
    problems = write(tmp_path, "set.jsonl", row(1))
    with pytest.raises(ConfigurationError, match="by its name or as a file, not both"):
        ready(problems, prompt_file=template, prompt_template="math")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ready(problems, prompt_file=tmp_path / "gone.txt")


def shots(tmp_path: Path, *numbers: int, **more: Any) -> Path:
    return write(tmp_path, "train.jsonl", *(row(number, **more) for number in numbers))


def test_examples_are_drawn_by_their_seed_and_stored(tmp_path: Path) -> None:
    problems = write(tmp_path, "set.jsonl", row(1), row(2))
    file = shots(tmp_path, *range(2, 30))
    drawn = ready(problems, few_shot={"file": file, "count": 3, "seed": 5}).config.few_shot
    assert drawn is not None
    assert (drawn.seed, drawn.source, len(drawn.examples)) == (5, "train.jsonl", 3)
    assert drawn == ready(problems, few_shot={"file": file, "count": 3}, seed=5).config.few_shot
    assert drawn != ready(problems, few_shot={"file": file, "count": 3, "seed": 6}).config.few_shot
    for example in drawn.examples:
        number = int(example.question.partition("+")[2].partition("?")[0])
        assert example.question.startswith(f"What is 1+{number}?\n\nPlease reason")
        assert example.reply == rf"\boxed{{{number + 1}}}"


def test_example_is_never_a_problem_of_the_job(tmp_path: Path) -> None:
    problems = write(tmp_path, "set.jsonl", row(1), row(2))
    drawn = ready(problems, few_shot={"file": shots(tmp_path, 1, 2, 3), "count": 1}).config.few_shot
    assert drawn is not None
    assert "1+3?" in drawn.examples[0].question
    with pytest.raises(ConfigurationError, match="has 1 problems that have an answer and are none of the job's own"):
        ready(problems, few_shot={"file": shots(tmp_path, 1, 2, 3), "count": 2})
    with pytest.raises(ConfigurationError, match="has 0 problems that have an answer"):
        ready(problems, few_shot={"file": problems, "count": 1})


def test_examples_are_earlier_turns_between_system_text_and_question(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"}]
    problems = write(tmp_path, "set.jsonl", {"messages": talk, "answer": 2})
    job = ready(problems, few_shot={"file": shots(tmp_path, 7), "count": 1})
    assert isinstance(job.problems, ProblemSet)
    prompt = job.config.prompt(job.problems.problems[0].as_shown())
    assert [turn["role"] for turn in prompt.earlier] == ["system", "user", "assistant"]
    assert prompt.message.startswith("What is 1+1?")
    chat = ChatModel.load(MODEL)
    text = chat.tokenizer.decode(chat.prompt_ids(prompt.message, prompt.earlier), skip_special_tokens=False)
    places = [text.index(part) for part in ("Be brief.", "What is 1+7?", r"\boxed{8}", "What is 1+1?")]
    assert places == sorted(places)


def test_clone_asks_the_same_and_can_go_back_to_a_named_template(tmp_path: Path, template: Path) -> None:
    problems = write(tmp_path, "set.jsonl", row(1))
    made = ready(problems, prompt_file=template, few_shot={"file": shots(tmp_path, 7), "count": 1})
    config = JobConfig.model_validate_json(made.config.model_dump_json())
    source = SourceJob(id=7, name="mine", policy="small-only", problem_set_id=3, config=config, think=None)
    stored = StoredSet(
        id=3, name="set", size=1, num_references=1, has_choices=False,
        read=lambda limit: (made.problems.problems[0].as_shown(),),  # type: ignore[union-attr]
    )  # fmt: skip
    again = make_ready(Submission.from_job(source, {"seed": 4}), stored=stored, source=source).config
    assert (again.template_text, again.few_shot, again.seed) == (config.template_text, config.few_shot, 4)
    named = make_ready(Submission.from_job(source, {"prompt_template": "math"}), stored=stored, source=source).config
    assert (named.prompt_template, named.template_text) == ("math", None)
