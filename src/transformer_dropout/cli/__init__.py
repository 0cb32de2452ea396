"""The command ``dropout``."""

import errno
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError
from . import audit, compare, generate, report, show, sites, train, tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="See, control, learn and prove dropout and its rivals on transformers.",
)
for module in (audit, sites, compare, tune, train, generate, show, report):
    name = module.__name__.rsplit(".", 1)[1]
    app.command(name)(getattr(module, name))


def main(command: typer.Typer = app) -> None:
    """Run a command line; what a user can put right is one sentence and exit code 2."""
    try:
        with quiet_interrupts():
            check_words(sys.argv[1:])
            words = ["--help"] if command is app and not sys.argv[1:] else sys.argv[1:]
            name = "dropout" if command is app else None
            sys.exit(command(words, prog_name=name, standalone_mode=False) or 0)
    except InputError as error:
        say(str(error))
        sys.exit(2)
    except typer.TyperException as error:
        say(f"{error.format_message().rstrip('.')}; {how_to_ask(error)}")
        sys.exit(2)
    except OSError as error:
        say(f"{what_failed(error)}.")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        say("The memory of this machine does not suffice; make the model, the batch or the data smaller.")
        sys.exit(2)
    except Exception as error:
        say(f"Unforeseen: {type(error).__name__}: {str(error)[:200]} (the whole is in {log_of(error)}).")
        sys.exit(1)


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """End at once on Ctrl-C while a library is being loaded; anywhere else it raises KeyboardInterrupt.

    Some libraries take an interrupt of their import for a failure of it, and go on without.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_importing(frame):
            os._exit(128 + number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to the import of a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def check_words(words: Sequence[str]) -> None:
    """Refuse what no terminal, page or record could show again.

    Raises:
        InputError: for a word that is not UTF-8, or has control characters but line breaks and tabs.
    """
    for word in words:
        if any("\ud800" <= sign <= "\udfff" for sign in word):
            raise InputError(f"{word!r} is not UTF-8 text; type it in UTF-8, or rename the file.")
        if any(unicodedata.category(sign) == "Cc" and sign not in "\n\t" for sign in word):
            raise InputError(f"{word!r} has control characters; take them out.")


def how_to_ask(error: typer.TyperException) -> str:
    """Return where to read what a command takes."""
    context = getattr(error, "ctx", None)
    return f"{'dropout' if context is None else context.command_path} --help says what there is."


def say(sentence: str) -> None:
    """Print one sentence on standard error, without what could steer a terminal."""
    printable = "".join(sign if sign.isprintable() else " " for sign in sentence)
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(printable)}")


def what_failed(error: OSError) -> str:
    """Return what the system refused, and of which file."""
    reasons = {
        errno.ENOSPC: "no space is left; make room, or choose another folder with --out",
        errno.EACCES: "you have no permission; choose another place",
        errno.EROFS: "it lies on a file system that cannot be written; choose another place",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ENOTDIR: "a part of the path is a file and no folder; choose another place",
        errno.ELOOP: "symbolic links lead in a circle; choose another place",
        errno.ENOMEM: "the memory of this machine does not suffice",
        errno.EMFILE: "too many files are open; raise the limit with ulimit -n",
    }
    reason = reasons.get(error.errno or 0, (error.strerror or str(error)).lower())
    return f"{str(error.filename)[:200]}: {reason}" if error.filename else f"The system refused: {reason}"


def log_of(error: Exception) -> str:
    """Write the traceback of what nobody foresaw to a file of its own; return its path."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="dropout-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
    return log.name
