from pathlib import Path

import pytest

from arcdist.errors import ConfigError
from arcdist.paths import expanded


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs/a") == tmp_path / "runs" / "a"
    assert expanded(Path("runs/~a")) == Path("runs/~a")


def test_nobody_s_home_folder_is_one_message():
    with pytest.raises(ConfigError, match=r"~nobody-here/a: ~nobody-here is nobody's home folder .* \./~nobody-here"):
        expanded("~nobody-here/a")
