"""What a replica is told at its start, as data.

Owns the settings and their defaults. Must never load anything: whoever reads them may not need torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from replica import tokenizer as bundled
from replica.reuse import DEFAULT_EVICTION
from replica.scheduler import SchedulerLimits
from replica.simulated import TimingModel

SIMULATED_MODEL_LEN = 32_768
SIMULATED_KV_BLOCKS = 8192


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to be computed: where it lies, and how it runs. "auto" is resolved where it is loaded.

    `device`: auto, cpu, cuda or cuda:N. `dtype`, `kv_dtype`: auto or a dtype's name (`kv_dtype` also fp8).
    `load_format`: safetensors, or dummy for random weights. `memory_share`: of a GPU's memory, all in all.
    """

    directory: Path
    device: str = "auto"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    load_format: str = "safetensors"
    memory_share: float = 0.9
    graphs: bool = True
    overlap: bool = True


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Where vLLM's KV events are published, and where they are replayed ("" for nowhere), as ZMQ endpoints."""

    endpoint: str
    replay: str = ""
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a replica is; a simulated one unless it has a `source`.

    `port` 0 takes a free one; `join` lists the control addresses of routers to report to, `report` the URLs of Redis.
    `tokenizer` None: that of the model. `kv_blocks` and `max_model_len` None: as many as there is memory for, and what
    the model was made for. `eviction` is a name in replica/reuse.py.
    """

    name: str
    model: str = "simulated"
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    join: tuple[str, ...] = ()
    report: tuple[str, ...] = ()
    kv_events: KvEvents | None = None
    tokenizer: Path | None = None
    block_size: int = 16
    kv_blocks: int | None = None
    max_model_len: int | None = None
    prefix_cache: bool = True
    eviction: str = DEFAULT_EVICTION
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    source: ModelSource | None = None
    timing: TimingModel = field(default_factory=TimingModel)
    speedup: float = 1.0
    drain_s: float = 2.0

    @property
    def tokenizer_directory(self) -> Path:
        return self.tokenizer or (self.source.directory if self.source else bundled.directory())
