"""Places pools of workers on GPUs.

1. Pools with devices of their own go there.
2. The others are placed by what they need, the most first: on the fewest empty GPUs on which they fit, else beside
   others. GPUs of one worker have the same memory. The emptiest come first, then those of the lowest number.
3. Empty GPUs that remain go, worker by worker, to the pool with the most work per GPU.
4. Workers on one GPU divide it by their needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.devices.machine import GIB, Gpu, Machine
from pipeline.devices.needs import Need, need_on_gpu, remedy
from pipeline.devices.pools import PlannedWorker, Pool
from pipeline.devices.sizes import ModelSize
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings

TOKENS_WRITTEN = {ModelRole.SMALL: 0.8, ModelRole.LARGE: 0.2, ModelRole.JUDGE: 0.1}
"""Share of a job's tokens that each role writes: a guess before any job has run; `specthink plan` knows better then."""
OCCUPIED = 0.1
"""A GPU of whose memory others use more is left to them, unless it is named."""
_SPARE = GIB // 2
"""Of what is free on a GPU, so much is left: others grow a little, and nvidia-smi counts what CUDA does not give."""
_SAME_SIZE = 0.05
_MOST_GPUS = 64


@dataclass(kw_only=True)
class _Room:
    """A GPU while workers are placed. ceiling: bytes that all of them may use."""

    gpu: Gpu
    ceiling: int
    tenants: list[_Placement] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.ceiling - sum(tenant.least for tenant in self.tenants)


@dataclass(kw_only=True, eq=False)
class _Placement:
    """One worker that has its GPUs. share: where it was given."""

    request: Request
    rooms: list[_Room]
    need: Need
    share: float | None = None

    @property
    def least(self) -> int:
        """Bytes that it takes of each GPU at least."""
        given = None if self.share is None else int(self.share * min(room.gpu.memory for room in self.rooms))
        return self.need.total if given is None else given


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A pool, its engines' settings, and how large its model is."""

    pool: Pool
    engine: EngineSettings
    size: ModelSize

    def need(self, tp: int) -> Need:
        return need_on_gpu(self.size, self.engine, tp)

    def splits(self, most: int) -> Iterator[int]:
        """The numbers of GPUs over which its weights can be split, the fewest first."""
        wanted = self.pool.tp or (self.engine.vllm.tensor_parallel_size if self._tp_is_set else None)
        counts = [wanted] if wanted else [1, 2, 4, 8, 16]
        return (tp for tp in counts if tp <= most and self.size.why_not_tp(tp) is None)

    @property
    def _tp_is_set(self) -> bool:
        return self.engine.vllm.tensor_parallel_size > 1


def place_on_gpus(
    requests: Sequence[Request], machine: Machine, *, taken: Collection[int] = ()
) -> tuple[list[PlannedWorker], list[str]]:
    """Workers for every pool in the order of the pools, and notes.

    taken: GPUs of workers that run already: left alone but where a pool names them. Raises ConfigurationError for what
    cannot fit.
    """
    placing = _Placing(requests, machine, taken)
    for request in requests:
        if request.pool.devices is not None:
            placing.place_by_hand(request)
    chosen = [request for request in requests if request.pool.devices is None]
    for request in sorted(chosen, key=lambda request: -request.need(1).total):
        for _ in range(request.pool.workers or 1):
            placing.place_anywhere(request)
    placing.fill([request for request in chosen if request.pool.workers is None])
    return placing.workers(), placing.notes


class _Placing:
    def __init__(self, requests: Sequence[Request], machine: Machine, taken: Collection[int]) -> None:
        self._taken = taken
        self._requests = requests
        self._machine = machine
        self._ceiling = max((request.engine.vllm.gpu_memory_utilization for request in requests), default=0.9)
        self._rooms = [_Room(gpu=gpu, ceiling=self._usable(gpu)) for gpu in machine.gpus]
        self._placements: list[_Placement] = []
        self.notes: list[str] = []
        self._note_left_out()

    def _usable(self, gpu: Gpu) -> int:
        return max(0, min(int(gpu.memory * self._ceiling), gpu.free - _SPARE))

    def _note_left_out(self) -> None:
        for room in self._rooms:
            gpu = room.gpu
            if gpu.is_sliced:
                self.notes.append(f"GPU {gpu.index} is in MIG mode and is left out: `specthink worker` takes a slice")
            elif gpu.index in self._taken:
                continue
            elif _is_occupied(gpu) and not self._is_named(gpu.index):
                used = gpu.memory_gib - gpu.free_gib
                self.notes.append(
                    f"GPU {gpu.index} is left to others, who use {used:.1f} of its {gpu.memory_gib:.1f} GiB"
                )

    def _is_named(self, index: int) -> bool:
        return any(index in (request.pool.devices or ()) for request in self._requests)

    # By hand

    def place_by_hand(self, request: Request) -> None:
        """Place a pool on the GPUs that it names."""
        pool, rooms = request.pool, self._named_rooms(request.pool)
        tp = pool.tp or self._smallest_tp(request, rooms)
        self._require_split(request, tp)
        if len(rooms) % tp or (pool.workers or len(rooms) // tp) * tp != len(rooms):
            wanted = f"{pool.workers} workers of tp={tp}" if pool.workers else f"workers of tp={tp}"
            raise ConfigurationError(f"{pool.title}: {wanted} do not fill the {len(rooms)} GPUs that it names")
        for first in range(0, len(rooms), tp):
            self._require_room(request, rooms[first : first + tp])
            self._put(request, rooms[first : first + tp])

    def _named_rooms(self, pool: Pool) -> list[_Room]:
        rooms = []
        for index in pool.devices or ():
            room = next((room for room in self._rooms if room.gpu.index == index), None)
            if room is None:
                there_are = ", ".join(str(gpu.index) for gpu in self._machine.gpus) or "none"
                raise ConfigurationError(f"{pool.title}: there is no GPU {index} (there are: {there_are})")
            if room.gpu.is_sliced:
                raise ConfigurationError(
                    f"{pool.title}: GPU {index} is in MIG mode: start `specthink worker` on a slice"
                )
            other = next((tenant for tenant in room.tenants if tenant.share is None or pool.share is None), None)
            if other is not None:
                raise ConfigurationError(
                    f"GPU {index} is given to {other.request.pool.title} and to {pool.title}: give each a share of it "
                    "(@0:share=0.4), or name no GPUs and let them be chosen"
                )
            rooms.append(room)
        return rooms

    def _smallest_tp(self, request: Request, rooms: list[_Room]) -> int:
        """The fewest GPUs on which it fits, else all of them."""
        dividing = [tp for tp in request.splits(len(rooms)) if len(rooms) % tp == 0]
        fitting = (tp for tp in dividing if all(request.need(tp).total <= self._offer(request, room) for room in rooms))
        return next(fitting, dividing[-1] if dividing else len(rooms))

    def _offer(self, request: Request, room: _Room) -> int:
        share = request.pool.share
        return room.left if share is None else min(room.left, int(share * room.gpu.memory))

    def _require_room(self, request: Request, rooms: list[_Room]) -> None:
        pool, need = request.pool, request.need(len(rooms))
        for room in rooms:
            given = None if pool.share is None else int(pool.share * room.gpu.memory)
            if given is not None and given > room.left:
                raise ConfigurationError(
                    f"{pool.title}: its share {pool.share} of GPU {room.gpu.index} is {given / GIB:.1f} GiB, and "
                    f"{room.left / GIB:.1f} GiB are left ({_offered(room)})"
                )
            if need.total > (offer := self._offer(request, room)):
                raise ConfigurationError(
                    f"{pool.title} does not fit on GPU {room.gpu.index}: with tp={len(rooms)} it needs {need}, and may "
                    f"have {offer / GIB:.1f} GiB ({_offered(room)})"
                    f"{remedy(request.size, request.engine, len(rooms), offer)}"
                )

    def _require_split(self, request: Request, tp: int) -> None:
        if reason := request.size.why_not_tp(tp):
            raise ConfigurationError(f"{request.pool.title}: {reason}")

    # By the rule

    def place_anywhere(self, request: Request) -> None:
        """Place one worker on empty GPUs, else beside others. Raises ConfigurationError where it fits nowhere."""
        rooms = self._find(request, empty=True) or self._find(request, empty=False)
        if rooms is None:
            raise ConfigurationError(self._why_nowhere(request))
        self._put(request, rooms)

    def _find(self, request: Request, *, empty: bool) -> list[_Room] | None:
        rooms = [room for room in self._free_rooms() if not (empty and room.tenants)]
        for tp in request.splits(len(rooms)):
            for group in _of_same_size(rooms):
                best = sorted(group, key=lambda room: (-room.left, room.gpu.index))[:tp]
                if len(best) == tp and all(request.need(tp).total <= self._offer(request, room) for room in best):
                    return sorted(best, key=lambda room: room.gpu.index)
        return None

    def _free_rooms(self) -> list[_Room]:
        """Those that the rule may use: neither others' nor named by hand nor sliced."""
        return [
            room
            for room in self._rooms
            if not (room.gpu.is_sliced or _is_occupied(room.gpu) or room.gpu.index in self._taken)
            and not self._is_named(room.gpu.index)
        ]

    def _why_nowhere(self, request: Request) -> str:
        pool, rooms = request.pool, self._free_rooms()
        if not rooms:
            return f"{pool.title}: no GPU is left for it" + "".join(f"; {note}" for note in self.notes)
        if pool.tp:
            self._require_split(request, pool.tp)
        groups = list(_of_same_size(rooms))
        most = max(len(group) for group in groups)
        tps = list(request.splits(most))
        if not tps:
            wanted = pool.tp or request.engine.vllm.tensor_parallel_size
            return f"{pool.title}: it is to have tp={wanted}, and there are {most} free GPUs of one size"
        tp = tps[-1]
        rooms = max((group for group in groups if len(group) >= tp), key=lambda group: sum(room.left for room in group))
        best = sorted(rooms, key=lambda room: -room.left)[:tp]
        offer = min(self._offer(request, room) for room in best)
        return (
            f"{pool.title} does not fit: with tp={tp}, the most that is possible here, it needs {request.need(tp)} on "
            f"each GPU, and may have {offer / GIB:.1f} GiB ({_offered(best[-1])})"
            f"{remedy(request.size, request.engine, tp, offer)}"
        )

    def fill(self, requests: Sequence[Request]) -> None:
        """Give the empty GPUs that remain to pools, each time to the one with the most work per GPU."""
        growing = list(requests)
        while growing:
            request = max(growing, key=self._load)
            rooms = self._find_another(request)
            if rooms is None:
                growing.remove(request)
            else:
                self._put(request, rooms)

    def _find_another(self, request: Request) -> list[_Room] | None:
        """Empty GPUs, as many as its first worker has."""
        tp = next(len(placed.rooms) for placed in self._placements if placed.request is request)
        if len(self._placements) >= _MOST_GPUS:
            return None
        rooms = [room for room in self._free_rooms() if not room.tenants]
        for group in _of_same_size(rooms):
            best = sorted(group, key=lambda room: room.gpu.index)[:tp]
            if len(best) == tp and all(request.need(tp).total <= self._offer(request, room) for room in best):
                return best
        return None

    def _load(self, request: Request) -> float:
        """Bytes of weights that are read for the tokens it writes, per GPU that it has."""
        same_role = sum(other.pool.role is request.pool.role for other in self._requests)
        gpus = sum(len(placed.rooms) for placed in self._placements if placed.request is request)
        written = TOKENS_WRITTEN[request.pool.role] / same_role
        return written * request.size.weight_bytes(request.engine.vllm.dtype, on_gpu=True) / gpus

    # Both

    def _put(self, request: Request, rooms: list[_Room]) -> None:
        placement = _Placement(
            request=request, rooms=list(rooms), need=request.need(len(rooms)), share=request.pool.share
        )
        for room in rooms:
            room.tenants.append(placement)
        self._placements.append(placement)

    def workers(self) -> list[PlannedWorker]:
        """The workers with their shares, pool by pool."""
        placed = sorted(self._placements, key=lambda placement: self._requests.index(placement.request))
        return [self._worker(placement) for placement in placed]

    def _worker(self, placement: _Placement) -> PlannedWorker:
        memory = min(room.gpu.memory for room in placement.rooms)
        share = placement.share or min(_part(placement, room) / room.gpu.memory for room in placement.rooms)
        share = int(share * 1000 + 0.01) / 1000  # down: else the shares of one GPU could be more than there is
        return PlannedWorker(
            pool=placement.request.pool,
            engine=placement.request.engine,
            weights=placement.need.weights,
            cache_tokens=placement.need.cache_tokens(int(share * memory)),
            devices=tuple(room.gpu.index for room in placement.rooms),
            share=share,
        )


def _part(placement: _Placement, room: _Room) -> float:
    """Bytes of a GPU for one of its workers: what shares leave, divided by needs."""
    given = sum(tenant.least for tenant in room.tenants if tenant.share is not None)
    needed = sum(tenant.least for tenant in room.tenants if tenant.share is None)
    return placement.need.total * (room.ceiling - given) / needed


def _is_occupied(gpu: Gpu) -> bool:
    return gpu.free_gib < (1 - OCCUPIED) * gpu.memory_gib


def _of_same_size(rooms: Sequence[_Room]) -> Iterator[list[_Room]]:
    """Groups of GPUs with about the same memory, the largest memory first."""
    left = sorted(rooms, key=lambda room: -room.gpu.memory_gib)
    while left:
        least = left[0].gpu.memory_gib * (1 - _SAME_SIZE)
        yield [room for room in left if room.gpu.memory_gib >= least]
        left = [room for room in left if room.gpu.memory_gib < least]


def _offered(room: _Room) -> str:
    gpu = room.gpu
    beside = f", less what {len(room.tenants)} more on it need" if room.tenants else ""
    return f"of {gpu.memory_gib:.1f} GiB with {gpu.free_gib:.1f} free{beside}"
