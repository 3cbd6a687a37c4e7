"""The one error a user can cause.

It says what is wrong and how to mend it. The command line prints both without a traceback and ends
with exit code 2; any other exception is a defect of ours, or of the machine, and ends with 1.
"""


class CapfiltError(Exception):
    """The user's input is wrong; `fix` says what to do about it."""

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  fix: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # A keyword-only argument is lost by the default pickling, and errors cross processes.
        return (_rebuild, (type(self), self.what, self.fix))


class RunFailedError(CapfiltError):
    """The input was right and the work failed: a full disk, a loss that is not a number.

    The command line prints it like its parent and ends with exit code 1.
    """


def _rebuild(kind: type[CapfiltError], what: str, fix: str) -> CapfiltError:
    return kind(what, fix=fix)
