// The page of `heptad serve`: strokes and pictures go to the server, what it answers is shown.
"use strict";

const byId = (id) => document.getElementById(id);
const body = document.body;
const pad = byId("pad"); // none where the network is not for digits
const rows = [...byId("bars").children];
const isWhole = body.dataset.isWhole === "yes";
const mostBytes = Number(body.dataset.mostBytes);

// Shares of the pad's side: the pen's width, and how far a key moves it.
const PEN = 0.08;
const KEY_STEP = 0.04;
// The side in pixels that a drawing is sent with: five times MNIST's.
const SENT_SIDE = 140;
// Screen readers hear an answer once it has stood for so long.
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
  try {
    while (waiting) {
      const question = waiting;
      waiting = null;
      const reply = await send(question);
      if (question.turn === turn) show(reply, question);
    }
  } finally {
    isAsking = false;
  }
}

async function send({ asDigit, content }) {
  const picture = await content();
  const headers = { "Content-Type": picture.type || "application/octet-stream" };
  try {
    const options = { method: "POST", body: picture, headers };
    const response = await fetch(`answer?as_digit=${asDigit}`, options);
    return await response.json();
  } catch {
    return { error: { message: "The server does not answer.", hint: "was it stopped?" } };
  }
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
  const seen = reply.seen;
  byId("seen-text").textContent = `${seen.width} × ${seen.height} pixels`;
  paint(byId("seen"), seen);
  showMaps(reply.maps);
  byId("sight").hidden = false;
  performance.measure("answer", { start: askedAt, end: performance.now() });
  byId("took").textContent = `answered in ${Math.round(performance.now() - askedAt)} ms`;
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

function take(files) {
  const file = [...files][0];
  if (!file) return;
  turn += 1;
  strokes.length = 0;
  redraw();
  clearAnswer();
  byId("problem").hidden = true;
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `the picture ${file.name}`;
  preview.hidden = false;
  byId("invitation").hidden = true;
  if (pad) byId("clear").disabled = false;
  if (file.size > mostBytes) {
    const size = (file.size / 2 ** 20).toFixed(1);
    return complain(`This file has ${size} MB; allowed: ${mostBytes / 2 ** 20} MB.`);
  }
  ask({ asDigit: "auto", content: async () => file, askedAt: performance.now() });
}

byId("preview").addEventListener("error", () => {
  byId("preview").hidden = true;
  byId("invitation").hidden = false;
});
byId("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
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
let pen = [0.5, 0.5];
let isPenDown = false; // by a key
let pointer = null; // that draws now

function drawStrokes(context, side, { ink, ground }) {
  context.fillStyle = ground;
  context.fillRect(0, 0, side, side);
  context.strokeStyle = ink;
  context.lineWidth = PEN * side;
  context.lineCap = context.lineJoin = "round";
  for (const points of strokes) {
    context.beginPath();
    // A hair to the side: a stroke of no length would not be drawn, and a dot should.
    context.moveTo((points[0][0] - 1e-4) * side, points[0][1] * side);
    for (const [x, y] of points) context.lineTo(x * side, y * side);
    context.stroke();
  }
}

function redraw() {
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
    context.strokeStyle = colour(isPenDown ? "--accent" : "--soft");
    context.lineWidth = 2 * devicePixelRatio;
    context.stroke();
  }
  byId("undo").disabled = strokes.length === 0;
  byId("clear").disabled = strokes.length === 0 && byId("preview").hidden;
  byId("invitation").hidden = strokes.length > 0 || !byId("preview").hidden;
}

const sent = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
sent.canvas.width = sent.canvas.height = SENT_SIDE;

// As an uncompressed picture (BMP, 32 bits a pixel, rows from above): the browser's own PNG would
// only come when it has nothing else to do.
function drawingToSend() {
  drawStrokes(sent, SENT_SIDE, { ink: "#fff", ground: "#000" });
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
  strokes.length = 0;
  byId("preview").hidden = true;
  byId("problem").hidden = true;
  clearAnswer();
  speak("cleared");
  redraw();
}

function begin(point) {
  if (!byId("preview").hidden || strokes.length === 0) {
    turn += 1;
    byId("preview").hidden = true;
  }
  strokes.push([point]);
}

function undo() {
  strokes.pop();
  isPenDown = false;
  changed(performance.now());
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

if (pad) {
  pad.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    pad.setPointerCapture(pointer);
    isPenDown = false;
    begin(place(event));
    changed(event.timeStamp);
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    strokes.at(-1).push(...(moves.length ? moves : [event]).map(place));
    pen = strokes.at(-1).at(-1);
    changed(event.timeStamp);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    pad.addEventListener(kind, (event) => {
      if (event.pointerId === pointer) pointer = null;
    });
  }

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  pad.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      pen = pen.map((at, axis) => Math.min(1, Math.max(0, at + KEY_STEP * moves[event.key][axis])));
      if (isPenDown) {
        strokes.at(-1).push(pen);
        changed(event.timeStamp);
      }
    } else if (event.key === " ") {
      isPenDown = !isPenDown;
      speak(isPenDown ? "pen down" : "pen lifted");
      if (isPenDown) {
        begin(pen);
        changed(event.timeStamp);
      }
    } else if (event.key === "Backspace" && strokes.length) {
      undo();
    } else if (event.key === "Delete") {
      isPenDown = false;
      forget();
    } else {
      return;
    }
    event.preventDefault();
    redraw();
  });
  for (const kind of ["focus", "blur"]) pad.addEventListener(kind, redraw);
  byId("undo").addEventListener("click", undo);
  byId("clear").addEventListener("click", () => {
    isPenDown = false;
    forget();
  });
  new ResizeObserver(redraw).observe(pad);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
