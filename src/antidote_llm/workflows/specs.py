"""What can be asked for: every setting of every workflow, declared once.

A stage of a recipe and the command of that stage share their fields; the command adds where its model is and where its
result goes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from antidote_llm.choices import (
    AttackKind,
    DtypeName,
    EngineName,
    MatchMode,
    SaveDtype,
    TemplateName,
    TokenPolicy,
    TrainingStage,
)
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.conditions import AFFIRMATIVE, HARDER
from antidote_llm.method_registry import Method
from antidote_llm.repairs.method import method_named, methods
from antidote_llm.training.defense import defense_named, defenses
from antidote_llm.training.settings import ALIGNMENT_DEFAULTS, FINETUNING_DEFAULTS, LoraSettings, TrainingSettings
from antidote_llm.workflows.spec import Names, Shown, SomeNames, Spec, Text

_DATA = (
    ".jsonl .json .csv .tsv .parquet .arrow or .gz, a folder of data, a named data set (xstest-safe, advbench@FILE), "
    "or org/name#split on the Hub; map columns as in file.csv:prompt=goal,response=target."
)
DEFAULT_JUDGES = ("refusal-patterns",)
_BACKENDS = ("transformers", "vllm", "endpoint")
_HARMFUL_ROWS = "How many harmful rows in all, each file by its weight; all where not given."

# Fields that several specs have.
Model: TypeAlias = Annotated[
    Text,
    Field(description="Folder or Hub id of a model, or of an adapter."),
    Shown("main", "MODEL", argument=True),
]
WholeModel: TypeAlias = Annotated[
    Text, Field(description="Folder or Hub id of a model."), Shown("main", "MODEL", argument=True)
]
Out: TypeAlias = Annotated[Text | None, Field(description="Where the result goes."), Shown("main", "DIR")]
Adapter: TypeAlias = Annotated[
    Names,
    Field(
        description="LoRA adapter on MODEL. Repeatable: the last is meant, those before it were on MODEL when it was "
        "trained."
    ),
    Shown("main", "DIR"),
]
Tokenizer: TypeAlias = Annotated[
    Text | None, Field(description="Tokenizer, where the model's folder has none."), Shown("data", "DIR")
]
Dtype: TypeAlias = Annotated[
    DtypeName, Field(description="Type to load weights in; auto is the checkpoint's own."), Shown("resources")
]
Device: TypeAlias = Annotated[
    str,
    Field(
        description="cpu, cuda, cuda:1 …; auto takes a GPU where there is one; spread deals the layers out over all "
        "GPUs."
    ),
    Shown("resources"),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool, Field(description="Run Python code that comes with the checkpoint."), Shown("advanced")
]
HardLinks: TypeAlias = Annotated[
    bool, Field(description="Link weight files that do not change instead of copying them."), Shown("resources")
]
Template: TypeAlias = Annotated[
    TemplateName,
    Field(description="How prompts are put; auto is the chat template where there is one, the Alpaca prompt if not."),
    Shown("data"),
]
System: TypeAlias = Annotated[
    str | None, Field(description="System prompt of every prompt that has none of its own."), Shown("data")
]
Thinking: TypeAlias = Annotated[
    bool,
    Field(description="Whether a reasoning model thinks before it replies, or replies at once."),
    Shown("data", flag="--thinking/--no-thinking"),
]
DataSeed: TypeAlias = Annotated[int, Field(ge=0, description="Decides which rows are drawn."), Shown("data")]
HarmfulRows: TypeAlias = Annotated[int | None, Field(ge=1, description=_HARMFUL_ROWS), Shown("data")]
Harmless: TypeAlias = Annotated[
    Text | None,
    Field(description="Harmless requests that look harmful; refusing them is over-refusal."),
    Shown("measure", "DATA"),
]
Tasks: TypeAlias = Annotated[
    Names,
    Field(
        description="A task of the user: sst2, agnews or gsm8k, or any name with its data, prompts and right answers. "
        "Repeatable."
    ),
    Shown("measure", "NAME[=DATA]", name="task"),
]
JudgeNames: TypeAlias = Annotated[
    SomeNames,
    Field(
        description="Who judges answers: refusal-patterns, oracle (the miniature's), beaver-dam, "
        "llama-guard, wildguard, shieldgemma, harmbench-classifier, text-classification=FOLDER#LABEL, "
        "endpoint=URL#MODEL, likelihood-margin, or an installed one. Repeatable: the first one's numbers stand at the "
        "top."
    ),
    Shown("measure", "NAME[=WHERE]"),
]
MaxNewTokens: TypeAlias = Annotated[int, Field(ge=1, description="Length of an answer at most."), Shown("measure")]
TaskMatch: TypeAlias = Annotated[
    MatchMode,
    Field(description="When a task's answer is right: exact, or prefix (it begins with the gold answer)."),
    Shown("measure"),
]
TaskRows: TypeAlias = Annotated[
    int | None,
    Field(ge=1, description="First rows of each task; as in the paper, or all of a task with data of its own."),
    Shown("measure"),
]
TaskMaxNewTokens: TypeAlias = Annotated[
    int | None,
    Field(ge=1, description="Length of a task's answer at most; each task has its own."),
    Shown("measure"),
]
Settings: TypeAlias = Annotated[dict[str, Any], Field(default_factory=dict, description="Settings, by name.")]
ShowAnswers: TypeAlias = Annotated[
    bool,
    Field(description="Show the models' answers in the report instead of redacting them."),
    Shown("advanced"),
]


class RepairStage(Spec):
    """Stage 3: which method repairs, from which harmful rows, and what it edits."""

    harmful: Annotated[
        Names,
        Field(
            description="Harmful requests with or without answers (the model then gives its own): .jsonl .json .csv "
            ".tsv .parquet .arrow or .gz, a folder of data, a named data set (advbench, advbench@FILE), or "
            "org/name#split on the Hub; map columns as in file.csv:prompt=goal,response=target,weight=2. Repeatable."
        ),
        Shown("main", "DATA"),
    ] = ()
    harmful_rows: HarmfulRows = None
    method: Annotated[str, Field(description="Repair method."), Shown("strength")] = "antidote"
    preset: Annotated[
        str | None, Field(description="Named settings of the method: paper or official-code."), Shown("strength")
    ] = None
    settings: Settings
    sites: Annotated[
        str,
        Field(
            description="Which matrices: all, attention, mlp, qkv, names and patterns, separated by commas, as in "
            "attention,down_proj or '*.layers.3.*'."
        ),
        Shown("target", "PATTERN"),
    ] = "all"
    dtype: Dtype = "auto"

    @classmethod
    def methods(cls) -> Mapping[str, Method]:
        """Return the repair methods."""
        return methods()

    def require_sound(self) -> None:
        """Refuse a method that there is not, and settings that it does not take.

        Raises:
            UserError: Names the setting.
        """
        method_named(self.method).configure(self.settings, self.preset)


class RepairSpec(RepairStage):
    """Repair a LoRA adapter or a full fine-tune."""

    command: ClassVar[str] = "repair"

    model: Model
    adapter: Adapter = ()
    out: Out = None
    aligned: Annotated[
        Text | None,
        Field(description="Folder or Hub id of the aligned model that a full fine-tune started from."),
        Shown("main", "REF"),
    ] = None
    target: Annotated[
        Literal["auto", "adapter", "delta", "weight"],
        Field(
            description="What is edited: an adapter's factors; the delta from the aligned model; or bare weights, "
            "which become zero. auto is the adapter where there is one, else the delta."
        ),
        Shown("target"),
    ] = "auto"
    restore_outside: Annotated[
        bool,
        Field(
            description="Put whatever else the fine-tune moved (embeddings, norms, biases, head, other matrices) back "
            "to the aligned model."
        ),
        Shown("target"),
    ] = False
    calibration: Annotated[
        Literal["all", "auto"],
        Field(
            description="all uses every harmful row; auto draws rows until the masks have settled, and says how sure "
            "that is."
        ),
        Shown("strength"),
    ] = "all"
    tokens: Annotated[TokenPolicy, Field(description="Which tokens of a harmful row count."), Shown("strength")] = "all"
    data_seed: DataSeed = 0
    evaluate: Annotated[
        Text | None,
        Field(
            description="Harmful requests to judge before and after; by default a fifth of the harmful rows is kept "
            "apart for it."
        ),
        Shown("measure", "DATA|none"),
    ] = None
    harmless: Harmless = None
    tasks: Tasks = ()
    judge: JudgeNames = DEFAULT_JUDGES
    max_new_tokens: MaxNewTokens = 64
    task_match: TaskMatch = "exact"
    template: Template = "auto"
    system: System = None
    thinking: Thinking = False
    tokenizer: Tokenizer = None
    show_answers: ShowAnswers = False
    dry_run: Annotated[bool, Field(description="Print what would change, and write nothing."), Shown("main")] = False
    engine: Annotated[
        EngineName,
        Field(
            description="memory holds the whole model; streaming holds one decoder layer at a time, for models larger "
            "than memory; auto takes memory where the model fits."
        ),
        Shown("resources"),
    ] = "auto"
    max_ram: Annotated[
        str | None,
        Field(description="Memory that may be used, as in 16GB; by default what is free."),
        Shown("resources", "SIZE"),
    ] = None
    max_vram: Annotated[
        str | None,
        Field(description="GPU memory that may be used; by default what is free."),
        Shown("resources", "SIZE"),
    ] = None
    max_disk: Annotated[
        str | None,
        Field(description="Disk that the result may take while it is written."),
        Shown("resources", "SIZE"),
    ] = None
    patch_only: Annotated[
        bool,
        Field(description="Write the patch and the record, and no model: antidote patch apply makes one."),
        Shown("resources"),
    ] = False
    hard_links: HardLinks = False
    cache: Annotated[
        bool,
        Field(description="Whether statistics that were collected before are used, and new ones are kept."),
        Shown("resources", flag="--cache/--no-cache"),
    ] = True
    device: Device = "auto"
    trust_remote_code: TrustRemoteCode = False


class _TrainingStage(Spec):
    """What stages 1 and 2 share: rows, a defense, and how it is trained."""

    stage: ClassVar[TrainingStage]
    defaults: ClassVar[TrainingSettings]

    data: Annotated[
        SomeNames,
        Field(
            description="Rows of prompt and response: a file, a folder, a named data set or a Hub id; map columns as "
            "in file.csv:prompt=goal,response=target, and weigh several files as in file.csv:weight=2. Repeatable."
        ),
        Shown("main", "DATA"),
    ]
    rows: Annotated[
        int | None,
        Field(ge=1, description="How many rows in all, each file by its weight; all where not given."),
        Shown("main"),
    ] = None
    defense: Annotated[str, Field(description="Defense of this stage."), Shown("main")] = "sft"
    preset: Annotated[
        str | None,
        Field(description="Named settings of the defense, such as paper or official-code."),
        Shown("strength"),
    ] = None
    settings: Settings
    training: Annotated[
        TrainingSettings, Field(description="How it is trained; what is left out is the stage's default.")
    ]
    dtype: Annotated[
        DtypeName, Field(description="Type to load weights in; auto is the checkpoint's own."), Shown("resources")
    ] = "float32"
    save_dtype: Annotated[
        SaveDtype,
        Field(description="Type of the weights that are written; auto is the checkpoint's own."),
        Shown("resources"),
    ] = "auto"
    save_every: Annotated[
        int,
        Field(ge=0, description="Steps between checkpoints, from which an interrupted run goes on; 0 for none."),
        Shown("resources"),
    ] = 500

    @classmethod
    def training_defaults(cls) -> TrainingSettings:
        """Return the stage's defaults."""
        return cls.defaults

    def require_sound(self) -> None:
        """Refuse a defense that there is not, and settings that it does not take.

        Raises:
            UserError: Names the setting.
        """
        defense_named(self.stage, self.defense).configure(self.settings, self.preset)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """Put what is said about the training over the stage's defaults; an adapter's settings over theirs."""
        if not isinstance(given, Mapping):
            return given
        training = given.get("training") or {}
        if not isinstance(training, Mapping):
            return given
        merged = {**cls.defaults.model_dump(), "lora": LoraSettings().model_dump(), **training}
        if isinstance(lora := training.get("lora"), Mapping):
            merged["lora"] = {**LoraSettings().model_dump(), **lora}
        return {**given, "training": merged}


class AlignStage(_TrainingStage):
    """Stage 1: the model learns to refuse."""

    stage = "alignment"
    defaults = ALIGNMENT_DEFAULTS

    harmful: Annotated[
        Names,
        Field(description="Harmful requests with harmful answers, for the defenses that learn from them. Repeatable."),
        Shown("main", "DATA"),
    ] = ()
    harmful_rows: HarmfulRows = None

    @classmethod
    def methods(cls) -> Mapping[str, Method]:
        """Return the defenses of stage 1."""
        return defenses("alignment")


class FinetuneStage(_TrainingStage):
    """Stage 2: the user's fine-tuning, poisoned where a defense is put to the test."""

    stage = "finetuning"
    defaults = FINETUNING_DEFAULTS

    harmful: Annotated[
        Names,
        Field(description="Harmful rows to mix into the user's rows: the attack. Repeatable."),
        Shown("main", "DATA"),
    ] = ()
    harmful_ratio: Annotated[
        float | None, Field(ge=0, le=1, description="Share p of harmful rows among all, from 0 to 1."), Shown("main")
    ] = None
    safe: Annotated[
        Names,
        Field(description="Refused harmful requests, for the defenses that learn from them. Repeatable."),
        Shown("main", "DATA"),
    ] = ()
    safe_rows: Annotated[
        int | None, Field(ge=1, description="How many safe rows in all; all where not given."), Shown("data")
    ] = None

    @classmethod
    def methods(cls) -> Mapping[str, Method]:
        """Return the defenses of stage 2."""
        return defenses("finetuning")


class TrainSpec(_TrainingStage):
    """What the commands of stages 1 and 2 add: the model, and where the result goes."""

    model: WholeModel
    out: Out = None
    data_seed: DataSeed = 0
    template: Template = "auto"
    system: System = None
    report_to: Annotated[
        str | None,
        Field(description="Logging integrations of transformers, such as tensorboard,wandb."),
        Shown("advanced"),
    ] = None
    tokenizer: Tokenizer = None
    trust_remote_code: TrustRemoteCode = False


_MERGE = "Write the adapter merged into the weights, or by itself."


class AlignSpec(TrainSpec, AlignStage):
    """Align a model: teach it to refuse."""

    command: ClassVar[str] = "align"
    stage = "alignment"
    defaults = ALIGNMENT_DEFAULTS

    merge: Annotated[bool, Field(description=_MERGE), Shown("training", flag="--merge/--no-merge")] = True


class FinetuneSpec(TrainSpec, FinetuneStage):
    """Fine-tune an aligned model on a user's rows."""

    command: ClassVar[str] = "finetune"
    stage = "finetuning"
    defaults = FINETUNING_DEFAULTS

    apart_from: Annotated[
        Names,
        Field(description="Rows whose prompts are not mixed in: those of a repair and of tests. Repeatable."),
        Shown("data", "DATA"),
    ] = ()
    merge: Annotated[bool, Field(description=_MERGE), Shown("training", flag="--merge/--no-merge")] = False


class _Measured(Spec):
    """What an evaluation and the last stage of a recipe share."""

    harmless: Harmless = None
    tasks: Tasks = ()
    task_rows: TaskRows = None
    judge: JudgeNames = DEFAULT_JUDGES
    max_new_tokens: MaxNewTokens = 64
    task_max_new_tokens: TaskMaxNewTokens = None
    dtype: Dtype = "auto"


class EvaluateStage(_Measured):
    """How the aligned, the attacked and the repaired model are measured."""

    harmful: Annotated[SomeNames, Field(description="Harmful requests to ask.")]
    harmful_rows: HarmfulRows = None


class EvaluateSpec(_Measured):
    """Measure harm, refusal, over-refusal, coherence and task accuracy."""

    command: ClassVar[str] = "evaluate"

    model: Annotated[
        Text | None,
        Field(description="Folder or Hub id of a model, or of an adapter."),
        Shown("main", "[MODEL]", argument=True),
    ] = None
    adapter: Adapter = ()
    harmful: Annotated[Text | None, Field(description=f"Harmful requests: {_DATA}"), Shown("main", "DATA")] = None
    out: Annotated[
        Text | None, Field(description="Keeps evaluation.json and every answer here."), Shown("main", "DIR")
    ] = None
    task_endpoint: Annotated[
        str | None,
        Field(description="OpenAI-compatible model that compares answers, for alpacaeval."),
        Shown("measure", "URL#MODEL"),
    ] = None
    task_seed: Annotated[
        int,
        Field(description="Decides which of two answers is shown first to the model that compares."),
        Shown("measure"),
    ] = 0
    task_match: TaskMatch = "exact"
    perplexity: Annotated[
        Text | None,
        Field(description="Text whose perplexity is measured: wikitext2, or rows with a column text."),
        Shown("measure", "DATA"),
    ] = None
    perplexity_window: Annotated[
        int | None,
        Field(ge=2, description="Most tokens seen at once; 2048, or the model's positions if fewer."),
        Shown("measure"),
    ] = None
    perplexity_stride: Annotated[
        int | None,
        Field(ge=1, description="Tokens from one window to the next; half a window."),
        Shown("measure"),
    ] = None
    lm_eval: Annotated[
        str | None,
        Field(description="Tasks of lm-eval, which must be installed."),
        Shown("measure", "TASK[,TASK]"),
    ] = None
    prefill: Annotated[
        str | None,
        Field(
            description="Opening of every answer to a harmful prompt, which the model goes on from; 'affirmative' is "
            f"'{AFFIRMATIVE}'."
        ),
        Shown("data", "TEXT"),
    ] = None
    condition: Annotated[
        Names,
        Field(description="Ask the harmful prompts again under it: plain, prefill, system or tokens-N. Repeatable."),
        Shown("measure", "NAME"),
    ] = ()
    harder: Annotated[bool, Field(description=f"All of the conditions {', '.join(HARDER)}."), Shown("measure")] = False
    template: Template = "auto"
    system: System = None
    thinking: Thinking = False
    tokenizer: Tokenizer = None
    backend: Annotated[
        str | None,
        Field(
            description="Who generates: transformers, vllm (an extra), or endpoint; transformers where nothing else is "
            "said."
        ),
        Shown("resources"),
    ] = None
    endpoint: Annotated[
        str | None,
        Field(
            description="Evaluate a model that is served already, as in http://localhost:8000/v1#my-model; MODEL is "
            "left out."
        ),
        Shown("main", "URL#NAME"),
    ] = None
    device: Device = "auto"
    trust_remote_code: TrustRemoteCode = False

    def require_sound(self) -> None:
        """Refuse settings that do not go together, and an evaluation of nothing.

        Raises:
            UserError: Names the setting.
        """
        self._require_answerable()
        self._require_condition_data()
        if self.perplexity is None and not (self.perplexity_window is None and self.perplexity_stride is None):
            options = f"{setting('perplexity_window')} and {setting('perplexity_stride')}"
            raise UserError(f"{options} are for {setting('perplexity')}: name its text")
        if not (self.harmful or self.harmless or self.tasks or self.perplexity or self.lm_eval is not None):
            options = ", ".join(setting(name) for name in ("harmful", "harmless", "tasks", "perplexity"))
            raise UserError(f"nothing to ask: pass {options} or {setting('lm_eval')}")

    def _require_answerable(self) -> None:
        """Refuse a backend that there is not, and one that does not go with what is named to answer."""
        backend, backend_is = setting("backend"), f"{setting('backend')} {self.backend}"
        if self.backend is not None and self.backend not in _BACKENDS:
            near = difflib.get_close_matches(self.backend, _BACKENDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{backend_is}: {hint}there are {', '.join(_BACKENDS)}")
        endpoint = setting("endpoint")
        if self.endpoint is None:
            if self.backend == "endpoint":
                example = f"{endpoint} http://localhost:8000/v1#my-model"
                raise UserError(f"{backend} endpoint: name the server, as in {example}")
            if self.model is None:
                raise UserError(f"no MODEL: name a folder or Hub id, or pass {endpoint} URL#NAME")
            return
        if self.backend not in (None, "endpoint"):
            raise UserError(f"{backend_is} does not go with {endpoint}: leave one of them out")
        if self.model is not None or self.adapter:
            raise UserError(f"{endpoint} evaluates what is served there: leave MODEL and {setting('adapter')} out")

    def _require_condition_data(self) -> None:
        """Refuse openings and conditions without harmful prompts."""
        if self.harmful is not None:
            return
        if self.prefill is not None:
            raise UserError(
                f"{setting('prefill')} opens answers to harmful prompts: pass {setting('harmful')}, or leave it out"
            )
        if self.harder or self.condition:
            raise UserError(
                f"conditions are for harmful prompts: pass {setting('harmful')}, or leave {setting('condition')} and "
                f"{setting('harder')} out"
            )


class CompareSpec(Spec):
    """Compare two evaluations of the same prompts."""

    command: ClassVar[str] = "compare"

    before: Annotated[
        Text, Field(description="Folder of an evaluation: before."), Shown("main", "BEFORE", argument=True)
    ]
    after: Annotated[Text, Field(description="Folder of an evaluation: after."), Shown("main", "AFTER", argument=True)]
    aligned: Annotated[
        Text | None,
        Field(description="Folder of an evaluation of the aligned model: the gain kept is measured from it."),
        Shown("main", "DIR"),
    ] = None


class DemoSpec(Spec):
    """The three stages and the repair on the miniature."""

    command: ClassVar[str] = "demo"

    out: Annotated[Text, Field(description="Where the result goes."), Shown("main", "DIR")] = "runs/demo"
    arch: Annotated[str, Field(description="Architecture of the miniature."), Shown("main")] = "llama"
    seed: Annotated[
        int, Field(ge=0, le=2**32 - 1, description="Seed of world, training and controls."), Shown("main")
    ] = 0
    show_answers: Annotated[bool, Field(description="Show answers to harmful requests too."), Shown("advanced")] = False


class MiniatureSpec(Spec):
    """The miniature's models and data, as ordinary folders and files."""

    command: ClassVar[str] = "miniature build"

    out: Annotated[Text, Field(description="Where the result goes."), Shown("main", "DIR")]
    arch: Annotated[str, Field(description="Architecture of its models."), Shown("main")] = "llama"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="Seed of the world and of training."), Shown("main")] = 0
    attack: Annotated[
        AttackKind, Field(description="Whether the attack trains a LoRA adapter or all weights."), Shown("main")
    ] = "lora"


class Recipe(Spec):
    """One experiment: three stages and what came of them."""

    name: Annotated[str, Field(description="What it is called.")]
    source: Annotated[str, Field(description="The paper, table and settings that it follows.")]
    model: Annotated[str, Field(description="Folder or Hub id of the model that is aligned.")]
    seed: Annotated[
        int,
        Field(ge=0, lt=2**32, description="Of rows, batches and adapters, wherever a stage names no other."),
    ] = 0
    template: Annotated[TemplateName, Field(description="How prompts are put, in all stages.")] = "auto"
    align: Annotated[AlignStage, Field(description="Stage 1.")]
    finetune: Annotated[FinetuneStage, Field(description="Stage 2.")]
    repair: Annotated[RepairStage, Field(description="Stage 3.")]
    evaluate: Annotated[EvaluateStage, Field(description="How the models are measured.")]

    @field_validator("model")
    @classmethod
    def _no_option(cls, model: str) -> str:
        """Refuse a name that a command line would take for an option."""
        if model.startswith("-"):
            raise ValueError("begins with a dash: write a folder of that name as ./-name")
        return model

    @model_validator(mode="before")
    @classmethod
    def _seeded(cls, given: Any) -> Any:
        """Let a stage that names no seed of its own train with the recipe's."""
        if not isinstance(given, Mapping):
            return given
        seeded = dict(given)
        for name in ("align", "finetune"):
            stage = given.get(name)
            if isinstance(stage, Mapping) and isinstance(training := stage.get("training") or {}, Mapping):
                seeded[name] = {**stage, "training": {"seed": given.get("seed", 0), **training}}
        return seeded
