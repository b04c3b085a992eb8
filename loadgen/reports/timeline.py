"""A run by windows of time.

Owns which window a request counts in. Must never make more windows than a page can show: it widens them instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadgen.records import Record
from loadgen.reports.schema import Timeline, Window
from loadgen.reports.statistics import percentile, ratio

MAX_WINDOWS = 400
_MOST_CHOSEN, _LEAST_CHOSEN = 80, 10
_REQUESTS_A_WINDOW = 20
_STEPS = (1, 2, 5, 10)


def timeline(records: Sequence[Record], names: Sequence[str], duration_s: float, window_s: float | None) -> Timeline:
    """`names` are the replicas to list, those without a request too. `window_s` None: a round width is chosen.

    Raises ValueError where `window_s` is not positive.
    """
    if window_s is not None and window_s <= 0:
        raise ValueError(f"a window of {window_s:g} s: it must be longer than 0")
    width = _round_width(duration_s, len(records)) if window_s is None else max(window_s, duration_s / MAX_WINDOWS)
    count = min(max(math.ceil(duration_s / width), 1) if records else 0, MAX_WINDOWS)  # rounding may make it one more
    by_due: list[list[Record]] = [[] for _ in range(count)]
    errors = [0] * count
    computed = {name: [0] * count for name in names}
    for record in records:
        by_due[_index(record.due, width, count)].append(record)
        if record.error:
            errors[_index(record.end, width, count)] += 1
        elif record.replica in computed:
            first = record.token_times[0] if record.token_times else record.end
            computed[record.replica][_index(first, width, count)] += record.prompt_tokens - record.cached_tokens
    busy = _in_flight(records, width, count)
    known = any(record.reports_cached for record in records if not record.error)
    windows = tuple(_window(index * width, by_due[index], busy[index], errors[index], known) for index in range(count))
    return Timeline(width, windows, {name: tuple(tokens) for name, tokens in computed.items()})


def _round_width(duration_s: float, requests: int) -> float:
    """The smallest round one with requests enough in a window for its percentiles to say something."""
    windows = min(max(requests // _REQUESTS_A_WINDOW, _LEAST_CHOSEN), _MOST_CHOSEN)
    least = max(duration_s / windows, 0.01)
    scale = 10.0 ** math.floor(math.log10(least))
    return next(step * scale for step in _STEPS if step * scale >= least * (1 - 1e-9))


def _index(at_s: float, width: float, count: int) -> int:
    """The end of the last window belongs to it."""
    return min(max(int(at_s / width), 0), count - 1)


def _window(start_s: float, due: Sequence[Record], in_flight: float, errors: int, known: bool) -> Window:
    """`known`: whether cached tokens are."""
    good = [record for record in due if not record.error]
    ttft = sorted(record.ttft for record in good if record.ttft is not None)
    prompt = sum(record.prompt_tokens for record in good)
    return Window(
        start_s=start_s,
        requests=len(due),
        in_flight=in_flight,
        errors=errors,
        ttft_p50_s=percentile(ttft, 50),
        ttft_p99_s=percentile(ttft, 99),
        hit_rate=ratio(sum(record.cached_tokens for record in good), prompt) if known else None,
    )


def _in_flight(records: Sequence[Record], width: float, count: int) -> list[float]:
    """Mean number under way, a window. Whole windows are counted by differences: a long request costs no more."""
    partial, change = [0.0] * count, [0] * (count + 1)
    for record in records:
        first, last = _index(record.sent, width, count), _index(record.end, width, count)
        if first == last:
            partial[first] += max(record.end - record.sent, 0.0)
            continue
        partial[first] += (first + 1) * width - record.sent
        partial[last] += record.end - last * width
        change[first + 1] += 1
        change[last] -= 1
    whole, means = 0, []
    for index in range(count):
        whole += change[index]
        means.append(whole + partial[index] / width)
    return means
