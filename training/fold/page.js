"use strict";
// A comfort only: without scripts the page shows the same, by titles, links and radio buttons.
const details = document.getElementById("details");
const show = (box) => {
  document.querySelectorAll(".box.lit").forEach((lit) => lit.classList.remove("lit"));
  details.hidden = !box;
  if (!box) return;
  details.textContent = box.querySelector("title").textContent;
  box.classList.add("lit");
  (box.dataset.to || "").split(" ").filter(Boolean).forEach((id) => {
    const other = document.getElementById(id);
    if (other) other.classList.add("lit");
  });
};
document.querySelectorAll("svg").forEach((svg) => {
  for (const kind of ["pointerover", "focusin"]) {
    svg.addEventListener(kind, (event) => {
      const box = event.target.closest(".box");
      if (box) show(box);
    });
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") show(null);
});
const search = document.getElementById("search");
if (search) {
  search.hidden = false;
  const rows = [...document.querySelectorAll("tbody tr")];
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    rows.forEach((row) => row.classList.toggle("missed", !row.textContent.toLowerCase().includes(wanted)));
  });
}
