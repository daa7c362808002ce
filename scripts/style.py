"""Measure the style of ldm/ and compare it with the limits: `python scripts/style.py [FOLDER]`; exit code 1 when one is broken.

What is counted
- function length: all lines from `def` to the end, docstring included; Triton kernels, those inside a function too, and the names in
  EXEMPT are left out
- annotated: arguments (but self and cls) and returns that carry a type
- duplicated: share of lines that stand in a window of six equal lines elsewhere (blank lines and indentation do not count)
- import depth: edges on the longest chain of imports at module level inside the package, those for type checkers left out;
  imports inside functions are lazy on purpose, so they count for the circles and stand beside as a second figure
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

LIMITS = {
    "function median": 8,
    "function p90": 25,
    "function longest": 50,
    "module longest": 300,
    "not annotated %": 0,
    "duplicated %": 2,
    "import depth": 5,
    "import circles": 0,
}
EXEMPT: dict[str, str] = {}  # "module.function": why it may be long
WINDOW = 6
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    lines: list[str]
    tree: ast.Module


def modules(folder: Path) -> list[Module]:
    """Every module of the package in `folder`."""
    return [_module(folder, path) for path in sorted(folder.rglob("*.py"))]


def _module(folder: Path, path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    parts = path.relative_to(folder.parent).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, text.splitlines(), ast.parse(text))


def functions(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its full name, nested ones and methods too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module.name}.{node.name}", node


def lengths(found: list[Module]) -> list[tuple[int, str]]:
    """(lines, name) of every function that is not exempt."""
    return [
        (_lines(node) - sum(_lines(inner) for inner in _kernels_in(node)), name)
        for module in found
        for name, node in functions(module)
        if name not in EXEMPT and not _is_kernel(node)
    ]


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _kernels_in(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.FunctionDef]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef) and _is_kernel(inner)]


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton" in ast.unparse(each) and "jit" in ast.unparse(each) for each in node.decorator_list)


def unannotated(found: list[Module]) -> tuple[float, list[str]]:
    """The share of arguments and returns without a type in percent, and the functions they belong to."""
    total, bare = 0, []
    for module in found:
        for name, node in functions(module):
            slots = [*_arguments(node), node.returns]
            total += len(slots)
            bare += [name] * slots.count(None)
    return 100 * len(bare) / max(total, 1), sorted(set(bare))


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr | None]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return [each.annotation for each in every if each is not None and each.arg not in ("self", "cls")]


def duplicated(found: list[Module]) -> tuple[float, list[str]]:
    """The share of lines inside a repeated window in percent, and where they stand."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    rows = {module.name: [(at, line.strip()) for at, line in enumerate(module.lines, 1) if line.strip()] for module in found}
    for name, row in rows.items():
        for start in range(len(row) - WINDOW + 1):
            places[tuple(line for _, line in row[start : start + WINDOW])].append((name, start))
    repeated = {(name, start + step) for spots in places.values() if len(spots) > 1 for name, start in spots for step in range(WINDOW)}
    where = sorted(f"{name}:{rows[name][row][0]}" for name, row in repeated)
    return 100 * len(repeated) / max(sum(map(len, rows.values())), 1), where


def graph(found: list[Module], *, lazy: bool) -> Graph:
    """Module to the modules of the package that it imports; `lazy` adds the imports inside functions."""
    names = {module.name for module in found}
    targets = {module.name: [_targets(node, names) for node in _imports(module.tree, lazy)] for module in found}
    return {name: set().union(*each) - {name} for name, each in targets.items()}


def _imports(node: ast.AST, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, lazy)


def _targets(node: ast.Import | ast.ImportFrom, names: set[str]) -> set[str]:
    """`from a import b` is the module a.b where there is one, otherwise a."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & names
    return {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in names else node.module or "" for alias in node.names} & names


def longest_chain(edges: Graph) -> list[str]:
    """The modules on the longest chain; those inside a circle are not followed twice."""
    best: dict[str, list[str]] = {}

    def chain(name: str, above: frozenset[str]) -> list[str]:
        if name not in best:
            below = [chain(each, above | {name}) for each in edges[name] if each not in above]
            best[name] = [name, *max(below, key=len, default=[])]
        return best[name]

    return max((chain(name, frozenset()) for name in edges), key=len)


def circles(edges: Graph) -> list[str]:
    """Modules that import themselves over others."""
    return sorted(name for name in edges if name in _reachable(edges, name))


def _reachable(edges: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return seen


def measure(folder: Path) -> dict[str, tuple[float, str]]:
    """Each figure of LIMITS with what it comes from, and one more without a limit."""
    found = modules(folder)
    spans = sorted(lengths(found))
    sizes = [span for span, _ in spans]
    longest = max(found, key=lambda module: len(module.lines))
    bare, bare_where = unannotated(found)
    double, double_where = duplicated(found)
    chain, all_chain = (longest_chain(graph(found, lazy=lazy)) for lazy in (False, True))
    circle = circles(graph(found, lazy=True))
    return {
        "function median": (median(sizes), f"{len(sizes)} functions"),
        "function p90": (quantiles(sizes, n=10)[-1], ", ".join(f"{name} {span}" for span, name in spans[-6:])),
        "function longest": (sizes[-1], spans[-1][1]),
        "module longest": (len(longest.lines), f"{longest.name}, of {len(found)} modules with {sum(len(m.lines) for m in found)} lines"),
        "not annotated %": (bare, ", ".join(bare_where[:6])),
        "duplicated %": (double, ", ".join(double_where[:6])),
        "import depth": (len(chain) - 1, " > ".join(chain)),
        "import circles": (len(circle), ", ".join(circle)),
        "import depth, lazy ones too": (len(all_chain) - 1, " > ".join(all_chain)),
    }


def main(argv: list[str]) -> int:
    """Print the table and return 1 when a limit is broken."""
    figures = measure(Path(argv[0]) if argv else Path(__file__).parents[1] / "ldm")
    broken = 0
    for name, (value, note) in figures.items():
        over = value > LIMITS.get(name, value)
        broken += over
        print(f"{'BROKEN' if over else 'ok':<7}{name:<28}{value:>8.4g}  limit {LIMITS.get(name, '-')!s:<5}{note}")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
