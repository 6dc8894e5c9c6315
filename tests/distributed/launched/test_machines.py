"""Two launchers, as on two machines, make the run that one launcher makes with two processes."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("config", "alone"), [("cpu_2proc", "cpu_2proc"), ("multi_node_zero2", "zero2")])
def test_two_launchers_are_one_run(launched, assert_same_trajectory, config, alone):
    one, two = launched(alone, 2, program="noting"), launched(config, 2, program="noting", machines=2)
    assert two.codes == [0, 0]
    assert_same_trajectory(two, one, tolerance=1e-6, of_weights=1e-6)
    assert two.noted() == one.noted()
    assert len(list((two.folder / "heartbeats").iterdir())) == 2
    assert two.err.count(" step 7: ") == 1
