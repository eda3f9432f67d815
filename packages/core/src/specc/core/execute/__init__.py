"""The executor: stages as subprocesses, in an environment that the plan decides."""

from specc.core.execute.builder import assist, build, build_alone
from specc.core.execute.executor import terminable
from specc.core.execute.machine import machine_name
from specc.core.execute.reporter import Reporter

__all__ = ["Reporter", "assist", "build", "build_alone", "machine_name", "terminable"]
