"""Where in a kernel a subgroup may have split up, found in its SPIR-V.

A subgroup operation is undefined (or a barrier waits for ever) where only some lanes of the subgroup come to it. No
driver here needs to notice: on a CPU all lanes run in step. So the compiled kernels are read instead.

Every value has a level: it is the same for all lanes of a workgroup, for all of a subgroup, or for none. A block has
one too, that of the conditions which decide whether a lane comes there. The analysis is conservative: it joins what it
does not tell apart, so that what it finds uniform is.

* Builtin inputs start it: gl_SubgroupID differs between subgroups, invocation ids between lanes.
* A result has the level of its operands. A load from a variable has that of whatever is stored in it, anywhere; a load
  from memory or shared memory has that of its address. What is computed or stored in a block has the block's, at least.
* Results of reductions, votes and broadcasts are equal in a subgroup.
* A branch raises all blocks up to where its ways meet again: its merge block, or, where a way leaves by return, break
  or continue, the block that all ways pass. For a loop's exit these are all blocks of the loop.
* Functions are analysed once for each call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from helios.backends.vulkan.spirv import instructions

WORKGROUP, SUBGROUP, LANE = 0, 1, 2  # levels: the same in all of a workgroup, in a subgroup, in no more than a lane
NAME, ENTRY_POINT, EXT_INST, CONSTANT, DECORATE, VARIABLE = 5, 15, 12, 43, 71, 59
FUNCTION, PARAMETER, END, CALL, LOAD, STORE, COPY_MEMORY, LABEL = 54, 55, 56, 57, 61, 62, 63, 248
ACCESS_CHAINS = (65, 66, 67)
SHUFFLE, EXTRACT, INSERT, PHI, LOOP_MERGE, SELECTION_MERGE = 79, 81, 82, 245, 246, 247
BRANCH, BRANCH_IF, SWITCH, KILL, RETURN, RETURN_VALUE, UNREACHABLE = 249, 250, 251, 252, 253, 254, 255
CONTROL_BARRIER, MEMORY_BARRIER, COOPMAT_LOAD, COOPMAT_STORE, COOPMAT_MUL_ADD = 224, 225, 4457, 4458, 4459
ELECT, ALL, EQUAL, BROADCAST, FIRST, BALLOT, COUNT, ADD, XOR, LAST = 333, 334, 336, 337, 338, 339, 342, 349, 364, 366
TERMINATORS = (BRANCH, BRANCH_IF, SWITCH, KILL, RETURN, RETURN_VALUE, UNREACHABLE)
VOID = (STORE, COPY_MEMORY, LOOP_MERGE, SELECTION_MERGE, CONTROL_BARRIER, MEMORY_BARRIER, COOPMAT_STORE, *TERMINATORS)
# The operands of an instruction that are values; of others all are. The rest are literals.
VALUES = {EXTRACT: slice(0, 1), INSERT: slice(0, 2), SHUFFLE: slice(0, 2), EXT_INST: slice(2, None), LOAD: slice(0, 1),
          COOPMAT_LOAD: slice(0, 3), COOPMAT_MUL_ADD: slice(0, 3)}
BUILTIN, STORAGE_INPUT, STORAGE_PRIVATE = 11, 1, 6
BUILTINS = {24: WORKGROUP, 25: WORKGROUP, 26: WORKGROUP, 36: WORKGROUP, 38: WORKGROUP, 40: SUBGROUP}  # others: LANE
SCOPE_WORKGROUP = 2

Instruction = tuple[int, tuple[int, ...]]
Path = tuple[int, ...]  # the calls that lead to an instance of a function
Key = tuple[Path, int]


def is_subgroup_operation(opcode: int) -> bool:
    """Whether all lanes of a subgroup must come to it together."""
    return ELECT <= opcode <= LAST or opcode in (CONTROL_BARRIER, COOPMAT_LOAD, COOPMAT_STORE, COOPMAT_MUL_ADD)


@dataclass
class Function:
    """Blocks by label, the first one first; control flow within it."""

    name: str
    parameters: list[int] = field(default_factory=list)
    blocks: dict[int, list[Instruction]] = field(default_factory=dict)

    @cached_property
    def next(self) -> dict[int, list[int]]:
        found = {}
        for label, block in self.blocks.items():
            opcode, args = block[-1]
            targets = {BRANCH: args[:1], BRANCH_IF: args[1:3], SWITCH: (args[1:2] + args[3::2])}.get(opcode, ())
            found[label] = list(dict.fromkeys(targets))
        return found

    @cached_property
    def passed(self) -> dict[int, frozenset[int]]:
        """For each block, those that every way from it to the end passes, itself included."""
        every = frozenset(self.blocks)
        found = {label: every if self.next[label] else frozenset((label,)) for label in self.blocks}
        changed = True
        while changed:
            changed = False
            for label in reversed(self.blocks):
                if self.next[label]:
                    new = frozenset.intersection(*(found[n] for n in self.next[label])) | {label}
                    changed |= new != found[label]
                    found[label] = new
        return found

    @cached_property
    def split(self) -> dict[int, set[int]]:
        """For each block that ends in a choice, the blocks that lanes may come to apart after it."""
        found = {}
        for label, block in self.blocks.items():
            if len(self.next[label]) < 2:
                continue
            later = self.passed[label] - {label}
            merge = next((args[0] for opcode, args in block if opcode in (SELECTION_MERGE, LOOP_MERGE)), None)
            # The nearest of the blocks that all ways pass is the one from which most of the others are passed.
            stop = merge if merge in later else max(later, key=lambda b: len(self.passed[b]), default=None)
            reached, todo = set[int](), [n for n in self.next[label] if n != stop]
            while todo:
                if (here := todo.pop()) not in reached:
                    reached.add(here)
                    todo += [n for n in self.next[here] if n != stop]
            found[label] = reached
        return found


class Module:
    """A compiled kernel, taken apart."""

    def __init__(self, spirv: bytes) -> None:
        self.functions: dict[int, Function] = {}
        self.constants: dict[int, int] = {}
        self.globals: dict[int, int] = {}  # storage class of each variable outside functions
        self.builtins: dict[int, int] = {}
        names: dict[int, str] = {}
        function: Function | None = None
        block: list[Instruction] | None = None
        for opcode, args in instructions(spirv):
            if opcode == NAME:
                names[args[0]] = b"".join(w.to_bytes(4, "little") for w in args[1:]).rstrip(b"\0").decode()
            elif opcode == ENTRY_POINT:
                self.entry = args[1]
            elif opcode == DECORATE and args[1] == BUILTIN:
                self.builtins[args[0]] = args[2]
            elif opcode == CONSTANT:
                self.constants[args[1]] = args[2]
            elif opcode == VARIABLE and function is None:
                self.globals[args[1]] = args[2]
            elif opcode == FUNCTION:
                function = self.functions[args[1]] = Function(names.get(args[1], str(args[1])))
            elif opcode == END:
                function = block = None
            elif function is not None:
                if opcode == PARAMETER:
                    function.parameters.append(args[1])
                elif opcode == LABEL:
                    block = function.blocks[args[0]] = []
                elif block is not None:
                    block.append((opcode, args))


class Analysis:
    """The levels of a kernel's values and blocks."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.values = defaultdict[Key, int](int)
        self.contents = defaultdict[Key, int](int)  # of variables
        self.roots: dict[Key, Key] = {}  # the variable that a pointer points into
        self.blocks = defaultdict[Key, int](int)
        self.results = defaultdict[Path, int](int)  # of functions
        self.callees = {(): module.entry}  # the function at each path
        self.changed = True
        for variable, storage in module.globals.items():
            if storage in (STORAGE_INPUT, STORAGE_PRIVATE):
                self.roots[(), variable] = ((), variable)
            if storage == STORAGE_INPUT:
                self.contents[(), variable] = BUILTINS.get(module.builtins[variable], LANE)
        while self.changed:
            self.changed = False
            self._function((), WORKGROUP)

    def _raise(self, levels: defaultdict, key: object, level: int) -> None:
        if level > levels[key]:
            levels[key] = level
            self.changed = True

    def _key(self, path: Path, value: int) -> Key:
        return ((), value) if value in self.module.globals else (path, value)

    def _level(self, path: Path, value: int) -> int:
        return self.values[self._key(path, value)]

    def _of(self, path: Path) -> Function:
        return self.module.functions[self.callees[path]]

    def _function(self, path: Path, entry: int) -> None:
        function = self._of(path)
        for label, block in function.blocks.items():
            self._raise(self.blocks, (path, label), entry)
            for opcode, args in block:
                self._instruction(path, self.blocks[path, label], opcode, args)
            if label in function.split:
                level = max(self._level(path, block[-1][1][0]), self.blocks[path, label])
                for other in function.split[label]:
                    self._raise(self.blocks, (path, other), level)

    def _instruction(self, path: Path, here: int, opcode: int, args: tuple[int, ...]) -> None:
        if opcode in (STORE, COPY_MEMORY):
            root = self.roots.get(self._key(path, args[0]))
            if root is not None:
                of = self._loaded(path, args[1]) if opcode == COPY_MEMORY else self._level(path, args[1])
                self._raise(self.contents, root, max(of, self._level(path, args[0]), here))
        elif opcode == RETURN_VALUE:
            self._raise(self.results, path, max(self._level(path, args[0]), here))
        elif opcode not in VOID:
            self._raise(self.values, (path, args[1]), max(self._result(path, here, opcode, args[1], args[2:]), here))

    def _result(self, path: Path, here: int, opcode: int, result: int, args: tuple[int, ...]) -> int:
        level = lambda *values: max((self._level(path, v) for v in values), default=WORKGROUP)
        if opcode == VARIABLE:
            self.roots[path, result] = (path, result)
            return WORKGROUP
        if opcode in ACCESS_CHAINS:
            if (root := self.roots.get(self._key(path, args[0]))) is not None:
                self.roots[path, result] = root
            return level(*args)
        if opcode == LOAD:
            return self._loaded(path, args[0])
        if opcode == CALL:
            return self._call((*path, result), here, *args)
        if opcode == PHI:  # which value it is depends on the way taken
            return max(level(*args[::2]), *(self._way(path, origin) for origin in args[1::2]))
        if opcode in (COOPMAT_LOAD, COOPMAT_MUL_ADD):
            return LANE
        if ELECT <= opcode <= LAST:
            return self._of_subgroup(path, opcode, args[1:])
        return level(*args[VALUES.get(opcode, slice(None))])

    def _of_subgroup(self, path: Path, opcode: int, args: tuple[int, ...]) -> int:
        """`args` without the scope."""
        if ALL <= opcode <= EQUAL or opcode in (FIRST, BALLOT):
            return min(self._level(path, args[0]), SUBGROUP)
        if opcode == BROADCAST and self._level(path, args[1]) <= SUBGROUP:
            return min(self._level(path, args[0]), SUBGROUP)
        if (opcode == COUNT or ADD <= opcode <= XOR) and args[0] == 0:  # a reduction, no scan and not clustered
            return min(self._level(path, args[1]), SUBGROUP)
        return LANE

    def _way(self, path: Path, origin: int) -> int:
        """The level of coming from a block."""
        opcode, args = self._of(path).blocks[origin][-1]
        condition = self._level(path, args[0]) if opcode in (BRANCH_IF, SWITCH) else WORKGROUP
        return max(self.blocks[path, origin], condition)

    def _loaded(self, path: Path, pointer: int) -> int:
        key = self._key(path, pointer)
        return max(self.values[key], self.contents[self.roots[key]] if key in self.roots else WORKGROUP)

    def _call(self, inner: Path, here: int, callee: int, *given: int) -> int:
        self.callees[inner] = callee
        for parameter, value in zip(self.module.functions[callee].parameters, given, strict=True):
            self._raise(self.values, (inner, parameter), self._level(inner[:-1], value))
            if (root := self.roots.get(self._key(inner[:-1], value))) is not None:
                self.roots[inner, parameter] = root
        self._function(inner, here)
        return self.results[inner]

    def faults(self) -> Iterator[str]:
        """Yield each subgroup operation or barrier that not all of those who must may come to together."""
        for path in self.callees:
            function = self._of(path)
            for label, block in function.blocks.items():
                for opcode, args in block:
                    whole = opcode == CONTROL_BARRIER and self.module.constants[args[0]] == SCOPE_WORKGROUP
                    if is_subgroup_operation(opcode) and self.blocks[path, label] > (WORKGROUP if whole else SUBGROUP):
                        yield f"operation {opcode} in {function.name} is under a condition that lanes do not share"


def faults(spirv: bytes) -> list[str]:
    """Return what is wrong with a kernel, one line for each operation; nothing where it is right."""
    if not any(is_subgroup_operation(opcode) for opcode, _ in instructions(spirv)):
        return []
    return list(Analysis(Module(spirv)).faults())
