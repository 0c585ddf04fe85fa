// What the page knows: takes made of chunks, built from the session's messages in their order.
// Nothing here touches the page; whoever draws listens with `on`.

export const state = {
  info: null, // the hello message
  takes: new Map(), // number -> take
  active: null, // number of the take whose plan is shown
  shown: [], // numbers of the takes on the stage
  live: false, // the log has been read to its end once
};

const listeners = new Map();

export function on(kind, listener) {
  listeners.set(kind, [...(listeners.get(kind) ?? []), listener]);
}

export function emit(kind, detail = {}) {
  for (const listener of listeners.get(kind) ?? []) listener(detail);
}

export const activeTake = () => state.takes.get(state.active) ?? null;
export const shownTakes = () => state.shown.map((number) => state.takes.get(number)).filter(Boolean);
export const isOpen = (take) => take?.status === "making" || take?.status === "paused";
export const frameOf = (seconds) => Math.round(seconds * state.info.fps);
export const totalFrames = (take) => take.ends.at(-1);
export const letter = (take) => String.fromCharCode(65 + (take.number % 26));

/** Frames that can be played without a gap. */
export function madeFrames(take) {
  return take.made === 0 ? 0 : take.ends[take.made - 1];
}

/** The chunk on screen at a frame. */
export function chunkAt(take, frame) {
  const chunk = take.ends.findIndex((end) => frame < end);
  return chunk < 0 ? take.chunks.length - 1 : chunk;
}

/** What a plan that was said before all chunks says of one of them. */
export function lineOfPlan(take, chunk) {
  const [first, end] = { chunk: [chunk, chunk + 1], frame: [take.firsts[chunk], take.ends[chunk]] }[state.info.plan_lines] ?? [0, 0];
  return take.plan.split("\n").slice(first, end).join("\n");
}

/** The picture of one frame, or the last one before it. */
export function pictureAt(take, frame) {
  const last = Math.min(frame, madeFrames(take) - 1);
  if (last < 0) return null;
  const chunk = chunkAt(take, last);
  return take.chunks[chunk].frames[last - take.firsts[chunk]] ?? null;
}

export function reset() {
  state.takes.clear();
  state.active = null;
  state.shown = [];
  emit("reset");
}

export function show(numbers, active = numbers[0]) {
  state.shown = numbers.slice(0, 4);
  state.active = active;
  emit("shown");
}

const handlers = {
  take(message) {
    const parent = state.takes.get(message.parent);
    const firsts = message.starts.map(frameOf);
    const ends = [...firsts.slice(1), 0];
    // a chunk has one frame where it opens a group and four elsewhere; the last one, unless it is alone, has four
    ends[ends.length - 1] = firsts.at(-1) + (firsts.length === 1 ? 1 : 4);
    const take = { ...message, number: message.take, firsts, ends, made: 0, status: "making", why: "", game: false, plan: "" };
    take.chunks = message.starts.map((start, chunk) =>
      parent && chunk < message.at ? parent.chunks[chunk] : { start, text: "", live: "", source: "", planned: null, stage: "coming", frames: [] });
    take.made = parent ? message.at : 0;
    state.takes.set(take.number, take);
    emit("take", { take, parent });
    if (parent && state.live) show([parent.number, take.number], take.number);
    else show([take.number]);
  },
  status(message, take) {
    take.status = message.status;
    take.why = message.why;
    if (!isOpen(take)) for (const chunk of take.chunks) if (chunk.stage !== "made") chunk.stage = "never";
    emit("status", { take });
  },
  token(message, take) {
    const chunk = take.chunks[message.chunk];
    chunk.stage = "writing";
    chunk.live += message.text;
    emit("chunk", { take, chunk: message.chunk });
    if (take.mode === "think2v" && message.chunk === 0) {
      take.plan += message.text;
      emit("plan", { take });
    }
  },
  plan(message, take) {
    take.plan = message.text;
    emit("plan", { take });
  },
  words(message, take) {
    const chunk = take.chunks[message.chunk];
    Object.assign(chunk, { text: message.text, source: message.source, cut: message.cut, live: "", planned: null, stage: "drawing" });
    emit("chunk", { take, chunk: message.chunk });
  },
  planned(message, take) {
    take.chunks[message.chunk].planned = message.text;
    emit("chunk", { take, chunk: message.chunk });
  },
  frames(message, take) {
    const chunk = take.chunks[message.chunk];
    chunk.frames = message.frames;
    chunk.stage = "made";
    take.made = Math.max(take.made, message.chunk + 1);
    take.ends[message.chunk] = message.first + message.frames.length;
    emit("chunk", { take, chunk: message.chunk });
  },
  game(message, take) {
    take.game = message.on;
    emit("status", { take });
  },
  closed(message, take) {
    state.takes.delete(take.number);
    emit("closed", { take });
    const rest = state.shown.filter((number) => number !== take.number);
    const last = [...state.takes.keys()].at(-1);
    if (state.takes.size) show(rest.length ? rest : [last], rest.includes(state.active) ? state.active : rest[0] ?? last);
    else show([], null);
  },
};

/** One message of the studio. What concerns a take that is closed by now is left out. */
export function apply(message) {
  const handler = handlers[message.type];
  if (!handler) return emit(message.type, message);
  const take = state.takes.get(message.take);
  if (take || message.type === "take") handler(message, take);
}
