"""Opens any checkpoint or adapter and finds its sites: the matrices that may be edited."""

from antidote_llm.models.checkpoint import Checkpoint, open_adapter_checkpoint, open_model_checkpoint
from antidote_llm.models.opening import OpenModel, open_model
from antidote_llm.models.sites import Site
from antidote_llm.models.targets import Target, TargetName, resolve_target
from antidote_llm.models.tensor_files import TensorEntry, TensorFile, open_tensor_file
from antidote_llm.models.whole import DtypeName

__all__ = [
    "Checkpoint",
    "DtypeName",
    "OpenModel",
    "Site",
    "Target",
    "TargetName",
    "TensorEntry",
    "TensorFile",
    "open_adapter_checkpoint",
    "open_model",
    "open_model_checkpoint",
    "open_tensor_file",
    "resolve_target",
]
