"""The engine as a whole: a Llama-3.1-8B's shape with random weights, through the real scheduler and runner.

Owns the cases: whole decode steps beside the bytes they must read, prefill beside the matrix peak, many sequences of
random lengths, and what graphs, overlap and the prefix cache each are worth. Must never measure HTTP or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from loadgen.gpu.attention import tokens
from loadgen.gpu.drive import Drive, Enough, Pace, prompts
from loadgen.gpu.report import Row, row
from loadgen.gpu.rooflines import LLAMA_8B, TINY, ModelShape
from loadgen.gpu.sections import Case, Setting
from loadgen.gpu.stand import BLOCK_SIZE, Size, Stand, Variant

K = 1024
EVERYTHING = Variant()


@dataclass(frozen=True, slots=True)
class Decoding:
    """`batch` requests with prompts of `context` tokens, until `steps` steps have decoded all of them together."""

    batch: int
    context: int
    steps: int = 48

    @property
    def name(self) -> str:
        return f"decode step, bs {self.batch}, ctx {tokens(self.context)}"

    def output(self, chunk: int) -> int:
        """Tokens a request must ask for, so that the first still decodes when the others have been prefilled and for
        the steps after that.
        """
        return -(-self.batch * self.context // (chunk - self.batch)) + self.steps + 8

    def blocks(self, chunk: int) -> int:
        return self.batch * (-(-(self.context + self.output(chunk)) // BLOCK_SIZE) + 1)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is. `judged` are the decode steps that a goal speaks of; `long` is compared with the first
    of them, and what is switched off is tried on `ablated`. `lengths`: of a sequence's prompt and output, from and to.
    """

    shape: ModelShape
    judged: tuple[Decoding, ...]
    long: Decoding
    wide: Decoding
    ablated: Decoding
    chunk: int
    prefills: int
    sequences: int
    lengths: tuple[int, int]
    shared: int
    max_running: int
    max_model_len: int

    def size(self) -> Size:
        """Room for the largest case."""
        decodings = (*self.judged, self.long, self.wide, self.ablated)
        most = (
            max(case.blocks(self.chunk) for case in decodings),
            self.prefills * (self.chunk // BLOCK_SIZE + 2),
            min(self.sequences, self.max_running) * (2 * self.lengths[1] // BLOCK_SIZE + 2),
        )
        return Size(self.max_running, self.chunk, self.max_model_len, max(most))


FULL = Scale(
    shape=LLAMA_8B,
    judged=(Decoding(1, K), Decoding(32, K), Decoding(32, 2 * K), Decoding(128, K), Decoding(128, 2 * K)),
    long=Decoding(1, 32 * K),
    wide=Decoding(64, 8 * K),
    ablated=Decoding(32, K),
    chunk=8 * K,
    prefills=6,
    sequences=256,
    lengths=(100, 1024),
    shared=2 * K,
    max_running=256,
    max_model_len=33 * K,
)
SMALL = Scale(
    shape=TINY,
    judged=(Decoding(1, 16, 3), Decoding(3, 16, 3)),
    long=Decoding(1, 64, 3),
    wide=Decoding(2, 32, 3),
    ablated=Decoding(3, 16, 3),
    chunk=32,
    prefills=2,
    sequences=12,
    lengths=(2, 6),
    shared=32,
    max_running=8,
    max_model_len=128,
)


class EngineBench:
    """Remembers what later rows are compared with."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.scale = SMALL if setting.smoke else FULL
        self.stand = Stand(setting, self.scale.shape, self.scale.size())
        self._random = Random(1)
        self._paces: dict[Decoding, Pace] = {}
        self._drives: dict[str, Drive] = {}

    def decode(self, case: Decoding, *, goal: str = "", variant: Variant = EVERYTHING) -> list[Row]:
        """A whole decode step beside its roofline; `goal` judges the ratio."""
        pace = self._pace(case, variant)
        rate = case.batch / pace.seconds
        read = self.scale.shape.decode_step_bytes(round(pace.context), 1 if variant.fp8 else 2)
        bandwidth = self.setting.ceilings.bandwidth
        ceiling = None if bandwidth is None else case.batch * bandwidth / read
        if variant == EVERYTHING:
            self._paces[case] = pace
        return [
            row(
                case.name + (", fp8 KV" if variant.fp8 else ""),
                rate,
                "tok/s",
                seconds=pace.seconds,
                ceiling=ceiling,
                goals={goal: rate / ceiling} if goal and ceiling else {},
                facts={"steps": pace.steps, "context_tokens": pace.context, "read_bytes": read},
            )
        ]

    def replay(self, case: Decoding) -> list[Row]:
        """What a decode step takes beyond the device's own work: scheduling, copies, delivery."""
        wall = self._remembered(case).seconds
        replay = self.stand.replay_seconds(case.batch)
        return [
            row(
                f"wall / graph replay, bs {case.batch}, ctx {tokens(case.context)}",
                wall / replay,
                "×",
                seconds=replay,
                goals={"wall": wall / replay},
                facts={"wall_s": wall, "replay_s": replay},
            )
        ]

    def long(self) -> list[Row]:
        """What a long context costs one sequence."""
        long, short = self.scale.long, self.scale.judged[0]
        rows = self.decode(long)
        kept = self._remembered(short).seconds / self._remembered(long).seconds
        name = f"bs 1: tok/s at ctx {tokens(long.context)} / at {tokens(short.context)}"
        return [*rows, row(name, kept, "×", goals={"long": kept})]

    def prefill(self) -> list[Row]:
        """Steps of one full chunk each, every one a prompt of its own."""
        scale = self.scale
        asked = prompts(scale.prefills, (scale.chunk,), scale.shape.vocabulary, self._random)
        seconds = self.stand.drive(asked, [1] * len(asked), variant=EVERYTHING).prefilling(scale.chunk)
        flops = scale.shape.prefill_flops(scale.chunk, scale.chunk, 1)
        return [
            row(
                f"prefill, chunks of {tokens(scale.chunk)}",
                flops / seconds,
                "FLOP/s",
                seconds=seconds,
                ceiling=self.setting.ceilings.gemm,
                facts={"tokens": scale.chunk, "tokens_a_second": scale.chunk / seconds, "flops": flops},
                note=f"{scale.chunk / seconds:,.0f} tok/s",
            )
        ]

    def sequences(self, label: str = "", variant: Variant = EVERYTHING) -> list[Row]:
        """Sequences of random lengths, submitted at once. With a label, beside the first run."""
        scale = self.scale
        random = Random(2)
        lengths, outputs = ([random.randint(*scale.lengths) for _ in range(scale.sequences)] for _ in range(2))
        asked = prompts(scale.sequences, lengths, scale.shape.vocabulary, random)
        done = self.stand.drive(asked, outputs, variant=variant)
        name = f"{scale.sequences} sequences, {scale.lengths[0]}–{scale.lengths[1]} tokens in and out"
        return [self._throughput(name, label, done)]

    def ablate(self, label: str, variant: Variant) -> list[Row]:
        """The same decode step without something, beside the step with everything."""
        case = self.scale.ablated
        pace = self._pace(case, variant)
        with_all = case.batch / self._remembered(case).seconds
        rate = case.batch / pace.seconds
        return [row(f"{case.name}: {label}", rate, "tok/s", seconds=pace.seconds, beside={"with it": with_all})]

    def shared_prefix(self, label: str, *, sharing: bool) -> list[Row]:
        """A quarter of the sequences, all with one long beginning, submitted at once."""
        scale = self.scale
        random = Random(3)
        beginning = prompts(1, (scale.shared,), scale.shape.vocabulary, random)[0]
        count = scale.sequences // 4
        asked = [beginning + tail for tail in prompts(count, scale.lengths, scale.shape.vocabulary, random)]
        done = self.stand.drive(asked, [scale.lengths[0]] * count, variant=EVERYTHING, sharing=sharing)
        return [self._throughput(f"{count} sequences behind a prefix of {tokens(scale.shared)}", label, done)]

    def _throughput(self, name: str, label: str, done: Drive) -> Row:
        """The first of a name is what the later ones stand beside."""
        rate = done.output_tokens / done.seconds
        first = self._drives.setdefault(name, done)
        beside: dict[str, float] = {} if first is done else {"with it": first.output_tokens / first.seconds}
        both = (done.prompt_tokens + done.output_tokens) / done.seconds
        notes: Sequence[str] = (
            f"output tokens; with prompts {both:,.0f} tok/s",
            f"{done.cached_tokens / done.prompt_tokens:.0%} of prompt tokens cached" if done.cached_tokens else "",
            f"{done.preemptions} preemptions" if done.preemptions else "",
        )
        facts = {
            "prompt_tokens": done.prompt_tokens,
            "output_tokens": done.output_tokens,
            "cached_tokens": done.cached_tokens,
            "preemptions": done.preemptions,
            "steps": len(done.steps),
        }
        return row(
            f"{name}: {label}" if label else name,
            rate,
            "tok/s",
            seconds=done.seconds,
            beside=beside,
            facts=facts,
            note="; ".join(filter(None, notes)),
        )

    def _pace(self, case: Decoding, variant: Variant) -> Pace:
        chunk = self.scale.chunk
        done = self.stand.drive(
            prompts(case.batch, (case.context,), self.scale.shape.vocabulary, self._random),
            [case.output(chunk)] * case.batch,
            variant=variant,
            enough=Enough(case.batch, case.steps),
            needed=case.blocks(chunk),
        )
        return done.decoding(case.batch)

    def _remembered(self, case: Decoding) -> Pace:
        if case not in self._paces:
            raise ValueError(f"it is compared with {case.name}, which was not measured")
        return self._paces[case]


def cases(setting: Setting) -> Iterator[Case]:
    bench = EngineBench(setting)
    scale, captured = bench.scale, setting.device == "cuda"
    try:
        for decoding in scale.judged:
            yield Case(decoding.name, partial(bench.decode, decoding, goal="step"))
            yield Case(f"device alone, {decoding.name}", partial(bench.replay, decoding))
        yield Case(scale.wide.name, partial(bench.decode, scale.wide))
        yield Case(scale.long.name, bench.long)
        yield Case("prefill", bench.prefill)
        yield Case("sequences", bench.sequences)
        yield Case("prefix cache on", partial(bench.shared_prefix, "", sharing=True))
        yield Case("prefix cache off", partial(bench.shared_prefix, "prefix cache off", sharing=False))
        switched_off = {"overlap off": Variant(overlap=False), "graphs off": Variant(graphs=False)}
        for label, variant in switched_off.items():
            if captured or variant.graphs:
                yield Case(f"decode step, {label}", partial(bench.ablate, label, variant))
                yield Case(f"sequences, {label}", partial(bench.sequences, label, variant))
        yield Case(f"{scale.wide.name}, fp8 KV", partial(bench.decode, scale.wide, variant=Variant(fp8=True)))
    finally:
        bench.stand.close()
