// Photos and masks as the browser decodes them, and PNG files of what was filled. A photo's bytes pass no colour conversion, and a PNG
// written here has the photo's profile and is grey if the photo is, so that what is known looks as it did.

const PNG = [137, 80, 78, 71, 13, 10, 26, 10];
const ASCII = new TextDecoder("latin1");
const LUMA = [19595, 38470, 7471]; // of 65536, as Pillow makes grey
const COLOURS = ["iCCP", "gAMA", "cHRM", "sRGB", "cICP", "mDCV", "cLLI", "pHYs"]; // chunks that tell them, and the last the printed size
const ELSEWHERE = 'fill it with "python -m spn_jax.predict"';

// {width, height, data: three bytes a pixel, grey, chunks: [{kind, content}]}. Throws an error with a sentence for what this page could
// not give back whole, and for more than `most` pixels.
export async function readPhoto(file, most) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const { depth, channels, chunks, animated } = await facts(bytes, file.name);
  if (depth > 8) throw new Error(`${file.name} has ${depth} bits a channel, and this page keeps 8; ${ELSEWHERE}.`);
  if (channels > 3) throw new Error(`${file.name} has the colours of print (CMYK), which this page cannot keep; convert it to RGB.`);
  if (animated) throw new Error(`${file.name} is animated; take one picture of it.`);
  await (honest ??= checkCanvas().catch((error) => {
    honest = null; // the visitor may allow it, and try again
    throw error;
  }));
  const { width, height, data } = await pixels(file, null, most);
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    if (data[from + 3] !== 255) throw new Error(`${file.name} has transparent parts, which this page cannot keep; ${ELSEWHERE}.`);
    [rgb[to], rgb[to + 1], rgb[to + 2]] = [data[from], data[from + 1], data[from + 2]];
  }
  return { width, height, data: rgb, grey: channels === 1, chunks };
}

// What a file says before it is decoded: bits a channel, channels without opacity, chunks that a PNG of it needs, whether it is animated.
async function facts(bytes, name) {
  if (isPng(bytes)) {
    const all = pngChunks(bytes);
    const chunks = all.filter(({ kind }) => COLOURS.includes(kind));
    return { depth: bytes[24], channels: bytes[25] === 0 || bytes[25] === 4 ? 1 : 3, chunks, animated: all.some(({ kind }) => kind === "acTL") };
  }
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    const segments = [...jpegSegments(bytes)];
    const frame = segments.find(({ marker }) => marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))?.content ?? [8, 0, 0, 0, 0, 3];
    return { depth: frame[0], channels: frame[5], chunks: await profileChunk(jpegProfile(segments)) };
  }
  if (ASCII.decode(bytes.subarray(0, 4)) === "RIFF" && ASCII.decode(bytes.subarray(8, 12)) === "WEBP") {
    const all = webpChunks(bytes);
    const profile = all.find(({ kind }) => kind === "ICCP")?.content;
    return { depth: 8, channels: 3, chunks: await profileChunk(profile), animated: all.some(({ kind }) => kind === "ANIM") };
  }
  throw new Error(`${name} is no PNG, JPEG or WebP, the formats that this page keeps whole; convert it to one of them.`);
}

// Some browsers, against being recognised, change what a page reads from a canvas: known pixels would not come back as they were.
let honest = null;

async function checkCanvas() {
  const [width, height] = [64, 64];
  const data = Uint8Array.from({ length: 3 * width * height }, (_, i) => Math.imul(i, 0x9e3779b1) >>> 24);
  const read = (await pixels(await writePng({ width, height, data }), null)).data;
  if (data.some((value, i) => read[4 * Math.floor(i / 3) + (i % 3)] !== value)) {
    throw new Error("This browser changes the pixels that pages read (a protection against fingerprinting); allow this page to read a canvas, or take another browser.");
  }
}

// One byte a pixel, 1 where the mask is white, or black if it is to be inverted. What is transparent is no hole.
export async function readHole(file, invert) {
  const { width, height, data } = await pixels(file, invert ? "#fff" : "#000");
  const hole = new Uint8Array(width * height);
  for (let i = 0; i < hole.length; i++) {
    const grey = (LUMA[0] * data[4 * i] + LUMA[1] * data[4 * i + 1] + LUMA[2] * data[4 * i + 2] + 32768) >> 16;
    hole[i] = grey >= 128 === invert ? 0 : 1;
  }
  return { width, height, hole };
}

async function pixels(file, background, most = Infinity) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name || "The mask"} is no image that this browser can read; take a PNG, JPEG or WebP.`);
  }
  const { width, height } = bitmap;
  if (width * height > most) throw new Error(`${file.name} has more than ${most / 1e6} million pixels, the most that this page takes; make it smaller.`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("This browser cannot decode a photo of so many pixels; make it smaller.");
  if (background) {
    context.fillStyle = background;
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

// White in the hole and transparent elsewhere.
export async function holePicture(hole, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const data = new Uint8ClampedArray(4 * hole.length);
  hole.forEach((inside, i) => inside && data.fill(255, 4 * i, 4 * i + 4));
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

// Filled pixels of a grey photo become grey.
export function greyed(data, hole) {
  hole.forEach((inside, i) => {
    if (inside) data.fill((LUMA[0] * data[3 * i] + LUMA[1] * data[3 * i + 1] + LUMA[2] * data[3 * i + 2] + 32768) >> 16, 3 * i, 3 * i + 3);
  });
}

// --- PNG files ---

const isPng = (bytes) => PNG.every((byte, i) => bytes[i] === byte);

export async function writePng({ width, height, data }, grey = false, chunks = []) {
  const [line, step] = grey ? [width, 3] : [3 * width, 1]; // the three bytes of a grey pixel are equal
  const lines = new Uint8Array((line + 1) * height);
  for (let y = 0; y < height; y++) {
    lines[y * (line + 1)] = 2; // differences from the line above
    for (let x = 0; x < line; x++) lines[y * (line + 1) + 1 + x] = data[(y * line + x) * step] - (y ? data[((y - 1) * line + x) * step] : 0);
  }
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, grey ? 0x0800 : 0x0802); // 8 bits, RGB
  const content = [chunk("IHDR", new Uint8Array(header.buffer)), ...chunks.map(({ kind, content }) => chunk(kind, content))];
  content.push(chunk("IDAT", await deflated(lines)), chunk("IEND", new Uint8Array()));
  return new Blob([Uint8Array.from(PNG), ...content], { type: "image/png" });
}

async function deflated(bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer());
}

function chunk(kind, content) {
  const bytes = new Uint8Array(12 + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(content, 8);
  view.setUint32(8 + content.length, checksum(bytes.subarray(4, 8 + content.length)));
  return bytes;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  for (let k = 0; k < 8; k++) i = i & 1 ? 0xedb88320 ^ (i >>> 1) : i >>> 1;
  return i;
});

function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

// A list with the chunk of a colour profile, empty if there is none.
async function profileChunk(profile) {
  if (!profile) return [];
  return [{ kind: "iCCP", content: Uint8Array.from([...new TextEncoder().encode("photo"), 0, 0, ...(await deflated(profile))]) }];
}

function pngChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const found = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    found.push({ kind: ASCII.decode(bytes.subarray(at + 4, at + 8)), content: bytes.subarray(at + 8, at + 8 + length) });
    at += 12 + length;
  }
  return found;
}

// --- JPEG and WebP files ---

// Segments up to the first that is compressed.
function* jpegSegments(bytes) {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda;) {
    if (bytes[at + 1] === 0xff) {
      at++; // padding
      continue;
    }
    const length = (bytes[at + 2] << 8) | bytes[at + 3];
    yield { marker: bytes[at + 1], content: bytes.subarray(at + 4, at + 2 + length) };
    at += 2 + length;
  }
}

// Of the segments APP2 that say they hold one, in their order.
function jpegProfile(segments) {
  const parts = segments.filter(({ marker, content }) => marker === 0xe2 && ASCII.decode(content.subarray(0, 11)) === "ICC_PROFILE");
  if (!parts.length) return null;
  parts.sort((a, b) => a.content[12] - b.content[12]);
  return Uint8Array.from(parts.flatMap(({ content }) => [...content.subarray(14)]));
}

function webpChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const found = [];
  for (let at = 12; at + 8 <= bytes.length;) {
    const length = view.getUint32(at + 4, true);
    found.push({ kind: ASCII.decode(bytes.subarray(at, at + 4)), content: bytes.subarray(at + 8, at + 8 + length) });
    at += 8 + length + (length & 1);
  }
  return found;
}
