// The dialog that asks for the time from which lines are read.

/** The option of the picker that opens the dialog. */
const CUSTOM = "at";

export class SincePicker {
  /** `select` is the picker of lines. `picked()` is called when it has a usable choice. */
  constructor(dialog, select, picked) {
    const part = (id) => dialog.querySelector(`#since-${id}`);
    Object.assign(this, { dialog, select, picked, form: part("form"), time: part("time"), error: part("error") });
    /** The chosen time in seconds. */
    this.seconds = 0;
    this.before = select.value;
    this.option = select.querySelector(`option[value="${CUSTOM}"]`);
    select.addEventListener("change", () => this.change());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.take();
    });
    part("cancel").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      // Also after Escape. A time that was taken is the choice before.
      select.value = this.before;
    });
  }

  change() {
    if (this.select.value !== CUSTOM) {
      this.before = this.select.value;
      this.option.textContent = "from a time…";
      this.picked();
      return;
    }
    if (this.time.value === "") this.time.value = localTime(Date.now() / 1000 - 600);
    this.error.hidden = true;
    this.dialog.showModal();
    this.time.focus();
  }

  take() {
    const seconds = Date.parse(this.time.value) / 1000;
    if (!Number.isFinite(seconds) || seconds < 0) {
      this.error.hidden = false;
      return;
    }
    this.seconds = Math.floor(seconds);
    this.option.textContent = `from ${localTime(seconds).replace("T", " ")}`;
    this.before = CUSTOM;
    this.dialog.close();
    this.picked();
  }
}

/** Returns a time as an input for local times has it. */
export function localTime(seconds) {
  const date = new Date(seconds * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day}T${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
