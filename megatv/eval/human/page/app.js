// The three pages of a study (welcome, task, end). The server keeps all answers; half-finished ones stay in this browser.

import { Player } from "./player.js";

const $ = (selector, root = document) => root.querySelector(selector);
const RETRY_MS = 3000;
const KEYS = [["1 2 3 \u2026", "answer"], ["\u2191 \u2193", "question"], ["Enter", "next"], ["Space", "play or pause"], ["S", "slower"], ["B", "back"]];
const REPLAY_KEY = ["R", "from START"];
const WORDS = {
  pairwise: {
    lead: "You will see two videos side by side, made for the same text. Say which one is better, and how clearly.",
    rules: ["Watch both to the end at least once. They play together and start again by themselves.",
      "Which system made which video is hidden, and sides change at random.",
      "If you cannot tell, say so: \u201cunsure or equal\u201d is a good answer."],
  },
  pointwise: {
    lead: "You will see one video at a time. Someone asked for an action at a certain moment: say whether it happened.",
    rules: ["The moment lies between START and STOP, marked on the line below the video.",
      "The action may end a little after STOP. The rest of the video only shows where we are.",
      "If you cannot tell, say so, and write why."],
  },
};

// What this browser keeps: one that keeps nothing plays along until its tab is closed.
const store = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); return true; } catch { return false; } },
  remove(key) { try { localStorage.removeItem(key); } catch { /* nothing was kept */ } },
};

let study, token, rater, task, before, chosen, active, opened, sending;
const player = new Player($("#task"));

async function ask(path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};  // a header: URLs are written down
  const reply = await fetch(path, body ? { method: "POST",
    headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body) } : { headers });
  const told = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
  if (!reply.ok) throw Object.assign(new Error(told.error || "the server refused"), { status: reply.status });
  return told;
}

function element(kind, text = "", className = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = className;
  return made;
}

function show(name) {
  for (const page of document.querySelectorAll("main")) page.hidden = page.id !== name;
  $("header").hidden = name === "welcome";
  if (name !== "task") player.stop();
  trouble("");
}

function trouble(sentence) {
  $("#trouble").hidden = !sentence;
  $("#trouble").textContent = sentence;
}

// Welcome

async function start() {
  study = await ask("/api/study");
  document.title = study.title;
  for (const title of document.querySelectorAll(".title")) title.textContent = study.title;
  const { lead, rules } = WORDS[study.kind];
  $("#welcome .lead").textContent = lead;
  $("#welcome .rules").replaceChildren(...rules.map((rule) => element("li", rule)));
  await recognize();
  welcome();
  const keys = study.kind === "pointwise" ? [...KEYS, REPLAY_KEY] : KEYS;
  $(".keys").replaceChildren(...keys.map(([key, what]) => {
    const hint = element("span", what);
    hint.prepend(element("kbd", key));
    return hint;
  }));
  show("welcome");
}

const place = () => `token/${study.id}`;

// Whose page this is: the link's token comes before the one that this browser kept.
async function recognize() {
  const link = location.hash.slice(1);
  for (const known of [link, store.get(place())]) {
    if (!known) continue;
    token = known;
    try {
      ({ rater } = await ask("/api/me"));
    } catch (error) {
      token = null;
      if (error.status !== 401) throw error;
      $("#welcome .error").textContent = error.message;
      continue;
    }
    $("#welcome .error").textContent = "";
    if (store.set(place(), token)) history.replaceState(null, "", location.pathname);
    return;
  }
}

function welcome() {
  const open = study.joins === "open", shut = !open && !rater;
  $("#welcome label").hidden = shut || Boolean(rater?.name);
  $("#welcome input").required = !$("#welcome label").hidden;
  $("#welcome .primary").hidden = shut;
  $("#welcome .primary").textContent = rater?.name ? `Go on as ${rater.name}` : "Begin";
  $("#welcome .other").hidden = !(open && rater);
  $("#welcome .soft").textContent = shut
    ? "This study is for those who are invited: open the link that you were given."
    : `Every answer is kept at once. You may close this page and come back ${open ? "with this browser" : "by your link"}.`;
}

$("#welcome .other").onclick = () => {
  store.remove(place());
  token = rater = null;
  welcome();
  $("#welcome input").focus();
};
window.onhashchange = () => location.reload();  // another link, pasted over this page

$("#welcome form").onsubmit = async (event) => {
  event.preventDefault();
  try {
    const told = await ask("/api/raters", { name: $("#welcome input").value });
    rater = told.rater;
    if (told.token) store.set(place(), token = told.token);
    $("header .who").textContent = rater.name;
    turn(await ask("/api/next"));
  } catch (error) {
    $("#welcome .error").textContent = error.message;
  }
};

// Task

const draft = () => `draft/${study.id}/${rater.number}/${task.item}`;

function turn(told) {
  $("header .progress i").style.width = `${100 * told.done / Math.max(1, told.total)}%`;
  $("header .count").textContent = `${told.done} of ${told.total} done`;
  ({ task, before } = told);
  if (!task) {
    $("#end .name").textContent = `, ${rater.name}`;
    $("#end .lead").textContent = told.done
      ? `${told.done === 1 ? "Your one task is" : `All of your ${told.done} tasks are`} answered and saved. You may close this page.`
      : "There is nothing left to judge at the moment: others have answered everything.";
    $("#end .back").hidden = !before;
    show("end");
    return;
  }
  let kept = null;
  try { kept = JSON.parse(store.get(draft())); } catch { /* not ours: begin without */ }
  chosen = { ...task.answers, ...kept?.answers };
  show("task");
  const asked = task.caption ?? task.prompt;
  $(".asked").hidden = !asked;
  $(".asked .tag").textContent = task.caption ? "Caption" : "Text";
  $(".asked p").textContent = asked;
  const marks = task.start == null ? null : { start: task.start, stop: task.stop };
  player.load(task.videos, marks, task.videos.length === 2 ? ["Left", "Right"] : [""]);
  drawQuestions(kept?.comment ?? task.comment);
  $("#task .back").disabled = !before;
  opened = performance.now();
  activate(study.questions.findIndex((question) => !chosen[question.name]));
}

function drawQuestions(comment) {
  const rows = study.questions.map((question, index) => {
    const row = element("div", "", "question");
    const words = element("div", "", "words");
    words.append(element("b", question.text), ...(question.hint ? [element("small", question.hint)] : []));
    const scale = element("div", "", `scale ${study.kind}`);
    scale.setAttribute("role", "radiogroup");
    scale.setAttribute("aria-label", question.text);
    scale.append(...question.options.map((option, number) => {
      const button = element("button", option.label, option.value);
      button.setAttribute("role", "radio");
      button.dataset.value = option.value;
      button.prepend(element("kbd", String(number + 1)));
      button.onclick = () => choose(index, option.value);
      return button;
    }));
    row.append(words, scale);
    row.onpointerdown = () => activate(index);
    return row;
  });
  $(".questions").replaceChildren(...rows);
  $(".comment").value = comment;
}

function choose(index, value) {
  chosen[study.questions[index].name] = value;
  keepDraft();
  if (value === "unsure") $(".comment").focus();
  const after = [...study.questions.keys()].filter((i) => !chosen[study.questions[i].name]);
  activate(after.find((i) => i > index) ?? after[0] ?? index);
}

function activate(index) {
  active = index < 0 ? study.questions.length - 1 : Math.min(index, study.questions.length - 1);
  paint();
}

function paint() {
  study.questions.forEach((question, index) => {
    const row = $(".questions").children[index];
    row.classList.toggle("active", index === active);
    row.classList.toggle("answered", Boolean(chosen[question.name]));
    for (const button of row.querySelectorAll("button")) {
      button.setAttribute("aria-checked", String(button.dataset.value === chosen[question.name]));
    }
  });
  $("#task .next").disabled = study.questions.some((question) => !chosen[question.name]);
}

function keepDraft() {
  store.set(draft(), JSON.stringify({ answers: chosen, comment: $(".comment").value }));
  $("header .saved").textContent = "";
}

async function next() {
  const button = $("#task .next");
  if (button.disabled || sending) return;
  button.disabled = sending = true;
  const key = draft();
  const seconds = Math.round((performance.now() - opened) / 100) / 10;
  const said = { item: task.item, answers: chosen, comment: $(".comment").value, seconds };
  for (;;) {
    try {
      const told = await ask("/api/answers", said);
      sending = false;
      store.remove(key);
      $("header .saved").textContent = "saved";
      turn(told);
      return;
    } catch (error) {
      if (error.status && error.status !== 503) {  // the server is there and will not take it
        trouble(`Not saved: ${error.message}`);
        button.disabled = sending = false;
        return;
      }
      trouble("Not saved yet: the server does not answer. Your answer is kept here, and sent again every few seconds.");
      await new Promise((again) => setTimeout(again, RETRY_MS));
    }
  }
}

async function back() {
  if (sending) return;
  try {
    if (before) turn(await ask(`/api/tasks/${before}`));
  } catch (error) {
    trouble(error.message);
  }
}

$(".comment").oninput = keepDraft;
$("#task .next").onclick = next;
for (const button of document.querySelectorAll(".back")) button.onclick = back;
$("#task").addEventListener("unplayable", () => trouble(
  "This video cannot be played here. Try another browser, or tell whoever runs the study."));

document.addEventListener("keydown", (event) => {
  if ($("#task").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches(".comment")) {  // letters belong to the comment
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  const options = study.questions[active].options;
  const actions = {
    " ": () => player.toggle(), s: () => player.slower(), r: () => player.replay(), b: back, Enter: next,
    ArrowUp: () => activate(Math.max(0, active - 1)), ArrowDown: () => activate(active + 1),
  };
  const number = Number(event.key);
  const act = number >= 1 && number <= options.length
    ? () => choose(active, options[number - 1].value) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

start().catch((error) => trouble(`The study cannot be reached: ${error.message}. Reload the page to try again.`));
