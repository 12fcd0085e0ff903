"""Pickles from strangers: plain containers, text and numbers come through, nothing is ever called."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from l2l.errors import InputError

MAX_DEPTH = 32
"""Containers inside containers; a REFER file needs five levels."""

MAX_LARGE = 1_000
"""Whole numbers of more than `LARGE_BITS` bits: Python can be made to hash many of them alike, and a dictionary of
20,000 such takes minutes."""
LARGE_BITS = 60

MAX_TUPLES = 10_000
"""Python hashes a tuple in a tuple by recursion without a guard, and many thousand levels end the process."""

_ADMITTED: dict[tuple[str, str], type] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "OrderedDict"): dict,  # which keeps order too and, unlike OrderedDict, lets nothing be set on it
}
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_CONTAINERS = (list, tuple, dict, set, frozenset)
_FOREIGN = {
    "EXT1": "an extension", "EXT2": "an extension", "EXT4": "an extension",  # Python's cache of them asks nobody
    "PERSID": "an object kept elsewhere", "BINPERSID": "an object kept elsewhere",
    "NEXT_BUFFER": "a buffer kept elsewhere", "READONLY_BUFFER": "a buffer kept elsewhere",
}  # fmt: skip


def load_plain(path: str | Path) -> object:
    """Read a pickle of lists, tuples, dicts, sets, text, bytes, numbers, booleans and None.

    Byte strings that Python 2 wrote as `str` are read as UTF-8, or as Latin-1 where the file does not hold UTF-8.

    Raises:
        InputError: if the file is missing, is no whole pickle, nests deeper than `MAX_DEPTH` (or in a circle), has more
            than `MAX_TUPLES` tuples or `MAX_LARGE` large numbers, or asks for anything else than plain containers; what
            it asks for is in the message and nothing was called.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from error
    try:
        _check_opcodes(content, path)
        try:
            value = _PlainUnpickler(content, path, "utf-8").load()
        except UnicodeDecodeError:
            value = _PlainUnpickler(content, path, "latin1").load()
    except InputError:
        raise
    except Exception as error:  # damaged pickles end in nearly any exception
        raise InputError(f"not a whole pickle: {error}", file=path) from error
    _check_depth(value, path)
    return value


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, path: str | Path, encoding: str):
        super().__init__(io.BytesIO(content), encoding=encoding)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if (module, name) == ("_codecs", "encode"):
            # A fresh function each time: a pickle may set attributes of what it was given.
            return lambda text, encoding: _latin1(text, encoding)
        raise InputError(f"the pickle asks for {module}.{name}; only plain containers are read", file=self.path)


def _latin1(text: object, encoding: object) -> bytes:
    """What Python 3 writes for bytes in protocols 0 to 2."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in a form that pickle does not write")
    return text.encode("latin1")


def _check_opcodes(content: bytes, path: str | Path) -> None:
    """Refuse, before anything is built, what would end or stop the process instead of raising."""
    stream, tuples, large = io.BytesIO(content), 0, 0
    while code := stream.read(1):
        opcode = _OPCODES[code]
        if opcode.name in _FOREIGN:
            raise InputError(f"the pickle asks for {_FOREIGN[opcode.name]}; only plain containers are read", file=path)
        if opcode.name == "STRING":  # pickletools.genops would insist on ASCII
            stream.readline()
            continue
        argument: Any = opcode.arg.reader(stream) if opcode.arg else None
        tuples += opcode.name.startswith("TUPLE")
        if tuples > MAX_TUPLES:
            raise pickle.UnpicklingError(f"more than {MAX_TUPLES:,} tuples")
        large += opcode.name in ("INT", "LONG", "LONG1", "LONG4") and argument.bit_length() > LARGE_BITS
        if large > MAX_LARGE:
            told = f"more than {MAX_LARGE:,} numbers of more than {LARGE_BITS} bits; write such ids as text"
            raise InputError(told, file=path)
        if opcode.name.endswith("PUT") and argument > len(content):  # the memo is an array up to the highest index
            raise pickle.UnpicklingError("a memo index beyond all reason")
        if opcode.name == "STOP":
            return


def _check_depth(value: object, path: str | Path) -> None:
    """Walk level by level, each container once per level: neither depth, nor sharing, nor a circle costs much."""
    level = {id(value): value}
    for _ in range(MAX_DEPTH + 1):
        inner: dict[int, object] = {}
        for container in level.values():
            if isinstance(container, dict):
                inner.update((id(part), part) for part in container.values() if isinstance(part, _CONTAINERS))
            if isinstance(container, _CONTAINERS):
                inner.update((id(part), part) for part in container if isinstance(part, _CONTAINERS))
        if not inner:
            return
        level = inner
    raise InputError(f"the pickle nests deeper than {MAX_DEPTH} levels", file=path)
