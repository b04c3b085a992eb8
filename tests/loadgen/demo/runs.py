"""Runs that nobody made, with the figures that a test is about."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.demo.measuring import SLO, Measured
from loadgen.reports.figures import Setting
from tests.loadgen.reports.samples import record, report


def run(name: str = "kv", cores_busy: float = 0.5, **figures: Any) -> Measured:
    """Of one request, half of whose prompt was cached, but for these figures."""
    made = report([record(cached=50)], Setting(slo=SLO))
    changed = msgspec.structs.replace(made.figures, **figures)
    return Measured(msgspec.structs.replace(made, name=name, figures=changed), cores_busy)
