// Small help with the page's elements.

/** A new element with properties and children. Text always goes in as text, never as HTML. */
export function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** An icon of the page's set. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button with an icon and words. */
export function button(words, name, properties, press) {
  const made = element("button", { type: "button", ...properties }, [...(name ? [icon(name)] : []), words]);
  made.addEventListener("click", press);
  return made;
}

/** Put a picture (ImageData or ImageBitmap) on a canvas of its size. */
export function paint(canvas, picture) {
  if (canvas.width !== picture.width) canvas.width = picture.width;
  if (canvas.height !== picture.height) canvas.height = picture.height;
  const context = canvas.getContext("2d");
  if (picture instanceof ImageData) context.putImageData(picture, 0, 0);
  else context.drawImage(picture, 0, 0);
}

/** One sentence that goes away by itself. */
export function toast(sentence, kind = "error") {
  const made = element("div", { className: `toast ${kind}`, textContent: sentence });
  document.getElementById("toasts").append(made);
  setTimeout(() => made.remove(), 7000);
}
