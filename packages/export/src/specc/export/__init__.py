"""The speculators format: write it, check it against the layout table, read it."""

from specc.export.layout import compare, require
from specc.export.reader import read_speculator

__all__ = ["compare", "read_speculator", "require"]
