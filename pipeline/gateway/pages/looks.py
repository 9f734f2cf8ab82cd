"""The pages that show: jobs, a job, its samples, one sample, comparisons, workers; and events that keep them new."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, Response

from pipeline.batches import FINAL_STATUSES, BatchStatus, Caller
from pipeline.db import report_queries
from pipeline.db.gateway import batches, pages
from pipeline.db.gateway.pages import Which
from pipeline.db.session import transaction
from pipeline.errors import NotComparable
from pipeline.gateway.errors import ApiError, missing
from pipeline.gateway.live import MAX_JOBS, read_progress
from pipeline.gateway.pages.pieces import Download, pieces_of
from pipeline.gateway.pages.rendering import HEADERS, REPORT_HEADERS, page, static_files
from pipeline.gateway.routes.batches import show_batch
from pipeline.gateway.state import Gateway, TheCaller, TheGateway
from pipeline.results.exports import ExportFormat
from pipeline.results.page.page import job_settings

router = APIRouter()

JOBS_A_PAGE = 25
BATCHES_SHOWN = 10
SAMPLES_A_PAGE = 50
MAX_COMPARED = 20
_MOST = 2**63 - 1
JobId = Annotated[int, Path(ge=1, le=_MOST)]
Id = Annotated[int, Query(ge=1, le=_MOST)]
Ids = Annotated[str, Query(max_length=1000, pattern=r"^[0-9, ]*$")]


@router.get("/")
def first(request: Request, gateway: TheGateway, caller: TheCaller, before: Id | None = None) -> Response:
    """Jobs and batches, newest first."""
    with gateway.transaction() as connection:
        ids = pages.page_of_jobs(connection, caller, before=before, limit=JOBS_A_PAGE + 1)
        jobs = {job.id: job for job in report_queries.get_jobs(connection, ids[:JOBS_A_PAGE])}
        progress = read_progress(connection, list(jobs))
        rows = batches.page_of_batches(connection, caller, after=None, limit=BATCHES_SHOWN) if before is None else []
        shown = [show_batch(connection, row) for row in rows]
    return page(
        request,
        "jobs.html.jinja",
        rows=[(jobs[row.progress.job_id], row) for row in progress],
        batches=shown,
        is_open_batch=lambda batch: BatchStatus(batch.status) not in FINAL_STATUSES,
        older=ids[JOBS_A_PAGE - 1] if len(ids) > JOBS_A_PAGE else None,
        is_first=before is None,
        live=[job.id for job in jobs.values() if not job.is_final],
    )


@router.get("/jobs/{job_id}")
def job(request: Request, job_id: JobId, gateway: TheGateway, caller: TheCaller) -> Response:
    """One job: where it is, what came out, what went wrong."""
    require_job(gateway, caller, job_id)
    found, stats = gateway.client.job(job_id), gateway.client.stats(job_id)
    with gateway.transaction() as connection:
        (row,) = read_progress(connection, [job_id])
    return page(
        request,
        "job.html.jinja",
        job=found,
        row=row,
        stats=stats,
        settings=job_settings(found),
        formats=list(ExportFormat),
        live=[] if found.is_final else [job_id],
    )


def require_job(gateway: Gateway, caller: Caller, *job_ids: int) -> None:
    """Raises ApiError for a job that there is not, or that is somebody else's."""
    with gateway.transaction() as connection:
        seen = pages.seen_jobs(connection, caller, job_ids)
    for job_id in job_ids:
        if job_id not in seen:
            raise missing("job", str(job_id))


@router.get("/jobs/{job_id}/report")
def report(job_id: JobId, gateway: TheGateway, caller: TheCaller) -> Response:
    """The report, as `specthink report` writes it."""
    require_job(gateway, caller, job_id)
    return HTMLResponse(gateway.client.page(job_id), headers=REPORT_HEADERS)


_TYPES = {
    ExportFormat.JSONL: "application/jsonl",
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}


@router.get("/jobs/{job_id}/results.{format}")
def results(job_id: JobId, format: ExportFormat, gateway: TheGateway, caller: TheCaller) -> Response:
    """Every sample with its text, streamed."""
    require_job(gateway, caller, job_id)
    headers = HEADERS | {"content-disposition": f'attachment; filename="job-{job_id}.{format.value}"'}
    return Download(_rows(gateway, job_id, format), media_type=_TYPES[format], headers=headers)


def _rows(gateway: Gateway, job_id: int, format: ExportFormat) -> Generator[bytes, None, None]:
    """On a connection of its own kind: a slow reader holds it until the end."""
    with transaction(gateway.downloads) as connection:
        yield from pieces_of(report_queries.stream_results(connection, job_id, only_final=False), format)


@router.get("/jobs/{job_id}/samples")
def samples(
    request: Request,
    job_id: JobId,
    gateway: TheGateway,
    caller: TheCaller,
    state: Which = Which.ALL,
    number: Annotated[int, Query(ge=1, le=1_000_000, alias="page")] = 1,
    against: Id | None = None,
) -> Response:
    """A list of samples to choose from."""
    require_job(gateway, caller, job_id)
    found = gateway.client.job(job_id)
    if state is Which.CHANGED and against is None:
        against = found.cloned_from
    with gateway.transaction() as connection:
        if against is not None and not pages.seen_jobs(connection, caller, [against]):
            raise missing("job", str(against))
        lines = [] if state is Which.CHANGED and against is None else pages.page_of_samples(
            connection, job_id, state, against=against, skip=SAMPLES_A_PAGE * (number - 1), limit=SAMPLES_A_PAGE + 1
        )  # fmt: skip
    return page(
        request,
        "samples.html.jinja",
        job=found,
        state=state,
        choices=[which for which in Which if which is not Which.CHANGED or against is not None],
        lines=lines[:SAMPLES_A_PAGE],
        has_more=len(lines) > SAMPLES_A_PAGE,
        number=number,
        against=against,
        query=_query(state, against),
    )


def _query(state: Which, against: int | None) -> str:
    """What an address says of the list that a sample stands in."""
    return f"state={state.value}" + (f"&against={against}" if against is not None else "")


@router.get("/samples/{sample_id}")
def sample(
    request: Request,
    sample_id: JobId,
    gateway: TheGateway,
    caller: TheCaller,
    state: Which = Which.ALL,
    against: Id | None = None,
) -> Response:
    """The reader: who wrote each step, and why. state, against: of the list it was chosen from."""
    if state is Which.CHANGED and against is None:
        state = Which.ALL
    with gateway.transaction() as connection:
        job_id = pages.find_job_of(connection, sample_id)
        if job_id is None or not pages.seen_jobs(connection, caller, [job_id]):
            raise missing("sample", str(sample_id))
        found = report_queries.get_sample(connection, sample_id)
        before, after = pages.samples_beside(connection, sample_id, state, against=against)
    return page(
        request,
        "sample.html.jinja",
        report=found,
        result=found.result,
        before=before,
        after=after,
        state=state,
        query=_query(state, against),
        live=[],
    )


@router.get("/compare")
def compare(request: Request, gateway: TheGateway, caller: TheCaller, jobs: Ids = "") -> Response:
    """The first job with each of the others, problem by problem."""
    ids = _parsed(jobs)[: MAX_COMPARED + 1]
    require_job(gateway, caller, *ids)
    pairs: list[Any] = []
    with gateway.transaction() as connection:
        known = report_queries.get_jobs(connection, ids)
        newest = pages.page_of_jobs(connection, caller, before=None, limit=JOBS_A_PAGE)
        choices = report_queries.get_jobs(connection, newest)[::-1]
        for other in ids[1:]:
            try:
                pairs.append((other, report_queries.get_comparison(connection, ids[0], other, anyway=True), None))
            except NotComparable as error:
                pairs.append((other, None, str(error)))
    names = {job.id: job for job in [*known, *choices]}
    return page(request, "compare.html.jinja", ids=ids, jobs=names, pairs=pairs, choices=choices)


def _parsed(jobs: str) -> list[int]:
    """Raises ApiError for a number that no job has."""
    ids = [int(part) for part in jobs.replace(" ", ",").split(",") if part]
    for job_id in ids:
        if job_id > _MOST:
            raise missing("job", str(job_id))
    return list(dict.fromkeys(ids))


@router.get("/workers")
def workers(request: Request, gateway: TheGateway, caller: TheCaller) -> Response:
    """Who is alive, and who does the duties of upkeep. On which hosts, is told to those who see all."""
    return page(
        request,
        "workers.html.jinja",
        workers=gateway.client.workers(),
        leader=gateway.client.leader(),
        sees_hosts=caller.sees_all or caller.key_id is None,
    )


@router.get("/events")
async def events(request: Request, gateway: TheGateway, caller: TheCaller, jobs: Ids) -> Response:
    """Progress of the jobs of a page, as server-sent events."""
    ids = _parsed(jobs)[:MAX_JOBS]
    seen = await _seen(gateway, caller, ids)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(gateway.live.events(seen), media_type="text/event-stream", headers=headers)


async def _seen(gateway: Gateway, caller: Caller, ids: list[int]) -> list[int]:
    def read() -> list[int]:
        with gateway.transaction() as connection:
            return pages.seen_jobs(connection, caller, ids)

    return await run_in_threadpool(read)


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The style and the script; their address changes with them."""
    found = static_files().get(name)
    if found is None:
        raise ApiError(404, "There is nothing at this address.", code="unknown_url")
    media_type, content = found
    return Response(content, media_type=media_type, headers={"cache-control": "public, max-age=31536000, immutable"})
