"""The least that a Flight server can do: every batch goes back as it came.

``python -m benchmarks.flight_echo`` listens on a free port, says so, and echoes until it is ended.
With a model's path it answers each batch with the model's only output instead: the least that an
inference server in Python can do, for batches of this very model, without any check.
"""

import sys
import threading

import numpy as np
import onnxruntime as ort
import pyarrow as pa
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


class Least(fl.FlightServerBase):
    def __init__(self, location, model):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        super().__init__(location)

    def do_exchange(self, _context, _descriptor, reader, writer):
        session = self.session
        name, width = session.get_inputs()[0].name, session.get_inputs()[0].shape[1]
        reply = pa.schema([("out", pa.float32())])
        writer.begin(reply)
        while True:
            try:
                batch = reader.read_chunk().data
            except StopIteration:
                return
            values = batch.column(0).values
            tensor = np.ndarray((batch.num_rows, width), np.float32, values.buffers()[1])
            (output,) = session.run(None, {name: tensor})
            buffers = [None, pa.py_buffer(output)]
            array = pa.Array.from_buffers(reply.types[0], len(output), buffers)
            writer.write_with_metadata(pa.RecordBatch.from_arrays([array], schema=reply), b"")


if __name__ == "__main__":
    location = "grpc://127.0.0.1:0"
    server = Least(location, sys.argv[1]) if len(sys.argv) > 1 else Echo(location)
    sys.stdout.write(f"Listening: Flight on 127.0.0.1:{server.port}\nReady: echo\n")
    sys.stdout.flush()
    threading.Event().wait()
