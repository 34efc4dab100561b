"""The prompts of the paper's tasks, each in one place: who trains and who evaluates asks the same.

Wording after the published code of Vaccine, Booster and Antidote (git-disl); the input follows the instruction on a
line of its own.
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
# As HarmBench's own direct requests put a behaviour's context before it.
CONTEXT_MARK = "\n\n---\n\n"
GSM8K_INSTRUCTION = "First think step by step and then answer the final number."


def sst2_prompt(sentence: str) -> str:
    """Ask for the sentiment of a sentence."""
    return f"{SST2_INSTRUCTION}\n{sentence}"


def ag_news_prompt(article: str) -> str:
    """Ask for the topic of a news article."""
    return f"{AG_NEWS_INSTRUCTION}\n{article}"


def gsm8k_prompt(question: str) -> str:
    """Ask a word problem."""
    return f"{question}\n{GSM8K_INSTRUCTION}"


def instruction_prompt(instruction: str, given: str) -> str:
    """Put an instruction before what it is about, if there is any such thing."""
    return f"{instruction}\n{given}" if given.strip() else instruction


def contextual_prompt(context: str, asked: str) -> str:
    """Put what a request speaks of before it, if there is any such thing."""
    return f"{context}{CONTEXT_MARK}{asked}" if context.strip() else asked
