// What spn_jax/demo/static/server.js asks a server for, done in the page itself: the same functions, and no photo leaves the tab.

import { greyed, holePicture, readHole, readPhoto, writePng } from "./pictures.js";
import { grown, STRATEGIES } from "./windows.js";

const LOOK = 100; // milliseconds between two looks whether a job has got on
const LARGEST_DILATION = 500; // pixels
const LARGEST_SEED = 2 ** 32 - 1;

export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const photos = new Map();
let keys = 0; // of photos and jobs so far
const jobs = new Map();
let worker = null;
let about = null;

export async function model() {
  const answer = await fetch(new URL("./page.json", import.meta.url)).catch(() => null);
  if (!answer?.ok) throw new Refused(`The page's file page.json is not there (${answer ? `status ${answer.status}` : "no answer"}); put all its files on the server.`);
  about = await answer.json();
  return about;
}

export async function upload(file) {
  const photo = await readPhoto(file, about.pixels);
  const key = `photo ${++keys}`;
  photos.set(key, { ...photo, file, name: file.name || "photo" });
  return { photo: key, name: file.name || "photo", width: photo.width, height: photo.height };
}

export async function forget(key) {
  photos.delete(key);
  for (const job of jobs.values()) {
    if (job.photo !== key) continue;
    for (const { file } of job.results) URL.revokeObjectURL(file);
    jobs.delete(job.job);
  }
}

export const photoView = async (key) => photos.get(key).file;

export async function mask(key, file, invert) {
  const { width, height } = photos.get(key);
  return holePicture(await holeFor(photos.get(key), file, invert), width, height);
}

async function holeFor(photo, file, invert) {
  const { width, height, hole } = await readHole(file, invert);
  if (width !== photo.width || height !== photo.height) {
    throw new Refused(`The mask is ${width} x ${height} pixels, the photo, upright, is ${photo.width} x ${photo.height}; make a mask of the photo's size.`);
  }
  return hole;
}

function whole(fields, name, least, most) {
  const value = Number(fields[name] ?? least);
  if (!Number.isInteger(value) || value < least || value > most) throw new Refused(`${name} must be a whole number from ${least} to ${most}.`);
  return value;
}

export async function startFill(key, fields) {
  const photo = photos.get(key);
  const { width, height } = photo;
  const dilate = whole(fields, "dilate", 0, LARGEST_DILATION);
  const samples = whole(fields, "samples", 1, about.samples);
  const seed = whole(fields, "seed", 0, LARGEST_SEED);
  if (!STRATEGIES.includes(fields.strategy)) throw new Refused(`strategy must be one of ${STRATEGIES.join(", ")}.`);
  const hole = grown(await holeFor(photo, fields.mask, false), width, height, dilate);
  const job = { job: `job ${++keys}`, photo: key, state: "running", before: 0, done: 0, total: 0, results: [], error: "" };
  jobs.set(job.job, job);
  worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const stem = photo.name.replace(/\.[^.]*$/, "");
  let writing = Promise.resolve();
  const end = (state, error = "") => {
    if (job.state === "running") Object.assign(job, { state, error });
  };
  worker.onmessage = ({ data }) => {
    if (data.kind === "pass") Object.assign(job, { done: data.done, total: data.total });
    if (data.kind === "failed") {
      end("failed", data.error);
      stopWorker(); // the next one begins with its memory free
    }
    writing = writing.then(async () => {
      if (data.kind === "done") end("done");
      if (data.kind !== "result") return;
      if (photo.grey) greyed(data.picture.data, hole);
      const file = URL.createObjectURL(await writePng(data.picture, photo.grey, photo.chunks));
      const name = samples > 1 ? `${stem}_filled_${job.results.length + 1}.png` : `${stem}_filled.png`;
      job.results.push({ name, file, view: file });
    }).catch((error) => end("failed", String(error.message ?? error)));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    end("failed", `The network could not be started (${event.message || "a file is missing"}); see whether all files of the page are there.`);
    stopWorker();
  };
  worker.postMessage({ about, photo: { width, height, data: photo.data }, hole, strategy: fields.strategy, samples, seed });
  return job;
}

export async function startPrior() {
  throw new Refused("This page gives completions and no priors.");
}

export async function cancel(key) {
  const job = jobs.get(key);
  if (!job || job.state !== "running") return;
  job.state = "cancelled";
  stopWorker();
}

function stopWorker() {
  worker?.terminate();
  worker = null;
}

export const picture = async (path) => (await fetch(path)).blob();

// Looks at a job until it ends. report(job) is called at every look; the last state is returned.
export async function follow(job, report) {
  while (true) {
    const now = { ...job, results: [...job.results] };
    await report(now);
    if (now.state === "failed") throw new Refused(now.error);
    if (now.state !== "running") return now;
    await new Promise((resolve) => setTimeout(resolve, LOOK));
  }
}
