"""What a program compiled for a TPU holds, read from its text.

    program = Program(compiled.as_text())
    program.collectives(), program.copies(size), program.free_random_bits(size), program.cycles()

The text lists computations: `%name (arguments) -> result {`, a line for each instruction, and `}`.
Loops, conditions, fusions and calls name the computations that they run.
"""

import math
import re
from functools import cached_property

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", re.M | re.S)
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    r"|ragged-all-to-all)(-start)?\("
)
# A callback is a pair of transfers to and from the host; S(5) is the host's memory.
_HOST = re.compile(r" (infeed|outfeed)\(|is_host_transfer=true|S\(5\)|custom_call_target=\"\w*host")
_SHAPE = re.compile(r"\b[a-z]+\d+\[([\d,]*)\]")
_LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")


def size_of(text: str) -> int:
    """Elements of the first array that a text names."""
    match = _SHAPE.search(text)
    return math.prod(map(int, filter(None, match.group(1).split(",")))) if match else 0


class Program:
    """A compiled program: its computations by name, and where its loops lead."""

    def __init__(self, text: str):
        self.computations: dict[str, list[str]] = {}
        self.entry = ""
        for entry, name, body in _COMPUTATION.findall(text):
            self.computations[name] = body.split("\n")
            if entry:
                self.entry = name
        if not self.entry:
            raise ValueError("the text has no ENTRY computation, so it is no compiled program.")

    @cached_property
    def loops(self) -> list[tuple[str, str]]:
        """(condition, body) of every loop."""
        lines = [line for body in self.computations.values() for line in body]
        return [match.groups() for line in lines if (match := _LOOP.search(line))]  # type: ignore

    def _called(self, line: str) -> list[str]:
        names = re.findall(r"%([\w.-]+)", line.split("metadata=")[0])
        return [name for name in names if name in self.computations]

    def in_loops(self, *, without: str = "") -> list[str]:
        """The instructions that loops reach, but for what is behind an operation `without`."""
        if not self.loops:
            raise ValueError("there is no loop in the program, so nothing in one can be counted.")
        reached: set[str] = set()
        todo = [name for loop in self.loops for name in loop]
        if without:
            # An inner loop may lie behind that operation: only the outermost ones are begun from.
            inner = {name for loop in self.loops for name in self._below(loop[1])}
            todo = [name for loop in self.loops if loop[1] not in inner for name in loop]
        while todo:
            name = todo.pop()
            if name in reached:
                continue
            reached.add(name)
            for line in self.computations[name]:
                if not without or f" {without}(" not in line:
                    todo += self._called(line)
        return [line for name in sorted(reached) for line in self.computations[name]]

    def _below(self, name: str) -> set[str]:
        found: set[str] = set()
        todo = [other for line in self.computations[name] for other in self._called(line)]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [other for line in self.computations[name] for other in self._called(line)]
        return found

    def collectives(self, *, in_loops: bool = True) -> list[str]:
        """The names of the operations in which chips wait for each other."""
        every = [line for body in self.computations.values() for line in body]
        lines = self.in_loops() if in_loops else every
        return [match.group(1) for line in lines if (match := _COLLECTIVE.search(line))]

    def host_transfers(self) -> list[str]:
        lines = [line for body in self.computations.values() for line in body]
        return [line.strip()[:100] for line in lines if _HOST.search(line)]

    def copies(self, size: int) -> list[str]:
        """Copies and transposes of `size` elements and more that loops make of arrays in memory.

        Inside a fusion they are no pass over memory, but for a fusion that is nothing else. Copies
        to and from a smaller, faster memory, S(1) or S(3), are the compiler's prefetches.
        """
        found = []
        for line in self._unfused():
            match = re.search(r" (copy|copy-start|transpose|fusion)\(", line)
            if not match or re.search(r"S\([13]\)", line.split(" metadata=")[0]):
                continue
            kind, result = match.group(1), line[: match.start()].split(" = ")[-1]
            if size_of(result) < size:
                continue
            if kind == "fusion":
                called = self.computations[re.search(r"calls=%?([\w.-]+)", line).group(1)]  # type: ignore
                root = next(body for body in called if "ROOT " in body)
                if not re.search(r" (copy|transpose)\(", root):
                    continue
            found.append(line.strip()[:100])
        return found

    def _unfused(self) -> list[str]:
        reached: set[str] = set()
        todo = [body for _, body in self.loops]
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                for line in self.computations[name]:
                    if " fusion(" not in line:
                        todo += self._called(line)
        return [line for name in sorted(reached) for line in self.computations[name]]

    def random_bits(self, size: int) -> list[str]:
        """Random bits for a sample of `size` elements: threefry's xor, which nothing else has.

        One call makes two words, so that an array of it has half of a sample's elements.
        """
        lines = [line for body in self.computations.values() for line in body]
        return _random_bits(lines, size)

    def free_random_bits(self, size: int) -> list[str]:
        """Random bits for a whole sample that a loop draws under no condition: in every row."""
        return _random_bits(self.in_loops(without="conditional"), size)

    def cycles(self, rows: int = 1, draws: int = 0) -> float:
        """The compiler's `estimated_cycles` of every operation, in loops as often as they run.

        Of a condition in a loop, the costlier branch is taken in `draws` of the `rows`. A loop
        whose length cannot be read is one over the rows. Copies between memories that run beside
        the rest have no estimate.
        """
        return self._cycles(self.entry, 0, rows, draws)

    def _cycles(self, name: str, depth: int, rows: int, draws: int) -> float:
        total = 0.0
        for line in self.computations[name]:
            own = re.search(r'"estimated_cycles":"(\d+)"', line)
            total += int(own.group(1)) if own else 0
            if loop := _LOOP.search(line):
                trips = self._trips(line, loop.group(1)) or rows
                total += trips * self._cycles(loop.group(2), depth + 1, rows, draws)
            elif " conditional(" in line:
                costs = [self._cycles(n, depth, rows, draws) for n in _branches(line)]
                share = draws / rows if depth else 1.0
                total += share * max(costs) + (1 - share) * min(costs)
            elif " call(" in line:
                called = re.search(r"to_apply=%?([\w.-]+)", line)
                assert called is not None
                total += self._cycles(called.group(1), depth, rows, draws)
        return total

    def _trips(self, line: str, condition: str) -> int | None:
        known = re.search(r'known_trip_count[^0-9]*"n":"(\d+)"', line)
        constants = re.findall(r"constant\((\d+)\)", "\n".join(self.computations[condition]))
        if known:
            return int(known.group(1))
        return int(constants[0]) if len(constants) == 1 else None


def _branches(line: str) -> list[str]:
    if listed := re.search(r"branch_computations=\{(.*?)\}", line):
        return re.findall(r"%?([\w.-]+)", listed.group(1))
    return re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)


def _random_bits(lines: list[str], size: int) -> list[str]:
    drawn = [line for line in lines if re.search(r"= u32\[[\d,]*\]\S* xor\(", line)]
    return [line.strip()[:100] for line in drawn if 2 * size_of(line.split(" = ")[1]) >= size]
