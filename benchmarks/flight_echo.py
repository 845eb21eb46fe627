"""The least that a Flight server can do: every batch goes back as it came.

``python -m benchmarks.flight_echo`` listens on a free port, says so, and echoes until it is ended.
"""

import sys
import threading

import pyarrow.flight as fl


class Echo(fl.FlightServerBase):
    def do_exchange(self, _context, _descriptor, reader, writer):
        writer.begin(reader.schema)
        while True:
            try:
                batch = reader.read_chunk().data
            except StopIteration:
                return
            writer.write_batch(batch)


if __name__ == "__main__":
    server = Echo("grpc://127.0.0.1:0")
    sys.stdout.write(f"Listening: Flight on 127.0.0.1:{server.port}\nReady: echo\n")
    sys.stdout.flush()
    threading.Event().wait()
