"""What all kinds share: metadata, conditions, and how a kind tells the API server about itself.

A kind is a pydantic model whose `spec` and `status` are models too; `kubeflash.api.crds` makes the
CustomResourceDefinition of it. Validation lives in the schema and in CEL rules (`rules`), so that the API server itself
refuses a bad object, with a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "kubeflash.io"
VERSION = "v1alpha1"
FINALIZER = f"{GROUP}/controller"


@dataclass(frozen=True)
class Rule:
    """One CEL validation rule: `expression` must hold, else the API server answers with `message`.

    Attributes:
        path: where the rule hangs, as field names from the root of the object, such as `("spec",)`.
    """

    path: tuple[str, ...]
    expression: str
    message: str


@dataclass(frozen=True)
class Column:
    """One printer column of `kubectl get`; `priority` 1 shows only with `-o wide`."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    priority: int = 0
    description: str = ""


@dataclass(frozen=True)
class KindInfo:
    """What a CustomResourceDefinition says beside its schema."""

    kind: str
    plural: str
    short: tuple[str, ...]
    scope: Literal["Namespaced", "Cluster"]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    selectable: tuple[str, ...] = ()
    group: str = GROUP
    version: str = VERSION

    @property
    def singular(self) -> str:
        """The lower-case name that kubectl takes for one object."""
        return self.kind.lower()


class Model(BaseModel):
    """A part of an object: camelCase outside, snake_case inside, immutable, unknown fields ignored when read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """The JSON that the API server holds: aliases, without what is unset or None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ObjectMeta(Model):
    """The part of an object's metadata that KubeFlash reads."""

    name: str
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    finalizers: list[str] = []


class Condition(Model):
    """One condition, as `metav1.Condition` of the Kubernetes API conventions has it."""

    type: str = Field(
        description="What the condition is about; unique within the list.",
        pattern=r"^[A-Z][A-Za-z]*$",
        max_length=316,
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(
        description="One CamelCase word that says why, for programs.",
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        max_length=1024,
    )
    message: str = Field(default="", description="Why, and what to do about it, for people.", max_length=32768)
    last_transition_time: datetime = Field(description="When the status changed last.")
    observed_generation: int = Field(
        default=0, description="The metadata.generation of the spec that this condition speaks of.", ge=0
    )


ConditionList = list[Condition]
CONDITIONS: Any = Field(
    default=[],
    description="What is so and what is not yet, each with a reason; Ready comes first.",
    json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
)


class LabelSelectorRequirement(Model):
    """One expression of a label selector."""

    key: str = Field(description="The label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label's value relates to `values`."
    )
    values: list[str] = Field(default=[], description="The values, for In and NotIn; else empty.")


class LabelSelector(Model):
    """A label selector, as everywhere in Kubernetes: all parts must hold; an empty one selects everything."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    match_labels: dict[str, str] = Field(default={}, description="Labels that must have exactly these values.")
    match_expressions: list[LabelSelectorRequirement] = Field(default=[], description="Expressions that must all hold.")


class Resource(Model):
    """An object of one of KubeFlash's kinds."""

    info: ClassVar[KindInfo]

    metadata: ObjectMeta

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Reads an object as the API server gives it.

        Raises:
            pydantic.ValidationError: when it does not fit, which the CRD's schema should have kept from happening.
        """
        return cls.model_validate(body)

    @property
    def key(self) -> str:
        """`namespace/name`, or the name of an object that has no namespace."""
        meta = self.metadata
        return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name

    @property
    def created(self) -> str:
        """When it was made, as a text that sorts by time; empty for one that the API server has not seen yet."""
        moment = self.metadata.creation_timestamp
        return moment.isoformat() if moment is not None else ""

    @property
    def deleting(self) -> bool:
        """Whether somebody asked for its deletion."""
        return self.metadata.deletion_timestamp is not None
