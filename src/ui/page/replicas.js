// The list of services and replicas: state, selection and restarts.

import { visibleText } from "./ansi.js";
import { colorOf } from "./log_view.js";
import { post } from "./server.js";
import { duration } from "./time.js";

/** Seconds that one request waits for the outcome of a restart. */
const RESTART_WAIT = 2;

export class Replicas {
  /** `actions.changed(hidden)` gets the names of hidden replicas. */
  constructor(root, view, actions) {
    this.root = root;
    this.view = view;
    this.actions = actions;
    this.status = null;
    /** Why the status is not up to date; empty if it is. */
    this.problem = "";
    this.sources = new Map();
    this.isScheduled = false;
    setInterval(() => this.draw(), 10_000);
  }

  /** Takes a status of the lease. */
  update(status) {
    this.status = status;
    this.problem = "";
    this.schedule();
  }

  /** Shows why the status is not up to date, above the last one. */
  fail(message) {
    this.problem = visibleText(message);
    this.schedule();
  }

  /** Takes the state of the log of a replica: of its last heartbeat, or `null` after a line. */
  updateSource(name, source) {
    const note = sourceNote(source);
    if (note === (this.sources.get(name) ?? "")) return;
    this.sources.set(name, note);
    this.schedule();
  }

  /** Draws with the next frame, however many states change before it. */
  schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.draw();
    });
  }

  draw() {
    if (this.status === null) {
      if (this.problem !== "") this.root.replaceChildren(made("p", "stale", `No status: ${this.problem}`));
      return;
    }
    const focused = document.activeElement?.dataset?.key;
    const parts = [];
    if (this.problem !== "") parts.push(made("p", "stale", `The last known state: ${this.problem}`));
    if (this.status.stale_since) {
      parts.push(made("p", "stale", `State of ${this.status.stale_since.slice(0, 19)}Z: the gateway cannot reach its platform`));
    }
    for (const service of Object.values(this.status.services)) parts.push(this.service(service));
    if (parts.length === 0) parts.push(made("p", "quiet", "Nothing is deployed."));
    this.root.replaceChildren(...parts);
    if (focused) this.root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  service(service) {
    const section = made("section", "service");
    const head = made("div", "head");
    head.append(made("h2", "", service.name));
    head.append(made("span", "quiet", `${service.ready_replicas} of ${service.total} ready`));
    head.append(this.button("Restart", `restart ${service.name}`, `Restart all replicas of ${service.name}`, () => this.actions.restart(service.name, [])));
    section.append(head);
    const list = made("ul", "");
    for (const replica of service.replica_status) list.append(this.replica(service.name, replica));
    section.append(list);
    return section;
  }

  replica(service, replica) {
    const name = `${service}/${replica.replica}`;
    const item = made("li", `replica ${stateClass(replica)}`);
    const label = made("label", "");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = !this.view.hidden.has(name);
    box.dataset.key = `show ${name}`;
    box.addEventListener("change", () => {
      if (box.checked) this.view.hidden.delete(name);
      else this.view.hidden.add(name);
      this.actions.changed();
    });
    label.append(box, made("span", `name ${colorOf(name)}`, name));
    item.append(label);
    item.append(made("span", "badge", replica.ready ? "ready" : replica.state));
    item.append(this.button("Only", `only ${name}`, `Show only ${name}`, () => this.only(name)));
    item.append(this.button("Restart", `restart ${name}`, `Restart ${name}`, () => this.actions.restart(service, [replica.replica])));
    item.append(made("p", "quiet details", this.details(name, replica)));
    return item;
  }

  details(name, replica) {
    const parts = [];
    if (replica.state === "running" && replica.started_at) {
      parts.push(`up ${duration((Date.now() - Date.parse(replica.started_at)) / 1000)}`);
    }
    parts.push(`${replica.restarts} ${replica.restarts === 1 ? "restart" : "restarts"}`);
    const last = lastExit(replica);
    if (last !== "") parts.push(`last exit: ${last}`);
    if (replica.message) parts.push(replica.message);
    const note = this.sources.get(name) ?? "";
    if (note !== "") parts.push(note);
    return visibleText(parts.join(" · "));
  }

  /** Shows one replica only, or all if it is the only one already. */
  only(name) {
    const others = this.names().filter((other) => other !== name);
    const isOnly = others.every((other) => this.view.hidden.has(other)) && !this.view.hidden.has(name);
    this.view.hidden.clear();
    if (!isOnly) others.forEach((other) => this.view.hidden.add(other));
    this.draw();
    this.actions.changed();
  }

  names() {
    const services = Object.values(this.status?.services ?? {});
    return services.flatMap(({ name, replica_status: replicas }) => replicas.map(({ replica }) => `${name}/${replica}`));
  }

  button(text, key, label, action) {
    const button = made("button", "small", text);
    button.type = "button";
    button.dataset.key = key;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", action);
    return button;
  }
}

/** Returns what the list shows of the state of a log; empty if it is as expected. */
function sourceNote(source) {
  if (source?.state === "reconnecting") return `log unreadable (${source.reason || "unknown"})`;
  if (source?.state === "backfilling") return `${(source.lines_left ?? 0).toLocaleString("en")} lines behind`;
  return "";
}

function stateClass(replica) {
  if (replica.ready) return "ready";
  return ["waiting", "running", "terminated"].includes(replica.state) ? replica.state : "unknown";
}

function lastExit(replica) {
  const code = replica.last_exit_code !== undefined ? `exit code ${replica.last_exit_code}` : "";
  const signal = replica.last_signal !== undefined ? `signal ${replica.last_signal}` : "";
  const reason = replica.last_reason ?? "";
  const how = code || signal;
  return reason && how ? `${reason} (${how})` : reason || how;
}

function made(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Asks for a confirmation, restarts, and shows the progress in a dialog. */
export class RestartDialog {
  /** `path` of the lease is set before the first restart. */
  constructor(dialog, announce) {
    this.dialog = dialog;
    this.path = null;
    this.announce = announce;
    const part = (id) => dialog.querySelector(`#restart-${id}`);
    Object.assign(this, { title: part("title"), text: part("text"), list: part("progress"), confirm: part("confirm"), cancel: part("cancel") });
    this.cancel.addEventListener("click", () => dialog.close());
    this.confirm.addEventListener("click", () => this.run());
  }

  ask(service, replicas) {
    const what = replicas.length === 0 ? `all replicas of ${service}` : `${service}/${replicas.join(", ")}`;
    this.restart = { service, replicas, what };
    this.title.textContent = `Restart ${what}?`;
    this.text.textContent = "One replica after the other is replaced. The next one follows when it is ready and stable.";
    this.list.replaceChildren();
    this.confirm.hidden = false;
    this.cancel.textContent = "Cancel";
    this.dialog.showModal();
    this.cancel.focus();
  }

  async run() {
    this.confirm.hidden = true;
    this.cancel.textContent = "Close";
    this.cancel.focus();
    const { restart } = this;
    const query = new URLSearchParams({ timeout: RESTART_WAIT, request_id: `ui-${crypto.randomUUID()}` });
    restart.replicas.forEach((replica) => query.append("replica", replica));
    this.say(restart, "Restarting…");
    // A request without an answer may have begun the restart.
    let mayHaveBegun = false;
    let failures = 0;
    for (;;) {
      const { status, body } = await post(`${this.path}/service/${restart.service}/restart?${query}`);
      if (status === 200) {
        failures = 0;
        mayHaveBegun = true;
        this.show(restart, body.status);
        const left = body.status.filter(({ state }) => state === "pending").length;
        if (left === 0) {
          const failed = body.status.filter(({ state }) => state === "failure").length;
          this.say(restart, failed === 0 ? "Restarted." : `${failed} of ${body.status.length} failed.`);
          return;
        }
      } else if ((status === 503 || status === 0) && failures < 30) {
        // The same request id joins the restart, which continues meanwhile.
        failures += 1;
        mayHaveBegun = true;
        this.say(restart, `Waiting for the gateway: ${body.message}`);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      } else {
        this.say(restart, `${mayHaveBegun ? "The outcome is unknown" : "Not restarted"}: ${body.message}`);
        return;
      }
    }
  }

  show(restart, status) {
    // The dialog may ask for another restart already.
    if (restart !== this.restart) return;
    const words = { pending: "in progress or waiting", active: "restarted", failure: "failed" };
    this.list.replaceChildren(
      ...status.map(({ service, replica, state, message }) => {
        const item = made("li", state);
        const text = ` ${words[state]}${message ? `: ${visibleText(message)}` : ""}`;
        item.append(made("span", "name", `${service}/${replica}`), made("span", "", text));
        return item;
      }),
    );
  }

  /** Shows a text in the dialog of `restart`, or only announces it if that was closed. */
  say(restart, text) {
    const shown = visibleText(text);
    if (restart === this.restart) this.text.textContent = shown;
    this.announce(`${restart.what}: ${shown}`);
  }
}
