"""Every setting as a flag, made from the settings themselves so that the two cannot drift apart."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping

from pydantic import ValidationError

from app.commands.endings import CommandError
from app.settings import Settings


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def add_settings(
    parser: argparse.ArgumentParser, only: Collection[str] | None = None, described: Mapping[str, str] | None = None
) -> None:
    """Add a flag for each setting, or for those in `only`; a setting whose flag is not given is the environment's.

    `described` has help texts for settings that mean something else to this command than to the service.
    """
    for name, field in Settings.model_fields.items():
        if only is None or name in only:
            words = (described or {}).get(name, field.description)
            parser.add_argument(
                "--" + name.replace("_", "-"),
                default=argparse.SUPPRESS,
                metavar="true|false" if field.annotation in (bool, bool | None) else name.rpartition("_")[2].upper(),
                help=f"{words} [RESNET_{name.upper()}, default {_default(field.default)}]".replace("%", "%%"),
            )


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Combine flags and environment. Raises CommandError, which names each setting that is wrong."""
    given = {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}" for problem in error.errors()]
        raise CommandError("; ".join(lines)) from None
