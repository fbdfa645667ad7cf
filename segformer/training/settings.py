"""Settings that know their rules: fields of a frozen dataclass, each with its meaning, its values and its flag.

What a field says of itself is all there is to say: the check of a value, the command line, and whether a run that is
resumed may have another value than it began with.
"""

from __future__ import annotations

import argparse
import logging
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from functools import partial
from typing import Any, Literal, cast

logger = logging.getLogger(__name__)


def setting(
    default: Any,
    meaning: str,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    below: float = 2**31,
    on_resume: Literal["kept", "found", "told", "free"] = "kept",
) -> Any:
    """A field of a settings dataclass: one of ``choices``, or a number of ``at_least`` and ``below`` its limits.

    A run that is resumed with another value is refused ("kept", and "found" where both are said: None is found out), or
    told of it, or free to have it.
    """
    rules = {"choices": choices, "at_least": at_least, "below": below, "on_resume": on_resume}
    return field(default=default, metadata={"help": meaning, **rules})


found_out = partial(setting, None, on_resume="found")
changeable = partial(setting, on_resume="told")
per_start = partial(setting, on_resume="free")


def check_settings(config: Any) -> None:
    """Raise ValueError, with its name and its rule, for the first value that its field does not take."""
    kinds = _kinds(type(config))
    for each in fields(config):
        value, rules = getattr(config, each.name), each.metadata
        kind, may_be_none = kinds[each.name]
        if value is None and may_be_none:
            continue
        of_kind = isinstance(value, (int, float) if kind is float else kind)
        if not of_kind or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{each.name} is {value!r}; it must be {_KIND_NAMES[kind]}")
        if rules["choices"] and value not in rules["choices"]:
            raise ValueError(f"{each.name} is {value!r}; it is one of {', '.join(rules['choices'])}")
        if rules["at_least"] is not None and not rules["at_least"] <= value < rules["below"]:
            raise ValueError(f"{each.name} is {value}; it must be at least {rules['at_least']}, below {rules['below']}")


def add_flags(
    parser: argparse.ArgumentParser,
    config: type,
    skip: Sequence[str] = (),
    defaults: Any = None,
    groups: Mapping[str, str] | None = None,
) -> None:
    """One flag for every field, under its name with dashes.

    ``defaults`` is an object with the values that the help tells, instead of the fields' own. ``groups`` names, by
    their first fields, the groups in which the help lists them.
    """
    kinds, place = _kinds(config), cast(Any, parser)
    for each in fields(config):
        if groups and each.name in groups:
            place = parser.add_argument_group(groups[each.name])
        if each.name in skip:
            continue
        flag = "--" + each.name.replace("_", "-")
        kind, _ = kinds[each.name]
        meaning = (each.metadata["help"] + _told(getattr(defaults, each.name, each.default))).replace("%", "%%")
        if kind is bool:
            place.add_argument(flag, action=argparse.BooleanOptionalAction, help=meaning)
        else:
            metavar = None if each.metadata["choices"] else {int: "N", float: "X"}.get(kind, "TEXT")
            place.add_argument(flag, type=kind, choices=each.metadata["choices"], metavar=metavar, help=meaning)


def _told(default: Any) -> str:
    if default is None:
        return ""
    return f" (default: {('off', 'on')[default] if isinstance(default, bool) else default})"


def check_resumable(config: Any, saved: Mapping[str, Any]) -> None:
    """Raise ValueError, naming all values, where another run would come of it; log what else is not as it was.

    A setting that is younger than the checkpoint had its default: that is what was done before it could be chosen.
    """
    refused = []
    for each in fields(config):
        now, then = getattr(config, each.name), saved.get(each.name, each.default)
        plain = then is None or isinstance(then, str | int | float)  # a forged checkpoint may hold anything
        same = now == then or (isinstance(now, str) and str(then) == now)  # a number before, as image_size was
        if (plain and same) or each.metadata["on_resume"] == "free":
            continue
        if each.metadata["on_resume"] == "found" and None in (now, then):
            continue
        if each.metadata["on_resume"] in ("kept", "found"):
            refused.append((each.name, then, now))
        else:
            logger.info("%s is now %r, it was %r", each.name, now, then)
    if refused:
        names, thens, nows = zip(*refused, strict=True)
        now = ", ".join(map(repr, nows))
        trained = ", ".join(f"{name} {value!r}" for name, value in zip(names, thens, strict=True))
        raise ValueError(
            f"the checkpoint was trained with {trained}, this run asks for {now}; go on with the "
            "former, or start a run of its own in another --output-dir"
        )


_KIND_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def _kinds(config: type) -> dict[str, tuple[type, bool]]:
    """For every field the type of its values, and whether None is one of them."""
    kinds = {}
    for name, kind in typing.get_type_hints(config).items():
        parts = [part for part in getattr(kind, "__args__", (kind,)) if part is not types.NoneType]
        kinds[name] = parts[0], isinstance(kind, types.UnionType)
    return kinds
