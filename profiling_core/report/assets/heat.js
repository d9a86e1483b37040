// Heat maps and the pictures of plans: steps along x, blocks along y.

function heatControls(figure, state, redraw) {
  state.layer = 0;
  if (figure.layers.length < 2) return [];
  return [choice("Quantity", figure.layers.map((layer) => layer.name), (index) => {
    state.layer = index;
    redraw();
  })];
}

function drawHeat(figure, state, width) {
  const layer = figure.layers[state.layer];
  const narrow = width < 560;
  const beside = layer.means ? (narrow ? 62 : 128) : 12;
  const heights = { wish: 400, least: layer.sides ? 12 : 8, most: 22 };
  const grid = gridLayout(figure.x, figure.y, width, beside, heights);
  const scale = scaleOf(finite(layer.values), layer.log);
  const parts = [...heatCells(layer, grid, scale), ...gridAxes(figure.x, figure.y, grid)];
  if (layer.means) parts.push(...rowMeans(layer, grid, beside));
  const name = layer.log ? `${layer.name}, logarithmic` : layer.name;
  parts.push(...colourBar(HEAT, grid.left, grid.bottom + 56, scale, name));
  const svg = canvas(`${figure.label}: ${layer.name}`, grid.width, grid.bottom + 96, parts, heatPointing(figure, layer, grid, beside));
  return layer.note ? [svg, element("p", { class: "note" }, layer.note)] : [svg];
}

function heatCells(layer, grid, scale) {
  const cells = [];
  let missing = "";
  layer.values.forEach((row, y) => row.forEach((value, x) => {
    const box = grid.box(x, y);
    if (value !== null) cells.push({ ...box, key: shadeOf(scale.share(value)) });
    else if (layer.hatched) missing += `M${box.x + 1} ${box.y + box.height - 1}L${box.x + box.width - 1} ${box.y + 1}`;
  }));
  const paths = cellPaths(cells, (shade) => HEAT[shade]);
  return missing ? [...paths, drawn("path", { class: "empty", d: missing })] : paths;
}

// Right of the map: F or B of every row, and the row's mean as a bar; the broken line is tau.
function rowMeans(layer, grid, beside) {
  const start = grid.right + (layer.sides ? 24 : 10);
  const room = grid.right + beside - 14 - start;
  const most = Math.max(...finite(layer.means), layer.tau || 0) || 1;
  const parts = [];
  layer.means.forEach((mean, row) => {
    const side = layer.sides ? layer.sides[row] : "";
    const y = grid.tops[row] + grid.height / 2;
    if (side) parts.push(drawn("text", { class: "side", x: grid.right + 13, y: y + 3.5, "text-anchor": "middle" }, side));
    const high = Math.min(grid.height - 4, 10);
    const long = Math.max((mean || 0) / most, 0) * room;
    const kind = { F: "bar-f", B: "bar-b" }[side] || (layer.sides ? "bar-none" : "bar-f");
    parts.push(drawn("rect", { class: kind, x: start, y: y - high / 2, width: long, height: high }));
  });
  if (layer.tau !== null) {
    const x = start + (layer.tau / most) * room;
    const first = layer.sides.findIndex((side) => side); // the lists that tau parts
    parts.push(drawn("line", { class: "tau", x1: x, x2: x, y1: grid.tops[first], y2: grid.bottom + 4 }));
    const fits = Math.min(x, grid.width - 24);
    parts.push(drawn("text", { class: "strong", x: fits, y: grid.bottom + 16, "text-anchor": "middle" }, `τ ${Number(layer.tau.toPrecision(3))}`));
  }
  parts.push(drawn("text", { x: start + room / 2, y: grid.bottom + 34, "text-anchor": "middle" }, "mean"));
  return parts;
}

function heatPointing(figure, layer, grid, beside) {
  const columns = grid.columns + (layer.means ? 1 : 0);
  const isMean = (column) => column === grid.columns;
  return {
    columns,
    rows: grid.rows,
    locate: (x, y) => {
      if (y < grid.top || y > grid.bottom || x < grid.left) return null;
      if (x > grid.right) return layer.means ? [grid.columns, grid.row(y)] : null;
      return [grid.column(x), grid.row(y)];
    },
    box: (column, row) => (isMean(column)
      ? { x: grid.right + 3, y: grid.tops[row], width: beside - 12, height: grid.height }
      : grid.box(column, row)),
    say: (column, row) => {
      const side = layer.sides && layer.sides[row] ? ` · ${{ F: "F, foreground", B: "B, background" }[layer.sides[row]]}` : "";
      const block = figure.y.full[row];
      if (isMean(column)) return [`${block}, mean${side}`, `${layer.name} ${digits(layer.means[row])}`];
      const note = figure.x.notes.length ? [figure.x.notes[column]] : [];
      const value = layer.values[row][column];
      const said = value === null ? layer.missing : `${layer.name} ${digits(value)}`;
      return [`${block}, ${figure.x.full[column]}${side}`, said, ...note];
    },
  };
}

function planControls(figure, state, redraw) {
  state.branch = 0;
  if (figure.branches.length < 2) return [];
  return [choice("Branch", figure.branches.map((branch) => branch.name), (index) => {
    state.branch = index;
    redraw();
  })];
}

function drawPlan(figure, state, width) {
  const branch = figure.branches[state.branch];
  const grid = gridLayout(figure.x, figure.y, width, 12, { wish: 300, least: 7, most: 20 });
  const parts = [...planCells(branch.rows, grid), ...gridAxes(figure.x, figure.y, grid)];
  const legend = planLegend(branch.rows, grid, width);
  parts.push(...legend.parts);
  const say = (column, row) => [
    `${figure.y.full[row]}, ${figure.x.full[column]}`,
    data.states[branch.rows[row][column]],
    `branch ${branch.name} · ${figure.x.notes[column]}`,
  ];
  const inside = (x, y) => x >= grid.left && x <= grid.right && y >= grid.top && y <= grid.bottom;
  return [canvas(figure.label, grid.width, legend.bottom, parts, {
    columns: grid.columns,
    rows: grid.rows,
    locate: (x, y) => (inside(x, y) ? [grid.column(x), grid.row(y)] : null),
    box: grid.box,
    say,
  })];
}

const PLAN_FILLS = { "#": "var(--kept)", "+": "var(--computed)", ".": "var(--reused)", ">": "var(--jumped)" };

// States differ in lightness, and kept and jumped ones carry a mark besides.
function planCells(rows, grid) {
  const cells = [];
  let dots = "";
  let slashes = "";
  rows.forEach((states, row) => [...states].forEach((state, column) => {
    const box = grid.box(column, row);
    cells.push({ x: box.x + 0.5, y: box.y + 0.5, width: box.width - 1, height: box.height - 1, key: state });
    if (state === "#") dots += dotPath(box);
    if (state === ">") slashes += slashPath(box);
  }));
  return [
    ...cellPaths(cells, (state) => PLAN_FILLS[state]),
    drawn("path", { class: "plan-dot", d: dots }),
    drawn("path", { class: "plan-slash", d: slashes }),
  ];
}

function dotPath(box) {
  const side = Math.max(Math.min(box.width, box.height) * 0.34, 2);
  return `M${(box.x + (box.width - side) / 2).toFixed(2)} ${(box.y + (box.height - side) / 2).toFixed(2)}h${side}v${side}h${-side}z`;
}

function slashPath(box) {
  return `M${(box.x + 1.5).toFixed(2)} ${(box.y + box.height - 1.5).toFixed(2)}L${(box.x + box.width - 1.5).toFixed(2)} ${(box.y + 1.5).toFixed(2)}`;
}

function planLegend(rows, grid, width) {
  const parts = [];
  let x = grid.left;
  let y = grid.bottom + 52;
  for (const [state, name] of Object.entries(data.states)) {
    if (!rows.some((row) => row.includes(state))) continue;
    const long = 24 + name.length * 6.6 + 18;
    if (x > grid.left && x + long > width) [x, y] = [grid.left, y + 20];
    const box = { x, y: y - 11, width: 14, height: 14 };
    parts.push(drawn("rect", { ...box, fill: PLAN_FILLS[state] }));
    if (state === "#") parts.push(drawn("path", { class: "plan-dot", d: dotPath(box) }));
    if (state === ">") parts.push(drawn("path", { class: "plan-slash", d: slashPath(box) }));
    parts.push(drawn("text", { x: x + 20, y }, name));
    x += long;
  }
  return { parts, bottom: y + 12 };
}
