"""The record of a repair: all that is needed to understand it, repeat it and undo it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Part):
    """A checkpoint that went in."""

    reference: str = Field(description="What the user named.")
    sha256: dict[str, str] = Field(description="The hash of its configuration and weight files, by file name.")


class CalibrationData(_Part):
    """The harmful data that the statistics come from."""

    references: tuple[str, ...] = Field(description="What the user named, file by file.")
    rows: int = Field(description="Rows with a counted token that were used.")
    of_rows: int | None = Field(None, description="Rows that there were, where as few as suffice were used.")
    agreement_bound: float | None = Field(
        None,
        description="What the Jaccard index of the mask with that of all rows is at least, with 95 % confidence, where "
        "as few rows as suffice were used.",
    )
    tokens: int = Field(description="Counted tokens.")
    own_answers: int = Field(0, description="Rows that came without a response, which the model answered itself.")
    refused_own_answers: int = Field(0, description="How many of its own answers read as refusals.")
    policy: str = Field(description="Which tokens were counted.")
    template: str = Field(description="How prompts were rendered.")
    dtype: str = Field(description="The type that the model computed in.")
    moments_sha256: str = Field(description="The hash over everything that the statistics depend on.")


class SiteRecord(_Part):
    """What happened to one matrix."""

    name: str = Field(description="Module and role.")
    module: str = Field(description="The module's name.")
    role: str = Field(description="Which of its matrices: the adapter's A or B, or the module's weight.")
    layer: int | None = Field(description="Index of the decoder layer.")
    rows: int = Field(description="Outputs.")
    columns: int = Field(description="Inputs.")
    chosen: int | None = Field(description="Entries that the method chose; none for methods that do not choose.")
    changed: int = Field(description="Entries whose bits changed: chosen entries may have been zero already.")


class UpdateRecord(_Part):
    """The size of one module's update, as a Frobenius norm.

    The update is s B A for an adapter, fine-tuned minus aligned for a delta, the weights themselves for the target
    weight.
    """

    module: str = Field(description="The module's name.")
    layer: int | None = Field(description="Index of the decoder layer.")
    kind: str = Field(description="The module's own name inside its layer.")
    norm_before: float = Field(description="Norm of the update before the repair.")
    norm_after: float = Field(description="Norm of the update after it.")


class OutsideRecord(_Part):
    """The update of tensors that no method edits: embeddings, norms, biases, head."""

    name: str = Field(
        description="Tensors of one name, layer numbers replaced by *, such as model.layers.*.input_layernorm.weight."
    )
    tensors: int = Field(description="How many there are.")
    entries: int = Field(description="Their entries.")
    norm_before: float = Field(description="Frobenius norm of their update before the repair.")
    norm_after: float = Field(description="After it; 0 where it was put back.")


class Totals(_Part):
    """All sites together."""

    entries: int = Field(description="Entries of all sites.")
    chosen: int | None = Field(description="Entries that the method chose.")
    changed: int = Field(description="Entries whose bits changed.")
    update_norm_before: float = Field(description="Frobenius norm of the whole update before the repair.")
    update_norm_after: float = Field(description="After it.")

    @property
    def norm_kept(self) -> float:
        """The fraction of the update's norm that is left."""
        return self.update_norm_after / self.update_norm_before if self.update_norm_before else 1.0


class PatchSummary(_Part):
    """The patch that undoes the repair."""

    size_bytes: int = Field(description="Its size.")
    predicted_bytes: int = Field(0, description="Its size as it was stated before it was written.")
    sha256_before: dict[str, str] = Field(description="Hashes of the changed files before.")
    sha256_after: dict[str, str] = Field(description="Hashes of the changed files after.")
    sha256_unchanged: dict[str, str] = Field({}, description="Hashes of the other files that ship.")
    sha256: str | None = Field(None, description="The hash that the patch holds of itself.")


class RepairRecord(_Part):
    """One repair."""

    format: int = Field(3, description="The format's version.")
    versions: dict[str, str] = Field(description="Versions of this program and the libraries under it.")
    command: str = Field(description="The command that repeats it.")
    base: Origin = Field(description="The whole model.")
    adapter: Origin | None = Field(description="The adapter on it.")
    aligned: Origin | None = Field(None, description="The aligned model that a delta is measured from.")
    beneath: tuple[Origin, ...] = Field(
        (), description="Adapters that lie below the repaired one and stay as they are."
    )
    calibration: CalibrationData | None = Field(description="The harmful data; none for methods that see none.")
    prompts: str = Field("", description="Which template prompts went through, in words; empty where there were none.")
    method: str = Field(description="The repair method.")
    target: str = Field(description="What was edited.")
    settings: dict[str, Any] = Field(description="The method's settings as given, defaults filled in.")
    solved: dict[str, Any] = Field(description="Settings that were solved for, such as a matched strength.")
    sites: tuple[SiteRecord, ...] = Field(description="What happened to each matrix.")
    updates: tuple[UpdateRecord, ...] = Field(description="What happened to each module's update.")
    outside: tuple[OutsideRecord, ...] = Field(
        (), description="The update outside the edited matrices: embeddings, norms, biases, head."
    )
    totals: Totals = Field(description="All of it together.")
    patch: PatchSummary | None = Field(description="The patch; none in a dry run.")
    left_out: tuple[str, ...] = Field(
        (), description="What is in the checkpoint's folder and does not ship: whole folders by their name and /."
    )
    wall_seconds: dict[str, float] = Field(description="Wall time by step.")
    peak_rss_bytes: int = Field(description="The largest resident memory of the process.")
