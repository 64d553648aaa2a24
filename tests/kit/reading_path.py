"""Reading path of a command: the functions that lead from its entry point to its landmarks.

A landmark is a function that the command is about, such as the optimizer step. A function is on the
path if it is on the call stack when a landmark is called, or if a function on the path calls it and
is in the same file. Calls into other files that lead to no landmark are leaves: their names and
docstrings say what a reader of the path needs. The wide path has the leaves too, one call deep.
"""

import dataclasses
import inspect
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType

import miniformer

SOURCE = Path(miniformer.__file__).parent


@dataclasses.dataclass
class ReadingPath:
    """Functions of a path in calling order, by file relative to the package.

    Args:
        functions: qualified names and line counts of each file's functions.
        missed: landmarks that were not called.
    """

    functions: dict[str, dict[str, int]]
    missed: list[str]

    @property
    def num_lines(self) -> int:
        """Lines of the functions; a nested function is part of the one around it."""
        return sum(
            lines
            for functions in self.functions.values()
            for name, lines in functions.items()
            if name.partition(".<locals>")[0] == name
        )

    def __str__(self) -> str:
        rows = [f"{file}: {', '.join(names)}" for file, names in self.functions.items()]
        functions = sum(map(len, self.functions.values()))
        total = f"{functions} functions, {len(self.functions)} files, {self.num_lines} lines"
        return "\n".join([*rows, total])


class Tracer:
    """Records the path of a program; a context manager around its run.

    Args:
        landmarks: functions as "file:qualified name", with the file relative to the package.
        last: landmark that ends the run, by an exception that the context manager catches.
    """

    class _Reached(BaseException):
        pass

    def __init__(self, landmarks: list[str], last: str | None = None) -> None:
        self.landmarks, self.last = landmarks, last
        self._reached: set[str] = set()
        self._on_path: set[CodeType] = set()
        self._callees: dict[CodeType, set[CodeType]] = defaultdict(set)
        self._leaves: dict[CodeType, set[CodeType]] = defaultdict(set)
        self._order: dict[CodeType, int] = {}

    def __enter__(self) -> "Tracer":
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        return isinstance(error, self._Reached)

    def path(self, *, wide: bool = False) -> ReadingPath:
        """The path of the recorded run; `wide`: with the leaves."""
        on_path = set(self._on_path)
        if wide:
            on_path.update(*(self._leaves[code] for code in self._on_path))
        pending = list(on_path)
        while pending:
            new = self._callees[pending.pop()] - on_path
            on_path |= new
            pending += new
        functions: dict[str, dict[str, int]] = {}
        for code in sorted(on_path, key=self._order.__getitem__):
            # Comprehensions and lambdas are read as lines of the function around them.
            if not code.co_name.startswith("<"):
                lines = len(inspect.getsourcelines(code)[0])
                functions.setdefault(_file(code), {})[code.co_qualname] = lines
        return ReadingPath(functions, [x for x in self.landmarks if x not in self._reached])

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(SOURCE)):
            return
        self._order.setdefault(code, len(self._order))
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(str(SOURCE)):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_name != "<module>":
            same_file = caller.f_code.co_filename == code.co_filename
            (self._callees if same_file else self._leaves)[caller.f_code].add(code)
        name = f"{_file(code)}:{code.co_qualname}"
        if name not in self.landmarks:
            return
        self._reached.add(name)
        stack: FrameType | None = frame
        while stack is not None:
            on_path = stack.f_code.co_filename.startswith(str(SOURCE))
            if on_path and stack.f_code.co_name != "<module>":
                self._order.setdefault(stack.f_code, len(self._order))
                self._on_path.add(stack.f_code)
            stack = stack.f_back
        if name == self.last:
            raise self._Reached


def _file(code: CodeType) -> str:
    return Path(code.co_filename).relative_to(SOURCE).as_posix()
