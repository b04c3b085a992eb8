"""What takes longer than `make test` may: processes that stand still, ghosts, and any two faults at once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.form import FORM
from tests.chaos.site import REPLICAS, ROUTERS, Site
from tests.redis_server import admin

LONGER_THAN_A_LEASE_S = 14.0
PAIRS = 10


def test_a_replica_stands_still_for_longer_than_its_lease(site: Site) -> None:
    before = site.inquiry.epoch("direct")
    with site.under_load() as load:
        site.pause("direct")
        site.wait_until(lambda: not any("direct" in site.inquiry.fleet(router) for router in ROUTERS))
        site.resume("direct")
        site.until_whole()
        assert site.inquiry.epoch("direct") == before
        back = time.monotonic()
        site.wait_until(lambda: load.replicas(back)["direct"] > 0)


def test_a_router_stands_still_for_longer_than_leases_last(site: Site) -> None:
    with site.under_load():
        site.flow(FORM.calm_s)
        site.pause("r0")
        time.sleep(LONGER_THAN_A_LEASE_S)  # its clients wait for it
        site.resume("r0")
        site.flow(FORM.hold_s)


def test_a_lease_runs_out_behind_a_wire_that_swallows_everything(site: Site) -> None:
    with site.under_load():
        site.wire.cut(silently=True)
        site.wait_until(lambda: not any("wired" in site.inquiry.fleet(router) for router in ROUTERS))
        site.flow(FORM.hold_s)
        site.wire.mend()


def test_redis_is_away_for_longer_than_leases_last(site: Site) -> None:
    with site.under_load():
        site.flow(FORM.calm_s)
        site.redis.kill()
        site.flow(LONGER_THAN_A_LEASE_S)
        site.redis.start()
        site.flow(FORM.hold_s)


def test_an_older_copy_names_a_replica_that_has_left_and_an_incarnation_that_is_dead(site: Site) -> None:
    with site.extra("ghost"), site.under_load():
        copy = site.copy_of_redis()
        site.end("ghost")
        site.kill("direct")
        site.start("direct")
        site.serves_again("direct")
        site.wait_until(lambda: not any("ghost" in site.inquiry.fleet(router) for router in ROUTERS))
        before = site.inquiry.resyncs()
        site.forget_redis(copy)
        site.redis.start()
        site.wait_until(lambda: all(count > before[name] for name, count in site.inquiry.resyncs().items()))
        site.wait_until(lambda: all("ghost" in site.inquiry.fleet(router) for router in ROUTERS))
        site.until_whole()  # which it is not before the ghost's lease has run out


@pytest.mark.parametrize("kind", ["flushed", "emptied", "set back"])
def test_what_redis_forgets_while_nobody_asks_anything_comes_back_by_itself(site: Site, kind: str) -> None:
    with site.under_load():
        copy = site.copy_of_redis()
        site.flow(FORM.hold_s)
    before = site.inquiry.resyncs()
    if kind == "flushed":
        with admin(site.redis) as client:
            client.flushall()
    else:
        site.forget_redis(copy if kind == "set back" else None)
        site.redis.start()
    site.until_noticed(before)
    site.audit()


@contextmanager
def redis_fault(site: Site, kind: str, rng: random.Random) -> Iterator[None]:
    """The fault lasts as long as the context."""
    if kind == "stopped":
        site.redis.pause()
        yield
        site.redis.resume()
    elif kind == "flushed":
        yield
        with admin(site.redis) as client:
            client.flushall()
    else:
        copy = site.copy_of_redis() if kind == "set back" else None
        site.flow(rng.uniform(0, 1))
        if kind == "killed":
            site.redis.kill()
        else:
            site.forget_redis(copy)
        yield
        site.redis.start()


@pytest.mark.parametrize("seed", range(PAIRS))
def test_a_process_is_killed_while_something_is_wrong_with_redis(site: Site, seed: int) -> None:
    rng = random.Random(seed)
    victim = rng.choice((*ROUTERS, *REPLICAS))
    kind = rng.choice(("stopped", "flushed", "killed", "emptied", "set back"))
    others = set(ROUTERS) - {victim}
    with site.under_load():
        site.post.mischief = rng.random() < 0.3
        with redis_fault(site, kind, rng):
            site.flow(rng.uniform(0, 1), *others)
            site.kill(victim)
            site.flow(rng.uniform(0, 1), *others)
            site.start(victim)
            site.flow(rng.uniform(0, 3), *others)
        site.serves_again(victim)
        site.post.mischief = False
        passed = site.post.done["pass"]
        site.wait_until(lambda: site.post.done["pass"] > passed)
        site.flow(1.0)
