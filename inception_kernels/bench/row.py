"""One row: what one implementation did on one case, with everything needed to judge or repeat it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1

OK = "ok"
WITHHELD = "withheld"
NOT_INSTALLED = "not installed"
NOT_APPLICABLE = "not applicable"
FAILED = "failed"
LEFT_OUT = "left out"
STATUSES = (OK, WITHHELD, NOT_INSTALLED, NOT_APPLICABLE, FAILED, LEFT_OUT)

OURS = "ours"
BASELINE = "baseline"


@dataclass(frozen=True)
class Environment:
    """Where and with what a run was made. The roofline was probed at its start and at its end."""

    commit: str
    dirty: bool
    package: str
    device: str
    device_type: str  # "cpu" or "cuda"
    cores: int
    threads: int
    isa: str
    clock: str
    driver: str
    os: str
    python: str
    versions: Mapping[str, str]  # torch, triton, cudnn, cuda, openvino, onnxruntime; "not installed" where missing
    flags: Mapping[str, str]  # TF32, autotuning and other switches that change what runs
    source_hash: str
    started: str  # UTC, ISO 8601
    roofline_start: Mapping[str, Any] = field(default_factory=dict)
    roofline_end: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    case: str
    kind: str  # "network" or "operator"
    operator: str  # an operator or a network
    shape: str
    batch: int
    dtype: str
    autocast: bool
    pass_: str
    backend: str
    role: str  # "ours" or "baseline"
    layout: str
    status: str
    reason: str = ""
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    samples: int = 0
    gmac: float | None = None
    gflop: float | None = None
    tflops: float | None = None
    intensity: float | None = None  # FLOP per byte
    roofline_percent: float | None = None
    bound: str = ""
    speedup: Mapping[str, float] = field(default_factory=dict)  # per baseline: its median / this median
    peak_memory_mib: float | None = None
    memory_method: str = ""
    error: float | None = None  # against float64, relative to the largest magnitude
    error_allowed: float | None = None
    ran: str = ""  # the kernels that really ran
    environment: Environment | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"expected a status out of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == OK and self.median_ms is None:
            raise ValueError(f"expected a time in the row of {self.backend} on {self.case}, got none")
        if self.status != OK and (self.median_ms is not None or not self.reason):
            raise ValueError(
                f"expected a reason and no time in a row that is {self.status!r} ({self.backend} on {self.case})"
            )

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Rows with one key are implementations of one case."""
        return (self.case, self.batch, self.dtype, self.pass_)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Raises ValueError on fields that this version does not know or does not find."""
        return _load(cls, {**data, "environment": _load(Environment, data["environment"])})


def flat(row: Row) -> dict[str, Any]:
    """The row as one level of columns, for CSV: nested fields become `field.key`."""
    columns: dict[str, Any] = {}
    for name, value in row.to_dict().items():
        if isinstance(value, Mapping):
            columns.update(_flatten(name, value))
        else:
            columns[name.rstrip("_")] = value
    return columns


def to_document(rows: Iterable[Row]) -> dict[str, Any]:
    """The JSON of rows: environments, which many rows share, are stored once."""
    environments: list[dict[str, Any]] = []
    stored = []
    for row in rows:
        data = row.to_dict()
        environment = data.pop("environment")
        if environment not in environments:
            environments.append(environment)
        stored.append({**data, "environment": environments.index(environment)})
    return {"schema": SCHEMA, "environments": environments, "rows": stored}


def from_document(document: Mapping[str, Any]) -> list[Row]:
    """Raises ValueError where the document is not one that `to_document` of this version wrote."""
    if document.get("schema") != SCHEMA:
        raise ValueError(
            f"expected benchmark rows of schema {SCHEMA}, got schema {document.get('schema')!r}: measure again"
        )
    environments = document["environments"]
    return [Row.from_dict({**data, "environment": environments[data["environment"]]}) for data in document["rows"]]


def _load(cls: Any, data: Mapping[str, Any]) -> Any:
    expected = {each.name for each in dataclasses.fields(cls)}
    if set(data) != expected:
        raise ValueError(
            f"expected the fields of {cls.__name__}, got "
            f"{', '.join(sorted(set(data) - expected)) or 'none'} too many and "
            f"{', '.join(sorted(expected - set(data))) or 'none'} too few: measure again"
        )
    return cls(**data)


def _flatten(prefix: str, value: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}.{key}"
        columns.update(_flatten(name, inner) if isinstance(inner, Mapping) else {name: inner})
    return columns
