// What action lines mean, for people: one line of the toy world, or CS:GO's, one for every frame of a chunk.

import { state } from "/static/store.js";
import { element } from "/static/dom.js";

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

function toyMeaning(text) {
  const action = actionOf(text);
  if (!action) return null;
  const { move, turn, jump, shoot, reload } = action;
  const said = [
    move > 0 && "forward", move < 0 && "back", turn < 0 && "turn left", turn > 0 && "turn right",
    jump && "jump", shoot && "shoot", reload && "reload",
  ].filter(Boolean);
  return said.join(", ") || "stand still";
}

// keys, mouse steps and meanings of megatv.data.csgo_actions
const KEYS = [
  ["w", "forward"], ["a", "step left"], ["s", "back"], ["d", "step right"], ["space", "jump"], ["ctrl", "crouch"],
  ["shift", "walk"], ["1", "weapon 1"], ["2", "weapon 2"], ["3", "weapon 3"], ["r", "reload"],
];
const MOUSE_X = [0, 2, 4, 10, 20, 30, 60, 100, 200, 300, 500, 1000];
const MOUSE_Y = [0, 2, 4, 10, 20, 50, 100, 200];

function csgoLineMeaning(line) {
  const found = /^\(([^)]*)\)\. (0|-?[1-9]\d*), (0|-?[1-9]\d*), ([01]), ([01])\.$/.exec(line);
  if (!found) return null;
  const held = KEYS.filter(([key]) => found[1].split(", ").includes(key));
  const [x, y, left, right] = found.slice(2).map(Number);
  const exact = (held.map(([key]) => key).join(", ") || ".") === found[1];
  if (!exact || !MOUSE_X.includes(Math.abs(x)) || !MOUSE_Y.includes(Math.abs(y))) return null;
  const said = [
    ...held.map(([, name]) => name),
    x && `turn ${x < 0 ? "left" : "right"} ${Math.abs(x)}`, y && `look ${y < 0 ? "up" : "down"} ${Math.abs(y)}`,
    left && "shoot", right && "right click",
  ].filter(Boolean);
  return said.join(", ") || "stand still";
}

function csgoMeaning(text) {
  const said = text.split("\n").map(csgoLineMeaning);
  return said.includes(null) ? null : said.filter((one, at) => one !== said[at - 1]).join("; ");
}

/** What the model's words mean, or null where they are no action lines, or the model says none. */
export function meaning(text, kind = state.info?.actions) {
  return { toy_world: toyMeaning, csgo: csgoMeaning }[kind]?.(text) ?? null;
}

/** What words mean, for people; other words stay as they are. */
export const gloss = (text) => meaning(text) ?? text;

/** What the words in a text area mean, or that they are no action line. They may be said all the same. */
export function meaningOf(area) {
  const made = element("output", { className: "says" });
  const refresh = () => {
    const foreign = Boolean(area.value) && meaning(area.value) === null;
    const example = element("code", { textContent: "(w). 0, 0, 0, 0." });
    made.replaceChildren(...(foreign ? ["This is not an action line; try ", example] : [gloss(area.value)]));
    made.classList.toggle("warning", foreign);
  };
  area.addEventListener("input", refresh);
  refresh();
  return made;
}
