// The controls of the page and its keyboard.

import { copy, copyLink, download } from "./copies.js";
import { byId, isPressed, press, save, saved } from "./dom.js";
import { CHARACTERS_MAX, ROWS_MAX } from "./store.js";
import { TIME_FORMS } from "./time.js";

const KEYS = [
  ["/", "filter"],
  ["Space", "pause, or follow the newest line"],
  ["End", "newest line"],
  ["Arrows, Page, Home", "choose a line; with Shift more lines"],
  ["Enter", "read the lines of a chosen gap again"],
  ["c", "copy the chosen lines, or all visible ones"],
  ["l", "copy a link to the chosen line"],
  ["w", "wrap lines"],
  ["t", "next form of times"],
  ["s", "show or hide the replicas"],
  ["Escape", "clear the choice or the filter"],
  ["?", "this help"],
];

const narrow = matchMedia("(max-width: 700px)");

/** What the browser remembers of the last visit. */
export const settings = {
  time: saved("time", narrow.matches ? "off" : "local"),
  wrap: saved("wrap", String(narrow.matches)) === "true",
};

/** Connects the controls with `logView` and these actions: `filter()`, `pause()`, `link()` and `open()` of a link. */
export function listen(logView, actions) {
  const on = (id, type, action) => byId(id).addEventListener(type, action);
  const shortcuts = {
    "/": () => byId("filter").focus(),
    " ": actions.pause,
    End: () => logView.toEnd(),
    c: () => copy(logView),
    l: () => copyLink(actions.link()),
    w: () => setWrap(logView, !settings.wrap),
    t: () => setTime(logView, TIME_FORMS[(TIME_FORMS.indexOf(settings.time) + 1) % TIME_FORMS.length]),
    s: toggleReplicas,
    Escape: () => (logView.current !== null ? logView.clearSelection() : clearFilter(actions)),
    "?": help,
  };
  on("filter", "input", actions.filter);
  on("context", "input", actions.filter);
  for (const id of ["regex", "case"]) {
    on(id, "click", () => {
      press(id, !isPressed(id));
      actions.filter();
    });
  }
  on("time", "change", (event) => setTime(logView, event.target.value));
  on("theme", "change", (event) => setTheme(event.target.value));
  on("wrap", "click", () => setWrap(logView, !settings.wrap));
  on("pause", "click", actions.pause);
  on("newest", "click", () => {
    logView.toEnd();
    byId("scroller").focus();
  });
  on("copy", "click", () => copy(logView));
  on("save", "click", () => byId("save-menu").showModal());
  on("save-close", "click", () => byId("save-menu").close());
  on("download-text", "click", () => download(logView.view, false));
  on("download-json", "click", () => download(logView.view, true));
  on("toggle-replicas", "click", toggleReplicas);
  on("help-button", "click", help);
  on("help-close", "click", () => byId("help-dialog").close());
  byId("shortcuts").checked = saved("shortcuts", "true") === "true";
  on("shortcuts", "change", (event) => save("shortcuts", event.target.checked));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const isTyping = event.target.closest("input:not([type=checkbox]), select");
    if (isTyping && event.key === "Escape") {
      event.preventDefault();
      if (event.target.id === "filter" && event.target.value !== "") clearFilter(actions);
      else byId("scroller").focus();
    }
    const isActivation = event.key === " " && event.target.closest("button, label, input");
    if (isTyping || isActivation || (event.key.length === 1 && saved("shortcuts", "true") !== "true")) return;
    const action = shortcuts[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  });
  // In a narrow window the list covers the log.
  narrow.addEventListener("change", ({ matches }) => {
    if (matches !== document.body.classList.contains("without-replicas")) toggleReplicas();
  });
  addEventListener("hashchange", actions.open);
  setInterval(() => {
    if (settings.time === "relative") logView.refresh();
  }, 1000);
}

/** Shows the settings, and the help. */
export function prepare(logView) {
  setTheme(saved("theme", "auto"));
  setTime(logView, settings.time);
  setWrap(logView, settings.wrap);
  byId("selection").value = "tail=1000";
  fillHelp();
  if (narrow.matches) toggleReplicas();
}

function setWrap(logView, wraps) {
  settings.wrap = wraps;
  save("wrap", wraps);
  press("wrap", wraps);
  document.documentElement.classList.toggle("wrap", wraps);
  logView.refresh();
}

function setTime(logView, form) {
  settings.time = form;
  save("time", form);
  byId("time").value = form;
  logView.measured = undefined;
  logView.refresh();
}

function setTheme(theme) {
  save("theme", theme);
  byId("theme").value = theme;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function toggleReplicas() {
  const isShown = document.body.classList.toggle("without-replicas");
  byId("toggle-replicas").setAttribute("aria-expanded", String(!isShown));
}

function help() {
  byId("help-dialog").showModal();
}

function clearFilter(actions) {
  if (byId("filter").value === "") return;
  byId("filter").value = "";
  actions.filter();
}

function fillHelp() {
  for (const [key, meaning] of KEYS) {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.append(Object.assign(document.createElement("kbd"), { textContent: key }));
    row.append(head, Object.assign(document.createElement("td"), { textContent: meaning }));
    byId("keys").append(row);
  }
  const millions = CHARACTERS_MAX / 1024 / 1024;
  byId("limits").textContent = `This page keeps the newest ${ROWS_MAX.toLocaleString("en")} rows or ${millions} million characters. Older ones are dropped here, and stay in the log.`;
}
