// The plan: the words before every chunk of the active take. Click a line to change it: what is still to come is
// said as you write it, what is made already becomes a branch. The editor stays open until the studio has taken the
// words: a branch that begins shows another take, and what is said of a moment to come is heard of its chunk.

import { activeTake, isOpen, lineOfPlan, on, state } from "/static/store.js";
import { button, element } from "/static/dom.js";
import { gloss, meaningOf } from "/static/actions.js";
import { composer } from "/static/game.js";
import { seek } from "/static/player.js";
import { send } from "/static/socket.js";

const list = document.getElementById("lines");
const hint = document.getElementById("plan-hint");
const first = document.getElementById("plan-first");
const guide = document.getElementById("guide");
const lineHint = document.getElementById("line-hint");
let lines = []; // {root, words, tag, look} by chunk
let editing = null; // {chunk, box, refresh, asked}; asked: the words that the studio has not answered to yet, or null
let shown = null;

const TAGS = { own: "model", forced: "you", given: "given" };

function build() {
  const take = activeTake();
  stop();
  shown = take;
  list.replaceChildren();
  lines = [];
  first.hidden = true;
  guide.hidden = Boolean(take);
  hint.hidden = !take;
  lineHint.hidden = !take || !state.info.actions || take.mode === "t2v";
  if (!take) return;
  hint.textContent = take.mode === "t2v"
    ? "This mode draws without words."
    : "The words before every moment. Click a line to change what happens next.";
  take.chunks.forEach((_, chunk) => {
    const time = element("time", { textContent: take.starts[chunk].toFixed(2) });
    const words = element("span", { className: "words" });
    const tag = element("span", { className: "tag" });
    const meaning = element("small", { className: "gloss" });
    const open = element("button", { type: "button", className: "line" }, [time, meaning, words, tag]);
    open.addEventListener("click", () => edit(chunk));
    const root = element("li", {}, [open]);
    root.dataset.chunk = chunk;
    list.append(root);
    lines.push({ root, words, tag, meaning });
    update(take, chunk);
  });
}

function update(take, index) {
  const line = lines[index];
  const chunk = take.chunks[index];
  if (!line) return;
  const { root, words, tag, meaning } = line;
  const now = root.classList.contains("now");
  root.className = `${chunk.stage} ${chunk.source} ${chunk.planned !== null ? "planned" : ""} ${now ? "now" : ""}${editing?.chunk === index ? " editing" : ""}`;
  const ahead = take.mode === "think2v";
  const coming = chunk.planned ?? (ahead ? lineOfPlan(take, index) : "");
  const text = chunk.stage === "coming" || (chunk.stage === "writing" && ahead) ? coming : chunk.stage === "writing" ? chunk.live : chunk.text;
  words.textContent = text || (["made", "drawing"].includes(chunk.stage) && take.mode !== "t2v" ? "no words" : "");
  words.classList.toggle("faint", !text);
  words.classList.toggle("skeleton", !text && chunk.stage === "coming" && take.mode !== "t2v");
  meaning.textContent = gloss(text) === text ? "" : gloss(text);
  root.classList.toggle("glossed", gloss(text) !== text);
  tag.textContent = { writing: "writing", drawing: "drawing", coming: chunk.planned !== null ? "you" : "" }[chunk.stage] ?? TAGS[chunk.source] ?? "";
  if (editing?.chunk === index) editing.refresh();
  if (["writing", "drawing"].includes(chunk.stage) && isOpen(take) && state.live) reveal(root);
}

function reveal(root) {
  if (editing) return;
  const box = list.getBoundingClientRect();
  const own = root.getBoundingClientRect();
  if (own.bottom > box.bottom - 30 || own.top < box.top) list.scrollTop += own.bottom - box.bottom + 90;
}

/** Open a line for editing. */
function edit(index) {
  const take = activeTake();
  if (!take || !lines[index]) return;
  stop();
  const chunk = take.chunks[index];
  if (chunk.stage === "made") seek(take.firsts[index], false);
  const area = element("textarea", { rows: 2, maxLength: 4000, value: chunk.planned ?? chunk.text, placeholder: "Nothing said here" });
  const note = element("p", { className: "note" });
  const save = button("", null, { className: "primary small" }, () => {
    const late = !["coming", "writing"].includes(take.chunks[index].stage) || !isOpen(take);
    if (send(late ? "branch" : "edit", { take: take.number, chunk: index, text: area.value })) editing.asked = area.value;
    refresh();
  });
  const dice = button("Roll again", "dice", { className: "small", title: "A branch with the model's own words, by another seed" }, () => {
    send("branch", { take: take.number, chunk: index, seed: Math.floor(Math.random() * 2 ** 31) });
    stop();
  });
  const cancel = button("Cancel", null, { className: "small quiet" }, stop);
  const refresh = () => {
    const { stage, source, planned, text } = take.chunks[index];
    const drawn = stage === "drawing" && source === "forced"; // it may be before we hear that it is planned
    if (editing.asked !== null && (planned === editing.asked || (drawn && text.startsWith(editing.asked)))) return stop();
    const made = stage === "made";
    save.textContent = made ? "Branch with these words" : "Say this";
    save.disabled = editing.asked !== null || take.mode === "t2v" || ["drawing", "never"].includes(stage);
    dice.hidden = !made;
    note.textContent = take.mode === "t2v" ? "This mode has no words to change."
      : made ? `A new take: the same until ${take.starts[index].toFixed(2)} s, then yours.`
      : stage === "never" ? "This moment was not made. Branch from an earlier one."
      : stage === "coming" ? "The model will hear this when it comes here."
      : stage === "writing" ? "The model is speaking: this takes its words back."
      : "Being made right now ...";
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (!save.disabled) save.click();
    }
    if (event.key === "Escape") stop();
    event.stopPropagation();
  });
  const parts = [...(state.info.actions ? [meaningOf(area)] : []), area, ...(state.info.game ? [composer(area)] : []), note, element("div", { className: "row" }, [save, dice, cancel])];
  const box = element("div", { className: "editor" }, parts);
  lines[index].root.append(box);
  lines[index].root.classList.add("editing");
  editing = { chunk: index, box, refresh, asked: null };
  refresh();
  box.scrollIntoView({ block: "nearest" });
  area.focus({ preventScroll: true });
  area.select();
}

function stop() {
  if (!editing) return;
  editing.box.remove();
  lines[editing.chunk]?.root.classList.remove("editing");
  editing = null;
}

on("error", () => {
  if (!editing) return;
  editing.asked = null;
  editing.refresh();
});
on("shown", () => {
  if (shown !== activeTake()) build();
});
on("reset", build);
on("chunk", ({ take, chunk }) => {
  if (take === shown) update(take, chunk);
});
on("status", ({ take }) => {
  if (take === shown) take.chunks.forEach((_, chunk) => update(take, chunk));
});
on("plan", ({ take }) => {
  if (take !== shown) return;
  if (state.info.plan_lines) return take.chunks.forEach((_, chunk) => update(take, chunk));
  first.hidden = false;
  first.textContent = take.plan;
});
on("moved", ({ chunk }) => lines.forEach(({ root }, index) => root.classList.toggle("now", index === chunk)));
on("edit", ({ chunk }) => edit(chunk));
on("look", ({ chunk }) => lines[chunk]?.root.scrollIntoView({ block: "nearest" }));
