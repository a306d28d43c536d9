"""What the files of a package import and use, read from their text: nothing is imported.

Owns the reading. Must not know which imports are allowed. Standard library alone. Imports inside functions and under
``TYPE_CHECKING`` count.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Import", "Source", "read_sources"]


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module or name.

    Attributes
    ----------
    dotted : str
        Full dotted name; for ``from a import b`` it is ``a.b``.
    line : int
        Where.
    """

    dotted: str
    line: int


@dataclass(frozen=True, slots=True)
class Source:
    """What one file imports and uses.

    Attributes
    ----------
    path : str
        The file, relative to the repository.
    dotted : str
        Its module name inside the package: ``"__init__"``, ``"store"``, ``"metadata.document"``,
        ``"metadata.__init__"``.
    imports : tuple of Import
        Every absolute import.
    relative : tuple of int
        Lines of relative imports.
    uses : tuple of Import
        Every dotted name that starts at an import.
    """

    path: str
    dotted: str
    imports: tuple[Import, ...]
    relative: tuple[int, ...]
    uses: tuple[Import, ...]

    @property
    def unit(self) -> str:
        """The file or folder directly under the package: what has a floor."""
        return self.dotted.split(".")[0]


@dataclass(slots=True)
class _Collector(ast.NodeVisitor):
    imports: list[Import] = field(default_factory=list)
    relative: list[int] = field(default_factory=list)
    uses: list[Import] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self.imports.append(Import(name.name, node.lineno))
            self.uses.append(Import(name.name, node.lineno))
            bound = name.name if name.asname else name.name.split(".")[0]
            self.aliases[name.asname or bound] = bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or node.module is None:
            self.relative.append(node.lineno)
            return
        for name in node.names:
            dotted = f"{node.module}.{name.name}"
            self.imports.append(Import(dotted, node.lineno))
            self.uses.append(Import(dotted, node.lineno))
            self.aliases[name.asname or name.name] = dotted

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = self._dotted(node)
        if dotted is not None:
            self.uses.append(Import(dotted, node.lineno))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self._dotted(node.func)
        if called in {"importlib.import_module", "__import__"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                self.imports.append(Import(first.value, node.lineno))
        self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str | None:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        start = node.id if node.id == "__import__" else self.aliases.get(node.id)
        return None if start is None else ".".join([start, *reversed(parts)])


def read_sources(root: Path, package: str) -> tuple[Source, ...]:
    """Read every Python file of the package.

    Parameters
    ----------
    root : Path
        The repository, which holds the package's folder.
    package : str
        The package.

    Returns
    -------
    tuple of Source
        In the order of their paths.

    Raises
    ------
    FileNotFoundError
        If the package has no Python file: a check of nothing must not pass.
    SyntaxError
        If a file is not Python.
    """
    paths = sorted((root / package).rglob("*.py"))
    if not paths:
        raise FileNotFoundError(f"no Python file under {root / package}")
    return tuple(_read_source(root, package, path) for path in paths)


def _read_source(root: Path, package: str, path: Path) -> Source:
    shown = path.relative_to(root).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=shown)
    collector = _Collector()
    # Names first: a use may stand above the import that binds it, inside a function.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            collector.visit(node)
    collector.imports.clear()
    collector.relative.clear()
    collector.uses.clear()
    collector.visit(tree)
    dotted = ".".join(path.relative_to(root / package).with_suffix("").parts)
    return Source(shown, dotted, tuple(collector.imports), tuple(collector.relative), tuple(collector.uses))
