// The line to the studio: lists of JSON messages, and frames as binary messages.

import { apply, emit, reset, state } from "/static/store.js";

let socket = null;
let ended = false;
let retry = 500;

/** Join a session; on a lost line, try again and read its log anew. */
export function connect(session) {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/${session}`);
  socket.binaryType = "arraybuffer";
  let queue = Promise.resolve(); // pictures are unpacked asynchronously, and the order must stay
  socket.onopen = () => {
    retry = 500;
    state.live = false;
    reset();
    emit("line", { up: true });
  };
  socket.onmessage = ({ data }) => {
    queue = queue.then(() => receive(data));
  };
  socket.onclose = () => {
    if (ended) return;
    emit("line", { up: false });
    setTimeout(() => connect(session), retry);
    retry = Math.min(retry * 2, 8000);
  };
}

/** Ask the studio for something; false while there is no line to it. */
export function send(type, fields = {}) {
  const open = socket?.readyState === WebSocket.OPEN;
  if (open) socket.send(JSON.stringify({ type, ...fields }));
  return open;
}

async function receive(data) {
  if (typeof data !== "string") return apply(await unpack(data));
  for (const message of JSON.parse(data)) {
    if (message.type === "gone" || message.type === "refused") ended = true;
    apply(message);
  }
}

/** One chunk's frames: raw pixels become ImageData, JPEG files become ImageBitmaps. */
async function unpack(buffer) {
  const [take, chunk, first, count, width, height, jpeg] = new Uint32Array(buffer, 0, 7);
  const frames = [];
  if (jpeg) {
    const lengths = new Uint32Array(buffer, 28, count);
    let at = 28 + 4 * count;
    for (const length of lengths) {
      frames.push(createImageBitmap(new Blob([new Uint8Array(buffer, at, length)], { type: "image/jpeg" })));
      at += length;
    }
  } else {
    const rgb = new Uint8Array(buffer, 28);
    for (let k = 0; k < count; k++) frames.push(toImage(rgb.subarray(k * width * height * 3), width, height));
  }
  return { type: "frames", take, chunk, first, frames: await Promise.all(frames) };
}

function toImage(rgb, width, height) {
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; to < image.data.length; from += 3, to += 4) {
    image.data[to] = rgb[from];
    image.data[to + 1] = rgb[from + 1];
    image.data[to + 2] = rgb[from + 2];
    image.data[to + 3] = 255;
  }
  return image;
}
