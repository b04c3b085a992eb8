"""An answer as it comes in: cut anywhere, whole or not."""

from __future__ import annotations

from loadgen.answer import Answer, EventReader


def test_events_are_read_however_the_bytes_are_cut() -> None:
    stream = b"data: a\r\n\r\n: a comment\n\ndata:b\n\nevent: x\ndata: [DONE]\n\n"
    for size in range(1, len(stream) + 1):
        reader = EventReader()
        seen = [data for at in range(0, len(stream), size) for data in reader.feed(stream[at : at + size])]
        assert seen == [b"a", b"b", b"[DONE]"]


def test_text_comes_of_chats_and_completions_and_only_text_is_a_token() -> None:
    answer = Answer()
    answer.take(b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', 1.0)
    answer.take(b'{"choices": [{"delta": {"content": "one "}}]}', 2.0)
    answer.take(b'{"choices": [{"text": "two"}]}', 3.0)
    assert (answer.text, answer.token_times) == ("one two", [2.0, 3.0])


def test_an_error_event_fails_the_answer_for_good() -> None:
    answer = Answer()
    answer.take(b'{"choices": [{"text": "half"}]}', 1.0)
    answer.take(b'{"error": {"message": "The replica died.", "code": 502}}', 2.0)
    answer.take(b"[DONE]", 3.0)
    answer.end()
    assert answer.error == "the stream ended with an error event: The replica died."
    assert answer.token_times == [1.0]


def test_the_first_failure_is_the_one_that_is_kept() -> None:
    answer = Answer()
    answer.take(b'{"error": "first"}', 1.0)
    answer.take(b"{", 2.0)
    assert answer.error == "the stream ended with an error event: first"
