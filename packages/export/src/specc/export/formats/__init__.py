"""What is particular to one algorithm in the speculators format: a file an algorithm."""

from specc.export.formats.base import Format
from specc.export.formats.registry import FORMATS, speculator_format

__all__ = ["FORMATS", "Format", "speculator_format"]
