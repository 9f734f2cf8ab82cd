"""The scripted engine's own parts; what it shares with the real one is in tests/integration/test_engine_contract.py."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from pipeline.errors import EngineDied, PipelineError
from pipeline.samples import SegmentFinish
from workers.engine.base import GenerateRequest, GenerateResult, Sampling
from workers.engine.scripted import Script, ScriptedEngine, Vocabulary, answers


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture
def engines() -> Iterator[list[ScriptedEngine]]:
    opened: list[ScriptedEngine] = []
    yield opened
    for engine in opened:
        engine.close()


def run(engine: ScriptedEngine, *prompts: list[int], max_tokens: int = 100) -> list[GenerateResult | PipelineError]:
    outcomes: dict[str, GenerateResult | PipelineError] = {}
    over = threading.Semaphore(0)

    def note(name: str, outcome: GenerateResult | PipelineError) -> None:
        outcomes[name] = outcome
        over.release()

    names = [f"r{index}" for index in range(len(prompts))]
    for name, prompt_ids in zip(names, prompts, strict=True):
        request = GenerateRequest(
            request_id=name, prompt_ids=prompt_ids, max_tokens=max_tokens, sampling=Sampling(), seed=1
        )
        engine.submit(request, partial(note, name))
    for _ in prompts:
        assert over.acquire(timeout=10)
    return [outcomes[name] for name in names]


@pytest.mark.parametrize(
    "text", ["", "Wait, what?", "  two  blanks ", "one.\n\nWait,\n three\t\n", "\n\n\n", "ünï  cödé\n"]
)
def test_vocabulary_is_lossless(vocabulary: Vocabulary, text: str) -> None:
    token_ids = vocabulary.encode(text)
    assert vocabulary.decode(token_ids) == text
    stream = vocabulary.decode_stream()
    assert "".join(map(stream.step, token_ids)) == text


def test_vocabulary_gives_the_same_words_the_same_ids(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(" a b\n\n a") == [0, 1, 2, 0]


def test_breaks_are_tokens_of_their_own(vocabulary: Vocabulary) -> None:
    stream = vocabulary.decode_stream()
    texts = [stream.step(token_id) for token_id in vocabulary.encode("It is 4.\n\nWait, no")]
    assert texts == ["It", " is", " 4.", "\n\n", "Wait,", " no"]


def test_answer_of_the_table_ends_with_eos(vocabulary: Vocabulary, engines: list[ScriptedEngine]) -> None:
    engine = ScriptedEngine(answers(vocabulary, {"What is 1+1?": " It is 2."}), vocabulary.decode_stream)
    engines.append(engine)
    [result] = run(engine, vocabulary.encode("What is 1+1?"))
    assert isinstance(result, GenerateResult)
    assert result.piece.text == " It is 2."
    assert (result.finish, result.num_generated_tokens) == (SegmentFinish.EOS, 4)


def test_answer_goes_on_where_the_prompt_ends(vocabulary: Vocabulary, engines: list[ScriptedEngine]) -> None:
    table = {"Q": " one two three four", "Q R": " other"}
    engine = ScriptedEngine(answers(vocabulary, table), vocabulary.decode_stream)
    engines.append(engine)
    results = run(engine, vocabulary.encode("Q one two"), vocabulary.encode("Q some words"), vocabulary.encode("Q R"))
    texts = [result.piece.text for result in results if isinstance(result, GenerateResult)]
    assert texts == [" three four", " three four", " other"]


def test_script_that_fails_is_the_end_of_the_engine(vocabulary: Vocabulary, engines: list[ScriptedEngine]) -> None:
    engine = ScriptedEngine(answers(vocabulary, {}), vocabulary.decode_stream)
    engines.append(engine)
    [outcome] = run(engine, vocabulary.encode("unknown"))
    assert isinstance(outcome, EngineDied)
    assert "no answer for the prompt 'unknown'" in str(outcome)
    [later] = run(engine, vocabulary.encode("unknown"))
    assert isinstance(later, EngineDied)
    assert engine.stats().is_dead


def test_cached_tokens_are_whole_blocks_of_what_was_seen(engines: list[ScriptedEngine]) -> None:
    engine = ScriptedEngine(silence, Vocabulary().decode_stream, block_size=4)
    engines.append(engine)
    prompts = [list(range(8)), list(range(9)), list(range(11)), [*range(4), 99, *range(5, 12)], [7, *range(1, 9)]]
    cached = []
    for prompt_ids in prompts:
        [result] = run(engine, prompt_ids)
        assert isinstance(result, GenerateResult)
        cached.append(result.num_cached_tokens)
    assert cached == [0, 8, 8, 4, 0]


def silence(request: GenerateRequest) -> Iterator[int]:
    return iter(())


def test_no_more_than_max_in_flight_write_at_once(vocabulary: Vocabulary, engines: list[ScriptedEngine]) -> None:
    writing = 0
    most = 0

    def script(request: GenerateRequest) -> Iterator[int]:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        yield from vocabulary.encode(" a b c")
        writing -= 1

    engine = ScriptedEngine(script, vocabulary.decode_stream, max_in_flight=3)
    engines.append(engine)
    results = run(engine, *([[0]] * 10))
    assert all(isinstance(result, GenerateResult) for result in results)
    assert most == 3


def test_same_requests_give_the_same_results(vocabulary: Vocabulary, engines: list[ScriptedEngine]) -> None:
    script: Script = answers(vocabulary, {"Q": " one two three"})
    pieces = []
    for _ in range(2):
        engine = ScriptedEngine(script, vocabulary.decode_stream)
        engines.append(engine)
        pieces.append([getattr(result, "piece", None) for result in run(engine, *[vocabulary.encode("Q")] * 5)])
    assert pieces[0] == pieces[1]
    assert None not in pieces[0]
