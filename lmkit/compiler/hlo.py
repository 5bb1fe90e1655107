"""The text of a compiled program, as far as counting what it sends, and how long it takes, asks for."""

import math
import re
from typing import NamedTuple

Array = tuple[str, tuple[int, ...]]  # dtype and shape

_BYTES = {"f64": 8, "s64": 8, "u64": 8, "c64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_MOVES = ("copy", "bitcast", "convert", "transpose", "reshape")  # which change no element's place in the sum
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|condition|body|branch_computations|called_computations|true_computation"
                     r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip
_KIND = re.compile(
    r"(all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute)(?:-start)?$|ragged-(all-to-all)$"
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Instruction(NamedTuple):
    """One line."""

    name: str
    opcode: str
    type: str  # of the result, as written
    operands: tuple[str, ...]
    called: tuple[str, ...]  # computations
    text: str  # what follows the opcode

    @property
    def kind(self) -> str:
        """The collective that it is or starts; "" for others."""
        match = _KIND.match(self.opcode)
        return match[1] if match else ""

    @property
    def body(self) -> str:
        """Of a loop."""
        match = re.search(r"\bbody=%?([\w.\-]+)", self.text)
        return match[1] if match else ""

    @property
    def result(self) -> list[Array]:
        """The arrays that it gives; of a start, which also names its operands, those of the collective."""
        shapes = self.type
        if self.opcode.endswith("-start") and self.kind != "all-reduce":
            parts = _split(shapes)
            shapes = parts[1] if len(parts) > 1 else shapes
        return [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(shapes)]

    @property
    def source(self) -> str:
        """What the model's code calls it."""
        match = re.search(r'op_name="([^"]*)"', self.text)
        return match[1] if match else ""


class Program(NamedTuple):
    """Computations by name."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    frames: dict[str, str]  # file:line in Python by number of a stack frame

    def place(self, one: Instruction) -> str:
        """The line of the model's code that an instruction comes from, as file:line; "" where the text has none."""
        if match := re.search(r"stack_frame_id=(\d+)", one.text):
            return self.frames.get(match[1], "")
        match = re.search(r'source_file="([^"]*)" source_line=(\d+)', one.text)
        return f"{'/'.join(match[1].split('/')[-3:])}:{match[2]}" if match else ""


def parse(text: str) -> Program:
    """The computations of `compiled.as_text()`, each with its instructions by name."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current, last = "", {}, ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current, last = computations.setdefault(header[2], {}), ""
            entry = header[2] if header[1] else entry
        elif match := _LINE.match(line):
            last, kind, opcode, rest = match.groups()
            operands, rest = _arguments(rest)
            called = [name for group in _CALLED.findall(rest) for name in re.findall(r"[\w.\-]+", group)]
            current[last] = Instruction(last, opcode, kind, operands, tuple(called), rest)
        elif line == "}" or line.startswith("}, "):
            last = ""
        elif last:  # an attribute of a kernel goes on over several lines
            current[last] = current[last]._replace(text=f"{current[last].text}\n{line}")
    if not entry:
        raise ValueError(f"not the text of a compiled program: {text[:80]!r}")
    return Program(entry, computations, _frames(text))


def _frames(text: str) -> dict[str, str]:
    """The file and line of each stack frame, from the tables at the head of the text."""
    tables: dict[str, dict[str, str]] = {name: {} for name in _TABLES}
    table = None
    for line in text[: max(text.find("\nENTRY "), 0)].splitlines():
        if line in tables:
            table = tables[line]
        elif table is not None and (match := re.match(r"(\d+) (.*)", line)):
            table[match[1]] = match[2]
        elif line:
            table = None
    return {frame: _place(tables, frame) for frame in tables["StackFrames"]}


def _place(tables: dict[str, dict[str, str]], frame: str) -> str:
    """The innermost line of a stack that is not in jax, as the last three parts of its path, and the line."""
    place = ""
    while words := tables["StackFrames"].get(frame, ""):
        location = tables["FileLocations"].get(_number(words, "file_location_id"), "")
        path = tables["FileNames"].get(_number(location, "file_name_id"), "").strip('"')
        here = f"{'/'.join(path.split('/')[-3:])}:{_number(location, 'line')}"
        if "/jax/" not in path:
            return here
        place = place or here
        frame = str(int(_number(words, "parent_frame_id") or 1) - 1)  # the text counts from 1 on, with 1 for none
    return place


def _number(words: str, key: str) -> str:
    match = re.search(rf"\b{key}=(\d+)", words)
    return match[1] if match else ""


def _arguments(rest: str) -> tuple[tuple[str, ...], str]:
    """The names between the parentheses, and what follows them; of a constant, its value."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0:
            inside = rest[:place]
            return tuple(re.findall(r"%([\w.\-]+)", inside)) or (inside.strip(),), rest[place + 1 :]
    return (), rest


def _split(shapes: str) -> list[str]:
    """(a, (b, c), d) at its outermost commas; one part where it is no tuple."""
    if not shapes.startswith("("):
        return [shapes]
    parts, depth = [""], 0
    for letter in shapes[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def trip_count(program: Program, where: str, loop: Instruction) -> int | None:
    """How often a loop of the computation `where` runs; None where its text does not say.

    What XLA noted, or else the constant that its counter, which rises by one, is compared with, less where the counter
    starts (0 where that is not a constant).
    """
    if match := re.search(r'known_trip_count[^0-9]*"?(\d+)', loop.text):
        return int(match[1])
    match = re.search(r"condition=%?([\w.\-]+)", loop.text)
    lines = program.computations.get(match[1], {}) if match else {}
    compares = [line for line in lines.values() if line.opcode == "compare" and "direction=LT" in line.text]
    if len(compares) != 1:
        return None
    counter, limit = (lines.get(name) for name in compares[0].operands)
    if counter is None or limit is None or limit.opcode != "constant":
        return None
    index = re.search(r"index=(\d+)", counter.text)
    start = _start(program.computations[where], loop, int(index[1])) if index else 0
    return int(limit.operands[0]) - start


def _start(lines: dict[str, Instruction], loop: Instruction, index: int) -> int:
    one = lines.get(loop.operands[0])
    one = lines.get(one.operands[index]) if one is not None and one.opcode == "tuple" else None
    while one is not None and one.opcode in ("copy", "bitcast", "convert"):
        one = lines.get(one.operands[0])
    return int(one.operands[0]) if one is not None and one.opcode == "constant" else 0


def size_of(array: Array) -> float:
    """Bytes; of types narrower than a byte one for each element."""
    dtype, shape = array
    return _BYTES.get(dtype, 1) * math.prod(shape)


def is_sliced(program: Program, lines: dict[str, Instruction], one: Instruction, index: int, parts: int) -> bool:
    """Whether of the result `index` of `one` only one of so many parts is used on each device."""
    size = math.prod(one.result[index][1])
    names = {one.name}
    if one.type.startswith("("):
        elements = [line for line in lines.values() if line.opcode == "get-tuple-element" and one.name in line.operands]
        names = {line.name for line in elements if re.search(rf"index={index}\b", line.text)}
    return bool(names) and all(_only_part(program, lines, name, size // parts) for name in names)


def _only_part(program: Program, lines: dict[str, Instruction], name: str, size: int) -> bool:
    """Whether all that an array is used for are slices of `size` elements."""
    users = [line for line in lines.values() if name in line.operands]
    return bool(users) and all(_takes_part(program, lines, user, name, size) for user in users)


def _takes_part(program: Program, lines: dict[str, Instruction], user: Instruction, name: str, size: int) -> bool:
    if user.opcode == "dynamic-slice":
        return math.prod(user.result[0][1]) == size
    if user.opcode in _MOVES:
        return _only_part(program, lines, user.name, size)
    if user.opcode != "fusion":
        return False
    inner = program.computations[user.called[0]]
    places = [place for place, operand in enumerate(user.operands) if operand == name]
    params = [line for line in inner.values() if line.opcode == "parameter" and int(line.operands[0]) in places]
    return all(_only_part(program, inner, param.name, size) for param in params)
