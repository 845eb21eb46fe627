"""One table to the engine over Arrow Flight, and its answer.

python one_batch.py [TABLE.arrow [LOCATION]]
"""

import sys

import pyarrow as pa
import pyarrow.flight as fl


def main(path="examples/house-price/houses.arrow", location="grpc://localhost:8815"):
    with pa.ipc.open_file(path) as file:
        table = file.read_all().combine_chunks()
    with fl.connect(location) as client:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("infer"))
        with writer:
            writer.begin(table.schema)
            writer.write_table(table)
            writer.done_writing()
            for row in reader.read_all().to_pylist():
                print(row)


if __name__ == "__main__":
    main(*sys.argv[1:])
