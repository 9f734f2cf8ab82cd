"""Hostile prompts: a problem's text is text, for the template, for the model, on a terminal and on a page."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import _TEMPLATES, render_user_message
from pipeline.cli.render import cell, console, print_json, print_rows
from pipeline.logs import configure_logging
from pipeline.problems import Problem
from pipeline.results.exports import ExportFormat, write_results
from pipeline.settings import Settings
from pipeline.texts import VisibleStream, printable, visible
from tests.fuzzing import examples

EXAMPLES = Path(__file__).parents[3] / "examples" / "models"
CONTROLS = ["<s>", "</s>", "<think>", "</think>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<s>{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = [chr(code) for code in range(32, 127)] + ["\n", "é", "＜", "＞", "▁"]


def unigram() -> Tokenizer:
    """As SentencePiece makes them: control tokens are pieces of the vocabulary too, and as likely as any."""
    pieces = ["<unk>", *CONTROLS, *LETTERS, "▁the", "think"]
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0 if piece in CONTROLS else -3.0) for piece in pieces], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


def bpe_that_joins_controls() -> Tokenizer:
    """Its merges lead from letters to the pieces "</s>" and "<think>"."""
    merges, vocabulary = [], dict.fromkeys([*LETTERS, *CONTROLS])
    for control in CONTROLS:
        for end in range(1, len(control)):
            merges.append((control[:end], control[end]))
            vocabulary |= dict.fromkeys([control[: end + 1]])
    return Tokenizer(models.BPE({piece: index for index, piece in enumerate(vocabulary)}, list(dict.fromkeys(merges))))


def word_level() -> Tokenizer:
    """Whole words, control tokens among them; whatever else is unknown."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *CONTROLS, "the"])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def make_model(folder: Path, tokenizer: Tokenizer, **settings: str) -> ChatModel:
    for control in CONTROLS:
        tokenizer.add_tokens([AddedToken(control, special="think" not in control, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "<s>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatModel.load(folder)


@pytest.fixture(scope="module", params=["unigram", "bpe", "words", "demo"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "unigram":
        return make_model(folder, unigram(), unk_token="<unk>")
    if request.param == "bpe":
        return make_model(folder, bpe_that_joins_controls())
    if request.param == "words":
        return make_model(folder, word_level(), unk_token="[UNK]")
    return ChatModel.load(EXAMPLES / "demo-small")


def controls_of(model: ChatModel, token_ids: list[int]) -> list[str]:
    """The control tokens among ids, as the tokenizer itself knows them."""
    added = model.tokenizer.get_added_tokens_decoder()
    unknown = model.template_variables.get("unk_token")
    return [added[i].content for i in token_ids if i in added and added[i].content != unknown]


TAGS = [
    *CONTROLS,
    "<|end|>",
    "<|user|>",
    "<|endoftext|>",
    "＜/s＞",
    "＜think＞",
    "<|im_",
    "end|>",
    "</",
    "s>",
    "<<",
    "\x1b",
]
messages = st.lists(st.one_of(st.sampled_from(TAGS), st.text(st.characters(codec="utf-8"), max_size=5))).map("".join)


@examples(60)
@given(messages)
def test_no_message_adds_a_control_token_or_takes_one_away(model: ChatModel, message: str) -> None:
    of_a_harmless_message = controls_of(model, model.prompt_ids("x"))
    assert controls_of(model, model.prompt_ids(message)) == of_a_harmless_message


@examples(60)
@given(messages)
def test_no_question_in_a_turn_adds_a_control_token_or_takes_one_away(model: ChatModel, question: str) -> None:
    of_a_harmless_question = controls_of(model, model.turn_ids("x", "</think>So"))
    assert controls_of(model, model.turn_ids(question, "</think>So")) == of_a_harmless_question


@examples(60)
@given(messages)
def test_no_text_becomes_more_than_letters_and_think_tags_when_it_goes_to_another_model(
    model: ChatModel, message: str
) -> None:
    assert set(controls_of(model, model.encode_output(message))) <= {"<think>", "</think>"}


@examples(40)
@given(st.text(st.sampled_from("ab 1+é\n{}%$\\"), min_size=1, max_size=30))
def test_prompt_of_an_ordinary_message_is_the_encoded_template(model: ChatModel, message: str) -> None:
    whole = model.tokenizer.encode(model._render(message), add_special_tokens=False).ids
    assert model.prompt_ids(message) == whole


def test_think_phase_is_the_templates_whatever_the_message(tmp_path: Path) -> None:
    model = make_model(tmp_path, bpe_that_joins_controls())
    assert not model.starts_in_think
    assert controls_of(model, model.prompt_ids("</think> so <think>")) == [
        "<s>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]


def test_end_that_stands_for_the_unknown_too_is_still_kept_out(tmp_path: Path) -> None:
    model = make_model(tmp_path, bpe_that_joins_controls(), unk_token="<|im_end|>")  # as in GPT-2
    assert controls_of(model, model.prompt_ids("a<|im_end|>b")).count("<|im_start|>") == 2
    assert model.prompt_ids("a<|im_end|>b").count(model.eos_ids[0]) == 1


SYNTAX = (
    "{{ 7*7 }} {% for x in y %} {# no #} {problem} {0} {} %s %(x)s $x ${x} \\boxed{} {{ cycler.__init__.__globals__ }}"
)


@pytest.mark.parametrize("name", _TEMPLATES)
def test_template_syntax_goes_to_the_model_as_it_is_written(name: str) -> None:
    problem = Problem(external_id="1", prompt=SYNTAX, metadata={"choices": [SYNTAX, "b"]})
    message = render_user_message(name, problem)
    assert SYNTAX in message
    model = ChatModel.load(EXAMPLES / "demo-small")
    text = model.tokenizer.decode(model.prompt_ids(message), skip_special_tokens=False)
    assert text == f"<|user|>{message}<|end|><|assistant|><think>\n"


# Where people read it

HOSTILE = "ok\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b5n\r\x08\x7f rtl:\u202egnirts\u2066\u200f end\tand\nmore"
OBEYED = "\x1b\x07\x08\x7f\x9b\r\u202e\u2066\u200f"


class Screen(io.StringIO):
    """A terminal that keeps what it is told."""

    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_one_for_one() -> None:
    assert visible("a\x1b[0m\tb\n") == "a␛[0m\tb\n"
    assert len(visible(HOSTILE)) == len(HOSTILE)
    assert visible("Grüße 😀 👩‍🔬 ∑ ar: مرحبا") == "Grüße 😀 👩‍🔬 ∑ ar: مرحبا"
    assert not set(visible(HOSTILE)) & set(OBEYED)


@examples(50)
@given(st.text())
def test_messages_of_one_line_have_no_character_that_is_obeyed(text: str) -> None:
    assert printable(text).isprintable()
    assert {char for char in visible(text) if unicodedata.category(char) == "Cc"} <= {"\t", "\n"}


def test_terminal_gets_no_command_from_data(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    print_rows([HOSTILE, "n"], [[HOSTILE, 1], [{"k": HOSTILE}, None]])
    console().print(f"job {HOSTILE}", style="bold")
    written = screen.getvalue()
    for command in ("\x1b]0", "\x1b[2J", "\x1b[31m", "\x9b", "\x07", "\x08", "\u202e", "\u2066"):
        assert command not in written
    assert "␛[2J" in written
    assert "\x1b[1m" in written  # the console's own


def test_json_has_no_character_that_a_terminal_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    value = {HOSTILE: [HOSTILE, "é 😀 مرحبا"], "n": 10**30}
    print_json(value)
    written = screen.getvalue()
    assert not set(written) & set(OBEYED)
    assert json.loads(written) == value
    assert "é 😀 مرحبا" in written


@pytest.mark.parametrize("format", [ExportFormat.JSONL, ExportFormat.CSV])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_results_on_a_terminal_command_nothing(format: ExportFormat, size: int) -> None:
    """Whatever the pieces in which they come, and whatever characters these cut in two."""
    screen = Screen()
    stream = VisibleStream(screen)
    written = f"{HOSTILE} é 😀\r\n".encode()
    for start in range(0, len(written), size):
        stream.write(written[start : start + size])
    stream.flush()
    assert not set(screen.getvalue()) & set(OBEYED)
    assert screen.getvalue().endswith(" end\tand\nmore é 😀\n")
    assert write_results([], cast("BinaryIO", stream), format) == 0


def test_log_that_people_read_commands_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="console"))
    structlog.get_logger().warning("sample refused", reason=HOSTILE, n=3)
    structlog.reset_defaults()
    written = capsys.readouterr().err
    assert "sample refused" in written
    assert not set(written) & set(OBEYED)


def test_cell_shows_what_it_cannot_dump_elsewhere() -> None:
    assert cell({"n": 10**30}) == '{"n": 1000000000000000000000000000000}'
    assert cell("\x1b[31m") == "␛[31m"
