"""A run as one page of HTML: what it was, how it went, what it can do and what it cost."""

from arcdist.report.write import report_page, write_report

__all__ = ["report_page", "write_report"]
