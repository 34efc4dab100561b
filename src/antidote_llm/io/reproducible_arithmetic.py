"""Settings under which every x86-64 processor with AVX2 rounds alike: the same training gives the same bits on all.

The libraries choose their fastest instructions by processor, and sum in another order with each choice and with each
number of threads. torch's own AVX2 kernels round alike everywhere; MKL's products and functions do so on processors of
Intel and of AMD in its compatible mode alone (docs/background/miniature.md tells how that was seen).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "MKL_DYNAMIC": "FALSE",
}


def round_alike() -> None:
    """Let this process, and those that it starts, round as on any other processor; call it before torch is imported.

    What the environment sets already stays as it is.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def rounding() -> dict[str, str | None]:
    """Return which of the settings are in force: with versions and seeds, they decide the bits."""
    return {name: os.environ.get(name) for name in SETTINGS}
