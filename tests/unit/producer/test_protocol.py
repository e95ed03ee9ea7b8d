"""Messages arrive as they were sent, or are refused by name."""

import json
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.api import protocol
from producer.api.protocol import Ack, Granted, Lease, Locate, ProtocolError, Welcome, decode, encode
from producer.api.unit import UnitId

MESSAGES = [kind for kind in vars(protocol).values() if isinstance(kind, type) and is_dataclass(kind)]

units = st.builds(UnitId, st.text(max_size=8), st.integers(), st.integers())
values = {
    str: st.text(max_size=20),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    UnitId: units,
    tuple[UnitId, ...]: st.lists(units, max_size=4).map(tuple),
    dict[str, float]: st.dictionaries(
        st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4
    ),
    tuple[str, ...]: st.lists(st.text(max_size=8), max_size=4).map(tuple),
}
values |= {
    kind | None: st.none() | st.builds(kind, **{field.name: values[field.type] for field in fields(kind)})
    for kind in (Lease, Granted)
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def test_there_are_messages_to_test() -> None:
    assert {Lease, Granted, Locate, Ack, Welcome} <= set(MESSAGES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_message_arrives_as_it_was_sent(kind: type, data: st.DataObject) -> None:
    message = kind(**{field.name: data.draw(values[field.type], field.name) for field in fields(kind)})
    assert decode(kind, encode(message)) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_nothing_but_a_message_or_a_refusal_comes_of_any_json(kind: type, data: st.DataObject) -> None:
    known = [st.sampled_from([field.name for field in fields(kind)])] if fields(kind) else []
    names = st.one_of(*known, st.text(max_size=8))
    said = data.draw(anything | st.dictionaries(names, anything, max_size=8))
    try:
        message = decode(kind, json.dumps(said).encode())
    except ProtocolError as error:
        assert str(error).startswith(kind.__name__)
    else:
        assert decode(kind, encode(message)) == message or "NaN" in encode(message).decode()


@given(st.binary(max_size=60))
def test_bytes_that_are_no_json_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="Ack"):
        decode(Ack, b"\xff" + raw)


def test_missing_and_unknown_fields_are_named() -> None:
    with pytest.raises(ProtocolError, match=r"Ack: unknown fields \['threw'\]; it has \['incarnation', 'through'"):
        decode(Ack, b'{"trainer": "a", "incarnation": 1, "threw": 2}')
    with pytest.raises(ProtocolError, match=r"Ack: .*missing 1 required .*'through'"):
        decode(Ack, b'{"trainer": "a", "incarnation": 1}')


@pytest.mark.parametrize(
    "said",
    [
        {"trainer": "a", "incarnation": 1, "through": "2"},
        {"trainer": "a", "incarnation": True, "through": 2},
        {"trainer": None, "incarnation": 1, "through": 2},
        {"trainer": "a", "incarnation": 1.5, "through": 2},
    ],
)
def test_a_value_of_the_wrong_type_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="Ack"):
        decode(Ack, json.dumps(said).encode())


@pytest.mark.parametrize("unit", [["train", 1], ["train", 1, 2, 3], ["train", "1", 2], 7, "abc", None])
def test_a_unit_that_is_none_is_refused(unit: object) -> None:
    with pytest.raises(ProtocolError, match="Locate"):
        decode(Locate, json.dumps({"trainer": "a", "incarnation": 1, "unit": unit, "wait_s": 1.0}).encode())


def test_units_travel_as_units() -> None:
    granted = Granted((UnitId("train", 3, 1),), (), 0.5)
    assert isinstance(decode(Granted, encode(granted)).units[0], UnitId)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000])
def test_json_made_to_break_a_parser_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="Ack: not JSON"):
        decode(Ack, raw)
