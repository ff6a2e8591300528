const boxes = [...document.querySelectorAll(".steps")].map(box => ({
  box, steps: JSON.parse(box.querySelector("script").textContent), slider: box.querySelector("input")}));
const text = value => value === 0 ? "0" : value < 1e-3 ? value.toExponential(1) : value.toPrecision(3);

function show({box, steps, slider}) {
  const n = +slider.value, step = steps[n];
  for (const kind of ["x", "denoised"])
    box.querySelectorAll(`[data-kind=${kind}] img`).forEach((image, b) => image.src = step[kind][b]);
  for (const drift of ["ode", "guidance"])
    Object.assign(box.querySelector(`.at-${drift}`), {value: step[drift], textContent: text(step[drift])});
  const where = `${n + 1} of ${steps.length}, σ = ${text(step.sigma)}`;
  box.querySelector("output").textContent = where;
  slider.setAttribute("aria-valuetext", where);
  box.querySelector(".marker").style.left = `${100 * n / (steps.length - 1)}%`;
}

for (const one of boxes) {
  // Runs of as many steps go together: they are here to be compared.
  one.slider.addEventListener("input", () => boxes.filter(other => other.steps.length === one.steps.length)
    .forEach(other => { other.slider.value = one.slider.value; show(other); }));
  show(one);
}

const theme = document.getElementById("theme"), root = document.documentElement;
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.style.colorScheme = dark === "dark" ? "light" : "dark";
});
