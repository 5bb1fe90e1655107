"""Trackers: metrics.jsonl always, others behind one small interface."""

from lmkit.tracker.trackers import Trackers, build_trackers, check_trackers, forget_after, last_figures, read_rows

__all__ = ["Trackers", "build_trackers", "check_trackers", "forget_after", "last_figures", "read_rows"]
