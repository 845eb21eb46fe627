"""Flight calls besides inference: how soon one too many is refused, how fast the log is read."""

import json
import time

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from benchmarks.serving import engine

INFER = fl.FlightDescriptor.for_path("infer")
STREAMS = 4
LOG_ROWS, BATCH_ROWS = 200_000, 10_000


def connect(server):
    return fl.connect(f"grpc://127.0.0.1:{server.flight_port}")


def batch_of(workload):
    with pa.ipc.open_file(workload.body) as file:
        return file.get_batch(0)


def exchange(client, batch, count=1):
    """So many answers over a stream that stays open."""
    writer, reader = client.do_exchange(INFER)
    writer.begin(batch.schema)
    for _ in range(count):
        writer.write_batch(batch)
        assert reader.read_chunk().data.num_rows
    return writer, reader


@pytest.mark.benchmark(group="flight refusal")
def test_one_stream_too_many(benchmark, workloads):
    """HOSTILE 29: below 100 ms, whatever the open streams do."""
    workload = workloads["W1 c1"]
    batch = pa.record_batch(
        {"tensor": pa.FixedSizeListArray.from_arrays(pa.array(workload.tensor.ravel()), 29)}
    )
    with engine(workload.artifact, FLIGHT_PORT="0", FLIGHT_MAX_STREAMS=str(STREAMS)) as server:
        open_streams = [exchange(connect(server), batch) for _ in range(STREAMS)]
        client, refused_s = connect(server), []

        def ask():
            started_s = time.perf_counter()
            with pytest.raises(fl.FlightUnavailableError):
                list(client.do_action("ping"))
            refused_s.append(time.perf_counter() - started_s)

        benchmark.pedantic(ask, rounds=300, iterations=1, warmup_rounds=20)
        for writer, _ in open_streams:
            writer.close()

    benchmark.extra_info["slowest_ms"] = max(refused_s) * 1e3


@pytest.mark.benchmark(group="log over Flight")
@pytest.mark.parametrize("dataset", ["*", "out"])
def test_the_whole_log(benchmark, workloads, tmp_path, dataset):
    workload = workloads["W3"]
    log = {"LOCAL_INFERENCE_STORAGE": "256Mi", "PLATEAU_PAGE_SIZE": "1000"}
    ticket = fl.Ticket(json.dumps({"log": {"dataset": [dataset]}}))
    with engine(workload.artifact, FLIGHT_PORT="0", PERSIST_DIR=str(tmp_path), **log) as server:
        client = connect(server)
        exchange(client, batch_of(workload), LOG_ROWS // BATCH_ROWS)
        taken, spent_s = [], []

        def read():
            cpu_s = server.cpu_s()
            rows = bytes_ = 0
            for chunk in client.do_get(ticket):
                rows, bytes_ = rows + chunk.data.num_rows, bytes_ + chunk.data.nbytes
            assert rows == LOG_ROWS
            taken.append(bytes_)
            spent_s.append(server.cpu_s() - cpu_s)

        benchmark.pedantic(read, rounds=10, iterations=1, warmup_rounds=1)

    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(
        rows_per_s=LOG_ROWS / seconds,
        gigabytes_per_s=taken[-1] / seconds / 1e9,
        server_cpu_s_per_million_rows=sorted(spent_s)[len(spent_s) // 2] / LOG_ROWS * 1e6,
    )
