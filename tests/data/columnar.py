"""Parquet and Arrow files of the tests."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet


def write_table(path: Path, table: pa.Table) -> Path:
    """`table` as a file of the kind that its suffix says, .parquet or .arrow."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return path
