"""Ghosts are forgotten oldest first and found root first, whatever was given up and stored anew in between."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count, groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from replica.reuse_ghosts import FEW, Ghosts
from replica.reuse_runs import Run

KIND = (1, False, 0)


class Model:
    """The same, one key at a time."""

    def __init__(self) -> None:
        self.ghosts: OrderedDict[int, Run] = OrderedDict()

    def forget(self, room: int) -> list[tuple[Run, int]]:
        gone = [self.ghosts.popitem(last=False)[1] for _ in range(len(self.ghosts) - room)]
        return [(run, len(list(same))) for run, same in groupby(gone)]


def stored(ghosts: Ghosts, keys: list[int]) -> list[tuple[Run, bytes]]:
    """What is found of a path's keys, from the root on."""
    found, at = [], 0
    while at < len(keys):
        run = ghosts.tops.get(keys[at])
        if run is None:
            at += 1
            continue
        turns = bytes(ghosts.take(run, keys, at))
        found.append((run, turns))
        at += len(turns)
    return found


moves = st.lists(
    st.one_of(
        st.tuples(st.just("give up"), st.integers(0, 4), st.integers(1, 4)),
        st.tuples(st.just("store"), st.integers(0, 4), st.integers(1, 9)),
        st.tuples(st.just("forget"), st.just(0), st.integers(0, 12)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(moves=moves)
def test_as_if_each_key_were_remembered_by_itself(moves: list[tuple[str, int, int]]) -> None:
    ghosts, model, numbers = Ghosts(), Model(), count(1)
    paths: dict[int, tuple[Run, list[int]]] = {}  # by slot: a run, and all its keys from the root on
    for move, slot, much in moves:
        run, keys = paths.get(slot) or (None, [])
        if move == "give up":
            if run is None or not run.blocks:
                run, keys = Run(list(range(6)), KIND, 0.0), [next(numbers) << 40 for _ in range(6)]
                paths[slot] = run, keys
            given_up = [keys[run.blocks.pop()] for _ in range(min(much, len(run.blocks)))]
            ghosts.add(run, given_up, [key >> 40 & 255 for key in given_up])
            model.ghosts.update(dict.fromkeys(given_up, run))
        elif move == "store" and run is not None:
            run.blocks.clear()  # whoever stores what comes after them uses them
            found = stored(ghosts, [7, *keys[:much], 8])
            expected = [key for key in keys[:much] if model.ghosts.pop(key, None)]
            assert b"".join(turns for _, turns in found) == bytes(key >> 40 & 255 for key in expected)
            assert all(of is run for of, _ in found)
        elif move == "forget":
            assert ghosts.forget(much) == model.forget(much)
        assert len(ghosts) == len(model.ghosts)
    assert ghosts.forget(0) == model.forget(0)
    assert not ghosts.tops


def test_two_contents_of_one_key_are_survived() -> None:
    ghosts = Ghosts()
    runs = [Run([0, 1], KIND, 0.0) for _ in range(2)]
    for run in runs:
        ghosts.add(run, [5, 9], [1, 1])
    assert stored(ghosts, [9, 5]) == [(runs[1], b"\1\1")]
    assert ghosts.forget(0) == [(runs[0], 2)]
    assert len(ghosts) == 0
    assert not ghosts.tops


def test_ghosts_found_again_leave_no_trace_though_an_old_one_never_is() -> None:
    ghosts = Ghosts()
    ghosts.add(Run([0], KIND, 0.0), [1], [1])
    for key in range(2, 5 * FEW):
        ghosts.add(Run([0], KIND, 0.0), [key], [1])
        stored(ghosts, [key])
    assert ghosts.queued <= 2 * FEW
