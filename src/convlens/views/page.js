// Draws the figures: those above at once, the layers' one after the other or when scrolled to.
// Each figure is a Bokeh document of its own, so that a long page opens at once; their step axes
// are kept together here.
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const ranges = [];
  const documents = [];
  let linking = false;

  function paint(doc) {
    const [text, line] = dark.matches ? ["#c3cad2", "#3a4149"] : ["#414b55", "#dde1e6"];
    const page = dark.matches ? "#14171b" : "#ffffff";
    for (const model of doc._all_models.values()) {
      for (const name of ["axis_label_text_color", "major_label_text_color", "text_color",
        "title_text_color", "label_text_color"]) {
        if (name in model.properties) model[name] = text;
      }
      for (const name of ["axis_line_color", "major_tick_line_color", "grid_line_color"]) {
        if (name in model.properties) model[name] = line;
      }
      if ("minor_tick_line_color" in model.properties) model.minor_tick_line_color = null;
      if ("click_policy" in model.properties) model.background_fill_color = page;
      if (model.type === "ColorBar") model.background_fill_alpha = 0;
    }
  }

  function link(doc) {
    for (const model of doc._all_models.values()) {
      if (model.type !== "Range1d" || model.name !== "steps") continue;
      if (ranges.length) model.setv({ start: ranges[0].start, end: ranges[0].end });
      ranges.push(model);
      model.change.connect(() => {
        if (linking) return;
        linking = true;
        for (const other of ranges) {
          if (other !== model) other.setv({ start: model.start, end: model.end });
        }
        linking = false;
      });
    }
  }

  async function draw(place) {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "begun";
    const item = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    const views = await Bokeh.embed.embed_item(item, place.id);
    const doc = views.roots[0].model.document;
    documents.push(doc);
    link(doc);
    paint(doc);
    place.dataset.drawn = "done";
  }

  const places = [...document.querySelectorAll("[data-figure]")];
  const IN_BACKGROUND = 100;
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "800px" });
  for (const place of places) near.observe(place);

  const queue = places.slice(0, IN_BACKGROUND);
  async function next() {
    const place = queue.shift();
    if (!place) {
      document.documentElement.dataset.ready = "yes";
      return;
    }
    await draw(place);
    setTimeout(next, 10);
  }
  window.addEventListener("load", () => setTimeout(next, 50));
  window.addEventListener("beforeprint", () => places.forEach(draw));
  dark.addEventListener("change", () => documents.forEach(paint));
})();
