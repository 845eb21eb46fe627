"""A Flight client that costs little: one open stream, one batch after the other.

``python -m benchmarks.flight_client PORT BATCH_FILE SECONDS`` prints, as JSON, how many batches
were answered, how long that took, and the round trips in microseconds.
"""

import json
import os
import sys
import time

import pyarrow as pa
import pyarrow.flight as fl

from benchmarks.serving import CPUS

WARM_UP = 20


def main(port, path, seconds):
    os.sched_setaffinity(0, CPUS[-1:])
    with pa.ipc.open_file(path) as file:
        batch = file.get_batch(0)
    client = fl.connect(f"grpc://127.0.0.1:{port}")
    writer, reader = client.do_exchange(fl.FlightDescriptor.for_path("infer"))
    writer.begin(batch.schema)
    for _ in range(WARM_UP):
        writer.write_batch(batch)
        assert reader.read_chunk().data.num_rows == batch.num_rows
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    clock, trips = time.perf_counter_ns, []
    started = now = clock()
    end = started + int(float(seconds) * 1e9)
    while now < end:
        sent = now
        writer.write_batch(batch)
        reader.read_chunk()
        now = clock()
        trips.append(now - sent)
    writer.close()
    client.close()
    trips_us = sorted(trip / 1000 for trip in trips)
    told = {"batches": len(trips), "seconds": (now - started) / 1e9, "trips_us": trips_us}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
