// The page of `leasemux ui` in a real Chromium.
//
// Run by `tests/it/ui.rs` as `node ui_page.mjs MODULES CHROMIUM URL TEXT SCREENSHOTS`. MODULES is the directory above
// `node_modules`, TEXT what the services print after their counters, SCREENSHOTS a directory. Prints a word after each part of the
// test, which waits for conditions of the page; the Rust test causes them. Fails with an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { report } from "./loss_check.mjs";

const [modules, executablePath, url, text, screenshots] = process.argv.slice(2);
const require = createRequire(join(modules, "index.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** Deadline for every condition. */
const PATIENCE = 60_000;

/** Rows of the test of scrolling. */
const MANY = 1_000_000;

function check(condition, problem) {
  if (!condition) throw new Error(problem);
}

/** Waits until `read()` returns `wanted`: the page follows an input later than the browser accepts it. */
async function settles(read, wanted, problem) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const found = await read();
    if (found === wanted) return;
    check(Date.now() < deadline, `${problem}: ${JSON.stringify(found)}`);
    await page.evaluate(() => new Promise(requestAnimationFrame));
  }
}

// Chromium's sandbox does not work for root.
const args = process.getuid() === 0 ? ["--no-sandbox"] : [];
const browser = await chromium.launch({ executablePath, args });
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "light" });
await context.grantPermissions(["clipboard-read", "clipboard-write"]);
const page = await context.newPage();
page.setDefaultTimeout(PATIENCE);
const problems = [];
process.on("uncaughtException", async (error) => {
  process.stderr.write(`${error.stack}\n${problems.join("\n")}\n`);
  await page.screenshot({ path: join(screenshots, "failed.png") }).catch(() => {});
  process.exit(1);
});
page.on("pageerror", (error) => problems.push(`error: ${error.stack}`));
page.on("console", (message) => {
  if (message.type() === "error") problems.push(`console: ${message.text()}`);
});
page.on("request", (request) => {
  if (new URL(request.url()).host !== new URL(url).host) problems.push(`request to ${request.url()}`);
});
await context.addInitScript(() => {
  globalThis.violations = [];
  addEventListener("securitypolicyviolation", (event) => globalThis.violations.push(event.violatedDirective));
});

/** Runs `action(app, argument)` in the page. */
const inPage = (action, argument) =>
  page.evaluate(`import("/main.js").then(({ app }) => (${action})(app, ${JSON.stringify(argument)}))`);

/** Waits until `condition(app, argument)` holds in the page. */
async function until(what, condition, argument) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    if (await inPage(condition, argument)) return;
    check(Date.now() < deadline, `${what} did not happen; problems: ${problems.join("; ")}`);
    await page.evaluate(() => new Promise(requestAnimationFrame));
  }
}

/**
 * Checks all rows of the page: each replica's lines count from line to line, but for the gaps that are shown, and from 1 after a
 * start. Returns what it has seen.
 */
const lossCheck = () =>
  inPage((app, expected) => {
    const replicas = {};
    let lost = 0;
    app.store.each(app.store.first, app.store.end, (block, at) => {
      const name = app.store.sources[block.source[at]].name;
      if (name.startsWith("hostile")) return;
      const replica = (replicas[name] ??= { lines: 0, runs: 0, last: null, lost: 0, started: false });
      const data = block.data[at];
      if (typeof data === "object" && data.kind === "gap") {
        if (!data.gap.exact) throw new Error(`${name}: a gap that is not exact`);
        replica.lost += data.gap.lines;
        lost += data.gap.lines;
      } else if (typeof data === "object" && data.kind === "event") {
        replica.started ||= data.event.kind === "started";
      } else if (typeof data === "string" || data.kind === "line") {
        const line = typeof data === "string" ? data : data.text;
        const number = Number.parseInt(line, 10);
        if (line !== `${number} ${expected}`) throw new Error(`${name}: not a line of this service: ${line}`);
        const isStart = replica.started && number === 1 + replica.lost;
        if (replica.last !== null && number !== replica.last + replica.lost + 1 && !isStart) {
          throw new Error(`${name}: line ${number} after line ${replica.last} and ${replica.lost} lost lines`);
        }
        replica.runs += isStart || replica.last === null ? 1 : 0;
        Object.assign(replica, { last: number, lost: 0, started: false, lines: replica.lines + 1 });
      }
    });
    return { replicas, lost };
  }, text);

async function accessibility(what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.map(({ id, nodes }) => `${id} at ${nodes.map(({ html }) => html.slice(0, 200)).join(", ")}`);
  check(found.length === 0, `${what}: ${found.join("; ")}`);
}

const screenshot = (name) => page.screenshot({ path: join(screenshots, `${name}.png`) });

// === The first lines ===

await page.goto(url);
check(page.url() === new URL("/", url).href, `the secret is still in the address ${page.url()}`);
await settles(() => page.evaluate(() => document.cookie), "", "scripts can read the cookie");
await page.locator("#state", { hasText: /^live$/ }).waitFor();
for (const name of ["web/0", "web/1", "db/0"]) {
  await until(`lines of ${name}`, (app, wanted) => app.store.sources.some((source) => source.name === wanted), name);
}
await page.locator(".row .text").first().waitFor();
await page.locator(".replica .badge", { hasText: "ready" }).nth(3).waitFor();
report("lines");

// === Hostile lines are text ===

await page.locator("#filter").fill("HOSTILE");
await page.locator(".row .text", { hasText: "HOSTILE 5" }).waitFor();
const hostile = (number) => page.locator(".row .text", { hasText: `HOSTILE ${number}` });
await settles(() => hostile(1).textContent(), "HOSTILE 1 <script>document.title='x'</script><img src=x onerror=alert(1)>", "a tag");
await settles(() => hostile(2).textContent(), "HOSTILE 2 ^[]0;title^G^[]8;;http://evil.test^[\\link^[[2J^[[1;1H", "a control sequence");
await settles(() => hostile(3).textContent(), "HOSTILE 3 <U+202E>reversed<U+2066>x<U+200B>", "a bidi control");
await settles(() => hostile(4).textContent(), "HOSTILE 4 red plain", "a colour");
await settles(() => hostile(4).locator("span.f1").textContent(), "red", "the colour has no effect");
await settles(() => hostile(5).textContent(), "HOSTILE 5 \ufffd\ufffd end", "bytes that are not UTF-8");
await settles(() => page.locator("#pane script, #pane img, #pane a").count(), 0, "a line has become an element");
check((await page.title()).endsWith("leasemux"), "a line has changed the title");
report("hostile");

// === Filter ===

await page.locator("#filter").fill("HOSTILE [34]");
await page.locator("#empty", { hasText: "No line matches" }).waitFor();
await page.locator("#regex").click();
await page.locator("#matches", { hasText: "2 matches" }).waitFor();
await page.locator(".row mark").nth(1).waitFor();
await settles(async () => (await page.locator(".row mark").allTextContents()).join(), "HOSTILE 3,HOSTILE 4", "the matches are not marked");
await page.locator("#case").click();
await page.locator("#filter").fill("hostile 3");
await page.locator("#matches", { hasText: "0 matches" }).waitFor();
await page.locator("#case").click();
// Context and replicas: the neighbours in the same log, once no other replica is shown.
await page.getByRole("button", { name: "Show only hostile/0" }).click();
await page.locator("#context").fill("1");
await until("three rows", (app) => app.view.isCurrent && app.view.count >= 3);
await page.locator(".row .text", { hasText: "HOSTILE 4" }).waitFor();
const around = async () => {
  const lines = await page.locator(".row .text").allTextContents();
  return lines.slice(0, 3).map((line) => line.slice(0, 9)).join();
};
await settles(around, "HOSTILE 2,HOSTILE 3,HOSTILE 4", "the context");
await page.locator("#filter").fill("(");
await page.locator("#error", { hasText: "no usable regular expression" }).waitFor();
// Hours for one line, in a thread that the page stops.
await page.locator("#filter").fill("(.|\\w|\\s)*#$");
await until("a frame", () => true);
await page.locator("#error", { hasText: "takes too long" }).waitFor();
await page.locator("#filter").fill("");
await page.locator("#regex").click();
await page.locator("#context").fill("0");
await page.getByRole("button", { name: "Show only hostile/0" }).click();
await page.locator("#error").waitFor({ state: "hidden" });
report("filter");

// === Keyboard only ===

await page.locator("#scroller").focus();
await page.keyboard.press("ArrowUp");
await page.keyboard.press("Shift+ArrowUp");
await page.keyboard.press("Shift+ArrowUp");
await until("three chosen rows", (app) => app.selected().length === 3);
await page.locator('#pause[aria-pressed="true"]').waitFor();
const current = await page.locator("#scroller").getAttribute("aria-activedescendant");
await settles(() => page.locator(`#${current}`).getAttribute("aria-selected"), "true", "the chosen row is not announced");
await page.locator("#newest", { hasText: "new line" }).waitFor();
await page.keyboard.press("End");
await page.locator("#newest").waitFor({ state: "hidden" });
await page.keyboard.press("/");
await settles(() => page.evaluate(() => document.activeElement.id), "filter", "/ does not reach the filter");
await page.keyboard.type("no such line");
await page.locator("#empty", { hasText: "No line matches" }).waitFor();
await page.keyboard.press("Escape");
await page.keyboard.press("Escape");
await page.locator("#empty").waitFor({ state: "hidden" });
await page.keyboard.press("?");
await page.locator("#help-dialog[open]").waitFor();
await accessibility("help");
await page.keyboard.press("Escape");
await page.locator("#help-dialog[open]").waitFor({ state: "detached" });
for (const name of ["utc", "relative", "off", "local"]) {
  await page.keyboard.press("t");
  await settles(() => page.locator("#time").inputValue(), name, `t does not choose ${name}`);
}
await settles(() => page.locator("#pause").getAttribute("aria-pressed"), "false", "the newest line is not followed");
report("keyboard");

// === Links, copies and files ===

await page.locator("#scroller").focus();
for (let step = 0; step < 5; step += 1) await page.keyboard.press("ArrowUp");
await page.keyboard.press("c");
await page.locator("#announcement", { hasText: "1 line copied" }).waitFor();
const copied = await page.evaluate(() => navigator.clipboard.readText());
check(/^(web\/[01]|db\/0|hostile\/0) /.test(copied) && !copied.includes("\x1b"), `copied: ${copied}`);
await page.keyboard.press("l");
await page.locator("#announcement", { hasText: "link copied" }).waitFor();
const link = await page.evaluate(() => navigator.clipboard.readText());
check(link.startsWith(new URL("/#line=", url).href), `link: ${link}`);
const linked = await context.newPage();
await linked.goto(link);
const chosen = linked.locator(".row.current");
await chosen.waitFor();
const name = (await chosen.locator(".name").textContent()).trim();
const shown = `${name} ${await chosen.locator(".text").textContent()}`;
check(shown === copied, `the link shows ${shown}, not ${copied}`);
await linked.close();
await page.keyboard.press("End");
await page.locator("#filter").fill("HOSTILE");
await page.locator("#matches", { hasText: "5 matches" }).waitFor();
for (const [button, read] of [["#download-text", (line) => line], ["#download-json", (line) => JSON.parse(line).text]]) {
  await page.locator("#save").click();
  const [file] = await Promise.all([page.waitForEvent("download"), page.locator(button).click()]);
  const lines = readFileSync(await file.path(), "utf8").trimEnd().split("\n").map(read);
  check(lines.length === 5 && lines.every((line) => line.includes("HOSTILE")), `saved: ${lines}`);
  await page.locator("#save-close").click();
}
await page.locator("#filter").fill("");
report("linked");

// === Accessibility and screenshots ===

for (const colorScheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme });
  await accessibility(colorScheme);
  await screenshot(colorScheme);
}
await page.setViewportSize({ width: 360, height: 740 });
await page.locator("#replicas").waitFor({ state: "hidden" });
await page.evaluate(() => new Promise(requestAnimationFrame));
const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
check(overflow <= 0, `the narrow page is ${overflow} pixels too wide`);
await accessibility("narrow");
await settles(() => page.locator("#pause").getAttribute("aria-pressed"), "false", "another size pauses");
await screenshot("narrow");
await page.setViewportSize({ width: 1280, height: 800 });
await page.emulateMedia({ colorScheme: "light" });
report("accessible");

// === Restart ===

await page.getByRole("button", { name: "Restart all replicas of web" }).click();
await page.locator("#restart-dialog[open]").waitFor();
await accessibility("restart");
await page.locator("#restart-confirm").click();
await page.locator("#restart-progress .pending").first().waitFor();
await page.locator("#restart-text", { hasText: "Restarted." }).waitFor();
await settles(() => page.locator("#restart-progress .active").count(), 2, "not both replicas were restarted");
await page.locator("#restart-cancel").click();
await until("lines of the new runs", (app) => {
  const instances = (name) => app.store.sources.filter((source) => source.name === name).length;
  return instances("web/0") >= 2 && instances("web/1") >= 2;
});
await lossCheck();
await page.locator("#selection").selectOption("previous");
await page.locator("#state", { hasText: /^complete$/ }).waitFor();
await until("lines of the previous runs", (app) => app.view.isCurrent && app.store.end > 0);
const previous = Object.keys((await lossCheck()).replicas).sort();
check(previous.join() === "web/0,web/1", `previous runs of ${previous}`);
// A time in the future, the dialog's cancellation, and one in the past.
await page.locator("#selection").selectOption("at");
await page.locator("#since-time").fill("2099-01-01T00:00:01");
await page.locator("#since-open").click();
await page.locator("#selection option:checked", { hasText: "from 2099-01-01 00:00:01" }).waitFor({ state: "attached" });
await page.locator("#selection").selectOption("tail=10000");
await page.locator("#selection").selectOption("at");
await accessibility("since");
await page.keyboard.press("Escape");
await settles(() => page.locator("#selection").inputValue(), "tail=10000", "a cancelled choice stays");
await page.locator("#selection").selectOption("at");
await page.locator("#since-time").fill("2020-01-01T00:00:01");
await page.locator("#since-open").click();
await page.locator("#state", { hasText: /^live$/ }).waitFor();
await until("all lines", (app) => app.view.isCurrent && app.store.end > 300);
await page.locator("#selection").selectOption("tail=100");
await page.locator("#state", { hasText: /^live$/ }).waitFor();
await until("the last lines", (app) => app.store.sources.filter((source) => source.name !== "hostile/0").length >= 3 && app.store.end >= 300);
report("restarted");

// === A lag, and a refill ===

await until("a gap", (app) => app.lost.gaps > 0);
await until("the sum of the gaps", (app) => {
  let lost = 0;
  app.store.each(app.store.first, app.store.end, (block, at) => {
    if (block.data[at].kind === "gap") lost += block.data[at].gap.lines;
  });
  const shown = document.getElementById("lost").textContent;
  return app.state() === "live" && lost === app.lost.lines && shown.startsWith(`${lost.toLocaleString("en")} lines missing`);
});
const before = await lossCheck();
check(before.lost > 0, "no line is missing");
await inPage((app) => {
  let gap = null;
  app.store.each(app.store.first, app.store.end, (block, at, number) => {
    if (block.data[at].kind === "gap") gap ??= number;
  });
  app.logView.show(gap);
});
await page.locator(".gap .note", { hasText: "missing" }).first().waitFor();
await screenshot("gap");
for (;;) {
  const gap = await inPage((app) => {
    let found = null;
    app.store.each(app.store.first, app.store.end, (block, at, number) => {
      if (block.data[at].kind === "gap") found ??= number;
    });
    if (found !== null) app.logView.show(found);
    return found;
  });
  if (gap === null) break;
  await page.locator(".gap .refill:not([disabled])").first().click();
  await until("a refill", (app, number) => app.store.row(number).data.kind === "note", gap);
}
const after = await lossCheck();
check(after.lost === 0 && (await inPage((app) => app.lost.gaps)) === 0, "lines are still missing");
report("refilled", before.lost);

// === A restart of the gateway ===

await until("the end of the stream", (app) => app.state().startsWith("reconnecting"));
await until("another run of db", (app) => app.store.sources.filter((source) => source.name === "db/0").length >= 2);
await page.locator("#state", { hasText: /^live$/ }).waitFor();
const whole = await lossCheck();
check(whole.lost === 0 && whole.replicas["db/0"].runs >= 2, `after the reconnect: ${JSON.stringify(whole)}`);
report("reconnected");

// === Another run of `leasemux ui` ===

await page.locator("#state", { hasText: "ended: open the address that leasemux ui has printed" }).waitFor();
// The browser reports the websockets that were refused.
const refusals = problems.splice(0).filter((problem) => !/WebSocket connection|Failed to load resource/.test(problem));
problems.push(...refusals);
report("refused");

// === Many rows ===

const times = await inPage(async (app, many) => {
  app.stream.close();
  const began = performance.now();
  for (let number = 0; number < many; ) {
    const lines = [];
    for (let line = 0; line < 500; line += 1, number += 1) {
      const time = `2026-01-01T00:00:${String(Math.floor(number / 20_000) % 60).padStart(2, "0")}.${String(number % 1e9).padStart(9, "0")}Z`;
      lines.push({ time, text: `${number} \x1b[32mINFO\x1b[0m request served in ${number % 97} ms, with a text of common length` });
    }
    app.reader.read({ service: "many", replica: number & 1, instance: "u/many/0", lines });
  }
  const read = performance.now() - began;
  app.logView.toEnd();
  const frame = () => new Promise(requestAnimationFrame);
  await frame();
  await frame();
  app.logView.leaveEnd();
  const scroller = document.getElementById("scroller");
  const durations = [];
  let last = await frame();
  for (let step = 0; step < 300; step += 1) {
    // Small steps, as of a wheel, and jumps of the scroll bar.
    scroller.scrollTop = step % 10 === 0 ? (scroller.scrollHeight * ((step * 7) % 300)) / 300 : scroller.scrollTop - 120;
    const now = await frame();
    durations.push(now - last);
    last = now;
  }
  durations.sort((one, other) => one - other);
  const at = (part) => durations[Math.floor(durations.length * part)].toFixed(1);
  const draw = [...app.logView.frames].sort((one, other) => one - other);
  return {
    rows: app.store.end - app.store.first,
    text: `read in ${read.toFixed(0)} ms; frames while scrolling: median ${at(0.5)} ms, p99 ${at(0.99)} ms, max ${durations.at(-1).toFixed(1)} ms; drawing: median ${draw[draw.length >> 1].toFixed(1)} ms`,
  };
}, MANY);
check(times.rows > 0.99 * MANY - 5000, `only ${times.rows} rows are kept`);
report("scrolled", times.rows, times.text);

const violations = await page.evaluate(() => globalThis.violations);
check(violations.length === 0, `violations of the policy: ${violations}`);
check(problems.length === 0, problems.join("\n"));
await browser.close();
report("done");
