"""Runs: the directory a long job leaves behind, what is recorded in it, and the report that comes out."""

from popflow.runs.config import ConfigError, config_of, plain, read_values
from popflow.runs.metrics import Metrics
from popflow.runs.recorders import checkpoint, checkpointed, last_checkpoint, training
from popflow.runs.report import Figure, Measured, Report, Table, Verdict, read_report, render, rerender
from popflow.runs.run import Run, RunBusyError, cited

__all__ = [
    "ConfigError",
    "Figure",
    "Measured",
    "Metrics",
    "Report",
    "Run",
    "RunBusyError",
    "Table",
    "Verdict",
    "checkpoint",
    "checkpointed",
    "cited",
    "config_of",
    "last_checkpoint",
    "plain",
    "read_report",
    "read_values",
    "render",
    "rerender",
    "training",
]
