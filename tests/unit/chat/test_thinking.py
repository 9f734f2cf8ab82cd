"""Think phases: tags by prompt and template, never by vocabulary alone, and what a job says instead."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer

from pipeline.chat.asking import Asking
from pipeline.chat.description import describe_model
from pipeline.chat.model import ChatModel
from pipeline.chat.thinking import THINK_FAMILIES, ThinkStart, find_marks
from pipeline.chat.translation import ThinkPhase, settle_think_phase
from pipeline.errors import ConfigurationError
from tests.unit.chat.test_model import make_tokenizer, write_model

CHANNELS = ("<|start|>", "<|channel|>", "<|message|>")
GPT_OSS_END = "<|end|><|start|>assistant<|channel|>final<|message|>"


def load(folder: Path, generation: str, *, tokens: tuple[str, ...] = (), template: str = "") -> ChatModel:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=False) for token in tokens])
    return ChatModel.load(write_model(folder, tokenizer, f"{{{{ messages[0].content }}}}{template}" + generation))


@pytest.mark.parametrize(
    ("generation", "tokens", "closing", "start"),
    [
        ("<think>\n", (), "</think>", ThinkStart.OPENED),
        ("<|assistant|>", (), "", ThinkStart.NONE),  # the vocabulary has the tags, nothing shows them
        ("<think>\n\n</think>\n\n", (), "</think>", ThinkStart.CLOSED),
        ("<|assistant|></think>", (), "</think>", ThinkStart.CLOSED),
        ("[|assistant|]<thought>\n", ("<thought>", "</thought>"), "</thought>", ThinkStart.OPENED),
        ("<|START_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>"), "<|END_THINKING|>", ThinkStart.OPENED),
        ("<|start|>assistant", CHANNELS, GPT_OSS_END, ThinkStart.BY_TEXT),
        ("<|start|>assistant", (), "", ThinkStart.NONE),  # looks alike, and has no channels
        ("{# ◁think▷ #}", (), "◁/think▷", ThinkStart.BY_TEXT),
        ("</think>so<think>", (), "</think>", ThinkStart.OPENED),
    ],
)
def test_tags_are_those_of_prompt_and_template(
    tmp_path: Path, generation: str, tokens: tuple[str, ...], closing: str, start: ThinkStart
) -> None:
    model = load(tmp_path / "m", generation, tokens=tokens)
    assert (model.think_marks.closing, model.think_marks.start) == (closing, start)
    assert model.think_end == (closing if start in (ThinkStart.OPENED, ThinkStart.BY_TEXT) else "")


@pytest.mark.parametrize("family", THINK_FAMILIES, ids=lambda family: family.opening)
def test_each_family_is_found_where_the_prompt_opens_it(family: object) -> None:
    marks = find_marks(
        tail=f"<|assistant|>{family.opening}", shown="", told=None, vocabulary=frozenset()  # type: ignore[attr-defined]
    )  # fmt: skip
    assert (marks.opening, marks.closing) == (family.opening, family.closing)  # type: ignore[attr-defined]
    assert marks.start is ThinkStart.OPENED


_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
_HYBRID = _TURNS + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
_STRIPS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% endfor %}<|assistant|>"
_BUDGET = _TURNS + "{% if thinking_budget == 0 %}<seed:think>\n</seed:think>{% endif %}{# <seed:think> #}"
_KEPT = ThinkPhase(start="<think>", end="</think>", opened=False)
_OPEN = ThinkPhase(start="<think>", end="</think>", opened=True)
_NONE = ThinkPhase(start="", end="", opened=False)
_SEED = ThinkPhase(start="<seed:think>", end="</seed:think>", opened=False)


@pytest.mark.parametrize(
    ("template", "asking", "phase"),
    [
        (_HYBRID, {}, _KEPT),
        (_HYBRID, {"template_variables": {"enable_thinking": True}}, _KEPT),
        (_HYBRID, {"template_variables": {"enable_thinking": False}}, _NONE),
        (_STRIPS, {}, _KEPT),  # the template takes thoughts out of earlier turns: the text opens them
        (_STRIPS + "<think>\n", {}, _OPEN),
        (_TURNS, {}, _KEPT),  # nothing shows any tag: the text may open the usual one, and need not
        (_TURNS, {"system": "detailed thinking on"}, _KEPT),
        (_TURNS, {"system": "detailed thinking off", "think_tags": ()}, _NONE),
        (_TURNS, {"system": "Think in [THINK]so[/THINK]."}, ThinkPhase(start="[THINK]", end="[/THINK]", opened=False)),
        (_TURNS, {"think_tags": ("<t>", "</t>")}, ThinkPhase(start="<t>", end="</t>", opened=False)),
        (_BUDGET, {"template_variables": {"thinking_budget": 512}}, _SEED),
        (_BUDGET, {"template_variables": {"thinking_budget": 0}}, _NONE),
        (_TURNS + "◁think▷", {}, ThinkPhase(start="◁think▷", end="◁/think▷", opened=True)),
        (_TURNS + "<reasoning>\n", {}, ThinkPhase(start="<reasoning>", end="</reasoning>", opened=True)),
        (_TURNS + "{% if reasoning %}<thought>{% else %}</thought>{% endif %}", {}, _NONE),
    ],
)
def test_a_model_alone_thinks_as_its_prompt_leaves_it(
    tmp_path: Path, template: str, asking: dict[str, object], phase: ThinkPhase
) -> None:
    model = ChatModel.load(write_model(tmp_path / "m", template=template))
    assert settle_think_phase(model.asked(Asking.model_validate(asking))) == phase


def test_a_job_names_tags_that_nobody_knows(tmp_path: Path) -> None:
    model = load(tmp_path / "m", "<|assistant|>[Start thinking]")
    assert model.think_end == ""
    asked = model.asked(Asking(think_tags=("[Start thinking]", "[End thinking]")))
    assert (asked.think_end, asked.starts_in_think) == ("[End thinking]", True)
    assert settle_think_phase(asked) == ThinkPhase(start="[Start thinking]", end="[End thinking]", opened=True)


def test_a_job_says_that_a_model_does_not_think(tmp_path: Path) -> None:
    asked = load(tmp_path / "m", "<think>\n").asked(Asking(think_tags=()))
    assert (asked.think_end, asked.starts_in_think) == ("", False)


def test_a_variable_turns_thinking_on_and_off(tmp_path: Path) -> None:
    model = load(tmp_path / "m", "{% if thinking %}<think>{% else %}</think>{% endif %}")
    assert settle_think_phase(model) == ThinkPhase(start="", end="", opened=False), "the prompt has closed it"
    on = model.asked(Asking(template_variables={"thinking": True}))
    assert settle_think_phase(on) == ThinkPhase(start="<think>", end="</think>", opened=True)
    assert (on.fingerprint, on.vocabulary_sha256) == (model.fingerprint, model.vocabulary_sha256)
    assert model.think_end == "", "the model itself is as it was"


def test_a_variable_that_the_template_lacks_is_refused(tmp_path: Path) -> None:
    model = load(tmp_path / "m", "{% if thinking %}<think>{% endif %}{{ effort }}")
    with pytest.raises(ConfigurationError, match=r"has no variable enable_thinking; it has: effort, thinking"):
        model.asked(Asking(template_variables={"enable_thinking": True}))
    with pytest.raises(ConfigurationError, match="it has none that can be set"):
        load(tmp_path / "n", "<think>").asked(Asking(template_variables={"x": 1}))


def test_a_system_message_is_in_the_prompt(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    model = ChatModel.load(write_model(tmp_path / "m", template=template))
    asked = model.asked(Asking(system="detailed thinking on"))
    assert decoded(asked, "Q") == "<|system|>detailed thinking on<|user|>Q<|assistant|>"
    assert decoded(model, "Q") == "<|user|>Q<|assistant|>"


def test_a_template_that_hides_the_system_message_is_refused(tmp_path: Path) -> None:
    model = ChatModel.load(write_model(tmp_path / "m", template="{{ messages[-1].content }}"))
    with pytest.raises(ConfigurationError, match="does not show a system message"):
        model.asked(Asking(system="be brief"))
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    raising = refusal + "{{ messages[0].content }}"
    with pytest.raises(ConfigurationError, match="no system role"):
        ChatModel.load(write_model(tmp_path / "n", template=raising)).asked(Asking(system="be brief"))


def test_the_date_of_a_template_is_the_jobs(tmp_path: Path) -> None:
    model = load(tmp_path / "m", "{{ strftime_now('%d %b %Y') }}")
    asked = model.asked(Asking.model_validate({"today": "2026-02-03"}))
    assert decoded(asked, "Q") == "Q03 Feb 2026"


@pytest.mark.parametrize(
    "values",
    [
        {"template_variables": {"messages": []}},
        {"template_variables": {"add_generation_prompt": False}},
        {"template_variables": {"a b": 1}},
        {"think_tags": ("<t>", "<t>")},
        {"think_tags": ("", "</t>")},
        {"think_tags": ("<t>",)},
        {"system": "a\x00b"},
        {"sytem": "a"},
    ],
)
def test_what_cannot_be_asked_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Asking.model_validate(values)


def test_the_hash_is_of_all_that_is_said() -> None:
    asked = Asking(system="a", template_variables={"x": 1, "y": 2})
    assert asked.sha256 == Asking(template_variables={"y": 2, "x": 1}, system="a").sha256
    assert asked.sha256 != Asking(system="b", template_variables={"x": 1, "y": 2}).sha256


def decoded(model: ChatModel, message: str) -> str:
    return str(model.tokenizer.decode(model.prompt_ids(message), skip_special_tokens=False))


_HINT = "{{ messages[0].content }}\\nThink inside <think> </think>.<|im_end|><|im_start|>assistant\\n"


@pytest.mark.parametrize(
    ("generation", "start"),
    [("", ThinkStart.BY_TEXT), ("<think>\n", ThinkStart.OPENED), ("<think></think>", ThinkStart.CLOSED)],
)
def test_tags_in_the_users_turn_are_advice(tmp_path: Path, generation: str, start: ThinkStart) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    model = ChatModel.load(write_model(tmp_path / "m", tokenizer, _HINT.replace("\\n", "\n") + generation))
    assert (model.think_marks.closing, model.think_marks.start) == ("</think>", start)


def test_unseen_tags_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer().to_str().replace("think>", "nothing>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("[THINK]", "[/THINK]")])
    template = "[INST]{{ messages[0].content }}[/INST]"
    model = ChatModel.load(write_model(tmp_path / "m", tokenizer, template))
    assert settle_think_phase(model) == ThinkPhase(start="[THINK]", end="[/THINK]", opened=False)
    usual = ChatModel.load(write_model(tmp_path / "n", template=template))
    assert settle_think_phase(usual) == ThinkPhase(start="<think>", end="</think>", opened=False)


@pytest.mark.parametrize("value", ["false", " True "])
def test_a_truth_value_in_quotes_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="takes for true"):
        Asking(template_variables={"enable_thinking": value})


def test_a_turn_that_nothing_ends_is_told(tmp_path: Path) -> None:
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    folder = write_model(tmp_path / "m", tokenizer, turns)
    model = ChatModel.load(folder)
    assert model.unended_turn == "<|im_end|>"
    assert "<|im_end|>" in describe_model(model)["not among them"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id("<|im_end|>")}))
    assert ChatModel.load(folder).unended_turn is None
    assert load(tmp_path / "n", "<think>").unended_turn is None, "it shows no conversation"
