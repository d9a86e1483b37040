// Numbers on hover, touch and keyboard focus.

const tip = document.getElementById("tip");
let pointed = null; // the drawing whose cursor is shown
let again = null; // a tip that the keyboard asked for follows its drawing when the page scrolls

function hideTip() {
  tip.hidden = true;
  if (pointed) for (const node of pointed.querySelectorAll(".cursor, .cursor-halo")) node.remove();
  pointed = again = null;
}

function showTip(lines, near) {
  tip.replaceChildren(...lines.map((line) => element("div", {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const view = document.documentElement;
  const x = clamp(near.x - width / 2, 8, Math.max(view.clientWidth - width - 8, 8));
  const above = near.top - height - 10;
  const y = above > 4 ? above : Math.min(near.bottom + 10, view.clientHeight - height - 4);
  tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
}

// grid: columns and rows of what can be pointed at; locate(x, y) gives [column, row] or null,
// box(column, row) what is outlined, say(column, row) the lines of the tip.
function pointable(svg, grid) {
  let at = null;
  const show = (column, row) => {
    hideTip();
    at = [column, row];
    pointed = svg;
    const box = grid.box(column, row);
    for (const name of ["cursor-halo", "cursor"]) svg.append(drawn("rect", { class: name, ...box }));
    const outer = svg.getBoundingClientRect();
    const ratio = outer.width / svg.viewBox.baseVal.width;
    showTip(grid.say(column, row), {
      x: outer.left + (box.x + box.width / 2) * ratio,
      top: outer.top + box.y * ratio,
      bottom: outer.top + (box.y + box.height) * ratio,
    });
  };
  const tell = (column, row) => {
    show(column, row);
    again = () => tell(column, row);
  };
  const follow = (event) => {
    const outer = svg.getBoundingClientRect();
    const ratio = svg.viewBox.baseVal.width / outer.width;
    const found = grid.locate((event.clientX - outer.left) * ratio, (event.clientY - outer.top) * ratio);
    if (found) show(...found);
    else hideTip();
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hideTip(); });
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) tell(...(at || [0, 0])); });
  svg.addEventListener("blur", hideTip);
  svg.addEventListener("keydown", (event) => {
    const [column, row] = at || [0, 0];
    const goal = {
      ArrowLeft: [column - 1, row],
      ArrowRight: [column + 1, row],
      ArrowUp: [column, row - 1],
      ArrowDown: [column, row + 1],
      Home: [0, row],
      End: [grid.columns - 1, row],
    }[event.key];
    if (event.key === "Escape") hideTip();
    if (!goal) return;
    event.preventDefault();
    tell(clamp(goal[0], 0, grid.columns - 1), clamp(goal[1], 0, grid.rows - 1));
  });
  return svg;
}

function canvas(label, width, height, parts, grid) {
  const box = `0 0 ${width} ${height}`;
  const svg = drawn("svg", {
    viewBox: box, width, height, tabindex: 0, role: "application",
    "aria-label": `${label}. Arrow keys move through the values.`,
  }, ...parts);
  return pointable(svg, grid);
}

addEventListener("scroll", () => (again || hideTip)(), { passive: true, capture: true });
addEventListener("pointerdown", (event) => {
  if (!event.target.closest("svg")) hideTip();
});
