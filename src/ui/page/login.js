// The dialog that asks for a lease and a token, if the server needs one.

/** A deployment, or a deployment with its group and order. */
const LEASE = /^[0-9]{1,20}(\/[0-9]{1,10}\/[0-9]{1,10})?$/;

/** Returns the path of a lease as it is typed; `null` if it is none. */
export function leasePath(text) {
  const lease = text.trim();
  if (!LEASE.test(lease)) return null;
  return `/lease/${lease.includes("/") ? lease : `${lease}/1/1`}`;
}

export class Login {
  /** `submit({ path, token })` is called with what was entered. */
  constructor(dialog, submit) {
    this.dialog = dialog;
    const part = (id) => dialog.querySelector(`#login-${id}`);
    Object.assign(this, { form: part("form"), lease: part("lease"), token: part("token"), error: part("error"), button: part("open") });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const path = leasePath(this.lease.value);
      const token = this.token.value.trim();
      if (path === null) return this.fail("The lease is a deployment number, or deployment/group/order.", this.lease);
      if (token === "") return this.fail("Paste a token.", this.token);
      this.fail("");
      this.button.disabled = true;
      submit({ path, token });
    });
    // The page is of no use without a token.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
  }

  /** Asks, with the lease filled in. `message` says why, if the page had a token before. */
  ask(lease, message) {
    this.button.disabled = false;
    // A token that failed is of no use, and must not stay in the page.
    this.token.value = "";
    if (lease !== "") this.lease.value = lease;
    if (!this.dialog.open) this.dialog.showModal();
    this.fail(message, this.lease.value === "" ? this.lease : this.token);
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Closes the dialog: the token is good. */
  done() {
    this.button.disabled = false;
    this.token.value = "";
    this.dialog.close();
  }

  fail(message, input) {
    this.error.textContent = message;
    this.error.hidden = message === "";
    input?.focus();
  }
}
