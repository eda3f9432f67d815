"""`python -m specc.export JOB.json`."""

from specc.core.stage import run
from specc.export.checkpoint import checkpoint
from specc.export.convert import converted
from specc.export.stitch import stitched

if __name__ == "__main__":
    raise SystemExit(run({"checkpoint": checkpoint, "converted": converted, "stitched": stitched}))
