"""The gateway's pages over HTTP: who sees what, what hostile text becomes, what the buttons do, what is told live."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow.parquet
import pytest
from sqlalchemy import Engine, text

from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.key_roles import KeyRole
from tests.integration.gateway_world import Served, create, line, scripted, serving, user
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker

pytestmark = pytest.mark.integration

HOSTILE = "</div><script>alert(1)</script>\x1b[31m\u202e {{ 7 * 7 }}"


@pytest.fixture
def served(connections: Connections, db_engine: Engine) -> Iterator[Served]:
    with serving(connections, db_engine) as served:
        yield served


def browser(served: Served, key: str | None = None) -> httpx.Client:
    cookies = {"specthink_key": key} if key else None
    return httpx.Client(base_url=served.url.removesuffix("/v1"), cookies=cookies, timeout=120)


def fill(db_engine: Engine) -> tuple[int, int, list[int]]:
    """Two jobs on one set: the second one's id, and the first one's with its samples' ids."""
    with transaction(db_engine) as connection:
        problems = add_problem_set(connection)
        job = add_job(connection, problems, name=HOSTILE, seconds=60)
        engine, worker = add_engine(connection, model="S"), add_worker(connection, "small", model="S")
        samples = add_samples(
            connection,
            job,
            [
                {"problem": 0, "score": 1.0, "predicted_answer": "0", "num_takeovers": 1},
                {"problem": 1, "score": 0.0, "predicted_answer": HOSTILE, "finish_reason": "length"},
                {"problem": 2, "state": "failed", "error": HOSTILE, "error_class": "bad_input"},
                {"problem": 3, "state": "pending"},
            ],
        )
        by: dict[str, Any] = {"engine_id": engine, "worker_id": worker}
        add_segment(connection, samples[0], 0, "small", "First we add.\n\n", discarded="Wait", **by)
        large: dict[str, Any] = {"trigger": "reflection", "takes_over": True, "cue": "wait"}
        add_segment(connection, samples[0], 1, "large", HOSTILE, **large, **by)
        other = add_job(connection, problems, name="other", state="completed", seconds=60)
        add_samples(connection, other, [{"problem": 0, "score": 0.0}, {"problem": 1, "score": 0.0}])
    return other, job, samples


def test_pages_show_what_there_is_and_run_nothing_of_it(served: Served, db_engine: Engine) -> None:
    other, job, samples = fill(db_engine)
    addresses = [
        "/", f"/jobs/{job}", f"/jobs/{job}/samples", f"/jobs/{job}/samples?state=failed", f"/samples/{samples[0]}",
        f"/samples/{samples[1]}", f"/samples/{samples[2]}", f"/compare?jobs={other},{job}", "/compare", "/workers",
        "/jobs/999", f"/jobs/{job}/report",
    ]  # fmt: skip
    with browser(served) as client:
        pages = {address: client.get(address) for address in addresses}
        for address, answer in pages.items():
            assert answer.status_code == (404 if address == "/jobs/999" else 200), told(answer)
            assert "<script>alert" not in answer.text
            assert "\x1b" not in answer.text
            assert "\u202e" not in answer.text
            assert " 49" not in answer.text
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'" if address.endswith("/report") else "default-src 'self'")
            assert answer.headers["cache-control"] == "no-store"
        assert "right answers are not shown" in pages[f"/samples/{samples[0]}"].text.lower()
        reader = pages[f"/samples/{samples[0]}"].text
        assert '<span class="by by-small">First we add.' in reader
        assert '<span class="trigger">reflection: wait</span><span class="by by-large">' in reader
        assert "small wrote on, 4 tokens discarded" in reader
        assert f'rel="next" href="/samples/{samples[1]}?state=all"' in reader
        lists = {which: chosen(client, f"/jobs/{job}/samples?state={which}") for which in ("failed", "cut", "wrong")}
        assert lists == {"failed": [samples[2]], "cut": [samples[1]], "wrong": [samples[1]]}
        assert chosen(client, f"/jobs/{job}/samples?state=changed&against={other}") == [samples[0]]
        assert chosen(client, f"/jobs/{job}/samples?page=2") == []
        assert client.get(f"/jobs/{2**70}").status_code == 400
        assert client.get("/jobs/1e3").status_code == 400
        style = client.get(re.findall(r'href="(/static/[^"]+)"', reader)[0])
        assert style.headers["content-type"].startswith("text/css")


def told(answer: httpx.Response) -> str:
    return " ".join(re.findall(r'<p class="wrong">(.*?)</p>', answer.text))


def chosen(client: httpx.Client, address: str) -> list[int]:
    return [int(found) for found in re.findall(r'href="/samples/(\d+)\?', client.get(address).text)]


def test_results_are_streamed_in_each_format_without_what_is_right(served: Served, db_engine: Engine) -> None:
    _, job, samples = fill(db_engine)
    with browser(served) as client:
        rows = [json.loads(row) for row in client.get(f"/jobs/{job}/results.jsonl").text.splitlines()]
        cells = list(csv.DictReader(io.StringIO(client.get(f"/jobs/{job}/results.csv").text)))
        table = pyarrow.parquet.read_table(io.BytesIO(client.get(f"/jobs/{job}/results.parquet").content))
        assert client.get(f"/jobs/{job}/results.exe").status_code == 400
    assert [row["sample_id"] for row in rows] == samples == table["sample_id"].to_pylist()
    assert [int(cell["sample_id"]) for cell in cells] == samples
    assert {row["reference"] for row in rows} == {None}
    assert rows[0]["output"].startswith("First we add.")


def form_token(client: httpx.Client, address: str) -> str:
    (token,) = set(re.findall(r'name="csrf" value="([^"]+)"', client.get(address).text))
    return str(token)


def test_buttons_do_what_the_commands_do_and_ask_for_our_form(served: Served, db_engine: Engine) -> None:
    _, job, _ = fill(db_engine)

    def state() -> str:
        return str(served.scalar("SELECT state FROM jobs WHERE id = :job", job=job))

    with browser(served) as client:
        for token in ("", "guessed"):
            assert client.post(f"/jobs/{job}/pause", data={"csrf": token}).status_code == 403
        assert state() == "running"
        token = form_token(client, f"/jobs/{job}")
        for verb, expected in (("pause", "paused"), ("resume", "running"), ("retry", "running")):
            answer = client.post(f"/jobs/{job}/{verb}", data={"csrf": token})
            assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job}")
            assert state() == expected
        assert served.scalar("SELECT count(*) FROM samples WHERE state = 'failed'") == 0
        assert client.post(f"/jobs/{job}/cancel", data={"csrf": token}).status_code == 303
        assert state() == "cancelled"
        refused = client.post(f"/jobs/{job}/resume", data={"csrf": token})
        assert (refused.status_code, refused.headers["content-type"]) == (400, "text/html; charset=utf-8")
        assert client.post(f"/jobs/{job}/delete", data={"csrf": token}).status_code == 400
        elsewhere = {"origin": "https://elsewhere.example"}
        assert client.post(f"/jobs/{job}/cancel", data={"csrf": token}, headers=elsewhere).status_code == 403


def test_a_key_opens_the_pages_by_a_cookie_and_shows_what_is_its_owners(served: Served, db_engine: Engine) -> None:
    ann, bob = served.add_key("ann"), served.add_key("bob")
    reader, admin = served.add_key("eve", KeyRole.READ), served.add_key("root", KeyRole.ADMIN)
    with scripted(db_engine, [user("What is 1+1?")]) as pair, served.client(ann) as client:
        made = create(client, [line("a", "What is 1+1?")])
        pair.work()
    _, job, samples = fill(db_engine)
    (own,) = made.specthink["job_ids"]
    own_sample = served.scalar("SELECT id FROM samples WHERE job_id = :job", job=own)
    with browser(served) as client:
        asked = client.get(f"/jobs/{own}")
        assert (asked.status_code, asked.headers["location"]) == (303, f"/login?next=/jobs/{own}")
        assert client.get("/events", params={"jobs": own}).status_code == 401
        assert client.post("/login", data={"key": "sk-specthink-wrong"}).status_code == 401
        assert client.post("/login", data={"key": ann}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        for wanted, target in (
            (f"/jobs/{own}", f"/jobs/{own}"),
            ("//evil.example", "/"),
            ("https://evil.example", "/"),
        ):
            entered = client.post("/login", data={"key": f" {ann} ", "next": wanted})
            assert (entered.status_code, entered.headers["location"]) == (303, target)
        cookie = entered.headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/"))
        assert client.get("/").status_code == 200
        assert client.get("/v1/models").status_code == 401, "the API takes no cookie"
        assert client.post("/logout", data={"csrf": form_token(client, "/")}).status_code == 303
        assert client.get("/").status_code == 303
    for key, seen in ((ann, {own}), (bob, set()), (reader, set()), (admin, {own, job})):
        with browser(served, key) as client:
            for one, sample in ((own, own_sample), (job, samples[0])):
                expected = 200 if one in seen else 404
                for address in (f"/jobs/{one}", f"/jobs/{one}/samples", f"/samples/{sample}", f"/jobs/{one}/report",
                                f"/jobs/{one}/results.jsonl", f"/compare?jobs={one}"):  # fmt: skip
                    assert client.get(address).status_code == expected, (address, seen)
            assert seen == {one for one in (own, job) if f'href="/jobs/{one}"' in client.get("/").text}
            if not seen:
                assert client.post(f"/jobs/{own}/cancel", data={"csrf": "x"}).status_code == 403
    with browser(served, bob) as client:
        token = form_token(client, "/")
        assert client.post(f"/jobs/{own}/cancel", data={"csrf": token}).status_code == 404


def test_events_tell_of_the_jobs_that_are_seen(served: Served, db_engine: Engine) -> None:
    other, job, samples = fill(db_engine)
    with browser(served) as client, client.stream("GET", f"/events?jobs={job},{other},777") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = events(stream.iter_lines())
        first = next(told)
        assert {row["job_id"] for row in first["jobs"]} == {job, other}
        (row,) = (row for row in first["jobs"] if row["job_id"] == job)
        assert (row["samples_total"], row["samples_done"], row["done"]) == (4, 3, 3)
        assert row["shown"]["done"] == "3 of 4"
        with transaction(db_engine) as connection:
            connection.execute(text("UPDATE samples SET state = 'cancelled', ended_at = now() WHERE id = :id"),
                               {"id": samples[3]})  # fmt: skip
            connection.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = :id"),
                               {"id": job})  # fmt: skip
        second = next(told)
        assert {row["job_id"]: row["state"] for row in second["jobs"]}[job] == "cancelled"


def events(lines: Iterator[str]) -> Iterator[Any]:
    """What each event says; each has a name and a number."""
    found: dict[str, str] = {}
    for each in lines:
        name, _, value = each.partition(": ")
        if not each and found:
            assert found["event"] == "progress"
            assert int(found["id"]) > 0
            yield json.loads(found["data"])
            found = {}
        elif name:
            found[name] = value
