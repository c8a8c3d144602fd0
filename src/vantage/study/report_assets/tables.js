// Leaderboard, comparisons, and the tables of what differs.

const verdictOf = (arm) => SUMMARY.against_baseline.find((one) => one.x === arm.name) ?? null;
const byName = (name) => ARMS.find((arm) => arm.name === name);

// A small forest plot: the seeds as dots, the interval as a bar, the figure as a tick, one scale for all rows.
const SCALE = (() => {
  const values = SUMMARY.arms.flatMap((arm) => [...arm.scores, ...(arm.mean ? arm.mean.filter((v) => v !== null) : [])]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = (high - low || 1) * 0.04;
  return { low: low - pad, high: high + pad };
})();

function forest(arm) {
  const width = 150;
  const X = (v) => (((v - SCALE.low) / (SCALE.high - SCALE.low)) * width).toFixed(1);
  const [value, low, high] = arm.figures.mean;
  return svg("svg", { class: `forest ${tone(arm)}`, preserveAspectRatio: "xMinYMid", viewBox: `0 0 ${width} 22`, "aria-hidden": "true" },
    svg("path", { class: "base", d: `M0 11H${width}` }),
    low === null ? null : svg("path", { class: "span", d: `M${X(low)} 11H${X(high)}` }),
    arm.figures.scores.map((v) => svg("circle", { class: "seed", cx: X(v), cy: 11, r: 2.6 })),
    svg("path", { class: "middle", d: `M${X(value)} 3V19` }));
}

const dash = () => h("span", { class: "faint" }, "—");
const figure = (interval, format, note) =>
  interval ? [h("b", {}, format(interval[0])), h("small", {}, note ?? range(interval, format))] : dash();

// Arms that do not overlap leave the bootstrap nothing to vary: say what was seen instead of an interval of no width.
function improvement(arm) {
  const { better, scores } = arm.figures;
  const pairs = scores.length * ARMS[BASELINE].figures.scores.length;
  const flat = better && better[1] !== null && better[1] === better[2];
  const seen = better?.[0] === 1 ? `all ${pairs} pairs` : better?.[0] === 0 ? `none of ${pairs}` : null;
  return figure(better, share, flat ? seen : null);
}

function verdictChip(one, subject) {
  if (!one) return null;
  if (!one.favours) return h("span", { class: "verdict" }, "no difference shown");
  const better = one.favours === subject;
  return h("span", { class: `verdict ${better ? "better" : "worse"}` },
    h("span", { "aria-hidden": "true" }, better ? "▲ " : "▼ "), better ? "better" : "worse");
}

function states(arm) {
  const { ok, running, waiting } = arm.figures;
  const rest = [running && `${running} running`, waiting && `${waiting} waiting`].filter(Boolean).join(", ");
  return [h("b", {}, `${ok} of ${STUDY.seeds.length}`), rest ? h("small", {}, rest) : null];
}

function reached(arm) {
  const reach = arm.figures.reach;
  if (!reach) return dash();
  return [
    h("b", {}, reach[0] === null ? "not reached" : count(reach[0])),
    reach[1] < reach[2] ? h("small", {}, reach[1] ? `by ${reach[1]} of ${plural(reach[2], "seed")}` : "by no seed") : null,
  ];
}

// key, heading, what sorts, whether more is better, cell
const COLUMNS = [
  { key: "name", text: "Method", get: (arm) => arm.name, more: false, cell: (arm) => [
    h("span", { class: "who" }, named(arm)),
    arm.index === BASELINE && ARMS.length > 1 ? h("small", { class: "tag" }, "baseline") : null] },
  { key: "mean", text: "Mean score", hint: `${STUDY.metric}, mean over seeds with its 95${NB}% interval`, more: HIGHER,
    get: (arm) => arm.figures.mean?.[0], cell: (arm) => arm.figures.mean
      ? [h("span", { class: "pair" }, h("span", {}, figure(arm.figures.mean, score)), forest(arm))] : noScore(arm) },
  { key: "verdict", text: `Against ${STUDY.baseline}`, only: () => SUMMARY.against_baseline.length, more: HIGHER,
    get: (arm) => verdictOf(arm)?.difference.effect, cell: (arm) => {
      const one = verdictOf(arm);
      return one ? [verdictChip(one, arm.name), h("small", {}, signed(one.difference.effect))] : dash();
    } },
  { key: "iqm", text: "IQM", hint: "interquartile mean: the mean of the middle half of the scores", more: HIGHER,
    get: (arm) => arm.figures.iqm?.[0], cell: (arm) => figure(arm.figures.iqm, score) },
  { key: "better", text: "P(better)", hint: `probability that a run does better than one of ${STUDY.baseline}`, more: true,
    only: () => SUMMARY.arms.some((arm) => arm.better),
    get: (arm) => arm.figures.better?.[0], cell: improvement },
  { key: "area", text: "Area", hint: "area under the learning curve over its range: the mean score on the way", more: HIGHER,
    only: () => SUMMARY.arms.some((arm) => arm.area),
    get: (arm) => arm.figures.area?.[0], cell: (arm) => figure(arm.figures.area, score) },
  { key: "reach", text: SUMMARY.threshold === null ? "" : `To ${score(SUMMARY.threshold)}`, more: false,
    hint: SUMMARY.threshold === null ? "" : `${STUDY.budget.unit} until a run first scores ${score(SUMMARY.threshold)}, median over seeds`,
    only: () => SUMMARY.arms.some((arm) => arm.reach), get: (arm) => arm.figures.reach?.[0], cell: reached },
  { key: "ok", text: "Seeds", hint: "runs that finished", more: true, get: (arm) => arm.figures.ok, cell: states },
  { key: "crashed", text: "Crashed", more: false, only: () => SUMMARY.arms.some((arm) => arm.crashed),
    get: (arm) => arm.figures.crashed, cell: (arm) => h("b", { class: arm.figures.crashed ? "bad" : "faint" }, String(arm.figures.crashed)) },
  { key: "duration", text: "Time", hint: "mean duration of a run", more: false,
    only: () => SUMMARY.arms.some((arm) => arm.duration !== null),
    get: (arm) => arm.figures.duration, cell: (arm) => h("b", {}, arm.figures.duration === null ? "—" : duration(arm.figures.duration)) },
].filter((column) => !column.only || column.only());

function noScore(arm) {
  const { crashed, running } = arm.figures;
  const text = running ? "running" : crashed ? "every run crashed" : "waiting";
  return h("span", { class: crashed && !running ? "bad" : "faint" }, text);
}

function sortBy(key) {
  const column = COLUMNS.find((one) => one.key === key);
  const down = state.sort === key ? !state.down : column.more;
  choose({ sort: key, down });
  say(`Sorted by ${column.text}, ${down ? "highest" : "lowest"} first`);
}

function ordered() {
  const column = COLUMNS.find((one) => one.key === state.sort) ?? COLUMNS[0];
  const sign = state.down ? -1 : 1;
  return [...ARMS].sort((a, b) => {
    const [x, y] = [column.get(a), column.get(b)];
    const [no, nor] = [x === null || x === undefined, y === null || y === undefined];
    // What has no value stays at the end whichever way the column is sorted.
    if (no || nor) return no - nor || a.index - b.index;
    return sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.index - b.index;
  });
}

function leaderboard() {
  const ok = SUMMARY.arms.reduce((sum, arm) => sum + arm.ok, 0);
  about("leaderboard", ok ? `${capital(STUDY.metric)} of ${plural(ok, "finished run")}; ${STUDY.direction} is better. Dots are seeds, the bar is the 95${NB}% interval of the mean.`
    : `${capital(STUDY.metric)}; ${STUDY.direction} is better.`);
  const heads = COLUMNS.map((column) => h("th", { scope: "col", role: "columnheader", class: `col-${column.key}` },
    h("button", { type: "button", title: column.hint, on: { click: () => sortBy(column.key) } },
      column.text, h("span", { class: "arrow", "aria-hidden": "true" }))));
  const tbody = h("tbody", { role: "rowgroup" });
  const rows = new Map(ARMS.map((arm) => [arm, h("tr", { role: "row", "data-arm": arm.name },
    COLUMNS.map((column, i) => h(i ? "td" : "th", { role: i ? "cell" : "rowheader", scope: i ? null : "row",
      class: `col-${column.key}`, "data-label": column.text }, h("div", { class: "cell" }, column.cell(arm)))))]));
  const select = h("select", { id: "sort", on: { change: () => {
    const column = COLUMNS.find((one) => one.key === select.value);
    choose({ sort: column.key, down: column.more });
  } } }, COLUMNS.map((column) => h("option", { value: column.key }, column.text)));
  put("leaderboard",
    h("div", { class: "narrow" }, h("label", { for: "sort" }, "Sort by "), select),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Leaderboard, scrolls sideways" }, h("table", { class: "board cards", role: "table", "aria-label": "Leaderboard" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), tbody)));
  let before = "";
  watch(() => {
    const key = `${state.sort} ${state.down}`;
    if (key === before) return;
    before = key;
    select.value = state.sort;
    COLUMNS.forEach((column, i) => {
      const mine = column.key === state.sort;
      heads[i].setAttribute("aria-sort", mine ? (state.down ? "descending" : "ascending") : "none");
      heads[i].querySelector(".arrow").textContent = mine ? (state.down ? "↓" : "↑") : "";
    });
    tbody.replaceChildren(...ordered().map((arm) => rows.get(arm)));
  });
}

// ---- comparisons

function reason(one) {
  const { seeds, seeds_needed: needed, interval, effect, comparisons } = one.difference;
  if (one.favours) return `${one.favours} is better`;
  if (Math.min(...seeds) < 3) return "a verdict needs at least 3 seeds an arm";
  if (effect === 0) return "the means are equal";
  const apart = interval && (interval[0] > 0 || interval[1] < 0) && comparisons > 1
    ? `its own interval excludes 0, but not after correction for ${comparisons} comparisons; ` : "";
  const seen = needed === null ? "" : needed > 1000 ? "more than 1,000" : `about ${needed}`;
  return `${apart}${seen ? `${seen} seeds an arm would be needed to see a difference of this size` : ""}`;
}

function comparisons() {
  if (!SUMMARY.every_pair.length) {
    about("comparisons", "");
    put("comparisons", ARMS.length < 2
      ? empty("One method.", "There is nothing to compare it with yet.")
      : empty("Not yet.", "A comparison needs finished runs of at least two methods."));
    return;
  }
  about("comparisons", "The difference of means with its own 95\u00a0% interval. “Difference shown” means that the interval excludes zero and that the test, corrected for the number of comparisons, agrees.");
  const families = [["baseline", `Against ${STUDY.baseline} (${SUMMARY.against_baseline.length})`], ["every", `Every pair (${SUMMARY.every_pair.length})`]];
  if (!SUMMARY.against_baseline.length) state.family = "every";
  const table = h("tbody", { role: "rowgroup" });
  const note = h("p", { class: "note" });
  put("comparisons",
    SUMMARY.finished ? null : h("p", { class: "note warn" }, "Runs are still going: these verdicts are provisional. Do not stop the study because one of them pleases."),
    SUMMARY.against_baseline.length && ARMS.length > 2 ? oneOf("Comparisons", "family", families) : null,
    h("div", { class: "scroll" }, h("table", { class: "pairs cards", role: "table", "aria-label": "Comparisons" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Comparison", "Difference of means", "Effect", "Test", "Verdict"].map((text) =>
        h("th", { scope: "col", role: "columnheader" }, text)))), table)), note);
  let before = "";
  watch(() => {
    if (state.family === before) return;
    before = state.family;
    const list = [...(state.family === "every" ? SUMMARY.every_pair : SUMMARY.against_baseline)]
      .sort((a, b) => (HIGHER ? -1 : 1) * (a.difference.effect - b.difference.effect));
    const ends = list.flatMap((one) => [one.difference.effect, ...(one.difference.interval ?? [])]);
    const reach = Math.max(...ends.map(Math.abs)) * 1.08 || 1;
    table.replaceChildren(...list.map((one) => pairRow(one, reach)));
    const paired = list.some((one) => one.difference.paired);
    note.textContent = `${plural(list.length, "comparison")}, corrected with Holm’s method. ${paired
      ? "Runs are compared seed by seed (paired t interval, sign-flip permutations)."
      : "Welch’s t interval; a permutation test of the runs must not object."}`;
  });
}

function pairRow(one, reach) {
  const { effect, interval, p } = one.difference;
  const [x, y] = [byName(one.x), byName(one.y)];
  const width = 220;
  const X = (v) => (width / 2 + (v / reach) * (width / 2 - 6)).toFixed(1);
  const cell = (label, kind, ...inside) => h("td", { role: "cell", "data-label": label, class: kind }, h("div", { class: "cell" }, inside));
  return h("tr", { role: "row", class: one.favours ? "shown" : "" },
    h("th", { scope: "row", role: "rowheader" }, h("div", { class: "cell versus" },
      h("span", { class: "who" }, named(x)), h("span", { class: "faint" }, " against "), h("span", { class: "who" }, named(y)))),
    cell("", "col-forest", svg("svg", { class: `forest wide ${tone(x)}`, preserveAspectRatio: "xMinYMid", viewBox: `0 0 ${width} 26`, "aria-hidden": "true" },
      svg("path", { class: "zero", d: `M${width / 2} 0V26` }),
      interval ? svg("path", { class: "span", d: `M${X(interval[0])} 13H${X(interval[1])}` }) : null,
      interval ? svg("path", { class: "caps", d: `M${X(interval[0])} 8V18M${X(interval[1])} 8V18` }) : null,
      svg("path", { class: "dot", d: MARKERS[0](4.2), transform: `translate(${X(effect)} 13)` }))),
    cell("Effect", "", h("b", {}, signed(effect)), h("small", {}, interval ? `${signed(interval[0])} to ${signed(interval[1])}` : "no interval")),
    cell("Test", "", h("b", {}, interval ? pValue(p) : "—")),
    cell("Verdict", "col-why", h("span", { class: `verdict ${one.favours ? "yes" : ""}` }, one.difference.verdict), h("small", {}, reason(one))));
}

// ---- what differs

// A long setting breaks after a comma or a bracket, and within a name only where the name is wider than its cell.
const code = (text) => h("code", {}, text.split(/(?<=\((?!\))|, | \+ )/).map((piece) => h("span", {}, piece)));

function contrast(rows, heading, mutedWord) {
  const table = (list) => h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": heading },
    h("table", { class: "contrast" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, heading), ARMS.map((arm) => h("th", { scope: "col" }, h("span", { class: "who" }, named(arm)))))),
      h("tbody", {}, list.map((row) => h("tr", {}, h("th", { scope: "row" }, row.name.replace(/_/g, " ")),
        row.values.map((value, index) => {
          const other = row.differs && index !== BASELINE && value !== row.values[BASELINE];
          return h("td", { class: other ? `other ${tone(ARMS[index])}` : row.differs && index !== BASELINE ? "same" : "" },
            value === null ? h("span", { class: "faint" }, "—") : code(value));
        }))))));
  const different = rows.filter((row) => row.differs);
  const same = rows.filter((row) => !row.differs);
  return [
    different.length ? table(different) : null,
    same.length ? h("details", { class: "same-rows" }, h("summary", {}, `${plural(same.length, mutedWord)} the same in every method`),
      h("dl", { class: "facts wide" }, same.map((row) => h("div", {}, h("dt", {}, row.name.replace(/_/g, " ")), h("dd", {}, code(row.values[0] ?? "—")))))) : null,
  ];
}

function parts() {
  const parents = [...new Set(ARMS.map((arm) => arm.parent).filter(Boolean))];
  const family = parents.map((parent) => {
    const made = ARMS.filter((arm) => arm.parent === parent).map((arm) => arm.name);
    return ` ${several(made)} ${made.length > 1 ? "are" : "is"} made from ${parent}.`;
  }).join("");
  about("parts", DATA.parts.length ? `Part by part, those that differ first. A bar marks a part that is not ${STUDY.baseline}’s.${family}` : "");
  if (!DATA.parts.length) put("parts", empty("No parts recorded.", "The study does not say what the methods are made of."));
  else if (!DATA.parts.some((row) => row.differs)) put("parts", empty("The same parts.", "The methods differ in their settings only, if at all."), contrast(DATA.parts, "Part", "part"));
  else put("parts", contrast(DATA.parts, "Part", "part"));
}
