// The page from top to bottom.

const dated = (text) => {
  const day = new Date(text);
  return Number.isNaN(day.getTime()) ? text : day.toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
};
const facts = (pairs) => pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined)
  .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));

function top() {
  $("eyebrow").textContent = `Arena: ${STUDY.arena}`;
  $("title").textContent = STUDY.name;
  $("headline").textContent = SUMMARY.headline;
  $("description").textContent = STUDY.description;
  $("description").hidden = !STUDY.description;
  $("facts").append(...facts([
    ["Score", `${STUDY.metric}, ${STUDY.direction} is better`],
    ["Budget", `${count(STUDY.budget.size)} ${STUDY.budget.unit} a run`],
    ["Runs", `${plural(ARMS.length, "method")} × ${plural(STUDY.seeds.length, "seed")}`],
    ["Made", dated(STUDY.created)],
    ["Code", STUDY.commit.slice(0, 10)],
  ]));
}

function tools() {
  const themes = [["", "◐", "automatic"], ["light", "○", "light"], ["dark", "●", "dark"]];
  const root = document.documentElement;
  let theme = "";
  try {
    theme = localStorage.getItem("vantage-report:theme") ?? "";
  } catch { /* storage is off */ }
  const icon = h("span", { "aria-hidden": "true" });
  const word = h("span");
  const button = h("button", { class: "chip", id: "theme", type: "button", on: { click: () => set(themes[(at() + 1) % 3][0]) } }, icon, " ", word);
  const at = () => Math.max(0, themes.findIndex(([name]) => name === theme));
  function set(name) {
    theme = name;
    root.toggleAttribute("data-theme", Boolean(theme));
    if (theme) root.setAttribute("data-theme", theme);
    icon.textContent = themes[at()][1];
    word.textContent = themes[at()][2];
    button.setAttribute("aria-label", `Colours: ${themes[at()][2]}. Change`);
    try {
      localStorage.setItem("vantage-report:theme", theme);
    } catch { /* storage is off */ }
  }
  set(theme);
  $("tools").append(refresher(), button);
}

// A page that is served while runs go on loads itself again, unless the reader is in the middle of something.
function refresher() {
  if (!DATA.refresh || SUMMARY.finished) return "";
  const button = h("button", { class: "chip", id: "refresh", type: "button", on: { click: () => choose({ paused: !state.paused }) } });
  watch(() => {
    button.textContent = state.paused ? "Paused" : `Live, every ${duration(DATA.refresh)}`;
    button.setAttribute("aria-pressed", String(!state.paused));
  });
  setInterval(() => {
    const busy = document.hidden || document.activeElement?.matches("input, select, .plot") || document.querySelector(".tip:not([hidden])");
    if (!state.paused && !busy) location.reload();
  }, DATA.refresh * 1000);
  return button;
}

function navigation() {
  const links = [...document.querySelectorAll("main section:not([hidden])")].map((section) =>
    h("a", { href: `#${section.id}` }, section.dataset.nav ?? section.querySelector("h2").textContent));
  $("nav").append(...links);
}

// ---- runs, while some are going or have crashed

function runs() {
  const all = ARMS.flatMap((arm) => arm.runs);
  const total = ARMS.length * STUDY.seeds.length;
  const crashed = all.filter((run) => run.status === "crashed");
  if (SUMMARY.finished && !crashed.length) return;
  $("runs").hidden = false;
  const tally = (status) => all.filter((run) => run.status === status).length;
  const done = tally("ok");
  const words = [[done, "finished"], [tally("running"), "running"], [crashed.length, "crashed"], [total - all.length, "waiting"]]
    .filter(([number]) => number).map(([number, word]) => `${number} ${word}`).join(", ");
  const symbol = { ok: "✓", crashed: "✕", running: "…", waiting: "·" };
  const cell = (arm, seed) => {
    const run = arm.runs.find((one) => one.seed === seed);
    const status = run?.status ?? "waiting";
    const last = run?.samples.length ? run.samples[run.samples.length - 1] : 0;
    const way = Math.min(1, last / STUDY.budget.size);
    return h("td", { class: `run ${status}` }, h("span", { class: "box", css: { "--way": status === "running" ? way : 1 } },
      h("span", { "aria-hidden": "true" }, status === "running" ? `${Math.round(way * 100)} %` : symbol[status]),
      h("span", { class: "sr" }, status === "running" ? `running, ${Math.round(way * 100)} percent` : status === "ok" ? "finished" : status)));
  };
  if (SUMMARY.finished) {
    $("runs").querySelector("h2").textContent = "Crashed runs";
    $("runs").classList.add("small");
  }
  put("runs",
    h("p", { class: "note" }, `Of ${plural(total, "run")}: ${words}.${crashed.length ? " What crashed is left out of every figure, so that a method that crashes looks better than it is." : ""}`),
    SUMMARY.finished ? null : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "State of the runs" }, h("table", { class: "grid" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Method"), STUDY.seeds.map((seed) => h("th", { scope: "col" }, h("span", { class: "word" }, "seed "), seed)))),
      h("tbody", {}, ARMS.map((arm) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: "who" }, named(arm))), STUDY.seeds.map((seed) => cell(arm, seed))))))),
    crashed.length ? h("details", { class: "errors" }, h("summary", {}, crashed.length === 1 ? "What it said" : `What the ${crashed.length} crashed runs said`),
      ARMS.flatMap((arm) => arm.runs.filter((run) => run.status === "crashed").map((run) =>
        h("div", {}, h("p", { class: "meta" }, named(arm), h("span", {}, `seed ${run.seed}`)), h("pre", { dir: "auto" }, run.error || "(no message)"))))) : null);
}

// ---- charts

function curves() {
  const timed = ARMS.some((arm) => arm.curve.seconds && arm.curve.seconds.x.length > 1);
  if (!ARMS.some((arm) => arm.runs.some((run) => run.samples.length))) {
    about("curves", "");
    put("curves", empty("No evaluation yet.", "Curves begin with the first evaluation of a run."));
    return;
  }
  about("curves", `${capital(STUDY.metric)} on the way: mean over finished runs with its pointwise 95${NB}% interval. Hover, or focus the chart and use the arrow keys, to read values.`);
  if (!timed) state.axis = "samples";
  put("curves", legend(), h("div", { class: "controls" },
    timed ? oneOf("Horizontal axis", "axis", [["samples", `over ${STUDY.budget.unit}`], ["seconds", "over time"]]) : null,
    toggle("Intervals", "bands"), toggle("Every seed", "seeds")));
  const draw = chart($("curves").querySelector(".body"), "Learning curves: values at", 420, () => {
    const key = state.axis;
    const shown = ARMS.filter(visible);
    const line = (arm, run) => ({ arm, x: run[key], y: run.scores, end: run.status });
    return {
      series: shown.filter((arm) => arm.curve[key]).map((arm) => {
        const { x, y, low, high } = arm.curve[key];
        return { arm, x, y, low: state.bands ? low : null, high: state.bands ? high : null };
      }),
      faint: shown.flatMap((arm) => arm.runs.filter((run) => run.samples.length && (state.seeds || run.status !== "ok")).map((run) => line(arm, run))),
      xLabel: key === "samples" ? STUDY.budget.unit : "", xFormat: count, times: key === "seconds", yLabel: STUDY.metric,
      yFormat: (value) => minus(String(Number(value.toFixed(SUMMARY.decimals)))), read: score,
      rule: SUMMARY.threshold === null ? null : { y: SUMMARY.threshold, text: `threshold ${score(SUMMARY.threshold)}` },
    };
  }, { labels: true });
  watch(draw);
}

function profile() {
  if (!DATA.profile) {
    about("profile", "");
    put("profile", empty("Not yet.", "A profile needs at least two different final scores."));
    return;
  }
  about("profile", `For every score on the horizontal axis, the share of runs that did ${HIGHER ? "better (scored above it)" : "better (scored below it)"}. A curve that lies above another everywhere belongs to the better method.`);
  put("profile", legend(), h("div", { class: "controls" }, toggle("Intervals", "profileBands")));
  const draw = chart($("profile").querySelector(".body"), "Performance profile: share of runs at", 320, () => ({
    series: ARMS.filter((arm) => visible(arm) && DATA.profile.arms[arm.index]).map((arm) => {
      // Where a curve has come to rest at zero there is nothing more to draw.
      const { y, low, high } = DATA.profile.arms[arm.index];
      const last = HIGHER ? y.findIndex((value) => value === 0) + 1 || y.length : y.length;
      const first = HIGHER ? 0 : Math.max(0, y.findIndex((value) => value > 0) - 1);
      const cut = (values) => values.slice(first, last);
      const band = state.profileBands;
      return { arm, x: cut(DATA.profile.x), y: cut(y), low: band ? cut(low) : null, high: band ? cut(high) : null, step: true };
    }),
    xLabel: STUDY.metric, xFormat: (value) => minus(String(Number(value.toFixed(SUMMARY.decimals)))),
    yLabel: "share of runs", yFormat: (value) => `${Math.round(value * 100)} %`, from0: true,
  }));
  watch(draw);
}

function diagnostics() {
  const list = DATA.diagnostics.filter((one) => one.arms.some(Boolean));
  if (!list.length) {
    about("diagnostics", "");
    put("diagnostics", empty("No diagnostics.", "The runs recorded none: no entropy, no KL, no gradient norm."));
    return;
  }
  about("diagnostics", `Means over finished runs, over ${STUDY.budget.unit}.`);
  const grid = h("div", { class: "multiples" });
  put("diagnostics", legend(), grid);
  for (const one of list) {
    const panel = h("figure", { class: "panel" }, h("figcaption", {}, one.title));
    grid.append(panel);
    watch(chart(panel, `${one.title}: values at`, 190, () => ({
      series: ARMS.filter((arm) => visible(arm) && one.arms[arm.index]).map((arm) => ({ arm, ...one.arms[arm.index] })),
      xLabel: STUDY.budget.unit, xFormat: count, yFormat: digits,
    }), { compact: true }));
  }
}

// ---- settings, command, notes

function settings() {
  const group = (title, values) => Object.keys(values).length
    ? [h("h3", {}, title), h("dl", { class: "facts wide" }, facts(Object.entries(values)).map((row) => row))] : null;
  put("settings",
    DATA.settings.length ? [h("h3", {}, "Methods"), contrast(DATA.settings, "Setting", "setting")] : null,
    group("Arena", { ...STUDY.settings, tasks: STUDY.tasks.length > 1 ? STUDY.tasks.join(", ") : "", seeds: STUDY.seeds.join(", "), optimum: STUDY.optimum === null ? "" : String(STUDY.optimum) }),
    group("Versions", { ...STUDY.versions, commit: STUDY.commit }));
}

function again() {
  about("again", STUDY.command ? "The command that made this study. The same commit, versions and seeds give the same runs." : "");
  if (!STUDY.command) {
    put("again", empty("No command recorded.", "The study was put together from Python."));
    return;
  }
  const text = h("pre", { class: "command", tabindex: "0", role: "region", "aria-label": "Command" }, STUDY.command);
  const copy = h("button", { class: "chip", type: "button", on: { click: async () => {
    try {
      await navigator.clipboard.writeText(STUDY.command);
      copy.textContent = "Copied";
      say("Copied");
    } catch {
      getSelection().selectAllChildren(text);
      copy.textContent = "Selected: copy with your keyboard";
    }
  } } }, "Copy");
  put("again", h("div", { class: "again" }, text, copy));
}

function notes() {
  const items = [
    ["Mean, IQM", "Means over seeds, and over the middle half of the scores. Intervals are 95\u00a0% bootstrap intervals over seeds, widened for few seeds (expanded percentiles). At 5 seeds they cover about 92\u00a0%; at 3, about 75\u00a0%; with fewer there is none. Compare methods by the verdict, not by whether two intervals overlap."],
    ["P(better)", `The probability that a run of a method does better than a run of ${STUDY.baseline}; ties count half.`],
    ["Verdict", "“Difference shown” when the 95\u00a0% interval of the difference excludes zero, the test corrected with Holm’s method is below 0.05, and the permutation test does not object. Two arms of the same method get it at most 5\u00a0% of the time. “No difference shown” does not say that there is none: it says how many seeds would be needed to see one of this size, four times in five."],
    ["Area", "Area under the learning curve divided by its range: the mean score on the way."],
    SUMMARY.threshold === null ? null : [`To ${score(SUMMARY.threshold)}`, `${STUDY.budget.unit} until a run first reaches that score, median over seeds. A run that never does counts as censored, not as its budget.`],
  ].filter(Boolean);
  $("notes").append(h("details", {}, h("summary", {}, "How to read the figures"),
    h("dl", {}, items.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]))));
}

top();
tools();
runs();
leaderboard();
curves();
comparisons();
profile();
diagnostics();
parts();
samples();
settings();
again();
notes();
navigation();
// On paper everything is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
