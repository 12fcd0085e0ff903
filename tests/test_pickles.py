from __future__ import annotations

import builtins
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2l.data.pickles import MAX_DEPTH, load_plain
from l2l.errors import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "refs(x).p"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: [{"a": [call]}], lambda call: {"k": (1, call)}])
def test_nothing_is_executed(tmp_path: Path, protocol: int, wrap: Callable[[object], object]) -> None:
    trace = tmp_path / "trace"
    calls = [
        Call(os.system, f"touch {trace}"),
        Call(eval, f"open({str(trace)!r}, 'w')"),
        Call(builtins.exec, f"open({str(trace)!r}, 'w')"),
        Call(Path.touch, trace),
        Call(getattr, "", "join"),
        Call(os.mkdir, str(trace)),
    ]
    for call in calls:
        path = write(tmp_path, pickle.dumps(wrap(call), protocol=protocol))
        with pytest.raises(InputError, match="only plain containers"):
            load_plain(path)
        assert not trace.exists()
        pickle.loads(pickle.dumps(wrap(calls[0]), protocol=protocol))  # the attack is real: it works elsewhere
        assert trace.exists()
        trace.unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x08set.__lt\x93.",
        b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"(iposix\nsystem\n.",
        b"c_codecs\ndecode\n.",
        b"cbuiltins\nbytearray\n.",
    ],
)
def test_a_forbidden_global_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="asks for [a-z_]+\\."):
        load_plain(write(tmp_path, content))


def test_the_stand_in_for_encode_cannot_be_bent(tmp_path: Path) -> None:
    """BUILD may set attributes of a function that a pickle was given; that must not outlive the pickle."""
    bend = b"\x80\x02c_codecs\nencode\n(NX\x0c\x00\x00\x00__defaults__X\x01\x00\x00\x00x\x85sd" + b"\x86b."
    with pytest.raises(InputError):
        load_plain(write(tmp_path, bend))
    for hostile in (Call(_codecs_encode, "a", "rot13"), Call(_codecs_encode, b"a", "latin1")):
        with pytest.raises(InputError):
            load_plain(write(tmp_path, pickle.dumps(hostile, protocol=2)))
    assert load_plain(write(tmp_path, pickle.dumps(b"\x00\xff", protocol=2))) == b"\x00\xff"


_codecs_encode = __import__("_codecs").encode

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(min_size=1),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_values_come_through(tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.p"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert load_plain(path) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_and_ordered_dicts(tmp_path: Path, protocol: int) -> None:
    value = [{1, 2}, frozenset({3}), OrderedDict([("b", 1), ("a", 2)])]
    loaded = load_plain(write(tmp_path, pickle.dumps(value, protocol=protocol)))
    assert loaded == value
    assert isinstance(loaded, list) and list(loaded[2]) == ["b", "a"]


def test_text_of_python_2(tmp_path: Path) -> None:
    assert load_plain(write(tmp_path, b"(lp0\nS'caf\\xc3\\xa9'\np1\naVna\\u00efve\np2\na.")) == ["café", "naïve"]
    assert load_plain(write(tmp_path, b"\x80\x02]q\x00(U\x05caf\xc3\xa9X\x06\x00\x00\x00na\xc3\xafvee.")) == [
        "café",
        "naïve",
    ]
    assert load_plain(write(tmp_path, b"\x80\x02]q\x00(U\x04caf\xe9U\x01ae.")) == ["café", "a"]


@given(st.binary(max_size=60))
def test_noise_is_an_input_error_or_plain(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.p"
    path.write_bytes(content)
    try:
        value = load_plain(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert isinstance(value, (list, tuple, dict, set, frozenset, str, bytes, bytearray, int, float, type(None)))


def test_truncated_missing_and_foreign_files(tmp_path: Path) -> None:
    whole = pickle.dumps([{"ref_id": index, "sent": "a" * 9} for index in range(5)], protocol=2)
    for length in range(len(whole)):
        with pytest.raises(InputError):
            load_plain(write(tmp_path, whole[:length]))
    with pytest.raises(InputError):
        load_plain(tmp_path / "none.p")
    with pytest.raises(InputError):
        load_plain(tmp_path)
    with pytest.raises(InputError):
        load_plain(write(tmp_path, b'[{"ref_id": 1}]'))


def test_depth_circles_and_sharing(tmp_path: Path) -> None:
    def nested(depth: int) -> bytes:
        return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."

    assert load_plain(write(tmp_path, nested(MAX_DEPTH))) is not None
    for depth in (MAX_DEPTH + 2, 200_000):
        with pytest.raises(InputError, match="deeper"):
            load_plain(write(tmp_path, nested(depth)))
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(InputError, match="deeper"):
        load_plain(write(tmp_path, pickle.dumps(circle)))
    shared: list[object] = []
    for _ in range(MAX_DEPTH - 2):
        shared = [shared, shared]  # 2^30 paths through 30 lists
    assert load_plain(write(tmp_path, pickle.dumps(shared))) is not None


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.", b"\x80\x04Nr\xff\xff\xff\x7f.", b"Np99999999999\n."],
    ids=["hashing a deep tuple", "a huge memo", "a huge memo in text"],
)
def test_what_would_end_the_process_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError):
        load_plain(write(tmp_path, content))
