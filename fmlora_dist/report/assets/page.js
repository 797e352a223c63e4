"use strict";
{
  const runs = JSON.parse(document.getElementById("runs").textContent);
  const root = document.documentElement;
  const filters = document.getElementById("filters");
  const dialog = document.getElementById("run");
  const card = document.getElementById("card");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const tables = all("table.sortable");

  /** An element; whatever comes from a run is set as text or property, never as HTML. */
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // -- filters: what fits is shown, and the address holds the choice ---------------------------------------------

  const fits = (element, chosen) =>
    Object.entries(JSON.parse(element.dataset.facts)).every(
      ([name, values]) => !chosen[name]?.length || values.some((value) => chosen[name].includes(value)),
    );

  const choose = () => {
    const chosen = {};
    for (const box of all("input:checked", filters)) (chosen[box.name] ??= []).push(box.value);
    for (const element of all("[data-facts]")) element.hidden = !fits(element, chosen);
    for (const part of all(".part")) {
      const heads = [...part.querySelector("thead").lastElementChild.cells];
      for (const row of all("tbody tr", part)) heads.forEach((head, i) => (row.cells[i].hidden = head.hidden));
      part.hidden ||= heads.slice(1).every((head) => head.hidden) || !part.querySelector("tbody tr:not([hidden])");
    }
    for (const section of all("section")) {
      const parts = all("[data-facts]:is(.part, figure)", section);
      section.hidden = parts.length > 0 && parts.every((part) => part.hidden);
    }
    document.getElementById("nothing").hidden = all("section:not([hidden])").length > 0;
    filters.querySelector("[type=reset]").hidden = !Object.keys(chosen).length;
    remember();
  };

  const remember = () => {
    const address = new URLSearchParams(all("input:checked", filters).map((box) => [box.name, box.value]));
    tables.forEach((table, number) => {
      const head = table.tHead.querySelector("[aria-sort]");
      if (head) address.append("sort", `${number} ${head.cellIndex} ${head.ariaSort}`);
    });
    if (root.style.colorScheme) address.append("theme", root.style.colorScheme);
    history.replaceState(null, "", `#${address}`);
  };

  const recall = () => {
    const address = new URLSearchParams(location.hash.slice(1));
    for (const box of all("input", filters)) box.checked = address.getAll(box.name).includes(box.value);
    root.style.colorScheme = address.get("theme") ?? "";
    for (const sort of address.getAll("sort")) {
      const [number, column, direction] = sort.split(" ");
      const head = tables[number]?.tHead.lastElementChild.cells[column];
      for (let clicks = direction === "ascending" ? 2 : 1; head && clicks > 0; clicks--) head.click();
    }
    choose();
  };

  filters.hidden = filters.elements.length < 2;
  filters.addEventListener("change", choose);
  filters.addEventListener("reset", () => setTimeout(choose));
  document.querySelector("#nothing button").addEventListener("click", () => filters.reset());
  document.addEventListener("sort-end", remember);

  // -- a run: config, accuracy matrix, curve -----------------------------------------------------------------------

  const mean = (row) => row.reduce((sum, value) => sum + value, 0) / row.length;

  const curve = (chosen, others) => {
    const [width, height, left, bottom] = [440, 260, 34, 34];
    const n = chosen.n_tasks;
    const x = (task) => left + ((task - 1) / Math.max(n - 1, 1)) * (width - left - 12);
    const y = (accuracy) => 10 + (1 - accuracy / 100) * (height - bottom - 10);
    const draw = (tag, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      if (text !== undefined) element.append(text);
      return element;
    };
    const points = (run) => run.matrix.map((row, i) => [n - run.matrix.length + i + 1, mean(row)]);
    const line = (run, kind) =>
      draw("polyline", { class: kind, points: points(run).map(([t, a]) => `${x(t)},${y(a)}`).join(" ") });
    const picture = draw("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img" });
    picture.setAttribute("aria-label", "mean accuracy over the tasks seen so far, after each task");
    for (const accuracy of [0, 25, 50, 75, 100]) {
      picture.append(draw("line", { class: "grid", x1: left, x2: width - 12, y1: y(accuracy), y2: y(accuracy) }));
      picture.append(draw("text", { x: left - 6, y: y(accuracy) + 4, "text-anchor": "end" }, accuracy));
    }
    for (let task = 1, step = Math.ceil(n / 10); task <= n; task += step)
      picture.append(draw("text", { x: x(task), y: height - bottom + 18, "text-anchor": "middle" }, task));
    picture.append(draw("text", { x: width - 12, y: height - 2, "text-anchor": "end" }, "after task"));
    picture.append(...others.map((run) => line(run, "other")), line(chosen, "chosen"));
    for (const [task, accuracy] of points(chosen)) {
      const point = draw("circle", { cx: x(task), cy: y(accuracy), r: 3.5 });
      point.append(draw("title", {}, `after task ${task}: ${accuracy.toFixed(2)} %`));
      picture.append(point);
    }
    return picture;
  };

  const matrix = (run) => {
    const tasks = Array.from({ length: run.n_tasks }, (_, i) => i + 1);
    const head = make("tr", {}, make("th", { scope: "col", textContent: "after \\ on" }));
    head.append(...tasks.map((task) => make("th", { scope: "col", textContent: task })));
    const body = run.matrix.map((row, i) => {
      const after = run.n_tasks - run.matrix.length + i + 1;
      const cells = row.map((accuracy) => {
        const cell = make("td", { textContent: accuracy.toFixed(1) });
        cell.style.setProperty("--share", `${accuracy}%`);
        return cell;
      });
      return make("tr", {}, make("th", { scope: "row", textContent: after }), ...cells);
    });
    const table = make("table", { className: "matrix" }, make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", { className: "scroll", tabIndex: 0, ariaLabel: "accuracy matrix", role: "region" }, table);
  };

  const facts = (run) => {
    const fact = ([name, value]) =>
      make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }));
    const list = make("dl", { className: "facts" }, ...Object.entries(run.facts).map(fact));
    list.lastElementChild.className = "wide";
    return list;
  };

  const showRun = (chosen, members) => {
    all("button", document.getElementById("run-choice")).forEach((button, i) => {
      button.ariaPressed = members[i] === chosen;
    });
    const part = (title, ...children) => make("div", {}, make("h3", { textContent: title }), ...children);
    document.getElementById("run-body").replaceChildren(
      facts(chosen),
      make(
        "div",
        { className: "how" },
        part("Accuracy so far (%)", curve(chosen, members.filter((run) => run !== chosen))),
        part("Accuracy matrix (%)", matrix(chosen)),
      ),
      part("Config", make("pre", { textContent: chosen.config, tabIndex: 0 })),
    );
  };

  const behind = (button) => button.dataset.runs.split(" ").map((number) => runs[number]);

  const value = (run, button) => run.figures[button.dataset.measure] ?? "n/a";

  const open = (button, first) => {
    const members = behind(button);
    hideCard();
    document.getElementById("run-title").textContent = button.dataset.title;
    document.getElementById("run-choice").replaceChildren(
      ...members.map((run) =>
        make("button", {
          type: "button",
          textContent: `${run.name}: ${value(run, button)}`,
          onclick: () => showRun(run, members),
        }),
      ),
    );
    showRun(first ?? members[0], members);
    dialog.showModal();
    dialog.scrollTop = 0;
  };

  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  // -- what stands behind a cell, while the pointer or the keyboard is on it -----------------------------------------

  let leaving;

  const hideCard = () => {
    clearTimeout(leaving);
    if (card.matches(":popover-open")) card.hidePopover();
  };

  const showCard = (button) => {
    clearTimeout(leaving);
    card.replaceChildren(
      make("p", { textContent: button.dataset.title }),
      ...behind(button).map((run) =>
        make(
          "button",
          { type: "button", tabIndex: -1, onclick: () => open(button, run) },
          make("span", { textContent: run.name }),
          make("span", { textContent: value(run, button) }),
        ),
      ),
    );
    card.showPopover();
    const [cell, own] = [button.getBoundingClientRect(), card.getBoundingClientRect()];
    const below = cell.bottom + 4 + own.height < innerHeight;
    card.style.left = `${Math.max(8, Math.min(cell.left, innerWidth - own.width - 8))}px`;
    card.style.top = `${below ? cell.bottom + 4 : Math.max(8, cell.top - own.height - 4)}px`;
  };

  for (const button of all("button[data-runs]")) {
    button.addEventListener("click", () => open(button));
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && showCard(button));
    button.addEventListener("pointerleave", () => (leaving = setTimeout(hideCard, 200)));
    button.addEventListener("focus", () => button.matches(":focus-visible") && !dialog.open && showCard(button));
    button.addEventListener("blur", hideCard);
  }
  card.addEventListener("pointerenter", () => clearTimeout(leaving));
  card.addEventListener("pointerleave", hideCard);
  document.addEventListener("scroll", hideCard, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideCard());

  // -- light and dark --------------------------------------------------------------------------------------------

  const theme = document.getElementById("theme");
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.style.colorScheme || (preferred.matches ? "dark" : "light")) === "dark";
  const label = () => (theme.textContent = isDark() ? "light" : "dark");
  theme.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    label();
    remember();
  });
  preferred.addEventListener("change", label);
  theme.hidden = false;
  recall();
  label();

  // -- served while a grid runs: shown anew when there is news, but not while somebody reads a run ----------------------

  if (root.dataset.version) {
    setInterval(async () => {
      const answer = await fetch("version", { cache: "no-store" }).catch(() => null);
      if (answer?.ok && (await answer.text()) !== root.dataset.version && !dialog.open) location.reload();
    }, 2000);
  }
}
