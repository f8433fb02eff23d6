"""The registry: what a run consists of, in order of value."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("check", "measure", "sanitize", "tune")


@dataclass(frozen=True)
class Step:
    """`module` is run as `python -m tools.gpu.<module>`; `arguments` tell steps of one module apart.

    Limits are seconds: with `--quick`, and without. `needs` names the step whose failure makes this one pointless.
    """

    name: str
    part: str
    module: str
    summary: str
    quick_seconds: float
    full_seconds: float
    arguments: tuple[str, ...] = ()
    needs: str = ""


STEPS = (
    Step("environment", "check", "environment", "the machine, its driver, clocks and libraries", 30, 60),
    Step("build", "check", "build", "both extensions, in place", 180, 900),
    Step("conformance", "check", "conformance", "every primitive on random bits, recorded", 60, 120),
    Step("correctness", "check", "correctness", "against float64, forward and backward", 90, 600, (), "build"),
    Step("triton", "check", "correctness", "the Triton kernels likewise", 60, 600, ("triton",), "build"),
    Step("triton_tuning", "tune", "triton_tuning", "configurations of the Triton kernels", 60, 590, (), "build"),
    Step("operators", "measure", "benchmarks", "every layer shape against PyTorch", 110, 590, ("operators",), "build"),
    Step("networks", "measure", "benchmarks", "both networks against PyTorch", 90, 590, ("networks",), "build"),
    Step("ceilings", "measure", "ceilings", "copy, L2, product, launch boundary", 25, 120),
    Step("memcheck", "sanitize", "sanitizer", "compute-sanitizer: bounds", 30, 300, ("memcheck",), "build"),
    Step("racecheck", "sanitize", "sanitizer", "compute-sanitizer: races", 30, 300, ("racecheck",), "build"),
    Step("synccheck", "sanitize", "sanitizer", "compute-sanitizer: barriers", 20, 300, ("synccheck",), "build"),
    Step("initcheck", "sanitize", "sanitizer", "compute-sanitizer: unwritten memory", 20, 300, ("initcheck",), "build"),
    Step("tuning", "tune", "tuning", "fused against original, layer by layer", 40, 590, (), "build"),
)


def chosen(parts: str) -> list[Step]:
    """Steps of a comma-separated list of parts and step names; all of them for an empty one.

    Raises:
        ValueError: a name that is neither.
    """
    wanted = [word.strip() for word in parts.split(",") if word.strip()]
    known = {*PARTS, *(step.name for step in STEPS)}
    unknown = [word for word in wanted if word not in known]
    if unknown:
        raise ValueError(
            f"expected parts ({', '.join(PARTS)}) or steps ({', '.join(step.name for step in STEPS)}), "
            f"got {', '.join(unknown)}"
        )
    return [step for step in STEPS if not wanted or step.name in wanted or step.part in wanted]
