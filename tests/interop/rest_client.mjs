// A client of the REST port with the websocket library and the options of Akash Console's proxy: a token, further headers, the
// host name as server name, no Origin, and permessage-deflate offered. Follows logs and checks that no line is lost.
//
// Run by `tests/it/interop.rs` as `node rest_client.mjs MODULES ADDRESS LEASE SERVICES TOKEN CA`. MODULES is the directory above
// `node_modules`. Reports and fails as `rest_client.py` does.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Agent } from "node:https";
import { join } from "node:path";

const [modules, address, lease, services, token, ca] = process.argv.slice(2);
const WebSocket = createRequire(join(modules, "index.js"))("ws");

const report = (...words) => process.stdout.write(words.join(" ") + "\n");

/** The lines of each replica, by the name that frames have. */
const replicas = new Map();

/** Checks one frame. The first line of a replica may have any number; all others continue, after gaps and in each run. */
function take({ name, message, notice }) {
  const replica = replicas.get(name) ?? { runs: 0, last: null, lost: 0, started: false };
  replicas.set(name, replica);
  if (notice) {
    if (!message.startsWith("[leasemux: ")) throw new Error(`not a notice: ${message}`);
    if (notice.kind === "gap") {
      replica.lost += notice.lines;
      report("gap");
    }
    if (notice.kind === "started") replica.started = true;
    return;
  }
  const number = parseInt(message, 10);
  if (replica.last === null || (replica.started && number === 1)) {
    replica.runs += 1;
    report("run", name, replica.runs);
  } else if (number !== replica.last + replica.lost + 1) {
    throw new Error(`${name}: line ${number} after line ${replica.last} and ${replica.lost} lost lines`);
  }
  Object.assign(replica, { last: number, lost: 0, started: false });
}

const [, dseq, gseq, oseq] = lease.split("/");
const query = `follow=true&service=${encodeURIComponent(services)}`;
const socket = new WebSocket(`wss://${address}/lease/${dseq}/${gseq}/${oseq}/logs?${query}`, {
  agent: new Agent({ ca: readFileSync(ca), servername: "localhost", keepAlive: false }),
  headers: { Authorization: `Bearer ${token}`, "X-Forwarded-For": "192.0.2.1", "X-Request-Id": "interop" },
  perMessageDeflate: true,
});
socket.on("message", (data) => {
  if (typeof data !== "string") throw new Error("a binary frame");
  take(JSON.parse(data));
});
socket.on("unexpected-response", (_, response) => {
  throw new Error(`refused with status ${response.statusCode}`);
});
socket.on("error", (error) => {
  throw error;
});
socket.on("close", (code) => report("end", code));
