"""`python tools/api_docs.py` writes docs/api.md, the reference of the public names, from the source.

Modules are parsed, never imported, and signatures are copied as written. So the page does not depend on the versions of
Python and jax.
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """# API reference

Functions and classes for code of your own. `python tools/api_docs.py` writes this page from the docstrings.
Names of arrays end in their dims: `tokens_BT` is [batch, time]. Configuration keys: `python -m lmkit.train --help`."""
# A package shows its __all__, a module its functions and classes, or the names after the colon.
MODULES = """lmkit.config.entry:compose lmkit.models lmkit.objectives lmkit.optim lmkit.weights
lmkit.data.prepare:prepare,build_tokenizer lmkit.data.loader:TrainBatches,heldout_batches,batch_shapes,to_devices
lmkit.core.state lmkit.core.step lmkit.core.setup lmkit.core.task lmkit.decode lmkit.interop lmkit.metrics
lmkit.checkpoint lmkit.parallel"""


class Module:
    """A parsed source file: its lines, its top-level definitions, and what it imports from where."""

    def __init__(self, name: str):
        base = ROOT / name.replace(".", "/")
        self.path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        self.text = self.path.read_text()
        self.tree = ast.parse(self.text)
        self.defined, self.imported, self.public = {}, {}, []
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.defined[node.name] = node
                self.public += [node.name] * (node.name[0] != "_")
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {alias.asname or alias.name: node.module for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                self.defined[ast.unparse(target)] = node
        if "__all__" in self.defined:
            self.public = ast.literal_eval(self.defined["__all__"].value)

    def find(self, name: str) -> tuple["Module", ast.AST]:
        """The module that defines a name, and the definition."""
        return (self, self.defined[name]) if name in self.defined else Module(self.imported[name]).find(name)

    def lines(self, first: int, last: int) -> str:
        """Lines first .. last of the file, counted from 1."""
        return textwrap.dedent("\n".join(self.text.splitlines()[first - 1 : last]))

    def header(self, node: ast.FunctionDef | ast.ClassDef) -> str:
        """Decorators and signature, without the colon at the end."""
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        return re.sub(r":\s*(#.*)?$", "", self.lines(first, max(node.body[0].lineno - 1, node.lineno)))

    def field(self, node: ast.AnnAssign) -> str:
        """A field of a class. A configuration key is shown with its default and its documentation."""
        line, call = self.lines(node.lineno, node.end_lineno or 0), node.value
        if not isinstance(call, ast.Call) or ast.unparse(call.func) not in ("key", "again"):
            return line
        name, default = line.split(" = ")[0], ast.get_source_segment(self.text, call.args[0])
        if ast.unparse(call.func) == "again":  # again(name, default): another default of an inherited key
            return f"{name} = {ast.get_source_segment(self.text, call.args[1])}"
        return f"{name} = {default}  # {ast.literal_eval(call.args[1])}"


def prose(node: ast.AST) -> str:
    """A docstring as Markdown: `Args:` becomes a list, an indented block stays one of code."""
    lines, in_items = [], False
    for line in (ast.get_docstring(node) or "").splitlines():  # type: ignore[arg-type]
        heads = line in ("Args:", "Attributes:")
        in_items = heads or (in_items and line[:1] in ("", " "))
        if in_items and (item := re.match(r" {4}([\w, ]+): (.*)", line)):
            line = f"- `{item[1]}`: {item[2]}"
        elif in_items and line.startswith("    "):
            line = f"  {line.strip()}"
        elif re.match(r"\w+ = [\w.]+\(", line):  # an example that is not indented
            line = f"    {line}"
        if not line.startswith("    "):  # HTML and emphasis, outside of spans of code
            line = re.sub(r"(`[^`]*`)|([<*])", lambda found: found[1] or f"\\{found[2]}", line)
        lines += [line, ""] if heads else [line]
    return "\n".join(lines)


def entry(name: str, module: Module, node: ast.AST) -> list[str]:
    """The paragraphs of one public name: heading, link, code, docstring, methods."""
    first = [f"### {name}", "[{0}](../{0})".format(module.path.relative_to(ROOT))]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return [*first, f"```py\n{module.lines(node.lineno, node.end_lineno or 0)}\n```"]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    fields, methods = [], []
    for one in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(one, ast.AnnAssign):
            fields.append(textwrap.indent(module.field(one), "    "))
        elif isinstance(one, ast.FunctionDef) and (
            one.name in ("__init__", "__call__") or (one.name[0] != "_" and ast.get_docstring(one))
        ):
            methods += [f"#### {name}.{one.name}", f"```py\n{module.header(one)}\n```", prose(one)]
    code = "\n".join([module.header(node) + ":" * bool(fields), *fields])
    return [*first, f"```py\n{code}\n```", prose(node), *methods]


def page() -> str:
    """The whole page as Markdown."""
    modules = [word.partition(":")[::2] for word in MODULES.split()]
    blocks = [INTRODUCTION, " ·\n".join(f"[{dotted}](#{dotted.replace('.', '')})" for dotted, _ in modules)]
    for dotted, names in modules:
        module = Module(dotted)
        blocks += [f"## {dotted}", prose(module.tree)]
        for name in names.split(",") if names else module.public:
            blocks += entry(name, *module.find(name))
    return "\n\n".join(filter(None, blocks)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
