"""Which addresses are pages, and not of the API: they are opened by a cookie, and say in HTML what is wrong."""

from __future__ import annotations

LOGIN = "/login"
STATIC = "/static/"
_PAGES = ("/jobs", "/samples", "/compare", "/workers", "/events", "/logout", LOGIN)


def is_page(path: str) -> bool:
    return path == "/" or path.startswith(STATIC) or any(path == one or path.startswith(f"{one}/") for one in _PAGES)


def is_open(path: str) -> bool:
    """Whether it is shown to whoever asks."""
    return path in (LOGIN, "/logout") or path.startswith(STATIC)
