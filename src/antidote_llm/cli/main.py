"""Entry point of the command: turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from types import FrameType

import typer
from typer.exceptions import TyperException

from antidote_llm import __version__
from antidote_llm.cli.application import application
from antidote_llm.errors import UserError, first_line

USER_ERROR, DEFECT, INTERRUPTED = 2, 3, 130
_INTERRUPTED_LINE = "interrupted"
# As a shell names what nobody reads any more (128 + SIGPIPE): 1 would be a verdict.
UNREAD = 141
# Ctrl-C, a service that stops, a terminal that is closed.
_INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_FORBIDDEN, _BROKEN = (errno.EACCES, errno.EPERM), (errno.EIO, errno.ESTALE)
_USERS_OS_ERRORS = (
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG),
    *_FORBIDDEN,
    *_BROKEN,
)


def main() -> None:
    """Run the command and exit: 0 done, 1 a negative verdict, 2 the user's error, 3 ours."""
    # On a busy machine, threads that spin while they wait for each other slow training down thirtyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Libraries announce their own renamings; users cannot act on them.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    # Each cleans up as Ctrl-C does. What is ignored from the start, as under nohup, stays so.
    for signal_number in _INTERRUPTS:
        if signal.getsignal(signal_number) is not signal.SIG_IGN:
            signal.signal(signal_number, _Interrupt.handle)
    code = run(sys.argv[1:])
    for signal_number in _INTERRUPTS:
        # What was to be done is done: nothing is left to interrupt.
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(code)


class _Interrupt:
    """Remembers that the user interrupted: some libraries turn it into an error of their own."""

    happened = False

    @classmethod
    def handle(cls, signal_number: int, frame: FrameType | None) -> None:
        cls.happened = True
        signal.default_int_handler(signal_number, frame)


def run(arguments: list[str]) -> int:
    """Run the command with arguments and return its exit code."""
    if arguments == ["--version"]:
        # Without the seconds that it takes to import torch.
        sys.stdout.write(f"antidote {__version__}\n")
        return 0
    try:
        asked = next((argument for argument in arguments if not argument.startswith("-")), "")
        result = application(asked)(arguments, standalone_mode=False)
        # typer keeps an interrupt to itself and returns its exit code.
        if result == INTERRUPTED:
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except UserError as error:
        return _fail(f"error: {error}", USER_ERROR)
    except SystemExit as ending:
        # typer and rich end so when the pipe that they write to is closed.
        if isinstance(ending.__context__, BrokenPipeError):
            return UNREAD
        raise
    except TyperException as error:
        said = getattr(error, "format_message", error.__str__)()
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{said}\n")
            return USER_ERROR
        said = said.replace("Value error, ", "").rstrip(".") + ("" if said.endswith("?") else ":")
        return _fail(f"error: {said} see {_command_of(error)} --help", USER_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED_LINE, INTERRUPTED)
    except OSError as error:
        if error.errno in _USERS_OS_ERRORS:
            where = f"{error.filename}: " if error.filename else ""
            mend = "check its permissions" if error.errno in _FORBIDDEN else "free some space"
            mend = "the disk fails: check it" if error.errno in _BROKEN else mend
            return _fail(f"error: {where}{error.strerror}: {mend} or choose another --out", USER_ERROR)
        return _defect(error)
    except Exception as error:  # noqa: BLE001 - the last door before the user
        if _Interrupt.happened:
            return _fail(_INTERRUPTED_LINE, INTERRUPTED)
        if _out_of_memory(error):
            mend = "pass --dtype bfloat16, --engine streaming or --device cpu"
            return _fail(f"error: not enough memory ({first_line(error)}): {mend}", USER_ERROR)
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            return _fail("error: ~ of a user who has no home here: write the path in full", USER_ERROR)
        return _defect(error)


def _command_of(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return " ".join(["antidote", *(context.command_path.split()[1:] if context else [])])


def _out_of_memory(error: Exception) -> bool:
    # By name: importing torch to know its class takes seconds. Of the CPU's memory it has no class of its own.
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _defect(error: Exception) -> int:
    if os.environ.get("ANTIDOTE_TRACEBACK"):
        traceback.print_exception(error)
    return _fail(
        f"internal error: {type(error).__name__}: {first_line(error)} "
        "(a defect of this program: run again with ANTIDOTE_TRACEBACK=1 and report it)",
        DEFECT,
    )


def _fail(line: str, code: int) -> int:
    sys.stderr.write(" ".join(line.split()) + "\n")
    return code
