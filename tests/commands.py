"""Commands in this process, which has torch imported: as processes of their own they would take seconds for that."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from app.cli import build_parser
from tests.conftest import logging_put_back


def resnet(*arguments):
    """Run `resnet` with these arguments; return its status and what it said, as subprocess.run does."""
    parsed = build_parser().parse_args([str(one) for one in arguments])
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, logging_put_back():
        status = parsed.run(parsed)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
