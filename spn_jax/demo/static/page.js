// The page: a photo is loaded, its hole painted, filled by the server, and compared. Pixels of the photo never pass a canvas: the
// server keeps the original, receives the mask alone, and gives back files that the page saves as they are.

import { Mask } from "./mask.js";
import * as server from "./server.js";

const $ = (id) => document.getElementById(id);
const LARGEST_BRUSH = 0.5; // of the photo's longer side
const ZOOM = { least: 1, most: 32, step: 1.5 };
const BLOCKS = 4; // screen pixels of one of the photo's, from which on these are shown as the squares that they are
const ONE_COLUMN = window.matchMedia("(max-width: 55.99rem)"); // as in style.css
const MARGIN = 18; // pixels under the photo

// Where it is told how far a job is.
const FILLING = { status: "status", progress: "progress", cancel: "cancel" };
const PRIOR = { status: "prior-status", progress: "prior-progress", cancel: "prior-cancel" };

const state = {
  model: { samples: 1, bytes: 2 ** 26, pixels: 2.4e7, original: 512, formats: [] },
  file: null, // as it was chosen; sent again if the server has let it go
  photo: null, // what the server says about it
  mask: null,
  erasing: false,
  comparing: false,
  zoom: 1,
  results: [],
  chosen: 0,
  job: null,
  loading: null, // the file that was chosen last
  turn: new AbortController(), // of the photo that is shown: aborted when another takes its place, so that nothing of it is shown then
  urls: { photo: [], results: [], maps: [] }, // of pictures that are shown; the browser keeps these until they are revoked
  keyboard: { x: 0, y: 0 }, // where the arrows have moved the brush
};

// --- words ---

function complain(error) {
  if (error?.name === "AbortError") return; // about a photo that is no longer shown
  $("error").textContent = error instanceof Error ? error.message : String(error);
  $("error").hidden = false;
  layout();
}

function uncomplain() {
  if ($("error").hidden) return;
  $("error").hidden = true;
  layout();
}

function say(part, text) {
  $(part.status).textContent = text;
}

// Handlers of events: what goes wrong is told, and the last complaint goes away before a new attempt.
function doing(work) {
  return async (event) => {
    uncomplain();
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
    throw new Error(`${file.name} has ${megabytes(file.size)} MB, and the limit is ${megabytes(state.model.bytes)} MB; scale it down.`);
  }
  state.loading = file;
  document.body.classList.add("loading");
  try {
    const photo = await server.upload(file);
    const view = await decoded(urlOf(await server.photoView(photo.photo), "photo"));
    if (state.loading !== file) {
      server.forget(photo.photo); // another one was chosen meanwhile
      return;
    }
    leave();
    show(file, photo, view);
  } finally {
    if (state.loading === file) document.body.classList.remove("loading");
  }
}

// Ends what is being done for the photo that is shown.
function leave() {
  state.turn.abort();
  state.turn = new AbortController();
  if (state.job) server.cancel(state.job);
  if (state.photo) server.forget(state.photo.photo);
  state.job = null;
}

// Pictures are addressed in groups, which go together.
function urlOf(blob, group) {
  const url = URL.createObjectURL(blob);
  state.urls[group].push(url);
  return url;
}

function revoke(group, kept = null) {
  for (const url of state.urls[group]) if (url !== kept) URL.revokeObjectURL(url);
  state.urls[group] = kept ? [kept] : [];
}

// An <img> with the picture of an address in it; returns when it can be drawn.
async function decoded(url, image = new Image()) {
  image.src = url;
  await image.decode();
  return image;
}

function show(file, photo, view) {
  Object.assign(state, { file, photo, results: [], zoom: 1, keyboard: { x: photo.width / 2, y: photo.height / 2 } });
  $("before").src = view.src;
  [$("paint").width, $("paint").height] = [view.naturalWidth, view.naturalHeight];
  state.mask = new Mask($("paint"), photo.width, photo.height);
  $("drop").hidden = true;
  $("work").hidden = $("controls").hidden = false;
  $("outcome").hidden = $("results").hidden = $("maps").hidden = true;
  $("name").textContent = $("facts").title = photo.name;
  $("dimensions").textContent = `${photo.width} × ${photo.height} pixels`;
  $("size").value = String(Math.log(0.08 * longest()) / Math.log(LARGEST_BRUSH * longest()));
  for (const part of [FILLING, PRIOR]) {
    say(part, "");
    busy(part, false);
  }
  compare(false);
  $("compare-mode").disabled = true;
  $("after").removeAttribute("src");
  revoke("photo", view.src);
  revoke("results");
  revoke("maps");
  offerStrategies();
  refresh();
  layout();
}

// The whole photo at full size only where the server takes it: every size has to be compiled.
function offerStrategies() {
  const original = $("strategy").querySelector("[value=original]");
  original.disabled = longest() > state.model.original;
  if (original.disabled && original.selected) $("strategy").value = "auto";
}

const longest = () => Math.max(state.photo.width, state.photo.height, 4);
const listed = (words) => [words.slice(0, -1).join(", "), ...words.slice(-1)].filter(Boolean).join(" or ");
const megabytes = (bytes) => String(Number((bytes / 2 ** 20).toPrecision(3)));

async function useMask(file) {
  const { signal } = state.turn;
  const white = await withPhoto((photo) => server.mask(photo, file, $("invert").checked), signal);
  const picture = await createImageBitmap(white);
  signal.throwIfAborted();
  painted((mask) => mask.use(picture));
}

// Under the name by which spn_jax.predict finds the mask of a photo.
async function saveMask() {
  const name = `${state.photo.name.replace(/\.[^.]*$/, "")}_mask001.png`;
  save(await paintedMask(), name);
}

// What is asked about a photo that the server no longer keeps is asked again after it was sent again.
async function withPhoto(ask, signal) {
  const { file, photo } = state;
  try {
    return await ask(photo.photo);
  } catch (error) {
    if (error.status !== 404 || signal.aborted) throw error;
  }
  const again = await server.upload(file);
  if (signal.aborted) server.forget(again.photo);
  signal.throwIfAborted();
  state.photo = again;
  return ask(again.photo);
}

// --- where things are on the screen ---

function layout() {
  if (!state.photo) return;
  const { width, height } = state.photo;
  placeResults();
  const room = roomForPhoto();
  const scale = state.zoom * Math.min(room.width / width, room.height / height);
  $("easel").style.maxHeight = `${room.height + 2}px`;
  $("frame").style.width = `${Math.max(1, Math.floor(width * scale))}px`;
  $("frame").style.height = `${Math.max(1, Math.floor(height * scale))}px`;
  for (const image of [$("before"), $("after")]) image.classList.toggle("magnified", scale >= BLOCKS);
  $("zoom-out").disabled = state.zoom <= ZOOM.least;
  $("zoom-in").disabled = state.zoom >= ZOOM.most;
  moveCursor(null);
}

// Under the photo on a phone, where a choice would not be seen from further below, and otherwise where they take no room from it.
function placeResults() {
  const place = $(ONE_COLUMN.matches ? "work" : "choice");
  if ($("results").parentElement !== place) place.append($("results"));
}

// What the window leaves to the photo, so that it and what stands above and under it are seen at once; on a phone about half.
function roomForPhoto() {
  const [easel, work] = [$("easel").getBoundingClientRect(), $("work").getBoundingClientRect()];
  const rest = easel.top + window.scrollY + (work.bottom - easel.bottom) + MARGIN;
  const height = ONE_COLUMN.matches ? 0.52 * window.innerHeight : window.innerHeight - rest;
  return { width: $("work").clientWidth - 2, height: Math.max(height, 240) };
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
  const { signal } = state.turn;
  const mask = await paintedMask();
  const fields = { mask, dilate: $("dilate").value, strategy: $("strategy").value };
  if (state.model.samples > 1) Object.assign(fields, { samples: $("samples").value, seed: $("seed").value });
  const wanted = Number(fields.samples ?? 1);
  const results = [];
  await working(
    FILLING,
    signal,
    (photo) => server.startFill(photo, fields),
    (job) => (wanted > 1 && job.results.length ? `Filling… ${job.results.length} of ${wanted} done` : "Filling…"),
    async (job) => {
      for (const result of job.results.slice(results.length)) {
        const picture = await server.picture(result.view);
        signal.throwIfAborted();
        const old = state.urls.results.splice(0, results.length ? 0 : Infinity); // of the fill before
        results.push({ ...result, url: urlOf(picture, "results") });
        await showResults(results, signal);
        for (const url of old) URL.revokeObjectURL(url);
      }
    },
  );
}

async function showPrior() {
  const { signal } = state.turn;
  const mask = await paintedMask();
  const job = await working(PRIOR, signal, (photo) => server.startPrior(photo, mask), () => "Computing…", async () => {});
  if (job.state !== "done") return;
  const pictures = await Promise.all(job.results.map((result) => server.picture(result.view)));
  signal.throwIfAborted();
  revoke("maps");
  const figures = await Promise.all(pictures.map((picture, i) => mapFigure(urlOf(picture, "maps"), i)));
  signal.throwIfAborted();
  const title = document.createElement("h2");
  title.textContent = "Semantic prior";
  const explained = document.createElement("p");
  explained.className = "hint";
  explained.textContent = "k-means clusters of the features that the network expects in the photo and its hole, from the finest level to the "
    + "coarsest. Equal colours in a map are things that look alike to the network; colours of different maps are not related.";
  $("maps").replaceChildren(title, explained, ...figures);
  $("maps").hidden = false;
  $("maps").scrollIntoView({ block: "nearest" });
}

async function mapFigure(url, i) {
  const figure = document.createElement("figure");
  const image = await decoded(url);
  image.alt = `Clusters of the prior's level ${i + 1}`;
  const caption = document.createElement("figcaption");
  for (const words of [`Level ${i + 1}`, `${image.naturalWidth} × ${image.naturalHeight}`]) {
    const span = document.createElement("span"); // which is not broken
    span.textContent = words;
    caption.append(span, " ");
  }
  figure.append(image, caption);
  return figure;
}

async function paintedMask() {
  if (state.mask.empty) throw new Error("Paint over the area to fill first, or load a mask.");
  return state.mask.png();
}

// Starts a job, tells how far it is, and returns its last state. part: where that is told; signal: of the photo's turn.
async function working(part, signal, start, doing, report) {
  signal.throwIfAborted();
  busy(part, true);
  const began = Date.now();
  try {
    const job = await withPhoto(start, signal);
    if (signal.aborted) server.cancel(job.job);
    signal.throwIfAborted();
    state.job = job.job;
    return await server.follow(job, async (now) => {
      signal.throwIfAborted();
      tell(part, now, doing(now), (Date.now() - began) / 1000);
      if (now.state === "cancelled") return; // what was made before is shown already
      await report(now);
      signal.throwIfAborted();
      if (now.state === "done") say(part, `Done in ${((Date.now() - began) / 1000).toFixed(1)} s.`);
    });
  } catch (error) {
    signal.throwIfAborted(); // whatever it was, it is about a photo that is no longer shown
    say(part, "");
    throw error;
  } finally {
    if (!signal.aborted) {
      state.job = null;
      busy(part, false);
    }
  }
}

function tell(part, job, doing, seconds) {
  const ahead = `${job.before} ${job.before === 1 ? "job" : "jobs"} ahead of you`;
  if (job.state === "cancelled") say(part, "Cancelled.");
  else say(part, `${job.state === "waiting" && job.before ? ahead : doing} (${Math.round(seconds)} s)`);
  if (job.total > 1) [$(part.progress).max, $(part.progress).value] = [job.total, job.done];
  else $(part.progress).removeAttribute("value"); // it shows that something happens, not how much
}

function busy(part, is) {
  $("fill").disabled = $("show-prior").disabled = is;
  $(part.cancel).hidden = $(part.progress).hidden = !is;
  $(part.progress).removeAttribute("value");
}

// --- results ---

async function showResults(results, signal) {
  if (results.length === 1) $("results").replaceChildren();
  state.results = results;
  $("outcome").hidden = false;
  $("results").append(thumbnail(results.at(-1), results.length - 1));
  $("results").hidden = results.length < 2;
  markChosen();
  if (results.length === 1) {
    $("compare").value = "0"; // all of it is shown first, wherever the hole is
    await chooseResult(0, signal);
  }
  layout();
}

function thumbnail(result, i) {
  const button = document.createElement("button");
  const image = new Image();
  image.src = result.url;
  image.alt = "";
  button.type = "button";
  button.append(image, `Result ${i + 1}`);
  button.addEventListener("click", doing(() => chooseResult(i, state.turn.signal)));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

async function chooseResult(i, signal) {
  state.chosen = i;
  const result = state.results[i];
  markChosen();
  $("download").href = result.file;
  $("download").download = result.name;
  $("compare-mode").disabled = false;
  await decoded(result.url, $("after"));
  signal.throwIfAborted();
  compare(true);
  $("frame").scrollIntoView({ block: "nearest" });
}

function markChosen() {
  [...$("results").children].forEach((item, n) => item.firstChild.setAttribute("aria-pressed", String(n === state.chosen)));
}

function compare(comparing) {
  state.comparing = comparing;
  $("paint").hidden = comparing;
  $("after").hidden = $("divider").hidden = $("compare-row").hidden = !comparing;
  $("advice").hidden = comparing;
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
  const { signal } = state.turn;
  const result = state.results[state.chosen];
  const file = await server.picture(result.file);
  signal.throwIfAborted();
  await load(new File([file], result.name, { type: "image/png" }));
}

// A link would replace the page by the server's sentence if the result is gone.
async function download(event) {
  event.preventDefault();
  const result = state.results[state.chosen];
  save(await server.picture(result.file), result.name);
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
  $("save-mask").addEventListener("click", doing(saveMask));
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
  for (const part of [FILLING, PRIOR]) $(part.cancel).addEventListener("click", doing(async () => state.job && server.cancel(state.job)));
  $("show-prior").addEventListener("click", doing(showPrior));
  $("download").addEventListener("click", doing(download));
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
  $("limits").textContent = `${listed(state.model.formats)}, up to ${megabytes(state.model.bytes)} MB and ${state.model.pixels / 1e6} megapixels.`;
  $("samples").max = state.model.samples;
  $("samples").value = String(Math.min(3, state.model.samples));
}

doing(begin)();
