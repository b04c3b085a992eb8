"""How a task that talks to Redis is ended.

Owns that one thing: before Python 3.12, asyncio.wait_for swallows a cancellation that comes in the very turn in which
what it waits for is done (github.com/python/cpython/issues/86296), and redis-py sends every command through it.
"""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.1


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels them and waits for their ends, asking again while one has not heard."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
