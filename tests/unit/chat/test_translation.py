"""What a model is given of a text that another one wrote: ids, text, think tags, unfinished characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.chat.asking import Asking
from pipeline.chat.model import ChatModel
from pipeline.chat.translation import ThinkPhase, ThinkTagTranslator, first_prompt_tokens, settle_think_phase
from pipeline.errors import ConfigurationError
from pipeline.samples import Author, Piece
from pipeline.segments import WrittenSegment
from tests.pieces import written

CORPUS = ["What is 1 + 2?\n\nWait, reason step by step: the answer is 3.\n\n", "é € 😀 中文"] * 20


def make_chat(
    folder: Path, *, tags: tuple[str, str] | None = ("<think>", "</think>"), opens: bool = True, size: int = 360,
    tags_as_tokens: bool = True,
) -> ChatModel:  # fmt: skip
    """A byte-level BPE model; another size is another vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|user|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tags and tags_as_tokens:
        tokenizer.add_tokens([AddedToken(tag, special=False) for tag in tags])
    generation = (f"{tags[0]}\n" if opens else f"{{# {tags[1]} #}}") if tags else ""
    template = "<|user|>{{ messages[0].content }}<|end|>" + generation
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
    return ChatModel.load(folder)


OWN, OTHER = Author.SMALL, Author.LARGE


def part(chat: ChatModel, text: str, *, own: bool = False) -> WrittenSegment:
    return segment(chat, chat.piece(chat.encode_text(text)), own=own)


def segment(chat: ChatModel, piece: Piece, *, own: bool) -> WrittenSegment:
    return written(OWN if own else OTHER, piece, vocabulary_sha256=chat.vocabulary_sha256)


def decoded(chat: ChatModel, token_ids: list[int]) -> str:
    return str(chat.tokenizer.decode(token_ids, skip_special_tokens=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatModel:
    return make_chat(folder / "chat")


@pytest.fixture(scope="module")
def other(folder: Path) -> ChatModel:
    return make_chat(folder / "other", size=290)


def test_same_vocabulary_gets_the_very_ids(chat: ChatModel) -> None:
    letter_by_letter = chat.piece([token_id for letter in "Wait" for token_id in chat.encode_text(letter)])
    assert list(letter_by_letter.token_ids) != chat.encode_text("Wait")
    translator = ThinkTagTranslator(chat, settle_think_phase(chat))
    for own in (True, False):
        parts = [segment(chat, letter_by_letter, own=own)]
        assert translator.output_ids(parts, own=OWN) == list(letter_by_letter.token_ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.text(max_size=12)), max_size=6))
def test_each_model_keeps_its_own_ids_and_hears_every_character(
    chat: ChatModel, other: ChatModel, texts: list[tuple[bool, str]]
) -> None:
    parts = [part(chat, text, own=True) if own else part(other, text) for own, text in texts]
    token_ids = ThinkTagTranslator(chat, settle_think_phase(chat, other)).output_ids(parts, own=OWN)
    assert decoded(chat, token_ids) == "".join(text for _, text in texts)
    left = iter(token_ids)
    for own in (part for part in parts if part.author is OWN):
        assert all(token_id in left for token_id in own.piece.token_ids), "its own ids, in their order"


def test_unfinished_character_goes_to_no_other_vocabulary_and_on_in_its_own(chat: ChatModel, other: ChatModel) -> None:
    token_ids = chat.encode_text("a🜁b")
    cut = next(i for i in range(1, len(token_ids)) if "\ufffd" in decoded(chat, token_ids[:i]))
    stream = chat.decode_stream()
    begun = Piece(token_ids=tuple(token_ids[:cut]), texts=tuple(map(stream.step, token_ids[:cut])))
    assert begun.text == "a"
    ended = chat.decode_stream(token_ids[:cut])
    assert "".join(map(ended.step, token_ids[cut:])) == "🜁b"
    parts = [segment(chat, begun, own=True), part(other, "c")]
    phase = settle_think_phase(chat, other)
    assert decoded(chat, ThinkTagTranslator(chat, phase).output_ids(parts, own=OWN)) == "ac"
    assert decoded(other, ThinkTagTranslator(other, phase).output_ids(parts, own=OWN)) == "ac"
    assert ThinkTagTranslator(chat, phase).output_ids(parts[:1], own=OWN) == token_ids[:cut]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_text_in_two_pieces_is_the_text_in_one(chat: ChatModel, data: st.DataObject) -> None:
    ids = st.lists(st.integers(0, chat.tokenizer.get_vocab_size() - 1), max_size=12)
    before, after = data.draw(st.text(max_size=8).map(chat.encode_text)), data.draw(ids)
    cut = data.draw(st.integers(0, len(before)))
    whole = chat.decode_stream()
    expected = "".join(map(whole.step, [*before, *after]))
    first, second = chat.decode_stream(), chat.decode_stream(before[:cut])
    assert "".join([*map(first.step, before[:cut]), *map(second.step, [*before[cut:], *after])]) == expected


def test_think_tags_are_translated_both_ways(folder: Path, chat: ChatModel) -> None:
    mistral = make_chat(folder / "mistral", tags=("[THINK]", "[/THINK]"))
    phase = settle_think_phase(chat, mistral)
    assert phase == ThinkPhase(start="<think>", end="</think>", opened=True)
    translator = ThinkTagTranslator(mistral, phase)
    heard = translator.output_ids([part(chat, "So.\n</think>\n\nIt is 3.")], own=OWN)
    assert decoded(mistral, heard) == "So.\n[/THINK]\n\nIt is 3."
    assert mistral.tokenizer.token_to_id("[/THINK]") in heard
    said = translator.piece_to_job(mistral.piece(mistral.encode_text("So.[/THINK]3")))
    assert said.text == "So.</think>3"
    assert said.token_ids == tuple(mistral.encode_text("So.[/THINK]3"))


def test_pair_that_cannot_write_one_text_is_refused(folder: Path, chat: ChatModel) -> None:
    spelled = make_chat(folder / "spelled", tags=("[THINK]", "[/THINK]"), opens=False, tags_as_tokens=False)
    with pytest.raises(ConfigurationError, match=r"'\[/THINK\]', which its tokenizer writes in several tokens"):
        settle_think_phase(chat, spelled)


def test_template_that_does_not_open_the_think_phase_is_given_the_tag(folder: Path, chat: ChatModel) -> None:
    closed = make_chat(folder / "closed", opens=False)
    assert (closed.starts_in_think, closed.think_end) == (False, "</think>")
    opened = ThinkTagTranslator(closed, settle_think_phase(chat, closed))
    assert decoded(closed, opened.output_ids([part(chat, "So.")], own=OWN)) == "<think>\nSo."
    not_opened = ThinkTagTranslator(chat, settle_think_phase(closed, chat))
    assert decoded(chat, not_opened.output_ids([part(closed, "<think>\nSo.")], own=OWN)) == "So."


def test_model_without_think_tags_takes_the_others(folder: Path, chat: ChatModel) -> None:
    plain = make_chat(folder / "plain", tags=None)
    assert settle_think_phase(plain, chat) == ThinkPhase(start="<think>", end="</think>", opened=True)
    assert settle_think_phase(plain, other_is_unknown=True) == ThinkPhase(start="", end="", opened=False)
    assert settle_think_phase(plain) == ThinkPhase(start="<think>", end="</think>", opened=False), (
        "its text may open it"
    )
    told = plain.asked(Asking(think_tags=()))
    assert settle_think_phase(told) == ThinkPhase(start="", end="", opened=False), "the job says that it does not think"
    translator = ThinkTagTranslator(plain, settle_think_phase(plain, chat))
    assert decoded(plain, translator.output_ids([part(chat, "So.</think>")], own=OWN)) == "So.</think>"


def test_end_of_another_models_turn_is_letters_here(chat: ChatModel, other: ChatModel) -> None:
    end = chat.tokenizer.token_to_id("<|end|>")
    heard = ThinkTagTranslator(chat, settle_think_phase(chat, other)).output_ids(
        [part(other, "a<|end|>b</think>c")], own=OWN
    )
    assert end not in heard
    assert decoded(chat, heard) == "a<|end|>b</think>c"
    assert chat.tokenizer.token_to_id("</think>") in heard


def test_text_that_goes_on_gets_no_space_put_before_it() -> None:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    chat = ChatModel(
        name="spaces", tokenizer=tokenizer, chat_template="", template_variables={}, eos_ids=(), max_model_len=None
    )
    for text in ("ab", " ab", "b a", "\nab"):
        assert chat.piece(chat.encode_text(text)).text == text
    assert chat.encode_text("ab") == [tokenizer.token_to_id("a"), tokenizer.token_to_id("b")]


def test_length_of_the_prompt_is_the_first_writers() -> None:
    assert first_prompt_tokens([]) is None
    assert first_prompt_tokens([(40, 7), (47, 2)]) == 40
    assert first_prompt_tokens([(0, 5), (45, 7)]) == 40, "after an inserted sentence"
