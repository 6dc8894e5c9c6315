import pytest

from arcdist.machine import memory_left, most_cores

GIB = 2**30


@pytest.fixture
def groups(tmp_path):
    """The two places to look at: a process in the group `job/step` of a machine that has written these files."""

    def make(files):
        root, of_process = tmp_path / "cgroup", tmp_path / "self"
        of_process.write_text("5:cpu:/elsewhere\n0::/job/step\n")
        (root / "job" / "step").mkdir(parents=True)
        for name, content in files.items():
            (root / name).write_text(content)
        return root, of_process

    return make


def test_without_limits_there_is_none(groups, tmp_path):
    places = groups({"job/cpu.max": "max 100000\n", "job/memory.max": "max\n", "job/memory.current": "5\n"})
    assert (most_cores(*places), memory_left(*places)) == (None, None)
    assert most_cores(tmp_path / "no", tmp_path / "where") is None


def test_the_narrowest_group_counts(groups):
    places = groups({"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "400000 100000\n"})
    assert most_cores(*places) == 1.5


def test_what_the_cache_holds_can_be_had(groups):
    places = groups(
        {
            "memory.max": f"{64 * GIB}\n",
            "memory.current": f"{60 * GIB}\n",
            "job/memory.max": f"{8 * GIB}\n",
            "job/memory.current": f"{7 * GIB}\n",
            "job/memory.stat": f"anon {4 * GIB}\ninactive_file {2 * GIB}\nactive_file {1 * GIB}\n",
        }
    )
    assert memory_left(*places) == 3 * GIB
