"""Score a directory of Parquet files: python score_parquet.py IN_DIR OUT_DIR [LOCATION].

Each file's rows go out batch by batch over one open stream, and a file with the same name and the
added columns of the answer comes out. Columns that the model does not read are kept as they are.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq

BATCH_ROWS = 10_000


def main(source, target, location="grpc://localhost:8815"):
    client = fl.connect(location)
    whole = fl.FlightDescriptor.for_command(b'{"max_reply_bytes":0}')  # never in parts
    wanted = client.get_schema(fl.FlightDescriptor.for_path("infer", "input")).schema
    Path(target).mkdir(parents=True, exist_ok=True)
    writer, reader = client.do_exchange(whole)
    with writer:
        writer.begin(wanted)
        for path in sorted(Path(source).glob("*.parquet")):
            rows = score(path, Path(target) / path.name, wanted, writer, reader)
            print(f"{path.name}: {rows} rows")
        writer.done_writing()


def score(path, target, wanted, writer, reader):
    with pq.ParquetFile(path) as file:
        out = None
        for batch in file.iter_batches(BATCH_ROWS):
            columns = [batch.column(field.name).cast(field.type) for field in wanted]
            writer.write_batch(pa.record_batch(columns, schema=wanted))
            scored = pa.Table.from_batches([batch])
            answer = reader.read_chunk().data
            for name in answer.schema.names:
                scored = scored.append_column(name, answer.column(name))
            out = out or pq.ParquetWriter(target, scored.schema)
            out.write_table(scored)
        if out is not None:
            out.close()
        return file.metadata.num_rows


if __name__ == "__main__":
    main(*sys.argv[1:])
