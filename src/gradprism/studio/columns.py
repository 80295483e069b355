"""Columns as bytes: what pages draw, filter and sort without asking again. `web/src/api.ts` describes the form."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["metric", "measure", "category", "text"]
_DTYPES = {"float64": "f64", "float32": "f32", "uint32": "u32", "int32": "i32", "uint16": "u16", "uint8": "u8"}
MOST_VALUES = 65_535  # of a category; the largest code says that there is none


@dataclass(frozen=True, slots=True)
class Column:
    """Numbers, codes of `names` (a category) or bytes of texts cut at `offsets` uint32 `[n + 1]`; `help` is a sentence for a person."""

    name: str
    label: str
    kind: Kind
    values: NDArray[Any]
    names: tuple[str, ...] | None = None
    offsets: NDArray[np.uint32] | None = None
    help: str = ""

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1


def measure(name: str, label: str, values: Any, help: str = "", kind: Kind = "measure") -> Column:
    """A column of numbers: integers as int32 where they fit, all others as float64."""
    array = np.asarray(values)
    if array.dtype.name not in _DTYPES:
        whole = np.issubdtype(array.dtype, np.integer) and (not array.size or np.abs(array).max() < 2**31)
        array = array.astype(np.int32 if whole else np.float64)
    return Column(name, label, kind, array, help=help)


def category(name: str, label: str, values: Sequence[str | None], names: Sequence[str] | None = None, help: str = "") -> Column:
    """A column of codes, by the values' first appearance unless `names` gives their order; None has the code that stands for none.

    Values past the `MOST_VALUES`th have none either.
    """
    order = list(dict.fromkeys(value for value in values if value is not None))[:MOST_VALUES] if names is None else list(names)
    dtype = np.uint8 if len(order) < 255 else np.uint16
    none = int(np.iinfo(dtype).max)
    code = {name: number for number, name in enumerate(order)}
    codes = np.fromiter((none if value is None else code.get(value, none) for value in values), dtype, len(values))
    return Column(name, label, "category", codes, tuple(order), help=help)


def text(name: str, label: str, texts: Sequence[str], help: str = "") -> Column:
    """A column of texts."""
    encoded = [one.encode() for one in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.uint32)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    return Column(name, label, "text", np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets=offsets, help=help)


def encode(columns: Sequence[Column], version: str, n: int) -> bytes:
    """The columns of n rows as the body of a `.bin`: header, and arrays that each begin at a multiple of 8."""
    parts: list[bytes] = []
    size = 0

    def add(array: NDArray[Any]) -> dict[str, int]:
        nonlocal size
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        place = {"start": size, "size": len(content)}
        parts.append(content + b"\0" * (-len(content) % 8))
        size += len(parts[-1])
        return place

    told = []
    for column in columns:
        about: dict[str, Any] = {"name": column.name, "label": column.label, "kind": column.kind, "length": len(column)}
        about |= {"dtype": _DTYPES[column.values.dtype.name], **add(column.values)}
        if column.names is not None:
            about["values"] = column.names
        if column.offsets is not None:
            about["offsets"] = add(column.offsets)
        told.append(about | ({"help": column.help} if column.help else {}))
    header = json.dumps({"version": version, "n": n, "columns": told}, ensure_ascii=False).encode()
    header += b" " * (-(4 + len(header)) % 8)
    return b"".join([len(header).to_bytes(4, "little"), header, *parts])
