"""The ways a run can end badly.

A user's mistake is one clear line: what is wrong, where (file and line), what to do. The command line turns these into
exit codes; everything else is a bug and keeps its traceback. What a message quotes of a file cannot break the line, or
reach a terminal as an escape sequence.
"""

from palora.common.wording import one_line


class PaloraError(Exception):
    """The run failed although its input was right (a full disk, NaN in training). Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class DivergedError(PaloraError):
    """A training ended in numbers that are none."""


class InputError(PaloraError, ValueError):
    """What was asked for cannot be done as asked (a bad file, a wrong name, a mismatch). Exit code 2."""

    exit_code = 2
