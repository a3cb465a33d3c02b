"""Commands in this process, which has torch imported: as processes of their own they would take seconds for that."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from app.cli import build_parser
from app.commands.endings import CommandError
from tests.conftest import logging_put_back
from tests.torch_threads import one_torch_thread


def resnet(*arguments):
    """Run `resnet` with these arguments; return its status and what it said, as subprocess.run does."""
    parsed = build_parser().parse_args([str(one) for one in arguments])
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), logging_put_back(), one_torch_thread():
        try:
            status = parsed.run(parsed)
        except CommandError as error:  # what the interpreter makes of it
            err.write(f"{error}\n")
            status = 1
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
