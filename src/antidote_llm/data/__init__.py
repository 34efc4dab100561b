"""Records, prompt templates, files and splits."""

from antidote_llm.data.files import DataSpec, read_records, write_jsonl
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow, check_lengths, check_token_ids
from antidote_llm.data.splits import hold_out, require_disjoint

__all__ = [
    "DataSpec",
    "Record",
    "Renderer",
    "TokenizedRow",
    "check_lengths",
    "check_token_ids",
    "hold_out",
    "read_records",
    "require_disjoint",
    "write_jsonl",
]
