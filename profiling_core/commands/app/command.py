"""`profiling-dit app`: a page in the browser."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profiling_core.commands.app.places import chosen_folders
from profiling_core.commands.arguments import add_log_options, at_least, log
from profiling_core.commands.report.drawing import check_packages
from profiling_core.errors import InputError
from profiling_core.files import check_writable

LAST_PORT = 65535
DESCRIPTION = """\
Serves a page for this machine's browser: task, prompt, pictures, size, seed and plan, the clip
and on request the full one beside it. The miniatures run at once. Without --files the page takes no
path of a plan file or a checkpoint folder. It has no password: whoever reaches --host can use it.
"""


def add_app_command(commands: Any) -> None:
    """Add `app` to the subcommands of the parser."""
    one = commands.add_parser("app", help="a page in the browser", description=DESCRIPTION)
    add = one.add_argument
    add("--host", default="127.0.0.1", metavar="ADDR", help="to listen on, default %(default)s")
    add(
        "--port",
        type=at_least(0),
        default=7860,
        metavar="N",
        help="default %(default)s; 0: any that is free",
    )
    add(
        "--files",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders whose plan files and checkpoint folders can be named on the page",
    )
    add("--out", default="out/app", metavar="DIR", help="folder of the clips, default %(default)s")
    add_log_options(one)
    one.set_defaults(run=run_app)


def run_app(args: argparse.Namespace) -> list[str]:
    """Serve the page until it is interrupted."""
    folders, out = chosen_folders(args.files), Path(args.out)
    check_writable(out / "clip.mp4", "--out")
    check_packages("matplotlib", "skimage")
    with _bound(args.host, args.port) as bound, _own_uploads():
        import uvicorn

        from profiling_core.commands.app.page import Page  # gradio: it brings uvicorn
        from profiling_core.commands.app.tasks import find_tasks

        out.mkdir(parents=True, exist_ok=True)
        page = Page(find_tasks(), folders, Path(os.path.realpath(out)))
        config = uvicorn.Config(
            page.server(args.host), log_level="error", timeout_graceful_shutdown=1
        )
        host, port = bound.getsockname()[:2]
        log.info(f"open http://{f'[{host}]' if ':' in host else host}:{port}/ in a browser")
        log.info(f"clips are written to {out}; Ctrl-C ends the page")
        for number in (signal.SIGTERM, signal.SIGHUP):  # they end it as Ctrl-C does; not nohup's
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        finally:
            page.worker.stop()
    return []


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; InputError where that is not possible."""
    if port > LAST_PORT:
        raise InputError(f"--port {port}: take at most {LAST_PORT}, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        one = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: {error}") from None
    with one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(address)
            one.listen()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--host {host} --port {port}: cannot listen there "
                f"({getattr(error, 'strerror', None) or error}): name another, or --port 0 for "
                "any free one"
            ) from None
        yield one


@contextmanager
def _own_uploads() -> Iterator[None]:
    """gradio's settings before it is imported: pictures go at the end, nobody is informed."""
    prefix = "profiling-dit-app-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        yield
