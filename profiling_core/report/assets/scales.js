// Colours, ticks, and where the cells of a grid lie.

const SHADES = 64;

function shadesOf(anchors) {
  const parse = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const stops = anchors.map(parse);
  return Array.from({ length: SHADES }, (_, shade) => {
    const place = (shade / (SHADES - 1)) * (stops.length - 1);
    const before = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[before].map((c, k) => c + (stops[before + 1][k] - c) * (place - before));
    return `rgb(${mixed.map(Math.round).join(",")})`;
  });
}

const HEAT = shadesOf(data.palettes.heat);
const MAPS = shadesOf(data.palettes.maps);

// From values to 0..1. On a logarithmic scale what is not positive lies at the lower end.
function scaleOf(values, logarithmic) {
  const usable = logarithmic ? values.filter((value) => value > 0) : values;
  const low = usable.reduce((a, b) => Math.min(a, b), Infinity);
  const high = usable.reduce((a, b) => Math.max(a, b), -Infinity);
  return scaleBetween(low, high, logarithmic && usable.length > 0);
}

function scaleBetween(low, high, logarithmic) {
  const to = logarithmic ? Math.log : (value) => value;
  const from = logarithmic ? Math.exp : (value) => value;
  const span = to(high) - to(low) || 1;
  return {
    low,
    high,
    share: (value) => clamp((to(Math.max(value, logarithmic ? low : -Infinity)) - to(low)) / span, 0, 1),
    value: (share) => from(to(low) + share * span),
  };
}

function shadeOf(share) {
  return Math.round(share * (SHADES - 1));
}

const STEPS = [1, 5, 10, 20, 50, 100, 200, 500, 1000];

// Indices of the elements that get a label: at whole multiples, `apart` pixels or more from each other.
function labelled(axis, centre, apart) {
  const number = axis.names.map((name, index) => (axis.at.length ? axis.at[index] : Number(name)));
  let kept = [];
  for (const step of STEPS) {
    kept = number.map((_, index) => index).filter((index) => number[index] % step === 0);
    if (kept.every((n, k) => k === 0 || centre(n) - centre(kept[k - 1]) >= apart)) return kept;
  }
  return kept;
}

function niceTicks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    found.push(Number((n * step).toPrecision(12)));
  }
  return found;
}

const GAP = 9; // between the block lists

// Where the cells lie: steps along x, blocks (list by list) along y.
function gridLayout(x, y, width, right, heights) {
  const left = 52;
  const top = 6;
  const columns = x.names.length;
  const rows = y.names.length;
  const groups = y.groups.length ? y.groups : [[y.label, rows]];
  const cell = Math.max((width - left - right) / columns, 3.5);
  const height = clamp(heights.wish / rows, heights.least, heights.most);
  const tops = [];
  let place = top;
  groups.forEach(([, count], group) => {
    if (group) place += GAP;
    for (let n = 0; n < count; n += 1, place += height) tops.push(place);
  });
  return {
    left, top, cell, height, tops, groups, columns, rows,
    right: left + cell * columns,
    bottom: place,
    width: Math.ceil(left + cell * columns + right - 1e-6), // rounding alone adds no pixel
    column: (px) => clamp(Math.floor((px - left) / cell), 0, columns - 1),
    row: (py) => {
      const after = tops.findIndex((start) => start > py);
      return after < 0 ? rows - 1 : Math.max(after - 1, 0);
    },
    box: (column, row) => ({ x: left + column * cell, y: tops[row], width: cell, height }),
  };
}

// Axis labels, ticks and frames of a grid.
function gridAxes(x, y, grid) {
  const parts = [];
  const middle = (row) => grid.tops[row] + grid.height / 2;
  const centre = (column) => grid.left + (column + 0.5) * grid.cell;
  let first = 0;
  grid.groups.forEach(([name, count]) => {
    const top = grid.tops[first];
    const high = count * grid.height;
    const own = { names: y.names.slice(first, first + count), at: [] };
    const start = first;
    for (const row of labelled(own, (n) => middle(start + n), 13)) {
      parts.push(drawn("text", { x: grid.left - 6, y: middle(start + row) + 4, "text-anchor": "end" }, own.names[row]));
    }
    const label = drawn("text", { "text-anchor": "middle", transform: `translate(12 ${top + high / 2}) rotate(-90)` }, name);
    parts.push(label, drawn("rect", { class: "frame crisp", x: grid.left - 0.5, y: top - 0.5, width: grid.right - grid.left + 1, height: high + 1 }));
    first += count;
  });
  for (const column of labelled(x, centre, 26)) {
    parts.push(drawn("text", { x: centre(column), y: grid.bottom + 16, "text-anchor": "middle" }, x.names[column]));
  }
  const label = { x: (grid.left + grid.right) / 2, y: grid.bottom + 34, "text-anchor": "middle" };
  parts.push(drawn("text", label, x.label));
  return parts;
}

// One path per colour: many cells, few nodes.
function cellPaths(cells, colours) {
  const paths = new Map();
  for (const { x, y, width, height, key } of cells) {
    paths.set(key, `${paths.get(key) || ""}M${x.toFixed(2)} ${y.toFixed(2)}h${width.toFixed(2)}v${height.toFixed(2)}h${(-width).toFixed(2)}z`);
  }
  return [...paths].map(([key, d]) => drawn("path", { class: "crisp", fill: colours(key), d }));
}

// A scale of colours under its name, with its ends or the words that are given instead.
function colourBar(shades, x, y, scale, name, words) {
  const parts = [drawn("text", { x, y: y + 2 }, name)];
  const wide = 3;
  for (let n = 0; n < SHADES; n += 1) {
    parts.push(drawn("rect", { class: "crisp", x: x + n * wide, y: y + 9, width: wide + 0.2, height: 9, fill: shades[n] }));
  }
  const ends = words || [0, 0.5, 1].map((share) => digits(Number(scale.value(share).toPrecision(3))));
  ends.forEach((text, n) => {
    const place = n / (ends.length - 1);
    const anchor = ["start", "middle", "end"][Math.round(place * 2)];
    parts.push(drawn("text", { x: x + place * SHADES * wide, y: y + 31, "text-anchor": anchor }, text));
  });
  return parts;
}
