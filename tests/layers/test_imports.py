"""The layers of the house, read from the syntax trees of plugins/finepref: imports go downwards only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "plugins"
FILES = sorted(path for path in (ROOT / "finepref").rglob("*.py"))
HOSTS = {"llamafactory", "openrlhf"}
HEAVY = {"torch", "transformers"}
# What a package may import of finepref, besides itself and the two top-level modules that import nothing of it.
MAY_IMPORT = {
    "losses": set(),
    "formats": set(),
    "methods": {"formats", "losses"},
    "synth": {"methods", "formats", "losses"},
    "hosts": {"methods", "synth", "formats", "losses"},
    "evals": {"hosts", "methods", "synth", "formats", "losses"},
    "pipelines": {"synth", "formats"},
    "commands": {"evals", "pipelines", "hosts", "methods", "synth", "formats", "losses"},
    "cli": {"commands", "evals", "pipelines", "hosts", "methods", "synth", "formats", "losses"},
    "__main__": {"cli"},
    "attach": set(),
    "stages": {"methods", "formats"},
}
TOP_LEVEL = {"stages", "attach"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def statements(tree, *, inside_functions):
    """Every node that runs, be it at import only (not in functions) or ever; `if TYPE_CHECKING:` never runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        yield node
        yield from statements(node, inside_functions=inside_functions)


def imports(path, *, inside_functions):
    """Absolute names that `path` imports: `from finepref import formats` gives finepref and finepref.formats."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def layer(name):
    """finepref.losses.ops -> losses; finepref -> None; torch.nn -> None."""
    parts = name.split(".")
    return parts[1] if parts[0] == "finepref" and len(parts) > 1 else None


def test_no_module_imports_another_that_imports_it_back_not_even_for_types():
    """Every import counts: at module level, in functions, under TYPE_CHECKING."""
    direct = {}
    for name, path in MODULES.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= members & MODULES.keys() or {node.module}
        direct[name] = found & MODULES.keys() - {name, "finepref"}
    reached = {name: set(found) for name, found in direct.items()}
    for _ in MODULES:
        wider = {name: found.union(*(reached[each] for each in found)) for name, found in reached.items()}
        if wider == reached:
            break
        reached = wider
    assert [name for name, found in reached.items() if name in found] == []


def in_layer(wanted):
    return [pytest.param(path, id=name) for name, path in MODULES.items() if layer(name) == wanted]


@pytest.mark.parametrize("path", [pytest.param(path, id=name) for name, path in MODULES.items()])
def test_a_module_imports_only_layers_below_its_own(path):
    own = layer(module_name(path))
    assert own is None or own in MAY_IMPORT, "a new top-level module needs its row in MAY_IMPORT"
    allowed = MAY_IMPORT[own] | TOP_LEVEL | {own} if own else set()
    known = {f"finepref.{name}" for name in MAY_IMPORT}
    used = {layer(name) for name in imports(path, inside_functions=True) if ".".join(name.split(".")[:2]) in known}
    assert used <= allowed


@pytest.mark.parametrize("path", in_layer("losses"))
def test_losses_import_torch_and_the_standard_library_only(path):
    foreign = {name.split(".")[0] for name in imports(path, inside_functions=True)} - sys.stdlib_module_names
    assert foreign <= {"torch", "finepref"}


@pytest.mark.parametrize("path", in_layer("formats"))
def test_formats_import_the_standard_library_only(path):
    foreign = {name.split(".")[0] for name in imports(path, inside_functions=True)} - sys.stdlib_module_names
    assert foreign <= {"finepref"}


@pytest.mark.parametrize("path", [p for p in FILES if layer(module_name(p)) != "hosts"], ids=module_name)
def test_only_the_hosts_layer_imports_a_host(path):
    assert not HOSTS & {name.split(".")[0] for name in imports(path, inside_functions=True)}


def test_starting_the_command_line_imports_no_model_library_at_module_level():
    """Follows module-level imports through finepref, from the cli and from every module of finepref.commands."""
    waiting = [name for name in MODULES if layer(name) in ("cli", "commands")]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        direct = imports(MODULES[name], inside_functions=False)
        assert not HEAVY & {found.split(".")[0] for found in direct}, name
        waiting += [found.rpartition(".")[0] for found in direct if "." in found] + list(direct)
    assert "finepref.cli" in seen


def test_the_started_command_line_has_loaded_no_model_library():
    """The same in a fresh process, where what third parties import counts too."""
    program = f"import sys, finepref.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("path", in_layer("losses"))
def test_a_loss_file_has_at_most_100_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 100
