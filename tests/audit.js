// What is too small to touch and too faint to see on a page: see audit.py.

const shown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !e.closest('[aria-hidden=true]');
const called = (e) => `${e.tagName.toLowerCase()}${e.id && '#' + e.id}.${e.className?.baseVal ?? e.className} "${
  (e.textContent || e.value || e.title || '').trim().slice(0, 30)}"`;
const CONTROLS = 'button, a[href], input:not([type=file]), select, textarea, summary, [role=slider]';

/** A line for each control of less than 44 x 44 CSS px. */
function small() {
  return [...document.querySelectorAll(CONTROLS)].filter(shown).flatMap((e) => {
    const { width, height } = e.getBoundingClientRect();
    return width > 43.5 && height > 43.5 ? [] : [`${called(e)} is ${width.toFixed(1)} x ${height.toFixed(1)}`];
  });
}

const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
const rgba = (css) => {
  pen.clearRect(0, 0, 1, 1);
  pen.fillStyle = css;
  pen.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = (top, alpha, under) => under.map((c, i) => alpha * top[i] + (1 - alpha) * c);
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const contrast = (a, b) => {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
};
// all that may be behind an element's text: every colour of a gradient is one possibility
const grounds = (e) => {
  if (!e) return [[255, 255, 255]];
  const style = getComputedStyle(e);
  const stops = style.backgroundImage.match(/(?:rgba?|color)\([^)]*\)/g) ?? [];
  const own = rgba(style.backgroundColor);
  const below = own[3] === 1 ? [own.slice(0, 3)] : grounds(e.parentElement).map((g) => over(own, own[3], g));
  return stops.length ? stops.flatMap((css) => below.map((g) => over(rgba(css), rgba(css)[3], g))) : below;
};
const opacity = (e) => (e ? Number(getComputedStyle(e).opacity) * opacity(e.parentElement) : 1);
const least = (css, e, behind) => {
  const colour = rgba(css);
  return Math.min(...behind.map((g) => contrast(over(colour, colour[3] * opacity(e), g), g)));
};
const enabled = (e) => !e.closest(':disabled, .disabled');

/** A line for each text, icon and edge of too little contrast. */
function faint() {
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!shown(e) || !enabled(e)) continue;
    const style = getComputedStyle(e);
    const says = e.matches('input:not([type=range]), textarea') || [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (says) {
      const color = e.placeholder && !e.value ? getComputedStyle(e, '::placeholder').color : style.color;
      const ratio = least(color, e, grounds(e));
      if (ratio < 4.5) found.push(`text of ${called(e)}: ${ratio.toFixed(2)}`);
    }
    if (e.matches('button svg, a svg')) {
      const ratio = least(style.color, e, grounds(e));
      if (ratio < 3) found.push(`icon of ${called(e.parentElement)}: ${ratio.toFixed(2)}`);
    }
    if (e.matches('button, .button, input:not([type=range]), select, textarea') && !e.querySelector('canvas')) { // a picture has an edge of its own
      const [behind, fill, edge] = [grounds(e.parentElement), rgba(style.backgroundColor), style.borderBottomColor];
      const bare = fill[3] === 0 && (rgba(edge)[3] === 0 || style.borderBottomWidth === '0px');
      const ratio = Math.max(least(edge, e, behind), least(style.backgroundColor, e, behind));
      if (!bare && ratio < 3) found.push(`edge of ${called(e)}: ${ratio.toFixed(2)}`);
    }
  }
  return found;
}
