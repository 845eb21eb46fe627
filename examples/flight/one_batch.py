"""One table to the engine over Arrow Flight, and its answer: python one_batch.py [TABLE.arrow]."""

import sys

import pyarrow as pa
import pyarrow.flight as fl

LOCATION = "grpc://localhost:8815"
TABLE = "examples/house-price/houses.arrow"

with pa.ipc.open_file(sys.argv[1] if len(sys.argv) > 1 else TABLE) as file:
    table = file.read_all().combine_chunks()

client = fl.connect(LOCATION)
writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("infer"))
with writer:
    writer.begin(table.schema)
    writer.write_table(table)
    writer.done_writing()
    print(reader.read_all().to_pandas() if "--pandas" in sys.argv else reader.read_all())
