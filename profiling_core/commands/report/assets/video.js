"use strict";
// Two videos in step with each other, and a line that parts them.

const root = document.getElementById("fig-videos");
const stage = root.querySelector(".stage");
const videos = [...root.querySelectorAll("video")];
const play = root.querySelector("button");
const [bar, line] = ["frame", "line"].map((name) => root.querySelector(`[name=${name}]`));
const choices = [...root.querySelectorAll("select")];
const seconds = (video) => video.dataset.frames / video.dataset.fps;
const longest = videos.reduce((a, b) => (seconds(b) > seconds(a) ? b : a));
const fps = Number(longest.dataset.fps);
const label = (input, text) => { input.nextElementSibling.textContent = text; };

// The content becomes an object of this page: media from anywhere else is forbidden.
root.querySelectorAll(".clip").forEach((clip, n) => {
  const bytes = Uint8Array.from(atob(clip.textContent), (letter) => letter.charCodeAt(0));
  videos[n].muted = true;
  videos[n].src = URL.createObjectURL(new Blob([bytes], { type: videos[n].dataset.mime }));
});

function show() {
  const pair = choices.length ? choices.map((one) => videos[one.value]) : videos;
  videos.forEach((one) => { one.hidden = !pair.includes(one); one.style.clipPath = ""; });
  stage.prepend(pair[0]); // the other one lies above it
  if (!line) return;
  label(line, `${line.value} %`);
  stage.querySelector(".cut").style.left = `${line.value}%`;
  if (pair[1] !== pair[0]) pair[1].style.clipPath = `inset(0 0 0 ${line.value}%)`;
  stage.querySelectorAll(".name").forEach((one, n) => { one.textContent = pair[n].ariaLabel; });
}

const labelFrame = () => label(bar, `${Number(bar.value) + 1} of ${longest.dataset.frames}`);

function seek() {
  videos.forEach((one) => { // the middle of a frame: no rounding to its neighbour
    one.currentTime = Math.min((Number(bar.value) + 0.5) / fps, seconds(one) - 0.5 / one.dataset.fps);
  });
  labelFrame();
}

function pause() {
  videos.forEach((one) => one.pause());
  play.textContent = "Play";
}

function follow() {
  if (play.textContent === "Play") return;
  bar.value = Math.floor(longest.currentTime * fps);
  labelFrame();
  requestAnimationFrame(follow);
}

play.addEventListener("click", () => {
  if (play.textContent === "Pause") return pause();
  play.textContent = "Pause";
  videos.forEach((one) => {
    one.currentTime = bar.value === bar.max ? 0 : Math.min(bar.value / fps, seconds(one));
    one.play().catch(pause);
  });
  return follow();
});
longest.addEventListener("ended", pause);
bar.addEventListener("input", () => { pause(); seek(); });
if (line) {
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    line.value = ((event.clientX - box.left) / box.width) * 100;
    show();
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  [line, ...choices].forEach((one) => one.addEventListener("input", show));
}
show();
seek();
