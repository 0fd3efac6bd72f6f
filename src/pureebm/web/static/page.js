"use strict";

// Parts of pages come from the server as HTML, made by the same templates as the pages.
const WAIT_MS = 350, POLL_MS = 700, FRAME_MS = 90;

async function part(address, signal) {
  const answer = await fetch(address, { headers: { "X-Part": "1" }, signal });
  return answer.text();
}

async function fill(place, address, signal) {
  place.setAttribute("aria-busy", "true");
  try {
    place.innerHTML = await part(address, signal);
    place.querySelectorAll("[data-viewer]").forEach(viewer);
  } catch (error) {
    if (error.name === "AbortError") return;
    place.innerHTML = '<p class="warn" role="alert">The server does not answer. Is it still running?</p>';
  }
  place.removeAttribute("aria-busy");
}

// A form whose part of the page follows its fields.
function live(form) {
  const place = document.getElementById(form.dataset.into);
  let timer, running;
  function update() {
    if (!form.checkValidity()) return;
    const fields = [...new FormData(form)].filter(([name, value]) => value !== "" && !["limit", "on_error"].includes(name));
    const query = new URLSearchParams(fields);
    if (running) running.abort();
    running = new AbortController();
    fill(place, form.dataset.live + "?" + query, running.signal);
    if ("keep" in form.dataset) history.replaceState(null, "", form.getAttribute("action") + "?" + query);
  }
  form.addEventListener("input", (event) => {
    if (["limit", "on_error"].includes(event.target.name)) return;
    clearTimeout(timer);
    timer = setTimeout(update, WAIT_MS);
  });
  if ("keep" in form.dataset) form.addEventListener("submit", (event) => { event.preventDefault(); update(); });
  update();
}

// One image: wipe between before and after, difference, steps.
function viewer(root) {
  const find = (name) => root.querySelector(`[data-${name}]`);
  const places = root.dataset.places.split(" ").map(Number), names = root.dataset.names.split(",");
  const energies = root.dataset.energies.trim().split(" ");
  const points = root.dataset.points.split(" ").map((pair) => pair.split(","));
  const [after, wipe, step, gain, mark, play] = ["after", "wipe", "step", "gain", "mark", "play"].map(find);
  const last = places.length - 1;
  const frame = (k) => `/image/frame.png?${root.dataset.viewer}&frame=${k}`;
  let loaded = [], timer = null, settling = null;

  function drawWipe() {
    after.style.clipPath = `inset(0 0 0 ${wipe.value}%)`;
    find("edge").style.left = `${wipe.value}%`;
  }
  function drawDifference() {
    find("difference").src = `/image/difference.png?${root.dataset.viewer}&frame=${step.value}&gain=${gain.value}`;
  }
  function drawStep() {
    const at = places[step.value];
    after.src = frame(step.value);
    find("told").textContent = `${names[step.value]}, energy ${energies[at]}`;
    step.setAttribute("aria-valuetext", names[step.value]);
    if (points[at]) { mark.setAttribute("cx", points[at][0]); mark.setAttribute("cy", points[at][1]); }
    clearTimeout(settling);
    settling = setTimeout(drawDifference, timer ? FRAME_MS : 30);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    drawDifference();
  }
  async function run() {
    play.textContent = "Stop";
    if (!loaded.length) {
      loaded = places.map((_, k) => Object.assign(new Image(), { src: frame(k) }));
      await Promise.all(loaded.map((image) => image.decode().catch(() => null)));
    }
    if (Number(step.value) === last) step.value = 0;
    drawStep();
    timer = setInterval(() => {
      if (!root.isConnected || Number(step.value) >= last) return stop();
      step.value = Number(step.value) + 1;
      drawStep();
    }, Math.max(FRAME_MS, 1600 / (last + 1)));
  }
  wipe.addEventListener("input", drawWipe);
  gain.addEventListener("change", drawDifference);
  step.addEventListener("input", () => { if (timer) stop(); drawStep(); });
  play.addEventListener("click", () => (timer ? stop() : run()));
  // These are no settings: their changes must not reach a form around.
  [wipe, gain, step].forEach((field) => field.addEventListener("input", (event) => event.stopPropagation()));
  drawWipe();
  drawStep();
}

const whole = (number) => number.toLocaleString("en-US");

function left(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// A job that waits or runs: its numbers now and again, and the whole page when its state changes.
function poll(section) {
  const bar = section.querySelector("progress"), text = section.querySelector("[data-progress]");
  async function ask() {
    try {
      const answer = await fetch(section.dataset.poll);
      const now = await answer.json();
      if (now.state !== section.dataset.state) return location.reload();
      if (now.total) {
        bar.max = now.total;
        bar.value = now.done;
        const parts = [`${whole(now.done)} of ${whole(now.total)} images`];
        if (now.images_per_second) parts.push(`${now.images_per_second.toPrecision(3)} a second`);
        if (now.eta_seconds) parts.push(`about ${left(now.eta_seconds)} left`);
        if (now.failed) parts.push(`${whole(now.failed)} failed`);
        text.textContent = parts.join(", ");
      }
    } catch (error) {
      text.textContent = "The server does not answer; what the job has done is kept.";
    }
    setTimeout(ask, POLL_MS);
  }
  if (["waiting", "running"].includes(section.dataset.state)) setTimeout(ask, POLL_MS);
}

function upload(form) {
  const status = form.querySelector("[data-status]"), button = form.querySelector("button");
  form.addEventListener("submit", (event) => {
    const [file] = form.elements.file.files;
    if (file.size > Number(form.dataset.upload)) {
      event.preventDefault();
      status.textContent = `${file.name} is too large.`;
      return;
    }
    status.textContent = `Uploading ${file.name}…`;
    button.disabled = true;
  });
  addEventListener("pageshow", () => { button.disabled = false; status.textContent = ""; });
}

document.querySelectorAll("[data-load]").forEach((place) => fill(place, place.dataset.load));
document.querySelectorAll("form[data-live]").forEach(live);
document.querySelectorAll("[data-poll]").forEach(poll);
document.querySelectorAll("form[data-upload]").forEach(upload);
document.querySelectorAll("form[data-ask]").forEach((form) =>
  form.addEventListener("submit", (event) => { if (!confirm(form.dataset.ask)) event.preventDefault(); }));
