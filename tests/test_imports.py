import gc
import subprocess
import sys

from arcdist.imports import quick_imports

PROGRAM = """\
import gc, sys
from arcdist.imports import quick_imports

def raised():
    with quick_imports():
        raise ImportError("none such")

try:
    raised()
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count())
with quick_imports():
    print(gc.isenabled())
    import torch
    import arcdist.training.run
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_what_is_imported_is_looked_through_never_and_what_comes_after_as_ever():
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout.splitlines() == ["True 0", "False", "True True"]


def test_in_a_process_that_has_torch_nothing_is_changed():
    assert "torch" in sys.modules
    before = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
