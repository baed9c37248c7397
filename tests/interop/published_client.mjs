// The client that chain-sdk generates from the published proto, on the port of `--published-listen`, with a token that its own
// code signs.
//
// Run by `tests/it/interop.rs` as `node published_client.mjs MODULES MODE ADDRESS LEASE IDENTITY TEXT`. MODULES is the directory
// above `node_modules`, IDENTITY a directory with `mnemonic`, `cert.pem` and `key.pem`. The services are `web`, two replicas, and
// `db`, one; they print the lines of `loss_check.mjs`.
//
// MODE `unary`: checks responses and errors, and prints `all as published`. MODE `stream`: follows the logs of all services and
// the status of `db`. Prints `status AVAILABLE` for each status, and reports as `rest_client.mjs` does; its last line is `end`
// and the status codes of both streams.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { LossCheck, report } from "./loss_check.mjs";

const [modules, mode, address, lease, identity, text] = process.argv.slice(2);
const require = createRequire(join(modules, "index.js"));
const { createProviderSDK, JwtTokenManager, SDKErrorCode } = require("@akashnetwork/chain-sdk");
const { Secp256k1HdWallet } = require("@cosmjs/amino");

const NOTICE = "[leasemux: ";

const [owner, dseq, gseq, oseq, provider] = lease.split("/");
const leaseId = { owner, dseq, gseq: Number(gseq), oseq: Number(oseq), provider };
const of = (...services) => ({ leaseId, services });
const file = (name) => readFileSync(join(identity, name), "utf8");

const wallet = await Secp256k1HdWallet.fromMnemonic(file("mnemonic").trim(), { prefix: "akash" });
assert.equal((await wallet.getAccounts())[0].address, owner);
const tokens = new JwtTokenManager(wallet);
/** Returns the options of a call with a new token. */
const bearer = async (leases) => {
  const token = await tokens.generateToken({ version: "v1", iss: owner, leases });
  return { header: { authorization: `Bearer ${token}` } };
};
const full = await bearer({ access: "full" });

const sdk = (authentication) => createProviderSDK({ baseUrl: `https://${address}`, authentication }).akash.provider;
const rpc = sdk().lease.v1;

/** Returns the first message of a stream. */
const first = async (stream) => {
  for await (const message of await stream) return message;
};

/** Checks the status code of a failed call, and the reason of its ErrorInfo. */
const fails = async (call, code, reason) => {
  const error = await call.then(
    () => assert.fail(`no ${reason}`),
    (error) => error,
  );
  const detail = error.cause?.details?.find((detail) => detail.type === "google.rpc.ErrorInfo");
  assert.ok(detail, error);
  // Field 1 is first.
  const got = Buffer.from(detail.value).toString("latin1", 2, 2 + detail.value[1]);
  assert.deepEqual([error.code, got], [code, reason], error);
};

/** Checks the response of `serviceLogs`: whole lines of these replicas, each from the first. */
const checkLogs = ({ services }, names) => {
  assert.deepEqual(services.map(({ name }) => name).sort(), names);
  const check = new LossCheck(text, true);
  for (const { name, logs } of services) {
    const lines = Buffer.from(logs).toString().split("\n");
    assert.equal(lines.pop(), "");
    lines.filter((line) => !line.startsWith(NOTICE)).forEach((line) => check.line(name, line));
  }
};

async function unary() {
  const totals = ({ services }) => services.map(({ name, status }) => [name, status.total, status.availableReplicas]).sort();
  // A lease id alone belongs to either proto. The draft's answer to it is a stream, which a unary call does not accept.
  assert.deepEqual(totals(await rpc.serviceStatus(of(), full)), [["db", 1, 1], ["web", 2, 2]]);
  assert.deepEqual(totals(await rpc.serviceStatus(of("db"), full)), [["db", 1, 1]]);
  checkLogs(await rpc.serviceLogs(of(), full), ["db-0", "web-0", "web-1"]);
  checkLogs(await rpc.serviceLogs(of("db"), full), ["db-0"]);

  // A certificate, and neither.
  const certificate = sdk({ type: "mtls", cert: file("cert.pem"), key: file("key.pem") }).lease.v1;
  assert.deepEqual(totals(await certificate.serviceStatus(of("db"))), [["db", 1, 1]]);
  checkLogs(await certificate.serviceLogs(of("db")), ["db-0"]);
  await fails(rpc.serviceStatus(of()), SDKErrorCode.Unauthenticated, "CREDENTIALS_MISSING");
  await fails(certificate.serviceStatus(of(), full), SDKErrorCode.Unauthenticated, "CREDENTIALS_AMBIGUOUS");

  // A token for the logs of one service.
  const deployments = [{ dseq: Number(dseq), scope: ["logs"], services: ["db"] }];
  const granular = await bearer({ access: "granular", permissions: [{ provider, access: "granular", deployments }] });
  checkLogs(await rpc.serviceLogs(of(), granular), ["db-0"]);
  await fails(rpc.serviceLogs(of("web"), granular), SDKErrorCode.PermissionDenied, "SERVICE_NOT_GRANTED");
  await fails(rpc.serviceStatus(of("db"), granular), SDKErrorCode.PermissionDenied, "SCOPE_NOT_GRANTED");

  // Errors are the same on all four methods.
  const [stranger] = await (await Secp256k1HdWallet.generate(12, { prefix: "akash" })).getAccounts();
  const other = (changes) => ({ leaseId: { ...leaseId, ...changes }, services: [] });
  for (const call of [
    (request) => rpc.serviceStatus(request, full),
    (request) => rpc.serviceLogs(request, full),
    (request) => first(rpc.streamServiceStatus(request, full)),
    (request) => first(rpc.streamServiceLogs(request, full)),
  ]) {
    await fails(call(of("cache")), SDKErrorCode.NotFound, "SERVICE_NOT_FOUND");
    await fails(call(of("*")), SDKErrorCode.InvalidArgument, "INVALID_REQUEST");
    await fails(call(other({ dseq: "8" })), SDKErrorCode.NotFound, "LEASE_NOT_FOUND");
    await fails(call(other({ owner: stranger.address })), SDKErrorCode.PermissionDenied, "LEASE_NOT_YOURS");
    await fails(call({ services: [] }), SDKErrorCode.InvalidArgument, "INVALID_REQUEST");
  }

  // Methods of the provider, without an upstream.
  await fails(rpc.sendManifest({ leaseId, manifest: [] }, full), SDKErrorCode.Unimplemented, "NOT_OFFERED");
  await fails(sdk().v1.getStatus({}, full), SDKErrorCode.Unimplemented, "NOT_OFFERED");
  report("all as published");
}

async function followStatus() {
  for await (const { services } of await rpc.streamServiceStatus(of("db"), full)) {
    const [{ name, status }] = services;
    assert.deepEqual([services.length, name], [1, "db"]);
    report("status", status.availableReplicas);
  }
}

async function followLogs() {
  const check = new LossCheck(text, false);
  const replicas = new Map();
  for await (const { services } of await rpc.streamServiceLogs(of(), full)) {
    for (const { name, logs } of services) {
      // An entry may end within a line, or within a character.
      if (!replicas.has(name)) replicas.set(name, { decoder: new TextDecoder(), unfinished: "" });
      const replica = replicas.get(name);
      const lines = (replica.unfinished + replica.decoder.decode(logs, { stream: true })).split("\n");
      replica.unfinished = lines.pop();
      for (const line of lines) {
        const gap = /^\[leasemux: (\d+) lines? \(\d+ bytes\) missing here: .*\]$/.exec(line);
        if (gap) check.gap(name, Number(gap[1]));
        else if (/^\[leasemux: replica \d+ started\]$/.test(line)) check.started(name);
        else if (!line.startsWith(NOTICE)) check.line(name, line);
      }
    }
  }
}

if (mode === "unary") {
  await unary();
} else {
  /** Returns the status code of a stream's end. */
  const end = async (stream) => {
    const error = await stream.then(() => ({ code: 0 }), (error) => error);
    if (typeof error.code !== "number") throw error;
    return error.code;
  };
  report("end", ...(await Promise.all([end(followStatus()), end(followLogs())])));
}
process.exit();
