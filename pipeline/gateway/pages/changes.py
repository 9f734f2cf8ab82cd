"""What a page's buttons do: log in and out; pause, resume, cancel and retry a job."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from pipeline.gateway.browsers import COOKIE, COOKIE_S, LOGIN, FromOurForm, local_path, refuse_other_site
from pipeline.gateway.pages.looks import JobId, require_job
from pipeline.gateway.pages.rendering import HEADERS, page
from pipeline.gateway.state import TheCaller, TheGateway

router = APIRouter()


@router.get(LOGIN)
def ask_key(request: Request, gateway: TheGateway, next: str = "/") -> Response:
    """The form that takes a key; nothing to do where none is needed."""
    if gateway.keys.caller(request.state.key) is not None:
        return RedirectResponse(local_path(next), status_code=303, headers=HEADERS)
    return page(request, "login.html.jinja", next=local_path(next), is_wrong=False, are_there=gateway.keys.are_there())


@router.post(LOGIN)
def log_in(
    request: Request,
    gateway: TheGateway,
    key: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    """Keep the key as a cookie that no script reads, and that no other site's page sends along."""
    refuse_other_site(request)
    key = key.strip()
    if gateway.keys.caller(key) is None:
        are_there = gateway.keys.are_there()
        values = {"next": local_path(next), "is_wrong": True, "are_there": are_there}
        return page(request, "login.html.jinja", status=401, **values)
    response = RedirectResponse(local_path(next), status_code=303, headers=HEADERS)
    is_https = request.url.scheme == "https"
    response.set_cookie(COOKIE, key, max_age=COOKIE_S, httponly=True, samesite="strict", secure=is_https)
    return response


@router.post("/logout", dependencies=[FromOurForm])
def log_out() -> Response:
    response = RedirectResponse(LOGIN, status_code=303, headers=HEADERS)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


@router.post("/jobs/{job_id}/{verb}", dependencies=[FromOurForm])
def change_job(
    job_id: JobId, verb: Literal["pause", "resume", "cancel", "retry"], gateway: TheGateway, caller: TheCaller
) -> Response:
    """As the command of the same name; the job's page shows what came of it."""
    require_job(gateway, caller, job_id)
    match verb:
        case "pause":
            gateway.client.pause(job_id)
        case "resume":
            gateway.client.resume(job_id)
        case "cancel":
            gateway.client.cancel(job_id)
        case "retry":
            gateway.client.retry(job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303, headers=HEADERS)
