// A client of the REST port with the websocket library and the options of Akash Console's proxy: a token, further headers, the
// host name as server name, no Origin, and permessage-deflate offered. Follows logs and checks that no line is lost.
//
// Run by `tests/it/interop.rs` as `node rest_client.mjs MODULES ADDRESS LEASE SERVICES TOKEN CA TEXT`. MODULES is the directory
// above `node_modules`. Reports and fails as `rest_client.py` does.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Agent } from "node:https";
import { join } from "node:path";
import { LossCheck, report } from "./loss_check.mjs";

const [modules, address, lease, services, token, ca, text] = process.argv.slice(2);
const WebSocket = createRequire(join(modules, "index.js"))("ws");

const check = new LossCheck(text, true);

function take({ name, message, service, notice }) {
  if (!notice) {
    if (!name.startsWith(`${service}-`)) throw new Error(`${name} is not a replica of ${service}`);
    check.line(name, message);
    return;
  }
  if (!message.startsWith("[leasemux: ")) throw new Error(`not a notice: ${message}`);
  if (notice.kind === "gap") check.gap(name, notice.lines);
  if (notice.kind === "started") check.started(name);
  if (notice.kind === "end") report("notice", message);
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
