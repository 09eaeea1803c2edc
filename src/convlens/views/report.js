"use strict";
// Draws each figure when it comes near the window, links their time axes, follows the page between
// light and dark, and makes still pictures of the figures for paper. The figures lie as JSON in
// script elements of this page.
(() => {
  const NEAR = "900px";
  // Of so many figures all are drawn in idle time; of more, layers far away are taken down again.
  const KEEP = 24;

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colours = Object.entries(JSON.parse(content("dark-colours")));
  const places = [...document.querySelectorAll(".plot")];
  const button = document.getElementById("show-all");
  const drawn = new Map(); // place -> its Bokeh document
  let wanted = null; // the steps that all figures show, null for all of them
  let linking = false;
  let queue = Promise.resolve();

  function content(id) {
    return document.getElementById(id).textContent;
  }

  // What has been done stands in the page's root, for whoever drives this page by a program.
  function tell(what, state) {
    document.documentElement.dataset[what] = state;
  }

  function item(place) {
    let json = content(place.dataset.item);
    if (dark.matches) {
      for (const [light, other] of colours) json = json.replaceAll(light, other);
    }
    return JSON.parse(json);
  }

  // One after the other: so the newest of Bokeh's documents is known to be this figure's.
  function draw(place) {
    queue = queue.then(() => drawNow(place));
    return queue;
  }

  // What is not chosen to be seen has no width to be drawn in.
  function isHidden(place) {
    return place.closest("[hidden]") !== null;
  }

  async function drawNow(place) {
    if (drawn.has(place) || isHidden(place)) return;
    try {
      await Bokeh.embed.embed_item(item(place), place.id);
    } catch (error) {
      place.textContent = `This figure could not be drawn: ${error.message}`;
      console.error(error);
      return;
    }
    const doc = Bokeh.documents.at(-1);
    drawn.set(place, doc);
    if (isHidden(place)) { // since the drawing began
      erase(place);
      return;
    }
    const range = doc.get_model_by_name("steps");
    if (wanted) range.setv(wanted);
    range.properties.start.change.connect(() => follow(range));
    range.properties.end.change.connect(() => follow(range));
    if (drawn.size > KEEP) erase(farthest());
  }

  async function redraw() {
    const again = [...drawn.keys()];
    for (const place of again) erase(place);
    for (const place of again) await drawNow(place);
    tell("scheme", dark.matches ? "dark" : "light");
  }

  function erase(place) {
    const doc = drawn.get(place);
    drawn.delete(place);
    doc.clear();
    const at = Bokeh.documents.indexOf(doc);
    if (at >= 0) Bokeh.documents.splice(at, 1);
    place.replaceChildren();
  }

  function farthest() {
    const middle = window.innerHeight / 2;
    const distance = (place) => Math.abs(place.getBoundingClientRect().top - middle);
    const layers = [...drawn.keys()].filter((place) => place.closest(".layer"));
    return layers.reduce((a, b) => (distance(a) > distance(b) ? a : b));
  }

  function follow(range) {
    if (linking) return;
    show(range.start === range.reset_start && range.end === range.reset_end
      ? null : { start: range.start, end: range.end });
  }

  function show(steps) {
    wanted = steps;
    linking = true;
    for (const doc of drawn.values()) {
      const range = doc.get_model_by_name("steps");
      range.setv(steps ?? { start: range.bounds[0], end: range.bounds[1] });
    }
    linking = false;
    button.hidden = steps === null;
  }

  function offerLayers() {
    const titles = [...document.querySelectorAll(".layer > h3")];
    if (titles.length < 2) return;
    const select = document.createElement("select");
    select.setAttribute("aria-label", "Go to a layer");
    select.append(new Option("Go to layer …", ""));
    for (const title of titles) select.append(new Option(title.textContent, title.parentNode.id));
    select.addEventListener("change", () => {
      if (select.value) window.location.hash = select.value;
      select.value = "";
    });
    button.parentNode.prepend(select);
  }

  // One of several figures at a time: what the matrix of all layers is coloured by.
  function offerQuantities() {
    const select = document.getElementById("quantity");
    select?.addEventListener("change", () => {
      for (const choice of document.querySelectorAll(".choice")) {
        choice.hidden = choice.id !== select.value;
        const place = choice.querySelector(".plot");
        if (choice.hidden && drawn.has(place)) erase(place);
        if (!choice.hidden) draw(place);
      }
    });
  }

  // Paper is narrower than the window, and nothing can be drawn anew while a page is printed.
  function makeStill() {
    for (const fold of document.querySelectorAll("details:not([open])")) {
      fold.open = true;
      fold.dataset.folded = "";
    }
    for (const [place, doc] of drawn) {
      const still = Bokeh.index.find_one(doc.roots()[0]).export("auto").canvas;
      still.className = "still";
      place.after(still);
    }
  }

  function removeStill() {
    for (const still of document.querySelectorAll("canvas.still")) still.remove();
    for (const fold of document.querySelectorAll("details[data-folded]")) {
      fold.open = false;
      delete fold.dataset.folded;
    }
  }

  function watch() {
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
    }, { rootMargin: `${NEAR} 0px` });
    for (const place of places) observer.observe(place);
  }

  async function drawTheRest() {
    if (places.filter((place) => !isHidden(place)).length > KEEP) return;
    for (const place of places) {
      await new Promise((resume) => window.requestIdleCallback(resume, { timeout: 500 }));
      await draw(place);
    }
  }

  async function begin() {
    const visible = places.filter(
      (p) => !isHidden(p) && p.getBoundingClientRect().top < window.innerHeight,
    );
    for (const place of visible) await draw(place);
    tell("drawn", "first");
    watch();
    await drawTheRest();
    tell("drawn", "all");
  }

  button.addEventListener("click", () => show(null));
  document.addEventListener("dblclick", (event) => {
    if (event.target.closest(".plot")) show(null);
  });
  dark.addEventListener("change", () => {
    queue = queue.then(redraw);
  });
  window.addEventListener("beforeprint", makeStill);
  window.addEventListener("afterprint", removeStill);
  offerLayers();
  offerQuantities();
  begin();
})();
