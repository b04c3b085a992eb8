"""From logits to tokens, for a whole batch at once.

Owns how the parameters of `sampling_params.py` are applied. A row's token depends on its own logits, parameters, seed
and position alone, never on its neighbours. Nothing here waits for the device: whatever decides about shapes is in the
`Plan`, which the host knows beforehand. Must never keep state.

What ties with the last token that top_k or top_p keeps is kept as well: else the order in which a sort happens to leave
equal logits (frequent in bf16) would decide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.ops import Ops
from replica.draws import Draws, Plan

# Temperatures below this are as good as greedy, and keep the scaled logits finite.
COLDEST = 1e-6


class Likely(NamedTuple):
    """Log probabilities of the R rows that want them: of the chosen token [R], and the likeliest [R, n] with their
    token ids, best first.
    """

    chosen: Tensor
    logprobs: Tensor
    tokens: Tensor


def sample(
    logits: Tensor, draws: Draws[Tensor], plan: Plan, ops: Ops, previous: Tensor
) -> tuple[Tensor, Likely | None]:
    """One token a row of logits (fp32 [S, V]): int64 [S]. `previous`: the tokens that the step before sampled."""
    scores = _penalise(logits, draws, plan, previous) if plan.penalised else logits
    if not plan.drawn:
        tokens = scores.argmax(dim=-1)
    else:
        tokens = ops.sample(_narrow(scores, draws, plan, ops), draws.seeds, draws.positions)
        if plan.greedy:
            tokens = torch.where(draws.temperature == 0, scores.argmax(dim=-1), tokens)
    likely = _likely(logits, tokens, draws.wanted, max(plan.likeliest)) if plan.likeliest else None
    return tokens, likely


def _penalise(logits: Tensor, draws: Draws[Tensor], plan: Plan, previous: Tensor) -> Tensor:
    """Repetition divides or multiplies the logits of what stands in prompt or output, as in vLLM and CTRL
    (arXiv:1909.05858); frequency and presence subtract for what stands in the output, as in OpenAI's API.
    """
    rows = logits[draws.penalised]
    said = _said(draws, rows.shape[-1], previous)
    size, output = rows.numel(), said[plan.prompts :]
    present = torch.zeros(size, dtype=torch.bool, device=rows.device).index_fill_(0, said, True).view_as(rows)
    counts = torch.zeros(size, dtype=torch.int32, device=rows.device)
    counts = counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32)).view_as(rows)
    repetition = draws.repetition[:, None]
    rows = torch.where(present, torch.where(rows > 0, rows / repetition, rows * repetition), rows)
    rows -= draws.frequency[:, None] * counts + draws.presence[:, None] * (counts > 0)
    return logits.index_copy(0, draws.penalised, rows)


def _said(draws: Draws[Tensor], vocabulary: int, previous: Tensor) -> Tensor:
    """What the penalised rows have said, as places in their logits one after the other."""
    speakers = torch.arange(len(draws.penalised), device=previous.device)
    # With the size named, torch need not ask the device for it.
    owners = speakers.repeat(2).repeat_interleave(draws.lengths, output_size=len(draws.history))
    pending = draws.pending * vocabulary + previous[draws.sources]
    return torch.cat((owners * vocabulary + draws.history, pending))


def _narrow(scores: Tensor, draws: Draws[Tensor], plan: Plan, ops: Ops) -> Tensor:
    """The logits that a draw sees: scaled by the temperature, -inf for what must not be drawn."""
    scaled = scores / draws.temperature.clamp_min(COLDEST)[:, None]
    if plan.widest:
        _limit(scaled, draws, plan.widest)
    if plan.nucleus:
        least = ops.nucleus(scaled, draws.nucleus)
        scaled.masked_fill_(scaled < least[:, None], -torch.inf)
    if plan.min_p:
        least = scaled.amax(dim=-1) + draws.log_min_p
        scaled.masked_fill_(scaled < least[:, None], -torch.inf)
    return scaled


def _limit(scaled: Tensor, draws: Draws[Tensor], widest: int) -> None:
    """Leaves in the rows with a top_k what that and their top_p keep. What stands behind the top_k counts nothing for
    top_p, even if it ties with the last.
    """
    rows = scaled[draws.limited]
    best = rows.topk(min(widest, rows.shape[-1])).values  # far fewer than the vocabulary as a rule
    rank = torch.arange(best.shape[-1], device=best.device)
    beyond = rank >= draws.top_k[draws.limited][:, None]
    mass = best.masked_fill(beyond, -torch.inf).softmax(dim=-1)
    before = mass.cumsum(dim=-1) - mass
    kept = ((before < draws.top_p[draws.limited][:, None]) & ~beyond).sum(dim=-1).clamp_min(1)
    least = best.gather(1, kept[:, None] - 1)
    scaled.index_copy_(0, draws.limited, rows.masked_fill_(rows < least, -torch.inf))


def _likely(logits: Tensor, tokens: Tensor, wanted: Tensor, likeliest: int) -> Likely:
    logprobs = logits[wanted].log_softmax(dim=-1)
    chosen = logprobs.gather(1, tokens[wanted][:, None]).squeeze(1)
    best = logprobs.topk(likeliest, dim=-1)
    return Likely(chosen, best.values, best.indices)
