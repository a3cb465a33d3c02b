"""`resnet serve`: the service."""

from __future__ import annotations

import argparse
import logging
import os

from app.commands.endings import CommandError
from app.commands.settings_flags import add_settings, read_settings
from app.logs import set_up_logging
from app.release import REVISION_VARIABLE, release_and_revision
from app.settings import SERVICE_LINK, Settings, SettingsError
from app.stacks import report_crashes

log = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: every setting."""
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal or a failure ends it."""
    report_crashes()
    try:
        settings = read_settings(arguments)
    except CommandError as refusal:
        return _refused(refusal, str(getattr(arguments, "log_format", os.environ.get("RESNET_LOG_FORMAT"))))
    set_up_logging(settings.log_level, settings.log_format)
    _log_settings(settings)
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith("RESNET_")
        and name != REVISION_VARIABLE
        and name.removeprefix("RESNET_").lower() not in Settings.model_fields
        and not SERVICE_LINK.fullmatch(name)
    )
    if unknown:
        log.warning("no such settings, ignored: %s", ", ".join(unknown))
    from app.launch import create_service, serve  # half a second, which `--help` need not wait for

    try:
        code = serve(create_service(settings))
    except SettingsError as error:
        return _refused(CommandError(error), settings.log_format)
    logging.shutdown()
    os._exit(code)  # an engine's thread may be stuck in its device, and an ordinary exit would wait for it


def _log_settings(settings: Settings) -> None:
    """Log one line with every effective setting, also where `log_level` leaves out other INFO lines."""
    chosen = {
        "threads": settings.engine_threads,
        "decode_threads": settings.http_processes * settings.decode_threads_per_process,
    }
    effective = " ".join(f"{name}={value}" for name, value in (settings.model_dump(mode="json") | chosen).items())
    values = (release_and_revision(), effective)
    log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "resnet %s, settings: %s", values, None))
    if settings.timeout_ms > 1000 * settings.drain_timeout_s:
        log.warning(
            "timeout_ms=%d is more than drain_timeout_s=%g allows: a drain may answer by 503 what has time left",
            settings.timeout_ms,
            settings.drain_timeout_s,
        )


def _refused(refusal: CommandError, log_format: str) -> int:
    """Report why there is no service, in the log's format. Raises `refusal` in text, returns the status in JSON."""
    if log_format.strip().lower() != "json":
        raise refusal from None
    set_up_logging("error", "json")
    log.error("%s", refusal)
    return 1
