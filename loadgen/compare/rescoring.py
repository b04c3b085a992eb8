"""Recorded decisions under other policies: what each would have chosen, and what that would have cost.

Owns the definition of regret. Must never carry one decision's consequence into the next: every policy finds, at each
decision, the candidates, overlaps and loads that were recorded, which are the consequence of what the recording policy
chose. So this says how good single choices are; `resimulation.py` lets consequences follow.

For a decision i and a candidate c, T_i(c) is the judge's predicted TTFT (judge.py), the same for all policies. Then

    predicted regret   R_i = T_i(chosen by the policy) - min over c of T_i(c)                                       ≥ 0
    expected TTFT      E_i = what happened + T_i(chosen by the policy) - T_i(recorded choice), at least 0
    realised regret        = E_i - min over c of T_i(c)

`E` and the realised regret are over decisions whose TTFT was recorded only. Where the policy chooses as recorded, E is
what really happened; elsewhere it is shifted by the predicted difference, so that whatever else delayed the request
delays it there, too. Realised regret can be negative: then the replica was quicker than was predicted of the best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec

from loadgen.compare.judge import hindsight, ttfts_s
from loadgen.compare.receipts import ReceiptsError, Recorded
from loadgen.compare.surroundings import Surroundings, uncached
from loadgen.reports.statistics import max_over_mean, mean, percentile, ratio
from scoring.decision import Query
from scoring.learned import PRIOR, Learned
from scoring.ledger import ReplicaLoad
from scoring.policies import Policy, make_policy

RECORDED = "recorded"
SAME_S = 1e-6  # regret below this is none: it breaks ties only
# What these policies hash; without it they would only look at the load.
KEYS = {"session": "session", "sticky": "prefix", "prefix_hash": "prefix"}


class Rescored(msgspec.Struct, frozen=True):
    """One policy over all recorded decisions. Times in seconds; None where no receipt says.

    - `agreement`: share of decisions in which it chooses the recorded replica.
    - `predicted_ttft_*`: T of its choices; `regret_*`: R; `regretted`: share of decisions with any.
    - `expected_ttft_*`, `realised_regret_mean_s`: as above, over `judged` decisions.
    - `agreed_ttft_mean_s`: what really happened where it chose as recorded. Measured, but of other requests for every
      policy: those on which it agrees may be the easy ones.
    - `cost_mean`, `cost_regret_mean`: by the costs in the receipts, in the recording policy's own unit: of its choices,
      and by how much they exceed the least.
    - `hit_rate`: overlap of its choices / prompt tokens.
    - `balance_tokens`: uncached tokens sent to the busiest replica / the mean of all; `balance_requests` of decisions.
    """

    decisions: int
    judged: int
    agreement: float | None
    predicted_ttft_mean_s: float | None
    predicted_ttft_p50_s: float | None
    predicted_ttft_p99_s: float | None
    regret_mean_s: float | None
    regret_p99_s: float | None
    regretted: float | None
    expected_ttft_mean_s: float | None
    expected_ttft_p99_s: float | None
    realised_regret_mean_s: float | None
    agreed_ttft_mean_s: float | None
    cost_mean: float | None
    cost_regret_mean: float | None
    hit_rate: float | None
    balance_tokens: float | None
    balance_requests: float | None


class Assumed(msgspec.Struct, frozen=True):
    """What receipts do not say: output tokens of a request, KV cache of one replica (0: unknown), what to expect of a
    replica of which they tell too little, and how ties break.
    """

    output_tokens: int
    capacity_tokens: int = 0
    prior: Learned = PRIOR
    seed: int = 1


class Prediction(msgspec.Struct, frozen=True):
    """How good the judge is: what happened less what was predicted of the recorded choice, over `judged` decisions.

    `bias_s` is the mean, `error_p50_s` the median without its sign. `learned` is what the receipts say of each replica,
    at their end.
    """

    judged: int
    bias_s: float | None
    error_p50_s: float | None
    learned: dict[str, Learned]


class Step(msgspec.Struct, frozen=True):
    """One recorded decision with all that a policy may know of it; `ttfts_s` are the judge's."""

    receipt: Recorded
    query: Query
    loads: tuple[ReplicaLoad, ...]
    ttfts_s: list[float]


def check_keys(policies: Sequence[str], receipts: Sequence[Recorded]) -> None:
    """Raises ReceiptsError for a policy that hashes what no receipt holds."""
    for name in policies:
        key = KEYS.get(name)
        if key is not None and not any(getattr(receipt, key) for receipt in receipts):
            raise ReceiptsError(f"the policy {name} hashes a request's {key}, and these receipts hold none")


def query_of(receipt: Recorded, output_tokens: int, now: float) -> Query:
    """`output_tokens` where the receipt does not say."""
    return Query(
        prompt_tokens=receipt.prompt_tokens,
        output_tokens=receipt.output_tokens or output_tokens,
        answer_s=receipt.answer_s,
        session=receipt.session,
        prefix=receipt.prefix,
        now=now,
    )


def rescore(
    receipts: Sequence[Recorded], policies: Sequence[str], assumed: Assumed
) -> tuple[dict[str, Rescored], Prediction]:
    """`recorded` first, then each of `policies`; and how far to trust it. Receipts in order of time.

    Raises ReceiptsError (see check_keys), and ValueError for an unknown policy.
    """
    check_keys(policies, receipts)
    chosen = {name: _Choices(make_policy(name, Random(f"{assumed.seed} {name}"))) for name in policies}
    recorded = _Choices(None)
    fleet, learned = hindsight(receipts, assumed.prior)
    around = Surroundings(fleet, assumed.capacity_tokens)
    for receipt in receipts:
        loads = around.loads(receipt)
        query = query_of(receipt, assumed.output_tokens, receipt.at)
        step = Step(receipt, query, loads, ttfts_s(receipt, loads))
        for choices in (recorded, *chosen.values()):
            choices.choose(step)
        around.sent(receipt)
    errors = recorded.errors
    prediction = Prediction(len(errors), mean(errors), percentile(list(map(abs, errors)), 50), learned)
    return {RECORDED: recorded.result(), **{name: choices.result() for name, choices in chosen.items()}}, prediction


class _Choices:
    """One policy's choices so far; of the recorded ones without a policy."""

    def __init__(self, policy: Policy | None) -> None:
        self.errors: list[float] = []  # of the judge, on the recorded choices
        self._policy = policy
        self._predicted: list[float] = []
        self._regrets: list[float] = []
        self._expected: list[float] = []
        self._realised: list[float] = []
        self._agreed: list[float] = []
        self._costs: list[float] = []
        self._cost_regrets: list[float] = []
        self._agreements = 0
        self._overlap = 0
        self._prompt = 0
        self._tokens: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()

    def choose(self, step: Step) -> None:
        receipt, ttfts = step.receipt, step.ttfts_s
        before = receipt.position
        at = before
        if self._policy is not None:
            at = self._policy.choose(step.query, step.loads, receipt.overlap_tokens).index
        best = min(ttfts)
        self._predicted.append(ttfts[at])
        self._regrets.append(ttfts[at] - best)
        self._agreements += at == before
        happened = receipt.happened_s
        if happened is not None:
            expected = happened if at == before else max(0.0, happened + ttfts[at] - ttfts[before])
            self._expected.append(expected)
            self._realised.append(expected - best)
            self.errors.append(happened - ttfts[before])
            if at == before:
                self._agreed.append(happened)
        if receipt.costs is not None:
            self._costs.append(receipt.costs[at])
            self._cost_regrets.append(receipt.costs[at] - min(receipt.costs))
        overlap = receipt.overlap_tokens[at]
        self._prompt += receipt.prompt_tokens
        self._overlap += overlap
        # Whoever was a candidate counts in the balance, chosen or not.
        self._tokens.update(dict.fromkeys(receipt.candidates, 0))
        self._tokens[receipt.candidates[at]] += uncached(receipt, overlap)
        self._requests[receipt.candidates[at]] += 1

    def result(self) -> Rescored:
        decisions = len(self._regrets)
        return Rescored(
            decisions=decisions,
            judged=len(self._expected),
            agreement=ratio(self._agreements, decisions),
            predicted_ttft_mean_s=mean(self._predicted),
            predicted_ttft_p50_s=percentile(self._predicted, 50),
            predicted_ttft_p99_s=percentile(self._predicted, 99),
            regret_mean_s=mean(self._regrets),
            regret_p99_s=percentile(self._regrets, 99),
            regretted=ratio(sum(regret > SAME_S for regret in self._regrets), decisions),
            expected_ttft_mean_s=mean(self._expected),
            expected_ttft_p99_s=percentile(self._expected, 99),
            realised_regret_mean_s=mean(self._realised),
            agreed_ttft_mean_s=mean(self._agreed),
            cost_mean=mean(self._costs),
            cost_regret_mean=mean(self._cost_regrets),
            hit_rate=ratio(self._overlap, self._prompt),
            balance_tokens=max_over_mean(self._tokens.values(), len(self._tokens)),
            balance_requests=max_over_mean(self._requests.values(), len(self._tokens)),
        )
