"""Defines InputError, how every command reports it, and helpers for its sentences."""

import sys
from collections.abc import Callable, Sequence


class InputError(ValueError):
    """Raised for wrong input from outside: a setting, a file, a folder, a checkpoint.

    The message says in one or two plain sentences what is wrong, where, and what to do.
    """


# packages whose exceptions replace the one that was being handled when they were raised
WRAPPERS = ("grain",)


def find_input_error(error: BaseException | None) -> InputError | None:
    """Returns the InputError that `error` is or was raised from, or None if there is none.

    It follows `raise ... from cause`. An exception that merely occurred while an InputError was
    being handled is a fault of the program and keeps its traceback. Only for those of WRAPPERS,
    which reader threads raise without a cause, the handled exception counts as the cause.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        wraps = type(error).__module__.partition(".")[0] in WRAPPERS and not error.__suppress_context__
        error = error.__cause__ or (error.__context__ if wraps else None)
    return None


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: "1 photo", "12,000 photos". `plural` is needed where it is
    not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def first_few(entries: Sequence[object], count: int = 3) -> str:
    """Returns the first entries, separated by commas, with dots where there are more."""
    return ", ".join(str(entry) for entry in entries[:count]) + (", ..." if len(entries) > count else "")


def first_line(error: BaseException, longest: int = 200) -> str:
    """Returns the first line of an error's text, or its type's name if it has none. Libraries
    append traces, which do not fit into a sentence.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs `main(arguments)` as a program. Wrong input becomes one line on stderr and exit status
    2.
    """
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        wrong_input = find_input_error(error)
        if wrong_input is None:
            raise
        sys.stdout.flush()
        print(f"error: {wrong_input}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status or 0)


def enumerated(names: Sequence[str], last: str = "and") -> str:
    """Joins names: "a", "a and b", "a, b and c"."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final
