"""Events: how they are written, which a stand can have, and that each is done once and told."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.processes import Children
from loadgen.reports.schema import Happened
from loadgen.runs.events import Event, check_events, parse_event, play
from loadgen.runs.stands import Stand
from loadgen.runs.target import Target
from tests.loadgen.runs.servers import serving_app
from tests.router.harness import wait_until

TARGET = Target("t", ("http://127.0.0.1:1",), "m")
BARE = Stand(TARGET, {})


def test_every_form_is_read() -> None:
    assert [parse_event(text) for text in ("20:kill:r1", "2.5:stop:r1", "25:cont:r1", "0:add", "20:flush:r1")] == [
        Event(20, "kill", "r1"),
        Event(2.5, "stop", "r1"),
        Event(25, "cont", "r1"),
        Event(0, "add"),
        Event(20, "flush", "r1"),
    ]
    assert parse_event("20:slow:r1:5") == Event(20, "slow", "r1", factor=5)
    assert parse_event("1:sh:echo a:b; ls") == Event(1, "sh", command="echo a:b; ls")


@pytest.mark.parametrize(
    "text",
    [
        *("", "20", "20:", "20:kill", "20:kill:", "x:kill:r1", "-1:kill:r1", "nan:add", "inf:add", "20:add:r1"),
        *("20:slow:r1", "20:slow:r1:0", "20:slow:r1:x", "20:slow:r1:nan", "20:slow:r1:5:6", "20:sh:", "20:sh: "),
        *("20:flush", "20:explode:r1", "20:kill:r1:5"),
    ],
)
def test_anything_else_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="AT:kill:NAME"):
        parse_event(text)


@settings(deadline=None)
@given(st.text())
def test_no_text_whatever_breaks_the_reader(text: str) -> None:
    try:
        event = parse_event(text)
    except ValueError:
        return
    assert event.at_s >= 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:kill:r1", "'r1' is no process that was started here"),
        ("1:add", "a router of our own"),
        ("1:flush:r1", "no such replica; known: none"),
        ("99:sh:true", "comes after the run's 30 s"),
    ],
)
def test_what_a_stand_cannot_have_is_said_before_the_run(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_events([parse_event(text)], BARE, 30.0)


async def played(stand: Stand, *texts: str) -> list[Happened]:
    happened: list[Happened] = []
    began = time.monotonic()
    await play([parse_event(text) for text in texts], stand, lambda: time.monotonic() - began, happened)
    return happened


async def test_each_is_done_at_its_time_whatever_became_of_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "log"
    happened = await played(
        BARE, f"0.2:sh:echo second >> {file}", "0.1:sh:echo oh; exit 3", f"0:sh:echo first >> {file}"
    )
    assert file.read_text().split() == ["first", "second"]
    at, errors = [event.at_s for event in happened], [event.error for event in happened]
    assert all(when >= wanted for when, wanted in zip(sorted(at), (0, 0.1, 0.2), strict=True))
    assert sorted(errors) == ["", "", "RuntimeError: it ended with 3: oh\n"]


async def test_a_command_still_under_way_at_the_end_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    happened: list[Happened] = []
    event = parse_event(f"0:sh:sleep 60 & echo $! $$ > {file}.new; mv {file}.new {file}; wait")
    task = asyncio.create_task(play([event], BARE, lambda: 1.0, happened))
    await asyncio.to_thread(wait_until, file.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [event.error for event in happened] == ["the run ended before it was done"]
    pids = file.read_text().split()
    await asyncio.to_thread(wait_until, lambda: all(state(pid) in "Z" for pid in pids))


async def test_an_event_whose_time_never_came_is_told() -> None:
    happened: list[Happened] = []
    events = [parse_event("9:sh:true"), parse_event("8:add")]
    task = asyncio.create_task(play(events, BARE, lambda: 3.0, happened))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert happened == [
        Happened(3.0, "add", "the run ended before 8 s"),
        Happened(3.0, "sh: true", "the run ended before 9 s"),
    ]


async def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    (happened,) = await played(BARE, f"0:sh:sleep 60 & echo $! > {file}")
    assert happened.error == ""
    pid = file.read_text().strip()
    await asyncio.to_thread(wait_until, lambda: state(pid) in "Z")


def state(pid: int | str) -> str:
    """The letter of its state; nothing when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


async def test_replicas_are_flushed_and_slowed_over_their_own_port() -> None:
    heard = []

    async def admin(request: web.Request) -> web.Response:
        heard.append(request.path_qs)
        return web.Response(status=200 if "flush" in request.path else 400, text="a bad factor")

    app = web.Application()
    app.router.add_post("/admin/{deed}", admin)
    async with serving_app(app) as url:
        happened = await played(Stand(TARGET, {"r1": url}), "0:flush:r1", "0.1:slow:r1:5", "0.2:slow:r9:5")
    assert heard == ["/admin/flush", "/admin/slow?factor=5"]
    assert [event.what for event in happened] == ["flush r1", "slow r1 x5", "slow r9 x5"]
    assert [event.error for event in happened] == [
        "",
        "RuntimeError: HTTP 400: a bad factor",
        "RuntimeError: 'r9' is no replica here",
    ]


async def test_a_replica_that_cannot_be_flushed_is_told_as_such() -> None:
    async with serving_app(web.Application()) as url:
        (happened,) = await played(Stand(TARGET, {"r1": url}), "0:flush:r1")
    assert "r1 is no simulated replica" in happened.error


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_process_is_stopped_continued_and_killed_and_that_is_nobodys_failure() -> None:
    with Children() as children:
        child = children.start("r1", ["-c", "import time; time.sleep(60)"])
        stand = Stand(TARGET, {}, children)
        assert [event.error for event in await played(stand, "0:stop:r1")] == [""]
        await asyncio.to_thread(wait_until, lambda: state(child.process.pid) == "T")
        await played(stand, "0:cont:r1")
        await asyncio.to_thread(wait_until, lambda: state(child.process.pid) in "SR")
        await played(stand, "0:kill:r1")
        assert child.process.wait(10) == -9
        children.check()
