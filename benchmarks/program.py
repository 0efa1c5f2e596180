"""What a compiled program holds."""

import re


def copies_in_loops(hlo: str, shape: tuple[int, ...]) -> list[str]:
    """The copies of whole float32 samples in the bodies of the loops of a compiled program."""
    # A computation begins at `%name (arguments) -> result {` and ends at the `}` of its own line.
    found = re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", hlo, re.M | re.S)
    computations = dict(found)
    reached, todo = set(), re.findall(r"body=%?([\w.-]+)", hlo)
    if not todo:
        raise ValueError("there is no loop in the program, so no copy in one can be counted.")
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            called = re.findall(r"%([\w.-]+)", computations[name])
            todo += [other for other in called if other in computations]
    whole = re.compile(rf"= f32\[{','.join(map(str, shape))}\]\S* copy\(")
    return [
        line for name in reached for line in computations[name].split("\n") if whole.search(line)
    ]
