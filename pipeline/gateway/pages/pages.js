"use strict";
// Everything works without this: it keeps numbers new, and gives the reader keys.

const jobs = document.body.dataset.live;

function show(job) {
  for (const place of document.querySelectorAll(`[data-job="${job.job_id}"]`)) {
    for (const [name, text] of Object.entries(job.shown)) {
      for (const field of place.querySelectorAll(`[data-field="${name}"]`)) {
        if (field.textContent !== text) field.textContent = text;
      }
    }
    const bar = place.querySelector("progress");
    if (bar) {
      bar.max = Math.max(1, job.samples_total);
      bar.value = job.done;
    }
  }
}

function hasChanged(job) {
  const place = document.querySelector(`[data-job="${job.job_id}"]`);
  return place !== null && place.dataset.state !== job.state;
}

// What a job's end changes beside its numbers is the server's to say.
async function renew() {
  const answer = await fetch(location.href);
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...document.querySelectorAll("main details")].map((one) => one.open);
  document.querySelector("main").replaceWith(page.querySelector("main"));
  const details = document.querySelectorAll("main details");
  if (details.length === open.length) details.forEach((one, index) => { one.open = open[index]; });
  if (page.body.dataset.live === undefined) source.close();
}

let source = null;
if (jobs && window.EventSource) {
  source = new EventSource(`/events?jobs=${jobs}`);
  source.addEventListener("progress", (event) => {
    const told = JSON.parse(event.data).jobs;
    told.forEach(show);
    if (told.some(hasChanged)) renew();
  });
  window.addEventListener("pagehide", () => source.close());
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target instanceof Element && event.target.closest("input, textarea, select, .scroll")) return;
  if (event.key === "ArrowLeft") document.querySelector("a[rel=prev]")?.click();
  if (event.key === "ArrowRight") document.querySelector("a[rel=next]")?.click();
  if (event.key === "d") {
    const folded = [...document.querySelectorAll("details.discarded")];
    const open = folded.some((one) => !one.open);
    folded.forEach((one) => { one.open = open; });
  }
});
