"""Declares, reads, checks and lists settings. spn_jax/config.py defines which there are.

A config is a frozen dataclass of sections, and a section is one of settings. A setting is a field
made by `setting(...)`, with its default, its meaning, the rule that its value must keep, and what a
run does that is resumed with another value. Every function here is a loop over these fields.
"""

import dataclasses
import difflib
import enum
import fnmatch
import itertools
import json
import math
import os
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from spn_jax.errors import InputError

METADATA_KEY = "setting"  # of the `Declared` in the metadata of a field
COLUMNS = 98  # width of a listing
NAME_COLUMNS = 34  # of these, for `section.key=default`

C = TypeVar("C")  # a config


@dataclasses.dataclass(frozen=True)
class Rule:
    """Holds a condition on a setting's value. None always fulfils it."""

    words: str  # after "must"
    holds: Callable[[Any], bool]


POSITIVE = Rule("be greater than 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("not be negative", lambda value: value >= 0)
BELOW_ONE = Rule("be at least 0 and less than 1", lambda value: 0 <= value < 1)


class OnResume(enum.Enum):
    """States what happens if a run is resumed with another value of a setting."""

    ANOTHER_RUN = "the run stops: it would compute something else"
    SAME_NUMBERS = "safe: it changes none of the numbers that the run computes, but for rounding"
    BY_CONTENT = "the run goes on if the weights and features that it reads are the same as before, which checkpoints identify"
    ANOTHER_BEST = "safe: it changes what best means, so earlier scores are not compared with new ones"


SAME_NUMBERS, BY_CONTENT, ANOTHER_BEST = OnResume.SAME_NUMBERS, OnResume.BY_CONTENT, OnResume.ANOTHER_BEST
MARKS = {OnResume.ANOTHER_RUN: " ", SAME_NUMBERS: "*", BY_CONTENT: "+", ANOTHER_BEST: "*"}  # in a listing


@dataclasses.dataclass(frozen=True)
class Declared:
    """Holds what a field declares about its setting, besides name, type and default."""

    meaning: str
    rule: Rule | None
    on_resume: OnResume


def setting(default: Any, meaning: str, rule: Rule | None = None, on_resume: OnResume = OnResume.ANOTHER_RUN) -> Any:
    """Declares a field of a section.

    Args:
        default: must mean what was done before the setting existed, because old checkpoints are
            read with it.
        meaning: text for the lists of settings, without a full stop.
        rule: condition on the values beyond their type, which is the field's annotation.
        on_resume: what happens if a run is resumed with another value.
    """
    return dataclasses.field(default=default, metadata={METADATA_KEY: Declared(meaning, rule, on_resume)})


@dataclasses.dataclass(frozen=True)
class Setting:
    """Describes one setting of a kind of config."""

    section: str
    name: str
    kind: Any  # its type
    default: Any
    declared: Declared

    @property
    def key(self) -> str:
        """Returns the setting's name on command lines."""
        return f"{self.section}.{self.name}"

    def value_in(self, config: Any) -> Any:
        """Returns its value in a config."""
        return getattr(getattr(config, self.section), self.name)


def settings_of(config: Any) -> Iterator[Setting]:
    """Yields every setting of a config, or of a config class, in the order of declaration."""
    for section in dataclasses.fields(config):
        kinds = typing.get_type_hints(section.type)
        for field in dataclasses.fields(typing.cast(Any, section.type)):
            yield Setting(section.name, field.name, kinds[field.name], field.default, field.metadata[METADATA_KEY])


def chosen_settings(config: Any, patterns: Iterable[str]) -> list[Setting]:
    """Returns the settings whose keys match one of the shell-style patterns, such as "eval.*" or
    "data.test_*".
    """
    return [entry for entry in settings_of(config) if any(fnmatch.fnmatchcase(entry.key, pattern) for pattern in patterns)]


# --- reading ---


def replace_settings(config: C, overrides: Iterable[str]) -> C:
    """Returns `config` with each `section.key=value` applied, without checking it as a whole.

    Raises:
        InputError: there is no such setting (it names the nearest), or a value has the wrong type.
    """
    known = {entry.key: entry for entry in settings_of(config)}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"override {override!r} has no '='; write section.key=value, for example train.batch_size=4")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"config has no setting {key!r}{hint}")
        try:
            value = convert(text, known[key].kind)
        except ValueError:
            raise InputError(f"{key}={text!r} is not {described(known[key].kind)}") from None
        section = dataclasses.replace(getattr(config, known[key].section), **{known[key].name: value})
        config = dataclasses.replace(config, **{known[key].section: section})  # type: ignore[type-var]
    return config


def from_values(config_class: type[C], values: dict[str, Any], origin: str) -> C:
    """Returns the config with these values, {section: {name: value}}, each converted to its
    setting's type.

    Raises:
        InputError: settings or types do not fit; it names `origin`.
    """
    known = {entry.key: entry for entry in settings_of(config_class)}
    flat = {f"{section}.{name}": v for section, given in values.items() if isinstance(given, dict) for name, v in given.items()}
    unknown, missing = sorted(flat.keys() - known.keys()), sorted(known.keys() - flat.keys())
    if unknown or missing:
        raise InputError(
            f"the settings in {origin} are of another version of spn_jax: "
            f"unknown here {unknown or 'none'}, missing there {missing or 'none'}"
        )
    sections = {section.name: typing.cast(Any, section.type) for section in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    typed: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, entry in known.items():
        try:
            typed[entry.section][entry.name] = convert(flat[key], entry.kind)
        except (ValueError, OverflowError):
            raise InputError(f"in {origin}, {key}={flat[key]!r} is not {described(entry.kind)}") from None
    return config_class(**{name: section(**typed[name]) for name, section in sections.items()})


def convert(value: Any, kind: Any) -> Any:
    """Converts `value`, from a command line (text) or from JSON, to `kind`. Raises ValueError if it
    cannot.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return convert(value, without_none(kind))
    if origin is tuple:
        parts = [p.strip() for p in value.strip("()[]").split(",") if p.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError
        return tuple(convert(part, arguments[0]) for part in parts)
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError
    if kind is str:
        if isinstance(value, str | os.PathLike):
            return str(value)
        raise ValueError
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not math.isfinite(float(value)):
        raise ValueError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return kind(value)


def described(kind: Any) -> str:
    """Returns a type in words, for "... is not ..."."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return described(without_none(kind)) + " or none"
    if origin is tuple:
        return f"a list of values, each {described(arguments[0])}, separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def without_none(kind: Any) -> Any:
    """Returns the type T of `T | None`."""
    return next(argument for argument in typing.get_args(kind) if argument is not type(None))


# --- checking ---


def check_rules(config: Any) -> None:
    """Raises InputError for the first setting whose value breaks its field's rule."""
    for entry in settings_of(config):
        value, rule = entry.value_in(config), entry.declared.rule
        if rule is not None and value is not None and not rule.holds(value):
            raise InputError(f"{entry.key}={value} must {rule.words}")


def changed_settings(old: Any, new: Any, kind: OnResume = OnResume.ANOTHER_RUN) -> list[str]:
    """Returns lines `key: old -> new` of the settings of one kind that differ, by default of those
    that a resumed run must not change.
    """
    before, after = to_dict(old), to_dict(new)
    lines = []
    for entry in settings_of(old):
        was, now = before[entry.section][entry.name], after[entry.section][entry.name]
        if entry.declared.on_resume is kind and was != now:
            lines.append(f"{entry.key}: {was} -> {now}")
    return lines


def values_of(config: Any, kind: OnResume) -> dict[str, Any]:
    """Returns {key: value} of the settings of one kind."""
    return {entry.key: entry.value_in(config) for entry in settings_of(config) if entry.declared.on_resume is kind}


# --- listing ---


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a nested dictionary of plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def describe(config: Any) -> Sequence[str]:
    """Returns one `key = value` line per setting."""
    values = to_dict(config)
    return [f"{entry.key} = {values[entry.section][entry.name]}" for entry in settings_of(config)]


def help_text(config_class: Any, *patterns: str, resumable: bool = False) -> str:
    """Lists the settings that a command takes, with defaults and meanings, for the end of its
    --help.

    Args:
        patterns: patterns of their keys, as for `chosen_settings`.
        resumable: whether to mark those that a resumed run may change.
    """
    lines = ["settings, as section.key=value, with their defaults, which a config file may replace:"]
    if resumable:
        lines += ["(a run that is continued may change those with a star;"]
        lines += [" those with a plus too, if weights and features stay the same)"]
    section = ""
    for entry in chosen_settings(config_class, patterns):
        if entry.section != section:
            lines.append("")
            section = entry.section
        mark = MARKS[entry.declared.on_resume] if resumable else " "
        name = f"{mark} {entry.key}={as_typed(entry.default)}"
        if len(name) >= NAME_COLUMNS:
            lines.append(name)
            name = ""
        text = textwrap.wrap(entry.declared.meaning + choices(entry.kind), COLUMNS - NAME_COLUMNS)
        lines += [f"{left:{NAME_COLUMNS}}{line}" for left, line in itertools.zip_longest([name], text, fillvalue="")]
    return "\n".join(lines)


def as_typed(value: Any) -> str:
    """Formats a value as on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(as_typed, value))
    return str(value).lower() if value is None or isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def choices(kind: Any) -> str:
    """Returns the allowed words of a setting that has only certain ones: " [none | center |
    random]".
    """
    return f" [{' | '.join(map(str, typing.get_args(kind)))}]" if typing.get_origin(kind) is Literal else ""
