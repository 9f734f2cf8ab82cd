"""Exits: when a sample has thought enough. An exit closes the think phase; then the answer is written.

SpecExit (arXiv 2509.24248) has the same aim: its draft head reads from the hidden states when to stop. That head has to
be trained for each model, none was released, and an engine as it is does not load one. The exits here need no training:
they test at breaks, by what the model says or nearly said, and several tests in a row may have to agree.
"""

from pipeline.policies.exits.choosing import AnyExitSpec, exit_defaults, exit_names, exit_type
from pipeline.policies.exits.controls import CutExit, RandomExit
from pipeline.policies.exits.spec import ExitSpec
from pipeline.policies.exits.think_brake import ThinkBrakeExit
from pipeline.policies.exits.trials import AgreementExit, DeerExit, LargeExtractExit

__all__ = [
    "AgreementExit",
    "AnyExitSpec",
    "CutExit",
    "DeerExit",
    "ExitSpec",
    "LargeExtractExit",
    "RandomExit",
    "ThinkBrakeExit",
    "exit_defaults",
    "exit_names",
    "exit_type",
]
