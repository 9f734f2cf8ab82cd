"""How a browser is let in: which addresses are pages, a cookie that holds the key, and a token in every form.

Pages say in HTML what is wrong; the API takes no cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Form, Request

from pipeline.gateway.errors import ApiError

LOGIN = "/login"
STATIC = "/static/"
_PAGES = ("/jobs", "/samples", "/compare", "/workers", "/events", "/logout", LOGIN)
COOKIE = "specthink_key"
COOKIE_S = 30 * 86_400
_OF_PROCESS = secrets.token_hex(32)
"""Where there are no keys: forms are good as long as this process."""


def is_page(path: str) -> bool:
    return path == "/" or path.startswith(STATIC) or any(path == one or path.startswith(f"{one}/") for one in _PAGES)


def is_open(path: str) -> bool:
    """Whether it is shown to whoever asks."""
    return path in (LOGIN, "/logout") or path.startswith(STATIC)


def cookie_key(header: str | None) -> str | None:
    """The key in a Cookie header; None: there is none."""
    for part in (header or "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and value:
            return value
    return None


def form_token(key: str | None) -> str:
    """What the forms of whoever has this key carry: a page of another site cannot know it."""
    return hmac.new((key or _OF_PROCESS).encode(), b"specthink form", hashlib.sha256).hexdigest()


def _check_token(request: Request, csrf: Annotated[str, Form(max_length=200)] = "") -> None:
    if not hmac.compare_digest(csrf.encode(), form_token(request.state.key).encode()):
        raise ApiError(403, "This form is of an older page: go back, load it again and repeat.", code="wrong_form")


FromOurForm = Depends(_check_token)
"""Of a route that changes something. Raises ApiError for a form that is not of these pages."""


def refuse_other_site(request: Request) -> None:
    """Of a form without a token. A browser says so where a page of another site has sent it."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ApiError(403, "Pages of other sites may not use this form.", code="wrong_origin")


def local_path(wanted: str) -> str:
    """The address to go on to; the first page where it is not one of ours."""
    parts = urlsplit(wanted)
    is_ours = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and wanted.isprintable()
    return wanted if is_ours and not parts.scheme and not parts.netloc else "/"
