"""The lock: what a rebuild takes from outside or from defaults, and what builds found."""

from specc.core.lock.engines import CLASSES, MachineClass, machine_class
from specc.core.lock.lock import (
    Lock,
    Locked,
    Locks,
    Moved,
    compare,
    dump,
    engines,
    flat,
    lock_path,
    placeless,
    placeless_values,
    read,
    write,
)

__all__ = [
    "CLASSES",
    "Lock",
    "Locked",
    "Locks",
    "MachineClass",
    "Moved",
    "compare",
    "dump",
    "engines",
    "flat",
    "lock_path",
    "machine_class",
    "placeless",
    "placeless_values",
    "read",
    "write",
]
