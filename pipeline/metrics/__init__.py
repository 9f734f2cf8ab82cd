"""Metrics for Prometheus: what the database says of all jobs and workers, and what a process says of itself.

registry = make_registry(db_engine, redis_url, refresh_s=10)   # one exporter for the whole fleet
render(registry)                                               # its text, as a web server answers a scrape
serve(registry, "127.0.0.1", 9464, num_ports=1)                # a server of its own
"""

from pipeline.metrics.exporter import CONTENT_TYPE, FleetCollector, make_registry, render
from pipeline.metrics.serving import Served, serve

__all__ = ["CONTENT_TYPE", "FleetCollector", "Served", "make_registry", "render", "serve"]
