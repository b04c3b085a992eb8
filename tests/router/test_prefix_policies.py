"""What hashing policies are told of a prompt, through a running router."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.router.harness import Client, RunningRouter, chat, hello, receipts, running_router, upstream


def ask(router: RunningRouter, *texts: str) -> list[str]:
    """Which replica each prompt went to."""
    with Client(router.port) as client:
        for text in texts:
            client.post(chat(text))
            assert client.response()[0] == 200
    return [receipt["chosen"] for receipt in reversed(receipts(router)[: len(texts)])]


@pytest.mark.parametrize("policy", ["sticky", "prefix_hash"])
def test_prompts_that_begin_alike_share_a_replica_and_others_spread(policy: str) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(upstream(hello)).url for _ in range(3)]
        router = stack.enter_context(running_router(*urls, policy=policy))
        alike = ask(router, *("the same two blocks " * 60 + f"and question {number}" for number in range(12)))
        assert len(set(alike)) == 1
        unlike = ask(router, *(f"{number} says something else " * 60 for number in range(40)))
        assert len(set(unlike)) == 3
