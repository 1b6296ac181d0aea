"""From run directories to a comparison people can read."""

from heliotrope.report.output import RunRecord, comparison_table, read_run, write_report

__all__ = ["RunRecord", "comparison_table", "read_run", "write_report"]
