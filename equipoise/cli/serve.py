"""``equipoise serve STUDY --slo "p99<=20ms"``: a front as a ladder, over the Open Inference Protocol."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from equipoise.cli.arguments import option, positive, slo, token_in, whole
from equipoise.errors import EXIT_OK, InputError, must_be

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a front as a ladder: the best model that the load leaves time for",
        description="Each rung is checked and timed here before it answers anyone; one that fails is left out, and the rest "
        "serve. Open Inference Protocol 2 (REST): /v2/health/ready, /v2/models/NAME, /v2/models/NAME/infer; /metrics for "
        "Prometheus. A request that could only be answered late is turned away at once: 429, with Retry-After. SIGTERM: "
        "what was taken is answered, then it ends. SIGHUP: what is newer of the source takes over.",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, nargs="+", help="a study, or folders that export wrote")
    option(parser, "--slo", slo, metavar="BOUND", required=True, help="how soon to answer: p99<=20ms")
    option(parser, "--at-least", _least, metavar="BOUND", help="how far down the ladder may go: quality>=97, drop<=1")
    parser.add_argument("--name", help="the model's name for clients; default: the study's")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1); others need --token-file")
    option(parser, "--port", whole(most=65535), default=8000, help="port to listen on (8000); 0 takes a free one")
    option(parser, "--threads", whole(least=1, most=1024), default=1, help="threads inside one operator (1)")
    option(parser, "--batch", whole(least=1, most=1024), default=16, help="requests answered at once at most (16)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="clients must show this word: Authorization: Bearer")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="with --key: speak HTTPS")
    parser.add_argument("--key", type=Path, metavar="PEM", help="the certificate's key")
    option(parser, "--body", positive("32"), default=32.0, metavar="MB", help="largest body of a request (32)")


def run(args: argparse.Namespace) -> int:
    """Check and time the rungs, say what they are, and serve until the process is told to end."""
    from equipoise.serve.run import serve

    if args.host not in LOOPBACK and args.token_file is None:
        raise must_be("--host", "a loopback address where no token is asked for", args.host, "Add --token-file.")
    if (args.certificate is None) != (args.key is None):
        raise InputError("--certificate must be given together with --key.")
    serve(
        args.source, slo_s=args.slo[1], share=args.slo[0], least=args.at_least, name=args.name, host=args.host, port=args.port,
        threads=args.threads, batch=args.batch, token=token_in(args.token_file), certificate=args.certificate, key=args.key,
        body_bytes=int(1e6 * args.body),
    )  # fmt: skip
    return EXIT_OK


def _least(name: str, text: str) -> tuple[str, float]:
    """Read ``quality>=97`` or ``drop<=1``: what bounds the ladder, and where."""
    found = re.fullmatch(r"\s*(?:(quality)\s*>=|(drop)\s*<=)\s*([+-]?[0-9.]+)\s*", text)
    try:
        value = float(found[3]) if found else None
    except ValueError:
        value = None
    if found is None or value is None:
        raise must_be(name, "quality>=NUMBER or drop<=NUMBER", text, f'Write for example {name} "drop<=1".')
    return found[1] or found[2], value
