"""Activation statistics: what each site's input looked like on a data set."""

from antidote_llm.calibration.collecting import Collection, collect
from antidote_llm.calibration.estimating import Estimate, estimated
from antidote_llm.calibration.moments import Moments, SiteMoments, Statistic, TokenPolicy
from antidote_llm.calibration.observing import NonFiniteInputError
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.calibration.until_settled import collect_until_settled

__all__ = [
    "CalibrationSettings",
    "Collection",
    "Estimate",
    "Moments",
    "NonFiniteInputError",
    "SiteMoments",
    "Statistic",
    "TokenPolicy",
    "collect",
    "collect_until_settled",
    "estimated",
]
