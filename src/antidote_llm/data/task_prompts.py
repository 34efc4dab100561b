"""The prompts of the paper's tasks, which training and evaluation share.

The wording follows the published code of Vaccine, Booster and Antidote (git-disl); the input is on a new line after the
instruction.
"""

from __future__ import annotations

SST2_INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative."
SST2_ANSWERS = ("negative", "positive")
AG_NEWS_ANSWERS = ("World", "Sports", "Business", "Sci/Tech")
AG_NEWS_INSTRUCTION = (
    f"Categorize the news article given in the input into one of the {len(AG_NEWS_ANSWERS)} categories:\n\n"
    + "\n".join(AG_NEWS_ANSWERS)
    + "\n"
)
# The separator of HarmBench's direct requests between context and behaviour.
CONTEXT_MARK = "\n\n---\n\n"
GSM8K_INSTRUCTION = "First think step by step and then answer the final number."


def sst2_prompt(sentence: str) -> str:
    """Ask for the sentiment of a sentence."""
    return f"{SST2_INSTRUCTION}\n{sentence}"


def ag_news_prompt(article: str) -> str:
    """Ask for the topic of a news article."""
    return f"{AG_NEWS_INSTRUCTION}\n{article}"


def gsm8k_prompt(question: str) -> str:
    """Ask for the solution of a word problem."""
    return f"{question}\n{GSM8K_INSTRUCTION}"


def instruction_prompt(instruction: str, given: str) -> str:
    """Put an instruction before its input, if there is one."""
    return f"{instruction}\n{given}" if given.strip() else instruction


def contextual_prompt(context: str, asked: str) -> str:
    """Put a request's context before it, if there is any."""
    return f"{context}{CONTEXT_MARK}{asked}" if context.strip() else asked
