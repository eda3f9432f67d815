"""The store: sealed artifacts under the hashes of their content, and what is kept beside them."""

from specc.core.store.gc import Garbage, garbage, sweep
from specc.core.store.place import project_root
from specc.core.store.store import Store

__all__ = ["Garbage", "Store", "garbage", "project_root", "sweep"]
