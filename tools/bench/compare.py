"""Compare two files of benchmark results: `python tools/bench/compare.py OLD NEW`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    """Print each ratio of both files and its change; say first when the machines are not alike."""
    old, new = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    if old["benchmark"] != new["benchmark"]:
        print(f"these are two benchmarks: {old['benchmark']} and {new['benchmark']}", file=sys.stderr)
        return 1
    for key in sorted({*old["machine"], *new["machine"]}):
        if old["machine"].get(key) != new["machine"].get(key):
            print(f"{key}: {old['machine'].get(key)} → {new['machine'].get(key)}")
    for what in sorted({*old["ratios"], *new["ratios"]}):
        before, after = old["ratios"].get(what), new["ratios"].get(what)
        change = f"{(after / before - 1) * 100:+.1f} %" if before and after else ""
        print(f"{what:<40} {before or '-':>8} {after or '-':>8}  {change}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    raise SystemExit(main())
