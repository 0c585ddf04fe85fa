// The first thing that a person sees: what to make, and one button.

import { emit, on, state } from "/static/store.js";
import { paint, toast } from "/static/dom.js";
import { send } from "/static/socket.js";

const form = document.getElementById("start");
const field = (name) => document.getElementById(name);
const picture = field("picture");
let hasPicture = false;

/** Fill in what the model was trained with. */
function fill(info) {
  for (const name of ["prompt", "steps", "temperature", "cfg", "mode", "solver", "top_p"]) if (!form.dataset.touched) field(name).value = info[name];
  if (!form.dataset.touched) field("seconds").value = Math.floor(100 * info.seconds) / 100;
  field("seconds").max = info.max_seconds;
  field("steps").max = info.max_steps;
  if (info.examples && !field("origin").querySelector("[value=example]")) {
    field("origin").prepend(new Option("a held-out example", "example"));
    choose("example");
  }
  field("make-game").hidden = !info.game;
  form.dataset.touched = "1";
}

function open(visible) {
  form.hidden = !visible;
  field("cancel").hidden = !state.takes.size;
  document.body.classList.toggle("starting", visible);
  if (visible) field("prompt").focus({ preventScroll: true });
}

function make(game, least = 0) {
  const origin = field("origin").value;
  if (origin === "picture" && !hasPicture) return toast("Choose the picture to start from first");
  send("make", {
    prompt: field("prompt").value,
    seconds: Math.min(state.info.max_seconds, Math.max(least, Number(field("seconds").value))),
    seed: Number(field("seed").value),
    mode: game ? "tv2tv" : field("mode").value,
    steps: Number(field("steps").value),
    temperature: Number(field("temperature").value),
    cfg: Number(field("cfg").value),
    solver: field("solver").value,
    top_p: Number(field("top_p").value),
    picture: origin === "picture",
    example: origin === "example" ? Number(field("seed").value) % state.info.examples : null,
    image_words: origin === "own" ? null : field("image_words").value || null,
    game,
  });
}

function choose(origin) {
  field("origin").value = origin;
  field("drop").hidden = origin !== "picture";
  field("image-words").hidden = origin === "own";
}

async function upload(file) {
  if (!file) return;
  field("picture-note").textContent = "loading ...";
  hasPicture = false;
  choose("picture");
  const answer = await fetch(`/api/sessions/${state.info.session}/picture`, { method: "POST", body: file }).catch(() => null);
  const tree = await answer?.json().catch(() => null);
  if (!answer?.ok) {
    field("picture-note").textContent = "choose a file, or drop it here";
    field("preview").hidden = true;
    return toast(tree?.detail ?? "the picture could not be sent: try again");
  }
  hasPicture = true;
  const bitmap = await createImageBitmap(file, { resizeWidth: state.info.width, resizeHeight: state.info.height });
  paint(field("preview"), bitmap);
  field("preview").hidden = false;
  field("picture-note").textContent = tree.note;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const game = event.submitter?.id === "make-game";
  make(game, game ? 30 : 0);
});
field("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit(field("make"));
  }
});
field("reroll").addEventListener("click", () => { field("seed").value = Math.floor(Math.random() * 10000); });
field("cancel").addEventListener("click", () => open(false));
field("new").addEventListener("click", () => open(true));
picture.addEventListener("change", () => upload(picture.files[0]));
field("origin").addEventListener("change", () => choose(field("origin").value));
form.addEventListener("dragover", (event) => event.preventDefault());
form.addEventListener("drop", (event) => {
  event.preventDefault();
  upload(event.dataTransfer.files[0]);
});
field("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter") picture.click();
});

on("hello", (info) => {
  fill(info);
  open(!state.takes.size);
});
on("take", () => open(false));
on("shown", () => { if (!state.takes.size) open(true); });
on("new-game", () => make(true, 30));
