"""A log read for its warnings, its starts and its end."""

from arcdist.report.log_lines import Complaint, complaints, ending, read_log, resumptions

LOG = """\
2026-01-02 03:04:05,001 INFO Run folder runs/mine, recipe quickstart.
2026-01-02 03:05:05,001 WARNING Step 7 was skipped on all processes: loss = nan.
2026-01-02 03:06:05,001 WARNING Step 12 was skipped on all processes: loss = nan.
2026-01-02 03:06:06,001 INFO Resumed from runs/mine/checkpoints/step_00000010: step 10, epoch 0, batch 10 of 32.
2026-01-02 03:06:07,001 INFO

 validation    epoch 2
2026-01-02 03:07:05,001 ERROR The run ended with an unexpected error.
Traceback (most recent call last):
  File "a.py", line 1
ValueError: 7 <b>
"""


def test_warnings_that_differ_in_numbers_are_counted_together(tmp_path):
    (tmp_path / "training.log").write_text(LOG)
    log = read_log(tmp_path / "training.log")
    error = "The run ended with an unexpected error. … ValueError: 7 <b>"
    assert complaints(log) == [
        Complaint(
            level="WARNING",
            text="Step 7 was skipped on all processes: loss = nan.",
            count=2,
            last="2026-01-02 03:06:05",
        ),
        Complaint(level="ERROR", text=error, count=1, last="2026-01-02 03:07:05"),
    ]
    assert resumptions(log) == 1
    assert ending(log) == error


def test_a_run_that_says_nothing_of_its_end(tmp_path):
    assert read_log(tmp_path / "training.log") == []
    assert ending([]) is None
    (tmp_path / "training.log").write_text("no record\n" + LOG.partition("2026-01-02 03:07")[0])
    log = read_log(tmp_path / "training.log")
    assert [entry.level for entry in log] == ["INFO", "WARNING", "WARNING", "INFO", "INFO"]
    assert ending(log) is None


def test_long_messages_are_cut_off(tmp_path):
    (tmp_path / "training.log").write_text(f"2026-01-02 03:04:05,001 ERROR {'x' * 5000}\n")
    (complaint,) = complaints(read_log(tmp_path / "training.log"))
    assert complaint.text == "x" * 299 + "…"
