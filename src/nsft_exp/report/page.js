(() => {
  document.documentElement.classList.add("js");

  for (const box of document.querySelectorAll(".scroll")) {
    const hint = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.addEventListener("scroll", hint, { passive: true });
    new ResizeObserver(hint).observe(box);
  }

  const buttons = [...document.querySelectorAll(".tabs button")];
  const shelves = [...document.querySelectorAll(".shelf")];
  const differ = document.getElementById("differ");
  if (!buttons.length) return;

  const show = () => {
    const name = buttons.find((b) => b.getAttribute("aria-pressed") === "true").dataset.shelf;
    for (const shelf of shelves) {
      shelf.hidden = shelf.dataset.shelf !== name;
      let visible = 0;
      for (const card of shelf.querySelectorAll(".card")) {
        card.hidden = differ.checked && card.dataset.differ === "no";
        visible += !card.hidden;
      }
      shelf.querySelector(".empty").hidden = visible > 0;
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show();
    });
  }
  differ.addEventListener("change", show);
  show();
})();
