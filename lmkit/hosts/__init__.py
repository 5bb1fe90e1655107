"""The processes of a job: found, called together, and ended together with one reason."""

from lmkit.hosts.job import (
    agree,
    check_shared,
    count,
    first_where_shared,
    gather,
    index,
    is_first,
    report_failure,
    session,
    share,
    watchdog,
)

__all__ = [
    "agree", "check_shared", "count", "first_where_shared", "gather", "index", "is_first", "report_failure", "session",
    "share", "watchdog",
]  # fmt: skip
