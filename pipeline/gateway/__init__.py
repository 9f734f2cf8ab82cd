"""The OpenAI-compatible API: files, batches, models and chat over HTTP. It needs Postgres only; ``app`` makes it.

It imports FastAPI, which the extra ``gateway`` brings; nothing else in ``pipeline`` does.
"""
