"""The pattern of every workflow: a manifest, a finished result that is left alone, or one that is written whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from antidote_llm.errors import UserError, setting
from antidote_llm.io.processes import agreed, is_first_process
from antidote_llm.io.result_folder import ResultFolder, changed_since
from antidote_llm.workflows.reporter import Reporter


def complete(
    folder: ResultFolder,
    write: Callable[[Path], Mapping[str, str] | None],
    reporter: Reporter,
    *,
    require: Callable[[], None] | None = None,
    resume: Callable[[Path], None] | None = None,
    help_out: Callable[[bool], None] | None = None,
) -> bool:
    """Write a result, or leave one that is finished.

    Args:
        folder: Where it goes.
        write: Writes everything but the manifest into a folder; returns the hashes of large files that it knows.
        reporter: Hears that it is finished already.
        require: Refuses a finished result that is no longer what was written.
        resume: Says from where an interrupted run goes on, given the folder of its work.
        help_out: What the processes of a distributed run do that do not write, given whether it was finished.

    Returns:
        Whether it was finished before.
    """
    finished_before = folder.finished if help_out is None else agreed(folder.finished)
    if help_out is not None and not is_first_process():
        help_out(finished_before)
    elif finished_before:
        if require is not None:
            require()
        reporter.say(f"{folder.path} is finished already: nothing was done")
    else:
        if resume is not None:
            resume(folder.work)
        with folder as staging:
            folder.known_sha256 = write(staging) or {}
    return finished_before


@contextmanager
def as_finished(out: Path, name: str, finished_before: bool) -> Iterator[None]:
    """Read a result's files; of one that was finished before, a file that cannot be read is refused.

    Raises:
        UserError: Names the file.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if finished_before:
            raise changed_since(out, name) from error
        raise


def required_out(out: str | Path | None, otherwise: str | None = None) -> Path:
    """Return the folder that a result goes to.

    Args:
        out: The folder, where one is named.
        otherwise: The setting with which nothing is written.

    Raises:
        UserError: None is named.
    """
    if out is None:
        way = f", or {setting(otherwise)}" if otherwise else ""
        raise UserError(f"nowhere to write to: pass {setting('out')} DIR{way}")
    return Path(out)
