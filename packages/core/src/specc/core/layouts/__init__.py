"""The layouts of other repositories' drafts: how each is told, what it means, where it keeps each tensor."""

from specc.core.layouts.assign import Assignment, assign, largest, plain
from specc.core.layouts.base import Ignored, Layout, Place
from specc.core.layouts.registry import LAYOUTS, detect, layout, section

__all__ = [
    "LAYOUTS",
    "Assignment",
    "Ignored",
    "Layout",
    "Place",
    "assign",
    "detect",
    "largest",
    "layout",
    "plain",
    "section",
]
