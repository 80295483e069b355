"""Parquet files that are written as they are gone through, with columns of free JSON as Hugging Face datasets reads them.

Arrow gives every row the same keys and fills in nulls, which turns `{"city": "Bern"}` into `{"city": "Bern", "query": null}` once another
call has a query. So what is free in form is stored as JSON text: in columns of kind `JSON`, which datasets (from 4.7 on) gives back as
the values that they were, or as plain text for loaders that decode it themselves.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gradprism.runtime.files import atomic_write

ROWS = 1000  # rows of a row group, and of what is in memory at once

Kind = pa.DataType | Literal["json", "list of json"]


def json_text(value: object) -> str:
    """`value` as JSON text, keys in their order, no escapes of letters."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_parquet(path: Path, columns: Mapping[str, Kind], rows: Iterable[Mapping[str, object]]) -> int:
    """Writes the rows, `ROWS` at a time; gives how many there were. With none there is no file."""
    rows = iter(rows)
    some, written = list(islice(rows, ROWS)), 0
    if not some:
        return 0
    schema = _schema(columns)
    with atomic_write(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while some:
            arrays = [_array([row.get(name) for row in some], kind) for name, kind in columns.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            written += len(some)
            some = list(islice(rows, ROWS))
    return written


def _schema(columns: Mapping[str, Kind]) -> pa.Schema:
    types = {"json": pa.json_(), "list of json": pa.list_(pa.json_())}
    schema = pa.schema([(name, types[kind] if isinstance(kind, str) else kind) for name, kind in columns.items()])
    if not any(isinstance(kind, str) for kind in columns.values()):
        return schema
    from datasets import Features  # takes a second to import

    return Features.from_arrow_schema(schema).arrow_schema


def _array(values: list[object], kind: Kind) -> pa.Array:
    if not isinstance(kind, str):
        return pa.array(values, kind)
    if kind == "json":
        texts = pa.array([None if value is None else json_text(value) for value in values], pa.string())
        return pa.ExtensionArray.from_storage(pa.json_(), texts)
    lists = [None if value is None else [json_text(item) for item in value] for value in values]  # type: ignore[attr-defined]
    texts = pa.array(lists, pa.list_(pa.string()))
    items = pa.ExtensionArray.from_storage(pa.json_(), texts.values)
    return pa.ListArray.from_arrays(texts.offsets, items, mask=texts.is_null())
