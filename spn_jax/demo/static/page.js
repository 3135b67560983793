// The page: a photo is loaded, its hole painted, filled by the server, and compared. Pixels of the photo never pass a canvas: the
// server keeps the original, receives the mask alone, and gives back files that the page saves as they are.

import { Mask } from "/static/mask.js";
import * as server from "/static/server.js";

const $ = (id) => document.getElementById(id);
const LARGEST_BRUSH = 0.5; // of the photo's longer side
const ZOOM = { least: 1, most: 32, step: 1.5 };

const state = {
  model: { samples: 1, bytes: 2 ** 26, pixels: 2.4e7 },
  file: null, // as it was chosen; sent again if the server has let it go
  photo: null, // what the server says about it
  mask: null,
  erasing: false,
  comparing: false,
  zoom: 1,
  results: [],
  chosen: 0,
  job: null,
  keyboard: { x: 0, y: 0 }, // where the arrows have moved the brush
};

// --- words ---

function complain(error) {
  if (!(error instanceof Error)) error = new Error(String(error));
  $("error").textContent = error.message;
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}

function say(text) {
  $("status").textContent = text;
}

// Handlers of events: what goes wrong is told, and the last complaint goes away before a new attempt.
function doing(work) {
  return async (event) => {
    $("error").hidden = true;
    try {
      await work(event);
    } catch (error) {
      complain(error);
    }
  };
}

// --- loading ---

async function load(file) {
  if (file.size > state.model.bytes) {
    throw new Error(`${file.name} has ${megabytes(file.size)} MB, and the server takes ${megabytes(state.model.bytes)}; make it smaller.`);
  }
  $("facts").textContent = "Loading…";
  say("Loading…");
  try {
    const photo = await server.upload(file);
    const view = await decoded(await server.photoView(photo.photo), $("before"));
    if (state.job) await server.cancel(state.job);
    if (state.photo) server.forget(state.photo.photo);
    show(file, photo, view);
  } finally {
    say("");
  }
}

// An <img> with the picture of a blob in it; returns when it can be drawn.
async function decoded(blob, image = new Image()) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  await image.decode();
  return image;
}

function show(file, photo, view) {
  Object.assign(state, { file, photo, results: [], zoom: 1, keyboard: { x: photo.width / 2, y: photo.height / 2 } });
  [$("paint").width, $("paint").height] = [view.naturalWidth, view.naturalHeight];
  state.mask = new Mask($("paint"), photo.width, photo.height);
  $("drop").hidden = true;
  $("work").hidden = false;
  $("outcome").hidden = $("results").hidden = $("maps").hidden = true;
  $("tools").disabled = $("filling").disabled = $("prior").disabled = false;
  $("facts").textContent = `${photo.name}, ${photo.width} × ${photo.height} pixels`;
  $("size").value = String(Math.log(0.08 * longest()) / Math.log(LARGEST_BRUSH * longest()));
  compare(false);
  $("compare-mode").disabled = true;
  refresh();
  layout();
}

const longest = () => Math.max(state.photo.width, state.photo.height, 4);
const megabytes = (bytes) => String(Number((bytes / 2 ** 20).toPrecision(3)));

async function useMask(file) {
  const white = await withPhoto((photo) => server.mask(photo, file, $("invert").checked));
  state.mask.use(await createImageBitmap(white));
  refresh();
}

// What is asked about a photo that the server no longer keeps is asked again after it was sent again.
async function withPhoto(ask) {
  try {
    return await ask(state.photo.photo);
  } catch (error) {
    if (error.status !== 404) throw error;
    state.photo = await server.upload(state.file);
    return ask(state.photo.photo);
  }
}

// --- where things are on the screen ---

function layout() {
  if (!state.photo) return;
  const { width, height } = state.photo;
  const room = { width: $("work").clientWidth - 2, height: Math.max(0.68 * window.innerHeight, 240) };
  const scale = state.zoom * Math.min(room.width / width, room.height / height, Math.max(1, 512 / longest()));
  $("frame").style.width = `${Math.max(1, Math.floor(width * scale))}px`;
  $("frame").style.height = `${Math.max(1, Math.floor(height * scale))}px`;
  for (const image of [$("before"), $("after")]) image.classList.toggle("magnified", scale >= 3);
  $("zoom-out").disabled = state.zoom <= ZOOM.least;
  $("zoom-in").disabled = state.zoom >= ZOOM.most;
  moveCursor(null);
}

// Zooms and keeps what is in the middle in the middle.
function zoom(factor) {
  const easel = $("easel");
  const middle = [(easel.scrollLeft + easel.clientWidth / 2) / easel.scrollWidth, (easel.scrollTop + easel.clientHeight / 2) / easel.scrollHeight];
  state.zoom = factor ? Math.min(ZOOM.most, Math.max(ZOOM.least, state.zoom * factor)) : 1;
  layout();
  easel.scrollLeft = middle[0] * easel.scrollWidth - easel.clientWidth / 2;
  easel.scrollTop = middle[1] * easel.scrollHeight - easel.clientHeight / 2;
}

function pointOf(event) {
  const box = $("paint").getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * state.photo.width,
    y: ((event.clientY - box.top) / box.height) * state.photo.height,
  };
}

function moveCursor(point) {
  const cursor = $("cursor");
  cursor.hidden = !point || state.comparing;
  if (cursor.hidden) return;
  const scale = $("paint").getBoundingClientRect().width / state.photo.width;
  cursor.style.width = cursor.style.height = `${Math.max(brushSize() * scale, 3)}px`;
  cursor.style.left = `${point.x * scale}px`;
  cursor.style.top = `${point.y * scale}px`;
}

// --- painting ---

// In pixels of the photo. The slider's steps grow with the size, so that 3 is as easy to find as 300.
function brushSize() {
  return Math.max(1, Math.round((LARGEST_BRUSH * longest()) ** Number($("size").value)));
}

function resize(factor) {
  const size = Math.max(1, brushSize() * factor + Math.sign(factor - 1));
  $("size").value = String(Math.log(size) / Math.log(LARGEST_BRUSH * longest()));
  refresh();
}

function refresh() {
  const { mask } = state;
  $("undo").disabled = !mask.entries.length;
  $("redo").disabled = !mask.undone.length;
  $("clear").disabled = mask.empty;
  $("brush").setAttribute("aria-pressed", String(!state.erasing));
  $("eraser").setAttribute("aria-pressed", String(state.erasing));
  $("size-shown").textContent = `${brushSize()} pixels`;
  $("size").setAttribute("aria-valuetext", `${brushSize()} pixels`);
  $("samples-row").hidden = $("seed-row").hidden = state.model.samples < 2;
}

function painted(change) {
  change(state.mask);
  compare(false);
  refresh();
}

function choose(erasing) {
  state.erasing = erasing;
  painted(() => {});
}

function connectBrush() {
  const canvas = $("paint");
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    state.mask.begin(state.erasing, brushSize(), pointOf(event));
    moveCursor(pointOf(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    moveCursor(pointOf(event));
    if (!state.mask.current || !event.isPrimary) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) state.mask.extend(pointOf(one));
  });
  canvas.addEventListener("pointerup", () => {
    state.mask.end();
    refresh();
  });
  canvas.addEventListener("pointercancel", () => state.mask.abandon());
  canvas.addEventListener("pointerleave", () => moveCursor(null));
  canvas.addEventListener("keydown", paintByKey);
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && moveCursor(state.keyboard));
  canvas.addEventListener("blur", () => moveCursor(null));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function paintByKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  if (!arrow && event.key !== " ") return;
  event.preventDefault();
  const from = state.keyboard;
  if (arrow) {
    const step = Math.max(1, brushSize() / 2);
    const within = (value, most) => Math.min(most, Math.max(0, value));
    state.keyboard = { x: within(from.x + arrow[0] * step, state.photo.width), y: within(from.y + arrow[1] * step, state.photo.height) };
  }
  if (!arrow || event.shiftKey) {
    painted((mask) => {
      mask.begin(state.erasing, brushSize(), from);
      if (arrow) mask.extend(state.keyboard);
      mask.end();
    });
  }
  moveCursor(state.keyboard);
}

function shortcut(event) {
  if (!state.photo || event.target.matches("input:not([type=range]), select, textarea")) return;
  const key = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  if (command && key === "z" && !event.shiftKey) painted((mask) => mask.undo());
  else if (command && (key === "y" || key === "z")) painted((mask) => mask.redo());
  else if (command || event.altKey) return;
  else if (key === "b") choose(false);
  else if (key === "e") choose(true);
  else if (key === "[") resize(1 / 1.2);
  else if (key === "]") resize(1.2);
  else return;
  event.preventDefault();
}

// --- filling ---

async function fill() {
  const mask = await paintedMask();
  const fields = { mask, dilate: $("dilate").value, strategy: $("strategy").value };
  if (state.model.samples > 1) Object.assign(fields, { samples: $("samples").value, seed: $("seed").value });
  const wanted = Number(fields.samples ?? 1);
  const results = [];
  await working(
    (photo) => server.startFill(photo, fields),
    (job) => (wanted > 1 && job.results.length ? `Filling… ${job.results.length} of ${wanted} done` : "Filling…"),
    async (job) => {
      for (const result of job.results.slice(results.length)) {
        results.push({ ...result, picture: await server.picture(result.view) });
        await showResults(results);
      }
    },
  );
}

async function showPrior() {
  const mask = await paintedMask();
  const job = await working((photo) => server.startPrior(photo, mask), () => "Computing the prior…", async () => {});
  if (job.state !== "done") return;
  const figures = await Promise.all(job.results.map(async (result, i) => mapFigure(await server.picture(result.view), i)));
  const explained = document.createElement("p");
  explained.className = "hint";
  explained.textContent = "k-means clusters of the features predicted for the photo and its hole, from the finest level to the coarsest. "
    + "Equal colours in a map: things that look alike to the network. Colours of different maps have nothing to do with each other.";
  $("maps").replaceChildren(explained, ...figures);
  $("maps").hidden = false;
  $("maps").scrollIntoView({ block: "nearest" });
}

async function mapFigure(blob, i) {
  const figure = document.createElement("figure");
  const image = await decoded(blob);
  image.alt = `Clusters of the prior's level ${i + 1}`;
  const caption = document.createElement("figcaption");
  caption.textContent = `Level ${i + 1}, ${image.naturalWidth} × ${image.naturalHeight}`;
  figure.append(image, caption);
  return figure;
}

async function paintedMask() {
  if (state.mask.empty) throw new Error("Paint over what is to be filled first, or choose a mask.");
  return state.mask.png();
}

// Starts a job, tells how far it is, and returns its last state.
async function working(start, doing, report) {
  busy(true);
  const began = Date.now();
  try {
    const job = await withPhoto(start);
    state.job = job.job;
    return await server.follow(job, async (now) => {
      const seconds = Math.round((Date.now() - began) / 1000);
      const waits = now.before === 1 ? "One other is before this one" : `${now.before} others are before this one`;
      say(now.state === "waiting" && now.before ? `${waits} (${seconds} s)` : `${doing(now)} (${seconds} s)`);
      await report(now);
      if (now.state === "done") say(`Done in ${((Date.now() - began) / 1000).toFixed(1)} s.`);
      if (now.state === "cancelled") say("Cancelled.");
    });
  } catch (error) {
    say("");
    throw error;
  } finally {
    state.job = null;
    busy(false);
  }
}

function busy(is) {
  $("fill").disabled = $("show-prior").disabled = is;
  $("cancel").hidden = $("progress").hidden = !is;
}

// --- results ---

async function showResults(results) {
  state.results = results;
  $("outcome").hidden = false;
  const items = results.map((result, i) => {
    const button = document.createElement("button");
    const image = new Image();
    image.src = URL.createObjectURL(result.picture);
    image.alt = "";
    button.type = "button";
    button.append(image, `Result ${i + 1}`);
    button.addEventListener("click", doing(() => chooseResult(i)));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  $("results").replaceChildren(...items);
  $("results").hidden = results.length < 2;
  markChosen();
  if (results.length === 1) await chooseResult(0);
}

async function chooseResult(i) {
  state.chosen = i;
  const result = state.results[i];
  markChosen();
  $("download").href = result.file;
  $("download").download = result.name;
  $("compare-mode").disabled = false;
  await decoded(result.picture, $("after"));
  compare(true);
}

function markChosen() {
  [...$("results").children].forEach((item, n) => item.firstChild.setAttribute("aria-pressed", String(n === state.chosen)));
}

function compare(comparing) {
  state.comparing = comparing;
  $("paint").hidden = comparing;
  $("after").hidden = $("divider").hidden = $("compare-row").hidden = !comparing;
  $("frame").classList.toggle("comparing", comparing);
  $("paint-mode").setAttribute("aria-pressed", String(!comparing));
  $("compare-mode").setAttribute("aria-pressed", String(comparing));
  moveCursor(null);
  divide();
}

function divide() {
  const share = Number($("compare").value);
  $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("divider").style.left = `${share}%`;
}

function connectComparison() {
  $("compare").addEventListener("input", divide);
  const drag = (event) => {
    if (!state.comparing || !(event.buttons & 1)) return;
    event.preventDefault();
    const box = $("frame").getBoundingClientRect();
    $("compare").value = String((100 * (event.clientX - box.left)) / box.width);
    divide();
  };
  $("frame").addEventListener("pointerdown", (event) => {
    if (state.comparing) $("frame").setPointerCapture(event.pointerId);
    drag(event);
  });
  $("frame").addEventListener("pointermove", drag);
}

// The file itself, not a picture of it: what is known stays bit for bit the photo's however often this is done.
async function goOn() {
  const result = state.results[state.chosen];
  await load(new File([await server.picture(result.file)], result.name, { type: "image/png" }));
}

// A link would replace the page by the server's sentence if the result is gone.
async function download(event) {
  event.preventDefault();
  save(await server.picture($("download").getAttribute("href")), $("download").download);
}

// Called as programs that take masks beside photos expect it.
async function saveMask() {
  save(await paintedMask(), `${state.photo.name.replace(/\.[^.]*$/, "")}_mask.png`);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- events ---

function connectFiles() {
  for (const button of document.querySelectorAll("button.choose")) button.addEventListener("click", () => $("photo-file").click());
  $("choose-mask").addEventListener("click", () => $("mask-file").click());
  for (const [input, use] of [["photo-file", load], ["mask-file", useMask]]) {
    $(input).addEventListener("change", doing(async () => {
      const [file] = $(input).files;
      if (file) await use(file).finally(() => ($(input).value = "")); // so that the same file can be chosen again
    }));
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", doing(async (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const [file] = event.dataTransfer.files;
    if (file) await load(file);
  }));
  document.addEventListener("paste", doing(async (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) await load(file);
  }));
}

function connectControls() {
  $("brush").addEventListener("click", () => choose(false));
  $("eraser").addEventListener("click", () => choose(true));
  $("size").addEventListener("input", refresh);
  for (const name of ["undo", "redo", "clear"]) $(name).addEventListener("click", () => painted((mask) => mask[name]()));
  $("fill").addEventListener("click", doing(fill));
  $("cancel").addEventListener("click", doing(async () => state.job && server.cancel(state.job)));
  $("show-prior").addEventListener("click", doing(showPrior));
  $("download").addEventListener("click", doing(download));
  $("save-mask").addEventListener("click", doing(saveMask));
  $("go-on").addEventListener("click", doing(goOn));
  $("paint-mode").addEventListener("click", () => compare(false));
  $("compare-mode").addEventListener("click", () => compare(true));
  $("zoom-in").addEventListener("click", () => zoom(ZOOM.step));
  $("zoom-out").addEventListener("click", () => zoom(1 / ZOOM.step));
  $("zoom-fit").addEventListener("click", () => zoom(0));
  document.addEventListener("keydown", shortcut);
  window.addEventListener("resize", layout);
}

async function begin() {
  connectFiles();
  connectControls();
  connectBrush();
  connectComparison();
  state.model = await server.model();
  $("model").textContent = state.model.model;
  $("limits").textContent = `, up to ${megabytes(state.model.bytes)} MB and ${state.model.pixels / 1e6} million pixels`;
  $("samples").max = state.model.samples;
  $("samples").value = String(Math.min(3, state.model.samples));
}

doing(begin)();
