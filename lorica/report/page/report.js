"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const percents = new Set([...data.measures, ...data.rates].map(([name]) => name));
  const DASHES = ["", "7 4", "10 3 2 3", "2 3"];
  const WIDE = innerWidth < 700 ? 380 : 560; // of a chart, about as many as the pixels that it gets

  // ---- elements; every text is a text

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter(child => child !== null && child !== undefined));
    return node;
  }
  const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const s = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // ---- numbers

  const compact = value => {
    for (const [unit, size] of [["", 1], ["k", 1e3], ["M", 1e6], ["G", 1e9]]) {
      if (Math.abs(value) < 999.5 * size || unit === "G") return unit ? (value / size).toPrecision(3) + unit : value.toFixed(0);
    }
  };
  const minus = text => text.replace("-", "−");
  const short = value => minus(Math.abs(value) >= 1e5 ? compact(value) : String(Number(value.toPrecision(4))));
  const percent = (value, digits = 1) => minus((100 * value).toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
  const written = (name, value) => {
    if (value === null || value === undefined) return "–";
    if (percents.has(name)) return percent(value);
    if (name === "flops_per_prediction") return short(value / 1e9);
    return name === "trainable" || name === "stored" ? compact(value) : short(value);
  };
  const chance = ([seed, order]) => (order === null ? `seed ${seed}` : `seed ${seed}, class order ${order}`);

  // ---- tables

  /** A table that its headings sort. Columns: {heading, about, of(row): what sorts, cell(row): what is shown, lower, text}. */
  function table(caption, columns, rows, { below = false } = {}) {
    const body = h("tbody");
    const headings = columns.map((column, place) =>
      h("th", { scope: "col", title: column.about ?? null, class: column.text ? "text" : null, "aria-sort": "none" },
        h("button", { type: "button", onclick: () => sort(place) }, column.heading)));
    const draw = order => body.replaceChildren(...order.map(row => h("tr", {}, columns.map((column, place) =>
      h(place ? "td" : "th", { scope: place ? null : "row", class: [column.text ? "text" : "", column.emphasis?.(row) ?? ""].join(" ").trim() || null },
        column.cell(row))))));
    function sort(place) {
      const heading = headings[place], now = heading.getAttribute("aria-sort");
      const first = columns[place].text || columns[place].lower ? "ascending" : "descending";
      const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      headings.forEach(each => each.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const missing = value => value === null || value === undefined;
      draw([...rows].sort((one, other) => {
        const [a, b] = [columns[place].of(one), columns[place].of(other)];
        if (missing(a) || missing(b)) return missing(a) - missing(b); // they come last either way
        return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      }));
    }
    draw(rows);
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      h("table", { "aria-label": caption, class: below ? "below" : null }, h("thead", {}, h("tr", {}, headings)), body));
  }

  function choice(label, options, chosen, changed) {
    const select = h("select", { onchange: event => changed(event.target.value) },
      options.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text)));
    return h("label", {}, label, " ", select);
  }

  const card = (title, control, ...content) =>
    h("section", { class: "card" }, h("header", {}, h("h3", {}, title), control), content);

  // ---- charts

  function ticks(low, high, number, whole) {
    const raw = (high - low) / number || 1, power = 10 ** Math.floor(Math.log10(raw));
    let step = [1, 2, 5, 10].map(each => each * power).find(each => each >= raw * 0.999);
    if (whole) step = Math.max(1, Math.round(step));
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
    return found;
  }

  /** Positions of values along an axis, linear or logarithmic. */
  function scale(values, from, to, { log = false, whole = false, zero = false, number = 5, room = 0.05 } = {}) {
    let low = Math.min(...values), high = Math.max(...values);
    if (log) {
      [low, high] = [Math.log10(low), Math.log10(high)];
      const space = (high - low || 1) * 0.08;
      [low, high] = [low - space, high + space];
      const at = value => from + (Math.log10(value) - low) / (high - low) * (to - from);
      const marks = [];
      for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
        for (const each of high - low > 2.5 ? [1] : [1, 2, 5]) {
          const value = each * 10 ** power;
          if (Math.log10(value) >= low && Math.log10(value) <= high) marks.push(Number(value.toPrecision(3)));
        }
      }
      return { at, marks: marks.filter((_, place) => place % Math.ceil(marks.length / 7) === 0) };
    }
    if (zero) low = Math.min(0, low);
    const space = (high - low || Math.abs(high) || 1) * room;
    [low, high] = [zero && low === 0 ? 0 : low - space, high + space];
    return { at: value => from + (value - low) / (high - low) * (to - from), marks: ticks(low, high, number, whole) };
  }

  const shapes = [
    (x, y) => s("circle", { cx: x, cy: y, r: 4, class: "mark" }),
    (x, y) => s("rect", { x: x - 3.6, y: y - 3.6, width: 7.2, height: 7.2, class: "mark" }),
    (x, y) => s("path", { d: `M${x} ${y - 4.8}l4.6 8h-9.2z`, class: "mark" }),
    (x, y) => s("path", { d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z`, class: "mark" }),
    (x, y) => s("path", { d: `M${x} ${y + 4.8}l4.6 -8h-9.2z`, class: "mark" }),
  ];
  const shape = (place, x, y) => shapes[place % shapes.length](x, y);

  function frame(x, y, { height, xLabel, yLabel, xText, yText, left = 52 }) {
    return [
      y.marks.map(mark => s("g", {}, s("line", { class: "grid", x1: left, x2: WIDE, y1: y.at(mark), y2: y.at(mark) }),
        s("text", { x: left - 8, y: y.at(mark) + 4, "text-anchor": "end" }, yText(mark)))),
      s("line", { class: "axis", x1: left, x2: WIDE, y1: height - 44, y2: height - 44 }),
      x.marks.map(mark => s("g", {}, s("line", { class: "axis", x1: x.at(mark), x2: x.at(mark), y1: height - 44, y2: height - 39 }),
        s("text", { x: x.at(mark), y: height - 25, "text-anchor": "middle" }, xText(mark)))),
      s("text", { x: (left + WIDE) / 2, y: height - 5, "text-anchor": "middle" }, xLabel),
      s("text", { x: 0, y: 10 }, yLabel),
    ].flat();
  }

  /** Lines over numbers. Series: {label, points: [[x, y, deviation]]}; y may be null, where the line breaks. */
  function lines(about, series, { xLabel, yLabel, yText = short, yTick = yText, xText = short, whole = true, fading = false, marks = true, bars = [], height = 330, yHead }) {
    const hidden = new Set();
    const all = series.flatMap(each => each.points.filter(([, y]) => y !== null));
    if (!all.length) return null;
    const ys = all.flatMap(([, y, deviation]) => [y - (deviation ?? 0), y + (deviation ?? 0)]);
    const positive = Math.min(...ys) > 0;
    const log = Boolean(yHead) && positive && Math.max(...ys) > 200 * Math.min(...ys);
    const x = scale(all.map(([at]) => at), 60, WIDE - 8, { whole, number: 10, room: 0.01 });
    const y = scale(ys, height - 48, 24, { log });
    const drawing = s("svg", { viewBox: `0 0 ${WIDE} ${height}`, role: "img", "aria-label": about });
    const cross = s("line", { class: "cross", y1: 20, y2: height - 44, visibility: "hidden" });
    function draw() {
      drawing.replaceChildren(
        ...frame(x, y, { height, xLabel, yLabel: yLabel + (log ? ", logarithmic" : ""), xText, yText: yTick }),
        ...(bars.length > 40 ? [] : bars).map(at => s("line", { class: "grid", x1: x.at(at), x2: x.at(at), y1: 20, y2: height - 44 })),
        ...series.map((each, place) => {
          if (hidden.has(place)) return null;
          const parts = [];
          let open = [];
          for (const point of [...each.points, [0, null]]) {
            if (point[1] !== null) open.push(point);
            else if (open.length) { parts.push(open); open = []; }
          }
          const group = s("g", { class: `c${fading ? 0 : place % 7}`, opacity: fading ? 0.25 + 0.75 * (place + 1) / series.length : null });
          for (const part of parts) {
            if (part.some(([, , deviation]) => deviation)) {
              const above = part.map(([at, v, d]) => `${x.at(at)},${y.at(v + d)}`), below = part.map(([at, v, d]) => `${x.at(at)},${y.at(v - d)}`);
              group.append(s("polygon", { class: "band", points: [...above, ...below.reverse()].join(" ") }));
            }
            group.append(s("polyline", { class: "curve", points: part.map(([at, v]) => `${x.at(at)},${y.at(v)}`).join(" "),
              "stroke-dasharray": fading ? null : DASHES[Math.floor(place / 2) % 4] || null }));
            if ((marks && part.length <= 40) || part.length === 1) group.append(...part.map(([at, v]) => shape(fading ? 0 : place, x.at(at), y.at(v))));
          }
          return group;
        }).filter(Boolean),
        cross);
    }
    drawing.addEventListener("pointermove", event => {
      const box = drawing.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * WIDE;
      const xs = [...new Set(series.flatMap((each, place) => (hidden.has(place) ? [] : each.points.map(([v]) => v))))];
      if (!xs.length) return;
      const near = xs.reduce((best, v) => (Math.abs(x.at(v) - at) < Math.abs(x.at(best) - at) ? v : best));
      cross.setAttribute("visibility", "visible");
      cross.setAttribute("x1", x.at(near));
      cross.setAttribute("x2", x.at(near));
      const told = series.flatMap((each, place) => {
        const point = hidden.has(place) ? null : each.points.find(([v]) => v === near);
        return point && point[1] !== null ? [[point[1], `${each.label}: ${yText(point[1])}${point[2] ? ` ± ${yText(point[2])}` : ""}`]] : [];
      }).sort(([one], [other]) => other - one);
      say(event, [`${xLabel}: ${xText(near)}`, ...told.slice(0, 14).map(([, text]) => text)].join("\n"));
    });
    drawing.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); tip.hidden = true; });
    draw();
    const legend = fading || series.length < 2 ? null : h("div", { class: "legend" }, series.map((each, place) =>
      h("button", { type: "button", "aria-pressed": "true", class: `c${place % 7}`, title: "show or hide", onclick: event => {
        hidden.has(place) ? hidden.delete(place) : hidden.add(place);
        event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(place)));
        draw();
      } }, s("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" },
        s("line", { class: "curve", x1: 0, x2: 30, y1: 6, y2: 6, "stroke-dasharray": DASHES[Math.floor(place / 2) % 4] || null }), marks ? shape(place, 15, 6) : null), each.label)));
    return h("figure", {}, drawing, legend, numbers(about, series, xLabel, xText, yText));
  }

  /** The values of a chart as a table, made when it is asked for. */
  function numbers(about, series, xLabel, xText, yText) {
    return later("Numbers", "numbers", () => {
      const xs = [...new Set(series.flatMap(each => each.points.map(([x]) => x)))].sort((a, b) => a - b);
      const places = series.map(each => new Map(each.points.map(([x, y, deviation]) => [x, [y, deviation]])));
      const value = (place, x) => places[place].get(x)?.[0] ?? null;
      return table(about, [
        { heading: xLabel, of: x => x, cell: x => xText(x), lower: true },
        ...series.map((each, place) => ({ heading: each.label, of: x => value(place, x), cell: x => {
          const [y, deviation] = places[place].get(x) ?? [null];
          return y === null ? "–" : yText(y) + (deviation ? ` ± ${yText(deviation)}` : "");
        } })),
      ], xs);
    });
  }

  /** Something under a heading that is made when it is first opened. */
  function later(heading, kind, make) {
    const inside = h("div");
    return h("details", { class: kind, ontoggle: event => {
      if (event.currentTarget.open && !inside.hasChildNodes()) inside.append(...[make()].flat());
    } }, h("summary", {}, heading), inside);
  }

  function say(event, text) {
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const right = event.clientX + 14 + width > innerWidth, down = event.clientY + 14 + height > innerHeight;
    tip.style.left = `${Math.max(4, right ? event.clientX - width - 10 : event.clientX + 14)}px`;
    tip.style.top = `${Math.max(4, down ? event.clientY - height - 10 : event.clientY + 14)}px`;
  }

  /** Squares of shares, as dark as they are large: cells [row, column, share, text]. */
  function heat(about, [rows, columns], cells, { xLabel, yLabel, numbersUpTo = 0, describe, marks }) {
    const side = Math.min(46, Math.max(1.6, 560 / Math.max(rows, columns)));
    const left = 44, top = 8, width = left + side * columns, height = top + side * rows + 40;
    const square = (row, column, share) => s("rect", { class: "cell", x: left + side * column, y: top + side * row,
      width: side > 6 ? side - 1 : side, height: side > 6 ? side - 1 : side, "fill-opacity": 0.04 + 0.96 * share });
    const shown = new Map(cells.map(cell => [`${cell[0]},${cell[1]}`, cell]));
    const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about },
      s("rect", { class: "frame", x: left, y: top, width: side * columns, height: side * rows }),
      cells.map(([row, column, share]) => square(row, column, share)),
      numbersUpTo >= rows ? cells.map(([row, column, share]) => s("text", { class: share > 0.6 ? "on" : "strong", "text-anchor": "middle",
        x: left + side * (column + 0.5) - 0.5, y: top + side * (row + 0.5) + 4 }, percent(share, side < 34 ? 0 : 1))) : [],
      marks(rows).map(place => s("text", { x: left - 6, y: top + side * (place - 0.5) + 4, "text-anchor": "end" }, place)),
      marks(columns).map(place => s("text", { x: left + side * (place - 0.5), y: height - 24, "text-anchor": "middle" }, place)),
      s("text", { x: left + side * columns / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
      s("text", { transform: `translate(11 ${top + side * rows / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
    drawing.style.maxWidth = `${width}px`;
    drawing.addEventListener("pointermove", event => {
      const box = drawing.getBoundingClientRect(), unit = width / box.width;
      const column = Math.floor(((event.clientX - box.left) * unit - left) / side), row = Math.floor(((event.clientY - box.top) * unit - top) / side);
      const cell = shown.get(`${row},${column}`);
      if (cell) say(event, describe(cell)); else tip.hidden = true;
    });
    drawing.addEventListener("pointerleave", () => { tip.hidden = true; });
    return drawing;
  }
  const every = number => {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find(each => number <= 14 * each) ?? 1000;
    return Array.from({ length: Math.floor(number / step) }, (_, place) => (place + 1) * step);
  };

  // ---- sections of a benchmark

  const KINDS = [["1", "± standard deviation"], ["2", "± standard error"], ["3", "± 95 % interval"]];

  function summary(benchmark) {
    let kind = 1;
    const place = h("div");
    const names = [...data.measures, ...data.rates, ...data.costs.map(([name, heading]) => [name, heading, true])]
      .filter(([name]) => benchmark.rows.some(row => row.spreads[name]));
    const mean = (row, name) => row.spreads[name]?.[0] ?? null;
    function draw() {
      place.replaceChildren(table(`Summary of ${benchmark.title}`, [
        { heading: "Method", text: true, of: row => row.label, cell: row => row.label },
        { heading: "Runs", about: "over which means are", of: row => row.number, cell: row => h("span", { title: row.chance.map(chance).join("\n") }, row.number) },
        ...names.map(([name, heading, lower]) => {
          const best = (lower ? Math.min : Math.max)(...benchmark.rows.map(row => mean(row, name)).filter(value => value !== null));
          return {
            heading, lower, about: percents.has(name) ? "percent" : null, of: row => mean(row, name),
            emphasis: row => (percents.has(name) && benchmark.rows.length > 1 && mean(row, name) === best ? "best" : ""),
            cell: row => {
              const spread = row.spreads[name]?.[kind];
              const shown = spread !== null && spread !== undefined && (percents.has(name) || spread > 0);
              return [written(name, mean(row, name)), shown ? h("span", { class: "spread" }, ` ± ${written(name, spread)}`) : ""];
            },
          };
        }),
        ...data.columns.map((heading, at) => [heading, at]).filter(([heading]) => !names.some(([, other]) => other === heading))
          .map(([heading, at]) => ({ heading, text: true, of: row => row.columns[at], cell: row => row.columns[at] })),
      ], benchmark.rows));
    }
    draw();
    return card("Summary", choice("Spread", KINDS, kind, value => { kind = Number(value); draw(); }), place);
  }

  const label = (rows, place) => rows[place].label;

  function curves(benchmark) {
    const series = benchmark.rows.map(row => ({ label: row.label, points: row.curve }));
    const last = row => percent(row.curve[row.curve.length - 1][1]);
    return card("Average accuracy over the tasks learned", null, lines(
      `Average accuracy in percent over the tasks so far. After the last task: ${benchmark.rows.map(row => `${row.label} ${last(row)}`).join(", ")}.`,
      series, { xLabel: "tasks learned", yLabel: "accuracy (%)", yText: value => percent(value), yTick: value => percent(value, 0) }));
  }

  function costs(benchmark) {
    const known = data.costs.filter(([name]) => benchmark.rows.some(row => row.spreads[name]));
    if (!known.length) return null;
    const place = h("div"), height = 330;
    function draw(cost) {
      const [name, heading] = known.find(([each]) => each === cost);
      const points = benchmark.rows.map((row, index) => ({ row, index, x: row.spreads[name]?.[0], y: row.spreads.acc[0], d: row.spreads.acc[1] ?? 0 })).filter(each => each.x !== undefined);
      const xs = points.map(each => each.x), log = Math.min(...xs) > 0 && Math.max(...xs) > 8 * Math.min(...xs);
      const x = scale(xs, 70, WIDE - 130, { log, zero: !log, number: 4 });
      const y = scale(points.flatMap(each => [each.y - each.d, each.y + each.d]), height - 56, 30);
      // a text moves down until it is clear of those above it
      const texts = [];
      for (const each of [...points].sort((a, b) => b.y - a.y)) {
        let at = y.at(each.y) + 4;
        while (texts.some(other => Math.abs(other.x - x.at(each.x)) < 130 && Math.abs(other.at - at) < 13)) at += 3;
        texts.push({ x: x.at(each.x), at, each });
      }
      const about = `Accuracy against ${heading}: ${points.map(each => `${each.row.label} ${percent(each.y)} at ${written(name, each.x)}`).join(", ")}.`;
      place.replaceChildren(h("figure", {}, s("svg", { viewBox: `0 0 ${WIDE} ${height}`, role: "img", "aria-label": about },
        frame(x, y, { height, xLabel: heading + (log ? ", logarithmic" : ""), yLabel: "Acc (%)", xText: value => written(name, value), yText: value => percent(value, 0) }),
        points.map(each => s("g", { class: `c${each.index % 7}` },
          s("title", {}, `${each.row.label}: ${percent(each.y)} %, ${heading} ${written(name, each.x)}`),
          each.d ? s("line", { class: "whisker", x1: x.at(each.x), x2: x.at(each.x), y1: y.at(each.y - each.d), y2: y.at(each.y + each.d) }) : null,
          shape(each.index, x.at(each.x), y.at(each.y)))),
        texts.map(({ x: at, at: down, each }) => s("text", { class: "strong", x: at + 9, y: down }, each.row.label.length > 24 ? `${each.row.label.slice(0, 23)}…` : each.row.label)))));
    }
    draw(known[0][0]);
    return card("Cost against accuracy", choice("Cost", known, known[0][0], draw), place);
  }

  function comparisons(benchmark) {
    if (!benchmark.differences.length) {
      if (benchmark.rows.length < 2) return null;
      return card("Paired comparisons", null, h("p", { class: "quiet" }, "No two rows share a seed and a class order, so that none are paired."));
    }
    const both = benchmark.differences.flatMap(each => {
      const turned = Object.fromEntries(Object.entries(each.spreads).map(([name, [mean, ...spread]]) => [name, [-mean, ...spread]]));
      return [each, { ...each, row: each.against, against: each.row, spreads: turned }];
    });
    const rivals = [...new Set(both.map(each => each.against))].sort((a, b) => a - b);
    const best = [...rivals].sort((a, b) => benchmark.rows[b].spreads.acc[0] - benchmark.rows[a].spreads.acc[0])[0];
    const chosen = benchmark.against ?? best;
    const place = h("div");
    function draw(rival) {
      const own = both.filter(each => each.against === Number(rival));
      place.replaceChildren(table(`Differences from ${label(benchmark.rows, rival)}`, [
        { heading: "Method", text: true, of: each => label(benchmark.rows, each.row), cell: each => label(benchmark.rows, each.row) },
        { heading: "Pairs", about: "of runs with the same seed and class order", of: each => each.pairs, cell: each => String(each.pairs) },
        ...data.measures.map(([name, heading, lower]) => ({
          heading, lower, of: each => each.spreads[name][0],
          emphasis: each => { const [mean, , , half] = each.spreads[name]; return half !== null && Math.abs(mean) > half ? "sure" : ""; },
          cell: each => {
            const [mean, , , half] = each.spreads[name];
            const signed = (mean > 0.0005 ? "+" : "") + percent(mean);
            return [signed, half === null ? "" : h("span", { class: "spread" }, ` [${percent(mean - half)}, ${percent(mean + half)}]`)];
          },
        })),
      ], own, { below: true }),
      h("p", { class: "quiet" }, "Points more (+) or less (−), with 95 % intervals over pairs of runs that share seed, class order, data and weights. Bold: the interval excludes 0. ",
        own.some(each => each.pairs === 1) ? "A single pair has no interval: its difference may be chance." : ""));
    }
    draw(chosen);
    return card("Paired comparisons", choice("against", rivals.map(each => [each, label(benchmark.rows, each)]), chosen, draw), place);
  }

  // ---- sections of a run

  function matrix(run) {
    const rows = run.details.matrix, number = rows.length, last = rows[number - 1];
    const cells = rows.flatMap((row, t) => row.flatMap((value, i) => (value === null ? [] : [[t, i, value]])));
    const about = `Accuracy on each task after each task, in percent. After the last one: ${last.map(value => percent(value)).join(", ")}.`;
    return h("figure", {}, h("h4", {}, "Accuracy matrix"),
      heat(about, [number, number], cells, { xLabel: "task tested", yLabel: "tasks learned", numbersUpTo: 14, marks: every,
        describe: ([t, i, value]) => `task ${i + 1} after ${t + 1} tasks: ${percent(value)} %` }),
      numbers(about, last.map((_, i) => ({ label: `task ${i + 1}`, points: rows.flatMap((row, t) => (t >= i ? [[t + 1, row[i]]] : [])) })), "tasks learned", String, value => percent(value)));
  }

  function terms(run) {
    const { names, epochs, rows } = run.details.terms;
    const ofTask = new Map();
    for (const row of rows) ofTask.set(row[0], (ofTask.get(row[0]) ?? 0) + 1);
    const seen = new Map();
    const xs = rows.map(([task]) => {
      const place = seen.get(task) ?? 0;
      seen.set(task, place + 1);
      return task + (place + 1) / ofTask.get(task);
    });
    const series = names.map((name, at) => ({ label: name.replaceAll("_", " "), points: rows.map((row, place) => [xs[place], row[4 + at]]) }));
    const bars = [...ofTask.keys()].map(task => task + 1);
    const rates = { label: "learning rate", points: rows.map((row, place) => [xs[place], row[3]]) };
    const steady = rows.every(row => row[3] === rows[0][3]);
    const options = { xLabel: "tasks learned", marks: false, bars, whole: true, height: 260 };
    const about = `Terms of the loss, means over ${epochs === 1 ? "each epoch" : `${epochs} epochs`}`;
    return h("figure", {}, h("h4", {}, about),
      lines(`${about}: ${series.map(each => each.label).join(", ")}.`, series, { ...options, yLabel: series.length === 1 ? series[0].label : "term", yHead: true }),
      steady ? h("p", { class: "quiet" }, `Learning rate ${short(rows[0][3])} throughout.`) : [h("h4", {}, "Learning rate"), lines("Learning rate.", [rates], { ...options, yLabel: "learning rate", height: 180 })]);
  }

  function diagnostics(run) {
    return Object.entries(run.details.diagnostics).map(([name, rows]) => {
      const title = name.replaceAll("_", " ");
      if (name === "kept") {
        const number = { label: "kept", points: rows.map((row, t) => [t + 1, row.length]) };
        return h("div", {}, h("h4", {}, "Directions kept"), lines("How many directions are kept after each task.", [number], { xLabel: "tasks learned", yLabel: "kept", height: 220 }));
      }
      const listed = rows.some(Array.isArray);
      const step = Math.ceil(rows.length / 12); // more lines than these nobody tells apart
      const series = listed
        ? rows.map((row, t) => ({ label: `after task ${t + 1}`, points: [row].flat().map((value, k) => [k + 1, value]) })).filter((_, t) => (rows.length - 1 - t) % step === 0)
        : [{ label: title, points: rows.map((value, t) => [t + 1, value]) }];
      const chart = lines(`${title}${listed ? `, a line after ${step > 1 ? `every ${step}th` : "each"} task` : " after each task"}.`, series,
        { xLabel: listed ? (name === "magnitudes" || name === "gates" ? "direction" : "place") : "tasks learned", yLabel: title, fading: listed, height: 260 });
      return chart && h("div", {}, h("h4", {}, title[0].toUpperCase() + title.slice(1), listed ? h("span", { class: "quiet" }, `  (after ${step > 1 ? `every ${step}th` : "each"} task; the last one is the darkest)`) : ""), chart);
    });
  }

  function confusion(run) {
    const { classes: index, counts } = run.details.confusion, classes = data.classes[index], number = classes.length;
    const totals = new Array(number).fill(0), right = new Array(number).fill(0);
    for (const [one, other, samples] of counts) { totals[one] += samples; if (one === other) right[one] += samples; }
    const wrong = counts.filter(([one, other]) => one !== other);
    const about = `What samples of each of ${number} classes were taken for after the last task; ${wrong.length} pairs of classes were confused.`;
    return h("figure", {}, h("h4", {}, "Confusion after the last task"),
      heat(about, [number, number], counts.map(([one, other, samples]) => [one, other, samples / totals[one], samples]),
        { xLabel: "taken for (number of the class)", yLabel: "class", numbersUpTo: 12, marks: every,
          describe: ([one, other, share, samples]) => `${classes[one]}\ntaken for ${classes[other]}\n${samples} of ${totals[one]} (${percent(share)} %)` }),
      later("Most frequent mistakes, and each class", "numbers", () => [
        table("Most frequent mistakes", [
          { heading: "Class", text: true, of: ([one]) => classes[one], cell: ([one]) => classes[one] },
          { heading: "taken for", text: true, of: ([, other]) => classes[other], cell: ([, other]) => classes[other] },
          { heading: "Samples", of: each => each[2], cell: each => String(each[2]) },
          { heading: "of", of: ([one]) => totals[one], cell: ([one]) => String(totals[one]) },
        ], wrong.slice(0, 25)),
        table("Accuracy of each class", [
          { heading: "Class", text: true, of: one => classes[one], cell: one => classes[one] },
          { heading: "Right (%)", lower: true, of: one => right[one] / totals[one], cell: one => percent(right[one] / totals[one]) },
          { heading: "Samples", of: one => totals[one], cell: one => String(totals[one]) },
        ], classes.map((_, one) => one).filter(one => totals[one])),
      ]));
  }

  function recipe(run) {
    const text = run.details.recipe;
    const told = h("span", { role: "status", class: "quiet" });
    const block = h("pre", { tabindex: 0, "aria-label": "recipe" }, text);
    async function copy() {
      try {
        await navigator.clipboard.writeText(text);
        told.textContent = "copied ";
      } catch {
        getSelection().selectAllChildren(block);
        told.textContent = "selected: copy it with the keyboard ";
      }
    }
    return h("div", { class: "recipe" },
      h("header", {}, h("h4", {}, "Recipe"), h("span", {}, told, h("button", { type: "button", class: "copy", onclick: copy }, "Copy"))), block,
      h("p", { class: "quiet" }, Object.entries(run.details.machine ?? {}).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · ")));
  }

  function single(run) {
    const part = run.learned < run.tasks ? h("span", { class: "badge" }, `${run.learned} of ${run.tasks} tasks`) : null;
    const accuracy = part ? "so far" : "";
    const element = later("", "card run", () => {
      const known = run.details;
      if (!known) return h("p", { class: "quiet" }, "This page has no room for more of this run.");
      return h("div", {},
        h("p", { class: "quiet" }, run.name),
        h("div", { class: "pair" }, known.matrix ? matrix(run) : null, known.confusion ? confusion(run) : null,
          known.terms ? terms(run) : null, known.diagnostics ? diagnostics(run) : null),
        known.recipe ? recipe(run) : null);
    });
    element.querySelector("summary").append(h("strong", {}, run.label), h("span", {}, chance([run.seed, run.order])),
      h("span", {}, `Acc ${percent(run.measures.acc)} % ${accuracy}`), part ?? "");
    return element;
  }

  function section(benchmark, place) {
    const complete = benchmark.runs.filter(run => run.learned === run.tasks).length;
    const partial = benchmark.runs.length - complete;
    const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
    return h("section", { id: `benchmark-${place}`, "aria-labelledby": `heading-${place}` },
      h("h2", { id: `heading-${place}` }, benchmark.title),
      h("p", { class: "quiet" }, `${count(complete, "complete run")}${partial ? `, ${partial} not complete` : ""} · ${benchmark.tested} test samples · ${benchmark.contents}`),
      benchmark.rows.length ? [
        summary(benchmark),
        h("div", { class: "pair" }, curves(benchmark), costs(benchmark)),
        comparisons(benchmark),
      ] : h("p", { class: "card" }, "No run is complete."),
      h("h3", { class: "runs" }, count(benchmark.runs.length, "run")),
      benchmark.runs.map(single));
  }

  // ---- the page

  const runs = data.benchmarks.flatMap(each => each.runs), done = runs.filter(run => run.learned === run.tasks).length;
  document.getElementById("subtitle").textContent =
    `${runs.length} runs, ${done} of them complete${data.lorica ? ` · made by lorica ${data.lorica}` : ""}`;
  if (data.benchmarks.length > 1) {
    document.getElementById("contents").append(h("ul", {}, data.benchmarks.map((each, place) =>
      h("li", {}, h("a", { href: `#benchmark-${place}` }, each.title)))));
  }
  document.getElementById("main").append(...data.benchmarks.map(section));
  const said = [...data.explained, ...data.remarks, ...data.leftOut.map(line => `Left out: ${line}`)];
  document.getElementById("notes").append(...said.map(line => h("p", {}, line)));
  const all = [...document.querySelectorAll(".run")], first = all.find((each, place) => runs[place].learned === runs[place].tasks) ?? all[0];
  if (first) first.open = true;
})();
