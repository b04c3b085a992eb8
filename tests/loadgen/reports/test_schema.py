"""The JSON document: it comes back as it went, says its version, and tells no secret."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.records import Record
from loadgen.reports.figures import Setting
from loadgen.reports.schema import Happened, from_json, to_json
from tests.loadgen.reports.samples import any_record, record, report

SETTING = Setting(ideals={"infinite": 0.5, "pooled_lru": None}, events=(Happened(1.0, "kill r1", "no such replica"),))


@settings(deadline=None)
@given(st.lists(any_record(), max_size=8))
def test_a_report_comes_back_as_it_went(records: list[Record]) -> None:
    before = report(records, SETTING)
    assert from_json(to_json(before)) == before


def test_the_document_has_the_promised_parts() -> None:
    document = json.loads(to_json(report([record()], SETTING)))
    assert document["schema"] == 1
    assert document["figures"]["ttft_p50_s"] == pytest.approx(0.1)
    assert document["ideals"] == {"infinite": 0.5, "pooled_lru": None}
    assert document["plan"]["parameters"] == {"zipf": 1.1}
    assert document["events"] == [{"at_s": 1.0, "what": "kill r1", "error": "no such replica"}]


def test_neither_headers_nor_passwords_get_into_it() -> None:
    found = report([record()])
    assert found.target.urls == ("http://127.0.0.1:8000",)
    assert b"secret" not in to_json(found)


def test_another_version_is_refused_by_its_number() -> None:
    later = to_json(msgspec.structs.replace(report([record()]), schema=2))
    with pytest.raises(ValueError, match="version 2 of the report"):
        from_json(later)


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": "1"}'])
def test_what_is_no_report_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match="not a report"):
        from_json(document)
