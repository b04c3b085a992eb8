"""What befalls a simulated fleet, and when: `600:slow:3:5` and the like.

Owns the notation, and what makes sense. Must never act: fleet.py does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FORMS = "SECONDS:slow:REPLICA:FACTOR, SECONDS:kill:REPLICA, SECONDS:remove:REPLICA or SECONDS:add"
_LENGTHS = {"slow": 4, "kill": 3, "remove": 3, "add": 2}


@dataclass(frozen=True, slots=True)
class Incident:
    """`slow`: every step takes `factor` times as long as at the start (1: well again). `kill`: gone at once, its
    requests go elsewhere. `remove`: gets no more requests and finishes its own. `add`: a replica with an empty cache.
    Replicas are numbered from 0, added ones go on from there.
    """

    at_s: float
    action: str
    replica: int = -1
    factor: float = 1.0


def parse_incident(text: str) -> Incident:
    """Raises ValueError for what is no incident."""
    parts = text.split(":")
    if len(parts) < 2 or _LENGTHS.get(parts[1]) != len(parts):
        raise ValueError(f"{text!r} is no incident; write {FORMS}")
    try:
        at_s = float(parts[0])
        replica = int(parts[2]) if len(parts) > 2 else -1
        factor = float(parts[3]) if len(parts) > 3 else 1.0
    except ValueError:
        raise ValueError(f"{text!r} is no incident: not a number; write {FORMS}") from None
    if not 0 <= at_s < float("inf") or not 0 < factor < float("inf") or (len(parts) > 2 and replica < 0):
        raise ValueError(f"{text!r}: times and replicas start at 0, and a factor must be positive")
    return Incident(at_s, parts[1], replica, factor)


def check_incidents(incidents: Iterable[Incident], replicas: int) -> None:
    """Raises ValueError when one befalls a replica that is not there, or not any more. `replicas` is how many start."""
    dead: set[int] = set()
    for incident in sorted(incidents, key=lambda incident: incident.at_s):
        if incident.action == "add":
            replicas += 1
        elif incident.replica >= replicas:
            raise ValueError(
                f"there is no replica {incident.replica} at {incident.at_s:g} s; they are numbered from 0, and there "
                f"are {replicas} then"
            )
        elif incident.replica in dead:
            raise ValueError(f"replica {incident.replica} is dead already at {incident.at_s:g} s")
        elif incident.action == "kill":
            dead.add(incident.replica)
