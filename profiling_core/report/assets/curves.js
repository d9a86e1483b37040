// Curves and bars over one x axis.

const CURVE_HEIGHT = 190;
const BAR_HEIGHT = 130;

function curveControls(figure, state, redraw) {
  state.view = 0;
  if (figure.views.length < 2) return [];
  return [choice("Quantity", figure.views.map((view) => view.name), (index) => {
    state.view = index;
    redraw();
  })];
}

function drawCurves(figure, state, width) {
  const { panels } = figure.views[state.view];
  return panels.map((panel) => drawPanel(figure.label, panel, width));
}

function drawPanel(label, panel, width) {
  const ranges = panel.series.flatMap((s) => finite([s.middle, s.low, s.high]));
  const narrow = width < 560;
  const several = panel.series.length > 1;
  const place = panelPlaces(panel, width, several && narrow ? 44 : 28, panelRange(panel, ranges));
  const parts = [...panelAxes(panel, place), ...(panel.bars ? bars(panel, place) : lines(panel, place))];
  parts.push(drawn("text", { class: "strong", x: 0, y: 13 }, panel.label));
  if (several) parts.push(...seriesLegend(panel, narrow ? place.left : width - 150 * panel.series.length, narrow ? 32 : 13));
  return canvas(`${label}: ${panel.label}`, place.width, place.bottom + 42, parts, {
    columns: panel.x.names.length,
    rows: 1,
    locate: (x) => [place.nearest(x), 0],
    box: (column) => ({ x: place.x(column) - place.half, y: place.top, width: 2 * place.half, height: place.bottom - place.top }),
    say: (column) => [
      [panel.x.full[column], ...(panel.x.notes.length ? [panel.x.notes[column]] : [])].join(" · "),
      ...panel.series.map((s) => spoken(s, column, several)),
    ],
  });
}

function spoken(series, column, named) {
  const [low, high] = [series.low[column], series.high[column]];
  const range = low === high ? "" : ` (${digits(low)} to ${digits(high)})`;
  return `${named ? `${series.name} ` : ""}${digits(series.middle[column])}${range}`;
}

function panelRange(panel, values) {
  let low = panel.zero ? 0 : Math.min(...values);
  let high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  if (low === high) [low, high] = panel.zero ? [0, high || 1] : [low - Math.abs(low) * 0.05 - 1e-6, high + Math.abs(high) * 0.05 + 1e-6];
  const room = (high - low) * 0.06;
  return [panel.zero ? low : low - room, high + room];
}

function panelPlaces(panel, width, top, [low, high]) {
  const left = 52;
  const count = panel.x.names.length;
  const wide = Math.max(width, left + 12 + count * (panel.bars ? 3 : 2));
  const bottom = top + (panel.bars ? BAR_HEIGHT : CURVE_HEIGHT);
  const right = wide - 12;
  const at = panel.x.at.length ? panel.x.at : groupedPlaces(panel.x);
  const edge = panel.bars || count === 1 ? 0.5 : 0;
  const [first, last] = [at[0] - edge, at[count - 1] + edge];
  const x = (column) => left + ((at[column] - first) / (last - first)) * (right - left);
  return {
    left, right, top, bottom, low, high, x, width: wide,
    y: (value) => bottom - ((value - low) / (high - low)) * (bottom - top),
    half: panel.bars ? ((right - left) / (last - first)) * 0.5 : 0.5,
    nearest: (px) => at.reduce((best, _, n) => (Math.abs(x(n) - px) < Math.abs(x(best) - px) ? n : best), 0),
  };
}

// One place per block, and an empty one between the lists.
function groupedPlaces(axis) {
  const groups = axis.groups.length ? axis.groups : [["", axis.names.length]];
  return groups.flatMap(([, count], group) => {
    const before = groups.slice(0, group).reduce((sum, [, n]) => sum + n + 1, 0);
    return Array.from({ length: count }, (_, n) => before + n);
  });
}

function panelAxes(panel, place) {
  const parts = [];
  for (const tick of niceTicks(place.low, place.high, 5)) {
    const y = place.y(tick);
    parts.push(drawn("line", { class: "grid crisp", x1: place.left, x2: place.right, y1: y, y2: y }));
    parts.push(drawn("text", { x: place.left - 7, y: y + 4, "text-anchor": "end" }, digits(tick)));
  }
  parts.push(drawn("line", { class: "axis crisp", x1: place.left, x2: place.right, y1: place.bottom, y2: place.bottom }));
  const { groups } = panel.x;
  let first = 0;
  for (const [name, count] of groups.length ? groups : [["", panel.x.names.length]]) {
    const start = first;
    const own = { names: panel.x.names.slice(first, first + count), at: panel.x.at.slice(first, first + count) };
    for (const column of labelled(own, (n) => place.x(start + n), 26)) {
      parts.push(drawn("text", { x: place.x(start + column), y: place.bottom + 16, "text-anchor": "middle" }, own.names[column]));
    }
    const middle = (place.x(first) + place.x(first + count - 1)) / 2;
    parts.push(drawn("text", { x: middle, y: place.bottom + 34, "text-anchor": "middle" }, name || panel.x.label));
    first += count;
  }
  return parts;
}

// Runs of neighbours that were all measured.
function stretches(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index && values[index - 1] !== null) found[found.length - 1].push(index);
    else found.push([index]);
  });
  return found;
}

function lines(panel, place) {
  return panel.series.flatMap((series, n) => {
    const kind = `series-${n % 2}`;
    const parts = [];
    const point = (values) => (column) => `${place.x(column).toFixed(2)} ${place.y(values[column]).toFixed(2)}`;
    for (const stretch of stretches(series.middle)) {
      const low = stretch.map(point(series.low)).reverse();
      parts.push(drawn("path", { class: `band ${kind}`, d: `M${[...stretch.map(point(series.high)), ...low].join("L")}z` }));
      parts.push(drawn("path", { class: `curve ${kind}`, d: `M${stretch.map(point(series.middle)).join("L")}` }));
      for (const column of panel.points || stretch.length === 1 ? stretch : []) {
        parts.push(drawn("circle", { class: `dot ${kind}`, cx: place.x(column), cy: place.y(series.middle[column]), r: 4 }));
      }
    }
    return parts;
  });
}

function bars(panel, place) {
  return panel.series.flatMap((series) => series.middle.flatMap((value, column) => {
    if (value === null) return [];
    const wide = Math.max(place.half * 1.5, 1);
    const x = place.x(column);
    const y = place.y(value);
    const bar = drawn("rect", { class: "bar series-0", x: x - wide / 2, y, width: wide, height: place.bottom - y });
    const [low, high] = [series.low[column], series.high[column]];
    if (low === high) return [bar];
    return [bar, drawn("line", { class: "whisker", x1: x, x2: x, y1: place.y(low), y2: place.y(high) })];
  }));
}

function seriesLegend(panel, x, y) {
  return panel.series.flatMap((series, n) => {
    const start = x + n * 150;
    return [
      drawn("line", { class: `curve series-${n % 2}`, x1: start, x2: start + 30, y1: y - 4, y2: y - 4 }),
      drawn("text", { class: "strong", x: start + 38, y }, series.name),
    ];
  });
}
