// Helpers for the elements of the page, and settings that the browser keeps.

export const byId = (id) => document.getElementById(id);

export const saved = (name, fallback) => localStorage.getItem(`leasemux.${name}`) ?? fallback;
export const save = (name, value) => localStorage.setItem(`leasemux.${name}`, value);

/** Sets a text only if it changes: each change is work for the browser and for screen readers. */
export function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

export function press(id, isPressed) {
  byId(id).setAttribute("aria-pressed", String(isPressed));
}

export function isPressed(id) {
  return byId(id).getAttribute("aria-pressed") === "true";
}

export function announce(text) {
  // Screen readers announce changes, so that the same text twice needs one.
  const node = byId("announcement");
  node.textContent = node.textContent === text ? `${text}\u00a0` : text;
}

export function fail(text) {
  const node = byId("error");
  node.textContent = text;
  node.hidden = text === "";
}
