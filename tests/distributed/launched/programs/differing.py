"""launch/train.py, which rank 1 is given with another seed."""

import runpy
import sys
from pathlib import Path

from arcdist.distributed import rank

TRAIN = Path(__file__).resolve().parents[4] / "launch" / "train.py"

sys.argv[0] = str(TRAIN)
if rank() == 1:
    sys.argv.append("--seed=7")
runpy.run_path(str(TRAIN), run_name="__main__")
