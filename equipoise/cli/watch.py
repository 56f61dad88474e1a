"""``equipoise watch STUDY``: a page that follows a study while it is walked."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from typing import Any

from equipoise.cli.arguments import option, place, whole
from equipoise.errors import EXIT_OK


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "watch",
        help="a page that follows a study while it is walked",
        description="Serve the report's page of a study, read anew with each evaluation. It only reads: any number may watch, "
        "from the study's machine or, with a store in a database, from any other. Ends with Ctrl-C.",
    )
    option(parser, "study", place, metavar="STUDY", help="folder of the study, or its address (what --store named)")
    option(parser, "--port", whole(most=65535), default=8765, help="where the page is (%(default)s); 0 for any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="who may see it: this machine alone (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve the page until the process is asked to end."""
    from equipoise.ship.watch import watching

    with watching(args.study, host=args.host, port=args.port) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        host, port = server.server_address[:2]
        print(f"http://{host if isinstance(host, str) else host.decode()}:{port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return EXIT_OK
