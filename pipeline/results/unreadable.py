"""What stands in the place of a stored choice that this program does not know."""

from __future__ import annotations


class Unreadable(str):
    """Shown like the choices beside it, and equal to none of them."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)
