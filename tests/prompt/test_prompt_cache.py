"""The token cache finds the longest known prefix, stays within its memory, and forgets leaves before their parents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.prompt_cache import TokenCache

BLOCK = 2
SEED = 7
chains = st.lists(st.sampled_from(["a", "b", "cc"]), min_size=1, max_size=6)


def learn(cache: TokenCache, pieces: list[str], head: tuple[int, ...] = ()) -> int:
    """Finds the prompt's known prefix, adds the rest. Returns how many pieces were known."""
    known = cache.find(SEED, head, pieces)
    count = len(known.names)
    cache.extend(known, head, pieces[count:], [[ord(char) for char in piece] for piece in pieces[count:]])
    return count


@given(prompts=st.lists(chains, max_size=12))
def test_an_unbounded_cache_knows_all_that_came_before(prompts: list[list[str]]) -> None:
    cache = TokenCache(BLOCK, 1 << 20)
    seen: set[tuple[str, ...]] = {()}
    for pieces in prompts:
        prefixes = [tuple(pieces[:size]) for size in range(len(pieces) + 1)]
        assert learn(cache, pieces) == max(len(prefix) for prefix in prefixes if prefix in seen)
        seen.update(prefixes)
    assert len(cache) == len(seen) - 1


@given(prompts=st.lists(chains, max_size=12), room=st.integers(0, 6))
def test_a_bounded_cache_keeps_prefixes_of_the_latest_prompt(prompts: list[list[str]], room: int) -> None:
    node = 340  # a little more than any of these nodes takes
    cache = TokenCache(BLOCK, room * node)
    for pieces in prompts:
        learn(cache, pieces)
        assert cache.bytes <= room * node
        assert (cache.bytes == 0) == (len(cache) == 0)
        # Whatever had to go, the beginning of the latest prompt stayed, for as much as there is room.
        assert len(cache.find(SEED, (), pieces).names) == min(room, len(pieces), len(cache))


def test_other_namespaces_and_other_heads_are_other_prompts() -> None:
    cache = TokenCache(BLOCK, 1 << 20)
    learn(cache, ["a", "b"])
    assert learn(cache, ["a", "b"], head=(1,)) == 0
    assert cache.find(SEED + 1, (), ["a", "b"]).names == []
    assert len(cache.find(SEED, (), ["a", "b"]).names) == 2
