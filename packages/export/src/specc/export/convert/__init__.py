"""Drafts in the layouts of other repositories become speculators, every tensor of both accounted for."""

from specc.export.convert.stage import converted

__all__ = ["converted"]
