// Videos in step with each other, and a line that parts two of them.

function startVideos() {
  const root = document.getElementById("fig-videos");
  if (!root) return;
  const state = { pair: [0, Math.min(1, data.videos.length - 1)], cut: 50, playing: false };
  const players = data.videos.map(player);
  const longest = data.videos.reduce((a, b) => (b.frames / b.fps > a.frames / a.fps ? b : a));
  const parts = stageOf(players, state);
  const clock = clockOf(players, longest, state);
  root.querySelector(".chart").replaceChildren(parts.stage);
  root.querySelector(".controls").append(...clock.nodes, ...parts.nodes);
  parts.show();
  clock.seek(0);
}

// The file as an object of this page: media from anywhere else is forbidden.
function player(video, index) {
  const letters = atob(document.getElementById(`video-${index}`).textContent);
  const content = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const node = element("video", { playsinline: true, preload: "auto", "aria-label": video.name });
  node.muted = true;
  node.addEventListener("loadedmetadata", () => {
    if (index === 0) node.parentElement.style.maxWidth = `${clamp(node.videoWidth * 3, 320, 960)}px`;
  });
  node.src = URL.createObjectURL(new Blob([content], { type: video.mime }));
  return node;
}

function stageOf(players, state) {
  const cut = element("div", { class: "cut" });
  const names = ["left", "right"].map((side) => element("div", { class: `name ${side}` }));
  const two = players.length > 1;
  const stage = element("div", { class: two ? "stage two" : "stage" });
  const place = () => {
    const [left, right] = state.pair.map((index) => players[index]);
    left.style.clipPath = "";
    if (!two) return;
    right.style.clipPath = left === right ? "" : `inset(0 0 0 ${state.cut}%)`;
    cut.style.left = `${state.cut}%`;
  };
  const line = slider("Line", 101, state.cut, (n) => `${n} %`, (n) => {
    state.cut = n;
    place();
  });
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    state.cut = Math.round(clamp((event.clientX - box.left) / box.width, 0, 1) * 100);
    line.set(state.cut);
    place();
  };
  if (two) {
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      drag(event);
    });
    stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  }
  const show = () => {
    const shown = [...new Set(state.pair)].map((index) => players[index]);
    stage.replaceChildren(...shown, ...(two ? [cut, ...names] : []));
    names.forEach((node, n) => { node.textContent = data.videos[state.pair[n]].name; });
    place();
  };
  const nodes = two ? [line.node] : [];
  if (players.length > 2) {
    ["Left", "Right"].forEach((label, n) => nodes.push(selection(label, data.videos.map((v) => v.name), state.pair[n], (index) => {
      state.pair[n] = index;
      show();
    })));
  }
  return { stage, nodes, show };
}

function clockOf(players, longest, state) {
  const say = (n) => `${n + 1} of ${longest.frames}`;
  const master = players[data.videos.indexOf(longest)];
  let frame = 0;
  const seek = (next) => {
    frame = clamp(next, 0, longest.frames - 1);
    const time = (frame + 0.5) / longest.fps; // the middle of a frame: no rounding to its neighbour
    players.forEach((node, n) => {
      const { frames, fps } = data.videos[n];
      node.currentTime = Math.min(time, (frames - 0.5) / fps);
    });
    bar.set(frame);
  };
  const follow = () => {
    if (!state.playing) return;
    frame = clamp(Math.floor(master.currentTime * longest.fps), 0, longest.frames - 1);
    bar.set(frame);
    players.forEach((node) => {
      const apart = Math.abs(node.currentTime - master.currentTime);
      if (!node.ended && apart > 1 / longest.fps) node.currentTime = master.currentTime;
    });
    requestAnimationFrame(follow);
  };
  const pause = () => {
    state.playing = false;
    players.forEach((node) => node.pause());
    play.textContent = "Play";
  };
  const start = () => {
    state.playing = true;
    play.textContent = "Pause";
    players.forEach((node) => {
      node.currentTime = frame / longest.fps;
      node.play().catch(pause);
    });
    requestAnimationFrame(follow);
  };
  const step = (by) => () => {
    pause();
    seek(frame + by);
  };
  const bar = slider("Frame", longest.frames, 0, say, (n) => {
    pause();
    seek(n);
  });
  const play = button("Play", () => (state.playing ? pause() : start()));
  master.addEventListener("ended", () => {
    if (!state.playing) return;
    frame = 0;
    start();
  });
  const nodes = [play, button("Back", step(-1)), button("Forward", step(1)), bar.node];
  return { nodes, seek };
}

function button(name, action) {
  const made = element("button", { type: "button" }, name);
  made.addEventListener("click", action);
  return made;
}
