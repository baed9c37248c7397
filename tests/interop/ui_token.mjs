// The page of the REST port in a real Chromium.
//
// Run by `tests/it/ui.rs` as `node ui_token.mjs MODULES CHROMIUM URL TEXT TOKEN STATUS_TOKEN OTHER_TENANT OTHER_LEASE EXPIRED DSEQ OTHER_DSEQ`:
// tokens for everything, for the status only, of another tenant, for another lease, and one that has expired; the deployments of both
// tenants. Prints a word after each part of the test. Fails with an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { report } from "./loss_check.mjs";

const [modules, executablePath, url, text, token, statusToken, otherTenant, otherLease, expired, dseq, otherDseq] = process.argv.slice(2);
const require = createRequire(join(modules, "index.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** Deadline for every condition. */
const PATIENCE = 60_000;

function check(condition, problem) {
  if (!condition) throw new Error(problem);
}

// Chromium's sandbox does not work for root. The gateway's certificate is its own.
const args = ["--ignore-certificate-errors", ...(process.getuid() === 0 ? ["--no-sandbox"] : [])];
const browser = await chromium.launch({ executablePath, args });
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ignoreHTTPSErrors: true });
const page = await context.newPage();
page.setDefaultTimeout(PATIENCE);
const problems = [];
process.on("uncaughtException", (error) => {
  process.stderr.write(`${error.stack}\n${problems.join("\n")}\n`);
  process.exit(1);
});
page.on("pageerror", (error) => problems.push(`error: ${error.stack}`));
page.on("console", (message) => {
  if (message.type() === "error") problems.push(`console: ${message.text()}`);
});
page.on("request", (request) => {
  if (new URL(request.url()).host !== new URL(url).host) problems.push(`request to ${request.url()}`);
  if (request.url().includes(token)) problems.push(`the token is in a URL: ${request.url()}`);
});
await context.addInitScript(() => {
  globalThis.violations = [];
  addEventListener("securitypolicyviolation", (event) => globalThis.violations.push(event.violatedDirective));
});

async function accessibility(what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  check(violations.length === 0, `${what}: ${violations.map(({ id }) => id).join("; ")}`);
}

/** Enters a lease and a token, and opens them. */
async function enter(lease, secret) {
  await page.locator("#login-lease").fill(lease);
  await page.locator("#login-token").fill(secret);
  await page.locator("#login-token").press("Enter");
}

const isRefused = async (lease, secret, message) => {
  await enter(lease, secret);
  await page.locator("#login-error", { hasText: message }).waitFor();
  check((await page.locator("#login-token").inputValue()) === "" || secret === "", `${message}: the token stays in the dialog`);
  check((await page.locator(".row").count()) === 0, `${message}: the page has lines`);
};

// === Tokens that do not permit it ===

await page.goto(url);
check(page.url() === `${url}/`, `the page is at ${page.url()}`);
await page.locator("#login-dialog[open]").waitFor();
await accessibility("the dialog");
await page.keyboard.press("Escape");
check(await page.locator("#login-dialog[open]").isVisible(), "Escape closes the dialog");
await enter("seven", token);
await page.locator("#login-error", { hasText: "deployment" }).waitFor();
await enter(dseq, "");
await page.locator("#login-error", { hasText: "Paste a token" }).waitFor();
await isRefused(dseq, "x.y.z", /token/);
await isRefused(dseq, expired, /expired/);
// The lease follows from the token's account: another one's lease cannot be named.
await isRefused(dseq, otherTenant, /does not exist/);
await isRefused(dseq, otherLease, /lease/);
await isRefused(otherDseq, token, /does not exist/);
report("refused");

// === A token without logs, then a good one ===

await enter(dseq, statusToken);
await page.locator("#login-error", { hasText: /scope/i }).waitFor();
await page.locator(".replica .badge", { hasText: "ready" }).nth(2).waitFor();
check((await page.locator(".row").count()) === 0, "a token for the status shows lines");
await page.locator("#login-token").fill(token);
await page.locator("#login-open").click();
await page.locator("#login-dialog[open]").waitFor({ state: "detached" });
await page.locator("#state", { hasText: /^live$/ }).waitFor();
for (const name of ["web/0", "web/1", "db/0"]) await page.locator(".row .name", { hasText: name }).first().waitFor();
const shown = await page.locator(".row .text").first().textContent();
check(shown.endsWith(text.replace(/\x1b\[\d*m/g, "")), `a line: ${shown}`);
const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href]));
check(!kept.includes(token), `the token is kept: ${kept}`);
check((await page.locator("#login-token").inputValue()) === "", "the token is kept in the dialog");
check((await page.locator("#lease").textContent()).startsWith(dseq), "the lease is not shown");
await accessibility("the lease");
report("lines");

// === Restart ===

await page.getByRole("button", { name: "Restart db/0" }).click();
await page.locator("#restart-confirm").click();
await page.locator("#restart-progress .pending").first().waitFor();
await page.locator("#restart-text", { hasText: "Restarted." }).waitFor();
await page.locator("#restart-cancel").click();
const runs = (name) => page.evaluate(`import("/ui/main.js").then(({ app }) => app.store.sources.filter((one) => one.name === "${name}").length)`);
while ((await runs("db/0")) < 2) await page.evaluate(() => new Promise(requestAnimationFrame));
report("restarted");

// === A restart of the gateway: the token is still in memory ===

while ((await runs("web/0")) < 2) await page.evaluate(() => new Promise(requestAnimationFrame));
await page.locator("#state", { hasText: /^live$/ }).waitFor();
// The browser reports connections that are refused meanwhile.
const left = problems.filter((problem) => !/WebSocket connection|Failed to load resource/.test(problem));
check(left.length === 0, left.join("\n"));
const violations = await page.evaluate(() => globalThis.violations);
check(violations.length === 0, `violations of the policy: ${violations}`);
await browser.close();
report("done");
