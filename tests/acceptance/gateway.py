"""A gateway beside a pipeline that runs, as its own process; and the harnesses that are its clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.outside import CommandLine, plain_environment

DEMO_PAIR = "speculative-thinking:improved/demo-small+demo-large"

LM_EVAL_TASK = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{problem}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["Problem:"]
  max_gen_toks: 300
  temperature: 0.6
  do_sample: true
filter_list:
  - name: boxed
    filter:
      - function: regex
        regex_pattern: 'boxed\\{{([^}}]*)\\}}'
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""

INSPECT_TASK = """\
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ContentReasoning
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

problems = [json.loads(line) for line in open(sys.argv[1])]
samples = [Sample(input=each["problem"], target="boxed{" + each["answer"] + "}") for each in problems]
task = Task(dataset=samples, solver=generate(), scorer=includes())
(log,) = eval(
    task, model=sys.argv[2], max_tokens=300, max_retries=1, display="none", log_dir=sys.argv[3]
)
assert log.status == "success", log.error
told = []
for sample in log.samples:
    content = sample.output.choices[0].message.content
    thoughts = [part.reasoning for part in content if isinstance(part, ContentReasoning)]
    told.append({
        "thoughts": thoughts, "tokens": sample.output.usage.output_tokens,
        "reasoning_tokens": sample.output.usage.reasoning_tokens, "score": sample.scores["includes"].value,
    })
print(json.dumps(told))
"""


@contextmanager
def run_gateway(command: CommandLine) -> Iterator[str]:
    """A gateway process on the pipeline of this state folder: its address."""
    argv = command.argv("gateway", "--port", "0")
    with subprocess.Popen(
        argv, cwd=command.cwd, env=plain_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("gateway at "), line or process.communicate()
            yield line.split()[-1]
        finally:
            process.terminate()
            _, complaint = process.communicate(timeout=30)
        assert complaint == ""


def run_lm_eval(folder: Path, url: str, data: Path) -> str:
    """What lm-eval prints of a task that asks these problems."""
    (folder / "sums.yaml").write_text(LM_EVAL_TASK.format(data=data))
    arguments = (
        f"model={DEMO_PAIR},base_url={url}/chat/completions,num_concurrent=4,max_retries=2,timeout=120,"
        "tokenizer_backend=None,tokenized_requests=False"
    )
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-chat-completions", "--model_args", arguments, "--tasks",
        "sums", "--include_path", str(folder), "--apply_chat_template", "--output_path", str(folder / "out"),
        "--log_samples",
    ]  # fmt: skip
    return _run(folder, command, OPENAI_API_KEY="any", HF_HOME=str(folder / "hf"))


def run_inspect(folder: Path, url: str, data: Path) -> str:
    """What the script above prints of its samples."""
    (folder / "inspect_task.py").write_text(INSPECT_TASK)
    command = [
        sys.executable, str(folder / "inspect_task.py"), str(data), f"openai-api/specthink/{DEMO_PAIR}",
        str(folder / "logs"),
    ]  # fmt: skip
    return _run(folder, command, SPECTHINK_BASE_URL=url, SPECTHINK_API_KEY="any")


def _run(folder: Path, command: list[str], **environment: str) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=plain_environment() | offline | environment, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
