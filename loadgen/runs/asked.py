"""What the plan options said, and what becomes of it: a plan, its prompts, and a fleet that has room for it.

Owns the checks before a run, and messages in the words of the flags. Must never start anything.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from loadgen.fleet import FleetParameters
from loadgen.plans.catalogue import WORKLOADS, make_plan
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Form, History, Prompts
from loadgen.plans.verify import verify_chat, verify_text
from loadgen.plans.vocabulary import Vocabulary, read_vocabulary
from replica import tokenizer as bundled

# What a model's chat template adds to a message, at most, and a simulated replica's longest request by default.
TEMPLATE_TOKENS = 64
REPLICA_MODEL_LEN = 32_768
VERIFIED_REQUESTS = 8

FLAGS_OF = {
    name: f"--set {name}=…" for workload in WORKLOADS.values() for name in workload.parameters.__struct_fields__
}
FLAGS_OF |= {"file": "--trace", "duration_s": "--duration", "until_s": "--until"}
FLAGS_OF |= {name: f"--{name.replace('_', '-')}" for name in ("token_scale", "rate_scale")}
FLAGS_OF |= {name: f"--{name}" for name in ("workload", "arrivals", "sessions", "form", "history", "tokenizer")}


class Asked(msgspec.Struct, frozen=True):
    """What the plan options said."""

    workload: str
    arrivals: str | None
    duration: float | None
    sessions: int | None
    seed: int
    settings: dict[str, str]
    form: Form
    history: History
    tokenizer: Path | None

    @property
    def trace(self) -> Path | None:
        """The file of --trace."""
        return Path(self.settings["file"]) if "file" in self.settings else None

    def plan(self, seed: int | None = None) -> Plan:
        """The plan, or the same with another seed. Raises UsageError for what cannot be planned."""
        try:
            return make_plan(
                self.workload,
                seed=self.seed if seed is None else seed,
                arrivals=self.arrivals,
                duration_s=self.duration,
                sessions=self.sessions,
                settings=self.settings,
            )
        except (ValueError, OSError) as error:
            raise click.UsageError(
                f"cannot plan this (--workload {self.workload}): {with_flags(str(error))}."
            ) from None

    def prompts(self, plan: Plan) -> Prompts:
        """Its bodies; some of them are verified with the tokenizer. Raises UsageError where they are not as planned."""
        try:
            prompts = Prompts(plan, self.form, self.history, self._vocabulary())
            self._verify(plan)
        except ValueError as error:
            raise click.UsageError(with_flags(str(error))) from None
        return prompts

    def _vocabulary(self) -> Vocabulary | None:
        return read_vocabulary(self.tokenizer) if self.tokenizer else None

    def _verify(self, plan: Plan) -> None:
        if self.form == "tokens":
            return
        # Imported here so that `--help` need not wait for it.
        from radix.chat import ChatTokenizer, TokenizerError

        try:
            tokenizer = ChatTokenizer.load(self.tokenizer or bundled.directory())
        except TokenizerError as error:
            raise ValueError(f"tokenizer: {error}") from None
        verify = verify_chat if self.form == "chat" else verify_text
        verify(tokenizer, plan, VERIFIED_REQUESTS, self._vocabulary())


def fitting(fleet: FleetParameters, plan: Plan) -> FleetParameters:
    """The fleet with room for the plan's longest request. Raises BadParameter when it cannot have that."""
    longest = longest_request(plan)
    if longest > fleet.kv_tokens:
        raise click.BadParameter(
            f"the longest request has {longest} tokens, answer and chat template included; give each replica as many, "
            "or shorten what is asked.",
            param_hint="--kv-tokens",
        )
    if fleet.max_model_len and longest > fleet.max_model_len:
        raise click.BadParameter(f"the longest request has {longest} tokens.", param_hint="--max-model-len")
    if fleet.max_model_len or longest <= REPLICA_MODEL_LEN:
        return fleet
    return msgspec.structs.replace(fleet, max_model_len=longest)


def longest_request(plan: Plan) -> int:
    """Tokens of the longest prompt and its answer, and of what a chat template may add to them."""
    longest = 0
    for session in plan.sessions:
        tokens = 0
        for number, turn in enumerate(session.turns):
            asked = sum(piece.tokens for piece in turn.pieces) + TEMPLATE_TOKENS * len(turn.pieces)
            before = tokens if plan.growing else 0
            tokens = before + asked + turn.output_tokens
            longest = max(longest, tokens + TEMPLATE_TOKENS * (number + 1))
    return longest


def with_flags(message: str) -> str:
    """The message about a parameter, with the flag that sets it in place of its name."""
    name, colon, rest = message.partition(": ")
    return f"{FLAGS_OF[name]}: {rest}" if colon and name in FLAGS_OF else message
