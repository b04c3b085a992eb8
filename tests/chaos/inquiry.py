"""What the parts of a site say of themselves and of each other, and what the audit makes of it. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
from click.testing import CliRunner

from radix.events import decode_snapshot
from radix.redis_link import UNAVAILABLE, explain, open_link
from radix.redis_tree import Incarnation, RedisTree
from router.audit_cli import audit
from tests.chaos.background import Background

ANSWER_S = 5.0


class Inquiry:
    """Of routers by their control addresses, replicas by theirs, and the tree in the Redis at `redis`."""

    def __init__(
        self, background: Background, redis: str, controls: Mapping[str, str], replicas: Mapping[str, str]
    ) -> None:
        self._background = background
        self._redis = redis
        self._controls = controls
        self._replicas = replicas
        self._link = open_link(redis)
        self._tree = RedisTree(self._link)
        self._http = httpx.Client(timeout=ANSWER_S)

    def close(self) -> None:
        self._http.close()
        self._background.call(self._link.close())

    def ready(self, name: str) -> bool:
        """Whether this router or replica takes requests."""
        url = self._controls[name] + "/healthz/ready" if name in self._controls else self._replicas[name] + "/health"
        try:
            return self._http.get(url).status_code == 200
        except httpx.TransportError:
            return False

    def resyncs(self) -> dict[str, float]:
        """How often each router has read the tree anew."""
        return {
            name: self._metric(control, "radixgate_mirror_resyncs_total") for name, control in self._controls.items()
        }

    def fleet(self, router: str) -> dict[str, dict[str, Any]]:
        """The replicas that a router knows, by name."""
        return {replica["name"]: replica for replica in self._json(self._controls[router] + "/fleet")["replicas"]}

    def epoch(self, replica: str) -> int:
        """That of the incarnation which answers."""
        return int(self._json(self._replicas[replica] + "/radixgate/info")["epoch"])

    def missing(self) -> str:
        """What the site lacks to be whole; empty when nothing."""
        try:
            epochs = {name: self.epoch(name) for name in self._replicas}
            members = self._members()
            if {name: member.said.epoch for name, member in members.items() if member.slot} != epochs:
                return f"Redis has the block lists of {members}, of {epochs}"
            return next(filter(None, (self._lacks(router, epochs) for router in self._controls)), "")
        except UNAVAILABLE as error:
            return f"Redis does not answer: {explain(error)}"
        except httpx.TransportError as error:
            return f"{error.request.url} does not answer: {error!r}"

    def warm(self) -> bool:
        """Whether every router knows of blocks on every replica."""
        fleets = [self.fleet(router) for router in self._controls]
        return all(fleet[name]["reported_blocks"] > 0 for fleet in fleets for name in self._replicas)

    def unreported(self) -> str:
        """The replicas whose latest batches have not reached Redis yet; empty when none. Ask once nobody asks them."""
        members = self._members()
        said = {
            name: decode_snapshot(self._http.get(f"{url}/radixgate/blocks").content).seq
            for name, url in self._replicas.items()
        }
        late = {name: (members[name].next_seq, seq) for name, seq in said.items() if members[name].next_seq < seq}
        return f"Redis waits for batches of {late}" if late else ""

    def _lacks(self, router: str, epochs: Mapping[str, int]) -> str:
        said = self._json(self._controls[router] + "/healthz/ready")["redis"]
        if said["state"] != "current" or said["members"] != len(epochs):
            return f"{router} says of Redis: {said}"
        known = {
            name: replica["epoch"]
            for name, replica in self.fleet(router).items()
            if replica["state"] == "up" and replica["reports"] == "trusted"
        }
        return "" if known == epochs else f"{router} believes {known}, not {epochs}"

    def _members(self) -> dict[str, Incarnation]:
        _, _, members = self._background.call(self._tree.open())
        return {member.said.name: member for member in members}

    def _metric(self, control: str, name: str) -> float:
        lines = self._http.get(control + "/metrics").text.splitlines()
        return next(float(line.split(" ")[1]) for line in lines if line.startswith(name + " "))

    def _json(self, url: str) -> Any:
        return self._http.get(url).json()

    def audit(self) -> None:
        """Fails unless `radixgate audit` finds every replica known everywhere, and not one block amiss."""
        routers = [part for control in self._controls.values() for part in ("--router", control)]
        done = CliRunner().invoke(audit, ["--redis", self._redis, *routers, "--json"])
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)["audit"]
        assert report["complete"], report
        assert report["differences"] == 0, report
        assert {replica["name"] for replica in report["replicas"]} == set(self._replicas), report
        places = {"Redis", *self._controls.values()}
        for replica in report["replicas"]:
            assert set(replica["places"]) == places, report
            for place in replica["places"].values():
                assert place["blocks"] == replica["blocks"], report
                assert not place["note"], report
