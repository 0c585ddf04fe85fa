// The timeline: one lane for every take, one cell for every chunk, branches under the chunk that they left.

import { activeTake, emit, isOpen, letter, on, show, state } from "/static/store.js";
import { button, element, paint } from "/static/dom.js";
import { gloss } from "/static/actions.js";
import { seek } from "/static/player.js";
import { send } from "/static/socket.js";

const root = document.getElementById("lanes");
const lanes = new Map(); // take number -> {row, cells, compare}

const STAGES = { coming: "", writing: "writing ...", drawing: "drawing ...", made: "", never: "" };

function addLane(take, parent) {
  const cells = take.chunks.map((chunk, index) => cell(take, index));
  const name = button(letter(take), null, { className: "letter", title: "Show this take alone" }, () => show([take.number]));
  const compare = button("", "compare", { className: "icon", title: "Compare side by side" }, () => {
    const rest = state.shown.filter((number) => number !== take.number);
    if (rest.length === state.shown.length) show([...state.shown, take.number].slice(-4), take.number);
    else if (rest.length) show(rest, rest.includes(state.active) ? state.active : rest[0]);
  });
  const close = button("", "close", { className: "icon", title: "Close this take" }, () => send("close", { take: take.number }));
  const origin = element("small", { textContent: parent ? `from ${letter(parent)}` : `seed ${take.seed}` });
  const head = element("div", { className: "head" }, [name, element("div", {}, [origin, element("div", {}, [compare, close])])]);
  const strip = element("div", { className: "strip" }, cells.map((each) => each.root));
  const row = element("div", { className: "lane" }, [head, strip]);
  strip.addEventListener("scroll", () => {
    for (const other of root.querySelectorAll(".strip")) if (other.scrollLeft !== strip.scrollLeft) other.scrollLeft = strip.scrollLeft;
  });
  lanes.set(take.number, { row, strip, cells, compare });
  root.append(row);
  take.chunks.forEach((_, index) => update(take, index));
  strip.scrollLeft = root.querySelector(".strip").scrollLeft;
}

function cell(take, index) {
  const canvas = element("canvas", { width: state.info.width, height: state.info.height });
  canvas.classList.toggle("pixels", state.info.width <= 128);
  const time = element("time", { textContent: `${take.starts[index].toFixed(2)} s` });
  const words = element("p");
  const look = element("button", { type: "button", className: "look", title: "Go to this chunk" }, [canvas, time]);
  look.addEventListener("click", () => {
    if (!state.shown.includes(take.number)) show([take.number]);
    else if (state.active !== take.number) {
      state.active = take.number;
      emit("shown");
    }
    if (take.chunks[index].stage === "made") seek(take.firsts[index], false);
    emit("look", { chunk: index });
  });
  const branch = button("Branch", "branch", { className: "branch", title: "Go on differently from here" }, () => {
    if (state.active !== take.number) show([take.number]);
    seek(take.firsts[index], false);
    emit("edit", { chunk: index });
  });
  const root = element("div", { className: "cell" }, [look, branch, words]);
  return { root, canvas, words, time };
}

function update(take, index) {
  const { root, canvas, words } = lanes.get(take.number).cells[index];
  const chunk = take.chunks[index];
  const shared = take.parent !== null && index < take.at;
  const now = root.classList.contains("now");
  root.className = `cell ${chunk.stage} ${chunk.source}${shared ? " shared" : ""}${take.parent !== null && index === take.at ? " fork" : ""}${now ? " now" : ""}`;
  words.textContent = gloss(chunk.text || chunk.live || chunk.planned || STAGES[chunk.stage]);
  words.title = chunk.text;
  const picture = chunk.frames[Math.min(1, chunk.frames.length - 1)];
  if (picture) paint(canvas, picture);
}

function mark(chunk) {
  for (const [number, { cells, strip }] of lanes) {
    cells.forEach(({ root }, index) => root.classList.toggle("now", number === state.active && index === chunk));
    const { root } = cells[chunk] ?? {};
    if (number === state.active && root && !strip.matches(":hover")) { // never under somebody's pointer
      const left = root.offsetLeft - strip.offsetLeft;
      if (left < strip.scrollLeft || left + root.offsetWidth > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = left - strip.clientWidth / 3;
    }
  }
}

/** Scroll the timeline, never the page: on a phone the keys and the plan stay where they are. */
function bringIntoView(row) {
  const top = row.offsetTop - root.offsetTop;
  root.scrollTop = Math.min(top, Math.max(root.scrollTop, top + row.offsetHeight - root.clientHeight));
}

on("take", ({ take, parent }) => addLane(take, parent));
on("chunk", ({ take, chunk }) => {
  update(take, chunk);
  // takes that share this chunk show it too
  for (const other of state.takes.values()) if (other !== take && other.chunks[chunk] === take.chunks[chunk]) update(other, chunk);
});
on("status", ({ take }) => {
  take.chunks.forEach((_, index) => update(take, index));
  lanes.get(take.number).row.classList.toggle("open", isOpen(take));
});
on("closed", ({ take }) => {
  lanes.get(take.number)?.row.remove();
  lanes.delete(take.number);
});
on("reset", () => {
  lanes.clear();
  root.replaceChildren();
});
on("shown", () => {
  root.hidden = !state.takes.size;
  for (const [number, { row, compare }] of lanes) {
    row.classList.toggle("active", number === state.active);
    row.classList.toggle("shown", state.shown.includes(number));
    if (number === state.active) bringIntoView(row);
    compare.classList.toggle("on", state.shown.includes(number) && state.shown.length > 1);
    compare.hidden = state.takes.size < 2;
  }
});
on("moved", ({ chunk }) => {
  if (activeTake()) mark(chunk);
});
