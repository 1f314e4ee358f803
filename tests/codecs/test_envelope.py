"""Bodies read together: each gives what it gives alone, whatever stands beside it and whatever came before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.codec import BoundCodec, Codec, Request
from gateway.codecs.envelope import MOST_ROWS, Envelopes
from gateway.codecs.native import NativeCodec
from gateway.codecs.oip_json import OipCodec
from gateway.errors import InvalidInput
from gateway.tensors import Feature, Signature, TensorSpec

CODECS: dict[str, Codec] = {codec.name: codec for codec in (OipCodec(), NativeCodec())}
DATATYPES = ("FP32", "FP64", "INT64", "INT32")


def signature(datatype: str, width: int, name: str = "x") -> Signature:
    features = tuple(Feature("abcdef"[column], name, column) for column in range(width))
    return Signature((TensorSpec(name, datatype, (-1, width)),), (TensorSpec("y", "FP32", (-1,)),), features)


def alone(codec: str, of: Signature, body: bytes) -> bytes | None:
    """The values of one body by a codec that has seen no other; None if it is refused or is not plainly rows."""
    try:
        request = CODECS[codec].bind("m", "1", of).decode(body, {})
    except InvalidInput:
        return None
    return request.flat if request.is_plain else None


def check(bound: BoundCodec, codec: str, of: Signature, bodies: list[bytes]) -> list[bytes | None]:
    found = bound.decode_plain(bodies)
    assert len(found) == len(bodies)
    for body, flat in zip(bodies, found, strict=True):
        if flat is not None:
            assert flat == alone(codec, of, body), body
    return found


def learn(bound: BoundCodec, bodies: list[bytes]) -> None:
    for body in [each for each in bodies for _ in range(2)]:  # an envelope is proved when it comes again
        try:
            bound.decode(body, {})
        except InvalidInput:
            continue


NUMBERS = st.one_of(
    st.integers(-20, 20).map(str),
    st.sampled_from(["0.5", "-1.25", "1e3", "1E-2", "-0", "-0.0", "16777217", "3", "5", "3.0", "5.0", "7.0"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
NO_NUMBERS = st.sampled_from(
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "3.5e38", "1e308", "9" * 20, "9" * 400, "2147483648", "true",
     "null", '"1"', "[1]", "[]", "{}", '{"a":1}', "", " ", "+1", ".5", "1.", "01", "1 2", "0x1", "]", "[", "],[",
     "1],[2", '"],["', '"', '","', "\\", "1]}", '"]', '["', "/**/1", "é", "1,", ",1", "1,2", "\x00"]
)  # fmt: skip
SPACE = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n", "\x0b", "\ufeff"])


@st.composite
def cells(draw: st.DrawFn, width: int) -> str:
    """What stands between the brackets of rows: mostly numbers, mostly as many as they have."""
    count = draw(st.sampled_from([width] * 6 + [0, width - 1, width + 1, 2 * width]))
    texts = [draw(NUMBERS if draw(st.integers(0, 14)) else NO_NUMBERS) for _ in range(count)]
    comma = draw(SPACE) + "," + draw(SPACE)
    return draw(SPACE) + comma.join(texts) + draw(st.sampled_from(["", "", "", "", " ", ",", "\n"]))


def pairs(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    """An object of *members*, in any order, perhaps with one of them twice."""
    members = draw(st.permutations(members)) if draw(st.booleans()) else members
    if not draw(st.integers(0, 5)):
        members = [*members, draw(st.sampled_from(members))]
    colon, comma = draw(SPACE) + ":" + draw(SPACE), "," + draw(SPACE)
    return "{" + comma.join(f'"{name}"{colon}{value}' for name, value in members) + "}"


@st.composite
def oip_bodies(draw: st.DrawFn, width: int, name: str, datatype: str) -> str:
    rows = draw(st.sampled_from([1, 1, 2, 3]))
    data = st.builds("[{}]".format, cells(rows * width))
    decoys = ["[]", "[3,5]", "[3.0,5.0]", "[1,2]", '"data"', '"data[1]"', '"[1,2]"', '"\\"data\\":[1,2]"', "[[1,2]]"]
    members = [
        ("name", draw(st.sampled_from([json.dumps(name)] * 8 + ['"data"', '"\\u0078"', '"z"', "[1]"]))),
        ("shape", draw(st.sampled_from([f"[{rows},{width}]"] * 8 + [f"[ {rows} , {width} ]", f"[{rows},{width}.0]",
                                        f"[{width},{rows}]", "[3,5]", f"[true,{width}]", f"[2,{width}]"]))),
        ("datatype", draw(st.sampled_from([f'"{datatype}"'] * 8 + ['"FP32"', '"INT64"', '"BOOL"']))),
        ("data", draw(data)),
    ]  # fmt: skip
    if not draw(st.integers(0, 5)):
        key = draw(st.sampled_from(["data", "parameters", "d\\u0061ta", 'x\\"data', "shape", "name", "dat"]))
        members.insert(draw(st.integers(0, 4)), (key, draw(st.sampled_from(decoys) | data)))
    tensor = pairs(draw, members)
    document = [("inputs", draw(st.sampled_from([f"[{tensor}]"] * 6 + [f"[{tensor},{tensor}]", tensor])))]
    if not draw(st.integers(0, 5)):
        document.append((draw(st.sampled_from(["id", "data", "outputs", "inputs"])), draw(st.sampled_from(decoys))))
    return pairs(draw, document)


@st.composite
def native_bodies(draw: st.DrawFn, width: int) -> str:
    names = list("abcdef"[:width])
    rows = [f"[{draw(cells(width))}]" for _ in range(draw(st.sampled_from([1] * 6 + [0, 2])))]
    decoys = ["[]", "[[3,5]]", "[[3.0,5.0]]", "[[1,2]]", '"rows"', "[3,5]", '"\\"rows\\":[[1,2]]"']
    columns = draw(st.sampled_from([names] * 3 + [names[::-1], names[1:], [*names, "z"], names[:1] * width]))
    members = [("columns", json.dumps(columns)), ("rows", "[" + ",".join(rows) + "]")]
    roll = draw(st.integers(0, 7))
    if roll == 0:
        key = draw(st.sampled_from(["rows", "columns", "r\\u006fws", 'x\\"rows', "other"]))
        members.insert(draw(st.integers(0, 2)), (key, draw(st.sampled_from(decoys))))
    elif roll == 1:
        named = pairs(draw, [(name, draw(NUMBERS)) for name in names])
        members = [("rows", f"[{named}]")]
    return pairs(draw, members)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[str, Signature, list[bytes], list[bytes]]:
    """A codec, what it is bound to, bodies that it has learned from, and bodies to be read together."""
    codec, datatype, width = (
        draw(st.sampled_from(list(CODECS))),
        draw(st.sampled_from(DATATYPES)),
        draw(st.integers(1, 3)),
    )
    name = draw(st.sampled_from(["x", "x", "data", "rows"]))
    whole = oip_bodies(width, name, datatype) if codec == "oip" else native_bodies(width)
    bodies = st.lists(whole.map(lambda text: text.encode()), min_size=1, max_size=4)
    before, now = draw(bodies), draw(bodies)
    # The same envelopes with other cells, which is what is read together.
    for body in before + now:
        opening, bracket, rest = body.rpartition(b"[")
        if bracket and draw(st.booleans()):
            cell = draw(cells(width * draw(st.sampled_from([1, 1, 2, 3])))).encode()
            now.append(opening + bracket + cell + rest[rest.find(b"]") :])
    for _ in range(draw(st.integers(0, 2))):
        body = draw(st.sampled_from(now))
        place = draw(st.integers(0, len(body)))
        cut = draw(st.integers(0, 3))
        now.append(
            body[:place] + draw(st.sampled_from([b"", b"]", b"[", b'"', b"\xff", b",", b"}"])) + body[place + cut :]
        )
    return codec, signature(datatype, width, name), before, draw(st.permutations(now))


@settings(max_examples=400, deadline=None)
@given(scene=scenes())
def test_bodies_read_together_give_what_each_gives_alone(
    scene: tuple[str, Signature, list[bytes], list[bytes]],
) -> None:
    codec, of, before, now = scene
    bound = CODECS[codec].bind("m", "1", of)
    learn(bound, before)
    check(bound, codec, of, now)
    learn(bound, now)
    check(bound, codec, of, now + before)
    for body in now:  # each alone, after the others
        check(bound, codec, of, [body])


def oip(*cells: Any, data: str | None = None, rows: int = 1) -> bytes:
    text = data if data is not None else ",".join(map(str, cells))
    return f'{{"inputs":[{{"name":"x","shape":[{rows},2],"datatype":"FP32","data":[{text}]}}]}}'.encode()


def native(*cells: Any) -> bytes:
    return f'{{"columns":["a","b"],"rows":[[{",".join(map(str, cells))}]]}}'.encode()


@pytest.mark.parametrize(("codec", "write"), [("oip", oip), ("native", native)])
@pytest.mark.parametrize("datatype", DATATYPES)
@given(rows=st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=1, max_size=6))
def test_known_envelopes_are_read_together_and_unknown_ones_are_not(
    codec: str, write: Any, datatype: str, rows: list[tuple[int, int]]
) -> None:
    """The short way is not empty: what it must read, it reads."""
    of = signature(datatype, 2)
    bodies = [write(*row).replace(b"FP32", datatype.encode()) for row in rows]
    bound = CODECS[codec].bind("m", "1", of)
    assert bound.decode_plain(bodies) == [None] * len(bodies)
    learn(bound, bodies[:1])
    assert check(bound, codec, of, bodies) == [alone(codec, of, body) for body in bodies]
    assert None not in bound.decode_plain(bodies)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(drawn=st.data())
def test_bodies_of_as_many_rows_are_read_together(datatype: str, drawn: st.DataObject) -> None:
    of = signature(datatype, 2)
    rows = drawn.draw(st.sampled_from([2, 3, 40, MOST_ROWS]))
    table = st.lists(st.integers(-99, 99), min_size=2 * rows, max_size=2 * rows)
    bodies = [
        oip(*cells, rows=rows).replace(b"FP32", datatype.encode()) for cells in drawn.draw(st.lists(table, max_size=4))
    ]
    known = oip(*range(2 * rows), rows=rows).replace(b"FP32", datatype.encode())
    bound = CODECS["oip"].bind("m", "1", of)
    assert bound.decode_plain([known]) == [None]
    learn(bound, [known])
    assert check(bound, "oip", of, [known, *bodies]) == [alone("oip", of, body) for body in (known, *bodies)]
    assert None not in bound.decode_plain([known, *bodies])


def test_rows_of_different_numbers_and_rows_with_nothing_in_them_are_told_apart() -> None:
    of = signature("FP32", 2)
    bound = CODECS["oip"].bind("m", "1", of)
    bodies = [oip(*range(2 * rows), rows=rows) for rows in (1, 3, 2, 3, 1, 64, 65)]
    learn(bound, bodies)
    found = check(bound, "oip", of, bodies)
    assert [len(flat) // 8 if flat else None for flat in found] == [1, 3, 2, 3, 1, 64, None]
    wrong = [
        "1,2,3",
        "1,2,3,4,5",
        "1,2,3,NaN",
        "1,2,[3,4]",
        "[1,2],3,4,5",
        "[1,2],[3,4]",
        "1,2],[3,4",
        '1,2,"3,4"',
        "1,2,3,1e39",
        "",
    ]
    for text in wrong:
        found = check(bound, "oip", of, [oip(1, 2, 3, 4, rows=2), oip(data=text, rows=2)])
        assert [flat is None for flat in found] == [False, True]


def test_one_wrong_body_does_not_keep_its_neighbours_from_being_read() -> None:
    of = signature("FP32", 2)
    bound = CODECS["oip"].bind("m", "1", of)
    learn(bound, [oip(1, 2)])
    wrong = [
        "",
        "1",
        "1,2,3",
        "NaN,1",
        '"1",2',
        "1,true",
        "[1],2",
        "1,2],[3,4",
        "1,",
        '1,"',
        '",2',
        "1e999,1",
        "3.5e38,1",
    ]
    for text in wrong:
        found = check(bound, "oip", of, [oip(1, 2), oip(data=text), oip(3, 4), oip(data=text)])
        assert [flat is None for flat in found] == [False, True, False, True]


def test_bodies_that_conspire_get_no_values() -> None:
    """What one opens another closes; what one has too many another has too few."""
    of = signature("FP32", 2)
    bound = CODECS["oip"].bind("m", "1", of)
    learn(bound, [oip(1, 2)])
    plots = [["1", "2,3,4"], ['1,"', '",2'], ['1,2,"', '",3', "4,5"], ["[1,2", "3,4]"], ["1,2],[3,4", ""],
             ["1,[2", "3],4"], ['"', '",1,2', "3,4"], ["1,2", "3,4],[5,6"], ['{"a":"', '"},2', "1,2"]]  # fmt: skip
    for texts in plots:
        bodies = [oip(data=text) for text in texts]
        found = check(bound, "oip", of, bodies)
        assert [flat is not None for flat in found] == [alone("oip", of, body) is not None for body in bodies]


@pytest.mark.parametrize(
    "crafted",
    [
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2],"data":[3.0,5.0]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[3,5],"data":[3,5]}]}',
        b'{"inputs":[{"name":"x","data":[1,2],"shape":[1,2],"datatype":"FP32","d\\u0061ta":[3,5]}]}',
        b'{"inputs":[{"name":"x\\"data","data":[1,2],"name":"x","shape":[1,2],"datatype":"FP32","data":[3,5]}]}',
    ],
)
def test_a_key_that_comes_twice_is_read_as_alone_even_if_its_writer_knows_how_envelopes_are_proved(
    crafted: bytes,
) -> None:
    of = signature("FP32", 2)
    bound = CODECS["oip"].bind("m", "1", of)
    learn(bound, [crafted] * 3)
    check(bound, "oip", of, [crafted, crafted.replace(b"[1,2]", b"[7,8]"), oip(7, 8)])
    check(bound, "oip", of, [crafted.replace(b"[1,2],", b"[7,8],").replace(b"[3,5],", b"[7,8],")])


@pytest.mark.parametrize("cells", ["3,5", "3.0,5.0", "1,2"])
def test_rows_that_come_twice_are_read_as_alone(cells: str) -> None:
    of = signature("FP32", 2)
    bound = CODECS["native"].bind("m", "1", of)
    learn(bound, [f'{{"columns":["a","b"],"rows":[[1,2]],"rows":[[{cells}]]}}'.encode()])
    check(bound, "native", of, [f'{{"columns":["a","b"],"rows":[[7,8]],"rows":[[{cells}]]}}'.encode()])


@pytest.mark.parametrize("codec", CODECS)
def test_odd_bodies_get_no_values(codec: str) -> None:
    of = signature("FP32", 2)
    bound = CODECS[codec].bind("m", "1", of)
    learn(bound, [oip(1, 2), native(1, 2)])
    plain = oip(1, 2) if codec == "oip" else native(1, 2)
    odd = [b"", b"[", b"]", b"\xff\xfe", b"\xef\xbb\xbf" + plain, plain[:-1], plain + b"}", plain + plain, b"null",
           plain.replace(b"1,2]", b"]"), b"[" * 3000, plain.replace(b"1,2]", b"1" * 70_000 + b",2]")]  # fmt: skip
    for body in odd:
        assert check(bound, codec, of, [plain, body]) == [alone(codec, of, plain), None]


def test_envelopes_that_never_repeat_leave_the_usual_one_readable() -> None:
    of = signature("FP32", 2)
    bound = CODECS["oip"].bind("m", "1", of)
    for number in range(300):
        body = oip(1, 2).replace(b'"data"', b" " * number + b'"data"')
        learn(bound, [body, oip(3, 4)])
        assert check(bound, "oip", of, [oip(5, 6)]) == [alone("oip", of, oip(5, 6))]


def test_many_ways_of_writing_many_numbers_of_rows_are_known_at_once() -> None:
    bound = CODECS["oip"].bind("m", "1", signature("FP32", 2))
    styles = [
        oip(*range(2 * rows), rows=rows).replace(b'"data"', b" " * spaces + b'"data"')
        for spaces in range(5)
        for rows in range(1, MOST_ROWS + 1)
    ]
    learn(bound, styles)
    assert None not in [bound.decode_plain([body])[0] for body in styles]


def test_an_envelope_is_proved_when_it_comes_again_and_never_where_its_numbers_are_many() -> None:
    proofs = 0

    def decode(body: bytes) -> Request | None:
        nonlocal proofs
        proofs += 1
        return None

    for width, rows, wanted in ((2, 1, 0), (2, 64, 0), (3000, 1, 0), (100, 64, 0)):
        known = Envelopes(b'"data"', 1, TensorSpec("x", "FP32", (-1, width)), decode)
        for spaces in range(50):
            known.learn(b'{"data":' + b" " * spaces + b"[1]}", rows)
        assert proofs == wanted
    for _ in range(9):
        known = Envelopes(b'"data"', 1, TensorSpec("x", "FP32", (-1, 3000)), decode)
        known.learn(b'{"data":[1]}')
    assert proofs == 0
    known = Envelopes(b'"data"', 1, TensorSpec("x", "FP32", (-1, 2)), decode)
    for _ in range(9):
        known.learn(b'{"data":[1,2]}')
    assert proofs == 1, "what was found unfit is not tried again"


def test_bodies_that_open_and_close_arrays_for_each_other_are_no_rows_in_a_large_batch_either() -> None:
    """simdjson reads nested arrays as flat ones: what may stand between the numbers is looked at before."""
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
    bound = OipCodec().bind("m", "1", signature)

    def body(numbers: str) -> bytes:
        return f'{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"FP32","data":[{numbers}]}}]}}'.encode()

    right = [body(f"{number}.25,0.5") for number in range(100)]
    learn(bound, right[:1])
    assert all(bound.decode_plain(right))
    for wrong in (["1,[2", "3],4"], ["true,1"], ['"a",1'], ["[1],2"]):
        found = bound.decode_plain([*right, *map(body, wrong)])
        assert all(found[:100])
        assert found[100:] == [None] * len(wrong)
