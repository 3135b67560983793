"""Numbers and lists in messages to people."""

from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """ "1 photo", "2 photos", "1,000 photos"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def enumerated(names: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final
