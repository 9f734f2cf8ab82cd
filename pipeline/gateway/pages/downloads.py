"""A job's results as files: streamed rows, and logs of other harnesses, which are made whole before they are sent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from pipeline.db import report_queries
from pipeline.db.session import transaction
from pipeline.gateway.pages.owned import JobId, require_job
from pipeline.gateway.pages.pieces import Download, pieces_of
from pipeline.gateway.pages.rendering import HEADERS
from pipeline.gateway.state import Gateway, TheCaller, TheGateway
from pipeline.results.exports import ExportFormat

router = APIRouter()

_TYPES = {
    ExportFormat.JSONL: "application/jsonl",
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}


def file_formats() -> dict[str, str]:
    """What a job's results can be taken along as: the end of the address by name."""
    rows = {format.value: f"results.{format.value}" for format in ExportFormat}
    inspect = {"Inspect": "inspect.eval"} if find_spec("inspect_ai") is not None else {}
    return rows | inspect | {"lm-eval": "lm-eval.zip"}


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


@router.get("/jobs/{job_id}/inspect.eval")
def inspect_log(job_id: JobId, gateway: TheGateway, caller: TheCaller) -> Response:
    """A log of Inspect."""
    require_job(gateway, caller, job_id)
    folder = _folder()
    try:
        written, _ = gateway.client.write_inspect_log(job_id, folder / f"job-{job_id}.eval")
    except BaseException:
        shutil.rmtree(folder)
        raise
    return _sent(written, folder)


@router.get("/jobs/{job_id}/lm-eval.zip")
def lm_eval_files(job_id: JobId, gateway: TheGateway, caller: TheCaller) -> Response:
    """The files that lm-eval leaves, with their folder."""
    require_job(gateway, caller, job_id)
    folder = _folder()
    try:
        gateway.client.write_lm_eval(job_id, folder / "files")
        packed = shutil.make_archive(str(folder / f"job-{job_id}-lm-eval"), "zip", folder / "files")
    except BaseException:
        shutil.rmtree(folder)
        raise
    return _sent(Path(packed), folder)


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="specthink-gateway-"))


def _sent(file: Path, folder: Path) -> Response:
    """The file as an answer after which its folder is gone."""
    gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(file, filename=file.name, headers=HEADERS, background=gone)
