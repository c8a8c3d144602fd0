// A line chart: axes, bands, lines with dash and marker, a cross-hair that pointer and keyboard move alike.

function ticks(low, high, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return { step, values: found.map((v) => Number(v.toPrecision(12))) };
}

// Times are ticked in seconds, minutes or hours, whichever gives round numbers.
function timeTicks(low, high, about) {
  const unit = high > 3 * 3600 ? 3600 : high > 180 ? 60 : 1;
  const found = ticks(low / unit, high / unit, about);
  return { unit: { 1: "seconds", 60: "minutes", 3600: "hours" }[unit], scale: unit, values: found.values.map((v) => v * unit) };
}

function valueAt(series, x) {
  const xs = series.x;
  if (!xs.length || x < xs[0] - 1e-9 || x > xs[xs.length - 1] + 1e-9) return null;
  let at = xs.findIndex((value) => value >= x - 1e-9);
  if (at < 0) at = xs.length - 1;
  const part = at === 0 || series.step || xs[at] <= x + 1e-9 ? null : (x - xs[at - 1]) / (xs[at] - xs[at - 1]);
  if (series.step && xs[at] > x + 1e-9) at -= 1;
  const read = (ys) => (ys ? (part === null ? ys[at] : ys[at - 1] + part * (ys[at] - ys[at - 1])) : null);
  return { y: read(series.y), low: read(series.low), high: read(series.high) };
}

const LABEL = 18; // letters of a name beside its line

const spot = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function pathOf(xs, ys, step) {
  let d = "";
  for (let i = 0; i < xs.length; i++) {
    if (step && i) d += `H${xs[i].toFixed(1)}V${ys[i].toFixed(1)}`;
    else d += `${i ? "L" : "M"}${spot(xs[i], ys[i])}`;
  }
  return d;
}

// Labels at the line ends, pushed apart until none overlaps and all stay inside.
function spread(places, gap, low, high) {
  const order = [...places].sort((a, b) => a.y - b.y);
  order.forEach((place, i) => { place.at = Math.max(place.y, i ? order[i - 1].at + gap : low); });
  for (let i = order.length - 1; i >= 0; i--) {
    order[i].at = Math.min(order[i].at, i === order.length - 1 ? high : order[i + 1].at - gap);
  }
}

/* spec() -> {
     series: [{arm, x, y, low, high, step}]     the lines that legend, cross-hair and labels speak of
     faint: [{arm, x, y, end}]                  single runs; end: "ok" | "crashed" | "running"
     xLabel, yLabel, xFormat, yFormat           yFormat is for the axis; read, if given, for values
     times                                      x is in seconds
     rule: {y, text}                            a horizontal line
     from0                                      the vertical axis begins at 0
   }  */
function chart(host, label, height, spec, { compact = false, labels = false } = {}) {
  const picture = svg("svg", { class: "picture", "aria-hidden": "true" });
  const tip = h("div", { class: "tip", hidden: true });
  const none = h("p", { class: "none", hidden: true }, "Every method is hidden: choose one above.");
  const plot = h("div", {
    class: "plot", tabindex: "0", role: "slider", "aria-label": label, "aria-orientation": "horizontal",
    "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0",
  }, picture, tip, none);
  plot.style.setProperty("--height", `${height}px`);
  host.append(plot);
  let now = null; // what is drawn: scales, grid, series
  let at = null; // index into the grid

  function draw() {
    const { series, faint = [], xLabel, yLabel, xFormat, yFormat, read = yFormat, times, rule, from0 } = spec();
    const width = plot.clientWidth;
    picture.replaceChildren();
    none.hidden = series.length + faint.length > 0;
    if (!width || !none.hidden) { now = null; hide(); return; }
    const all = [...series, ...faint];
    const xs = all.flatMap((s) => [s.x[0], s.x[s.x.length - 1]]);
    const ys = all.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]);
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    let [y0, y1] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    if (x0 > 0 && x0 < 0.06 * x1) x0 = 0;
    if (from0) y0 = Math.min(0, y0);
    const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.05;
    y0 -= from0 && y0 === 0 ? 0 : pad;
    y1 += pad;
    const yTicks = ticks(y0, y1, Math.max(2, Math.round(height / (compact ? 46 : 62)))).values;
    const wide = labels && width > 620 && series.length <= 14;
    const longest = Math.max(...yTicks.map((v) => yFormat(v).length));
    const left = 14 + longest * 7.2;
    const right = wide ? 14 + Math.min(LABEL, Math.max(...series.map((s) => s.arm.name.length), 4)) * 8 + 12 : 14;
    const top = compact ? 12 : 36;
    const bottom = compact ? 28 : 48;
    const xTicks = (times ? timeTicks : ticks)(x0, x1, Math.max(compact ? 3 : 2, Math.round((width - left - right) / 110)));
    const X = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
    const Y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - top - bottom);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("width", width);
    picture.setAttribute("height", height);

    const axes = svg("g", { class: "axes" });
    for (const v of yTicks) {
      axes.append(svg("path", { class: "grid", d: `M${left} ${Y(v).toFixed(1)}H${width - right}` }),
        svg("text", { x: left - 8, y: Y(v) + 4, "text-anchor": "end" }, yFormat(v)));
    }
    for (const v of xTicks.values) {
      const place = X(v) > width - right - 12 ? "end" : X(v) < left + 8 ? "start" : "middle";
      axes.append(svg("path", { class: "tick", d: `M${X(v).toFixed(1)} ${height - bottom}v5` }),
        svg("text", { x: X(v), y: height - bottom + 18, "text-anchor": place },
          times ? digits(v / xTicks.scale) : xFormat(v)));
    }
    axes.append(svg("path", { class: "base", d: `M${left} ${height - bottom}H${width - right}` }));
    if (!compact) {
      axes.append(svg("text", { class: "label", x: width - right, y: height - 10, "text-anchor": "end" }, times ? xTicks.unit : xLabel),
        svg("text", { class: "label", x: 14, y: 19 }, yLabel));
    }
    picture.append(axes);
    if (rule && rule.y > y0 && rule.y < y1) {
      picture.append(svg("path", { class: "rule", d: `M${left} ${Y(rule.y).toFixed(1)}H${width - right}` }),
        svg("text", { class: "rule-text", x: left + 6, y: Y(rule.y) - 6 }, rule.text));
    }

    for (const s of series) {
      if (!s.low) continue;
      const px = s.x.map(X);
      const back = s.step ? stepBack(px, s.low.map(Y)) : pathOf([...px].reverse(), s.low.map(Y).reverse()).replace("M", "L");
      picture.append(svg("path", { class: `band ${tone(s.arm)}`, d: `${pathOf(px, s.high.map(Y), s.step)}${back}Z` }));
    }
    for (const s of faint) {
      const px = s.x.map(X);
      const py = s.y.map(Y);
      const group = svg("g", { class: `${tone(s.arm)} faint ${s.end ?? ""}` },
        svg("path", { class: "line", d: pathOf(px, py), "stroke-dasharray": s.end === "running" ? "3 3" : "" }));
      const [ex, ey] = [px[px.length - 1], py[py.length - 1]];
      if (s.end === "crashed") group.append(svg("path", { class: "cross", d: `M${spot(ex - 5, ey - 5)}l10 10m0 -10l-10 10` }));
      if (s.end === "running") group.append(svg("circle", { class: "ring", cx: ex, cy: ey, r: 3.5 }));
      picture.append(group);
    }
    for (const s of series) {
      const { dash, marker } = look[s.arm.index];
      const px = s.x.map(X);
      const py = s.y.map(Y);
      const group = svg("g", { class: `${tone(s.arm)} ${s.arm.index === BASELINE ? "baseline" : ""}`, "data-arm": s.arm.name },
        svg("path", { class: "line", d: pathOf(px, py, s.step), "stroke-dasharray": dash }));
      if (!compact && !s.step) {
        const every = Math.max(1, Math.round(px.length / 6));
        for (let i = Math.round((every * (s.arm.index + 1)) / (ARMS.length + 1)); i < px.length; i += every) {
          group.append(svg("path", { class: "dot", d: marker(3.6), transform: `translate(${spot(px[i], py[i])})` }));
        }
      }
      picture.append(group);
    }
    if (wide) {
      const places = series.map((s) => ({ s, y: Y(s.y[s.y.length - 1]), x: X(s.x[s.x.length - 1]) }));
      spread(places, 16, top + 4, height - bottom - 2);
      for (const { s, y, x, at: placed } of places) {
        const edge = width - right;
        picture.append(svg("path", { class: `lead ${tone(s.arm)}`, d: `M${spot(x, y)}L${spot(edge + 10, placed)}` }),
          svg("text", { class: "end", x: edge + 14, y: placed + 4 },
            s.arm.name.length > LABEL ? `${s.arm.name.slice(0, LABEL - 1)}…` : s.arm.name));
      }
    }
    const hair = svg("g", { class: "hair", visibility: "hidden" });
    picture.append(hair);
    const grid = [...new Set((series.length ? series : faint).flatMap((s) => s.x))].sort((a, b) => a - b);
    now = { series, grid, X, Y, hair, width, left, top, bottom, xFormat: times ? duration : xFormat, read, xLabel };
    plot.setAttribute("aria-valuemax", String(grid.length - 1));
    if (at !== null) show(Math.min(at, grid.length - 1)); else announce(grid.length - 1);
  }

  function rows(index) {
    const x = now.grid[index];
    return now.series.map((s) => ({ s, v: valueAt(s, x) })).filter((row) => row.v)
      .sort((a, b) => (HIGHER ? b.v.y - a.v.y : a.v.y - b.v.y));
  }

  function announce(index) {
    const values = rows(index).map(({ s, v }) => `${s.arm.name} ${now.read(v.y)}`).join(", ");
    plot.setAttribute("aria-valuenow", String(index));
    plot.setAttribute("aria-valuetext", `${now.xFormat(now.grid[index])} ${now.xLabel}: ${values || "no values"}`);
  }

  function show(index) {
    at = index;
    const { grid, series, X, Y, hair, width, top, bottom, read, xFormat, xLabel } = now;
    const found = rows(index);
    const px = X(grid[index]);
    hair.replaceChildren(svg("path", { d: `M${px.toFixed(1)} ${top - 4}V${height - bottom}` }),
      ...found.map(({ s, v }) => svg("circle", { class: tone(s.arm), cx: px, cy: Y(v.y), r: 4.5 })));
    hair.setAttribute("visibility", "visible");
    tip.replaceChildren(h("div", { class: "tip-x" }, `${xFormat(grid[index])} ${xLabel}`),
      ...found.map(({ s, v }) => h("div", { class: "tip-row" }, mark(s.arm, 22), h("span", { class: "arm" }, s.arm.name),
        h("b", {}, read(v.y)),
        h("small", {}, v.low === null || v.low === v.high ? "" : `${read(v.low)} – ${read(v.high)}`))));
    tip.hidden = false;
    const space = tip.offsetWidth + 18;
    const x = Math.min(px + space > width ? Math.max(0, px - space) : px + 18, Math.max(0, width - tip.offsetWidth));
    tip.style.setProperty("transform", `translate(${x}px, ${compact ? height - 16 : clearOf(series, x)}px)`);
    announce(index);
  }

  // The tip goes to the top or the bottom of the chart, wherever fewer curves pass behind it.
  function clearOf(series, x) {
    const { X, Y, top, bottom } = now;
    const heights = series.flatMap((s) => s.y.filter((_, i) => X(s.x[i]) > x - 8 && X(s.x[i]) < x + tip.offsetWidth + 8)).map(Y);
    const low = height - bottom - tip.offsetHeight - 8;
    const behind = (from) => heights.filter((y) => y > from - 6 && y < from + tip.offsetHeight + 6).length;
    return behind(low) < behind(top) ? low : top;
  }

  function hide() {
    at = null;
    tip.hidden = true;
    now?.hair.setAttribute("visibility", "hidden");
  }

  plot.addEventListener("pointermove", (event) => {
    if (!now) return;
    const x = event.clientX - picture.getBoundingClientRect().left;
    let best = 0;
    now.grid.forEach((v, i) => { if (Math.abs(now.X(v) - x) < Math.abs(now.X(now.grid[best]) - x)) best = i; });
    show(best);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => { if (now && plot.matches(":focus-visible")) show(at ?? now.grid.length - 1); });
  plot.addEventListener("keydown", (event) => {
    if (!now) return;
    const last = now.grid.length - 1;
    const from = at ?? last;
    const page = Math.max(1, Math.round(last / 8));
    const to = {
      ArrowLeft: from - 1, ArrowDown: from - 1, ArrowRight: from + 1, ArrowUp: from + 1,
      PageDown: from - page, PageUp: from + page, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") hide();
    else if (to !== undefined) { event.preventDefault(); show(Math.max(0, Math.min(last, to))); }
  });
  new ResizeObserver(draw).observe(plot);
  return draw;
}

function stepBack(px, py) {
  let d = "";
  for (let i = px.length - 1; i >= 0; i--) {
    d += i === px.length - 1 ? `L${spot(px[i], py[i])}` : `V${py[i].toFixed(1)}H${px[i].toFixed(1)}`;
  }
  return d;
}
