"""The road: what every method, task and policy shares."""

from vantage.core.context import Context, Metrics
from vantage.core.errors import CheckpointError, MissingColumn, TrainingError, UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation, Prompts, reads
from vantage.core.trainer import Outcome, Report, Schedule, Trainer
from vantage.core.trajectories import Trajectories, concatenate, per_decision

__all__ = [
    "CheckpointError",
    "Context",
    "Evaluation",
    "Method",
    "Metrics",
    "MissingColumn",
    "Outcome",
    "Prompts",
    "Report",
    "Schedule",
    "Trainer",
    "TrainingError",
    "Trajectories",
    "UserError",
    "concatenate",
    "per_decision",
    "reads",
]
