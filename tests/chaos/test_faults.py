"""Each part is broken under load; afterwards no request has failed, and everybody knows what each replica holds."""

from __future__ import annotations

import time

import pytest

from tests.chaos.form import FORM, FULL
from tests.chaos.site import REPLICAS, ROUTERS, Site
from tests.redis_server import admin


@pytest.mark.parametrize("router", ROUTERS if FULL else ["r0"])
def test_a_router_is_killed_and_comes_back(site: Site, router: str) -> None:
    with site.under_load():
        site.kill(router)
        site.flow(FORM.hold_s, *(set(ROUTERS) - {router}))
        site.start(router)
        site.serves_again(router)


@pytest.mark.parametrize("replica", REPLICAS if FULL else ["direct"])
def test_a_replica_is_killed_and_its_name_comes_back_at_once(site: Site, replica: str) -> None:
    before = site.inquiry.epoch(replica)
    with site.under_load() as load:
        site.kill(replica)
        site.start(replica)
        site.serves_again(replica)
        assert site.inquiry.epoch(replica) > before
        back = time.monotonic()
        site.wait_until(lambda: load.replicas(back)[replica] > 0)


def test_batches_are_dropped_doubled_and_shuffled(site: Site) -> None:
    with site.under_load() as load:
        site.post.done.clear()
        site.post.mischief = True
        site.flow(FORM.hold_s)
        site.wait_until(lambda: min(site.post.done[deed] for deed in ("drop", "double", "hold")) >= 3 * FORM.rounds)
        site.post.mischief = False
        passed = site.post.done["pass"]
        site.wait_until(lambda: site.post.done["pass"] > passed)
        assert load.replicas()["posted"] > 0


def test_a_lease_runs_out_while_the_replica_lives(site: Site) -> None:
    before = site.inquiry.epoch("wired")
    with site.under_load():
        site.wire.cut()
        site.wait_until(lambda: not any("wired" in site.inquiry.fleet(router) for router in ROUTERS))
        site.flow(FORM.hold_s)
        site.wire.mend()
        site.until_whole()
        assert site.inquiry.epoch("wired") == before


def test_redis_is_killed_and_comes_back_with_its_data(site: Site) -> None:
    before = site.inquiry.resyncs()
    with site.under_load():
        for _ in range(FORM.rounds):
            site.redis.kill()
            site.flow(FORM.hold_s)
            site.redis.start()
            site.until_whole()
    assert site.inquiry.resyncs() == before  # nothing was lost, so nobody had to read it all anew


def test_redis_is_killed_and_comes_back_empty(site: Site) -> None:
    with site.under_load():
        for _ in range(FORM.rounds):
            before = site.inquiry.resyncs()
            site.forget_redis()
            site.flow(FORM.hold_s)
            site.redis.start()
            site.until_noticed(before)


def test_redis_stands_still(site: Site) -> None:
    with site.under_load():
        site.flow(FORM.calm_s)
        site.redis.pause()
        site.flow(FORM.stop_s, least=10)
        site.redis.resume()
        site.flow(FORM.hold_s)


def test_redis_is_flushed(site: Site) -> None:
    with site.under_load():
        for _ in range(FORM.rounds):
            before = site.inquiry.resyncs()
            with admin(site.redis) as client:
                client.flushall()
            site.until_noticed(before)
            site.flow(FORM.hold_s)


def test_redis_comes_back_from_an_older_copy(site: Site) -> None:
    with site.under_load():
        for _ in range(FORM.rounds):
            copy = site.copy_of_redis()
            site.flow(FORM.hold_s)
            before = site.inquiry.resyncs()
            site.forget_redis(copy)
            site.redis.start()
            site.until_noticed(before)


def test_routers_restart_while_redis_is_away(site: Site) -> None:
    with site.under_load():
        site.redis.kill()
        site.kill("r0", "r2")
        site.start("r0", "r2")
        site.serves_again("r0")  # `posted` told it that it is there
        site.flow(FORM.hold_s, "r0", "r1")
        assert set(site.inquiry.fleet("r0")) == {"posted"}
        assert not site.inquiry.ready("r2")  # it waits
        site.redis.start()
        site.serves_again("r2")
