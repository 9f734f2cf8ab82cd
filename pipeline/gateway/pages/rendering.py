"""Makes pages of templates. Every text in them is escaped; a browser runs and loads nothing but the two files here."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from starlette.responses import HTMLResponse, Response

from pipeline.gateway.browsers import LOGIN, form_token
from pipeline.gateway.errors import ApiError
from pipeline.gateway.keys import may_change
from pipeline.results.page.reading import read_steps, verdict
from pipeline.results.page.templates import page_environment
from pipeline.texts import printable

_HERE = Path(__file__).parent
_SHARED = _HERE.parents[1] / "results" / "page"
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
"""Of every page. What is shown is of one key: no cache keeps it."""
REPORT_HEADERS = HEADERS | {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
}
"""Of a report, which has its style and its charts within."""


@cache
def _environment() -> Any:
    environment = page_environment(_HERE / "templates")
    environment.globals |= {"steps": read_steps, "verdict": verdict, "style": f"/static/pages.css?{_mark()}",
                            "script": f"/static/pages.js?{_mark()}"}  # fmt: skip
    return environment


@cache
def static_files() -> dict[str, tuple[str, bytes]]:
    """Media type and content by name."""
    style = b"".join((folder / name).read_bytes() for folder, name in ((_SHARED, "reader.css"), (_HERE, "pages.css")))
    return {
        "pages.css": ("text/css", style),
        "pages.js": ("text/javascript", (_HERE / "pages.js").read_bytes()),
        "icon.svg": ("image/svg+xml", (_HERE / "icon.svg").read_bytes()),
    }


def _mark() -> str:
    """Changes with the files, so that browsers may keep them."""
    return hashlib.sha256(b"".join(content for _, content in static_files().values())).hexdigest()[:12]


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page as whoever asks may see it."""
    caller = request.state.caller
    text = (
        _environment()
        .get_template(template)
        .render(
            path=request.url.path,
            csrf=form_token(request.state.key),
            has_key=request.state.key is not None and caller.key_id is not None,
            caller=caller,
            may_change=may_change(caller),
            **values,
        )
    )
    return HTMLResponse(text, status_code=status, headers=HEADERS)


def refusal(path: str, error: ApiError, *, is_look: bool) -> Response:
    """Why there is no page. is_look: nothing was to be changed; whoever has no key is asked for one."""
    if error.status == 401 and is_look and path != "/events":
        target = f"{LOGIN}?next={quote(path)}" if path != "/" else LOGIN
        return Response(status_code=303, headers={**HEADERS, "location": target})
    text = (
        _environment()
        .get_template("error.html.jinja")
        .render(message=printable(error.message, most=1000), status=error.status, path=path)
    )
    return HTMLResponse(text, status_code=error.status, headers=HEADERS | error.headers)
