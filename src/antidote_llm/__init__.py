"""Antidote: repairs the safety of fine-tuned language models, reversibly and with proof."""

__version__ = "0.1.0"
