"""The gateway's pages in a real browser: what moves by itself, keys, hostile text, contrast, and narrow screens."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from pipeline.db.session import transaction
from pipeline.embedded import Connections
from tests.integration.gateway_world import Served, serving
from tests.integration.rows import add_samples
from tests.integration.test_gateway_pages import fill

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here: requirements/install-harnesses")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser is here: apt-get install chromium"),
]

PHONE = {"width": 360, "height": 740}
WAIT_MS = 60_000

CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faults = [];
  for (const element of document.querySelectorAll("body *")) {
    const told = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!told || !element.checkVisibility()) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) faults.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
  }
  return faults;
}"""
UNNAMED = """() => [...document.querySelectorAll("input:not([type=hidden]), button, a, progress, table")]
  .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label")))
  .map((one) => one.outerHTML)"""
"""What a screen reader could not name."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def served(connections: Connections, db_engine: Engine) -> Iterator[Served]:
    with serving(connections, db_engine) as served:
        yield served


def open_page(browser: Any, served: Served, **options: Any) -> tuple[Any, list[str]]:
    """A page, and what its console complains of."""
    context = browser.new_context(base_url=served.url.removesuffix("/v1"), **options)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    return page, complaints


def test_a_job_moves_and_ends_without_a_reload(browser: Any, served: Served, db_engine: Engine) -> None:
    _, job, samples = fill(db_engine)
    page, complaints = open_page(browser, served)
    page.goto("/")
    row = page.locator(f'tr[data-job="{job}"]')
    assert "3 of 4" in row.inner_text()
    page.evaluate("window.wasNotReloaded = true")
    with transaction(db_engine) as connection:
        connection.execute(text("DELETE FROM samples WHERE id = :id"), {"id": samples[3]})
        add_samples(connection, job, [{"problem": 3, "score": 1.0}])
    row.get_by_text("4 of 4").wait_for()
    assert row.locator("progress").evaluate("bar => [bar.value, bar.max]") == [4, 4]
    with transaction(db_engine) as connection:
        ended = text("UPDATE jobs SET state = 'completed_with_errors', finished_at = now() WHERE id = :id")
        connection.execute(ended, {"id": job})
    row.get_by_text("completed with errors").wait_for()
    page.locator(f'tr[data-job="{job}"][data-state="completed_with_errors"]').wait_for()
    assert page.evaluate("window.wasNotReloaded")
    assert complaints == []


def test_reader_shows_authors_obeys_keys_and_runs_no_text(browser: Any, served: Served, db_engine: Engine) -> None:
    _, _, samples = fill(db_engine)
    page, complaints = open_page(browser, served)
    page.goto(f"/samples/{samples[0]}")
    assert page.locator(".step .by-large").inner_text().startswith("</div><script>alert(1)</script>")
    colours = [page.locator(name).first.evaluate("one => getComputedStyle(one).backgroundColor")
               for name in (".step .by-small", ".step .by-large")]  # fmt: skip
    assert colours[0] != colours[1]
    assert page.locator(".trigger", has_text="reflection: wait").is_visible()
    discarded = page.locator("details.discarded .text")
    assert not discarded.is_visible()
    page.keyboard.press("d")
    assert discarded.is_visible()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/samples/{samples[1]}?state=all")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/samples/{samples[0]}?state=all")
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_can_be_read(browser: Any, served: Served, db_engine: Engine, scheme: str) -> None:
    other, job, samples = fill(db_engine)
    with transaction(db_engine) as connection:
        connection.execute(text("UPDATE jobs SET name = repeat('long', 40) WHERE id = :id"), {"id": other})
    page, complaints = open_page(browser, served, viewport=PHONE, color_scheme=scheme)
    for address in ("/", f"/jobs/{job}", f"/jobs/{job}/samples", f"/samples/{samples[0]}", f"/samples/{samples[2]}",
                    f"/compare?jobs={other},{job}", "/workers"):  # fmt: skip
        page.goto(address)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{address} scrolls sideways"
        assert page.evaluate(CONTRAST) == [], address
        assert page.evaluate(UNNAMED) == [], address
        assert page.locator("h1").count() == 1
    assert complaints == []


def test_everything_works_without_script_and_with_a_key(browser: Any, served: Served, db_engine: Engine) -> None:
    _, job, _ = fill(db_engine)
    from pipeline.key_roles import KeyRole

    key = served.add_key("root", KeyRole.ADMIN)
    page, _ = open_page(browser, served, java_script_enabled=False)
    page.goto(f"/jobs/{job}")
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"**/jobs/{job}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    assert page.locator(".state").inner_text() == "paused"
    page.get_by_text("Cancel …").click()
    page.get_by_role("button", name=re.compile("Cancel job")).click()
    page.get_by_text("cancelled", exact=True).wait_for()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Key").wait_for()
