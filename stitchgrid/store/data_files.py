"""The files that snapshots list, rows and extracts, each checked against its own name when it is read."""

import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa

from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.files import Files
from stitchgrid.store.layout import EXTRACTS, SNAPSHOT_DATA, DataName, content_digest
from stitchgrid.store.parts import parquet_bytes, readable_files, rows_of_file
from stitchgrid.store.schemas import IDS, lost_columns
from stitchgrid.store.table_checks import most_bytes, read_footer, read_table
from stitchgrid.store.tiers import Tier

WRITER = b"stitchgrid.writer"  # a key of the footer; no one reads its value, which differs between writers
ROW_GROUP = 32_768  # rows that are skipped or read together


class DataFiles:
    """All files of rows and extracts of a store."""

    def __init__(self, files: Files):
        self.files = files
        # Of two writers of the same rows, the loser deletes its files: the files of the winner must have other names.
        self._writer = uuid.uuid4().hex

    def data_files(self) -> list[str]:
        """Return the data files that are there, listed or not, with their folder."""
        return [f"{SNAPSHOT_DATA}/{name}" for name in self.files.names(SNAPSHOT_DATA) if DataName.parse(name)]

    def write_rows(self, number: int, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Write the data files for the snapshot that will have this number; yield their names and their rows."""
        for data, rows in readable_files(table, self._bytes):
            yield self._write(SNAPSHOT_DATA, number, data, rows), rows

    def write_extract(self, number: int, table: pa.Table) -> str:
        """Write an extract for the snapshot that will have this number; return its name."""
        return self._write(EXTRACTS, number, self._bytes(table), table)

    def _bytes(self, table: pa.Table) -> bytes:
        metadata = {**(table.schema.metadata or {}), WRITER: self._writer}
        return parquet_bytes_in_groups(table.replace_schema_metadata(metadata))

    def _write(self, folder: str, number: int, data: bytes, table: pa.Table) -> str:
        name = f"{folder}/{DataName(number=number, digest=content_digest(data), num_rows=table.num_rows)}"
        self.files.replace(name, data)
        return name

    def content(self, name: str) -> bytes:
        """Return what a data file or extract holds, checked against its name.

        Raises:
            DamagedFileError: If it is not what its name says.
            StoreError: If it cannot be read.
        """
        promise = DataName.parse(name.rpartition("/")[2])
        if promise is None:
            raise DamagedFileError("not the name of a file of a snapshot")
        data = self.files.read(name, most_bytes(promise.num_rows))
        if content_digest(data) != promise.digest:
            raise DamagedFileError(f"content differs from the digest in its name ({len(data)} bytes are there)")
        return data

    def table(self, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns of a data file or extract of a schema, all by default. Errors as those of `content`."""
        return self._whole(name, read_table(self.content(name), schema, columns), columns or schema.names)

    def opened(self, name: str, schema: pa.Schema) -> bytes:
        """Return a data file or extract that has the columns of a schema. Errors as those of `content`."""
        data = self.content(name)
        footer, shape = read_footer(data, schema)
        if lost := lost_columns(schema.names, shape.names, footer.metadata):
            raise DamagedFileError(f"lacks the columns {lost}")
        return data

    def _whole(self, name: str, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        promise = DataName.parse(name.rpartition("/")[2])
        if promise is None or table.num_rows != promise.num_rows:
            raise DamagedFileError(f"holds {table.num_rows} rows, not as many as its name promises")
        if lost := lost_columns(columns, table.column_names, table.schema.metadata):
            raise DamagedFileError(f"lacks the columns {lost}")
        return table

    def rows(self, tier: Tier, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the rows of a tier; text columns are dictionaries. Errors as those of `content`."""
        return self._whole(tier.file, rows_of_file(self.content(tier.file), columns), columns)

    def ids(self, tier: Tier) -> pa.Array:
        """Return the ids of the cells of a tier. Errors as those of `content`."""
        found = self.table(tier.ids, IDS)["cell_id"].combine_chunks()
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def parquet_bytes_in_groups(table: pa.Table) -> bytes:
    """Return a table as a Parquet file in groups of rows, which readers can skip."""
    return parquet_bytes(table, row_group_size=ROW_GROUP)
