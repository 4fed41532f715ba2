"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const hovers = matchMedia("(hover: hover)").matches;

  function template() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), title: { font: { size: 12 } } };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--text"), family: getComputedStyle(document.body).fontFamily, size: 12 },
        xaxis: axis,
        yaxis: axis,
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") },
        hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") }, align: "left" },
      },
    };
  }

  function draw(figure) {
    const controls = [...figure.querySelectorAll("select, input:checked")];
    const view = plots[figure.dataset.plot][controls.map((control) => control.value).join("/")];
    // Plotly writes into what it is given; the views stay as they are.
    const { data, layout } = structuredClone(view);
    // A finger scrolls the page; only a mouse drags a zoom.
    const drag = touch ? false : "zoom";
    return Plotly.react(figure.querySelector(".plot"), data, { dragmode: drag, ...layout, template: template() }, {
      responsive: true,
      displaylogo: false,
      displayModeBar: hovers ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  }

  const figures = [...document.querySelectorAll("figure[data-plot]")];
  for (const figure of figures) {
    figure.addEventListener("change", () => draw(figure));
  }
  dark.addEventListener("change", () => figures.forEach(draw));
  Promise.all(figures.map(draw)).then(() => document.documentElement.classList.add("drawn"));
})();
