// Photos and masks as the browser decodes them, and PNG files of what was filled. A photo's bytes pass no colour conversion, and a PNG
// written here has the profile of the photo, so that what is known looks as it did.

const PNG = [137, 80, 78, 71, 13, 10, 26, 10];
const ASCII = new TextDecoder("latin1");
const LUMA = [19595, 38470, 7471]; // of 65536, as Pillow makes grey

// {width, height, data: three bytes a pixel, grey, profile}. Throws an error with a sentence for what this page could not give back whole.
export async function readPhoto(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const header = isPng(bytes) ? { depth: bytes[24], grey: bytes[25] === 0 || bytes[25] === 4 } : { depth: 8, grey: false };
  if (header.depth > 8) throw new Error(`${file.name} has ${header.depth} bits a channel, and this page keeps 8; fill it with "python -m spn_jax.predict".`);
  const { width, height, data } = await pixels(file, null);
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    if (data[4 * i + 3] !== 255) throw new Error(`${file.name} has transparent parts, which this page cannot keep; fill it with "python -m spn_jax.predict".`);
    rgb.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  }
  return { width, height, data: rgb, grey: header.grey, profile: header.grey ? null : await profileChunk(bytes) };
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

async function pixels(file, background) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name || "The mask"} is no image that this browser can read; take a PNG, JPEG or WebP.`);
  }
  const { width, height } = bitmap;
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

export async function writePng({ width, height, data }, profile) {
  const line = 3 * width;
  const lines = new Uint8Array((line + 1) * height);
  for (let y = 0; y < height; y++) {
    lines[y * (line + 1)] = 2; // differences from the line above
    for (let x = 0; x < line; x++) lines[y * (line + 1) + 1 + x] = data[y * line + x] - (y ? data[(y - 1) * line + x] : 0);
  }
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, 0x0802); // 8 bits, RGB
  const chunks = [chunk("IHDR", new Uint8Array(header.buffer))];
  if (profile) chunks.push(chunk("iCCP", profile));
  chunks.push(chunk("IDAT", await deflated(lines)), chunk("IEND", new Uint8Array()));
  return new Blob([Uint8Array.from(PNG), ...chunks], { type: "image/png" });
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

// The content of an iCCP chunk with the photo's colour profile; null if it has none.
async function profileChunk(bytes) {
  if (isPng(bytes)) return pngChunks(bytes).find(({ kind }) => kind === "iCCP")?.content ?? null;
  const profile = jpegProfile(bytes);
  if (!profile) return null;
  const packed = await deflated(profile);
  return Uint8Array.from([...new TextEncoder().encode("photo"), 0, 0, ...packed]);
}

function pngChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const found = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    found.push({ kind: ASCII.decode(bytes.subarray(at + 4, at + 8)), content: bytes.slice(at + 8, at + 8 + length) });
    at += 12 + length;
  }
  return found;
}

// Of the segments APP2 that say they hold one, in their order.
function jpegProfile(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return null;
  const parts = [];
  for (let at = 2; at + 4 < bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda;) {
    const length = (bytes[at + 2] << 8) | bytes[at + 3];
    if (bytes[at + 1] === 0xe2 && ASCII.decode(bytes.subarray(at + 4, at + 15)) === "ICC_PROFILE") {
      parts.push({ number: bytes[at + 16], content: bytes.subarray(at + 18, at + 2 + length) });
    }
    at += 2 + length;
  }
  if (!parts.length) return null;
  parts.sort((a, b) => a.number - b.number);
  return Uint8Array.from(parts.flatMap(({ content }) => [...content]));
}
