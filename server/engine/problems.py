"""Tasks that do their slots no good: after some jobs gone wrong in the same way a person must look.

The three tests are justIN's (justIN documentation, jobscripts): most of the jobs that went wrong (a) ended with an error
of the jobscript, (b) never asked for a file, or (c) asked and processed none. Here they are made over the last jobs that
ended, twice as many as have to go wrong, so that a few bad jobs among thousands of good ones pause nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum

from common.errors import ERRORS, ErrorCode
from common.states import JobState
from common.wire import UnitOutcome


class Wrong(str, Enum):
    """How a job went wrong."""

    SCRIPT = "script"
    """The jobscript ended with an error."""
    NOT_ASKED = "not_asked"
    """It ended well without asking for a file, and processed none."""
    NONE_PROCESSED = "none_processed"
    """It ended well, was given files, and processed none."""
    OTHER = "other"
    """Anything else, such as a fault of the site."""

    @property
    def code(self) -> int:
        """The number that stands for it in the database."""
        return _CODES[self]

    @classmethod
    def of_code(cls, code: int) -> Wrong:
        """From its number."""
        return _WRONGS[code]


_CODES = {Wrong.SCRIPT: 1, Wrong.NOT_ASKED: 2, Wrong.NONE_PROCESSED: 3, Wrong.OTHER: 4}
_WRONGS = {code: wrong for wrong, code in _CODES.items()}
_WORDS = {
    Wrong.SCRIPT: "the jobscript ended with an error",
    Wrong.NOT_ASKED: "the jobscript asked for no file and processed none",
    Wrong.NONE_PROCESSED: "the jobscript processed none of the files that it was given",
}


def how_wrong(
    state: JobState, error_code: int | None, outcomes: Sequence[UnitOutcome], asked: int | None, has_files: bool
) -> Wrong | None:
    """How a job went wrong, None if it did not. ``asked``: files given out by get-file (None: not known).

    A job that was cancelled or closed has not gone wrong. One without files cannot be asked what it did with them.
    """
    if state in (JobState.CANCELLED, JobState.CLOSED):
        return None
    if state == JobState.FAILED:
        return Wrong.SCRIPT if _of_the_payload(error_code) else Wrong.OTHER
    if not has_files or not outcomes or UnitOutcome.PROCESSED in outcomes:
        return None
    return Wrong.NOT_ASKED if asked == 0 else Wrong.NONE_PROCESSED


def _of_the_payload(error_code: int | None) -> bool:
    try:
        return error_code is not None and ERRORS[ErrorCode(error_code)].payload
    except ValueError:
        return False


def window(jobs: int) -> int:
    """How many of the last jobs are looked at when ``jobs`` have to go wrong."""
    return 2 * jobs


def problem(ends: Sequence[Wrong | None], jobs: int) -> str:
    """Why a task has to be paused, empty if it has not. ``ends``: of its last :func:`window` jobs. ``jobs`` 0: never."""
    wrong = Counter(end for end in ends if end is not None)
    number = sum(wrong.values())
    if jobs <= 0 or number < jobs:
        return ""
    for kind, words in _WORDS.items():
        if 2 * wrong[kind] > number:
            return (
                f"{number} of its last {len(ends)} jobs went wrong; in {wrong[kind]} of them {words}: "
                "look at their logs, then resume it or kill it"
            )
    return ""
