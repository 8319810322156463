#!/usr/bin/env python3
"""Writes tests/data/parquet: one table of own text in every form that src/format/parquet.h reads, a few
that it refuses, and the rows they hold. Needs pyarrow (made with 26.0.1).

usage: tools/parquet_fixtures.py [OUTPUT_DIR]
"""

import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

PLACES = ["the well", "Timbuktu", "the salt pans", "Агадес", "l'oasis de Tafilalet", "the 3rd dune 🐪"]


def rows():
    """23 rows: repeated texts (which a dictionary holds once), an empty one, text beyond ASCII."""
    for i in range(23):
        place = PLACES[i % len(PLACES)]
        article = f"Caravan {i // 2} left {place} at dawn. " + "It was a long way. " * (i % 4)
        yield {"article": "" if i == 7 else article, "highlights": f"A caravan left {place}.",
               "id": f"row-{i:04d}"}


def main():
    output = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data/parquet")
    output.mkdir(parents=True, exist_ok=True)
    data = list(rows())
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in data]
    (output / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    table = pa.Table.from_pylist(data)
    strings = pa.schema([pa.field(name, pa.string(), nullable=False) for name in table.column_names])

    def write(name, what=table, **options):
        # Without pyarrow's copy of the schema, which is longer than the data.
        pq.write_table(what, output / f"{name}.parquet", store_schema=False, **options)

    write("snappy")
    write("plain_gzip", compression="gzip", use_dictionary=False)
    write("v2_zstd", compression="zstd", data_page_version="2.0")
    write("v2_plain_none", compression="none", data_page_version="2.0", use_dictionary=False)
    # Rows 0-7, 8-15, 16-22; several pages each; required columns; checksums.
    write("row_groups", table.cast(strings), row_group_size=8, data_page_size=128,
          write_batch_size=2, write_page_checksum=True)
    # A dictionary that grows too large: the pages after it are PLAIN.
    write("fallback", dictionary_pagesize_limit=256, data_page_size=128, write_batch_size=2)
    holes = [{**row, "highlights": None if i % 3 == 1 else row["highlights"]}
             for i, row in enumerate(data)]
    write("nulls", pa.Table.from_pylist(holes))
    write("empty", table.slice(0, 0))
    # Refused, or columns of them.
    write("delta", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    write("lz4", table.slice(0, 3), compression="lz4")
    write("types", pa.table({"article": [1, 2], "highlights": [["a", "b"], ["c"]], "id": ["x", "y"],
                             "extra": [{"k": "v"}, {"k": "w"}]}))


if __name__ == "__main__":
    main()
