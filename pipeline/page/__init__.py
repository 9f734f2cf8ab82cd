"""One self-contained page about some jobs: tables, charts and a reader for single samples. No script, no network."""

from pipeline.page.page import PageData, render_page

__all__ = ["PageData", "render_page"]
