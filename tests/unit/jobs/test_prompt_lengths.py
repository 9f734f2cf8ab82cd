"""Prompts of several jobs that are measured together: each job's errors are its own, and no template is asked twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import Problem, ProblemSet
from pipeline.chat import rendering
from pipeline.chat.asking import Asking
from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import Prompt
from pipeline.chat.rendering import MAX_CALLS, ChatTemplate
from pipeline.errors import ConfigurationError, ProblemSetError
from pipeline.jobs.prompt_lengths import PromptLengths

DEMO = Path(__file__).parents[3] / "examples" / "models" / "demo-small"
WORDS = "right " * 40


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load(DEMO)


def job(*prompts: str) -> tuple[ProblemSet, list[Prompt]]:
    problems = tuple(Problem(external_id=str(index), prompt=prompt) for index, prompt in enumerate(prompts))
    return ProblemSet(name=prompts[0], content_sha256="", problems=problems), [Prompt(message=each) for each in prompts]


def with_template(folder: Path, template: str) -> ChatModel:
    shutil.copytree(DEMO, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return ChatModel.load(folder)


def test_a_prompt_is_measured_against_the_smallest_context_of_its_models(chat: ChatModel) -> None:
    length = len(chat.prompt_ids(WORDS))
    roomy, tight = (replace(chat, max_model_len=length + room) for room in (1, 0))
    lengths = PromptLengths()
    lengths.add(*job("a?", WORDS), [roomy])
    lengths.add(*job("b?"), [roomy, tight])
    lengths.finish()
    lengths.add(*job("c?", "right", WORDS), [roomy, tight])
    with pytest.raises(
        ProblemSetError, match=rf"(?s)^c\?.*'2': the prompt has {length} tokens, the model takes {length - 1} "
    ):
        lengths.finish()
    lengths.finish()  # nothing waits any more


def test_a_model_without_a_known_context_measures_nothing(chat: ChatModel) -> None:
    lengths = PromptLengths()
    lengths.add(*job(WORDS * 1000), [replace(chat, max_model_len=None)])
    lengths.finish()


def test_models_that_make_other_ids_of_a_prompt_measure_it_each(chat: ChatModel) -> None:
    asked = chat.asked(Asking(system=WORDS))
    length = len(asked.prompt_ids("a?"))
    short = [replace(each, max_model_len=length) for each in (chat, asked)]
    lengths = PromptLengths()
    lengths.add(*job("a?"), [short[0]])
    lengths.finish()
    lengths.add(*job("a?"), short)
    with pytest.raises(ProblemSetError, match=f"the prompt has {length} tokens"):
        lengths.finish()


def test_many_small_jobs_are_one_request_to_a_template(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[int] = []
    ask = ChatTemplate._ask

    def counted(self: ChatTemplate, request: dict[str, Any], *args: Any, **options: Any) -> Any:
        requests.append(len(request["calls"]))
        return ask(self, request, *args, **options)

    pair = [chat, replace(chat, name="another of the same")]
    lengths = PromptLengths()
    lengths.add(*job("warm?"), pair)
    lengths.finish()
    monkeypatch.setattr(ChatTemplate, "_ask", counted)
    for number in range(MAX_CALLS + 10):
        lengths.add(*job(f"{number}?"), pair)
    assert requests == [MAX_CALLS]
    lengths.finish()
    assert requests == [MAX_CALLS, 10]


def test_what_a_template_refuses_is_said_of_the_job_that_asks_it(tmp_path: Path) -> None:
    chat = with_template(
        tmp_path / "m",
        "{% if 'bad' in messages[0].content %}{{ raise_exception('no ' ~ messages[0].content) }}{% endif %}"
        "{{ messages[0].content }}{% if messages|length > 1 %}{{ messages[1].content }}{% endif %}",
    )
    lengths = PromptLengths()
    for prompts in (["a?"], ["b?", "bad?"], ["c?"]):
        lengths.add(*job(*prompts), [chat])
    with pytest.raises(ConfigurationError, match="refuses a user message, one of 2: no bad"):
        lengths.finish()


def test_jobs_that_a_template_has_time_for_alone_are_not_refused_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "{% for i in range(500) %}{% for j in range(500) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    chat = with_template(tmp_path / "m", slow)
    spent = measured_cpu(chat)
    monkeypatch.setattr(rendering, "CPU_PER_PROMPT_S", 0.0)
    monkeypatch.setattr(rendering, "CPU_S", 4 * spent)
    lengths = PromptLengths()
    for number in range(12):
        lengths.add(*job(f"{number}?"), [chat])
    lengths.finish()


def measured_cpu(chat: ChatModel) -> float:
    """Processor seconds that its template takes for a prompt."""
    call = {"messages": [{"role": "user", "content": "?"}], "variables": {}, "max_chars": 9}
    return chat._template._ask({"calls": [call], "max_chars": 9}, 60.0, what="a prompt", most=1).cpu_s
