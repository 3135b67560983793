// Which parts of a photo the network is shown, at which size, and how its predictions are put together: spn_jax/filling/windows.py in the browser.
// The names are the same there, and a test compares the two. Photos are {width, height, data} with three bytes a pixel, holes one byte a
// pixel, 1 in the hole. Numbers are rounded to 32 bits (f) where NumPy and OpenCV compute with so many.

const f = Math.fround;
const LARGEST = 2;
const FEATHER = 1 / 32;
const SEVERAL = 3;

export const STRATEGIES = ["auto", "original", "resize", "crop"];

export function chooseStrategy(strategy, width, height, trained) {
  if (strategy !== "auto") return strategy;
  return Math.max(width, height) <= LARGEST * trained ? "resize" : "crop";
}

// To the nearest whole number, halves to the even one.
function rint(value) {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 ? low + 1 : low;
}

const byte = (value) => Math.min(255, Math.max(0, value));

// --- plan ---
// A window has a part of the photo (top, left, width, height), and in it a box (rows, columns from `corner` on, `boxWidth` wide) of weights.

export function plan(hole, width, height, strategy, trained) {
  if (strategy === "crop") return crops(hole, width, height, trained);
  const whole = { top: 0, left: 0, width, height, weights: Float32Array.from(hole), boxWidth: width, corner: [0, 0] };
  return [sized(whole, strategy === "original" ? null : LARGEST * trained)];
}

function sized(window, limit) {
  const longer = Math.max(window.height, window.width);
  const shown = (side) => (limit === null || longer <= limit ? side : Math.max(1, rint((side * limit) / longer)));
  return { ...window, limit, shownHeight: shown(window.height), shownWidth: shown(window.width) };
}

const cellOf = (trained) => LARGEST * trained - Math.floor(trained / 2);
const nearOf = (trained) => Math.floor(trained / 8);

function mostTiles(width, height, trained) {
  return pieces(height, cellOf(trained), nearOf(trained)) * pieces(width, cellOf(trained), nearOf(trained));
}

function crops(hole, width, height, trained) {
  const cell = cellOf(trained);
  const most = mostTiles(width, height, trained);
  const found = parts(hole, width, height, nearOf(trained));
  const all = { ...found, width, height, trained };
  const extent = ({ top, left, bottom, right }) => Math.max(bottom - top, right - left);
  const small = found.boxes.filter((box) => extent(box) <= cell);
  const large = found.boxes.filter((box) => extent(box) > cell);
  let thick = large.length ? tooDeep(hole, found.labels, width, height, large, trained / 8) : [];
  if (thick.length > most) thick = [];
  const thin = large.filter((box) => !thick.includes(box));
  let windows = [...groups(small, trained)].map((group) => windowOf(all, group));
  for (const box of thin) windows.push(...tiles(all, [box]));
  if (windows.length > 2 * most) windows = [...tiles(all, [...small, ...thin])];
  return [...windows, ...thick.map((box) => windowOf(all, [box]))];
}

// Which part each pixel of the hole belongs to, and the box of each part in the hole.
function parts(hole, width, height, near) {
  const { labels, count } = components(dilated(hole, width, height, near + 1), width, height);
  const boxes = Array.from({ length: count }, (_, i) => ({ label: i + 1, top: height, left: width, bottom: 0, right: 0 }));
  for (let i = 0; i < labels.length; i++) {
    if (!hole[i]) labels[i] = 0;
    if (!labels[i]) continue;
    const box = boxes[labels[i] - 1];
    const [x, y] = [i % width, Math.floor(i / width)];
    box.top = Math.min(box.top, y);
    box.bottom = Math.max(box.bottom, y + 1);
    box.left = Math.min(box.left, x);
    box.right = Math.max(box.right, x + 1);
  }
  return { labels, boxes };
}

// Parts whose innermost pixel is farther from what is known than `depth`.
function tooDeep(hole, labels, width, height, boxes, depth) {
  const distance = chamferDistance(hole, width, height);
  const deepest = new Map();
  labels.forEach((label, i) => label && deepest.set(label, Math.max(deepest.get(label) ?? 0, distance[i])));
  return boxes.filter(({ label }) => deepest.get(label) > depth);
}

function* groups(boxes, trained) {
  for (const group of boxesWithin(boxes, cellOf(trained))) {
    const fine = [...boxesWithin(group, trained - Math.floor(trained / 2))];
    if (fine.length < SEVERAL) yield* fine;
    else yield group;
  }
}

function* boxesWithin(boxes, side) {
  while (boxes.length) {
    const top = Math.min(...boxes.map((box) => box.top));
    const first = boxes.findIndex((box) => box.top === top);
    const inside = (box, i) => box.bottom <= top + side || i === first;
    let strip = boxes.filter(inside);
    boxes = boxes.filter((box, i) => !inside(box, i));
    while (strip.length) {
      const left = Math.min(...strip.map((box) => box.left));
      const leftmost = strip.findIndex((box) => box.left === left);
      const together = (box, i) => box.right <= left + side || i === leftmost;
      yield strip.filter(together);
      strip = strip.filter((box, i) => !together(box, i));
    }
  }
}

function windowOf(all, boxes) {
  const picked = pick(all, boxes);
  return around(Float32Array.from(picked.inside), picked.width, picked.top, picked.left, all.width, all.height, all.trained);
}

function* tiles(all, boxes) {
  const picked = pick(all, boxes);
  const [cell, near] = [cellOf(all.trained), nearOf(all.trained)];
  for (const rows of overlapping(picked.height, cell, near)) {
    for (const columns of overlapping(picked.width, cell, near)) {
      const piece = new Float32Array(rows.weights.length * columns.weights.length);
      let any = false;
      rows.weights.forEach((down, y) => columns.weights.forEach((across, x) => {
        if (!picked.inside[(rows.start + y) * picked.width + columns.start + x]) return;
        piece[y * columns.weights.length + x] = down * across;
        any = true;
      }));
      const [top, left] = [picked.top + rows.start, picked.left + columns.start];
      if (any) yield around(piece, columns.weights.length, top, left, all.width, all.height, all.trained);
    }
  }
}

// The box around some parts, and where in it they are.
function pick({ labels, width: whole }, boxes) {
  const [top, left] = [Math.min(...boxes.map((box) => box.top)), Math.min(...boxes.map((box) => box.left))];
  const [bottom, right] = [Math.max(...boxes.map((box) => box.bottom)), Math.max(...boxes.map((box) => box.right))];
  const chosen = new Set(boxes.map(({ label }) => label));
  const [width, height] = [right - left, bottom - top];
  const inside = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) inside[y * width + x] = chosen.has(labels[(top + y) * whole + left + x]) ? 1 : 0;
  }
  return { top, left, width, height, inside };
}

// The largest of a square of so many pixels around each, as cv2.dilate places it.
function dilated(hole, width, height, size) {
  const before = Math.floor(size / 2);
  const after = size - 1 - before;
  const along = (source, length, step, start) => {
    const result = new Uint8Array(length);
    let last = -Infinity;
    for (let x = 0, next = 0; x < length; x++) {
      for (; next <= Math.min(x + after, length - 1); next++) if (source[start + next * step]) last = next;
      result[x] = last >= x - before ? 1 : 0;
    }
    return result;
  };
  const wide = new Uint8Array(hole.length);
  for (let y = 0; y < height; y++) wide.set(along(hole, width, 1, y * width), y * width);
  const result = new Uint8Array(hole.length);
  for (let x = 0; x < width; x++) along(wide, height, width, x).forEach((value, y) => (result[y * width + x] = value));
  return result;
}

// Parts that hang together, corners included, numbered as OpenCV does: by the first square of 2 x 2 pixels that each meets.
function components(mask, width, height) {
  const labels = new Int32Array(mask.length);
  const orders = [];
  const stack = [];
  for (let first = 0; first < mask.length; first++) {
    if (!mask[first] || labels[first]) continue;
    const label = orders.push(Infinity);
    stack.push(first);
    labels[first] = label;
    while (stack.length) {
      const i = stack.pop();
      const [x, y] = [i % width, Math.floor(i / width)];
      orders[label - 1] = Math.min(orders[label - 1], (y >> 1) * width + (x >> 1));
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const j = v * width + u;
          if (!mask[j] || labels[j]) continue;
          labels[j] = label;
          stack.push(j);
        }
      }
    }
  }
  const sorted = orders.map((order, i) => ({ order, label: i + 1 })).sort((one, other) => one.order - other.order);
  const numbers = new Int32Array(orders.length + 1);
  sorted.forEach(({ label }, i) => (numbers[label] = i + 1));
  return { labels: labels.map((label) => numbers[label]), count: orders.length };
}

// cv2.distanceTransform(hole, DIST_L2, 3): steps of 0.955 and 1.3693.
function chamferDistance(hole, width, height) {
  const [straight, diagonal] = [Math.round(0.955 * 65536), Math.round(1.3693 * 65536)];
  const far = 2 ** 29;
  const line = width + 2;
  const steps = new Int32Array(line * (height + 2)).fill(far);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = (y + 1) * line + x + 1;
      steps[i] = hole[y * width + x]
        ? Math.min(steps[i - line - 1] + diagonal, steps[i - line] + straight, steps[i - line + 1] + diagonal, steps[i - 1] + straight, far)
        : 0;
    }
  }
  const result = new Float32Array(hole.length);
  for (let y = height - 1; y >= 0; y--) {
    for (let x = width - 1; x >= 0; x--) {
      const i = (y + 1) * line + x + 1;
      steps[i] = Math.min(steps[i], steps[i + line + 1] + diagonal, steps[i + line] + straight, steps[i + line - 1] + diagonal, steps[i + 1] + straight);
      result[y * width + x] = steps[i] / 65536;
    }
  }
  return result;
}

const pieces = (length, cell, overlap) => (length > cell ? Math.ceil(Math.max(length - overlap, 1) / (cell - overlap)) : 1);

function* overlapping(length, cell, overlap) {
  const count = pieces(length, cell, overlap);
  const ramp = (i) => f(f(i + 0.5) / Math.max(overlap, 1));
  for (let i = 0; i < count; i++) {
    const start = i * (cell - overlap);
    const weights = new Float32Array(Math.min(cell, length - start)).fill(1);
    if (i > 0) for (let j = 0; j < Math.min(overlap, weights.length); j++) weights[j] *= ramp(j);
    if (i < count - 1) for (let j = 0; j < overlap; j++) weights[weights.length - 1 - j] *= ramp(j);
    yield { start, weights };
  }
}

function around(piece, pieceWidth, cornerTop, cornerLeft, width, height, trained) {
  let [top, bottom, left, right] = [Infinity, 0, Infinity, 0];
  piece.forEach((weight, i) => {
    if (!(weight > 0)) return;
    const [x, y] = [i % pieceWidth, Math.floor(i / pieceWidth)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
  });
  const extent = Math.max(bottom - top, right - left);
  let side = Math.max(extent + Math.floor(trained / 2), Math.floor((extent * 4) / 3));
  side = side <= trained ? trained : Math.max(side, LARGEST * trained);
  const window = { width: Math.min(side, width), height: Math.min(side, height) };
  window.top = placed(cornerTop + top, cornerTop + bottom, window.height, height);
  window.left = placed(cornerLeft + left, cornerLeft + right, window.width, width);
  window.corner = [cornerTop + top - window.top, cornerLeft + left - window.left];
  window.boxWidth = right - left;
  window.weights = new Float32Array((bottom - top) * window.boxWidth);
  for (let y = top; y < bottom; y++) {
    window.weights.set(piece.subarray(y * pieceWidth + left, y * pieceWidth + right), (y - top) * window.boxWidth);
  }
  return sized(window, LARGEST * trained);
}

const placed = (low, high, length, size) => Math.min(Math.max(Math.floor((low + high - length) / 2), 0), size - length);

// --- show ---

export function show(photo, hole, window) {
  const image = cut(photo.data, photo.width, 3, window);
  const inside = cut(hole, photo.width, 1, window);
  const { shownWidth: width, shownHeight: height } = window;
  if (width === window.width && height === window.height) return { image: { width, height, data: image }, hole: inside };
  const smaller = area(image, window.width, window.height, 3, width, height).map((value) => byte(rint(value)));
  const share = area(inside, window.width, window.height, 1, width, height);
  return { image: { width, height, data: Uint8Array.from(smaller) }, hole: Uint8Array.from(share, (value) => (value > 0 ? 1 : 0)) };
}

function cut(data, width, channels, window) {
  const result = new data.constructor(window.width * window.height * channels);
  for (let y = 0; y < window.height; y++) {
    const start = ((window.top + y) * width + window.left) * channels;
    result.set(data.subarray(start, start + window.width * channels), y * window.width * channels);
  }
  return result;
}

// cv2.resize(..., INTER_AREA) to a smaller size, before it is rounded.
function area(data, width, height, channels, newWidth, newHeight) {
  const [scaleX, scaleY] = [1 / (newWidth / width), 1 / (newHeight / height)];
  const [wholeX, wholeY] = [Math.round(scaleX), Math.round(scaleY)];
  const result = new Float32Array(newWidth * newHeight * channels);
  if (Math.abs(scaleX - wholeX) < Number.EPSILON && Math.abs(scaleY - wholeY) < Number.EPSILON) {
    // Blocks of whole pixels. OpenCV rounds halves of 2 x 2 pixels up: a little more than the mean makes rint do so.
    const up = wholeX === 2 && wholeY === 2 ? 1 / 16 : 0;
    const scale = f(1 / (wholeX * wholeY));
    for (let y = 0; y < newHeight; y++) {
      for (let x = 0; x < newWidth; x++) {
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let v = y * wholeY; v < (y + 1) * wholeY; v++) for (let u = x * wholeX; u < (x + 1) * wholeX; u++) sum += data[(v * width + u) * channels + c];
          result[(y * newWidth + x) * channels + c] = f(sum * scale) + (sum ? up : 0);
        }
      }
    }
    return result;
  }
  const [columns, rows] = [shares(width, newWidth, scaleX), shares(height, newHeight, scaleY)];
  const line = new Float32Array(newWidth * channels);
  for (const { to: y, from: v, weight: down } of rows) {
    line.fill(0);
    for (const { to: x, from: u, weight } of columns) {
      for (let c = 0; c < channels; c++) line[x * channels + c] += f(data[(v * width + u) * channels + c] * weight);
    }
    for (let i = 0; i < line.length; i++) result[y * line.length + i] += f(line[i] * down);
  }
  return result;
}

// How much each old pixel counts in each new one, along one axis.
function shares(size, newSize, scale) {
  const table = [];
  const add = (to, from, weight) => table.push({ to, from, weight: f(weight) });
  for (let to = 0; to < newSize; to++) {
    const [begin, end] = [to * scale, to * scale + scale];
    const width = Math.min(scale, size - begin);
    const last = Math.min(Math.floor(end), size - 1);
    const first = Math.min(Math.ceil(begin), last);
    if (first - begin > 1e-3) add(to, first - 1, (first - begin) / width);
    for (let from = first; from < last; from++) add(to, from, 1 / width);
    if (end - last > 1e-3) add(to, last, Math.min(end - last, 1, width) / width);
  }
  return table;
}

// --- what the network is given ---

// A side as spn_jax.inpainter.bucket pads it.
export function bucket(side, trained, stride, smallest) {
  const size = side <= trained ? trained / 4 : side <= 2 * trained ? trained / 2 : trained;
  const step = Math.max(Math.ceil(Math.floor(size) / stride) * stride, smallest);
  return Math.ceil(side / step) * step;
}

// Continued by its mirror image, to the right and below; `value` makes a number of a byte. Channels come first in the result.
export function padded(data, width, height, channels, newWidth, newHeight, value) {
  const mirrored = (i, length) => (i % (2 * length) < length ? i % (2 * length) : 2 * length - 1 - (i % (2 * length)));
  const result = new Float32Array(channels * newWidth * newHeight);
  for (let y = 0; y < newHeight; y++) {
    const row = mirrored(y, height) * width;
    for (let x = 0; x < newWidth; x++) {
      const from = (row + mirrored(x, width)) * channels;
      for (let c = 0; c < channels; c++) result[(c * newHeight + y) * newWidth + x] = value(data[from + c]);
    }
  }
  return result;
}

// A prediction (3, newHeight, newWidth) of numbers in [0, 1] as numbers from 0 to 255 (height, width, 3); null if it is not finite.
export function scaled(prediction, width, height, newWidth, newHeight) {
  if (!prediction.every(Number.isFinite)) return null;
  const result = new Float32Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        result[(y * width + x) * 3 + c] = 255 * Math.min(1, Math.max(0, prediction[(c * newHeight + y) * newWidth + x]));
      }
    }
  }
  return result;
}

// --- assemble ---

export function assemble(photo, hole, windows, predictions) {
  const total = new Float32Array(photo.data.length);
  const weight = new Float32Array(hole.length);
  windows.forEach((window, n) => {
    const { width, height, weights, boxWidth } = window;
    const [rows, columns] = window.corner;
    const colours = enlarged(predictions[n], photo, hole, window);
    weights.forEach((share, i) => {
      if (!(share > 0)) return;
      const [x, y] = [columns + (i % boxWidth), rows + Math.floor(i / boxWidth)];
      const to = (window.top + y) * photo.width + window.left + x;
      weight[to] += share;
      for (let c = 0; c < 3; c++) total[3 * to + c] += f(share * colours[3 * (y * width + x) + c]);
    });
  });
  const data = photo.data.slice();
  weight.forEach((sum, i) => {
    if (!(sum > 0)) return;
    for (let c = 3 * i; c < 3 * i + 3; c++) data[c] = rint(byte(f(total[c] / sum)));
  });
  return { width: photo.width, height: photo.height, data };
}

function enlarged(prediction, photo, hole, window) {
  const { width, height } = window;
  const whole = cubic(prediction, window.shownWidth, window.shownHeight, width, height);
  if (window.limit === null) return whole;
  return withFeatheredSeam(whole, cut(photo.data, photo.width, 3, window), cut(hole, photo.width, 1, window), width, height);
}

// cv2.resize(..., INTER_CUBIC) of numbers (h, w, 3).
function cubic(data, width, height, newWidth, newHeight) {
  if (width === newWidth && height === newHeight) return data;
  const [columns, rows] = [taps(width, newWidth), taps(height, newHeight)];
  const wide = new Float64Array(newWidth * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const { places, weights } = columns[x];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += data[(y * width + places[k]) * 3 + c] * weights[k];
        wide[(y * newWidth + x) * 3 + c] = sum;
      }
    }
  }
  const result = new Float32Array(newWidth * newHeight * 3);
  for (let y = 0; y < newHeight; y++) {
    const { places, weights } = rows[y];
    for (let i = 0; i < newWidth * 3; i++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += wide[places[k] * newWidth * 3 + i] * weights[k];
      result[y * newWidth * 3 + i] = sum;
    }
  }
  return result;
}

// Places of four neighbours and their weights for each new pixel along one axis.
function taps(size, newSize) {
  const a = -0.75;
  const scale = 1 / (newSize / size);
  return Array.from({ length: newSize }, (_, i) => {
    const at = (i + 0.5) * scale - 0.5;
    const first = Math.floor(at);
    const x = at - first;
    const weights = [
      ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a,
      ((a + 2) * x - (a + 3)) * x * x + 1,
      ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1,
    ];
    weights.push(1 - weights[0] - weights[1] - weights[2]);
    const places = [-1, 0, 1, 2].map((offset) => Math.min(size - 1, Math.max(0, first + offset)));
    return { places, weights };
  });
}

export function withFeatheredSeam(prediction, image, hole, width, height) {
  const radius = Math.max(1, Math.min(rint(Math.max(width, height) * FEATHER), height, width));
  let known = Float32Array.from(hole, (value) => 1 - value);
  let lacking = Float32Array.from(prediction, (value, i) => f(image[i] - value) * known[Math.floor(i / 3)]);
  for (let i = 0; i < 2; i++) [lacking, known] = [blurred(lacking, width, height, 3, radius), blurred(known, width, height, 1, radius)];
  const depth = exactDistance(hole, width, height);
  return prediction.map((value, i) => {
    const pixel = Math.floor(i / 3);
    const fading = f(Math.min(1, Math.max(0, f(1 - f(f(depth[pixel] - 1) / radius)))) / Math.max(known[pixel], f(1e-6)));
    return f(value + f(lacking[i] * fading));
  });
}

// cv2.blur over squares of 2 radius + 1 pixels, with the border mirrored at its last pixel.
function blurred(data, width, height, channels, radius) {
  const sums = new Float64Array(data.length);
  slide(data, sums, width, height, channels, channels, width * channels, radius);
  const result = new Float64Array(data.length);
  slide(sums, result, height, width, channels, width * channels, channels, radius);
  return Float32Array.from(result, (sum) => sum / (2 * radius + 1) ** 2);
}

// Sums of 2 radius + 1 neighbours along one axis of `length`; `step` is to the next pixel on it, `across` to the next line.
function slide(data, result, length, lines, channels, step, across, radius) {
  const mirrored = (i) => {
    if (length === 1) return 0;
    const period = 2 * (length - 1);
    const within = ((i % period) + period) % period;
    return within < length ? within : period - within;
  };
  const places = Array.from({ length: length + 2 * radius + 1 }, (_, i) => mirrored(i - radius) * step);
  for (let line = 0; line < lines; line++) {
    for (let c = 0; c < channels; c++) {
      const start = line * across + c;
      let sum = 0;
      for (let i = 0; i <= 2 * radius; i++) sum += data[start + places[i]];
      for (let i = 0; i < length; i++) {
        result[start + i * step] = sum;
        sum += data[start + places[i + 2 * radius + 1]] - data[start + places[i]];
      }
    }
  }
}

// The distance of each pixel to the nearest that is 0, infinite where there is none (Felzenszwalb and Huttenlocher, 2012).
export function exactDistance(mask, width, height) {
  const squares = Float64Array.from(mask, (value) => (value ? 1e12 : 0));
  const along = (length, step, start) => {
    const values = Float64Array.from({ length }, (_, i) => squares[start + i * step]);
    const [centres, borders] = [new Int32Array(length), new Float64Array(length + 1)];
    let n = 0;
    borders[0] = -Infinity;
    borders[1] = Infinity;
    const meet = (a, b) => (values[b] + b * b - values[a] - a * a) / (2 * (b - a));
    for (let i = 1; i < length; i++) {
      while (n > 0 && meet(centres[n], i) <= borders[n]) n--;
      if (meet(centres[n], i) > borders[n]) n++;
      centres[n] = i;
      borders[n] = n ? meet(centres[n - 1], i) : -Infinity;
      borders[n + 1] = Infinity;
    }
    for (let i = 0, k = 0; i < length; i++) {
      while (borders[k + 1] < i) k++;
      squares[start + i * step] = (i - centres[k]) ** 2 + values[centres[k]];
    }
  };
  for (let x = 0; x < width; x++) along(height, width, x);
  for (let y = 0; y < height; y++) along(width, 1, y * width);
  return Float32Array.from(squares, (square) => (square >= 1e11 ? Infinity : Math.sqrt(square)));
}

// A hole with all pixels that lie no farther than so many pixels from it.
export function grown(hole, width, height, pixels) {
  if (!pixels || !hole.some(Boolean)) return hole;
  return Uint8Array.from(exactDistance(hole.map((value) => 1 - value), width, height), (distance) => (distance <= pixels ? 1 : 0));
}
