"""Collects statistics from as few rows as a repair needs: rows drawn by lot, until its masks have settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from antidote_llm.artifacts.processes import process_count
from antidote_llm.calibration.batching import Rows
from antidote_llm.calibration.collecting import Collection
from antidote_llm.calibration.mask_moves import Ranking
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.routed import is_routed
from antidote_llm.calibration.settling import Agreement, Settling
from antidote_llm.calibration.sums import Sums
from antidote_llm.errors import UserError
from antidote_llm.models.sites import Site


def collect_until_settled(
    collection: Collection,
    ranking: Ranking,
    update: Callable[[Site], Tensor],
    *,
    progress: Callable[[int], None] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Moments, Agreement, Collection]:
    """Collect from growing parts of the rows until the mask has settled.

    Args:
        collection: What would be collected from all rows.
        ranking: How scores become a mask.
        update: Returns how far each entry of a site is from where a removed one goes, shape [rows, columns].
        progress: Called with a number of rows, which come to all rows in the end.
        seed: Draws the order of the rows.
        **options: As :meth:`Collection.by_part` takes them.

    Returns:
        The moments of the rows seen, how well their mask agrees with that of all rows, and the collection of these
        rows.

    Raises:
        UserError: A site cannot be looked at row by row.
    """
    _require_rows_apart(collection.sites)
    settling = Settling(collection.sites, update, ranking, rows=len(collection.rows), seed=seed)
    sums, seen = Sums(), list[int]()
    while True:
        chosen = settling.next_rows()
        part = collection.of_rows(chosen)
        places = {id(row): place for place, row in zip(chosen, part.rows, strict=True)}
        for _, moments in part.by_part(cache=False, heard=_adding(settling, places, ranking), **options):
            for name, found in moments.sites.items():
                sums.add(name, found.sum_squares_I, found.sum_norms_I, found.tokens)
        seen += chosen
        if progress is not None:
            progress(len(chosen))
        agreement = settling.look()
        if agreement.settled or len(seen) == len(collection.rows):
            break
    if progress is not None:
        progress(len(collection.rows) - len(seen))
    whole = collection.of_rows(seen)
    moments = Moments(sums.moments([site.name for site in whole.sites]), len(seen), whole.tokens, whole.sha256)
    return moments, agreement, whole


def _adding(
    settling: Settling, places: dict[int, int], ranking: Ranking
) -> Callable[[Rows, Sequence[str], Tensor], None]:
    def heard(rows: Rows, names: Sequence[str], squares_BI: Tensor) -> None:
        sums_BI = squares_BI.sqrt() if ranking.statistic == "mean_norm" else squares_BI
        settling.add(names, [places[id(row)] for row in rows], sums_BI)

    return heard


def _require_rows_apart(sites: Sequence[Site]) -> None:
    if process_count() > 1:
        raise UserError("--calibration auto looks at all rows together: run it in one process, or use all")
    for site in sites:
        if is_routed(site) or len(site.observed) > 1:
            raise UserError(
                f"--calibration auto: {site.name} sees only some rows, or is used in several places: pass "
                "--calibration all, or leave it out of --sites"
            )
