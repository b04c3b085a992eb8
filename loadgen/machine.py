"""Of which machine figures are."""

from __future__ import annotations

import os
import platform


def machine() -> dict[str, str | int | None]:
    return {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
