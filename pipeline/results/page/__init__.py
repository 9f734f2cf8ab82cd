"""One self-contained page about some jobs: tables, charts and a reader for single samples. No script, no network."""

from pipeline.results.page.page import PageData, render_page

__all__ = ["PageData", "render_page"]
