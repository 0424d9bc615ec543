// Shows the values of curves under the pointer. Without it the page is whole: each picture has a table of its figures.
for (const figure of document.querySelectorAll("figure[data-hover]")) {
  const { x, panels } = JSON.parse(figure.dataset.hover);
  const box = document.createElement("div");
  box.className = "hover";
  box.setAttribute("aria-hidden", "true");
  box.hidden = true;
  figure.append(box);
  const nearest = (values, at) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < at) low = middle; else high = middle;
    }
    return at - values[low] < values[high] - at ? low : high;
  };
  const told = (number) => Math.abs(number) >= 1e5 || (number && Math.abs(number) < 1e-3)
    ? number.toExponential(2) : String(+number.toPrecision(4));
  const row = (...texts) => {
    const line = document.createElement("div");
    for (const text of texts) line.append(Object.assign(document.createElement("span"), { textContent: text }));
    return line;
  };
  for (const svg of figure.querySelectorAll(".drawing > svg")) {
    const kind = svg.parentElement.classList.contains("narrow") ? "narrow" : "wide";
    const line = document.createElementNS(svg.namespaceURI, "line");
    line.setAttribute("class", "cursor");
    const hide = () => { box.hidden = true; line.remove(); };
    const show = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const panel = panels.find(({ [kind]: [left, top, right, bottom] }) =>
        point.x >= left - 4 && point.x <= right + 4 && point.y >= top && point.y <= bottom);
      if (!panel) return hide();
      const [left, top, right, bottom, low, high] = panel[kind];
      const share = (point.x - left) / (right - left);
      const at = panel.log ? low * (high / low) ** share : low + share * (high - low);
      const found = panel.curves.map((curve) => [curve, nearest(curve.x, at)]);
      const main = found.reduce((a, b) => Math.abs(b[0].x[b[1]] - at) < Math.abs(a[0].x[a[1]] - at) ? b : a);
      const here = main[0].x[main[1]];
      const place = panel.log ? Math.log(here / low) / Math.log(high / low) : (here - low) / (high - low);
      for (const [name, value] of [["x1", left + place * (right - left)], ["x2", left + place * (right - left)],
        ["y1", top], ["y2", bottom]]) line.setAttribute(name, value);
      svg.append(line);
      box.replaceChildren(row(panel.x ?? x, told(here)),
        ...found.map(([curve, k]) => row(curve.name, told(curve.y[k]) + (curve.unit ? " " + curve.unit : ""))));
      box.hidden = false;
      const frame = figure.getBoundingClientRect();
      const room = frame.width - box.offsetWidth;
      box.style.left = Math.max(0, Math.min(room, event.clientX - frame.left + 14)) + "px";
      const above = event.clientY - frame.top - box.offsetHeight - 10;
      box.style.top = (above >= 0 ? above : event.clientY - frame.top + 18) + "px";
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", hide);
  }
}
