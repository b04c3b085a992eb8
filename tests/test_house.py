"""The house stands: imports only point down, and serving never loads what it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "radix": set(),
    "scoring": set(),
    "kernels": set(),
    "router": {"radix", "scoring"},
    "replica": {"radix", "kernels"},
    "loadgen": {"radix", "scoring", "kernels", "router", "replica"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a module names in any import, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_only_point_down(room: str) -> None:
    modules = list((ROOT / room).rglob("*.py"))
    assert modules
    for path in modules:
        forbidden = imported(path) & (MAY_IMPORT.keys() - MAY_IMPORT[room] - {room})
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


@pytest.mark.parametrize(
    ("modules", "never"),
    [
        ("router.app, router.cli, router.main", {"torch", "tokenizers", "redis", "replica", "loadgen", "kernels"}),
        ("replica.cli, replica.service", {"torch", "triton", "redis", "router", "loadgen"}),
        ("loadgen.demo.command", {"torch"}),
        ("replica.models.config", {"torch", "safetensors", "transformers"}),
    ],
)
def test_what_a_command_never_loads(modules: str, never: set[str]) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not never & set(loaded.split())


def test_every_module_says_what_it_owns() -> None:
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_transformers_works_beside_our_kernels() -> None:
    """It probes for a package of that name on the index: ours, found in its stead, must neither break nor serve it."""
    code = """
import kernels, torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_kernels_available
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
logits = LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=None))(torch.tensor([[1, 2]])).logits
print(kernels.__file__, is_kernels_available(), tuple(logits.shape))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split(maxsplit=1) == [str(ROOT / "kernels" / "__init__.py"), "False (1, 2, 8)\n"]
