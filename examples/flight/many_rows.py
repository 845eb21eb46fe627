"""A million rows over a few open streams, several batches of each in flight.

python many_rows.py [LOCATION [ROWS]]. What the pipeline takes is asked of the engine; the rows are
random. A stream answers in order, so that one thread writes while another reads; a bounded number
of unanswered batches keeps memory flat on both sides.
"""

import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

BATCH_ROWS = 10_000
STREAMS = 2
IN_FLIGHT = 4  # batches of one stream that are not answered yet


def random_batch(schema, rows):
    """A batch of a schema of numbers, one flat list per row and column."""
    columns = []
    for field in schema:
        width = getattr(field.type, "list_size", 1)
        dtype = field.type.value_type.to_pandas_dtype()
        values = pa.array(np.random.default_rng(0).normal(size=rows * width).astype(dtype))
        columns.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
    return pa.record_batch(columns, schema=schema)


def stream(location, batch, count, answered):
    client = fl.connect(location)
    whole = fl.FlightDescriptor.for_command(b'{"max_reply_bytes":0}')  # never in parts
    writer, reader = client.do_exchange(whole)
    room = threading.Semaphore(IN_FLIGHT)

    def write():
        writer.begin(batch.schema)
        for _ in range(count):
            room.acquire()
            writer.write_batch(batch)
        writer.done_writing()

    sender = threading.Thread(target=write)
    sender.start()
    for reply in reader:
        answered.append(reply.data.num_rows)
        room.release()
    sender.join()
    writer.close()


def main(location="grpc://localhost:8815", rows=1_000_000):
    schema = fl.connect(location).get_schema(fl.FlightDescriptor.for_path("infer", "input")).schema
    batch = random_batch(schema, BATCH_ROWS)
    count = -(-int(rows) // (BATCH_ROWS * STREAMS))
    answered, started = [], time.perf_counter()
    streams = [
        threading.Thread(target=stream, args=(location, batch, count, answered))
        for _ in range(STREAMS)
    ]
    for one in streams:
        one.start()
    for one in streams:
        one.join()
    seconds = time.perf_counter() - started
    print(f"{sum(answered):,} rows in {seconds:.2f} s: {sum(answered) / seconds:,.0f} rows/s")


if __name__ == "__main__":
    main(*sys.argv[1:])
