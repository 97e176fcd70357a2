# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes to calls and replies to bytes, strictly: what two readers could read differently is refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import pytest
from jeepney.fds import FileDescriptor

from bridge.framing import ROOT, Bounds, ProtocolError, Reader, parse_call, serialise_reply
from bridge.messages import Call, Reply


def nested(levels: int, extra: str = "") -> bytes:
    """A call as many levels deep: itself, its parameters, lists in lists."""
    lists = levels - 2
    return f'{{"method":"a.B","parameters":{{{extra}"x":{"[" * lists}{"]" * lists}}}}}'.encode()


def parameters(text: str) -> bytes:
    return f'{{"method":"a.B","parameters":{text}}}'.encode()


# --- a call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (b'{"method":"a.B"}', Call("a.B")),
        (b'{"method":"a.B","parameters":{}}', Call("a.B")),
        # libvarlink's CLI sends it so.
        (b'{"method":"a.B","parameters":null}', Call("a.B")),
        (b' {\n"method" : "a.B"\t} ', Call("a.B")),
        (b'{"method":"a.B","parameters":{"x":[1,"y",null,true]}}', Call("a.B", {"x": [1, "y", None, True]})),
        (b'{"method":"a.B","more":true}', Call("a.B", more=True)),
        (b'{"method":"a.B","oneway":true}', Call("a.B", oneway=True)),
        (b'{"method":"a.B","upgrade":true}', Call("a.B", upgrade=True)),
        (b'{"method":"a.B","more":false,"oneway":false,"upgrade":true}', Call("a.B", upgrade=True)),
        # A key with a dot is an extension that others may know.
        (b'{"method":"a.B","com.example.trace":{"id":1}}', Call("a.B")),
        ('{"method":"ä.B"}'.encode(), Call("ä.B")),
        (b'{"method":"\\u00e4.\\ud83d\\ude00"}', Call("ä.\U0001f600")),
        # It is for others to say that there is no such method.
        (b'{"method":""}', Call("")),
    ],
)
def test_a_call_is_read(message: bytes, call: Call) -> None:
    assert parse_call(message) == call


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "not JSON"),
        (b" ", "not JSON"),
        (b"hello", "not JSON"),
        (b'{"method":"a.B"', "not JSON"),
        (b'{"method":"a.B"} {"method":"a.B"}', "not JSON"),
        (b'{"method":"a.B",}', "not JSON"),
        (b"{'method':'a.B'}", "not JSON"),
        (b'\xef\xbb\xbf{"method":"a.B"}', "not JSON"),
        (b'{"method":"a.\xff"}', "not JSON"),
        (b'{"method":"a.\xc0\xaf"}', "not JSON"),  # an overlong form
        (b'{"method":"a.\xed\xa0\x80"}', "not JSON"),  # half a surrogate pair
        (b'{"method":"a.\n"}', "not JSON"),
        (b"[]", "not an object"),
        (b'["method","a.B"]', "not an object"),
        (b"null", "not an object"),
        (b"7", "not an object"),
        (b'"method"', "not an object"),
        (b"{}", "no method"),
        (b'{"parameters":{}}', "no method"),
        (b'{"method":null}', "no method"),
        (b'{"method":7}', "no method"),
        (b'{"method":["a.B"]}', "no method"),
        (b'{"method":"a.B","parameters":[]}', "parameters"),
        (b'{"method":"a.B","parameters":"x"}', "parameters"),
        (b'{"method":"a.B","parameters":0}', "parameters"),
        (b'{"method":"a.B","parameters":false}', "parameters"),
        (b'{"method":"a.B","continues":true}', "unknown key in a call: 'continues'"),
        (b'{"method":"a.B","error":null}', "unknown key"),
        (b'{"method":"a.B","":1}', "unknown key"),
        (b'{"method":"a.B","More":true}', "unknown key"),
        (b'{"method":"a.B","more":1}', "flag"),
        (b'{"method":"a.B","oneway":0}', "flag"),
        (b'{"method":"a.B","upgrade":"true"}', "flag"),
        (b'{"method":"a.B","more":{}}', "flag"),
        (b'{"method":"a.B","more":true,"oneway":true}', "more than one"),
        (b'{"method":"a.B","more":true,"upgrade":true}', "more than one"),
        (b'{"method":"a.B","oneway":true,"upgrade":true}', "more than one"),
        (b'{"method":"a.B","more":true,"oneway":true,"upgrade":true}', "more than one"),
        (b'{"method":"a.B","method":"a.C"}', "twice"),
        (b'{"method":"a.B","m\\u0065thod":"a.B"}', "twice"),
        (parameters('{"x":1,"x":1}'), "twice"),
        (parameters('{"x":[{"y":{"z":1,"z":2}}]}'), "twice"),
        (b'{"method":"a.B","com.example":{"x":1,"x":1}}', "twice"),
        (parameters('{"x":NaN}'), "NaN"),
        (parameters('{"x":Infinity}'), "Infinity"),
        (parameters('{"x":[-Infinity]}'), "-Infinity"),
        (b'{"method":"a.B","more":null}', "no boolean"),
        (b'{"method":"a.B","com.example":1}', "unknown key"),
        (parameters('{"x":"\\ufffe"}'), "noncharacter"),
        (parameters('{"x":"\uffff"}'), "noncharacter"),
        (parameters('{"x":"\U0010fffe"}'), "noncharacter"),
        (parameters('{"\ufdd0":1}'), "noncharacter"),
        (parameters('{"x":"\\ud800"}'), "surrogate"),
        (parameters('{"x":"\\udfff"}'), "surrogate"),
        (parameters('{"x":"\\ude00\\ud83d"}'), "surrogate"),  # a pair the wrong way round
        (parameters('{"x":["a",{"y":"b\\ud83d"}]}'), "surrogate"),
        (parameters('{"\\udc00":1}'), "surrogate"),
        (b'{"method":"a.\\ud800"}', "surrogate"),
        (b'{"method":"a.B","com.example.\\ud800":1}', "surrogate"),
        (parameters('{"x":"a\\u0000b"}'), "NUL"),
        (parameters('{"x":[["\\u0000"]]}'), "NUL"),
        (parameters('{"a\\u0000":1}'), "NUL"),
    ],
)
def test_what_is_no_call_ends_the_connection(message: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        parse_call(message)


def test_a_complaint_does_not_repeat_what_is_long() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_call(json.dumps({"method": "a.B", "x" * 100_000: 1}).encode())
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("number", [0, -1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_of_64_bits_are_read_exactly(number: int) -> None:
    """Those over 2**63 are for the contract to refuse, as a parameter that is wrong."""
    assert parse_call(parameters(f'{{"x":{number}}}')).parameters == {"x": number}


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "9" * 5000, "1" + "0" * 400])
def test_integers_of_more_than_64_bits_are_floats(number: str) -> None:
    """For the contract to refuse: int() takes no more than some thousand digits, and no `int` of Varlink is a float."""
    assert parse_call(parameters(f'{{"x":{number}}}')).parameters == {"x": float(number)}


@pytest.mark.parametrize("number", ["1.0", "0.5", "-1e3", "1E0"])
def test_a_float_stays_one(number: str) -> None:
    (value,) = parse_call(parameters(f'{{"x":{number}}}')).parameters.values()
    assert type(value) is float
    assert value == float(number)


def test_true_stays_true() -> None:
    (value,) = parse_call(parameters('{"x":true}')).parameters.values()
    assert value is True


# --- depth ----------------------------------------------------------------------------------------------------------

# So many brackets that levels have to be counted, on two levels.
SIBLINGS = f'"y":[{",".join(["[]", "{}"] * ROOT.depth)}],'


@pytest.mark.parametrize("extra", ["", SIBLINGS], ids=["few", "many"])
@pytest.mark.parametrize("levels", [3, ROOT.depth - 1, ROOT.depth])
def test_levels_up_to_the_limit_are_read(levels: int, extra: str) -> None:
    assert "x" in parse_call(nested(levels, extra)).parameters


@pytest.mark.parametrize("extra", ["", SIBLINGS], ids=["few", "many"])
@pytest.mark.parametrize("levels", [ROOT.depth + 1, 1000, 1_000_000])
def test_levels_beyond_the_limit_are_refused(levels: int, extra: str) -> None:
    with pytest.raises(ProtocolError, match="nested" if levels < ROOT.items else "items"):
        parse_call(nested(levels, extra))


@pytest.mark.parametrize("opening", ['{"x":', '[{"x":', '{"x":['])
def test_objects_count_as_levels_too(opening: str) -> None:
    closing = opening.replace('"x":', "").translate(str.maketrans("[{", "]}"))[::-1]
    with pytest.raises(ProtocolError, match="nested"):
        parse_call(parameters('{"x":' + opening * 2 * ROOT.depth + "1" + closing * 2 * ROOT.depth + "}"))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100,
        "]" * 100,
        "{[" * 100,
        '"' + "[" * 100,
        "\\" + "[" * 100,
        '\\"' + "[" * 100 + '"',
        "[" * 100 + "\\",
        "\\\\" * 50 + "{" * 100,
    ],
)
def test_brackets_in_strings_are_no_levels(text: str) -> None:
    assert parse_call(json.dumps({"method": "a.B", "parameters": {"x": text, text: 1}}).encode()).parameters == {
        "x": text,
        text: 1,
    }


def test_a_quote_that_is_escaped_does_not_hide_levels() -> None:
    """The string ends at the quote after two backslashes, and what follows counts."""
    with pytest.raises(ProtocolError, match="nested"):
        parse_call(parameters('{"z":"\\\\","x":' + "[" * 100 + "]" * 100 + ',"w":"\\""}'))


@pytest.mark.parametrize("end", ["", "\\", '\\"', "\\\\\\"])
def test_a_string_without_an_end_is_refused(end: str) -> None:
    with pytest.raises(ProtocolError):
        parse_call(b'{"method":"' + b"[" * 100 + end.encode())


# --- items and members ----------------------------------------------------------------------------------------------


def test_the_bounds_of_root_are_what_the_contract_can_need() -> None:
    assert Bounds(4 * 1024 * 1024, 32, 40_000) == ROOT


@pytest.mark.parametrize("depth", [8, 9, 32, 256])
@pytest.mark.parametrize("above", [-1, 0, 1])
@pytest.mark.parametrize("extra", ["", '"y":[[],{}],'], ids=["alone", "with others"])
def test_depth_is_as_the_bounds_say(depth: int, above: int, extra: str) -> None:
    message, bounds = nested(depth + above, extra), Bounds(depth=depth)
    if above <= 0:
        assert "x" in parse_call(message, bounds).parameters
    else:
        with pytest.raises(ProtocolError, match=f"nested more than {depth} levels deep"):
            parse_call(message, bounds)


# Calls with so many commas and opening brackets: those of the call and of its parameters are three of them.


def of_numbers(number: int) -> bytes:
    return parameters(f'{{"x":[{",".join(["1"] * (number - 3))}]}}')


def of_members(number: int) -> bytes:
    return parameters(f'{{{",".join(f""""x{index}":1""" for index in range(number - 2))}}}')


def of_lists(number: int, each: str = "[]") -> bytes:
    """Each is an item itself, and has a comma before it but the first."""
    lists, one_more = divmod(number - 3, 2)
    return parameters(f'{{{""""y":1,""" * one_more}"x":[{",".join([each] * lists)}]}}')


def of_objects(number: int) -> bytes:
    return of_lists(number, "{}")


def with_text(number: int) -> bytes:
    """What is in texts does not count, nor do brackets that close."""
    return of_numbers(number).replace(b'"x":', b'"x,[{":', 1).replace(b"[1", b'["\\",[{[{' + b"," * 200 + b'"', 1)


@pytest.mark.parametrize("make", [of_numbers, of_members, of_lists, of_objects, with_text])
@pytest.mark.parametrize("items", [64, 65, 2048])
def test_items_are_as_many_as_the_bounds_say(make: Callable[[int], bytes], items: int) -> None:
    for number in (items - 1, items):
        assert parse_call(make(number), Bounds(items=items)).parameters
    with pytest.raises(ProtocolError, match=f"more than {items} items and members"):
        parse_call(make(items + 1), Bounds(items=items))


def test_many_items_are_counted_though_they_are_on_few_levels() -> None:
    """And few brackets: neither bound hides the other."""
    with pytest.raises(ProtocolError, match="items"):
        parse_call(of_numbers(65), Bounds(depth=256, items=64))
    with pytest.raises(ProtocolError, match="nested"):
        parse_call(nested(9), Bounds(depth=8, items=1_000_000))


SIZE = ROOT.message_bytes
HOSTILE = {
    # Levels are counted only where there are many brackets.
    "quotes": b"[" * 33 + b'"' * (SIZE - 33),
    "backslashes": b"[" * 33 + b"\\" * (SIZE - 33),
    "opening brackets": b"[" * SIZE,
    "closing brackets": b"]" * SIZE,
    "pairs": b"[]" * (SIZE // 2),
    "nested and closed": b"[" * (SIZE // 2) + b"]" * (SIZE // 2),
    "wrong pairs": b"[}" * (SIZE // 2),
    "objects in objects": b'{"":' * (SIZE // 4),
    "escaped quotes outside of strings": b"[" * 33 + b'\\"' * (SIZE // 2 - 17),
    "an endless string of backslashes": b"[" * 33 + b'"' + b"\\" * (SIZE - 34),
    "an endless string of escaped quotes": b"[" * 33 + b'"' + b'\\"' * (SIZE // 2 - 17),
    "endless strings of brackets": b'"[' * (SIZE // 2),
    "an endless string at the end": b'{"":"' + b"[" * (SIZE - 5),
    "digits": b"[" * 33 + b"1" * (SIZE - 33),
    "digits after a point": b"0." + b"1" * (SIZE - 2),
    "escapes": b'{"method":"' + b"\\u0061" * (SIZE // 6 - 3) + b'"}',
    "one escape in a long string": b'{"method":"\\u0061' + b"x" * (SIZE - 19) + b'"}',
    "empty lists": b'{"method":"a.B","parameters":{"x":[' + b"[]," * (SIZE // 3 - 20) + b"[]]}}",
    "spaces": b" " * SIZE,
    "levels deep in many lists": b"[" + (b"[" * 31 + b"]" * 31 + b",") * (SIZE // 63 - 1),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
def test_reading_takes_time_linear_in_the_size(message: bytes) -> None:
    """One thread serves everybody. What is quadratic in 4 MiB takes minutes; the bound is generous on purpose."""
    assert len(message) <= ROOT.message_bytes
    started = time.process_time()
    try:
        parse_call(message)
    except ProtocolError:
        pass
    assert time.process_time() - started < 2


# --- file descriptors -----------------------------------------------------------------------------------------------


def null() -> FileDescriptor:
    return FileDescriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


@pytest.mark.parametrize(
    ("reads", "number"),
    [
        (["+one\0"], 0),
        (["+one\0", "two\0"], 0),
        (["one\0", "+two\0"], 1),
        (["one\0+two\0"], 1),
        (["one\0+tw", "o\0"], 1),
        (["on", "e\0+two\0three\0"], 2),  # all three bytes of one sendmsg(2): nobody can know better
        (["+o", "ne\0"], 0),
        (["o", "+n", "e\0"], 0),
        (["o", "+ne\0"], 0),
        (["o", "ne\0+", "two\0"], 0),
        (["\0+\0"], 1),
        (["one\0two\0thr", "+ee\0"], 2),
    ],
)
def test_descriptors_are_of_the_message_that_begins_last(reads: list[str], number: int) -> None:
    """`+` is where the bytes that came with one begin: what is before it was sent earlier, and read at once with it."""
    reader = Reader()
    sent = null()
    taken = []
    for read in reads:
        reader.feed(read.replace("+", "").encode(), [sent] if "+" in read else [])
        while reader.next_message() is not None:
            taken.append(reader.take_fds())
    assert taken == [(sent,) if index == number else () for index in range(len(taken))]
    assert len(taken) > number
    assert reader.take_all_fds() == []
    sent.close()


@pytest.mark.parametrize("reads", [[], [1], [1, 0]])
def test_a_message_has_one_descriptor_at_most(reads: list[int]) -> None:
    reader = Reader()
    sent: list[FileDescriptor] = []
    for number in reads:
        new = [null() for _ in range(number)]
        reader.feed(b"x", new)
        sent += new
    more = [null()] if sent else [null(), null()]
    sent += more
    with pytest.raises(ProtocolError, match="more file descriptors than a call takes"):
        reader.feed(b"x", more)
    assert reader.take_all_fds() == sent
    for fd in sent:
        fd.close()


def test_descriptors_of_messages_that_were_not_taken_are_handed_over() -> None:
    reader = Reader()
    sent = [null(), null()]
    reader.feed(b"one\0", sent[:1])
    reader.feed(b"two", sent[1:])
    assert reader.next_message() == b"one"
    assert reader.take_all_fds() == sent
    assert reader.take_fds() == ()
    for fd in sent:
        fd.close()


# --- a stream of messages -------------------------------------------------------------------------------------------


def messages(reader: Reader) -> list[bytes]:
    return list(iter(reader.next_message, None))


def test_messages_end_with_nul() -> None:
    reader = Reader()
    reader.feed(b"one\0two\0\0thr")
    assert messages(reader) == [b"one", b"two", b""]
    reader.feed(b"ee\0")
    assert messages(reader) == [b"three"]


def test_messages_come_byte_by_byte() -> None:
    reader = Reader()
    found = []
    for byte in b"one\0\0two\0":
        reader.feed(bytes([byte]))
        found += messages(reader)
    assert found == [b"one", b"", b"two"]


def test_the_beginning_of_a_message_is_kept_when_others_are_taken() -> None:
    reader = Reader()
    assert not reader.size
    reader.feed(b"one\0tw")
    assert reader.size
    assert reader.next_message() == b"one"
    assert reader.size
    assert reader.next_message() is None
    reader.feed(b"o\0")
    assert reader.next_message() == b"two"
    assert not reader.size


def test_a_short_message_after_a_long_one_that_came_in_pieces_is_found() -> None:
    reader = Reader()
    reader.feed(b"x" * 100)
    assert reader.next_message() is None
    reader.feed(b"\0y\0")
    assert messages(reader) == [b"x" * 100, b"y"]


def test_many_messages_at_once() -> None:
    reader = Reader()
    reader.feed(b"x\0" * 100_000)
    started = time.process_time()
    assert messages(reader) == [b"x"] * 100_000
    assert time.process_time() - started < 2


def test_a_long_message_in_small_pieces_takes_time_linear_in_its_size() -> None:
    """What was searched for the end once is not searched again."""
    reader = Reader()
    piece = b"x" * 16
    started = time.process_time()
    for _ in range(ROOT.message_bytes // len(piece)):
        reader.feed(piece)
        assert reader.next_message() is None
    assert time.process_time() - started < 2
    reader.feed(b"\0")
    assert reader.next_message() == b"x" * ROOT.message_bytes


@pytest.mark.parametrize("length", [9, 10])
def test_a_message_up_to_the_limit_is_taken(length: int) -> None:
    reader = Reader(10)
    reader.feed(b"x" * length)
    assert reader.next_message() is None
    reader.feed(b"\0")
    assert reader.next_message() == b"x" * length


@pytest.mark.parametrize("end", [b"", b"\0"], ids=["unfinished", "finished"])
def test_a_message_beyond_the_limit_is_refused_as_soon_as_it_is(end: bytes) -> None:
    reader = Reader(10)
    reader.feed(b"x" * 11 + end)
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        reader.next_message()


def test_the_limit_is_of_one_message_and_not_of_all() -> None:
    reader = Reader(10)
    reader.feed((b"x" * 10 + b"\0") * 3 + b"y" * 10)
    assert messages(reader) == [b"x" * 10] * 3
    reader.feed(b"y")
    with pytest.raises(ProtocolError):
        reader.next_message()


def test_the_limit_without_another_is_that_of_the_module() -> None:
    reader = Reader()
    reader.feed(b"x" * ROOT.message_bytes)
    assert reader.next_message() is None
    reader.feed(b"x")
    with pytest.raises(ProtocolError):
        reader.next_message()


# --- a reply --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(), b"{}\0"),
        (Reply({"x": 1}), b'{"parameters":{"x":1}}\0'),
        # Client libraries differ in what they take for nothing, see serialise_reply.
        (Reply(error="io.machine1.Timeout"), b'{"error":"io.machine1.Timeout","parameters":null}\0'),
        (Reply(error="org.varlink.service.X"), b'{"error":"org.varlink.service.X","parameters":null}\0'),
        (Reply(error="io.systemd.X"), b'{"error":"io.systemd.X","parameters":{}}\0'),
        (Reply({"x": "y"}, error="a.E"), b'{"error":"a.E","parameters":{"x":"y"}}\0'),
        (Reply({"x": "ä\U0001f600"}), '{"parameters":{"x":"ä\U0001f600"}}\0'.encode()),
        # The only NUL is the one at the end.
        (Reply({"x": "a\0b"}), b'{"parameters":{"x":"a\\u0000b"}}\0'),
        # sd-json hangs up on a bare DEL.
        (Reply({"\x7f": "\\\x7f\\"}), b'{"parameters":{"\\u007f":"\\\\\\u007f\\\\"}}\0'),
    ],
)
def test_a_reply_is_written(reply: Reply, message: bytes) -> None:
    assert serialise_reply(reply) == message


class Endless:
    """The stream of a reply that others follow."""

    async def next(self) -> Reply:
        return Reply(stream=self)

    def close(self) -> None:
        """There is nothing to let go of."""


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(stream=Endless()), b'{"continues":true}\0'),
        (Reply({"x": 1}, stream=Endless()), b'{"parameters":{"x":1},"continues":true}\0'),
    ],
)
def test_a_reply_that_others_follow_says_so(reply: Reply, message: bytes) -> None:
    assert serialise_reply(reply) == message


def test_a_shared_reply_is_written_once() -> None:
    reply = Reply({"x": 1}, shared=True)
    message = serialise_reply(reply)
    assert message == b'{"parameters":{"x":1}}\0'
    assert serialise_reply(reply) is message


def test_another_reply_is_not_kept() -> None:
    reply = Reply({"x": 1})
    serialise_reply(reply)
    reply.parameters = {"x": 2}
    assert serialise_reply(reply) == b'{"parameters":{"x":2}}\0'


@pytest.mark.parametrize(("opening", "levels", "closing"), [(b"[", 31, b"]"), (b'{"x":[', 31, b"]}")])
def test_levels_count_alike_whatever_the_brackets_are(opening: bytes, levels: int, closing: bytes) -> None:
    """A level is a level: lists inside of objects, and one of each in turn, are not counted for less."""
    with pytest.raises(ProtocolError):
        parse_call(b'{"method":"a.B","parameters":{"x":' + opening * levels + closing * levels + b"}}")
