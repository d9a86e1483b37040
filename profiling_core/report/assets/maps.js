// Attention maps of a few blocks at a few steps, one frame at a time.

const SPACE = 6; // between maps
const HEADING = 22; // above a row of maps

function mapControls(figure, state, redraw) {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const [frames] = figure.size;
  Object.assign(state, { run: 0, frame: Math.floor(frames / 2), own: false, outline: true });
  state.levels = bytes(figure.levels);
  state.masks = bytes(figure.masks);
  const set = (key) => (value) => {
    state[key] = value;
    redraw();
  };
  const made = [slider("Frame", frames, state.frame, (n) => `${n + 1} of ${frames}`, set("frame")).node];
  if (figure.runs.length > 1) made.push(selection("Run", figure.runs, 0, set("run")));
  made.push(choice("Colours", ["one scale", "each map its own"], (index) => set("own")(index === 1)));
  made.push(checkbox("outline of the foreground", true, set("outline")));
  return made;
}

function mapReader(figure, state) {
  const [frames, high, wide] = figure.size;
  const steps = figure.steps.names.length;
  const tokens = frames * high * wide;
  const start = (row, column) => ((state.run * figure.blocks.names.length + row) * steps + column) * tokens;
  return {
    value: (row, column, y, x) => {
      const level = state.levels[start(row, column) + (state.frame * high + y) * wide + x];
      const [low, top] = [figure.low[state.run][row][column], figure.high[state.run][row][column]];
      return level === data.missing || low === null ? null : low + ((top - low) * level) / data.levels;
    },
    mask: (y, x) => {
      if (y < 0 || x < 0 || y >= high || x >= wide) return 0;
      return state.masks[state.run * tokens + (state.frame * high + y) * wide + x] / data.levels;
    },
  };
}

function drawMaps(figure, state, width) {
  const [, high, wide] = figure.size;
  const [rows, columns] = [figure.blocks.names.length, figure.steps.names.length];
  const panel = clamp((width - SPACE * (columns - 1)) / columns, 44, 140);
  const place = { cell: panel / wide, panel, tall: (panel / wide) * high };
  place.x = (column) => column * (panel + SPACE);
  place.y = (row) => 18 + HEADING + row * (place.tall + HEADING + SPACE);
  place.width = Math.ceil(place.x(columns) - SPACE);
  const reader = mapReader(figure, state);
  const scale = sharedScale(figure, state);
  const parts = figure.steps.names.map((name, column) =>
    drawn("text", { x: place.x(column) + panel / 2, y: 12, "text-anchor": "middle" }, panel > 60 ? `step ${name}` : name));
  const cells = [];
  for (let row = 0; row < rows; row += 1) {
    parts.push(drawn("text", { class: "strong", x: 0, y: place.y(row) - 6 }, rowName(figure, row)));
    for (let column = 0; column < columns; column += 1) {
      const own = state.own ? ownScale(figure, state, row, column) : scale;
      cells.push(...mapCells(figure, reader, place, own, row, column));
    }
  }
  parts.push(...cellPaths(cells.filter((cell) => cell.key !== null), (shade) => MAPS[shade]));
  if (state.outline) parts.push(...outlines(figure, reader, place));
  const end = place.y(rows - 1) + place.tall;
  const words = state.own ? ["smallest", "largest of the map"] : null;
  parts.push(...colourBar(MAPS, 0, end + 20, scale, "attention over its mean", words));
  return [canvas(figure.label, Math.max(place.width, 300), end + 60, parts, mapPointing(figure, reader, place))];
}

function rowName(figure, row) {
  const side = { F: " · F, foreground", B: " · B, background" }[figure.sides[row]] || "";
  return figure.blocks.names[row] + side;
}

// From nothing to what 99 % of the values of this run stay under: a few large ones would hide the rest.
function sharedScale(figure, state) {
  const each = state.levels.length / (figure.runs.length * figure.blocks.names.length * figure.steps.names.length);
  const values = [];
  figure.low[state.run].forEach((steps, row) => steps.forEach((low, column) => {
    if (low === null) return;
    const high = figure.high[state.run][row][column];
    const start = ((state.run * figure.blocks.names.length + row) * steps.length + column) * each;
    for (let n = 0; n < each; n += 3) {
      const level = state.levels[start + n];
      if (level !== data.missing) values.push(low + ((high - low) * level) / data.levels);
    }
  }));
  values.sort((a, b) => a - b);
  return scaleBetween(0, values.length ? values[Math.floor(values.length * 0.99)] : 1, false);
}

function ownScale(figure, state, row, column) {
  return scaleBetween(figure.low[state.run][row][column], figure.high[state.run][row][column], false);
}

function mapCells(figure, reader, place, scale, row, column) {
  const [, high, wide] = figure.size;
  const cells = [];
  for (let y = 0; y < high; y += 1) {
    for (let x = 0; x < wide; x += 1) {
      const value = reader.value(row, column, y, x);
      const key = value === null ? null : shadeOf(scale.share(value));
      cells.push({ x: place.x(column) + x * place.cell, y: place.y(row) + y * place.cell, width: place.cell, height: place.cell, key });
    }
  }
  return cells;
}

// The edge of the foreground: where the mask crosses one half between neighbours.
function outlines(figure, reader, place) {
  const [, high, wide] = figure.size;
  const inside = (y, x) => reader.mask(y, x) >= 0.5;
  const edges = [];
  for (let y = 0; y <= high; y += 1) {
    for (let x = 0; x <= wide; x += 1) {
      if (inside(y, x) !== inside(y - 1, x)) edges.push([x, y, "h"]);
      if (inside(y, x) !== inside(y, x - 1)) edges.push([x, y, "v"]);
    }
  }
  let d = "";
  figure.blocks.names.forEach((_, row) => figure.steps.names.forEach((__, column) => {
    for (const [x, y, way] of edges) {
      d += `M${(place.x(column) + x * place.cell).toFixed(2)} ${(place.y(row) + y * place.cell).toFixed(2)}${way}${place.cell.toFixed(2)}`;
    }
  }));
  return ["outline-halo", "outline"].map((kind) => drawn("path", { class: kind, d, "stroke-linecap": "square" }));
}

function mapPointing(figure, reader, place) {
  const [, high, wide] = figure.size;
  const split = (column, row) => [Math.floor(column / wide), column % wide, Math.floor(row / high), row % high];
  return {
    columns: figure.steps.names.length * wide,
    rows: figure.blocks.names.length * high,
    locate: (px, py) => {
      const column = figure.steps.names.findIndex((_, n) => px >= place.x(n) && px < place.x(n) + place.panel);
      const row = figure.blocks.names.findIndex((_, n) => py >= place.y(n) && py < place.y(n) + place.tall);
      if (column < 0 || row < 0) return null;
      const x = clamp(Math.floor((px - place.x(column)) / place.cell), 0, wide - 1);
      const y = clamp(Math.floor((py - place.y(row)) / place.cell), 0, high - 1);
      return [column * wide + x, row * high + y];
    },
    box: (at, down) => {
      const [column, x, row, y] = split(at, down);
      return { x: place.x(column) + x * place.cell, y: place.y(row) + y * place.cell, width: place.cell, height: place.cell };
    },
    say: (at, down) => {
      const [column, x, row, y] = split(at, down);
      return [
        `${figure.blocks.names[row]}, ${figure.steps.full[column]}`,
        `${digits(round3(reader.value(row, column, y, x)))} x mean attention`,
        `row ${y + 1}, column ${x + 1} · foreground at ${Math.round(reader.mask(y, x) * 100)} % of the steps`,
      ];
    },
  };
}

// Maps are stored in 255 levels: more digits would say nothing.
function round3(value) {
  return value === null ? null : Number(value.toPrecision(3));
}
