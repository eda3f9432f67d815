"""The language: documents with positions, models, the schema made from them, and the checks."""

from specc.core.language import matrix
from specc.core.language.check import Checked, check, in_order, rules_with_facts
from specc.core.language.document import Document
from specc.core.language.models import Spec
from specc.core.language.schema import build_schema

__all__ = [
    "Checked",
    "Document",
    "Spec",
    "build_schema",
    "check",
    "in_order",
    "matrix",
    "rules_with_facts",
]
