"""The shape of the code: which way imports point, one optimiser step, nothing unpickled, no device by hand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorica

PACKAGE = Path(lorica.__file__).parent
PROJECT = PACKAGE.parent
SOURCES = {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}


def calls(tree: ast.AST) -> Iterator[str]:
    """Every call as its dotted name: `torch.load`, `optimizer.step`, `print`."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_keep_to_the_contracts() -> None:
    pyproject = PROJECT / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("lorica is installed without its project folder")
    program = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(config_filename=sys.argv[1], "
        "no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(pyproject)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_loop_has_the_only_optimiser_step() -> None:
    steps = [name for name, tree in SOURCES.items() for call in calls(tree) if call.endswith("optimizer.step")]
    assert steps == ["descent.py"]
    backward = [name for name, tree in SOURCES.items() for call in calls(tree) if call.endswith(".backward")]
    assert backward == ["descent.py"]
    made = {name for name, tree in SOURCES.items() if any(item.startswith("torch.optim.") for item in imports(tree))}
    assert made == set()


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_is_unpickled_and_no_device_is_chosen_by_hand(name: str) -> None:
    called = set(calls(SOURCES[name]))
    assert not called & {"torch.load", "torch.save", "torch.hub.load", "eval", "exec", "yaml.load"}
    assert not [call for call in called if call.endswith((".cuda", ".tofile"))]
    modules = {item.split(".")[0] for item in imports(SOURCES[name])}
    assert not modules & {"pickle", "shelve", "joblib", "dill"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_is_seeded_for_the_whole_process_or_printed(name: str) -> None:
    """Seeds are set inside `fork_rng` only; what is said goes through a console or a reporter."""
    called = list(calls(SOURCES[name]))
    assert not {"random", "secrets"} & {item.split(".")[0] for item in imports(SOURCES[name])}
    assert not set(called) & {"print", "np.random.seed", "numpy.random.seed", "random.seed", "set_seed"}
    if "torch.manual_seed" in called:
        assert name == "randomness.py"
        assert "torch.random.fork_rng" in called


def test_importing_lorica_changes_nothing() -> None:
    program = (
        "import os, random, threading, warnings; warnings.simplefilter('error')\n"
        "import numpy, torch, torchvision, rich.style\n"  # torchvision sets a variable, rich draws a random number
        "before = dict(os.environ), random.getstate(), torch.get_rng_state(), torch.get_num_threads(), os.getcwd()\n"
        "legacy = numpy.random.get_state()[1].copy()\n"
        "import lorica; public = [getattr(lorica, name) for name in lorica.__all__]  # each imports its home\n"
        "assert dict(os.environ) == before[0] and random.getstate() == before[1]\n"
        "assert torch.equal(torch.get_rng_state(), before[2]) and torch.get_num_threads() == before[3]\n"
        "assert threading.active_count() == 1\n"
        "assert (numpy.random.get_state()[1] == legacy).all() and os.getcwd() == before[4]\n"
        "import lorica.cli, sys; slow = {'matplotlib', 'sklearn', 'transformers'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_is_described() -> None:
    for name in lorica.__all__:
        assert getattr(lorica, name).__doc__, name
