// The toy world's controls: keys, and caps on the page that can be pressed too. The studio turns what is held
// into the words of the next chunk.

import { activeTake, emit, isOpen, on, state } from "/static/store.js";
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

/** The line that the toy world's model reads, as megatv.data.toy_world.words writes it. */
export function lineOf({ move, turn, jump, shoot, reload }) {
  const keys = [move === 1 && "w", move === -1 && "s", jump && "space", reload && "r"].filter(Boolean);
  return `(${keys.join(", ") || "."}). ${2 * turn}, 0, ${shoot}, 0.`;
}

/** The action that a text says, or null unless it is exactly one line of the toy world (its parse_words). */
export function actionOf(text) {
  const found = /^\(([^)]*)\)\. (-?\d), 0, ([01]), 0\.$/.exec(text);
  if (!found) return null;
  const has = (key) => Number(found[1].split(", ").includes(key));
  const action = { move: has("w") - has("s"), turn: Number(found[2]) / 2, jump: has("space"), shoot: Number(found[3]), reload: has("r") };
  return Math.abs(action.turn) <= 1 && lineOf(action) === text ? action : null;
}

/** What an action line means, for people; other words, and those of other worlds, stay as they are. */
export function gloss(text) {
  const action = state.info?.game ? actionOf(text) : null;
  if (!action) return text;
  const { move, turn, jump, shoot, reload } = action;
  const said = [
    move > 0 && "forward", move < 0 && "back", turn < 0 && "turn left", turn > 0 && "turn right",
    jump && "jump", shoot && "shoot", reload && "reload",
  ].filter(Boolean);
  return said.join(", ") || "stand still";
}

/** What the words in a text area mean, or that they are no action line. They may be said all the same. */
export function meaningOf(area) {
  const made = element("output", { className: "says" });
  const refresh = () => {
    const foreign = Boolean(area.value) && !actionOf(area.value);
    const example = element("code", { textContent: lineOf(fields(new Set(["w"]))) });
    made.replaceChildren(...(foreign ? ["This is not an action line; try ", example] : [gloss(area.value)]));
    made.classList.toggle("warning", foreign);
  };
  area.addEventListener("input", refresh);
  refresh();
  return made;
}

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
