"""Imports of a Python source as its syntax tree shows them: nothing is run."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

STAR = "*"
GUARD = "TYPE_CHECKING"
IMPORTERS = ("import_module", "__import__")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import: a module, and the names taken from it, each of which may be a submodule."""

    module: str  # absolute: "pkg.parts"
    names: tuple[str, ...] = ()


def imports_of(content: bytes, package: str) -> tuple[Import, ...]:
    """Return the imports of a source whose `__package__` is `package`; none of a source that cannot be parsed.

    Imports inside functions count, and so do calls of `import_module` and `__import__`, under whatever name, with a
    literal. Code that runs only under typing's `TYPE_CHECKING` or `__name__ == "__main__"` does not count: importing
    the module never runs it.

    >>> imports_of(b"from . import blocks; import torch.nn as nn", "pkg")
    (Import(module='pkg', names=('blocks',)), Import(module='torch.nn', names=()))
    """
    found = (_resolved(node, package) for node in _nodes(content))
    return tuple(one for some in found for one in some)


def deepest_level(content: bytes) -> int:
    """Return the largest number of dots of a relative import; 0 without any.

    >>> deepest_level(b"from ..parts import x")
    2
    """
    return max((node.level for node in _nodes(content) if isinstance(node, ast.ImportFrom)), default=0)


def is_empty(content: bytes) -> bool:
    """Return whether a source holds nothing but comments and a docstring.

    >>> is_empty(b"'A package.'  # nothing else"), is_empty(b"x = 1")
    (True, False)
    """
    tree = _parsed(content)
    return tree is not None and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for node in tree.body
    )


def exported(content: bytes) -> tuple[str, ...]:
    """Return the literal names in a module's `__all__`: a star import imports those that are submodules.

    >>> exported(b"__all__ = ['a']; __all__ += ['b']")
    ('a', 'b')
    """
    tree = _parsed(content)
    names: list[str] = []
    for node in [] if tree is None else tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            names += [leaf.value for leaf in ast.walk(node.value) if _is_text(leaf)]  # type: ignore[attr-defined]
    return tuple(names)


@lru_cache(maxsize=4096)
def _parsed(content: bytes) -> ast.Module | None:
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=4096)
def _nodes(content: bytes) -> tuple[ast.Import | ast.ImportFrom | ast.Call, ...]:
    tree = _parsed(content)
    return () if tree is None else tuple(_walk(tree))


def _walk(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom | ast.Call]:
    importers, is_typings = _importers(tree), _is_typings(tree)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Call) and _is_literal_import(node, importers)
        ):
            yield node
        if isinstance(node, ast.If) and _is_never_run(node.test, is_typings=is_typings):
            waiting += reversed(node.orelse)
        else:
            waiting += reversed(list(ast.iter_child_nodes(node)))


def _importers(tree: ast.Module) -> frozenset[str]:
    """Return the names under which a source calls functions that import a module by its name."""
    found, before = set(IMPORTERS), 0
    while len(found) > before:
        before = len(found)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                found |= {alias.asname for alias in node.names if alias.name in found and alias.asname}
            for target, value in _bindings(node):
                if _last_name(value) in found or _is_lookup(value, found):
                    found |= {name for one in ast.walk(target) if (name := _last_name(one)) is not None}
    return frozenset(found)


def _bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield each target that a node binds, with its value: assignments of all kinds, and defaults of parameters."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            several = isinstance(target, ast.Tuple | ast.List) and isinstance(node.value, ast.Tuple | ast.List)
            yield from (
                zip(target.elts, node.value.elts, strict=False)  # type: ignore[attr-defined]
                if several
                else [(target, node.value)]
            )
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args][::-1]
        given = [
            *zip(positional, node.defaults[::-1], strict=False),
            *zip(node.kwonlyargs, node.kw_defaults, strict=True),
        ]
        yield from ((ast.Name(id=arg.arg), value) for arg, value in given if value is not None)


def _is_lookup(value: ast.AST, importers: set[str]) -> bool:
    """Return whether a value comes from an importer: a lookup by name, a partial function of it, a static method."""
    return isinstance(value, ast.Call) and any(
        _last_name(one) in importers or (isinstance(one, ast.Constant) and one.value in importers) for one in value.args
    )


def _is_typings(tree: ast.Module) -> bool:
    """Return whether TYPE_CHECKING in a source is the one of typing: the code that it guards then never runs."""
    from_typing, other_stars = [0], [-1]  # lines
    for node in ast.walk(tree):
        bound = [target for target, _ in _bindings(node)]
        bound += [node.target] if isinstance(node, ast.AugAssign | ast.For) else []
        if any(_last_name(one) == GUARD for target in bound for one in ast.walk(target)):
            return False
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name for alias in node.names}
            if node.module in ("typing", "typing_extensions"):
                from_typing += [node.lineno] * (GUARD in names)
            elif GUARD in names:
                return False
            other_stars += [node.lineno] * (STAR in names)
    return max(from_typing) > max(other_stars)


def _is_never_run(test: ast.expr, *, is_typings: bool) -> bool:
    if isinstance(test, ast.Compare):
        sides = [test.left, *test.comparators]
        return (
            [type(op) for op in test.ops] == [ast.Eq]
            and any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
            and any(isinstance(side, ast.Constant) and side.value == "__main__" for side in sides)
        )
    return is_typings and _last_name(test) == GUARD


def _last_name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_literal_import(node: ast.Call, importers: frozenset[str]) -> bool:
    is_importer = _last_name(node.func) in importers or _is_lookup(node.func, set(importers))
    return is_importer and _literal_argument(node, 0, "name") is not None


def _literal_argument(node: ast.Call, position: int, keyword: str) -> str | None:
    given = [*node.args[position : position + 1], *(word.value for word in node.keywords if word.arg == keyword)]
    return next((one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)), None)


def _resolved(node: ast.Import | ast.ImportFrom | ast.Call, package: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(module=alias.name) for alias in node.names)
        return
    if isinstance(node, ast.ImportFrom):
        module = _absolute(node.module or "", node.level, package)
        names = tuple(alias.name for alias in node.names)
    else:
        word = _literal_argument(node, 0, "name") or ""
        level = len(word) - len(word.lstrip("."))
        module = _absolute(word[level:], level, _literal_argument(node, 1, "package") or package)
        names = ()
    if module:
        yield Import(module=module, names=names)


def _absolute(module: str, level: int, package: str) -> str:
    """Return the absolute name of a relative import, "" where it leads out of the package."""
    if level == 0:
        return module
    parents = package.split(".")
    if not package or level > len(parents):
        return ""
    return ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])])
