// The page is whole without this script, which adds how strongly label maps cover their photos, and sorting.
for (const element of all(".hint, .control")) element.hidden = false;

const opacity = document.getElementById("opacity");
opacity.addEventListener("input", () => {
  document.documentElement.style.setProperty("--opacity", opacity.value / 100);
  document.getElementById("shown-opacity").textContent = `${opacity.value} %`;
});

for (const table of all("table.classes")) makeSortable(table);
