"""launch/train.py, to which the fault that `FAULT` describes happens; `FAULT_FOLDER` is the run folder."""

import json
import os
import runpy
import sys
from pathlib import Path

from faults import Fault, Faults

TRAIN = Path(__file__).resolve().parents[3] / "launch" / "train.py"

fault = Fault(**json.loads(os.environ["FAULT"]))
if int(os.environ.get("RANK", "0")) == fault.rank:
    Faults(Path(os.environ["FAULT_FOLDER"]), fault).install()
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
