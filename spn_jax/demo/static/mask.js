// The hole as a list of what was painted. Undo takes the last entry away and paints the others again, so that no picture has to be kept,
// and the mask that is sent is painted once more at the photo's own size, whatever the size on the screen.

const HOLE = "#ff2d95";

export class Mask {
  // canvas: shows the hole; width, height: of the photo in pixels, in which all coordinates and sizes are.
  constructor(canvas, width, height) {
    this.canvas = canvas;
    this.width = width;
    this.height = height;
    this.entries = [];
    this.undone = [];
    this.current = null;
  }

  begin(erase, size, point) {
    this.current = { kind: "stroke", erase, size, points: [point] };
    draw(this.context(), this.current, HOLE);
  }

  extend(point) {
    const points = this.current.points;
    points.push(point);
    draw(this.context(), { ...this.current, points: points.slice(-2) }, HOLE);
  }

  end() {
    if (this.current) this.add(this.current);
    this.current = null;
    this.redraw(); // in one piece, as it will be sent: pieces differ at their edges
  }

  // A stroke that became something else, such as two fingers that move the page.
  abandon() {
    this.current = null;
    this.redraw();
  }

  // picture: of the photo's size, opaque in the hole.
  use(picture) {
    this.add({ kind: "picture", picture });
    this.redraw();
  }

  clear() {
    this.add({ kind: "clear" });
    this.redraw();
  }

  undo() {
    if (this.entries.length) this.undone.push(this.entries.pop());
    this.redraw();
  }

  redo() {
    if (this.undone.length) this.entries.push(this.undone.pop());
    this.redraw();
  }

  get empty() {
    const start = this.entries.findLastIndex((entry) => entry.kind === "clear") + 1;
    return !this.entries.slice(start).some((entry) => !entry.erase);
  }

  redraw() {
    const context = this.context();
    context.clearRect(0, 0, this.width, this.height);
    for (const entry of this.entries) draw(context, entry, HOLE);
  }

  // A PNG of the photo's size, white in the hole and black elsewhere; the server takes what is more than half white.
  async png() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.width, this.height];
    const context = canvas.getContext("2d");
    for (const entry of this.entries) draw(context, entry, "#fff");
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (!blob) throw new Error("This browser cannot paint a mask of so many pixels; make the photo smaller.");
    return blob;
  }

  add(entry) {
    this.entries.push(entry);
    this.undone = [];
  }

  // Of the canvas on the screen, in the photo's coordinates.
  context() {
    const context = this.canvas.getContext("2d");
    context.setTransform(this.canvas.width / this.width, 0, 0, this.canvas.height / this.height, 0, 0);
    return context;
  }
}

function draw(context, entry, colour) {
  context.globalCompositeOperation = entry.erase ? "destination-out" : "source-over";
  if (entry.kind === "clear") {
    context.clearRect(0, 0, 1e6, 1e6); // whatever the scale
  } else if (entry.kind === "picture") {
    drawPicture(context, entry.picture, colour);
  } else {
    drawStroke(context, entry, colour);
  }
  context.globalCompositeOperation = "source-over";
}

function drawStroke(context, { size, points }, colour) {
  context.fillStyle = context.strokeStyle = colour;
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.arc(points[0].x, points[0].y, size / 2, 0, 2 * Math.PI);
  context.fill();
  context.beginPath();
  context.moveTo(points[0].x, points[0].y);
  for (const { x, y } of points.slice(1)) context.lineTo(x, y);
  context.stroke();
}

function drawPicture(context, picture, colour) {
  const tinted = document.createElement("canvas");
  [tinted.width, tinted.height] = [picture.width, picture.height];
  const inside = tinted.getContext("2d");
  inside.drawImage(picture, 0, 0);
  inside.globalCompositeOperation = "source-in";
  inside.fillStyle = colour;
  inside.fillRect(0, 0, tinted.width, tinted.height);
  context.drawImage(tinted, 0, 0);
}
