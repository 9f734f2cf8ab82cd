"""Ids of an archive's rows in the database that it is restored into: their own where these are free, else new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Connection, text

if TYPE_CHECKING:
    import pyarrow

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]

_LAST = text("SELECT last_value FROM pg_sequences WHERE schemaname = 'public' AND sequencename = :table || '_id_seq'")
_NEW = text("SELECT nextval(:table || '_id_seq') FROM generate_series(1, :num) ORDER BY 1")
_CHUNK = 50_000


@dataclass(frozen=True)
class IdMap:
    """old: as in the archive, ascending. new: in the database, each at the place of its old one."""

    old: Ids
    new: Ids

    @classmethod
    def of(cls, pairs: dict[int, int]) -> IdMap:
        old = np.array(sorted(pairs), np.int64)
        return cls(old, np.array([pairs[each] for each in old.tolist()], np.int64))

    def of_one(self, old: int) -> int:
        return int(self.new[np.searchsorted(self.old, old)])

    def apply(self, column: pyarrow.Array) -> pyarrow.Array:
        """A column of old ids with the new ones. Raises KeyError for an id that the archive has no row of."""
        import pyarrow

        given = column.fill_null(0).to_numpy(zero_copy_only=False)
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        places = np.searchsorted(self.old, given)
        known = places < len(self.old)
        known[known] = self.old[places[known]] == given[known]
        if not np.all(known | is_null):
            raise KeyError(int(given[~(known | is_null)][0]))
        found = np.zeros(len(given), np.int64)
        found[known] = self.new[places[known]]
        return pyarrow.array(found, pyarrow.int64(), mask=is_null)


def choose_ids(connection: Connection, table: str, old: Ids) -> IdMap:
    """Ids for new rows of a table, ascending as the old ones: the old ones, or new ones of its sequence."""
    if all(can_keep(connection, table, old[start : start + _CHUNK]) for start in range(0, len(old), _CHUNK)):
        return IdMap(old, old)
    new = connection.execute(_NEW, {"table": table, "num": len(old)}).scalars()
    return IdMap(old, np.fromiter(new, np.int64, len(old)))


def can_keep(connection: Connection, table: str, ids: Ids) -> bool:
    """Whether the database gave these ids once and has no such rows now: they come from it, or from one like it."""
    last = connection.execute(_LAST, {"table": table}).scalar() or 0
    taken = text(f"SELECT EXISTS (SELECT FROM {table} WHERE id = ANY(:ids))")
    return int(ids.max()) <= last and not connection.execute(taken, {"ids": ids.tolist()}).scalar_one()
