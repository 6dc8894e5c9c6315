"""Keys in the environment of a run stay there."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_no_file_and_no_line_of_a_run_holds_a_key_of_its_environment(uninterrupted, secrets, processes):
    place = uninterrupted(processes).parent
    files = [file for file in place.rglob("*") if file.is_file()]
    assert len([file for file in files if file.name == "weights.safetensors"]) == 6
    assert any(file.name == "output_0" and file.stat().st_size for file in files)
    for file in files:
        content = file.read_bytes()
        assert [name for name, value in secrets.items() if value.encode() in content] == [], file


def test_nor_does_what_a_failure_leaves(start, secrets, failing):
    failed = start(launcher=False, program=failing, environment={"FAILS": "grid", "FAILING_RANK": "0"})
    assert failed.wait() == 1
    assert "Traceback" in failed.output
    for file in (file for file in start.place.rglob("*") if file.is_file()):
        content = file.read_bytes()
        assert [name for name, value in secrets.items() if value.encode() in content] == [], file
