"""The checker reports planted defects at the right line, keeps silent about the same kernels without them, and the
primitives compute on the host what the hardware's manual says."""

from __future__ import annotations

import re
from pathlib import Path

import host_cuda
import pytest
import torch

KERNELS = Path(__file__).parent / "kernels"
DEFECT_SOURCES = sorted(KERNELS.glob("defects_*.cu"))


def planted_defects() -> dict[str, list[tuple[str, str | None]]]:
    """By kernel: kind and "file:line" of the marked lines, None where the report has no line."""
    planted: dict[str, list[tuple[str, str | None]]] = {}
    for source in DEFECT_SOURCES:
        name = ""
        for number, line in enumerate(source.read_text().splitlines(), start=1):
            if kernel := re.match(r"__global__ void (\w+)", line):
                name = kernel[1].removesuffix("_kernel")
            if marked := re.search(r"// reported( without line)?: (.+)$", line):
                planted.setdefault(name, []).append((marked[2], None if marked[1] else f"{source.name}:{number}"))
    return planted


PLANTED = planted_defects()


def schedule_id(schedule: host_cuda.Schedule) -> str:
    return f"order{schedule.order}-{'late' if schedule.lazy else 'early'}"


@pytest.fixture(scope="module")
def defects() -> host_cuda.Host:
    host = host_cuda.build("defects", DEFECT_SOURCES, KERNELS / "bind_defects.cpp", checked=True)
    assert set(host.names()) == set(PLANTED)
    return host


def run(host: host_cuda.Host, name: str, defect: bool) -> list[str]:
    rows = torch.empty(4, 16)[:, :8]
    updated = torch.zeros(256) if name.startswith("updated") else None  # each element has to be written
    try:
        host.run(name, defect, torch.rand(256), torch.empty(256), rows, torch.empty(512), updated)
    except host_cuda.KernelReport as report:
        return report.reports
    return []


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES, ids=schedule_id)
@pytest.mark.parametrize("name", PLANTED)
def test_defect_is_reported_at_its_line(defects: host_cuda.Host, name: str, schedule: host_cuda.Schedule) -> None:
    reports = run(defects.on(schedule), name, defect=True)
    expected = [kind if where is None else f"{kind} at {where}" for kind, where in PLANTED[name]]
    assert any(report.startswith(start + ":") for report in reports for start in expected), reports


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES, ids=schedule_id)
@pytest.mark.parametrize("name", PLANTED)
def test_no_report_without_the_defect(defects: host_cuda.Host, name: str, schedule: host_cuda.Schedule) -> None:
    assert run(defects.on(schedule), name, defect=False) == []


EXCHANGES = {
    "copy_by_widths": (1024, lambda x: x),
    "hand_over_at_named_barriers": (1024, lambda x: x.view(-1, 2).flip(1).flatten() + 1),
    "multicast": (4096, lambda x: x.repeat(2)),
    "reverse_across_cluster": (1024, lambda x: x.flip(0)),
}


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "fast"])
@pytest.mark.parametrize("name", EXCHANGES)
def test_exchanges_between_threads(name: str, checked: bool) -> None:
    """What tests/conformance does not cover: plain accesses, named barriers, clusters."""
    host = host_cuda.build("exchanges", [KERNELS / "exchanges.cu"], KERNELS / "bind_exchanges.cpp", checked)
    size, expected = EXCHANGES[name]
    x = torch.rand(size)
    for schedule in host_cuda.SCHEDULES:
        y = torch.empty_like(expected(x))
        getattr(host.on(schedule), name)(x, y)
        assert torch.equal(y, expected(x)), schedule


def test_overlapping_reports_do_not_hide_each_other(defects: host_cuda.Host) -> None:
    """Two defects of one kernel are two reports."""
    y = torch.empty(512)[::2]
    with pytest.raises(host_cuda.KernelReport) as caught:
        defects.run("never_written", True, torch.rand(256), y, torch.empty(4, 16)[:, :8], torch.empty(512), None)
    kinds = {report.split(" at ")[0].split(":")[0] for report in caught.value.reports}
    assert kinds == {"write between rows", "output not written"}
