// The toy world's controls: keys, and caps on the page that can be pressed too. The studio turns what is held
// into the words of the next chunk.

import { activeTake, emit, isOpen, on, state } from "/static/store.js";
import { actionOf, gloss, lineOf } from "/static/actions.js";
import { button, element } from "/static/dom.js";
import { send } from "/static/socket.js";

const panel = document.getElementById("game");
const toggle = document.getElementById("play-game");
const caps = document.getElementById("caps");
const sending = document.getElementById("sending");
const stage = document.getElementById("screens");

const KEYS = [
  { id: "w", cap: "W", name: "forward", keys: ["w", "arrowup"], field: "move", value: 1 },
  { id: "s", cap: "S", name: "back", keys: ["s", "arrowdown"], field: "move", value: -1 },
  { id: "left", cap: "\u2190", name: "turn", keys: ["a", "arrowleft"], field: "turn", value: -1 },
  { id: "right", cap: "\u2192", name: "turn", keys: ["d", "arrowright"], field: "turn", value: 1 },
  { id: "space", cap: "Space", name: "jump", keys: [" "], field: "jump", value: 1 },
  { id: "click", cap: "Click", name: "shoot", keys: ["enter"], field: "shoot", value: 1 },
  { id: "r", cap: "R", name: "reload", keys: ["r"], field: "reload", value: 1 },
];
const held = new Set();
const capOf = new Map();

const fields = (ids) => {
  const found = { move: 0, turn: 0, jump: 0, shoot: 0, reload: 0 };
  for (const { id, field, value } of KEYS) if (ids.has(id)) found[field] = value;
  return found;
};

/** Caps that show the action line in a text area and write it: so nobody has to know the grammar. */
export function composer(area) {
  const row = element("div", { className: "composer" }, KEYS.map(({ cap, name, field, value }) =>
    button(cap, null, { className: "cap", title: name }, () => {
      const action = actionOf(area.value) ?? fields(new Set());
      area.value = lineOf({ ...action, [field]: action[field] === value ? 0 : value });
      area.dispatchEvent(new Event("input"));
      area.focus();
    })));
  const refresh = () => {
    const action = actionOf(area.value);
    [...row.children].forEach((cap, at) => {
      const down = action?.[KEYS[at].field] === KEYS[at].value;
      cap.classList.toggle("down", down);
      cap.setAttribute("aria-pressed", down);
    });
  };
  area.addEventListener("input", refresh);
  refresh();
  return row;
}

const playing = () => Boolean(activeTake()?.game && isOpen(activeTake()));

function change(id, down) {
  if (held.has(id) === down || (down && !playing())) return;
  if (down) held.add(id);
  else held.delete(id);
  capOf.get(id).classList.toggle("down", down);
  if (playing()) {
    send("keys", { take: state.active, ...fields(held) });
    tell();
  }
}

function tell() {
  const line = lineOf(fields(held));
  sending.replaceChildren(element("b", { textContent: gloss(line) }), element("small", { textContent: line }));
}

function release() {
  for (const id of [...held]) change(id, false);
}

function refresh() {
  const take = activeTake();
  panel.hidden = !state.info?.game || !take || !["tv2tv", null].includes(take.mode);
  const on = playing();
  panel.classList.toggle("on", on);
  document.body.classList.toggle("playing", on);
  toggle.lastElementChild.textContent = on ? "Let go" : "Play the game";
  toggle.title = on ? "Give the controls back to the model" : isOpen(take) ? "Take the controls of this take" : "Start a new game";
  if (on) tell();
  else {
    sending.textContent = "Take the controls: your keys become the model's words.";
    release();
  }
}

for (const { id, cap, name } of KEYS) {
  const made = element("button", { type: "button", className: "cap" }, [element("b", { textContent: cap }), element("small", { textContent: name })]);
  made.addEventListener("pointerdown", () => change(id, true));
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) made.addEventListener(end, () => change(id, false));
  capOf.set(id, made);
  caps.append(made);
}
toggle.addEventListener("click", () => {
  toggle.blur();
  if (isOpen(activeTake())) send("play", { take: state.active, on: !playing() });
  else emit("new-game");
});

const typing = (target) => target.closest?.("input:not([type=range]), textarea, select");
for (const [kind, down] of [["keydown", true], ["keyup", false]]) {
  window.addEventListener(kind, (event) => {
    if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = KEYS.find(({ keys }) => keys.includes(event.key.toLowerCase()));
    if (!key || !playing()) return;
    event.preventDefault();
    change(key.id, down);
  });
}
stage.addEventListener("pointerdown", () => change("click", true));
window.addEventListener("pointerup", () => change("click", false));
window.addEventListener("blur", release);
for (const kind of ["shown", "status", "reset"]) on(kind, refresh);
