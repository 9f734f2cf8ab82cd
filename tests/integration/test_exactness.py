"""The asynchronous path, the order, the number of workers and the vocabulary change nothing; stored runs replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from pipeline.chat.model import ChatModel
from pipeline.cli.app import app
from pipeline.db.replays import get_stored_sample
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.policies import parse_policy
from pipeline.results.replay import replay
from pipeline.results.stored import StoredSample
from pipeline.samples import Author, FinishReason, ModelRole, SampleState
from pipeline.signals import Signal
from tests.integration.writer_pool import LARGE, SMALL, Engines, WriterPool, make_writer_pool
from tests.permuted import permute_vocabulary

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WRITTEN = "g.author, g.trigger, g.cue, g.token_ids, g.discarded_ids, g.finish, g.seed"


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture(scope="module")
def writers(servers: Connections) -> Iterator[WriterPool]:
    with make_writer_pool(servers) as writers:
        yield writers


def run(
    writers: WriterPool,
    engines: Engines,
    *,
    num_workers: int = 1,
    in_flight: int = 128,
    order: int = 0,
    small: Path = SMALL,
    large: Path = LARGE,
    **options: Any,
) -> int:
    """A job from submit to the last sample's end; no sample may fail."""
    for number in range(num_workers):
        writers.hire(engines.get(small, ModelRole.SMALL, number), small, ModelRole.SMALL, max_in_flight=in_flight)
        writers.hire(engines.get(large, ModelRole.LARGE, number), large, ModelRole.LARGE)
    job = writers.submit(small=small, large=large, **options)
    writers.work(order=order)
    writers.dismiss()
    assert writers.rows(f"SELECT DISTINCT state FROM samples WHERE job_id = {job}") == [("finished",)]
    return job


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_order_and_number_of_workers_change_no_segment(
    writers: WriterPool, engines: Engines, temperature: float
) -> None:
    one_by_one = run(writers, engines, in_flight=1, temperature=temperature)
    expected = writers.segments(one_by_one, WRITTEN)
    authors = {row[3] for row in expected}
    assert authors == {"small", "large", "inserted"}
    for num_workers, order in ((1, 1), (2, 2)):
        job = run(writers, engines, num_workers=num_workers, order=order, temperature=temperature)
        assert writers.segments(job, WRITTEN) == expected
    assert all(replayed.divergence is None for replayed in writers.client.replay_job(job))


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> dict[ModelRole, Path]:
    folder = tmp_path_factory.mktemp("permuted")
    return {
        ModelRole.SMALL: permute_vocabulary(SMALL, folder / "permuted-small", seed=1),
        ModelRole.LARGE: permute_vocabulary(LARGE, folder / "permuted-large", seed=2),
    }


def test_permuted_model_speaks_the_same_language_in_other_ids(permuted: dict[ModelRole, Path]) -> None:
    for role, original in ((ModelRole.SMALL, SMALL), (ModelRole.LARGE, LARGE)):
        chat, other = ChatModel.load(original), ChatModel.load(permuted[role])
        words = "First add 3.\n\nWait, what?</think>\n\nThe result is \\boxed{4}."
        assert chat.encode_text(words) != other.encode_text(words)
        assert chat.piece(chat.encode_text(words)).texts == other.piece(other.encode_text(words)).texts
        assert chat.vocabulary_sha256 != other.vocabulary_sha256


def test_greedy_texts_are_the_same_under_another_vocabulary(
    writers: WriterPool, engines: Engines, permuted: dict[ModelRole, Path]
) -> None:
    plain = run(writers, engines, limit=12, temperature=0.0)
    what = "g.author, g.trigger, g.cue, g.text, cardinality(g.token_ids), g.discarded_text, g.finish"
    expected = writers.segments(plain, what)
    assert sum(row[3] == "large" for row in expected) > 12
    small, large = permuted[ModelRole.SMALL], permuted[ModelRole.LARGE]
    for models in ((SMALL, large), (small, LARGE), (small, large)):
        job = run(writers, engines, limit=12, temperature=0.0, small=models[0], large=models[1])
        assert writers.segments(job, what) == expected
        assert all(replayed.divergence is None for replayed in writers.client.replay_job(job))


def test_ids_are_the_authors_own_under_two_vocabularies(
    writers: WriterPool, engines: Engines, permuted: dict[ModelRole, Path]
) -> None:
    large = permuted[ModelRole.LARGE]
    job = run(writers, engines, limit=4, temperature=0.9, large=large)
    chats = {"demo-small": ChatModel.load(SMALL), "permuted-large": ChatModel.load(large)}
    rows = writers.rows(f"""
        SELECT e.model, g.author, g.token_ids, g.text FROM segments g JOIN engines e ON e.id = g.engine_id
        JOIN samples s ON s.id = g.sample_id WHERE s.job_id = {job}
    """)
    assert {(model, author) for model, author, *_ in rows} >= {("demo-small", "small"), ("permuted-large", "large")}
    for model, _, token_ids, written in rows:
        assert chats[model].tokenizer.decode(token_ids, skip_special_tokens=False) == written


ASKING: dict[str, dict[str, Any]] = {
    "specreason:rating": {"steps_per_review": 2, "self_check": 4},
    "specreason:doubt": {"threshold": 0.2},
    "mentor": {"chooser": "mentor", "rate": 0.5},
}
"""Policies that ask, with values at which the demo pair does not always come to the same."""


@pytest.mark.parametrize("policy", ASKING)
def test_what_is_asked_and_answered_is_the_same_under_another_vocabulary(
    writers: WriterPool, engines: Engines, permuted: dict[ModelRole, Path], policy: str
) -> None:
    what = "g.author, g.trigger, g.text, cardinality(g.token_ids), g.takes_over, g.taken_from"
    small, large = permuted[ModelRole.SMALL], permuted[ModelRole.LARGE]
    spec = parse_policy(policy, ASKING[policy])
    found = []
    for models in ((SMALL, LARGE), (SMALL, large), (small, large)):
        job = run(writers, engines, limit=4, temperature=0.0, small=models[0], large=models[1], policy=spec)
        asides = writers.rows(f"""
            SELECT p.external_id, s.sample_index, a.aside_index, a.author, a.purpose, a.text, a.outcome
            FROM asides a JOIN samples s ON s.id = a.sample_id JOIN problems p ON p.id = s.problem_id
            WHERE s.job_id = {job} ORDER BY 1, 2, 3
        """)
        found.append((writers.segments(job, what), asides))
        assert all(replayed.divergence is None for replayed in writers.client.replay_job(job))
    assert found[0][1], "nothing was asked"
    assert found[1:] == [found[0]] * 2


@pytest.mark.parametrize(
    "policy",
    ["speculative-thinking:improved", "speculative-thinking:paper", "speculative-thinking:code", "random", *ASKING],
)
def test_stored_samples_replay(writers: WriterPool, engines: Engines, policy: str) -> None:
    job = run(writers, engines, policy=parse_policy(policy, ASKING.get(policy)), temperature=0.9, seed=3)
    replays = list(writers.client.replay_job(job))
    assert [replayed.divergence for replayed in replays] == [None] * 6
    assert sum(replayed.num_segments for replayed in replays) >= 6


@pytest.fixture(scope="module")
def stored(writers: WriterPool, engines: Engines) -> StoredSample:
    """A complete sample with takeovers and an inserted sentence."""
    job = run(writers, engines, temperature=0.9, seed=11)
    inserted = f"SELECT min(g.sample_id) FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = {job} "
    with transaction(writers.db_engine) as connection:
        sample_id = connection.execute(text(inserted + "AND g.author = 'inserted'")).scalar_one()
        return get_stored_sample(connection, sample_id)


def with_segment(stored: StoredSample, index: int, *, rehashed: bool = True, **changes: Any) -> StoredSample:
    """The sample with one segment changed. rehashed: by somebody who knows of the hash."""
    segments = list(stored.segments)
    changed = replace(segments[index], **changes)
    segments[index] = replace(changed, content_sha256=changed.sha256) if rehashed else changed
    return replace(stored, segments=tuple(segments))


def first(stored: StoredSample, author: Author) -> int:
    return next(segment.segment_index for segment in stored.segments if segment.author is author)


def test_replay_finds_each_kind_of_corruption(stored: StoredSample) -> None:
    assert replay(stored).divergence is None
    large, inserted, last = first(stored, Author.LARGE), first(stored, Author.INSERTED), len(stored.segments) - 1
    segment = stored.segments[large]
    draft = stored.segments[0]
    corrupted = {
        "hash": with_segment(stored, 0, rehashed=False, token_ids=[draft.token_ids[0] + 1, *draft.token_ids[1:]]),
        "trigger": with_segment(stored, large, trigger="affirmation" if segment.trigger != "affirmation" else "verify"),
        "cue": with_segment(stored, large, cue="perhaps"),
        "kept tokens": with_segment(
            stored,
            0,
            token_ids=draft.token_ids[:-1],
            text=draft.text[: -draft.token_lengths[len(draft.token_ids) - 1]],
            discarded_ids=[draft.token_ids[-1], *draft.discarded_ids],
            discarded_text=draft.text[-draft.token_lengths[len(draft.token_ids) - 1] :] + draft.discarded_text,
        ),
        "author": with_segment(stored, large, author=Author.SMALL),
        "seed": with_segment(stored, large, seed=(segment.seed or 0) + 1),
        "place": replace(stored, segments=stored.segments[:2] + stored.segments[3:]),
        "tokens generated": with_segment(stored, large, tokens_generated=segment.tokens_generated + 1),
        "text": with_segment(stored, inserted, text="Let me see:"),
        "number of segments": replace(stored, num_segments=last),
        "finish reason": replace(stored, finish_reason=FinishReason.REPETITION),
        "takeovers": replace(stored, num_takeovers=stored.num_takeovers + 1),
        "tokens large": replace(stored, tokens_large=stored.tokens_large - 1),
        "discarded small": replace(stored, discarded_small=stored.discarded_small + 1),
        "policy state": replace(stored, policy_state={"reflections": 1}),
        "number of steps": replace(stored, steps=stored.steps[:-1]),
        "step 1 author": replace(
            stored, steps=(stored.steps[0], replace(stored.steps[1], author=Author.INSERTED), *stored.steps[2:])
        ),
    }
    for what, sample in corrupted.items():
        found = replay(sample).divergence
        assert found is not None, what
        assert what in str(found), f"{what}: {found}"
    cut = replace(stored, segments=stored.segments[:last], num_segments=last)
    assert replay(cut).divergence is not None, "the last segment is missing"


def test_replay_names_the_first_segment_that_differs(stored: StoredSample) -> None:
    large = first(stored, Author.LARGE)
    found = replay(with_segment(stored, large, trigger="whim")).divergence
    assert found is not None
    assert (found.segment_index, found.what, found.stored) == (large, "trigger", "whim")
    assert found.replayed == stored.segments[large].trigger


def test_sample_at_work_is_replayed_so_far(stored: StoredSample) -> None:
    begun = replace(with_nothing(stored), state=SampleState.PENDING, finish_reason=None, policy_state=None)
    assert replay(begun).divergence is None


def with_nothing(stored: StoredSample) -> StoredSample:
    return replace(
        stored, segments=(), num_segments=0, steps=(), num_takeovers=0, tokens_small=0, tokens_large=0,
        tokens_inserted=0, discarded_small=0, discarded_large=0,
    )  # fmt: skip


def test_replay_finds_a_sample_that_lost_all_its_segments(stored: StoredSample) -> None:
    for lost in (
        replace(stored, segments=()),
        replace(stored, segments=(), num_segments=0, steps=()),
        with_nothing(stored),
        replace(stored, state=SampleState.DRAFTING, segments=(), num_segments=0, finish_reason=None, steps=()),
    ):
        assert replay(lost).divergence is not None


def test_replay_computes_seeds_again(stored: StoredSample) -> None:
    """A job that was written with another seed than it says now does not replay, though each hash fits."""
    other = replace(stored, config=stored.config.model_copy(update={"seed": stored.config.seed + 1}))
    found = replay(other).divergence
    assert found is not None
    assert found.what == "seed"


def test_replay_command_says_what_a_changed_row_is(
    writers: WriterPool, stored: StoredSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", writers.url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_REDIS_URL", "redis://localhost:1/0")  # reading needs none
    sample = str(stored.sample_id)
    done = CliRunner().invoke(app, ["replay", sample])
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert f"sample {sample}: {len(stored.segments)} segments" in done.output
    segment = stored.segments[0]
    row = {"id": stored.sample_id, "ids": [segment.token_ids[0] + 1, *segment.token_ids[1:]]}
    change = text("UPDATE segments SET token_ids = :ids WHERE sample_id = :id AND segment_index = 0")
    with transaction(writers.db_engine) as connection:
        connection.execute(change, row)
    try:
        done = CliRunner().invoke(app, ["replay", sample, "--json"])
        assert done.exit_code == 1
        found = orjson.loads(done.output)["divergence"]
        assert (found["segment_index"], found["stored"]) == (0, segment.content_sha256)
        whole = CliRunner().invoke(app, ["replay", "--job", str(stored.job_id)])
        assert whole.exit_code == 1
        assert f"sample {sample}, " in whole.output
        assert "5 of 6 samples" in whole.output
    finally:
        with transaction(writers.db_engine) as connection:
            connection.execute(change, row | {"ids": list(segment.token_ids)})
    assert CliRunner().invoke(app, ["replay", "--job", str(stored.job_id)]).exit_code == 0
    assert CliRunner().invoke(app, ["replay"]).exit_code == 2


def test_hash_is_of_every_column_that_says_what_was_written(stored: StoredSample) -> None:
    segment = stored.segments[0]
    assert segment.sha256 == segment.content_sha256
    assert replace(segment, seed=1).sha256 != segment.content_sha256
    assert replace(segment, value=0.5).sha256 != segment.content_sha256
    assert replace(segment, signals={Signal.LOGPROB: (-0.5,)}).sha256 != segment.content_sha256
    assert replace(segment, write_seconds=1.0, epoch=9).sha256 == segment.content_sha256


def test_stop_strings_end_samples_outside_their_thoughts_alone(writers: WriterPool, engines: Engines) -> None:
    """Of the same seeds the text is the same up to the stop string, whoever writes it and however tokens split it."""
    options: dict[str, Any] = {"temperature": 0.6, "seed": 3, "limit": 10, "num_samples": 2}
    texts = "SELECT problem, sample_index, finish_reason, output FROM results WHERE job_id = {}"
    for name in ("small-only", "speculative-thinking:improved"):
        policy = parse_policy(name)
        plain = {
            row[:2]: row[2:] for row in writers.rows(texts.format(run(writers, engines, policy=policy, **options)))
        }
        job = run(writers, engines, policy=policy, stop=("oxed{", "he "), **options)
        stopped = {row[:2]: row[2:] for row in writers.rows(texts.format(job))}
        ended = 0
        for sample, (reason, written) in plain.items():
            thought, tag, answer = written.partition("</think>")
            places = [place for stop in ("oxed{", "he ") if (place := answer.find(stop)) >= 0]
            if places:
                assert stopped[sample] == ("stop", thought + tag + answer[: min(places)])
                ended += 1
            else:
                assert stopped[sample] == (reason, written)
        assert ended >= 10
        assert any("he " in written.partition("</think>")[0] for _, written in stopped.values()), "thoughts hold it too"
        assert all(replayed.divergence is None for replayed in writers.client.replay_job(job))
