"""What is kept and shown of a study: interpolations as they were written, URIs without user name,
password and query.

``${oc.env:NAME}`` is how a study names what must not be kept. A text setting that was written so
holds the value and remembers how it was written (``Interpolated``); what is saved, sent or shown
goes through ``as_written``. Numbers and switches are kept as values: steps and tables follow from
them anyway. What libraries say of a value, in errors and logs, goes through ``public``.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from dataclasses import fields, is_dataclass, replace
from types import TracebackType
from typing import Any, TextIO, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)[^{}]*\}")
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_URI = re.compile(r"\b([a-zA-Z][\w+.-]*)://([^\s'\"<>()]+)")  # in a text
_WHOLE_URI = re.compile(r"([a-zA-Z][\w+.-]*)://(.+)", re.DOTALL)
_FILES = ("file", "sqlite")  # schemes whose URIs name no user
_MIN_CHARS = 4  # shorter ones are in every text, and no secret
# What this process has read and must not say -> what it says instead. For the whole process, as an
# error of a library that knows nothing of studies may hold it.
_hidden: dict[str, str] = {}


class Interpolated(str):
    """The value of a setting, and how the study says it: ``${oc.env:DATA}/books.jsonl``."""

    written: str

    def __new__(cls, value: str, written: str) -> Interpolated:
        self = super().__new__(cls, value)
        self.written = written
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # a copy remembers, too
        return Interpolated, (str(self), self.written)


def as_written(tree: T) -> T:
    """``tree`` (a dataclass, dict, list or value) as it may be kept and shown; a copy."""
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: as_written(getattr(tree, f.name)) for f in fields(tree)})
    found: Any = tree
    if isinstance(tree, dict):
        found = {key: as_written(value) for key, value in tree.items()}
    elif isinstance(tree, list):
        found = [as_written(value) for value in tree]
    elif isinstance(tree, Interpolated):
        found = public_uris(tree.written)
    elif isinstance(tree, str):
        found = public_uris(tree)
    return found


def public(text: str) -> str:
    """``text`` (an error's, a log's) without the secrets that this process has read."""
    for secret in sorted(_hidden, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, _hidden[secret])
    return public_uris(text)


def public_uris(text: str) -> str:
    """``text`` with every URI in it less its user name, password and query; what is interpolated in
    them stays as it is written."""
    whole = _WHOLE_URI.fullmatch(text)
    if whole and (not whole[1].startswith("http") or len(text.split()) == 1):
        return _public_uri(whole)
    return _URI.sub(_public_uri, text)


def hide(secret: str, shown: str) -> None:
    """Remember ``secret`` as what must not be said, and ``shown`` as what to say instead."""
    for form in (secret, unquote(secret)):
        if len(form) >= _MIN_CHARS and form != shown:
            _hidden[form] = shown


def hide_environment(tree: Any) -> None:
    """Remember the variables that the settings in ``tree`` (plain values) take from the environment
    as what must not be said."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            hide_environment(value)
    elif isinstance(tree, str):
        for found in _ENVIRONMENT.finditer(tree):
            hide(os.environ.get(found[1], ""), found[0])


def interpolated_variables(text: str) -> dict[str, str]:
    """The variables of this process that the study in ``text`` is interpolated from."""
    names = {found[1] for found in _ENVIRONMENT.finditer(text)}
    return {name: os.environ[name] for name in sorted(names) if name in os.environ}


def hide_uri(uri: str) -> None:
    """Remember user name, password and query of ``uri`` as what must not be said."""
    whole = _WHOLE_URI.fullmatch(uri)
    if whole is None or whole[1] in _FILES:
        return
    rest = whole[2]
    user, at, _ = rest.rpartition("@")
    if at:
        hide(user.partition(":")[2], "***")
    for part in rest.partition("?")[2].split("&") if "?" in rest else ():
        hide(part.partition("=")[2], "***")


def hide_in_output() -> None:
    """From now on this process's logs, warnings and tracebacks go through ``public``."""
    logging.setLogRecordFactory(_record)
    warnings.showwarning = _show_warning
    sys.excepthook = _show_traceback


def _record(*arguments: Any, **more: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **more)
    if _hidden:
        try:
            record.msg, record.args = public(record.getMessage()), ()
        except (TypeError, ValueError):  # the caller's mistake, which logging itself reports
            return record
    return record


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(public(text))


def _show_traceback(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    sys.stderr.write(public("".join(traceback.format_exception(kind, error, where))))


def _public_uri(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    user, place = ("", rest) if scheme in _FILES else _user_of(scheme, rest)
    name, colon, password = _INTERPOLATION.sub("", user).partition(":")
    if password or (name and not colon):
        user = ""
    place, mark, query = place.partition("?")
    values = [part.partition("=")[2] or part for part in query.split("&")]
    if any(_INTERPOLATION.sub("", value) for value in values):
        mark = query = ""
    return f"{scheme}://{user}{'@' * bool(user)}{place.partition('#')[0]}{mark}{query}"


def _user_of(scheme: str, rest: str) -> tuple[str, str]:
    """User information and what follows it; a password may hold '/', '?' and '@' as well."""
    if not scheme.startswith("http"):
        user, _, place = rest.rpartition("@")
        return user, place
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.partition(":")[2]
    if "@" in authority:
        user = authority.rpartition("@")[0]
    else:
        user = rest.rpartition("@")[0] if port and not port.isdigit() else ""
    return user, rest[len(user) + 1 :] if user else rest
