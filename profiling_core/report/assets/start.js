// Draw every figure at the width it has, and again when that changes.

const KINDS = {
  heat: [heatControls, drawHeat],
  curves: [curveControls, drawCurves],
  maps: [mapControls, drawMaps],
  plan: [planControls, drawPlan],
};

function startFigure(figure) {
  const root = document.getElementById(figure.id);
  const chart = root.querySelector(".chart");
  const [controls, draw] = KINDS[figure.kind];
  const state = {};
  let width = 0;
  const redraw = () => {
    hideTip();
    if (width) chart.replaceChildren(...draw(figure, state, width));
  };
  root.querySelector(".controls").append(...controls(figure, state, redraw));
  new ResizeObserver((entries) => {
    const now = Math.floor(entries[0].contentRect.width);
    if (now === width) return;
    width = now;
    redraw();
  }).observe(chart);
}

startTheme();
data.figures.forEach(startFigure);
startVideos();
