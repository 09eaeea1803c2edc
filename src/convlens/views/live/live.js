"use strict";
// Puts the session's panels in their places, sends it what is clicked and pressed, and follows the
// light or dark of the system. The figures are Bokeh's, which keeps them in step with the session.
(async () => {
  const PANEL = "panel-";
  const THEME = "convlens-theme";
  const PLAY_MS = 900; // for so long an epoch is shown, playing through time
  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

  // ---- light and dark: the session draws in the theme that the cookie says ----

  function chosen() {
    try {
      return window.localStorage.getItem(THEME) ?? "auto";
    } catch {
      return "auto";
    }
  }

  function wanted() {
    const theme = chosen();
    return theme === "auto" ? (systemDark.matches ? "dark" : "light") : theme;
  }

  function followTheme() {
    if (root.dataset.theme === wanted()) return false;
    document.cookie = `${THEME}=${wanted()}; path=/; max-age=31536000; samesite=strict`;
    if (!document.cookie.includes(`${THEME}=${wanted()}`)) return false; // no cookies: stay as we are
    window.location.reload();
    return true;
  }

  function offerTheme() {
    const select = document.getElementById("theme");
    if (!select) return;
    select.value = chosen();
    select.addEventListener("change", () => {
      try {
        window.localStorage.setItem(THEME, select.value);
      } catch { /* kept for this page only */ }
      followTheme();
    });
  }

  if (followTheme()) return;
  systemDark.addEventListener("change", followTheme);
  offerTheme();

  // ---- the session ----

  const session = JSON.parse(document.getElementById("session").textContent);
  document.title = session.title;
  if (!window.Bokeh) { // it is loaded beside the page
    await new Promise((resume) => document.getElementById("bokeh").addEventListener("load", resume));
  }
  const views = await Bokeh.embed.embed_items({}, session.items, "/");
  const doc = Bokeh.documents.at(-1);
  if (!doc) {
    root.dataset.drawn = "failed";
    return;
  }

  function onData(source, call) {
    source.properties.data.change.connect(() => call(source.data));
  }

  function first(data, column) {
    return (data instanceof Map ? data.get(column) : data[column])[0];
  }

  function put(name, html) {
    const place = document.getElementById(name);
    if (!place) return;
    const focused = document.activeElement?.closest?.(`#${CSS.escape(name)} [data-key]`)?.dataset.key;
    const scrolled = [...place.querySelectorAll("[data-scroll]")].map((e) => [e.dataset.scroll, e.scrollLeft, e.scrollTop]);
    place.innerHTML = html;
    for (const [key, left, top] of scrolled) {
      const again = place.querySelector(`[data-scroll="${CSS.escape(key)}"]`);
      if (again) again.scrollTo(left, top);
    }
    if (focused !== undefined) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  for (const model of doc.roots()) {
    if (model.name?.startsWith(PANEL)) {
      put(model.name, first(model.data, "html"));
      onData(model, (data) => put(model.name, first(data, "html")));
    }
  }

  const command = doc.get_model_by_name("command");
  let count = 0;
  function send(what) {
    if (root.dataset.drawn === "lost") return;
    count += 1;
    command.data = { json: [JSON.stringify({ ...what, count })] };
  }

  // Each batch's losses go on from where the figures' line ends; where it ends elsewhere, some were
  // missed, and the session is asked to draw the line itself.
  doc.on_message("added", ({ after, steps, losses, figures }) => {
    const line = doc.get_model_by_name("newest-losses");
    const x = first(line.data, "xs"), y = first(line.data, "ys"), name = first(line.data, "name");
    const end = x?.at(-1) ?? -1;
    if (end >= Math.fround(steps.at(-1))) return;
    if (end !== Math.fround(after)) {
      send({ do: "again" });
      return;
    }
    const data = { xs: [Float32Array.of(...x, ...steps)], ys: [Float32Array.of(...y, ...losses)], name: [name] };
    line.setv({ data }, { sync: false }); // the session need not be told what it has said
    root.dataset.steps = steps.at(-1);
    for (const [name, words] of Object.entries(figures)) {
      for (const place of document.querySelectorAll(`#panel-header [data-figure="${CSS.escape(name)}"]`)) {
        place.textContent = words;
      }
    }
  });
  if (doc.get_model_by_name("newest-losses")) send({ do: "again" }); // what was said before

  const state = doc.get_model_by_name("state");
  function follow(data) {
    const values = JSON.parse(first(data, "json"));
    for (const [name, value] of Object.entries(values.root ?? {})) root.dataset[name] = value;
    if (values.address !== undefined) window.history.replaceState(null, "", values.address);
    for (const [name, value] of Object.entries(values.controls ?? {})) {
      const control = document.querySelector(`[data-control="${CSS.escape(name)}"]`);
      if (!control || control === document.activeElement) continue;
      if (control.type === "checkbox") control.checked = value;
      else control.value = value;
    }
  }
  // Playing through time: the next epoch is asked for a while after one came, once it was drawn.
  let timed = null, timer = 0;
  function playOn() {
    const epoch = root.dataset.playing === "true" ? root.dataset.epoch : null;
    if (epoch === timed) return;
    timed = epoch;
    window.clearTimeout(timer);
    if (epoch === null) return;
    timer = window.setTimeout(() => window.requestAnimationFrame(() => {
      if (timed === epoch) send({ do: "play-on" });
    }), PLAY_MS);
  }
  const onState = (data) => { follow(data); playOn(); };
  onState(state.data);
  onData(state, onState);

  // ---- a server that ended, or was out of reach: the session is gone, the address leads back ----

  const LOST = "The connection to the server is lost. As soon as it answers again, this page goes on.";

  async function comeBack() {
    try {
      await window.fetch("/assets/live.css", { cache: "no-store" });
    } catch {
      window.setTimeout(comeBack, 1000);
      return;
    }
    window.location.reload();
  }

  doc.on_event("connection_lost", () => {
    if (root.dataset.drawn === "lost") return;
    root.dataset.drawn = "lost";
    put("panel-trouble", `<p class="state" role="alert">${LOST}</p>`);
    window.setTimeout(comeBack, 1000);
  });

  // ---- commands ----

  document.addEventListener("visibilitychange", () => send({ do: "visible", value: !document.hidden }));

  // The cell of a grid under the pointer; with the keyboard, the one that was chosen last.
  function cell(element, event) {
    const [rows, columns] = element.dataset.grid.split(",").map(Number);
    if (event.clientX === undefined || event.detail === 0) {
      return { row: Number(element.dataset.row ?? Math.floor(rows / 2)),
        col: Number(element.dataset.col ?? Math.floor(columns / 2)) };
    }
    const box = element.getBoundingClientRect();
    const at = (part, whole, n) => Math.min(n - 1, Math.max(0, Math.floor((part / whole) * n)));
    return { row: at(event.clientY - box.top, box.height, rows),
      col: at(event.clientX - box.left, box.width, columns) };
  }

  function words(element) {
    const { do: name, grid, ...rest } = element.dataset;
    return { ...rest, do: name };
  }

  function act(element, event) {
    send({ ...words(element), ...(element.dataset.grid ? cell(element, event) : {}) });
  }

  const isField = (element) => element.matches("input, select, textarea");

  // The list of keys covers the page: a click beside it or Escape puts it away.
  const keys = document.getElementById("keys");
  document.addEventListener("click", (event) => {
    if (keys?.open && !keys.contains(event.target)) keys.open = false;
    const element = event.target.closest("[data-do]");
    if (!element || isField(element)) return;
    event.preventDefault();
    act(element, event);
  });
  const field = (event) => {
    const element = event.target.closest("[data-do]");
    if (!element || !isField(element)) return;
    const value = element.type === "checkbox" ? element.checked : element.value;
    send({ ...words(element), value });
  };
  document.addEventListener("input", (event) => {
    if (event.target.type === "range") field(event);
  });
  document.addEventListener("change", (event) => {
    if (event.target.type !== "range") field(event);
  });

  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function moveInGrid(element, event) {
    const [rows, columns] = element.dataset.grid.split(",").map(Number);
    const [down, right] = ARROWS[event.key];
    const from = cell(element, {});
    const row = Math.min(rows - 1, Math.max(0, from.row + down));
    const col = Math.min(columns - 1, Math.max(0, from.col + right));
    Object.assign(element.dataset, { row, col });
    send({ ...words(element), row, col });
  }

  const KEYS = {
    j: { do: "next-layer" }, ArrowDown: { do: "next-layer" },
    k: { do: "previous-layer" }, ArrowUp: { do: "previous-layer" },
    ArrowRight: { do: "next-epoch" }, ArrowLeft: { do: "previous-epoch" },
    " ": { do: "play" }, Escape: { do: "stop" }, l: { do: "toggle-log" },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const element = event.target.closest?.("[data-do]");
    if (event.key === "Escape" && keys?.open) {
      keys.open = false;
      return;
    }
    if (event.target.closest?.("input, select, textarea")) return;
    if (element?.dataset.grid && event.key in ARROWS) {
      event.preventDefault();
      moveInGrid(element, event);
      return;
    }
    if (element && (event.key === "Enter" || event.key === " ")) {
      if (element.matches("button, a")) return; // the browser clicks it
      event.preventDefault();
      act(element, event);
      return;
    }
    if (event.key in KEYS && keys) {
      if (event.target.closest?.("[data-scroll]") && event.key in ARROWS) return;
      event.preventDefault();
      send(KEYS[event.key]);
    }
    if (event.key === "?") keys?.toggleAttribute("open");
  });

  // ---- when everything is drawn, for whoever drives this page by a program ----

  async function drawn() {
    await new Promise((resume) => { doc.is_idle ? resume() : doc.idle.connect(resume); });
    await new Promise((resume) => window.requestAnimationFrame(() => window.requestAnimationFrame(resume)));
    root.dataset.drawn = "all";
    root.dataset.drawnMs = String(Math.round(performance.now()));
  }
  if (views.length) await drawn();
})();
