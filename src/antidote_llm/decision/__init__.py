"""Is a repair needed, how strong, and was it worth it."""

from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.decision.verdict import Change, Verdict

__all__ = ["Change", "Comparison", "Verdict", "compare"]
