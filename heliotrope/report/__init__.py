"""From run directories to a comparison people can read."""

from heliotrope.report.output import (
    RunRecord,
    comparison_table,
    frontier_tables,
    read_run,
    write_report,
)

__all__ = ["RunRecord", "comparison_table", "frontier_tables", "read_run", "write_report"]
