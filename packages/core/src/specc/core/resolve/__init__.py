"""Resolve: from a checked spec and facts about its verifier to values with origins."""

from specc.core.resolve.hub import offline
from specc.core.resolve.resolve import LANGUAGE, ResolvedSpec, missing_file, resolve, restore

__all__ = ["LANGUAGE", "ResolvedSpec", "missing_file", "offline", "resolve", "restore"]
