// Keys and clicks meant for the label form, in the order they were made.
//
// Streamlit's own buttons and shortcuts lose what is pressed while the page is being drawn.  Here
// each press is numbered and sent along again with every later one until the server says that it
// has been handled, so none is lost and none counts twice.

const FIELDS = "input, textarea, select, [contenteditable=true]";

export default function ({ data, parentElement, setStateValue }) {
  const queue = (window.graspPresses ??= { session: null, pending: [], last: 0 });
  if (queue.session !== data.session) {
    queue.lost = queue.session === null ? 0 : queue.pending.length;
    Object.assign(queue, { session: data.session, pending: [], last: data.handled });
  }
  queue.pending = queue.pending.filter((press) => press.number > data.handled);
  queue.last = Math.max(queue.last, data.handled);
  const status = parentElement.querySelector("[role=status]");

  const show = () => {
    const waiting = queue.pending.length;
    status.textContent = queue.lost
      ? `The connection was lost: ${queue.lost} pressed, not used. Press again.`
      : waiting ? `${waiting} pressed, not handled yet` : "";
  };
  const press = (act, event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    queue.lost = 0;
    queue.last += 1;
    queue.pending.push({ number: queue.last, act });
    setStateValue("presses", { session: queue.session, acts: queue.pending });
    show();
  };
  queue.onKey = (event) => {
    if (event.repeat || event.isComposing || event.defaultPrevented) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const act = data.keys[event.key.toLowerCase()];
    if (!act || event.composedPath()[0].closest?.(FIELDS)) return;
    if (document.querySelector("[role=dialog]")) return;
    press(act, event);
  };
  queue.onClick = (event) => {
    const button = event.target.closest?.("button");
    const act = button && data.acts.find((one) => button.closest(`.st-key-${one}`));
    if (act) press(act, event);
  };
  // The window's turn comes before that of Streamlit, which listens further in.
  if (!queue.listening) {
    const key = (event) => queue.onKey(event);
    const click = (event) => queue.onClick(event);
    window.addEventListener("keydown", key, true);
    window.addEventListener("click", click, true);
    queue.listening = () => {
      window.removeEventListener("keydown", key, true);
      window.removeEventListener("click", click, true);
      queue.listening = null;
    };
  }
  show();
  return () => queue.listening?.();
}
