// The stage: one clock, and a screen for every shown take, all at the same frame.

import { activeTake, chunkAt, emit, isOpen, letter, madeFrames, on, pictureAt, shownTakes, state, totalFrames } from "/static/store.js";
import { element, paint } from "/static/dom.js";
import { gloss } from "/static/actions.js";

const screens = document.getElementById("screens");
const scrub = document.getElementById("scrub");
const clock = document.getElementById("clock");
const watch = document.getElementById("watch");

let frame = 0; // the clock, in frames, with a fraction
let playing = true;
let before = null;
let drawn = [];
let place = -1;

export const currentFrame = () => Math.floor(frame);

export function seek(to, play = playing) {
  frame = Math.max(0, to);
  playing = play;
}

export function toggle() {
  const end = Math.max(0, ...shownTakes().map(madeFrames));
  if (!playing && frame >= end - 1) frame = 0;
  playing = !playing;
}

/** A screen with its label for every shown take. */
function build() {
  const takes = shownTakes();
  screens.replaceChildren();
  screens.dataset.count = takes.length;
  drawn = takes.map((take) => {
    const canvas = element("canvas", { width: state.info.width, height: state.info.height });
    canvas.classList.toggle("pixels", state.info.width <= 128);
    const wait = element("span", { className: "wait" });
    const words = element("figcaption");
    const screen = element("div", { className: "screen" }, [canvas, wait]);
    const figure = element("figure", { className: take.number === state.active ? "active" : "" }, [screen, words]);
    figure.dataset.take = take.number;
    figure.style.setProperty("--ratio", state.info.width / state.info.height);
    figure.addEventListener("click", () => {
      if (take.number !== state.active) {
        state.active = take.number;
        emit("shown");
      }
    });
    screens.append(figure);
    return { take, canvas, words, wait, last: null, text: null };
  });
}

function tick(now) {
  requestAnimationFrame(tick);
  const elapsed = before === null ? 0 : Math.min(0.25, (now - before) / 1000);
  before = now;
  const takes = shownTakes();
  if (!takes.length || !state.info) return;
  const edge = Math.min(...takes.map((take) => (isOpen(take) ? madeFrames(take) : Infinity)));
  const end = Math.max(1, ...takes.map(madeFrames));
  if (playing) {
    frame += elapsed * state.info.fps;
    if (frame >= edge) frame = Math.max(0, edge - 0.001); // wait for what is being made
    else if (frame >= end) frame = edge === Infinity ? 0 : end - 1; // all is made: again from the start
    if (activeTake()?.game && edge !== Infinity) frame = Math.max(frame, edge - 6); // a player sees what is newest
  }
  frame = Math.min(frame, end - 0.001);
  draw(takes, edge);
}

function draw(takes, edge) {
  const shown = currentFrame();
  for (const screen of drawn) {
    const picture = pictureAt(screen.take, shown);
    if (picture && picture !== screen.last) paint(screen.canvas, picture);
    screen.last = picture;
    const chunk = screen.take.chunks[chunkAt(screen.take, shown)];
    const text = screen.take.made ? chunk.text : "";
    const label = `${letter(screen.take)}\n${text}\n${chunk.source}`;
    if (label !== screen.text) {
      screen.words.replaceChildren(
        element("b", { textContent: letter(screen.take) }),
        element("span", { textContent: gloss(text), className: chunk.source === "forced" ? "yours" : "" }),
        element("small", { textContent: gloss(text) === text ? "" : text }));
      screen.text = label;
    }
    const waits = isOpen(screen.take) && shown >= madeFrames(screen.take) - 1;
    screen.wait.hidden = !waits || screen.take.status === "paused";
  }
  const longest = Math.max(...takes.map(totalFrames));
  const made = Math.min(edge, Math.max(...takes.map(madeFrames)));
  scrub.max = longest - 1;
  scrub.value = shown;
  scrub.style.setProperty("--made", `${(100 * made) / longest}%`);
  scrub.style.setProperty("--seen", `${(100 * (shown + 1)) / longest}%`);
  clock.textContent = `${(shown / state.info.fps).toFixed(2)} / ${(longest / state.info.fps).toFixed(2)} s`;
  document.body.classList.toggle("still", !playing);
  const icon = playing ? "#i-pause" : "#i-play";
  const use = watch.querySelector("use");
  if (use.getAttribute("href") !== icon) use.setAttribute("href", icon);
  const active = activeTake();
  const now = active ? chunkAt(active, shown) : -1;
  if (now !== place) {
    place = now;
    emit("moved", { chunk: now });
  }
}

scrub.addEventListener("input", () => seek(Number(scrub.value), false));
watch.addEventListener("click", toggle);
on("shown", () => {
  place = -1;
  build();
});
on("take", ({ take, parent }) => {
  if (!state.live) return;
  seek(parent ? Math.max(0, take.firsts[take.at] - 8) : 0, true);
});
requestAnimationFrame(tick);
