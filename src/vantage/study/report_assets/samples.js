// Completions side by side. They are untrusted text: text nodes in a <pre>, nothing else.

const ROWS = DATA.samples.prompts.flatMap((entry) => entry.rows);
const REWARDS = {
  any: ["any reward", () => true],
  above: ["rewarded (above 0)", (reward) => reward !== null && reward > 0],
  below: ["not rewarded (0 or below)", (reward) => reward !== null && reward <= 0],
};

// The completions of a prompt that the filters let through; an empty list when it has none.
function passing(entry) {
  const find = state.find.trim().toLowerCase();
  const inPrompt = !find || entry.prompt.toLowerCase().includes(find);
  return entry.rows.filter(([arm, seed, reward, text]) =>
    visible(ARMS[arm]) && REWARDS[state.reward][1](reward) && (state.seed === "any" || String(seed) === state.seed)
    && (inPrompt || text.toLowerCase().includes(find)));
}

function disagrees(rows) {
  const means = new Map();
  for (const [arm, , reward] of rows) if (reward !== null) means.set(arm, [...(means.get(arm) ?? []), reward]);
  const values = [...means.values()].map((list) => list.reduce((a, b) => a + b) / list.length);
  return Math.max(...values) - Math.min(...values) > 1e-9;
}

function samples() {
  const { prompts, total } = DATA.samples;
  if (!total) {
    about("samples", "");
    put("samples", empty("No samples.", "The study kept no completions; they are there for language arenas."));
    return;
  }
  about("samples", `What the trained policies wrote for the same prompts.${prompts.length < total ? ` ${prompts.length} of ${total} prompts are in this file.` : ""}`);
  const seeds = [...new Set(ROWS.map((row) => row[1]))].sort((a, b) => a - b);
  const pick = (label, key, options) => h("label", {}, h("span", {}, label),
    h("select", { id: `samples-${key}`, on: { change: (event) => choose({ [key]: event.target.value, prompt: 0 }) } },
      options.map(([value, text]) => h("option", { value, selected: state[key] === value }, text))));
  const search = h("input", { type: "search", id: "samples-find", value: state.find, placeholder: "in prompt or completion",
    on: { input: (event) => choose({ find: event.target.value, prompt: 0 }) } });
  const place = h("span", { class: "place" });
  const step = (by) => choose({ prompt: state.prompt + by });
  const back = h("button", { class: "chip", type: "button", on: { click: () => step(-1) } }, "← Previous");
  const next = h("button", { class: "chip", type: "button", on: { click: () => step(1) } }, "Next →");
  const disagree = h("input", { type: "checkbox", on: { change: (event) => choose({ disagree: event.target.checked, prompt: 0 }) } });
  disagree.checked = state.disagree;
  const page = h("div", { class: "samples" });
  put("samples",
    h("div", { class: "filters" }, h("label", {}, h("span", {}, "Find"), search),
      pick("Reward", "reward", Object.entries(REWARDS).map(([key, [text]]) => [key, text])),
      seeds.length > 1 ? pick("Seed", "seed", [["any", "any seed"], ...seeds.map((seed) => [String(seed), `seed ${seed}`])]) : null,
      ARMS.length > 1 ? h("label", { class: "check" }, disagree, h("span", {}, "only where methods disagree")) : null),
    h("div", { class: "pager" }, back, place, next), page);

  let before = "";
  watch(() => {
    const key = JSON.stringify([state.hidden, state.find, state.reward, state.seed, state.disagree, state.prompt]);
    if (key === before) return;
    before = key;
    const found = prompts.map((entry) => ({ entry, rows: passing(entry) }))
      .filter(({ rows }) => rows.length && (!state.disagree || disagrees(rows)));
    const at = Math.max(0, Math.min(state.prompt, found.length - 1));
    state.prompt = at;
    back.disabled = at === 0;
    next.disabled = at >= found.length - 1;
    place.textContent = found.length ? `prompt ${at + 1} of ${found.length}` : "";
    page.replaceChildren(found.length ? sample(found[at]) : empty("Nothing fits.", "No completion passes these filters."));
  });
}

function sample({ entry, rows }) {
  const columns = ARMS.map((arm) => ({ arm, own: rows.filter((row) => row[0] === arm.index) })).filter(({ own }) => own.length);
  return h("div", {},
    h("pre", { class: "prompt", dir: "auto", tabindex: "0", role: "region", "aria-label": "Prompt" }, entry.prompt),
    h("div", { class: "columns" }, columns.map(({ arm, own }) => h("article", { class: `column ${tone(arm)}` },
      h("h3", { class: "who" }, named(arm)),
      own.map(([, seed, reward, text]) => h("div", { class: "completion" },
        h("p", { class: "meta" }, h("span", {}, `seed ${seed}`),
          reward === null ? null : h("span", { class: `reward ${reward > 0 ? "good" : ""}` }, `reward ${digits(reward)}`)),
        h("pre", { dir: "auto", tabindex: "0", role: "region", "aria-label": `Completion of ${arm.name}, seed ${seed}` }, text || "(empty)")))))));
}
