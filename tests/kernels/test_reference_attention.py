"""The oracle itself, against torch's own attention on contiguous keys and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import reference_attention
from kernels.ops import Attending
from kernels.reference_attention import paged_decode, paged_prefill
from tests.kernels.paged_kv import Case, case

CONTEXTS, QUERIES = [1, 40, 33, 0, 100, 17], [1, 7, 33, 2, 1, 16]


def torchs_own(given: Case, row: int, attending: Attending) -> Tensor:
    """Attention of one sequence, by torch, in fp64; a softcap is not known to it."""
    start, end = given.paged.query_starts[row : row + 2].tolist()
    query, key, value = (
        x.double().transpose(0, 1) for x in (given.query[start:end], given.keys[row], given.values[row])
    )
    seen = torch.arange(key.shape[1])[None, :]
    own = torch.arange(key.shape[1] - (end - start), key.shape[1])[:, None]
    mask = seen <= own
    if attending.window is not None:
        mask &= seen > own - attending.window
    if attending.softcap is not None:
        scores = query @ key.repeat_interleave(query.shape[0] // key.shape[0], 0).mT * attending.scale
        scores = (attending.softcap * torch.tanh(scores / attending.softcap)).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ value.repeat_interleave(query.shape[0] // key.shape[0], 0)).transpose(0, 1)
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=attending.scale, enable_gqa=True
    )  # fmt: skip
    return attended.transpose(0, 1)


def assert_close(given: Case, attended: Tensor, attending: Attending) -> None:
    assert attended.shape == given.query.shape
    assert attended.dtype == given.query.dtype
    starts = given.paged.query_starts.tolist()
    for row, context in enumerate(given.paged.context_lens.tolist()):
        ours = attended[starts[row] : starts[row + 1]]
        wanted = torchs_own(given, row, attending).to(ours.dtype) if context else torch.zeros_like(ours)
        torch.testing.assert_close(ours, wanted, atol=2e-6, rtol=2e-5)


ATTENDING = [
    Attending(0.2),
    Attending(0.2, window=1),
    Attending(0.2, window=21),
    Attending(0.2, window=500),
    Attending(0.2, softcap=3.0),
    Attending(0.2, window=16, softcap=30.0),
]


@pytest.mark.parametrize("attending", ATTENDING, ids=str)
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (2, 5), (3, 2)])
def test_chunks_behind_a_prefix_attend_as_torch_does(kv_heads: int, group: int, attending: Attending) -> None:
    given = case(CONTEXTS, QUERIES, device="cpu", kv_heads=kv_heads, group=group, dim=16)
    assert_close(given, paged_prefill(given.query, given.cache, given.paged, attending), attending)


@pytest.mark.parametrize("attending", ATTENDING, ids=str)
@pytest.mark.parametrize("block_size", [16, 64])
def test_decoded_tokens_attend_as_torch_does(block_size: int, attending: Attending) -> None:
    given = case([200, 1, 0, 64, 65, 100, 7], kv_heads=2, group=3, dim=16, block_size=block_size, device="cpu")
    assert_close(given, paged_decode(given.query, given.cache, given.paged, attending), attending)


def test_little_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(CONTEXTS, QUERIES, device="cpu", kv_heads=2)
    alone = case([200, 190, 64, 63, 62, 5], device="cpu")
    whole = paged_prefill(given.query, given.cache, given.paged, Attending(0.2, window=30))
    decoded = paged_decode(alone.query, alone.cache, alone.paged, Attending(0.2))
    monkeypatch.setattr(reference_attention, "GATHERED", 1 << 13)
    monkeypatch.setattr(reference_attention, "SCORES", 1000)
    torch.testing.assert_close(paged_prefill(given.query, given.cache, given.paged, Attending(0.2, window=30)), whole)
    torch.testing.assert_close(paged_decode(alone.query, alone.cache, alone.paged, Attending(0.2)), decoded)


def test_an_fp8_cache_is_read_with_its_scales() -> None:
    given = case([50, 3], [9, 3], cached=torch.float8_e4m3fn, scales=(0.02, 0.03), device="cpu")
    assert given.cache.key.dtype == torch.float8_e4m3fn
    assert_close(given, paged_prefill(given.query, given.cache, given.paged, Attending(0.2)), Attending(0.2))
    alone = case([50, 3], cached=torch.float8_e4m3fn, scales=(0.02, 0.03), device="cpu")
    assert_close(alone, paged_decode(alone.query, alone.cache, alone.paged, Attending(0.2)), Attending(0.2))
