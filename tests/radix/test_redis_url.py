"""The URL of a Redis says everything or is refused with advice, and its passwords appear nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radix.redis_url import RedisUrl, RedisUrlError, Shape, parse_redis_url

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("redis://h", {"shape": Shape.SINGLE, "hosts": (("h", 6379),), "namespace": "default", "db": 0, "tls": None}),
    ("redis://h:7/3?namespace=prod", {"hosts": (("h", 7),), "namespace": "prod", "db": 3}),
    ("redis://h/", {"db": 0}),
    ("redis://h?namespace=a.B-c_9", {"namespace": "a.B-c_9"}),
    ("redis://[::1]:7", {"hosts": (("::1", 7),)}),
    ("redis://[::1]", {"hosts": (("::1", 6379),)}),
    ("redis://ann:p%40%2Fw@h", {"username": "ann", "password": "p@/w"}),
    ("redis://:p@h", {"username": None, "password": "p"}),
    ("redis://ann:@h", {"username": "ann", "password": ""}),
    ("redis://ann:p@w@h", {"username": "ann", "password": "p@w", "hosts": (("h", 6379),)}),
    ("redis://h?client_name=r%201", {"client_name": "r 1", "username": None, "password": None}),
    ("redis://h?username=ann&password=p", {"username": "ann", "password": "p"}),
    ("rediss://h", {"shape": Shape.SINGLE, "tls": {"ssl_cert_reqs": "required", "ssl_check_hostname": True}}),
    (
        "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false",
        {"tls": {"ssl_cert_reqs": "none", "ssl_check_hostname": False}},
    ),
    ("unix:///run/r.sock", {"shape": Shape.UNIX, "hosts": (), "socket_path": "/run/r.sock", "db": 0}),
    ("unix:///run/r%40.sock?db=2", {"socket_path": "/run/r@.sock", "db": 2}),
    ("unix://ann:p@/run/r.sock", {"socket_path": "/run/r.sock", "username": "ann", "password": "p"}),
    (
        "redis+sentinel://a,b:7/main",
        {"shape": Shape.SENTINEL, "hosts": (("a", 26379), ("b", 7)), "service": "main", "db": 0, "tls": None},
    ),
    (
        "redis+sentinel://ann:p@a/main/4?sentinel_password=q&sentinel_username=s",
        {"service": "main", "db": 4, "password": "p", "sentinel_password": "q", "sentinel_username": "s"},
    ),
    ("redis+sentinel://:p@a/main", {"password": "p", "sentinel_password": None}),
    ("redis+cluster://a:1,b,[::1]:3", {"shape": Shape.CLUSTER, "hosts": (("a", 1), ("b", 6379), ("::1", 3))}),
    ("redis+cluster://a/0", {"db": 0}),
    ("rediss+cluster://a", {"shape": Shape.CLUSTER, "tls": {"ssl_cert_reqs": "required", "ssl_check_hostname": True}}),
    ("rediss+sentinel://a/m", {"shape": Shape.SENTINEL, "service": "m"}),
]

ERRORS = [
    ("", "write it as redis://"),
    ("localhost:6379", "write it as redis://"),
    ("redis:/h", "write it as redis://"),
    ("http://h", "http:// does not lead to a Redis"),
    ("unixs:///r.sock", "does not lead to a Redis"),
    ("redis+cluser://h", "does not lead to a Redis"),
    ("redis://", "has a host"),
    ("redis://h:", "has a host"),
    ("redis://h:0", "from 1 to 65535"),
    ("redis://h:65536", "from 1 to 65535"),
    ("redis://h:x", "from 1 to 65535"),
    ("redis://::1", "around IPv6"),
    ("redis://h i", "has a host"),
    ("redis://a:1,b:2", r"redis\+sentinel://"),
    ("redis+cluster://a,,b", "has a host"),
    ("redis://ann@h", "user:password"),
    ("redis://h/x", "is a number"),
    ("redis://h/-1", "is a number"),
    ("redis://h/0/1", "is a number"),
    ("redis://h?db=1", "no setting db"),
    ("redis://h?namespace=", "a namespace is"),
    ("redis://h?namespace=a%20b", "a namespace is"),
    ("redis://h?namespace={a}", "a namespace is"),
    (f"redis://h?namespace={'n' * 101}", "a namespace is"),
    ("redis://h?namespace=a&namespace=b", "namespace twice"),
    ("redis://h?namespace", "name=value"),
    ("redis://h?decode_responses=true", "no setting decode_responses; it has client_name, namespace"),
    ("redis://h?sentinel_password=p", "no setting sentinel_password"),
    ("redis://h?ssl_ca_certs=/ca.pem", "ssl_ca_certs needs TLS: begin the URL with rediss://"),
    ("redis+cluster://h?ssl_ca_certs=/ca.pem", r"rediss\+cluster://"),
    ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "file that is not there: /nowhere/ca.pem"),
    ("rediss://h?ssl_cert_reqs=maybe", "required, optional or none"),
    ("rediss://h?ssl_check_hostname=maybe", "true or false"),
    ("unix://run/r.sock", "three slashes"),
    ("unix://", "needs its path"),
    ("redis+sentinel://h", "asked for a service"),
    ("redis+sentinel://h/", "asked for a service"),
    ("redis+sentinel://h/main/x", "is a number"),
    ("redis+cluster://h/1", "database 0 only"),
    ("redis://h#prod", "write it as redis://"),
]

WITH_A_LOGIN = (
    "redis://ann:{}@h:6379/0?namespace=prod",
    "rediss://:{}@h",
    "unix://ann:{}@/run/r.sock",
    "redis+sentinel://ann:{}@h/main?sentinel_password={}",
    "redis+cluster://ann:{}@h:1,h:2",
    "redis://h?password={}",
)

# The mark lets a leak be told from letters that also stand elsewhere.
PASSWORDS = st.tuples(st.text(max_size=6), st.text(max_size=6)).map("hunter".join)


@pytest.mark.parametrize(("url", "says"), FORMS)
def test_a_url_says_where_redis_is_and_which_namespace_is_meant(url: str, says: dict[str, Any]) -> None:
    said = parse_redis_url(url)
    assert {name: getattr(said, name) for name in says} == says


@pytest.mark.parametrize(("url", "advice"), ERRORS)
def test_a_wrong_url_is_refused_with_advice(url: str, advice: str) -> None:
    with pytest.raises(RedisUrlError, match=advice):
        parse_redis_url(url)


def test_the_file_of_an_authority_may_be_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "an authority.pem"
    file.touch()
    tls = parse_redis_url(f"rediss://h?ssl_ca_certs={quote(str(file))}").tls
    assert tls is not None
    assert tls["ssl_ca_certs"] == str(file)


@given(st.sampled_from(WITH_A_LOGIN), PASSWORDS)
def test_a_password_may_hold_any_character_and_is_never_shown(form: str, password: str) -> None:
    said = parse_redis_url(form.replace("{}", quote(password, safe="")))
    assert said.password == password
    assert "hunter" not in said.shown + repr(said)
    assert "***" in said.shown


@given(st.sampled_from(WITH_A_LOGIN), PASSWORDS)
def test_a_password_that_was_not_percent_encoded_does_not_get_into_a_text_either(form: str, password: str) -> None:
    try:
        said: RedisUrl | RedisUrlError = parse_redis_url(form.replace("{}", password))
    except RedisUrlError as error:
        said = error
    shown = said.shown if isinstance(said, RedisUrl) else str(said)
    assert "hunter" not in shown + repr(said)


def test_what_is_shown_leads_to_the_same_place() -> None:
    said = parse_redis_url("redis+sentinel://ann:p@a:1,b:2/main/3?namespace=prod&sentinel_password=q")
    assert said.shown == "redis+sentinel://ann:***@a:1,b:2/main/3?namespace=prod&sentinel_password=***"
