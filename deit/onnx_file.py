"""Where an ONNX file keeps its weights, read without the package onnx and without loading them.

An ONNX file is a protobuf; this walks the few fields that matter and skips over the rest in a memory map.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_ATTRIBUTE = 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH = 5, 6
TENSOR_EXTERNAL_DATA = 13
ENTRY_KEY, ENTRY_VALUE = 1, 2

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """The other files in which the graph's tensors lie; empty for a file that stands alone.

    Raises:
        ValueError: the file is no ONNX graph.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        # closed with its last view; closing it by hand fails while an error's traceback still holds one
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    graphs = [body for number, body in _fields(content) if number == MODEL_GRAPH]
    if not graphs:
        raise ValueError("it has no graph")
    return {name for graph in graphs for name in _external(graph)}


def _external(graph: memoryview) -> Iterator[str]:
    for number, body in _fields(graph):
        if number == GRAPH_INITIALIZER:
            yield from _location(body)
        elif number == GRAPH_NODE:
            for node_field, attribute in _fields(body):
                if node_field != NODE_ATTRIBUTE:
                    continue
                for attribute_field, value in _fields(attribute):
                    if attribute_field == ATTRIBUTE_TENSOR:
                        yield from _location(value)
                    elif attribute_field == ATTRIBUTE_GRAPH:
                        yield from _external(value)


def _location(tensor: memoryview) -> Iterator[str]:
    for number, entry in _fields(tensor):
        if number == TENSOR_EXTERNAL_DATA:
            pair = {key: bytes(value) for key, value in _fields(entry)}
            if pair.get(ENTRY_KEY) == b"location":
                yield pair.get(ENTRY_VALUE, b"").decode(errors="replace")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Numbers and contents of the fields that have contents: messages, strings, bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == VARINT:
            _, place = _varint(message, place)
            continue
        if kind == BYTES:
            size, place = _varint(message, place)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"no protobuf at byte {place}")
        if place + size > len(message):
            raise ValueError("it is cut off")
        if kind == BYTES:
            yield tag >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
    raise ValueError(f"no protobuf at byte {place}")
