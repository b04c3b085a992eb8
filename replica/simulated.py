"""The simulated runner: takes the time a GPU would take, and answers from a book.

Owns the timing model and the made-up answers. Must never keep state that a step's result depends on: the same prompt
gives the same answer whatever the batch, the chunks, the preemptions and the clock, real or virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from radix.chat import ChatTokenizer
from replica.request import Request
from replica.runner import Sampled
from replica.scheduler import Slice, Step

# A step that starts this soon after the last one ended (seconds) counts as following it without a pause.
_FOLLOWS_S = 0.005


@dataclass(frozen=True, slots=True)
class TimingModel:
    """How long a step takes, in seconds. Linear in the work of a step, as a batch on one GPU nearly is.

    The defaults are those of an 8B model in bf16 on a large GPU: reading the weights takes most of `step_s`, reading a
    token's KV `context_token_s` (128 KiB at 4.8 TB/s). A decode step of 1 sequence takes about 12 ms, of 64 with 1k
    tokens each about 20 ms.
    """

    step_s: float = 0.0118
    prefill_rate: float = 8000.0  # tokens a second
    decode_s: float = 1e-4  # for each decoding sequence
    context_token_s: float = 2.7e-8  # for each token that a decoding sequence attends to

    def __post_init__(self) -> None:
        if min(self.step_s, self.decode_s, self.context_token_s) < 0 or self.prefill_rate <= 0:
            raise ValueError("the times of a timing model must not be negative, and its prefill rate must be positive")

    def duration(self, step: Step) -> float:
        """Seconds that the step takes."""
        decodes = [part for part in step.slices if part.is_decode]
        prefill = step.tokens - len(decodes)
        context = sum(part.start + 1 for part in decodes)
        work = prefill / self.prefill_rate + len(decodes) * self.decode_s + context * self.context_token_s
        return self.step_s + work


@dataclass(frozen=True, slots=True)
class Book:
    """Running text that answers are read from, as tokens, and where its paragraphs begin.

    Reading on in real text makes answers tokenize to the same tokens when they come back as part of the next prompt.
    """

    tokens: tuple[int, ...]
    openings: tuple[int, ...]

    @classmethod
    def of(cls, text: str, tokenizer: ChatTokenizer) -> Book:
        """`text`, whose paragraphs are separated by blank lines. Raises ValueError when it has none."""
        tokens: list[int] = []
        openings = []
        for paragraph in filter(None, (part.strip() for part in text.split("\n\n"))):
            openings.append(len(tokens))
            tokens += tokenizer.encode(paragraph + "\n\n", add_special_tokens=False)
        if not tokens:
            raise ValueError("a book needs at least one paragraph")
        return cls(tuple(tokens), tuple(openings))


class SimulatedRunner:
    """Runs steps in simulated time, `speedup` times as fast as the timing model says.

    It makes no use of the time between two steps, so there is no lookahead, and it has no log probabilities.
    While it runs, `slowness` can be changed: a step takes so many times as long.
    Without a length from the client, an answer ends after `shortest` to `longest` tokens with the token `eos`, if there
    is one. The simulator uses `duration` and `sample` without `run`.
    """

    def __init__(
        self,
        book: Book,
        timing: TimingModel | None = None,
        *,
        eos: int | None = None,
        speedup: float = 1.0,
        shortest: int = 32,
        longest: int = 256,
    ) -> None:
        if speedup <= 0:
            raise ValueError("speedup must be positive")
        if not 1 <= shortest <= longest:
            raise ValueError("answers need a length of at least one token")
        self._book = book
        self._timing = timing or TimingModel()
        self._eos = eos
        self._speedup = speedup
        self._shortest = shortest
        self._longest = longest
        self._due = 0.0
        self.slowness = 1.0

    @property
    def lookahead(self) -> int:
        return 0

    def duration(self, step: Step) -> float:
        """Simulated seconds that the step takes."""
        return self._timing.duration(step)

    def sample(self, step: Step) -> list[int]:
        """The next token of each slice that samples."""
        return [self._next_token(part) for part in step.slices if part.samples]

    async def run(self, step: Step) -> Sampled:
        loop = asyncio.get_running_loop()
        now = loop.time()
        # The engine's own work between two steps, and a late wake-up, are part of the time a step takes.
        begin = self._due if now - self._due < _FOLLOWS_S else now
        self._due = begin + self.duration(step) * self.slowness / self._speedup
        await asyncio.sleep(max(0.0, self._due - now))
        return Sampled(self.sample(step))

    def _next_token(self, part: Slice) -> int:
        request = part.request
        position = part.start + part.count - request.prompt_tokens
        if self._eos is not None and position + 1 >= self._length(request):
            return self._eos
        opening = self._book.openings[request.digest % len(self._book.openings)]
        return self._book.tokens[(opening + position) % len(self._book.tokens)]

    def _length(self, request: Request) -> float:
        """Output tokens of an answer, its end token included."""
        if not request.limits.open_ended or request.limits.ignore_eos:
            return float("inf")
        # Hashed once more, so that length and opening are independent.
        drawn = xxh3_64_intdigest(request.digest.to_bytes(8, "little"))
        return self._shortest + drawn % (self._longest - self._shortest + 1)


def first_eos(eos_ids: Collection[int]) -> int | None:
    """The token that ends simulated answers, of those that end answers of the model."""
    return min(eos_ids, default=None)
