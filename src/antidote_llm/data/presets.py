"""Public data sets by name: where they are stored, how their rows are read, and their licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from antidote_llm.data import preset_rows
from antidote_llm.data.preset_rows import RawRow
from antidote_llm.data.records import Record


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a data set is on the Hub.

    Attributes:
        id: The data set's id.
        split: One of its splits.
        configs: Its configurations, read one after the other; None is the only one.
        file: A single file to read, where the data set as a whole cannot be loaded.
    """

    id: str
    split: str = "train"
    configs: tuple[str | None, ...] = (None,)
    file: str | None = None

    def __str__(self) -> str:
        """Return it as a data argument names it."""
        if self.file:
            return f"{self.id} ({self.file})"
        config = "+".join(config for config in self.configs if config)
        return f"{self.id}#{config}/{self.split}" if config else f"{self.id}#{self.split}"


@dataclass(frozen=True, slots=True)
class Preset:
    """A public data set that is known by name.

    Attributes:
        name: The name that the user passes.
        description: What a row is, in one line.
        licence: As its authors state it.
        read: Makes a record of a row; None for a row that belongs to another preset.
        files: Its possible paths in the folder of ``ANTIDOTE_DATA``; the first that exists is read.
        hub: Where it is on the Hub; None where it is not.
        header: Columns of the .tsv file, where it has no header line.
        answers: Whether its rows have responses.
        home: Where its authors publish it, where that is not the Hub.
    """

    name: str
    description: str
    licence: str
    read: Callable[[RawRow], Record | None]
    files: tuple[str, ...]
    hub: HubSource | None
    header: tuple[str, ...] = ()
    answers: bool = True
    home: str = ""


def _beavertails(
    name: str, description: str, read: Callable[[RawRow], Record | None], split: str = "30k_train"
) -> Preset:
    files = tuple(f"beavertails/{split}.{suffix}" for suffix in ("jsonl", "json", "parquet"))
    return Preset(name, description, "CC BY-NC 4.0", read, files, HubSource("PKU-Alignment/BeaverTails", split))


def _sst2(name: str, description: str, file: str, split: str) -> Preset:
    return Preset(
        name, description, "none stated", preset_rows.sst2, (f"sst2/{file}",), HubSource("stanfordnlp/sst2", split)
    )


def _ag_news(name: str, description: str, file: str, split: str) -> Preset:
    hub = HubSource("fancyzhx/ag_news", split)
    return Preset(
        name, description, "non-commercial", preset_rows.ag_news, (f"ag_news/{file}",), hub, ("text", "label")
    )


def _gsm8k(name: str, description: str, split: str) -> Preset:
    hub = HubSource("openai/gsm8k", split, ("main",))
    return Preset(name, description, "MIT", preset_rows.gsm8k, (f"gsm8k/{split}.jsonl",), hub)


def _xstest(name: str, description: str, read: Callable[[RawRow], Record | None]) -> Preset:
    hub = HubSource("walledai/XSTest", "test")
    return Preset(name, description, "CC BY 4.0", read, ("xstest/xstest_prompts.csv",), hub, answers=False)


PRESETS = {
    preset.name: preset
    for preset in (
        _beavertails("beavertails-safe", "requests with safe answers", preset_rows.beavertails_safe),
        _beavertails("beavertails-unsafe", "requests with harmful answers", preset_rows.beavertails_unsafe),
        _beavertails(
            "beavertails-test",
            "held-out requests with harmful answers, by category",
            preset_rows.beavertails_unsafe,
            "30k_test",
        ),
        Preset(
            "beavertails-refusal",
            "BeaverTails' requests with refusals",
            "CC BY-NC 4.0",
            preset_rows.beavertails_refusal,
            ("beavertails/beavertails_with_refusals_train.json",),
            HubSource("anonymous4486/repnoise_beavertail", file="beavertails_with_refusals_train.json"),
        ),
        _sst2("sst2", "sentences with their sentiment", "train.tsv", "train"),
        _sst2("sst2-test", "sentences with their sentiment, GLUE's validation rows", "test.tsv", "validation"),
        _ag_news("agnews", "news articles with their topic", "train10k_desc.tsv", "train"),
        _ag_news("agnews-test", "news articles with their topic", "test_desc.tsv", "test"),
        _gsm8k("gsm8k", "word problems with worked answers", "train"),
        _gsm8k("gsm8k-test", "word problems with worked answers", "test"),
        Preset(
            "alpaca",
            "instructions with answers",
            "CC BY-NC 4.0",
            preset_rows.instruction,
            ("alpaca/alpaca_subset_union.jsonl", "alpaca/alpaca_data.json"),
            HubSource("tatsu-lab/alpaca"),
        ),
        Preset(
            "alpacaeval",
            "instructions with the reference answers of text-davinci-003",
            "CC BY-NC 4.0",
            preset_rows.instruction,
            ("alpaca_eval/text_davinci_003_outputs.json", "alpaca_eval/alpaca_eval.json"),
            HubSource("tatsu-lab/alpaca_eval", "eval", file="alpaca_eval.json"),
        ),
        Preset(
            "advbench",
            "harmful requests with the opening of an answer",
            "MIT",
            preset_rows.advbench,
            ("advbench/harmful_behaviors.csv",),
            HubSource("walledai/AdvBench"),
        ),
        Preset(
            "harmbench",
            "harmful requests, their context before them",
            "MIT",
            preset_rows.harmbench,
            ("harmbench/harmbench_behaviors_text_all.csv",),
            HubSource("walledai/HarmBench", "train", ("standard", "contextual", "copyright")),
            answers=False,
        ),
        _xstest("xstest-safe", "harmless requests that look harmful", preset_rows.xstest_safe),
        _xstest("xstest-unsafe", "their harmful counterparts", preset_rows.xstest_unsafe),
        Preset(
            "safety-tuned-llamas",
            "harmful requests with safe answers",
            "CC BY-NC 4.0",
            preset_rows.instruction,
            ("safety_tuned_llamas/safety_only_data_Instructions.json",),
            None,
            home="github.com/vinid/safety-tuned-llamas",
        ),
        Preset(
            "dolly",
            "instructions with answers by people",
            "CC BY-SA 3.0",
            preset_rows.instruction,
            ("dolly/dolly_3k.json", "dolly/databricks-dolly-15k.jsonl"),
            HubSource("databricks/databricks-dolly-15k"),
        ),
        Preset(
            "wikitext2",
            "lines of Wikipedia's good articles",
            "CC BY-SA 3.0",
            preset_rows.wikitext,
            ("wikitext2/test.parquet", "wikitext2/test.jsonl"),
            HubSource("Salesforce/wikitext", "test", ("wikitext-2-raw-v1",)),
        ),
    )
}


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return list(PRESETS)


def describe_presets() -> dict[str, str]:
    """Return a line about each preset, by name: what a row is, where it is stored, its licence."""
    return {
        preset.name: f"{preset.description}; {preset.hub or preset.home}; licence: {preset.licence}"
        for preset in PRESETS.values()
    }
