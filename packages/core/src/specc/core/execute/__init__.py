"""The executor: stages as subprocesses, in an environment that the plan decides."""

from specc.core.execute.builder import build
from specc.core.execute.executor import terminable
from specc.core.execute.machine import machine_name
from specc.core.execute.reporter import Reporter

__all__ = ["Reporter", "build", "machine_name", "terminable"]
