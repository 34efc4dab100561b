"""Entry point of the command: turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import FrameType

import typer
from typer.exceptions import TyperException

from antidote_llm import __version__
from antidote_llm.cli.application import application
from antidote_llm.cli.library_messages import own_standard_output, visible_messages
from antidote_llm.cli.setting_names import option_of_setting
from antidote_llm.cli.terminal import wrapped
from antidote_llm.cli.warnings_shown import warnings_shown
from antidote_llm.errors import UserError, first_line, out_of_memory, shown_settings
from antidote_llm.io.reproducible_arithmetic import round_alike
from antidote_llm.io.visible_text import error_line, visible

USER_ERROR, DEFECT, INTERRUPTED = 2, 3, 130
_INTERRUPTED_LINE = "interrupted"
# What these train is to be the same on every machine.
_ROUND_ALIKE = ("demo", "miniature")
# As a shell names what nobody reads any more (128 + SIGPIPE): 1 would be a verdict.
UNREAD = 141
# Ctrl-C, a service that stops, a terminal that is closed.
_INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# What is said about an error of the operating system; of any other: check it.
_FIXES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its permissions or choose another --out"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or choose another --out"),
    errno.EROFS: "choose another --out",
    errno.ENAMETOOLONG: "shorten the name",
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "check the name"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    errno.EIO: "check the disk, or choose another --out",
    **dict.fromkeys((errno.EBUSY, errno.ESTALE, errno.ETXTBSY), "run again when nothing else uses it"),
}
# Without a file's name in them, these say that this program used the operating system wrongly.
_DEFECTS = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ECHILD, errno.ESRCH)


def main() -> None:
    """Run the command and exit: 0 done, 1 a negative verdict, 2 the user's error, 3 ours."""
    if _asked(sys.argv[1:]) in _ROUND_ALIKE:
        round_alike()
    _exit_with(lambda: run(sys.argv[1:]))


def enter(action: Callable[[], int | None]) -> None:
    """Do something as the command does it, with its signals, streams and errors, and exit."""
    _exit_with(lambda: ended(action))


def _exit_with(code_of: Callable[[], int]) -> None:
    # On a busy machine, threads that spin while they wait for each other slow training down thirtyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Libraries announce their own renamings; users cannot act on them.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    # Where it is installed, peft imports it, and it writes about optional kernels and casts with every matrix.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Each cleans up as Ctrl-C does. What is ignored from the start, as under nohup, stays so.
    for signal_number in _INTERRUPTS:
        if signal.getsignal(signal_number) is not signal.SIG_IGN:
            signal.signal(signal_number, _Interrupt.handle)
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding shows what it lacks by number.
            stream.reconfigure(errors="backslashreplace")
    with own_standard_output():
        code = code_of()
        _drop_unwritable()
    for signal_number in _INTERRUPTS:
        # What was to be done is done: nothing is left to interrupt.
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(code)


def _open_closed() -> None:
    """Let what is said go nowhere where the shell closed a stream (``>&-``): Python has none then."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


def _drop_unwritable() -> None:
    """Forget what could not be written to standard output, as was said: Python would try again, and end otherwise."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    return ended(lambda: _call(arguments))


def _call(arguments: list[str]) -> int | None:
    if any("\0" in argument for argument in arguments):
        raise UserError("a zero byte in an argument: leave it out")
    completes = any(name.startswith("_ANTIDOTE_COMPLETE") for name in os.environ)
    result = application(None if completes else _asked(arguments))(arguments, standalone_mode=False)
    return result if isinstance(result, int) else None


def ended(action: Callable[[], int | None]) -> int:
    """Do something, and return the exit code that it ends with; what is wrong is one line on standard error."""
    with visible_messages():
        return _ended(action)


def _ended(action: Callable[[], int | None]) -> int:
    try:
        with warnings_shown():
            result = action()
        sys.stdout.flush()
        # typer keeps an interrupt to itself and returns its exit code.
        if result == INTERRUPTED:
            raise KeyboardInterrupt
        return result or 0
    except UserError as error:
        return _fail(f"error: {shown_settings(error.text, option_of_setting)}", USER_ERROR)
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
    except BrokenPipeError:
        return UNREAD
    except OSError as error:
        if error.errno is None or (error.errno in _DEFECTS and not error.filename):
            return _defect(error)
        return _fail(f"error: {_of_system(error)}", USER_ERROR)
    except UnicodeEncodeError as error:
        if not _is_of_name(error):
            return _defect(error)
        return _fail(f"error: {error.object}: not a name in UTF-8: rename the file or folder", USER_ERROR)
    except Exception as error:  # noqa: BLE001 - the last door before the user
        if _Interrupt.happened:
            return _fail(_INTERRUPTED_LINE, INTERRUPTED)
        if out_of_memory(error):
            fix = "pass --dtype bfloat16, --engine streaming or --device cpu"
            return _fail(f"error: not enough memory ({first_line(error)}): {fix}", USER_ERROR)
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            return _fail("error: ~ of a user who has no home here: write the path in full", USER_ERROR)
        return _defect(error)
    except BaseException as error:
        # Of the tokenizers library, which ends so on a pattern that it gives up.
        if type(error).__name__ != "PanicException":
            raise
        fix = "name another with --tokenizer, or fetch it again"
        return _fail(f"error: the tokenizer broke on a text ({first_line(error)}): {fix}", USER_ERROR)


def _of_system(error: OSError) -> str:
    """Return what the operating system refused, of which file, and what helps."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"{where}{error.strerror}: {_FIXES.get(error.errno or 0, 'check it, and run again')}"


def _is_of_name(error: UnicodeEncodeError) -> bool:
    """Whether what cannot be encoded stands for bytes of a file's name that are not UTF-8."""
    return all("\udc80" <= character <= "\udcff" for character in error.object[error.start : error.end])


def _asked(arguments: list[str]) -> str:
    """Return the name of the command."""
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _command_of(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return " ".join(["antidote", *(context.command_path.split()[1:] if context else [])])


def _defect(error: Exception) -> int:
    if os.environ.get("ANTIDOTE_TRACEBACK"):
        sys.stderr.write(visible("".join(traceback.format_exception(error))))
    return _fail(
        f"internal error: {type(error).__name__}: {first_line(error)} "
        "(a defect of this program: run again with ANTIDOTE_TRACEBACK=1 and report it)",
        DEFECT,
    )


def _fail(line: str, code: int) -> int:
    sys.stderr.write("\n".join(wrapped(error_line(line), sys.stderr)) + "\n")
    return code
