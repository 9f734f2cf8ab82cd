"""What an Ask puts after the text, on a tokenizer made here: ids of questions, of turns and of labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chat.model import ChatModel
from pipeline.chat.translation import ThinkPhase, ThinkTagTranslator
from pipeline.errors import ConfigurationError
from pipeline.policies import parse_policy, policy_names
from pipeline.policies.requests import Ask
from pipeline.samples import WRITING_ROLES, ModelRole
from tests.turns import chat_of
from tests.unit.chat.test_model import TEMPLATE, make_tokenizer, write_model
from workers.writing.questions import Questions

SMALL = ModelRole.SMALL


def load(folder: Path, template: str = TEMPLATE) -> ChatModel:
    """With words of its own for labels."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["yes", " yes", "no", "Hm,"])
    return ChatModel.load(write_model(folder, tokenizer, template))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    return load(tmp_path_factory.mktemp("models") / "chat")


def questions(chat: ChatModel, end: str = "</think>") -> Questions:
    return Questions(chat, ThinkTagTranslator(chat, ThinkPhase(start="<think>", end=end, opened=True)))


def id_of(chat: ChatModel, text: str) -> int:
    token_id = chat.tokenizer.token_to_id(text)
    assert token_id is not None, text
    return token_id


def test_a_question_goes_on_in_the_same_turn(chat: ChatModel) -> None:
    question = questions(chat).get(Ask(role=SMALL, purpose="x", question="\n</think>\n\nIs"))
    assert list(question.token_ids) == chat.encode_text("\n</think>\n\nIs")
    assert id_of(chat, "</think>") in question.token_ids
    assert questions(chat).get(Ask(role=SMALL, purpose="x")).token_ids == ()


def test_a_question_may_be_a_new_message(chat: ChatModel) -> None:
    ask = Ask(role=SMALL, purpose="x", question="Is it?", turn=True, opening="</think>It")
    text = chat.tokenizer.decode(list(questions(chat).get(ask).token_ids), skip_special_tokens=False)
    assert text == "<|end|><|user|>Is it?<|end|><|assistant|><think>\n</think>It"


def test_the_jobs_tags_become_the_models(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[THINK]", "[/THINK]"])
    template = TEMPLATE.replace("<think>", "[THINK]")
    tokenizer_without = ChatModel.load(write_model(tmp_path / "mistral", tokenizer, template))
    ask = Ask(role=SMALL, purpose="x", question="Is it?", turn=True, opening="</think>It")
    token_ids = questions(tokenizer_without).get(ask).token_ids
    assert id_of(tokenizer_without, "[/THINK]") in token_ids
    assert id_of(tokenizer_without, "</think>") not in token_ids


def test_each_spelling_of_a_label_that_is_one_token_counts(chat: ChatModel) -> None:
    ask = Ask(role=SMALL, purpose="x", question="Is it?", labels=("yes", "no"))
    assert questions(chat).get(ask).labels == {
        "yes": (id_of(chat, "yes"), id_of(chat, " yes")),
        "no": (id_of(chat, "no"),),
    }


def test_a_label_of_several_tokens_needs_labels_begin(chat: ChatModel) -> None:
    with pytest.raises(ConfigurationError, match="no token of its own for the label 'maybe' of 'rate'"):
        questions(chat).get(Ask(role=SMALL, purpose="rate", labels=("maybe",)))
    begun = questions(chat).get(Ask(role=SMALL, purpose="rate", labels=("maybe",), labels_begin=True))
    assert begun.labels["maybe"][0] == chat.encode_text("maybe")[0]


@pytest.mark.parametrize("role", WRITING_ROLES)
def test_a_space_of_its_own_begins_no_label(role: ModelRole) -> None:
    demo = chat_of(role)
    assert demo.encode_text(" Wait") == [*demo.encode_text(" "), *demo.encode_text("Wait")]
    asked = Ask(role=role, purpose="doubt", labels=("Wait", "But"), labels_begin=True)
    assert questions(demo).get(asked).labels == {
        "Wait": tuple(demo.encode_text("Wait")),
        "But": tuple(demo.encode_text("But")[:1]),
    }


JUDGED = {name: {"good": "+", "bad": "-"} for name in ("rsd", "specsearch")}
"""What is a token of its own for the demo pair, which knows no Yes and No."""


@pytest.mark.parametrize("name", [name for name in policy_names() if name != "relay"])  # asks nothing
def test_the_demo_pair_can_be_asked_what_a_policy_asks(name: str) -> None:
    for ask in parse_policy(name, JUDGED.get(name)).build().asks:
        assert set(questions(chat_of(ask.role)).get(ask).labels) == set(ask.labels)


def test_labels_that_begin_alike_are_refused(chat: ChatModel) -> None:
    with pytest.raises(ConfigurationError, match="'Hm,' and 'Hm, no' of 'rate' with the same token"):
        questions(chat).get(Ask(role=SMALL, purpose="rate", labels=("Hm,", "Hm, no"), labels_begin=True))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}" + TEMPLATE,
            "refuses a conversation of 3 messages: one message only",
        ),
        ("<|user|>{{ messages[0].content }}<|end|><think>\n", "does not show an answer and a next message"),
    ],
)
def test_a_template_without_a_second_turn_is_refused(tmp_path: Path, template: str, message: str) -> None:
    chat = load(tmp_path / "single", template)
    with pytest.raises(ConfigurationError, match=message):
        questions(chat).get(Ask(role=SMALL, purpose="x", question="Is it?", turn=True))
