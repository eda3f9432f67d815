"""Resolve: from a checked spec and facts about its verifier to values with origins."""

from specc.core.resolve.hub import offline
from specc.core.resolve.resolve import LANGUAGE, ResolvedSpec, Resolver, missing_file, restore

__all__ = ["LANGUAGE", "ResolvedSpec", "Resolver", "missing_file", "offline", "restore"]
