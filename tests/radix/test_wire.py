"""The bytes that replicas of different versions exchange do not change unnoticed, and garbage is refused as garbage."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radix.blocks import block_keys, hash_chunks, namespace_seed, pack_tokens
from radix.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    Snapshot,
    decode_batch,
    decode_snapshot,
    encode,
    pack_keys,
    unpack_keys,
)

BATCH = EventBatch(
    "r0",
    3,
    7,
    (
        BlockStored(None, pack_keys([1, 2**64 - 1])),
        BlockStored(0x1122334455667788, pack_keys([0x0102030405060708])),
        BlockRemoved(pack_keys([2])),
        AllBlocksCleared(),
    ),
)
BATCH_HEX = (
    "94a27230030794"
    "93a673746f726564c0c4100100000000000000ffffffffffffffff"
    "93a673746f726564cf1122334455667788c4080807060504030201"
    "92a772656d6f766564c4080200000000000000"
    "91a7636c6561726564"
)
SNAPSHOT = Snapshot("r0", 3, 8, (BlockStored(None, pack_keys([1])), BlockStored(1, pack_keys([5]))))
SNAPSHOT_HEX = "94a2723003089293a673746f726564c0c408010000000000000093a673746f72656401c4080500000000000000"

KEY_LISTS = st.lists(st.integers(0, 2**64 - 1), max_size=5)


def test_golden_batch() -> None:
    assert encode(BATCH).hex() == BATCH_HEX
    assert decode_batch(bytes.fromhex(BATCH_HEX)) == BATCH


def test_golden_snapshot() -> None:
    assert encode(SNAPSHOT).hex() == SNAPSHOT_HEX
    assert decode_snapshot(bytes.fromhex(SNAPSHOT_HEX)) == SNAPSHOT


@given(KEY_LISTS)
def test_keys_survive_packing(keys: list[int]) -> None:
    assert unpack_keys(pack_keys(keys)) == keys
    assert BlockStored(None, pack_keys(keys)).keys == BlockRemoved(pack_keys(keys)).keys == keys


@given(st.binary(max_size=60))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    for decode in (decode_batch, decode_snapshot):
        with pytest.raises(msgspec.DecodeError):
            decode(b"\xc1" + data)
        try:
            decode(data)
        except msgspec.DecodeError:
            pass


@given(st.integers(0, len(BATCH_HEX) // 2 - 1), st.integers(0, 255), st.sampled_from([BATCH_HEX, SNAPSHOT_HEX]))
def test_a_damaged_message_is_refused_or_another_message(at: int, byte: int, golden: str) -> None:
    data = bytearray.fromhex(golden)
    data[at % len(data)] = byte
    for decode in (decode_batch, decode_snapshot):
        for damaged in (bytes(data), bytes(data[:at])):
            try:
                decode(damaged)
            except msgspec.DecodeError:
                pass


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x94\xa1\xff\x00\x00\x90", id="no utf-8"),
        pytest.param(b"\x95\xa1r\x00\x00\x90" + b"\x91" * 200_000 + b"\xc0", id="deep nesting"),
    ],
)
def test_bad_text_and_deep_nesting_are_refused_as_garbage(data: bytes) -> None:
    for decode in (decode_batch, decode_snapshot):
        with pytest.raises(msgspec.DecodeError):
            decode(data)


def test_half_a_key_is_refused() -> None:
    for event in (BlockStored(None, bytes(9)), BlockRemoved(bytes(7))):
        with pytest.raises(msgspec.DecodeError, match="8 bytes each"):
            decode_batch(encode(EventBatch("r", 0, 0, (event,))))
    with pytest.raises(msgspec.DecodeError, match="8 bytes each"):
        decode_snapshot(encode(Snapshot("r", 0, 0, (BlockStored(None, bytes(3)),))))


def test_golden_block_keys() -> None:
    seed = namespace_seed("llama")
    assert seed == 0xE2E1653FB3201A66
    assert block_keys(range(8), 4, seed) == [0xF624D72BA567C45B, 0xBBC0049B42BBE6D6]
    salted = namespace_seed("llama", "lora-a", "salt")
    assert block_keys([2**32 - 1, 0], 1, salted) == [0x4348E95F68619740, 0xDA5D9826E25AE9B8]


def test_a_key_names_its_whole_prefix() -> None:
    seed = namespace_seed("m")
    assert block_keys([1, 2, 3, 4], 2, seed)[1] != block_keys([9, 2, 3, 4], 2, seed)[1]
    assert block_keys([1, 2, 3, 4], 2, seed)[:1] == block_keys([1, 2, 9, 9], 2, seed)[:1]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 9), st.integers(0, 40))
def test_a_chain_can_be_taken_up_anywhere(tokens: list[int], block_size: int, cut: int) -> None:
    """Only full blocks have keys, and hashing goes on from any of them."""
    seed = namespace_seed("m")
    keys = block_keys(tokens, block_size, seed)
    assert len(keys) == len(tokens) // block_size
    cut = min(cut, len(keys))
    rest = pack_tokens(tokens)[cut * block_size * 4 :]
    assert hash_chunks(rest, block_size * 4, keys[cut - 1] if cut else seed) == keys[cut:]


def test_namespaces_share_no_keys() -> None:
    seeds = [
        namespace_seed("m"),
        namespace_seed("m", "a"),
        namespace_seed("m", "", "a"),
        namespace_seed("ma"),
        namespace_seed("", "ma"),
        namespace_seed("m", "a", "s"),
        namespace_seed("m", "as"),
    ]
    keys = [key for seed in seeds for key in block_keys(range(6), 2, seed)]
    assert len(set(seeds)) == len(seeds)
    assert len(set(keys)) == len(keys) == 3 * len(seeds)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_outside_32_bits_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        block_keys([token], 1, 0)
