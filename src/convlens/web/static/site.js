"use strict";
// Draws figures, follows links without loading the page anew, and asks for what is new of a run.
// The page works as plain links and forms; the report uses the same file without a server.
(() => {
  const PLAY_MS = 900; // so long an epoch is shown while playing
  const POLL_MS = 2000, SLOW_POLL_MS = 3000; // between two polls; of a run that takes long to draw
  const NEAR = "700px"; // figures this far outside the window are drawn
  const KEEP = 24; // of more figures, those far away are taken down again
  const HIDDEN = "[hidden], details:not([open])"; // what is in these is not drawn

  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = Object.entries(JSON.parse(document.getElementById("dark-colours").textContent));
  const wait = (ms) => new Promise((resume) => setTimeout(resume, ms));
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  function stored(key, value) {
    try {
      if (value === undefined) return localStorage.getItem(`convlens-${key}`);
      localStorage.setItem(`convlens-${key}`, value);
    } catch { /* kept for this page only */ }
    return value ?? null;
  }

  // ---- light and dark ----

  function setTheme() {
    const theme = stored("theme") ?? "auto";
    root.dataset.theme = theme === "auto" ? (systemDark.matches ? "dark" : "light") : theme;
    const select = document.getElementById("theme");
    if (select) select.value = theme;
  }

  function recoloured(json) {
    if (innerWidth < 640) json = json.replaceAll(/"min_border_(left|right)":([4-9]\d|\d{3,})/g, '"min_border_$1":36'); // a phone
    if (root.dataset.theme !== "dark") return json;
    return dark.reduce((text, [light, other]) => text.replaceAll(light, other), json);
  }

  // ---- figures: their JSON is a Bokeh item ----

  const drawn = new Map(); // element -> { doc, item, json, state }
  const begun = new WeakSet(); // elements whose first drawing has been asked for
  let queue = Promise.resolve(); // one after the other: so the newest of Bokeh's documents is known

  async function jsonOf(element) {
    if (element.dataset.item) return document.getElementById(element.dataset.item).textContent;
    const response = await fetch(element.dataset.src);
    if (!response.ok) throw new Error(sentence(new DOMParser().parseFromString(await response.text(), "text/html")));
    return response.text();
  }

  // What a page says that is not the one asked for; the guard sends its sentence alone.
  const sentence = (page) => (page.querySelector("main p:not(.state)") ?? page.body).textContent.trim();

  function draw(element) {
    begun.add(element);
    queue = queue.then(() => drawNow(element)).catch((error) => {
      if (drawn.has(element)) erase(element);
      element.textContent = error.message;
      element.classList.add("failed");
    });
    return queue;
  }

  async function drawNow(element) {
    if (!element.isConnected || element.closest(HIDDEN)) return;
    const state = [element.dataset.src, root.dataset.mark, root.dataset.theme].join(" ");
    const old = drawn.get(element);
    if (old?.state === state) return; // of an address and a version there is one drawing
    const json = recoloured(await jsonOf(element));
    const item = JSON.parse(json);
    if (old && (old.json === json || await changed(old, item))) {
      Object.assign(old, { json, state });
      return;
    }
    if (old) erase(element);
    element.classList.remove("failed");
    await Bokeh.embed.embed_item(item, element.id);
    const doc = Bokeh.documents.at(-1);
    drawn.set(element, { doc, item, json, state });
    listen(element, doc);
    if (drawn.size > KEEP) erase(farthest());
  }

  function erase(element) {
    const { doc } = drawn.get(element);
    drawn.delete(element);
    begun.delete(element);
    doc.clear();
    Bokeh.documents.splice(Bokeh.documents.indexOf(doc), 1);
    element.replaceChildren();
  }

  function farthest() {
    const distance = (e) => Math.abs(e.getBoundingClientRect().top - innerHeight / 2);
    return [...drawn.keys()].reduce((a, b) => (distance(a) > distance(b) ? a : b));
  }

  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting && !drawn.has(target) && !begun.has(target)) draw(target);
  }, { rootMargin: `${NEAR} 0px` });

  // ---- a figure that has grown: what differs between two items is set in the models drawn ----

  const MAY_CHANGE = {
    ColumnDataSource: ["data"], Range1d: ["start", "end", "bounds", "reset_start", "reset_end"],
    FixedTicker: ["ticks"], LinearAxis: ["axis_label", "major_label_overrides"],
    LogAxis: ["axis_label", "major_label_overrides"], Title: ["text"], Label: ["text", "visible"],
    LinearColorMapper: ["low", "high"], LogColorMapper: ["low", "high"],
    Span: ["location", "visible"], Scatter: ["visible"], GlyphRenderer: ["visible"],
    BoxAnnotation: ["top", "bottom", "left", "right", "visible"],
    ColorBar: ["title", "major_label_overrides"], HoverTool: ["tooltips"], Plot: ["height"],
  };

  const TYPES = { float32: Float32Array, float64: Float64Array, int32: Int32Array, uint32: Uint32Array,
    int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array };

  // A value as Bokeh writes it in JSON; its arrays are compressed.
  async function decode(value) {
    if (Array.isArray(value)) return Promise.all(value.map(decode));
    if (value === null || typeof value !== "object") return value;
    if (value.type === "number") return { nan: NaN, "+inf": Infinity, "-inf": -Infinity }[value.value];
    if (value.type === "map") return new Map(await Promise.all((value.entries ?? []).map(decode)));
    if (value.type !== "ndarray") return value;
    const packed = new Blob([Uint8Array.from(atob(value.array.data), (c) => c.charCodeAt(0))]);
    const bytes = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    return Object.assign(new TYPES[value.dtype](bytes), { shape: value.shape });
  }

  // Lists what to set: [id, attribute, value]. False if the figures are not of the same models.
  function compare(a, b, changes) {
    if (a === null || b === null || typeof a !== "object" || typeof b !== "object") return a === b;
    if (Array.isArray(a) || Array.isArray(b)) {
      return Array.isArray(a) && Array.isArray(b) && a.length === b.length
        && a.every((one, i) => compare(one, b[i], changes));
    }
    if (a.type === "object" && a.name !== b.name) return false;
    const may = (a.type === "object" && MAY_CHANGE[a.name]) || [];
    const left = a.attributes ?? a, right = b.attributes ?? b;
    const keys = new Set([...Object.keys(left), ...Object.keys(right)]);
    for (const key of keys) {
      if (key === "id") continue; // ids are given anew
      if (may.includes(key) && key in left && key in right) {
        if (JSON.stringify(left[key]) !== JSON.stringify(right[key])) changes.push([a.id, key, right[key]]);
      } else if (!(key in left) || !(key in right) || !compare(left[key], right[key], changes)) return false;
    }
    return true;
  }

  async function changed(old, item) {
    const changes = [];
    if (!compare(old.item.doc.roots, item.doc.roots, changes)) return false;
    const sets = [];
    for (const [id, key, raw] of changes) {
      const model = old.doc.get_model_by_id(id);
      const value = await decode(raw);
      if (!model || value?.type) return false; // a kind of value that is not decoded
      const data = key === "data" ? withImages(model.data, value) : value;
      if (data === null) return false;
      sets.push([model, key, data]);
    }
    for (const [model, key, value] of sets) {
      const zoomed = model.name === "steps" && wanted !== null;
      if (!(zoomed && (key === "start" || key === "end"))) model.setv({ [key]: value });
    }
    if (wanted) fit(old.doc);
    old.item = withIds(item, old.item); // the drawn models keep their ids
    return true;
  }

  // The new item with the ids of the old one, which has the same models in the same order.
  function withIds(item, old) {
    const walk = (a, b) => {
      if (a === null || typeof a !== "object") return;
      if (Array.isArray(a)) a.forEach((one, i) => walk(one, b?.[i]));
      else {
        if (typeof a.id === "string" && typeof b?.id === "string") a.id = b.id;
        for (const key of Object.keys(a)) if (key !== "id") walk(a[key], b?.[key]);
      }
    };
    walk(item.doc.roots, old.doc.roots);
    return item;
  }

  // Images are filled in place: Bokeh has classes of its own for arrays of two axes.
  function withImages(old, data) {
    const before = (name) => (old instanceof Map ? old.get(name) : old[name]);
    const after = {};
    for (const [name, column] of data) {
      const was = before(name);
      after[name] = column;
      if (!Array.isArray(column) || !column.some((one) => one?.shape?.length === 2)) continue;
      if (!was || was.length !== column.length) return null;
      for (let i = 0; i < column.length; i++) {
        if (was[i].shape?.join() !== column[i].shape.join()) return null;
      }
      column.forEach((one, i) => was[i].set(one));
      after[name] = [...was];
    }
    return after;
  }

  // ---- linked time axes: a zoom in one figure is one in all, and stands in the address ----

  let wanted = null; // { start, end } of what is zoomed, null for everything
  let linking = false;

  function listen(element, doc) {
    for (const range of doc.get_models_by_name?.("steps") ?? [doc.get_model_by_name("steps")]) {
      if (!range) continue;
      if (wanted) range.setv(wanted);
      const follow = () => {
        if (linking) return;
        const [low, high] = range.bounds ?? [range.start, range.end];
        zoom(range.start <= low && range.end >= high ? null : { start: range.start, end: range.end });
      };
      range.properties.start.change.connect(follow);
      range.properties.end.change.connect(follow);
    }
    if (wanted) fit(doc);
    const links = doc.get_model_by_name("links");
    for (const plot of [doc.get_model_by_name("linked"), doc.get_model_by_name("linked-names")]) {
      if (links && plot) plot.on_event("tap", ({ y }) => {
        const href = (links.data.get?.("href") ?? links.data.href)[Math.round(y)];
        if (href) follow(href);
      });
    }
  }

  // The y axis of plots tagged "fit" spans what is drawn of the zoomed steps, also between two points:
  // Bokeh fits a logarithmic axis to all steps.
  function fit(doc) {
    for (const plot of doc.roots().flatMap((one) => one.children ?? [one])) {
      if (!plot.tags?.includes("fit")) continue;
      const log = plot.y_scale.type.includes("Log");
      const { start, end } = wanted ?? { start: -Infinity, end: Infinity };
      let low = Infinity, high = -Infinity;
      for (const { data } of plot.renderers.map((one) => one.data_source)) {
        const [x, y] = ["x", "y"].map((name) => data.get?.(name) ?? data[name] ?? []);
        for (let i = 0; i < x.length; i++) {
          const j = Math.min(i + 1, x.length - 1);
          for (const at of [x[i], start, end]) {
            if ((at - x[i]) * (at - x[j]) > 0) continue; // not on the way to the next point
            const value = x[j] === x[i] ? y[i] : y[i] + ((at - x[i]) / (x[j] - x[i])) * (y[j] - y[i]);
            if (at < start || at > end || !Number.isFinite(value) || (log && value <= 0)) continue;
            low = Math.min(low, value);
            high = Math.max(high, value);
          }
        }
      }
      if (low > high) continue;
      const [a, b] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
      const room = 0.06 * (b - a) || (log ? 0.1 : 0.1 * Math.abs(a)) || 1;
      const [from, to] = [a - room, b + room].map((value) => (log ? 10 ** value : value));
      plot.y_range.setv({ start: from, end: to });
    }
  }

  function zoom(steps) {
    wanted = steps;
    linking = true;
    for (const { doc } of drawn.values()) {
      const range = doc.get_model_by_name("steps");
      if (range?.bounds) range.setv(steps ?? { start: range.bounds[0], end: range.bounds[1] });
      queueMicrotask(() => fit(doc)); // Bokeh sets the y axis after the steps that were dragged
    }
    linking = false;
    for (const button of all("[data-show-all]")) button.hidden = steps === null;
    if (root.dataset.server === undefined) return;
    const url = new URL(location.href);
    if (steps) url.searchParams.set("zoom", `${Math.round(steps.start)}_${Math.round(steps.end)}`);
    else url.searchParams.delete("zoom");
    history.replaceState(history.state, "", url);
  }

  function zoomOfAddress() {
    const [start, end] = (new URL(location.href).searchParams.get("zoom") ?? "").split("_").map(Number);
    return end > start ? { start, end } : null;
  }

  // ---- another address of the same page: its parts are put in the places of those that differ ----

  const sent = new WeakMap(); // part -> its HTML as it came, before figures were drawn in it
  let asked = 0;

  function begin(within) {
    for (const part of all("[data-part]", within)) sent.set(part, part.innerHTML);
    for (const element of all(".figure", within)) near.observe(element);
    for (const fold of all("details[data-fold]", within)) {
      const kept = stored(`fold-${fold.dataset.fold}`);
      if (kept !== null) fold.open = kept === "open";
    }
    for (const button of all("[data-show-all]")) button.hidden = wanted === null;
  }

  function put(part, html) {
    if (sent.get(part) === html) return;
    const focused = part.contains(document.activeElement) ? document.activeElement.dataset.key ?? document.activeElement.id : null;
    const scrolled = all("[data-scroll]", part).map((e) => [e.dataset.scroll, e.scrollLeft, e.scrollTop]);
    const ticked = all("input[name]:checked", part).map((element) => element.value); // to compare runs
    const old = new Map(all(".figure", part).map((element) => [element.id, element]));
    const fresh = document.createElement("div");
    fresh.innerHTML = html;
    for (const element of all(".figure", fresh)) { // a figure stays, and is asked for anew
      const kept = old.get(element.id);
      if (!kept) continue;
      for (const name of ["data-src", "aria-label", "style"]) kept.setAttribute(name, element.getAttribute(name) ?? "");
      element.replaceWith(kept);
      old.delete(element.id);
    }
    for (const element of old.values()) if (drawn.has(element)) erase(element);
    part.replaceChildren(...fresh.childNodes);
    sent.set(part, html);
    for (const element of all("input[name]", part)) element.checked ||= ticked.includes(element.value);
    for (const element of all(".figure", part)) near.observe(element);
    for (const fold of all("details[data-fold]", part)) {
      const kept = stored(`fold-${fold.dataset.fold}`);
      if (kept !== null) fold.open = kept === "open";
    }
    for (const button of all("[data-show-all]", part)) button.hidden = wanted === null;
    for (const [key, left, top] of scrolled) part.querySelector(`[data-scroll="${CSS.escape(key)}"]`)?.scrollTo(left, top);
    if (focused) (part.querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? document.getElementById(focused))?.focus();
  }

  async function show(url, polled = false) {
    const mine = polled ? asked : ++asked;
    root.dataset.drawn = "no";
    const response = await fetch(url);
    if (mine !== asked) return false; // something else was clicked meanwhile
    if (response.status === 204) { // nothing new
      root.dataset.drawn = "all";
      trouble("");
      return true;
    }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (mine !== asked) return false;
    const parts = new Map(all("[data-part]", page).map((part) => [part.dataset.part, part]));
    const here = all("[data-part]");
    if (!response.ok || here.length !== parts.size || here.some((part) => !parts.has(part.dataset.part))) {
      if (response.ok) location.assign(url);
      else trouble(sentence(page));
      return false;
    }
    for (const part of here) put(part, parts.get(part.dataset.part).innerHTML);
    document.title = page.title;
    root.dataset.mark = page.documentElement.dataset.mark ?? "";
    trouble("");
    await redraw(polled);
    return true;
  }

  const whenSeen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      whenSeen.unobserve(target);
      draw(target);
    }
  });

  // The figures that are drawn, of the newest state; those in the window first. While a run grows,
  // the others wait until they are scrolled to.
  async function redraw(seenOnly = false) {
    const mine = asked;
    const top = (element) => Math.abs(element.getBoundingClientRect().top);
    for (const element of [...drawn.keys()].sort((a, b) => top(a) - top(b))) {
      const { top: above, bottom } = element.getBoundingClientRect();
      if (!element.isConnected) erase(element);
      else if (seenOnly && (above > innerHeight || bottom < 0)) whenSeen.observe(element);
      else draw(element);
    }
    await queue;
    if (mine === asked) root.dataset.drawn = "all";
  }

  function samePage(url) {
    return root.dataset.server !== undefined && url.origin === location.origin && url.pathname === location.pathname;
  }

  let following = 0;
  async function follow(href) {
    const url = new URL(href, location.href);
    if (!samePage(url)) {
      location.assign(url);
      return;
    }
    const keep = new URL(location.href).searchParams.get("zoom");
    if (keep) url.searchParams.set("zoom", keep);
    const at = url.hash;
    url.hash = "";
    history.pushState(null, "", url);
    following += 1; // meanwhile nothing is polled: "nothing new" would take the place of the answer
    await show(url).finally(() => { following -= 1; });
    if (at) document.getElementById(at.slice(1))?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  window.addEventListener("popstate", () => {
    if (root.dataset.server === undefined) return;
    wanted = zoomOfAddress();
    show(location.href).then(() => zoom(wanted));
  });

  // ---- what is new ----

  function trouble(words) {
    const place = document.getElementById("trouble");
    if (!place || place.textContent === words) return;
    place.textContent = words;
    place.hidden = words === "";
  }

  // "3 s ago" goes on counting while nothing new comes.
  const since = new WeakMap();
  function count() {
    for (const element of all("[data-ago]")) {
      if (!since.has(element)) since.set(element, performance.now() - 1000 * element.dataset.ago);
      const s = Math.round((performance.now() - since.get(element)) / 1000);
      element.textContent = s < 120 ? `${s} s` : `${Math.round(s / 60)} min`;
    }
  }

  async function poll() {
    for (let took = 0; ;) {
      count();
      await wait(Math.min(SLOW_POLL_MS, Math.max(POLL_MS, 10 * took)));
      if (document.hidden || !root.dataset.mark || following) continue;
      const url = new URL(location.href);
      url.searchParams.set("after", root.dataset.mark);
      const begun = performance.now();
      try {
        await show(url, true);
        took = performance.now() - begun;
      } catch {
        trouble("The connection to convlens view is lost. As soon as it answers again, this page goes on.");
      }
    }
  }

  // ---- clicks, controls, keys ----

  const isField = (element) => element.matches?.("input, select, textarea");

  // The address of the cell under the pointer; with the keyboard, of the one chosen last.
  function cell(element, event) {
    const [rows, columns] = element.dataset.grid.split(",").map(Number);
    let row = Number(element.dataset.row || Math.floor(rows / 2));
    let col = Number(element.dataset.col || Math.floor(columns / 2));
    if (event.detail > 0) {
      const box = element.getBoundingClientRect();
      const at = (part, whole, n) => Math.min(n - 1, Math.max(0, Math.floor((part / whole) * n)));
      row = at(event.clientY - box.top, box.height, rows);
      col = at(event.clientX - box.left, box.width, columns);
    }
    return { row, col, rows, columns };
  }

  function toCell(element, { row, col }) {
    follow(element.dataset.to.replace(/ROW(?!.*ROW)/, row).replace(/COL(?!.*COL)/, col)); // the last: a layer may be named so
  }

  document.addEventListener("click", (event) => {
    const keys = document.getElementById("keys");
    if (keys?.open && !keys.contains(event.target)) keys.open = false;
    const grid = event.target.closest("[data-grid]");
    if (grid) {
      toCell(grid, cell(grid, event));
      return;
    }
    if (event.target.closest("[data-show-all]")) zoom(null);
    if (event.target.closest("[data-play]")) play();
    const link = event.target.closest("a[href]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || link.target || link.hasAttribute("download")) return;
    if (samePage(new URL(link.href))) {
      event.preventDefault();
      follow(link.href);
    }
  });

  document.addEventListener("dblclick", (event) => {
    if (event.target.closest(".figure")) zoom(null);
  });

  // A control with data-set="NAME" sets that part of the address.
  function set(element) {
    const url = new URL(location.href);
    const value = element.type === "checkbox" ? (element.checked ? element.value : element.dataset.off ?? "") : element.value;
    if (value === "") url.searchParams.delete(element.dataset.set);
    else url.searchParams.set(element.dataset.set, value);
    follow(url.href);
  }

  document.addEventListener("change", (event) => {
    if (event.target.id === "theme") {
      stored("theme", event.target.value);
      setTheme();
      redraw();
    } else if (event.target.dataset.set) set(event.target);
    else if (event.target.dataset.go !== undefined) follow(event.target.value);
    else if (event.target.dataset.choice !== undefined) choose(event.target);
  });
  let typed = 0;
  document.addEventListener("input", (event) => {
    if (!event.target.dataset.set || !["range", "search"].includes(event.target.type)) return;
    clearTimeout(typed);
    typed = setTimeout(() => set(event.target), 150);
  });
  document.addEventListener("toggle", (event) => {
    const { fold } = event.target.dataset;
    if (fold) stored(`fold-${fold}`, event.target.open ? "open" : "closed");
    showFigures(event.target);
  }, true);

  // Draws the figures in what has been shown, erases those in what has been hidden.
  function showFigures(place) {
    for (const element of all(".figure", place)) {
      if (!element.closest(HIDDEN)) draw(element);
      else if (drawn.has(element)) erase(element);
    }
  }

  // A link to a folded place unfolds it.
  function unfold() {
    const place = document.querySelector(":target");
    if (place?.tagName === "DETAILS") place.open = true;
  }
  addEventListener("hashchange", unfold);

  // One of several figures of a report: <select data-choice> has the ids of what it shows.
  function choose(select) {
    for (const { value } of select.options) {
      const place = document.getElementById(value);
      place.hidden = value !== select.value;
      showFigures(place);
    }
  }

  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isField(event.target)) return;
    const keys = document.getElementById("keys");
    const grid = event.target.closest?.("[data-grid]");
    if (grid && event.key in ARROWS) {
      const { row, col, rows, columns } = cell(grid, event);
      const [down, right] = ARROWS[event.key];
      event.preventDefault();
      const to = { row: Math.min(rows - 1, Math.max(0, row + down)), col: Math.min(columns - 1, Math.max(0, col + right)) };
      Object.assign(grid.dataset, to);
      toCell(grid, to);
    } else if (event.key === "Escape" && keys?.open) keys.open = false;
    else if (event.key === "?" && keys) keys.open = !keys.open;
    else if (!(event.target.closest?.("[data-scroll]") && event.key in ARROWS)) {
      if (event.key === " " && event.target.closest?.("a, button, summary")) return;
      const target = document.querySelector(`[data-hotkey~="${CSS.escape(event.key === " " ? "Space" : event.key)}"]`);
      if (!target) return;
      event.preventDefault();
      target.click();
    }
  });

  // ---- playing through the kept epochs ----

  let playing = false;
  async function play() {
    playing = !playing;
    const mark = () => {
      for (const button of all("[data-play]")) button.setAttribute("aria-pressed", playing);
      root.dataset.playing = playing;
    };
    mark();
    const first = document.querySelector("[data-first-epoch]");
    if (playing && !document.querySelector("[data-next-epoch]") && first) await follow(first.href);
    while (playing) {
      mark();
      const next = document.querySelector("[data-next-epoch]");
      if (!next) break;
      const [done] = await Promise.all([follow(next.href), wait(PLAY_MS)]);
      void done;
    }
    playing = false;
    mark();
  }

  // ---- on paper: figures as still pictures, folds open ----

  window.addEventListener("beforeprint", () => {
    for (const fold of all("details:not([open], [data-unprinted])")) Object.assign(fold, { open: true }).dataset.wasFolded = "";
    for (const [element, { doc }] of drawn) {
      const still = Bokeh.index.find_one(doc.roots()[0]).export("auto").canvas;
      still.className = "still";
      element.after(still);
    }
  });
  window.addEventListener("afterprint", () => {
    for (const still of all("canvas.still")) still.remove();
    for (const fold of all("details[data-was-folded]")) {
      fold.open = false;
      delete fold.dataset.wasFolded;
    }
  });

  // ---- begin ----

  async function start() {
    if (!window.Bokeh) await new Promise((resume) => document.getElementById("bokeh").addEventListener("load", resume));
    wanted = root.dataset.server === undefined ? null : zoomOfAddress();
    for (const element of all(".figure")) {
      if (element.getBoundingClientRect().top < innerHeight) draw(element);
    }
    begin(document);
    unfold();
    await queue;
    root.dataset.drawn = "first";
    const shown = all(".figure").filter((element) => !element.closest(HIDDEN));
    for (const element of shown.length > KEEP ? [] : shown) {
      await new Promise((resume) => requestIdleCallback(resume, { timeout: 500 }));
      if (!drawn.has(element)) await draw(element);
    }
    await queue;
    root.dataset.drawn = "all"; // for whoever drives this page by a program
    if (root.dataset.server !== undefined) poll();
  }

  setTheme();
  systemDark.addEventListener("change", () => {
    setTheme();
    redraw();
  });
  start();
})();
