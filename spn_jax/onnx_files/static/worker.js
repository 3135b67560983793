// Fills holes beside the page, so that it stays alive: ONNX Runtime computes, as WebAssembly. Takes one order at a time, posts each pass
// before it is made and every completion, and at last "done" or "failed"; giving up is ending the worker.

import * as ort from "./ort/ort.wasm.min.mjs";
import { assemble, bucket, chooseStrategy, padded, plan, scaled, show } from "./windows.js";

const here = (name) => new URL(name, import.meta.url).href;
const THREADS = 8; // at most
const WHOLE = "see whether all files of the page are on the server, and as they were written";

ort.env.wasm.wasmPaths = here("./ort/");
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency || 1) : 1;

let session = null;

class Told extends Error {} // whose message is a sentence already

async function load() {
  const answer = await fetch(here("./model.onnx")).catch(() => null);
  if (!answer?.ok) throw new Told(`The network, model.onnx, is not there (${answer ? `status ${answer.status}` : "no answer"}); ${WHOLE}.`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Told(`The network could not be started (${firstLine(error)}); ${WHOLE}.`);
  }
}

self.onmessage = async ({ data: order }) => {
  try {
    session ??= load();
    await fill(await session, order);
    self.postMessage({ kind: "done" });
  } catch (error) {
    session = null;
    self.postMessage({ kind: "failed", error: inWords(error) });
  }
};

const firstLine = (error) => String(error?.message ?? error).split("\n")[0];

function inWords(error) {
  const text = firstLine(error);
  if (error instanceof Told) return text;
  if (error instanceof RangeError || /memory|bad_alloc|allocat/i.test(text)) return "The photo did not fit into the memory that a page may use; make it smaller.";
  return `The network failed: ${text}`;
}

async function fill(session, { about, photo, hole, strategy, samples, seed }) {
  const chosen = chooseStrategy(strategy, photo.width, photo.height, about.trained_size);
  const windows = hole.some(Boolean) ? plan(hole, photo.width, photo.height, chosen, about.trained_size) : [];
  for (let sample = 0; sample < samples; sample++) {
    const predictions = [];
    for (const [number, window] of windows.entries()) {
      self.postMessage({ kind: "pass", done: sample * windows.length + number, total: samples * windows.length });
      predictions.push(await predict(session, about, show(photo, hole, window), [seed, number, sample]));
    }
    self.postMessage({ kind: "result", picture: assemble(photo, hole, windows, predictions) });
  }
}

async function predict(session, about, { image, hole }, noiseOf) {
  const { width, height } = image;
  const side = (length) => bucket(length, about.trained_size, about.stride, about.smallest);
  const [wide, high] = [side(width), side(height)];
  const feeds = {
    image: new ort.Tensor("float32", padded(image.data, width, height, 3, wide, high, (value) => value / 255), [1, 3, high, wide]),
    mask: new ort.Tensor("float32", padded(hole, width, height, 1, wide, high, (value) => value), [1, 1, high, wide]),
  };
  if (about.latent) {
    const shape = [1, about.latent, high / about.stride, wide / about.stride];
    feeds.noise = new ort.Tensor("float32", normal(shape.reduce((a, b) => a * b), noiseOf), shape);
  }
  const { prediction } = await session.run(feeds, ["prediction"]);
  const colours = scaled(prediction.data, width, height, wide, high);
  if (!colours) throw new Error("its prediction is not finite; the file is broken, or of too low a precision");
  return colours;
}

// Standard normal numbers that follow from some whole ones; not those that JAX would draw.
function normal(count, keys) {
  let state = keys.reduce((mixed, key) => Math.imul(mixed ^ key, 0x9e3779b1) + 0x7f4a7c15, 1) >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}
