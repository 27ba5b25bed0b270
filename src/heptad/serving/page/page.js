// The page of `heptad serve`: strokes and pictures go to the server, what it answers is shown.
"use strict";

const byId = (id) => document.getElementById(id);
const body = document.body;
const pad = byId("pad"); // none where the network is not for digits
const rows = [...byId("bars").children];
const isWhole = body.dataset.isWhole === "yes";
const mostBytes = Number(body.dataset.mostBytes);
const patienceMs = Number(body.dataset.answerMs);

// Shares of the pad's side: the pen's width, and how far a key moves it.
const PEN = 0.08;
const KEY_STEP = 0.04;
// The side in pixels that a drawing is sent with, five times MNIST's, and how much of it stays
// black along the edges: what touches a photo's edge is taken for the table.
const SENT_SIDE = 140;
const MARGIN = 0.1;
// Screen readers hear an answer once it has stood for so long; a sign of work is shown after it.
const QUIET_MS = 700;

/* Asking: one question is under way at a time; of those that wait, the newest is asked next. */

let waiting = null;
let isAsking = false;
let turn = 0; // answers to what was cleared or replaced since are not shown

function ask(question) {
  waiting = { ...question, turn };
  if (!isAsking) answerAll();
}

async function answerAll() {
  isAsking = true;
  const slow = setTimeout(() => (byId("took").textContent = "…"), QUIET_MS);
  try {
    while (waiting) {
      const question = waiting;
      waiting = null;
      const reply = await send(question);
      if (question.turn === turn) show(reply, question);
    }
  } finally {
    clearTimeout(slow);
    isAsking = false;
  }
}

async function send({ asDigit, content }) {
  let picture;
  try {
    picture = await content();
  } catch {
    return failure("This cannot be read: a folder, or a file that has changed since.");
  }
  try {
    const response = await fetch(`answer?as_digit=${asDigit}`, {
      method: "POST",
      body: picture,
      headers: { "Content-Type": picture.type || "application/octet-stream" },
      signal: AbortSignal.timeout(patienceMs),
    });
    const isJson = response.headers.get("Content-Type") === "application/json";
    return isJson ? await response.json() : failure(`The server says: ${await response.text()}`);
  } catch {
    return failure("The server does not answer.", "was it stopped?");
  }
}

function failure(message, hint = "") {
  return { error: { message, hint } };
}

/* Showing. */

const percent = (value) => `${(100 * value).toFixed(1)} %`;

function show(reply, { askedAt }) {
  if (reply.error) {
    clearAnswer();
    return complain([reply.error.message, reply.error.hint].filter(Boolean).join(" — "));
  }
  byId("problem").hidden = true;
  const [first] = reply.classes;
  byId("answer").textContent = first.name;
  byId("answer").classList.toggle("long", first.name.length > 3);
  for (const row of rows) fill(row, null);
  reply.classes.forEach((each, rank) => {
    const row = rows[isWhole ? each.place : rank];
    fill(row, each);
    row.classList.toggle("first", rank === 0);
  });
  byId("seen-text").textContent = reply.seen_as;
  paint(byId("seen"), reply.seen);
  showMaps(reply.maps);
  byId("sight").hidden = false;
  // For whoever measures: the last answer, from the pointer to here.
  performance.clearMeasures("answer");
  const { duration } = performance.measure("answer", { start: askedAt, end: performance.now() });
  byId("took").textContent = `answered in ${Math.round(duration)} ms`;
  speak(`${first.name}, ${percent(first.probability)}`);
}

function fill(row, each) {
  const [name, track, value] = row.children;
  row.classList.remove("first");
  if (!isWhole) name.textContent = name.title = each ? each.name : "";
  track.firstChild.style.setProperty("--p", each ? each.probability : 0);
  value.textContent = each ? percent(each.probability) : "";
}

function showMaps(layers) {
  const place = byId("maps");
  if (place.children.length !== layers.length) place.replaceChildren(...layers.map(newSheet));
  layers.forEach(({ rasters }, number) => {
    rasters.forEach((each, k) => paint(place.children[number].lastChild.children[k], each));
  });
}

function newSheet({ name, rasters }) {
  const figure = document.createElement("figure");
  const text = document.createElement("figcaption");
  const sheet = document.createElement("div");
  const { width, height } = rasters[0];
  text.textContent = `${name}: ${rasters.length} feature maps of ${width} × ${height}`;
  sheet.className = "sheet";
  sheet.setAttribute("role", "img");
  sheet.setAttribute("aria-label", text.textContent);
  sheet.append(...rasters.map(() => document.createElement("canvas")));
  figure.append(text, sheet);
  return figure;
}

function paint(canvas, { width, height, channels, pixels }) {
  const bytes = atob(pixels);
  const image = new ImageData(width, height);
  for (let k = 0; k < width * height; k++) {
    for (let c = 0; c < 3; c++) {
      image.data[4 * k + c] = bytes.charCodeAt(k * channels + Math.min(c, channels - 1));
    }
    image.data[4 * k + 3] = 255;
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function clearAnswer() {
  clearTimeout(speaking);
  byId("spoken").textContent = "";
  byId("answer").textContent = "\u00a0";
  byId("took").textContent = "\u00a0";
  byId("sight").hidden = true;
  for (const row of rows) fill(row, null);
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

let speaking;
function speak(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => (byId("spoken").textContent = text), QUIET_MS);
}

/* Pictures: chosen, dropped or pasted. */

const preview = byId("preview");

function take(files) {
  const file = [...files][0];
  turn += 1;
  waiting = null;
  liftPen();
  strokes.length = 0;
  clearAnswer();
  byId("problem").hidden = true;
  hidePreview();
  if (!file) {
    redraw();
    return complain("This is no file: save the picture first, then drop it.");
  }
  preview.src = URL.createObjectURL(file);
  preview.alt = `the picture ${file.name}`;
  preview.hidden = false;
  redraw();
  if (file.size > mostBytes) {
    const size = (file.size / 2 ** 20).toFixed(1);
    return complain(`This file has ${size} MB; allowed: ${mostBytes / 2 ** 20} MB.`);
  }
  // Read first, so that one that cannot be read is known from a server that does not answer.
  const content = async () => new Blob([await file.arrayBuffer()], { type: file.type });
  ask({ asDigit: "auto", content, askedAt: performance.now() });
}

function hidePreview() {
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.removeAttribute("src");
  preview.hidden = true;
}

preview.addEventListener("error", () => {
  preview.hidden = true;
  redraw();
});
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    body.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => body.classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});

/* The pad. A stroke is a list of points [x, y], shares of the pad's side. */

const strokes = [];
let stroke = null; // that is being drawn
let pen = [0.5, 0.5];
let pointer = null; // that draws it, if no key does

const isPenDown = () => stroke !== null && pointer === null;

function liftPen() {
  stroke = pointer = null;
}

function drawStrokes(context, side, { ink, ground, margin = 0 }) {
  const at = ([x, y]) => [x, y].map((share) => side * (margin + (1 - 2 * margin) * share));
  context.fillStyle = ground;
  context.fillRect(0, 0, side, side);
  context.strokeStyle = ink;
  context.lineWidth = PEN * side * (1 - 2 * margin);
  context.lineCap = context.lineJoin = "round";
  for (const points of strokes) {
    context.beginPath();
    // A hair to the side: a stroke of no length would not be drawn, and a dot should.
    const [x, y] = at(points[0]);
    context.moveTo(x - 0.01, y);
    for (const point of points) context.lineTo(...at(point));
    context.stroke();
  }
}

function redraw() {
  byId("invitation").hidden = strokes.length > 0 || !preview.hidden;
  if (!pad) return;
  const style = getComputedStyle(body);
  const side = Math.round(pad.clientWidth * devicePixelRatio);
  if (pad.width !== side) pad.width = pad.height = side;
  const context = pad.getContext("2d");
  const colour = (name) => style.getPropertyValue(name).trim();
  drawStrokes(context, side, { ink: colour("--ink"), ground: colour("--panel") });
  if (pad.matches(":focus-visible")) {
    context.beginPath();
    context.arc(pen[0] * side, pen[1] * side, (PEN * side) / 2, 0, 2 * Math.PI);
    context.strokeStyle = colour(isPenDown() ? "--accent" : "--soft");
    context.lineWidth = 2 * devicePixelRatio;
    context.stroke();
  }
  byId("undo").disabled = strokes.length === 0;
  byId("clear").disabled = strokes.length === 0 && preview.hidden;
}

const sent = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
sent.canvas.width = sent.canvas.height = SENT_SIDE;

// As an uncompressed picture (BMP, 32 bits a pixel, rows from above): the browser's own PNG would
// only come when it has nothing else to do.
function drawingToSend() {
  drawStrokes(sent, SENT_SIDE, { ink: "#fff", ground: "#000", margin: MARGIN });
  const { data } = sent.getImageData(0, 0, SENT_SIDE, SENT_SIDE);
  const header = new DataView(new ArrayBuffer(54));
  header.setUint16(0, 0x424d);
  const fields = { 2: 54 + data.length, 10: 54, 14: 40, 18: SENT_SIDE, 22: -SENT_SIDE, 34: data.length };
  for (const [at, value] of Object.entries(fields)) header.setInt32(at, value, true);
  header.setUint16(26, 1, true);
  header.setUint16(28, 32, true);
  return new Blob([header, data], { type: "image/bmp" });
}

function changed(askedAt) {
  redraw();
  if (strokes.length === 0) return forget();
  ask({ asDigit: "yes", content: drawingToSend, askedAt });
}

function forget() {
  turn += 1;
  waiting = null;
  liftPen();
  strokes.length = 0;
  hidePreview();
  byId("problem").hidden = true;
  clearAnswer();
  speak("cleared");
  redraw();
}

function begin(point, askedAt) {
  if (strokes.length === 0) {
    turn += 1;
    hidePreview();
  }
  stroke = [point];
  strokes.push(stroke);
  changed(askedAt);
}

function undo() {
  liftPen();
  strokes.pop();
  changed(performance.now());
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

// Where the pen is, for those who do not see it: in steps of a key from the upper left.
function tellPen(what) {
  const [column, row] = pen.map((at) => Math.round(at / KEY_STEP));
  byId("pen").textContent = `${what} at column ${column}, row ${row} of ${Math.round(1 / KEY_STEP)}`;
}

if (pad) {
  pad.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    liftPen();
    pointer = event.pointerId;
    pad.setPointerCapture(pointer);
    begin(place(event), event.timeStamp);
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer || !stroke) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    stroke.push(...(moves.length ? moves : [event]).map(place));
    pen = stroke.at(-1);
    changed(event.timeStamp);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    pad.addEventListener(kind, (event) => {
      if (event.pointerId === pointer) liftPen();
    });
  }

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  pad.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      pen = pen.map((at, axis) => Math.min(1, Math.max(0, at + KEY_STEP * moves[event.key][axis])));
      tellPen(isPenDown() ? "drawing" : "pen");
      if (isPenDown()) {
        stroke.push(pen);
        changed(event.timeStamp);
      }
    } else if (event.key === " ") {
      // A key that is held down comes again and again.
      if (!event.repeat && pointer === null) {
        if (isPenDown()) liftPen();
        else begin(pen, event.timeStamp);
        tellPen(isPenDown() ? "pen down" : "pen lifted");
      }
    } else if (event.key === "Backspace" && strokes.length) {
      undo();
    } else if (event.key === "Delete") {
      forget();
    } else {
      return;
    }
    event.preventDefault();
    redraw();
  });
  for (const kind of ["focus", "blur"]) pad.addEventListener(kind, redraw);
  byId("undo").addEventListener("click", undo);
  byId("clear").addEventListener("click", forget);
  new ResizeObserver(redraw).observe(pad);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
