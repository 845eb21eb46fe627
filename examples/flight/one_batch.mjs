// One table to the engine over Arrow Flight, and its answer, from JavaScript:
//
//     npm install && node one_batch.mjs [TABLE.arrow [HOST:PORT]]
//
// Flight is Arrow IPC messages in gRPC messages: each FlightData holds the head and the body of one.
// With those two taken apart, any language with gRPC and Arrow is a Flight client.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { Message, tableFromIPC, tableToIPC } from "apache-arrow";

const HOUSES = fileURLToPath(new URL("../house-price/houses.arrow", import.meta.url));
const [path = HOUSES, address = "localhost:8815"] = process.argv.slice(2);
const PATH = 1; // the type of a descriptor that is a path, not a command

// The few of Flight's messages that an exchange needs, by their field numbers.
const bytes = (id) => ({ type: "bytes", id });
const protocol = {
  FlightService: {
    methods: {
      DoExchange: {
        requestType: "FlightData", requestStream: true,
        responseType: "FlightData", responseStream: true,
      },
    },
  },
  FlightDescriptor: {
    fields: { type: { type: "int32", id: 1 }, path: { rule: "repeated", type: "string", id: 3 } },
  },
  FlightData: {
    fields: {
      descriptor: { type: "FlightDescriptor", id: 1 },
      head: bytes(2), appMetadata: bytes(3), body: bytes(1000),
    },
  },
};
const nested = (...names) =>
  names.reduceRight((inner, name) => ({ nested: { [name]: inner } }), { nested: protocol });
const { arrow } = grpc.loadPackageDefinition(
  protoLoader.fromJSON(nested("arrow", "flight", "protocol"), { defaults: true }));

// An IPC stream is a row of: ffffffff, length of the head, head, body.
function* messagesOf(table) {
  const stream = tableToIPC(table, "stream");
  const view = new DataView(stream.buffer, stream.byteOffset);
  for (let at = 0, size; (size = view.getInt32(at + 4, true)) > 0; ) {
    const head = stream.subarray(at + 8, at + 8 + size);
    const length = Number(Message.decode(head).bodyLength);
    at += 8 + size + length;
    yield { head, body: stream.subarray(at - length, at) };
  }
}

function tableOf(messages) {
  const parts = messages.flatMap(({ head, body }) => {
    const before = Buffer.alloc(8, 0xff), padding = Buffer.alloc(-head.length & 7);
    before.writeInt32LE(head.length + padding.length, 4);
    return [before, head, padding, body];
  });
  return tableFromIPC(Buffer.concat(parts));
}

const client = new arrow.flight.protocol.FlightService(address, grpc.credentials.createInsecure());
const exchange = client.DoExchange();
let descriptor = { type: PATH, path: ["infer"] }; // with the first message alone
for (const message of messagesOf(tableFromIPC(readFileSync(path)))) {
  exchange.write({ descriptor, ...message });
  descriptor = undefined;
}
exchange.end();

const replies = [];
for await (const reply of exchange) replies.push(reply);
for (const row of tableOf(replies)) console.log(JSON.stringify(row));
client.close();
