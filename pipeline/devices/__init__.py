"""Which workers run on which GPUs or cores of one machine: what is there, how large models are, and where they go.

machine   what a machine has: by nvidia-smi, or from a JSON file
sizes     how large a model is
needs     what an engine needs of a GPU: the rule of "fits"
placing   pools on GPUs;  cores: on a CPU
hand      the short form of a pool;  file: specthink.toml
"""

from pipeline.devices.hand import parse_pool
from pipeline.devices.machine import Gpu, Machine, probe, read_machine
from pipeline.devices.planning import for_installed_engine, plan_workers
from pipeline.devices.pools import COLUMNS, Plan, PlannedWorker, Pool

__all__ = [
    "COLUMNS",
    "Gpu",
    "Machine",
    "Plan",
    "PlannedWorker",
    "Pool",
    "for_installed_engine",
    "parse_pool",
    "plan_workers",
    "probe",
    "read_machine",
]
