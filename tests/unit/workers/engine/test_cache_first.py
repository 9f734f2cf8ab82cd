"""Who goes first where contexts do not fit into a cache, and that none is lost on the way."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Sequence

import pytest

from pipeline.errors import EngineDied
from pipeline.samples import Piece, SegmentFinish
from workers.engine.base import (
    Done,
    Engine,
    EngineInfo,
    EngineStats,
    GenerateRequest,
    GenerateResult,
    Sampling,
)
from workers.engine.cache_first import LEAST_AT_WORK, CacheFirst

SLOTS = 4


class ByHand:
    """An engine whose requests end when the test says so."""

    info = EngineInfo(kind="scripted", version="1", settings={})
    max_model_len = 10_000
    max_in_flight = SLOTS

    def __init__(self, cache_tokens: int | None = 1000) -> None:
        self.cache_tokens = cache_tokens
        self.running: dict[str, tuple[GenerateRequest, Done]] = {}
        self.order: list[str] = []
        self.death: EngineDied | None = None
        self.entering: threading.Event | None = None
        """Waits in submit until the test says so."""

    def why_not(self, sampling: Sampling) -> str | None:
        return None

    def submit(self, request: GenerateRequest, done: Done) -> None:
        if self.entering is not None:
            assert self.entering.wait(10)
        if self.death is not None:
            done(self.death)
            return
        self.running[request.request_id] = request, done
        self.order.append(request.request_id)

    def abort(self, request_id: str) -> None:
        if request_id in self.running:
            self.end(request_id, finish=SegmentFinish.WATCH)

    def end(self, request_id: str, num_tokens: int = 0, finish: SegmentFinish = SegmentFinish.EOS) -> None:
        request, done = self.running.pop(request_id)
        token_ids = (*request.written, *range(num_tokens))
        done(
            GenerateResult(
                request_id=request_id,
                piece=Piece(token_ids=token_ids, texts=("",) * len(token_ids)),
                finish=finish,
                num_generated_tokens=num_tokens,
                num_prompt_tokens=len(request.prompt_ids),
                num_cached_tokens=0,
                queue_seconds=0.25,
                first_token_seconds=0.5,
                total_seconds=1.0,
            )
        )

    def written(self, request_id: str) -> Sequence[int] | None:
        return (7,) if request_id in self.running else None

    def stats(self) -> EngineStats:
        return EngineStats(
            num_generated_tokens=0, num_lost_tokens=0, num_prompt_tokens=0, num_cached_tokens=0,
            num_running=len(self.running), num_waiting=0, cache_usage=0.0, cache_tokens=self.cache_tokens,
            last_token_age_s=0.0,
        )  # fmt: skip

    def close(self) -> None:
        self.die()

    def die(self) -> None:
        self.death = EngineDied("m", "it died")
        for request_id in list(self.running):
            _, done = self.running.pop(request_id)
            done(self.death)


class World:
    """An engine by hand behind the one that is tested, and what came of each request."""

    def __init__(self, cache_tokens: int | None = 1000) -> None:
        self.inner = ByHand(cache_tokens)
        self.engine: Engine = CacheFirst(self.inner)
        self.outcomes: dict[str, GenerateResult | Exception] = {}

    def submit(
        self, name: str, context: int | None, num_tokens: int = 100, priority: int = 0, written: int = 0
    ) -> None:
        def done(outcome: GenerateResult | Exception) -> None:
            assert name not in self.outcomes
            self.outcomes[name] = outcome

        request = GenerateRequest(
            request_id=name, prompt_ids=[1] * num_tokens, max_tokens=50, sampling=Sampling(), priority=priority,
            context=context, written=(3,) * written,
        )  # fmt: skip
        self.engine.submit(request, done)

    def visit(self, context: int) -> None:
        """A request that is begun and ends."""
        self.submit("visit", context)
        self.inner.end("visit")
        del self.outcomes["visit"]

    def fill(self) -> None:
        """Contexts 0 to 9 are cached, and come back; four new ones are at work, and more have no room."""
        for _ in range(30):
            for context in range(10):
                self.visit(context)
        for number in range(LEAST_AT_WORK + 2):
            self.submit(f"new {number}", 100 + number, num_tokens=130)
        self.inner.order.clear()


def test_where_there_is_room_all_are_handed_on_at_once() -> None:
    world = World()
    for number in range(9):
        world.submit(str(number), number)
    assert list(world.inner.running) == [str(number) for number in range(9)]


def test_what_is_not_cached_waits_while_the_cache_is_needed() -> None:
    world = World()
    world.fill()
    assert list(world.inner.running) == [f"new {number}" for number in range(LEAST_AT_WORK)]
    assert (world.engine.stats().num_running, world.engine.stats().num_waiting) == (LEAST_AT_WORK, 2)
    world.inner.end("new 1")
    assert world.inner.order == ["new 4"]
    assert world.engine.stats().num_waiting == 1


def test_what_is_cached_never_waits_and_goes_before_the_others() -> None:
    world = World()
    world.fill()
    world.submit("back", 9, priority=3)
    assert world.inner.order == ["back"]
    priority = world.inner.running["back"][0].priority
    assert priority < world.inner.running["new 0"][0].priority - 2
    world.submit("lost", 1)
    assert world.inner.order == ["back"], "its context gave way to those at work"


def test_what_waits_is_begun_by_priority_and_age() -> None:
    world = World()
    world.fill()
    for name, priority in (("late", 1), ("first", -5), ("second", -5)):
        world.submit(name, hash(name), priority=priority)
    for _ in range(9):
        world.inner.end(next(iter(world.inner.running)))
    assert world.inner.order == ["first", "second", "new 4", "new 5", "late"]


def test_the_time_that_a_request_waits_here_counts() -> None:
    world = World()
    world.fill()
    world.inner.end("new 0")
    world.inner.end("new 4")
    result = world.outcomes["new 4"]
    assert isinstance(result, GenerateResult)
    waited = result.queue_seconds - 0.25
    assert waited > 0
    assert result.first_token_seconds == pytest.approx(0.5 + waited)
    assert result.total_seconds == pytest.approx(1.0 + waited)


def test_a_request_that_is_aborted_while_it_waits_gives_what_was_written_before() -> None:
    world = World()
    world.fill()
    world.submit("aborted", 200, written=5)
    world.engine.abort("aborted")
    world.engine.abort("nobody")
    result = world.outcomes["aborted"]
    assert isinstance(result, GenerateResult)
    assert (result.finish, result.piece.token_ids) == (SegmentFinish.WATCH, (3,) * 5)
    for _ in range(LEAST_AT_WORK + 2):
        world.inner.end(next(iter(world.inner.running)))
    assert len(world.outcomes) == LEAST_AT_WORK + 3
    assert world.engine.stats().num_waiting == 0


def test_a_request_that_is_aborted_on_its_way_to_the_engine_ends() -> None:
    world = World()
    world.inner.entering = threading.Event()
    submitting = threading.Thread(target=world.submit, args=("r", 1))
    submitting.start()
    while "r" not in world.engine._handed:  # type: ignore[attr-defined]
        pass
    world.engine.abort("r")
    assert world.outcomes == {}
    world.inner.entering.set()
    submitting.join(10)
    assert isinstance(world.outcomes["r"], GenerateResult)


def test_an_id_in_use_is_refused_wherever_the_request_is() -> None:
    world = World()
    world.fill()
    for name in ("new 0", "new 5"):
        with pytest.raises(ValueError, match="in use"):
            world.submit(name, 1)


@pytest.mark.parametrize("end", ["die", "close"])
def test_all_that_waits_learns_that_the_engine_is_gone(end: str) -> None:
    world = World()
    world.fill()
    for number in range(3000):  # more than Python lets calls go down
        world.submit(f"more {number}", 1000 + number)
    if end == "die":
        world.inner.die()
    else:
        world.engine.close()
    assert len(world.outcomes) == LEAST_AT_WORK + 2 + 3000
    assert all(isinstance(outcome, EngineDied) for outcome in world.outcomes.values())


def test_a_done_that_fails_holds_nobody_up() -> None:
    world = World()
    world.fill()

    def done(outcome: GenerateResult | Exception) -> None:
        raise RuntimeError("no")

    world.inner.running["new 0"] = world.inner.running["new 0"][0], world.inner.running["new 0"][1]
    request = GenerateRequest(request_id="bad", prompt_ids=[1], max_tokens=5, sampling=Sampling(), context=9)
    world.engine.submit(request, done)
    world.inner.end("new 1")
    with pytest.raises(RuntimeError, match="no"):
        world.inner.end("bad")
    world.inner.end("new 2")
    assert {"new 4", "new 5"} <= set(world.inner.running)


# What it is worth.


class Visits:
    """Contexts that come to an engine again and again, in steps: at each a request ends, and its context comes back
    when some others have. The engine works on the first of what it was given and forgets what was left longest ago."""

    def __init__(self, *, cache_first: bool, cache_tokens: int, slots: int, away: int) -> None:
        self.inner = ByHand(cache_tokens)
        self.engine: Engine = CacheFirst(self.inner) if cache_first else self.inner
        self.random = random.Random(1)
        self.cache_tokens, self.slots, self.most_away = cache_tokens, slots, away
        self.cached: OrderedDict[int, int] = OrderedDict()
        self.at_work: dict[str, int] = {}
        self.computed = 0
        self.ended: list[int] = []

    def run(self, *, num_contexts: int, visits: int, num_tokens: int, grows: int) -> int:
        """Prompt tokens that the engine computed until each context has had all its visits."""
        lengths = dict.fromkeys(range(num_contexts), num_tokens)
        left = dict.fromkeys(range(num_contexts), visits)
        away: list[int] = []
        for context in lengths:
            self.submit(context, num_tokens)
        while any(left.values()):
            self.step()
            for context in self.ended:
                left[context] -= 1
                lengths[context] += grows
                away += [context] if left[context] else []
            self.ended.clear()
            while len(away) > self.most_away or (away and not self.inner.running):
                context = away.pop(self.random.randrange(len(away)))
                self.submit(context, lengths[context])
        return self.computed

    def submit(self, context: int, num_tokens: int) -> None:
        request = GenerateRequest(
            request_id=str(context), prompt_ids=range(num_tokens), max_tokens=10, sampling=Sampling(), context=context
        )
        self.engine.submit(request, lambda _: self.ended.append(context))

    def step(self) -> None:
        """Begin what there is a slot for, and end one."""
        waiting = [request for request, _ in self.inner.running.values() if request.request_id not in self.at_work]
        waiting.sort(key=lambda request: request.priority)
        for request in waiting[: self.slots - len(self.at_work)]:
            assert request.context is not None
            self.computed += len(request.prompt_ids) - self.cached.pop(request.context, 0)
            self.at_work[request.request_id] = len(request.prompt_ids)
            self.forget()
        request_id = self.random.choice(list(self.at_work))
        self.cached[int(request_id)] = self.at_work.pop(request_id)
        self.inner.end(request_id)

    def forget(self) -> None:
        while sum(self.cached.values()) + sum(self.at_work.values()) > self.cache_tokens and self.cached:
            self.cached.popitem(last=False)


@pytest.mark.parametrize(
    ("cache_tokens", "slots", "away", "bare", "first"),
    [
        (4000, 8, 6, 6, 1.3),  # a cache of 20 to 40 contexts
        (2000, 8, 4, 6, 2),
        (2000, 16, 4, 6, 2),  # of as many as are worked on at most
        (2000, 64, 4, 6, 2),
        (20_000, 8, 6, 1, 1),  # of all of them
    ],
)
def test_a_cache_that_is_short_is_worth_its_size(
    cache_tokens: int, slots: int, away: int, bare: float, first: float
) -> None:
    """A hundred contexts of a hundred to two hundred tokens, eleven visits each."""
    needed = 100 * 200

    def computed(*, cache_first: bool) -> int:
        visits = Visits(cache_first=cache_first, cache_tokens=cache_tokens, slots=slots, away=away)
        return visits.run(num_contexts=100, visits=11, num_tokens=100, grows=10)

    assert computed(cache_first=False) >= bare * needed
    assert needed <= computed(cache_first=True) <= first * needed
