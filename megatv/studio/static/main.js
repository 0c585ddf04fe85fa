// The page: joins the session in the address or starts one, and wires header and transport.

import { activeTake, isOpen, on, state } from "/static/store.js";
import { connect, send } from "/static/socket.js";
import { element, toast } from "/static/dom.js";
import { seek, toggle } from "/static/player.js";
import "/static/lanes.js";
import "/static/plan.js";
import "/static/game.js";
import "/static/start.js";

const part = (name) => document.getElementById(name);

function say(status, take) {
  const at = take.chunks.findIndex((chunk) => chunk.stage === "writing" || chunk.stage === "drawing");
  const next = at >= 0 ? at : Math.min(take.made, take.chunks.length - 1);
  const where = `${next + 1} of ${take.chunks.length}`;
  if (status === "making") return at >= 0 && take.chunks[at].stage === "writing" ? `Thinking, ${where}` : `Drawing, ${where}`;
  if (status === "paused") return `Paused before ${where}`;
  if (status === "failed") return `Failed: ${take.why}`;
  const made = `${take.made} ${take.made === 1 ? "chunk" : "chunks"}`;
  return status === "stopped" ? `Stopped after ${made}` : `Done, ${made}${take.why ? ` (${take.why})` : ""}`;
}

function refresh() {
  const take = activeTake();
  part("transport").hidden = !take;
  if (!take) return;
  part("status").textContent = say(take.status, take);
  part("status").className = `pill ${take.status}`;
  part("stop").hidden = part("hold").hidden = !isOpen(take);
  // the button's parts stay, or a click between two chunks would miss it
  part("hold").querySelector("use").setAttribute("href", take.status === "paused" ? "#i-play" : "#i-pause");
  part("hold").querySelector("span").textContent = take.status === "paused" ? "Continue" : "Pause";
  part("hold").title = take.status === "paused" ? "Go on making" : "Hold the making; change some words, then go on";
  part("stop").title = "End this take here";
  for (const [name, file] of [["video", "video.mp4"], ["transcript", "transcript.json"]]) {
    part(name).href = `/api/sessions/${state.info.session}/takes/${take.number}/${file}`;
    part(name).classList.toggle("disabled", take.made === 0);
  }
}

for (const kind of ["shown", "status", "chunk", "reset"]) on(kind, refresh);

part("hold").addEventListener("click", () => send(activeTake().status === "paused" ? "resume" : "pause", { take: state.active }));
part("stop").addEventListener("click", () => send("stop", { take: state.active }));
part("share").addEventListener("click", async () => {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  toast(`${copied ? "Copied" : "The address is"} ${location.href}: whoever opens it sees this session`, "good");
});
window.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input:not([type=range]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const take = activeTake();
  if (!take || take.game) return;
  const { firsts } = take;
  const here = Number(part("scrub").value);
  if (event.key === "p" || (event.key === " " && event.target === document.body)) toggle();
  else if (event.key === "ArrowRight") seek(firsts.find((first) => first > here) ?? here, false);
  else if (event.key === "ArrowLeft") seek(firsts.findLast((first) => first < here) ?? 0, false);
  else return;
  event.preventDefault();
});

on("hello", (info) => {
  state.info = info;
  const step = info.step === null ? "" : `, step ${info.step}`;
  part("model").textContent = `${info.name}${step} \u00b7 ${info.width}\u00d7${info.height} \u00b7 ${info.mode}`;
  document.title = `${info.name} \u2013 megatv studio`;
});
on("live", () => { state.live = true; });
on("viewers", ({ count }) => {
  part("viewers").hidden = count < 2;
  part("viewers").textContent = `${count} watching`;
});
on("error", ({ message }) => toast(message));
on("refused", ({ message }) => over("The studio hung up", message));
on("gone", ({ message }) => over("This session is over", message));
on("line", ({ up }) => {
  const shown = part("toasts").querySelector(".lost");
  if (up) shown?.remove();
  else if (!shown) part("toasts").append(element("div", { className: "toast lost", textContent: "The studio does not answer; trying again ..." }));
});

function over(title, message) {
  part("over").hidden = false;
  part("over").querySelector("h1").textContent = title;
  part("over").querySelector("p").textContent = `${message[0].toUpperCase()}${message.slice(1)}.`;
}

async function join() {
  const known = /^\/s\/([\w-]+)$/.exec(location.pathname);
  if (known) return connect(known[1]);
  const answer = await fetch("/api/sessions", { method: "POST" }).catch(() => null);
  const tree = await answer?.json().catch(() => null);
  if (!answer?.ok) return over("No room", tree?.detail ?? "the studio does not answer");
  history.replaceState(null, "", `/s/${tree.session}`);
  connect(tree.session);
}

join();
