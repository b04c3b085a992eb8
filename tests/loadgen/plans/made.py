"""Plans, and strategies for such, that the tests of plans share."""

from __future__ import annotations

from hypothesis import strategies as st

from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Form, History, Prompts
from loadgen.plans.vocabulary import read_vocabulary
from replica import tokenizer

VOCABULARY = read_vocabulary(tokenizer.directory())

ROLES = ("system", "user", "tool")
pieces = st.builds(Piece, st.integers(0, 5), st.integers(1, 40), st.sampled_from(ROLES))
turns = st.builds(Turn, st.lists(pieces, min_size=1, max_size=4).map(tuple), st.integers(1, 30), st.floats(0, 3))


@st.composite
def plans(draw: st.DrawFn, growing: bool | None = None) -> Plan:
    """Small ones whose sessions share much."""
    listed = draw(st.lists(st.lists(turns, min_size=1, max_size=4), min_size=1, max_size=5))
    starts = sorted(draw(st.lists(st.floats(0, 9), min_size=len(listed), max_size=len(listed))))
    sessions = tuple(Session(start, tuple(each)) for start, each in zip(starts, listed, strict=True))
    grows = draw(st.booleans()) if growing is None else growing
    return Plan("made", draw(st.integers(0, 3)), {}, 10.0, sessions, grows)


def plan_of(*turns: Turn, growing: bool = False) -> Plan:
    """A plan of one session."""
    return Plan("made", 1, {}, 10.0, (Session(0.0, turns),), growing)


def prompts_of(plan: Plan, form: Form = "tokens", history: History = "planned") -> Prompts:
    """With the bundled vocabulary, which is read once for all tests."""
    return Prompts(plan, form, history, VOCABULARY)
