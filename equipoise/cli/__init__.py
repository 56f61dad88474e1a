"""The command line: parse, call one verb, print.

Results go to stdout, progress and warnings to stderr. Each verb lives in ``equipoise/cli/<verb>.py`` and offers
``add_parser(subparsers)`` and ``run(args) -> int``; only the verb that was asked for is imported, so ``--help`` stays instant.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from equipoise.cli.arguments import Parser
from equipoise.cli.terminal import visible
from equipoise.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EquipoiseError, InputError, unknown, words_of

__all__ = ["EXIT_INTERRUPTED", "VERBS", "main"]

EXIT_INTERRUPTED = 130
EXIT_ENDED = 143

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("equipoise.cli.demo", "the whole road on handwritten digits, offline, in two minutes"),
    "gallery": ("equipoise.cli.gallery", "the fields, and one of them from data to a verified file"),
    "doctor": ("equipoise.cli.doctor", "what can be measured and run on this machine"),
    "profile": ("equipoise.cli.profile", "what a model costs here, from params to price"),
    "advise": ("equipoise.cli.advise", "what is worth trying on a model and this machine, in a minute, without training"),
    "scale": ("equipoise.cli.scale", "how large a model the data and the limits deserve, before it is trained"),
    "train": ("equipoise.cli.train", "train a model of a family, and see what holds it back"),
    "federate": ("equipoise.cli.federate", "train one model on data that stay with their holders"),
    "optimize": ("equipoise.cli.optimize", "search the best balance of quality and cost within a budget"),
    "worker": ("equipoise.cli.worker", "work for a study that another machine walks"),
    "studies": ("equipoise.cli.studies", "list the studies of a folder or a database"),
    "prune-store": ("equipoise.cli.prune_store", "free the files of points that nobody would pick"),
    "watch": ("equipoise.cli.watch", "a page that follows a study while it is walked"),
    "explain": ("equipoise.cli.explain", "why a point of a study is as it is: what each change brought, what was left and why"),
    "export": ("equipoise.cli.export", "write one point of a study as a folder that can ship"),
    "verify": ("equipoise.cli.verify", "re-measure an exported folder and hold it to its promises"),
    "serve": ("equipoise.cli.serve", "serve a front as a ladder: the best model that the load leaves time for"),
    "split": ("equipoise.cli.split", "where to cut a model between a device and a server, measured as two processes"),
    "loadtest": ("equipoise.cli.loadtest", "load a server as its users would, and count the answers in time"),
    "report": ("equipoise.cli.report", "write a study as one self-contained HTML page"),
    "completion": ("equipoise.cli.completion", "what a shell needs to complete this command line"),
}
"""Verb -> (module, one line for ``--help``)."""

_EPILOG = """\
exit codes:
  0    ok
  1    the run failed, or the budget was not met
  2    bad input
  3    an optional package is missing
  4    an exported file breaks its promise
  130  interrupted; what was measured is kept
  143  ended by SIGTERM; what was measured is kept

Results go to stdout, progress and warnings to stderr.
`equipoise VERB --help` explains one verb. EQUIPOISE_DEBUG=1 shows tracebacks."""


SPINS = "1000"
"""How often a thread of torch looks for the others before it sleeps. By default it looks for milliseconds, and where others use
the cores too it keeps the very thread from running that it waits for: checking digits took 3 s instead of 0.1 s."""


YOUNG = 50_000
"""New objects after which Python looks for garbage; by its own 700, that is a quarter of what reading a large record takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code of the process.

    Args:
        argv: Arguments without the program's name; None takes ``sys.argv``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is loaded, which is later
    gc.set_threshold(YOUNG)
    debug = os.environ.get("EQUIPOISE_DEBUG", "") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks must not end the run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_in_order():
            return _run(words)
    except KeyboardInterrupt as error:
        ended = isinstance(error, Ended)
        said = "ended" if ended else "interrupted"
        print(f"\n{said}; what was measured is kept, the same command goes on from there", file=sys.stderr)
        return EXIT_ENDED if ended else EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe left, as in `equipoise profile ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except EquipoiseError as error:
        if debug:
            raise
        print(visible(f"equipoise: {error}"), file=sys.stderr)
        return error.exit_code
    except BaseException as error:  # the edge of the program: the user gets a sentence, not a stack
        if debug:
            raise
        print(visible(f"equipoise: {_sentence(error)} (EQUIPOISE_DEBUG=1 shows the traceback)"), file=sys.stderr)
        return EXIT_FAILED


class Ended(KeyboardInterrupt):
    """SIGTERM came: what is being done is given up as by Ctrl-C."""


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Give up by SIGTERM as by Ctrl-C, unless a verb handles it itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _sentence(error: BaseException) -> str:
    """Say what ended the program, in one line."""
    if isinstance(error, SystemExit):  # argparse's own ends where it is raised; this one is of the user's code
        return f"the run was ended from inside, by SystemExit({error.code!r}); what was measured is kept"
    reason = words_of(error) or "no message"
    if _is_memory(error):
        return f"there is not enough memory for this: {reason}. Make the model, the batch or the data smaller"
    return f"{type(error).__name__}: {reason}"


def _is_memory(error: BaseException) -> bool:
    """Whether memory could not be had: torch says so by a RuntimeError of its own."""
    asked = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in words_of(error) for words in asked)


def _run(words: list[str]) -> int:
    """Import the verb that `words` ask for, parse, and call it."""
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked is not None and asked not in VERBS:
        raise unknown("verb", asked, VERBS)
    parser, own, module = _parser(asked)
    try:
        args, rest = parser.parse_known_args(words)
    except SystemExit:  # argparse has printed its help
        return EXIT_OK
    if rest:
        own.refuse(rest)
    if module is None:
        parser.print_help(sys.stderr)
        return EXIT_BAD_INPUT
    try:
        code: int = module.run(args)
    except InputError as error:
        raise own.spelled(error) from error.__cause__
    sys.stdout.flush()
    return code


def _parser(asked: str | None) -> tuple[Parser, Parser, ModuleType | None]:
    """Return the parser with `asked` in full and every other verb as one line, and the parser and module of `asked`."""
    parser = Parser(
        prog="equipoise",
        description="Find the best balance between a model's scale and its efficiency, proven by measurement.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    module = None
    for name, (path, summary) in VERBS.items():
        if name == asked:
            module = importlib.import_module(path)
            module.add_parser(verbs)
        else:
            verbs.add_parser(name, help=summary)
    return parser, parser if asked is None else verbs.choices[asked], module


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the longest verb on the line of its summary: argparse leaves out that verbs are indented twice."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 2 * self._indent_increment + max(map(len, VERBS))


class _Version(argparse.Action):
    """Read the installed version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"equipoise {version('equipoise')}")
        parser.exit()
